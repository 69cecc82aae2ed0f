//! What the switch does with batches, counted exactly.

use super::*;
use crate::model::{
    Group, IfIndex, Link, Links, ProxyRule, RouteName, RouteRule, SourceFilter, TtlPolicy,
    TtlThreshold,
};
use crate::table::{InterfaceOptions, Learned, Rib};
use crate::wire::ip::{Datagram, refresh_ipv4_checksum};
use crate::wire::{checksum, udp};
use proptest::prelude::*;

const IIF: &str = "eth0";

fn link(index: u32, name: &str, vlan: Option<(u32, u16)>) -> Link {
    Link {
        vlan: vlan.map(|(on, id)| (IfIndex::new(on).unwrap(), id)),
        known_as: Default::default(),
        ..Link::new(IfIndex::new(index).unwrap(), name.parse().unwrap())
    }
}

fn rule(group: &str, to: &[&str], ttl: TtlPolicy) -> RouteRule {
    let to = to.iter().map(|t| t.parse().unwrap()).collect();
    RouteRule {
        name: RouteName::new(format!("{group} {ttl}")),
        ttl,
        ..RouteRule::new(IIF.parse().unwrap(), group.parse().unwrap(), to)
    }
}

/// eth0 (with VLAN 10 on top of it) to out1, out2 and out3, the last with a threshold of 8;
/// eth1 is there too.
fn fib(rules: Vec<RouteRule>) -> Fib {
    fib_with(rules, vec![], &[])
}

/// With proxies, and who asked for any source of a group.
fn fib_with(
    rules: Vec<RouteRule>,
    proxies: Vec<ProxyRule>,
    asked: &[(u32, [u8; 4], SourceFilter)],
) -> Fib {
    let links: Links = [
        link(1, IIF, None),
        link(2, "out1", None),
        link(3, "out2", None),
        link(4, "out3", None),
        link(5, "eth0.10", Some((1, 10))),
        link(6, "eth1", None),
    ]
    .into_iter()
    .collect();
    let interfaces = vec![InterfaceOptions {
        name: "out3".parse().unwrap(),
        ttl_threshold: TtlThreshold::new(8),
        mrdisc: None,
        disabled: false,
    }];
    let rib = Rib {
        rules,
        interfaces,
        proxies,
        ..Rib::default()
    };
    let mut learned = Learned::default();
    for (index, group, filter) in asked {
        let group = Group::new((*group).into()).unwrap();
        learned.learn(IfIndex::new(*index).unwrap(), group, filter.clone());
    }
    let mut fib = rib.fib(&links, 1);
    learned.rebuild(&mut fib);
    fib
}

fn proxy(upstream: &[&str], ttl: TtlPolicy) -> ProxyRule {
    let upstream = upstream.iter().map(|u| u.parse().unwrap()).collect();
    ProxyRule {
        name: RouteName::new("proxy"),
        ttl,
        ..ProxyRule::new(upstream, vec!["out*".parse().unwrap()])
    }
}

/// What leaves on an interface: TTL, and the route it counts under.
fn ways(fib: &Fib, switched: &Switched, name: &str) -> Vec<(u8, String)> {
    let named = |id: &EgressId| fib.egresses[*id as usize].name.as_str() == name;
    let slots = switched.egresses.iter().filter(|(id, _)| named(id));
    let way = |slot: &Slot| {
        let route = &fib.paths[slot.path as usize].route;
        let bytes = switched.load.packet(slot);
        // Each version is a whole packet with a checksum of its own.
        assert_eq!(Datagram::parse(bytes).map(|d| d.len), Ok(bytes.len()));
        (bytes[8], route.to_string())
    };
    slots.flat_map(|(_, slots)| slots).map(way).collect()
}

fn usual() -> Fib {
    fib(vec![
        rule("225.1.2.3", &["out1", "out3"], TtlPolicy::Decrement),
        rule("225.1.0.0/16", &["out2", "out1"], TtlPolicy::Keep),
        rule("225.9.9.9", &["gone"], TtlPolicy::Decrement),
        rule("ff3e::/32", &["out1"], TtlPolicy::Decrement),
    ])
}

