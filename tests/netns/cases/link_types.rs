//! Links that are not plain Ethernet with a subnet: ports of bridges, the loopback interface, links
//! that send packets back, small MTUs, and link-local sources.

use std::time::Duration;

use super::{cases, route, star_v4};
use crate::lab::proxy::{
    TIMERS, checksummed, igmp_frame, joined, member, members, proxy, querier, report,
};
use crate::lab::smcroute::{BOTH, Daemon};
use crate::lab::tun::Tun;
use crate::lab::{
    Capture, Injector, IpPacket, Lab, LinkEnd, Ns, Router, Star, Udp, UdpRx, connect, eventually,
    switch, wait_until,
};

cases!("link_types":
    point_to_point_peer_is_on_the_link,
    #[LinkKind("bridge")] bridge_without_address_serves_its_members,
    #[LinkKind("bridge")] link_without_address_serves_members_behind_a_bridge,
    #[LinkKind("bridge")] local_programs_are_no_members_downstream,
    #[LinkKind("bridge")] pattern_excludes_ports_of_a_bridge,
    #[LinkKind("bridge")] port_is_excluded_when_it_is_added_later,
    #[LinkKind("vrf")] interface_in_a_vrf_is_matched_by_patterns,
    route_to_loopback_reaches_local_programs_once,
    pattern_in_downstream_excludes_loopback,
    #[Program("smcrouted", "smcroute")] packets_return_to_an_ingress_named_as_egress,
    link_local_sources_are_dropped_without_the_setting,
    df_packets_are_fragmented_only_on_request,
    same_subnet_on_both_sides_is_reported_once,
    source_of_the_egress_subnet_is_reported_once,
);

const GROUP: &str = "225.1.2.3";
const DST: &str = "225.1.2.3:5000";

/// Returns the UDP packets to [`GROUP`] that a capture received.
fn data(capture: &Capture) -> Vec<IpPacket> {
    let packets = capture.to(GROUP).into_iter();
    packets.filter(|packet| packet.protocol == 17).collect()
}

/// A router with an uplink `eth0` and a bridge `br-lan`, whose ports `eth1` and `eth2` lead to one
/// host each.
struct BridgedLan {
    router: Ns,
    hosts: [Ns; 2],
}

impl BridgedLan {
    fn new(lab: &Lab) -> Self {
        let (router, uplink) = (lab.ns("rtr"), lab.ns("up"));
        let hosts = [lab.ns("h1"), lab.ns("h2")];
        for ns in [&router, &uplink, &hosts[0], &hosts[1]] {
            ns.disable_ipv6();
        }
        connect(
            LinkEnd::new(&router, "eth0", &["192.0.2.1/24"]),
            LinkEnd::new(&uplink, "eth0", &["192.0.2.10/24"]),
        );
        for (n, host) in hosts.iter().enumerate() {
            connect(
                LinkEnd::new(&router, format!("eth{}", n + 1), &[]),
                LinkEnd::new(host, "eth0", &[&format!("10.0.1.{}/24", 10 + n)]),
            );
        }
        router.ip_batch(
            "link add br-lan type bridge\nlink set br-lan up\n\
             address add 10.0.1.1/24 dev br-lan\n",
        );
        Self { router, hosts }
    }

    fn add_ports(&self) {
        self.router
            .ip_batch("link set eth1 master br-lan\nlink set eth2 master br-lan\n");
        self.router.wait_until_up("br-lan");
    }
}

/// Sends packets from the first host and checks that the second host receives each of them once,
/// from the bridge.
fn assert_no_copies(lan: &BridgedLan, router: &Router) {
    let wire = Capture::new(&lan.hosts[1], "eth0");
    let tx = Injector::new(&lan.hosts[0], "eth0");
    for n in 0..20u32 {
        tx.send(&Udp::new("10.0.1.10:9", DST, n.to_be_bytes()).frame());
    }
    eventually("the bridge forwards each packet", 20, || {
        data(&wire).iter().filter(|packet| packet.ttl == 16).count()
    });
    // The last packet arrives after any copy of the others.
    tx.send(&Udp::new("10.0.1.10:9", DST, "the last").frame());
    eventually("the last packet", 21, || data(&wire).len());
    assert_eq!(router.metric("mcastor_route_packets_total", &[]), 0.0);
    assert_eq!(data(&wire).len(), 21);
}

