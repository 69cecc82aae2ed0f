//! Reports of joined groups: answers to queries, versions, refreshes, and changes of the link.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use super::joins::{derived_filters, kernel, records};
use super::{cases, route};
use crate::lab::frame::{ethernet, transport_sum};
use crate::lab::proxy::{checksummed, igmp_frame, joined, proxy};
use crate::lab::switch::{upstream_switch, wait_until_snooping};
use crate::lab::{
    Capture, Frr, GroupMember, Injector, IpPacket, Lab, Ns, NumberedStream, Router, Star, TIMEOUT,
    bridge, eventually, missing, received_in_order, wait_until,
};
use mcastor::model::{Source, SourceFilter};

cases!("host_reports":
    #[LinkKind("bridge")] #[Iptables] stream_outlives_input_drop_behind_a_snooping_switch,
    #[LinkKind("bridge")] switch_keeps_the_exact_filter,
    #[LinkKind("bridge")] older_switch_queriers_are_answered_in_their_version,
    #[Program("vtysh", "frr")] pimd_learns_25_sources_exactly,
    messages_equal_those_of_a_kernel_host,
    returned_carrier_reports_the_filter_within_a_second,
    late_and_changed_addresses_are_reported,
    refresh_reports_without_queries,
    configured_version_is_used_without_kernel_joins,
    forced_version_of_the_kernel_is_used,
    leave_of_another_program_is_corrected,
    only_queried_sources_are_reported,
    queries_to_the_address_of_the_host_are_answered,
);

const GROUP: &str = "225.1.2.3";

pub(super) fn iptables(ns: &Ns, rules: &[&str]) {
    for rule in rules {
        let words: Vec<&str> = rule.split_whitespace().collect();
        let out = ns.output("iptables", &words);
        assert!(out.status.success(), "iptables {rule}: {out:?}");
    }
}

/// The kernel receives no query, so only mcastor can answer. The membership interval is 7 s.
fn stream_outlives_input_drop_behind_a_snooping_switch(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let options = "mcast_query_interval 300 mcast_membership_interval 700 \
                   mcast_startup_query_interval 200 mcast_query_use_ifaddr 1 \
                   mcast_query_response_interval 100 mcast_last_member_interval 100";
    let sw = upstream_switch(lab, &star, options);
    iptables(&star.rtr, &["-A INPUT -i lo -j ACCEPT", "-P INPUT DROP"]);
    let router = Router::start(lab, &star.rtr, &route("r", "in", "", GROUP, &["out1"], ""));
    eventually("the switch knows the member", true, || {
        bridge(&sw, "mdb show").contains(GROUP)
    });
    // The switch considers its own querier valid only after a while, and floods until then.
    let at_in = Capture::new(&star.rtr, "in");
    let inject = Injector::new(&star.src, "eth0");
    wait_until_snooping(&inject, &at_in, &["225.9.9.9"]);
    let wire = Capture::new(&star.rcv, "eth1");
    let flow = NumberedStream::start(&star.src, "eth0", "10.0.0.10:9", "225.1.2.3:5000", 100);
    wait_until(Duration::from_secs(18), || false);
    let sent = flow.finish();
    eventually("the last packet", true, || {
        received_in_order(&wire, GROUP).last() == Some(&(sent - 1))
    });
    let lost = missing(sent, &received_in_order(&wire, GROUP));
    assert!(lost.is_empty(), "{} of {sent} packets lost", lost.len());
    let queries = [
        ("iface", "in"),
        ("direction", "received"),
        ("type", "general_query"),
    ];
    assert!(router.metric("mcastor_igmp_messages_total", &queries) >= 5.0);
}

/// Returns the filter that the switch has for a group at a port, from the detailed output of
/// `bridge mdb`.
fn switch_filter(sw: &Ns, port: &str, group: &str) -> Option<(String, BTreeSet<String>)> {
    let table = bridge(sw, "-d mdb show");
    let line = table.lines().find(|line| {
        line.contains(&format!("port {port} grp {group} ")) && !line.contains(" src ")
    })?;
    let mut words = line.split_whitespace();
    words.find(|word| *word == "filter_mode")?;
    let mode = words.next()?.to_string();
    let sources = match words.find(|word| *word == "source_list") {
        None => BTreeSet::new(),
        Some(_) => words
            .next()?
            .split(',')
            .filter_map(|entry| entry.split('/').next())
            .map(String::from)
            .collect(),
    };
    Some((mode, sources))
}

