//! Restarts again and again: of proxies, of ends of multicast NAT, and of a redundant pair.

use std::collections::BTreeMap;
use std::fs::{File, read_dir, read_to_string};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use super::ebpf_restart::{bpffs_settings, restarts};
use super::joins::records;
use super::mnat::{MnatTopology, wait_mapped};
use super::upgrade::Replacement;
use super::{cases, route};
use crate::lab::bpffs::BpfFs;
use crate::lab::keeper::keepers_in;
use crate::lab::mnat::ServerState;
use crate::lab::numbered_stream::{NumberedReceiver, sequence_number};
use crate::lab::parallel::ParallelRouters;
use crate::lab::proxy::{joined, proxy};
use crate::lab::random::Random;
use crate::lab::switch::upstream_switch;
use crate::lab::{
    Capture, Lab, NumberedStream, Router, Star, TIMEOUT, UdpRx, bridge, eventually, wait_until,
};

cases!("restarts":
    #[LinkKind("bridge")] #[BpfPrograms] killed_proxy_loses_nothing,
    #[BpfPrograms] killed_ends_of_multicast_nat_lose_nothing,
    #[BpfPrograms] killed_ends_of_multicast_nat_lose_nothing_at_their_start,
    pair_upgraded_in_turn_loses_nothing,
    #[BpfPrograms] killed_router_of_a_pair_loses_nothing,
    #[BpfPrograms] restarts_leave_nothing_behind,
);

const GROUP: &str = "225.1.2.3";
const DST: &str = "225.1.2.3:5000";

/// Waits until the kernel forwards a flow, by what the routers show.
#[track_caller]
fn wait_until_in_kernel(routers: &[&Router]) {
    for router in routers {
        let is_in_kernel = || router.run("show flows").contains("ebpf");
        assert!(
            wait_until(TIMEOUT, is_in_kernel),
            "{}",
            router.run("show flows")
        );
    }
}

/// Kills a router, and starts it again after a while. Returns during the start or after it.
fn kill_and_start(lab: &Lab, router: &mut Router, random: &mut Random) {
    let moment = |random: &mut Random| Duration::from_millis(random.below(300) as u64);
    router.kill();
    std::thread::sleep(moment(random));
    router.launch_again(lab);
    // Some of these times are shorter than the start takes.
    std::thread::sleep(moment(random));
}

/// Ends a stream, of which each packet must have arrived once and in its order.
#[track_caller]
fn expect_each_once(stream: NumberedStream, receiver: NumberedReceiver) {
    let sent = stream.finish();
    wait_until(TIMEOUT, || receiver.received() >= sent.into());
    assert_eq!(receiver.lost(), 0, "the receiver is too slow");
    let got = receiver.finish();
    let lost = u64::from(sent) - got.numbers;
    assert_eq!(
        (lost, got.doubled, got.late),
        (0, 0, 0),
        "lost, doubled, late of {sent}"
    );
    println!("{sent} packets, none lost, doubled or late");
}

