//! Bandwidth limits: a new stream that would exceed one is refused, and the streams that are
//! forwarded stay.

use serde_json::Value;

use super::amt::AmtTopology;
use super::{cases, route};
use crate::lab::proxy::{TIMERS, join_source, joined};
use crate::lab::{Capture, Lab, NumberedStream, Router, Star, eventually, sequence_number};

cases!("bandwidth":
    newcomer_waits_until_the_first_stream_ends,
    newcomer_waits_on_the_packet_plane,
    gateway_leaves_a_stream_that_exceeds_its_limit,
    relay_counts_each_gateway,
);

/// The groups of the streams, and their packets a second. A packet has 32 bytes.
const FIRST: &str = "225.1.2.3";
const SECOND: &str = "225.1.2.4";
const PER_SECOND: u32 = 200;

/// A limit with space for one of these streams, and for little more.
fn limit() -> String {
    let bits = 32 * 8 * PER_SECOND / crate::lab::slowness();
    format!("\"{}bit\"", bits * 5 / 4)
}

fn stream(lab: &Star, group: &str) -> NumberedStream {
    let to = format!("{group}:5000");
    NumberedStream::start(&lab.src, "eth0", "10.0.0.10:9", &to, PER_SECOND)
}

/// Returns the limit of an interface, as `show interfaces` shows it.
fn shown(router: &Router, interface: &str) -> Value {
    let all = router.control().show("interfaces");
    let found = all.into_iter().find(|i| i["name"] == interface);
    found.expect("the interface")["bandwidth"].clone()
}

fn assert_newcomer_waits(lab: &Lab, plane: &str) {
    let star = Star::v4(lab, 1);
    let to = ["out1"];
    let toml = route("a", "in", "", FIRST, &to, "")
        + &route("b", "in", "", SECOND, &to, "")
        + &format!(
            "[[interface]]\nname = \"out1\"\nbandwidth = {}\n{plane}",
            limit()
        );
    let router = Router::start(lab, &star.rtr, &toml);
    let wire = Capture::new(&star.rcv, "eth1");
    let admitted = || shown(&router, "out1")["admitted"].as_u64().unwrap_or(0) > 0;

    let first = stream(&star, FIRST);
    eventually("the first stream is admitted", true, admitted);
    // While it was measured, packets were withheld.
    let measured = first.sent();
    let dropped = || {
        let labels = [("reason", "bandwidth"), ("iface", "out1")];
        router.metric("mcastor_dropped_packets_total", &labels)
    };
    let dropped_before = dropped();
    let second = stream(&star, SECOND);
    let refused = || shown(&router, "out1")["refused"].as_u64();
    eventually("the second stream is refused", Some(1), refused);
    let listed = shown(&router, "out1")["refused_streams"][0].clone();
    assert_eq!(listed, format!("(10.0.0.10, {SECOND})"));
    let explained = router.try_run(&format!("explain 10.0.0.10 {SECOND}"));
    let explained = String::from_utf8_lossy(&explained.stdout);
    assert!(explained.contains("bandwidth"), "{explained}");
    let log = router.program.stderr();
    let logged = format!("out1: (10.0.0.10, {SECOND}) would exceed the bandwidth limit of 64kbit");
    assert!(log.contains(&logged) || crate::lab::slowness() > 1, "{log}");
    let table = router.run("show interfaces");
    assert!(table.contains("1 refused"), "{table}");
    let of_limit = |name: &str| {
        let name = format!("mcastor_bandwidth_{name}");
        router.metric(&name, &[("iface", "out1")])
    };
    eventually("the refused stream in the metrics", 1.0, || {
        of_limit("refused_streams")
    });
    let max = of_limit("limit_bits_per_second");
    let configured = limit().replace(['"', 'b', 'i', 't'], "");
    assert_eq!(configured.parse(), Ok(max));
    eventually("the rate of the first stream", true, || {
        let [admitted, measured] =
            ["admitted", "measured"].map(|kind| of_limit(&format!("{kind}_bits_per_second")));
        (1.0..=max).contains(&admitted) && measured > 0.0
    });
    let some = wire.to(SECOND).len();
    first.wait_for_more(PER_SECOND / crate::lab::slowness());
    assert_eq!(wire.to(SECOND).len(), some, "none of the refused stream");
    let sent = first.finish();
    let since_measured = || {
        let packets = wire.to(FIRST).into_iter();
        packets
            .filter(|p| sequence_number(p.payload()) >= measured)
            .count() as u32
    };
    eventually(
        "all packets of the first stream",
        sent - measured,
        since_measured,
    );
    assert!(dropped() > dropped_before);

    eventually("the second stream is admitted", Some(0), refused);
    let before = wire.to(SECOND).len();
    second.wait_for_more(20);
    eventually("its packets", true, || wire.to(SECOND).len() >= before + 20);
    second.finish();
    router.write_settings(&route("b", "in", "", SECOND, &to, ""));
    router.run("reload");
    eventually("no metrics without a limit", 0.0, || {
        of_limit("limit_bits_per_second")
    });
}

