//! `mcastor mnat-ingress` and `mnat-egress`: flags, paths and joinfiles of the prototype's
//! containers.
//!
//! The paths are fixed, so each process runs in its own mount namespace, where `/etc` and `/run`
//! are folders of the laboratory.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::cases;
use super::mnat::{G, LONG, MnatTopology};
use crate::lab::mnat::{Ca, ServerState};
use crate::lab::{BINARY, Lab, Ns, Program, eventually, http, wait_until};

cases!("mnat_flags":
    flags_alone_configure_an_egress,
    ingress_finds_files_at_container_paths,
    mounted_joinfile_is_written_in_place,
    egress_accepts_each_flag,
    invalid_flags_are_refused,
);

/// The folders that a process sees as `/etc` and `/run`.
struct Mounts {
    etc: PathBuf,
    run: PathBuf,
    socket: PathBuf,
}

impl Mounts {
    fn new(lab: &Lab) -> Self {
        let mounts = Self {
            etc: lab.file("etc"),
            run: lab.file("run"),
            socket: lab.file("mcastor.sock"),
        };
        fs::create_dir_all(mounts.etc.join("mnat")).unwrap();
        fs::create_dir(&mounts.run).unwrap();
        mounts
    }

    /// Writes a file of `/etc/mnat`.
    fn write_etc(&self, name: &str, text: &str) {
        fs::write(self.etc.join("mnat").join(name), text).unwrap();
    }

    /// Returns the path of `/var/run/mnat/<name>`, which is below `/run`.
    fn state_file(&self, name: &str) -> PathBuf {
        self.run.join("mnat").join(name)
    }

    /// Runs `mcastor <args>` after the shell commands `mount_script`.
    fn start(&self, lab: &Lab, ns: &Ns, mount_script: &str, args: &[&str]) -> Program {
        let mut command = ns.command("unshare");
        let (etc, run) = (self.etc.display(), self.run.display());
        let script =
            format!("mount --bind {run} /run; {mount_script} mount --bind {etc} /etc; exec \"$@\"");
        command.args(["-m", "sh", "-ec", &script, "sh", BINARY]);
        command.args(args);
        command.env("MCASTOR__CONTROL__SOCKET", &self.socket);
        Program::start(lab, command)
    }
}

fn get(ns: &Ns, path: &str) -> String {
    let address = "127.0.0.1:9464".parse().unwrap();
    let answer = http::get(ns, address, path);
    answer.map(|a| a.body).unwrap_or_default()
}

/// Waits until `show mnat` matches `want` and returns it.
#[track_caller]
fn shown(ns: &Ns, want: impl Fn(&str) -> bool) -> String {
    let mut shown = String::new();
    let matched = wait_until(LONG, || {
        shown = get(ns, "/api/v1/mnat");
        want(&shown)
    });
    assert!(matched, "{shown}");
    shown
}

/// Returns whether the content of a file is `text`.
fn holds(path: &Path, text: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|t| t == text)
}

fn files(folder: &Path) -> Vec<String> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files
        .map(|f| f.file_name().to_string_lossy().into_owned())
        .collect()
}

const IN_AND_MID: [&str; 6] = [
    "--server",
    "10.9.0.2",
    "--upstream-interface",
    "in",
    "--downstream-interface",
    "mid",
];

/// Without a CA file, the CAs of the system are trusted.
fn flags_alone_configure_an_egress(lab: &Lab) {
    let topology = MnatTopology::new(lab);
    let server_state = ServerState::starting_at(0);
    let _server = topology.serve(&server_state);
    let reads = lab.file("egress.sgs");
    std::fs::write(&reads, "10.0.0.10,232.1.1.1\nnonsense\n").unwrap();
    let mut command = topology.egr.command(BINARY);
    command
        .args(["mnat-egress", "--server", "10.9.0.2", "--port", "8443"])
        .args([
            "--upstream-interface",
            "net0",
            "--downstream-interface",
            "out",
            "-f",
        ])
        .arg(&reads)
        .env("SSL_CERT_FILE", &topology.ca_file)
        .env("MCASTOR__CONTROL__SOCKET", lab.file("mcastor.sock"));
    let program = Program::start(lab, command);
    shown(&topology.egr, |s| {
        s.contains("\"local_group\":\"239.1.1.1\"")
    });
    let log = program.stderr();
    let named = format!(
        "{}: invalid lines are skipped: line 2: expected `source,group`",
        reads.display()
    );
    assert!(log.contains(&named), "{log}");
}

