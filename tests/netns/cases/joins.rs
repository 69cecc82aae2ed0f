//! Groups joined as a host: kernel memberships, reports on the wire, and snooping switches.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{cases, route};
use crate::lab::proxy::{members, proxy};
use crate::lab::switch::{upstream_switch, wait_until_snooping};
use crate::lab::{
    Capture, Injector, Lab, Ns, Router, Star, TIMEOUT, Udp, UdpRx, eventually, wait_until,
};
use mcastor::model::{Group, IfIndex, Source, SourceFilter};
use mcastor::sys::membership_keeper::MembershipKeeper;
use mcastor::sys::memberships::HostMemberships;

cases!("joins":
    kernel_lists_configured_memberships,
    joins_2048_groups_of_each_family_on_few_sockets,
    #[LinkKind("bridge")] join_makes_a_snooping_switch_deliver,
    joins_and_leaves_are_reported_on_the_wire,
    source_filter_changes_are_reported_in_place,
    ipv6_exclude_lists_beyond_kernel_limit_are_left,
    filter_mode_changes_reach_the_kernel,
    recreated_interface_is_joined_again,
    disabled_interface_joins_and_announces_nothing,
    join_without_ipv6_is_repaired_by_mtu_change,
);

/// Returns the groups that the kernel has joined on `iface`, as `group` and `source,group`. Groups
/// that every host joins are left out.
pub(super) fn kernel(ns: &Ns, iface: &str) -> BTreeSet<String> {
    let read = |file: &str| {
        let path = format!("/proc/thread-self/net/{file}");
        ns.enter(|| std::fs::read_to_string(&path).unwrap_or_default())
    };
    let mut found = BTreeSet::new();
    let mut here = false;
    for line in read("igmp").lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if !line.starts_with('\t') {
            here = words[1] == iface;
        } else if here {
            let bits = u32::from_str_radix(words[0], 16).expect("hex");
            found.insert(std::net::Ipv4Addr::from(bits.to_le_bytes()).to_string());
        }
    }
    let v6 = |hex: &str| {
        std::net::Ipv6Addr::from(u128::from_str_radix(hex, 16).expect("hex")).to_string()
    };
    for line in read("igmp6").lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words[1] == iface {
            found.insert(v6(words[2]));
        }
    }
    let v4 = |hex: &str| {
        let bits = u32::from_str_radix(hex.trim_start_matches("0x"), 16).expect("hex");
        std::net::Ipv4Addr::from(bits).to_string()
    };
    for (file, address) in [
        ("mcfilter", &v4 as &dyn Fn(&str) -> String),
        ("mcfilter6", &v6),
    ] {
        for line in read(file).lines().filter(|l| !l.starts_with("Idx")) {
            let words: Vec<&str> = line.split_whitespace().collect();
            if words[1] == iface && words[4] != "0" {
                let group = address(words[2]);
                found.remove(&group);
                found.insert(format!("{},{group}", address(words[3])));
            }
        }
    }
    found.retain(|g| {
        !g.starts_with("224.0.0.") && !g.starts_with("ff02:") && !g.starts_with("ff01:")
    });
    found
}

fn set(groups: &[&str]) -> BTreeSet<String> {
    groups.iter().map(ToString::to_string).collect()
}

fn joined(router: &Router, iface: &str) -> u64 {
    router.metric("mcastor_joined_groups", &[("iface", iface)]) as u64
}

fn join(interface: &str, source: &str, group: &str) -> String {
    let source = if source.is_empty() {
        String::new()
    } else {
        format!("source = \"{source}\"\n")
    };
    format!("[[join]]\ninterface = \"{interface}\"\n{source}group = \"{group}\"\n")
}

