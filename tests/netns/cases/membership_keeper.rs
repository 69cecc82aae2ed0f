//! Groups stay joined upstream when the process ends unexpectedly, and no longer than they should.

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::time::Duration;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::cases;
use super::joins::records;
use crate::lab::keeper::keepers_in;
use crate::lab::{
    BINARY, Capture, IpPacket, Lab, Ns, Program, Router, Star, eventually, wait_until,
};

cases!("keeper":
    groups_of_both_families_stay_joined_after_kill,
    group_of_former_settings_is_left_after_kill,
    left_group_is_not_kept,
    clean_stop_leaves_groups_and_no_process,
    stop_with_keep_forwarding_sends_no_leave,
    keeper_ends_after_orphan_after,
    cleanup_ends_orphaned_keeper_only,
    keeper_starts_with_first_group_and_has_no_privileges,
    killed_repeatedly_leaves_one_keeper,
    upgrade_ends_the_former_keeper,
    service_manager_keeps_sockets,
);

const GROUP: &str = "225.1.2.3";
const SECOND: &str = "225.1.2.4";
const SSM: &str = "232.1.2.3";
const GROUP_V6: &str = "ff0e::8000:7";

fn join(group: &str) -> String {
    format!("[[join]]\ninterface = \"in\"\ngroup = \"{group}\"\n")
}

fn joins(groups: &[&str]) -> String {
    groups.iter().map(|group| join(group)).collect()
}

fn keepers(ns: &Ns) -> Vec<u32> {
    keepers_in(&std::path::Path::new("/run/netns").join(ns.name()))
}

/// Returns the groups that a host upstream saw left or narrowed: TO_IN, BLOCK, leave and done.
fn left(wire: &Capture) -> Vec<String> {
    let v4 = records(wire).into_iter();
    let ends = v4.filter(|(kind, ..)| [3, 6].contains(kind));
    let mut left: Vec<String> = ends.map(|(_, group, _)| group).collect();
    for packet in wire
        .frames()
        .iter()
        .filter_map(|f| IpPacket::parse(&f.bytes))
    {
        let body = packet.body();
        match (packet.protocol, body) {
            (2, [0x17, ..]) => left.push("IGMPv2 leave".into()),
            // After the hop-by-hop options with the router alert.
            (0, [_, _, _, _, _, _, _, _, 132, ..]) => left.push("MLDv1 done".into()),
            (0, [_, _, _, _, _, _, _, _, 143, rest @ ..]) => left.extend(left_v6(rest)),
            _ => {}
        }
    }
    left.sort();
    left.dedup();
    left
}

/// Returns the groups of TO_IN and BLOCK records in an MLDv2 report without its first byte.
fn left_v6(report: &[u8]) -> Vec<String> {
    let mut left = Vec::new();
    let mut at = 7;
    while let Some(record) = report.get(at..at + 20) {
        let group: [u8; 16] = record[4..20].try_into().expect("an address");
        if [3, 6].contains(&record[0]) {
            left.push(std::net::Ipv6Addr::from(group).to_string());
        }
        let sources = usize::from(u16::from_be_bytes([record[2], record[3]]));
        at += 20 + 16 * sources + 4 * usize::from(record[1]);
    }
    left
}

/// Starts a router, and waits until the kernel has joined these groups.
fn start(lab: &Lab, star: &Star, toml: &str, groups: usize) -> Router {
    let router = Router::start(lab, &star.rtr, toml);
    wait_until_joined(&star.rtr, groups);
    router
}

fn wait_until_joined(ns: &Ns, groups: usize) {
    eventually("groups of the kernel", groups, || {
        super::joins::kernel(ns, "in").len()
    });
}

fn wait_for_keepers(ns: &Ns, count: usize) {
    eventually("keepers", count, || keepers(ns).len());
}

