//! An AMT relay that is replaced, one with many gateways, and the messages of a tunnel as tshark
//! decodes them.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::time::Duration;

use mcastor::wire::amt::{AmtMessage, FlagLayout};
use mcastor::wire::membership::build;
use mcastor::wire::membership_message::{MembershipMessage, RecordType};

use super::amt::{AmtTopology, RELAY, joined_groups, tunnels};
use super::cases;
use super::mnat::join_source_v6;
use super::upgrade::Replacement;
use crate::lab::flood::{group, record, source};
use crate::lab::numbered_stream::NumberedReceiver;
use crate::lab::proxy::{join_source, joined};
use crate::lab::{
    Capture, Injector, Lab, Ns, NumberedStream, Router, Udp, eventually, measures, pcap, wait_until,
};

cases!("amt_relay":
    upgrades_of_a_relay_lose_nothing,
    relay_goes_on_after_a_failed_upgrade,
    many_gateways_take_little_memory,
    packets_of_a_burst_arrive_in_order_at_each_gateway,
    bursts_beyond_the_path_mtu_are_fragmented,
    packets_beyond_the_path_mtu_are_dropped_by_choice,
    #[Program("tshark", "tshark")] #[Program("ethtool", "ethtool")]
    messages_of_a_tunnel_are_decoded_by_tshark,
);

const GROUP: &str = "232.1.1.1";
const STREAM: [&str; 2] = ["10.0.0.10:9", "232.1.1.1:5000"];

/// The new processes continue the socket, the tunnels and the secrets.
fn upgrades_of_a_relay_lose_nothing(lab: &Lab) {
    let topology = AmtTopology::new(lab);
    let relay = topology.relay(lab);
    let gateway = topology.gateway(lab, "\"10.1.0.1\"");
    let member = join_source(&topology.rcv, "eth1", "10.0.0.10", GROUP);
    eventually("the group at the relay", 1, || joined_groups(&relay));
    eventually("joined upstream", 1, || joined(&relay, "in").len());
    let receiver = NumberedReceiver::start(&topology.rcv, "eth1", GROUP);
    let sender = NumberedStream::start(&topology.src, "eth0", STREAM[0], STREAM[1], 1000);
    let mut replacement = Replacement::new(&relay);
    for _ in 0..3 {
        sender.wait_for_more(200);
        replacement.upgrade();
    }
    sender.wait_for_more(200);
    let sent = u64::from(sender.finish());
    wait_until(crate::lab::TIMEOUT, || receiver.received() >= sent);
    let counts = receiver.finish();
    assert_eq!((counts.numbers, counts.doubled), (sent, 0));
    let labels = [("iface", "tunnels")];
    relay.expect_metric("mcastor_amt_copies_total", &labels, sent);
    // The gateway noticed nothing.
    let labels = [("type", "discovery"), ("direction", "transmitted")];
    gateway.expect_metric("mcastor_amt_messages_total", &labels, 1);
    drop(member);
    eventually("no group at the relay", 0, || joined_groups(&relay));
    relay.expect_metric("mcastor_amt_refused_total", &[("reason", "wrong_mac")], 0);
}

fn relay_goes_on_after_a_failed_upgrade(lab: &Lab) {
    let topology = AmtTopology::new(lab);
    let relay = topology.relay(lab);
    let _gateway = topology.gateway(lab, "\"10.1.0.1\"");
    let _first = join_source(&topology.rcv, "eth1", "10.0.0.10", GROUP);
    eventually("joined upstream", 1, || joined(&relay, "in").len());
    relay.write_settings("nonsense = true\n");
    assert!(!relay.try_run("upgrade").status.success());
    let _second = join_source(&topology.rcv, "eth1", "10.0.0.10", "232.1.1.2");
    eventually("both groups at the relay", 2, || joined_groups(&relay));
    let wire = Capture::new(&topology.rcv, "eth1");
    topology.send(0, 50);
    wire.expect(GROUP, 50);
}

/// Sends packets with payloads of these lengths at once.
fn send_burst(topology: &AmtTopology, lengths: &[usize]) {
    let inject = Injector::new(&topology.src, "eth0");
    let frame = |len: &usize| Udp::new(STREAM[0], STREAM[1], vec![7; *len]).frame();
    let frames: Vec<Vec<u8>> = lengths.iter().map(frame).collect();
    frames.iter().for_each(|frame| inject.send(frame));
}

/// Returns the lengths of the payloads that arrived.
fn arrived(wire: &Capture) -> Vec<usize> {
    let packets = wire.to(GROUP).into_iter();
    let data = packets.filter(|packet| packet.protocol == 17);
    data.map(|packet| packet.payload().len()).collect()
}

