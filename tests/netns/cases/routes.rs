//! Route lookup: which packet is forwarded to which egress.

use super::{cases, route, star_v4, star_v6};
use crate::lab::{Capture, Injector, Lab, Router, Star, Udp, UdpRx, UdpTx};

cases!("routes":
    exact_source_and_group_match_v4,
    exact_source_and_group_match_v6,
    first_packet_of_unknown_source_is_forwarded_v4,
    first_packet_of_unknown_source_is_forwarded_v6,
    prefix_boundaries_are_respected_v4,
    prefix_boundaries_are_respected_v6,
    longest_group_then_source_prefix_wins_v4,
    longest_group_then_source_prefix_wins_v6,
    excepted_source_matches_the_next_rule,
    fan_out_to_64_egresses,
    interface_patterns_exclude_the_ingress,
    two_routes_share_one_ingress,
    packets_without_an_egress_are_counted,
);

fn exact_source_and_group_match_v4(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(
        lab,
        &star.rtr,
        &route("r", "in", "10.0.0.10", "225.1.2.3", &["out1"], ""),
    );
    let rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    let inject = Injector::new(&star.src, "eth0");
    inject.send(&Udp::new("10.0.0.11:9", "225.1.2.3:5000", "another source").frame());
    inject.send(&Udp::new("10.0.0.10:9", "225.1.2.4:5000", "another group").frame());
    UdpTx::new(&star.src, "eth0", "225.1.2.3:5000").send("mine");
    rx.expect_texts(&["mine"]);
    assert_eq!(
        rx.received()[0].0.to_string(),
        "10.0.0.10",
        "the source address is kept"
    );
    router.expect_routed("r", "out1", 1);
    router.expect_dropped("no_route", "in", 2);
}

fn exact_source_and_group_match_v6(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let router = Router::start(
        lab,
        &star.rtr,
        &route("r", "in", "fd00:0::10", "ff3e::1:2", &["out1"], ""),
    );
    let rx = UdpRx::join(&star.rcv, "eth1", "[ff3e::1:2]:5000");
    let inject = Injector::new(&star.src, "eth0");
    inject.send(&Udp::new("[fd00:0::11]:9", "[ff3e::1:2]:5000", "another source").frame());
    inject.send(&Udp::new("[fd00:0::10]:9", "[ff3e::1:3]:5000", "another group").frame());
    UdpTx::new(&star.src, "eth0", "[ff3e::1:2]:5000").send("mine");
    rx.expect_texts(&["mine"]);
    assert_eq!(
        rx.received()[0].0.to_string(),
        "fd00::10",
        "the source address is kept"
    );
    router.expect_routed("r", "out1", 1);
}

fn first_packet_of_unknown_source_is_forwarded_v4(lab: &Lab) {
    let (star, router) = star_v4(lab, 1);
    let rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    Injector::new(&star.src, "eth0")
        .send(&Udp::new("192.0.2.77:9", "225.1.2.3:5000", "the only one").frame());
    rx.expect_texts(&["the only one"]);
    router.expect_routed("r", "out1", 1);
}

fn first_packet_of_unknown_source_is_forwarded_v6(lab: &Lab) {
    let (star, router) = star_v6(lab, 1);
    let rx = UdpRx::join(&star.rcv, "eth1", "[ff3e::1:2]:5000");
    let frame = Udp::new("[2001:db8::7]:9", "[ff3e::1:2]:5000", "the only one").frame();
    Injector::new(&star.src, "eth0").send(&frame);
    rx.expect_texts(&["the only one"]);
    router.expect_routed("r", "out1", 1);
}

/// Sends one packet per (source, group, egress) and checks that it leaves through that egress and
/// no other. An empty egress means that the packet is dropped.
fn assert_egresses(
    lab: &Lab,
    star: &Star,
    egresses: usize,
    toml: &str,
    flows: &[(&str, &str, &str)],
) {
    let router = Router::start(lab, &star.rtr, toml);
    let captures: Vec<_> = (1..=egresses)
        .map(|n| Capture::new(&star.rcv, &format!("eth{n}")))
        .collect();
    let inject = Injector::new(&star.src, "eth0");
    let host = |a: &str| {
        if a.contains(':') {
            format!("[{a}]:5000")
        } else {
            format!("{a}:5000")
        }
    };
    for (n, (source, group, _)) in flows.iter().enumerate() {
        inject.send(&Udp::new(&host(source), &host(group), format!("flow {n}")).frame());
    }
    let forwarded: u64 = flows.iter().filter(|f| !f.2.is_empty()).count() as u64;
    router.expect_metric("mcastor_route_packets_total", &[], forwarded);
    for (n, (source, group, egress)) in flows.iter().enumerate() {
        let count = |e: usize| {
            let text = format!("flow {n}");
            let seen = captures[e].to(group).into_iter();
            seen.filter(|s| s.payload() == text.as_bytes()).count()
        };
        for e in 0..egresses {
            let expected = *egress == format!("out{}", e + 1);
            let ok =
                crate::lab::wait_until(crate::lab::TIMEOUT, || count(e) >= usize::from(expected));
            assert!(
                ok && count(e) == usize::from(expected),
                "({source}, {group}) at out{}: {}",
                e + 1,
                count(e)
            );
        }
    }
}

