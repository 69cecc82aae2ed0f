//! Proxies with hosts of several protocol versions on one link, source filters of real sockets, and
//! the kernel's host side upstream.

use super::cases;
use crate::lab::proxy::{checksummed, igmp_frame, joined, member, members, proxy};
use crate::lab::{
    Capture, GroupMember, Injector, IpPacket, Lab, Router, Star, Udp, UdpRx, eventually, switch,
};

cases!("proxy_hosts":
    #[LinkKind("bridge")] igmpv1_host_disables_leaves,
    #[LinkKind("bridge")] igmpv2_host_disables_source_filtering,
    #[LinkKind("bridge")] mldv1_host_disables_source_filtering,
    socket_source_joins_and_leaves_reach_upstream,
    excluded_source_is_dropped_and_excluded_upstream,
    long_exclude_list_is_reported_exactly,
    upstream_igmp_queriers_are_answered_in_their_version,
    upstream_mldv1_querier_is_answered_in_mldv1,
    upstream_reports_are_ignored,
);

const GROUP: &str = "225.1.2.3";

fn version(router: &Router, group: &str) -> Option<String> {
    let member = member(router, "out1", group)?;
    member["version"].as_str().map(String::from)
}

fn igmpv1_host_disables_leaves(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let hosts = switch(lab, &star, "mcast_snooping 0", &["old", "new"]);
    hosts[0].sysctl("net/ipv4/conf/eth0/force_igmp_version", "1");
    hosts[1].sysctl("net/ipv4/conf/eth0/force_igmp_version", "3");
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    let new = UdpRx::join(&hosts[1], "eth0", "225.1.2.3:5000");
    eventually("version 3", Some("3".into()), || version(&router, GROUP));
    let old = UdpRx::join(&hosts[0], "eth0", "225.1.2.3:5000");
    eventually("version 1", Some("1".into()), || version(&router, GROUP));
    let group_queries = || {
        let labels = [
            ("iface", "out1"),
            ("direction", "transmitted"),
            ("type", "group_query"),
        ];
        router.metric("mcastor_igmp_messages_total", &labels)
    };
    let v3_messages = || {
        let labels = [
            ("iface", "out1"),
            ("direction", "received"),
            ("version", "3"),
        ];
        router.metric("mcastor_igmp_messages_total", &labels)
    };
    let before = v3_messages();
    drop(new);
    eventually("the leave arrived", true, || v3_messages() > before);
    // No group query is sent, and the old host still receives the stream.
    let inject = Injector::new(&star.src, "eth0");
    for _ in 0..50 {
        inject.send(&Udp::new("10.0.0.10:9", "225.1.2.3:5000", "x").frame());
    }
    old.expect(50);
    assert_eq!(group_queries(), 0.0);
    assert_eq!(version(&router, GROUP), Some("1".into()));
    // An IGMPv1 host leaves silently; its membership expires.
    drop(old);
    eventually("the membership expires", 0, || members(&router).len());
}

