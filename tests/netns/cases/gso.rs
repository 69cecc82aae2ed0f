//! Several datagrams in one GSO packet (`UDP_SEGMENT`). Whether mcastor or a kernel segments the
//! packet, receivers get the datagrams that were sent.

use super::{PACKET_PLANE, cases, route};
use crate::lab::harness::describes_udp_gso;
use crate::lab::tun::Tun;
use crate::lab::{Capture, IpPacket, Lab, Ns, Router, Star, UdpRx, UdpTx, eventually};

cases!("gso":
    #[UdpGso] #[Program("ethtool", "ethtool")] gso_packets_of_1_to_64_segments_v4,
    #[UdpGso] #[Program("ethtool", "ethtool")] gso_packets_of_1_to_64_segments_v6,
    #[UdpGso] segments_above_egress_mtu_are_fragmented,
    #[UdpGso] segments_with_df_above_mtu_are_dropped,
    #[UdpGso] bridge_egress_receives_gso_packets_unsegmented,
    #[UdpGso] #[LinkKind("vlan")] vlan_egress_receives_segments,
    #[UdpGso] tunnel_egress_receives_segments,
    #[UdpGso] qdisc_bypass_segments_gso_packets,
    #[UdpGso] #[Program("ethtool", "ethtool")] device_gso_limits_are_respected,
    #[UdpGso] #[Program("ethtool", "ethtool")] rewritten_gso_packets_have_valid_checksums_4to4,
    #[UdpGso] #[Program("ethtool", "ethtool")] rewritten_gso_packets_have_valid_checksums_6to6,
    #[UdpGso] ttl_threshold_drops_count_every_segment,
    #[UdpGso] loop_guard_segments_gso_packets,
    #[UdpGso] full_device_queue_counts_every_segment,
    #[UdpGso] plain_and_gso_packets_keep_their_order,
    gso_packets_are_forwarded_or_counted,
);

const GROUP_V4: (&str, &str) = ("225.1.2.3", "225.1.2.3:5000");
const GROUP_V6: (&str, &str) = ("ff3e::1:2", "[ff3e::1:2]:5000");

fn sender(star: &Star, to: &str, payload: i32) -> UdpTx {
    let tx = UdpTx::new(&star.src, "eth0", to);
    tx.set(libc::SOL_UDP, libc::UDP_SEGMENT, payload);
    tx
}

fn join(star: &Star, iface: &str, to: &str) -> UdpRx {
    UdpRx::join(&star.rcv, iface, to)
}

/// Returns a payload that differs for every `seed`.
fn body(seed: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|n| (seed * 31 + n * 7 + n / 256) as u8)
        .collect()
}

/// Returns the number of unsegmented GSO packets to `group`.
fn count_unsegmented(capture: &Capture, group: &str) -> usize {
    let seen = capture.to(group);
    seen.iter().filter(|s| s.ip.len() > 1500).count()
}

/// Turns off segmentation and checksum offload, so that the kernel does both in software.
pub(super) fn without_offload(ns: &Ns, iface: &str) {
    // Before Linux 6.12, segmentation of UDP stays on without checksums.
    let features = ["-K", iface, "tx", "off", "tx-udp-segmentation", "off"];
    let done = ns.output("ethtool", &features);
    assert!(done.status.success(), "{done:?}");
    let all = ns.output("ethtool", &["-k", iface]);
    let all = String::from_utf8_lossy(&all.stdout).into_owned();
    assert!(all.contains("tx-udp-segmentation: off"), "{all}");
}