fn packet(group: [u8; 4], ttl: u8, body: usize) -> Vec<u8> {
    let mut p = vec![0u8; 28];
    p[0] = 0x45;
    p[2..4].copy_from_slice(&((28 + body) as u16).to_be_bytes());
    p[8] = ttl;
    p[9] = udp::PROTOCOL;
    p[12..16].copy_from_slice(&[10, 0, 0, 1]);
    p[16..20].copy_from_slice(&group);
    p[24..26].copy_from_slice(&((8 + body) as u16).to_be_bytes());
    p.extend((0..body).map(|i| i as u8));
    refresh_ipv4_checksum(&mut p);
    p
}

fn packet_v6(hop_limit: u8) -> Vec<u8> {
    let mut p = vec![0u8; 48];
    p[0] = 0x60;
    p[5] = 8;
    p[6] = udp::PROTOCOL;
    p[7] = hop_limit;
    p[8] = 0x20;
    p[23] = 1;
    p[24..26].copy_from_slice(&[0xff, 0x3e]);
    p[39] = 1;
    p
}

const GROUP: [u8; 4] = [225, 1, 2, 3];

/// A batch of packets, each with what is known of it.
fn batch(packets: &[(Vec<u8>, Packet)]) -> Batch {
    let (mut bytes, mut all) = (vec![0xee; 7], Vec::new());
    for (i, (packet, meta)) in packets.iter().enumerate() {
        let version = packet.first().map_or(0, |b| b >> 4);
        let own = match version {
            6 => vlan::ETHERTYPE_IPV6,
            _ => vlan::ETHERTYPE_IPV4,
        };
        all.push(Packet {
            start: bytes.len() as u32,
            len: packet.len() as u32,
            received_ns: i as u64,
            ethertype: if meta.ethertype == 0 {
                own
            } else {
                meta.ethertype
            },
            ..*meta
        });
        bytes.extend_from_slice(packet);
    }
    Batch::from_bytes(bytes, all)
}

fn run(fib: &Fib, packets: &[(Vec<u8>, Packet)]) -> Switched {
    let ingress = &fib.ingresses[&IfIndex::new(1).unwrap()];
    Switch::default().run(fib, ingress, batch(packets), 0)
}

fn plain(packet: Vec<u8>) -> (Vec<u8>, Packet) {
    (packet, Packet::default())
}

/// Why the only packet was dropped.
fn reason(packet: (Vec<u8>, Packet)) -> Option<DropReason> {
    let len = packet.0.len() as u64;
    let switched = run(&usual(), &[packet]);
    assert_eq!(switched.tally.packets, 1);
    let found = DropReason::ALL
        .iter()
        .find(|r| switched.tally.dropped[**r as usize] == 1);
    // What is no packet counts with all its bytes.
    assert!(found.is_none() || switched.tally.bytes == len);
    assert_eq!(found.is_some(), switched.egresses.is_empty());
    found.copied()
}

/// What leaves on an interface.
fn leaving(fib: &Fib, switched: &Switched, name: &str) -> Vec<Vec<u8>> {
    let named = |id: &EgressId| fib.egresses[*id as usize].name.as_str() == name;
    let slots = switched.egresses.iter().filter(|(id, _)| named(id));
    slots
        .flat_map(|(_, slots)| slots)
        .map(|slot| switched.load.packet(slot).to_vec())
        .collect()
}

#[test]
fn fan_out_obeys_thresholds_and_keeps_the_order_of_each_egress() {
    let fib = usual();
    let ttls = [9, 8, 2, 200, 1];
    let packets: Vec<_> = ttls.iter().map(|t| plain(packet(GROUP, *t, 4))).collect();
    let mixed = [&packets[..], &[plain(packet([225, 1, 7, 7], 1, 4))]].concat();
    let switched = run(&fib, &mixed);
    let left = |name| -> Vec<u8> {
        let packets = leaving(&fib, &switched, name);
        packets.iter().map(|p| p[8]).collect()
    };
    assert_eq!(left("out1"), [8, 7, 1, 199, 1]);
    assert_eq!(left("out3"), [8, 199]);
    assert_eq!(left("out2"), [1]);
    let out3 = fib.egresses.iter().position(|e| e.name.as_str() == "out3");
    let below = &switched.tally.below_threshold;
    assert_eq!(below, &[(out3.unwrap() as u32, 2)]);
    assert_eq!(switched.tally.dropped[DropReason::TtlExpired as usize], 1);
    assert_eq!(switched.tally.packets, 6);
    for (_, slots) in &switched.egresses {
        assert!(slots.is_sorted_by_key(|s| s.received_ns));
    }
}

