//! AMT over paths with NAT, delay, loss and reordering, and relays that accept no gateway.

use std::time::Duration;

use super::amt::{AmtTopology, RELAY, gateway_settings, joined_groups, tunnels};
use super::cases;
use crate::lab::impaired_path::fill_in_checksums;
use crate::lab::proxy::{join_source, joined};
use crate::lab::{
    Capture, ImpairedPath, Impairment, Lab, LinkEnd, Ns, NumberedStream, Router, connect_all,
    eventually, sequence_number, wait_until,
};

cases!("amt_paths":
    #[Program("ethtool", "ethtool")] #[Iptables] streams_cross_nat_with_delay_loss_and_reordering,
    #[Iptables] tunnel_follows_the_port_of_a_nat,
    relay_at_its_limit_leaves_gateways_to_another,
);

const GROUP: &str = "232.1.1.1";
const STREAM: [&str; 2] = ["10.0.0.10:9", "232.1.1.1:5000"];

/// Gives the gateway the address of the router between it and the relay, and a port of a range.
fn masquerade(core: &Ns, ports: &str) {
    for rule in [
        "-F",
        &format!("-A POSTROUTING -o c0 -p udp -j MASQUERADE --to-ports {ports}"),
    ] {
        let words: Vec<&str> = ["-t", "nat"].into_iter().chain(rule.split(' ')).collect();
        let done = core.output("iptables", &words);
        assert!(done.status.success(), "{done:?}");
    }
}

/// Replaces the link of the gateway to the core with an impaired path.
pub(super) fn impair(lab: &Lab, topology: &AmtTopology, impairment: Impairment) -> ImpairedPath {
    let AmtTopology { core, gw, .. } = topology;
    let path = lab.ns("path");
    path.disable_ipv6();
    gw.ip("link del wan0");
    connect_all(&[
        (
            LinkEnd::new(gw, "wan0", &["10.2.0.1/24"]),
            LinkEnd::new(&path, "near", &[]),
        ),
        (
            LinkEnd::new(core, "c1", &["10.2.0.2/24"]),
            LinkEnd::new(&path, "far", &[]),
        ),
    ]);
    gw.ip("route add default via 10.2.0.2");
    fill_in_checksums(gw, "wan0");
    fill_in_checksums(core, "c1");
    ImpairedPath::start(&path, ["near", "far"], impairment)
}

/// Returns the sequence numbers that arrived.
fn numbers(wire: &Capture) -> Vec<u32> {
    let packets = wire.to(GROUP).into_iter();
    let data = packets.filter(|packet| packet.protocol == 17);
    data.map(|packet| sequence_number(packet.payload()))
        .collect()
}

/// Messages and packets are lost in both directions.
fn streams_cross_nat_with_delay_loss_and_reordering(lab: &Lab) {
    let topology = AmtTopology::new(lab);
    let impairment = Impairment {
        delay: Duration::from_millis(20),
        jitter_us: 10_000,
        loss_percent: 5,
    };
    let path = impair(lab, &topology, impairment);
    masquerade(&topology.core, "40000-40999");
    let relay = topology.relay(lab);
    let gateway = topology.gateway(lab, "\"10.1.0.1\"");
    let member = join_source(&topology.rcv, "eth1", "10.0.0.10", GROUP);
    eventually("joined upstream", 1, || joined(&relay, "in").len());
    let wire = Capture::new(&topology.rcv, "eth1");
    let sender = NumberedStream::start(&topology.src, "eth0", STREAM[0], STREAM[1], 500);
    sender.wait_for_more(1500);
    let sent = sender.finish();
    let is_enough = || numbers(&wire).len() * 100 >= sent as usize * 85;
    let arrived = wait_until(crate::lab::TIMEOUT, is_enough);
    assert!(arrived, "{} of {sent} arrived", numbers(&wire).len());
    // Nothing is lost behind the path.
    eventually("the packets of the tunnel", true, || {
        tunnels(&gateway, "internet")[0]["packets"] == numbers(&wire).len()
    });
    let mut numbers = numbers(&wire);
    assert!(
        numbers.windows(2).any(|pair| pair[0] > pair[1]),
        "no packet was reordered"
    );
    let count = numbers.len();
    assert!(count < sent as usize, "no packet was lost");
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), count, "packets arrived twice");
    // The relay knows the gateway by the address of the NAT.
    let gateways = tunnels(&relay, "tunnels");
    let remote = gateways[0]["remote"].as_str().unwrap_or_default();
    assert!(remote.starts_with("10.1.0.2:40"), "{gateways:?}");
    // A leave is repeated, and ends by itself if it is lost nevertheless.
    drop(member);
    eventually("no group at the relay", 0, || joined_groups(&relay));
    drop(path);
}

