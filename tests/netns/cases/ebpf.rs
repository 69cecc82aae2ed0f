//! The eBPF plane: the kernel forwards known flows.

use serde_json::json;

use super::{cases, route};
use crate::lab::flood::Flood;
use crate::lab::numbered_stream::{NumberedReceiver, NumberedStream, missing, received_in_order};
use crate::lab::proxy::{member, proxy};
use crate::lab::{
    BINARY, Capture, Injector, Lab, Router, Star, Udp, UdpRx, UdpTx, eventually, macvlan,
    wait_until,
};

cases!("ebpf":
    #[BpfPrograms] stream_is_handed_over_exactly_v4,
    #[BpfPrograms] stream_is_handed_over_exactly_v6,
    #[BpfPrograms] rewritten_stream_is_handed_over_exactly_v4,
    #[BpfPrograms] rewritten_stream_is_handed_over_exactly_v6,
    #[BpfPrograms] router_listener_receives_the_stream_before_rewriting,
    #[BpfPrograms] changes_of_all_kinds_are_counted_exactly,
    #[BpfPrograms] changes_by_flush_lose_nothing,
    #[BpfPrograms] changes_of_egresses_lose_nothing,
    #[BpfPrograms] changes_of_ttl_by_reload_lose_nothing,
    #[BpfPrograms] changes_of_translation_lose_nothing,
    #[BpfPrograms] changes_of_offload_by_loop_guard_lose_nothing,
    #[BpfPrograms] route_changes_keep_nothing_in_the_kernel,
    #[BpfPrograms] listener_on_the_router_receives_an_offloaded_stream,
    #[BpfPrograms] packets_that_some_egress_does_not_get_are_counted,
    #[BpfPrograms] packets_go_directly_to_the_peer_of_a_veth,
    #[BpfPrograms] #[LinkKind("macvlan")] macvlans_are_offloaded,
    #[BpfPrograms] #[LinkKind("vlan")] vlan_interfaces_are_offloaded,
    #[BpfPrograms] stream_of_a_proxy_is_offloaded,
    #[BpfPrograms] standby_takes_over_from_the_kernel,
    #[BpfPrograms] higher_ttl_takes_over_from_the_kernel,
    #[BpfPrograms] flood_of_unknown_groups_is_limited_and_counted,
    #[Program("bpftool", "bpftool")] #[BpfPrograms] removed_program_loses_one_packet_and_returns,
    #[Program("bpftool", "bpftool")] #[BpfPrograms] clean_stop_removes_everything,
    #[BpfPrograms] #[Clsact] filters_of_others_are_kept,
    #[BpfPrograms] programs_of_a_killed_process_are_removed,
    #[BpfPrograms] gso_packets_of_an_offloaded_flow_are_forwarded,
    #[BpfPrograms] declined_flow_has_a_reason,
    #[BpfPrograms] packet_plane_of_an_interface_applies_on_reload,
    #[BpfPrograms] stream_in_the_kernel_is_not_polled_for,
    #[BpfPrograms] auto_chooses_the_kernel_and_names_its_memory,
    #[Program("setpriv", "util-linux")] missing_capabilities_leave_the_packet_plane,
    #[Program("prlimit", "util-linux")] auto_needs_open_files,
);

/// The TTL of numbered streams.
const TTL: u8 = 16;

const GROUP: &str = "225.1.2.3";

fn settings(routes: &str) -> String {
    format!("[plane]\nkind = \"ebpf\"\n{routes}")
}

/// A route whose flows the kernel does not forward.
fn declined_route() -> String {
    let guard = "loop_guard = true\n";
    route("r", "in", "10.0.0.10", GROUP, &["out1"], guard)
}

/// Starts a stream to [`GROUP`].
fn stream(star: &Star, per_second: u32) -> NumberedStream {
    let group = format!("{GROUP}:5000");
    NumberedStream::start(&star.src, "eth0", "10.0.0.10:4000", &group, per_second)
}

fn by_plane(router: &Router, plane: &str, oif: &str) -> u64 {
    router.metric(
        "mcastor_route_packets_total",
        &[("plane", plane), ("oif", oif)],
    ) as u64
}

/// Waits until the kernel forwards the packets that leave on an egress.
#[track_caller]
pub(super) fn wait_until_offloaded(router: &Router, oif: &str) {
    wait_and_collect(router, oif, &[]);
}

/// The same; reads captures meanwhile, so that they do not overflow.
#[track_caller]
fn wait_and_collect(router: &Router, oif: &str, captures: &[&Capture]) {
    let before = by_plane(router, "ebpf", oif);
    let offloaded = wait_until(crate::lab::TIMEOUT, || {
        captures.iter().for_each(|capture| capture.collect());
        by_plane(router, "ebpf", oif) > before + 20
    });
    let explained = || router.run(&format!("explain 10.0.0.10 {GROUP}:5000"));
    assert!(offloaded, "{}{}", router.run("show flows"), explained());
}

/// Sends a stream until the kernel has forwarded a part of it, and compares each packet and each
/// counter.
fn check_stream(lab: &Lab, star: &Star, (source, group): (&str, &str)) {
    let routes = route("r", "in", "", group, &["out1", "out2"], "");
    let router = Router::start(lab, &star.rtr, &settings(&routes));
    let captures = ["eth1", "eth2"].map(|eth| Capture::new(&star.rcv, eth));
    let stream = NumberedStream::start(
        &star.src,
        "eth0",
        &with_port(source, 4000),
        &with_port(group, 5000),
        2000,
    );
    wait_until_offloaded(&router, "out1");
    stream.wait_for_more(500);
    let explained = router.run(&format!("explain {source} {}", with_port(group, 5000)));
    assert!(
        explained.contains("the kernel forwards the flow now"),
        "{explained}"
    );
    let flows = router.run("show flows");
    assert!(flows.contains("ebpf"), "{flows}");
    let sent = stream.finish();
    for (capture, oif) in captures.iter().zip(["out1", "out2"]) {
        let got = capture.expect(group, sent as usize);
        assert!(got.iter().all(|packet| packet.ttl == TTL - 1), "TTL");
        assert_eq!(received_in_order(capture, group).len(), sent as usize);
        router.expect_routed("r", oif, sent.into());
        let (ebpf, packet) = (
            by_plane(&router, "ebpf", oif),
            by_plane(&router, "packet", oif),
        );
        assert_eq!(ebpf + packet, u64::from(sent));
        assert!(ebpf > 500 && packet > 0, "{ebpf} {packet}");
    }
    let flow_packets = || router.control().show("flows")[0]["packets"].as_u64();
    eventually(
        "the packets of the flow",
        Some(u64::from(sent)),
        flow_packets,
    );
}

