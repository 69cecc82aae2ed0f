//! `smcroute.conf`: invalid lines are reported with file, line and reason, and the other lines
//! apply. Valid files have the same meaning as the TOML they convert to.

use std::path::PathBuf;

use mcastor::settings::{MAX_FILE, Settings, read_smcroute};
use mcastor::smcroute::convert::convert;

const GOOD: &str = "mroute from good0 group 225.0.0.1 to good1";

fn corpus() -> Vec<(String, String)> {
    let lines = include_str!("smcroute/bad.txt").lines();
    let bad = lines.filter(|l| !l.starts_with("# "));
    let split = |l: &str| {
        l.split_once(" => ")
            .map(|(a, b)| (a.to_string(), b.to_string()))
    };
    let mut all: Vec<(String, String)> = bad.map(|l| split(l).expect(l)).collect();
    let control = |c: char| format!("mroute from eth0 group 225.1.2.3{c} to eth1");
    all.push((control('\0'), "control character '\\0'".into()));
    all.push((control('\u{7}'), "control character '\\u{7}'".into()));
    let many: String = (0..65).map(|n| format!(" eth{n}")).collect();
    let many = format!("mroute from in group 225.1.2.3 to{many}");
    all.push((many, "65 egress interfaces; at most 64".into()));
    all
}

#[test]
fn invalid_lines_are_reported_with_file_line_and_reason() {
    let all = corpus();
    assert!(all.len() >= 50);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bad.conf");
    let shown = path.display().to_string();
    for (line, cause) in &all {
        let line = line.replace("include bad.conf", &format!("include {shown}"));
        std::fs::write(&path, format!("{GOOD}\n\n{line}\n{GOOD}2\n")).unwrap();
        let conf = read_smcroute(&path, false);
        let faults: Vec<String> = conf.faults.iter().map(ToString::to_string).collect();
        assert_eq!(faults.len(), 1, "{line}: {faults:?}");
        let location = format!("{shown} line 3: ");
        assert!(
            faults[0].starts_with(&location) && faults[0].contains(cause),
            "{line}: {faults:?}"
        );
        assert_eq!(conf.routes.len(), 1, "{line}");
        assert_eq!(
            conf.routes[0].1.to.len(),
            2,
            "{line}: the next line applies"
        );
    }
    // All invalid lines in one file.
    let text: String = all.iter().map(|(line, _)| format!("{line}\n")).collect();
    std::fs::write(
        &path,
        format!(
            "{GOOD}\n{}",
            text.replace("include bad.conf", &format!("include {shown}"))
        ),
    )
    .unwrap();
    let conf = read_smcroute(&path, false);
    let lines: Vec<usize> = conf.faults.iter().map(|f| f.location.line).collect();
    assert_eq!(lines, (2..all.len() + 2).collect::<Vec<_>>());
}

#[test]
fn invalid_bytes_and_unreadable_files_are_reported() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.conf");
    std::fs::write(&path, b"mroute from \xff\xfe group\n").unwrap();
    let faults = |path: &PathBuf| {
        let conf = read_smcroute(path, false);
        conf.faults
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert!(faults(&path)[0].ends_with("line 1: not UTF-8 from byte 13 on"));
    std::fs::write(&path, "a".repeat(10_000)).unwrap();
    assert!(faults(&path)[0].ends_with("line 1: longer than 8192 bytes"));
    std::fs::write(&path, "\n".repeat(MAX_FILE as usize + 1)).unwrap();
    assert!(
        faults(&path)[0].contains("larger than"),
        "{:?}",
        faults(&path)
    );
    assert!(faults(&directory.path().to_path_buf())[0].contains("cannot be read"));
    assert!(faults(&directory.path().join("none"))[0].ends_with("does not exist"));
}