/// Sends GSO packets of 1 to 64 datagrams whose last one is shorter, each followed by a plain
/// packet.
fn assert_gso_forwarded(lab: &Lab, (group, to): (&str, &str)) {
    const PAYLOAD: usize = 400;
    let star = Star::dual(lab, 2);
    without_offload(&star.rtr, "out2");
    let rules = route("r", "in", "", group, &["out1", "out2"], "");
    let router = Router::start(lab, &star.rtr, &rules);
    let rx = ["eth1", "eth2"].map(|i| join(&star, i, to));
    let captures = ["eth1", "eth2"].map(|i| Capture::new(&star.rcv, i));
    let tx = sender(&star, to, PAYLOAD as i32);
    let mut sent: Vec<Vec<u8>> = Vec::new();
    for n in 1..=64 {
        let last = 1 + n * 6 % PAYLOAD;
        let packet = body(n, (n - 1) * PAYLOAD + last);
        tx.send(&packet);
        sent.extend(packet.chunks(PAYLOAD).map(<[u8]>::to_vec));
        sent.push(format!("between {n}").into_bytes());
        tx.send(&sent[sent.len() - 1]);
    }
    for rx in &rx {
        let got = rx.expect(sent.len());
        assert!(got == sent, "datagrams differ or are out of order");
    }
    assert!(
        count_unsegmented(&captures[0], group) > 50,
        "few packets were forwarded unsegmented"
    );
    assert_eq!(
        count_unsegmented(&captures[1], group),
        0,
        "packets to an egress without offload arrived unsegmented"
    );
    let segments = captures[1].expect(group, sent.len());
    for (segment, sent) in segments.iter().zip(&sent) {
        assert!(segment.header_ok && segment.udp_ok(), "{segment:x?}");
        assert_eq!((segment.ttl, segment.payload()), (15, &sent[..]));
    }
    let headers = if group.contains(':') { 48 } else { 28 };
    let bytes: usize = sent.iter().map(|s| s.len() + headers).sum();
    for oif in ["out1", "out2"] {
        router.expect_routed("r", oif, sent.len() as u64);
        router.expect_metric("mcastor_route_bytes_total", &[("oif", oif)], bytes as u64);
    }
    let received = [("iface", "in")];
    router.expect_metric(
        "mcastor_interface_received_bytes_total",
        &received,
        bytes as u64,
    );
}

fn gso_packets_of_1_to_64_segments_v4(lab: &Lab) {
    assert_gso_forwarded(lab, GROUP_V4);
}

fn gso_packets_of_1_to_64_segments_v6(lab: &Lab) {
    assert_gso_forwarded(lab, GROUP_V6);
}

fn segments_above_egress_mtu_are_fragmented(lab: &Lab) {
    let star = Star::v4(lab, 2);
    star.rtr.ip("link set out1 mtu 1000");
    let rules = route("r", "in", "", GROUP_V4.0, &["out1", "out2"], "");
    let router = Router::start(lab, &star.rtr, &rules);
    let rx = ["eth1", "eth2"].map(|i| join(&star, i, GROUP_V4.1));
    let capture = Capture::new(&star.rcv, "eth1");
    let tx = sender(&star, GROUP_V4.1, 1300);
    tx.set(
        libc::IPPROTO_IP,
        libc::IP_MTU_DISCOVER,
        libc::IP_PMTUDISC_DONT,
    );
    let packet = body(1, 5 * 1300 + 100);
    tx.send(&packet);
    let sent: Vec<_> = packet.chunks(1300).map(<[u8]>::to_vec).collect();
    for rx in &rx {
        assert!(rx.expect(6) == sent);
    }
    let packets = capture.expect(GROUP_V4.0, 11);
    assert!(packets.iter().all(|p| p.ip.len() <= 1000 && p.header_ok));
    router.expect_routed("r", "out1", 11);
    router.expect_routed("r", "out2", 6);
}

