//! Proxies behind Linux bridges that snoop, act as querier or rely on multicast router discovery.

use std::time::Duration;

use super::cases;
use crate::lab::proxy::{joined, member, members, proxy, querier};
use crate::lab::{
    Capture, Injector, Lab, Router, Star, Udp, UdpRx, bridge, eventually, switch, wait_until,
};

cases!("proxy_bridges":
    #[LinkKind("bridge")] bridge_with_lower_address_wins_and_is_replaced,
    #[LinkKind("bridge")] bridge_with_higher_address_loses_election,
    #[LinkKind("bridge")] bridge_without_address_is_not_elected,
    #[LinkKind("bridge")] members_are_learned_with_a_bridge_as_querier,
    #[LinkKind("bridge")] absent_querier_is_logged,
    #[LinkKind("bridge")] queries_mark_the_bridge_port_as_router_port,
    #[LinkKind("bridge")] mrdisc_marks_the_bridge_port_as_router_port,
);

const QUICK: &str = "mcast_snooping 1 mcast_query_interval 200 mcast_query_response_interval 30 \
     mcast_querier_interval 500 mcast_startup_query_interval 50 mcast_igmp_version 3 mcast_mld_version 2";

const GROUPS: [&str; 2] = ["225.1.2.3", "ff0e::8000:1"];
const TO: [&str; 2] = ["225.1.2.3:5000", "[ff0e::8000:1]:5000"];
const FROM: [&str; 2] = ["10.0.0.10:9", "[fd00::10]:9"];

/// The time between two queries of the bridge.
const QUERY_INTERVAL: Duration = Duration::from_secs(2);

/// The link-local address of `br0` in [`switch`], the lowest of all interfaces.
const BRIDGE_LL: &str = "fe80::ff:fe00:1";

/// Sends packets to both groups and checks that both receivers get them.
fn assert_served(star: &Star, rx: &[UdpRx]) {
    let inject = Injector::new(&star.src, "eth0");
    let before: Vec<usize> = rx.iter().map(UdpRx::count).collect();
    for n in 0..50u32 {
        for i in 0..2 {
            inject.send(&Udp::new(FROM[i], TO[i], n.to_be_bytes()).frame());
        }
    }
    for (rx, before) in rx.iter().zip(before) {
        rx.expect(before + 50);
    }
}

fn bridge_with_lower_address_wins_and_is_replaced(lab: &Lab) {
    let star = Star::dual(lab, 1);
    star.rtr.ip("address del 10.0.1.1/24 dev out1");
    star.rtr.ip("address add 10.0.1.100/24 dev out1");
    let options = format!("mcast_querier 1 mcast_query_use_ifaddr 1 {QUICK}");
    let hosts = switch(lab, &star, &options, &["h1"]);
    star.rcv.ip("address add 10.0.1.5/24 dev br0");
    // A bridge that receives another query before it sent one from its own address gives way.
    let wire = Capture::new(&star.rtr, "out1");
    let bridge_queries = || {
        [("224.0.0.1", "10.0.1.5"), ("ff02::1", BRIDGE_LL)].map(|(all, from)| {
            let queries = wire.to(all).into_iter();
            queries.filter(|s| s.src.to_string() == from).count()
        })
    };
    let elected = |router: &Router| {
        [("igmp", "10.0.1.5"), ("mld", BRIDGE_LL)]
            .into_iter()
            .all(|(protocol, address)| {
                let by_bridge = (Some(address.into()), false);
                wait_until(3 * QUERY_INTERVAL, || {
                    querier(router, "out1", protocol) == by_bridge
                })
            })
    };
    let mut before = [0; 2];
    let mut started = 0;
    let router = loop {
        eventually("the bridge sends queries first", true, || {
            let now = bridge_queries();
            now[0] > before[0] && now[1] > before[1]
        });
        let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
        started += 1;
        if elected(&router) {
            break router;
        }
        // If its timer expires just when the router's query arrives, a bridge accepts the router as
        // querier regardless of the addresses. It sends queries again after the router has stopped.
        assert!(started < 5, "the bridge is never elected");
        router.stop();
        before = bridge_queries();
    };
    let rx: Vec<UdpRx> = TO
        .iter()
        .map(|to| UdpRx::join(&hosts[0], "eth0", to))
        .collect();
    eventually("members of both", 2, || members(&router).len());
    assert_served(&star, &rx);
    // The bridge stops its queries; the router takes over without losing a member.
    star.rcv.ip("link set br0 type bridge mcast_querier 0");
    for protocol in ["igmp", "mld"] {
        eventually("the router is the querier", true, || {
            querier(&router, "out1", protocol).1
        });
    }
    assert_eq!(members(&router).len(), 2);
    assert_served(&star, &rx);
    drop(rx);
    eventually("both left", 0, || members(&router).len());
    let log = router.program.stderr();
    assert!(log.contains("10.0.1.5 is the"), "{log}");
}

