//! Tests of the switch.

use super::*;
use crate::forward::segment::segment;
use crate::model::{
    Group, InterfaceId, KernelForwarding, Link, Links, ProxyRule, RouteName, RouteRule,
    SourceFilter, TranslationRule, TtlPolicy, TtlThreshold,
};
use crate::table::{EgressId, InterfaceOptions, MembershipDatabase, Rib};
use crate::wire::ip::{IpHeader, refresh_ipv4_checksum};
use crate::wire::{checksum, udp, vlan};

mod merged;
mod monitored;
mod random_packets;
mod variants;

const IIF: &str = "eth0";

fn link(index: u32, name: &str, vlan: Option<(u32, u16)>) -> Link {
    Link {
        vlan: vlan.map(|(on, id)| (InterfaceId::new(on).unwrap(), id)),
        known_as: Default::default(),
        plane: None,
        ..Link::new(InterfaceId::new(index).unwrap(), name.parse().unwrap())
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

/// A table with the interfaces eth0, eth0.10 (VLAN 10 of eth0), eth1, out1, out2 and out3. out3 has
/// the TTL threshold 8.
fn fib(rules: Vec<RouteRule>) -> Fib {
    fib_with(rules, vec![], &[])
}

/// Like [`fib`], with proxies and members: interface, group and source filter.
fn fib_with(
    rules: Vec<RouteRule>,
    proxies: Vec<ProxyRule>,
    members: &[(u32, [u8; 4], SourceFilter)],
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
        reports: Default::default(),
        disabled: false,
        capture: false,
        kernel_forwarding: KernelForwarding::Auto,
        bandwidth: None,
    }];
    let rib = Rib {
        rules: rules.into(),
        interfaces,
        proxies,
        ..Rib::default()
    };
    let mut database = MembershipDatabase::default();
    for (index, group, filter) in members {
        let group = Group::new((*group).into()).unwrap();
        database.set(InterfaceId::new(*index).unwrap(), group, filter.clone());
    }
    let mut fib = rib.build_fib(&links, 1);
    database.rebuild(&mut fib);
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

/// Returns the packets that leave on an interface: the TTL, and the route they are counted for.
fn sent_packets(fib: &Fib, switched: &Switched, name: &str) -> Vec<(u8, String)> {
    let named = |id: &EgressId| fib.egresses[*id as usize].name.as_str() == name;
    let slots = switched.egresses.iter().filter(|(id, _)| named(id));
    let ttl_and_route = |slot: &Slot| {
        let route = &fib.paths[slot.path as usize].route;
        let bytes = switched.shared.packet(slot);
        // Each variant is a complete packet.
        assert_eq!(
            IpHeader::parse(bytes).map(|d| d.packet_len),
            Ok(bytes.len())
        );
        (bytes[8], route.to_string())
    };
    slots
        .flat_map(|(_, slots)| slots)
        .map(ttl_and_route)
        .collect()
}

fn default_fib() -> Fib {
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

/// A batch of packets with their metadata.
fn batch(packets: &[(Vec<u8>, Packet)]) -> Batch {
    let (mut bytes, mut all) = (vec![0xee; 7], Vec::new());
    for (i, (packet, meta)) in packets.iter().enumerate() {
        let version = packet.first().map_or(0, |b| b >> 4);
        let ethertype = match version {
            6 => vlan::ETHERTYPE_IPV6,
            _ => vlan::ETHERTYPE_IPV4,
        };
        all.push(Packet {
            start: bytes.len() as u32,
            len: packet.len() as u32,
            received_ns: i as u64,
            ethertype: if meta.ethertype == 0 {
                ethertype
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
    let ingress = &fib.ingresses[&InterfaceId::new(1).unwrap()];
    Switch::default().run(fib, ingress, batch(packets), 0)
}

fn plain(packet: Vec<u8>) -> (Vec<u8>, Packet) {
    (packet, Packet::default())
}

/// Returns the reason why a packet is dropped, if it is.
fn reason(packet: (Vec<u8>, Packet)) -> Option<DropReason> {
    let len = packet.0.len() as u64;
    let switched = run(&default_fib(), &[packet]);
    assert_eq!(switched.counts.packets, 1);
    let found = DropReason::ALL
        .iter()
        .find(|r| switched.counts.dropped[**r as usize] == 1);
    // Bytes that are not a packet count with their captured length.
    assert!(found.is_none() || switched.counts.bytes == len);
    assert_eq!(found.is_some(), switched.egresses.is_empty());
    found.copied()
}

/// Returns the packets that leave on an interface that does not accept GSO.
fn leaving(fib: &Fib, switched: &Switched, name: &str) -> Vec<Vec<u8>> {
    let named = |id: &EgressId| fib.egresses[*id as usize].name.as_str() == name;
    let slots = switched.egresses.iter().filter(|(id, _)| named(id));
    let slots = slots.flat_map(|(_, slots)| slots);
    slots.flat_map(|slot| datagrams(switched, slot)).collect()
}

/// Returns the packets of a slot on the wire, and checks the counts of the slot.
fn datagrams(switched: &Switched, slot: &Slot) -> Vec<Vec<u8>> {
    let packet = switched.shared.packet(slot);
    let mut all = Vec::new();
    match slot.segments {
        None => all.push(packet.to_vec()),
        Some(segments) => {
            let datagram = IpHeader::parse(packet).unwrap();
            let (mut out, mut ranges) = (Vec::new(), Vec::new());
            let payload = segments.payload();
            segment(packet, &datagram, payload, &mut out, |r| ranges.push(r)).unwrap();
            all.extend(ranges.into_iter().map(|r| out[r].to_vec()));
        }
    }
    let bytes: usize = all.iter().map(Vec::len).sum();
    assert_eq!(
        (slot.packets(), slot.bytes()),
        (all.len() as u64, bytes as u64)
    );
    all
}

#[test]
fn fan_out_applies_thresholds_and_keeps_order() {
    let fib = default_fib();
    let ttls = [9, 8, 2, 200, 1];
    let packets: Vec<_> = ttls.iter().map(|t| plain(packet(GROUP, *t, 4))).collect();
    let mixed = [&packets[..], &[plain(packet([225, 1, 7, 7], 1, 4))]].concat();
    let switched = run(&fib, &mixed);
    let ttls_on = |name| -> Vec<u8> {
        let packets = leaving(&fib, &switched, name);
        packets.iter().map(|p| p[8]).collect()
    };
    assert_eq!(ttls_on("out1"), [8, 7, 1, 199, 1]);
    assert_eq!(ttls_on("out3"), [8, 199]);
    assert_eq!(ttls_on("out2"), [1]);
    let out3 = fib.egresses.iter().position(|e| e.name.as_str() == "out3");
    let below = &switched.counts.refused;
    let reason = DropReason::TtlThreshold;
    assert_eq!(below, &[(out3.unwrap() as u32, reason, 2)]);
    assert_eq!(switched.counts.dropped[DropReason::TtlExpired as usize], 1);
    assert_eq!(switched.counts.packets, 6);
    for (_, slots) in &switched.egresses {
        assert!(slots.is_sorted_by_key(|s| s.received_ns));
    }
}

#[test]
fn tagged_frame_of_a_vlan_interface_is_vlan_elsewhere() {
    let vlan = |id| Packet {
        vlan: Some(id),
        ..Packet::default()
    };
    let elsewhere = Some(DropReason::VlanElsewhere);
    assert_eq!(reason((packet(GROUP, 9, 4), vlan(10))), elsewhere);
    assert_eq!(reason((packet(GROUP, 9, 4), vlan(11))), None);
    // A priority tag (802.1Q section 9.6).
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
fn inline_vlan_tags_are_skipped_and_the_outermost_decides() {
    let fib = default_fib();
    let inner = |id: u16| tagged(&[(id, 0x0800)], packet(GROUP, 9, 4));
    // QinQ: the kernel removed the outer tag; the inner tag selects no interface.
    let mut qinq = of_type(vlan::ETHERTYPE_VLAN);
    qinq.vlan = Some(20);
    let switched = run(&fib, &[(inner(10), qinq)]);
    assert_eq!(leaving(&fib, &switched, "out1"), [packet(GROUP, 8, 4)]);
    qinq.vlan = Some(10);
    assert_eq!(reason((inner(20), qinq)), Some(DropReason::VlanElsewhere));
    // An outgoing frame on a device that cannot insert tags contains the outer tag.
    let outgoing = of_type(vlan::ETHERTYPE_VLAN);
    let elsewhere = Some(DropReason::VlanElsewhere);
    assert_eq!(reason((inner(10), outgoing)), elsewhere);
    assert_eq!(reason((inner(0x6000 | 10), outgoing)), elsewhere);
    assert_eq!(reason((inner(11), outgoing)), None);
    let two = tagged(&[(20, 0x8100), (10, 0x86dd)], packet_v6(9));
    let switched = run(&fib, &[(two, of_type(vlan::ETHERTYPE_SERVICE_VLAN))]);
    assert_eq!(leaving(&fib, &switched, "out1"), [packet_v6(8)]);
    let short = tagged(&[(20, 0x8100)], vec![0, 10]);
    let reason = reason((short, of_type(vlan::ETHERTYPE_VLAN)));
    assert_eq!(reason, Some(DropReason::Truncated));
}

#[test]
fn checksum_offset_accounts_for_vlan_tags() {
    let fib = default_fib();
    let mut partial = packet(GROUP, 9, 5);
    let (s, d) = ([10, 0, 0, 1].into(), GROUP.into());
    let sum = checksum::fold(checksum::pseudo_header(s, d, udp::PROTOCOL, 13));
    partial[26..28].copy_from_slice(&sum.to_be_bytes());
    let mut meta = of_type(vlan::ETHERTYPE_VLAN);
    meta.offload = Offload::Checksum {
        start: 24,
        offset: 6,
    };
    let switched = run(&fib, &[(tagged(&[(11, 0x0800)], partial), meta)]);
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
fn segments_reach_every_egress_and_count_as_packets() {
    let fib = default_fib();
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
    let is_complete = |p: &Vec<u8>| IpHeader::parse(p).is_ok_and(|d| d.packet_len == p.len());
    assert!(out1.iter().all(is_complete));
    assert_eq!(switched.counts.packets, 5);
    assert_eq!(switched.counts.bytes, 29 + 1028 + 1028 + 528 + 29);
    // A GSO packet that cannot be segmented counts as one dropped packet, and no segment is sent.
    let mut meta = Packet {
        offload: Offload::UdpSegments { payload: 0 },
        ..Packet::default()
    };
    let gso = Some(DropReason::GsoUnknown);
    assert_eq!(reason((packet(GROUP, 9, 100), meta)), gso);
    meta.offload = Offload::Unknown;
    assert_eq!(reason((packet(GROUP, 9, 100), meta)), gso);
}

fn gso_packet(packet: Vec<u8>, payload: u16) -> (Vec<u8>, Packet) {
    let meta = Packet {
        offload: Offload::UdpSegments { payload },
        ..Packet::default()
    };
    (packet, meta)
}

/// Returns the number of GSO packets for each egress.
fn gso_counts(switched: &Switched) -> Vec<usize> {
    let count = |slots: &[Slot]| slots.iter().filter(|s| s.segments.is_some()).count();
    switched.egresses.iter().map(|(_, s)| count(s)).collect()
}

/// Returns whether a GSO packet is ready for the kernel: the UDP checksum field contains the sum of
/// the pseudo-header.
fn is_ready_for_kernel_gso(packet: &[u8]) -> bool {
    let d = IpHeader::parse(packet).unwrap();
    let udp = &packet[d.header_len..];
    let sum = checksum::pseudo_header(d.source, d.destination, udp::PROTOCOL, udp.len() as u32);
    udp[4..8]
        == [
            (udp.len() as u16).to_be_bytes(),
            checksum::fold(sum).to_be_bytes(),
        ]
        .concat()
}

#[test]
fn gso_packet_is_segmented_only_where_needed() {
    let kept = || rule("225.1.2.3", &["out1", "out2"], TtlPolicy::Keep);
    let guarded = RouteRule {
        loop_guard: true,
        ..kept()
    };
    let mut fragment = packet(GROUP, 9, 2500);
    // More fragments follow.
    fragment[6] = 0x20;
    refresh_ipv4_checksum(&mut fragment);
    let packet = || packet(GROUP, 9, 2500);
    for (rule, packet, payload, slots, count) in [
        (kept(), packet(), 1000, [1, 1], 3),
        // The UDP length and checksum of the sender are ignored.
        (
            kept(),
            [&packet()[..24], &[0xff; 4], &packet()[28..]].concat(),
            1000,
            [1, 1],
            3,
        ),
        (guarded, packet(), 1000, [0, 0], 3),
        (kept(), fragment, 1000, [0, 0], 3),
        (kept(), packet(), 2500, [0, 0], 1),
        (kept(), packet(), 2499, [1, 1], 2),
        (kept(), packet(), u16::MAX, [0, 0], 1),
    ] {
        let fib = fib(vec![rule]);
        let switched = run(&fib, &[gso_packet(packet, payload)]);
        assert_eq!(gso_counts(&switched), slots);
        for (_, slots) in &switched.egresses {
            let segments = slots.iter().filter(|s| s.segments.is_some());
            for slot in segments {
                assert!(is_ready_for_kernel_gso(switched.shared.packet(slot)));
            }
        }
        assert_eq!(switched.counts.packets, count);
        assert_eq!(leaving(&fib, &switched, "out2").len() as u64, count);
    }
}

#[test]
fn gso_packet_below_threshold_counts_as_datagrams() {
    let fib = default_fib();
    let switched = run(&fib, &[gso_packet(packet(GROUP, 2, 2500), 1000)]);
    assert_eq!(gso_counts(&switched), [1]);
    let below: u64 = switched.counts.refused.iter().map(|(_, _, n)| n).sum();
    assert_eq!((switched.counts.packets, below), (3, 3));
}

#[test]
fn gso_packet_without_route_counts_as_datagrams() {
    for (group, ttl, reason) in [
        (GROUP, 1, DropReason::TtlExpired),
        ([226, 0, 0, 1], 9, DropReason::NoRoute),
    ] {
        let switched = run(
            &default_fib(),
            &[gso_packet(packet(group, ttl, 2500), 1000)],
        );
        let counts = &switched.counts;
        assert_eq!((counts.packets, counts.bytes), (3, 2500 + 3 * 28));
        assert_eq!(counts.dropped[reason as usize], 3);
        assert_eq!(counts.dropped.iter().sum::<u64>(), 3);
    }
}

#[test]
fn incomplete_packet_is_dropped_with_a_reason() {
    let good = || packet(GROUP, 9, 4);
    let truncated = Packet {
        truncated: true,
        ..Packet::default()
    };
    assert_eq!(reason((good(), truncated)), Some(DropReason::Truncated));
    let malformed = Some(DropReason::Malformed);
    assert_eq!(reason((good(), of_type(vlan::ETHERTYPE_IPV6))), malformed);
    assert_eq!(reason((packet_v6(9), of_type(0x0800))), malformed);
    assert_eq!(reason((good(), of_type(0x0806))), malformed);
    let empty = reason((vec![], of_type(0x0800)));
    assert_eq!(empty, Some(DropReason::Truncated));
    let no_egress = reason(plain(packet([225, 9, 9, 9], 9, 4)));
    assert_eq!(no_egress, Some(DropReason::NoEgress));
    // No plane creates a range outside the batch. It must not be read.
    let fib = default_fib();
    let ingress = &fib.ingresses[&InterfaceId::new(1).unwrap()];
    let mut outside = batch(&[plain(good())]);
    outside.packets[0].len += 1;
    let switched = Switch::default().run(&fib, ingress, outside, 0);
    assert_eq!(switched.counts.dropped[DropReason::Truncated as usize], 1);
}

#[test]
fn padding_is_trimmed() {
    let fib = default_fib();
    let mut padded = packet(GROUP, 9, 1);
    padded.resize(46, 0xaa);
    let switched = run(&fib, &[plain(padded)]);
    assert_eq!(leaving(&fib, &switched, "out1"), [packet(GROUP, 8, 1)]);
    assert_eq!(switched.counts.bytes, 29);
}