fn kernel_lists_configured_memberships(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let r = |name: &str, source: &str, group: &str, extra: &str| {
        route(name, "in", source, group, &["out1"], extra)
    };
    let toml = join("in", "", "225.0.0.1")
        + &join("in", "10.0.0.10", "232.1.2.3")
        + &join("in", "10.0.0.11", "232.1.2.3")
        + &join("in", "", "ff3e::1")
        + &join("in", "fd00::10", "ff3e::8000:1")
        + &join("in", "", "225.0.4.0/30")
        + &r("auto", "", "225.1.0.1", "")
        + &r("auto source", "10.0.0.10", "232.9.9.9", "")
        + &r("auto wide source", "10.0.0.0/24", "225.1.0.2", "")
        + &r("auto prefix", "", "225.2.0.0/24", "")
        + &r("explicit prefix", "", "225.3.0.0/31", "join = true\n")
        + &r("join off", "", "225.1.0.3", "join = false\n")
        + &r("auto v6", "", "ff0e::2", "")
        + &r("auto specific", "10.0.0.0/24", "232.7.7.7", "")
        + &r("auto source v6", "fd00::10", "ff3e::8000:2", "");
    let router = Router::start(lab, &star.rtr, &toml);
    let all = set(&[
        "225.0.0.1",
        "10.0.0.10,232.1.2.3",
        "10.0.0.11,232.1.2.3",
        "ff3e::1",
        "fd00::10,ff3e::8000:1",
        "225.0.4.0",
        "225.0.4.1",
        "225.0.4.2",
        "225.0.4.3",
        "225.1.0.1",
        "10.0.0.10,232.9.9.9",
        "225.1.0.2",
        "225.3.0.0",
        "225.3.0.1",
        "ff0e::2",
        "fd00::10,ff3e::8000:2",
    ]);
    eventually("the kernel's tables", all.clone(), || {
        kernel(&star.rtr, "in")
    });
    assert_eq!(joined(&router, "in"), all.len() as u64);
    assert_eq!(kernel(&star.rtr, "out1"), BTreeSet::new());
    let shown = router.control().show("groups");
    // `show groups` has one row per group, with its sources.
    assert_eq!(shown.len(), all.len() - 1);
    assert!(shown.iter().all(|g| g["error"].is_null()), "{shown:?}");
    // The prefix is not joined; the log and `check` both report this.
    let log = router.program.stderr();
    for note in ["auto prefix", "auto specific"] {
        let noted = |l: &str| l.contains(note) && l.contains("not joined");
        assert!(log.lines().any(noted), "{note}: {log}");
    }
    assert!(
        !log.contains("explicit prefix") && !log.contains("join off"),
        "{log}"
    );
    let out = router.cli(&["check", &router.config.display().to_string()]);
    let printed =
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(
        out.status.success()
            && ["auto prefix", "auto specific"]
                .iter()
                .all(|n| printed.contains(n)),
        "{printed}"
    );
    // Join and leave by command.
    router.run("join in 225.8.8.8");
    router.run("add in 225.8.8.9 out1");
    router.run("join in 10.0.0.12 232.1.2.3");
    let more = set(&["225.8.8.8", "10.0.0.12,232.1.2.3", "225.8.8.9"]);
    let with: BTreeSet<String> = all.union(&more).cloned().collect();
    // Groups without sources: the kernel lists sources only if the most recent group has some.
    let plain = |all: &BTreeSet<String>| -> BTreeSet<String> {
        let group = |g: &String| g.rsplit(',').next().unwrap_or_default().to_owned();
        all.iter().map(group).collect()
    };
    eventually("joined by command", plain(&with), || {
        plain(&kernel(&star.rtr, "in"))
    });
    router.run("leave in 225.8.8.8");
    router.run("leave in 10.0.0.12 232.1.2.3");
    router.run("remove in 225.8.8.9");
    eventually("left by command", plain(&all), || {
        plain(&kernel(&star.rtr, "in"))
    });
    router.write_settings(&join("in", "", "225.0.0.1"));
    router.run("reload");
    eventually("left by reload", set(&["225.0.0.1"]), || {
        kernel(&star.rtr, "in")
    });
    eventually("the gauge", 1, || joined(&router, "in"));
    router.stop();
    assert_eq!(kernel(&star.rtr, "in"), BTreeSet::new(), "left on exit");
}