fn pattern_excludes_ports_of_a_bridge(lab: &Lab) {
    let lan = BridgedLan::new(lab);
    lan.add_ports();
    let toml = route("r", "eth*", "", GROUP, &["br-lan"], "");
    let router = Router::start(lab, &lan.router, &toml);
    let interfaces = router.control().show("interfaces");
    let ingresses: Vec<&str> = interfaces
        .iter()
        .filter(|i| i["ingress"] == true)
        .filter_map(|i| i["name"].as_str())
        .collect();
    assert_eq!(ingresses, ["eth0"]);
    assert_no_copies(&lan, &router);
    // A pattern that matches only ports is pending, and the log says why.
    router.write_settings(&route("r", "et?1", "", GROUP, &["eth0"], ""));
    router.control().expect_ok(&serde_json::json!("reload"));
    eventually("the log names the port", true, || {
        let log = router.program.stderr();
        log.lines()
            .any(|l| l.contains("et?1 matches only") && l.contains("eth1"))
    });
    // A port is an ingress if the route names it.
    let toml = route("r", "eth1", "", GROUP, &["eth0"], "");
    router.write_settings(&toml);
    router.control().expect_ok(&serde_json::json!("reload"));
    let tx = Injector::new(&lan.hosts[0], "eth0");
    eventually("the port is captured", true, || {
        tx.send(&Udp::new("10.0.1.10:9", DST, "x").frame());
        router.metric("mcastor_route_packets_total", &[("oif", "eth0")]) > 0.0
    });
}

fn port_is_excluded_when_it_is_added_later(lab: &Lab) {
    let lan = BridgedLan::new(lab);
    let toml = route("r", "eth*", "", GROUP, &["br-lan"], "");
    let router = Router::start(lab, &lan.router, &toml);
    let ingresses = || {
        let interfaces = router.control().show("interfaces");
        let ingresses = interfaces.iter().filter(|i| i["ingress"] == true);
        ingresses.count()
    };
    assert_eq!(ingresses(), 3);
    lan.add_ports();
    eventually("only the uplink is an ingress", 1, ingresses);
    assert_no_copies(&lan, &router);
    lan.router.ip("link set eth1 nomaster");
    eventually("a released port is an ingress again", 2, ingresses);
}

