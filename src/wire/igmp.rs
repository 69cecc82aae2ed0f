//! IGMP: version 1 (RFC 1112), 2 (RFC 2236) and 3 (RFC 9776). Only the messages themselves;
//! their packets are in [`super::envelope`].

use std::net::Ipv4Addr;
use std::time::Duration;

use super::Refusal;
use super::float_code;
use super::group_message::{Generation, Message, Query, Record};
use super::records::{self, Family, Fields};
use crate::model::Group;

/// Type of a query of any version.
pub const QUERY: u8 = 0x11;
/// Type of a report of version 1.
pub const V1_REPORT: u8 = 0x12;
/// Type of a report of version 2.
pub const V2_REPORT: u8 = 0x16;
/// Type of a leave of version 2.
pub const LEAVE: u8 = 0x17;
/// Type of a report of version 3.
pub const V3_REPORT: u8 = 0x22;

/// Where general queries go: every host of the link.
pub const ALL_SYSTEMS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);
/// Where leaves of version 2 go.
pub const ALL_ROUTERS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 2);
/// Where reports of version 3 go.
pub const V3_ROUTERS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 22);

/// Bytes of the messages of versions 1 and 2, and of a report of version 3 without records.
const SHORT_LEN: usize = 8;
/// Bytes of a query of version 3 without sources.
pub(super) const V3_QUERY_LEN: usize = 12;
/// How long hosts of version 1 wait at most; its queries do not say (RFC 1112 appendix I).
const V1_MAX_RESPONSE: Duration = Duration::from_secs(10);

/// True for the messages of version 1, which knows no Router Alert option.
pub(super) fn is_version_1(message: &[u8]) -> bool {
    match message {
        [V1_REPORT, ..] => true,
        [QUERY, 0, ..] => message.len() == SHORT_LEN,
        _ => false,
    }
}

/// Reads a message whose checksum is right. Bytes behind a message are legal, except behind
/// queries, whose length tells their version (RFC 9776 sections 4.2 and 7.1).
pub fn parse(message: &[u8]) -> Result<Message, Refusal> {
    let kind = *message.first().ok_or(Refusal::Truncated)?;
    if !matches!(kind, QUERY | V1_REPORT | V2_REPORT | LEAVE | V3_REPORT) {
        return Err(Refusal::UnknownType);
    }
    let (fixed, rest) = message
        .split_first_chunk::<SHORT_LEN>()
        .ok_or(Refusal::Truncated)?;
    let [_, code, _, _, group @ ..] = fixed;
    let report = |generation| {
        let group = records::reported_group(group)?;
        Ok(Message::Report { generation, group })
    };
    match kind {
        V1_REPORT => report(Generation::One),
        V2_REPORT => report(Generation::Two),
        LEAVE => Ok(Message::Leave {
            group: records::reported_group(group)?,
        }),
        V3_REPORT => {
            let family = Family::V4;
            let count = u16::from_be_bytes([group[2], group[3]]);
            let records = Fields { rest, family }.records(count)?;
            Ok(Message::Records(records))
        }
        _ => query(*code, group, rest).map(Message::Query),
    }
}

fn query(code: u8, group: &[u8; 4], rest: &[u8]) -> Result<Query, Refusal> {
    let tenths = |n: u32| Duration::from_millis(u64::from(n) * 100);
    let old = |generation, group, max_response| Query {
        generation,
        group,
        max_response,
        suppress: false,
        robustness: 0,
        interval: None,
        sources: Vec::new(),
    };
    let Some(([flags, interval, high, low], sources)) = rest.split_first_chunk::<4>() else {
        return match (rest, code) {
            // The group of a query of version 1 says nothing (RFC 1112 appendix I).
            ([], 0) => Ok(old(Generation::One, None, V1_MAX_RESPONSE)),
            ([], code) => {
                let group = records::queried_group(group)?;
                Ok(old(Generation::Two, group, tenths(code.into())))
            }
            _ => Err(Refusal::QueryLength),
        };
    };
    let group = records::queried_group(group)?;
    let mut fields = Fields {
        rest: sources,
        family: Family::V4,
    };
    let count = u16::from_be_bytes([*high, *low]);
    Ok(Query {
        generation: Generation::Three,
        group,
        max_response: tenths(float_code::value_8(code)),
        sources: records::queried_sources(&mut fields, count, group)?,
        ..flagged(*flags, *interval)
    })
}