#[test]
fn a_vlan_with_an_interface_of_its_own_is_left_to_it() {
    let vlan = |id| Packet {
        vlan: Some(id),
        ..Packet::default()
    };
    let elsewhere = Some(DropReason::VlanElsewhere);
    assert_eq!(reason((packet(GROUP, 9, 4), vlan(10))), elsewhere);
    assert_eq!(reason((packet(GROUP, 9, 4), vlan(11))), None);
    // Tagged for priority only (802.1Q section 9.6).
    assert_eq!(reason((packet(GROUP, 9, 4), vlan(0))), None);
}

fn tagged(tags: &[(u16, u16)], packet: Vec<u8>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (control, next) in tags {
        bytes.extend_from_slice(&control.to_be_bytes());
        bytes.extend_from_slice(&next.to_be_bytes());
    }
    bytes.extend(packet);
    bytes
}

fn of_type(ethertype: u16) -> Packet {
    Packet {
        ethertype,
        ..Packet::default()
    }
}

#[test]
fn tags_left_in_the_bytes_are_stepped_over_and_the_outermost_counts() {
    let fib = usual();
    let inner = |id: u16| tagged(&[(id, 0x0800)], packet(GROUP, 9, 4));
    // QinQ: the kernel took the outer tag; the inner one is nobody else's.
    let mut qinq = of_type(vlan::ETHERTYPE_VLAN);
    qinq.vlan = Some(20);
    let switched = run(&fib, &[(inner(10), qinq)]);
    assert_eq!(leaving(&fib, &switched, "out1"), [packet(GROUP, 8, 4)]);
    qinq.vlan = Some(10);
    assert_eq!(reason((inner(20), qinq)), Some(DropReason::VlanElsewhere));
    // Going out on a device that cannot insert tags, the outer tag is in the bytes too.
    let untouched = of_type(vlan::ETHERTYPE_VLAN);
    let elsewhere = Some(DropReason::VlanElsewhere);
    assert_eq!(reason((inner(10), untouched)), elsewhere);
    assert_eq!(reason((inner(0x6000 | 10), untouched)), elsewhere);
    assert_eq!(reason((inner(11), untouched)), None);
    let two = tagged(&[(20, 0x8100), (10, 0x86dd)], packet_v6(9));
    let switched = run(&fib, &[(two, of_type(vlan::ETHERTYPE_SERVICE_VLAN))]);
    assert_eq!(leaving(&fib, &switched, "out1"), [packet_v6(8)]);
    let cut = tagged(&[(20, 0x8100)], vec![0, 10]);
    let reason = reason((cut, of_type(vlan::ETHERTYPE_VLAN)));
    assert_eq!(reason, Some(DropReason::Truncated));
}

#[test]
fn a_checksum_behind_tags_is_finished_at_its_place() {
    let fib = usual();
    let mut unfinished = packet(GROUP, 9, 5);
    let (s, d) = ([10, 0, 0, 1].into(), GROUP.into());
    let sum = checksum::fold(checksum::pseudo_header(s, d, udp::PROTOCOL, 13));
    unfinished[26..28].copy_from_slice(&sum.to_be_bytes());
    let mut meta = of_type(vlan::ETHERTYPE_VLAN);
    meta.offload = Offload::Checksum {
        start: 24,
        offset: 6,
    };
    let switched = run(&fib, &[(tagged(&[(11, 0x0800)], unfinished), meta)]);
    let left = &leaving(&fib, &switched, "out1")[0];
    let sum = checksum::pseudo_header(s, d, udp::PROTOCOL, 13);
    assert_eq!(checksum::fold(checksum::add(sum, &left[20..])), 0xffff);
    meta.offload = Offload::Checksum {
        start: 3,
        offset: 6,
    };
    let bytes = tagged(&[(11, 0x0800)], packet(GROUP, 9, 5));
    assert_eq!(reason((bytes, meta)), Some(DropReason::ChecksumUnknown));
}

