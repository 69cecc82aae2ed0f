//! Proxies and hand-written messages: querier election, refused reports, and router discovery.

use std::time::{Duration, Instant};

use super::cases;
use crate::lab::proxy::{
    checksummed, igmp_frame, joined, known_groups, member, members, proxy, querier, refused, report,
};
use crate::lab::{Capture, Injector, Lab, Router, Star, Udp, UdpRx, eventually, switch};

cases!("proxy_messages":
    querier_election_lowest_address_wins,
    header_checks_refuse_or_accept_invalid_reports,
    refused_reports_are_logged_and_shown,
    any_source_joins_of_ssm_groups_need_the_setting,
    #[LinkKind("bridge")] fast_leave_ends_streams_of_igmpv2_hosts,
    group_limits_and_lists_refuse_reports,
    mrdisc_announces_the_router_v4_and_v6,
);

/// Returns a hand-written IGMPv3 general query (RFC 9776 section 4.1).
fn general_query(from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    // Robustness 2, query interval 2 s.
    let body = [0x11, 3, 0, 0, 0, 0, 0, 0, 2, 2, 0, 0];
    igmp_frame(from, to, &checksummed(&body), 1, true)
}

fn querier_election_lowest_address_wins(lab: &Lab) {
    let star = Star::v4(lab, 1);
    // The rival needs a lower address than the router. No valid address is below 10.0.1.1, so the
    // router moves to 10.0.1.100.
    star.rtr.ip("address del 10.0.1.1/24 dev out1");
    star.rtr.ip("address add 10.0.1.100/24 dev out1");
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    eventually(
        "the router is the querier",
        (Some("10.0.1.100".into()), true),
        || querier(&router, "out1", "igmp"),
    );
    let changes = || {
        let labels = [("iface", "out1"), ("protocol", "igmp")];
        router.metric("mcastor_querier_changes_total", &labels)
    };
    let before = changes();
    let rival = Injector::new(&star.rcv, "eth1");
    // Queries from higher addresses, to the router alone, or from 0.0.0.0 do not win the election.
    for (from, to) in [
        ([10, 0, 1, 200], [224, 0, 0, 1]),
        ([10, 0, 1, 10], [10, 0, 1, 100]),
        ([0, 0, 0, 0], [224, 0, 0, 1]),
    ] {
        rival.send(&general_query(from, to));
    }
    eventually("one query is refused", 1.0, || {
        refused(&router, "query_unspecified")
    });
    assert!(querier(&router, "out1", "igmp").1);
    assert_eq!(changes(), before);
    rival.send(&general_query([10, 0, 1, 10], [224, 0, 0, 1]));
    eventually(
        "the rival is the querier",
        (Some("10.0.1.10".into()), false),
        || querier(&router, "out1", "igmp"),
    );
    assert_eq!(changes(), before + 1.0);
    // The router processes reports while the rival is the querier.
    let rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    eventually("a member", 1, || members(&router).len());
    // The rival stops: the router becomes querier again after 2 s x 2 + 150 ms.
    eventually(
        "the router is the querier again",
        (Some("10.0.1.100".into()), true),
        || querier(&router, "out1", "igmp"),
    );
    assert_eq!(changes(), before + 2.0);
    assert_eq!(
        router.metric(
            "mcastor_querier",
            &[("iface", "out1"), ("protocol", "igmp")]
        ),
        1.0
    );
    drop(rx);
}

fn header_checks_refuse_or_accept_invalid_reports(lab: &Lab) {
    for checks in ["standard", "strict", "lenient"] {
        let star = Star::v4(lab, 1);
        let extra = format!("header_checks = {checks:?}\n");
        let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], &extra));
        let tx = Injector::new(&star.rcv, "eth1");
        let send = |source: [u8; 4], body: &[u8], ttl: u8, alert: bool| {
            tx.send(&igmp_frame(source, [224, 0, 0, 22], body, ttl, alert));
        };
        let host = [10, 0, 1, 10];
        send(host, &report([225, 0, 0, 1]), 2, true);
        send(host, &report([225, 0, 0, 2]), 1, false);
        send([192, 0, 2, 1], &report([225, 0, 0, 3]), 1, true);
        let mut broken = report([225, 0, 0, 4]);
        broken[2] ^= 1;
        send(host, &broken, 1, true);
        let mut wrong_count = report([225, 0, 0, 5]);
        wrong_count[7] = 2;
        send(host, &checksummed(&wrong_count), 1, true);
        send(host, &report([225, 0, 0, 6]), 1, true);
        let refused = |reason: &str| refused(&router, reason);
        eventually("the last report is processed", true, || {
            member(&router, "out1", "225.0.0.6").is_some()
        });
        let groups = members(&router).len();
        assert_eq!(
            (refused("bad_checksum"), refused("lying_count")),
            (1.0, 1.0)
        );
        let by_header = ["ttl", "no_router_alert", "off_link"].map(refused);
        let expected = match checks {
            "standard" => ([1.0, 0.0, 1.0], 2),
            "strict" => ([1.0; 3], 1),
            _ => ([0.0; 3], 4),
        };
        assert_eq!((by_header, groups), expected, "{checks}");
    }
}