/// The relay sends packets of the same length as one GSO datagram, for each of two gateways.
fn packets_of_a_burst_arrive_in_order_at_each_gateway(lab: &Lab) {
    let topology = AmtTopology::new(lab);
    let relay = topology.relay(lab);
    let _gateway = topology.gateway(lab, "\"10.1.0.1\"");
    let second = "[http]\nlisten = \"127.0.0.1:9501\"\n[[amt.gateway]]\nname = \"tun\"\n\
        relay = \"fd01::1\"\n[[join]]\ninterface = \"tun\"\nsource = \"10.0.0.10\"\n\
        group = \"232.1.1.1\"\n";
    let second = Router::launch(lab, &topology.gw, second, &[]);
    let _member = join_source(&topology.rcv, "eth1", "10.0.0.10", GROUP);
    eventually("both gateways", 2, || joined_groups(&relay));
    eventually("joined upstream", 1, || joined(&relay, "in").len());
    let wire = Capture::new(&topology.rcv, "eth1");
    let mut lengths = vec![100; 80];
    lengths.extend([50, 100, 101, 101, 4, 1400, 1400, 1400, 20]);
    lengths.extend([1000; 70]);
    send_burst(&topology, &lengths);
    eventually("all packets", lengths.len(), || arrived(&wire).len());
    assert_eq!(arrived(&wire), lengths);
    let labels = [("iface", "tunnels")];
    relay.expect_metric(
        "mcastor_amt_copies_total",
        &labels,
        2 * lengths.len() as u64,
    );
    relay.expect_metric("mcastor_amt_failed_copies_total", &labels, 0);
    second.stop();
}

/// The kernel refuses GSO datagrams whose segments exceed the MTU.
fn bursts_beyond_the_path_mtu_are_fragmented(lab: &Lab) {
    let topology = AmtTopology::new(lab);
    topology.rel.ip("link set wan0 mtu 1000");
    let relay = topology.relay(lab);
    let _gateway = topology.gateway(lab, "\"10.1.0.1\"");
    let _member = join_source(&topology.rcv, "eth1", "10.0.0.10", GROUP);
    eventually("joined upstream", 1, || joined(&relay, "in").len());
    let wire = Capture::new(&topology.rcv, "eth1");
    send_burst(&topology, &[1200; 60]);
    eventually("all packets", vec![1200; 60], || arrived(&wire));
    let labels = [("iface", "tunnels")];
    relay.expect_metric("mcastor_amt_failed_copies_total", &labels, 0);
}

/// With `fragment = false`.
fn packets_beyond_the_path_mtu_are_dropped_by_choice(lab: &Lab) {
    let topology = AmtTopology::new(lab);
    topology.rel.ip("link set wan0 mtu 1000");
    let settings = RELAY.replace("query_interval", "fragment = false\nquery_interval");
    let relay = Router::start(lab, &topology.rel, &settings);
    let _gateway = topology.gateway(lab, "\"10.1.0.1\"");
    let _member = join_source(&topology.rcv, "eth1", "10.0.0.10", GROUP);
    eventually("joined upstream", 1, || joined(&relay, "in").len());
    let wire = Capture::new(&topology.rcv, "eth1");
    send_burst(&topology, &[1200; 60]);
    send_burst(&topology, &[900; 5]);
    eventually("the packets that fit", vec![900; 5], || arrived(&wire));
    let labels = [("iface", "tunnels"), ("reason", "too_big")];
    relay.expect_metric("mcastor_amt_failed_copies_total", &labels, 60);
}

/// Joins a stream with `count` gateways of a namespace, each with a port of its own.
fn join_with_many(ns: &Ns, count: usize) {
    /// Gateways that join at the same time.
    const TOGETHER: usize = 50;
    let records = vec![record(
        RecordType::AllowNewSources,
        group([232, 1, 1, 1]),
        vec![source([10, 0, 0, 10])],
    )];
    let report = MembershipMessage::Records(records);
    let report = build(&report, [0, 0, 0, 0].into(), 1200).expect("a report");
    for first in (0..count).step_by(TOGETHER) {
        let sockets = (first..count.min(first + TOGETHER)).map(|n| {
            let address = format!("10.2.0.1:{}", 20_000 + n);
            let socket = ns.enter(|| UdpSocket::bind(address)).expect("a socket");
            let timeout = Some(Duration::from_secs(1));
            socket.set_read_timeout(timeout).expect("a timeout");
            socket.connect("10.1.0.1:2268").expect("a route");
            socket
        });
        let sockets: Vec<UdpSocket> = sockets.collect();
        let request = |socket: &UdpSocket| {
            let request = AmtMessage::Request {
                nonce: 1,
                is_mld: false,
                flags: FlagLayout::Standard,
            };
            socket.send(&request.to_bytes()).expect("a request");
        };
        sockets.iter().for_each(request);
        for socket in &sockets {
            let mut buffer = [0; 512];
            eventually("a query", true, || {
                let Ok(len) = socket.recv(&mut buffer) else {
                    request(socket);
                    return false;
                };
                let Ok(AmtMessage::MembershipQuery { mac, nonce, .. }) =
                    AmtMessage::parse(&buffer[..len])
                else {
                    return false;
                };
                let packet = &report[0];
                let update = AmtMessage::MembershipUpdate { mac, nonce, packet };
                socket.send(&update.to_bytes()).is_ok()
            });
        }
    }
}