/// The kernel joins the first 1,000 of them; it would need a socket for every 20 groups.
fn joins_2048_groups_of_each_family_on_few_sockets(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let sysctl = |key: &str| {
        let path = format!("/proc/sys/net/{key}");
        let text = star
            .rtr
            .enter(|| std::fs::read_to_string(path).unwrap_or_default());
        text.trim().to_owned()
    };
    assert_eq!(
        sysctl("ipv4/igmp_max_memberships"),
        "20",
        "the kernel's default"
    );
    let wire = Capture::new(&star.src, "eth0");
    let router = Router::start(lab, &star.rtr, "");
    let start = Instant::now();
    router.write_settings(&(join("in", "", "225.16.0.0/21") + &join("in", "", "ff3e::8000:0/117")));
    router.run("reload");
    let joined_on_wire = || {
        let records = records(&wire).into_iter().filter(|r| r.0 == 4);
        let groups: BTreeSet<String> = records.map(|r| r.1).collect();
        groups.iter().filter(|g| g.starts_with("225.")).count()
    };
    eventually("groups in reports", 2048, joined_on_wire);
    println!("4096 groups reported after {:?}", start.elapsed());
    eventually("memberships of the kernel", 1000, || {
        kernel(&star.rtr, "in").len()
    });
    eventually("the gauge", 4096, || joined(&router, "in"));
    let fds = || {
        let dir = format!("/proc/{}/fd", router.program.pid());
        std::fs::read_dir(dir).map_or(0, Iterator::count)
    };
    assert!(fds() < 120, "{} descriptors", fds());
    router.run("join in 10.0.0.10 232.1.1.1");
    let start = Instant::now();
    router.write_settings("");
    router.run("reload");
    eventually("memberships of the kernel after the reload", 0, || {
        kernel(&star.rtr, "in").len()
    });
    println!(
        "4096 groups left in {:?}; {} descriptors",
        start.elapsed(),
        fds()
    );
    // The keeper of memberships stays, with its connection. A closed membership is closed there too,
    // some time later.
    let are_closed = || fds() < 64;
    assert!(
        wait_until(TIMEOUT, are_closed),
        "{} descriptors are still open",
        fds()
    );
}

/// Connects `src` and `in` of the router by a bridge with snooping and a querier.
fn join_makes_a_snooping_switch_deliver(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let options = "mcast_query_response_interval 10 mcast_startup_query_interval 20";
    let sw = upstream_switch(lab, &star, options);
    let groups = ["225.1.2.3", "232.1.2.3"];
    let toml = |joins: &str| {
        route("any", "in", "", groups[0], &["out1"], joins)
            + &route("one", "in", "10.0.0.10", groups[1], &["out1"], joins)
    };
    let router = Router::start(lab, &star.rtr, &toml("join = false\n"));
    let inject = Injector::new(&star.src, "eth0");
    let send = |n: u32| {
        for group in groups {
            let dst = format!("{group}:5000");
            inject.send(&Udp::new("10.0.0.10:9", &dst, n.to_be_bytes()).frame());
        }
    };
    let at_in = Capture::new(&star.rtr, "in");
    wait_until_snooping(&inject, &at_in, &groups);
    (0..50).for_each(send);
    let before = groups.map(|g| at_in.to(g).len());
    router.write_settings(&toml(""));
    router.run("reload");
    eventually("the switch has both groups in its table", true, || {
        let out = sw.output("bridge", &["mdb", "show"]);
        let table = String::from_utf8_lossy(&out.stdout).into_owned();
        groups.iter().all(|g| table.contains(g))
    });
    assert_eq!(
        groups.map(|g| at_in.to(g).len()),
        before,
        "packets were delivered without a join"
    );
    let out = Capture::new(&star.rcv, "eth1");
    (0..100).for_each(send);
    for group in groups {
        out.expect(group, 100);
    }
    // After the leave, the switch delivers no packets.
    router.write_settings(&toml("join = false\n"));
    router.run("reload");
    eventually("delivery stops", true, || {
        let before = groups.map(|g| at_in.to(g).len());
        send(0);
        std::thread::sleep(Duration::from_millis(20));
        groups.map(|g| at_in.to(g).len()) == before
    });
}

/// Records of IGMPv3 reports on the wire (RFC 3376 section 4.2): type, group, sources.
pub(super) fn records(capture: &Capture) -> Vec<(u8, String, Vec<String>)> {
    let address = |b: &[u8]| std::net::Ipv4Addr::new(b[0], b[1], b[2], b[3]).to_string();
    let mut found = Vec::new();
    for seen in capture.to("224.0.0.22") {
        let body = seen.body();
        if seen.protocol != 2 || body[0] != 0x22 {
            continue;
        }
        let mut at = 8;
        for _ in 0..u16::from_be_bytes([body[6], body[7]]) {
            let sources = usize::from(u16::from_be_bytes([body[at + 2], body[at + 3]]));
            let list = (0..sources).map(|i| address(&body[at + 8 + 4 * i..]));
            found.push((body[at], address(&body[at + 4..]), list.collect()));
            at += 8 + 4 * sources + 4 * usize::from(body[at + 1]);
        }
    }
    found
}