fn segments_with_df_above_mtu_are_dropped(lab: &Lab) {
    let star = Star::dual(lab, 2);
    star.rtr.ip("link set out1 mtu 1280");
    let rules = route("r", "in", "", GROUP_V4.0, &["out1", "out2"], "");
    let rules = rules + &route("r6", "in", "", GROUP_V6.0, &["out1", "out2"], "");
    let router = Router::start(lab, &star.rtr, &rules);
    for (_, to) in [GROUP_V4, GROUP_V6] {
        let (narrow, wide) = (join(&star, "eth1", to), join(&star, "eth2", to));
        // Four segments that are too large, and a last one that is not.
        let packet = body(2, 4 * 1300 + 100);
        let tx = sender(&star, to, 1300);
        if to == GROUP_V4.1 {
            tx.set(
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                libc::IP_PMTUDISC_DO,
            );
        }
        tx.send(&packet);
        assert_eq!(wide.expect(5).concat(), packet);
        assert_eq!(narrow.expect(1)[0], packet[4 * 1300..]);
    }
    router.expect_dropped("too_big", "out1", 8);
    router.expect_routed("r", "out1", 1);
    router.expect_routed("r6", "out1", 1);
}

fn bridge_egress_receives_gso_packets_unsegmented(lab: &Lab) {
    let star = Star::dual(lab, 3);
    star.rtr.ip_batch(
        "link add br0 type bridge mcast_snooping 0\n\
         link set out1 master br0\nlink set out2 master br0\nlink set out3 master br0\n\
         link set br0 up\n",
    );
    star.rtr.wait_until_up("br0");
    let rules = route("r", "in", "", GROUP_V4.0, &["br0"], "");
    let rules = rules + &route("r6", "in", "", GROUP_V6.0, &["br0"], "");
    let router = Router::start(lab, &star.rtr, &rules);
    let captures = ["eth1", "eth2", "eth3"].map(|i| Capture::new(&star.rcv, i));
    for (group, to) in [GROUP_V4, GROUP_V6] {
        let rx = ["eth1", "eth2", "eth3"].map(|i| join(&star, i, to));
        let tx = sender(&star, to, 700);
        let packet = body(3, 20 * 700 + 7);
        (0..5).for_each(|_| tx.send(&packet));
        for rx in &rx {
            assert_eq!(rx.expect(5 * 21).concat(), packet.repeat(5));
        }
        for capture in &captures {
            assert_eq!(count_unsegmented(capture, group), 5);
        }
    }
    router.expect_routed("r", "br0", 5 * 21);
    router.expect_routed("r6", "br0", 5 * 21);
}

/// The header before the IP packet of a VLAN interface is not known reliably, so mcastor segments.
fn vlan_egress_receives_segments(lab: &Lab) {
    let star = Star::v4(lab, 1);
    star.rtr
        .ip_batch("link add v7 link out1 type vlan id 7 reorder_hdr off\nlink set v7 up\n");
    // With the default, the kernel removes the tag, so that the capture sees plain packets.
    star.rcv
        .ip_batch("link add v7 link eth1 type vlan id 7\nlink set v7 up\n");
    star.rcv.ip("address add 10.7.0.10/24 dev v7");
    star.rcv.wait_until_up("v7");
    let rules = route("r", "in", "", GROUP_V4.0, &["v7"], "");
    let router = Router::start(lab, &star.rtr, &rules);
    let rx = join(&star, "v7", GROUP_V4.1);
    let capture = Capture::new(&star.rcv, "v7");
    let packet = body(4, 9000);
    sender(&star, GROUP_V4.1, 1000).send(&packet);
    assert_eq!(rx.expect(9).concat(), packet);
    for segment in capture.expect(GROUP_V4.0, 9) {
        assert!(segment.header_ok && segment.udp_ok(), "{segment:x?}");
    }
    router.expect_routed("r", "v7", 9);
}

