//! Proxies and hosts of several versions on one link, source filters made by real sockets, and
//! the host side of this kernel upstream.

use super::cases;
use crate::lab::proxy::{checksummed, igmp_frame, joined, member, members, proxy};
use crate::lab::{
    Capture, Injector, Lab, Member, Router, Seen, Star, Udp, UdpRx, eventually, switch,
};

cases!("proxy_hosts":
    #[LinkKind("bridge")] beside_a_host_of_igmpv1_leaves_count_for_nothing,
    #[LinkKind("bridge")] beside_a_host_of_igmpv2_sources_count_for_nothing,
    #[LinkKind("bridge")] beside_a_host_of_mldv1_sources_count_for_nothing,
    sources_allowed_and_blocked_by_a_socket,
    an_excluded_source_is_not_forwarded_and_excluded_upstream,
    too_many_excluded_sources_are_widened_upstream,
    queriers_of_old_versions_upstream_are_answered_in_theirs,
    queriers_of_mldv1_upstream_are_answered_in_theirs,
    what_is_reported_upstream_counts_for_nothing,
);

const GROUP: &str = "225.1.2.3";

fn version(router: &Router, group: &str) -> Option<String> {
    let member = member(router, "out1", group)?;
    member["version"].as_str().map(String::from)
}

fn beside_a_host_of_igmpv1_leaves_count_for_nothing(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let hosts = switch(lab, &star, "mcast_snooping 0", &["old", "new"]);
    hosts[0].sysctl("net/ipv4/conf/eth0/force_igmp_version", "1");
    hosts[1].sysctl("net/ipv4/conf/eth0/force_igmp_version", "3");
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    let new = UdpRx::join(&hosts[1], "eth0", "225.1.2.3:5000");
    eventually("of version 3", Some("3".into()), || version(&router, GROUP));
    let old = UdpRx::join(&hosts[0], "eth0", "225.1.2.3:5000");
    eventually("of version 1", Some("1".into()), || version(&router, GROUP));
    let asked = || {
        let labels = [
            ("iface", "out1"),
            ("direction", "transmitted"),
            ("type", "group_query"),
        ];
        router.metric("mcastor_igmp_messages_total", &labels)
    };
    let heard = || {
        let labels = [
            ("iface", "out1"),
            ("direction", "received"),
            ("version", "3"),
        ];
        router.metric("mcastor_igmp_messages_total", &labels)
    };
    let before = heard();
    drop(new);
    eventually("the leave was heard", true, || heard() > before);
    // Nobody is asked, and the old host goes on being served.
    let inject = Injector::new(&star.src, "eth0");
    for _ in 0..50 {
        inject.send(&Udp::new("10.0.0.10:9", "225.1.2.3:5000", "x").frame());
    }
    old.expect(50);
    assert_eq!(asked(), 0.0);
    assert_eq!(version(&router, GROUP), Some("1".into()));
    // It ends without a word; its time runs out.
    drop(old);
    eventually("the group times out", 0, || members(&router).len());
}

/// Of two hosts, one of version 3 that wants one source: both get all sources while the other is
/// there, for the one cannot say what it wants.
fn sources_beside(lab: &Lab, sysctl: &str, group: &str, from: [&str; 2], versions: [&str; 2]) {
    let star = Star::dual(lab, 1);
    let hosts = switch(lab, &star, "mcast_snooping 0", &["old", "new"]);
    hosts[0].sysctl(sysctl, versions[0]);
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    let _new = Member::new(&hosts[1], "eth0", group).join(from[0]);
    let of_one = vec![format!("{group} include [{:?}]", from[0])];
    eventually("one source upstream", of_one.clone(), || {
        joined(&router, "in")
    });
    assert_eq!(version(&router, group), Some(versions[1].into()));
    let wire = Capture::new(&hosts[1], "eth0");
    let data = || {
        wire.to(group)
            .into_iter()
            .filter(|s| s.protocol == 17)
            .count()
    };
    let inject = Injector::new(&star.src, "eth0");
    let dst = if group.contains(':') {
        format!("[{group}]:5000")
    } else {
        format!("{group}:5000")
    };
    let send = || {
        for source in from {
            let src = if source.contains(':') {
                format!("[{source}]:9")
            } else {
                format!("{source}:9")
            };
            (0..20).for_each(|_| inject.send(&Udp::new(&src, &dst, "x").frame()));
        }
    };
    send();
    eventually("one source", 20, data);
    router.expect_dropped("not_wanted", "in", 20);
    let old = UdpRx::join(&hosts[0], "eth0", &dst);
    eventually("of the old version", Some(versions[0].into()), || {
        version(&router, group)
    });
    eventually("all upstream", vec![format!("{group} exclude []")], || {
        joined(&router, "in")
    });
    send();
    eventually("all sources", 60, data);
    old.expect(40);
    drop(old);
    // With the last old host gone, one source is left (RFC 9776 section 7.3.2).
    eventually("one source again", of_one, || joined(&router, "in"));
}