fn joins_and_leaves_are_reported_on_the_wire(lab: &Lab) {
    const TO_IN: u8 = 3;
    const TO_EX: u8 = 4;
    const ALLOW: u8 = 5;
    const BLOCK: u8 = 6;
    let star = Star::v4(lab, 1);
    let wire = Capture::new(&star.src, "eth0");
    let toml = route("r", "in", "", "225.1.1.1", &["out1"], "")
        + &join("in", "", "225.1.1.2")
        + &join("in", "10.0.0.10", "232.1.1.1");
    let router = Router::start(lab, &star.rtr, &toml);
    router.run("join in 225.1.1.3");
    let expect_record = |kind: u8, group: &str, sources: &[&str]| {
        let record = (
            kind,
            group.to_owned(),
            sources.iter().map(ToString::to_string).collect(),
        );
        eventually(&format!("type {kind} {group}"), true, || {
            records(&wire).contains(&record)
        });
    };
    for group in ["225.1.1.1", "225.1.1.2", "225.1.1.3"] {
        expect_record(TO_EX, group, &[]);
    }
    expect_record(ALLOW, "232.1.1.1", &["10.0.0.10"]);
    assert!(records(&wire).iter().all(|r| r.0 != TO_IN && r.0 != BLOCK));
    router.run("leave in 225.1.1.3");
    expect_record(TO_IN, "225.1.1.3", &[]);
    router.write_settings(&route("r", "in", "", "225.1.1.1", &["out1"], ""));
    router.run("reload");
    expect_record(TO_IN, "225.1.1.2", &[]);
    expect_record(BLOCK, "232.1.1.1", &["10.0.0.10"]);
    assert!(!records(&wire).contains(&(TO_IN, "225.1.1.1".into(), vec![])));
    router.stop();
    expect_record(TO_IN, "225.1.1.1", &[]);
}

fn sources(prefix: &str, range: std::ops::Range<u32>) -> BTreeSet<Source> {
    let source = |n| format!("{prefix}{n}").parse().expect("a source");
    range.map(source).collect()
}

/// Returns the source filter that a router derives for the host after each record (RFC 9776 section
/// 6.4).
pub(super) fn derived_filters(
    records: &[(u8, String, Vec<String>)],
    group: &str,
) -> Vec<SourceFilter> {
    use SourceFilter::{Exclude, Include};
    let mut now = SourceFilter::none();
    let mut all = Vec::new();
    for (kind, _, list) in records.iter().filter(|r| r.1 == group) {
        let list: BTreeSet<Source> = list.iter().map(|s| s.parse().expect("a source")).collect();
        now = match (kind, now) {
            (1 | 3, _) => Include(list),
            (2 | 4, _) => Exclude(list),
            (5, Include(now)) => Include(&now | &list),
            (5, Exclude(now)) => Exclude(&now - &list),
            (6, Include(now)) => Include(&now - &list),
            (6, Exclude(now)) => Exclude(&now | &list),
            (other, _) => panic!("record type {other}"),
        };
        all.push(now.clone());
    }
    all
}

