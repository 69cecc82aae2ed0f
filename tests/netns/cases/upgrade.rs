//! A new process takes over from the running one, under counted traffic.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::ebpf::wait_until_offloaded;
use super::joins::records;
use super::mnat::{MnatTopology, rewritten, wait_mapped};
use super::{PACKET_PLANE, cases, route};
use crate::lab::bpffs::BpfFs;
use crate::lab::mnat::ServerState;
use crate::lab::numbered_stream::NumberedReceiver;
use crate::lab::proxy::{joined, member, proxy};
use crate::lab::switch::upstream_switch;
use crate::lab::{
    Capture, Lab, NumberedStream, Router, Star, TIMEOUT, UdpRx, assert_increasing, bridge,
    eventually, measures, sequence_number, wait_until,
};

cases!("upgrade":
    upgrades_lose_nothing_v4_in_latency_mode,
    upgrades_lose_nothing_v4_in_throughput_mode,
    upgrades_lose_nothing_v4_while_modes_change,
    upgrades_lose_nothing_v6,
    upgrades_lose_nothing_rewritten,
    #[BpfPrograms] upgrades_of_the_kernel_plane_lose_nothing,
    failed_upgrades_lose_nothing,
    ends_of_multicast_nat_are_replaced,
    #[LinkKind("bridge")] members_and_upstream_switch_notice_no_upgrade,
    clients_of_both_processes_are_answered,
    new_process_uses_changed_settings_and_owns_pid_file,
    #[Program("setpriv", "util-linux")] capabilities_of_a_user_are_passed_on,
);

const GROUP: &str = "225.1.2.3";
const DST: &str = "225.1.2.3:5000";
const SRC: &str = "10.0.0.10:9";

/// The process that replaced the router under test. Dropping it ends the process.
pub(super) struct Replacement<'r> {
    router: &'r Router,
    pub(super) pid: u64,
}

impl<'r> Replacement<'r> {
    pub(super) fn new(router: &'r Router) -> Self {
        let pid = router.program.pid().into();
        Self { router, pid }
    }

    /// Lets a new process take over, and returns the report.
    #[track_caller]
    pub(super) fn upgrade(&mut self) -> Value {
        let printed = self.router.run("upgrade --json");
        let report: Value = serde_json::from_str(&printed).expect("a report");
        assert_eq!(report["old_pid"], self.pid, "{printed}");
        self.pid = report["new_pid"].as_u64().expect("a process ID");
        report
    }

    fn is_running(&self) -> bool {
        let command = std::fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let config = self.router.config.display().to_string();
        String::from_utf8_lossy(&command).contains(&config)
    }

    fn signal(&self, signal: i32) {
        if self.is_running() {
            // SAFETY: `kill` takes no pointer.
            unsafe { libc::kill(self.pid as i32, signal) };
        }
    }
}

impl Drop for Replacement<'_> {
    fn drop(&mut self) {
        self.signal(libc::SIGTERM);
        if !wait_until(Duration::from_secs(10), || !self.is_running()) {
            self.signal(libc::SIGKILL);
        }
    }
}

/// Packets per second, and the number of upgrades.
fn size_of_test() -> (u32, u32) {
    let upgrades = std::env::var("MCASTOR_SOAK_UPGRADES").ok();
    let upgrades = upgrades.map(|n| n.parse().expect("a number"));
    match measures() {
        true => (100_000, upgrades.unwrap_or(10)),
        false => (10_000, upgrades.unwrap_or(4)),
    }
}

/// A stream, and what it becomes.
struct Forwarded {
    src: &'static str,
    dst: &'static str,
    route: String,
    received: &'static str,
}

fn v4() -> Forwarded {
    Forwarded {
        src: SRC,
        dst: DST,
        route: route("r", "in", "", GROUP, &["out1"], ""),
        received: GROUP,
    }
}

fn upgrades_lose_nothing_v4_in_latency_mode(lab: &Lab) {
    upgrades_lose_nothing(lab, &v4(), PACKET_PLANE, Some("latency"));
}

fn upgrades_lose_nothing_v4_in_throughput_mode(lab: &Lab) {
    upgrades_lose_nothing(lab, &v4(), PACKET_PLANE, Some("throughput"));
}

/// The fanout group of the former processes serves the next ones.
fn upgrades_lose_nothing_v4_while_modes_change(lab: &Lab) {
    upgrades_lose_nothing(lab, &v4(), PACKET_PLANE, Some("prefer-throughput"));
}