/// A tun interface is a link without Ethernet.
fn tunnel_egress_receives_segments(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let tun = Tun::new(&star.rtr, "tun0");
    star.rtr.ip("link set tun0 up");
    let rules = route("r", "in", "", GROUP_V4.0, &["tun0", "out1"], "");
    let rules = rules + &route("r6", "in", "", GROUP_V6.0, &["tun0", "out1"], "");
    let router = Router::start(lab, &star.rtr, &rules);
    let mut out = 0;
    for (group, to) in [GROUP_V4, GROUP_V6] {
        let rx = join(&star, "eth1", to);
        let capture = Capture::new(&star.rcv, "eth1");
        let packet = body(5, 9000);
        sender(&star, to, 1000).send(&packet);
        assert_eq!(rx.expect(9).concat(), packet);
        assert_eq!(
            count_unsegmented(&capture, group),
            1,
            "the other egress gets the GSO packet"
        );
        out += 9;
        eventually("the segments are transmitted", out, || {
            tun.read().iter().filter(|p| is_to_test_group(p)).count()
        });
        let segments: Vec<_> = tun
            .read()
            .into_iter()
            .filter(|p| is_to_test_group(p))
            .collect();
        let mut carried = Vec::new();
        for ip in &segments[out - 9..] {
            let ethertype = if ip[0] >> 4 == 4 {
                [8, 0]
            } else {
                [0x86, 0xdd]
            };
            let frame = [&[0; 12][..], &ethertype, ip].concat();
            let seen = IpPacket::parse(&frame).expect("a packet");
            assert!(seen.header_ok && seen.udp_ok(), "{seen:x?}");
            carried.extend_from_slice(seen.payload());
        }
        assert_eq!(carried, packet);
    }
    router.expect_routed("r", "tun0", 9);
    router.expect_routed("r6", "tun0", 9);
}

/// Returns whether a packet goes to one of the groups; the kernel sends packets of its own on every
/// link.
fn is_to_test_group(ip: &[u8]) -> bool {
    match ip[0] >> 4 {
        4 => ip[16..20] == [225, 1, 2, 3],
        _ => ip[24] == 0xff && ip[25] == 0x3e,
    }
}

/// With the bypass, the kernel drops packets that the device cannot segment itself.
fn qdisc_bypass_segments_gso_packets(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let mut rules = String::from("[plane]\nqdisc_bypass = true\n");
    rules += &route("r", "in", "", GROUP_V4.0, &["out1"], "");
    rules += &route("r6", "in", "", GROUP_V6.0, &["out1"], "");
    let router = Router::start(lab, &star.rtr, &rules);
    let capture = Capture::new(&star.rcv, "eth1");
    for (group, to) in [GROUP_V4, GROUP_V6] {
        let rx = join(&star, "eth1", to);
        let packet = body(6, 7001);
        sender(&star, to, 1000).send(&packet);
        assert_eq!(rx.expect(8).concat(), packet);
        for segment in capture.expect(group, 8) {
            assert!(segment.header_ok && segment.udp_ok(), "{segment:x?}");
        }
    }
    router.expect_routed("r", "out1", 8);
    router.expect_routed("r6", "out1", 8);
}

/// Devices with GSO limits below the size of the packets that arrive.
fn device_gso_limits_are_respected(lab: &Lab) {
    let star = Star::dual(lab, 2);
    star.rtr.ip("link set out1 gso_max_size 3000");
    star.rtr.ip("link set out2 gso_max_segs 4");
    let rules = route("r", "in", "", GROUP_V4.0, &["out1", "out2"], "");
    let rules = rules + &route("r6", "in", "", GROUP_V6.0, &["out1", "out2"], "");
    let router = Router::start(lab, &star.rtr, &rules);
    for (_, to) in [GROUP_V4, GROUP_V6] {
        let rx = ["eth1", "eth2"].map(|i| join(&star, i, to));
        let packet = body(7, 40_123);
        let tx = sender(&star, to, 1000);
        (0..10).for_each(|_| tx.send(&packet));
        for rx in &rx {
            assert_eq!(rx.expect(410).concat(), packet.repeat(10));
        }
    }
    for oif in ["out1", "out2"] {
        router.expect_routed("r", oif, 410);
        router.expect_routed("r6", oif, 410);
    }
}