/// Both mcastor and the kernel answer the queries of the switch. Together they have the exact
/// filter, with more sources than a socket carries.
fn switch_keeps_the_exact_filter(lab: &Lab) {
    let star = Star::v4(lab, 1);
    star.rcv.sysctl("net/ipv4/igmp_max_msf", "64");
    let options = "mcast_query_interval 100 mcast_query_response_interval 50 \
                   mcast_startup_query_interval 50 mcast_membership_interval 300";
    let sw = upstream_switch(lab, &star, options);
    let wire = Capture::new(&sw, "p1");
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    let v4 = |range: std::ops::Range<u32>| -> Vec<String> {
        range.map(|n| format!("10.1.0.{n}")).collect()
    };
    let include = v4(1..26);
    let member = include.iter().fold(
        GroupMember::new(&star.rcv, "eth1", "232.1.1.1"),
        |member, source| member.join(source),
    );
    let few = GroupMember::any_source(&star.rcv, "eth1", "225.1.1.1");
    v4(50..53).iter().for_each(|source| few.block(source));
    let many = GroupMember::any_source(&star.rcv, "eth1", "225.1.1.2");
    v4(50..65).iter().for_each(|source| many.block(source));
    let expected = [
        ("232.1.1.1", "include", v4(1..26)),
        ("225.1.1.1", "exclude", v4(50..53)),
        ("225.1.1.2", "exclude", v4(50..65)),
    ];
    let check = |when: &str| {
        for (group, mode, sources) in &expected {
            let filter = Some((mode.to_string(), sources.iter().cloned().collect()));
            eventually(&format!("{group} {when}"), filter, || {
                switch_filter(&sw, "p1", group)
            });
        }
    };
    check("after the joins");
    // The kernel answers too, except where it cannot hold the list.
    eventually("the kernel's groups", true, || {
        let kernel = kernel(&star.rtr, "in");
        kernel.contains("10.1.0.25,232.1.1.1")
            && kernel.contains("225.1.1.1")
            && !kernel.iter().any(|g| g.contains("225.1.1.2"))
    });
    // During some query rounds, every report has the exact filter.
    let before = records(&wire).len();
    wait_until(Duration::from_secs(4), || false);
    check("after query rounds");
    let later = records(&wire).split_off(before);
    for (group, mode, sources) in &expected {
        let own: Vec<_> = later.iter().filter(|r| r.1 == *group).collect();
        assert!(!own.is_empty(), "no answer for {group}");
        for (kind, _, listed) in own {
            let listed: BTreeSet<&String> = listed.iter().collect();
            let all: BTreeSet<&String> = sources.iter().collect();
            match *mode {
                "include" => assert!(matches!(kind, 1 | 5) && listed.is_subset(&all), "{kind}"),
                _ => assert!(matches!(kind, 2 | 4) && listed == all, "{kind} {listed:?}"),
            }
        }
    }
    drop((member, few, many));
    eventually("left", Vec::<String>::new(), || joined(&router, "in"));
}

/// Returns the bodies of the IGMP or MLD messages that a capture received, to any destination,
/// without duplicates: destination and body. The checksum of MLD covers the address of the sender,
/// so it is zeroed.
fn messages(capture: &Capture) -> BTreeSet<(String, Vec<u8>)> {
    let frames = capture.frames().into_iter().filter(|f| !f.outgoing);
    let packets = frames.filter_map(|f| IpPacket::parse(&f.bytes));
    let message = |packet: IpPacket| {
        let body = packet.body();
        match (packet.dst.is_ipv4(), packet.protocol) {
            (true, 2) => Some((packet.dst.to_string(), body.to_vec())),
            // A hop-by-hop header of eight bytes, then ICMPv6.
            (false, 0) if matches!(body.get(8), Some(130..=132 | 143)) => {
                let mut message = body.to_vec();
                message[10..12].fill(0);
                Some((packet.dst.to_string(), message))
            }
            _ => None,
        }
    };
    packets.filter_map(message).collect()
}

