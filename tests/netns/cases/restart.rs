//! What was learned outlives the process: kill -9, restart, and files that cannot be used.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::cases;
use super::host_reports::iptables;
use super::joins::records;
use super::mnat::{MnatTopology, mapped, rewritten, wait_mapped};
use crate::lab::mnat::ServerState;
use crate::lab::proxy::{joined, member, members, querier};
use crate::lab::switch::upstream_switch;
use crate::lab::{
    Capture, Injector, Lab, NumberedStream, Router, Star, Udp, UdpRx, bridge, eventually,
    received_in_order, wait_until,
};

cases!("restart":
    #[LinkKind("bridge")] #[Iptables] stream_continues_after_kill_without_leaves,
    #[LinkKind("bridge")] #[Iptables] stream_continues_after_kill_with_a_version,
    #[Iptables] mld_members_continue_after_kill,
    timers_continue_and_expired_members_are_not_restored,
    other_querier_stays_elected_after_kill,
    hosts_are_queried_after_a_long_absence,
    clean_stop_keeps_the_members,
    stop_that_keeps_forwarding_sends_no_leave,
    #[Iptables] settings_and_links_that_changed_meanwhile_are_respected,
    #[Iptables] unusable_state_files_are_refused,
    full_disk_is_reported_and_forwarding_continues,
    second_daemon_with_the_same_folder_is_refused,
    unusable_folder_is_reported_and_forwarding_continues,
    state_can_be_turned_off,
    mnat_ends_continue_with_watcher_id_and_mappings,
);

const GROUP: &str = "225.1.2.3";

/// Timers that are longer than a test: no query is due while it runs, unless it waits for one.
const LONG_TIMERS: &str =
    "[proxy.timers]\nquery_interval = \"60s\"\nquery_response_interval = \"1s\"\n";

/// Returns settings with a proxy and `folder` as the folder of the state.
fn settings(folder: &Path, downstream: &str, timers: &str) -> String {
    format!(
        "[state]\ndir = \"{}\"\n[[proxy]]\nname = \"p\"\nupstream = [\"in\"]\n\
         downstream = [\"{downstream}\"]\n{timers}",
        folder.display()
    )
}

fn state_file(folder: &Path) -> PathBuf {
    folder.join("learned")
}

/// Waits until the file with the state contains `text`.
#[track_caller]
fn wait_until_stored(folder: &Path, text: &str) {
    eventually(&format!("{text} is stored"), true, || {
        fs::read_to_string(state_file(folder)).is_ok_and(|t| t.contains(text))
    });
}

/// Returns the IGMP messages of the types in `types` that this host received on an interface.
fn igmp_messages(wire: &Capture, types: &[u8]) -> usize {
    let frames = wire.frames();
    let received = frames.iter().filter(|f| !f.outgoing);
    let packets = received.filter_map(|f| crate::lab::IpPacket::parse(&f.bytes));
    let is_wanted = |p: &crate::lab::IpPacket| p.protocol == 2 && types.contains(&p.body()[0]);
    packets.filter(is_wanted).count()
}

const QUERY: u8 = 0x11;
const LEAVE: u8 = 0x17;

/// Returns the records of the router that end or narrow a membership: TO_IN and BLOCK, and leaves.
fn leaves(wire: &Capture) -> Vec<(u8, String)> {
    let records = records(wire).into_iter();
    let ends = records.filter(|(kind, group, _)| [3, 6].contains(kind) && group == GROUP);
    let leaves = igmp_messages(wire, &[LEAVE]);
    let leaves = (0..leaves).map(|_| (LEAVE, String::new()));
    ends.map(|(kind, group, _)| (kind, group))
        .chain(leaves)
        .collect()
}

