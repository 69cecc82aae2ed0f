//! Packet formats: protocols, fragments, VLAN tags, sizes, GSO.

use super::{cases, route};
use crate::lab::frame::{self, Ipv4};
use crate::lab::{Capture, Injector, IpPacket, Lab, Router, Star, Udp, UdpRx, UdpTx, eventually};

cases!("packets":
    only_ttl_changes_v4,
    only_hop_limit_changes_v6,
    every_ip_protocol_is_forwarded,
    fragments_are_forwarded_v4,
    fragments_are_forwarded_v6,
    vlan_tagged_packets_are_forwarded_untagged,
    ethernet_padding_is_not_forwarded,
    jumbo_frames_are_forwarded,
    packets_above_egress_mtu_are_fragmented_v4,
    fragmentation_completes_offloaded_checksums,
    fragments_above_egress_mtu_are_fragmented_again,
    fragmentation_copies_options_with_copied_flag,
    df_and_v6_above_mtu_are_dropped,
    gso_packet_is_forwarded_unsegmented_v4,
    gso_packet_is_forwarded_unsegmented_v6,
);

fn r4(to: &[&str]) -> String {
    route("r", "in", "", "225.1.2.3", to, "")
}

fn r6(to: &[&str]) -> String {
    route("r6", "in", "", "ff3e::1:2", to, "")
}

fn only_ttl_changes_v4(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &r4(&["out1"]));
    let capture = Capture::new(&star.rcv, "eth1");
    let inject = Injector::new(&star.src, "eth0");
    let base = || Udp::new("10.0.0.10:4000", "225.1.2.3:5000", vec![0xa5; 333]);
    let frames = [
        base().ttl(2).tos(0xb8).frame(),
        base().ttl(255).tos(0x03).df().id(0).frame(),
        base().ttl(64).options(&[0x94, 4, 0, 0]).frame(),
        base()
            .ttl(64)
            .options(&[0x44, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0])
            .frame(),
        Udp::new("10.0.0.10:1", "225.1.2.3:2", "").ttl(33).frame(),
    ];
    frames.iter().for_each(|f| inject.send(f));
    let seen = capture.expect("225.1.2.3", frames.len());
    let mac = star.rtr.mac("out1");
    for (seen, sent) in seen.iter().zip(&frames) {
        let sent = IpPacket::parse(sent).expect("a packet");
        assert_eq!(seen.ttl, sent.ttl - 1);
        assert!(seen.header_ok && seen.udp_ok(), "{seen:x?}");
        assert_eq!(
            seen.without_ttl_and_checksum(),
            sent.without_ttl_and_checksum()
        );
        assert_eq!(
            seen.eth,
            ([0x01, 0, 0x5e, 1, 2, 3], mac),
            "group and egress addresses"
        );
    }
    router.expect_routed("r", "out1", frames.len() as u64);
}

fn only_hop_limit_changes_v6(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let router = Router::start(lab, &star.rtr, &r6(&["out1"]));
    let capture = Capture::new(&star.rcv, "eth1");
    let inject = Injector::new(&star.src, "eth0");
    let base = || Udp::new("[fd00:0::10]:4000", "[ff3e::1:2]:5000", vec![0xa5; 333]);
    let mut labelled = base().ttl(9).frame();
    labelled[15..18].copy_from_slice(&[0x0f, 0xab, 0xcd]);
    let frames = [
        base().ttl(2).tos(0xb8).frame(),
        base().ttl(255).frame(),
        labelled,
    ];
    frames.iter().for_each(|f| inject.send(f));
    let seen = capture.expect("ff3e::1:2", frames.len());
    let mac = star.rtr.mac("out1");
    for (seen, sent) in seen.iter().zip(&frames) {
        let sent = IpPacket::parse(sent).expect("a packet");
        assert_eq!(seen.ttl, sent.ttl - 1);
        assert!(seen.udp_ok());
        assert_eq!(
            seen.without_ttl_and_checksum(),
            sent.without_ttl_and_checksum()
        );
        assert_eq!(seen.eth, ([0x33, 0x33, 0, 1, 0, 2], mac));
    }
    router.expect_routed("r6", "out1", frames.len() as u64);
}

