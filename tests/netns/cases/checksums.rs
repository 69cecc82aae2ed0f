//! Checksums that the sender left to hardware that does not exist.

use std::net::IpAddr;

use super::{cases, route, star_v4, star_v6};
use crate::lab::ns::ip_batch;
use crate::lab::{Capture, Injector, IpPacket, Lab, Router, Star, Udp, UdpRx, UdpTx};

cases!("checksums":
    offloaded_checksums_are_completed_v4,
    offloaded_checksums_are_completed_v6,
    offloaded_checksums_from_a_bridge_are_completed,
    zero_udp_checksum_stays_zero,
    wrong_udp_checksum_is_not_corrected,
    #[Program("ethtool", "ethtool")] interface_offload_settings_are_unchanged,
);

const PACKETS: usize = 1199;

fn assert_accepted(star: &Star, router: &Router, to: &str, group: &str) {
    let rx: Vec<_> = ["eth1", "eth2"]
        .map(|i| UdpRx::join(&star.rcv, i, to))
        .into();
    let (at_in, at_out) = (
        Capture::new(&star.rtr, "in"),
        Capture::new(&star.rcv, "eth1"),
    );
    let tx = UdpTx::new(&star.src, "eth0", to);
    // Odd and even sizes: the last byte of an odd payload is padded for the checksum.
    (0..PACKETS).for_each(|n| tx.send(vec![n as u8; n]));
    for rx in &rx {
        let got = rx.expect(PACKETS);
        assert!(
            got.iter().enumerate().all(|(n, p)| *p == vec![n as u8; n]),
            "payloads in order and complete"
        );
    }
    let unfinished = at_in.frames().iter().filter(|f| f.csum_not_ready).count();
    assert!(
        unfinished >= PACKETS,
        "only {unfinished} packets arrived with their checksum left to hardware"
    );
    at_out.expect(group, PACKETS);
    // The kernel forwards a packet as it came: the device of the egress completes its checksum.
    let frames = at_out.frames();
    let complete = frames.iter().filter(|frame| !frame.csum_not_ready);
    let mut packets = complete.filter_map(|frame| IpPacket::parse(&frame.bytes));
    let group: IpAddr = group.parse().expect("a group");
    assert!(
        packets.all(|packet| packet.dst != group || packet.udp_ok()),
        "checksums are complete on the wire"
    );
    router.expect_metric(
        "mcastor_route_packets_total",
        &[("oif", "out1")],
        PACKETS as u64,
    );
    router.expect_metric(
        "mcastor_route_packets_total",
        &[("oif", "out2")],
        PACKETS as u64,
    );
}

fn offloaded_checksums_are_completed_v4(lab: &Lab) {
    let (star, router) = star_v4(lab, 2);
    assert_accepted(&star, &router, "225.1.2.3:5000", "225.1.2.3");
}

fn offloaded_checksums_are_completed_v6(lab: &Lab) {
    let (star, router) = star_v6(lab, 2);
    assert_accepted(&star, &router, "[ff3e::1:2]:5000", "ff3e::1:2");
}

/// The topology of Docker: the sender in a container, the router on the host, a bridge between.
fn offloaded_checksums_from_a_bridge_are_completed(lab: &Lab) {
    let star = Star::v4(lab, 1);
    star.rtr.ip_batch(
        "link add br-0123456789ab type bridge\nlink set br-0123456789ab up\nlink set in master br-0123456789ab\n",
    );
    let router = Router::start(
        lab,
        &star.rtr,
        &route("r", "br-*", "", "225.1.2.3", &["out1"], ""),
    );
    let rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    let tx = UdpTx::new(&star.src, "eth0", "225.1.2.3:5000");
    (0..PACKETS).for_each(|n| tx.send(vec![7; n]));
    rx.expect(PACKETS);
    let labels = [("iif", "br-0123456789ab"), ("oif", "out1")];
    router.expect_metric("mcastor_route_packets_total", &labels, PACKETS as u64);
}

fn zero_udp_checksum_stays_zero(lab: &Lab) {
    let (star, router) = star_v4(lab, 1);
    let (rx, capture) = (
        UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000"),
        Capture::new(&star.rcv, "eth1"),
    );
    let frame = Udp::new("10.0.0.10:9", "225.1.2.3:5000", "raw")
        .zero_checksum()
        .frame();
    Injector::new(&star.src, "eth0").send(&frame);
    rx.expect_texts(&["raw"]);
    let tx = UdpTx::new(&star.src, "eth0", "225.1.2.3:5000");
    tx.set(libc::SOL_SOCKET, libc::SO_NO_CHECK, 1);
    tx.send("kernel");
    rx.expect_texts(&["raw", "kernel"]);
    assert!(
        capture
            .expect("225.1.2.3", 2)
            .iter()
            .all(|s| s.udp_checksum() == 0)
    );
    router.expect_routed("r", "out1", 2);
}

/// A router does not correct a wrong checksum, so that the receiver can detect the error.
fn wrong_udp_checksum_is_not_corrected(lab: &Lab) {
    let (star, router) = star_v4(lab, 1);
    let capture = Capture::new(&star.rcv, "eth1");
    let mut frame = Udp::new("10.0.0.10:9", "225.1.2.3:5000", "broken on the way").frame();
    *frame.last_mut().expect("bytes") ^= 1;
    Injector::new(&star.src, "eth0").send(&frame);
    let seen = capture.expect("225.1.2.3", 1);
    assert_eq!(
        seen[0].without_ttl_and_checksum(),
        crate::lab::IpPacket::parse(&frame)
            .expect("a packet")
            .without_ttl_and_checksum()
    );
    assert!(!seen[0].udp_ok());
    router.expect_routed("r", "out1", 1);
}

fn interface_offload_settings_are_unchanged(lab: &Lab) {
    let star = Star::v4(lab, 1);
    ip_batch(&["-n", star.rtr.name()], "link set in up\n").unwrap_or_else(|e| panic!("{e}"));
    let features = || -> String {
        ["in", "out1"]
            .map(|i| {
                String::from_utf8_lossy(&star.rtr.output("ethtool", &["-k", i]).stdout).into_owned()
            })
            .concat()
    };
    let before = features();
    assert!(before.contains("tx-checksumming: on"), "{before}");
    let router = Router::start(
        lab,
        &star.rtr,
        &route("r", "in", "", "225.1.2.3", &["out1"], ""),
    );
    let rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    UdpTx::new(&star.src, "eth0", "225.1.2.3:5000").send("x");
    rx.expect_texts(&["x"]);
    assert_eq!(features(), before, "while the router runs");
    router.stop();
    assert_eq!(features(), before, "after the router stopped");
}
