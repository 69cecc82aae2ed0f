//! Tests of packets with several variants: a route and proxies that forward the same packet.

use std::time::Duration;

use super::*;

const KEPT: &str = "225.1.2.3 keep";

#[test]
fn route_and_proxy_variants_reach_an_egress_once() {
    let rules = vec![rule("225.1.2.3", &["out1"], TtlPolicy::Keep)];
    let any = SourceFilter::any();
    let members = [
        (2, GROUP, any.clone()),
        (3, GROUP, any.clone()),
        (4, GROUP, any),
    ];
    let fib = fib_with(rules, vec![proxy(&[IIF], TtlPolicy::Decrement)], &members);
    let switched = run(
        &fib,
        &[plain(packet(GROUP, 9, 5)), plain(packet(GROUP, 8, 5))],
    );
    let kept = |ttl| (ttl, KEPT.to_owned());
    let proxied = |ttl| (ttl, "proxy".to_owned());
    assert_eq!(sent_packets(&fib, &switched, "out1"), [kept(9), kept(8)]);
    assert_eq!(
        sent_packets(&fib, &switched, "out2"),
        [proxied(8), proxied(7)]
    );
    // The TTL threshold is compared with the TTL on arrival.
    assert_eq!(sent_packets(&fib, &switched, "out3"), [proxied(8)]);
    assert_eq!(leaving(&fib, &switched, "out2")[0], packet(GROUP, 8, 5));
    let counts = &switched.counts;
    assert_eq!((counts.packets, counts.dropped.iter().sum::<u64>()), (2, 0));
    assert_eq!(counts.refused.iter().map(|r| r.2).sum::<u64>(), 1);
    // The second variant is built once per packet for both egresses.
    assert_eq!(switched.shared.side_buffer.len(), 2 * 33);
}

#[test]
fn variants_with_equal_ttl_share_their_bytes() {
    let rules = vec![rule("225.1.2.3", &["out1"], TtlPolicy::Decrement)];
    let members = [(3, GROUP, SourceFilter::any())];
    let fib = fib_with(rules, vec![proxy(&[IIF], TtlPolicy::Decrement)], &members);
    let switched = run(&fib, &[plain(packet(GROUP, 9, 5))]);
    assert_eq!(leaving(&fib, &switched, "out1"), [packet(GROUP, 8, 5)]);
    assert_eq!(leaving(&fib, &switched, "out2"), [packet(GROUP, 8, 5)]);
    assert!(switched.shared.side_buffer.is_empty());
}

#[test]
fn ttl_expired_in_one_variant_keeps_the_other() {
    let members = [
        (2, GROUP, SourceFilter::any()),
        (3, GROUP, SourceFilter::any()),
    ];
    let run_with = |route_ttl, proxy_ttl| {
        let rules = vec![rule("225.1.2.3", &["out1"], route_ttl)];
        let fib = fib_with(rules, vec![proxy(&[IIF], proxy_ttl)], &members);
        let switched = run(&fib, &[plain(packet(GROUP, 1, 5))]);
        let at = |name| -> Vec<String> {
            let sent = sent_packets(&fib, &switched, name);
            sent.into_iter()
                .map(|(ttl, route)| format!("{ttl} {route}"))
                .collect()
        };
        let expired = switched.counts.dropped[DropReason::TtlExpired as usize];
        assert_eq!(switched.counts.dropped.iter().sum::<u64>(), expired);
        (at("out1"), at("out2"), expired)
    };
    let none: Vec<String> = vec![];
    let (decrement, keep) = (TtlPolicy::Decrement, TtlPolicy::Keep);
    // If the TTL expires for the route, the proxy sends the packet on the egress of the route too.
    let proxied = || vec!["1 proxy".to_owned()];
    assert_eq!(run_with(decrement, keep), (proxied(), proxied(), 0));
    assert_eq!(
        run_with(keep, decrement),
        (vec![format!("1 {KEPT}")], none.clone(), 0)
    );
    assert_eq!(run_with(decrement, decrement), (none.clone(), none, 1));
}

#[test]
fn segments_leave_in_both_variants() {
    let rules = vec![rule("225.1.2.3", &["out1"], TtlPolicy::Set(3))];
    let members = [(3, GROUP, SourceFilter::any())];
    let fib = fib_with(rules, vec![proxy(&[IIF], TtlPolicy::Decrement)], &members);
    let meta = Packet {
        offload: Offload::UdpSegments { payload: 1000 },
        ..Packet::default()
    };
    let packets = [
        plain(packet(GROUP, 9, 5)),
        (packet(GROUP, 9, 2500), meta),
        plain(packet(GROUP, 7, 5)),
    ];
    let switched = run(&fib, &packets);
    for (name, ttls) in [("out1", [3, 3, 3, 3, 3]), ("out2", [8, 8, 8, 8, 6])] {
        let left = leaving(&fib, &switched, name);
        let seen: Vec<_> = left.iter().map(|p| (p[8], p.len())).collect();
        let lens = [33, 1028, 1028, 528, 33];
        assert_eq!(seen, ttls.into_iter().zip(lens).collect::<Vec<_>>());
        // The payload is unchanged.
        let body: Vec<u8> = left[1..4].iter().flat_map(|p| &p[28..]).copied().collect();
        assert_eq!(body, packet(GROUP, 9, 2500)[28..]);
        sent_packets(&fib, &switched, name);
    }
    assert_eq!(switched.counts.packets, 5);
}