fn every_ip_protocol_is_forwarded(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let router = Router::start(lab, &star.rtr, &(r4(&["out1"]) + &r6(&["out1"])));
    let capture = Capture::new(&star.rcv, "eth1");
    let inject = Injector::new(&star.src, "eth0");
    // ICMP, TCP, GRE, ESP, OSPF, SCTP, UDP-Lite and two reserved for experiments.
    let protocols = [1, 6, 47, 50, 89, 132, 136, 253, 254];
    let mut sent = Vec::new();
    for protocol in protocols {
        let h = Ipv4 {
            ttl: 9,
            protocol,
            src: [10, 0, 0, 10],
            dst: [225, 1, 2, 3],
            ..Ipv4::default()
        };
        sent.push(frame::ethernet(
            "225.1.2.3".parse().expect("v4"),
            &frame::ipv4(&h, &[7; 41]),
        ));
        let mut six = Udp::new("[fd00:0::10]:4", "[ff3e::1:2]:5", [7; 33])
            .ttl(9)
            .frame();
        six[14 + 6] = protocol;
        sent.push(six);
    }
    sent.iter().for_each(|f| inject.send(f));
    for (n, group) in ["225.1.2.3", "ff3e::1:2"].into_iter().enumerate() {
        let seen = capture.expect(group, protocols.len());
        for (seen, sent) in seen.iter().zip(sent.iter().skip(n).step_by(2)) {
            assert_eq!(
                seen.without_ttl_and_checksum(),
                IpPacket::parse(sent)
                    .expect("a packet")
                    .without_ttl_and_checksum()
            );
        }
    }
    router.expect_routed("r", "out1", protocols.len() as u64);
    router.expect_routed("r6", "out1", protocols.len() as u64);
}

fn fragments_are_forwarded_v4(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &r4(&["out1"]));
    let rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    let payload: Vec<u8> = (0..5000u32).map(|n| n as u8).collect();
    let tx = UdpTx::new(&star.src, "eth0", "225.1.2.3:5000");
    tx.send(&payload);
    tx.send("small");
    assert_eq!(rx.expect(2), [payload, b"small".to_vec()]);
    router.expect_routed("r", "out1", 5);
}

fn fragments_are_forwarded_v6(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let router = Router::start(lab, &star.rtr, &r6(&["out1"]));
    let rx = UdpRx::join(&star.rcv, "eth1", "[ff3e::1:2]:5000");
    let payload: Vec<u8> = (0..5000u32).map(|n| n as u8).collect();
    UdpTx::new(&star.src, "eth0", "[ff3e::1:2]:5000").send(&payload);
    assert_eq!(rx.expect(1), [payload]);
    router.expect_routed("r6", "out1", 4);
}

fn vlan_tagged_packets_are_forwarded_untagged(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let router = Router::start(lab, &star.rtr, &(r4(&["out1"]) + &r6(&["out1"])));
    let rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    let rx6 = UdpRx::join(&star.rcv, "eth1", "[ff3e::1:2]:5000");
    let capture = Capture::new(&star.rcv, "eth1");
    let inject = Injector::new(&star.src, "eth0");
    let plain = Udp::new("10.0.0.10:9", "225.1.2.3:5000", "plain").frame();
    let tagged = Udp::new("10.0.0.10:9", "225.1.2.3:5000", "vlan 7").frame();
    let priority = Udp::new("10.0.0.10:9", "225.1.2.3:5000", "vlan 0, priority 5").frame();
    inject.send(&plain);
    inject.send(&frame::tagged(&tagged, 7));
    inject.send(&frame::tagged(&priority, 5 << 13));
    let six = Udp::new("[fd00:0::10]:9", "[ff3e::1:2]:5000", "vlan 7 too").frame();
    inject.send(&frame::tagged(&six, 7));
    let twice = Udp::new("10.0.0.10:9", "225.1.2.3:5000", "8 in 7").frame();
    inject.send(&frame::tagged(&frame::tagged(&twice, 8), 7));
    let mut service = frame::tagged(&frame::tagged(&twice, 8), 7);
    service[12..14].copy_from_slice(&[0x88, 0xa8]);
    inject.send(&service);
    rx.expect_texts(&["plain", "vlan 7", "vlan 0, priority 5", "8 in 7", "8 in 7"]);
    rx6.expect_texts(&["vlan 7 too"]);
    assert!(
        capture.frames().iter().all(|f| f.vlan.is_none()),
        "the VLAN tag is not forwarded"
    );
    router.expect_routed("r", "out1", 5);
}