#[test]
fn pieces_of_a_super_packet_go_to_every_egress_and_count_as_packets() {
    let fib = usual();
    let offload = Offload::UdpSegments { payload: 1000 };
    let big = (
        packet([225, 1, 7, 7], 9, 2500),
        Packet {
            offload,
            ..Packet::default()
        },
    );
    let small = plain(packet([225, 1, 7, 7], 5, 1));
    let switched = run(&fib, &[small.clone(), big, small.clone()]);
    let out1 = leaving(&fib, &switched, "out1");
    let lens: Vec<_> = out1.iter().map(Vec::len).collect();
    assert_eq!(lens, [29, 1028, 1028, 528, 29]);
    assert_eq!(leaving(&fib, &switched, "out2"), out1);
    let whole = |p: &Vec<u8>| Datagram::parse(p).is_ok_and(|d| d.len == p.len());
    assert!(out1.iter().all(whole));
    assert_eq!(switched.tally.packets, 5);
    assert_eq!(switched.tally.bytes, 29 + 1028 + 1028 + 528 + 29);
    // One that cannot be cut is one packet dropped, and leaves no pieces behind.
    let mut meta = Packet {
        offload: Offload::UdpSegments { payload: 0 },
        ..Packet::default()
    };
    let gso = Some(DropReason::GsoUnknown);
    assert_eq!(reason((packet(GROUP, 9, 100), meta)), gso);
    meta.offload = Offload::Unknown;
    assert_eq!(reason((packet(GROUP, 9, 100), meta)), gso);
}

#[test]
fn what_is_no_whole_packet_has_a_reason() {
    let good = || packet(GROUP, 9, 4);
    let cut = Packet {
        cut: true,
        ..Packet::default()
    };
    assert_eq!(reason((good(), cut)), Some(DropReason::Truncated));
    let malformed = Some(DropReason::Malformed);
    assert_eq!(reason((good(), of_type(vlan::ETHERTYPE_IPV6))), malformed);
    assert_eq!(reason((packet_v6(9), of_type(0x0800))), malformed);
    assert_eq!(reason((good(), of_type(0x0806))), malformed);
    let empty = reason((vec![], of_type(0x0800)));
    assert_eq!(empty, Some(DropReason::Truncated));
    let no_egress = reason(plain(packet([225, 9, 9, 9], 9, 4)));
    assert_eq!(no_egress, Some(DropReason::NoEgress));
    // A place outside the batch is what no plane gives; it must not be read.
    let fib = usual();
    let ingress = &fib.ingresses[&IfIndex::new(1).unwrap()];
    let mut outside = batch(&[plain(good())]);
    outside.packets[0].len += 1;
    let switched = Switch::default().run(&fib, ingress, outside, 0);
    assert_eq!(switched.tally.dropped[DropReason::Truncated as usize], 1);
}

#[test]
fn padding_is_trimmed() {
    let fib = usual();
    let mut padded = packet(GROUP, 9, 1);
    padded.resize(46, 0xaa);
    let switched = run(&fib, &[plain(padded)]);
    assert_eq!(leaving(&fib, &switched, "out1"), [packet(GROUP, 8, 1)]);
    assert_eq!(switched.tally.bytes, 29);
}

const KEPT: &str = "225.1.2.3 keep";

#[test]
fn a_route_and_a_proxy_each_send_their_version_and_an_egress_gets_one() {
    let rules = vec![rule("225.1.2.3", &["out1"], TtlPolicy::Keep)];
    let any = SourceFilter::any();
    let asked = [
        (2, GROUP, any.clone()),
        (3, GROUP, any.clone()),
        (4, GROUP, any),
    ];
    let fib = fib_with(rules, vec![proxy(&[IIF], TtlPolicy::Decrement)], &asked);
    let switched = run(
        &fib,
        &[plain(packet(GROUP, 9, 5)), plain(packet(GROUP, 8, 5))],
    );
    let kept = |ttl| (ttl, KEPT.to_owned());
    let asked = |ttl| (ttl, "proxy".to_owned());
    assert_eq!(ways(&fib, &switched, "out1"), [kept(9), kept(8)]);
    assert_eq!(ways(&fib, &switched, "out2"), [asked(8), asked(7)]);
    // At the threshold, which the TTL it arrived with is held against.
    assert_eq!(ways(&fib, &switched, "out3"), [asked(8)]);
    assert_eq!(leaving(&fib, &switched, "out2")[0], packet(GROUP, 8, 5));
    let tally = &switched.tally;
    assert_eq!((tally.packets, tally.dropped.iter().sum::<u64>()), (2, 0));
    assert_eq!(tally.below_threshold.iter().map(|b| b.1).sum::<u64>(), 1);
    // One other version for two egresses, made once a packet.
    assert_eq!(switched.load.pieces.len(), 2 * 33);
}