fn bridge_with_higher_address_loses_election(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let options = format!("mcast_querier 1 mcast_query_use_ifaddr 1 {QUICK}");
    let _hosts = switch(lab, &star, &options, &["h1"]);
    star.rcv.ip("address add 10.0.1.5/24 dev br0");
    // The bridge sends queries before the router starts.
    let wire = Capture::new(&star.rtr, "out1");
    eventually("the bridge sends a query", true, || {
        !wire.to("224.0.0.1").is_empty()
    });
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    eventually("the bridge knows the router as querier", true, || {
        let shown = star.rcv.try_ip("-d link show dev br0").unwrap_or_default();
        shown.contains("mcast_querier_ipv4_addr 10.0.1.1")
            || bridge(&star.rcv, "-d mdb show dev br0").contains("router ports on br0: eth1")
    });
    assert_eq!(
        querier(&router, "out1", "igmp"),
        (Some("10.0.1.1".into()), true)
    );
    let queries = || {
        let queries = wire.to("224.0.0.1").into_iter();
        queries.filter(|s| s.src.to_string() == "10.0.1.5").count()
    };
    // The bridge is silent for longer than its interval of 2 s, while the router sends two queries.
    let router_queries = |router: &Router| {
        let labels = [
            ("iface", "out1"),
            ("direction", "transmitted"),
            ("type", "general_query"),
        ];
        router.metric("mcastor_igmp_messages_total", &labels)
    };
    let (before, bridge_queries) = (router_queries(&router), queries());
    eventually("the router sends two queries", true, || {
        router_queries(&router) >= before + 2.0
    });
    assert_eq!(queries(), bridge_queries, "the bridge sent queries, too");
    assert!(querier(&router, "out1", "igmp").1);
}

fn bridge_without_address_is_not_elected(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let hosts = switch(lab, &star, &format!("mcast_querier 1 {QUICK}"), &["h1"]);
    let wire = Capture::new(&star.rtr, "out1");
    eventually("the bridge sends a query from 0.0.0.0", true, || {
        let queries = wire.to("224.0.0.1");
        queries.iter().any(|s| s.src.to_string() == "0.0.0.0")
    });
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    let rx = UdpRx::join(&hosts[0], "eth0", TO[0]);
    eventually("a member", 1, || members(&router).len());
    assert_eq!(
        querier(&router, "out1", "igmp"),
        (Some("10.0.1.1".into()), true)
    );
    let labels = [("iface", "out1"), ("protocol", "igmp")];
    assert_eq!(router.metric("mcastor_querier_changes_total", &labels), 1.0);
    drop(rx);
}

fn members_are_learned_with_a_bridge_as_querier(lab: &Lab) {
    for address in [true, false] {
        let star = Star::dual(lab, 1);
        let options = format!("mcast_querier 1 mcast_query_use_ifaddr 1 {QUICK}");
        let hosts = switch(lab, &star, &options, &["h1", "h2"]);
        if address {
            star.rcv.ip("address add 10.0.1.5/24 dev br0");
        }
        // Without the router's queries the bridge does not detect it; the port is configured.
        star.rcv
            .ip("link set eth1 type bridge_slave mcast_router 2");
        let router = Router::start(
            lab,
            &star.rtr,
            &proxy(&["in"], &["out1"], "querier = \"off\"\n"),
        );
        let rx: Vec<UdpRx> = TO
            .iter()
            .map(|to| UdpRx::join(&hosts[0], "eth0", to))
            .collect();
        eventually("members of both", 2, || members(&router).len());
        assert_served(&star, &rx);
        // The join and leave of a second host change nothing.
        drop(UdpRx::join(&hosts[1], "eth0", TO[0]));
        assert_served(&star, &rx);
        let sent = [("iface", "out1"), ("direction", "transmitted")];
        assert_eq!(router.metric("mcastor_igmp_messages_total", &sent), 0.0);
        assert_eq!(router.metric("mcastor_mld_messages_total", &sent), 0.0);
        let bridge_ll = (Some(BRIDGE_LL.into()), false);
        eventually("the bridge is the MLD querier", bridge_ll, || {
            querier(&router, "out1", "mld")
        });
        let v4 = (address.then(|| "10.0.1.5".into()), false);
        eventually("the IGMP querier", v4, || querier(&router, "out1", "igmp"));
        drop(rx);
        eventually("both left", 0, || members(&router).len());
    }
}

