//! Tests of complete packets: header checks, round trips, truncated and corrupted input.

use super::*;
use crate::model::HeaderChecks;
use crate::wire::checksum;
use crate::wire::ip::refresh_ipv4_checksum;
use crate::wire::membership_message::{GroupRecord, RecordType};
use crate::wire::{floating_point, mrdisc};
use ipnet::IpNet;
use proptest::prelude::*;
use std::time::Duration;

const MTU: usize = 1500;

pub fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
        .collect()
}

pub fn group(text: &str) -> Group {
    text.parse().unwrap()
}

pub fn record(kind: RecordType, g: &str, sources: &[&str]) -> GroupRecord {
    GroupRecord {
        kind,
        group: group(g),
        sources: sources.iter().map(|s| s.parse().unwrap()).collect(),
    }
}

fn parse_with(bytes: &[u8], headers: HeaderChecks) -> Result<MembershipPacket, RejectReason> {
    let on_link: [IpNet; 1] = ["10.0.0.0/8".parse().unwrap()];
    let on_link = &on_link;
    parse(bytes, &HeaderPolicy { headers, on_link })
}

fn strict(bytes: &[u8]) -> Result<MembershipPacket, RejectReason> {
    parse_with(bytes, HeaderChecks::Strict)
}

fn lenient(bytes: &[u8]) -> Result<MembershipPacket, RejectReason> {
    parse_with(bytes, HeaderChecks::Lenient)
}

fn standard(bytes: &[u8]) -> Result<MembershipPacket, RejectReason> {
    parse_with(bytes, HeaderChecks::Standard)
}

/// Parses a valid packet with strict checks.
pub fn parsed(hex: &str) -> MembershipPacket {
    strict(&bytes(hex)).unwrap()
}

/// Returns the reason for which both strict and lenient checks reject the packet.
pub fn rejected(packet: &[u8]) -> RejectReason {
    let reason = strict(packet).unwrap_err();
    assert_eq!(lenient(packet), Err(reason));
    reason
}

/// Builds the message of a packet again, from the same source.
pub fn rebuilt(hex: &str) -> Vec<u8> {
    let MembershipPacket {
        source, message, ..
    } = parsed(hex);
    let packets = build(&message, source, MTU).unwrap();
    assert_eq!(packets.len(), 1);
    packets[0].clone()
}

fn vectors() -> impl Iterator<Item = Vec<u8>> {
    let all = [igmp::tests::VALID, mld::tests::VALID].concat();
    all.into_iter().map(bytes)
}