fn ethernet_padding_is_not_forwarded(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &r4(&["out1"]));
    let capture = Capture::new(&star.rcv, "eth1");
    let mut frame = Udp::new("10.0.0.10:9", "225.1.2.3:5000", "x").frame();
    frame.resize(60, 0xee);
    Injector::new(&star.src, "eth0").send(&frame);
    let seen = capture.expect("225.1.2.3", 1);
    assert_eq!((seen[0].padding, seen[0].payload()), (0, &b"x"[..]));
    router.expect_metric("mcastor_route_bytes_total", &[("oif", "out1")], 29);
}

fn jumbo_frames_are_forwarded(lab: &Lab) {
    let star = Star::dual(lab, 1);
    for (ns, iface) in [
        (&star.src, "eth0"),
        (&star.rtr, "in"),
        (&star.rtr, "out1"),
        (&star.rcv, "eth1"),
    ] {
        ns.ip(&format!("link set {iface} mtu 9000"));
    }
    let router = Router::start(lab, &star.rtr, &(r4(&["out1"]) + &r6(&["out1"])));
    let (rx, rx6) = (
        UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000"),
        UdpRx::join(&star.rcv, "eth1", "[ff3e::1:2]:5000"),
    );
    UdpTx::new(&star.src, "eth0", "225.1.2.3:5000").send(vec![4; 8972]);
    UdpTx::new(&star.src, "eth0", "[ff3e::1:2]:5000").send(vec![6; 8952]);
    assert_eq!(rx.expect(1), [vec![4; 8972]]);
    assert_eq!(rx6.expect(1), [vec![6; 8952]]);
    router.expect_routed("r", "out1", 1);
    router.expect_routed("r6", "out1", 1);
}

/// Starts a router whose `out1` has the given MTU, and `out2` 1500 bytes.
fn small_egress(lab: &Lab, mtu: usize) -> (Star, Router) {
    let star = Star::dual(lab, 2);
    star.rtr.ip(&format!("link set out1 mtu {mtu}"));
    let router = Router::start(
        lab,
        &star.rtr,
        &(r4(&["out1", "out2"]) + &r6(&["out2", "out1"])),
    );
    (star, router)
}

fn packets_above_egress_mtu_are_fragmented_v4(lab: &Lab) {
    let (star, router) = small_egress(lab, 1000);
    let rx: Vec<_> = ["eth1", "eth2"]
        .map(|i| UdpRx::join(&star.rcv, i, "225.1.2.3:5000"))
        .into();
    let captures = ["eth1", "eth2"].map(|i| Capture::new(&star.rcv, i));
    let payload: Vec<u8> = (0..1401u32).map(|n| n as u8).collect();
    let frame = Udp::new("10.0.0.10:9", "225.1.2.3:5000", &payload)
        .ttl(7)
        .tos(0xb8)
        .id(0xbeef)
        .frame();
    Injector::new(&star.src, "eth0").send(&frame);
    for rx in &rx {
        assert_eq!(rx.expect(1), std::slice::from_ref(&payload));
    }
    let sent = IpPacket::parse(&frame).expect("a packet");
    let parts = captures[0].expect("225.1.2.3", 2);
    let mut body: Vec<u8> = Vec::new();
    for (n, part) in parts.iter().enumerate() {
        assert!(part.ip.len() <= 1000 && part.header_ok, "{part:x?}");
        assert_eq!(
            (part.ttl, part.tos, part.id, part.protocol),
            (6, 0xb8, 0xbeef, 17)
        );
        assert_eq!((part.offset, part.more), (body.len(), n == 0));
        body.extend(part.body());
    }
    assert_eq!(body, sent.body());
    assert_eq!(
        captures[1].expect("225.1.2.3", 1)[0].without_ttl_and_checksum(),
        sent.without_ttl_and_checksum(),
        "the wide egress"
    );
    router.expect_routed("r", "out2", 1);
    router.expect_routed("r", "out1", 2);
    let bytes = parts.iter().map(|p| p.ip.len() as u64).sum();
    router.expect_metric("mcastor_route_bytes_total", &[("oif", "out1")], bytes);
}