const ALL_DIRECTIVES: &str = "\
# The cameras of hall 3
phyint eth1 enable ttl-threshold 3 # to the office
phyint eth+ mrdisc
phyint dummy0 disable
mgroup from eth0 group 225.1.2.0/30
mgroup from eth0 source 10.0.0.0/31 group 232.1.2.3
mroute from eth0 group 225.1.2.3 to eth1 \t eth2
mroute from eth0 group 225.1.2.3 to eth3   # more of the same
mroute from eth0 source 10.0.0.10 group 225.1.2.4 to eth+
mroute from br+ group 225.9.0.0/16 source 10.0.0.0/8 to eth1 br0 ttl set 8 except 10.0.0.1,10.1.0.0/16
mroute from eth0 group ff0e::42 to eth1 ttl keep
mroute from eth0 group 224.0.0.9 to eth1
mroute from eth0 group 225.9.1.0/24 # silence
mroute from eth0 group 225.9.2.1 to
mroute from eth0 group 225.9.3.1 to eth0
phyint eth+ ttl-threshold 9
phyint eth1 mrdisc # alone
phyint + ttl-threshold 4
phyint br+
include more/*.conf
";

#[test]
fn converted_toml_has_the_same_rules_and_comments() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("more")).unwrap();
    let include = directory.path().join("more/*.conf").display().to_string();
    for (n, name) in ["b.conf", "a.conf", "c.txt"].iter().enumerate() {
        let line = format!("# file {n}\nmroute from eth0 group 225.8.8.{n} to eth1\n");
        std::fs::write(directory.path().join("more").join(name), line).unwrap();
    }
    let path = directory.path().join("smcroute.conf");
    std::fs::write(&path, ALL_DIRECTIVES.replace("more/*.conf", &include)).unwrap();
    let settings = Settings::load(Some(&path), std::iter::empty()).unwrap();
    assert_eq!(settings.skipped, [""; 0]);
    assert_eq!(settings.doubtful.len(), 3 + 1, "{:?}", settings.doubtful);
    assert_eq!(settings.routes.len(), 9);
    for (n, route) in settings.routes[4..6].iter().enumerate() {
        assert_eq!(route.to, [], "{route:?}");
        let note = "mroute: no egress interface; matching packets are dropped";
        let note = format!("line {}: {note}", 13 + n);
        assert!(
            settings.doubtful.iter().any(|text| text.ends_with(&note)),
            "{:?}",
            settings.doubtful
        );
    }
    // Files are included in the order of their names.
    assert_eq!(settings.routes[7].group.to_string(), "225.8.8.1");
    let toml = convert(&read_smcroute(&path, false));
    for comment in [
        "# The cameras of hall 3",
        "# to the office",
        "# more of the same",
        "# file 0",
    ] {
        assert!(toml.contains(comment), "{toml}");
    }
    let converted = directory.path().join("made.toml");
    std::fs::write(&converted, &toml).unwrap();
    let same = Settings::load(Some(&converted), std::iter::empty());
    let mut same = same.unwrap_or_else(|report| panic!("{report}\n{toml}"));
    same.doubtful.clone_from(&settings.doubtful);
    assert_eq!(same, settings, "{toml}");
}

#[test]
fn strict_accepts_routes_without_egress() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.conf");
    std::fs::write(
        &path,
        "mroute from eth0 group 225.1.2.4\nmroute from eth0 group 225.1.2.5 to\n",
    )
    .unwrap();
    let conf = read_smcroute(&path, true);
    assert_eq!(
        (conf.faults.len(), conf.routes.len(), conf.notes.len()),
        (0, 2, 2)
    );
}

#[test]
fn egress_without_to_is_noted_with_the_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.conf");
    std::fs::write(&path, "mroute from eth0 group 225.1.2.3 eth1\n").unwrap();
    let conf = read_smcroute(&path, false);
    let notes: Vec<String> = conf.notes.iter().map(ToString::to_string).collect();
    let remedy = "line 1: mroute: no egress interface; matching packets are dropped; write \"to\" \
                  before \"eth1\"";
    assert!(notes.iter().any(|note| note.ends_with(remedy)), "{notes:?}");
}

/// One message names the mistake, instead of one for each line.
#[test]
fn toml_is_refused_by_smcrouted_and_convert() {
    use std::process::Command;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("st.conf");
    for text in [
        "# cameras\n\n[[route]]\nfrom = \"eth0\"\ngroup = \"225.1.2.3\"\nto = [\"eth1\"]\n",
        "http.listen = \"off\"\n",
    ] {
        std::fs::write(&path, text).unwrap();
        let report = Settings::load_smcroute(&path, false, std::iter::empty()).unwrap_err();
        assert_eq!(report.problems().len(), 1, "{report}");
        let path = path.display().to_string();
        let expected = format!(
            "{path}: found TOML settings, which `mcastor run --config {path}` reads without \
             conversion, expected an smcroute.conf"
        );
        assert_eq!(report.to_string(), expected);
        for (words, code) in [(&["smcrouted", "-F"][..], 78), (&["convert"], 2)] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_mcastor"));
            let output = command.args(words).arg(&path).output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(
                stderr.trim_end().ends_with(&expected),
                "{words:?}: {stderr}"
            );
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
            assert_eq!((output.stdout.len(), output.status.code()), (0, Some(code)));
        }
    }
    // A line without a directive of smcroute is still reported by itself.
    std::fs::write(&path, "routes eth0 = eth1\n").unwrap();
    assert_eq!(read_smcroute(&path, false).faults.len(), 1);
    assert!(Settings::load_smcroute(&path, false, std::iter::empty()).is_ok());
}

#[test]
fn client_without_daemon_says_how_to_start_one() {
    use std::process::Command;
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("none.sock");
    for words in [
        &["smcroutectl", "show"][..],
        &["smcroute", "-j", "eth0", "225.1.2.3"],
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mcastor"));
        let output = command.args(words).arg("-u").arg(&socket).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let failed = format!(
            "Failed connecting to daemon at {}: No such file",
            socket.display()
        );
        assert!(stderr.contains(&failed), "{stderr}");
        assert!(stderr.contains("is smcrouted running"), "{stderr}");
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn closed_stdout_does_not_panic() {
    use std::process::{Command, Stdio};
    for words in [
        ["completions", "bash", "smcrouted"].as_slice(),
        &["man", "smcrouted"],
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mcastor"));
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command.args(words).stdout(writer).stderr(Stdio::piped());
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*stderr), (Some(0), ""), "{words:?}");
    }
}

#[test]
fn toml_is_read_under_any_file_name() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["a.conf", "a.toml", "a"] {
        let path = directory.path().join(name);
        std::fs::write(
            &path,
            "[[route]]\nfrom = \"a\"\ngroup = \"225.1.2.3\"\nto = [\"b\"]\n",
        )
        .unwrap();
        let settings = Settings::load(Some(&path), std::iter::empty()).unwrap();
        assert_eq!(settings.routes.len(), 1, "{name}");
    }
    let path = directory.path().join("b.toml");
    std::fs::write(&path, GOOD).unwrap();
    assert!(Settings::load(Some(&path), std::iter::empty()).is_err());
}

#[test]
fn unit_is_sandboxed_and_accepts_smcroute_options() {
    let unit = include_str!("../conf/systemd/mcastor-smcroute.service");
    let value = |key: &str| {
        let line = unit
            .lines()
            .find_map(|l| l.strip_prefix(&format!("{key}=")));
        line.unwrap_or_else(|| panic!("no {key}="))
    };
    assert_eq!(value("Type"), "notify");
    assert_eq!(value("EnvironmentFile"), "-/etc/default/smcroute");
    assert!(value("WatchdogSec").parse::<u32>().is_ok());
    let start = value("ExecStart");
    assert!(start.starts_with("/usr/local/sbin/smcrouted -n -p nobody "));
    assert!(start.ends_with("$SMCROUTED_OPTS $SMCROUTED_ARGS"));
    let allowed = [
        "CAP_NET_ADMIN",
        "CAP_NET_RAW",
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_CHOWN",
    ];
    assert!(
        value("CapabilityBoundingSet")
            .split(' ')
            .all(|c| allowed.contains(&c))
    );
    for key in [
        "NoNewPrivileges",
        "ProtectHome",
        "PrivateDevices",
        "MemoryDenyWriteExecute",
    ] {
        assert_eq!(value(key), "yes");
    }
    assert_eq!(value("ProtectSystem"), "strict");
    // The command line as systemd expands it, with options that an administrator may have set.
    let words = start
        .replace("$SMCROUTED_OPTS", "-N -l debug -p daemon")
        .replace("$SMCROUTED_ARGS", "");
    let words = words.split_whitespace().skip(1).map(String::from);
    let words = ["mcastor", "smcrouted"]
        .into_iter()
        .map(String::from)
        .chain(words);
    assert!(mcastor::cli::command().try_get_matches_from(words).is_ok());
}