fn prefix_boundaries_are_respected_v4(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let toml = route("r", "in", "192.168.1.0/24", "225.1.2.0/24", &["out1"], "");
    assert_egresses(
        lab,
        &star,
        1,
        &toml,
        &[
            ("192.168.1.0", "225.1.2.0", "out1"),
            ("192.168.1.255", "225.1.2.255", "out1"),
            ("192.168.2.0", "225.1.2.1", ""),
            ("192.168.0.255", "225.1.2.1", ""),
            ("192.168.1.7", "225.1.3.0", ""),
            ("192.168.1.7", "225.1.1.255", ""),
        ],
    );
}

fn prefix_boundaries_are_respected_v6(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let toml = route("r", "in", "2001:db8:1::/48", "ff3e:0:1::/48", &["out1"], "");
    assert_egresses(
        lab,
        &star,
        1,
        &toml,
        &[
            ("2001:db8:1::7", "ff3e:0:1::1", "out1"),
            ("2001:db8:1:ffff::7", "ff3e:0:1:ffff::1", "out1"),
            ("2001:db8:2::7", "ff3e:0:1::1", ""),
            ("2001:db8:1::7", "ff3e:0:2::1", ""),
        ],
    );
}

fn longest_group_then_source_prefix_wins_v4(lab: &Lab) {
    let star = Star::v4(lab, 5);
    let toml = route(
        "host of a wide group",
        "in",
        "10.0.0.10",
        "225.0.0.0/8",
        &["out1"],
        "",
    ) + &route("narrow group", "in", "", "225.1.2.0/24", &["out2"], "")
        + &route("net", "in", "10.0.0.0/24", "225.1.2.3", &["out3"], "")
        + &route("host", "in", "10.0.0.10", "225.1.2.3", &["out4"], "")
        + &route("any", "in", "", "225.1.2.3", &["out5"], "");
    assert_egresses(
        lab,
        &star,
        5,
        &toml,
        &[
            ("10.0.0.10", "225.9.9.9", "out1"),
            ("10.0.0.10", "225.1.2.9", "out2"),
            ("10.0.0.11", "225.1.2.3", "out3"),
            ("10.0.0.10", "225.1.2.3", "out4"),
            ("172.16.0.1", "225.1.2.3", "out5"),
            ("10.0.0.11", "225.9.9.9", ""),
        ],
    );
}

fn longest_group_then_source_prefix_wins_v6(lab: &Lab) {
    let star = Star::dual(lab, 4);
    let toml = route(
        "host of a wide group",
        "in",
        "2001:db8::10",
        "ff3e::/16",
        &["out1"],
        "",
    ) + &route("narrow group", "in", "", "ff3e:0:1::/48", &["out2"], "")
        + &route("net", "in", "2001:db8::/64", "ff3e:0:1::1", &["out3"], "")
        + &route("host", "in", "2001:db8::10", "ff3e:0:1::1", &["out4"], "");
    assert_egresses(
        lab,
        &star,
        4,
        &toml,
        &[
            ("2001:db8::10", "ff3e:0:9::9", "out1"),
            ("2001:db8::10", "ff3e:0:1::9", "out2"),
            ("2001:db8::11", "ff3e:0:1::1", "out3"),
            ("2001:db8::10", "ff3e:0:1::1", "out4"),
            ("2001:db8:1::1", "ff3e:0:1::1", "out2"),
        ],
    );
}