fn stream_is_handed_over_exactly_v4(lab: &Lab) {
    let star = Star::v4(lab, 2);
    check_stream(lab, &star, ("10.0.0.10", GROUP));
}

fn stream_is_handed_over_exactly_v6(lab: &Lab) {
    let star = Star::dual(lab, 2);
    check_stream(lab, &star, ("fd00::10", "ff3e::1:2"));
}

/// A route that replaces source, group and port.
fn rewriting_route(from: [&str; 2], to: [&str; 2], egresses: &[&str]) -> String {
    let [source, group] = to;
    let rewrite =
        format!("rewrite = {{ source = \"{source}\", group = \"{group}\", port = 5001 }}\n");
    route("r", "in", from[0], from[1], egresses, &rewrite)
}

fn with_port(ip: &str, port: u16) -> String {
    match ip.contains(':') {
        true => format!("[{ip}]:{port}"),
        false => format!("{ip}:{port}"),
    }
}

/// Sends a stream of complete packets, and then packets and segments that leave the checksum to the
/// network card. All are rewritten by the kernel or by the process.
fn check_rewritten(lab: &Lab, family: &str, from: [&str; 2], to: [&str; 2]) {
    let star = Star::dual(lab, 2);
    let routes = rewriting_route(from, to, &["out1", "out2"]);
    let router = Router::start(lab, &star.rtr, &settings(&routes));
    let captures = ["eth1", "eth2"].map(|eth| Capture::new(&star.rcv, eth));
    let (source, group) = (with_port(from[0], 4000), with_port(from[1], 5000));
    let stream = NumberedStream::start(&star.src, "eth0", &source, &group, 2000);
    wait_until_offloaded(&router, "out1");
    stream.wait_for_more(500);
    let sent = stream.finish() as usize;
    for capture in &captures {
        let got = capture.expect(to[1], sent);
        for packet in &got {
            assert!(packet.header_ok && packet.udp_ok(), "{packet:x?}");
            assert_eq!(packet.src.to_string(), to[0]);
            assert_eq!(packet.ttl, TTL - 1);
            assert_eq!(packet.body()[2..4], 5001u16.to_be_bytes());
        }
        assert_eq!(received_in_order(capture, to[1]).len(), sent);
        assert!(capture.to(from[1]).is_empty(), "packets left unchanged");
    }
    let rx = UdpRx::join(&star.rcv, "eth1", &with_port(to[1], 5001));
    let tx = UdpTx::new(&star.src, "eth0", &group);
    let body = |n: usize| vec![n as u8; n * 3];
    (0..200).for_each(|n| tx.send(body(n)));
    tx.set(libc::SOL_UDP, libc::UDP_SEGMENT, 1000);
    tx.send(vec![7; 5300]);
    let got = rx.expect(206);
    assert!(got[..200].iter().enumerate().all(|(n, p)| *p == body(n)));
    let lengths: Vec<usize> = got[200..].iter().map(Vec::len).collect();
    assert_eq!(lengths, [1000, 1000, 1000, 1000, 1000, 300]);
    let all = (sent + 206) as u64;
    router.expect_routed("r", "out1", all);
    router.expect_metric("mcastor_translations_total", &[("family", family)], all);
    let ebpf = by_plane(&router, "ebpf", "out1");
    assert!(ebpf >= 500, "{ebpf} of {all}");
}

fn rewritten_stream_is_handed_over_exactly_v4(lab: &Lab) {
    check_rewritten(
        lab,
        "4to4",
        ["10.0.0.10", GROUP],
        ["10.0.1.77", "239.1.1.1"],
    );
}

fn rewritten_stream_is_handed_over_exactly_v6(lab: &Lab) {
    let from = ["fd00::10", "ff3e::1:2"];
    check_rewritten(lab, "6to6", from, ["fd00:1::77", "ff3e::9:9"]);
}

fn router_listener_receives_the_stream_before_rewriting(lab: &Lab) {
    let star = Star::dual(lab, 2);
    let to = ["10.0.1.77", "239.1.1.1"];
    let routes = rewriting_route(["10.0.0.10", GROUP], to, &["out1", "out2"]);
    let to6 = ["fd00:1::77", "ff3e::9:9"];
    let routes6 = rewriting_route(["fd00::10", "ff3e::1:2"], to6, &["out1", "out2"]);
    let routes6 = routes6.replace("\"r\"", "\"r6\"");
    let router = Router::start(lab, &star.rtr, &settings(&(routes + &routes6)));
    let captures = ["eth1", "eth2"].map(|eth| Capture::new(&star.rcv, eth));
    let groups = [with_port(GROUP, 5000), with_port("ff3e::1:2", 5000)];
    for (source, to, group) in [
        ("10.0.0.10:4000", to, &groups[0]),
        ("[fd00::10]:4000", to6, &groups[1]),
    ] {
        let local = UdpRx::join(&star.rtr, "in", group);
        let stream = NumberedStream::start(&star.src, "eth0", source, group, 1000);
        wait_until_offloaded(&router, "out1");
        stream.wait_for_more(500);
        let sent = stream.finish() as usize;
        // The kernel of the router has checked the checksums.
        assert_eq!(local.expect(sent).len(), sent);
        for capture in &captures {
            let got = capture.expect(to[1], sent);
            assert!(got.iter().all(|p| p.header_ok && p.udp_ok()), "checksums");
            assert_eq!(received_in_order(capture, to[1]).len(), sent);
        }
    }
}