/// Neither the receiver nor the switch upstream notices that the proxy is killed again and again: the
/// receiver stays joined, and the switch sees no leave.
fn killed_proxy_loses_nothing(lab: &Lab) {
    let bpffs = BpfFs::mount(lab);
    let star = Star::v4(lab, 1);
    let switch = upstream_switch(lab, &star, "mcast_last_member_interval 10");
    // No query is due, whose answers a router would miss that is killed all the time.
    let proxy = "[[proxy]]\nname = \"p\"\nupstream = [\"in\"]\ndownstream = [\"out1\"]\n\
                 [proxy.timers]\nquery_interval = \"120s\"\nquery_response_interval = \"1s\"\n";
    let toml = bpffs_settings(&bpffs, proxy);
    let mut router = Router::start(lab, &star.rtr, &toml);
    let _member = UdpRx::join(&star.rcv, "eth1", DST);
    let joins = vec![format!("{GROUP} exclude []")];
    eventually("joined upstream", joins, || joined(&router, "in"));
    let knows_member = || bridge(&switch, "mdb show").contains(GROUP);
    eventually("the switch knows the member", true, knows_member);
    let state = router.socket.with_extension("state").join("learned");
    let is_stored = || read_to_string(&state).is_ok_and(|text| text.contains(GROUP));
    assert!(wait_until(TIMEOUT, is_stored), "{}", state.display());
    let at_switch = Capture::new(&switch, "p1");
    let receiver = NumberedReceiver::start(&star.rcv, "eth1", GROUP);
    let stream = NumberedStream::start(&star.src, "eth0", "10.0.0.10:9", DST, 2000);
    wait_until_in_kernel(&[&router]);
    let mut random = Random::default();
    for _ in 0..restarts() {
        kill_and_start(lab, &mut router, &mut random);
        assert!(knows_member());
        at_switch.collect();
    }
    router.kill();
    router.start_again(lab);
    stream.wait_for_more(1000);
    expect_each_once(stream, receiver);
    const TO_IN: u8 = 3;
    const BLOCK: u8 = 6;
    let leaves = || {
        let of_group =
            |(kind, group, _): &(u8, String, _)| group == GROUP && [TO_IN, BLOCK].contains(kind);
        records(&at_switch)
            .iter()
            .filter(|record| of_group(record))
            .count()
    };
    assert_eq!(leaves(), 0);
    // A stop leaves the group, which proves that a leave would have been seen.
    router.stop();
    eventually("the leave of a stop", true, || leaves() > 0);
}

/// Starts both ends of multicast NAT and a stream, which the kernel forwards, and calls `interrupt`
/// with the ends. No packet is lost, and the server sees no new client.
fn interrupt_multicast_nat(lab: &Lab, interrupt: impl FnOnce(&mut [Router; 2])) {
    let bpffs = BpfFs::mount(lab);
    let topology = MnatTopology::new(lab);
    let server_state = ServerState::starting_at(0);
    let _server = topology.serve(&server_state);
    let [egress_file, ingress_file] = ["egress-joins", "ingress-joins"].map(|n| lab.file(n));
    std::fs::write(&egress_file, "10.0.0.10,232.1.1.1\n").expect("writing");
    let ingress = topology.settings("ingress", "in", "mid", &ingress_file);
    let egress = topology.settings("egress", "net0", "out", &egress_file);
    let start = |ns, toml: &str| Router::start(lab, ns, &bpffs_settings(&bpffs, toml));
    let mut ends = [
        start(&topology.ing, &ingress),
        start(&topology.egr, &egress),
    ];
    let mapping = [("232.1.1.1", "239.1.1.1")];
    ends.iter().for_each(|end| wait_mapped(end, &mapping));
    let watchers = server_state.lock().unwrap().watcher_count();
    let (source, group) = ("10.0.0.10:9", "232.1.1.1:5000");
    let receiver = NumberedReceiver::start(&topology.rcv, "eth1", "232.1.1.1");
    let warm_up = NumberedStream::start(&topology.src, "eth0", source, group, 1000);
    assert!(
        wait_until(TIMEOUT, || receiver.received() > 100),
        "nothing arrives"
    );
    wait_until_in_kernel(&ends.each_ref());
    for end in &ends {
        let state = end.socket.with_extension("state").join("learned");
        let is_stored = || read_to_string(&state).is_ok_and(|t| t.contains("239.1.1.1"));
        assert!(wait_until(TIMEOUT, is_stored), "{}", state.display());
    }
    warm_up.finish();
    drop(receiver);
    let receiver = NumberedReceiver::start(&topology.rcv, "eth1", "232.1.1.1");
    let stream = NumberedStream::start(&topology.src, "eth0", source, group, 2000);
    interrupt(&mut ends);
    for end in &mut ends {
        end.kill();
        end.start_again(lab);
    }
    stream.wait_for_more(1000);
    expect_each_once(stream, receiver);
    ends.iter().for_each(|end| wait_mapped(end, &mapping));
    assert_eq!(server_state.lock().unwrap().watcher_count(), watchers);
}

fn killed_ends_of_multicast_nat_lose_nothing(lab: &Lab) {
    let mut random = Random::default();
    interrupt_multicast_nat(lab, |ends| {
        for _ in 0..restarts() {
            for end in ends.iter_mut() {
                kill_and_start(lab, end, &mut random);
            }
        }
    });
}

