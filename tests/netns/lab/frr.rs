//! FRR's pimd as Debian packages it: one zebra and one pimd in a namespace.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::eventually;
use super::ns::{Lab, Ns};
use super::program::Program;

/// zebra and pimd. Dropping it stops both.
pub struct Frr {
    // Fields are dropped in order: pimd stops before zebra.
    pimd: Program,
    _zebra: Program,
    dir: PathBuf,
}

impl Frr {
    /// Starts both; `conf` holds the lines of `pimd.conf`.
    #[track_caller]
    pub fn start(lab: &Lab, ns: &Ns, conf: &str) -> Self {
        // Both drop root and open their files by absolute path; paths of Unix sockets are short.
        let dir = lab.file("frr");
        std::fs::create_dir(&dir).expect("a folder");
        for path in [dir.parent().expect("a parent"), &dir] {
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(path, mode).expect("permissions");
        }
        std::fs::write(dir.join("pimd.conf"), conf).expect("pimd.conf");
        std::fs::write(dir.join("zebra.conf"), "hostname z\n").expect("zebra.conf");
        let owned = Command::new("chown")
            .arg("-R")
            .arg("frr:frr")
            .arg(&dir)
            .status();
        assert!(owned.is_ok_and(|s| s.success()), "chown frr");
        let start = |daemon: &str| {
            let mut command = ns.command(&format!("/usr/lib/frr/{daemon}"));
            command
                .args(["-u", "frr", "-g", "frr", "-A", "127.0.0.1", "-P", "0"])
                .args(["--log", "stdout", "-f"])
                .arg(dir.join(format!("{daemon}.conf")))
                .arg("-i")
                .arg(dir.join(format!("{daemon}.pid")))
                .arg("--vty_socket")
                .arg(&dir)
                .arg("-z")
                .arg(dir.join("zserv.api"));
            Program::start(lab, command)
        };
        let zebra = start("zebra");
        eventually("zebra listens", true, || dir.join("zserv.api").exists());
        let frr = Self {
            pimd: start("pimd"),
            _zebra: zebra,
            dir,
        };
        eventually("pimd serves its interface", true, || {
            frr.show("show ip igmp interface json")
                .contains("\"querier\"")
        });
        frr
    }

    /// Returns the output of `vtysh -c <command>`.
    pub fn show(&self, command: &str) -> String {
        let out = Command::new("vtysh")
            .arg("--vty_socket")
            .arg(&self.dir)
            .args(["-d", "pimd", "-c", command])
            .output();
        out.map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
            .unwrap_or_default()
    }

    /// Kills pimd with SIGKILL, so that it sends no last messages.
    pub fn kill(mut self) {
        self.pimd.stop(libc::SIGKILL, Duration::from_secs(3));
    }
}
