//! Proxies beside and below FRR's pimd.

use std::time::{Duration, Instant};

use super::cases;
use crate::lab::proxy::{igmp_frame, joined, member, members, proxy, querier, report};
use crate::lab::{
    Capture, Frr, GroupMember, Injector, Lab, LinkEnd, Router, Star, Udp, UdpRx, connect,
    eventually, switch,
};

cases!("proxy_frr":
    #[Program("vtysh", "frr")] #[LinkKind("bridge")] pimd_with_higher_address_loses_querier_election,
    #[Program("vtysh", "frr")] #[LinkKind("bridge")] pimd_with_lower_address_wins_querier_election,
    #[Program("vtysh", "frr")] #[LinkKind("bridge")] group_query_from_pimd_lowers_member_timers,
    #[Program("vtysh", "frr")] reports_are_accepted_as_by_pimd,
    #[Program("vtysh", "frr")] upstream_joins_appear_in_pimd_tables,
    #[Program("vtysh", "frr")] igmpv2_pimd_upstream_is_answered_in_igmpv2,
    #[Program("vtysh", "frr")] #[KernelMroute] stream_forwarded_by_pimd_reaches_the_receiver,
);

const QUICK: &str = " ip igmp\n ip igmp query-max-response-time 5\n ip igmp query-interval 2\n";

fn pimd(lab: &Lab, ns: &crate::lab::Ns, iface: &str, more: &str) -> Frr {
    Frr::start(lab, ns, &format!("interface {iface}\n{QUICK}{more}"))
}

/// Returns the querier as pimd reports it: its address, and whether it is pimd.
fn pimd_querier(frr: &Frr, iface: &str) -> (String, bool) {
    let json = frr.show("show ip igmp interface json");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap_or_default();
    let row = &json[iface];
    let address = row["querierIp"].as_str().unwrap_or_default().to_owned();
    (address, row["querier"] == true)
}

fn pimd_with_higher_address_loses_querier_election(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let hosts = switch(lab, &star, "mcast_snooping 0", &["frr", "h1"]);
    let frr = pimd(lab, &hosts[0], "eth0", "");
    eventually("pimd is the querier", ("10.0.1.20".into(), true), || {
        pimd_querier(&frr, "eth0")
    });
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    eventually(
        "the router is the querier",
        ("10.0.1.1".into(), false),
        || pimd_querier(&frr, "eth0"),
    );
    assert_eq!(
        querier(&router, "out1", "igmp"),
        (Some("10.0.1.1".into()), true)
    );
    let _rx = UdpRx::join(&hosts[1], "eth0", "225.1.2.3:5000");
    eventually("both know the member", true, || {
        member(&router, "out1", "225.1.2.3").is_some()
            && frr.show("show ip igmp groups").contains("225.1.2.3")
    });
    // After the router is killed, pimd takes over.
    let mut router = router;
    router.program.stop(libc::SIGKILL, Duration::from_secs(3));
    eventually(
        "pimd is the querier again",
        ("10.0.1.20".into(), true),
        || pimd_querier(&frr, "eth0"),
    );
}

fn pimd_with_lower_address_wins_querier_election(lab: &Lab) {
    let star = Star::v4(lab, 1);
    star.rtr.ip("address del 10.0.1.1/24 dev out1");
    star.rtr.ip("address add 10.0.1.100/24 dev out1");
    let hosts = switch(lab, &star, "mcast_snooping 0", &["frr", "h1"]);
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    let rx = UdpRx::join(&hosts[1], "eth0", "225.1.2.3:5000");
    eventually("a member", 1, || members(&router).len());
    let inject = Injector::new(&star.src, "eth0");
    let mut sent = 0;
    let mut assert_served = || {
        for _ in 0..50 {
            inject.send(&Udp::new("10.0.0.10:9", "225.1.2.3:5000", "x").frame());
        }
        sent += 50;
        rx.expect(sent);
    };
    for _ in 0..2 {
        eventually("the router is the querier", true, || {
            querier(&router, "out1", "igmp").1
        });
        assert_served();
        let frr = pimd(lab, &hosts[0], "eth0", "");
        eventually(
            "pimd is the querier",
            (Some("10.0.1.20".into()), false),
            || querier(&router, "out1", "igmp"),
        );
        assert_served();
        frr.kill();
    }
    eventually("the router is the querier", true, || {
        querier(&router, "out1", "igmp").1
    });
    assert_served();
    let labels = [("iface", "out1"), ("protocol", "igmp")];
    assert_eq!(router.metric("mcastor_querier_changes_total", &labels), 5.0);
}

