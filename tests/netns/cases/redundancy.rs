//! Several forwarders between two links, and streams that arrive on several interfaces.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{cases, route};
use crate::lab::numbered_stream::{NumberedStream, sequence_number};
use crate::lab::parallel::ParallelRouters;
use crate::lab::proxy::{joined, member, proxy};
use crate::lab::smcroute::{Daemon, Implementation};
use crate::lab::{
    Capture, Injector, Lab, Router, Star, TIMEOUT, Udp, UdpRx, eventually, wait_until,
};

cases!("redundancy":
    first_packets_cross_parallel_routers_once_each,
    copy_before_original_is_not_sent_back,
    #[Program("smcrouted", "smcroute")]
    smcroute_files_of_parallel_routers_cause_no_storm,
    routes_in_both_directions_deliver_one_copy,
    one_way_routes_deliver_one_copy,
    parallel_proxies_deliver_one_copy,
    one_copy_behind_snooping_bridges,
    #[Program("smcrouted", "smcroute")]
    router_yields_to_a_forwarder_without_the_rule,
    failover_takes_less_than_two_seconds,
    slow_stream_is_delivered_once,
    one_of_two_uplinks_is_active,
    ingress_all_forwards_both_copies,
    uplink_without_carrier_is_replaced_at_once,
    forged_high_ttl_of_a_host_stops_no_stream,
    forged_packets_of_a_host_withhold_no_stream,
    standby_and_yield_are_shown,
    second_process_gets_no_packets_of_the_first,
    processes_can_share_an_interface,
);

const GROUP: &str = "239.1.1.1";
const SRC: &str = "10.0.0.100:9";
const DST: &str = "239.1.1.1:5000";

/// A sender of [`Star`].
const SRC_IN_STAR: &str = "10.0.0.10:4000";

/// The HTTP server of a second process.
const SECOND_HTTP: [(&str, &str); 1] = [("MCASTOR__HTTP__LISTEN", "127.0.0.1:9465")];

/// A takeover time that is longer than any pause in which a busy machine does not run a router.
const LONG_TAKEOVER: &str = "takeover = \"5s\"\n";

/// Returns routes in both directions.
fn two_way(extra: &str) -> String {
    let forth = route("ab", "lan0", "", GROUP, &["lan1"], extra);
    forth + &route("ba", "lan1", "", GROUP, &["lan0"], extra)
}

/// Returns a route from LAN A to LAN B.
fn one_way(extra: &str) -> String {
    route("ab", "lan0", "", GROUP, &["lan1"], extra)
}

/// Returns how often each sequence number of the stream arrived at a capture.
fn copies(capture: &Capture) -> BTreeMap<u32, usize> {
    let mut copies = BTreeMap::new();
    for packet in capture.to(GROUP) {
        *copies.entry(sequence_number(packet.payload())).or_default() += 1;
    }
    copies
}