/// Each refusal leaves a line that names interface, sender, reason and remedy, and a count in `show
/// interfaces`. A flood leaves one line a minute for each reason.
fn refused_reports_are_logged_and_shown(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let extra = "header_checks = \"strict\"\nlimits = { groups = 5 }\n\
                 deny_groups = [\"239.255.255.250\"]\n";
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], extra));
    let tx = Injector::new(&star.rcv, "eth1");
    let send = |source: [u8; 4], group: [u8; 4], alert: bool| {
        tx.send(&igmp_frame(
            source,
            [224, 0, 0, 22],
            &report(group),
            1,
            alert,
        ));
    };
    let host = [10, 0, 1, 10];
    (0..50).for_each(|_| send(host, [225, 0, 0, 1], false));
    (0..50).for_each(|_| send([192, 0, 2, 1], [225, 0, 0, 1], true));
    (0..50).for_each(|_| send(host, [232, 0, 0, 1], true));
    (0..50).for_each(|_| send(host, [239, 255, 255, 250], true));
    (1..=8).for_each(|n| send(host, [225, 0, 0, n], true));
    let expected = [
        ("no_router_alert", 50),
        ("off_link", 50),
        ("any_source_in_ssm", 50),
        ("group_denied", 50),
        ("group_limit", 3),
    ];
    let shown = |reason: &str| {
        let interfaces = router.control().show("interfaces");
        let out = interfaces.iter().find(|i| i["name"] == "out1");
        out.and_then(|i| i["refused_messages"][reason].as_u64())
    };
    for (reason, n) in expected {
        eventually(reason, Some(n), || shown(reason));
    }
    assert!(router.run("show interfaces").contains("no_router_alert 50"));
    let log = router.program.stderr();
    let lines = |reason: &str| -> Vec<&str> {
        let has_reason = |line: &&str| line.contains(&format!("reason=\"{reason}\""));
        log.lines().filter(has_reason).collect()
    };
    for (reason, sender, remedy) in [
        ("no_router_alert", "10.0.1.10", "header_checks"),
        ("off_link", "192.0.2.1", "subnet"),
        ("any_source_in_ssm", "10.0.1.10", "any_source_in_ssm = true"),
        ("group_limit", "10.0.1.10", "limits.groups"),
    ] {
        let lines = lines(reason);
        assert_eq!(lines.len(), 1, "{reason}: {log}");
        for part in ["WARN", "out1", sender, remedy] {
            assert!(lines[0].contains(part), "{part}: {}", lines[0]);
        }
    }
    // Refusals that the settings request are logged at level debug only.
    assert_eq!(lines("group_denied").len(), 0, "{log}");
}

fn any_source_joins_of_ssm_groups_need_the_setting(lab: &Lab) {
    for accepted in [false, true] {
        let star = Star::v4(lab, 1);
        let extra = format!("any_source_in_ssm = {accepted}\n");
        let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], &extra));
        let rx = UdpRx::join(&star.rcv, "eth1", "232.1.2.3:5000");
        if !accepted {
            eventually("refused", true, || {
                refused(&router, "any_source_in_ssm") > 0.0
            });
            assert_eq!(members(&router).len(), 0);
            continue;
        }
        let expected = vec!["232.1.2.3 exclude []".to_string()];
        eventually("joined upstream", expected, || joined(&router, "in"));
        let tx = Injector::new(&star.src, "eth0");
        for n in 0..20u32 {
            tx.send(&Udp::new("10.0.0.10:9", "232.1.2.3:5000", n.to_be_bytes()).frame());
        }
        rx.expect(20);
    }
}

