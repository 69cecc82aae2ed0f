//! Checks of the tables that occur once: `[http]`, `[control]`, `[state]`, `[docker]`, `[plane]`, `[log]`,
//! `[mrdisc]` and `[limits]`.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::checker::{Checker, default_boolean, default_string};
use super::key_path::KeyPath;
use super::raw::{
    RawControl, RawDocker, RawHttp, RawLimits, RawLog, RawMrdisc, RawPlane, RawState,
};
use super::validated::{
    ControlSettings, DockerSettings, HttpAddress, HttpSettings, LimitSettings, LogFormat,
    LogSettings, MrdiscSettings, PlaneKind, PlaneSettings, StateSettings,
};
use super::words::{did_you_mean, quoted_list};

pub(super) fn check_http(checker: &mut Checker<'_>, raw: RawHttp) -> HttpSettings {
    let path = KeyPath::root("http");
    let names = raw.hosts.unwrap_or_default().into_iter().enumerate();
    let names = names.filter_map(|(n, name)| Some((path.key("hosts").index(n), name?)));
    HttpSettings {
        listen: check_listen(checker, &path.key("listen"), raw.listen),
        hosts: names
            .filter_map(|(path, name)| check_host_name(checker, &path, &name))
            .collect(),
        api: raw.api.unwrap_or(default_boolean(&path.key("api"))),
        api_is_default: raw.api.is_none(),
    }
}

fn check_listen(
    checker: &mut Checker<'_>,
    path: &KeyPath,
    text: Option<String>,
) -> Option<HttpAddress> {
    let text = text.unwrap_or_else(|| default_string(path).into());
    if text == "off" {
        return None;
    }
    if let Some(socket) = text.strip_prefix("unix:") {
        return Some(HttpAddress::Unix(checker.http_socket_path(path, socket)));
    }
    let listen = text.parse::<SocketAddr>().ok();
    if listen.is_none() {
        let help = listen_help(&text);
        let expected = "an address and port, \"unix:PATH\", or \"off\"";
        checker.refuse(path, format!("{text:?}"), expected, help);
    }
    listen.map(HttpAddress::Tcp)
}

/// Checks a name that a client may write in `Host`.
fn check_host_name(checker: &mut Checker<'_>, path: &KeyPath, text: &str) -> Option<String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let is_label = |label: &str| {
        let is_valid = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        (1..=63).contains(&label.len()) && label.chars().all(is_valid)
    };
    if name.len() <= 253 && name.split('.').all(is_label) {
        return Some(name);
    }
    let without_scheme = name.split_once("://").map_or(&*name, |(_, rest)| rest);
    let host = without_scheme.split(['/', ':']).next().unwrap_or_default();
    let help = match host.split('.').all(is_label) {
        true => format!("Give the name alone: {host:?}."),
        false if host.contains('*') => "Patterns are not supported. List each name.".into(),
        false => "For example: hosts = [\"mcastor.example.net\"].".into(),
    };
    checker.refuse(path, format!("{text:?}"), "a host name", help);
    None
}

fn listen_help(text: &str) -> String {
    if text.starts_with('/') {
        return format!("For a UNIX socket: \"unix:{text}\".");
    }
    let port = text.strip_prefix(':').unwrap_or(text);
    let port = port.strip_prefix("*:").unwrap_or(port);
    if port.parse::<u16>().is_ok() {
        return format!(
            "Add the address: \"127.0.0.1:{port}\" for this machine only, \"0.0.0.0:{port}\" for \
             all interfaces."
        );
    }
    let is_bare_v6 = text.matches(':').count() > 1 && !text.starts_with('[');
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V4(addr)) => return format!("Add the port: \"{addr}:9464\"."),
        Ok(IpAddr::V6(addr)) => return format!("Add the port: \"[{addr}]:9464\"."),
        Err(_) if is_bare_v6 => return "Put an IPv6 address in brackets: \"[::1]:9464\".".into(),
        Err(_) => {}
    }
    match text.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_err() => {
            "A port is a number from 0 to 65535.".into()
        }
        Some((host, port)) if host.parse::<IpAddr>().is_err() => {
            format!("Names are not resolved. Write the address: \"127.0.0.1:{port}\".")
        }
        _ => "For example: listen = \"127.0.0.1:9464\".".into(),
    }
}

pub(super) fn check_control(checker: &mut Checker<'_>, raw: RawControl) -> ControlSettings {
    let path = KeyPath::root("control").key("socket");
    ControlSettings {
        socket: checker.socket_path(&path, raw.socket),
    }
}

