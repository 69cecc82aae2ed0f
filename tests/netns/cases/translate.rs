//! Routes that rewrite, for each pair of IP versions: receivers' kernels accept what leaves.

use super::gso::without_offload;
use super::programs::{scapy, tcpdump};
use super::{cases, route};
use crate::lab::{
    Capture, Injector, Lab, PATIENCE, Router, Star, Udp, UdpRx, UdpTx, eventually, pcap,
};

cases!("translate":
    every_receiver_accepts_4to4,
    every_receiver_accepts_6to6,
    every_receiver_accepts_4to6,
    every_receiver_accepts_6to4,
    segments_4to4,
    segments_6to6,
    segments_4to6,
    segments_6to4,
    fragments_4to4,
    fragments_6to6,
    fragments_4to6,
    fragments_6to4,
    every_checksum_is_right_4to4,
    every_checksum_is_right_6to6,
    every_checksum_is_right_4to6,
    every_checksum_is_right_6to4,
    small_mtu_4to4,
    small_mtu_4to6,
    too_big_with_df,
    shown_and_counted,
    refused_by_command,
    added_and_removed_by_command,
    #[Program("tcpdump", "tcpdump")] #[Program("ethtool", "ethtool")] #[Scapy] scapy_finds_every_checksum_right_4to4,
    #[Program("tcpdump", "tcpdump")] #[Program("ethtool", "ethtool")] #[Scapy] scapy_finds_every_checksum_right_6to6,
    #[Program("tcpdump", "tcpdump")] #[Program("ethtool", "ethtool")] #[Scapy] scapy_finds_every_checksum_right_4to6,
    #[Program("tcpdump", "tcpdump")] #[Program("ethtool", "ethtool")] #[Scapy] scapy_finds_every_checksum_right_6to4,
);