/// Kills the ends at these times after the start of their processes.
fn killed_ends_of_multicast_nat_lose_nothing_at_their_start(lab: &Lab) {
    interrupt_multicast_nat(lab, |ends| {
        for time in [50, 100, 150, 200, 250, 300] {
            for end in ends.iter_mut() {
                end.kill();
                end.launch_again(lab);
                std::thread::sleep(Duration::from_millis(time));
            }
        }
    });
}

/// Returns how often each sequence number arrived.
fn copies(capture: &Capture) -> BTreeMap<u32, usize> {
    let mut copies = BTreeMap::new();
    for packet in capture.to(GROUP) {
        *copies.entry(sequence_number(packet.payload())).or_default() += 1;
    }
    copies
}

/// Starts a redundant pair and a stream, and calls `interrupt` with each router in turn. No packet is
/// lost. A router that starts does not know yet that the other one forwards, so some arrive twice.
fn interrupt_pair(lab: &Lab, toml: &str, mut interrupt: impl FnMut(usize, &mut Router)) {
    let net = ParallelRouters::new(lab, 2, "");
    let mut routers: Vec<Router> = (net.routers.iter())
        .map(|ns| Router::start(lab, ns, toml))
        .collect();
    let capture = Capture::new(&net.rcv, "eth0");
    let stream = NumberedStream::start(&net.src, "eth0", "10.0.0.100:9", DST, 500);
    let labels = [("reason", "other_forwarder"), ("iface", "lan1")];
    eventually("one router yields", true, || {
        capture.collect();
        let withheld = |r: &Router| r.metric("mcastor_dropped_packets_total", &labels) > 100.0;
        routers.iter().any(withheld)
    });
    let turns = restarts().min(20);
    for _ in 0..turns {
        for (n, router) in routers.iter_mut().enumerate() {
            interrupt(n, router);
            stream.wait_for_more(300);
            capture.collect();
        }
    }
    let sent = stream.finish();
    let is_last = || copies(&capture).contains_key(&(sent - 1));
    assert!(wait_until(TIMEOUT, is_last));
    let copies = copies(&capture);
    let missing: Vec<u32> = (0..sent).filter(|n| !copies.contains_key(n)).collect();
    assert!(missing.is_empty(), "{missing:?} of {sent}");
    let doubled = copies.values().filter(|n| **n > 1).count();
    println!("{turns} turns: {sent} packets, none lost, {doubled} twice");
    assert!(
        doubled < sent as usize / 2,
        "{doubled} of {sent} arrived twice"
    );
}

const TAKEOVER: &str = "takeover = \"5s\"\n";

fn pair_upgraded_in_turn_loses_nothing(lab: &Lab) {
    let toml = route("ab", "lan0", "", GROUP, &["lan1"], TAKEOVER);
    let mut replaced = Replaced([None; 2]);
    interrupt_pair(lab, &toml, |n, router| {
        let mut replacement = Replacement::new(router);
        replacement.pid = replaced.0[n].unwrap_or(replacement.pid);
        replacement.upgrade();
        replaced.0[n] = Some(replacement.pid);
        // It goes on, as the router.
        std::mem::forget(replacement);
    });
}

