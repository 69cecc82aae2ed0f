//! Proxies and messages written by hand: who is elected, what is refused, what is announced.

use super::cases;
use crate::lab::proxy::{
    checksummed, igmp_frame, known_groups, member, members, proxy, querier, refused, report,
};
use crate::lab::{Capture, Injector, Lab, Router, Star, UdpRx, eventually};

cases!("proxy_messages":
    a_lower_address_asks_instead,
    careless_reports_are_refused_or_taken,
    limits_and_lists_refuse,
    routers_are_announced_in_both_versions,
);

/// An IGMPv3 general query, written by hand (RFC 9776 section 4.1).
fn general_query(from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    // Robustness 2, query interval 2 s.
    let body = [0x11, 3, 0, 0, 0, 0, 0, 0, 2, 2, 0, 0];
    igmp_frame(from, to, &checksummed(&body), 1, true)
}

fn a_lower_address_asks_instead(lab: &Lab) {
    let star = Star::v4(lab, 1);
    // We are 10.0.1.1; a rival at .0 would not be a host, so ours is higher here.
    star.rtr.ip("address del 10.0.1.1/24 dev out1");
    star.rtr.ip("address add 10.0.1.100/24 dev out1");
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    eventually("we ask", (Some("10.0.1.100".into()), true), || {
        querier(&router, "out1", "igmp")
    });
    let changes = || {
        let labels = [("iface", "out1"), ("protocol", "igmp")];
        router.metric("mcastor_querier_changes_total", &labels)
    };
    let before = changes();
    let rival = Injector::new(&star.rcv, "eth1");
    // Higher addresses, queries to us alone and from nowhere win nothing.
    for (from, to) in [
        ([10, 0, 1, 200], [224, 0, 0, 1]),
        ([10, 0, 1, 10], [10, 0, 1, 100]),
        ([0, 0, 0, 0], [224, 0, 0, 1]),
    ] {
        rival.send(&general_query(from, to));
    }
    eventually("one is refused", 1.0, || {
        refused(&router, "query_unspecified")
    });
    assert!(querier(&router, "out1", "igmp").1);
    assert_eq!(changes(), before);
    rival.send(&general_query([10, 0, 1, 10], [224, 0, 0, 1]));
    eventually("it asks", (Some("10.0.1.10".into()), false), || {
        querier(&router, "out1", "igmp")
    });
    assert_eq!(changes(), before + 1.0);
    // A host that answers the rival is heard all the same.
    let rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    eventually("a member", 1, || members(&router).len());
    // It falls silent: we ask again (2 s x 2 + 150 ms).
    eventually("we ask again", (Some("10.0.1.100".into()), true), || {
        querier(&router, "out1", "igmp")
    });
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

fn careless_reports_are_refused_or_taken(lab: &Lab) {
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
        let mut lying = report([225, 0, 0, 5]);
        lying[7] = 2;
        tx.send(&igmp_frame(
            [10, 0, 1, 10],
            all,
            &checksummed(&lying),
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
        eventually("the last is in", true, || {
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

fn limits_and_lists_refuse(lab: &Lab) {
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

fn routers_are_announced_in_both_versions(lab: &Lab) {
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
    // A switch asks: answered within two seconds.
    let before = wire.to("224.0.0.106").len();
    let ask = checksummed(&[0x31, 0, 0, 0]);
    Injector::new(&star.rcv, "eth1").send(&igmp_frame(
        [10, 0, 1, 10],
        [224, 0, 0, 2],
        &ask,
        1,
        true,
    ));
    eventually("answered", true, || wire.to("224.0.0.106").len() > before);
    let last = |wire: &Capture, to: &str| wire.to(to).last().map(|s| s.body()[0]);
    // By a reload too, and of a link that is announced alone.
    let alone = toml.replace("mrdisc = true", "mrdisc = false")
        + "[[interface]]\nname = \"in\"\nmrdisc = true\n";
    router.rewrite(&alone);
    router.control().must(&serde_json::json!("reload"));
    eventually("a termination", Some(0x32), || last(&wire, "224.0.0.106"));
    // Behind the hop-by-hop header.
    eventually("IPv6", Some(153), || {
        wire.to("ff02::6a").last().map(|s| s.body()[8])
    });
    let wire = Capture::new(&star.src, "eth0");
    eventually("the other", true, || !wire.to("224.0.0.106").is_empty());
    let before = wire.to("224.0.0.106").len();
    let (host, routers) = ([10, 0, 0, 10], [224, 0, 0, 2]);
    Injector::new(&star.src, "eth0").send(&igmp_frame(host, routers, &ask, 1, true));
    eventually("answered", true, || wire.to("224.0.0.106").len() > before);
    router.stop();
    eventually("a termination at the end", Some(0x32), || {
        last(&wire, "224.0.0.106")
    });
}
