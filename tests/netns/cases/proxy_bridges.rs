//! Proxies behind Linux bridges: with snooping, with a querier of their own, with router
//! discovery.

use std::time::Duration;

use super::cases;
use crate::lab::proxy::{joined, member, members, proxy, querier};
use crate::lab::{
    Capture, Injector, Lab, Router, Star, Udp, UdpRx, bridge, eventually, switch, wait_until,
};

cases!("proxy_bridges":
    #[LinkKind("bridge")] a_bridge_with_a_lower_address_is_elected_and_replaced,
    #[LinkKind("bridge")] a_bridge_with_a_higher_address_gives_way,
    #[LinkKind("bridge")] a_bridge_without_an_address_elects_nobody,
    #[LinkKind("bridge")] members_are_heard_where_a_bridge_asks_and_we_do_not,
    #[LinkKind("bridge")] with_nobody_asking_the_log_says_so,
    #[LinkKind("bridge")] our_queries_make_a_bridge_take_us_for_a_router,
    #[LinkKind("bridge")] our_announcements_make_a_bridge_take_us_for_a_router,
);

const QUICK: &str = "mcast_snooping 1 mcast_query_interval 200 mcast_query_response_interval 30 \
     mcast_querier_interval 500 mcast_startup_query_interval 50 mcast_igmp_version 3 mcast_mld_version 2";

const GROUPS: [&str; 2] = ["225.1.2.3", "ff0e::8000:1"];
const TO: [&str; 2] = ["225.1.2.3:5000", "[ff0e::8000:1]:5000"];
const FROM: [&str; 2] = ["10.0.0.10:9", "[fd00::10]:9"];

/// How often the bridge asks.
const ASKS: Duration = Duration::from_secs(2);

/// The link-local address of `br0` in [`switch`]: lower than that of any other interface here.
const BRIDGE_LL: &str = "fe80::ff:fe00:1";

/// What is sent for both groups reaches both receivers.
fn served(star: &Star, rx: &[UdpRx]) {
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

fn a_bridge_with_a_lower_address_is_elected_and_replaced(lab: &Lab) {
    let star = Star::dual(lab, 1);
    star.rtr.ip("address del 10.0.1.1/24 dev out1");
    star.rtr.ip("address add 10.0.1.100/24 dev out1");
    let options = format!("mcast_querier 1 mcast_query_use_ifaddr 1 {QUICK}");
    let hosts = switch(lab, &star, &options, &["h1"]);
    star.rcv.ip("address add 10.0.1.5/24 dev br0");
    // A bridge that hears another before it asked from an address of its own gives way.
    let wire = Capture::new(&star.rtr, "out1");
    let asked = || {
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
                wait_until(3 * ASKS, || querier(router, "out1", protocol) == by_bridge)
            })
    };
    let mut before = [0; 2];
    let mut started = 0;
    let router = loop {
        eventually("the bridge asks first", true, || {
            let now = asked();
            now[0] > before[0] && now[1] > before[1]
        });
        let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
        started += 1;
        if elected(&router) {
            break router;
        }
        // A bridge whose timer runs off just when it hears us takes us for the querier, whatever
        // the addresses. It asks again when we have gone.
        assert!(started < 5, "the bridge is never elected");
        router.stop();
        before = asked();
    };
    let rx: Vec<UdpRx> = TO
        .iter()
        .map(|to| UdpRx::join(&hosts[0], "eth0", to))
        .collect();
    eventually("members of both", 2, || members(&router).len());
    served(&star, &rx);
    // It stops to ask, and we go on without losing a member.
    star.rcv.ip("link set br0 type bridge mcast_querier 0");
    for protocol in ["igmp", "mld"] {
        eventually("we ask", true, || querier(&router, "out1", protocol).1);
    }
    assert_eq!(members(&router).len(), 2);
    served(&star, &rx);
    drop(rx);
    eventually("both left", 0, || members(&router).len());
    let log = router.program.stderr();
    assert!(log.contains("10.0.1.5 is the"), "{log}");
}

