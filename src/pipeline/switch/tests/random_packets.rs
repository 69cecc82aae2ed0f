//! Property tests of the switch with random packets and rules.

use super::*;
use crate::forward::{TraceStep, resolve};
use proptest::prelude::*;

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
        .prop_map(|(bytes, offload, ethertype, vlan, truncated)| {
            let meta = Packet {
                ethertype,
                vlan,
                offload,
                truncated,
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

fn on_wire(slots: &[Slot]) -> u64 {
    slots.iter().map(Slot::packets).sum()
}

proptest! {
    /// Each packet has a slot or is counted as below the TTL threshold on each of its paths, or it
    /// is dropped with one reason.
    #[test]
    fn every_packet_is_forwarded_or_counted(
        rules in any_rules(),
        members in proptest::sample::subsequence(vec![2, 3, 4], 0..=3),
        packets in proptest::collection::vec(any_packet(), 0..30),
    ) {
        let members: Vec<_> = members.iter().map(|i| (*i, GROUP, SourceFilter::any())).collect();
        // The loop guard is off: identical packets are not dropped.
        let fib = fib_with(rules, vec![proxy(&[IIF], TtlPolicy::Decrement)], &members);
        let ingress = &fib.ingresses[&InterfaceId::new(1).unwrap()];
        let mut switch = Switch::default();
        let all = switch.run(&fib, ingress, batch(&packets), 0);
        let (mut forwarded, mut dropped, mut below, mut slots) = (0, 0, 0, 0);
        for packet in &packets {
            let one = switch.run(&fib, ingress, batch(std::slice::from_ref(packet)), 0);
            let dropped_here = one.counts.dropped.iter().sum::<u64>();
            let passed = one.counts.packets - dropped_here;
            prop_assert!(dropped_here == 0 || passed == 0);
            let on_slots = one.egresses.iter().map(|(_, s)| on_wire(s)).sum::<u64>();
            let under = one.counts.refused.iter().map(|(_, _, n)| n).sum::<u64>();
            if passed > 0 {
                // The packet has one slot or count per path.
                prop_assert!(on_slots + under > 0);
                prop_assert_eq!((on_slots + under) % passed, 0);
            }
            forwarded += passed;
            dropped += dropped_here;
            below += under;
            slots += on_slots;
        }
        prop_assert_eq!(all.counts.packets, forwarded + dropped);
        prop_assert_eq!(all.counts.dropped.iter().sum::<u64>(), dropped);
        let under = all.counts.refused.iter().map(|(_, _, n)| n).sum::<u64>();
        prop_assert_eq!(under, below);
        let mut on_slots = 0;
        for (egress, list) in &all.egresses {
            prop_assert!(!list.is_empty());
            prop_assert!(list.is_sorted_by_key(|s| s.received_ns));
            for slot in list {
                prop_assert_eq!(fib.paths[slot.path as usize].egress, *egress);
                let bytes = all.shared.packet(slot);
                prop_assert_eq!(IpHeader::parse(bytes).map(|d| d.packet_len), Ok(bytes.len()));
            }
            on_slots += on_wire(list);
        }
        prop_assert_eq!(on_slots, slots);
    }
}

/// Tables that [`explanation_is_what_the_switch_does`] tries, with 100 packets each. `make soak` sets
/// another number.
fn tables() -> u32 {
    let named = std::env::var("MCASTOR_EXPLAINED_TABLES");
    named.ok().and_then(|n| n.parse().ok()).unwrap_or(200)
}

fn any_explained_packet() -> impl Strategy<Value = Vec<u8>> {
    let groups = prop_oneof![
        4 => Just(GROUP),
        2 => Just([225, 1, 9, 9]),
        1 => Just([225, 9, 9, 9]),
        1 => Just([230, 1, 1, 1]),
        1 => Just([224, 0, 0, 251]),
        1 => Just([10, 0, 0, 9]),
    ];
    let sources = prop_oneof![
        4 => Just([10, 0, 0, 1]),
        2 => Just([10, 0, 0, 7]),
        1 => Just([127, 0, 0, 1]),
        1 => Just([169, 254, 1, 1]),
    ];
    let ttl = prop_oneof![0u8..4, 6u8..12, any::<u8>()];
    let v4 = (groups, sources, ttl, 0usize..40).prop_map(|(group, source, ttl, body)| {
        let mut packet = packet(group, ttl, body);
        packet[12..16].copy_from_slice(&source);
        refresh_ipv4_checksum(&mut packet);
        packet
    });
    prop_oneof![
        12 => v4,
        2 => any::<u8>().prop_map(packet_v6),
        1 => proptest::collection::vec(any::<u8>(), 0..80),
    ]
}

/// Rules of which some except a source or translate the group.
fn any_explained_rules() -> impl Strategy<Value = Vec<RouteRule>> {
    let extras = (
        proptest::bool::weighted(0.2),
        proptest::bool::weighted(0.2),
        any::<bool>(),
    );
    let of_each = proptest::collection::vec(extras, 5);
    (any_rules(), of_each).prop_map(|(rules, extras)| {
        let extend = |(mut rule, (excepts, translates, link_local)): (RouteRule, _)| {
            if excepts {
                rule.except_sources = vec!["10.0.0.7".parse().unwrap()];
            }
            if translates && rule.group == "225.1.0.0/16".parse().unwrap() {
                let group = Some("226.1.0.0/16".parse().unwrap());
                let matched = (rule.source, rule.group);
                let translation = TranslationRule::new(matched, (None, group), None, false);
                rule.translation = translation.ok();
            }
            rule.link_local = link_local;
            rule
        };
        rules.into_iter().zip(extras).map(extend).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: tables(), ..ProptestConfig::default() })]

    /// The egresses, their TTLs and the reasons of an explanation are those of the switch.
    #[test]
    fn explanation_is_what_the_switch_does(
        rules in any_explained_rules(),
        proxy_ttl in any_ttl(),
        members in proptest::sample::subsequence(vec![2, 3, 4], 0..=3),
        packets in proptest::collection::vec(any_explained_packet(), 100),
    ) {
        let members: Vec<_> = members.iter().map(|i| (*i, GROUP, SourceFilter::any())).collect();
        let fib = fib_with(rules, vec![proxy(&[IIF], proxy_ttl)], &members);
        let ingress = &fib.ingresses[&InterfaceId::new(1).unwrap()];
        let mut switch = Switch::default();
        for (number, mut packet) in packets.into_iter().enumerate() {
            // Equal packets are loops.
            match packet.first().map(|b| b >> 4) {
                Some(4) if packet.len() >= 28 => {
                    packet[5] = number as u8;
                    refresh_ipv4_checksum(&mut packet);
                }
                Some(6) => *packet.last_mut().unwrap() = number as u8,
                _ => {}
            }
            let arrival = Arrival {
                fib: &fib,
                ingress,
                streams: &StreamState::default(),
                sender: None,
                now_ms: 0,
            };
            let ethertype = match packet.first().map(|b| b >> 4) {
                Some(6) => vlan::ETHERTYPE_IPV6,
                _ => vlan::ETHERTYPE_IPV4,
            };
            let trace = resolve(arrival, &packet);
            let meta = Packet { ethertype, ..Packet::default() };
            let switched = switch.run(&fib, ingress, batch(&[(packet.clone(), meta)]), 0);
            let mut explained: Vec<(EgressId, Result<u8, DropReason>)> = trace
                .steps
                .iter()
                .filter_map(|step| match *step {
                    TraceStep::PathChecked { path, ttl, result } => {
                        Some((fib.paths[path as usize].egress, result.map(|()| ttl)))
                    }
                    _ => None,
                })
                .collect();
            let ttl = |slot: &Slot| IpHeader::parse(switched.shared.packet(slot)).unwrap().ttl;
            let mut done: Vec<(EgressId, Result<u8, DropReason>)> = switched
                .egresses
                .iter()
                .flat_map(|(egress, slots)| slots.iter().map(|slot| (*egress, Ok(ttl(slot)))))
                .collect();
            for (egress, reason, packets) in &switched.counts.refused {
                done.extend((0..*packets).map(|_| (*egress, Err(*reason))));
            }
            let order = |(egress, result): &(EgressId, Result<u8, DropReason>)| {
                (*egress, result.map_err(|reason| reason as u8))
            };
            explained.sort_by_key(order);
            done.sort_by_key(order);
            let dropped = DropReason::ALL.iter().find(|r| switched.counts.dropped[**r as usize] > 0);
            match trace.outcome {
                Err(NotData::Membership) => prop_assert_eq!(switched.counts.membership, 1),
                Err(NotData::Dropped(reason)) if ethertype == vlan::ETHERTYPE_IPV4
                    && packet.first().is_none_or(|b| b >> 4 != 4) =>
                {
                    // Neither IPv4 nor IPv6: the switch has the ethertype, an explanation has not.
                    prop_assert!(dropped.is_some(), "{:?}", reason);
                }
                Err(NotData::Dropped(reason)) => prop_assert_eq!(dropped, Some(&reason)),
                // A translation can fail for what is in the packet.
                Ok(()) if dropped.is_some() => {
                    let reason = dropped.unwrap();
                    let is_translation = reason.label().starts_with("translate_");
                    prop_assert!(is_translation, "{reason:?} {trace:?}");
                }
                Ok(()) => prop_assert_eq!(explained, done),
            }
        }
    }
}
