//! Proxies beside and below FRR's pimd.

use std::time::{Duration, Instant};

use super::cases;
use crate::lab::proxy::{joined, member, members, proxy, querier};
use crate::lab::{
    Capture, Frr, Injector, Lab, Member, Router, Star, Udp, UdpRx, eventually, switch,
};

cases!("proxy_frr":
    #[Program("vtysh", "frr")] #[LinkKind("bridge")] pimd_with_a_higher_address_gives_way,
    #[Program("vtysh", "frr")] #[LinkKind("bridge")] pimd_with_a_lower_address_is_elected_dies_and_comes_back,
    #[Program("vtysh", "frr")] #[LinkKind("bridge")] what_pimd_asks_about_lowers_our_timers,
    #[Program("vtysh", "frr")] our_joins_are_in_the_table_of_pimd,
    #[Program("vtysh", "frr")] we_answer_pimd_in_its_version,
    #[Program("vtysh", "frr")] #[KernelMroute] what_pimd_forwards_flows_down,
);

const QUICK: &str = " ip igmp\n ip igmp query-max-response-time 5\n ip igmp query-interval 2\n";

fn pimd(lab: &Lab, ns: &crate::lab::Ns, iface: &str, more: &str) -> Frr {
    Frr::start(lab, ns, &format!("interface {iface}\n{QUICK}{more}"))
}

/// What pimd says of a querier: its address and whether it is pimd itself.
fn asks(frr: &Frr, iface: &str) -> (String, bool) {
    let json = frr.show("show ip igmp interface json");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap_or_default();
    let row = &json[iface];
    let address = row["querierIp"].as_str().unwrap_or_default().to_owned();
    (address, row["querier"] == true)
}

fn pimd_with_a_higher_address_gives_way(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let hosts = switch(lab, &star, "mcast_snooping 0", &["frr", "h1"]);
    let frr = pimd(lab, &hosts[0], "eth0", "");
    eventually("pimd asks", ("10.0.1.20".into(), true), || {
        asks(&frr, "eth0")
    });
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    eventually("pimd listens", ("10.0.1.1".into(), false), || {
        asks(&frr, "eth0")
    });
    assert_eq!(
        querier(&router, "out1", "igmp"),
        (Some("10.0.1.1".into()), true)
    );
    let _rx = UdpRx::join(&hosts[1], "eth0", "225.1.2.3:5000");
    eventually("both know the member", true, || {
        member(&router, "out1", "225.1.2.3").is_some()
            && frr.show("show ip igmp groups").contains("225.1.2.3")
    });
    // We die without a word: pimd takes over.
    let mut router = router;
    router.program.stop(libc::SIGKILL, Duration::from_secs(3));
    eventually("pimd asks", ("10.0.1.20".into(), true), || {
        asks(&frr, "eth0")
    });
}

fn pimd_with_a_lower_address_is_elected_dies_and_comes_back(lab: &Lab) {
    let star = Star::v4(lab, 1);
    star.rtr.ip("address del 10.0.1.1/24 dev out1");
    star.rtr.ip("address add 10.0.1.100/24 dev out1");
    let hosts = switch(lab, &star, "mcast_snooping 0", &["frr", "h1"]);
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    let rx = UdpRx::join(&hosts[1], "eth0", "225.1.2.3:5000");
    eventually("a member", 1, || members(&router).len());
    let inject = Injector::new(&star.src, "eth0");
    let mut sent = 0;
    let mut served = || {
        for _ in 0..50 {
            inject.send(&Udp::new("10.0.0.10:9", "225.1.2.3:5000", "x").frame());
        }
        sent += 50;
        rx.expect(sent);
    };
    for _ in 0..2 {
        eventually("we ask", true, || querier(&router, "out1", "igmp").1);
        served();
        let frr = pimd(lab, &hosts[0], "eth0", "");
        eventually("pimd asks", (Some("10.0.1.20".into()), false), || {
            querier(&router, "out1", "igmp")
        });
        served();
        frr.kill();
    }
    eventually("we ask", true, || querier(&router, "out1", "igmp").1);
    served();
    let labels = [("iface", "out1"), ("protocol", "igmp")];
    assert_eq!(router.metric("mcastor_querier_changes_total", &labels), 5.0);
}