/// While a stream runs, flows are taken back, an egress comes and goes, and the settings are loaded
/// again.
fn changes_of_all_kinds_are_counted_exactly(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let with = |egresses: &[&str]| settings(&route("r", "in", "", GROUP, egresses, ""));
    let router = Router::start(lab, &star.rtr, &with(&["out1"]));
    let (capture, other) = (
        Capture::new(&star.rcv, "eth1"),
        Capture::new(&star.rcv, "eth2"),
    );
    let stream = stream(&star, 5000);
    wait_until_offloaded(&router, "out1");
    for n in 0..changes() {
        match n % 3 {
            0 => {
                router.run("flush");
            }
            1 => {
                router.write_settings(&with(&["out1", "out2"]));
                router.run("reload");
            }
            _ => {
                router.write_settings(&with(&["out1"]));
                router.run("reload");
            }
        }
        wait_and_collect(&router, "out1", &[&capture, &other]);
    }
    let sent = stream.finish();
    capture.expect(GROUP, sent as usize);
    let got = received_in_order(&capture, GROUP);
    assert!(missing(sent, &got).is_empty(), "{:?}", missing(sent, &got));
    router.expect_routed("r", "out1", sent.into());
    let there = received_in_order(&other, GROUP);
    assert!(there.len() > 100, "{}", there.len());
    router.expect_routed("r", "out2", there.len() as u64);
    // Each flush gives the flow to the process.
    let by_process = by_plane(&router, "packet", "out1");
    assert!(by_process >= u64::from(changes() / 3), "{by_process}");
}

/// Returns how often a flow changes while it is forwarded. `make soak` sets another number.
fn changes() -> u32 {
    let named = std::env::var("MCASTOR_SOAK_HAND_OVERS").ok();
    named.map_or(20, |n| n.parse().expect("a number"))
}

/// How the flow of a stream changes while it is forwarded.
#[derive(Clone, Copy, PartialEq)]
enum Change {
    /// `flush` takes it back.
    Flush,
    /// An egress comes and goes.
    Egresses,
    /// The TTL policy changes.
    Ttl,
    /// The route translates, or does not.
    Translation,
    /// The route gets a loop guard, so that the kernel declines the flow, and loses it again.
    LoopGuard,
}

impl Change {
    /// Applies the change number `n`: odd ones undo even ones.
    fn apply(self, router: &Router, n: u32) {
        if self == Self::Flush {
            router.run("flush");
            return;
        }
        let is_changed = n.is_multiple_of(2);
        let mut egresses = vec!["out1"];
        let mut more = "loop_guard = false\n".to_owned();
        match self {
            Self::Egresses if is_changed => egresses.push("out2"),
            Self::Ttl if is_changed => more += "ttl = \"keep\"\n",
            Self::Translation if is_changed => more += "rewrite = { port = 7000 }\n",
            Self::LoopGuard if is_changed => more = "loop_guard = true\n".to_owned(),
            _ => {}
        }
        let log = "[log]\nlevel = \"debug\"\n";
        let routes = route("r", "in", "", GROUP, &egresses, &more);
        router.write_settings(&settings(&(routes + log)));
        router.run("reload");
    }

    /// Waits until the stream is forwarded after the change number `n`: by the kernel, unless it
    /// declines the flow.
    fn wait_until_applied(self, router: &Router, stream: &NumberedStream, n: u32) {
        let may_be_declined = matches!(self, Self::Translation | Self::LoopGuard);
        if may_be_declined && n.is_multiple_of(2) {
            stream.wait_for_more(50);
        } else {
            wait_until_offloaded(router, "out1");
        }
    }
}

/// Changes the flow of a stream again and again, in both modes of capture. Each packet must leave
/// once, and in order.
fn check_changes(lab: &Lab, change: Change) {
    let soak = std::env::var("MCASTOR_SOAK_HAND_OVERS").ok();
    let (changes, rate) = match soak.map(|n| n.parse().expect("a number")) {
        Some(changes) => (changes, 100_000),
        None => (10, 5_000),
    };
    for blocks in [false, true] {
        check_changes_in(lab, change, blocks, changes, rate);
    }
}

fn check_changes_in(lab: &Lab, change: Change, blocks: bool, changes: u32, rate: u32) {
    let mode = if blocks { "blocks" } else { "single packets" };
    let star = Star::v4_tagged(lab, 2, if blocks { "b" } else { "s" });
    let routes = route("r", "in", "", GROUP, &["out1"], "");
    let log = "[log]\nlevel = \"debug\"\n";
    let capture = if blocks {
        "prefer-throughput"
    } else {
        "latency"
    };
    let toml = settings(&(routes + log));
    let environment = [("MCASTOR_TEST_CAPTURE", capture)];
    let router = Router::start_with(lab, &star.rtr, &toml, &environment);
    // Without these packets, nothing is captured while the kernel forwards the stream.
    let unrouted = Udp::new("10.0.0.10:9", "225.8.8.8:5000", [0x55; 64]).frame();
    let unrouted = Flood::start(&star.src, "eth0", vec![unrouted], 1000);
    let is_in_mode = || {
        let log = router.program.stderr();
        let modes = ["latency mode", "throughput mode"].map(|mode| log.rfind(mode));
        (modes[1] > modes[0]) == blocks
    };
    let receivers = ["eth1", "eth2"].map(|eth| NumberedReceiver::start(&star.rcv, eth, GROUP));
    let dropped_before = backlog_dropped();
    let stream = stream(&star, rate);
    wait_until_offloaded(&router, "out1");
    for n in 0..changes {
        eventually("packets are captured in the mode", true, is_in_mode);
        change.apply(&router, n);
        change.wait_until_applied(&router, &stream, n);
    }
    let sent = stream.finish();
    drop(unrouted);
    // What was lost and counted: by the router and its socket, by the receiver, and by the kernel,
    // for all programs of the machine.
    let counted = || {
        let socket = router.metric("mcastor_socket_dropped_packets_total", &[]) as u64;
        let dropped = router.metric("mcastor_dropped_packets_total", &[("iface", "out1")]) as u64;
        socket + dropped + receivers[0].lost() + backlog_dropped() - dropped_before
    };
    wait_until(crate::lab::TIMEOUT, || {
        receivers[0].received() + counted() >= u64::from(sent)
    });
    let counted = counted();
    let by_process = by_plane(&router, "packet", "out1");
    let [received, other] = receivers.map(NumberedReceiver::finish);
    let lost = u64::from(sent) - received.numbers;
    println!(
        "{changes} changes, {mode}, {rate}/s: of {sent} packets {lost} lost, {} doubled, {} late; \
         {by_process} forwarded by the process",
        received.doubled, received.late
    );
    assert!(lost <= counted, "{mode}: {lost} lost, {counted} counted");
    assert_eq!((received.doubled, received.late), (0, 0), "{mode}");
    assert_eq!((other.doubled, other.late), (0, 0), "{mode}, out2");
    match change {
        Change::Egresses => assert!(other.numbers > 100, "{}", other.numbers),
        // Each of these gives the flow to the process.
        Change::Flush => assert!(by_process >= u64::from(changes), "{by_process}"),
        Change::LoopGuard => assert!(by_process >= u64::from(changes / 2) * 50, "{by_process}"),
        Change::Ttl | Change::Translation => {}
    }
}