#[test]
fn looped_packet_is_dropped_once_if_no_variant_forwards_it() {
    let guarded = RouteRule {
        loop_guard: true,
        ..rule("225.1.2.3", &["out1"], TtlPolicy::Keep)
    };
    for (ttl, second, dropped) in [
        // The decremented TTL ends a loop: only the route drops the returned packet.
        (TtlPolicy::Decrement, 2, 0),
        (TtlPolicy::Set(7), 1, 1),
    ] {
        let members = [
            (2, GROUP, SourceFilter::any()),
            (3, GROUP, SourceFilter::any()),
        ];
        let fib = fib_with(vec![guarded.clone()], vec![proxy(&[IIF], ttl)], &members);
        let switched = run(
            &fib,
            &[plain(packet(GROUP, 9, 5)), plain(packet(GROUP, 9, 5))],
        );
        assert_eq!(sent_packets(&fib, &switched, "out1").len(), 1, "{ttl}");
        assert_eq!(sent_packets(&fib, &switched, "out2").len(), second, "{ttl}");
        let counts = &switched.counts;
        assert_eq!(counts.dropped[DropReason::Loop as usize], dropped, "{ttl}");
        assert_eq!(
            (counts.packets, counts.dropped.iter().sum::<u64>()),
            (2, dropped)
        );
    }
}

fn translating(rule: RouteRule, source: &str, group: &str) -> RouteRule {
    let translated = (Some(source.parse().unwrap()), Some(group.parse().unwrap()));
    let source = "10.0.0.1".parse().unwrap();
    let translation = TranslationRule::new((source, rule.group), translated, None, false).ok();
    assert!(translation.is_some());
    RouteRule {
        source,
        translation,
        ..rule
    }
}

#[test]
fn translated_and_original_stream_leave_side_by_side() {
    let members = [(2, GROUP, SourceFilter::any())];
    let destination = |p: &Vec<u8>| IpHeader::parse(p).unwrap().destination.to_string();
    for (source, group) in [("10.9.9.9", "239.1.1.1"), ("fd00::9", "ff3e::9")] {
        let translating_rule = rule("225.1.2.3", &["out1", "out2"], TtlPolicy::Keep);
        let translating_rule = translating(translating_rule, source, group);
        let proxies = vec![proxy(&[IIF], TtlPolicy::Decrement)];
        let both = fib_with(vec![translating_rule.clone()], proxies, &members);
        let meta = Packet {
            offload: Offload::UdpSegments { payload: 1000 },
            ..Packet::default()
        };
        let packets = [plain(packet(GROUP, 9, 5)), (packet(GROUP, 9, 1500), meta)];
        let switched = run(&both, &packets);
        // The member of the original stream receives it, and also the translated stream of the
        // route.
        let out1: Vec<_> = leaving(&both, &switched, "out1")
            .iter()
            .map(destination)
            .collect();
        let plain_ones = out1.iter().filter(|d| *d == "225.1.2.3").count();
        let translated = out1.iter().filter(|d| *d == group).count();
        assert_eq!((plain_ones, translated, out1.len()), (3, 3, 6));
        let out2: Vec<_> = leaving(&both, &switched, "out2")
            .iter()
            .map(destination)
            .collect();
        assert_eq!(out2, [group; 3]);
        assert_eq!(switched.counts.translated.iter().sum::<u64>(), 3);
        // Each variant of a GSO packet has the pseudo-header sum of its own addresses.
        let keeps_version = group.starts_with("239");
        let gso_slots = if keeps_version { 3 } else { 0 };
        assert_eq!(gso_counts(&switched).iter().sum::<usize>(), gso_slots);
        let slots = switched.egresses.iter().flat_map(|(_, slots)| slots);
        for slot in slots.filter(|s| s.segments.is_some()) {
            assert!(is_ready_for_kernel_gso(switched.shared.packet(slot)));
        }
        assert_eq!(switched.counts.dropped.iter().sum::<u64>(), 0);
        // Without the proxy, a packet is copied only if the IP version changes.
        let alone = fib(vec![translating_rule]);
        let switched = run(&alone, &packets[..1]);
        let slots = switched.egresses.iter().flat_map(|(_, slots)| slots);
        assert!(slots.clone().all(|s| s.in_side_buffer != keeps_version) && slots.count() == 2);
    }
}