/// A query of IGMPv3 or MLDv2 with the fields both have alike.
pub(super) fn flagged(flags: u8, interval: u8) -> Query {
    let interval = Duration::from_secs(float_code::value_8(interval).into());
    Query {
        generation: Generation::Three,
        group: None,
        max_response: Duration::ZERO,
        suppress: flags & 8 != 0,
        robustness: flags & 7,
        // Zero tells nothing (RFC 9776 section 4.1.7).
        interval: (!interval.is_zero()).then_some(interval),
        sources: Vec::new(),
    }
}

/// The bytes of a query that say what [`flagged`] reads. A robustness above 7 is not told.
pub(super) fn flags(query: &Query) -> [u8; 2] {
    let robustness = if query.robustness > 7 {
        0
    } else {
        query.robustness
    };
    let interval = query.interval.unwrap_or_default().as_secs();
    let interval = u32::try_from(interval).unwrap_or(u32::MAX);
    [
        u8::from(query.suppress) << 3 | robustness,
        float_code::code_8(interval),
    ]
}

/// Writes a query, but for its sources: as many as `count` must follow. The checksum is zero.
pub(super) fn write_query(query: &Query, count: u16) -> Vec<u8> {
    let tenths = u32::try_from(query.max_response.as_millis() / 100).unwrap_or(u32::MAX);
    let code = match query.generation {
        Generation::One => 0,
        // Zero would make it one of version 1.
        Generation::Two => tenths.clamp(1, u8::MAX.into()) as u8,
        Generation::Three => float_code::code_8(tenths),
    };
    let mut message = short(QUERY, code, query.group);
    if query.generation == Generation::Three {
        message.extend(flags(query));
        message.extend(count.to_be_bytes());
    }
    message
}

/// Writes a report of version 1 or 2, or a leave. The checksum is zero.
pub(super) fn write_short(kind: u8, group: Group) -> Vec<u8> {
    short(kind, 0, Some(group))
}

fn short(kind: u8, code: u8, group: Option<Group>) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    let any = Ipv4Addr::UNSPECIFIED.into();
    records::push(&mut message, group.map_or(any, Group::addr));
    message
}

