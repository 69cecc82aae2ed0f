//! The ingress and the egress of the MNAT prototype, unchanged, from a copy of its repository. They
//! see the file system of its containers: their programs in /bin, and the name of the server in
//! /etc/hosts.

use std::path::{Path, PathBuf};

use super::mnat::SERVER_NAME;
use super::ns::{Lab, Ns};
use super::{Program, TIMEOUT, wait_until};

/// The variable with the folder of the repository github.com/GrumpyOldTroll/mnat.
pub const PROTOTYPE: &str = "MCASTOR_MNAT_PROTOTYPE";

/// Joins a stream until it is killed, with the arguments of `mcrx-check` of libmcrx, which Debian does
/// not have. The prototype runs it for each mapping.
const JOIN: &str = r#"#!/usr/bin/python3
import getopt, ipaddress, signal, socket, struct, sys
options = dict(getopt.getopt(sys.argv[1:], "i:s:g:p:d:c:")[0])
source, group = (ipaddress.ip_address(options[o]) for o in ("-s", "-g"))
family, level = ((socket.AF_INET, socket.IPPROTO_IP) if group.version == 4
                 else (socket.AF_INET6, socket.IPPROTO_IPV6))
def address(ip):
    parts = (struct.pack("=HH4s", family, 0, ip.packed) if ip.version == 4
             else struct.pack("=HHI16sI", family, 0, 0, ip.packed, 0))
    return parts.ljust(128, b"\0")
MCAST_JOIN_SOURCE_GROUP = 46
request = struct.pack("@I4x", socket.if_nametoindex(options["-i"])) + address(group) + address(source)
joined = socket.socket(family, socket.SOCK_DGRAM)
joined.setsockopt(level, MCAST_JOIN_SOURCE_GROUP, request)
signal.pause()
"#;

/// The programs of the prototype, and what they need.
pub struct Prototype {
    repository: PathBuf,
    /// Laid over /usr/bin.
    programs: PathBuf,
    hosts: PathBuf,
    ca: PathBuf,
}

impl Prototype {
    /// Returns the prototype whose server is at `server`, an address. `ca` verifies it.
    pub fn new(lab: &Lab, server: &str, ca: &Path) -> Self {
        let repository = PathBuf::from(std::env::var_os(PROTOTYPE).expect("a folder"));
        let programs = lab.file("bin");
        std::fs::create_dir(&programs).expect("a folder");
        let translate = "mnat-translate.py";
        let copied = std::fs::copy(
            repository.join("common").join(translate),
            programs.join(translate),
        );
        copied.expect("a program of the prototype");
        let join = programs.join("mcrx-check");
        std::fs::write(&join, JOIN).expect("writing a program");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&join, mode).expect("a mode");
        let hosts = lab.file("hosts");
        std::fs::write(&hosts, format!("{server} {SERVER_NAME}\n")).expect("writing a file");
        Self {
            repository,
            programs,
            hosts,
            ca: ca.into(),
        }
    }

    /// Starts the ingress. Writes its streams to `joinfile`.
    #[track_caller]
    pub fn ingress(
        &self,
        lab: &Lab,
        ns: &Ns,
        upstream: &str,
        downstream: &str,
        joinfile: &Path,
    ) -> Program {
        let arguments = format!("-i {upstream} -o {downstream} -f {}", joinfile.display());
        self.start(lab, ns, "ingress/mnat-ingress.py", &arguments)
    }

    /// Starts the egress. Reads its streams from `joinfile`.
    #[track_caller]
    pub fn egress(
        &self,
        lab: &Lab,
        ns: &Ns,
        upstream: &str,
        downstream: &str,
        joinfile: &Path,
    ) -> Program {
        // It finds only files in its own folder.
        let folder = joinfile.parent().expect("a folder").display();
        let name = joinfile.file_name().expect("a name").display();
        let arguments = format!("-i {upstream} -o {downstream} -f {name}");
        let program = "egress/mnat-egress.py";
        let program = format!("cd {folder} && exec {}", self.command(program, &arguments));
        self.run(lab, ns, &program)
    }

    #[track_caller]
    fn start(&self, lab: &Lab, ns: &Ns, program: &str, arguments: &str) -> Program {
        let command = format!("exec {}", self.command(program, arguments));
        self.run(lab, ns, &command)
    }

    fn command(&self, program: &str, arguments: &str) -> String {
        let python =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("target/mnat-prototype/bin/python3");
        format!(
            "{} {} -v -s {SERVER_NAME} -p 8443 --cacert {} {arguments}",
            python.display(),
            self.repository.join(program).display(),
            self.ca.display()
        )
    }

    /// Runs a command in its own mount and process namespaces, and waits until the client is
    /// registered. All its processes end with it.
    #[track_caller]
    fn run(&self, lab: &Lab, ns: &Ns, command: &str) -> Program {
        let script = format!(
            "mount -t overlay programs -o lowerdir={}:/usr/bin /usr/bin && \
             mount --bind {} /etc/hosts && {command}",
            self.programs.display(),
            self.hosts.display(),
        );
        let mut unshare = ns.command("unshare");
        unshare
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", &script])
            .env("PYTHONPATH", self.repository.join("common"));
        let program = Program::start(lab, unshare);
        let is_registered = || program.stderr().contains("got Watcher Id");
        assert!(wait_until(TIMEOUT, is_registered), "{}", program.stderr());
        program
    }
}