fn absent_querier_is_logged(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(
        lab,
        &star.rtr,
        &proxy(&["in"], &["out1"], "querier = \"off\"\n"),
    );
    // The router accepts unsolicited reports; without a querier the host does not repeat them.
    let _rx = UdpRx::join(&star.rcv, "eth1", TO[0]);
    eventually("a member", 1, || members(&router).len());
    eventually("the member expires", 0, || members(&router).len());
    eventually("the log names the reason", true, || {
        router
            .program
            .stderr()
            .contains("out1: no IGMP querier sends queries")
    });
    assert_eq!(querier(&router, "out1", "igmp"), (None, false));
}

/// Returns whether the bridge has marked the router's port as a router port.
fn is_router_port(star: &Star) -> bool {
    let shown = bridge(&star.rcv, "-d mdb show dev br0");
    shown
        .lines()
        .any(|l| l.starts_with("router ports on br0:") && l.contains("eth1"))
}

/// Creates a star whose router has addresses of one IP version only, because a bridge marks the
/// port for both versions.
fn star_of_one_version(lab: &Lab, v4: bool) -> Star {
    let star = if v4 {
        Star::v4(lab, 1)
    } else {
        Star::dual(lab, 1)
    };
    if !v4 {
        star.rtr.ip("address del 10.0.1.1/24 dev out1");
    }
    star
}

fn queries_mark_the_bridge_port_as_router_port(lab: &Lab) {
    for v4 in [true, false] {
        let star = star_of_one_version(lab, v4);
        let hosts = switch(lab, &star, QUICK, &["h1", "h2"]);
        assert!(!is_router_port(&star), "before the first query");
        let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
        eventually("a router port", true, || is_router_port(&star));
        let i = usize::from(!v4);
        let rx = UdpRx::join(&hosts[0], "eth0", TO[i]);
        let version = ["3", "2"][i];
        eventually(
            "reports arrive through the bridge",
            Some(version.to_string()),
            || {
                member(&router, "out1", GROUPS[i])?["version"]
                    .as_str()
                    .map(String::from)
            },
        );
        eventually("joined upstream", 1, || joined(&router, "in").len());
        let inject = Injector::new(&star.src, "eth0");
        (0..50u32).for_each(|n| inject.send(&Udp::new(FROM[i], TO[i], n.to_be_bytes()).frame()));
        rx.expect(50);
        // Packets to a group without members arrive at the router, because its port is a router
        // port.
        let up = Capture::new(&star.src, "eth0");
        let (from, group, to) = [
            ("10.0.1.21:9", "225.9.9.9", "225.9.9.9:5000"),
            ("[fd00:1::21]:9", "ff0e::9:9", "[ff0e::9:9]:5000"),
        ][i];
        Injector::new(&hosts[1], "eth0").send(&Udp::new(from, to, "x").frame());
        up.expect(group, 1);
    }
}

/// A bridge that sends and receives no queries detects routers by RFC 4286 only.
fn mrdisc_marks_the_bridge_port_as_router_port(lab: &Lab) {
    for v4 in [true, false] {
        let star = star_of_one_version(lab, v4);
        let hosts = switch(lab, &star, "mcast_snooping 1", &["h1"]);
        assert!(!is_router_port(&star), "before the first announcement");
        let wire = Capture::new(&hosts[0], "eth0");
        let toml = "[[interface]]\nname = \"out1\"\nmrdisc = true\n";
        let router = Router::start(lab, &star.rtr, toml);
        eventually("a router port", true, || is_router_port(&star));
        let queries = wire.to(if v4 { "224.0.0.1" } else { "ff02::1" });
        assert!(!queries.iter().any(|s| s.protocol != 58), "{queries:x?}");
        router.stop();
    }
}
