//! Whole packets: what their headers must be, what is written, and what never panics.

use super::*;
use crate::model::HeaderChecks;
use crate::wire::checksum;
use crate::wire::group_message::{Record, RecordType};
use crate::wire::ip::refresh_ipv4_checksum;
use crate::wire::{float_code, mrdisc};
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

pub fn record(kind: RecordType, g: &str, sources: &[&str]) -> Record {
    Record {
        kind,
        group: group(g),
        sources: sources.iter().map(|s| s.parse().unwrap()).collect(),
    }
}

fn read(bytes: &[u8], headers: HeaderChecks) -> Result<Heard, Refusal> {
    let on_link: [IpNet; 1] = ["10.0.0.0/8".parse().unwrap()];
    let on_link = &on_link;
    parse(bytes, &Checks { headers, on_link })
}

fn strict(bytes: &[u8]) -> Result<Heard, Refusal> {
    read(bytes, HeaderChecks::Strict)
}

fn lenient(bytes: &[u8]) -> Result<Heard, Refusal> {
    read(bytes, HeaderChecks::Lenient)
}

/// What the packet says, with strict checks.
pub fn heard(hex: &str) -> Heard {
    strict(&bytes(hex)).unwrap()
}

/// Why the packet is refused, whatever the checks.
pub fn refused(packet: &[u8]) -> Refusal {
    let refusal = strict(packet).unwrap_err();
    assert_eq!(lenient(packet), Err(refusal));
    refusal
}

/// The packet we would write from the same source to say the same.
pub fn rebuilt(hex: &str) -> Vec<u8> {
    let Heard {
        source, message, ..
    } = heard(hex);
    let packets = build(&message, source, MTU).unwrap();
    assert_eq!(packets.len(), 1);
    packets[0].clone()
}

fn vectors() -> impl Iterator<Item = Vec<u8>> {
    let all = [igmp::tests::GOOD, mld::tests::GOOD].concat();
    all.into_iter().map(bytes)
}