#[test]
fn untranslatable_packet_is_dropped_once() {
    let mut tcp = packet(GROUP, 9, 40);
    tcp[9] = 6;
    refresh_ipv4_checksum(&mut tcp);
    let translating_rule = rule("225.1.2.3", &["out1", "out2"], TtlPolicy::Keep);
    let translating_rule = translating(translating_rule, "10.9.9.9", "239.1.1.1");
    let dropped = |switched: &Switched| {
        let dropped = &switched.counts.dropped;
        (
            dropped[DropReason::TranslateProtocol as usize],
            dropped.iter().sum::<u64>(),
        )
    };
    let alone = fib(vec![translating_rule.clone()]);
    let switched = run(&alone, &[plain(tcp.clone())]);
    assert_eq!(dropped(&switched), (1, 1));
    assert!(switched.egresses.is_empty());
    let members = [(2, GROUP, SourceFilter::any())];
    let both = fib_with(
        vec![translating_rule.clone()],
        vec![proxy(&[IIF], TtlPolicy::Keep)],
        &members,
    );
    let switched = run(&both, &[plain(tcp.clone())]);
    assert_eq!(dropped(&switched), (0, 0));
    assert_eq!(leaving(&both, &switched, "out1"), [tcp]);
    // The loop guard recognises a returned packet before its translation.
    let guarded = RouteRule {
        loop_guard: true,
        ..translating_rule
    };
    let again = run(
        &fib(vec![guarded]),
        &[plain(packet(GROUP, 9, 5)), plain(packet(GROUP, 8, 5))],
    );
    assert_eq!(again.counts.dropped[DropReason::Loop as usize], 1);
    assert_eq!(again.counts.translated.iter().sum::<u64>(), 1);
}

#[test]
fn packet_from_downstream_goes_upstream_and_to_members() {
    let members = [
        (2, GROUP, SourceFilter::any()),
        (3, GROUP, SourceFilter::any()),
    ];
    let from = |fib: &Fib, index| {
        let ingress = &fib.ingresses[&InterfaceId::new(index).unwrap()];
        let packets = [
            plain(packet(GROUP, 9, 5)),
            plain(packet([225, 9, 9, 9], 9, 5)),
        ];
        let switched = Switch::default().run(fib, ingress, batch(&packets), 0);
        let count = |name| sent_packets(fib, &switched, name).len();
        let dropped = |r: DropReason| switched.counts.dropped[r as usize];
        let no_route = dropped(DropReason::NoRoute);
        assert_eq!(switched.counts.dropped.iter().sum::<u64>(), no_route);
        (
            ["eth0", "eth1", "out1", "out2", "out3"].map(count),
            no_route,
        )
    };
    let both = proxy(&[IIF, "eth1"], TtlPolicy::Decrement);
    let fib = fib_with(vec![], vec![both.clone()], &members);
    // Every group is sent on the first upstream, and the joined group also to the other member.
    assert_eq!(from(&fib, 2), ([2, 0, 0, 1, 0], 0));
    assert_eq!(from(&fib, 4), ([2, 0, 1, 1, 0], 0));
    assert_eq!(from(&fib, 1), ([0, 0, 1, 1, 0], 1));
    let down_only = ProxyRule {
        upward: false,
        ..both
    };
    let fib = fib_with(vec![], vec![down_only], &members);
    assert_eq!(from(&fib, 2), ([0, 0, 0, 1, 0], 1));
}

#[test]
fn active_upstream_changes_only_after_silence() {
    let members = [(2, GROUP, SourceFilter::any())];
    let both = ProxyRule {
        takeover: Duration::from_secs(1),
        ..proxy(&[IIF, "eth1"], TtlPolicy::Decrement)
    };
    let fib = fib_with(vec![], vec![both], &members);
    let streams = Arc::<StreamState>::default();
    let mut switches = [1, 6].map(|index| {
        let flows = Flows::new(FlowBudget::new(8));
        let monitor = StreamMonitor::new(Arc::default());
        let switch = Switch::new(flows, Arc::default(), streams.clone(), monitor);
        (index, switch)
    });
    let mut run_at = |at: usize, ttl, now| {
        let (index, switch) = &mut switches[at];
        let ingress = &fib.ingresses[&InterfaceId::new(*index).unwrap()];
        let packets = vec![plain(packet(GROUP, ttl, 5)); 3];
        let switched = switch.run(&fib, ingress, batch(&packets), now);
        let counts = &switched.counts;
        let standby = counts.dropped[DropReason::Standby as usize];
        let expired = counts.dropped[DropReason::TtlExpired as usize];
        assert_eq!(counts.dropped.iter().sum::<u64>(), standby + expired);
        (sent_packets(&fib, &switched, "out1").len(), standby)
    };
    assert_eq!(
        run_at(0, 1, 0),
        (0, 0),
        "an upstream whose packets expire does not become active"
    );
    assert_eq!(run_at(1, 9, 0), (3, 0));
    assert_eq!(run_at(0, 9, 1), (0, 3));
    assert_eq!(run_at(1, 9, 500), (3, 0));
    assert_eq!(run_at(0, 9, 1499), (0, 3));
    assert_eq!(run_at(0, 9, 1500), (3, 0));
    assert_eq!(run_at(1, 9, 1501), (0, 3));
    assert_eq!(run_at(0, 9, 2400), (3, 0));
}