/// The uplink of a NAT starts again, and the NAT chooses another port. The gateway notices the
/// silence, learns its new port from the relay, and ends the tunnel to the former one.
fn tunnel_follows_the_port_of_a_nat(lab: &Lab) {
    let topology = AmtTopology::new(lab);
    let AmtTopology { core, rel, .. } = &topology;
    masquerade(core, "40000-40999");
    let relay = topology.relay(lab);
    let _gateway = topology.gateway(lab, "\"10.1.0.1\"");
    let _member = join_source(&topology.rcv, "eth1", "10.0.0.10", GROUP);
    eventually("joined upstream", 1, || joined(&relay, "in").len());
    let wire = Capture::new(&topology.rcv, "eth1");
    let sender = NumberedStream::start(&topology.src, "eth0", STREAM[0], STREAM[1], 200);
    eventually("the stream", true, || wire.to(GROUP).len() > 50);
    let ports = || -> Vec<String> {
        let rows = tunnels(&relay, "tunnels");
        let remote = |row: &serde_json::Value| row["remote"].as_str().unwrap_or("?").to_owned();
        rows.iter().map(remote).collect()
    };
    assert!(ports()[0].starts_with("10.1.0.2:40"), "{:?}", ports());
    masquerade(core, "50000-50999");
    // The kernel forgets the mappings of an interface that goes down.
    core.ip("link set c0 down");
    core.ip("link set c0 up");
    rel.wait_until_up("wan0");
    let before = wire.to(GROUP).len();
    eventually("the stream after the change", true, || {
        wire.to(GROUP).len() > before + 50
    });
    eventually("one tunnel with the new port", true, || {
        let ports = ports();
        ports.len() == 1 && ports[0].starts_with("10.1.0.2:50")
    });
    drop(sender);
}

fn relay_at_its_limit_leaves_gateways_to_another(lab: &Lab) {
    let topology = AmtTopology::new(lab);
    let second = lab.ns("rel2");
    connect_all(&[
        (
            LinkEnd::new(&second, "wan0", &["10.4.0.1/24"]),
            LinkEnd::new(&topology.core, "c2", &["10.4.0.2/24"]),
        ),
        (
            LinkEnd::new(&second, "in", &["10.0.1.1/24"]),
            LinkEnd::new(&topology.src, "eth1", &["10.0.1.10/24"]),
        ),
    ]);
    second.ip("route add default via 10.4.0.2");
    let full = RELAY.replace("[[proxy]]", "limits = { gateways = 1 }\n[[proxy]]");
    let full = Router::start(lab, &topology.rel, &full);
    let second = Router::start(lab, &second, RELAY);
    let first = "[http]\nlisten = \"127.0.0.1:9501\"\n[[amt.gateway]]\nname = \"tun\"\n\
        relay = \"10.1.0.1\"\n[[join]]\ninterface = \"tun\"\nsource = \"10.0.0.10\"\n\
        group = \"232.1.1.1\"\n";
    let first = Router::launch(lab, &topology.gw, first, &[]);
    eventually("the first gateway", 1, || joined_groups(&full));
    let settings = gateway_settings("[\"10.1.0.1\", \"10.4.0.1\"]");
    let gateway = Router::start(lab, &topology.gw, &settings);
    let _member = join_source(&topology.rcv, "eth1", "10.0.0.10", GROUP);
    eventually("the second gateway at the second relay", 1, || {
        joined_groups(&second)
    });
    assert_eq!(tunnels(&full, "tunnels").len(), 1);
    let labels = [("result", "limit_reached"), ("way", "address")];
    gateway.expect_metric("mcastor_amt_discoveries_total", &labels, 1);
    first.stop();
}