fn newcomer_waits_until_the_first_stream_ends(lab: &Lab) {
    assert_newcomer_waits(lab, "");
}

fn newcomer_waits_on_the_packet_plane(lab: &Lab) {
    assert_newcomer_waits(lab, super::PACKET_PLANE);
}

const RELAY: &str = "[[amt.relay]]\nname = \"tunnels\"\nquery_interval = \"5s\"\n";
const RELAY_PROXY: &str =
    "[[proxy]]\nname = \"r\"\nupstream = [\"in\"]\ndownstream = [\"tunnels\"]\n";

/// The relay sends it no more, until the first stream has ended.
fn gateway_leaves_a_stream_that_exceeds_its_limit(lab: &Lab) {
    let topology = AmtTopology::new(lab);
    let relay = topology.relay(lab);
    let toml = format!(
        "[[amt.gateway]]\nname = \"internet\"\nrelay = \"10.1.0.1\"\n\
         limits = {{ bandwidth = {} }}\n\
         [[proxy]]\nname = \"p\"\nupstream = [\"internet\"]\ndownstream = [\"out\"]\n{TIMERS}",
        limit()
    );
    let gateway = Router::start(lab, &topology.gw, &toml);
    let _first = join_source(&topology.rcv, "eth1", "10.0.0.10", "232.1.1.1");
    eventually("joined upstream", 1, || joined(&relay, "in").len());
    let start = |group: &str| {
        let to = format!("{group}:5000");
        NumberedStream::start(&topology.src, "eth0", "10.0.0.10:9", &to, PER_SECOND)
    };
    let first = start("232.1.1.1");
    let admitted = || {
        shown(&gateway, "internet")["admitted"]
            .as_u64()
            .unwrap_or(0)
            > 0
    };
    eventually("the first stream is admitted", true, admitted);
    let second = start("232.1.1.2");
    let _second = join_source(&topology.rcv, "eth1", "10.0.0.10", "232.1.1.2");
    let refused = || shown(&gateway, "internet")["refused"].as_u64();
    eventually("the second stream is refused", Some(1), refused);
    let table = gateway.run("show tunnels");
    assert!(table.contains("1 refused"), "{table}");
    eventually("it is left at the relay", 1, || joined(&relay, "in").len());
    let wire = Capture::new(&topology.rcv, "eth1");
    first.wait_for_more(50);
    first.finish();
    assert!(!wire.to("232.1.1.1").is_empty());
    eventually("it is requested again", true, || {
        joined(&relay, "in").iter().any(|j| j.contains("232.1.1.2"))
    });
    eventually("its packets", true, || wire.to("232.1.1.2").len() > 20);
    second.finish();
}

/// Two gateways receive a stream, and the limit has space for one copy.
fn relay_counts_each_gateway(lab: &Lab) {
    let topology = AmtTopology::new(lab);
    let toml = format!(
        "{RELAY}limits = {{ bandwidth = {} }}\n{RELAY_PROXY}",
        limit()
    );
    let relay = Router::start(lab, &topology.rel, &toml);
    let gateway = |n: u32| {
        let toml = format!(
            "[http]\nlisten = \"127.0.0.1:{}\"\n\
             [[amt.gateway]]\nname = \"tun\"\nrelay = \"10.1.0.1\"\n\
             [[join]]\ninterface = \"tun\"\nsource = \"10.0.0.10\"\ngroup = \"232.1.1.1\"\n",
            9500 + n
        );
        Router::launch(lab, &topology.gw, &toml, &[])
    };
    let _gateways = [gateway(1), gateway(2)];
    let tunnels = || relay.control().show("tunnels").len();
    eventually("two gateways", 2, tunnels);
    eventually("joined upstream", 1, || joined(&relay, "in").len());
    let to = "232.1.1.1:5000";
    let sender = NumberedStream::start(&topology.src, "eth0", "10.0.0.10:9", to, PER_SECOND);
    eventually("the stream is refused", Some(1), || {
        shown(&relay, "tunnels")["refused"].as_u64()
    });
    let routed = || relay.metric("mcastor_route_packets_total", &[("route", "r")]);
    let before = routed();
    sender.wait_for_more(50);
    assert_eq!(routed(), before);
    sender.finish();
}