/// Each filter replaces the previous one in place: the reports carry only the difference, and
/// sources in both filters stay joined throughout.
fn source_filter_changes_are_reported_in_place(lab: &Lab) {
    use SourceFilter::{Exclude, Include};
    const TO_EX: u8 = 4;
    const ALLOW: u8 = 5;
    let star = Star::v4(lab, 1);
    let wire = Capture::new(&star.src, "eth0");
    let index = IfIndex::new(star.rtr.index("in")).expect("an index");
    let group: Group = "232.1.1.1".parse().expect("a group");
    let mut held = HostMemberships::new(index, MembershipKeeper::default());
    let some = |range| sources("10.1.0.", range);
    let mut apply = |group: Group, filter: &SourceFilter| {
        let is_exact = star.rtr.enter(|| held.set(group, filter).expect("set"));
        let text = group.to_string();
        let none = SourceFilter::none();
        let expected = if is_exact { filter } else { &none };
        eventually(&format!("{text} {filter}"), Some(expected.clone()), || {
            derived_filters(&records(&wire), &text).pop()
        });
        is_exact
    };
    // 10.1.0.1 is included in every filter; 25 sources exceed the limit of one socket.
    for filter in [
        Include(some(1..2)),
        Include(some(1..3)),
        Include(some(1..26)),
        Include(some(1..2)),
        Exclude(some(50..51)),
        Exclude(some(50..52)),
        Exclude(some(51..60)),
        Exclude(some(0..0)),
        Exclude(some(50..51)),
        Include(some(1..13)),
    ] {
        assert!(apply(group, &filter), "{filter}");
    }
    let all = derived_filters(&records(&wire), "232.1.1.1");
    let kept = some(1..2).pop_first().expect("one");
    assert!(all.iter().all(|filter| filter.accepts(kept)), "{all:?}");
    let reported = |kind, group: &str, list: BTreeSet<Source>| {
        let list: Vec<String> = list.iter().map(ToString::to_string).collect();
        let group = group.to_owned();
        records(&wire).contains(&(kind, group, list))
    };
    assert!(reported(ALLOW, "232.1.1.1", some(1..2)));
    // The report of the second source may repeat the first, because of the robustness variable.
    let second = |r: &(u8, String, Vec<String>)| r.0 == ALLOW && r.2.contains(&"10.1.0.2".into());
    assert!(records(&wire).iter().any(second));
    assert!(reported(TO_EX, "232.1.1.1", some(50..51)));
    // From no membership to an exclude filter.
    let fresh: Group = "225.1.1.1".parse().expect("a group");
    assert!(apply(fresh, &Exclude(some(50..51))));
    assert!(reported(TO_EX, "225.1.1.1", some(50..51)));
    assert!(apply(group, &Include(some(0..0))));
    // The kernel excludes at most ten sources. A group with eleven is left, never widened.
    let many = Exclude(some(50..61));
    assert!(!apply(fresh, &many));
    assert!(apply(fresh, &Exclude(some(50..60))));
    let all = derived_filters(&records(&wire), "225.1.1.1");
    assert!(!all.contains(&SourceFilter::any()), "{all:?}");
    assert_eq!(held.len(), 1);
}

/// A socket has one filter per group, which any-source and source-specific joins would share.
fn filter_mode_changes_reach_the_kernel(lab: &Lab) {
    use SourceFilter::{Exclude, Include};
    let star = Star::dual(lab, 1);
    let index = IfIndex::new(star.rtr.index("in")).expect("an index");
    let mut held = HostMemberships::new(index, MembershipKeeper::default());
    for (group, prefix) in [("225.1.1.1", "10.1.0."), ("ff1e::1", "fd00::")] {
        let some = |range| sources(prefix, range);
        let parsed: Group = group.parse().expect("a group");
        let only = |n: u8| set(&[&format!("{prefix}{n:x},{group}")]);
        for (filter, in_the_kernel) in [
            (Exclude(some(0..0)), set(&[group])),
            (Include(some(1..2)), only(1)),
            (Exclude(some(0..0)), set(&[group])),
            (Exclude(some(1..2)), set(&[group])),
            (Include(some(2..3)), only(2)),
            (Include(some(3..4)), only(3)),
            (Exclude(some(0..0)), set(&[group])),
            (Include(some(4..5)), only(4)),
            (Include(some(0..0)), set(&[])),
        ] {
            star.rtr.enter(|| held.set(parsed, &filter).expect("set"));
            // A process started by a parallel test may hold a closed socket for a moment.
            eventually(&format!("{group} {filter}"), in_the_kernel, || {
                kernel(&star.rtr, "in")
            });
        }
        assert!(held.is_empty());
    }
}

