//! `mcastor mnat-ingress` and `mnat-egress`: flags, paths and joinfiles of the prototype's containers.
//!
//! Their paths belong to the machine, so each runs in a mount namespace of its own, where `/etc`
//! and `/run` are folders of the lab.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::cases;
use super::mnat::{G, LONG, Way};
use crate::lab::mnat::{Ca, Owner};
use crate::lab::{BINARY, Lab, Ns, Program, eventually, http, wait_until};

cases!("mnat_flags":
    flags_alone_make_an_egress,
    an_ingress_finds_the_files_of_its_container,
    a_joinfile_that_is_a_mount_point_is_written_in_place,
    an_egress_takes_each_flag,
    flags_that_make_no_sense_are_refused,
);

/// What a container has for `/etc` and `/run`.
struct Rooms {
    etc: PathBuf,
    run: PathBuf,
    socket: PathBuf,
}

impl Rooms {
    fn new(lab: &Lab) -> Self {
        let rooms = Self {
            etc: lab.file("etc"),
            run: lab.file("run"),
            socket: lab.file("mcastor.sock"),
        };
        fs::create_dir_all(rooms.etc.join("mnat")).unwrap();
        fs::create_dir(&rooms.run).unwrap();
        rooms
    }

    /// A file of `/etc/mnat`.
    fn put(&self, name: &str, text: &str) {
        fs::write(self.etc.join("mnat").join(name), text).unwrap();
    }

    /// `/var/run/mnat/<name>`, which is in `/run`.
    fn state(&self, name: &str) -> PathBuf {
        self.run.join("mnat").join(name)
    }