/// Returns the packets that the kernel dropped on this machine because the queue of a core was full.
fn backlog_dropped() -> u64 {
    let text = std::fs::read_to_string("/proc/net/softnet_stat").expect("softnet_stat");
    let dropped = |line: &str| u64::from_str_radix(line.split(' ').nth(1)?, 16).ok();
    text.lines().filter_map(dropped).sum()
}

fn changes_by_flush_lose_nothing(lab: &Lab) {
    check_changes(lab, Change::Flush);
}

fn changes_of_egresses_lose_nothing(lab: &Lab) {
    check_changes(lab, Change::Egresses);
}

fn changes_of_ttl_by_reload_lose_nothing(lab: &Lab) {
    check_changes(lab, Change::Ttl);
}

fn changes_of_translation_lose_nothing(lab: &Lab) {
    check_changes(lab, Change::Translation);
}

fn changes_of_offload_by_loop_guard_lose_nothing(lab: &Lab) {
    check_changes(lab, Change::LoopGuard);
}

/// The programs, maps and links of a router, and the memory of its maps in bytes.
#[derive(Debug)]
struct KernelObjects {
    programs: usize,
    maps: usize,
    links: usize,
    map_bytes: u64,
}

impl KernelObjects {
    fn held_by(router: &Router) -> Self {
        let folder = format!("/proc/{}/fdinfo", router.program.pid());
        let files = std::fs::read_dir(folder).expect("descriptors").flatten();
        let texts: Vec<String> = files
            .filter_map(|file| std::fs::read_to_string(file.path()).ok())
            .collect();
        let count = |key: &str| texts.iter().filter(|text| text.contains(key)).count();
        let of_map = |line: &str| line.strip_prefix("memlock:")?.trim().parse::<u64>().ok();
        let bytes = texts
            .iter()
            .filter(|text| text.contains("map_id:"))
            .flat_map(|text| text.lines().filter_map(of_map));
        Self {
            programs: count("\nprog_type:"),
            maps: count("\nmap_id:"),
            links: count("\nlink_id:"),
            map_bytes: bytes.sum(),
        }
    }
}

/// Routes come and go while their groups receive packets: programs, maps, links and memory do not
/// grow. `make soak` changes more often.
fn route_changes_keep_nothing_in_the_kernel(lab: &Lab) {
    const GROUPS: u32 = 50;
    let named = std::env::var("MCASTOR_SOAK_ROUTE_CHANGES").ok();
    let changes: u32 = named.map_or(500, |n| n.parse().expect("a number"));
    let star = Star::v4(lab, 2);
    let routes = route("r", "in", "", GROUP, &["out1"], "");
    let router = Router::start(lab, &star.rtr, &settings(&routes));
    let inject = Injector::new(&star.src, "eth0");
    let stream = stream(&star, 1000);
    wait_until_offloaded(&router, "out1");
    let mut before = KernelObjects::held_by(&router);
    // Before Linux 6.6 the program is a filter of clsact, and no link.
    assert!(
        before.programs >= 1 && before.maps >= 4 && before.links <= 1,
        "{before:?}"
    );
    let mut control = router.control();
    let mut resident = 0;
    for n in 0..changes / 2 {
        let group = format!("226.0.0.{}", n % GROUPS);
        let to = if n.is_multiple_of(2) {
            vec!["out1"]
        } else {
            vec!["out1", "out2"]
        };
        let route = json!({ "from": "in", "group": group, "to": to });
        control.expect_ok(&json!({ "change": { "add": route } }));
        for _ in 0..3 {
            let packet = Udp::new("10.0.0.10:9", &format!("{group}:5000"), "x");
            inject.send(&packet.frame());
        }
        if n.is_multiple_of(50) {
            wait_until_offloaded(&router, "out1");
        }
        control.expect_ok(
            &json!({ "change": { "remove": { "from": "in", "group": group, "to": [] } } }),
        );
        // The first changes fill tables and buffers: flows stay in them until they are idle.
        if n == 2 * GROUPS {
            before = KernelObjects::held_by(&router);
            resident = router.program.rss();
        }
    }
    stream.finish();
    let after = KernelObjects::held_by(&router);
    let objects = |of: &KernelObjects| (of.programs, of.maps, of.links);
    assert_eq!(objects(&after), objects(&before), "after {changes} changes");
    // An entry of a hash table has less than 64 bytes. One that each change leaves would be more.
    let map_bytes = before.map_bytes + u64::from(GROUPS) * 64;
    assert!(after.map_bytes <= map_bytes, "{before:?} {after:?}");
    let grown = router.program.rss().saturating_sub(resident);
    println!("{changes} changes of routes: {after:?}, {grown} bytes more of memory");
    assert!(grown < 4 << 20, "memory grew by {grown} bytes");
}

/// A program that joins on the router while the kernel forwards the stream hears it, and so do the
/// receivers.
fn listener_on_the_router_receives_an_offloaded_stream(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let routes = route("r", "in", "", GROUP, &["out1"], "");
    let router = Router::start(lab, &star.rtr, &settings(&routes));
    let capture = Capture::new(&star.rcv, "eth1");
    let stream = stream(&star, 1000);
    wait_until_offloaded(&router, "out1");
    // As tcpdump on the router.
    let near = Capture::new(&star.rtr, "in");
    let seen = || near.frames().iter().filter(|f| !f.outgoing).count();
    let is_seen = wait_until(crate::lab::TIMEOUT, || seen() > 200);
    assert!(is_seen, "{}", seen());
    let local = UdpRx::join(&star.rtr, "in", &format!("{GROUP}:5000"));
    let heard = wait_until(crate::lab::TIMEOUT, || local.count() > 200);
    assert!(heard, "{}", local.count());
    wait_until_offloaded(&router, "out1");
    drop(local);
    wait_until_offloaded(&router, "out1");
    let sent = stream.finish();
    let got = capture.expect(GROUP, sent as usize);
    // The original is unchanged, and so are its copies.
    assert!(got.iter().all(|packet| packet.ttl == TTL - 1), "TTL");
    received_in_order(&capture, GROUP);
}