/// A snooping bridge with a querier is upstream. The host cannot report while the router is down
/// and afterwards, and is not queried. `interface` holds settings of the upstream interface. Returns
/// the leaves that the switch received from the router.
fn stream_continues_after_kill(lab: &Lab, interface: &str) -> Vec<(u8, String)> {
    let star = Star::v4(lab, 1);
    let options = "mcast_query_interval 300 mcast_membership_interval 900 \
                   mcast_startup_query_interval 100 mcast_query_use_ifaddr 1 \
                   mcast_query_response_interval 100 mcast_last_member_interval 100";
    let sw = upstream_switch(lab, &star, options);
    let folder = lab.file("state");
    let toml = settings(&folder, "out1", LONG_TIMERS) + interface;
    let mut router = Router::start(lab, &star.rtr, &toml);
    let rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    eventually("the switch knows the member", true, || {
        bridge(&sw, "mdb show").contains(GROUP)
    });
    wait_until_stored(&folder, GROUP);
    iptables(&star.rcv, &["-A OUTPUT -p igmp -j DROP"]);
    let at_switch = Capture::new(&sw, "p1");
    let at_host = Capture::new(&star.rcv, "eth1");
    let flow = NumberedStream::start(&star.src, "eth0", "10.0.0.10:9", "225.1.2.3:5000", 100);
    eventually("the stream arrives", true, || rx.count() > 0);
    router.kill();
    let before = rx.count();
    router.start_again(lab);
    eventually("the stream arrives again", true, || {
        rx.count() > before + 50
    });
    assert_eq!(joined(&router, "in"), [format!("{GROUP} exclude []")]);
    assert_eq!(igmp_messages(&at_host, &[QUERY]), 0, "the host was queried");
    let sent = flow.finish();
    eventually("the last packet", true, || {
        received_in_order(&at_host, GROUP).last() == Some(&(sent - 1))
    });
    // The membership is reported anew, and never ended.
    assert!(records(&at_switch).iter().any(|r| r.0 == 4 && r.1 == GROUP));
    let log = router.program.stderr();
    assert!(log.contains("groups of members: 1, interfaces: 1"), "{log}");
    leaves(&at_switch)
}

fn stream_continues_after_kill_without_leaves(lab: &Lab) {
    assert_eq!(stream_continues_after_kill(lab, ""), []);
}

fn stream_continues_after_kill_with_a_version(lab: &Lab) {
    // With a version, the kernel joins no group.
    let interface = "[[interface]]\nname = \"in\"\nversion = { igmp = 3 }\n";
    assert_eq!(stream_continues_after_kill(lab, interface), []);
}

fn mld_members_continue_after_kill(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let folder = lab.file("state");
    let toml = settings(&folder, "out1", LONG_TIMERS);
    let mut router = Router::start(lab, &star.rtr, &toml);
    let rx = UdpRx::join(&star.rcv, "eth1", "[ff0e::8000:7]:5000");
    eventually("a member", true, || {
        member(&router, "out1", "ff0e::8000:7").is_some()
    });
    wait_until_stored(&folder, "ff0e::8000:7");
    let rules = ["-A OUTPUT -p icmpv6 -j DROP"];
    for rule in rules {
        let words: Vec<&str> = rule.split_whitespace().collect();
        assert!(star.rcv.output("ip6tables", &words).status.success());
    }
    router.kill();
    let router = Router::start(lab, &star.rtr, &toml);
    assert!(member(&router, "out1", "ff0e::8000:7").is_some());
    let inject = Injector::new(&star.src, "eth0");
    for n in 0..20u32 {
        let to = "[ff0e::8000:7]:5000";
        inject.send(&Udp::new("[fd00::10]:9", to, n.to_be_bytes()).frame());
    }
    rx.expect(20);
}

/// Returns the seconds left of the group timer behind `out1`.
fn expires_in(router: &Router) -> Option<f64> {
    Some(member(router, "out1", GROUP)?["expires_ms"].as_f64()? / 1000.0)
}