pub(super) fn check_state(checker: &mut Checker<'_>, raw: RawState) -> StateSettings {
    let path = KeyPath::root("state").key("dir");
    match raw.dir.as_deref() {
        None => StateSettings::BesideControlSocket,
        Some("off") => StateSettings::Off,
        Some(dir) => {
            let is_valid = Path::new(dir).is_absolute() && !dir.contains('\0');
            if !is_valid || Path::new(dir).parent().is_none() {
                let help = "The daemon has no working directory of its own: dir = \
                            \"/run/mcastor/state\", for example.";
                let expected = "an absolute path of a folder, or \"off\"";
                checker.refuse(&path, format!("{dir:?}"), expected, help);
            }
            StateSettings::Folder(dir.into())
        }
    }
}

pub(super) fn check_docker(checker: &mut Checker<'_>, raw: RawDocker) -> DockerSettings {
    let path = KeyPath::root("docker").key("socket");
    DockerSettings {
        socket: checker.socket_path(&path, raw.socket),
    }
}

pub(super) fn check_plane(checker: &mut Checker<'_>, raw: RawPlane) -> PlaneSettings {
    let path = KeyPath::root("plane");
    let kinds = [
        ("auto", PlaneKind::Auto),
        ("packet", PlaneKind::Packet),
        ("ebpf", PlaneKind::Ebpf),
    ];
    let bypass = path.key("qdisc_bypass");
    let poll = path.key("busy_poll");
    let help = "For this long after a packet, the thread polls for the next one. 0 disables it.";
    let poll_us = checker.integer_or_default(&poll, raw.busy_poll, help);
    let help = "More packets of unknown flows are dropped in the kernel. 0: no limit.";
    let unknown = path.key("unknown_packets");
    let unknown = checker.integer_or_default(&unknown, raw.unknown_packets, help);
    let bpffs = path.key("bpffs");
    let bpffs = checker.folder_or_off(&bpffs, raw.bpffs);
    let orphan_after = checker.duration_or_default(&path.key("orphan_after"), raw.orphan_after);
    let shared = path.key("shared");
    PlaneSettings {
        shared: raw.shared.unwrap_or(default_boolean(&shared)),
        bpffs,
        orphan_after,
        unknown_packets: unknown.unsigned_abs(),
        kind: checker.word(&path.key("kind"), raw.kind, &kinds),
        qdisc_bypass: raw.qdisc_bypass.unwrap_or(default_boolean(&bypass)),
        busy_poll: Duration::from_micros(poll_us.unsigned_abs()),
    }
}

pub(super) fn check_log(checker: &mut Checker<'_>, raw: RawLog) -> LogSettings {
    let path = KeyPath::root("log");
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let format = checker.word(&path.key("format"), raw.format, &formats);
    let path = path.key("level");
    let level = raw.level.unwrap_or_else(|| default_string(&path).into());
    if !is_filter(&level) {
        let levels = ["error", "warn", "info", "debug", "trace"];
        let help = did_you_mean(&level, levels).unwrap_or_else(|| {
            "An example of directives: level = \"info,mcastor::settings=debug\".".into()
        });
        let expected = format!("{}, or filter directives", quoted_list(levels));
        checker.refuse(&path, format!("{level:?}"), expected, help);
    }
    LogSettings { level, format }
}

/// Whether the text is a level or a list of filter directives.
///
/// A single word that is not a level would parse as the name of a module, and only this module
/// would be logged. The word is most likely a misspelt level and is not accepted.
fn is_filter(text: &str) -> bool {
    let is_word = !text.contains(['=', ',', '[', ':']);
    if is_word {
        return text.parse::<LevelFilter>().is_ok();
    }
    EnvFilter::builder().parse(text).is_ok()
}

/// Checks the interval of advertisements; its range is that of MaxAdvertisementInterval in
/// RFC 4286 section 3.1.
pub(super) fn check_mrdisc(checker: &mut Checker<'_>, raw: RawMrdisc) -> MrdiscSettings {
    let path = KeyPath::root("mrdisc").key("interval");
    MrdiscSettings {
        interval: checker.duration_or_default(&path, raw.interval),
    }
}

pub(super) fn check_limits(checker: &mut Checker<'_>, raw: RawLimits) -> LimitSettings {
    let path = KeyPath::root("limits");
    let help = "A flow takes about 250 bytes of memory.";
    let flows = checker.integer_or_default(&path.key("flows"), raw.flows, help);
    let help = "A flow is removed this long after its last packet.";
    let flow_idle = checker.integer_or_default(&path.key("flow_idle"), raw.flow_idle, help);
    let help = "A stream takes about 20 kB of memory.";
    let monitored = path.key("monitored_streams");
    let monitored = checker.integer_or_default(&monitored, raw.monitored_streams, help);
    LimitSettings {
        flows: flows as usize,
        flow_idle: flow_idle as u32,
        monitored_streams: monitored as usize,
    }
}