fn upgrades_lose_nothing_v6(lab: &Lab) {
    let stream = Forwarded {
        src: "[fd00:0::10]:9",
        dst: "[ff3e::1:2]:5000",
        route: route("r", "in", "", "ff3e::1:2", &["out1"], ""),
        received: "ff3e::1:2",
    };
    upgrades_lose_nothing(lab, &stream, PACKET_PLANE, None);
}

fn upgrades_lose_nothing_rewritten(lab: &Lab) {
    let rewrite = "rewrite = { group = \"225.7.7.7\", source = \"10.9.9.9\" }\n";
    let stream = Forwarded {
        route: route("r", "in", "10.0.0.10", GROUP, &["out1"], rewrite),
        received: "225.7.7.7",
        ..v4()
    };
    upgrades_lose_nothing(lab, &stream, PACKET_PLANE, None);
}

/// The former process takes all flows back, and the next one hands them over again.
fn upgrades_of_the_kernel_plane_lose_nothing(lab: &Lab) {
    let bpffs = BpfFs::mount(lab);
    let folder = bpffs.folder().display().to_string();
    for (folder, capture) in [
        (folder.as_str(), Some("latency")),
        (folder.as_str(), Some("prefer-throughput")),
        ("off", Some("latency")),
    ] {
        let plane = format!("[plane]\nkind = \"ebpf\"\nbpffs = \"{folder}\"\n");
        upgrades_lose_nothing(lab, &v4(), &plane, capture);
        assert!(bpffs.pinned().is_empty(), "{:?}", bpffs.pinned());
    }
}

/// The last process has the counts of all.
fn upgrades_lose_nothing(lab: &Lab, forwarded: &Forwarded, plane: &str, capture: Option<&str>) {
    let (rate, upgrades) = size_of_test();
    let star = match forwarded.dst.starts_with('[') {
        true => Star::dual(lab, 1),
        false => Star::v4(lab, 1),
    };
    let toml = plane.to_owned() + &forwarded.route;
    let environment: Vec<_> = capture
        .map(|c| ("MCASTOR_TEST_CAPTURE", c))
        .into_iter()
        .collect();
    let router = Router::start_with(lab, &star.rtr, &toml, &environment);
    let mut replacement = Replacement::new(&router);
    let receiver = NumberedReceiver::start(&star.rcv, "eth1", forwarded.received);
    let stream = NumberedStream::start(&star.src, "eth0", forwarded.src, forwarded.dst, rate);
    let (mut waited, mut longest_us) = (0, 0);
    for _ in 0..upgrades {
        stream.wait_for_more(rate / 20);
        if plane != PACKET_PLANE {
            wait_until_offloaded(&router, "out1");
        }
        let report = replacement.upgrade();
        waited += report["waiting_packets"].as_u64().expect("a number");
        longest_us = longest_us.max(report["pause_us"].as_u64().expect("a number"));
    }
    stream.wait_for_more(rate / 20);
    let sent = stream.finish();
    wait_until(TIMEOUT, || receiver.received() >= sent.into());
    assert_eq!(receiver.lost(), 0, "the receiver is too slow");
    let got = receiver.finish();
    let result = (u64::from(sent) - got.numbers, got.doubled, got.late);
    assert_eq!(result, (0, 0, 0), "lost, doubled, late of {sent}");
    router.expect_routed("r", "out1", sent.into());
    router.expect_metric("mcastor_socket_dropped_packets_total", &[], 0);
    router.expect_metric("mcastor_actor_restarts_total", &[], 0);
    assert!(waited > 0, "no packet waited in {upgrades} upgrades");
    println!(
        "{upgrades} upgrades at {rate} packets a second: {sent} packets, none lost, doubled or \
         late; {waited} waited, {longest_us} us at most"
    );
}

