//! Tests of the forwarding decision.

use super::*;
use crate::model::KernelForwarding;
use crate::model::RouteName;
use crate::table::flows::FlowBudget;
use crate::wire::ip::refresh_ipv4_checksum;

fn packet(source: [u8; 4], group: [u8; 4], ttl: u8) -> Vec<u8> {
    let mut p = vec![0u8; 28];
    p[0] = 0x45;
    p[3] = 28;
    p[8] = ttl;
    p[9] = 17;
    p[12..16].copy_from_slice(&source);
    p[16..20].copy_from_slice(&group);
    refresh_ipv4_checksum(&mut p);
    p
}

fn table(entries: &[(&str, &str, TtlPolicy, &[&str])]) -> (Fib, Ingress) {
    let (mut all, mut ingress) = (Vec::new(), Ingress::default());
    for (group, source, ttl, except) in entries {
        let entry = Entry {
            route: RouteName::new(*group),
            except_sources: except.iter().map(|e| e.parse().unwrap()).collect(),
            ttl: *ttl,
            link_local: false,
            link_local_sources: false,
            loop_guard: false,
            translation: None,
            takeover_ms: None,
            yields: false,
            merge: None,
            monitor: None,
            paths: vec![0],
        };
        let id = all.len() as EntryId;
        all.push(entry);
        let (group, source) = (group.parse().unwrap(), source.parse().unwrap());
        ingress.entries.insert(group, source, id);
    }
    let entries = all.into();
    let fib = Fib {
        entries,
        ..Fib::default()
    };
    (fib, ingress)
}

/// Returns the route of the only variant, and the TTL that the packet leaves with.
fn first(decision: Decision<'_>) -> (&str, u8) {
    let mut variants = decision.variants();
    let first = variants.next().unwrap();
    assert!(variants.next().is_none() && !decision.is_union());
    (first.entry.route.as_str(), first.ttl)
}

fn decide<'f>(
    (fib, ingress): &'f (Fib, Ingress),
    bytes: &[u8],
) -> Result<(&'f str, u8), DropReason> {
    let mut flows = Flows::new(FlowBudget::new(8));
    let streams = StreamState::default();
    let arrival = Arrival {
        fib,
        ingress,
        streams: &streams,
        sender: None,
        now_ms: 0,
    };
    // The explanation comes before the decision, so that it must predict the decision.
    let trace = resolve(arrival, bytes);
    let once = super::decide(arrival, &mut flows, bytes).map(|d| first(d).1);
    assert_eq!(trace.outcome, once.map(drop));
    // The decision cached in the flow equals the decision from the rules.
    let again = super::decide(arrival, &mut flows, bytes);
    assert_eq!(again.map(|d| first(d).1), once);
    assert_eq!(flows.iter().count(), usize::from(once.is_ok()));
    let name = |d: Decision<'_>| d.variants().next().unwrap().entry as *const Entry;
    let at = |p| fib.entries.iter().find(|e| std::ptr::eq(*e, p)).unwrap();
    again
        .map(|d| (at(name(d)).route.as_str(), first(d).1))
        .map_err(|e| match e {
            NotData::Dropped(reason) => reason,
            NotData::Membership => panic!("a membership message"),
        })
}

const ANY: &str = "0.0.0.0/0";

#[test]
fn ttl_by_policy() {
    for (policy, arrives, leaves) in [
        (TtlPolicy::Decrement, 2, Ok(1)),
        (TtlPolicy::Decrement, 1, Err(DropReason::TtlExpired)),
        (TtlPolicy::Decrement, 0, Err(DropReason::TtlExpired)),
        (TtlPolicy::Keep, 1, Ok(1)),
        (TtlPolicy::Set(8), 1, Ok(8)),
        (TtlPolicy::Set(8), 64, Ok(8)),
    ] {
        let table_ = table(&[("225.1.2.3", ANY, policy, &[])]);
        let bytes = packet([10, 0, 0, 1], [225, 1, 2, 3], arrives);
        assert_eq!(
            decide(&table_, &bytes).map(|d| d.1),
            leaves,
            "{policy} {arrives}"
        );
    }
}

#[test]
fn excepted_source_uses_a_less_specific_rule() {
    let both = table(&[
        ("225.1.2.3", ANY, TtlPolicy::Keep, &["10.0.0.7"]),
        ("225.1.2.0/24", ANY, TtlPolicy::Decrement, &[]),
    ]);
    let bytes = packet([10, 0, 0, 7], [225, 1, 2, 3], 5);
    assert_eq!(decide(&both, &bytes).unwrap().0, "225.1.2.0/24");
    let one = table(&[("225.1.2.3", ANY, TtlPolicy::Keep, &["10.0.0.0/24"])]);
    assert_eq!(decide(&one, &bytes).err(), Some(DropReason::SourceExcepted));
}