fn excepted_source_matches_the_next_rule(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let except = "except_sources = [\"10.0.0.7\", \"10.0.1.0/24\"]\n";
    let toml = route("narrow", "in", "10.0.0.0/8", "225.1.2.3", &["out1"], except)
        + &route("wide", "in", "10.0.0.7", "225.1.2.0/24", &["out2"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    let (one, two) = (
        Capture::new(&star.rcv, "eth1"),
        Capture::new(&star.rcv, "eth2"),
    );
    let inject = Injector::new(&star.src, "eth0");
    for source in ["10.0.0.7:9", "10.0.1.99:9", "10.0.0.8:9"] {
        inject.send(&Udp::new(source, "225.1.2.3:5000", source).frame());
    }
    router.expect_routed("narrow", "out1", 1);
    router.expect_routed("wide", "out2", 1);
    router.expect_dropped("source_excepted", "in", 1);
    assert_eq!(one.expect("225.1.2.3", 1)[0].payload(), b"10.0.0.8:9");
    assert_eq!(two.expect("225.1.2.3", 1)[0].payload(), b"10.0.0.7:9");
}

fn fan_out_to_64_egresses(lab: &Lab) {
    const PACKETS: usize = 25;
    let star = Star::v4(lab, 64);
    let router = Router::start(
        lab,
        &star.rtr,
        &route("r", "in", "", "225.1.2.3", &["out*"], ""),
    );
    let rx: Vec<_> = (1..=64)
        .map(|n| UdpRx::join(&star.rcv, &format!("eth{n}"), "225.1.2.3:5000"))
        .collect();
    let tx = UdpTx::new(&star.src, "eth0", "225.1.2.3:5000");
    let sent: Vec<_> = (0..PACKETS)
        .map(|n| format!("packet {n}").into_bytes())
        .collect();
    sent.iter().for_each(|p| tx.send(p));
    for (n, rx) in rx.iter().enumerate() {
        assert_eq!(
            rx.expect(PACKETS),
            sent,
            "all packets in order at egress {}",
            n + 1
        );
    }
    for n in 1..=64 {
        router.expect_routed("r", &format!("out{n}"), PACKETS as u64);
    }
    router.expect_metric("mcastor_route_packets_total", &[], 64 * PACKETS as u64);
    router.expect_metric("mcastor_dropped_packets_total", &[], 0);
}

fn interface_patterns_exclude_the_ingress(lab: &Lab) {
    // Senders and receivers change sides: `out*` are the ingresses.
    let star = Star::v4(lab, 3);
    let router = Router::start(
        lab,
        &star.rtr,
        &route("r", "out*", "", "225.1.2.3", &["in", "out?"], ""),
    );
    let at_in = UdpRx::join(&star.src, "eth0", "225.1.2.3:5000");
    let at_out: Vec<_> = (1..=3)
        .map(|n| Capture::new(&star.rcv, &format!("eth{n}")))
        .collect();
    for n in 1..=3 {
        let frame = Udp::new(&format!("10.0.{n}.10:9"), "225.1.2.3:5000", format!("{n}")).frame();
        Injector::new(&star.rcv, &format!("eth{n}")).send(&frame);
        at_in.expect(n);
    }
    at_in.expect_texts(&["1", "2", "3"]);
    for (n, capture) in at_out.iter().enumerate() {
        // Every egress but the ingress of the packet.
        let texts: Vec<_> = capture
            .expect("225.1.2.3", 2)
            .iter()
            .map(|s| s.payload().to_vec())
            .collect();
        assert!(
            !texts.contains(&format!("{}", n + 1).into_bytes()),
            "out{}: {texts:?}",
            n + 1
        );
    }
    router.expect_metric("mcastor_route_packets_total", &[("iif", "out2")], 3);
    router.expect_metric("mcastor_route_packets_total", &[], 9);
}

fn two_routes_share_one_ingress(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let toml = route("a", "in", "", "225.1.2.3", &["out1"], "")
        + &route("b", "in", "", "225.1.2.4", &["out1", "out2"], "");
    assert_egresses(lab, &star, 1, &toml, &[("10.0.0.10", "225.1.2.3", "out1")]);
    let router = Router::start(lab, &star.rtr, &toml);
    let inject = Injector::new(&star.src, "eth0");
    let capture = Capture::new(&star.rcv, "eth2");
    for group in ["225.1.2.3:5000", "225.1.2.4:5000", "225.1.2.4:5000"] {
        inject.send(&Udp::new("10.0.0.10:9", group, group).frame());
    }
    router.expect_routed("a", "out1", 1);
    router.expect_routed("b", "out1", 2);
    router.expect_routed("b", "out2", 2);
    capture.expect("225.1.2.4", 2);
    assert!(capture.to("225.1.2.3").is_empty());
}

fn packets_without_an_egress_are_counted(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let toml = route("waits", "in", "", "225.1.2.3", &["later0", "later*"], "")
        + &route("works", "in", "", "225.1.2.4", &["out1", "later1"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    let inject = Injector::new(&star.src, "eth0");
    let rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.4:5000");
    inject.send(&Udp::new("10.0.0.10:9", "225.1.2.3:5000", "nowhere").frame());
    inject.send(&Udp::new("10.0.0.10:9", "225.1.2.4:5000", "somewhere").frame());
    rx.expect_texts(&["somewhere"]);
    router.expect_dropped("no_egress", "in", 1);
}