/// The host reports once and never again. Its membership ends when it would have ended without the
/// restart, and a later restart does not bring it back.
fn timers_continue_and_expired_members_are_not_restored(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let folder = lab.file("state");
    // The group membership interval is 2 x 4 s + 2 x 500 ms.
    let timers = "[proxy.timers]\nquery_interval = \"4s\"\nquery_response_interval = \"500ms\"\n";
    let toml = settings(&folder, "out1", timers);
    let mut router = Router::start(lab, &star.rtr, &toml);
    let joined_at = std::time::Instant::now();
    let inject = Injector::new(&star.rcv, "eth1");
    let report = crate::lab::proxy::report([225, 1, 2, 3]);
    let frame = crate::lab::proxy::igmp_frame([10, 0, 1, 77], [224, 0, 0, 22], &report, 1, true);
    inject.send(&frame);
    eventually("a member", 1, || members(&router).len());
    wait_until_stored(&folder, GROUP);
    wait_until(Duration::from_secs(2), || false);
    router.kill();
    let mut router = Router::start(lab, &star.rtr, &toml);
    let age = joined_at.elapsed().as_secs_f64();
    assert_eq!(members(&router).len(), 1);
    if let Some(left) = expires_in(&router) {
        assert!(left <= 9.2 - age, "{left} s left after {age} s");
    }
    eventually("the membership ends", 0, || members(&router).len());
    let ended = joined_at.elapsed();
    assert!(
        ended >= Duration::from_millis(8900),
        "ended after {ended:?}"
    );
    assert!(ended < Duration::from_secs(12), "ended after {ended:?}");
    router.kill();
    let router = Router::start(lab, &star.rtr, &toml);
    assert_eq!(members(&router).len(), 0);
    assert_eq!(joined(&router, "in"), [""; 0]);
}

fn other_querier_stays_elected_after_kill(lab: &Lab) {
    let star = Star::v4(lab, 1);
    star.rtr.ip("address del 10.0.1.1/24 dev out1");
    star.rtr.ip("address add 10.0.1.100/24 dev out1");
    let folder = lab.file("state");
    let toml = settings(&folder, "out1", LONG_TIMERS);
    let mut router = Router::start(lab, &star.rtr, &toml);
    let inject = Injector::new(&star.rcv, "eth1");
    let query = crate::lab::proxy::checksummed(&[QUERY, 10, 0, 0, 0, 0, 0, 0, 2, 60, 0, 0]);
    let frame = crate::lab::proxy::igmp_frame([10, 0, 1, 7], [224, 0, 0, 1], &query, 1, true);
    inject.send(&frame);
    let other = (Some("10.0.1.7".to_string()), false);
    eventually("the other querier", other.clone(), || {
        querier(&router, "out1", "igmp")
    });
    wait_until_stored(&folder, "10.0.1.7");
    let wire = Capture::new(&star.rcv, "eth1");
    router.kill();
    let router = Router::start(lab, &star.rtr, &toml);
    assert_eq!(querier(&router, "out1", "igmp"), other);
    assert_eq!(igmp_messages(&wire, &[QUERY]), 0, "it sent a query");
}

/// The version of the upstream interface is set, so the kernel holds no membership of its own.
fn stop_that_keeps_forwarding_sends_no_leave(lab: &Lab) {
    for (command, expected) in [("stop --keep-forwarding", false), ("stop", true)] {
        let star = Star::tagged(lab, 1, if expected { "a" } else { "b" });
        let join = format!("[[join]]\ninterface = \"in\"\ngroup = \"{GROUP}\"\n");
        let version = "[[interface]]\nname = \"in\"\nversion = { igmp = 3, mld = 2 }\n";
        let wire = Capture::new(&star.src, "eth0");
        let mut router = Router::start(lab, &star.rtr, &(join + version));
        eventually("the group is reported", true, || {
            records(&wire).iter().any(|(_, group, _)| group == GROUP)
        });
        router.run(command);
        router.program.wait();
        if expected {
            eventually("a leave is sent", true, || !leaves(&wire).is_empty());
        } else {
            assert_eq!(leaves(&wire), []);
        }
    }
}

/// Hosts may have joined while no process was there.
fn hosts_are_queried_after_a_long_absence(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let folder = lab.file("state");
    let toml = settings(&folder, "out1", LONG_TIMERS);
    let mut router = Router::start(lab, &star.rtr, &toml);
    let _rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    wait_until_stored(&folder, GROUP);
    router.kill();
    let wire = Capture::new(&star.rcv, "eth1");
    let _second = UdpRx::join(&star.rcv, "eth1", "225.1.2.4:5000");
    wait_until(Duration::from_secs(6), || false);
    let router = Router::start(lab, &star.rtr, &toml);
    assert!(member(&router, "out1", GROUP).is_some());
    eventually("a query", true, || igmp_messages(&wire, &[QUERY]) > 0);
    eventually("the new member", true, || {
        member(&router, "out1", "225.1.2.4").is_some()
    });
}