/// Puts the checksums right again, so that a change is judged by itself.
fn mended(mut packet: Vec<u8>) -> Vec<u8> {
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
        let ends = |at: usize| super::records::address(&packet[at..at + 16]).unwrap();
        checksum::pseudo_header(ends(8), ends(24), envelope::ICMPV6, message as u32)
    };
    if message >= 4 {
        packet[header + 2..header + 4].fill(0);
        let sum = !checksum::fold(checksum::add(sum, &packet[header..]));
        packet[header + 2..header + 4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

fn changed(hex: &str, at: usize, new: &[u8]) -> Vec<u8> {
    let mut packet = bytes(hex);
    packet[at..at + new.len()].copy_from_slice(new);
    mended(packet)
}

/// A report of version 3 and one of MLDv2, from the Linux kernel.
const V4: &str = "46c00028000040000102f9e60a09000ae0000016940400002200f6f90000000104000000e1010203";
const V6: &str = "6000000000240001fe8000000000000058427efffedabc39ff0200000000000000000000000000163a000502000001008f005d770000000104000000ff3e0000000000000000000080000001";

#[test]
fn headers_are_checked_when_strict() {
    let only_strict = |packet: &[u8], refusal| {
        assert_eq!(strict(packet), Err(refusal));
        assert!(lenient(packet).is_ok());
    };
    assert!(strict(&bytes(V4)).is_ok() && strict(&bytes(V6)).is_ok());
    for ttl in [0, 2, 255] {
        only_strict(&changed(V4, 8, &[ttl]), Refusal::Ttl);
        only_strict(&changed(V6, 7, &[ttl]), Refusal::Ttl);
    }
    // Other options of the same length; a value that alerts nobody.
    only_strict(&changed(V4, 20, &[1; 4]), Refusal::NoRouterAlert);
    only_strict(&changed(V4, 20, &[0, 148, 4, 0]), Refusal::NoRouterAlert);
    only_strict(&changed(V4, 23, &[1]), Refusal::NoRouterAlert);
    only_strict(
        &changed(V6, 42, &[1, 4, 0, 0, 0, 0]),
        Refusal::NoRouterAlert,
    );
    only_strict(&changed(V6, 45, &[1]), Refusal::NoRouterAlert);
    // No hop-by-hop header at all.
    let mut bare = bytes(V6);
    bare.drain(40..48);
    bare[6] = 58;
    let len = bare.len() as u8 - 40;
    bare[5] = len;
    only_strict(&bare, Refusal::NoRouterAlert);
    only_strict(&changed(V4, 12, &[192, 0, 2, 1]), Refusal::OffLink);
    only_strict(&changed(V6, 8, &[0x20, 0x01]), Refusal::NotLinkLocal);
    only_strict(&changed(V6, 8, &[0; 16]), Refusal::NotLinkLocal);
}

#[test]
fn the_alert_may_stand_behind_other_options() {
    let mut packet = bytes(V4);
    packet[0] = 0x48;
    // No operation, then an option of three bytes with one of data.
    let others = [1, 7, 3, 4, 1, 1, 1, 1];
    packet.splice(20..20, others);
    assert!(strict(&mended(packet)).is_ok());
    // Pad1 twice, PadN after.
    assert!(strict(&changed(V6, 42, &[0, 0, 5, 2, 0, 0])).is_ok());
}

#[test]
fn hosts_without_an_address_are_heard_in_igmp() {
    let packet = changed(V4, 12, &[0; 4]);
    assert!(strict(&packet).unwrap().source.is_unspecified());
}

#[test]
fn broken_headers_are_refused_always() {
    assert_eq!(refused(&[]), Refusal::Truncated);
    assert_eq!(refused(&[0x10]), Refusal::Malformed);
    // More fragments; an offset. The flag that forbids fragments is fine.
    assert_eq!(refused(&changed(V4, 6, &[0x20])), Refusal::Fragment);
    assert_eq!(refused(&changed(V4, 7, &[1])), Refusal::Fragment);
    assert_eq!(refused(&changed(V4, 21, &[0])), Refusal::Malformed);
    assert_eq!(refused(&changed(V4, 21, &[5])), Refusal::Malformed);
    assert_eq!(refused(&changed(V6, 43, &[9])), Refusal::Malformed);
    // The last two are those of the subnet itself.
    for bad in [
        [224, 0, 0, 1],
        [127, 0, 0, 1],
        [255; 4],
        [10, 0, 0, 0],
        [10, 255, 255, 255],
    ] {
        assert_eq!(refused(&changed(V4, 12, &bad)), Refusal::BadSource);
    }
    assert_eq!(refused(&changed(V6, 8, &[0xff, 2])), Refusal::BadSource);
    for bad in [[0; 4], [127, 0, 0, 1], [255; 4]] {
        assert_eq!(refused(&changed(V4, 16, &bad)), Refusal::BadDestination);
    }
    assert_eq!(refused(&changed(V6, 25, &[1])), Refusal::BadDestination);
    // The sum of the IPv4 header, and those of the messages.
    for (hex, at) in [(V4, 10), (V4, 26), (V6, 50)] {
        let mut packet = bytes(hex);
        packet[at] ^= 1;
        assert_eq!(refused(&packet), Refusal::Checksum);
    }
    // An echo request, TCP, and a hop-by-hop header that is longer than the packet.
    assert_eq!(refused(&changed(V6, 48, &[128])), Refusal::UnknownType);
    assert_eq!(refused(&changed(V4, 9, &[6])), Refusal::UnknownType);
    assert_eq!(refused(&changed(V6, 41, &[200])), Refusal::Truncated);
}

#[test]
fn queries_of_mld_come_from_link_local_addresses_always() {
    // It would win every election.
    let query = Message::Query(any_query(Generation::Three, None));
    let good = build(&query, "fe80::1".parse().unwrap(), MTU).unwrap();
    assert!(lenient(&good[0]).is_ok());
    for source in ["::", "2001:db8::1"] {
        let packet = build(&query, source.parse().unwrap(), MTU).unwrap();
        assert_eq!(refused(&packet[0]), Refusal::NotLinkLocal);
    }
}

#[test]
fn unicast_is_heard_and_told() {
    let packet = changed(V4, 16, &[10, 0, 0, 1]);
    assert!(!strict(&packet).unwrap().is_for_all());
    assert!(heard(V4).is_for_all());
}

#[test]
fn discovery_is_of_another_room() {
    let from = "10.0.0.1".parse().unwrap();
    let packet = mrdisc::build(&mrdisc::Message::Termination, from);
    assert_eq!(refused(&packet), Refusal::UnknownType);
}

#[test]
fn no_prefix_is_a_message() {
    for packet in vectors() {
        for cut in 0..packet.len() {
            assert_eq!(refused(&packet[..cut]), Refusal::Truncated);
        }
        let mut padded = packet.clone();
        padded.extend([0; 20]);
        assert_eq!(strict(&padded), strict(&packet));
    }
}

/// With lengths and checksums that fit the prefix.
#[test]
fn no_prefix_with_right_lengths_says_the_same() {
    for packet in vectors() {
        let v4 = packet[0] >> 4 == 4;
        let header = if v4 {
            usize::from(packet[0] & 0xf) * 4
        } else {
            48
        };
        let whole = strict(&packet).unwrap().message;
        for cut in header..packet.len() {
            let got = strict(&mended(packet[..cut].to_vec()));
            match got {
                // A query cut to the length of an older version is one.
                Ok(heard) => match (heard.message, &whole) {
                    (Message::Query(q), Message::Query(w)) => {
                        assert!(q.generation < w.generation && q.sources.is_empty());
                    }
                    (other, _) => panic!("{other:?}"),
                },
                Err(refusal) => assert!(
                    matches!(
                        refusal,
                        Refusal::Truncated
                            | Refusal::LyingCount
                            | Refusal::QueryLength
                            | Refusal::Checksum
                            | Refusal::NoRouterAlert
                    ),
                    "{refusal:?}"
                ),
            }
        }
    }
}

#[test]
fn no_changed_byte_panics() {
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
                // With the sums right, so that what is behind them is reached.
                if packet[0] >> 4 == 6 || (5..=6).contains(&(packet[0] & 0xf)) {
                    let _ = strict(&mended(packet.clone()));
                    let _ = lenient(&mended(packet));
                }
            }
        }
    }
}