#[test]
fn unforwardable_packets_have_their_reason() {
    let all = table(&[("224.0.0.0/4", ANY, TtlPolicy::Decrement, &[])]);
    let reason = |s, g| decide(&all, &packet(s, g, 9)).err();
    assert_eq!(reason([10, 0, 0, 1], [225, 1, 2, 3]), None);
    assert_eq!(
        reason([10, 0, 0, 1], [224, 0, 0, 251]),
        Some(DropReason::LinkLocal)
    );
    assert_eq!(
        reason([10, 0, 0, 1], [10, 0, 0, 2]),
        Some(DropReason::NotMulticast)
    );
    for source in [[0, 0, 0, 0], [127, 0, 0, 1], [225, 0, 0, 1], [255; 4]] {
        assert_eq!(
            reason(source, [225, 1, 2, 3]),
            Some(DropReason::BadSource),
            "{source:?}"
        );
    }
}

/// Compares the forwarding table with a scan of all rules and memberships.
mod memberships {
    use super::*;
    use crate::model::{
        Group, InterfaceId, Link, Links, ProxyRule, RouteRule, Source, SourceFilter,
    };
    use crate::table::{MembershipDatabase, Rib};
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};
    use std::net::IpAddr;

    const NAMES: [&str; 7] = ["up0", "up1", "a0", "a1", "b0", "b1", "other"];

    fn index(at: usize) -> InterfaceId {
        InterfaceId::new(at as u32 + 1).unwrap()
    }

    fn links() -> Links {
        let link = |(at, name): (usize, &&str)| Link::new(index(at), name.parse().unwrap());
        NAMES.iter().enumerate().map(link).collect()
    }

    fn group(n: u8) -> Group {
        Group::new([239, 0, 0, n].into()).unwrap()
    }

    fn source(n: u8) -> Source {
        Source::new([10, 0, 0, n + 1].into()).unwrap()
    }

    fn proxy(upstream: &[&str], downstream: &str) -> ProxyRule {
        let pattern = |name: &str| name.parse().unwrap();
        let upstream = upstream.iter().map(|u| pattern(u)).collect();
        let mut proxy = ProxyRule::new(upstream, vec![pattern(downstream)]);
        proxy.name = RouteName::new(downstream);
        proxy
    }

    /// Two proxies that share an upstream. The second does not forward upstream, and denies a group
    /// and a source.
    fn proxies() -> Vec<ProxyRule> {
        let a = proxy(&["up0", "up1"], "a*");
        let mut b = proxy(&["up0"], "b*");
        b.upward = false;
        b.deny_groups = vec!["239.0.0.2/32".parse().unwrap()];
        b.deny_sources = vec!["10.0.0.1/32".parse().unwrap()];
        vec![a, b]
    }

    type Members = BTreeMap<(usize, u8), SourceFilter>;

    /// Returns the egresses of a packet according to RFC 4605 section 4.3.
    fn expected_egresses(
        rules: &[RouteRule],
        all: &Members,
        iif: usize,
        s: u8,
        g: u8,
    ) -> BTreeSet<String> {
        let name = NAMES[iif];
        let mut out = BTreeSet::new();
        let takes = |r: &&RouteRule| {
            r.from.as_str() == name
                && r.group.net().contains(&group(g).addr())
                && r.source.net().contains(&source(s).addr())
        };
        let best = rules
            .iter()
            .filter(takes)
            .max_by_key(|r| (r.group.net().prefix_len(), r.source.net().prefix_len()));
        out.extend(best.iter().flat_map(|r| &r.to).map(|t| t.to_string()));
        for proxy in proxies() {
            let matches_any = |list: &[crate::model::IfPattern]| {
                list.iter().any(|p| p.matches(&name.parse().unwrap()))
            };
            let (up, down) = (matches_any(&proxy.upstream), matches_any(&proxy.downstream));
            if !(up || down) || !proxy.accepts_group(group(g)) || !proxy.accepts_source(source(s)) {
                continue;
            }
            if down && proxy.upward {
                out.insert(proxy.upstream[0].to_string());
            }
            for ((at, of), filter) in all {
                let member = &NAMES[*at].parse().unwrap();
                let is_downstream = proxy.downstream.iter().any(|p| p.matches(member));
                if is_downstream && *of == g && *at != iif && filter.accepts(source(s)) {
                    out.insert(NAMES[*at].to_owned());
                }
            }
        }
        out
    }

    fn egresses(fib: &Fib, iif: usize, s: u8, g: u8) -> BTreeSet<String> {
        let key = (source(s).addr(), group(g).addr());
        let Some(ingress) = fib.ingresses.get(&index(iif)) else {
            return BTreeSet::new();
        };
        let Ok(verdicts) = look_up(fib, ingress, key) else {
            return BTreeSet::new();
        };
        let paths = entry_paths(fib, ingress, verdicts).flat_map(|(entry, paths)| {
            paths.map(|path| {
                let path_of = &fib.paths[path as usize];
                assert_eq!(path_of.iif.as_str(), NAMES[iif]);
                assert_eq!(path_of.route, entry.route);
                fib.egress_of(path).unwrap().name.to_string()
            })
        });
        paths.collect()
    }

    fn filter() -> impl Strategy<Value = SourceFilter> {
        (any::<bool>(), proptest::collection::btree_set(0u8..4, 0..4)).prop_map(|(include, s)| {
            let sources = s.into_iter().map(source).collect();
            match include {
                true => SourceFilter::Include(sources),
                false => SourceFilter::Exclude(sources),
            }
        })
    }

    fn rules() -> impl Strategy<Value = Vec<RouteRule>> {
        let groups = prop_oneof![Just("239.0.0.0/24"), Just("239.0.0.1"), Just("239.0.0.2")];
        let sources = prop_oneof![Just("0.0.0.0/0"), Just("10.0.0.1/32")];
        let from = prop_oneof![Just("up0"), Just("up1"), Just("a0"), Just("b0")];
        let to = proptest::sample::subsequence(vec!["a1", "b1", "other"], 1..=3);
        let rule = (groups, sources, from, to).prop_map(|(group, source, from, to)| {
            let to = to.into_iter().map(|t| t.parse().unwrap()).collect();
            RouteRule {
                source: source.parse().unwrap(),
                ..RouteRule::new(from.parse().unwrap(), group.parse().unwrap(), to)
            }
        });
        proptest::collection::vec(rule, 0..6).prop_map(|mut rules| {
            let mut seen = std::collections::HashSet::new();
            rules.retain(|r| seen.insert((r.from.clone(), r.group, r.source)));
            rules
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn union_equals_a_scan_of_rules_and_memberships(
            rules in rules(),
            changes in proptest::collection::vec((2usize..7, 0u8..4, proptest::option::weighted(0.9, filter())), 1..40),
        ) {
            let rib = Rib { rules: rules.clone().into(), proxies: proxies(), ..Rib::default() };
            let mut database = MembershipDatabase::default();
            let mut fib = rib.build_fib(&links(), 1);
            database.rebuild(&mut fib);
            let mut all = Members::new();
            for (n, (at, g, filter)) in changes.into_iter().enumerate() {
                match filter {
                    Some(filter) => {
                        database.set(index(at), group(g), filter.clone());
                        all.insert((at, g), filter);
                    }
                    None => {
                        database.remove_downstream(index(at));
                        all.retain(|(a, _), _| *a != at);
                    }
                }
                let next = database.update(&fib, n as u64 + 2);
                let before = next.is_none().then_some(());
                fib = next.unwrap_or(fib);
                let mut rebuilt = rib.build_fib(&links(), 1);
                let mut again = MembershipDatabase::default();
                for ((at, g), filter) in &all {
                    again.set(index(*at), group(*g), filter.clone());
                }
                again.rebuild(&mut rebuilt);
                for (iif, s, g) in (0..NAMES.len()).flat_map(|i| (0..5).flat_map(move |s| (0..4).map(move |g| (i, s, g)))) {
                    let expected = expected_egresses(&rules, &all, iif, s, g);
                    prop_assert_eq!(egresses(&fib, iif, s, g), expected.clone(), "{} {} {} {:?}", iif, s, g, before);
                    prop_assert_eq!(egresses(&rebuilt, iif, s, g), expected);
                }
            }
            // Removing all downstreams empties the database.
            (0..NAMES.len()).for_each(|at| database.remove_downstream(index(at)));
            fib = database.update(&fib, 99).unwrap_or(fib);
            prop_assert!(database.is_empty());
            let none = Members::new();
            for iif in 0..NAMES.len() {
                prop_assert_eq!(egresses(&fib, iif, 0, 0), expected_egresses(&rules, &none, iif, 0, 0));
            }
        }
    }

    fn refusal(
        database: &mut MembershipDatabase,
        iif: usize,
        s: u8,
        g: Group,
    ) -> Option<DropReason> {
        let rib = Rib {
            proxies: proxies(),
            ..Rib::default()
        };
        let mut fib = rib.build_fib(&links(), 1);
        database.rebuild(&mut fib);
        let key: (IpAddr, IpAddr) = (source(s).addr(), g.addr());
        look_up(&fib, &fib.ingresses[&index(iif)], key).err()
    }

    #[test]
    fn undelivered_packet_has_the_matching_reason() {
        let mut database = MembershipDatabase::default();
        let only = SourceFilter::Include([source(1)].into());
        assert_eq!(
            refusal(&mut database, 0, 1, group(1)),
            Some(DropReason::NoRoute)
        );
        database.set(index(2), group(1), only.clone());
        assert_eq!(refusal(&mut database, 0, 1, group(1)), None);
        assert_eq!(
            refusal(&mut database, 0, 2, group(1)),
            Some(DropReason::SourceNotJoined)
        );
        // A host joined the group, but the proxy denies this source.
        database.set(index(4), group(3), SourceFilter::any());
        assert_eq!(
            refusal(&mut database, 0, 0, group(3)),
            Some(DropReason::SourceExcepted)
        );
        // The ingress is not an upstream of the proxy with the member.
        assert_eq!(
            refusal(&mut database, 1, 1, group(3)),
            Some(DropReason::NoRoute)
        );
        // The only member is on the ingress interface.
        assert_eq!(
            refusal(&mut database, 4, 1, group(3)),
            Some(DropReason::NoRoute)
        );
        let local: Group = "224.0.0.251".parse().unwrap();
        database.set(index(2), local, SourceFilter::any());
        assert_eq!(
            refusal(&mut database, 0, 1, local),
            Some(DropReason::NoRoute)
        );
        assert_eq!(
            refusal(&mut database, 2, 1, local),
            Some(DropReason::NoRoute)
        );
    }

    #[test]
    fn unchanged_membership_keeps_the_snapshot() {
        let rib = Rib {
            proxies: proxies(),
            ..Rib::default()
        };
        let mut database = MembershipDatabase::default();
        let mut fib = rib.build_fib(&links(), 1);
        database.rebuild(&mut fib);
        assert!(database.update(&fib, 2).is_none());
        database.set(index(2), group(1), SourceFilter::any());
        let next = database.update(&fib, 2).unwrap();
        assert!(fib.paths.ptr_eq(&next.paths));
        assert_eq!(next.generation, 2);
        database.set(index(2), group(1), SourceFilter::any());
        assert!(database.update(&next, 3).is_none());
        // The older snapshot is unchanged.
        assert!(egresses(&fib, 0, 1, 1).is_empty());
        assert_eq!(egresses(&next, 0, 1, 1), ["a0".to_owned()].into());
    }

    /// 10,000 groups with 10 sources each: the cost of a change depends only on the changed group.
    #[test]
    fn change_of_one_group_among_ten_thousand_is_fast() {
        let rib = Rib {
            proxies: proxies(),
            ..Rib::default()
        };
        let mut database = MembershipDatabase::default();
        let of = |n: u32| Group::new(std::net::Ipv4Addr::from(0xef00_0100 + n).into()).unwrap();
        let ten = |from: u8| SourceFilter::Include((from..from + 10).map(source).collect());
        (0..10_000).for_each(|n| database.set(index(2 + n as usize % 2), of(n), ten(0)));
        let mut fib = rib.build_fib(&links(), 1);
        let start = std::time::Instant::now();
        database.rebuild(&mut fib);
        let rebuild_time = start.elapsed();
        let mut update_times = Vec::new();
        for n in 0..1000 {
            let start = std::time::Instant::now();
            database.set(index(2 + n as usize % 2), of(n), ten(1));
            fib = database.update(&fib, u64::from(n)).unwrap();
            update_times.push(start.elapsed());
        }
        update_times.sort();
        println!(
            "rebuild {rebuild_time:?}, one group: median {:?}, p99 {:?}",
            update_times[500], update_times[990]
        );
        assert!(
            update_times[500].as_micros() < 1000,
            "{:?}",
            update_times[500]
        );
        assert!(update_times[500] * 20 < rebuild_time);
    }
}

/// A table with two paths, of which one has a TTL threshold and one an egress that is down.
fn table_with_paths() -> (Fib, Ingress) {
    let (mut fib, ingress) = table(&[("225.0.0.0/8", ANY, TtlPolicy::Decrement, &["10.0.0.9/32"])]);
    let egress = |index: u32, running| crate::table::Egress {
        index: crate::model::InterfaceId::new(index).unwrap(),
        name: format!("out{index}").parse().unwrap(),
        mtu: 1500,
        running,
        plane: None,
        kernel_forwarding: KernelForwarding::Auto,
        bandwidth: None,
        subnets: Vec::new(),
        address: None,
    };
    let path = |egress, threshold: Option<u8>| crate::table::Path {
        route: RouteName::new("225.0.0.0/8"),
        iif: "in".parse().unwrap(),
        egress,
        threshold: threshold.and_then(crate::model::TtlThreshold::new),
        fragment: Default::default(),
    };
    fib.egresses = vec![egress(1, true), egress(2, false)].into();
    fib.paths = vec![path(0, Some(9)), path(1, None)].into();
    let mut entries: Vec<Entry> = fib.entries.iter().cloned().collect();
    entries[0].paths = vec![0, 1];
    fib.entries = entries.into();
    (fib, ingress)
}

fn explain((fib, ingress): &(Fib, Ingress), bytes: &[u8]) -> Trace {
    let arrival = Arrival {
        fib,
        ingress,
        streams: &StreamState::default(),
        sender: None,
        now_ms: 0,
    };
    resolve(arrival, bytes)
}

#[test]
fn trace_names_matched_route_and_refused_paths() {
    let table = table_with_paths();
    let trace = explain(&table, &packet([10, 0, 0, 1], [225, 1, 2, 3], 5));
    assert_eq!(trace.outcome, Ok(()));
    assert_eq!(trace.header.unwrap().ttl, 5);
    let checked = |path, result| TraceStep::PathChecked {
        path,
        ttl: 4,
        result,
    };
    assert_eq!(
        trace.steps,
        [
            TraceStep::RouteMatched { entry: 0 },
            checked(0, Err(DropReason::TtlThreshold)),
            checked(1, Err(DropReason::EgressDown)),
        ]
    );
}

/// RFC 4291 section 2.5.6, RFC 3927 section 7.
#[test]
fn link_local_sources_reach_link_local_groups_only() {
    let mut table = table(&[("224.0.0.0/4", ANY, TtlPolicy::Decrement, &[])]);
    let entry = |table: &mut (Fib, Ingress), link_local, link_local_sources| {
        let mut entries: Vec<Entry> = table.0.entries.iter().cloned().collect();
        (entries[0].link_local, entries[0].link_local_sources) = (link_local, link_local_sources);
        table.0.entries = entries.into();
    };
    let forwards = |table: &(Fib, Ingress), source, group| {
        decide(table, &packet(source, group, 5)).map(|(_, ttl)| ttl)
    };
    let (own, other) = ([169, 254, 1, 1], [10, 0, 0, 1]);
    let (wide, mdns) = ([239, 1, 1, 1], [224, 0, 0, 251]);
    let dropped = Err(DropReason::LinkLocalSource);
    assert_eq!(forwards(&table, own, wide), dropped);
    assert_eq!(forwards(&table, other, wide), Ok(4));
    assert_eq!(forwards(&table, own, mdns), Err(DropReason::LinkLocal));
    entry(&mut table, true, false);
    assert_eq!(forwards(&table, own, wide), dropped);
    assert_eq!(forwards(&table, own, mdns), Ok(4));
    entry(&mut table, false, true);
    assert_eq!(forwards(&table, own, wide), Ok(4));
    let reason = DropReason::LinkLocalSource;
    entry(&mut table, false, false);
    let trace = explain(&table, &packet(own, wide, 5));
    assert_eq!(trace.steps, [TraceStep::EntryRejected { entry: 0, reason }]);
}

#[test]
fn trace_names_the_reason_of_a_drop() {
    let table = table_with_paths();
    let excepted = explain(&table, &packet([10, 0, 0, 9], [225, 1, 2, 3], 5));
    assert_eq!(excepted.steps, [TraceStep::SourceExcepted { entry: 0 }]);
    assert_eq!(excepted.outcome, Err(DropReason::SourceExcepted.into()));
    let expired = explain(&table, &packet([10, 0, 0, 1], [225, 1, 2, 3], 1));
    let reason = DropReason::TtlExpired;
    assert_eq!(
        expired.steps,
        [
            TraceStep::RouteMatched { entry: 0 },
            TraceStep::EntryRejected { entry: 0, reason },
        ]
    );
    assert_eq!(explain(&table, &[0x45, 0]).header, None);
}