/// Corrects lengths and checksums, so that only the intended change is invalid.
fn with_valid_checksums(mut packet: Vec<u8>) -> Vec<u8> {
    let v4 = packet[0] >> 4 == 4;
    let header = if v4 {
        usize::from(packet[0] & 0xf) * 4
    } else {
        48
    };
    let message = packet.len() - header;
    let sum = if v4 {
        let len = packet.len() as u16;
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        refresh_ipv4_checksum(&mut packet);
        0
    } else {
        let len = packet.len() as u16 - 40;
        packet[4..6].copy_from_slice(&len.to_be_bytes());
        let address_at = |at: usize| super::records::address(&packet[at..at + 16]).unwrap();
        checksum::pseudo_header(
            address_at(8),
            address_at(24),
            link_control::ICMPV6,
            message as u32,
        )
    };
    if message >= 4 {
        packet[header + 2..header + 4].fill(0);
        let sum = !checksum::fold(checksum::add(sum, &packet[header..]));
        packet[header + 2..header + 4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

fn with_bytes(hex: &str, at: usize, new: &[u8]) -> Vec<u8> {
    let mut packet = bytes(hex);
    packet[at..at + new.len()].copy_from_slice(new);
    with_valid_checksums(packet)
}

/// Reports of IGMPv3 and MLDv2 from the Linux kernel.
const V4: &str = "46c00028000040000102f9e60a09000ae0000016940400002200f6f90000000104000000e1010203";
const V6: &str = "6000000000240001fe8000000000000058427efffedabc39ff0200000000000000000000000000163a000502000001008f005d770000000104000000ff3e0000000000000000000080000001";

#[test]
fn standard_checks_require_router_alert_for_mld_only() {
    let no_alert = [
        (with_bytes(V4, 20, &[1; 4]), Ok(())),
        (with_bytes(V6, 45, &[1]), Err(RejectReason::NoRouterAlert)),
    ];
    for (packet, expected) in no_alert {
        assert_eq!(standard(&packet).map(drop), expected);
        assert_eq!(strict(&packet).map(drop), Err(RejectReason::NoRouterAlert));
    }
    for (packet, reason) in [
        (with_bytes(V4, 8, &[2]), RejectReason::Ttl),
        (with_bytes(V4, 12, &[192, 0, 2, 1]), RejectReason::OffLink),
        (with_bytes(V6, 8, &[0; 16]), RejectReason::NotLinkLocal),
    ] {
        assert_eq!(standard(&packet).map(drop), Err(reason));
    }
}

#[test]
fn any_source_is_on_a_link_without_ipv4_subnet() {
    let headers = HeaderChecks::Strict;
    let v6_only = ["fe80::1/64".parse().unwrap()];
    for on_link in [&[][..], &v6_only] {
        let policy = HeaderPolicy { headers, on_link };
        assert!(parse(&bytes(V4), &policy).is_ok());
        let other = with_bytes(V4, 12, &[192, 0, 2, 1]);
        assert!(parse(&other, &policy).is_ok());
        let invalid = with_bytes(V4, 12, &[127, 0, 0, 1]);
        assert_eq!(parse(&invalid, &policy), Err(RejectReason::BadSource));
    }
    // A point-to-point link has one address.
    let on_link = &["10.9.0.10/32".parse().unwrap()];
    let policy = HeaderPolicy { headers, on_link };
    assert!(parse(&bytes(V4), &policy).is_ok());
    let other = with_bytes(V4, 12, &[10, 9, 0, 11]);
    assert_eq!(parse(&other, &policy), Err(RejectReason::OffLink));
}

#[test]
fn headers_are_checked_when_strict() {
    let rejected_if_strict = |packet: &[u8], reason| {
        assert_eq!(strict(packet), Err(reason));
        assert!(lenient(packet).is_ok());
    };
    assert!(strict(&bytes(V4)).is_ok() && strict(&bytes(V6)).is_ok());
    for ttl in [0, 2, 255] {
        rejected_if_strict(&with_bytes(V4, 8, &[ttl]), RejectReason::Ttl);
        rejected_if_strict(&with_bytes(V6, 7, &[ttl]), RejectReason::Ttl);
    }
    // Other options of the same length; a Router Alert option with an unassigned value.
    rejected_if_strict(&with_bytes(V4, 20, &[1; 4]), RejectReason::NoRouterAlert);
    rejected_if_strict(
        &with_bytes(V4, 20, &[0, 148, 4, 0]),
        RejectReason::NoRouterAlert,
    );
    rejected_if_strict(&with_bytes(V4, 23, &[1]), RejectReason::NoRouterAlert);
    rejected_if_strict(
        &with_bytes(V6, 42, &[1, 4, 0, 0, 0, 0]),
        RejectReason::NoRouterAlert,
    );
    rejected_if_strict(&with_bytes(V6, 45, &[1]), RejectReason::NoRouterAlert);
    // No hop-by-hop header at all.
    let mut bare = bytes(V6);
    bare.drain(40..48);
    bare[6] = 58;
    let len = bare.len() as u8 - 40;
    bare[5] = len;
    rejected_if_strict(&bare, RejectReason::NoRouterAlert);
    rejected_if_strict(&with_bytes(V4, 12, &[192, 0, 2, 1]), RejectReason::OffLink);
    rejected_if_strict(
        &with_bytes(V6, 8, &[0x20, 0x01]),
        RejectReason::NotLinkLocal,
    );
    rejected_if_strict(&with_bytes(V6, 8, &[0; 16]), RejectReason::NotLinkLocal);
}

#[test]
fn router_alert_is_found_after_other_options() {
    let mut packet = bytes(V4);
    packet[0] = 0x48;
    // A No Operation option, an option of three bytes, and padding.
    let others = [1, 7, 3, 4, 1, 1, 1, 1];
    packet.splice(20..20, others);
    assert!(strict(&with_valid_checksums(packet)).is_ok());
    // Two Pad1 options before the Router Alert option.
    assert!(strict(&with_bytes(V6, 42, &[0, 0, 5, 2, 0, 0])).is_ok());
}

#[test]
fn igmp_from_unspecified_source_is_accepted() {
    let packet = with_bytes(V4, 12, &[0; 4]);
    assert!(strict(&packet).unwrap().source.is_unspecified());
}

#[test]
fn invalid_headers_are_rejected_with_any_policy() {
    assert_eq!(rejected(&[]), RejectReason::Truncated);
    assert_eq!(rejected(&[0x10]), RejectReason::Malformed);
    // The More Fragments flag; a fragment offset. Don't Fragment is valid.
    assert_eq!(
        rejected(&with_bytes(V4, 6, &[0x20])),
        RejectReason::Fragment
    );
    assert_eq!(rejected(&with_bytes(V4, 7, &[1])), RejectReason::Fragment);
    assert_eq!(rejected(&with_bytes(V4, 21, &[0])), RejectReason::Malformed);
    assert_eq!(rejected(&with_bytes(V4, 21, &[5])), RejectReason::Malformed);
    assert_eq!(rejected(&with_bytes(V6, 43, &[9])), RejectReason::Malformed);
    // The last two are the network and broadcast addresses of the subnet.
    for bad in [
        [224, 0, 0, 1],
        [127, 0, 0, 1],
        [255; 4],
        [10, 0, 0, 0],
        [10, 255, 255, 255],
    ] {
        assert_eq!(rejected(&with_bytes(V4, 12, &bad)), RejectReason::BadSource);
    }
    assert_eq!(
        rejected(&with_bytes(V6, 8, &[0xff, 2])),
        RejectReason::BadSource
    );
    for bad in [[0; 4], [127, 0, 0, 1], [255; 4]] {
        assert_eq!(
            rejected(&with_bytes(V4, 16, &bad)),
            RejectReason::BadDestination
        );
    }
    assert_eq!(
        rejected(&with_bytes(V6, 25, &[1])),
        RejectReason::BadDestination
    );
    // The IPv4 header checksum, the IGMP checksum and the ICMPv6 checksum.
    for (hex, at) in [(V4, 10), (V4, 26), (V6, 50)] {
        let mut packet = bytes(hex);
        packet[at] ^= 1;
        assert_eq!(rejected(&packet), RejectReason::Checksum);
    }
    // An echo request, TCP, and a hop-by-hop header that is longer than the packet.
    assert_eq!(
        rejected(&with_bytes(V6, 48, &[128])),
        RejectReason::UnknownType
    );
    assert_eq!(
        rejected(&with_bytes(V4, 9, &[6])),
        RejectReason::UnknownType
    );
    assert_eq!(
        rejected(&with_bytes(V6, 41, &[200])),
        RejectReason::Truncated
    );
}

#[test]
fn mld_query_from_non_link_local_source_is_rejected() {
    let query = MembershipMessage::Query(any_query(Generation::Three, None));
    let valid = build(&query, "fe80::1".parse().unwrap(), MTU).unwrap();
    assert!(lenient(&valid[0]).is_ok());
    for source in ["::", "2001:db8::1"] {
        let packet = build(&query, source.parse().unwrap(), MTU).unwrap();
        assert_eq!(rejected(&packet[0]), RejectReason::NotLinkLocal);
    }
}

#[test]
fn unicast_messages_are_accepted_and_flagged() {
    let packet = with_bytes(V4, 16, &[10, 0, 0, 1]);
    assert!(!strict(&packet).unwrap().is_multicast());
    assert!(parsed(V4).is_multicast());
}

#[test]
fn membership_parser_ignores_router_discovery() {
    let from = "10.0.0.1".parse().unwrap();
    let packet = mrdisc::build(&mrdisc::RouterDiscoveryMessage::Termination, from);
    assert_eq!(rejected(&packet), RejectReason::UnknownType);
}

#[test]
fn truncated_packets_are_rejected() {
    for packet in vectors() {
        for len in 0..packet.len() {
            assert_eq!(rejected(&packet[..len]), RejectReason::Truncated);
        }
        let mut padded = packet.clone();
        padded.extend([0; 20]);
        assert_eq!(strict(&padded), strict(&packet));
    }
}

/// The truncated packets have valid lengths and checksums. Only a query may still parse, as a query
/// of an older version.
#[test]
fn truncated_messages_never_parse_as_the_original() {
    for packet in vectors() {
        let v4 = packet[0] >> 4 == 4;
        let header = if v4 {
            usize::from(packet[0] & 0xf) * 4
        } else {
            48
        };
        let original = strict(&packet).unwrap().message;
        for len in header..packet.len() {
            let got = strict(&with_valid_checksums(packet[..len].to_vec()));
            match got {
                Ok(parsed) => match (parsed.message, &original) {
                    (MembershipMessage::Query(q), MembershipMessage::Query(original)) => {
                        assert!(q.generation < original.generation && q.sources.is_empty());
                    }
                    (other, _) => panic!("{other:?}"),
                },
                Err(reason) => assert!(
                    matches!(
                        reason,
                        RejectReason::Truncated
                            | RejectReason::CountMismatch
                            | RejectReason::QueryLength
                            | RejectReason::Checksum
                            | RejectReason::NoRouterAlert
                    ),
                    "{reason:?}"
                ),
            }
        }
    }
}

#[test]
fn corrupted_bytes_never_panic() {
    for packet in vectors() {
        for at in 0..packet.len() {
            for new in [
                0,
                1,
                0x7f,
                0x80,
                0xff,
                packet[at] ^ 1,
                packet[at].wrapping_add(1),
            ] {
                let mut packet = packet.clone();
                packet[at] = new;
                let _ = lenient(&packet);
                // With valid checksums, so that the checks after them are reached.
                if packet[0] >> 4 == 6 || (5..=6).contains(&(packet[0] & 0xf)) {
                    let _ = strict(&with_valid_checksums(packet.clone()));
                    let _ = lenient(&with_valid_checksums(packet));
                }
            }
        }
    }
}

fn any_query(generation: Generation, g: Option<Group>) -> Query {
    Query {
        generation,
        group: g,
        max_response_time: Duration::from_secs(10),
        suppress: false,
        robustness: 0,
        interval: None,
        sources: vec![],
    }
}

fn sources(n: usize, v6: bool) -> Vec<Source> {
    let one = |i: usize| -> IpAddr {
        if v6 {
            std::net::Ipv6Addr::from_bits((0x2001_0db8 << 96) + i as u128).into()
        } else {
            std::net::Ipv4Addr::from_bits(0x0a00_0001 + i as u32).into()
        }
    };
    (0..n).map(|i| Source::new(one(i)).unwrap()).collect()
}

#[test]
fn long_query_source_lists_are_split() {
    // The limits that RFC 9776 section 4.1.8 and RFC 9777 section 5.1.10 state for Ethernet.
    for (from, g, max_sources) in [
        ("10.0.0.1", "232.1.1.1", 366),
        ("fe80::1", "ff3e::8000:1", 89),
    ] {
        let list = sources(2 * max_sources + 1, g.contains(':'));
        let query = MembershipMessage::Query(Query {
            sources: list.clone(),
            ..any_query(Generation::Three, Some(group(g)))
        });
        let packets = build(&query, from.parse().unwrap(), MTU).unwrap();
        let mut got = vec![];
        for packet in &packets {
            assert!(packet.len() <= MTU);
            let MembershipMessage::Query(part) = strict(packet).unwrap().message else {
                panic!("no query");
            };
            got.push(part.sources.len());
        }
        assert_eq!(got, [max_sources, max_sources, 1]);
    }
}

#[test]
fn long_records_are_split_unless_exclude() {
    use RecordType::*;
    for (kind, expected) in [
        (AllowNewSources, vec![365, 365, 1]),
        (ChangeToExclude, vec![365]),
        (ModeIsExclude, vec![365]),
    ] {
        let long = GroupRecord {
            kind,
            group: group("232.1.1.1"),
            sources: sources(731, false),
        };
        let small = record(ChangeToInclude, "225.1.1.1", &[]);
        let message = MembershipMessage::Records(vec![small.clone(), long, small.clone()]);
        let packets = build(&message, "10.0.0.1".parse().unwrap(), MTU).unwrap();
        let mut records = vec![];
        for packet in &packets {
            assert!(packet.len() <= MTU);
            match strict(packet).unwrap().message {
                MembershipMessage::Records(some) => records.extend(some),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((&records[0], records.last()), (&small, Some(&small)));
        let lengths: Vec<_> = records[1..records.len() - 1]
            .iter()
            .map(|r| r.sources.len())
            .collect();
        assert_eq!(lengths, expected);
    }
}

#[test]
fn unrepresentable_messages_are_build_errors() {
    let (v4, v6): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "fe80::1".parse().unwrap());
    let error = |message: &MembershipMessage, from| build(message, from, MTU).unwrap_err();
    let report = |generation, g| MembershipMessage::Report {
        generation,
        group: group(g),
    };
    assert_eq!(
        error(&report(Generation::Two, "ff02::1"), v4),
        BuildError::MixedFamily
    );
    assert_eq!(
        error(&report(Generation::One, "ff3e::1"), v6),
        BuildError::NoSuchVersion
    );
    assert_eq!(
        error(&report(Generation::Three, "225.1.1.1"), v4),
        BuildError::NoSuchVersion
    );
    let query = |generation, g: Option<&str>, n| {
        MembershipMessage::Query(Query {
            sources: sources(n, false),
            ..any_query(generation, g.map(group))
        })
    };
    let g = Some("225.1.1.1");
    assert_eq!(
        error(&query(Generation::One, None, 0), v6),
        BuildError::NoSuchVersion
    );
    assert_eq!(
        error(&query(Generation::One, g, 0), v4),
        BuildError::NoSuchVersion
    );
    assert_eq!(
        error(&query(Generation::Two, g, 1), v4),
        BuildError::NoSuchVersion
    );
    assert_eq!(
        error(&query(Generation::Three, None, 1), v4),
        BuildError::NoGroup
    );
    assert_eq!(
        error(&query(Generation::Three, Some("ff3e::1"), 1), v6),
        BuildError::MixedFamily
    );
    let q = query(Generation::Three, g, 1);
    assert_eq!(build(&q, v4, 39), Err(BuildError::SmallMtu(39)));
    assert!(build(&q, v4, 40).is_ok());
    let records =
        MembershipMessage::Records(vec![record(RecordType::BlockOldSources, "225.1.1.1", &[])]);
    assert_eq!(build(&records, v4, 43), Err(BuildError::SmallMtu(43)));
    assert!(build(&records, v4, 44).is_ok());
}

#[test]
fn short_response_time_keeps_query_version() {
    for generation in [Generation::One, Generation::Two, Generation::Three] {
        let query = MembershipMessage::Query(Query {
            max_response_time: Duration::from_millis(1),
            ..any_query(generation, None)
        });
        let packets = build(&query, "10.0.0.1".parse().unwrap(), MTU).unwrap();
        let MembershipMessage::Query(got) = strict(&packets[0]).unwrap().message else {
            panic!("no query");
        };
        assert_eq!(got.generation, generation);
    }
}

fn any_group(v6: bool) -> BoxedStrategy<Group> {
    let new = |a: IpAddr| Group::new(a).unwrap();
    if v6 {
        any::<u128>()
            .prop_map(move |b| {
                let addr = std::net::Ipv6Addr::from_bits(b | 0xff << 120);
                new(addr.into())
            })
            .boxed()
    } else {
        (0xe000_0000u32..0xf000_0000)
            .prop_map(move |b| new(std::net::Ipv4Addr::from_bits(b).into()))
            .boxed()
    }
}

fn any_sources(v6: bool, max: usize) -> impl Strategy<Value = Vec<Source>> {
    (0..max).prop_map(move |n| sources(n, v6))
}

fn any_record(v6: bool) -> impl Strategy<Value = GroupRecord> {
    use RecordType::*;
    let kinds = [
        ModeIsInclude,
        ModeIsExclude,
        ChangeToInclude,
        ChangeToExclude,
        AllowNewSources,
        BlockOldSources,
    ];
    let kind = prop::sample::select(kinds.to_vec());
    (kind, any_group(v6), any_sources(v6, 40)).prop_map(|(kind, group, sources)| GroupRecord {
        kind,
        group,
        sources,
    })
}

/// Messages that exist in their protocol version, with times that the wire format can represent.
fn any_message(v6: bool) -> BoxedStrategy<MembershipMessage> {
    let oldest = if v6 { Generation::Two } else { Generation::One };
    let generations = if v6 {
        vec![Generation::Two, Generation::Three]
    } else {
        vec![Generation::One, Generation::Two, Generation::Three]
    };
    let report =
        (any::<bool>(), any_group(v6)).prop_map(move |(old, group)| MembershipMessage::Report {
            generation: if old { oldest } else { Generation::Two },
            group,
        });
    let leave = any_group(v6).prop_map(|group| MembershipMessage::Leave { group });
    let records = prop::collection::vec(any_record(v6), 0..60).prop_map(MembershipMessage::Records);
    let query = (
        prop::sample::select(generations),
        prop::option::of(any_group(v6)),
        any::<u16>(),
        any::<bool>(),
        0u8..8,
        any::<u8>(),
        any_sources(v6, 500),
    )
        .prop_map(
            move |(generation, group, code, suppress, robustness, interval, sources)| {
                let is_v3 = generation == Generation::Three;
                let group = group.filter(|_| generation > Generation::One);
                let low = code as u8;
                let millis = match (generation, v6) {
                    (Generation::One, _) => 10_000,
                    (Generation::Two, false) => u64::from(low.max(1)) * 100,
                    (Generation::Three, false) => u64::from(floating_point::decode_8(low)) * 100,
                    (Generation::Three, true) => floating_point::decode_16(code).into(),
                    (Generation::Two, true) => code.into(),
                };
                let interval = Duration::from_secs(floating_point::decode_8(interval).into());
                MembershipMessage::Query(Query {
                    generation,
                    group,
                    max_response_time: Duration::from_millis(millis),
                    suppress: suppress && is_v3,
                    robustness: if is_v3 { robustness } else { 0 },
                    interval: (is_v3 && !interval.is_zero()).then_some(interval),
                    sources: if is_v3 && group.is_some() {
                        sources
                    } else {
                        vec![]
                    },
                })
            },
        );
    prop_oneof![report, leave, records, query].boxed()
}

/// Joins the parts of a split message. Parts of a split record stay separate records.
fn joined(parts: Vec<MembershipMessage>) -> MembershipMessage {
    parts
        .into_iter()
        .reduce(|joined, part| match (joined, part) {
            (MembershipMessage::Query(mut a), MembershipMessage::Query(b)) => {
                a.sources.extend(b.sources);
                MembershipMessage::Query(a)
            }
            (MembershipMessage::Records(mut a), MembershipMessage::Records(b)) => {
                a.extend(b);
                MembershipMessage::Records(a)
            }
            (a, b) => panic!("{a:?} and {b:?}"),
        })
        .unwrap()
}

proptest! {
    #[test]
    fn built_messages_parse_as_the_original(
        (v6, message) in any::<bool>().prop_flat_map(|v6| (Just(v6), any_message(v6))),
        mtu in 1280usize..9000,
    ) {
        let from: IpAddr = if v6 { "fe80::1" } else { "10.0.0.1" }.parse().unwrap();
        let packets = build(&message, from, mtu).unwrap();
        let mut parts = vec![];
        for packet in &packets {
            prop_assert!(packet.len() <= mtu);
            // A destination of interface-local scope is rejected.
            let is_interface_local = v6 && packet[24] == 0xff && packet[25] & 0xf < 2;
            match strict(packet) {
                Err(RejectReason::BadDestination) if is_interface_local => return Ok(()),
                got => {
                    let got = got.unwrap();
                    prop_assert_eq!(got.source, from);
                    prop_assert!(got.is_multicast());
                    parts.push(got.message);
                }
            }
        }
        prop_assert_eq!(joined(parts), message);
    }

    #[test]
    fn random_bytes_never_panic(packet in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = strict(&packet);
        let _ = lenient(&packet);
    }
}