fn fragmentation_completes_offloaded_checksums(lab: &Lab) {
    let (star, router) = small_egress(lab, 600);
    let rx: Vec<_> = ["eth1", "eth2"]
        .map(|i| UdpRx::join(&star.rcv, i, "225.1.2.3:5000"))
        .into();
    let at_in = Capture::new(&star.rtr, "in");
    let tx = UdpTx::new(&star.src, "eth0", "225.1.2.3:5000");
    tx.set(
        libc::IPPROTO_IP,
        libc::IP_MTU_DISCOVER,
        libc::IP_PMTUDISC_DONT,
    );
    let sent: Vec<_> = (0..20u8).map(|n| vec![n; 1300 + usize::from(n)]).collect();
    sent.iter().for_each(|p| tx.send(p));
    rx.iter().for_each(|rx| assert_eq!(rx.expect(20), sent));
    assert!(
        at_in.frames().iter().any(|f| f.csum_not_ready),
        "the sender left checksums to hardware"
    );
    router.expect_routed("r", "out2", 20);
    router.expect_routed("r", "out1", 60);
}

fn fragments_above_egress_mtu_are_fragmented_again(lab: &Lab) {
    let (star, router) = small_egress(lab, 700);
    let rx: Vec<_> = ["eth1", "eth2"]
        .map(|i| UdpRx::join(&star.rcv, i, "225.1.2.3:5000"))
        .into();
    let tx = UdpTx::new(&star.src, "eth0", "225.1.2.3:5000");
    tx.set(
        libc::IPPROTO_IP,
        libc::IP_MTU_DISCOVER,
        libc::IP_PMTUDISC_DONT,
    );
    let payload: Vec<u8> = (0..4000u32).map(|n| (n * 7) as u8).collect();
    tx.send(&payload);
    rx.iter()
        .for_each(|rx| assert_eq!(rx.expect(1), std::slice::from_ref(&payload)));
    router.expect_routed("r", "out2", 3);
}

fn fragmentation_copies_options_with_copied_flag(lab: &Lab) {
    let (star, _router) = small_egress(lab, 576);
    let capture = Capture::new(&star.rcv, "eth1");
    // Record route (not copied, RFC 791 section 3.1), router alert (copied), end of options.
    let options = [7, 7, 4, 0, 0, 0, 0, 0x94, 4, 0, 0, 0];
    let frame = Udp::new("10.0.0.10:9", "225.1.2.3:5000", [1; 1200])
        .options(&options)
        .frame();
    Injector::new(&star.src, "eth0").send(&frame);
    let sent = IpPacket::parse(&frame).expect("a packet");
    eventually("fragments carry every byte", sent.body().len(), || {
        capture.to("225.1.2.3").iter().map(|p| p.body().len()).sum()
    });
    let parts = capture.to("225.1.2.3");
    assert_eq!(&parts[0].ip[20..parts[0].header], options);
    for part in &parts {
        assert!(part.ip.len() <= 576 && part.header_ok, "{part:x?}");
    }
    for part in &parts[1..] {
        let options = &part.ip[20..part.header];
        assert!(
            options.windows(2).any(|w| w == [0x94, 4]),
            "router alert is copied: {options:x?}"
        );
        assert!(
            !options.starts_with(&[7, 7]),
            "record route is not copied: {options:x?}"
        );
    }
    let body: Vec<u8> = parts.iter().flat_map(|p| p.body().to_vec()).collect();
    assert_eq!(body, sent.body());
}