/// While an old host is a member too, a newer host that joined one source gets all sources, because
/// the old host cannot select sources.
fn assert_source_filtering_disabled(
    lab: &Lab,
    sysctl: &str,
    group: &str,
    from: [&str; 2],
    versions: [&str; 2],
) {
    let star = Star::dual(lab, 1);
    let hosts = switch(lab, &star, "mcast_snooping 0", &["old", "new"]);
    hosts[0].sysctl(sysctl, versions[0]);
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    let _new = GroupMember::new(&hosts[1], "eth0", group).join(from[0]);
    let one_source = vec![format!("{group} include [{:?}]", from[0])];
    eventually("one source upstream", one_source.clone(), || {
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
    eventually("packets of one source", 20, data);
    router.expect_dropped("not_wanted", "in", 20);
    let old = UdpRx::join(&hosts[0], "eth0", &dst);
    eventually("the old version", Some(versions[0].into()), || {
        version(&router, group)
    });
    eventually(
        "all sources upstream",
        vec![format!("{group} exclude []")],
        || joined(&router, "in"),
    );
    send();
    eventually("packets of all sources", 60, data);
    old.expect(40);
    drop(old);
    // After the last old host has left, one source remains (RFC 9776 section 7.3.2).
    eventually("one source again", one_source, || joined(&router, "in"));
}

fn igmpv2_host_disables_source_filtering(lab: &Lab) {
    let sysctl = "net/ipv4/conf/eth0/force_igmp_version";
    assert_source_filtering_disabled(lab, sysctl, GROUP, ["10.0.0.10", "10.0.0.11"], ["2", "3"]);
}

fn mldv1_host_disables_source_filtering(lab: &Lab) {
    let sysctl = "net/ipv6/conf/eth0/force_mld_version";
    assert_source_filtering_disabled(
        lab,
        sysctl,
        "ff0e::8000:7",
        ["fd00::10", "fd00::11"],
        ["1", "2"],
    );
}

fn socket_source_joins_and_leaves_reach_upstream(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    for (group, a, b) in [
        ("232.1.2.3", "10.0.0.10", "10.0.0.11"),
        ("ff3e::8000:1", "fd00::10", "fd00::11"),
    ] {
        let expect_joined = |expected: &str| {
            let expected = format!("{group} {expected}");
            eventually("joined upstream", true, || {
                joined(&router, "in").contains(&expected)
            });
        };
        let member = GroupMember::new(&star.rcv, "eth1", group).join(a);
        expect_joined(&format!("include [{a:?}]"));
        // ALLOW_NEW_SOURCES, then BLOCK_OLD_SOURCES.
        let member = member.join(b);
        expect_joined(&format!("include [{a:?}, {b:?}]"));
        member.leave(a);
        expect_joined(&format!("include [{b:?}]"));
        drop(member);
        eventually("left", true, || {
            !joined(&router, "in").iter().any(|j| j.starts_with(group))
        });
    }
}

/// Returns type and sources of the IGMPv3 report records for a group.
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

fn excluded_source_is_dropped_and_excluded_upstream(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let up = Capture::new(&star.src, "eth0");
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    let member = GroupMember::any_source(&star.rcv, "eth1", GROUP);
    member.block("10.0.0.66");
    let excluded = vec![format!("{GROUP} exclude [\"10.0.0.66\"]")];
    eventually("excluded upstream", excluded.clone(), || {
        joined(&router, "in")
    });
    // On the wire: TO_EX or BLOCK with exactly the excluded source.
    eventually("reported upstream", true, || {
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
        let matches = |s: &IpPacket| s.protocol == 17 && s.src.to_string() == source;
        wire.to(GROUP).into_iter().filter(matches).count()
    };
    let counts = || [data("10.0.0.10"), data("10.0.0.66"), data("10.0.0.11")];
    send();
    eventually("two of three sources", [20, 0, 20], counts);
    router.expect_dropped("not_wanted", "in", 20);
    // The source is unblocked: ALLOW.
    member.unblock("10.0.0.66");
    eventually(
        "nothing excluded",
        vec![format!("{GROUP} exclude []")],
        || joined(&router, "in"),
    );
    send();
    eventually("all sources", [40, 20, 40], counts);
    // The source is blocked again.
    member.block("10.0.0.66");
    eventually("excluded again", excluded, || joined(&router, "in"));
    send();
    eventually("two of three sources again", [60, 20, 60], counts);
}

/// The kernel excludes at most ten sources of a group; reports exclude all of them.
fn long_exclude_list_is_reported_exactly(lab: &Lab) {
    let star = Star::v4(lab, 1);
    // The host may exclude more sources than the router's kernel.
    star.rcv.sysctl("net/ipv4/igmp_max_msf", "64");
    let up = Capture::new(&star.src, "eth0");
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    let host = GroupMember::any_source(&star.rcv, "eth1", GROUP);
    let blocked: Vec<String> = (0..12).map(|n| format!("10.0.0.{}", 100 + n)).collect();
    blocked.iter().for_each(|source| host.block(source));
    let shown = vec![format!("{GROUP} exclude {blocked:?}")];
    eventually("twelve sources are excluded", shown, || {
        joined(&router, "in")
    });
    // The list that follows from all reports on the wire, those of the kernel included.
    let reported = || {
        let mut excluded: Option<std::collections::BTreeSet<String>> = None;
        for (kind, sources) in records(&up, GROUP) {
            let sources = sources.into_iter().collect();
            match (kind, &mut excluded) {
                (2 | 4, _) => excluded = Some(sources),
                (6, Some(excluded)) => excluded.extend(sources),
                (5, Some(excluded)) => excluded.retain(|s| !sources.contains(s)),
                (3, _) => excluded = None,
                _ => {}
            }
        }
        excluded
    };
    let all = Some(blocked.into_iter().collect());
    eventually("twelve sources on the wire", all, reported);
    drop(host);
    eventually("left", None, reported);
}

fn upstream_igmp_queriers_are_answered_in_their_version(lab: &Lab) {
    // The max response code of an IGMPv1 query is zero; IGMPv2 sets it to the response time.
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

fn upstream_mldv1_querier_is_answered_in_mldv1(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let group = "ff0e::8000:1";
    let wire = Capture::new(&star.src, "eth0");
    // Here the bridge, which is an MLDv1 querier, is upstream.
    star.src.ip_batch(
        "link add br0 type bridge mcast_snooping 1 mcast_querier 1 mcast_mld_version 1 \
         mcast_query_interval 100 mcast_startup_query_interval 50 mcast_query_response_interval 30\n\
         link set eth0 master br0\nlink set br0 up\n",
    );
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    let _rx = UdpRx::join(&star.rcv, "eth1", "[ff0e::8000:1]:5000");
    // A hop-by-hop header of 8 octets, then ICMPv6 type 131.
    eventually("a report of version 1", true, || {
        wire.to(group)
            .iter()
            .any(|s| s.ip.get(40..49).is_some_and(|h| h[0] == 58 && h[8] == 131))
    });
    drop(router);
}

/// RFC 4605 section 3: on its upstream the router acts as a host, so reports there are ignored.
fn upstream_reports_are_ignored(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let up = Capture::new(&star.src, "eth0");
    let router = Router::start(
        lab,
        &star.rtr,
        &proxy(&["in"], &["out*"], "upward = false\n"),
    );
    let _upstream_member = UdpRx::join(&star.src, "eth0", "225.9.9.9:5000");
    let _downstream_member = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    eventually("one member, downstream", 1, || members(&router).len());
    assert!(member(&router, "out1", GROUP).is_some());
    // A downstream host sends to the group that only the upstream host reported.
    let inject = Injector::new(&star.rcv, "eth2");
    for _ in 0..20 {
        inject.send(&Udp::new("10.0.2.10:9", "225.9.9.9:5000", "x").frame());
    }
    router.expect_dropped("no_route", "out2", 20);
    let by_router = |s: &&IpPacket| s.src.to_string() == "10.0.0.1";
    let queries = up.to("224.0.0.1");
    assert_eq!(
        queries.iter().filter(by_router).count(),
        0,
        "queries were sent upstream"
    );
    assert!(up.to("225.9.9.9").iter().all(|s| s.protocol != 17));
}