fn groups_of_both_families_stay_joined_after_kill(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let ssm = format!("[[join]]\ninterface = \"in\"\nsource = \"10.0.0.10\"\ngroup = \"{SSM}\"\n");
    let toml = joins(&[GROUP, GROUP_V6]) + &ssm;
    let mut router = start(lab, &star, &toml, 3);
    wait_for_keepers(&star.rtr, 1);
    let former = keepers(&star.rtr);
    let joined = super::joins::kernel(&star.rtr, "in");
    let wire = Capture::new(&star.src, "eth0");
    router.kill();
    wait_until(Duration::from_secs(1), || !left(&wire).is_empty());
    assert_eq!(left(&wire), [""; 0]);
    assert_eq!(super::joins::kernel(&star.rtr, "in"), joined);
    router.start_again(lab);
    eventually("the former keeper has ended", true, || {
        let now = keepers(&star.rtr);
        now.len() == 1 && now != former
    });
    wait_until(Duration::from_secs(1), || !left(&wire).is_empty());
    assert_eq!(left(&wire), [""; 0]);
    assert_eq!(super::joins::kernel(&star.rtr, "in"), joined);
}

fn group_of_former_settings_is_left_after_kill(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let mut router = start(lab, &star, &joins(&[GROUP, SECOND]), 2);
    wait_for_keepers(&star.rtr, 1);
    let wire = Capture::new(&star.src, "eth0");
    router.kill();
    router.write_settings(&joins(&[GROUP]));
    router.start_again(lab);
    eventually("the second group is left", vec![SECOND.to_owned()], || {
        left(&wire)
    });
    wait_until_joined(&star.rtr, 1);
}

/// A keeper holds the socket too, and must not hold the group.
fn left_group_is_not_kept(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = start(lab, &star, &joins(&[GROUP]), 1);
    wait_for_keepers(&star.rtr, 1);
    router.run(&format!("join in {SECOND}"));
    wait_until_joined(&star.rtr, 2);
    router.run(&format!("leave in {SECOND}"));
    wait_until_joined(&star.rtr, 1);
    router.run(&format!("leave in {GROUP}"));
    wait_until_joined(&star.rtr, 0);
    let keeper = keepers(&star.rtr)[0];
    eventually("the keeper has closed the socket", 0, || sockets(keeper));
}

/// Returns the number of membership sockets of a keeper.
fn sockets(pid: u32) -> usize {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors");
    let links = links
        .flatten()
        .filter_map(|e| std::fs::read_link(e.path()).ok());
    let is_socket = |path: &std::path::PathBuf| path.to_string_lossy().starts_with("socket:");
    // The connection to the router, and the socket on which it listens.
    links.filter(is_socket).count().saturating_sub(2)
}

fn clean_stop_leaves_groups_and_no_process(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let toml = joins(&[GROUP]);
    let mut router = start(lab, &star, &toml, 1);
    wait_for_keepers(&star.rtr, 1);
    let wire = Capture::new(&star.src, "eth0");
    router.program.signal(libc::SIGTERM);
    assert!(router.program.wait().success());
    assert_eq!(keepers(&star.rtr), [0; 0]);
    eventually("a leave", vec![GROUP.to_owned()], || left(&wire));
    wait_until_joined(&star.rtr, 0);
    router.start_again(lab);
    wait_for_keepers(&star.rtr, 1);
    router.run("stop");
    router.program.wait();
    assert_eq!(keepers(&star.rtr), [0; 0]);
    wait_until_joined(&star.rtr, 0);
}

fn stop_with_keep_forwarding_sends_no_leave(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let mut router = start(lab, &star, &joins(&[GROUP]), 1);
    wait_for_keepers(&star.rtr, 1);
    let wire = Capture::new(&star.src, "eth0");
    router.run("stop --keep-forwarding");
    assert!(router.program.wait().success());
    let former = keepers(&star.rtr);
    assert_eq!(former.len(), 1);
    wait_until_joined(&star.rtr, 1);
    router.start_again(lab);
    eventually("the former keeper has ended", true, || {
        let now = keepers(&star.rtr);
        now.len() == 1 && now != former
    });
    wait_until(Duration::from_secs(1), || !left(&wire).is_empty());
    assert_eq!(left(&wire), [""; 0]);
}