fn clean_stop_keeps_the_members(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let folder = lab.file("state");
    let toml = settings(&folder, "out1", LONG_TIMERS);
    let router = Router::start(lab, &star.rtr, &toml);
    let _rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    eventually("a member", 1, || members(&router).len());
    // The last change is written at the end.
    let _second = UdpRx::join(&star.rcv, "eth1", "225.1.2.4:5000");
    eventually("two members", 2, || members(&router).len());
    router.stop();
    let text = fs::read_to_string(state_file(&folder)).expect("the file");
    assert!(text.contains(GROUP) && text.contains("225.1.2.4"), "{text}");
    let router = Router::start(lab, &star.rtr, &toml);
    assert_eq!(members(&router).len(), 2);
}

/// Starts a router, and returns the groups with members. The same number of groups is joined
/// upstream.
fn restored_groups(lab: &Lab, star: &Star, toml: &str) -> (Router, Vec<String>) {
    let router = Router::start(lab, &star.rtr, toml);
    let rows = members(&router);
    let groups = rows.iter().filter_map(|m| m["group"].as_str());
    let groups: Vec<String> = groups.map(String::from).collect();
    assert_eq!(joined(&router, "in").len(), groups.len(), "{groups:?}");
    (router, groups)
}

fn settings_and_links_that_changed_meanwhile_are_respected(lab: &Lab) {
    let star = Star::v4(lab, 3);
    let folder = lab.file("state");
    let toml = |downstream: &str| settings(&folder, downstream, LONG_TIMERS);
    let mut router = Router::start(lab, &star.rtr, &toml("out*"));
    let _receivers = [1, 2, 3].map(|n| {
        let rx = UdpRx::join(&star.rcv, &format!("eth{n}"), &format!("225.1.2.{n}:5000"));
        wait_until_stored(&folder, &format!("225.1.2.{n}"));
        rx
    });
    router.kill();
    // Reports do not arrive, so that only restored members are known.
    iptables(&star.rcv, &["-A OUTPUT -p igmp -j DROP"]);
    // An interface that is gone, and one that has another name.
    star.rtr.ip("link del out3");
    star.rtr.ip("link set out2 down");
    star.rtr.ip("link set out2 name outside");
    star.rtr.ip("link set outside up");
    let (mut router, groups) = restored_groups(lab, &star, &toml("out*"));
    assert_eq!(groups, ["225.1.2.1"]);
    router.kill();
    // An interface that is no longer downstream. Its state is dropped.
    let (mut router, groups) = restored_groups(lab, &star, &toml("outside"));
    assert_eq!(groups, [""; 0]);
    let is_dropped = wait_until(Duration::from_secs(20), || {
        !fs::read_to_string(state_file(&folder))
            .expect("the file")
            .contains(GROUP_1)
    });
    assert!(is_dropped, "the state of out1 is still stored");
    router.kill();
    assert_eq!(restored_groups(lab, &star, &toml("out*")).1, [""; 0]);
}

const GROUP_1: &str = "225.1.2.1";

/// A change of the bytes of a file.
type Change<'a> = &'a dyn Fn(&mut Vec<u8>);

/// Changes the content of the file with the state.
fn damage(folder: &Path, change: Change<'_>) {
    let file = state_file(folder);
    let mut bytes = fs::read(&file).expect("the file");
    change(&mut bytes);
    fs::write(&file, bytes).expect("writing");
}