fn group_query_from_pimd_lowers_member_timers(lab: &Lab) {
    let star = Star::v4(lab, 1);
    star.rtr.ip("address del 10.0.1.1/24 dev out1");
    star.rtr.ip("address add 10.0.1.100/24 dev out1");
    let hosts = switch(lab, &star, "mcast_snooping 0", &["frr", "h1"]);
    // The router adopts pimd's query interval of 125 s: without pimd's group query, the group would
    // stay. pimd sends a query when it starts, and then none for half a minute.
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    let frr = Frr::start(lab, &hosts[0], "interface eth0\n ip igmp\n");
    eventually(
        "pimd is the querier",
        (Some("10.0.1.20".into()), false),
        || querier(&router, "out1", "igmp"),
    );
    let rx = UdpRx::join(&hosts[1], "eth0", "225.1.2.3:5000");
    eventually("both know the member", true, || {
        member(&router, "out1", "225.1.2.3").is_some()
            && frr.show("show ip igmp groups").contains("225.1.2.3")
    });
    let expires_ms = |group| member(&router, "out1", group)?["expires_ms"].as_u64();
    assert!(
        expires_ms("225.1.2.3").is_some_and(|ms| ms > 200_000),
        "{:?}",
        expires_ms("225.1.2.3")
    );
    drop(rx);
    eventually("the group ends with the query of pimd", None, || {
        member(&router, "out1", "225.1.2.3")
    });
    let received = [
        ("iface", "out1"),
        ("direction", "received"),
        ("type", "group_query"),
    ];
    assert!(router.metric("mcastor_igmp_messages_total", &received) >= 1.0);
    let sent = [
        ("iface", "out1"),
        ("direction", "transmitted"),
        ("type", "group_query"),
    ];
    assert_eq!(router.metric("mcastor_igmp_messages_total", &sent), 0.0);
}

fn upstream_joins_appear_in_pimd_tables(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let frr = pimd(lab, &star.src, "eth0", "");
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out*"], ""));
    let one = GroupMember::new(&star.rcv, "eth1", "232.1.2.3").join("10.7.7.1");
    let two = GroupMember::new(&star.rcv, "eth2", "232.1.2.3").join("10.7.7.2");
    let all = GroupMember::any_source(&star.rcv, "eth2", "225.1.2.3");
    let sources = || {
        let shown = frr.show("show ip igmp sources");
        ["10.7.7.1", "10.7.7.2"].map(|s| shown.contains(s))
    };
    eventually("the union of the sources", [true, true], sources);
    eventually("the group", true, || {
        frr.show("show ip igmp groups").contains("225.1.2.3")
    });
    assert_eq!(
        joined(&router, "in"),
        [
            "225.1.2.3 exclude []",
            "232.1.2.3 include [\"10.7.7.1\", \"10.7.7.2\"]"
        ]
    );
    drop(one);
    eventually("one source is left", [false, true], sources);
    drop((two, all));
    eventually("no group is left", false, || {
        let shown = frr.show("show ip igmp groups");
        shown.contains("232.1.2.3") || shown.contains("225.1.2.3")
    });
}

