//! Property test of the switch with random packets and rules.

use super::*;
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