/// Packets with a low TTL are left to the process, which counts why they are dropped.
fn packets_that_some_egress_does_not_get_are_counted(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let routes = route("r", "in", "", GROUP, &["out1", "out2"], "");
    let threshold = "[[interface]]\nname = \"out2\"\nttl_threshold = 16\n";
    let router = Router::start(lab, &star.rtr, &settings(&(routes + threshold)));
    let captures = ["eth1", "eth2"].map(|eth| Capture::new(&star.rcv, eth));
    let inject = Injector::new(&star.src, "eth0");
    let send = |ttl: u8, count: u64| {
        for _ in 0..count {
            let packet = Udp::new("10.0.0.10:9", &format!("{GROUP}:5000"), "x");
            inject.send(&packet.ttl(ttl).frame());
        }
    };
    let mut sent = 0;
    let offloaded = wait_until(crate::lab::TIMEOUT, || {
        send(32, 10);
        sent += 10;
        by_plane(&router, "ebpf", "out2") > 0
    });
    assert!(offloaded, "the stream stays with the process");
    send(16, 20);
    send(1, 7);
    send(32, 10);
    captures[0].expect(GROUP, sent + 30);
    captures[1].expect(GROUP, sent + 10);
    router.expect_routed("r", "out1", sent as u64 + 30);
    router.expect_routed("r", "out2", sent as u64 + 10);
    router.expect_dropped("ttl_threshold", "out2", 20);
    router.expect_dropped("ttl_expired", "in", 7);
}

/// With `plane = "peer"`, packets skip this end of a veth, on which tcpdump sees nothing then. The
/// other egress gets its copy as usual.
fn packets_go_directly_to_the_peer_of_a_veth(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let routes = route("r", "in", "", GROUP, &["out1", "out2"], "");
    let peer = "[[interface]]\nname = \"out1\"\nplane = \"peer\"\n";
    let router = Router::start(lab, &star.rtr, &settings(&(routes + peer)));
    let captures = ["eth1", "eth2"].map(|eth| Capture::new(&star.rcv, eth));
    let receiver = UdpRx::join(&star.rcv, "eth1", &at_group());
    let stream = stream(&star, 1000);
    wait_until_offloaded(&router, "out1");
    // As tcpdump on the router.
    let near = Capture::new(&star.rtr, "out1");
    let other = Capture::new(&star.rtr, "out2");
    stream.wait_for_more(500);
    let sent = stream.finish();
    for (capture, oif) in captures.iter().zip(["out1", "out2"]) {
        let got = capture.expect(GROUP, sent as usize);
        assert!(got.iter().all(|packet| packet.ttl == TTL - 1), "TTL");
        assert_eq!(received_in_order(capture, GROUP).len(), sent as usize);
        router.expect_routed("r", oif, sent.into());
    }
    assert_eq!(receiver.expect(sent as usize).len(), sent as usize);
    let seen = |capture: &Capture| capture.frames().iter().filter(|f| f.outgoing).count();
    assert!(seen(&near) < 100, "{}", seen(&near));
    assert!(seen(&other) >= 500, "{}", seen(&other));
}

/// Forwards a stream from `in0` to `out0`, which are on top of `in` and `out1`. It is sent on
/// `sender` and received on `receiver`.
fn check_upper_links(lab: &Lab, star: &Star, sender: &str, receiver: &str) {
    let routes = route("r", "in0", "", GROUP, &["out0"], "");
    let router = Router::start(lab, &star.rtr, &settings(&routes));
    let capture = Capture::new(&star.rcv, receiver);
    let group = at_group();
    let stream = NumberedStream::start(&star.src, sender, "10.0.0.10:4000", &group, 1000);
    wait_until_offloaded(&router, "out0");
    stream.wait_for_more(500);
    let sent = stream.finish();
    capture.expect(GROUP, sent as usize);
    assert_eq!(received_in_order(&capture, GROUP).len(), sent as usize);
    router.expect_routed("r", "out0", sent.into());
}

fn macvlans_are_offloaded(lab: &Lab) {
    let star = Star::v4(lab, 1);
    macvlan(&star.rtr, "in0", "in");
    macvlan(&star.rtr, "out0", "out1");
    check_upper_links(lab, &star, "eth0", "eth1");
}

fn vlan_interfaces_are_offloaded(lab: &Lab) {
    let star = Star::v4(lab, 1);
    for (ns, under, name) in [
        (&star.src, "eth0", "v0"),
        (&star.rtr, "in", "in0"),
        (&star.rtr, "out1", "out0"),
        (&star.rcv, "eth1", "v1"),
    ] {
        ns.ip(&format!("link add {name} link {under} type vlan id 5"));
        ns.ip(&format!("link set {name} up"));
    }
    check_upper_links(lab, &star, "v0", "v1");
}

/// The downstream interface of a proxy is an ingress too, so the stream could arrive there.
fn stream_of_a_proxy_is_offloaded(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &settings(&proxy(&["in"], &["out1"], "")));
    let receiver = UdpRx::join(&star.rcv, "eth1", &format!("{GROUP}:5000"));
    eventually("a member", true, || {
        member(&router, "out1", GROUP).is_some()
    });
    let stream = stream(&star, 1000);
    wait_until_offloaded(&router, "out1");
    stream.wait_for_more(500);
    let sent = stream.finish();
    router.expect_routed("p", "out1", sent.into());
    assert_eq!(receiver.expect(sent as usize).len(), sent as usize);
}

/// Two uplinks with the stream of a source that is on neither link. The kernel forwards that of the
/// first.
struct TwoUplinks {
    star: Star,
    router: Router,
    first: NumberedStream,
}

impl TwoUplinks {
    fn start(lab: &Lab, takeover: &str) -> Self {
        let star = Star::v4(lab, 2);
        let extra = format!("takeover = \"{takeover}\"\n");
        let toml = route("a", "in", "", GROUP, &["out1"], &extra)
            + &route("b", "out2", "", GROUP, &["out1"], &extra);
        let router = Router::start(lab, &star.rtr, &settings(&toml));
        let first = NumberedStream::start(&star.src, "eth0", REMOTE, &at_group(), 1000);
        wait_until_offloaded(&router, "out1");
        Self {
            star,
            router,
            first,
        }
    }

    fn standby(&self) -> u64 {
        let labels = [("reason", "standby"), ("iface", "out2")];
        let name = "mcastor_dropped_packets_total";
        self.router.metric(name, &labels) as u64
    }
}

const REMOTE: &str = "192.0.2.7:9";

fn at_group() -> String {
    format!("{GROUP}:5000")
}