#[test]
fn versions_of_one_ttl_are_the_same_bytes_and_nothing_is_copied() {
    let rules = vec![rule("225.1.2.3", &["out1"], TtlPolicy::Decrement)];
    let asked = [(3, GROUP, SourceFilter::any())];
    let fib = fib_with(rules, vec![proxy(&[IIF], TtlPolicy::Decrement)], &asked);
    let switched = run(&fib, &[plain(packet(GROUP, 9, 5))]);
    assert_eq!(leaving(&fib, &switched, "out1"), [packet(GROUP, 8, 5)]);
    assert_eq!(leaving(&fib, &switched, "out2"), [packet(GROUP, 8, 5)]);
    assert!(switched.load.pieces.is_empty());
}

#[test]
fn a_ttl_that_ends_for_one_goes_on_for_the_other() {
    let asked = [
        (2, GROUP, SourceFilter::any()),
        (3, GROUP, SourceFilter::any()),
    ];
    let one = |route, of_proxy| {
        let rules = vec![rule("225.1.2.3", &["out1"], route)];
        let fib = fib_with(rules, vec![proxy(&[IIF], of_proxy)], &asked);
        let switched = run(&fib, &[plain(packet(GROUP, 1, 5))]);
        let at = |name| -> Vec<String> {
            let ways = ways(&fib, &switched, name);
            ways.into_iter()
                .map(|(ttl, route)| format!("{ttl} {route}"))
                .collect()
        };
        let expired = switched.tally.dropped[DropReason::TtlExpired as usize];
        assert_eq!(switched.tally.dropped.iter().sum::<u64>(), expired);
        (at("out1"), at("out2"), expired)
    };
    let none: Vec<String> = vec![];
    let (decrement, keep) = (TtlPolicy::Decrement, TtlPolicy::Keep);
    // What the route would have sent, had the TTL not ended, the proxy sends.
    let proxied = || vec!["1 proxy".to_owned()];
    assert_eq!(one(decrement, keep), (proxied(), proxied(), 0));
    assert_eq!(
        one(keep, decrement),
        (vec![format!("1 {KEPT}")], none.clone(), 0)
    );
    assert_eq!(one(decrement, decrement), (none.clone(), none, 1));
}

#[test]
fn pieces_leave_in_both_versions() {
    let rules = vec![rule("225.1.2.3", &["out1"], TtlPolicy::Set(3))];
    let asked = [(3, GROUP, SourceFilter::any())];
    let fib = fib_with(rules, vec![proxy(&[IIF], TtlPolicy::Decrement)], &asked);
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
        // The payload is the one that was sent.
        let body: Vec<u8> = left[1..4].iter().flat_map(|p| &p[28..]).copied().collect();
        assert_eq!(body, packet(GROUP, 9, 2500)[28..]);
        ways(&fib, &switched, name);
    }
    assert_eq!(switched.tally.packets, 5);
}

#[test]
fn what_comes_back_is_dropped_once_and_only_where_no_version_goes_on() {
    let guarded = RouteRule {
        loop_guard: true,
        ..rule("225.1.2.3", &["out1"], TtlPolicy::Keep)
    };
    for (ttl, second, dropped) in [
        // The TTL ends a loop: only the route stops what comes back.
        (TtlPolicy::Decrement, 2, 0),
        (TtlPolicy::Set(7), 1, 1),
    ] {
        let asked = [
            (2, GROUP, SourceFilter::any()),
            (3, GROUP, SourceFilter::any()),
        ];
        let fib = fib_with(vec![guarded.clone()], vec![proxy(&[IIF], ttl)], &asked);
        let switched = run(
            &fib,
            &[plain(packet(GROUP, 9, 5)), plain(packet(GROUP, 9, 5))],
        );
        assert_eq!(ways(&fib, &switched, "out1").len(), 1, "{ttl}");
        assert_eq!(ways(&fib, &switched, "out2").len(), second, "{ttl}");
        let tally = &switched.tally;
        assert_eq!(tally.dropped[DropReason::Loop as usize], dropped, "{ttl}");
        assert_eq!(
            (tally.packets, tally.dropped.iter().sum::<u64>()),
            (2, dropped)
        );
    }
}