/// Source and group as they come and as they go.
struct Pair {
    family: &'static str,
    from: [&'static str; 2],
    to: [&'static str; 2],
}

const FOUR: [&str; 2] = ["10.0.0.10", "225.1.2.3"];
const SIX: [&str; 2] = ["fd00::10", "ff3e::1:2"];
const FOUR_TO: [&str; 2] = ["10.0.1.77", "239.1.1.1"];
const SIX_TO: [&str; 2] = ["fd00:1::77", "ff3e::9:9"];

const fn pair(family: &'static str, from: [&'static str; 2], to: [&'static str; 2]) -> Pair {
    Pair { family, from, to }
}

const PAIRS: [Pair; 4] = [
    pair("4to4", FOUR, FOUR_TO),
    pair("6to6", SIX, SIX_TO),
    pair("4to6", FOUR, SIX_TO),
    pair("6to4", SIX, FOUR_TO),
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

/// Every size, odd and even, with the checksums left to hardware, as a veth has them.
fn every_receiver_accepts(lab: &Lab, pair: &Pair) {
    let star = Star::dual(lab, 2);
    let router = Router::start(lab, &star.rtr, &pair.route(&["out1", "out2"]));
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
        assert!(right, "{}: in order and whole", pair.family);
        let source: std::net::IpAddr = pair.to[0].parse().expect("an address");
        assert!(rx.got().iter().all(|(from, _)| *from == source));
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
    assert!(unchanged.to(pair.from[1]).is_empty(), "nothing as it came");
    pair.expect_translated(&router, PACKETS as u64);
    router.expect_routed("r", "out1", PACKETS as u64);
}

fn segments(lab: &Lab, pair: &Pair) {
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
    assert!(largest > Some(5000), "came as one: {largest:?}");
    pair.expect_translated(&router, 6);
    router.expect_routed("r", "out1", 6);
}

/// A full packet outgrows the MTU when it becomes IPv6; without DF it leaves as fragments.
fn small_mtu(lab: &Lab, pair: &Pair, mtu: u32) {
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

fn small_mtu_4to4(lab: &Lab) {
    small_mtu(lab, &PAIRS[0], 1400);
}

fn small_mtu_4to6(lab: &Lab) {
    small_mtu(lab, &PAIRS[2], 1500);
}

fn every_receiver_accepts_4to4(lab: &Lab) {
    every_receiver_accepts(lab, &PAIRS[0]);
}

fn every_receiver_accepts_6to6(lab: &Lab) {
    every_receiver_accepts(lab, &PAIRS[1]);
}

fn every_receiver_accepts_4to6(lab: &Lab) {
    every_receiver_accepts(lab, &PAIRS[2]);
}

fn every_receiver_accepts_6to4(lab: &Lab) {
    every_receiver_accepts(lab, &PAIRS[3]);
}

fn segments_4to4(lab: &Lab) {
    segments(lab, &PAIRS[0]);
}

fn segments_6to6(lab: &Lab) {
    segments(lab, &PAIRS[1]);
}

fn segments_4to6(lab: &Lab) {
    segments(lab, &PAIRS[2]);
}

fn segments_6to4(lab: &Lab) {
    segments(lab, &PAIRS[3]);
}

fn fragments_4to4(lab: &Lab) {
    fragments(lab, &PAIRS[0]);
}

fn fragments_6to6(lab: &Lab) {
    fragments(lab, &PAIRS[1]);
}

fn fragments_4to6(lab: &Lab) {
    fragments(lab, &PAIRS[2]);
}

fn fragments_6to4(lab: &Lab) {
    fragments(lab, &PAIRS[3]);
}

fn every_checksum_is_right_4to4(lab: &Lab) {
    every_checksum_is_right(lab, &PAIRS[0]);
}

fn every_checksum_is_right_6to6(lab: &Lab) {
    every_checksum_is_right(lab, &PAIRS[1]);
}

fn every_checksum_is_right_4to6(lab: &Lab) {
    every_checksum_is_right(lab, &PAIRS[2]);
}

fn every_checksum_is_right_6to4(lab: &Lab) {
    every_checksum_is_right(lab, &PAIRS[3]);
}

fn too_big_with_df(lab: &Lab) {
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
    // The largest that fits with 20 bytes more.
    tx.send(vec![2; 1452]);
    assert_eq!(rx.expect(1), [vec![2; 1452]]);
    router.expect_dropped("too_big", "out1", 1);
    router.expect_routed("r", "out1", 1);
}

/// Cut by the sender's kernel, put together by the receiver's.
fn fragments(lab: &Lab, pair: &Pair) {
    let star = Star::dual(lab, 1);
    // 28 bytes more are a Fragment header too.
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

fn every_checksum_is_right(lab: &Lab, pair: &Pair) {
    let star = Star::dual(lab, 1);
    let router = Router::start(lab, &star.rtr, &pair.route(&["out1"]));
    let rx = pair.receiver(&star, "eth1");
    let capture = Capture::new(&star.rcv, "eth1");
    let tx = pair.sender(&star);
    // Two bytes of payload take every value: one of them makes the checksum zero.
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
            .all(|s| s.udp_sum() != 0 && s.udp_ok())
    );
    pair.expect_translated(&router, sent.len() as u64);
}

fn shown_and_counted(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let router = Router::start(lab, &star.rtr, &PAIRS[2].route(&["out1"]));
    let routes = router.control().show("routes");
    let rewrite = &routes[0]["rewrite"];
    assert_eq!(rewrite["source"], "fd00:1::77");
    assert_eq!(rewrite["group"], "ff3e::9:9");
    assert_eq!(rewrite["port"], 5001);
    let table = router.tell("show routes");
    let shown = "(10.0.0.10, 225.1.2.3) -> (fd00:1::77, ff3e::9:9) port 5001";
    assert!(table.contains(shown), "{table}");
    for pair in &PAIRS {
        pair.expect_translated(&router, 0);
    }
}

fn refused_by_command(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let router = Router::start(lab, &star.rtr, &PAIRS[0].route(&["out1"]));
    // The stream that the route's packets become.
    let add = router.try_tell("add in 10.0.1.77 239.1.1.1 out1");
    assert_eq!(add.status.code(), Some(1));
    let said = String::from_utf8_lossy(&add.stderr);
    assert!(
        said.contains("would leave as (10.0.1.77, 239.1.1.1)"),
        "{said}"
    );
    router.tell("add in 10.0.1.77 239.1.1.2 out1");
}

fn added_and_removed_by_command(lab: &Lab) {
    let star = Star::dual(lab, 2);
    let router = Router::start(lab, &star.rtr, "");
    let add = "add in 10.0.0.10 225.1.2.3 out1 --rewrite-source fd00:1::77 --rewrite-group ff3e::9:9 \
               --rewrite-port 5001";
    router.tell(add);
    // More egresses, told with what is rewritten or without.
    router.tell("add in 10.0.0.10 225.1.2.3 out2");
    let pair = &PAIRS[2];
    let rx = ["eth1", "eth2"].map(|i| pair.receiver(&star, i));
    let tx = pair.sender(&star);
    (0..10).for_each(|n| tx.send([n]));
    rx.iter().for_each(|rx| drop(rx.expect(10)));
    pair.expect_translated(&router, 10);
    let refused = |words: &str, why: &str| {
        let out = router.try_tell(words);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_ne!(out.status.code(), Some(0), "{words}");
        assert!(said.contains(why), "{words}: {said}");
    };
    let add = "add in 10.0.0.10 225.1.2.3 out1 --rewrite-group 239.1.1.2";
    refused(add, "rewrites them differently; remove it first");
    refused(
        "add in 10.0.0.0/24 225.1.2.9 out1 --rewrite-source 10.9.1.2",
        "different streams would become one",
    );
    refused(
        "add in 225.1.2.9 out1 --rewrite-group ff3e::9:8",
        "different IP versions; rewrite both or neither",
    );
    refused(
        "add in 10.0.0.11 225.1.2.3 out1 --rewrite-source fd00:1::77 --rewrite-group ff3e::9:9",
        "would leave as (fd00:1::77, ff3e::9:9)",
    );
    refused(
        "add in 225.1.2.9 out1 --rewrite-group 225.1.2.9",
        "the rewrite changes nothing",
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
        "rewrites something else",
    );
    refused(
        "remove in 10.0.0.10 225.1.2.3 --rewrite-port 5002",
        "rewrites something else",
    );
    let same = serde_json::json!({ "source": "fd00:1::77", "group": "ff3e::9:9", "port": 5001 });
    let said = router.control().must(&spec(same));
    assert_eq!(said["done"], "removed in (10.0.0.10, 225.1.2.3)");
    assert!(router.control().show("routes").is_empty());
}

/// Checksums finished by the sender and left to hardware, and segments cut by us.
fn scapy_finds_every_checksum_right(lab: &Lab, pair: &Pair) {
    let star = Star::dual(lab, 1);
    // The kernel cuts what goes whole before it is seen.
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
    eventually("tcpdump wrote all", all, || pcap::read(&left).len());
    dump.stop(libc::SIGTERM, PATIENCE);
    let [source, group] = pair.to;
    let (path, count) = (left.display().to_string(), all.to_string());
    let args = [path.as_str(), source, group, "5001", "8", &count];
    scapy(&star.src, "translated.py", &args);
}

fn scapy_finds_every_checksum_right_4to4(lab: &Lab) {
    scapy_finds_every_checksum_right(lab, &PAIRS[0]);
}

fn scapy_finds_every_checksum_right_6to6(lab: &Lab) {
    scapy_finds_every_checksum_right(lab, &PAIRS[1]);
}

fn scapy_finds_every_checksum_right_4to6(lab: &Lab) {
    scapy_finds_every_checksum_right(lab, &PAIRS[2]);
}

fn scapy_finds_every_checksum_right_6to4(lab: &Lab) {
    scapy_finds_every_checksum_right(lab, &PAIRS[3]);
}