/// Writes reports of version 3, each at most `room` bytes. The checksums are zero.
pub(super) fn write_records(
    kind: u8,
    list: &[Record],
    family: Family,
    room: usize,
) -> Vec<Vec<u8>> {
    records::bodies(list, family, room.saturating_sub(SHORT_LEN))
        .into_iter()
        .map(|(count, body)| {
            let mut message = vec![kind, 0, 0, 0, 0, 0];
            message.extend(count.to_be_bytes());
            message.extend(body);
            message
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::wire::membership::tests::{bytes, group, heard, rebuilt, record, refused};

    // From the Linux 6.18 kernel, captured with tcpdump on the far end of a veth while a socket
    // on 10.9.0.10 joined and left.
    /// IP_ADD_MEMBERSHIP of 225.1.2.3 with `force_igmp_version` 1.
    const K_V1_REPORT: &str = "46c00020000040000102f7000a09000ae10102039404000012000afbe1010203";
    /// The same with `force_igmp_version` 2.
    const K_V2_REPORT: &str = "46c00020000040000102f7000a09000ae101020394040000160006fbe1010203";
    /// IP_DROP_MEMBERSHIP after it.
    const K_V2_LEAVE: &str = "46c00020000040000102fa020a09000ae000000294040000170005fbe1010203";
    /// IP_ADD_MEMBERSHIP of 225.1.2.3 in version 3.
    const K_V3_JOIN: &str =
        "46c00028000040000102f9e60a09000ae0000016940400002200f6f90000000104000000e1010203";
    /// MCAST_JOIN_SOURCE_GROUP of (192.0.2.1, 232.1.2.3) while the former was repeated.
    const K_V3_SOURCE_JOIN: &str = "46c00034000040000102f9da0a09000ae000001694040000220045f10000000205000001e8010203c000020104000000e1010203";
    /// MCAST_LEAVE_SOURCE_GROUP of it.
    const K_V3_SOURCE_LEAVE: &str =
        "46c0002c000040000102f9e20a09000ae00000169404000022002bf70000000106000001e8010203c0000201";
    /// IP_DROP_MEMBERSHIP of 225.1.2.3.
    const K_V3_LEAVE: &str =
        "46c00028000040000102f9e60a09000ae0000016940400002200f7f90000000103000000e1010203";

    // From FRR's pimd 8.4 on 10.9.0.1, with a query interval of 10 s.
    /// Its first general query.
    const F_GENERAL: &str =
        "46c00024440740000102b6010a090001e0000001940400001114e46e000000000a7d0000";
    /// After a leave of 225.1.2.3.
    const F_GROUP: &str =
        "46c000248e9c4000010268690a090001e101020394040000110a0974e1010203027d0000";
    /// After a leave of (192.0.2.1, 232.1.2.3).
    const F_GROUP_SOURCE: &str =
        "46c00028254840000102cab90a090001e801020394040000110a4071e8010203027d0001c0000201";

    // By scapy 2.5: IP(ttl=1, tos=0xc0, options=[IPOption_Router_Alert()]) / IGMP() or IGMPv3();
    // version 1 without tos and options.
    /// IGMP(type=0x11, mrcode=0)
    const S_V1_QUERY: &str = "4500001c000000000102cfde0a000001e00000011100eeff00000000";
    /// IGMP(type=0x12, gaddr="225.1.2.3")
    const S_V1_REPORT: &str = "4500001c000000000102ccd20a00000ae101020312000afbe1010203";
    /// IGMP(type=0x11, mrcode=100)
    const S_V2_GENERAL: &str = "46c000200000000001023a160a000001e0000001940400001164ee9b00000000";
    /// IGMP(type=0x11, mrcode=10, gaddr="225.1.2.3")
    const S_V2_GROUP: &str = "46c0002000000000010237130a000001e101020394040000110a0bf1e1010203";
    /// IGMPv3mq(qrv=2, qqic=125), mrcode=100
    const S_V3_GENERAL: &str =
        "46c000240000000001023a120a000001e0000001940400001164ec1e00000000027d0000";
    /// IGMPv3mq(qrv=7, qqic=0xff), mrcode=0x9c
    const S_V3_FLOAT: &str =
        "46c000240000000001023a120a000001e000000194040000119ce6640000000007ff0000";
    /// IGMPv3mq(gaddr="232.1.2.3", s=1, qrv=2, qqic=125, srcaddrs=[192.0.2.1, 192.0.2.2])
    const S_V3_GROUP_SOURCE: &str =
        "46c0002c00000000010230070a000001e801020394040000110a766de80102030a7d0002c0000201c0000202";
    /// Three IGMPv3gr: rtype 4 of 225.1.2.3; 1 of 232.1.2.3 with 192.0.2.1 and .2; 6 of
    /// 232.1.2.4 with 192.0.2.3.
    const S_V3_REPORT: &str = "46c0004400000000010239d40a00000ae0000016940400002200d5e10000000304000000e101020301000002e8010203c0000201c000020206000001e8010204c0000203";
    /// Raw: rtype 4 of 225.1.2.3 with 192.0.2.1 and a word of auxiliary data; rtype 9 of
    /// 225.1.2.4; rtype 3 of 225.1.2.5.
    const S_V3_AUXILIARY: &str = "46c0004000000000010239d80a00000ae0000016940400002200c5490000000304010001e1010203c0000201deadbeef09000000e101020403000000e1010205";
    /// Raw: says two records, holds one.
    const S_V3_LYING_RECORDS: &str =
        "46c0002800000000010239f00a00000ae0000016940400002200f6f80000000204000000e1010203";
    /// Raw: says three sources, holds one.
    const S_V3_LYING_SOURCES: &str =
        "46c0002c00000000010239ec0a00000ae000001694040000220037f50000000101000003e1010203c0000201";

    /// All that are heard.
    pub const GOOD: &[&str] = &[
        K_V1_REPORT,
        K_V2_REPORT,
        K_V2_LEAVE,
        K_V3_JOIN,
        K_V3_SOURCE_JOIN,
        K_V3_SOURCE_LEAVE,
        K_V3_LEAVE,
        F_GENERAL,
        F_GROUP,
        F_GROUP_SOURCE,
        S_V1_QUERY,
        S_V1_REPORT,
        S_V2_GENERAL,
        S_V2_GROUP,
        S_V3_GENERAL,
        S_V3_FLOAT,
        S_V3_GROUP_SOURCE,
        S_V3_REPORT,
        S_V3_AUXILIARY,
    ];

    fn query_v3(g: Option<&str>, tenths: u64, sources: &[&str]) -> Query {
        Query {
            group: g.map(group),
            max_response: Duration::from_millis(tenths * 100),
            suppress: false,
            robustness: 2,
            interval: Some(Duration::from_secs(125)),
            sources: sources.iter().map(|s| s.parse().unwrap()).collect(),
            generation: Generation::Three,
        }
    }

    #[test]
    fn what_linux_hosts_say() {
        use crate::wire::group_message::RecordType::*;
        let report = |generation| Message::Report {
            generation,
            group: group("225.1.2.3"),
        };
        let leave = Message::Leave {
            group: group("225.1.2.3"),
        };
        let any = "225.1.2.3";
        let one = |kind, g, sources| Message::Records(vec![record(kind, g, sources)]);
        for (hex, to, message) in [
            (K_V1_REPORT, any, report(Generation::One)),
            (K_V2_REPORT, any, report(Generation::Two)),
            (K_V2_LEAVE, "224.0.0.2", leave),
            (K_V3_JOIN, "224.0.0.22", one(ChangeToExclude, any, &[])),
            (
                K_V3_SOURCE_JOIN,
                "224.0.0.22",
                Message::Records(vec![
                    record(AllowNewSources, "232.1.2.3", &["192.0.2.1"]),
                    record(ChangeToExclude, any, &[]),
                ]),
            ),
            (
                K_V3_SOURCE_LEAVE,
                "224.0.0.22",
                one(BlockOldSources, "232.1.2.3", &["192.0.2.1"]),
            ),
            (K_V3_LEAVE, "224.0.0.22", one(ChangeToInclude, any, &[])),
        ] {
            let got = heard(hex);
            assert_eq!(got.message, message);
            assert_eq!(got.source.to_string(), "10.9.0.10");
            assert_eq!(got.destination.to_string(), to);
            // Ours is the same to the last byte.
            assert_eq!(rebuilt(hex), bytes(hex));
        }
    }

    #[test]
    fn what_pimd_asks() {
        let general = Query {
            suppress: true,
            ..query_v3(None, 20, &[])
        };
        for (hex, query) in [
            (F_GENERAL, general),
            (F_GROUP, query_v3(Some("225.1.2.3"), 10, &[])),
            (
                F_GROUP_SOURCE,
                query_v3(Some("232.1.2.3"), 10, &["192.0.2.1"]),
            ),
        ] {
            assert_eq!(heard(hex).message, Message::Query(query));
            // Its packets bear an identification.
            assert_eq!(rebuilt(hex)[12..], bytes(hex)[12..]);
        }
    }

    #[test]
    fn queries_of_every_version() {
        let old = |generation, g: Option<&str>, seconds: u64| Query {
            generation,
            suppress: false,
            robustness: 0,
            interval: None,
            ..query_v3(g, seconds * 10, &[])
        };
        let float = Query {
            // 0x9c: exponent 1, mantissa 12.
            max_response: Duration::from_millis(44_800),
            robustness: 7,
            interval: Some(Duration::from_secs(31_744)),
            ..query_v3(None, 0, &[])
        };
        let sources = Query {
            suppress: true,
            ..query_v3(Some("232.1.2.3"), 10, &["192.0.2.1", "192.0.2.2"])
        };
        for (hex, query) in [
            (S_V1_QUERY, old(Generation::One, None, 10)),
            (S_V2_GENERAL, old(Generation::Two, None, 10)),
            (S_V2_GROUP, old(Generation::Two, Some("225.1.2.3"), 1)),
            (S_V3_GENERAL, query_v3(None, 100, &[])),
            (S_V3_FLOAT, float),
            (S_V3_GROUP_SOURCE, sources),
        ] {
            assert_eq!(heard(hex).message, Message::Query(query), "{hex}");
            let header = usize::from(bytes(hex)[0] & 0xf) * 4;
            assert_eq!(rebuilt(hex)[24..], bytes(hex)[header..], "{hex}");
        }
    }

    #[test]
    fn reports_of_many_records() {
        use crate::wire::group_message::RecordType::*;
        let several = vec![
            record(ChangeToExclude, "225.1.2.3", &[]),
            record(ModeIsInclude, "232.1.2.3", &["192.0.2.1", "192.0.2.2"]),
            record(BlockOldSources, "232.1.2.4", &["192.0.2.3"]),
        ];
        assert_eq!(heard(S_V3_REPORT).message, Message::Records(several));
        assert_eq!(rebuilt(S_V3_REPORT)[24..], bytes(S_V3_REPORT)[24..]);
        let around = vec![
            record(ChangeToExclude, "225.1.2.3", &["192.0.2.1"]),
            record(ChangeToInclude, "225.1.2.5", &[]),
        ];
        assert_eq!(heard(S_V3_AUXILIARY).message, Message::Records(around));
        for lying in [S_V3_LYING_RECORDS, S_V3_LYING_SOURCES] {
            assert_eq!(refused(&bytes(lying)), Refusal::LyingCount);
        }
    }

    #[test]
    fn lengths_tell_versions() {
        // RFC 9776 section 7.1.
        let of_len = |len: usize, code: u8| {
            let mut message = vec![0; len];
            message[..2].copy_from_slice(&[QUERY, code]);
            parse(&message)
        };
        let generation = |len, code| match of_len(len, code) {
            Ok(Message::Query(query)) => Ok(query.generation),
            Ok(other) => panic!("{other:?}"),
            Err(refusal) => Err(refusal),
        };
        assert_eq!(generation(7, 0), Err(Refusal::Truncated));
        assert_eq!(generation(8, 0), Ok(Generation::One));
        assert_eq!(generation(8, 1), Ok(Generation::Two));
        for len in 9..12 {
            assert_eq!(generation(len, 1), Err(Refusal::QueryLength));
        }
        assert_eq!(generation(12, 0), Ok(Generation::Three));
        assert_eq!(generation(40, 0), Ok(Generation::Three));
    }

    #[test]
    fn reports_may_be_longer_than_they_need() {
        // RFC 2236 section 2.5, RFC 9776 section 4.2.
        for hex in [K_V2_REPORT, K_V2_LEAVE, K_V3_SOURCE_JOIN] {
            let message = &bytes(hex)[24..];
            let longer = [message, &[0xff; 9]].concat();
            assert_eq!(parse(&longer), parse(message));
        }
    }

    #[test]
    fn groups_and_sources_must_be_such() {
        let report = |g: [u8; 4]| parse(&[&[V2_REPORT, 0, 0, 0], &g[..]].concat());
        assert_eq!(report([0, 0, 0, 0]), Err(Refusal::NotAGroup));
        assert_eq!(report([10, 0, 0, 1]), Err(Refusal::NotAGroup));
        let of = |g: [u8; 4], list: &[[u8; 4]]| {
            let head = [QUERY, 10, 0, 0, g[0], g[1], g[2], g[3], 2, 125, 0];
            parse(&[&head, &[list.len() as u8][..], &list.concat()].concat())
        };
        let good = [192, 0, 2, 1];
        let bad = [225, 1, 1, 1];
        assert_eq!(of([10, 0, 0, 1], &[]), Err(Refusal::NotAGroup));
        assert_eq!(of([0; 4], &[good]), Err(Refusal::NotASource));
        assert_eq!(of([232, 1, 1, 1], &[bad]), Err(Refusal::NotASource));
        let query = query_v3(Some("232.1.1.1"), 10, &["192.0.2.1"]);
        let mixed = [bad, [127, 0, 0, 1], good, [0; 4], [255; 4]];
        assert_eq!(of([232, 1, 1, 1], &mixed), Ok(Message::Query(query)));
        // A query of version 1 speaks of no group, whatever stands there.
        let Ok(Message::Query(v1)) = parse(&[QUERY, 0, 0, 0, 225, 1, 2, 3]) else {
            panic!("no query");
        };
        assert_eq!((v1.generation, v1.group), (Generation::One, None));
    }

    #[test]
    fn other_types_are_left_alone() {
        for kind in [0x00, 0x13, 0x14, 0x1f, 0x30, 0xff] {
            assert_eq!(parse(&[kind; 16]), Err(Refusal::UnknownType));
        }
    }
}