/// While the first uplink is forwarded by the kernel, all packets of the second are dropped. When it
/// is silent, the second takes over, and the kernel forwards that one.
fn standby_takes_over_from_the_kernel(lab: &Lab) {
    let net = TwoUplinks::start(lab, "200ms");
    let wire = Capture::new(&net.star.rcv, "eth1");
    let second = NumberedStream::start(&net.star.rcv, "eth2", REMOTE, &at_group(), 1000);
    let before = by_plane(&net.router, "ebpf", "out1");
    eventually("packets on standby", true, || net.standby() > 1000);
    // The kernel went on.
    assert!(by_plane(&net.router, "ebpf", "out1") > before + 500);
    let wire_before = wire.to(GROUP).len();
    let TwoUplinks {
        star,
        router,
        first,
    } = net;
    let sent_before = first.sent();
    let sent = first.finish();
    // One copy of each packet.
    assert!(wire_before as u32 <= sent_before, "{wire_before}");
    let labels = [("role", "ingress"), ("iface", "out2")];
    eventually("takeovers", 1.0, || {
        router.metric("mcastor_takeovers_total", &labels)
    });
    let by_kernel = || {
        let labels = [("plane", "ebpf"), ("iif", "out2")];
        router.metric("mcastor_route_packets_total", &labels) > 100.0
    };
    eventually("the kernel forwards the second", true, by_kernel);
    let sent_second = second.finish();
    // Each packet is forwarded from one uplink or dropped.
    let dropped = || {
        let labels = [("reason", "standby"), ("iface", "out2")];
        router.metric("mcastor_dropped_packets_total", &labels) as u64
    };
    let routed = |route: &str| {
        let labels = [("route", route), ("oif", "out1")];
        router.metric("mcastor_route_packets_total", &labels) as u64
    };
    eventually("packets of the first", u64::from(sent), || routed("a"));
    let all = u64::from(sent_second);
    eventually("packets of the second", all, || routed("b") + dropped());
    drop(star);
}

/// Packets with a higher TTL come from nearer to the source: their uplink takes over.
fn higher_ttl_takes_over_from_the_kernel(lab: &Lab) {
    let net = TwoUplinks::start(lab, "1h");
    let second = Injector::new(&net.star.rcv, "eth2");
    let labels = [("role", "ingress"), ("iface", "out2")];
    let mut n = 0u32;
    eventually("takeovers", true, || {
        let frame = Udp::new(REMOTE, &at_group(), n.to_be_bytes());
        second.send(&frame.ttl(TTL + 1).frame());
        n += 1;
        net.router.metric("mcastor_takeovers_total", &labels) > 0.0
    });
    // The kernel does not forward the first one any more.
    let standby = [("reason", "standby"), ("iface", "in")];
    eventually("the first is on standby", true, || {
        let name = "mcastor_dropped_packets_total";
        net.router.metric(name, &standby) > 100.0
    });
    net.first.finish();
}

/// A flood to a group without a route is dropped in the kernel above a limit. A routed flow that the
/// kernel does not forward, and reports, pass.
fn flood_of_unknown_groups_is_limited_and_counted(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let routes = declined_route();
    let plane = "[plane]\nkind = \"ebpf\"\nunknown_packets = 1000\n";
    let router = Router::start(lab, &star.rtr, &format!("{plane}{routes}"));
    let capture = Capture::new(&star.rcv, "eth1");
    let stream = stream(&star, 1000);
    stream.wait_for_more(500);
    let flood = Injector::new(&star.src, "eth0");
    let frame = Udp::new("10.0.0.10:9", "225.9.9.9:5000", "x").frame();
    (0..20_000).for_each(|_| flood.send(&frame));
    let member = UdpRx::join(&star.src, "eth0", "225.7.7.7:5000");
    stream.wait_for_more(500);
    let sent = stream.finish();
    let dropped = |reason: &str| {
        let labels = [("reason", reason), ("iface", "in")];
        router.metric("mcastor_dropped_packets_total", &labels) as u64
    };
    eventually("packets of the flood", 20_000, || {
        dropped("no_route") + dropped("unknown_flood")
    });
    assert!(dropped("unknown_flood") > 10_000, "{}", dropped("no_route"));
    let log = router.program.stderr();
    assert_eq!(
        log.matches("too many packets of new flows").count(),
        1,
        "{log}"
    );
    capture.expect(GROUP, sent as usize);
    router.expect_routed("r", "out1", sent.into());
    let reports = [("type", "report"), ("direction", "received")];
    eventually("the report", true, || {
        router.metric("mcastor_igmp_messages_total", &reports) > 0.0
    });
    drop(member);
}

/// Somebody removes the program from the interface: the process forwards, one packet is lost on
/// each core and counted, and the program is attached again.
fn removed_program_loses_one_packet_and_returns(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let routes = route("r", "in", "", GROUP, &["out1"], "");
    let router = Router::start(lab, &star.rtr, &settings(&routes));
    let capture = Capture::new(&star.rcv, "eth1");
    let stream = stream(&star, 1000);
    wait_until_offloaded(&router, "out1");
    let detached = match &attached_links(&router)[..] {
        [id] => star.rtr.output("bpftool", &["link", "detach", "id", id]),
        // The kernel has no tcx.
        _ => {
            assert_eq!(filters(&star), 1);
            let words = ["filter", "del", "dev", "in", "ingress"];
            star.rtr.output("tc", &words)
        }
    };
    assert!(detached.status.success(), "{detached:?}");
    stream.wait_for_more(2000);
    wait_until_offloaded(&router, "out1");
    let sent = stream.finish();
    let lost = router.metric(
        "mcastor_dropped_packets_total",
        &[("reason", "send_failed"), ("iface", "in")],
    ) as u32;
    assert!((1..=4).contains(&lost), "{lost} lost");
    capture.expect(GROUP, (sent - lost) as usize);
    let got = received_in_order(&capture, GROUP);
    assert_eq!(missing(sent, &got).len(), lost as usize);
    let log = router.program.stderr();
    assert_eq!(
        log.matches("was removed from this interface").count(),
        1,
        "{log}"
    );
}