/// A program that ends at once, one that does nothing, one that cannot be started, and invalid
/// settings. The process forwards on, and can be replaced afterwards.
fn failed_upgrades_lose_nothing(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let toml = PACKET_PLANE.to_owned() + &v4().route;
    let router = Router::start(lab, &star.rtr, &toml);
    let mut replacement = Replacement::new(&router);
    let receiver = NumberedReceiver::start(&star.rcv, "eth1", GROUP);
    let stream = NumberedStream::start(&star.src, "eth0", SRC, DST, 5000);
    let hang = lab.file("hang");
    std::fs::write(&hang, "#!/bin/sh\nexec sleep 1000\n").expect("a script");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&hang, mode).expect("a mode");
    let hang = hang.display().to_string();
    let pid = format!("process {} goes on", router.program.pid());
    let refused = |words: &str, reason: &str| {
        let out = router.try_run(words);
        let printed = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(1), "{words}: {printed}");
        assert!(printed.contains(reason), "{words}: {printed}");
        printed
    };
    let printed = refused("upgrade --binary /bin/false", "ended: exit status: 1");
    assert!(printed.contains(&pid), "{printed}");
    refused(
        "upgrade --binary /nowhere/mcastor",
        "cannot start /nowhere/mcastor",
    );
    refused(&format!("upgrade --binary {hang}"), "not ready within 10 s");
    router.write_settings("bad = 1\n");
    refused("upgrade", "unknown key `bad`");
    router.write_settings(&toml);
    assert_eq!(
        router
            .run("show routes --json")
            .matches("225.1.2.3")
            .count(),
        1
    );
    replacement.upgrade();
    stream.wait_for_more(1000);
    let sent = stream.finish();
    wait_until(TIMEOUT, || receiver.received() >= sent.into());
    let got = receiver.finish();
    assert_eq!((got.numbers, got.doubled, got.late), (sent.into(), 0, 0));
    router.expect_routed("r", "out1", sent.into());
}

/// The mappings pass to the new process, which is the same watcher for the server.
fn ends_of_multicast_nat_are_replaced(lab: &Lab) {
    let topology = MnatTopology::new(lab);
    let server_state = ServerState::starting_at(0);
    let _server = topology.serve(&server_state);
    let [egress_file, ingress_file] = ["egress-joins", "ingress-joins"].map(|n| lab.file(n));
    std::fs::write(&egress_file, "10.0.0.10,232.1.1.1\n").expect("writing");
    let ingress = topology.settings("ingress", "in", "mid", &ingress_file);
    let egress = topology.settings("egress", "net0", "out", &egress_file);
    let ing = Router::start(lab, &topology.ing, &(PACKET_PLANE.to_owned() + &ingress));
    let egr = Router::start(lab, &topology.egr, &(PACKET_PLANE.to_owned() + &egress));
    let mapping = [("232.1.1.1", "239.1.1.1")];
    wait_mapped(&egr, &mapping);
    wait_mapped(&ing, &mapping);
    let routes = (rewritten(&ing), rewritten(&egr));
    let watchers = server_state.lock().unwrap().watcher_count();
    let receiver = NumberedReceiver::start(&topology.rcv, "eth1", "232.1.1.1");
    let warm_up = NumberedStream::start(&topology.src, "eth0", SRC, "232.1.1.1:5000", 1000);
    assert!(
        wait_until(TIMEOUT, || receiver.received() > 100),
        "nothing arrives"
    );
    warm_up.finish();
    drop(receiver);
    let receiver = NumberedReceiver::start(&topology.rcv, "eth1", "232.1.1.1");
    let stream = NumberedStream::start(&topology.src, "eth0", SRC, "232.1.1.1:5000", 2000);
    let mut ends = [Replacement::new(&ing), Replacement::new(&egr)];
    for _ in 0..3 {
        for end in &mut ends {
            stream.wait_for_more(200);
            end.upgrade();
        }
    }
    stream.wait_for_more(500);
    let sent = stream.finish();
    wait_until(TIMEOUT, || receiver.received() >= sent.into());
    let got = receiver.finish();
    let result = (got.numbers, got.doubled, got.late);
    assert_eq!(
        result,
        (sent.into(), 0, 0),
        "arrived, doubled, late of {sent}"
    );
    assert_eq!((rewritten(&ing), rewritten(&egr)), routes);
    assert_eq!(server_state.lock().unwrap().watcher_count(), watchers);
}