fn what_pimd_asks_about_lowers_our_timers(lab: &Lab) {
    let star = Star::v4(lab, 1);
    star.rtr.ip("address del 10.0.1.1/24 dev out1");
    star.rtr.ip("address add 10.0.1.100/24 dev out1");
    let hosts = switch(lab, &star, "mcast_snooping 0", &["frr", "h1"]);
    // Its interval of 125 s becomes ours: without its query for the group, the group would stay.
    // It asks when it starts, and then not for half a minute.
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    let frr = Frr::start(lab, &hosts[0], "interface eth0\n ip igmp\n");
    eventually("pimd asks", (Some("10.0.1.20".into()), false), || {
        querier(&router, "out1", "igmp")
    });
    let rx = UdpRx::join(&hosts[1], "eth0", "225.1.2.3:5000");
    eventually("both know the member", true, || {
        member(&router, "out1", "225.1.2.3").is_some()
            && frr.show("show ip igmp groups").contains("225.1.2.3")
    });
    let left = |group| member(&router, "out1", group)?["expires_ms"].as_u64();
    assert!(
        left("225.1.2.3").is_some_and(|ms| ms > 200_000),
        "{:?}",
        left("225.1.2.3")
    );
    drop(rx);
    eventually("the group ends with the query of pimd", None, || {
        member(&router, "out1", "225.1.2.3")
    });
    let asked = [
        ("iface", "out1"),
        ("direction", "received"),
        ("type", "group_query"),
    ];
    assert!(router.metric("mcastor_igmp_messages_total", &asked) >= 1.0);
    let sent = [
        ("iface", "out1"),
        ("direction", "transmitted"),
        ("type", "group_query"),
    ];
    assert_eq!(router.metric("mcastor_igmp_messages_total", &sent), 0.0);
}

fn our_joins_are_in_the_table_of_pimd(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let frr = pimd(lab, &star.src, "eth0", "");
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out*"], ""));
    let one = Member::new(&star.rcv, "eth1", "232.1.2.3").join("10.7.7.1");
    let two = Member::new(&star.rcv, "eth2", "232.1.2.3").join("10.7.7.2");
    let all = Member::of_all(&star.rcv, "eth2", "225.1.2.3");
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
    eventually("one source left", [false, true], sources);
    drop((two, all));
    eventually("nothing", false, || {
        let shown = frr.show("show ip igmp groups");
        shown.contains("232.1.2.3") || shown.contains("225.1.2.3")
    });
}

fn we_answer_pimd_in_its_version(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let frr = pimd(lab, &star.src, "eth0", " ip igmp version 2\n");
    let wire = Capture::new(&star.src, "eth0");
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    let old = Capture::new(&star.rtr, "in");
    eventually("a query of version 2 came", true, || {
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
    eventually("a leave of version 2", true, || {
        wire.to("224.0.0.2").iter().any(|s| s.body()[0] == 0x17)
    });
    eventually("pimd gives it up", false, || {
        frr.show("show ip igmp groups").contains("225.1.2.3")
    });
    drop(router);
}

/// Camera, pimd, ourselves, a receiver: the join goes up through both, the stream comes down.
fn what_pimd_forwards_flows_down(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let camera = lab.ns("camera");
    let line = format!(
        "link add cam netns {} type veth peer name eth0 netns {}\n",
        star.src.name(),
        camera.name()
    );
    crate::lab::ns::ip_batch(&[], &line).expect("links");
    star.src
        .ip_batch("link set cam up\naddress add 10.8.0.1/24 dev cam\n");
    camera.ip_batch("link set eth0 up\naddress add 10.8.0.10/24 dev eth0\n");
    camera.carries("eth0");
    star.src.sysctl("net/ipv4/ip_forward", "1");
    let conf = format!("interface cam\n ip pim\ninterface eth0\n{QUICK} ip pim\n");
    let frr = Frr::start(lab, &star.src, &conf);
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    let _member = Member::new(&star.rcv, "eth1", "232.1.2.3").join("10.8.0.10");
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
    eventually("all of it", before + 100, data);
    let last = wire.to("232.1.2.3").pop().expect("a packet");
    assert_eq!((last.ttl, last.src.to_string().as_str()), (7, "10.8.0.10"));
    drop(router);
}