fn igmpv2_pimd_upstream_is_answered_in_igmpv2(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let frr = pimd(lab, &star.src, "eth0", " ip igmp version 2\n");
    let wire = Capture::new(&star.src, "eth0");
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    let old = Capture::new(&star.rtr, "in");
    eventually("an IGMPv2 query arrived", true, || {
        old.to("224.0.0.1")
            .iter()
            .any(|s| s.body().len() == 8 && s.body()[0] == 0x11)
    });
    let rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    eventually("pimd has the group", true, || {
        frr.show("show ip igmp groups").contains("225.1.2.3")
    });
    let reports = wire.to("225.1.2.3");
    assert!(
        !reports.is_empty()
            && reports
                .iter()
                .all(|s| s.protocol == 2 && s.body()[0] == 0x16),
        "{reports:x?}"
    );
    drop(rx);
    eventually("an IGMPv2 leave", true, || {
        wire.to("224.0.0.2").iter().any(|s| s.body()[0] == 0x17)
    });
    eventually("pimd removes the group", false, || {
        frr.show("show ip igmp groups").contains("225.1.2.3")
    });
    drop(router);
}

/// Camera, pimd, mcastor, receiver: the join passes both routers upstream, and the stream returns.
fn stream_forwarded_by_pimd_reaches_the_receiver(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let camera = lab.ns("camera");
    connect(
        LinkEnd::new(&star.src, "cam", &["10.8.0.1/24"]),
        LinkEnd::new(&camera, "eth0", &["10.8.0.10/24"]),
    );
    star.src.sysctl("net/ipv4/ip_forward", "1");
    let conf = format!("interface cam\n ip pim\ninterface eth0\n{QUICK} ip pim\n");
    let frr = Frr::start(lab, &star.src, &conf);
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    let _member = GroupMember::new(&star.rcv, "eth1", "232.1.2.3").join("10.8.0.10");
    eventually("pimd forwards", true, || {
        let shown = frr.show("show ip mroute");
        shown.contains("232.1.2.3") && shown.contains("eth0")
    });
    let wire = Capture::new(&star.rcv, "eth1");
    let data = || {
        wire.to("232.1.2.3")
            .into_iter()
            .filter(|s| s.protocol == 17)
            .count()
    };
    let inject = Injector::new(&camera, "eth0");
    let send = |from: &str| inject.send(&Udp::new(from, "232.1.2.3:5000", "x").ttl(9).frame());
    let start = Instant::now();
    while data() == 0 {
        assert!(
            start.elapsed() < Duration::from_secs(15),
            "{}",
            frr.show("show ip mroute")
        );
        send("10.8.0.10:9");
        std::thread::sleep(Duration::from_millis(20));
    }
    let before = data();
    (0..100).for_each(|_| send("10.8.0.10:9"));
    eventually("every packet", before + 100, data);
    let last = wire.to("232.1.2.3").pop().expect("a packet");
    assert_eq!((last.ttl, last.src.to_string().as_str()), (7, "10.8.0.10"));
    drop(router);
}

/// Returns which reports a router accepts: without Router Alert, with TTL 2, from another subnet,
/// and a correct one.
fn accepted_reports(inject: &Injector, knows: impl Fn(&str) -> bool) -> [bool; 4] {
    let all = [224, 0, 0, 22];
    let host = [10, 0, 1, 10];
    for (n, source, ttl, alert) in [
        (1, host, 1, false),
        (2, host, 2, true),
        (3, [192, 0, 2, 1], 1, true),
        (4, host, 1, true),
    ] {
        inject.send(&igmp_frame(
            source,
            all,
            &report([225, 9, 0, n]),
            ttl,
            alert,
        ));
    }
    eventually("the last report is processed", true, || knows("225.9.0.4"));
    [1, 2, 3, 4].map(|n| knows(&format!("225.9.0.{n}")))
}

/// Reports without Router Alert are accepted, as pimd accepts them. Those that may come from
/// another link are refused, whatever pimd does.
fn reports_are_accepted_as_by_pimd(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let inject = Injector::new(&star.rcv, "eth1");
    let frr = pimd(lab, &star.rtr, "out1", "");
    let pimd = accepted_reports(&inject, |group| {
        frr.show("show ip igmp groups").contains(group)
    });
    drop(frr);
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    let ours = accepted_reports(&inject, |group| member(&router, "out1", group).is_some());
    println!("no router alert, TTL 2, off-link, correct: pimd {pimd:?}, mcastor {ours:?}");
    assert!(pimd[0] && pimd[3], "{pimd:?}");
    assert_eq!(ours, [true, false, false, true]);
}