fn keeper_ends_after_orphan_after(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let toml = "[plane]\norphan_after = \"2s\"\n".to_owned() + &joins(&[GROUP]);
    let mut router = start(lab, &star, &toml, 1);
    wait_for_keepers(&star.rtr, 1);
    let wire = Capture::new(&star.src, "eth0");
    let killed_at = std::time::Instant::now();
    router.kill();
    wait_for_keepers(&star.rtr, 0);
    let kept = killed_at.elapsed();
    assert!(kept >= Duration::from_millis(1900), "kept for {kept:?}");
    eventually("a leave", vec![GROUP.to_owned()], || left(&wire));
}

fn cleanup_ends_orphaned_keeper_only(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let mut router = start(lab, &star, &joins(&[GROUP]), 1);
    wait_for_keepers(&star.rtr, 1);
    let folder = lab.file("bpffs").display().to_string();
    let cleanup = || {
        let out = star.rtr.output(BINARY, &["cleanup", "--bpffs", &folder]);
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    assert_eq!(cleanup(), "nothing to remove\n");
    assert_eq!(keepers(&star.rtr).len(), 1);
    router.kill();
    assert_eq!(cleanup(), "memberships: left\n");
    wait_for_keepers(&star.rtr, 0);
    wait_until_joined(&star.rtr, 0);
}

fn keeper_starts_with_first_group_and_has_no_privileges(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, "");
    assert_eq!(keepers(&star.rtr), [0; 0]);
    router.run(&format!("join in {GROUP}"));
    wait_for_keepers(&star.rtr, 1);
    let pid = keepers(&star.rtr)[0];
    eventually("the membership socket", 1, || sockets(pid));
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the status");
    for line in [
        "CapEff:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "Threads:\t1\n",
    ] {
        assert!(status.contains(line), "{line}: {status}");
    }
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors");
    // Three standard ones, the connection, the socket on which it listens, and the membership.
    assert_eq!(descriptors.count(), 6);
}

/// Each process is killed as soon as it has its own keeper. The last one ends what is left of all.
fn killed_repeatedly_leaves_one_keeper(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let mut router = start(lab, &star, &joins(&[GROUP]), 1);
    wait_for_keepers(&star.rtr, 1);
    let wire = Capture::new(&star.src, "eth0");
    for _ in 0..10 {
        let former = keepers(&star.rtr);
        router.kill();
        router.launch_again(lab);
        eventually("a new keeper", true, || {
            keepers(&star.rtr).iter().any(|pid| !former.contains(pid))
        });
    }
    eventually("ready", true, || router.is_ready());
    wait_for_keepers(&star.rtr, 1);
    wait_until_joined(&star.rtr, 1);
    assert_eq!(left(&wire), [""; 0]);
}

fn upgrade_ends_the_former_keeper(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = start(lab, &star, &joins(&[GROUP]), 1);
    wait_for_keepers(&star.rtr, 1);
    let former = keepers(&star.rtr);
    let wire = Capture::new(&star.src, "eth0");
    router.run("upgrade");
    eventually("the former keeper has ended", true, || {
        let now = keepers(&star.rtr);
        now.len() == 1 && now != former
    });
    router.run("stop");
    // The process that is stopped is not the one that the test has started.
    wait_for_keepers(&star.rtr, 0);
    eventually("a leave at the end alone", vec![GROUP.to_owned()], || {
        left(&wire)
    });
}

/// The descriptor store of systemd, by its rules (sd_pid_notify_with_fds(3)).
struct ServiceManager {
    socket: UnixDatagram,
    stored: BTreeMap<String, OwnedFd>,
}

impl ServiceManager {
    fn new(path: &std::path::Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("a socket");
        socket.set_nonblocking(true).expect("nonblocking");
        Self {
            socket,
            stored: BTreeMap::new(),
        }
    }