fn clean_stop_removes_everything(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let routes = route("r", "in", "", GROUP, &["out1"], "");
    let router = Router::start(lab, &star.rtr, &settings(&routes));
    let pid = router.program.pid();
    let descriptors = || {
        let folder = std::fs::read_dir(format!("/proc/{pid}/fd"));
        let links = folder.into_iter().flatten().flatten();
        let targets = links.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        targets
            .filter(|t| t.to_string_lossy().contains("bpf"))
            .count()
    };
    let before = descriptors();
    assert!(before >= 5, "{before} descriptors");
    for n in 0..50 {
        router.run(&format!("add in 226.0.0.{n} out1"));
        router.run(&format!("remove in 226.0.0.{n} out1"));
    }
    assert_eq!(descriptors(), before, "after changes");
    let links = attached_links(&router);
    assert_eq!(links.len() + filters(&star), 1);
    router.stop();
    assert!(!has_clsact(&star), "the queueing discipline is left");
    let Some(id) = links.first().map(|id| id.parse::<u64>()) else {
        return;
    };
    let id = id.expect("a number");
    let is_left = || {
        let output = star.rtr.output("bpftool", &["--json", "link", "show"]);
        let left: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let left = left.as_array().expect("links");
        left.iter().any(|link| link["id"].as_u64() == Some(id))
    };
    eventually("the link is left", false, is_left);
}

/// Another program has a filter on the clsact queueing discipline that the router shares with it.
fn filters_of_others_are_kept(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let routes = route("r", "in", "", GROUP, &["out1"], "");
    let router = Router::start(lab, &star.rtr, &settings(&routes));
    let tc = |words: &str| {
        let words: Vec<_> = words.split(' ').collect();
        let done = star.rtr.output("tc", &words);
        done.status.success()
    };
    // Exists already if the router has added it.
    tc("qdisc add dev in clsact");
    let other = "filter add dev in egress prio 7 protocol ip u32 match u32 0 0 action ok";
    assert!(tc(other), "tc {other}");
    let stream = stream(&star, 1000);
    wait_until_offloaded(&router, "out1");
    stream.finish();
    router.stop();
    assert_eq!(filters(&star), 0);
    let left = star
        .rtr
        .output("tc", &["filter", "show", "dev", "in", "egress"]);
    let left = String::from_utf8_lossy(&left.stdout).into_owned();
    assert!(left.contains("u32"), "{left}");
}

/// A killed process cannot remove its filter. The next process of the instance does.
fn programs_of_a_killed_process_are_removed(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let routes = route("r", "in", "", GROUP, &["out1"], "");
    let mut router = Router::start(lab, &star.rtr, &settings(&routes));
    let before = attached_links(&router).len() + filters(&star);
    assert_eq!(before, 1);
    router.kill();
    router.start_again(lab);
    assert_eq!(attached_links(&router).len() + filters(&star), 1);
    let stream = stream(&star, 1000);
    wait_until_offloaded(&router, "out1");
    stream.finish();
    router.stop();
    assert_eq!(filters(&star), 0);
    assert!(!has_clsact(&star), "the queueing discipline is left");
}

/// Returns the number of filters of routers on the ingress, where the kernel has no tcx.
fn filters(star: &Star) -> usize {
    let words = ["filter", "show", "dev", "in", "ingress"];
    let shown = star.rtr.output("tc", &words);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    shown.matches("direct-action").count()
}

fn has_clsact(star: &Star) -> bool {
    let shown = star.rtr.output("tc", &["qdisc", "show", "dev", "in"]);
    String::from_utf8_lossy(&shown.stdout).contains("clsact")
}

/// Returns the numbers of the BPF links of a router.
fn attached_links(router: &Router) -> Vec<String> {
    let folder = format!("/proc/{}/fdinfo", router.program.pid());
    let files = std::fs::read_dir(folder).expect("descriptors").flatten();
    let texts = files.filter_map(|file| std::fs::read_to_string(file.path()).ok());
    let link = |text: String| {
        let mut lines = text.lines().filter_map(|l| l.strip_prefix("link_id:"));
        Some(lines.next()?.trim().to_owned())
    };
    texts.filter_map(link).collect()
}

/// Also on kernels that cannot describe such packets to the process.
fn gso_packets_of_an_offloaded_flow_are_forwarded(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let routes = route("r", "in", "", GROUP, &["out1"], "");
    let router = Router::start(lab, &star.rtr, &settings(&routes));
    let stream = stream(&star, 1000);
    wait_until_offloaded(&router, "out1");
    let sent = stream.finish();
    let group = format!("{GROUP}:5000");
    let rx = UdpRx::join(&star.rcv, "eth1", &group);
    let tx = UdpTx::new(&star.src, "eth0", &group);
    tx.set(libc::SOL_UDP, libc::UDP_SEGMENT, 100);
    let packet: Vec<u8> = (0..450).map(|n| n as u8).collect();
    for _ in 0..10 {
        tx.send(&packet);
    }
    assert_eq!(rx.expect(50).concat(), packet.repeat(10));
    router.expect_routed("r", "out1", u64::from(sent) + 50);
}

fn declined_flow_has_a_reason(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let routes = declined_route();
    let router = Router::start(lab, &star.rtr, &settings(&routes));
    let capture = Capture::new(&star.rcv, "eth1");
    let stream = stream(&star, 1000);
    stream.wait_for_more(500);
    let explained = router.run(&format!("explain 10.0.0.10 {GROUP}:5000"));
    assert!(
        explained.contains("its route has a loop guard"),
        "{explained}"
    );
    let sent = stream.finish();
    capture.expect(GROUP, sent as usize);
    assert_eq!(by_plane(&router, "ebpf", "out1"), 0);
    router.expect_routed("r", "out1", sent.into());
}

/// `plane = "packet"` of an egress, and then of the ingress, takes a flow from the kernel and keeps
/// it, without a loss.
fn packet_plane_of_an_interface_applies_on_reload(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let routes = settings(&route("r", "in", "", GROUP, &["out1"], ""));
    let router = Router::start(lab, &star.rtr, &routes);
    let capture = Capture::new(&star.rcv, "eth1");
    let stream = stream(&star, 1000);
    for (interface, reason) in [
        ("out*", "an egress has plane = \"packet\" in the settings"),
        ("in", "its ingress has plane = \"packet\" in the settings"),
    ] {
        wait_until_offloaded(&router, "out1");
        let option = format!("[[interface]]\nname = \"{interface}\"\nplane = \"packet\"\n");
        router.write_settings(&(routes.clone() + &option));
        router.run("reload");
        let words = format!("explain 10.0.0.10 {GROUP}:5000");
        eventually("the reason", true, || {
            // Without its line breaks.
            let explained = router.run(&words);
            let explained: Vec<&str> = explained.split_whitespace().collect();
            explained.join(" ").contains(reason)
        });
        let kept = by_plane(&router, "ebpf", "out1");
        stream.wait_for_more(2500);
        assert_eq!(by_plane(&router, "ebpf", "out1"), kept, "{interface}");
        router.write_settings(&routes);
        router.run("reload");
    }
    wait_until_offloaded(&router, "out1");
    let sent = stream.finish();
    capture.expect(GROUP, sent as usize);
    received_in_order(&capture, GROUP);
    router.expect_routed("r", "out1", sent.into());
}