    /// Runs `mcastor <args>`, after `mounts`.
    fn start(&self, lab: &Lab, ns: &Ns, mounts: &str, args: &[&str]) -> Program {
        let mut command = ns.command("unshare");
        let (etc, run) = (self.etc.display(), self.run.display());
        let script =
            format!("mount --bind {run} /run; {mounts} mount --bind {etc} /etc; exec \"$@\"");
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

/// Waits until the one end of `show mnat` is as wanted, and returns it.
#[track_caller]
fn shown(ns: &Ns, want: impl Fn(&str) -> bool) -> String {
    let mut shown = String::new();
    let there = wait_until(LONG, || {
        shown = get(ns, "/api/v1/mnat");
        want(&shown)
    });
    assert!(there, "{shown}");
    shown
}

/// Whether a file holds this.
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

/// Without files of its own it trusts the CAs of the system.
fn flags_alone_make_an_egress(lab: &Lab) {
    let way = Way::new(lab);
    let owner = Owner::starting_at(0);
    let _server = way.serve(&owner);
    let reads = lab.file("egress.sgs");
    std::fs::write(&reads, "10.0.0.10,232.1.1.1\nnonsense\n").unwrap();
    let mut command = way.egr.command(BINARY);
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
        .env("SSL_CERT_FILE", &way.ca_file)
        .env("MCASTOR__CONTROL__SOCKET", lab.file("mcastor.sock"));
    let program = Program::start(lab, command);
    shown(&way.egr, |s| s.contains("\"local_group\":\"239.1.1.1\""));
    let log = program.stderr();
    let named = format!("{}:2: `source,group` is what a line holds", reads.display());
    assert!(log.contains(&named), "{log}");
}

/// No flag names the CA, our certificate, the port or the joinfile: they are where the container has
/// them. The server takes nobody without a certificate.
fn an_ingress_finds_the_files_of_its_container(lab: &Lab) {
    let way = Way::new(lab);
    let owner = Owner::starting_at(0);
    owner.lock().unwrap().elsewhere("10.0.0.10", G);
    owner.lock().unwrap().refresh = 1;
    let clients = Ca::new();
    let rooms = Rooms::new(lab);
    rooms.put("ca.pem", &way.ca.pem());
    rooms.put("client.pem", &clients.sign(&["ingress"], 0).pem);
    let server = way.serve_at("10.9.0.2:8443", Some(clients), &owner);
    let args = [&["mnat-ingress"], &IN_AND_MID[..], &["--grace", "1s"]].concat();
    let program = rooms.start(lab, &way.ing, "", &args);
    let joined = rooms.state("ingress-joined.sgs");
    // Its folder was not there. That it is written is the heartbeat of the ingress.
    let inode = || fs::metadata(&joined).map_or(0, |m| m.ino());
    let written = wait_until(LONG, || holds(&joined, "10.0.0.10,232.1.1.1\n"));
    assert!(written, "{}", program.stderr());
    let first = inode();
    assert!(wait_until(LONG, || inode() != first), "no heartbeat");
    assert!(holds(&joined, "10.0.0.10,232.1.1.1\n"));
    eventually(
        "nothing beside it",
        vec!["ingress-joined.sgs".to_string()],
        || files(joined.parent().unwrap()),
    );
    let end = shown(&way.ing, |s| s.contains("\"state\":\"assigned\""));
    for said in [
        "\"role\":\"ingress\"",
        "\"server\":\"10.9.0.2:8443\"",
        "\"upstream\":\"in\"",
        "\"downstream\":\"mid\"",
    ] {
        assert!(end.contains(said), "{end}");
    }
    // By default mappings would last for five minutes; this `--grace` is shorter than 2.5
    // refreshes of a second, which count.
    drop(server);
    shown(&way.ing, |s| s.contains("\"mappings\":[]"));
}

/// A single file that is mounted cannot be replaced (EBUSY); nor can a file be made beside it where
/// the folder is read-only.
fn a_joinfile_that_is_a_mount_point_is_written_in_place(lab: &Lab) {
    let way = Way::new(lab);
    let owner = Owner::starting_at(0);
    owner.lock().unwrap().elsewhere("10.0.0.10", G);
    let _server = way.serve(&owner);
    for folder in ["rw", "ro"] {
        let rooms = Rooms::new(lab);
        rooms.put("ca.pem", &way.ca.pem());
        let outside = lab.file("outside.sgs");
        // Longer than what comes, so that a rest of it would show.
        fs::write(&outside, "10.0.0.77,232.7.7.7\n".repeat(9)).unwrap();
        let inode = fs::metadata(&outside).unwrap().ino();
        let inside = rooms.state("ingress-joined.sgs");
        fs::create_dir(inside.parent().unwrap()).unwrap();
        fs::write(&inside, "").unwrap();
        let mounts = format!(
            "mount --bind {} /run/mnat/ingress-joined.sgs; mount -o remount,bind,{folder} /run;",
            outside.display()
        );
        let args = [&["mnat-ingress"], &IN_AND_MID[..]].concat();
        let program = rooms.start(lab, &way.ing, &mounts, &args);
        let written = wait_until(LONG, || holds(&outside, "10.0.0.10,232.1.1.1\n"));
        assert!(written, "{folder}: {}", program.stderr());
        let time = || {
            let m = fs::metadata(&outside).unwrap();
            (m.mtime(), m.mtime_nsec())
        };
        let first = time();
        assert!(wait_until(LONG, || time() != first), "no heartbeat");
        assert_eq!(fs::metadata(&outside).unwrap().ino(), inode);
        // What it stands on was never touched, and nothing is left beside it.
        eventually("the file below", true, || holds(&inside, ""));
        eventually(
            "nothing beside it",
            vec!["ingress-joined.sgs".to_string()],
            || files(inside.parent().unwrap()),
        );
        let log = program.stderr();
        assert!(!log.contains("cannot write"), "{log}");
        drop(program);
    }
}

/// Every flag with another value than its default. The joinfile is a mount point, written in place
/// from outside.
fn an_egress_takes_each_flag(lab: &Lab) {
    let way = Way::new(lab);
    let owner = Owner::starting_at(0);
    owner.lock().unwrap().refresh = 1;
    let server = way.serve_at("10.9.0.2:9443", None, &owner);
    let rooms = Rooms::new(lab);
    rooms.put("ca.pem", &way.ca.pem());
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
    let querier = || get(&way.egr, "/metrics").contains("\nmcastor_querier{");
    let hosts = ["--joinfile", "/var/run/mnat/egress.sgs"];
    let alone = ["-f", "/var/run/mnat/egress.sgs", "--joins", "joinfile"];
    let both = [&hosts[..], &["--joins", "members,joinfile"]].concat();
    for (more, asks) in [(&hosts[..], true), (&both, true), (&alone, false)] {
        let args = [&common[..], more].concat();
        let program = rooms.start(lab, &way.egr, &mounts, &args);
        let end = shown(&way.egr, |s| s.contains("\"local_group\":\"239.1.1.1\""));
        for said in [
            "\"role\":\"egress\"",
            "\"server\":\"10.9.0.2:9443\"",
            "\"upstream\":\"net0\"",
            "\"downstream\":\"out\"",
        ] {
            assert!(end.contains(said), "{end}");
        }
        // Who listens to hosts is their querier before the first mapping is there.
        match asks {
            true => eventually("a querier", true, querier),
            false => assert!(!querier(), "asks its hosts"),
        }
        drop(program);
    }
    let args = [&common[..], &alone].concat();
    let _program = rooms.start(lab, &way.egr, &mounts, &args);
    shown(&way.egr, |s| s.contains("\"group\":\"232.1.1.1\""));
    fs::write(&outside, "10.0.0.10,232.1.1.2\n").unwrap();
    shown(&way.egr, |s| {
        s.contains("\"group\":\"232.1.1.2\"") && !s.contains("\"group\":\"232.1.1.1\"")
    });
    shown(&way.egr, |s| s.contains("\"state\":\"assigned\""));
    drop(server);
    shown(&way.egr, |s| s.contains("\"state\":\"unassigned\""));
}

fn flags_that_make_no_sense_are_refused(lab: &Lab) {
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
            "upstream and downstream are the same interface",
        ),
    ];
    for (command, flags, named) in faults {
        let out = ns.output(BINARY, &[&[command], &flags[..]].concat());
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{command} {flags:?}: {said}");
        assert!(said.contains(named), "{command} {flags:?}: {said}");
    }
}