fn interface_in_a_vrf_is_matched_by_patterns(lab: &Lab) {
    let star = Star::v4(lab, 1);
    star.rtr.ip_batch(
        "link add red type vrf table 10\nlink set red up\nlink set in master red\n\
         link set out1 master red\n",
    );
    let toml = route("r", "i*", "", GROUP, &["out*"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    let wire = Capture::new(&star.rcv, "eth1");
    let tx = Injector::new(&star.src, "eth0");
    for n in 0..10u32 {
        tx.send(&Udp::new("10.0.0.10:9", DST, n.to_be_bytes()).frame());
    }
    wire.expect(GROUP, 10);
    router.expect_routed("r", "out1", 10);
}

fn route_to_loopback_reaches_local_programs_once(lab: &Lab) {
    let star = Star::v4(lab, 1);
    // What is sent on lo would be forwarded to out1 if it were captured.
    let toml = route("down", "in", "", GROUP, &["lo"], "")
        + &route("back", "lo", "", GROUP, &["out1"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    let rx = UdpRx::join(&star.rtr, "lo", DST);
    let tx = Injector::new(&star.src, "eth0");
    for n in 0..50u32 {
        tx.send(&Udp::new("10.0.0.10:9", DST, n.to_be_bytes()).frame());
    }
    rx.expect(50);
    router.expect_routed("down", "lo", 50);
    assert_eq!(
        router.metric("mcastor_route_packets_total", &[("route", "back")]),
        0.0
    );
    // A packet of another program arrives on lo once, although lo shows it twice.
    let local = Injector::new(&star.rtr, "lo");
    local.send(&Udp::new("192.0.2.1:9", DST, "x").frame());
    router.expect_routed("back", "out1", 1);
    let received = [("iface", "lo")];
    router.expect_metric("mcastor_interface_received_packets_total", &received, 1);
}

fn pattern_in_downstream_excludes_loopback(lab: &Lab) {
    let star = Star::v4(lab, 1);
    star.rtr.ip("link set lo multicast on");
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["*"], ""));
    let _local = UdpRx::join(&star.rtr, "lo", DST);
    let _host = UdpRx::join(&star.rcv, "eth1", "225.1.2.4:5000");
    eventually("one member", 1, || members(&router).len());
    let interfaces = router.control().show("interfaces");
    let lo = interfaces.iter().find(|i| i["name"] == "lo");
    assert!(lo.is_some_and(|lo| lo["downstream_of"].is_null()), "{lo:?}");
    let refused = format!("[[proxy]]\nupstream = [\"in\"]\ndownstream = [\"lo\"]\n{TIMERS}");
    router.write_settings(&refused);
    let config = router.config.display().to_string();
    let check = router.cli(&["check", &config]);
    assert_eq!(check.status.code(), Some(2));
    let text = String::from_utf8_lossy(&check.stderr).into_owned();
    assert!(text.contains("loopback"), "{text}");
}

/// Runs with mcastor and with smcroute.
fn packets_return_to_an_ingress_named_as_egress(lab: &Lab) {
    for implementation in BOTH {
        let star = Star::tagged(lab, 1, &format!("{implementation:?}"));
        // With a local member on the ingress, the kernel would route what it sends there again.
        let conf = "mroute from in group 225.1.2.3 to in out1\n";
        let _daemon = Daemon::start(lab, &star.rtr, implementation, conf, &[]);
        let (back, across) = (
            Capture::new(&star.src, "eth0"),
            Capture::new(&star.rcv, "eth1"),
        );
        let tx = Injector::new(&star.src, "eth0");
        // The kernel queues the first packets of a flow.
        tx.send(&Udp::new("10.0.0.10:9", DST, "first").frame());
        eventually("the first packet", 1, || data(&across).len());
        for n in 0..20u32 {
            tx.send(&Udp::new("10.0.0.10:9", DST, n.to_be_bytes()).frame());
        }
        eventually("across", 21, || data(&across).len());
        eventually("back", 21, || data(&back).len());
        assert!(data(&back).iter().all(|packet| packet.ttl == 15));
    }
}

fn link_local_sources_are_dropped_without_the_setting(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let link_local = "link_local = true\njoin = false\n";
    let routes = |extra: &str| {
        let extra = format!("join = false\n{extra}");
        route("v4", "in", "", "225.1.2.3", &["out1"], &extra)
            + &route("v6", "in", "", "ff05::1:2", &["out1"], &extra)
            + &route("mdns", "in", "", "224.0.0.251", &["out1"], link_local)
            + &route("mdns6", "in", "", "ff02::fb", &["out1"], link_local)
    };
    let router = Router::start(lab, &star.rtr, &routes(""));
    let tx = Injector::new(&star.src, "eth0");
    let streams = [
        ("v4", "169.254.1.1:9", "225.1.2.3:5000"),
        ("v6", "[fe80::7]:9", "[ff05::1:2]:5000"),
        ("mdns", "169.254.1.1:9", "224.0.0.251:5000"),
        ("mdns6", "[fe80::7]:9", "[ff02::fb]:5000"),
    ];
    let send = || {
        for (_, source, group) in streams {
            (0..10).for_each(|_| tx.send(&Udp::new(source, group, "x").frame()));
        }
    };
    send();
    router.expect_dropped("link_local_source", "in", 20);
    let routed = |expected: [u64; 4]| {
        for ((name, ..), expected) in streams.iter().zip(expected) {
            router.expect_routed(name, "out1", expected);
        }
    };
    routed([0, 0, 10, 10]);
    router.write_settings(&routes("link_local_sources = true\n"));
    router.control().expect_ok(&serde_json::json!("reload"));
    send();
    routed([10, 10, 20, 20]);
    router.expect_dropped("link_local_source", "in", 20);
    // These addresses are invalid as a source on any link.
    for source in ["0.1.2.3:9", "240.0.0.1:9"] {
        tx.send(&Udp::new(source, DST, "x").frame());
    }
    router.expect_dropped("bad_source", "in", 2);
}

fn df_packets_are_fragmented_only_on_request(lab: &Lab) {
    let (star, router) = star_v4(lab, 1);
    star.rtr.ip("link set out1 mtu 1450");
    let mtu = || {
        let interfaces = router.control().show("interfaces");
        let out = interfaces.iter().find(|i| i["name"] == "out1")?;
        out["mtu"].as_u64()
    };
    eventually("the MTU", Some(1450), mtu);
    let tx = Injector::new(&star.src, "eth0");
    // The receiver's kernel puts the fragments together.
    let rx = UdpRx::join(&star.rcv, "eth1", DST);
    let send = || {
        for n in 0..20u8 {
            let payload = vec![n; 1472];
            tx.send(&Udp::new("10.0.0.10:9", DST, payload).df().id(0).frame());
        }
    };
    send();
    router.expect_dropped("too_big", "out1", 20);
    let log = router.program.stderr();
    let lines: Vec<&str> = log.lines().filter(|l| l.contains("too_big")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    for part in [
        "out1",
        "\"r\"",
        "1500 bytes",
        "1450",
        "fragment = \"always\"",
    ] {
        assert!(lines[0].contains(part), "{part}: {}", lines[0]);
    }
    let always = route("r", "in", "", GROUP, &["out1"], "fragment = \"always\"\n");
    router.write_settings(&always);
    router.control().expect_ok(&serde_json::json!("reload"));
    send();
    let received = rx.expect(20);
    for (n, payload) in received.iter().enumerate() {
        assert_eq!(*payload, vec![n as u8; 1472]);
    }
    router.expect_routed("r", "out1", 40);
    router.expect_dropped("too_big", "out1", 20);
}

/// Returns the number of refused messages of an interface, as `show interfaces` has it.
fn refused(router: &Router, interface: &str, reason: &str) -> u64 {
    let interfaces = router.control().show("interfaces");
    let row = interfaces.iter().find(|i| i["name"] == interface);
    row.and_then(|i| i["refused_messages"][reason].as_u64())
        .unwrap_or(0)
}

fn point_to_point_peer_is_on_the_link(lab: &Lab) {
    let star = Star::v4(lab, 0);
    let tun = Tun::new(&star.rtr, "ppp0");
    star.rtr
        .ip_batch("address add 10.64.0.1 peer 10.64.0.2/32 dev ppp0\nlink set ppp0 up\n");
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["ppp*"], ""));
    // An IGMPv2 report and an IGMPv3 report, without the Ethernet header of 14 bytes.
    let v2 = checksummed(&[0x16, 0, 0, 0, 225, 1, 2, 3]);
    let send = |source: [u8; 4], group: [u8; 4], body: &[u8]| {
        tun.write(&igmp_frame(source, group, body, 1, true)[14..]);
    };
    send([10, 64, 0, 2], [225, 1, 2, 3], &v2);
    eventually("the peer is a member", true, || {
        member(&router, "ppp0", GROUP).is_some()
    });
    send([10, 64, 0, 2], [224, 0, 0, 22], &report([225, 1, 2, 4]));
    eventually("two groups", 2, || members(&router).len());
    send([10, 64, 0, 3], [224, 0, 0, 22], &report([225, 1, 2, 5]));
    eventually("another source is off the link", 1, || {
        refused(&router, "ppp0", "off_link")
    });
    assert_eq!(
        querier(&router, "ppp0", "igmp"),
        (Some("10.64.0.1".into()), true)
    );
    let tx = Injector::new(&star.src, "eth0");
    for n in 0..20u32 {
        tx.send(&Udp::new("10.0.0.10:9", DST, n.to_be_bytes()).frame());
    }
    eventually("the stream", 20, || {
        let packets = tun.read().into_iter();
        packets
            .filter(|p| p.get(16..20) == Some(&[225, 1, 2, 3]) && p[9] == 17)
            .count()
    });
}

/// Checks that a host stays a member for longer than the membership interval of 4.3 s, and receives
/// the stream. The host drops packets from sources to which it has no route, so it would drop
/// queries from another address of the router.
fn assert_served_without_address(star: &Star, router: &Router, host: &Ns, downstream: &str) {
    for interface in ["all", "eth0"] {
        host.sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "1");
    }
    host.ip("route add 10.0.0.10/32 dev eth0");
    let rx = UdpRx::join(host, "eth0", DST);
    eventually("a member", true, || {
        member(router, downstream, GROUP).is_some()
    });
    assert_eq!(
        querier(router, downstream, "igmp"),
        (Some("0.0.0.0".into()), true)
    );
    eventually("joined upstream", 1, || joined(router, "in").len());
    let queries = || {
        let labels = [
            ("iface", downstream),
            ("direction", "transmitted"),
            ("type", "general_query"),
        ];
        router.metric("mcastor_igmp_messages_total", &labels)
    };
    let before = queries();
    eventually("four more queries", true, || queries() >= before + 4.0);
    let tx = Injector::new(&star.src, "eth0");
    for n in 0..50u32 {
        tx.send(&Udp::new("10.0.0.10:9", DST, n.to_be_bytes()).frame());
    }
    rx.expect(50);
    drop(rx);
    eventually("the member leaves", 0, || members(router).len());
}