/// At this rate the packet plane polls, which takes most of a core.
fn stream_in_the_kernel_is_not_polled_for(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let routes = route("r", "in", "", GROUP, &["out1"], "");
    let router = Router::start(lab, &star.rtr, &settings(&routes));
    let stream = stream(&star, 10_000);
    wait_until_offloaded(&router, "out1");
    let before = router.program.cpu_seconds();
    let begin = std::time::Instant::now();
    stream.wait_for_more(20_000);
    let used = router.program.cpu_seconds() - before;
    let passed = begin.elapsed().as_secs_f64();
    stream.finish();
    assert!(used * 5.0 < passed, "{used} of {passed} s");
}

/// Without `plane.kind`, the kernel forwards. The first line of the log has the plane, the second
/// the memory of the tables, which is that of the kernel. No thread keeps other capabilities.
fn auto_chooses_the_kernel_and_names_its_memory(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let routes = route("r", "in", "", GROUP, &["out1"], "");
    let router = Router::start_with(lab, &star.rtr, &routes, &[("MCASTOR__PLANE__KIND", "auto")]);
    let stream = stream(&star, 1000);
    wait_until_offloaded(&router, "out1");
    stream.finish();
    let log = router.program.stderr();
    let mut lines = log.lines();
    let (first, second) = (lines.next(), lines.next());
    assert!(
        first.is_some_and(|l| l.contains(", plane ebpf, CAP_BPF, ")),
        "{log}"
    );
    let said = second.and_then(|line| {
        assert!(line.contains("INFO"), "{log}");
        let (_, number) = line.split_once("plane ebpf: ")?.1.split_once("up to ")?;
        number.split(' ').next()?.parse::<u64>().ok()
    });
    let said = said.unwrap_or_else(|| panic!("{log}")) << 20;
    let pid = router.program.pid();
    let entries = |folder: &str| {
        let folder = std::fs::read_dir(format!("/proc/{pid}/{folder}")).expect("a folder");
        folder.flatten().map(|entry| entry.path())
    };
    // The tables of flows and actions are mapped; the index of the flows has a descriptor.
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    let mapped = maps.lines().filter(|line| line.ends_with("bpf-map"));
    let mapped = mapped.filter_map(|line| {
        let (begin, end) = line.split(' ').next()?.split_once('-')?;
        let address = |text| u64::from_str_radix(text, 16).ok();
        Some(address(end)? - address(begin)?)
    });
    let described = entries("fdinfo").filter_map(|path| {
        let text = std::fs::read_to_string(path).ok()?;
        let mut lines = text.lines().filter(|_| text.contains("map_type:"));
        let bytes = lines.find_map(|l| l.strip_prefix("memlock:"))?;
        bytes.trim().parse::<u64>().ok()
    });
    let tables = mapped.sum::<u64>() + described.sum::<u64>();
    assert!(
        tables <= said && tables * 2 > said,
        "{tables} of {said} bytes"
    );
    for task in entries("task") {
        let status = std::fs::read_to_string(task.join("status")).expect("a status");
        let set = |line: &str| line.strip_prefix("CapEff:").map(|s| s.trim().to_owned());
        let set = status.lines().find_map(set).expect("a set");
        let set = u64::from_str_radix(&set, 16).expect("a number");
        // NET_ADMIN is 12, NET_RAW 13, PERFMON 38, BPF 39.
        assert_eq!(set & !(0b11 << 38 | 0b11 << 12), 0, "{status}");
    }
}

/// Without the capabilities, packet sockets forward, and the log says so once: as a warning only
/// where the settings demand the kernel.
fn missing_capabilities_leave_the_packet_plane(lab: &Lab) {
    for (kind, level) in [("auto", "INFO"), ("ebpf", "WARN")] {
        let star = Star::tagged(lab, 1, kind);
        let routes = route("r", "in", "", GROUP, &["out1"], "");
        let config = lab.file(&format!("{kind}.toml"));
        let socket = lab.file(&format!("{kind}.sock"));
        let control = format!("[control]\nsocket = \"{}\"\n", socket.display());
        let plane = format!("[plane]\nkind = \"{kind}\"\n");
        std::fs::write(&config, plane + &routes + &control).expect("settings");
        let words = [
            "--bounding-set=-bpf,-perfmon,-sys_admin",
            BINARY,
            "run",
            "--config",
            config.to_str().expect("a path"),
        ];
        let router = star.rtr.spawn(lab, "setpriv", &words);
        let capturing = || router.stderr().contains("in: capturing");
        assert!(
            wait_until(crate::lab::TIMEOUT, capturing),
            "{}",
            router.stderr()
        );
        let capture = Capture::new(&star.rcv, "eth1");
        let inject = Injector::new(&star.src, "eth0");
        inject.send(&Udp::new("10.0.0.10:9", &format!("{GROUP}:5000"), "x").frame());
        capture.expect(GROUP, 1);
        let log = router.stderr();
        let reason = "BPF programs need CAP_BPF and CAP_PERFMON, which this process lacks";
        let mut lines = log.lines();
        assert!(
            lines.next().is_some_and(|l| l.contains(", plane packet, ")),
            "{log}"
        );
        let said: Vec<&str> = lines.filter(|line| line.contains(reason)).collect();
        assert!(said.len() == 1 && said[0].contains(level), "{log}");
        assert!(said[0].contains("docs/install.md"), "{log}");
    }
}

/// With few open files, they are left to interfaces and to clients.
fn auto_needs_open_files(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let own = std::process::id();
    let lowered = std::process::Command::new("prlimit")
        .args([format!("--pid={own}"), "--nofile=128:128".into()])
        .status();
    assert!(lowered.expect("prlimit").success());
    let routes = route("r", "in", "", GROUP, &["out1"], "");
    let router = Router::start_with(lab, &star.rtr, &routes, &[("MCASTOR__PLANE__KIND", "auto")]);
    let log = router.program.stderr();
    assert!(
        log.contains("plane packet: the limit of open files is 128"),
        "{log}"
    );
}