    /// Handles the notifications that have arrived. Returns the number of stored descriptors.
    fn serve(&mut self) -> usize {
        let mut buffer = [0; 4096];
        loop {
            let mut space = nix::cmsg_space!([RawFd; 8]);
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let fd = self.socket.as_raw_fd();
            let Ok(received) = recvmsg::<()>(fd, &mut parts, Some(&mut space), flags) else {
                return self.stored.len();
            };
            let mut passed = Vec::new();
            for control in received.cmsgs().expect("control messages") {
                if let ControlMessageOwned::ScmRights(fds) = control {
                    // SAFETY: the kernel created these descriptors for this process.
                    passed.extend(fds.iter().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }));
                }
            }
            let len = received.bytes;
            let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
            let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
            let name = value("FDNAME=").unwrap_or("stored").to_owned();
            if value("FDSTORE=") == Some("1") {
                self.stored.extend(passed.pop().map(|fd| (name, fd)));
            } else if value("FDSTOREREMOVE=") == Some("1") {
                self.stored.remove(&name);
            }
        }
    }

    /// Starts the router again, and passes it a listening socket and the stored descriptors.
    fn start_again(&self, lab: &Lab, ns: &Ns, router: &mut Router, path: &std::path::Path) {
        let http = ns.enter(|| std::net::TcpListener::bind("127.0.0.1:9464").expect("HTTP"));
        let http: OwnedFd = http.into();
        let descriptors = std::iter::once(&http).chain(self.stored.values());
        let high = |fd: &OwnedFd| {
            // SAFETY: `F_DUPFD_CLOEXEC` takes no pointer.
            let fd = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 500) };
            assert!(fd >= 0);
            // SAFETY: the kernel created it for this call.
            unsafe { OwnedFd::from_raw_fd(fd) }
        };
        let high: Vec<OwnedFd> = descriptors.map(high).collect();
        let numbers: Vec<RawFd> = high.iter().map(AsRawFd::as_raw_fd).collect();
        // systemd passes listening sockets first, with the name of their unit.
        let names = std::iter::once("mcastor.socket").chain(self.stored.keys().map(String::as_str));
        let names: Vec<&str> = names.collect();
        let mut command = ns.command("sh");
        command
            .args([
                "-c",
                "export LISTEN_PID=$$; exec \"$@\"",
                "sh",
                BINARY,
                "run",
                "--config",
            ])
            .arg(&router.config)
            .env("LISTEN_FDS", numbers.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"))
            .env("NOTIFY_SOCKET", path);
        // SAFETY: between fork and exec only dup2 runs, which is async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                for (to, from) in numbers.iter().enumerate() {
                    if libc::dup2(*from, 3 + to as RawFd) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        router.program = Program::start(lab, command);
        drop(high);
    }
}

fn service_manager_keeps_sockets(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let path = lab.file("notify");
    let mut manager = ServiceManager::new(&path);
    let notify = path.display().to_string();
    let toml = joins(&[GROUP, SECOND, GROUP_V6]);
    let env = [("NOTIFY_SOCKET", &*notify)];
    let mut router = Router::start_with(lab, &star.rtr, &toml, &env);
    wait_until_joined(&star.rtr, 3);
    // One socket for each IP version.
    eventually("stored sockets", 2, || manager.serve());
    let former: Vec<String> = manager.stored.keys().cloned().collect();
    let wire = Capture::new(&star.src, "eth0");
    router.kill();
    assert_eq!(keepers(&star.rtr), [0; 0]);
    wait_until(Duration::from_secs(1), || !left(&wire).is_empty());
    assert_eq!(left(&wire), [""; 0]);
    router.write_settings(&joins(&[GROUP, GROUP_V6]));
    manager.start_again(lab, &star.rtr, &mut router, &path);
    // Over the HTTP socket that was passed with them.
    eventually("ready", true, || router.is_ready());
    eventually("the former sockets are removed", true, || {
        let count = manager.serve();
        count == 2 && manager.stored.keys().all(|name| !former.contains(name))
    });
    eventually("the second group is left", vec![SECOND.to_owned()], || {
        left(&wire)
    });
    wait_until_joined(&star.rtr, 2);
    // A clean stop leaves nothing in the store.
    router.program.signal(libc::SIGTERM);
    router.program.wait();
    eventually("the store is empty", 0, || manager.serve());
    wait_until_joined(&star.rtr, 0);
}