fn bridge_without_address_serves_its_members(lab: &Lab) {
    let star = Star::v4(lab, 0);
    let host = lab.ns("host");
    host.disable_ipv6();
    star.rtr
        .ip_batch("link add br0 type bridge mcast_snooping 1\nlink set br0 up\n");
    connect(
        LinkEnd::new(&star.rtr, "p0", &[]),
        LinkEnd::new(&host, "eth0", &["172.20.0.2/24"]),
    );
    star.rtr.ip("link set p0 master br0");
    star.rtr.wait_until_up("br0");
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["br0"], ""));
    assert_served_without_address(&star, &router, &host, "br0");
    // With an address, the subnet decides again.
    star.rtr.ip("address add 172.20.0.1/24 dev br0");
    eventually("an address", (Some("172.20.0.1".into()), true), || {
        querier(&router, "br0", "igmp")
    });
    let all = [224, 0, 0, 22];
    let off_link = igmp_frame([192, 0, 2, 9], all, &report([225, 1, 2, 3]), 1, true);
    Injector::new(&host, "eth0").send(&off_link);
    eventually("off the link", 1, || refused(&router, "br0", "off_link"));
}

fn link_without_address_serves_members_behind_a_bridge(lab: &Lab) {
    let star = Star::v4(lab, 1);
    star.rtr.ip("address del 10.0.1.1/24 dev out1");
    let hosts = switch(lab, &star, "mcast_snooping 1", &["h1"]);
    hosts[0].ip("route del default via 10.0.1.1");
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    assert_served_without_address(&star, &router, &hosts[0], "out1");
}