/// Without flags, CA, client certificate, port and joinfile are those of the container. The server
/// requires a client certificate.
fn ingress_finds_files_at_container_paths(lab: &Lab) {
    let topology = MnatTopology::new(lab);
    let server_state = ServerState::starting_at(0);
    server_state.lock().unwrap().add_remote_join("10.0.0.10", G);
    server_state.lock().unwrap().refresh = 1;
    let clients = Ca::new();
    let mounts = Mounts::new(lab);
    mounts.write_etc("ca.pem", &topology.ca.pem());
    mounts.write_etc("client.pem", &clients.sign(&["ingress"], 0).pem);
    let server = topology.serve_at("10.9.0.2:8443", Some(clients), &server_state);
    let args = [&["mnat-ingress"], &IN_AND_MID[..], &["--grace", "1s"]].concat();
    let program = mounts.start(lab, &topology.ing, "", &args);
    let joined = mounts.state_file("ingress-joined.sgs");
    // The folder did not exist. The ingress rewrites the file as its heartbeat.
    let inode = || fs::metadata(&joined).map_or(0, |m| m.ino());
    let written = wait_until(LONG, || holds(&joined, "10.0.0.10,232.1.1.1\n"));
    assert!(written, "{}", program.stderr());
    let first = inode();
    assert!(wait_until(LONG, || inode() != first), "no heartbeat");
    assert!(holds(&joined, "10.0.0.10,232.1.1.1\n"));
    eventually(
        "no other file is left",
        vec!["ingress-joined.sgs".to_string()],
        || files(joined.parent().unwrap()),
    );
    let end = shown(&topology.ing, |s| s.contains("\"state\":\"assigned\""));
    for field in [
        "\"role\":\"ingress\"",
        "\"server\":\"10.9.0.2:8443\"",
        "\"upstream\":\"in\"",
        "\"downstream\":\"mid\"",
    ] {
        assert!(end.contains(field), "{end}");
    }
    // By default mappings last for five minutes. This `--grace` is shorter than 2.5 refresh periods
    // of a second, so the refresh periods apply.
    drop(server);
    shown(&topology.ing, |s| s.contains("\"mappings\":[]"));
}

/// A mounted file cannot be replaced (EBUSY), and no file can be created beside it if the folder is
/// read-only.
fn mounted_joinfile_is_written_in_place(lab: &Lab) {
    let topology = MnatTopology::new(lab);
    let server_state = ServerState::starting_at(0);
    server_state.lock().unwrap().add_remote_join("10.0.0.10", G);
    let _server = topology.serve(&server_state);
    for folder in ["rw", "ro"] {
        let container = Mounts::new(lab);
        container.write_etc("ca.pem", &topology.ca.pem());
        let outside = lab.file("outside.sgs");
        // Longer than the new content, so that a failure to truncate would show.
        fs::write(&outside, "10.0.0.77,232.7.7.7\n".repeat(9)).unwrap();
        let inode = fs::metadata(&outside).unwrap().ino();
        let inside = container.state_file("ingress-joined.sgs");
        fs::create_dir(inside.parent().unwrap()).unwrap();
        fs::write(&inside, "").unwrap();
        let mounts = format!(
            "mount --bind {} /run/mnat/ingress-joined.sgs; mount -o remount,bind,{folder} /run;",
            outside.display()
        );
        let args = [&["mnat-ingress"], &IN_AND_MID[..]].concat();
        let program = container.start(lab, &topology.ing, &mounts, &args);
        let written = wait_until(LONG, || holds(&outside, "10.0.0.10,232.1.1.1\n"));
        assert!(written, "{folder}: {}", program.stderr());
        let time = || {
            let m = fs::metadata(&outside).unwrap();
            (m.mtime(), m.mtime_nsec())
        };
        let first = time();
        assert!(wait_until(LONG, || time() != first), "no heartbeat");
        assert_eq!(fs::metadata(&outside).unwrap().ino(), inode);
        // The file below the mount point was never changed, and no other file is left.
        eventually("the file below is empty", true, || holds(&inside, ""));
        eventually(
            "no other file is left",
            vec!["ingress-joined.sgs".to_string()],
            || files(inside.parent().unwrap()),
        );
        let log = program.stderr();
        assert!(!log.contains("cannot write"), "{log}");
        drop(program);
    }
}