fn df_and_v6_above_mtu_are_dropped(lab: &Lab) {
    let (star, router) = small_egress(lab, 1280);
    let wide = UdpRx::join(&star.rcv, "eth2", "225.1.2.3:5000");
    let wide6 = UdpRx::join(&star.rcv, "eth2", "[ff3e::1:2]:5000");
    let narrow = Capture::new(&star.rcv, "eth1");
    let inject = Injector::new(&star.src, "eth0");
    // IP packets of 1280 and 1281 bytes.
    for size in [1252, 1253] {
        inject.send(
            &Udp::new("10.0.0.10:9", "225.1.2.3:5000", vec![4; size])
                .df()
                .frame(),
        );
        inject.send(&Udp::new("[fd00:0::10]:9", "[ff3e::1:2]:5000", vec![6; size - 20]).frame());
    }
    wide.expect(2);
    wide6.expect(2);
    router.expect_routed("r", "out1", 1);
    router.expect_routed("r6", "out1", 1);
    router.expect_metric("mcastor_dropped_packets_total", &[("reason", "too_big")], 2);
    assert_eq!(narrow.expect("225.1.2.3", 1)[0].ip.len(), 1280);
    assert_eq!(narrow.expect("ff3e::1:2", 1)[0].ip.len(), 1280);
}

/// Sends GSO packets and checks that both receivers get every datagram.
fn assert_gso_unsegmented(star: &Star, router: &Router, group: &str, route: &str) {
    let to = if group.contains(':') {
        format!("[{group}]:5000")
    } else {
        format!("{group}:5000")
    };
    let rx: Vec<_> = ["eth1", "eth2"]
        .map(|i| UdpRx::join(&star.rcv, i, &to))
        .into();
    let (at_in, at_out) = (
        Capture::new(&star.rtr, "in"),
        Capture::new(&star.rcv, "eth1"),
    );
    let tx = UdpTx::new(&star.src, "eth0", &to);
    tx.set(libc::SOL_UDP, libc::UDP_SEGMENT, 1000);
    let payload: Vec<u8> = (0..5300u32).map(|n| (n / 100) as u8).collect();
    tx.send(&payload);
    tx.send(vec![9; 1000]);
    tx.send(vec![8; 1001]);
    for rx in &rx {
        let got = rx.expect(6 + 1 + 2);
        assert_eq!(got[..6].concat(), payload);
        assert!(
            got[..5].iter().all(|d| d.len() == 1000),
            "segments have the sender's size"
        );
        assert_eq!((got[6].len(), got[7].len(), got[8].len()), (1000, 1000, 1));
    }
    let largest = at_in.to(group).iter().map(|s| s.ip.len()).max();
    assert!(
        largest > Some(5000),
        "no packet larger than the MTU arrived: {largest:?}"
    );
    // The veth accepts GSO packets unsegmented.
    let unsegmented = at_out.expect(group, 3);
    let body: Vec<u8> = unsegmented
        .iter()
        .flat_map(|s| s.payload().to_vec())
        .collect();
    assert_eq!(body, [payload, vec![9; 1000], vec![8; 1001]].concat());
    for seen in unsegmented {
        assert!(seen.header_ok && seen.ttl == 15, "{seen:x?}");
    }
    for oif in ["out1", "out2"] {
        router.expect_routed(route, oif, 9);
    }
}

fn gso_packet_is_forwarded_unsegmented_v4(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let router = Router::start(lab, &star.rtr, &r4(&["out1", "out2"]));
    assert_gso_unsegmented(&star, &router, "225.1.2.3", "r");
}

fn gso_packet_is_forwarded_unsegmented_v6(lab: &Lab) {
    let star = Star::dual(lab, 2);
    let router = Router::start(lab, &star.rtr, &r6(&["out1", "out2"]));
    assert_gso_unsegmented(&star, &router, "ff3e::1:2", "r6");
}
