//! The environment of the router on its host: local senders, firewall, bridges, tunnels and VLANs.

use super::{cases, route};
use crate::lab::tun::Tun;
use crate::lab::{Capture, Injector, Lab, Router, Star, Udp, UdpRx, UdpTx, eventually};

cases!("host_environment":
    host_packets_are_routed_v4,
    host_packets_are_routed_v6,
    bidirectional_routes_do_not_echo,
    bidirectional_routes_over_a_bridge,
    bidirectional_routes_between_bridge_ports,
    two_routers_in_one_namespace_forward_in_turn,
    veth_within_one_namespace_is_forwarded_twice,
    tunnel_without_ethernet_header_works,
    #[LinkKind("macvlan")] macvlan_receives_groups_of_a_prefix_route,
    #[LinkKind("vlan")] vlan_tagged_packet_is_forwarded_once,
    link_local_groups_are_dropped,
    link_local_option_forwards_link_local_groups,
    kernel_unicast_forwarding_causes_no_duplicates,
    #[Iptables] forward_policy_drop_does_not_block,
    strict_rp_filter_does_not_block,
);

fn bidirectional_routes() -> String {
    route("forward", "in", "", "225.1.2.3", &["out1"], "")
        + &route("back", "out1", "", "225.1.2.3", &["in"], "")
}

fn host_packets_are_routed_v4(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &bidirectional_routes());
    let rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    let neighbour = UdpRx::join(&star.src, "eth0", "225.1.2.3:5000");
    // A member on the host itself makes the kernel loop back a second copy.
    let member = UdpRx::join(&star.rtr, "in", "225.1.2.3:5000");
    let tx = UdpTx::new(&star.rtr, "in", "225.1.2.3:5000");
    (0..100).for_each(|n| tx.send(format!("{n}")));
    rx.expect(100);
    neighbour.expect(100);
    member.expect(100);
    assert_eq!(rx.received()[0].0.to_string(), "10.0.0.1");
    router.expect_routed("forward", "out1", 100);
    router.expect_routed("back", "in", 0);
}