fn unusable_state_files_are_refused(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let folder = lab.file("state");
    let toml = settings(&folder, "out1", LONG_TIMERS);
    let mut router = Router::start(lab, &star.rtr, &toml);
    let _rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    wait_until_stored(&folder, GROUP);
    router.kill();
    let good = fs::read(state_file(&folder)).expect("the file");
    // Reports do not arrive, so that only restored members are known.
    iptables(&star.rcv, &["-A OUTPUT -p igmp -j DROP"]);
    let replace = |bytes: &mut Vec<u8>, from: &str, to: &str| {
        *bytes = String::from_utf8_lossy(bytes)
            .replacen(from, to, 1)
            .into_bytes();
    };
    let truncated: Change<'_> = &|bytes| bytes.truncate(bytes.len() / 2);
    let cases: [(Change<'_>, &str); 5] = [
        (truncated, "it is damaged: its length is wrong"),
        (
            &|b| replace(b, GROUP, "225.1.2.9"),
            "it is damaged: its checksum is wrong",
        ),
        (
            &|b| replace(b, "mcastor-state 1", "mcastor-state 7"),
            "it has version 7 of the format",
        ),
        (
            &|b| *b = b"[[route]]\n".to_vec(),
            "it is not a state file of mcastor",
        ),
        (&|b| *b = vec![b'x'; 70 << 20], "it is larger than 64 MiB"),
    ];
    for (change, expected) in cases {
        fs::write(state_file(&folder), &good).expect("writing");
        damage(&folder, change);
        let (mut router, groups) = restored_groups(lab, &star, &toml);
        let log = router.program.stderr();
        let refusals: Vec<_> = log.lines().filter(|l| l.contains("is not used")).collect();
        assert_eq!(refusals.len(), 1, "{log}");
        assert!(
            refusals[0].contains(expected),
            "{}, expected {expected}",
            refusals[0]
        );
        assert_eq!(groups, [""; 0]);
        router.kill();
    }
    fs::write(state_file(&folder), &good).expect("writing");
    assert_eq!(restored_groups(lab, &star, &toml).1, [GROUP]);
}

/// The folder is on a file system without space.
fn full_disk_is_reported_and_forwarding_continues(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let folder = lab.file("state");
    fs::create_dir(&folder).expect("a folder");
    let mount = |words: &[&str]| {
        let status = Command::new(words[0]).args(&words[1..]).status();
        assert!(status.expect("mount").success(), "{words:?}");
    };
    let path = folder.display().to_string();
    mount(&[
        "mount",
        "-t",
        "tmpfs",
        "-o",
        "size=64k,mode=700",
        "none",
        &path,
    ]);
    let unmount = Unmount(path);
    let filler = folder.join("filler");
    let fill = || fs::write(&filler, vec![0u8; 1 << 20]).is_err();
    let router = Router::start(lab, &star.rtr, &settings(&folder, "out1", LONG_TIMERS));
    assert!(fill(), "the disk is not full");
    let writes = |result: &str| router.metric("mcastor_state_writes_total", &[("result", result)]);
    let rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    eventually("a failed write", true, || writes("error") > 0.0);
    let inject = Injector::new(&star.src, "eth0");
    eventually("a member", 1, || members(&router).len());
    (0..20u32).for_each(|n| {
        let to = "225.1.2.3:5000";
        inject.send(&Udp::new("10.0.0.10:9", to, n.to_be_bytes()).frame());
    });
    rx.expect(20);
    // Written again when there is space; one warning until then.
    fs::remove_file(&filler).expect("removing");
    let is_stored = wait_until(Duration::from_secs(20), || {
        fs::read_to_string(state_file(&folder)).is_ok_and(|t| t.contains(GROUP))
    });
    assert!(is_stored, "it is not written again");
    assert!(writes("ok") > 0.0);
    let log = router.program.stderr();
    assert_eq!(log.matches("state: cannot write").count(), 1, "{log}");
    assert!(log.contains("can be written again"), "{log}");
    router.stop();
    drop(unmount);
}

/// Unmounts a file system when it is dropped.
struct Unmount(String);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l", &self.0]).status();
    }
}