fn rewriting(rule: RouteRule, source: &str, group: &str) -> RouteRule {
    let becomes = (Some(source.parse().unwrap()), Some(group.parse().unwrap()));
    let source = "10.0.0.1".parse().unwrap();
    let rewrite = Rewrite::new((source, rule.group), becomes, None, false).ok();
    assert!(rewrite.is_some());
    RouteRule {
        source,
        rewrite,
        ..rule
    }
}

#[test]
fn a_rewritten_stream_and_the_one_it_was_leave_side_by_side() {
    let asked = [(2, GROUP, SourceFilter::any())];
    let destination = |p: &Vec<u8>| Datagram::parse(p).unwrap().destination.to_string();
    for (source, group) in [("10.9.9.9", "239.1.1.1"), ("fd00::9", "ff3e::9")] {
        let ruled = rule("225.1.2.3", &["out1", "out2"], TtlPolicy::Keep);
        let ruled = rewriting(ruled, source, group);
        let proxies = vec![proxy(&[IIF], TtlPolicy::Decrement)];
        let both = fib_with(vec![ruled.clone()], proxies, &asked);
        let meta = Packet {
            offload: Offload::UdpSegments { payload: 1000 },
            ..Packet::default()
        };
        let packets = [plain(packet(GROUP, 9, 5)), (packet(GROUP, 9, 1500), meta)];
        let switched = run(&both, &packets);
        // Who asked for the stream as it was gets it, and what the route sends besides.
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
        assert_eq!(switched.tally.translated.iter().sum::<u64>(), 3);
        assert_eq!(switched.tally.dropped.iter().sum::<u64>(), 0);
        // Alone, nothing is copied where the IP version stays.
        let alone = fib(vec![ruled]);
        let switched = run(&alone, &packets[..1]);
        let slots = switched.egresses.iter().flat_map(|(_, slots)| slots);
        let stays = group.starts_with("239");
        assert!(slots.clone().all(|s| s.piece != stays) && slots.count() == 2);
    }
}

#[test]
fn what_cannot_be_translated_is_dropped_once_unless_a_proxy_sends_it() {
    let mut tcp = packet(GROUP, 9, 40);
    tcp[9] = 6;
    refresh_ipv4_checksum(&mut tcp);
    let ruled = rule("225.1.2.3", &["out1", "out2"], TtlPolicy::Keep);
    let ruled = rewriting(ruled, "10.9.9.9", "239.1.1.1");
    let dropped = |switched: &Switched| {
        let dropped = &switched.tally.dropped;
        (
            dropped[DropReason::TranslateProtocol as usize],
            dropped.iter().sum::<u64>(),
        )
    };
    let alone = fib(vec![ruled.clone()]);
    let switched = run(&alone, &[plain(tcp.clone())]);
    assert_eq!(dropped(&switched), (1, 1));
    assert!(switched.egresses.is_empty());
    let asked = [(2, GROUP, SourceFilter::any())];
    let both = fib_with(
        vec![ruled.clone()],
        vec![proxy(&[IIF], TtlPolicy::Keep)],
        &asked,
    );
    let switched = run(&both, &[plain(tcp.clone())]);
    assert_eq!(dropped(&switched), (0, 0));
    assert_eq!(leaving(&both, &switched, "out1"), [tcp]);
    // What came back is known by what it was.
    let guarded = RouteRule {
        loop_guard: true,
        ..ruled
    };
    let again = run(
        &fib(vec![guarded]),
        &[plain(packet(GROUP, 9, 5)), plain(packet(GROUP, 8, 5))],
    );
    assert_eq!(again.tally.dropped[DropReason::Loop as usize], 1);
    assert_eq!(again.tally.translated.iter().sum::<u64>(), 1);
}