/// The same memberships, once by mcastor on `in` and once by a kernel behind `out1`, cause the same
/// messages: joins, answers to queries of each kind, and leaves.
fn messages_equal_those_of_a_kernel_host(lab: &Lab) {
    let star = Star::dual(lab, 1);
    // The kernel of the router must not report beside mcastor. Where a version is configured,
    // mcastor joins nothing in the kernel.
    let versions = "version = { igmp = 3, mld = 2 }\n";
    let router = Router::start(
        lab,
        &star.rtr,
        &format!("[[interface]]\nname = \"in\"\n{versions}"),
    );
    let ours = Capture::new(&star.src, "eth0");
    let theirs = Capture::new(&star.rtr, "out1");
    let about = |group: &str, capture: &Capture| -> BTreeSet<(String, Vec<u8>)> {
        let octets: Vec<u8> = match group.parse().expect("an address") {
            std::net::IpAddr::V4(a) => a.octets().to_vec(),
            std::net::IpAddr::V6(a) => a.octets().to_vec(),
        };
        let mut messages = messages(capture);
        // The answer to a source query, which only one of the two sends for an EXCLUDE filter.
        let is_source_answer =
            |body: &[u8]| group == "225.1.2.3" && body.get(8..12) == Some(&[1, 0, 0, 2]);
        messages.retain(|(_, body)| {
            body.windows(octets.len()).any(|w| w == octets) && !is_source_answer(body)
        });
        messages
    };
    let query_ours = Injector::new(&star.src, "eth0");
    let query_theirs = Injector::new(&star.rtr, "out1");
    for (group, sources) in [
        ("225.1.2.3", &[][..]),
        ("232.1.2.3", &["10.9.9.1"][..]),
        ("ff0e::1:2", &[][..]),
        ("ff3e::8000:3", &["2001:db8::1"][..]),
    ] {
        // The kernel sends repetitions for the previous group in one message with the next report.
        wait_until(Duration::from_millis(2500), || false);
        let compare = |step: &str, count: usize| {
            let name = format!("{group} {step}");
            eventually(&name, true, || about(group, &theirs).len() >= count);
            // Either of them may be the later one.
            wait_until(TIMEOUT, || about(group, &ours) == about(group, &theirs));
            assert_eq!(about(group, &ours), about(group, &theirs), "{name}");
        };
        let member = match sources {
            [] => GroupMember::any_source(&star.rcv, "eth1", group),
            sources => sources.iter().fold(
                GroupMember::new(&star.rcv, "eth1", group),
                |member, source| member.join(source),
            ),
        };
        let source = sources.first().unwrap_or(&"");
        let words = format!("{source} {group}");
        router.run(&format!("join in {}", words.trim()));
        compare("joins", 1);
        if let Ok(std::net::IpAddr::V4(addr)) = group.parse() {
            let [a, b, c, d] = addr.octets();
            let general = [0x11, 5, 0, 0, 0, 0, 0, 0, 2, 125, 0, 0];
            let specific = [0x11, 5, 0, 0, a, b, c, d, 2, 125, 0, 0];
            let with_source = [
                0x11, 5, 0, 0, a, b, c, d, 2, 125, 0, 2, 10, 9, 9, 1, 10, 9, 9, 2,
            ];
            for (step, to, body, count) in [
                ("general query", [224, 0, 0, 1], &general[..], 2),
                ("group query", [a, b, c, d], &specific[..], 2),
                ("source query", [a, b, c, d], &with_source[..], 2),
            ] {
                let body = checksummed(body);
                query_ours.send(&igmp_frame([10, 0, 0, 10], to, &body, 1, true));
                query_theirs.send(&igmp_frame([10, 0, 1, 1], to, &body, 1, true));
                wait_until(Duration::from_millis(700), || false);
                compare(step, count);
            }
        }
        drop(member);
        router.run(&format!("leave in {}", words.trim()));
        compare("leaves", 2);
    }
    // The IP headers: TTL 1, precedence Internetwork Control and the Router Alert option.
    let header = |capture: &Capture| {
        let report = capture.to("224.0.0.22").pop().expect("a report");
        let options = report.ip[20..report.header].to_vec();
        (report.ttl, report.tos, options, report.ip[6])
    };
    assert_eq!(header(&ours), header(&theirs));
}