fn ipv6_exclude_lists_beyond_kernel_limit_are_left(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let index = IfIndex::new(star.rtr.index("in")).expect("an index");
    let group: Group = "ff3e::8000:1".parse().expect("a group");
    let mut held = HostMemberships::new(index, MembershipKeeper::default());
    let some = |range| sources("fd00::", range);
    let mut set = |filter: SourceFilter| star.rtr.enter(|| held.set(group, &filter).expect("set"));
    // Returns the numbers of included and excluded sources that the kernel lists.
    let listed = || {
        let path = "/proc/thread-self/net/mcfilter6";
        let text = star
            .rtr
            .enter(|| std::fs::read_to_string(path).unwrap_or_default());
        let count = |column: usize| {
            let words = |l: &str| l.split_whitespace().map(String::from).collect::<Vec<_>>();
            let lines = text.lines().skip(1).map(words);
            lines.filter(|w| w[1] == "in" && w[column] != "0").count()
        };
        (count(4), count(5))
    };
    for (filter, is_exact, lists) in [
        (SourceFilter::Include(some(10..40)), true, (30, 0)),
        (SourceFilter::Exclude(some(10..20)), true, (0, 10)),
        (SourceFilter::Exclude(some(10..74)), true, (0, 64)),
        (SourceFilter::Exclude(some(10..75)), false, (0, 0)),
        (SourceFilter::Exclude(some(10..11)), true, (0, 1)),
        (SourceFilter::Include(some(10..11)), true, (1, 0)),
        (SourceFilter::none(), true, (0, 0)),
    ] {
        let text = filter.to_string();
        assert_eq!(set(filter), is_exact, "{text}");
        eventually(&text, lists, listed);
    }
}

fn recreated_interface_is_joined_again(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let toml =
        route("r", "in", "", "225.1.2.3", &["out1"], "") + &join("in", "10.0.0.10", "232.1.2.3");
    let router = Router::start(lab, &star.rtr, &toml);
    let all = set(&["225.1.2.3", "10.0.0.10,232.1.2.3"]);
    for _ in 0..3 {
        eventually("joined", all.clone(), || kernel(&star.rtr, "in"));
        eventually("the gauge", 2, || joined(&router, "in"));
        star.rtr.ip("link set in down");
        star.rtr.ip("link set in up");
        eventually("still joined", all.clone(), || kernel(&star.rtr, "in"));
        star.rtr.ip("link del in");
        eventually("the gauge", 0, || joined(&router, "in"));
        star.recreate_ingress();
    }
}

fn disabled_interface_joins_and_announces_nothing(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let settings = |enabled: bool| {
        format!("[[interface]]\nname = \"in\"\nmrdisc = true\nenabled = {enabled}\n")
            + &route("r", "in", "", "225.1.2.3", &["out1"], "join = true\n")
            + &join("in", "", "225.1.2.4")
            + &proxy(&["i*"], &["out1"], "")
    };
    let wire = Capture::new(&star.src, "eth0");
    let router = Router::start(lab, &star.rtr, &settings(false));
    let _member = UdpRx::join(&star.rcv, "eth1", "225.1.2.5:5000");
    eventually("a member", 1, || members(&router).len());
    assert_eq!(kernel(&star.rtr, "in"), set(&[]));
    router.write_settings(&settings(true));
    router.control().expect_ok(&serde_json::json!("reload"));
    let all = set(&["225.1.2.3", "225.1.2.4", "225.1.2.5"]);
    eventually("joined", all, || kernel(&star.rtr, "in"));
    eventually("announced", true, || !wire.to("224.0.0.106").is_empty());
    router.write_settings(&settings(false));
    router.control().expect_ok(&serde_json::json!("reload"));
    eventually("left", set(&[]), || kernel(&star.rtr, "in"));
    eventually("a termination", Some(0x32), || {
        wire.to("224.0.0.106").last().map(|s| s.body()[0])
    });
}

/// Without IPv6 there is no address to report from, and the kernel refuses the membership.
fn join_without_ipv6_is_repaired_by_mtu_change(lab: &Lab) {
    let star = Star::dual(lab, 1);
    // An MTU below the IPv6 minimum (RFC 8200 section 5) disables IPv6 on the interface.
    star.rtr.ip("link set in mtu 1000");
    let router = Router::start(lab, &star.rtr, &join("in", "", "ff3e::1:2"));
    let error = || router.control().show("groups")[0]["error"].clone();
    eventually("the join has an error", true, || error().is_string());
    assert_eq!(kernel(&star.rtr, "in"), set(&[]));
    star.rtr.ip("link set in mtu 1500");
    eventually("joined after the MTU change", set(&["ff3e::1:2"]), || {
        kernel(&star.rtr, "in")
    });
    eventually("the error is cleared", true, || error().is_null());
}