#[test]
fn from_downstream_the_way_is_up_and_to_the_other_members() {
    let asked = [
        (2, GROUP, SourceFilter::any()),
        (3, GROUP, SourceFilter::any()),
    ];
    let from = |fib: &Fib, index| {
        let ingress = &fib.ingresses[&IfIndex::new(index).unwrap()];
        let packets = [
            plain(packet(GROUP, 9, 5)),
            plain(packet([225, 9, 9, 9], 9, 5)),
        ];
        let switched = Switch::default().run(fib, ingress, batch(&packets), 0);
        let count = |name| ways(fib, &switched, name).len();
        let dropped = |r: DropReason| switched.tally.dropped[r as usize];
        let unwanted = dropped(DropReason::NoRoute);
        assert_eq!(switched.tally.dropped.iter().sum::<u64>(), unwanted);
        (
            ["eth0", "eth1", "out1", "out2", "out3"].map(count),
            unwanted,
        )
    };
    let both = proxy(&[IIF, "eth1"], TtlPolicy::Decrement);
    let fib = fib_with(vec![], vec![both.clone()], &asked);
    // Whatever the group up the first upstream, and to the member that asked.
    assert_eq!(from(&fib, 2), ([2, 0, 0, 1, 0], 0));
    assert_eq!(from(&fib, 4), ([2, 0, 1, 1, 0], 0));
    assert_eq!(from(&fib, 1), ([0, 0, 1, 1, 0], 1));
    let down_only = ProxyRule {
        upward: false,
        ..both
    };
    let fib = fib_with(vec![], vec![down_only], &asked);
    assert_eq!(from(&fib, 2), ([0, 0, 0, 1, 0], 1));
}

#[test]
fn one_upstream_feeds_a_stream_until_it_is_silent() {
    let asked = [(2, GROUP, SourceFilter::any())];
    let both = proxy(&[IIF, "eth1"], TtlPolicy::Decrement);
    let fib = fib_with(vec![], vec![both], &asked);
    let feeds = Arc::<Feeds>::default();
    let mut switches = [1, 6].map(|index| {
        let flows = Flows::new(FlowBudget::new(8));
        (index, Switch::new(flows, Arc::default(), feeds.clone()))
    });
    let mut carry = |at: usize, ttl, now| {
        let (index, switch) = &mut switches[at];
        let ingress = &fib.ingresses[&IfIndex::new(*index).unwrap()];
        let packets = vec![plain(packet(GROUP, ttl, 5)); 3];
        let switched = switch.run(&fib, ingress, batch(&packets), now);
        let tally = &switched.tally;
        let standby = tally.dropped[DropReason::Standby as usize];
        let expired = tally.dropped[DropReason::TtlExpired as usize];
        assert_eq!(tally.dropped.iter().sum::<u64>(), standby + expired);
        (ways(&fib, &switched, "out1").len(), standby)
    };
    assert_eq!(carry(0, 1, 0), (0, 0), "feeds nothing: its TTL ends here");
    assert_eq!(carry(1, 9, 0), (3, 0));
    assert_eq!(carry(0, 9, 1), (0, 3));
    assert_eq!(carry(1, 9, 500), (3, 0));
    assert_eq!(carry(0, 9, 1499), (0, 3));
    assert_eq!(carry(0, 9, 1500), (3, 0));
    assert_eq!(carry(1, 9, 1501), (0, 3));
    assert_eq!(carry(0, 9, 2400), (3, 0));
}

fn any_packet() -> impl Strategy<Value = (Vec<u8>, Packet)> {
    let groups = prop_oneof![
        Just(GROUP),
        Just([225, 1, 9, 9]),
        Just([225, 9, 9, 9]),
        Just([230, 1, 1, 1]),
        Just([224, 0, 0, 251]),
        Just([10, 0, 0, 9]),
    ];
    let bytes = prop_oneof![
        4 => (groups, any::<u8>(), 0usize..3000).prop_map(|(g, t, b)| packet(g, t, b)),
        1 => any::<u8>().prop_map(packet_v6),
        1 => proptest::collection::vec(any::<u8>(), 0..80),
    ];
    let offload = prop_oneof![
        4 => Just(Offload::None),
        1 => Just(Offload::Checksum { start: 20, offset: 6 }),
        1 => (any::<u16>(), any::<u16>()).prop_map(|(start, offset)| Offload::Checksum { start, offset }),
        2 => (0u16..1500).prop_map(|payload| Offload::UdpSegments { payload }),
        1 => Just(Offload::Unknown),
    ];
    let ethertype = prop_oneof![8 => Just(0u16), 1 => Just(0x8100u16), 1 => any::<u16>()];
    let vlan = proptest::option::weighted(0.2, 9u16..12);
    (
        bytes,
        offload,
        ethertype,
        vlan,
        proptest::bool::weighted(0.05),
    )
        .prop_map(|(bytes, offload, ethertype, vlan, cut)| {
            let meta = Packet {
                ethertype,
                vlan,
                offload,
                cut,
                ..Packet::default()
            };
            (bytes, meta)
        })
}