/// If the kernel segments a packet, it computes the checksums over the rewritten addresses and
/// port.
fn assert_rewritten(lab: &Lab, (group, to): (&str, &str), [source, other, at]: [&str; 3]) {
    let star = Star::dual(lab, 2);
    without_offload(&star.rtr, "out2");
    let from = if group == GROUP_V4.0 {
        "10.0.0.10"
    } else {
        "fd00::10"
    };
    let rewrite =
        format!("rewrite = {{ source = \"{source}\", group = \"{other}\", port = 5001 }}\n");
    let rules = route("r", "in", from, group, &["out1", "out2"], &rewrite);
    let router = Router::start(lab, &star.rtr, &rules);
    let rx = ["eth1", "eth2"].map(|i| join(&star, i, at));
    let captures = ["eth1", "eth2"].map(|i| Capture::new(&star.rcv, i));
    let packet = body(8, 20_001);
    let tx = sender(&star, to, 900);
    (0..5).for_each(|_| tx.send(&packet));
    for rx in &rx {
        assert_eq!(rx.expect(5 * 23).concat(), packet.repeat(5));
        assert!(
            rx.received()
                .iter()
                .all(|(from, _)| from.to_string() == source)
        );
    }
    assert_eq!(count_unsegmented(&captures[0], other), 5);
    for segment in captures[1].expect(other, 5 * 23) {
        assert!(segment.header_ok && segment.udp_ok(), "{segment:x?}");
    }
    router.expect_metric("mcastor_translations_total", &[], 5 * 23);
    router.expect_routed("r", "out1", 5 * 23);
    router.expect_routed("r", "out2", 5 * 23);
}

fn rewritten_gso_packets_have_valid_checksums_4to4(lab: &Lab) {
    assert_rewritten(lab, GROUP_V4, ["10.0.1.77", "239.1.1.1", "239.1.1.1:5001"]);
}

fn rewritten_gso_packets_have_valid_checksums_6to6(lab: &Lab) {
    assert_rewritten(
        lab,
        GROUP_V6,
        ["fd00:1::77", "ff3e::9:9", "[ff3e::9:9]:5001"],
    );
}

fn ttl_threshold_drops_count_every_segment(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let rules = String::from("[[interface]]\nname = \"out1\"\nttl_threshold = 3\n")
        + &route("r", "in", "", GROUP_V4.0, &["out1", "out2"], "");
    let router = Router::start(lab, &star.rtr, &rules);
    let rx = ["eth1", "eth2"].map(|i| join(&star, i, GROUP_V4.1));
    let tx = sender(&star, GROUP_V4.1, 1000);
    let (packet, passes) = (body(9, 9500), body(10, 2500));
    for (ttl, packet) in [(3, &packet), (1, &packet), (4, &passes)] {
        tx.ttl(ttl);
        tx.send(packet);
    }
    assert_eq!(rx[1].expect(13).concat(), [&packet[..], &passes].concat());
    assert_eq!(rx[0].expect(3).concat(), passes);
    router.expect_dropped("ttl_threshold", "out1", 10);
    router.expect_dropped("ttl_expired", "in", 10);
    router.expect_routed("r", "out1", 3);
    router.expect_routed("r", "out2", 13);
}

/// The loop guard inspects every datagram; a route without it forwards the GSO packet.
fn loop_guard_segments_gso_packets(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let set = "ttl = { set = 3 }\n";
    let rules = route("r", "in", "", "225.1.2.3", &["out1"], set);
    let unguarded = format!("{set}loop_guard = false\n");
    let rules = rules + &route("s", "in", "", "225.1.2.4", &["out2"], &unguarded);
    let router = Router::start(lab, &star.rtr, &rules);
    let captures = ["eth1", "eth2"].map(|i| Capture::new(&star.rcv, i));
    let txs = [GROUP_V4.1, "225.1.2.4:5000"].map(|to| sender(&star, to, 1000));
    for n in 0..10 {
        txs.iter().for_each(|tx| tx.send(body(n, 4000)));
    }
    let segments = captures[0].expect("225.1.2.3", 40);
    assert!(segments.iter().all(|s| s.udp_ok()), "{segments:x?}");
    let unsegmented = captures[1].expect("225.1.2.4", 10);
    for seen in segments.iter().chain(&unsegmented) {
        assert!(seen.header_ok && seen.ttl == 3, "{seen:x?}");
    }
    router.expect_routed("r", "out1", 40);
    router.expect_routed("s", "out2", 40);
}

