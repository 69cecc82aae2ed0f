//! Proxies and hand-written messages: querier election, refused reports, and router discovery.

use super::cases;
use crate::lab::proxy::{
    checksummed, igmp_frame, known_groups, member, members, proxy, querier, refused, report,
};
use crate::lab::{Capture, Injector, Lab, Router, Star, UdpRx, eventually};

cases!("proxy_messages":
    querier_election_lowest_address_wins,
    header_checks_refuse_or_accept_invalid_reports,
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
    for lenient in [false, true] {
        let star = Star::v4(lab, 1);
        let extra = if lenient {
            "header_checks = \"lenient\"\n"
        } else {
            ""
        };
        let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], extra));
        let tx = Injector::new(&star.rcv, "eth1");
        let all = [224, 0, 0, 22];
        tx.send(&igmp_frame(
            [10, 0, 1, 10],
            all,
            &report([225, 0, 0, 1]),
            2,
            true,
        ));
        tx.send(&igmp_frame(
            [10, 0, 1, 10],
            all,
            &report([225, 0, 0, 2]),
            1,
            false,
        ));
        tx.send(&igmp_frame(
            [192, 0, 2, 1],
            all,
            &report([225, 0, 0, 3]),
            1,
            true,
        ));
        let mut broken = report([225, 0, 0, 4]);
        broken[2] ^= 1;
        tx.send(&igmp_frame([10, 0, 1, 10], all, &broken, 1, true));
        let mut wrong_count = report([225, 0, 0, 5]);
        wrong_count[7] = 2;
        tx.send(&igmp_frame(
            [10, 0, 1, 10],
            all,
            &checksummed(&wrong_count),
            1,
            true,
        ));
        tx.send(&igmp_frame(
            [10, 0, 1, 10],
            all,
            &report([225, 0, 0, 6]),
            1,
            true,
        ));
        let refused = |reason: &str| refused(&router, reason);
        eventually("the last report is processed", true, || {
            member(&router, "out1", "225.0.0.6").is_some()
        });
        let groups = members(&router).len();
        assert_eq!(
            (refused("bad_checksum"), refused("lying_count")),
            (1.0, 1.0)
        );
        let strict = [
            refused("ttl"),
            refused("no_router_alert"),
            refused("off_link"),
        ];
        if lenient {
            assert_eq!((strict, groups), ([0.0; 3], 4));
        } else {
            assert_eq!((strict, groups), ([1.0; 3], 1));
        }
    }
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