fn beside_a_host_of_igmpv2_sources_count_for_nothing(lab: &Lab) {
    let sysctl = "net/ipv4/conf/eth0/force_igmp_version";
    sources_beside(lab, sysctl, GROUP, ["10.0.0.10", "10.0.0.11"], ["2", "3"]);
}

fn beside_a_host_of_mldv1_sources_count_for_nothing(lab: &Lab) {
    let sysctl = "net/ipv6/conf/eth0/force_mld_version";
    sources_beside(
        lab,
        sysctl,
        "ff0e::8000:7",
        ["fd00::10", "fd00::11"],
        ["1", "2"],
    );
}

fn sources_allowed_and_blocked_by_a_socket(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    for (group, a, b) in [
        ("232.1.2.3", "10.0.0.10", "10.0.0.11"),
        ("ff3e::8000:1", "fd00::10", "fd00::11"),
    ] {
        let is = |want: &str| {
            let want = format!("{group} {want}");
            eventually("joined upstream", true, || {
                joined(&router, "in").contains(&want)
            });
        };
        let member = Member::new(&star.rcv, "eth1", group).join(a);
        is(&format!("include [{a:?}]"));
        // ALLOW_NEW_SOURCES, then BLOCK_OLD_SOURCES.
        let member = member.join(b);
        is(&format!("include [{a:?}, {b:?}]"));
        member.leave(a);
        is(&format!("include [{b:?}]"));
        drop(member);
        eventually("left", true, || {
            !joined(&router, "in").iter().any(|j| j.starts_with(group))
        });
    }
}

/// Records of IGMPv3 reports for a group: type and sources.
fn records(wire: &Capture, group: &str) -> Vec<(u8, Vec<String>)> {
    let group: std::net::Ipv4Addr = group.parse().expect("v4");
    let mut found = Vec::new();
    for report in wire.to("224.0.0.22") {
        let mut rest = report.body().get(8..).unwrap_or_default();
        while let [kind, aux, hi, lo, g0, g1, g2, g3, more @ ..] = rest {
            let count = usize::from(u16::from_be_bytes([*hi, *lo]));
            let sources = more.get(..4 * count).unwrap_or_default();
            if [*g0, *g1, *g2, *g3] == group.octets() {
                let text = |s: &[u8]| format!("{}.{}.{}.{}", s[0], s[1], s[2], s[3]);
                found.push((*kind, sources.chunks(4).map(text).collect()));
            }
            rest = more
                .get(4 * (count + usize::from(*aux))..)
                .unwrap_or_default();
        }
    }
    found
}

fn an_excluded_source_is_not_forwarded_and_excluded_upstream(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let up = Capture::new(&star.src, "eth0");
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    let member = Member::of_all(&star.rcv, "eth1", GROUP);
    member.block("10.0.0.66");
    let excluded = vec![format!("{GROUP} exclude [\"10.0.0.66\"]")];
    eventually("excluded upstream", excluded.clone(), || {
        joined(&router, "in")
    });
    // On the wire: TO_EX or BLOCK of the source, and no source that nobody excluded.
    eventually("said upstream", true, || {
        let with = |(kind, sources): &(u8, Vec<String>)| {
            matches!(kind, 2 | 4 | 6) && sources == &["10.0.0.66"]
        };
        records(&up, GROUP).iter().any(with)
    });
    let wire = Capture::new(&star.rcv, "eth1");
    let inject = Injector::new(&star.src, "eth0");
    let send = || {
        for source in ["10.0.0.10:9", "10.0.0.66:9", "10.0.0.11:9"] {
            (0..20).for_each(|_| inject.send(&Udp::new(source, "225.1.2.3:5000", "x").frame()));
        }
    };
    let data = |source: &str| {
        let of = |s: &Seen| s.protocol == 17 && s.src.to_string() == source;
        wire.to(GROUP).into_iter().filter(of).count()
    };
    let counts = || [data("10.0.0.10"), data("10.0.0.66"), data("10.0.0.11")];
    send();
    eventually("all but one", [20, 0, 20], counts);
    router.expect_dropped("not_wanted", "in", 20);
    // Wanted again: ALLOW.
    member.unblock("10.0.0.66");
    eventually(
        "nothing excluded",
        vec![format!("{GROUP} exclude []")],
        || joined(&router, "in"),
    );
    send();
    eventually("all", [40, 20, 40], counts);
    // Another host that wants it makes it wanted.
    member.block("10.0.0.66");
    eventually("excluded again", excluded, || joined(&router, "in"));
    send();
    eventually("all but one", [60, 20, 60], counts);
}