fn only_queried_sources_are_reported(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let wire = Capture::new(&star.src, "eth0");
    let toml = route("r", "in", "10.0.0.10", "232.1.2.3", &["out1"], "");
    let _router = Router::start(lab, &star.rtr, &toml);
    eventually("joined", true, || {
        records(&wire).iter().any(|r| r.1 == "232.1.2.3")
    });
    let inject = Injector::new(&star.src, "eth0");
    let answers = |kind: u8, sources: &[&str]| {
        let all = records(&wire);
        let same = all.iter().filter(|(k, group, list)| {
            (*k, group.as_str()) == (kind, "232.1.2.3") && list.iter().eq(sources.iter())
        });
        same.count()
    };
    wait_until(Duration::from_millis(1200), || false);
    let before = answers(1, &["10.0.0.10"]);
    let other = [0x11, 5, 0, 0, 232, 1, 2, 3, 2, 125, 0, 1, 10, 7, 7, 7];
    let query = checksummed(&other);
    inject.send(&igmp_frame([10, 0, 0, 10], [232, 1, 2, 3], &query, 1, true));
    wait_until(Duration::from_millis(700), || false);
    assert_eq!(
        answers(1, &["10.0.0.10"]),
        before,
        "another source was queried"
    );
    let own = [
        0x11, 5, 0, 0, 232, 1, 2, 3, 2, 125, 0, 2, 10, 7, 7, 7, 10, 0, 0, 10,
    ];
    let query = checksummed(&own);
    inject.send(&igmp_frame([10, 0, 0, 10], [232, 1, 2, 3], &query, 1, true));
    eventually("answered", true, || answers(1, &["10.0.0.10"]) > before);
}

/// RFC 9776 section 4.1.12. The kernel holds no joins, so it answers nothing.
fn queries_to_the_address_of_the_host_are_answered(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let wire = Capture::new(&star.src, "eth0");
    let version = "[[interface]]\nname = \"in\"\nversion = { igmp = 2, mld = 1 }\n";
    let routes = route("r", "in", "", GROUP, &["out1"], "")
        + &route("r6", "in", "", "ff0e::1:2", &["out1"], "");
    let _router = Router::start(lab, &star.rtr, &format!("{version}{routes}"));
    let reports = |group: &str, at: usize, kind: u8| {
        let reports = wire.to(group);
        reports.iter().filter(|p| p.body()[at] == kind).count()
    };
    eventually("both groups are reported twice", true, || {
        reports(GROUP, 0, 0x16) >= 2 && reports("ff0e::1:2", 8, 131) >= 2
    });
    let (v4, v6) = (reports(GROUP, 0, 0x16), reports("ff0e::1:2", 8, 131));
    let unicast = |mut frame: Vec<u8>| {
        frame[..6].copy_from_slice(&star.rtr.mac("in"));
        frame
    };
    let inject = Injector::new(&star.src, "eth0");
    let igmp = checksummed(&[0x11, 5, 0, 0, 0, 0, 0, 0]);
    inject.send(&unicast(igmp_frame(
        [10, 0, 0, 10],
        [10, 0, 0, 1],
        &igmp,
        1,
        true,
    )));
    eventually("the IGMP query is answered", v4 + 1, || {
        reports(GROUP, 0, 0x16)
    });
    let mld = mld_query("fe80::a", "fd00::1", 500);
    inject.send(&unicast(mld));
    eventually("the MLD query is answered", v6 + 1, || {
        reports("ff0e::1:2", 8, 131)
    });
}