fn a_bridge_with_a_higher_address_gives_way(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let options = format!("mcast_querier 1 mcast_query_use_ifaddr 1 {QUICK}");
    let _hosts = switch(lab, &star, &options, &["h1"]);
    star.rcv.ip("address add 10.0.1.5/24 dev br0");
    // It asks before we do.
    let wire = Capture::new(&star.rtr, "out1");
    eventually("it asks", true, || !wire.to("224.0.0.1").is_empty());
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    eventually("it knows that we ask", true, || {
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
    // Silent for longer than its interval of 2 s, while we ask twice.
    let asked = |router: &Router| {
        let labels = [
            ("iface", "out1"),
            ("direction", "transmitted"),
            ("type", "general_query"),
        ];
        router.metric("mcastor_igmp_messages_total", &labels)
    };
    let (before, heard) = (asked(&router), queries());
    eventually("we ask twice", true, || asked(&router) >= before + 2.0);
    assert_eq!(queries(), heard, "the bridge asked beside us");
    assert!(querier(&router, "out1", "igmp").1);
}

fn a_bridge_without_an_address_elects_nobody(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let hosts = switch(lab, &star, &format!("mcast_querier 1 {QUICK}"), &["h1"]);
    let wire = Capture::new(&star.rtr, "out1");
    eventually("it asks from nowhere", true, || {
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

fn members_are_heard_where_a_bridge_asks_and_we_do_not(lab: &Lab) {
    for address in [true, false] {
        let star = Star::dual(lab, 1);
        let options = format!("mcast_querier 1 mcast_query_use_ifaddr 1 {QUICK}");
        let hosts = switch(lab, &star, &options, &["h1", "h2"]);
        if address {
            star.rcv.ip("address add 10.0.1.5/24 dev br0");
        }
        // Without queries of ours a bridge does not see a router in us; we must be told to be one.
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
        served(&star, &rx);
        // The second host asks for the same; its leave and its presence change nothing.
        drop(UdpRx::join(&hosts[1], "eth0", TO[0]));
        served(&star, &rx);
        let sent = [("iface", "out1"), ("direction", "transmitted")];
        assert_eq!(router.metric("mcastor_igmp_messages_total", &sent), 0.0);
        assert_eq!(router.metric("mcastor_mld_messages_total", &sent), 0.0);
        let bridge_ll = (Some(BRIDGE_LL.into()), false);
        eventually("it asks for IPv6", bridge_ll, || {
            querier(&router, "out1", "mld")
        });
        let v4 = (address.then(|| "10.0.1.5".into()), false);
        eventually("and for IPv4", v4, || querier(&router, "out1", "igmp"));
        drop(rx);
        eventually("both left", 0, || members(&router).len());
    }
}

fn with_nobody_asking_the_log_says_so(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(
        lab,
        &star.rtr,
        &proxy(&["in"], &["out1"], "querier = \"off\"\n"),
    );
    // Reports that a host sends by itself are heard; with nobody asking they are not repeated.
    let _rx = UdpRx::join(&star.rcv, "eth1", TO[0]);
    eventually("a member", 1, || members(&router).len());
    eventually("it is forgotten", 0, || members(&router).len());
    eventually("the log says why", true, || {
        router
            .program
            .stderr()
            .contains("out1: nobody asks for IGMP members")
    });
    assert_eq!(querier(&router, "out1", "igmp"), (None, false));
}

/// Whether the bridge takes us for a router.
fn are_router(star: &Star) -> bool {
    let shown = bridge(&star.rcv, "-d mdb show dev br0");
    shown
        .lines()
        .any(|l| l.starts_with("router ports on br0:") && l.contains("eth1"))
}

/// A star where the router has addresses of one IP version only: a bridge counts both as one.
fn of_one_version(lab: &Lab, v4: bool) -> Star {
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

fn our_queries_make_a_bridge_take_us_for_a_router(lab: &Lab) {
    for v4 in [true, false] {
        let star = of_one_version(lab, v4);
        let hosts = switch(lab, &star, QUICK, &["h1", "h2"]);
        assert!(!are_router(&star), "before anybody asked");
        let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
        eventually("a router", true, || are_router(&star));
        let i = usize::from(!v4);
        let rx = UdpRx::join(&hosts[0], "eth0", TO[i]);
        let version = ["3", "2"][i];
        eventually(
            "reports reach us through the bridge",
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
        // What a host sends to a group that nobody joined reaches us, too: we are a router.
        let up = Capture::new(&star.src, "eth0");
        let (from, group, to) = [
            ("10.0.1.21:9", "225.9.9.9", "225.9.9.9:5000"),
            ("[fd00:1::21]:9", "ff0e::9:9", "[ff0e::9:9]:5000"),
        ][i];
        Injector::new(&hosts[1], "eth0").send(&Udp::new(from, to, "x").frame());
        up.expect(group, 1);
    }
}

/// A bridge that asks nobody and hears no query knows a router by RFC 4286 alone.
fn our_announcements_make_a_bridge_take_us_for_a_router(lab: &Lab) {
    for v4 in [true, false] {
        let star = of_one_version(lab, v4);
        let hosts = switch(lab, &star, "mcast_snooping 1", &["h1"]);
        assert!(!are_router(&star), "before it was announced");
        let wire = Capture::new(&hosts[0], "eth0");
        let toml = "[[interface]]\nname = \"out1\"\nmrdisc = true\n";
        let router = Router::start(lab, &star.rtr, toml);
        eventually("a router", true, || are_router(&star));
        let queries = wire.to(if v4 { "224.0.0.1" } else { "ff02::1" });
        assert!(!queries.iter().any(|s| s.protocol != 58), "{queries:x?}");
        router.stop();
    }
}