fn too_many_excluded_sources_are_widened_upstream(lab: &Lab) {
    let star = Star::v4(lab, 1);
    // The host may exclude more than the kernel of the router can.
    star.rcv.sysctl("net/ipv4/igmp_max_msf", "64");
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    let host = Member::of_all(&star.rcv, "eth1", GROUP);
    (0..10).for_each(|n| host.block(&format!("10.0.0.{}", 100 + n)));
    let count = || {
        let mine = joined(&router, "in").into_iter().next().unwrap_or_default();
        mine.matches("10.0.0.").count()
    };
    eventually("ten are carried", 10, count);
    let widened = || router.metric("mcastor_upstream_filters_widened_total", &[("iface", "in")]);
    assert_eq!(widened(), 0.0);
    host.block("10.0.0.110");
    eventually("counted", 1.0, widened);
    let groups = router.control().show("groups");
    let row = groups
        .iter()
        .find(|g| g["role"] == "host" && g["group"] == GROUP);
    let row = row.expect("joined upstream");
    assert!(row["error"].is_string(), "{row}");
    assert!(
        router.tell("show groups").contains("no longer list"),
        "{row}"
    );
    // The eleventh is still not forwarded.
    let wire = Capture::new(&star.rcv, "eth1");
    let inject = Injector::new(&star.src, "eth0");
    eventually("known downstream", Some(11), || {
        Some(member(&router, "out1", GROUP)?["sources"].as_array()?.len())
    });
    for source in ["10.0.0.110:9", "10.0.0.105:9", "10.0.0.10:9"] {
        (0..10).for_each(|_| inject.send(&Udp::new(source, "225.1.2.3:5000", "x").frame()));
    }
    router.expect_dropped("not_wanted", "in", 20);
    let data = || {
        wire.to(GROUP)
            .into_iter()
            .filter(|s| s.protocol == 17)
            .count()
    };
    eventually("the rest", 10, data);
    // One less, and the kernel can carry it again.
    host.unblock("10.0.0.100");
    eventually("carried again", 10, count);
    let groups = router.control().show("groups");
    let row = groups
        .iter()
        .find(|g| g["role"] == "host" && g["group"] == GROUP);
    assert!(row.is_some_and(|r| r["error"].is_null()), "{row:?}");
}

fn queriers_of_old_versions_upstream_are_answered_in_theirs(lab: &Lab) {
    // The code of a query of version 1 is zero; version 2 puts the response time there.
    for (code, report) in [(0u8, 0x12u8), (5, 0x16)] {
        let star = Star::v4(lab, 1);
        let wire = Capture::new(&star.src, "eth0");
        let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
        let _rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
        eventually("reported in version 3", true, || {
            wire.to("224.0.0.22").iter().any(|s| s.body()[0] == 0x22)
        });
        let query = checksummed(&[0x11, code, 0, 0, 0, 0, 0, 0]);
        let all = [224, 0, 0, 1];
        Injector::new(&star.src, "eth0").send(&igmp_frame([10, 0, 0, 10], all, &query, 1, true));
        eventually("answered in its version", true, || {
            wire.to(GROUP)
                .iter()
                .any(|s| s.protocol == 2 && s.body()[0] == report)
        });
        drop(router);
    }
}

fn queriers_of_mldv1_upstream_are_answered_in_theirs(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let group = "ff0e::8000:1";
    let wire = Capture::new(&star.src, "eth0");
    // The bridge of the switch is such a querier; here it stands upstream.
    star.src.ip_batch(
        "link add br0 type bridge mcast_snooping 1 mcast_querier 1 mcast_mld_version 1 \
         mcast_query_interval 100 mcast_startup_query_interval 50 mcast_query_response_interval 30\n\
         link set eth0 master br0\nlink set br0 up\n",
    );
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    let _rx = UdpRx::join(&star.rcv, "eth1", "[ff0e::8000:1]:5000");
    // Hop-by-hop header of 8 octets, then type 131.
    eventually("a report of version 1", true, || {
        wire.to(group)
            .iter()
            .any(|s| s.ip.get(40..49).is_some_and(|h| h[0] == 58 && h[8] == 131))
    });
    drop(router);
}

/// RFC 4605 section 3: upstream we are a host.
fn what_is_reported_upstream_counts_for_nothing(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let up = Capture::new(&star.src, "eth0");
    let router = Router::start(
        lab,
        &star.rtr,
        &proxy(&["in"], &["out*"], "upward = false\n"),
    );
    let _there = UdpRx::join(&star.src, "eth0", "225.9.9.9:5000");
    let _here = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    eventually("one member, ours", 1, || members(&router).len());
    assert!(member(&router, "out1", GROUP).is_some());
    // A stream of a downstream host for what only the host upstream reported.
    let inject = Injector::new(&star.rcv, "eth2");
    for _ in 0..20 {
        inject.send(&Udp::new("10.0.2.10:9", "225.9.9.9:5000", "x").frame());
    }
    router.expect_dropped("no_route", "out2", 20);
    let ours = |s: &&Seen| s.src.to_string() == "10.0.0.1";
    let queries = up.to("224.0.0.1");
    assert_eq!(queries.iter().filter(ours).count(), 0, "we asked upstream");
    assert!(up.to("225.9.9.9").iter().all(|s| s.protocol != 17));
}