fn any_ttl() -> impl Strategy<Value = TtlPolicy> {
    prop_oneof![
        Just(TtlPolicy::Decrement),
        Just(TtlPolicy::Keep),
        (1u8..).prop_map(TtlPolicy::Set)
    ]
}

fn any_rules() -> impl Strategy<Value = Vec<RouteRule>> {
    let group = prop_oneof![
        Just("225.1.2.3"),
        Just("225.1.0.0/16"),
        Just("224.0.0.0/4"),
        Just("ff00::/8"),
    ];
    let to = proptest::sample::subsequence(vec!["out1", "out2", "out3"], 0..=3);
    let rule = (group, to, any_ttl()).prop_map(|(g, to, ttl)| rule(g, &to, ttl));
    proptest::collection::vec(rule, 1..5)
}

proptest! {
    /// Every packet is decided once: for each, all its paths are slots or below a
    /// threshold, or it is dropped with one reason.
    #[test]
    fn nothing_is_lost_in_the_count(
        rules in any_rules(),
        asked in proptest::sample::subsequence(vec![2, 3, 4], 0..=3),
        packets in proptest::collection::vec(any_packet(), 0..30),
    ) {
        let asked: Vec<_> = asked.iter().map(|i| (*i, GROUP, SourceFilter::any())).collect();
        // With a TTL policy that ends loops: no packet is stopped for being equal to another.
        let fib = fib_with(rules, vec![proxy(&[IIF], TtlPolicy::Decrement)], &asked);
        let ingress = &fib.ingresses[&IfIndex::new(1).unwrap()];
        let mut switch = Switch::default();
        let whole = switch.run(&fib, ingress, batch(&packets), 0);
        let (mut forwarded, mut dropped, mut below, mut slots) = (0, 0, 0, 0);
        for packet in &packets {
            let one = switch.run(&fib, ingress, batch(std::slice::from_ref(packet)), 0);
            let lost = one.tally.dropped.iter().sum::<u64>();
            let passed = one.tally.packets - lost;
            prop_assert!(lost <= 1 && (lost == 0 || passed == 0));
            let on_slots = one.egresses.iter().map(|(_, s)| s.len() as u64).sum::<u64>();
            let under = one.tally.below_threshold.iter().map(|(_, n)| n).sum::<u64>();
            if passed > 0 {
                // As often as its route has paths.
                prop_assert!(on_slots + under > 0);
                prop_assert_eq!((on_slots + under) % passed, 0);
            }
            forwarded += passed;
            dropped += lost;
            below += under;
            slots += on_slots;
        }
        prop_assert_eq!(whole.tally.packets, forwarded + dropped);
        prop_assert_eq!(whole.tally.dropped.iter().sum::<u64>(), dropped);
        let under = whole.tally.below_threshold.iter().map(|(_, n)| n).sum::<u64>();
        prop_assert_eq!(under, below);
        let mut on_slots = 0;
        for (egress, list) in &whole.egresses {
            prop_assert!(!list.is_empty());
            prop_assert!(list.is_sorted_by_key(|s| s.received_ns));
            for slot in list {
                prop_assert_eq!(fib.paths[slot.path as usize].egress, *egress);
                let bytes = whole.load.packet(slot);
                prop_assert_eq!(Datagram::parse(bytes).map(|d| d.len), Ok(bytes.len()));
            }
            on_slots += list.len() as u64;
        }
        prop_assert_eq!(on_slots, slots);
    }
}