fn host_packets_are_routed_v6(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let toml = route("forward", "in", "", "ff3e::1:2", &["out1"], "")
        + &route("back", "out1", "", "ff3e::1:2", &["in"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    let rx = UdpRx::join(&star.rcv, "eth1", "[ff3e::1:2]:5000");
    let tx = UdpTx::new(&star.rtr, "in", "[ff3e::1:2]:5000");
    (0..100).for_each(|n| tx.send(format!("{n}")));
    rx.expect(100);
    router.expect_routed("forward", "out1", 100);
    router.expect_routed("back", "in", 0);
}

/// Both ends send; each must receive the other's packets once and none of its own.
fn assert_no_echo(star: &Star, router: &Router, far: &str) {
    let at_src = Capture::new(&star.src, "eth0");
    let at_rcv = Capture::new(&star.rcv, "eth1");
    let (forward, back) = (
        UdpTx::new(&star.src, "eth0", "225.1.2.3:5000"),
        UdpTx::new(&star.rcv, "eth1", "225.1.2.3:5000"),
    );
    for n in 0..100 {
        forward.send(format!("forward {n}"));
        back.send(format!("back {n}"));
    }
    router.expect_routed("forward", far, 100);
    router.expect_metric("mcastor_route_packets_total", &[("route", "back")], 100);
    let at_src = at_src.expect("225.1.2.3", 100);
    assert!(
        at_src
            .iter()
            .all(|s| s.payload().starts_with(b"back") && s.ttl == 15)
    );
    let at_rcv = at_rcv.expect("225.1.2.3", 100);
    assert!(
        at_rcv
            .iter()
            .all(|s| s.payload().starts_with(b"forward") && s.ttl == 15)
    );
    router.expect_metric("mcastor_route_packets_total", &[], 200);
    router.expect_metric("mcastor_dropped_packets_total", &[], 0);
}

fn bidirectional_routes_do_not_echo(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &bidirectional_routes());
    assert_no_echo(&star, &router, "out1");
}

fn bidirectional_routes_over_a_bridge(lab: &Lab) {
    let star = Star::v4(lab, 1);
    star.rtr
        .ip_batch("link add br0 type bridge\nlink set br0 up\nlink set in master br0\n");
    let toml = route("forward", "br0", "", "225.1.2.3", &["out1"], "")
        + &route("back", "out1", "", "225.1.2.3", &["br0"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    assert_no_echo(&star, &router, "out1");
}

/// Routes between two ports of different bridges: packets sent to a bridge also leave through its
/// port, where they must not be captured as input.
fn bidirectional_routes_between_bridge_ports(lab: &Lab) {
    let star = Star::v4(lab, 1);
    star.rtr.ip_batch(
        "link add br0 type bridge\nlink set br0 up\nlink set in master br0\n\
         link add br1 type bridge\nlink set br1 up\nlink set out1 master br1\n",
    );
    let toml = route("forward", "in", "", "225.1.2.3", &["br1"], "")
        + &route("back", "out1", "", "225.1.2.3", &["br0"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    assert_no_echo(&star, &router, "br1");
}

/// Two instances in one namespace do not mistake each other's packets for their own: the second
/// forwards the packets that the first sent.
fn two_routers_in_one_namespace_forward_in_turn(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let first = Router::start(
        lab,
        &star.rtr,
        &route("a", "in", "", "225.1.2.3", &["out1"], ""),
    );
    let env = [("MCASTOR__HTTP__LISTEN", "127.0.0.1:9465")];
    let toml = route("b", "out1", "", "225.1.2.3", &["out2"], "");
    let second = Router::start_with(lab, &star.rtr, &toml, &env);
    let rx = UdpRx::join(&star.rcv, "eth2", "225.1.2.3:5000");
    let tx = UdpTx::new(&star.src, "eth0", "225.1.2.3:5000");
    (0..50).for_each(|n| tx.send(format!("{n}")));
    rx.expect(50);
    first.expect_routed("a", "out1", 50);
    second.expect_routed("b", "out2", 50);
}

/// The mark on sent packets survives a veth within one namespace, but packets received at the far
/// end are input all the same.
fn veth_within_one_namespace_is_forwarded_twice(lab: &Lab) {
    let star = Star::v4(lab, 1);
    star.rtr
        .ip_batch("link add v0 type veth peer name v1\nlink set v0 up\nlink set v1 up\n");
    let toml = route("first", "in", "", "225.1.2.3", &["v0"], "")
        + &route("second", "v1", "", "225.1.2.3", &["out1"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    let (rx, capture) = (
        UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000"),
        Capture::new(&star.rcv, "eth1"),
    );
    let tx = UdpTx::new(&star.src, "eth0", "225.1.2.3:5000");
    (0..50).for_each(|n| tx.send(format!("{n}")));
    rx.expect(50);
    assert!(capture.expect("225.1.2.3", 50).iter().all(|s| s.ttl == 14));
    router.expect_routed("first", "v0", 50);
    router.expect_routed("second", "out1", 50);
}

/// A tun interface has no Ethernet header, for input or output.
fn tunnel_without_ethernet_header_works(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let tun = Tun::new(&star.rtr, "tun0");
    star.rtr.ip("link set tun0 up");
    let mut toml = String::new();
    for (name, group) in [("v4", "225.1.2.3"), ("v6", "ff3e::1:2")] {
        toml += &route(&format!("{name} in"), "tun0", "", group, &["out1"], "");
        toml += &route(&format!("{name} out"), "in", "", group, &["tun0"], "");
    }
    let router = Router::start(lab, &star.rtr, &toml);
    let (rx, rx6) = (
        UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000"),
        UdpRx::join(&star.rcv, "eth1", "[ff3e::1:2]:5000"),
    );
    let four = Udp::new("10.0.0.10:9", "225.1.2.3:5000", "from the tunnel").frame();
    let six = Udp::new("[fd00:0::10]:9", "[ff3e::1:2]:5000", "from the tunnel").frame();
    tun.write(&four[14..]);
    tun.write(&six[14..]);
    rx.expect_texts(&["from the tunnel"]);
    rx6.expect_texts(&["from the tunnel"]);
    // Other sources, because each (S,G) is forwarded from one ingress.
    let four = Udp::new("10.0.0.11:9", "225.1.2.3:5000", "to the tunnel").frame();
    let six = Udp::new("[fd00:0::11]:9", "[ff3e::1:2]:5000", "to the tunnel").frame();
    let inject = Injector::new(&star.src, "eth0");
    inject.send(&four);
    inject.send(&six);
    for (frame, ttl_at) in [(four, 8), (six, 7)] {
        let mut expected = frame[14..].to_vec();
        expected[ttl_at] -= 1;
        if expected[0] >> 4 == 4 {
            crate::lab::frame::fix_ipv4_checksum(&mut expected);
        }
        assert!(
            crate::lab::wait_until(crate::lab::TIMEOUT, || tun.read().contains(&expected)),
            "{expected:x?}"
        );
    }
    for name in ["v4", "v6"] {
        router.expect_routed(&format!("{name} in"), "out1", 1);
        router.expect_routed(&format!("{name} out"), "tun0", 1);
    }
}

/// A tagged packet that a VLAN interface receives is not forwarded for the parent interface too.
fn vlan_tagged_packet_is_forwarded_once(lab: &Lab) {
    let star = Star::v4(lab, 1);
    star.rtr
        .ip_batch("link add in.7 link in type vlan id 7\nlink set in.7 up\n");
    // Else only one of the two would be the active ingress of the stream.
    let all = "ingress = \"all\"\n";
    let toml = route("parent", "in", "", "225.1.2.3", &["out1"], all)
        + &route("tagged", "in.7", "", "225.1.2.3", &["out1"], all);
    let router = Router::start(lab, &star.rtr, &toml);
    let capture = Capture::new(&star.rcv, "eth1");
    let inject = Injector::new(&star.src, "eth0");
    let frame = Udp::new("10.0.0.10:9", "225.1.2.3:5000", "x").frame();
    inject.send(&crate::lab::frame::tagged(&frame, 7));
    inject.send(&crate::lab::frame::tagged(&frame, 8));
    inject.send(&frame);
    capture.expect("225.1.2.3", 3);
    router.expect_routed("tagged", "out1", 1);
    router.expect_routed("parent", "out1", 2);
    // Not the metric: it also counts the reports that the kernel sends on the VLAN interface.
    let dropped = || {
        let rows = router.run("show drops --json --iif in --group 225.1.2.3");
        let rows: serde_json::Value = serde_json::from_str(&rows).expect("JSON");
        let rows = rows.as_array().expect("rows").iter();
        let of_stream = rows.map(|row| (row["reason"].clone(), row["packets"].clone()));
        of_stream.collect::<Vec<_>>()
    };
    let once = vec![("vlan_elsewhere".into(), 1.into())];
    eventually("the tagged packet is dropped on the parent", once, dropped);
}

/// A macvlan filters out group addresses that are not joined.
fn macvlan_receives_groups_of_a_prefix_route(lab: &Lab) {
    let star = Star::v4(lab, 1);
    star.rtr
        .ip_batch("link add mv0 link in type macvlan mode bridge\nlink set mv0 up\n");
    let before = Capture::new(&star.rtr, "mv0");
    let through = Capture::new(&star.rtr, "in");
    let inject = Injector::new(&star.src, "eth0");
    let frame = Udp::new("10.0.0.10:9", "225.1.2.99:5000", "before").frame();
    inject.send(&frame);
    through.expect("225.1.2.99", 1);
    assert!(
        before.to("225.1.2.99").is_empty(),
        "the interface filters the group"
    );
    let router = Router::start(
        lab,
        &star.rtr,
        &route("r", "mv0", "", "225.1.2.0/24", &["out1"], ""),
    );
    let capture = Capture::new(&star.rcv, "eth1");
    inject.send(&frame);
    capture.expect("225.1.2.99", 1);
    router.expect_routed("r", "out1", 1);
}

fn link_local_groups_are_dropped(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let toml = route("r", "in", "", "224.0.0.0/4", &["out1"], "")
        + &route("r6", "in", "", "ff00::/8", &["out1"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    let capture = Capture::new(&star.rcv, "eth1");
    let inject = Injector::new(&star.src, "eth0");
    for group in ["224.0.0.1", "224.0.0.251", "224.0.1.0"] {
        inject.send(&Udp::new("10.0.0.10:9", &format!("{group}:5000"), "x").frame());
    }
    for group in ["ff02::99", "ff12::99", "ff01::99", "ff05::99"] {
        inject.send(&Udp::new("[fd00:0::10]:9", &format!("[{group}]:5000"), "x").frame());
    }
    router.expect_routed("r", "out1", 1);
    router.expect_routed("r6", "out1", 1);
    capture.expect("224.0.1.0", 1);
    capture.expect("ff05::99", 1);
    for group in [
        "224.0.0.1",
        "224.0.0.251",
        "ff02::99",
        "ff12::99",
        "ff01::99",
    ] {
        assert!(capture.to(group).is_empty(), "{group} crossed");
    }
    let dropped = router.metric(
        "mcastor_dropped_packets_total",
        &[("reason", "link_local"), ("iface", "in")],
    );
    assert!(dropped >= 5.0, "link_local drops: {dropped}");
}

fn link_local_option_forwards_link_local_groups(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let toml = route(
        "mdns",
        "in",
        "",
        "224.0.0.251",
        &["out1"],
        "link_local = true\nttl = \"keep\"\n",
    ) + &route(
        "mdns6",
        "in",
        "",
        "ff02::fb",
        &["out1"],
        "link_local = true\nttl = \"keep\"\n",
    );
    let router = Router::start(lab, &star.rtr, &toml);
    let rx = UdpRx::join(&star.rcv, "eth1", "224.0.0.251:5353");
    let rx6 = UdpRx::join(&star.rcv, "eth1", "[ff02::fb]:5353");
    let inject = Injector::new(&star.src, "eth0");
    inject.send(
        &Udp::new("10.0.0.10:9", "224.0.0.251:5353", "mdns")
            .ttl(1)
            .frame(),
    );
    inject.send(
        &Udp::new("[fd00:0::10]:9", "[ff02::fb]:5353", "mdns6")
            .ttl(1)
            .frame(),
    );
    rx.expect_texts(&["mdns"]);
    rx6.expect_texts(&["mdns6"]);
    router.expect_routed("mdns", "out1", 1);
    router.expect_routed("mdns6", "out1", 1);
}

/// While the kernel forwards unicast, multicast packets are still forwarded once.
fn kernel_unicast_forwarding_causes_no_duplicates(lab: &Lab) {
    let star = Star::v4(lab, 1);
    star.rtr.sysctl("net/ipv4/ip_forward", "1");
    let router = Router::start(
        lab,
        &star.rtr,
        &route("r", "in", "", "225.1.2.3", &["out1"], ""),
    );
    let rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    let tx = UdpTx::new(&star.src, "eth0", "225.1.2.3:5000");
    (0..50).for_each(|n| tx.send(format!("{n}")));
    router.expect_routed("r", "out1", 50);
    rx.expect(50);
}

fn forward_policy_drop_does_not_block(lab: &Lab) {
    let star = Star::dual(lab, 1);
    for program in ["iptables", "ip6tables"] {
        for args in [["-P", "FORWARD", "DROP"], ["-P", "OUTPUT", "ACCEPT"]] {
            let out = star.rtr.output(program, &args);
            assert!(
                out.status.success(),
                "{program}: {}",
                String::from_utf8_lossy(&out.stderr)
            );
        }
    }
    let toml = route("r", "in", "", "225.1.2.3", &["out1"], "")
        + &route("r6", "in", "", "ff3e::1:2", &["out1"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    let rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    let rx6 = UdpRx::join(&star.rcv, "eth1", "[ff3e::1:2]:5000");
    UdpTx::new(&star.src, "eth0", "225.1.2.3:5000").send("x");
    UdpTx::new(&star.src, "eth0", "[ff3e::1:2]:5000").send("x");
    rx.expect_texts(&["x"]);
    rx6.expect_texts(&["x"]);
    router.expect_routed("r", "out1", 1);
    let out = star.rtr.output("iptables", &["-S"]);
    let rules = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        rules.contains("-P FORWARD DROP") && rules.lines().count() == 3,
        "the rules have changed: {rules}"
    );
}

fn strict_rp_filter_does_not_block(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let keys = ["all", "in", "out1"].map(|i| format!("net/ipv4/conf/{i}/rp_filter"));
    keys.iter().for_each(|k| star.rtr.sysctl(k, "1"));
    let router = Router::start(
        lab,
        &star.rtr,
        &route("r", "in", "", "225.1.2.3", &["out1"], ""),
    );
    let rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    // One source has no route back; the route to the other leads out of another interface.
    let inject = Injector::new(&star.src, "eth0");
    inject.send(&Udp::new("192.0.2.9:9", "225.1.2.3:5000", "nowhere").frame());
    inject.send(&Udp::new("10.0.1.99:9", "225.1.2.3:5000", "elsewhere").frame());
    rx.expect_texts(&["nowhere", "elsewhere"]);
    router.expect_routed("r", "out1", 2);
    let now = star
        .rtr
        .enter(|| keys.map(|k| std::fs::read_to_string(format!("/proc/sys/{k}")).expect("sysctl")));
    assert!(
        now.iter().all(|v| v.trim() == "1"),
        "the sysctls have changed: {now:?}"
    );
}