/// The host answers the queries of the new process, and receives the stream in the meantime. The
/// switch upstream sees reports of the router, but no leave.
fn members_and_upstream_switch_notice_no_upgrade(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let switch = upstream_switch(lab, &star, "mcast_last_member_interval 10");
    let toml = PACKET_PLANE.to_owned() + &proxy(&["in"], &["out1"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    let mut replacement = Replacement::new(&router);
    let rx = UdpRx::join(&star.rcv, "eth1", DST);
    eventually(
        "joined upstream",
        vec![format!("{GROUP} exclude []")],
        || joined(&router, "in"),
    );
    let knows_member = || bridge(&switch, "mdb show").contains(GROUP);
    eventually("the switch knows the member", true, knows_member);
    let at_switch = Capture::new(&switch, "p1");
    let stream = NumberedStream::start(&star.src, "eth0", SRC, DST, 2000);
    for _ in 0..3 {
        stream.wait_for_more(500);
        replacement.upgrade();
        assert!(knows_member());
        // The process has asked twice since, and the time in which the former memberships are kept
        // has passed.
        let queries = [
            ("iface", "out1"),
            ("direction", "transmitted"),
            ("type", "general_query"),
        ];
        let before = router.metric("mcastor_igmp_messages_total", &queries);
        eventually("the host has answered", true, || {
            router.metric("mcastor_igmp_messages_total", &queries) > before + 2.0
                && member(&router, "out1", GROUP).is_some()
        });
    }
    stream.wait_for_more(500);
    let sent = stream.finish();
    let got = rx.expect(sent as usize);
    let numbers: Vec<u32> = got.iter().map(|p| sequence_number(p)).collect();
    assert_increasing(&numbers);
    router.expect_routed("p", "out1", sent.into());
    let leaves = || {
        const IS_IN: u8 = 1;
        const TO_IN: u8 = 3;
        const BLOCK: u8 = 6;
        let records = records(&at_switch).into_iter();
        let leaves = records
            .filter(|(kind, group, _)| group == GROUP && [IS_IN, TO_IN, BLOCK].contains(kind));
        leaves.count()
    };
    assert_eq!(leaves(), 0);
    // A stop leaves the group, which proves that a leave would have been seen.
    drop(replacement);
    eventually("the leave of a stop", true, || leaves() > 0);
}

/// HTTP requests and commands at any moment of an upgrade are answered, and counters never fall.
fn clients_of_both_processes_are_answered(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let toml = PACKET_PLANE.to_owned() + &v4().route;
    let router = Router::start(lab, &star.rtr, &toml);
    let mut replacement = Replacement::new(&router);
    let stream = NumberedStream::start(&star.src, "eth0", SRC, DST, 2000);
    let (done, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let repeat = |mut request: Box<dyn FnMut() + Send>| {
            let (done, answers) = (&done, &answers);
            scope.spawn(move || {
                while !done.load(Ordering::Acquire) {
                    request();
                    answers.fetch_add(1, Ordering::AcqRel);
                }
            })
        };
        let (http, commands) = (&router, &router.socket);
        let mut last = 0.0;
        let clients = [
            repeat(Box::new(move || {
                let routed = http.metric("mcastor_route_packets_total", &[]);
                assert!(routed >= last, "{routed} after {last}");
                last = routed;
            })),
            repeat(Box::new(move || {
                let mut control = crate::lab::control::Control::new(commands).expect("a socket");
                assert_eq!(control.show("routes").len(), 1);
            })),
        ];
        for _ in 0..5 {
            let before = answers.load(Ordering::Acquire);
            replacement.upgrade();
            eventually("answers after the upgrade", true, || {
                answers.load(Ordering::Acquire) > before + 10
                    || clients.iter().any(|client| client.is_finished())
            });
        }
        done.store(true, Ordering::Release);
    });
    let sent = stream.finish();
    router.expect_routed("r", "out1", sent.into());
}

/// SIGUSR2 replaces the process too. systemd is notified of the new one.
fn new_process_uses_changed_settings_and_owns_pid_file(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let path = lab.file("notify");
    let notifications = std::os::unix::net::UnixDatagram::bind(&path).expect("a socket");
    let timeout = Some(Duration::from_secs(10));
    notifications.set_read_timeout(timeout).expect("a timeout");
    let next = || {
        loop {
            let mut buffer = [0; 4096];
            let len = notifications.recv(&mut buffer).expect("a notification");
            let text = String::from_utf8_lossy(&buffer[..len]).trim().to_owned();
            // Of memberships that are kept.
            if !text.starts_with("FDSTORE") {
                return text;
            }
        }
    };
    let path = path.display().to_string();
    let toml = PACKET_PLANE.to_owned() + &v4().route;
    let router = Router::start_with(lab, &star.rtr, &toml, &[("NOTIFY_SOCKET", &path)]);
    assert_eq!(next(), "READY=1");
    let mut replacement = Replacement::new(&router);
    let stream = NumberedStream::start(&star.src, "eth0", SRC, DST, 2000);
    let receivers = ["eth1", "eth2"].map(|eth| NumberedReceiver::start(&star.rcv, eth, GROUP));
    router.write_settings(
        &(PACKET_PLANE.to_owned() + &route("r", "in", "", GROUP, &["out1", "out2"], "")),
    );
    let report = replacement.upgrade();
    let notified = [next(), next()];
    assert!(
        notified.contains(&format!("MAINPID={}", report["new_pid"])),
        "{notified:?}"
    );
    let pid_file = || std::fs::read_to_string(router.pid_file()).unwrap_or_default();
    assert_eq!(pid_file(), format!("{}\n", report["new_pid"]));
    let first = replacement.pid;
    replacement.signal(libc::SIGUSR2);
    let pid = || pid_file().trim().parse().unwrap_or(first);
    assert!(
        wait_until(TIMEOUT, || pid() != first),
        "SIGUSR2 has no effect"
    );
    replacement.pid = pid();
    eventually("the former process has ended", false, || {
        std::path::Path::new(&format!("/proc/{first}/exe")).exists()
    });
    stream.wait_for_more(500);
    let sent = u64::from(stream.finish());
    let [one, two] = receivers;
    wait_until(TIMEOUT, || one.received() >= sent);
    let (one, two) = (one.finish(), two.finish());
    assert_eq!((one.numbers, one.doubled, one.late), (sent, 0, 0));
    assert!(two.numbers > 0 && two.doubled + two.late == 0, "{two:?}");
    router.run("stop");
    eventually("the pid file", false, || router.pid_file().exists());
    assert!(!router.socket.exists());
}

/// The service manager gives CAP_NET_RAW to a user. The new process has it too. A program that the
/// user could have written gets none.
fn capabilities_of_a_user_are_passed_on(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let folder = lab.file("user");
    std::fs::create_dir(&folder).expect("a folder");
    std::os::unix::fs::chown(&folder, Some(65534), Some(65534)).expect("its owner");
    let (program, socket) = (folder.join("mcastor"), folder.join("socket"));
    std::fs::copy(crate::lab::binary(), &program).expect("a copy");
    let config = folder.join("settings.toml");
    let text = format!(
        "[http]\nlisten = \"off\"\n[control]\nsocket = \"{}\"\n{PACKET_PLANE}{}",
        socket.display(),
        v4().route
    );
    std::fs::write(&config, text).expect("settings");
    for ancestor in folder
        .ancestors()
        .filter(|a| a.starts_with(std::env::temp_dir()))
    {
        let _ = std::fs::set_permissions(
            ancestor,
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        );
    }
    let mut command = star.rtr.command("setpriv");
    command
        .args([
            "--reuid=65534",
            "--clear-groups",
            "--inh-caps=+net_raw",
            "--ambient-caps=+net_raw",
        ])
        .arg(&program)
        .args(["run", "--config"])
        .arg(&config);
    let process = crate::lab::Program::start(lab, command);
    let control = || crate::lab::control::Control::new(&socket);
    eventually("the control socket", true, || control().is_ok());
    let upgrade = |query: Value| {
        let mut control = control().expect("a socket");
        control.request(&json!({ "upgrade": query }))
    };
    let result = upgrade(json!({})).expect("a report");
    let pid = result["upgraded"]["new_pid"]
        .as_u64()
        .expect("a process ID");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the new process");
    let line = |name: &str| {
        status
            .lines()
            .find_map(|l| l.strip_prefix(name))
            .map(str::trim)
    };
    assert_eq!(line("CapEff:"), Some("0000000000002000"), "{status}");
    assert!(
        line("Uid:").is_some_and(|l| l.starts_with("65534")),
        "{status}"
    );
    std::os::unix::fs::chown(&program, Some(65534), None).expect("its owner");
    let refused = upgrade(json!({})).expect_err("a program of the user");
    assert!(
        refused.contains("the file must belong to root"),
        "{refused}"
    );
    control().expect("a socket").expect_ok(&json!("stop"));
    eventually("the end of the new process", false, || {
        std::path::Path::new(&format!("/proc/{pid}/exe")).exists()
    });
    drop(process);
}