fn any_query(generation: Generation, g: Option<Group>) -> Query {
    Query {
        generation,
        group: g,
        max_response: Duration::from_secs(10),
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
fn long_source_lists_of_queries_are_split() {
    // As many as RFC 9776 section 4.1.8 and RFC 9777 section 5.1.10 count on Ethernet.
    for (from, g, each) in [
        ("10.0.0.1", "232.1.1.1", 366),
        ("fe80::1", "ff3e::8000:1", 89),
    ] {
        let list = sources(2 * each + 1, g.contains(':'));
        let query = Message::Query(Query {
            sources: list.clone(),
            ..any_query(Generation::Three, Some(group(g)))
        });
        let packets = build(&query, from.parse().unwrap(), MTU).unwrap();
        let mut got = vec![];
        for packet in &packets {
            assert!(packet.len() <= MTU);
            let Message::Query(part) = strict(packet).unwrap().message else {
                panic!("no query");
            };
            got.push(part.sources.len());
        }
        assert_eq!(got, [each, each, 1]);
    }
}

#[test]
fn long_records_are_split_unless_they_exclude() {
    use RecordType::*;
    for (kind, expected) in [
        (AllowNewSources, vec![365, 365, 1]),
        (ChangeToExclude, vec![365]),
        (ModeIsExclude, vec![365]),
    ] {
        let long = Record {
            kind,
            group: group("232.1.1.1"),
            sources: sources(731, false),
        };
        let small = record(ChangeToInclude, "225.1.1.1", &[]);
        let message = Message::Records(vec![small.clone(), long, small.clone()]);
        let packets = build(&message, "10.0.0.1".parse().unwrap(), MTU).unwrap();
        let mut records = vec![];
        for packet in &packets {
            assert!(packet.len() <= MTU);
            match strict(packet).unwrap().message {
                Message::Records(some) => records.extend(some),
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
fn what_cannot_be_said_is_an_error() {
    let (v4, v6): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "fe80::1".parse().unwrap());
    let error = |message: &Message, from| build(message, from, MTU).unwrap_err();
    let report = |generation, g| Message::Report {
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
        Message::Query(Query {
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
    let records = Message::Records(vec![record(RecordType::BlockOldSources, "225.1.1.1", &[])]);
    assert_eq!(build(&records, v4, 43), Err(BuildError::SmallMtu(43)));
    assert!(build(&records, v4, 44).is_ok());
}

#[test]
fn a_short_wait_does_not_make_a_query_older() {
    for generation in [Generation::One, Generation::Two, Generation::Three] {
        let query = Message::Query(Query {
            max_response: Duration::from_millis(1),
            ..any_query(generation, None)
        });
        let packets = build(&query, "10.0.0.1".parse().unwrap(), MTU).unwrap();
        let Message::Query(got) = strict(&packets[0]).unwrap().message else {
            panic!("no query");
        };
        assert_eq!(got.generation, generation);
    }
}

fn a_group(v6: bool) -> BoxedStrategy<Group> {
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

fn some_sources(v6: bool, most: usize) -> impl Strategy<Value = Vec<Source>> {
    (0..most).prop_map(move |n| sources(n, v6))
}

fn a_record(v6: bool) -> impl Strategy<Value = Record> {
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
    (kind, a_group(v6), some_sources(v6, 40)).prop_map(|(kind, group, sources)| Record {
        kind,
        group,
        sources,
    })
}

/// Messages that have words on the wire, with values that have codes.
fn a_message(v6: bool) -> BoxedStrategy<Message> {
    let oldest = if v6 { Generation::Two } else { Generation::One };
    let generations = if v6 {
        vec![Generation::Two, Generation::Three]
    } else {
        vec![Generation::One, Generation::Two, Generation::Three]
    };
    let report = (any::<bool>(), a_group(v6)).prop_map(move |(old, group)| Message::Report {
        generation: if old { oldest } else { Generation::Two },
        group,
    });
    let leave = a_group(v6).prop_map(|group| Message::Leave { group });
    let records = prop::collection::vec(a_record(v6), 0..60).prop_map(Message::Records);
    let query = (
        prop::sample::select(generations),
        prop::option::of(a_group(v6)),
        any::<u16>(),
        any::<bool>(),
        0u8..8,
        any::<u8>(),
        some_sources(v6, 500),
    )
        .prop_map(
            move |(generation, group, code, suppress, robustness, interval, sources)| {
                let new = generation == Generation::Three;
                let group = group.filter(|_| generation > Generation::One);
                let low = code as u8;
                let millis = match (generation, v6) {
                    (Generation::One, _) => 10_000,
                    (Generation::Two, false) => u64::from(low.max(1)) * 100,
                    (Generation::Three, false) => u64::from(float_code::value_8(low)) * 100,
                    (Generation::Three, true) => float_code::value_16(code).into(),
                    (Generation::Two, true) => code.into(),
                };
                let interval = Duration::from_secs(float_code::value_8(interval).into());
                Message::Query(Query {
                    generation,
                    group,
                    max_response: Duration::from_millis(millis),
                    suppress: suppress && new,
                    robustness: if new { robustness } else { 0 },
                    interval: (new && !interval.is_zero()).then_some(interval),
                    sources: if new && group.is_some() {
                        sources
                    } else {
                        vec![]
                    },
                })
            },
        );
    prop_oneof![report, leave, records, query].boxed()
}

/// Puts messages together that were split; records that were split follow each other.
fn joined(parts: Vec<Message>) -> Message {
    parts
        .into_iter()
        .reduce(|whole, part| match (whole, part) {
            (Message::Query(mut a), Message::Query(b)) => {
                a.sources.extend(b.sources);
                Message::Query(a)
            }
            (Message::Records(mut a), Message::Records(b)) => {
                a.extend(b);
                Message::Records(a)
            }
            (a, b) => panic!("{a:?} and {b:?}"),
        })
        .unwrap()
}

proptest! {
    #[test]
    fn what_is_said_is_heard(
        (v6, message) in any::<bool>().prop_flat_map(|v6| (Just(v6), a_message(v6))),
        mtu in 1280usize..9000,
    ) {
        let from: IpAddr = if v6 { "fe80::1" } else { "10.0.0.1" }.parse().unwrap();
        let packets = build(&message, from, mtu).unwrap();
        let mut parts = vec![];
        for packet in &packets {
            prop_assert!(packet.len() <= mtu);
            // A group of interface-local scope is a destination that is refused.
            let to_nobody = v6 && packet[24] == 0xff && packet[25] & 0xf < 2;
            match strict(packet) {
                Err(Refusal::BadDestination) if to_nobody => return Ok(()),
                got => {
                    let got = got.unwrap();
                    prop_assert_eq!(got.source, from);
                    prop_assert!(got.is_for_all());
                    parts.push(got.message);
                }
            }
        }
        prop_assert_eq!(joined(parts), message);
    }

    #[test]
    fn nothing_panics(packet in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = strict(&packet);
        let _ = lenient(&packet);
    }
}