/// Counters stay exact if the device queue drops a GSO packet.
fn full_device_queue_counts_every_segment(lab: &Lab) {
    const PACKETS: f64 = 40.0;
    let star = Star::v4(lab, 1);
    // A queue for a few packets, at a rate that drains hardly any of them.
    let queue = "qdisc add dev out1 root tbf rate 1mbit burst 20kb limit 40kb";
    let queue: Vec<_> = queue.split(' ').collect();
    let done = star.rtr.output("tc", &queue);
    assert!(done.status.success(), "{done:?}");
    let rules = route("r", "in", "", GROUP_V4.0, &["out1"], "");
    let router = Router::start(lab, &star.rtr, &rules);
    let tx = sender(&star, GROUP_V4.1, 1000);
    (0..PACKETS as u32).for_each(|_| tx.send(body(5, 10_000)));
    let account = || {
        let value = |name: &str, labels: &[(&str, &str)]| router.metric(name, labels);
        let sent = value("mcastor_route_packets_total", &[("oif", "out1")]);
        let busy = [("reason", "egress_busy"), ("iface", "out1")];
        (sent, value("mcastor_dropped_packets_total", &busy))
    };
    eventually("every segment is sent or dropped", PACKETS * 10.0, || {
        let (sent, dropped) = account();
        sent + dropped
    });
    let (sent, dropped) = account();
    assert!(sent >= 10.0 && dropped >= 10.0, "{sent} {dropped}");
    assert_eq!(
        (sent % 10.0, dropped % 10.0),
        (0.0, 0.0),
        "{sent} {dropped}"
    );
}

/// Runs of plain packets, which are sent in batches, before and after GSO packets.
fn plain_and_gso_packets_keep_their_order(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let rules = route("r", "in", "", GROUP_V4.0, &["out1"], "");
    let router = Router::start(lab, &star.rtr, &rules);
    let rx = join(&star, "eth1", GROUP_V4.1);
    let tx = sender(&star, GROUP_V4.1, 100);
    let mut sent = Vec::new();
    for n in 0..40usize {
        for i in 0..n {
            sent.push(format!("{n}, plain {i}").into_bytes());
            tx.send(&sent[sent.len() - 1]);
        }
        let packet = body(n, 100 * (n % 7 + 2));
        tx.send(&packet);
        sent.extend(packet.chunks(100).map(<[u8]>::to_vec));
    }
    assert!(
        rx.expect(sent.len()) == sent,
        "datagrams differ or are out of order"
    );
    router.expect_routed("r", "out1", sent.len() as u64);
}

/// Before Linux 6.2, the kernel does not describe GSO packets of UDP to packet sockets. They are
/// dropped and counted.
fn gso_packets_are_forwarded_or_counted(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let rules = route("r", "in", "", GROUP_V4.0, &["out1"], "");
    // The kernel forwards them on all versions.
    let router = Router::start(lab, &star.rtr, &(PACKET_PLANE.to_owned() + &rules));
    let (plain, gso) = (
        UdpTx::new(&star.src, "eth0", GROUP_V4.1),
        sender(&star, GROUP_V4.1, 100),
    );
    for _ in 0..10 {
        plain.send(b"plain");
        gso.send(body(1, 500));
    }
    let counts = || {
        let routed = router.metric("mcastor_route_packets_total", &[("oif", "out1")]);
        let labels = [("iface", "in"), ("reason", "gso_unknown")];
        let dropped = router.metric("mcastor_dropped_packets_total", &labels);
        (routed as u64, dropped as u64)
    };
    // Each is of five datagrams.
    eventually("all datagrams are counted", 60, || {
        let (routed, dropped) = counts();
        routed + 5 * dropped
    });
    let (_, dropped) = counts();
    // A kernel in which a veth takes no such packets sends single datagrams: 5.10.
    assert!(
        dropped == 0 || (dropped == 10 && !describes_udp_gso()),
        "{dropped}"
    );
}
