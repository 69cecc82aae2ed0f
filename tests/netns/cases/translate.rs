//! Routes that rewrite addresses, for each pair of IP versions. The receivers' kernels must accept
//! the packets.

use super::external_programs::{scapy, tcpdump};
use super::gso::without_offload;
use super::{PACKET_PLANE, cases, route};
use crate::lab::{
    Capture, Injector, Lab, Router, Star, TIMEOUT, Udp, UdpRx, UdpTx, eventually, pcap,
};

cases!("translate":
    offloaded_checksums_are_completed_4to4,
    offloaded_checksums_are_completed_6to6,
    offloaded_checksums_are_completed_4to6,
    offloaded_checksums_are_completed_6to4,
    #[UdpGso] gso_packets_are_translated_4to4,
    #[UdpGso] gso_packets_are_translated_6to6,
    #[UdpGso] gso_packets_are_translated_4to6,
    #[UdpGso] gso_packets_are_translated_6to4,
    fragments_are_translated_4to4,
    fragments_are_translated_6to6,
    fragments_are_translated_4to6,
    fragments_are_translated_6to4,
    #[Program("ethtool", "ethtool")] every_payload_gets_a_valid_checksum_4to4,
    #[Program("ethtool", "ethtool")] every_payload_gets_a_valid_checksum_6to6,
    #[Program("ethtool", "ethtool")] every_payload_gets_a_valid_checksum_4to6,
    #[Program("ethtool", "ethtool")] every_payload_gets_a_valid_checksum_6to4,
    packet_above_mtu_is_fragmented_4to4,
    packet_above_mtu_is_fragmented_4to6,
    df_packet_above_mtu_is_dropped,
    rewrite_is_shown_and_counted,
    conflicting_add_command_is_refused,
    rewrite_is_added_and_removed_by_command,
    #[UdpGso] #[Program("tcpdump", "tcpdump")] #[Program("ethtool", "ethtool")] #[Scapy] scapy_verifies_checksums_4to4,
    #[UdpGso] #[Program("tcpdump", "tcpdump")] #[Program("ethtool", "ethtool")] #[Scapy] scapy_verifies_checksums_6to6,
    #[UdpGso] #[Program("tcpdump", "tcpdump")] #[Program("ethtool", "ethtool")] #[Scapy] scapy_verifies_checksums_4to6,
    #[UdpGso] #[Program("tcpdump", "tcpdump")] #[Program("ethtool", "ethtool")] #[Scapy] scapy_verifies_checksums_6to4,
);