/// With `MCASTOR_BINARY`, as in `make bench-membership`, there are ten thousand.
fn many_gateways_take_little_memory(lab: &Lab) {
    let count = if measures() { 10_000 } else { 1_000 };
    let topology = AmtTopology::new(lab);
    let relay = Router::start(
        lab,
        &topology.rel,
        "[[amt.relay]]\nname = \"tunnels\"\n\
         limits = { gateways = 100000, answers = 1000000, answers_per_prefix = 1000000 }\n\
         [[proxy]]\nname = \"r\"\nupstream = [\"in\"]\ndownstream = [\"tunnels\"]\n\
         limits = { reports_per_second = 1000000 }\n",
    );
    let before = relay.program.rss();
    join_with_many(&topology.gw, count);
    eventually("the gateways", count, || tunnels(&relay, "tunnels").len());
    let memory = relay.program.rss();
    println!(
        "{count} gateways: {} MiB in all, {} bytes for each",
        memory >> 20,
        memory.saturating_sub(before) / count as u64
    );
    assert!(memory < 100 << 20, "{memory} bytes");
}

/// tshark judges all messages of both ends: joins of both protocols, data and leaves.
fn messages_of_a_tunnel_are_decoded_by_tshark(lab: &Lab) {
    let topology = AmtTopology::new(lab);
    // The capture should see each datagram, not the GSO datagrams of the relay.
    let off = ["-K", "wan0", "tx-udp-segmentation", "off"];
    let done = topology.rel.output("ethtool", &off);
    assert!(done.status.success(), "{done:?}");
    let core = Capture::new(&topology.core, "c0");
    let relay = topology.relay(lab);
    let gateway = topology.gateway(lab, "\"10.1.0.1\"");
    let four = join_source(&topology.rcv, "eth1", "10.0.0.10", GROUP);
    let six = join_source_v6(&topology.rcv, "eth1", "fd00::10", "ff3e::8000:1");
    eventually("joined upstream", 2, || joined(&relay, "in").len());
    topology.send(0, 20);
    gateway.expect_routed("p", "out", 40);
    drop((four, six));
    eventually("no group at the relay", 0, || joined_groups(&relay));
    let frames = core.frames();
    let file = lab.file("tunnel.pcap");
    pcap::write(&file, frames.iter().map(|frame| frame.bytes.as_slice()));
    let file = file.display().to_string();
    let fields = [
        "amt.type",
        "amt.request_nonce",
        "amt.response_mac",
        "amt.membership_query.g",
        "amt.gateway.ip_address",
        "igmp.type",
        "icmpv6.type",
        "udp.checksum.status",
        "_ws.malformed",
    ];
    let mut arguments = vec!["-r", &file, "-o", "udp.check_checksum:TRUE", "-Y", "amt"];
    // Takes the payload of the streams for its own.
    arguments.extend(["--disable-protocol", "tapa"]);
    arguments.extend(["-T", "fields", "-E", "separator=;", "-E", "occurrence=f"]);
    arguments.extend(fields.iter().flat_map(|field| ["-e", field]));
    let output = topology.core.output("tshark", &arguments);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    let mut types: BTreeMap<&str, usize> = BTreeMap::new();
    // By nonce, the MAC of the query.
    let mut macs: BTreeMap<&str, &str> = BTreeMap::new();
    for line in text.lines() {
        let columns: Vec<&str> = line.split(';').collect();
        let [kind, nonce, mac, g, address, igmp, icmpv6, _, malformed] = columns[..] else {
            panic!("{line}");
        };
        assert_eq!(malformed, "", "{line}");
        *types.entry(kind).or_default() += 1;
        match kind {
            "4" => {
                assert!(igmp == "0x11" || icmpv6 == "130", "{line}");
                assert_eq!((g, address), ("1", "::10.2.0.1"), "{line}");
                macs.insert(nonce, mac);
            }
            "5" => {
                assert!(igmp == "0x22" || icmpv6 == "143", "{line}");
                assert_eq!(macs.get(nonce), Some(&mac), "{line}");
            }
            _ => {}
        }
    }
    let kinds: Vec<&str> = types.keys().copied().collect();
    assert_eq!(kinds, ["1", "2", "3", "4", "5", "6"], "{text}");
    assert_eq!(types["6"], 40, "{text}");
}