/// Returns the frame of a general MLDv1 query. The response time is in milliseconds.
fn mld_query(src: &str, dst: &str, response_time: u16) -> Vec<u8> {
    let (src, dst): (Ipv6Addr, Ipv6Addr) = (src.parse().unwrap(), dst.parse().unwrap());
    let mut message = vec![130, 0, 0, 0];
    message.extend(response_time.to_be_bytes());
    message.extend([0; 18]);
    let sum = transport_sum(src.into(), dst.into(), 58, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut ip = vec![0x60, 0, 0, 0, 0, 8 + message.len() as u8, 0, 1];
    ip.extend(src.octets());
    ip.extend(dst.octets());
    ip.extend([58, 0, 5, 2, 0, 0, 1, 0]);
    ip.extend(message);
    ethernet(dst.into(), &ip)
}

/// A bridge as querier of IGMPv2 and MLDv1, then of the newest versions.
fn older_switch_queriers_are_answered_in_their_version(lab: &Lab) {
    let star = Star::dual(lab, 1);
    star.src.ip_batch(
        "link add br0 type bridge mcast_snooping 1 mcast_querier 1 mcast_igmp_version 2 \
         mcast_mld_version 1 mcast_query_interval 100 mcast_startup_query_interval 50 \
         mcast_query_response_interval 30\n\
         link set eth0 master br0\nlink set br0 up\n",
    );
    let wire = Capture::new(&star.src, "eth0");
    let router = Router::start(lab, &star.rtr, "");
    // Reports of the kernel are not distinguished: it follows the same queriers.
    let of_type = |to: &str, kind: u8, offset: usize| {
        let packets = wire.to(to);
        packets
            .iter()
            .filter(|p| p.body().get(offset) == Some(&kind))
            .count()
    };
    router.run(&format!("join in {GROUP}"));
    router.run("join in ff0e::1:2");
    let reports = || (of_type(GROUP, 0x16, 0), of_type("ff0e::1:2", 131, 8));
    let (v4, v6) = reports();
    eventually("answered in some rounds", true, || {
        let now = reports();
        now.0 > v4 + 4 && now.1 > v6 + 4
    });
    let shown = router.control().show("groups");
    let versions: Vec<_> = shown.iter().map(|g| g["version"].as_str()).collect();
    assert_eq!(versions, [Some("2"), Some("1")]);
    assert!(router.program.stderr().contains("uses version 2"));
    router.run(&format!("leave in {GROUP}"));
    router.run("leave in ff0e::1:2");
    eventually("left", true, || {
        of_type("224.0.0.2", 0x17, 0) > 0 && of_type("ff02::2", 132, 8) > 0
    });
}

fn pimd_learns_25_sources_exactly(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let quick = " ip igmp\n ip igmp query-max-response-time 5\n ip igmp query-interval 2\n";
    let frr = Frr::start(lab, &star.src, &format!("interface eth0\n{quick}"));
    let sources: Vec<String> = (1..26).map(|n| format!("10.1.0.{n}")).collect();
    let join = |source: &String| {
        format!("[[join]]\ninterface = \"in\"\nsource = \"{source}\"\ngroup = \"232.1.1.1\"\n")
    };
    let all: String = sources.iter().map(join).collect();
    let router = Router::start(lab, &star.rtr, &all);
    let known = || {
        let shown = frr.show("show ip igmp sources");
        let rows = shown.lines().filter(|line| line.contains("232.1.1.1"));
        let source = |line: &str| line.split_whitespace().nth(2).map(String::from);
        rows.filter_map(source).collect::<BTreeSet<String>>()
    };
    eventually("all sources", sources.iter().cloned().collect(), known);
    // Some query rounds later, pimd still has them, and not the group for every source.
    wait_until(Duration::from_secs(5), || false);
    assert_eq!(known(), sources.iter().cloned().collect());
    let groups = frr.show("show ip igmp groups");
    let row = groups.lines().find(|line| line.contains("232.1.1.1"));
    assert!(row.is_some_and(|row| row.contains("INCL")), "{groups}");
    let fewer = &sources[..22];
    router.write_settings(&fewer.iter().map(join).collect::<String>());
    router.run("reload");
    eventually("fewer sources", fewer.iter().cloned().collect(), known);
}

fn filter_on_the_wire(capture: &Capture, from: usize, group: &str) -> Option<SourceFilter> {
    derived_filters(&records(capture)[from..], group).pop()
}

fn sources(addresses: &[String]) -> SourceFilter {
    let parse = |text: &String| text.parse::<Source>().expect("a source");
    SourceFilter::Include(addresses.iter().map(parse).collect())
}

/// The other end loses its carrier, as when a modem restarts, and forgets all reports.
fn returned_carrier_reports_the_filter_within_a_second(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let wire = Capture::new(&star.src, "eth0");
    let list: Vec<String> = (1..26).map(|n| format!("10.1.0.{n}")).collect();
    let join = |source: &String| {
        format!("[[join]]\ninterface = \"in\"\nsource = \"{source}\"\ngroup = \"232.1.1.1\"\n")
    };
    let toml =
        list.iter().map(join).collect::<String>() + &route("r", "in", "", GROUP, &["out1"], "");
    let _router = Router::start(lab, &star.rtr, &toml);
    let expected = (Some(sources(&list)), Some(SourceFilter::any()));
    let seen = |from| {
        let specific = filter_on_the_wire(&wire, from, "232.1.1.1");
        (specific, filter_on_the_wire(&wire, from, GROUP))
    };
    eventually("joined", expected.clone(), || seen(0));
    for _ in 0..3 {
        wait_until(Duration::from_millis(1500), || false);
        star.src.ip("link set eth0 down");
        wait_until(Duration::from_millis(300), || false);
        let from = records(&wire).len();
        star.src.ip("link set eth0 up");
        let up = Instant::now();
        eventually("reported again", expected.clone(), || seen(from));
        assert!(up.elapsed() < Duration::from_secs(1), "{:?}", up.elapsed());
    }
}

fn late_and_changed_addresses_are_reported(lab: &Lab) {
    let star = Star::dual(lab, 1);
    star.rtr.ip("address flush dev in");
    star.rtr.sysctl("net/ipv6/conf/in/addr_gen_mode", "1");
    let wire = Capture::new(&star.src, "eth0");
    let toml = route("r", "in", "", GROUP, &["out1"], "")
        + &route("r6", "in", "", "ff0e::1:2", &["out1"], "");
    let _router = Router::start(lab, &star.rtr, &toml);
    let senders = |to: &str| {
        let reports = wire.to(to).into_iter();
        reports.map(|p| p.src.to_string()).collect::<BTreeSet<_>>()
    };
    let expect = |to: &str, sender: &str| {
        let start = Instant::now();
        eventually(sender, true, || senders(to).contains(sender));
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "{sender}: {:?}",
            start.elapsed()
        );
    };
    eventually("reported without an address", true, || {
        senders("224.0.0.22").contains("0.0.0.0") && senders("ff02::16").contains("::")
    });
    for address in ["10.0.0.7", "10.0.0.8"] {
        star.rtr.ip("-4 address flush dev in");
        star.rtr.ip(&format!("address add {address}/24 dev in"));
        expect("224.0.0.22", address);
    }
    for address in ["fe80::7", "fe80::8"] {
        star.rtr.ip("-6 address flush dev in");
        star.rtr
            .ip(&format!("address add {address}/64 dev in nodad"));
        expect("ff02::16", address);
    }
    assert_eq!(
        derived_filters(&records(&wire), GROUP).pop(),
        Some(SourceFilter::any())
    );
}