/// Checks that each number in `range` arrived exactly once.
#[track_caller]
fn assert_one_copy(capture: &Capture, range: std::ops::Range<u32>) {
    let copies = copies(capture);
    let wrong: Vec<_> = range
        .clone()
        .map(|n| (n, copies.get(&n).copied().unwrap_or_default()))
        .filter(|(_, copies)| *copies != 1)
        .collect();
    if let Some((wrong, _)) = wrong.first() {
        for packet in capture.to(GROUP) {
            let n = sequence_number(packet.payload());
            if n.abs_diff(*wrong) < 3 {
                println!("{n} from {:x?}, TTL {}", packet.eth.1, packet.ttl);
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "of {range:?}, number and copies: {wrong:?}"
    );
}

/// Waits until every packet below `sent` had time to arrive: the last one arrived.
#[track_caller]
fn wait_for_last(capture: &Capture, sent: u32) {
    eventually("the last packet arrives", true, || {
        capture
            .to(GROUP)
            .iter()
            .any(|p| sequence_number(p.payload()) == sent - 1)
    });
}

/// Starts a router in each namespace of the network.
fn start_all(lab: &Lab, net: &ParallelRouters, toml: &str) -> Vec<Router> {
    let start = |ns| Router::start(lab, ns, toml);
    net.routers.iter().map(start).collect()
}

/// Sends two packets of a new stream with TTL 9. Checks that within half a second, both arrive on
/// LAN B, at most one copy for each router, and at most `returned` packets return to LAN A.
fn send_two_packets(net: &ParallelRouters, returned: usize) {
    let (a, b) = (
        Capture::new(&net.src, "eth0"),
        Capture::new(&net.rcv, "eth0"),
    );
    let sender = Injector::new(&net.src, "eth0");
    for n in 0..2u32 {
        let packet = Udp::new(SRC, DST, n.to_be_bytes()).ttl(9).id(n as u16);
        sender.send(&packet.frame());
    }
    eventually("both packets arrive", true, || copies(&b).len() == 2);
    let most = net.routers.len();
    let exceeded = wait_until(Duration::from_millis(500), || {
        copies(&b).values().any(|copies| *copies > most) || a.to(GROUP).len() > returned
    });
    let (copies, back) = (copies(&b), a.to(GROUP).len());
    assert!(!exceeded, "copies: {copies:?}, returned to LAN A: {back}");
}

fn first_packets_cross_parallel_routers_once_each(lab: &Lab) {
    for count in [2, 3] {
        let net = ParallelRouters::tagged(lab, count, "", &count.to_string());
        let _routers = start_all(lab, &net, &two_way(LONG_TAKEOVER));
        send_two_packets(&net, 0);
    }
}

fn copy_before_original_is_not_sent_back(lab: &Lab) {
    let net = ParallelRouters::new(lab, 1, "");
    let router = Router::start(lab, &net.routers[0], &two_way(LONG_TAKEOVER));
    let a = Capture::new(&net.src, "eth0");
    // As another router would forward it: with a TTL of 8, and a higher address than this router.
    let copy = |n: u32| {
        let packet = Udp::new(SRC, DST, n.to_be_bytes()).ttl(8).id(n as u16);
        let mut frame = packet.frame();
        frame[6] |= 0xf0;
        frame
    };
    let other = Injector::new(&net.rcv, "eth0");
    other.send(&copy(0));
    router.expect_dropped("standby", "lan1", 1);
    let original = Udp::new(SRC, DST, 0u32.to_be_bytes()).ttl(9);
    Injector::new(&net.src, "eth0").send(&original.frame());
    router.expect_routed("ab", "lan1", 1);
    other.send(&copy(1));
    router.expect_dropped("standby", "lan1", 2);
    router.expect_routed("ba", "lan0", 0);
    assert_eq!(a.to(GROUP).len(), 0, "packets return to LAN A");
}

fn smcroute_files_of_parallel_routers_cause_no_storm(lab: &Lab) {
    let conf =
        "mroute from lan0 group 239.1.1.1 to lan1\nmroute from lan1 group 239.1.1.1 to lan0\n";
    for (implementation, tag) in [
        (Implementation::Mcastor, "m"),
        (Implementation::Smcroute, "s"),
    ] {
        let net = ParallelRouters::tagged(lab, 3, "", tag);
        let start = |ns| Daemon::start(lab, ns, implementation, conf, &[]);
        let _daemons: Vec<_> = net.routers.iter().map(start).collect();
        // smcroute returns two packets in this network.
        send_two_packets(&net, 2);
    }
}

/// Starts the second router while the first forwards a stream. Checks that from a second later on,
/// each packet arrives once, and none returns to LAN A.
fn deliver_one_copy(lab: &Lab, net: &ParallelRouters, toml: &str, first: usize) {
    let second = 1 - first;
    let one = Router::start(lab, &net.routers[first], toml);
    let (a, b) = (
        Capture::new(&net.src, "eth0"),
        Capture::new(&net.rcv, "eth0"),
    );
    let stream = NumberedStream::start(&net.src, "eth0", SRC, DST, 500);
    stream.wait_for_more(100);
    let two = Router::start(lab, &net.routers[second], toml);
    stream.wait_for_more(500);
    let settled = stream.sent();
    let returned = a.to(GROUP).len();
    stream.wait_for_more(500);
    let sent = stream.finish();
    wait_for_last(&b, sent);
    assert_one_copy(&b, settled..sent);
    assert_eq!(a.to(GROUP).len(), returned, "packets return to LAN A");
    let withheld = |router: &Router| {
        router.metric(
            "mcastor_dropped_packets_total",
            &[("reason", "other_forwarder"), ("iface", "lan1")],
        )
    };
    let (one, two) = (withheld(&one), withheld(&two));
    assert!(one.max(two) >= 500.0, "withheld: {one} and {two}");
}

fn routes_in_both_directions_deliver_one_copy(lab: &Lab) {
    for first in [0, 1] {
        let net = ParallelRouters::tagged(lab, 2, "", &first.to_string());
        deliver_one_copy(lab, &net, &two_way(LONG_TAKEOVER), first);
    }
}

fn one_way_routes_deliver_one_copy(lab: &Lab) {
    for first in [0, 1] {
        let net = ParallelRouters::tagged(lab, 2, "", &first.to_string());
        deliver_one_copy(lab, &net, &one_way(LONG_TAKEOVER), first);
    }
}

/// Starts two proxies with one member on LAN B.
fn start_proxies(lab: &Lab, net: &ParallelRouters, extra: &str) -> (Vec<Router>, UdpRx) {
    let toml = proxy(&["lan0"], &["lan1"], LONG_TAKEOVER) + extra;
    let routers = start_all(lab, net, &toml);
    let receiver = UdpRx::join(&net.rcv, "eth0", DST);
    for router in &routers {
        eventually("the member is known", true, || {
            member(router, "lan1", GROUP).is_some()
        });
        eventually("the group is joined", 1, || joined(router, "lan0").len());
    }
    (routers, receiver)
}

fn parallel_proxies_deliver_one_copy(lab: &Lab) {
    // A bridge that has seen queries would withhold the stream from the router that is not the
    // querier. `one_copy_behind_snooping_bridges` is about that.
    let net = ParallelRouters::new(lab, 2, "mcast_snooping 0");
    let (_routers, receiver) = start_proxies(lab, &net, "");
    let a = Capture::new(&net.src, "eth0");
    let b = Capture::new(&net.rcv, "eth0");
    let sender = Injector::new(&net.src, "eth0");
    let send = |n: u32| sender.send(&Udp::new(SRC, DST, n.to_be_bytes()).id(n as u16).frame());
    // The first packets may arrive twice. From them the routers learn of each other.
    for n in 0..50 {
        send(n);
        eventually("the packet arrives", true, || copies(&b).contains_key(&n));
    }
    assert_one_copy(&b, 5..50);
    assert!(receiver.count() >= 50);
    assert_eq!(a.to(GROUP).len(), 0, "packets go up again");
}

fn one_copy_behind_snooping_bridges(lab: &Lab) {
    // The bridges get an address, the lowest one, and so are the queriers: a bridge that queries
    // from 0.0.0.0 stops when a router queries.
    let bridge = "mcast_snooping 1 mcast_querier 1 mcast_query_use_ifaddr 1 \
                  mcast_startup_query_interval 100 mcast_query_interval 500 \
                  mcast_query_response_interval 100 mcast_membership_interval 1500";
    let net = ParallelRouters::new(lab, 2, bridge);
    let announce = "[[interface]]\nname = \"lan1\"\nmrdisc = true\n";
    let (routers, _receiver) = start_proxies(lab, &net, announce);
    let b = Capture::new(&net.rcv, "eth0");
    let stream = NumberedStream::start(&net.src, "eth0", SRC, DST, 500);
    let labels = [("reason", "other_forwarder"), ("iface", "lan1")];
    eventually("one router yields", true, || {
        let withheld = |r: &Router| r.metric("mcastor_dropped_packets_total", &labels) > 500.0;
        routers.iter().any(withheld)
    });
    let settled = stream.sent();
    stream.wait_for_more(500);
    let sent = stream.finish();
    wait_for_last(&b, sent);
    assert_one_copy(&b, settled..sent);
}

fn router_yields_to_a_forwarder_without_the_rule(lab: &Lab) {
    // Routers with the lower and with the higher address than smcroute's.
    for ours in [0, 1] {
        let net = ParallelRouters::tagged(lab, 2, "", &ours.to_string());
        let conf = "mroute from lan0 group 239.1.1.1 to lan1\n";
        let theirs = &net.routers[1 - ours];
        let _daemon = Daemon::start(lab, theirs, Implementation::Smcroute, conf, &[]);
        let router = Router::start(lab, &net.routers[ours], &one_way(LONG_TAKEOVER));
        let b = Capture::new(&net.rcv, "eth0");
        let stream = NumberedStream::start(&net.src, "eth0", SRC, DST, 500);
        eventually("the router yields", true, || {
            let labels = [("reason", "other_forwarder"), ("iface", "lan1")];
            router.metric("mcastor_dropped_packets_total", &labels) > 0.0
        });
        let settled = stream.sent() + 5;
        stream.wait_for_more(500);
        let sent = stream.finish();
        wait_for_last(&b, sent);
        assert_one_copy(&b, settled..sent);
    }
}

fn failover_takes_less_than_two_seconds(lab: &Lab) {
    for (toml, tag) in [(one_way(""), "one"), (two_way(""), "two")] {
        let net = ParallelRouters::tagged(lab, 2, "", tag);
        let mut routers = start_all(lab, &net, &toml);
        let b = Capture::new(&net.rcv, "eth0");
        // An unoptimised build on a busy machine does not forward a higher rate.
        let rate = std::env::var("MCASTOR_FAILOVER_RATE").ok();
        let rate = rate.map_or(1000, |rate| rate.parse().expect("packets per second"));
        let stream = NumberedStream::start(&net.src, "eth0", SRC, DST, rate);
        stream.wait_for_more(rate);
        // The first router has the lower address and forwards.
        let died = stream.sent();
        drop(routers.remove(0));
        stream.wait_for_more(5 * rate / 2);
        let sent = stream.finish();
        wait_for_last(&b, sent);
        let arrived = copies(&b);
        let lost = (died..sent).filter(|n| !arrived.contains_key(n)).count();
        println!("failover ({tag}-way): {lost} packets lost at {rate}/s");
        assert!(lost < 2 * rate as usize, "{lost} packets lost");
    }
}

fn slow_stream_is_delivered_once(lab: &Lab) {
    let net = ParallelRouters::new(lab, 2, "");
    let _routers = start_all(lab, &net, &one_way(""));
    let b = Capture::new(&net.rcv, "eth0");
    // Longer than the takeover time between two packets.
    let stream = NumberedStream::start(&net.src, "eth0", SRC, DST, 1);
    stream.wait_for_more(6);
    let sent = stream.finish();
    wait_for_last(&b, sent);
    // The first packets may arrive twice: a copy that a router reads before the original does not
    // yet reveal the other forwarder.
    assert_one_copy(&b, 2..sent);
}

/// Starts a router with routes from `in` and from `out2` to `out1`. Both uplinks carry the stream
/// of one source, which is on neither link.
fn two_uplinks(lab: &Lab, extra: &str) -> (Star, Router) {
    let star = Star::v4(lab, 2);
    let toml = route("a", "in", "", GROUP, &["out1"], extra)
        + &route("b", "out2", "", GROUP, &["out1"], extra);
    let router = Router::start(lab, &star.rtr, &toml);
    (star, router)
}

const REMOTE: &str = "192.0.2.7:9";

fn one_of_two_uplinks_is_active(lab: &Lab) {
    let (star, router) = two_uplinks(lab, "");
    let wire = Capture::new(&star.rcv, "eth1");
    let (one, two) = (
        Injector::new(&star.src, "eth0"),
        Injector::new(&star.rcv, "eth2"),
    );
    let frame = |n: u32, id: u16| Udp::new(REMOTE, DST, n.to_be_bytes()).id(id).frame();
    for n in 0..50 {
        one.send(&frame(n, n as u16));
        eventually("the packet is forwarded", n as usize + 1, || {
            wire.to(GROUP).len()
        });
        two.send(&frame(n, 1000 + n as u16));
    }
    router.expect_dropped("standby", "out2", 50);
    assert_one_copy(&wire, 0..50);
    // The first uplink is silent now.
    let mut n = 50;
    eventually("the second uplink takes over", true, || {
        two.send(&frame(n, 1000 + n as u16));
        n += 1;
        wire.to(GROUP).len() > 50
    });
    let labels = [("role", "ingress"), ("iface", "out2")];
    router.expect_metric("mcastor_takeovers_total", &labels, 1);
}

fn ingress_all_forwards_both_copies(lab: &Lab) {
    let (star, router) = two_uplinks(lab, "ingress = \"all\"\n");
    let wire = Capture::new(&star.rcv, "eth1");
    let (one, two) = (
        Injector::new(&star.src, "eth0"),
        Injector::new(&star.rcv, "eth2"),
    );
    for n in 0..50u32 {
        one.send(&Udp::new(REMOTE, DST, n.to_be_bytes()).id(n as u16).frame());
        two.send(
            &Udp::new(REMOTE, DST, n.to_be_bytes())
                .id(1000 + n as u16)
                .frame(),
        );
    }
    wire.expect(GROUP, 100);
    router.expect_routed("a", "out1", 50);
    router.expect_routed("b", "out1", 50);
}

fn uplink_without_carrier_is_replaced_at_once(lab: &Lab) {
    let (star, router) = two_uplinks(lab, "takeover = \"1h\"\n");
    let wire = Capture::new(&star.rcv, "eth1");
    let (one, two) = (
        Injector::new(&star.src, "eth0"),
        Injector::new(&star.rcv, "eth2"),
    );
    let frame = |n: u32| Udp::new(REMOTE, DST, n.to_be_bytes()).id(n as u16).frame();
    one.send(&frame(0));
    eventually("the packet is forwarded", 1, || wire.to(GROUP).len());
    two.send(&frame(1));
    router.expect_dropped("standby", "out2", 1);
    star.src.ip("link set eth0 down");
    let mut n = 2;
    eventually("the second uplink takes over", true, || {
        two.send(&frame(n));
        n += 1;
        wire.to(GROUP).len() > 1
    });
}

fn standby_and_yield_are_shown(lab: &Lab) {
    let net = ParallelRouters::new(lab, 2, "");
    let routers = start_all(lab, &net, &two_way(LONG_TAKEOVER));
    let stream = NumberedStream::start(&net.src, "eth0", SRC, DST, 100);
    let flow = |router: &Router| {
        let flows = router.control().show("flows");
        let flow = flows.into_iter().find(|f| f["iif"] == "lan0");
        flow.unwrap_or_default()
    };
    eventually(
        "the second router yields to the first",
        "02:00:00:00:01:11".to_owned(),
        || {
            flow(&routers[1])["yields"]["lan1"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        },
    );
    for router in &routers {
        assert_eq!(flow(router)["active"], true);
    }
    assert!(
        flow(&routers[0])["yields"]
            .as_object()
            .is_none_or(|y| y.is_empty())
    );
    drop(stream);
}

/// A host on the egress link sends a few packets of the stream, with a lower address than the router.
fn forged_packets_of_a_host_withhold_no_stream(lab: &Lab) {
    let net = ParallelRouters::new(lab, 1, "");
    let router = Router::start(lab, &net.routers[0], &one_way(LONG_TAKEOVER));
    let member = Capture::new(&net.rcv, "eth0");
    let host = Injector::new(&net.rcv, "eth0");
    let stream = NumberedStream::start(&net.src, "eth0", SRC, DST, 500);
    stream.wait_for_more(100);
    let forged = Udp::new(SRC, DST, u32::MAX.to_be_bytes()).ttl(9).frame();
    let labels = [("reason", "other_forwarder"), ("iface", "lan1")];
    let withheld = || router.metric("mcastor_dropped_packets_total", &labels) as u64;
    let takeovers = || router.metric("mcastor_takeovers_total", &[("role", "egress")]) as u64;
    let forge_until = |name: &str, condition: &dyn Fn() -> bool| {
        // Ten times a second at most; the stream has 500 packets a second.
        let mut polls = 0;
        eventually(name, true, || {
            if polls % 20 == 0 {
                host.send(&forged);
            }
            polls += 1;
            condition()
        });
    };
    forge_until("the router yields", &|| withheld() > 0);
    forge_until("the router takes over", &|| takeovers() > 0);
    let lost = withheld();
    let last = stream.sent() + 1500;
    forge_until("1,500 more packets", &|| stream.sent() >= last);
    let sent = stream.finish();
    wait_for_last(&member, sent);
    assert_eq!((withheld(), takeovers()), (lost, 1));
    // A second is 500 packets.
    assert!(lost < 1500, "{lost} packets withheld");
    let arrived = copies(&member);
    let missing = (0..sent).filter(|n| !arrived.contains_key(n)).count();
    assert_eq!(missing as u64, lost);
}

fn forged_high_ttl_of_a_host_stops_no_stream(lab: &Lab) {
    let net = ParallelRouters::new(lab, 1, "");
    let settings = format!("{LONG_TAKEOVER}redundant = false\n");
    let router = Router::start(
        lab,
        &net.routers[0],
        &proxy(&["lan0"], &["lan1"], &settings),
    );
    let receiver = UdpRx::join(&net.rcv, "eth0", DST);
    eventually("the group is joined", 1, || joined(&router, "lan0").len());
    let member = Capture::new(&net.rcv, "eth0");
    let host = Injector::new(&net.rcv, "eth0");
    let sender = Injector::new(&net.src, "eth0");
    // The source is on neither link. The host uses its address, with the highest TTL.
    for n in 0..50u32 {
        let packet = |ttl| Udp::new(REMOTE, DST, n.to_be_bytes()).ttl(ttl).id(n as u16);
        sender.send(&packet(9).frame());
        eventually("the packet arrives", true, || {
            copies(&member).contains_key(&n)
        });
        host.send(&packet(255).frame());
    }
    router.expect_dropped("standby", "lan1", 50);
    router.expect_dropped("standby", "lan0", 0);
    receiver.expect(50);
}

/// Two processes in one network namespace with a route for the same stream.
fn second_process_gets_no_packets_of_the_first(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let toml = route("r", "in", "", GROUP, &["out1"], "");
    let mut first = Router::start(lab, &star.rtr, &toml);
    let second = Router::launch(lab, &star.rtr, &toml, &SECOND_HTTP);
    let refused = format!(
        "in: cannot capture: another mcastor (process {}) takes the packets of this interface",
        first.program.pid()
    );
    let is_refused = || second.program.stderr().contains(&refused);
    assert!(
        wait_until(TIMEOUT, is_refused),
        "{}",
        second.program.stderr()
    );
    assert!(first.is_ready() && !second.is_ready());
    let capture = Capture::new(&star.rcv, "eth1");
    let stream = NumberedStream::start(&star.src, "eth0", SRC_IN_STAR, DST, 100);
    stream.wait_for_more(50);
    assert!(copies(&capture).values().all(|n| *n == 1));
    first.kill();
    assert!(
        wait_until(TIMEOUT, || second.is_ready()),
        "{}",
        second.program.stderr()
    );
    let before = copies(&capture).len();
    stream.wait_for_more(50);
    let arrived = || copies(&capture).len() >= before + 20;
    assert!(wait_until(TIMEOUT, arrived), "{before}");
    stream.finish();
    assert!(copies(&capture).values().all(|n| *n == 1));
}

fn processes_can_share_an_interface(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let first = Router::start(lab, &star.rtr, &route("r", "in", "", GROUP, &["out1"], ""));
    let other = route("other", "in", "", "239.1.1.2", &["out1"], "");
    let second = "[plane]\nshared = true\n".to_owned() + &other;
    let second = Router::start_with(lab, &star.rtr, &second, &SECOND_HTTP);
    let capture = Capture::new(&star.rcv, "eth1");
    let streams = [DST, "239.1.1.2:5000"]
        .map(|to| NumberedStream::start(&star.src, "eth0", SRC_IN_STAR, to, 100));
    let sent = streams.map(|stream| {
        stream.wait_for_more(50);
        stream.finish() as usize
    });
    capture.expect(GROUP, sent[0]);
    capture.expect("239.1.1.2", sent[1]);
    assert!(first.is_ready() && second.is_ready());
}