/// Every flag has a value other than its default. The joinfile is a mount point that is written in
/// place from outside.
fn egress_accepts_each_flag(lab: &Lab) {
    let topology = MnatTopology::new(lab);
    let server_state = ServerState::starting_at(0);
    server_state.lock().unwrap().refresh = 1;
    let server = topology.serve_at("10.9.0.2:9443", None, &server_state);
    let container = Mounts::new(lab);
    container.write_etc("ca.pem", &topology.ca.pem());
    let outside = lab.file("outside.sgs");
    fs::write(&outside, "10.0.0.10,232.1.1.1\n").unwrap();
    let mounts = format!(
        "mkdir -p /run/mnat; touch /run/mnat/egress.sgs; \
         mount --bind {} /run/mnat/egress.sgs;",
        outside.display()
    );
    let common = [
        "mnat-egress",
        "--server",
        "10.9.0.2",
        "--port",
        "9443",
        "--upstream-interface",
        "net0",
        "--downstream-interface",
        "out",
        "--grace",
        "1s",
    ];
    let querier = || get(&topology.egr, "/metrics").contains("\nmcastor_querier{");
    let hosts = ["--joinfile", "/var/run/mnat/egress.sgs"];
    let alone = ["-f", "/var/run/mnat/egress.sgs", "--joins", "joinfile"];
    let both = [&hosts[..], &["--joins", "members,joinfile"]].concat();
    for (more, is_querier) in [(&hosts[..], true), (&both, true), (&alone, false)] {
        let args = [&common[..], more].concat();
        let program = container.start(lab, &topology.egr, &mounts, &args);
        let end = shown(&topology.egr, |s| {
            s.contains("\"local_group\":\"239.1.1.1\"")
        });
        for field in [
            "\"role\":\"egress\"",
            "\"server\":\"10.9.0.2:9443\"",
            "\"upstream\":\"net0\"",
            "\"downstream\":\"out\"",
        ] {
            assert!(end.contains(field), "{end}");
        }
        // An egress with `members` is querier of its hosts before the first mapping exists.
        match is_querier {
            true => eventually("the egress is querier", true, querier),
            false => assert!(!querier(), "the egress is querier"),
        }
        drop(program);
    }
    let args = [&common[..], &alone].concat();
    let _program = container.start(lab, &topology.egr, &mounts, &args);
    shown(&topology.egr, |s| s.contains("\"group\":\"232.1.1.1\""));
    fs::write(&outside, "10.0.0.10,232.1.1.2\n").unwrap();
    shown(&topology.egr, |s| {
        s.contains("\"group\":\"232.1.1.2\"") && !s.contains("\"group\":\"232.1.1.1\"")
    });
    shown(&topology.egr, |s| s.contains("\"state\":\"assigned\""));
    drop(server);
    shown(&topology.egr, |s| s.contains("\"state\":\"unassigned\""));
}

fn invalid_flags_are_refused(lab: &Lab) {
    let ns = lab.ns("one");
    let ends = ["--upstream-interface", "a", "--downstream-interface", "b"];
    let full = [&["--server", "s"], &ends[..]].concat();
    let with = |more: &[&'static str]| [&full[..], more].concat();
    let faults: [(&str, Vec<&str>, &str); 9] = [
        ("mnat-ingress", ends.to_vec(), "--server"),
        ("mnat-ingress", full[..4].to_vec(), "--downstream-interface"),
        ("mnat-egress", with(&["--port", "0"]), "--port"),
        ("mnat-egress", with(&["--grace", "soon"]), "--grace"),
        ("mnat-egress", with(&["--joins", "igmp"]), "--joins"),
        ("mnat-egress", with(&["--joins", "joinfile"]), "--joinfile"),
        ("mnat-egress", with(&["-f"]), "--joinfile"),
        ("mnat-ingress", with(&["-f", "/tmp/x"]), "-f"),
        (
            "mnat-ingress",
            [
                "--server",
                "s",
                "--upstream-interface",
                "a",
                "--downstream-interface",
                "a",
            ]
            .to_vec(),
            "--upstream-interface and --downstream-interface must differ",
        ),
    ];
    for (command, flags, named) in faults {
        let out = ns.output(BINARY, &[&[command], &flags[..]].concat());
        let printed = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{command} {flags:?}: {printed}");
        assert!(printed.contains(named), "{command} {flags:?}: {printed}");
    }
}