fn local_programs_are_no_members_downstream(lab: &Lab) {
    let star = Star::v4(lab, 1);
    star.rtr
        .ip_batch("link add br0 type bridge\naddress add 10.0.2.1/24 dev br0\nlink set br0 up\n");
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1", "br0"], ""));
    let _programs = ["out1", "br0"].map(|interface| UdpRx::join(&star.rtr, interface, DST));
    for interface in ["out1", "br0"] {
        eventually("the report is refused", true, || {
            refused(&router, interface, "own_host") > 0
        });
    }
    let host = UdpRx::join(&star.rcv, "eth1", "225.1.2.4:5000");
    eventually("the host is a member", 1, || members(&router).len());
    assert_eq!(joined(&router, "in"), ["225.1.2.4 exclude []"]);
    let log = router.program.stderr();
    let line = log
        .lines()
        .find(|l| l.contains("own_host") && l.contains("out1:"));
    let line = line.unwrap_or_else(|| panic!("no line: {log}"));
    for part in ["WARN", "10.0.1.1", "upstream interface"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    // On the upstream interface the kernel delivers the stream to local programs.
    let local = UdpRx::join(&star.rtr, "in", "225.1.2.4:5000");
    let tx = Injector::new(&star.src, "eth0");
    for n in 0..20u32 {
        tx.send(&Udp::new("10.0.0.10:9", "225.1.2.4:5000", n.to_be_bytes()).frame());
    }
    local.expect(20);
    host.expect(20);
}

/// Returns the lines about a subnet in `show interfaces`, and those of the log.
fn subnet_conflicts(router: &Router, interface: &str) -> (Vec<String>, usize) {
    let interfaces = router.control().show("interfaces");
    let row = interfaces.iter().find(|i| i["name"] == interface);
    let lines = row.and_then(|row| row["subnet_conflicts"].as_array());
    let lines = lines.into_iter().flatten().filter_map(|l| l.as_str());
    let log = router.program.stderr();
    let warned = log.lines().filter(|l| l.contains("another subnet"));
    (lines.map(String::from).collect(), warned.count())
}

fn same_subnet_on_both_sides_is_reported_once(lab: &Lab) {
    let star = Star::v4(lab, 2);
    for interface in ["in", "out1"] {
        let line = format!("address add 172.17.0.1/16 dev {interface}");
        star.rtr.ip(&line);
    }
    let toml = route("r", "in", "", GROUP, &["out1", "out2"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    let line = "172.17.0.0/16 is also a subnet of in".to_string();
    eventually("reported", (vec![line.clone()], 1), || {
        subnet_conflicts(&router, "out1")
    });
    assert!(router.run("show interfaces").contains(&line));
    assert_eq!(subnet_conflicts(&router, "out2").0, [""; 0]);
    router.control().expect_ok(&serde_json::json!("reload"));
    star.rtr.ip("link set out2 down");
    assert_eq!(subnet_conflicts(&router, "out1"), (vec![line], 1));
    star.rtr.ip("address del 172.17.0.1/16 dev in");
    eventually("no conflict", 0, || {
        subnet_conflicts(&router, "out1").0.len()
    });
}

/// As for a stream from a container of another Docker host with the same subnet.
fn source_of_the_egress_subnet_is_reported_once(lab: &Lab) {
    let (star, router) = star_v4(lab, 1);
    let tx = Injector::new(&star.src, "eth0");
    let send_until_routed = |source: &str| {
        let routed = || router.metric("mcastor_route_packets_total", &[("route", "r")]);
        let before = routed();
        eventually("the stream is forwarded", true, || {
            tx.send(&Udp::new(source, DST, "x").frame());
            routed() > before
        });
    };
    send_until_routed("10.0.0.10:9");
    send_until_routed("10.0.1.77:9");
    let line = "10.0.1.77, an address of this subnet, sends from in";
    eventually("reported", (vec![line.to_string()], 1), || {
        subnet_conflicts(&router, "out1")
    });
    // The subnets are checked once a second. The next check reports nothing new.
    send_until_routed("10.0.1.78:9");
    let again = wait_until(Duration::from_millis(2500), || {
        subnet_conflicts(&router, "out1").1 != 1
    });
    assert!(!again, "{:?}", subnet_conflicts(&router, "out1"));
}