fn second_daemon_with_the_same_folder_is_refused(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let folder = lab.file("state");
    let toml = settings(&folder, "out1", LONG_TIMERS);
    let mut first = Router::start(lab, &star.rtr, &toml);
    let mut second = Router::launch(lab, &star.src, &toml, &[]);
    assert_eq!(second.program.wait().code(), Some(1));
    let printed = second.program.stderr();
    let process = format!(
        "in use by another mcastor (process {})",
        first.program.pid()
    );
    assert!(printed.contains(&process), "{printed}");
    assert!(printed.contains("dir in [state]"), "{printed}");
    assert!(first.is_ready());
    // The lock ends with the process.
    first.kill();
    drop(Router::start(lab, &star.rtr, &toml));
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
    assert_eq!((mode(&folder), mode(&state_file(&folder))), (0o700, 0o600));
}

fn unusable_folder_is_reported_and_forwarding_continues(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let file = lab.file("a-file");
    fs::write(&file, "x").expect("writing");
    let toml = settings(&file, "out1", LONG_TIMERS);
    let router = Router::start(lab, &star.rtr, &toml);
    let log = router.program.stderr();
    assert_eq!(
        log.matches("what is learned is not kept").count(),
        1,
        "{log}"
    );
    let _rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    eventually("a member", 1, || members(&router).len());
    assert_eq!(fs::read_to_string(&file).expect("the file"), "x");
}

/// Without a file, hosts report again. The default folder is beside the control socket.
fn state_can_be_turned_off(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let toml = settings(Path::new("off"), "out1", LONG_TIMERS);
    let router = Router::start(lab, &star.rtr, &toml);
    assert!(!router.socket.with_extension("state").exists());
    drop(router);
    let toml = toml.replace("[state]\ndir = \"off\"\n", "");
    let router = Router::start(lab, &star.rtr, &toml);
    assert!(router.socket.with_extension("state").join("lock").exists());
}

/// The server is down while both ends restart, so that only stored mappings can forward.
fn mnat_ends_continue_with_watcher_id_and_mappings(lab: &Lab) {
    let topology = MnatTopology::new(lab);
    let server_state = ServerState::starting_at(0);
    let server = topology.serve(&server_state);
    let [egress_file, ingress_file] = ["egress-joins", "ingress-joins"].map(|n| lab.file(n));
    fs::write(&egress_file, "10.0.0.10,232.1.1.1\n").expect("writing");
    let folders = [lab.file("ingress-state"), lab.file("egress-state")];
    let with_state = |n: usize, settings: String| {
        format!("[state]\ndir = \"{}\"\n{settings}", folders[n].display())
    };
    let ingress = with_state(0, topology.settings("ingress", "in", "mid", &ingress_file));
    let egress = with_state(1, topology.settings("egress", "net0", "out", &egress_file));
    let start = || {
        let ingress = Router::start(lab, &topology.ing, &ingress);
        (ingress, Router::start(lab, &topology.egr, &egress))
    };
    let (mut ing, mut egr) = start();
    let mapping = [("232.1.1.1", "239.1.1.1")];
    wait_mapped(&egr, &mapping);
    wait_mapped(&ing, &mapping);
    let routes = (rewritten(&ing), rewritten(&egr));
    folders
        .iter()
        .for_each(|folder| wait_until_stored(folder, "239.1.1.1"));
    let watchers = server_state.lock().unwrap().watcher_count();
    drop(server);
    ing.kill();
    egr.kill();
    let (ing, egr) = start();
    for router in [&ing, &egr] {
        let held = ("232.1.1.1".into(), "239.1.1.1".into(), "held".into());
        assert_eq!(mapped(router), [held]);
    }
    eventually("the routes", routes, || (rewritten(&ing), rewritten(&egr)));
    let wire = Capture::new(&topology.rcv, "eth1");
    let inject = Injector::new(&topology.src, "eth0");
    let frame = Udp::new("10.0.0.10:9", "232.1.1.1:5000", "x").frame();
    eventually("a packet arrives", true, || {
        inject.send(&frame);
        !wire.to("232.1.1.1").is_empty()
    });
    // The server knows the ids and corrects the mappings.
    server_state.lock().unwrap().reassign();
    let _server = topology.serve(&server_state);
    wait_mapped(&egr, &[("232.1.1.1", "239.1.1.2")]);
    wait_mapped(&ing, &[("232.1.1.1", "239.1.1.2")]);
    assert_eq!(server_state.lock().unwrap().watcher_count(), watchers);
}