/// Source and group before and after the rewrite.
struct Pair {
    family: &'static str,
    from: [&'static str; 2],
    to: [&'static str; 2],
}

const STREAM_V4: [&str; 2] = ["10.0.0.10", "225.1.2.3"];
const STREAM_V6: [&str; 2] = ["fd00::10", "ff3e::1:2"];
const TRANSLATED_V4: [&str; 2] = ["10.0.1.77", "239.1.1.1"];
const TRANSLATED_V6: [&str; 2] = ["fd00:1::77", "ff3e::9:9"];

const fn pair(family: &'static str, from: [&'static str; 2], to: [&'static str; 2]) -> Pair {
    Pair { family, from, to }
}

const PAIRS: [Pair; 4] = [
    pair("4to4", STREAM_V4, TRANSLATED_V4),
    pair("6to6", STREAM_V6, TRANSLATED_V6),
    pair("4to6", STREAM_V4, TRANSLATED_V6),
    pair("6to4", STREAM_V6, TRANSLATED_V4),
];

fn at(group: &str, port: u16) -> String {
    match group.contains(':') {
        true => format!("[{group}]:{port}"),
        false => format!("{group}:{port}"),
    }
}

impl Pair {
    fn route(&self, to: &[&str]) -> String {
        let [source, group] = self.to;
        let rewrite =
            format!("rewrite = {{ source = \"{source}\", group = \"{group}\", port = 5001 }}\n");
        route("r", "in", self.from[0], self.from[1], to, &rewrite)
    }

    fn sender(&self, star: &Star) -> UdpTx {
        UdpTx::new(&star.src, "eth0", &at(self.from[1], 5000))
    }

    fn receiver(&self, star: &Star, iface: &str) -> UdpRx {
        UdpRx::join(&star.rcv, iface, &at(self.to[1], 5001))
    }

    fn expect_translated(&self, router: &Router, packets: u64) {
        let labels = [("family", self.family)];
        router.expect_metric("mcastor_translations_total", &labels, packets);
    }
}

const PACKETS: usize = 400;

/// Sends payloads of odd and even size, with checksums left to hardware as on a veth. Where the
/// kernel forwards, the device of the egress completes them.
fn assert_receivers_accept(lab: &Lab, pair: &Pair) {
    let star = Star::dual(lab, 2);
    let settings = PACKET_PLANE.to_owned() + &pair.route(&["out1", "out2"]);
    let router = Router::start(lab, &star.rtr, &settings);
    let rx = ["eth1", "eth2"].map(|i| pair.receiver(&star, i));
    let unchanged = Capture::new(&star.rcv, "eth2");
    let (at_in, at_out) = (
        Capture::new(&star.rtr, "in"),
        Capture::new(&star.rcv, "eth1"),
    );
    let tx = pair.sender(&star);
    let body = |n: usize| vec![n as u8; n * 3];
    (0..PACKETS).for_each(|n| tx.send(body(n)));
    for rx in &rx {
        let got = rx.expect(PACKETS);
        let right = got.iter().enumerate().all(|(n, p)| *p == body(n));
        assert!(right, "{}: payloads in order and complete", pair.family);
        let source: std::net::IpAddr = pair.to[0].parse().expect("an address");
        assert!(rx.received().iter().all(|(from, _)| *from == source));
    }
    let unfinished = at_in.frames().iter().filter(|f| f.csum_not_ready).count();
    assert!(unfinished >= PACKETS, "{unfinished} unfinished checksums");
    for seen in at_out.expect(pair.to[1], PACKETS) {
        assert!(
            seen.header_ok && seen.udp_ok(),
            "{}: {seen:x?}",
            pair.family
        );
        assert_eq!(seen.ttl, 15, "{}", pair.family);
    }
    assert!(
        unchanged.to(pair.from[1]).is_empty(),
        "packets left unchanged"
    );
    pair.expect_translated(&router, PACKETS as u64);
    router.expect_routed("r", "out1", PACKETS as u64);
}

fn assert_gso_translated(lab: &Lab, pair: &Pair) {
    let star = Star::dual(lab, 1);
    let router = Router::start(lab, &star.rtr, &pair.route(&["out1"]));
    let rx = pair.receiver(&star, "eth1");
    let at_in = Capture::new(&star.rtr, "in");
    let tx = pair.sender(&star);
    tx.set(libc::SOL_UDP, libc::UDP_SEGMENT, 1000);
    let payload: Vec<u8> = (0..5300u32).map(|n| (n / 100) as u8).collect();
    tx.send(&payload);
    assert_eq!(rx.expect(6).concat(), payload, "{}", pair.family);
    let seen = at_in.to(pair.from[1]);
    let largest = seen.iter().map(|s| s.ip.len()).max();
    assert!(largest > Some(5000), "no GSO packet arrived: {largest:?}");
    pair.expect_translated(&router, 6);
    router.expect_routed("r", "out1", 6);
}

/// A full packet exceeds the MTU when it becomes IPv6; without DF it is fragmented.
fn assert_fragmented(lab: &Lab, pair: &Pair, mtu: u32) {
    let star = Star::dual(lab, 1);
    star.rtr.ip(&format!("link set out1 mtu {mtu}"));
    let router = Router::start(lab, &star.rtr, &pair.route(&["out1"]));
    let rx = pair.receiver(&star, "eth1");
    let tx = pair.sender(&star);
    tx.set(
        libc::IPPROTO_IP,
        libc::IP_MTU_DISCOVER,
        libc::IP_PMTUDISC_DONT,
    );
    let payload: Vec<u8> = (0..1472u32).map(|n| (n / 7) as u8).collect();
    (0..5).for_each(|_| tx.send(&payload));
    assert_eq!(rx.expect(5), vec![payload; 5]);
    router.expect_routed("r", "out1", 10);
    pair.expect_translated(&router, 5);
}

fn packet_above_mtu_is_fragmented_4to4(lab: &Lab) {
    assert_fragmented(lab, &PAIRS[0], 1400);
}

fn packet_above_mtu_is_fragmented_4to6(lab: &Lab) {
    assert_fragmented(lab, &PAIRS[2], 1500);
}

fn offloaded_checksums_are_completed_4to4(lab: &Lab) {
    assert_receivers_accept(lab, &PAIRS[0]);
}

fn offloaded_checksums_are_completed_6to6(lab: &Lab) {
    assert_receivers_accept(lab, &PAIRS[1]);
}

fn offloaded_checksums_are_completed_4to6(lab: &Lab) {
    assert_receivers_accept(lab, &PAIRS[2]);
}

fn offloaded_checksums_are_completed_6to4(lab: &Lab) {
    assert_receivers_accept(lab, &PAIRS[3]);
}

fn gso_packets_are_translated_4to4(lab: &Lab) {
    assert_gso_translated(lab, &PAIRS[0]);
}

fn gso_packets_are_translated_6to6(lab: &Lab) {
    assert_gso_translated(lab, &PAIRS[1]);
}

fn gso_packets_are_translated_4to6(lab: &Lab) {
    assert_gso_translated(lab, &PAIRS[2]);
}

fn gso_packets_are_translated_6to4(lab: &Lab) {
    assert_gso_translated(lab, &PAIRS[3]);
}

fn fragments_are_translated_4to4(lab: &Lab) {
    assert_fragments_translated(lab, &PAIRS[0]);
}

fn fragments_are_translated_6to6(lab: &Lab) {
    assert_fragments_translated(lab, &PAIRS[1]);
}

fn fragments_are_translated_4to6(lab: &Lab) {
    assert_fragments_translated(lab, &PAIRS[2]);
}

fn fragments_are_translated_6to4(lab: &Lab) {
    assert_fragments_translated(lab, &PAIRS[3]);
}

fn every_payload_gets_a_valid_checksum_4to4(lab: &Lab) {
    assert_checksums_valid(lab, &PAIRS[0]);
}

fn every_payload_gets_a_valid_checksum_6to6(lab: &Lab) {
    assert_checksums_valid(lab, &PAIRS[1]);
}

fn every_payload_gets_a_valid_checksum_4to6(lab: &Lab) {
    assert_checksums_valid(lab, &PAIRS[2]);
}

fn every_payload_gets_a_valid_checksum_6to4(lab: &Lab) {
    assert_checksums_valid(lab, &PAIRS[3]);
}

fn df_packet_above_mtu_is_dropped(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let pair = &PAIRS[2];
    let router = Router::start(lab, &star.rtr, &pair.route(&["out1"]));
    let rx = pair.receiver(&star, "eth1");
    let tx = pair.sender(&star);
    tx.set(
        libc::IPPROTO_IP,
        libc::IP_MTU_DISCOVER,
        libc::IP_PMTUDISC_DO,
    );
    tx.send(vec![1; 1472]);
    // The largest payload that fits after the header has grown by 20 bytes.
    tx.send(vec![2; 1452]);
    assert_eq!(rx.expect(1), [vec![2; 1452]]);
    router.expect_dropped("too_big", "out1", 1);
    router.expect_routed("r", "out1", 1);
}

/// The sender's kernel fragments the datagram, and the receiver's kernel reassembles it.
fn assert_fragments_translated(lab: &Lab, pair: &Pair) {
    let star = Star::dual(lab, 1);
    // A translated fragment grows by 28 bytes, including a Fragment header.
    star.rtr.ip("link set out1 mtu 1600");
    star.rcv.ip("link set eth1 mtu 1600");
    let router = Router::start(lab, &star.rtr, &pair.route(&["out1"]));
    let rx = pair.receiver(&star, "eth1");
    let payload: Vec<u8> = (0..5000u32).map(|n| (n / 3) as u8).collect();
    let tx = pair.sender(&star);
    tx.send(&payload);
    tx.send("small");
    assert_eq!(
        rx.expect(2),
        [payload, b"small".to_vec()],
        "{}",
        pair.family
    );
    router.expect_routed("r", "out1", 5);
    pair.expect_translated(&router, 5);
}

fn assert_checksums_valid(lab: &Lab, pair: &Pair) {
    let star = Star::dual(lab, 1);
    // The kernel forwards a checksum that is left to the network card as it is.
    without_offload(&star.src, "eth0");
    let router = Router::start(lab, &star.rtr, &pair.route(&["out1"]));
    let rx = pair.receiver(&star, "eth1");
    let capture = Capture::new(&star.rcv, "eth1");
    let tx = pair.sender(&star);
    // The payload takes values over its full range; for one of them the checksum is zero.
    let all = (0..=u16::MAX).step_by(16).chain([0xffff]);
    let sent: Vec<_> = all.map(|n| n.to_be_bytes().to_vec()).collect();
    for some in sent.chunks(256) {
        let before = rx.count();
        some.iter().for_each(|p| tx.send(p));
        rx.expect(before + some.len());
    }
    assert!(
        capture
            .to(pair.to[1])
            .iter()
            .all(|s| s.udp_checksum() != 0 && s.udp_ok())
    );
    pair.expect_translated(&router, sent.len() as u64);
}

fn rewrite_is_shown_and_counted(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let router = Router::start(lab, &star.rtr, &PAIRS[2].route(&["out1"]));
    let routes = router.control().show("routes");
    let rewrite = &routes[0]["rewrite"];
    assert_eq!(rewrite["source"], "fd00:1::77");
    assert_eq!(rewrite["group"], "ff3e::9:9");
    assert_eq!(rewrite["port"], 5001);
    let table = router.run("show routes");
    let shown = "(10.0.0.10, 225.1.2.3) -> (fd00:1::77, ff3e::9:9) port 5001";
    assert!(table.contains(shown), "{table}");
    for pair in &PAIRS {
        pair.expect_translated(&router, 0);
    }
}

fn conflicting_add_command_is_refused(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let router = Router::start(lab, &star.rtr, &PAIRS[0].route(&["out1"]));
    // The translated packets of the first route and the packets of the added one would be the same
    // stream.
    let add = router.try_run("add in 10.0.1.77 239.1.1.1 out1");
    assert_eq!(add.status.code(), Some(1));
    let printed = String::from_utf8_lossy(&add.stderr);
    assert!(
        printed.contains("would leave as (10.0.1.77, 239.1.1.1)"),
        "{printed}"
    );
    router.run("add in 10.0.1.77 239.1.1.2 out1");
}

fn rewrite_is_added_and_removed_by_command(lab: &Lab) {
    let star = Star::dual(lab, 2);
    let router = Router::start(lab, &star.rtr, "");
    let add = "add in 10.0.0.10 225.1.2.3 out1 --rewrite-source fd00:1::77 --rewrite-group ff3e::9:9 \
               --rewrite-port 5001";
    router.run(add);
    // Another egress may be added with or without the rewrite.
    router.run("add in 10.0.0.10 225.1.2.3 out2");
    let pair = &PAIRS[2];
    let rx = ["eth1", "eth2"].map(|i| pair.receiver(&star, i));
    let tx = pair.sender(&star);
    (0..10).for_each(|n| tx.send([n]));
    rx.iter().for_each(|rx| drop(rx.expect(10)));
    pair.expect_translated(&router, 10);
    let refused = |words: &str, why: &str| {
        let out = router.try_run(words);
        let printed = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_ne!(out.status.code(), Some(0), "{words}");
        assert!(printed.contains(why), "{words}: {printed}");
    };
    let add = "add in 10.0.0.10 225.1.2.3 out1 --rewrite-group 239.1.1.2";
    refused(add, "translates them differently; remove it first");
    refused(
        "add in 10.0.0.0/24 225.1.2.9 out1 --rewrite-source 10.9.1.2",
        "different streams would become one",
    );
    refused(
        "add in 225.1.2.9 out1 --rewrite-group ff3e::9:8",
        "different IP versions; translate both or neither",
    );
    refused(
        "add in 10.0.0.11 225.1.2.3 out1 --rewrite-source fd00:1::77 --rewrite-group ff3e::9:9",
        "would leave as (fd00:1::77, ff3e::9:9)",
    );
    refused(
        "add in 225.1.2.9 out1 --rewrite-group 225.1.2.9",
        "the translation changes nothing",
    );
    refused(
        "add in 225.1.2.9 out1 --rewrite-group 10.0.0.1",
        "not a multicast group",
    );
    refused("add in 225.1.2.9 out1 --rewrite-port 0", "--rewrite-port");
    let spec = |rewrite: serde_json::Value| {
        serde_json::json!({ "change": { "remove": {
            "from": "in", "source": "10.0.0.10", "group": "225.1.2.3", "rewrite": rewrite,
        } } })
    };
    refused(
        "remove in 10.0.0.10 225.1.2.3 --rewrite-group 239.1.1.2",
        "has another translation",
    );
    refused(
        "remove in 10.0.0.10 225.1.2.3 --rewrite-port 5002",
        "has another translation",
    );
    let same = serde_json::json!({ "source": "fd00:1::77", "group": "ff3e::9:9", "port": 5001 });
    let printed = router.control().expect_ok(&spec(same));
    assert_eq!(printed["done"], "removed in (10.0.0.10, 225.1.2.3)");
    assert!(router.control().show("routes").is_empty());
}

/// Covers checksums completed by the sender, checksums left to hardware, and segmented GSO packets.
fn assert_scapy_verifies(lab: &Lab, pair: &Pair) {
    let star = Star::dual(lab, 1);
    // Without offload, the kernel segments GSO packets before tcpdump sees them.
    without_offload(&star.rtr, "out1");
    let router = Router::start(lab, &star.rtr, &pair.route(&["out1"]));
    let rx = pair.receiver(&star, "eth1");
    let (mut dump, left) = tcpdump(lab, &star.rcv, "eth1");
    let tx = pair.sender(&star);
    tx.ttl(9);
    let inject = Injector::new(&star.src, "eth0");
    let body = |n: usize| vec![n as u8; n * 14];
    for n in 0..100 {
        tx.send(body(n));
        let (from, to) = (at(pair.from[0], 4000), at(pair.from[1], 5000));
        inject.send(&Udp::new(&from, &to, body(n)).ttl(9).frame());
    }
    tx.set(libc::SOL_UDP, libc::UDP_SEGMENT, 1000);
    tx.send(vec![7; 15_300]);
    let all = 2 * 100 + 16;
    rx.expect(all);
    router.expect_routed("r", "out1", all as u64);
    eventually("tcpdump wrote all packets", all, || pcap::read(&left).len());
    dump.stop(libc::SIGTERM, TIMEOUT);
    let [source, group] = pair.to;
    let (path, count) = (left.display().to_string(), all.to_string());
    let args = [path.as_str(), source, group, "5001", "8", &count];
    scapy(&star.src, "translated.py", &args);
}

fn scapy_verifies_checksums_4to4(lab: &Lab) {
    assert_scapy_verifies(lab, &PAIRS[0]);
}

fn scapy_verifies_checksums_6to6(lab: &Lab) {
    assert_scapy_verifies(lab, &PAIRS[1]);
}

fn scapy_verifies_checksums_4to6(lab: &Lab) {
    assert_scapy_verifies(lab, &PAIRS[2]);
}

fn scapy_verifies_checksums_6to4(lab: &Lab) {
    assert_scapy_verifies(lab, &PAIRS[3]);
}
