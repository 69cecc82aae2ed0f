//! Settings from an `smcroute.conf`.

use crate::model::KernelForwarding;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::file::MAX_FILE;
use super::key_path::KeyPath;
use super::report::{Problem, SourceLocation};
use super::validated::{InterfaceSettings, Settings};
use crate::igmpproxy::conf as igmpproxy;
use crate::smcroute::conf::{self, Conf};

/// Whether `file` is an `smcroute.conf`: its name does not end in `.toml`, and its contents read as
/// one. An unreadable file is not; the caller then reports the error when it reads the file.
pub(super) fn is_smcroute_conf(file: &Path) -> bool {
    if file.extension().is_some_and(|e| e == "toml") {
        return false;
    }
    read_file(file).is_ok_and(|bytes| conf::is_smcroute_format(&String::from_utf8_lossy(&bytes)))
}

/// Refuses an `igmpproxy.conf`, in which the parser for `smcroute.conf` would find no routes.
pub(super) fn refuse_igmpproxy_conf(file: &Path) -> Result<(), Box<Problem>> {
    let is_igmpproxy = read_file(file)
        .is_ok_and(|bytes| igmpproxy::is_igmpproxy_format(&String::from_utf8_lossy(&bytes)));
    if !is_igmpproxy {
        return Ok(());
    }
    let name = file.display().to_string();
    let help = format!(
        "mcastor convert --from igmpproxy {name} > mcastor.toml. It also tells what has no \
         counterpart."
    );
    Err(Box::new(Problem::new(
        SourceLocation::UnreadableFile { file: name },
        &KeyPath::default(),
        "the configuration of igmpproxy, which `mcastor convert --from igmpproxy` converts",
        "TOML settings or an smcroute.conf",
        help,
    )))
}

/// Refuses TOML settings, of which the parser for `smcroute.conf` would refuse each line.
pub(super) fn refuse_toml(file: &Path) -> Result<(), Box<Problem>> {
    let is_toml =
        read_file(file).is_ok_and(|bytes| conf::is_toml_format(&String::from_utf8_lossy(&bytes)));
    if !is_toml {
        return Ok(());
    }
    let name = file.display().to_string();
    Err(Box::new(Problem::new(
        SourceLocation::UnreadableFile { file: name.clone() },
        &KeyPath::default(),
        format!("TOML settings, which `mcastor run --config {name}` reads without conversion"),
        "an smcroute.conf",
        "",
    )))
}

fn read_file(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file)?
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!("larger than {MAX_FILE} bytes")));
    }
    Ok(bytes)
}

/// Reads `file` and the files it includes.
pub fn read(file: &Path, strict: bool) -> Conf {
    let path = file.display().to_string();
    conf::read(&path, strict, &mut |pattern| {
        // The name of the file itself is not a pattern, even where it looks like one.
        if pattern == path {
            return match read_file(file) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
                bytes => Ok(vec![(path.clone(), bytes)]),
            };
        }
        let files = glob::glob(pattern).map_err(io::Error::other)?;
        let contents = files.map(|file| match file {
            Ok(path) => (path.display().to_string(), read_file(&path)),
            Err(e) => (e.path().display().to_string(), Err(e.into())),
        });
        Ok(contents.collect())
    })
}

/// Adds the rules of `conf` to `settings`.
pub(super) fn add(mut settings: Settings, conf: &Conf) -> Settings {
    let options = conf.interfaces.iter().map(|i| InterfaceSettings {
        name: i.name.clone(),
        ttl_threshold: i.ttl_threshold,
        enabled: !i.disabled,
        mrdisc: i.mrdisc,
        capture: i.capture,
        kernel_forwarding: KernelForwarding::Auto,
        igmp_version: None,
        mld_version: None,
        refresh: None,
        bandwidth: None,
    });
    settings.interfaces.extend(options);
    let routes = conf.routes.iter().map(|(_, rule)| rule.clone());
    settings.routes.extend(routes);
    let joins = conf.joins.iter().map(|(_, rule)| rule.clone());
    settings.joins.extend(joins);
    settings.unreadable.clone_from(&conf.unreadable);
    settings.skipped = conf.faults.iter().map(ToString::to_string).collect();
    let kernel_note = (!conf.routes.is_empty()).then(|| conf::KERNEL_NOTE.to_string());
    let notes = conf.notes.iter().map(ToString::to_string);
    settings.doubtful = notes.chain(kernel_note).collect();
    settings
}