/// The router that forwards is killed while its kernel forwards. When the stream has moved to the other
/// one, the kernel forwards it there within seconds.
fn killed_router_of_a_pair_loses_nothing(lab: &Lab) {
    let bpffs = BpfFs::mount(lab);
    let net = ParallelRouters::new(lab, 2, "");
    let routes = route("ab", "lan0", "", GROUP, &["lan1"], TAKEOVER);
    let toml = bpffs_settings(&bpffs, &routes);
    let mut routers: Vec<Router> = (net.routers.iter())
        .map(|ns| Router::start(lab, ns, &toml))
        .collect();
    let capture = Capture::new(&net.rcv, "eth0");
    let stream = NumberedStream::start(&net.src, "eth0", "10.0.0.100:9", DST, 500);
    let in_kernel = |router: &Router| router.run("show flows").contains("ebpf");
    let wait_for_kernel = |router: &Router| {
        let start = std::time::Instant::now();
        let forwards = wait_until(TIMEOUT, || {
            capture.collect();
            in_kernel(router)
        });
        assert!(forwards, "{}", router.run("show flows"));
        println!("in the kernel after {:?}", start.elapsed());
    };
    // One of them forwards in the kernel, and the other one yields.
    eventually("routers whose kernel forwards", 1, || {
        capture.collect();
        routers.iter().filter(|router| in_kernel(router)).count()
    });
    let first = routers.iter().position(in_kernel).expect("a router");
    let begin = stream.sent();
    for _ in 0..restarts() {
        routers[first].kill();
        stream.wait_for_more(200);
        routers[first].start_again(lab);
        wait_for_kernel(&routers[first]);
    }
    let until = stream.sent();
    // A clean stop moves the stream.
    routers[first].program.stop(libc::SIGTERM, TIMEOUT);
    wait_for_kernel(&routers[1 - first]);
    routers[first].start_again(lab);
    stream.finish();
    let copies = copies(&capture);
    let missing: Vec<u32> = (begin..until).filter(|n| !copies.contains_key(n)).collect();
    assert!(missing.is_empty(), "{missing:?} of {begin} to {until}");
}

/// The processes that the last upgrades started. Dropping it ends them.
struct Replaced([Option<u64>; 2]);

impl Drop for Replaced {
    fn drop(&mut self) {
        for pid in self.0.iter().flatten() {
            // SAFETY: `kill` takes no pointer.
            unsafe { libc::kill(*pid as i32, libc::SIGKILL) };
        }
    }
}

/// Kills, stops and replaces a router. What it has in the kernel, in files and in processes does not
/// grow, and nothing is left after the last stop.
fn restarts_leave_nothing_behind(lab: &Lab) {
    let bpffs = BpfFs::mount(lab);
    let star = Star::dual(lab, 1);
    let mut toml = proxy(&["in"], &["out1"], "");
    toml += &route("r", "in", "", "225.9.9.9", &["out1"], "");
    let mut router = Router::start(lab, &star.rtr, &bpffs_settings(&bpffs, &toml));
    let _member = UdpRx::join(&star.rcv, "eth1", DST);
    let stream = NumberedStream::start(&star.src, "eth0", "10.0.0.10:9", "225.9.9.9:5000", 200);
    wait_until_in_kernel(&[&router]);
    let namespace = File::open(format!("/proc/{}/ns/net", router.program.pid()));
    let namespace = namespace.expect("a network namespace");
    let namespace_path = format!("/proc/self/fd/{}", namespace.as_raw_fd());
    let state = router.socket.with_extension("state");
    let used = |router: &Router| {
        eventually("one keeper", true, || {
            keepers_in(namespace_path.as_ref()).len() == 1
        });
        let descriptors = format!("/proc/{}/fd", router.program.pid());
        let count = |folder: &Path| read_dir(folder).map_or(0, Iterator::count);
        let pinned_and_stored = (bpffs.pinned().len(), count(&state));
        (pinned_and_stored, count(descriptors.as_ref()))
    };
    let mut first = None;
    for n in 0..restarts() {
        match n % 3 {
            0 => router.kill(),
            1 => {
                router.run("stop --keep-forwarding");
                router.program.wait();
            }
            _ => {
                router.program.stop(libc::SIGTERM, TIMEOUT);
                assert_eq!(bpffs.pinned(), Vec::<String>::new());
            }
        }
        router.start_again(lab);
        wait_until_in_kernel(&[&router]);
        let is_joined = || joined(&router, "in").contains(&format!("{GROUP} exclude []"));
        eventually("joined upstream", true, is_joined);
        let (kept, descriptors) = used(&router);
        let (first_kept, first_descriptors) = *first.get_or_insert((kept, descriptors));
        assert_eq!(kept, first_kept, "restart {n}");
        // Connections of clients, and copies on their way to the keeper, come and go.
        let difference = descriptors.abs_diff(first_descriptors);
        assert!(
            difference <= 16,
            "restart {n}: {first_descriptors} and then {descriptors}"
        );
    }
    stream.finish();
    router.stop();
    assert_eq!(bpffs.pinned(), Vec::<String>::new());
    eventually("no keeper", true, || {
        keepers_in(namespace_path.as_ref()).is_empty()
    });
}