fn refresh_reports_without_queries(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let wire = Capture::new(&star.src, "eth0");
    let toml = "[[interface]]\nname = \"in\"\nrefresh = \"1s\"\n".to_string()
        + &route("r", "in", "10.0.0.10", "232.1.2.3", &["out1"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    let refreshed = || {
        let records = records(&wire);
        let same = records.iter().filter(|(kind, group, list)| {
            (*kind, &**group, &list[..]) == (1, "232.1.2.3", &["10.0.0.10".to_string()])
        });
        same.count()
    };
    let start = Instant::now();
    eventually("five refreshes", true, || refreshed() >= 5);
    let elapsed = start.elapsed();
    assert!(elapsed > Duration::from_millis(3500), "{elapsed:?}");
    assert!(elapsed < Duration::from_millis(6500), "{elapsed:?}");
    router.write_settings(&toml.replace("refresh = \"1s\"\n", ""));
    router.run("reload");
    wait_until(Duration::from_millis(200), || false);
    let before = refreshed();
    wait_until(Duration::from_millis(2500), || false);
    assert_eq!(refreshed(), before);
}

fn configured_version_is_used_without_kernel_joins(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let wire = Capture::new(&star.src, "eth0");
    let version = "[[interface]]\nname = \"in\"\nversion = { igmp = 2, mld = 1 }\n";
    let routes = route("r", "in", "", GROUP, &["out1"], "")
        + &route("r6", "in", "", "ff0e::1:2", &["out1"], "");
    let router = Router::start(lab, &star.rtr, &format!("{version}{routes}"));
    eventually("reported in IGMPv2 and MLDv1", true, || {
        wire.to(GROUP).iter().any(|p| p.body()[0] == 0x16)
            && wire.to("ff0e::1:2").iter().any(|p| p.body()[8] == 131)
    });
    let about_groups = records(&wire).iter().filter(|r| r.1 == GROUP).count();
    assert_eq!(about_groups, 0, "reported in version 3");
    assert_eq!(kernel(&star.rtr, "in"), BTreeSet::new());
    // Without a version, the kernel joins, and reports leave in version 3.
    router.write_settings(&routes);
    router.run("reload");
    eventually("joined in the kernel", 2, || kernel(&star.rtr, "in").len());
    eventually("reported in version 3", true, || {
        records(&wire).iter().any(|r| r.1 == GROUP)
    });
    router.write_settings(&format!("{version}{routes}"));
    router.run("reload");
    eventually("left in the kernel", 0, || kernel(&star.rtr, "in").len());
}

fn forced_version_of_the_kernel_is_used(lab: &Lab) {
    let star = Star::dual(lab, 1);
    star.rtr.sysctl("net/ipv4/conf/in/force_igmp_version", "2");
    star.rtr.sysctl("net/ipv6/conf/in/force_mld_version", "1");
    let wire = Capture::new(&star.src, "eth0");
    let routes = route("r", "in", "", GROUP, &["out1"], "")
        + &route("r6", "in", "", "ff0e::1:2", &["out1"], "");
    let router = Router::start(lab, &star.rtr, &routes);
    eventually("reported in IGMPv2 and MLDv1", true, || {
        wire.to(GROUP).iter().any(|p| p.body()[0] == 0x16)
            && wire.to("ff0e::1:2").iter().any(|p| p.body()[8] == 131)
    });
    eventually("joined in the kernel", 2, || kernel(&star.rtr, "in").len());
    router.stop();
    let about_groups = records(&wire).iter().filter(|r| r.1 == GROUP).count();
    assert_eq!(about_groups, 0, "reported in version 3");
}

/// The source list of the group is too long for the kernel, so only mcastor holds the group. A
/// program that joins and leaves the group does not end its stream.
fn leave_of_another_program_is_corrected(lab: &Lab) {
    let star = Star::v4(lab, 1);
    star.rcv.sysctl("net/ipv4/igmp_max_msf", "64");
    let wire = Capture::new(&star.src, "eth0");
    let router = Router::start(lab, &star.rtr, &proxy(&["in"], &["out1"], ""));
    let member = GroupMember::any_source(&star.rcv, "eth1", GROUP);
    let blocked: Vec<String> = (0..12).map(|n| format!("10.0.0.{}", 100 + n)).collect();
    blocked.iter().for_each(|source| member.block(source));
    let excluded = blocked
        .iter()
        .map(|s| s.parse::<Source>().expect("a source"));
    let expected = Some(SourceFilter::Exclude(excluded.collect()));
    let on_the_wire = || derived_filters(&records(&wire), GROUP).pop();
    eventually("excluded", expected.clone(), on_the_wire);
    drop(GroupMember::any_source(&star.rtr, "in", GROUP));
    let left = |r: &(u8, String, Vec<String>)| r.0 == 3 && r.1 == GROUP;
    eventually("the program leaves", true, || {
        records(&wire).iter().any(left)
    });
    eventually("corrected", expected, on_the_wire);
    drop(router);
}