/// With `fast_leave`, the leave of the only IGMPv2 host ends the stream before the host would have
/// had to answer a query, and the leave of one of two hosts does not.
fn fast_leave_ends_streams_of_igmpv2_hosts(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let hosts = switch(lab, &star, "mcast_snooping 1", &["one", "two"]);
    for host in &hosts {
        host.sysctl("net/ipv4/conf/eth0/force_igmp_version", "2");
    }
    // A query would be answered within 20 s.
    let toml = "[[proxy]]\nname = \"p\"\nupstream = [\"in\"]\ndownstream = [\"out1\"]\n\
                fast_leave = true\n[proxy.timers]\nquery_interval = \"30s\"\n\
                query_response_interval = \"1s\"\nlast_member_query_interval = \"20s\"\n";
    let router = Router::start(lab, &star.rtr, toml);
    let started = Instant::now();
    // An IGMPv2 host that receives the report of another host sends no leave.
    for port in ["p0", "p1"] {
        let isolate = format!("link set {port} type bridge_slave isolated on");
        star.rcv.ip(&isolate);
    }
    let rx: Vec<UdpRx> = hosts
        .iter()
        .map(|host| UdpRx::join(host, "eth0", "225.1.2.3:5000"))
        .collect();
    let reporters = || {
        let row = member(&router, "out1", "225.1.2.3")?;
        row["reporters"].as_array().map(Vec::len)
    };
    eventually("both are known", Some(2), reporters);
    // All hosts have had the time to answer the first query.
    let learned = Duration::from_millis(1500);
    std::thread::sleep(learned.saturating_sub(started.elapsed()));
    let [one, two] = <[UdpRx; 2]>::try_from(rx).unwrap_or_else(|_| panic!("two receivers"));
    drop(one);
    eventually("one is left", Some(1), reporters);
    let tx = Injector::new(&star.src, "eth0");
    for n in 0..20u32 {
        tx.send(&Udp::new("10.0.0.10:9", "225.1.2.3:5000", n.to_be_bytes()).frame());
    }
    two.expect(20);
    drop(two);
    let left = Instant::now();
    eventually("no member", 0, || members(&router).len());
    assert!(
        left.elapsed() < Duration::from_secs(10),
        "{:?}",
        left.elapsed()
    );
    eventually("left upstream", 0, || joined(&router, "in").len());
}

fn group_limits_and_lists_refuse_reports(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let extra = "groups = [\"225.0.0.0/8\", \"232.0.0.0/8\"]\ndeny_groups = [\"225.1.0.0/16\"]\nlimits = { groups = 5 }\n";
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], extra));
    let tx = Injector::new(&star.rcv, "eth1");
    let send = |group: [u8; 4]| {
        tx.send(&igmp_frame(
            [10, 0, 1, 10],
            [224, 0, 0, 22],
            &report(group),
            1,
            true,
        ));
    };
    let refused = |reason: &str, n: f64| eventually(reason, n, || refused(&router, reason));
    send([226, 0, 0, 1]);
    send([225, 1, 0, 1]);
    refused("group_denied", 2.0);
    send([224, 0, 0, 251]);
    refused("link_local_group", 1.0);
    send([232, 1, 1, 1]);
    refused("any_source_in_ssm", 1.0);
    (1..=8).for_each(|n| send([225, 0, 0, n]));
    refused("group_limit", 3.0);
    assert_eq!(members(&router).len(), 5);
    assert_eq!(known_groups(&router), 5);
}

fn mrdisc_announces_the_router_v4_and_v6(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let wire = Capture::new(&star.rcv, "eth1");
    let toml = "[[interface]]\nname = \"out1\"\nmrdisc = true\n".to_string()
        + &proxy(&["in"], &["out1"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    eventually("IPv4", true, || !wire.to("224.0.0.106").is_empty());
    eventually("IPv6", true, || !wire.to("ff02::6a").is_empty());
    let v4 = &wire.to("224.0.0.106")[0];
    // RFC 4286 section 3.2: type 0x30, interval 20, checksum, query interval 2 s, robustness 2.
    assert_eq!((v4.ttl, v4.protocol), (1, 2));
    assert_eq!(v4.body()[..2], [0x30, 20]);
    assert_eq!(v4.body()[4..8], [0, 2, 0, 2]);
    // A switch sends a solicitation, which is answered within two seconds.
    let before = wire.to("224.0.0.106").len();
    let solicitation = checksummed(&[0x31, 0, 0, 0]);
    Injector::new(&star.rcv, "eth1").send(&igmp_frame(
        [10, 0, 1, 10],
        [224, 0, 0, 2],
        &solicitation,
        1,
        true,
    ));
    eventually("answered", true, || wire.to("224.0.0.106").len() > before);
    let last = |wire: &Capture, to: &str| wire.to(to).last().map(|s| s.body()[0]);
    // A reload changes on which links the router is announced, also on a link without members.
    let alone = toml.replace("mrdisc = true", "mrdisc = false")
        + "[[interface]]\nname = \"in\"\nmrdisc = true\n";
    router.write_settings(&alone);
    router.control().expect_ok(&serde_json::json!("reload"));
    eventually("a termination", Some(0x32), || last(&wire, "224.0.0.106"));
    // The message follows the hop-by-hop header.
    eventually("a termination in IPv6", Some(153), || {
        wire.to("ff02::6a").last().map(|s| s.body()[8])
    });
    let wire = Capture::new(&star.src, "eth0");
    eventually("the router is announced on the other link", true, || {
        !wire.to("224.0.0.106").is_empty()
    });
    let before = wire.to("224.0.0.106").len();
    let (host, routers) = ([10, 0, 0, 10], [224, 0, 0, 2]);
    Injector::new(&star.src, "eth0").send(&igmp_frame(host, routers, &solicitation, 1, true));
    eventually("answered", true, || wire.to("224.0.0.106").len() > before);
    router.stop();
    eventually("a termination on exit", Some(0x32), || {
        last(&wire, "224.0.0.106")
    });
}
