//! IGMP messages: version 1 (RFC 1112), 2 (RFC 2236) and 3 (RFC 9776), without their IP packets.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::RejectReason;
use super::floating_point;
use super::membership_message::{Generation, GroupRecord, MembershipMessage, Query};
use super::records::{self, AddressFamily, FieldReader};
use crate::model::Group;

/// Type of a Membership Query of any version.
pub const QUERY: u8 = 0x11;
/// Type of a Membership Report of version 1.
pub const V1_REPORT: u8 = 0x12;
/// Type of a Membership Report of version 2.
pub const V2_REPORT: u8 = 0x16;
/// Type of a Leave Group message of version 2.
pub const LEAVE: u8 = 0x17;
/// Type of a Membership Report of version 3.
pub const V3_REPORT: u8 = 0x22;

/// Destination of general queries: all systems of the link.
pub const ALL_SYSTEMS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);
/// Destination of Leave Group messages: all routers of the link.
pub const ALL_ROUTERS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 2);
/// Destination of reports of version 3: all IGMPv3-capable routers of the link.
pub const V3_ROUTERS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 22);

/// Length in bytes of the messages of versions 1 and 2, and of a report of version 3 without
/// records.
const FIXED_LEN: usize = 8;
/// Length of a query of version 3 without sources.
pub(super) const V3_QUERY_LEN: usize = 12;
/// The fixed response time of version 1, whose queries have no Max Resp Code (RFC 1112 appendix I).
const V1_MAX_RESPONSE: Duration = Duration::from_secs(10);

/// Returns true for the messages of version 1, which have no Router Alert option.
pub(super) fn is_version_1(message: &[u8]) -> bool {
    match message {
        [V1_REPORT, ..] => true,
        [QUERY, 0, ..] => message.len() == FIXED_LEN,
        _ => false,
    }
}

/// Parses an IGMP message with a verified checksum.
///
/// Trailing bytes are valid, except after queries, whose length determines their version
/// (RFC 9776 sections 4.2 and 7.1).
pub fn parse(message: &[u8]) -> Result<MembershipMessage, RejectReason> {
    let kind = *message.first().ok_or(RejectReason::Truncated)?;
    if !matches!(kind, QUERY | V1_REPORT | V2_REPORT | LEAVE | V3_REPORT) {
        return Err(RejectReason::UnknownType);
    }
    let (fixed, rest) = message
        .split_first_chunk::<FIXED_LEN>()
        .ok_or(RejectReason::Truncated)?;
    let [_, code, _, _, group @ ..] = fixed;
    let report = |generation| {
        let group = records::reported_group(group)?;
        Ok(MembershipMessage::Report { generation, group })
    };
    match kind {
        V1_REPORT => report(Generation::One),
        V2_REPORT => report(Generation::Two),
        LEAVE => Ok(MembershipMessage::Leave {
            group: records::reported_group(group)?,
        }),
        V3_REPORT => {
            let family = AddressFamily::V4;
            let count = u16::from_be_bytes([group[2], group[3]]);
            let records = FieldReader { rest, family }.records(count)?;
            Ok(MembershipMessage::Records(records))
        }
        _ => query(*code, group, rest).map(MembershipMessage::Query),
    }
}

fn query(code: u8, group: &[u8; 4], rest: &[u8]) -> Result<Query, RejectReason> {
    let from_tenths = |n: u32| Duration::from_millis(u64::from(n) * 100);
    let before_v3 = |generation, group, max_response_time| Query {
        generation,
        group,
        max_response_time,
        suppress: false,
        robustness: 0,
        interval: None,
        sources: Vec::new(),
    };
    let Some(([flags, interval, high, low], sources)) = rest.split_first_chunk::<4>() else {
        return match (rest, code) {
            // Version 1 ignores the group address of a query (RFC 1112 appendix I).
            ([], 0) => Ok(before_v3(Generation::One, None, V1_MAX_RESPONSE)),
            ([], code) => {
                let group = records::queried_group(group)?;
                Ok(before_v3(Generation::Two, group, from_tenths(code.into())))
            }
            _ => Err(RejectReason::QueryLength),
        };
    };
    let group = records::queried_group(group)?;
    let mut fields = FieldReader {
        rest: sources,
        family: AddressFamily::V4,
    };
    let count = u16::from_be_bytes([*high, *low]);
    Ok(Query {
        group,
        max_response_time: from_tenths(floating_point::decode_8(code)),
        sources: records::queried_sources(&mut fields, count, group)?,
        ..v3_query(*flags, *interval)
    })
}

/// Returns a general query of IGMPv3 or MLDv2 with the fields that `flags` (S flag and QRV) and
/// `qqic` encode.
pub(super) fn v3_query(flags: u8, qqic: u8) -> Query {
    let interval = Duration::from_secs(floating_point::decode_8(qqic).into());
    Query {
        generation: Generation::Three,
        group: None,
        max_response_time: Duration::ZERO,
        suppress: flags & 8 != 0,
        robustness: flags & 7,
        // A QQIC of zero carries no interval (RFC 9776 section 4.1.7).
        interval: (!interval.is_zero()).then_some(interval),
        sources: Vec::new(),
    }
}

/// Encodes the two bytes that [`v3_query`] decodes: S flag and QRV, then QQIC. A robustness above 7
/// is encoded as 0 (RFC 9776 section 4.1.6).
pub(super) fn flags_and_qqic(query: &Query) -> [u8; 2] {
    let robustness = if query.robustness > 7 {
        0
    } else {
        query.robustness
    };
    let interval = query.interval.unwrap_or_default().as_secs();
    let interval = u32::try_from(interval).unwrap_or(u32::MAX);
    [
        u8::from(query.suppress) << 3 | robustness,
        floating_point::encode_8(interval),
    ]
}

/// Writes a query without its sources. The caller appends `count` source addresses. The checksum
/// field is zero.
pub(super) fn write_query(query: &Query, count: u16) -> Vec<u8> {
    let tenths = u32::try_from(query.max_response_time.as_millis() / 100).unwrap_or(u32::MAX);
    let code = match query.generation {
        Generation::One => 0,
        // A Max Resp Code of zero would make it a query of version 1.
        Generation::Two => tenths.clamp(1, u8::MAX.into()) as u8,
        Generation::Three => floating_point::encode_8(tenths),
    };
    let mut message = fixed_part(QUERY, code, query.group);
    if query.generation == Generation::Three {
        message.extend(flags_and_qqic(query));
        message.extend(count.to_be_bytes());
    }
    message
}

/// Writes a report of version 1 or 2, or a Leave Group message. The checksum field is zero.
pub(super) fn write_v1_v2(kind: u8, group: Group) -> Vec<u8> {
    fixed_part(kind, 0, Some(group))
}

/// Writes type, Max Resp Code, checksum and group address.
fn fixed_part(kind: u8, code: u8, group: Option<Group>) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    let unspecified = Ipv4Addr::UNSPECIFIED.into();
    records::push_addr(&mut message, group.map_or(unspecified, Group::addr));
    message
}

/// Writes reports of IGMPv3 or MLDv2 of at most `max_len` bytes each. The checksum fields are zero.
pub(super) fn write_reports(
    kind: u8,
    records: &[GroupRecord],
    family: AddressFamily,
    max_len: usize,
) -> Vec<Vec<u8>> {
    records::write_bodies(records, family, max_len.saturating_sub(FIXED_LEN))
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
    use crate::wire::membership::tests::{bytes, group, parsed, rebuilt, record, rejected};

    // From the Linux 6.18 kernel, captured with tcpdump on the far end of a veth while a socket
    // on 10.9.0.10 joined and left.
    /// IP_ADD_MEMBERSHIP of 225.1.2.3 with `force_igmp_version` 1.
    const K_V1_REPORT: &str = "46c00020000040000102f7000a09000ae10102039404000012000afbe1010203";
    /// IP_ADD_MEMBERSHIP of 225.1.2.3 with `force_igmp_version` 2.
    const K_V2_REPORT: &str = "46c00020000040000102f7000a09000ae101020394040000160006fbe1010203";
    /// IP_DROP_MEMBERSHIP after it.
    const K_V2_LEAVE: &str = "46c00020000040000102fa020a09000ae000000294040000170005fbe1010203";
    /// IP_ADD_MEMBERSHIP of 225.1.2.3 in version 3.
    const K_V3_JOIN: &str =
        "46c00028000040000102f9e60a09000ae0000016940400002200f6f90000000104000000e1010203";
    /// MCAST_JOIN_SOURCE_GROUP of (192.0.2.1, 232.1.2.3) while the host repeats the former report.
    const K_V3_SOURCE_JOIN: &str = "46c00034000040000102f9da0a09000ae000001694040000220045f10000000205000001e8010203c000020104000000e1010203";
    /// MCAST_LEAVE_SOURCE_GROUP of (192.0.2.1, 232.1.2.3).
    const K_V3_SOURCE_LEAVE: &str =
        "46c0002c000040000102f9e20a09000ae00000169404000022002bf70000000106000001e8010203c0000201";
    /// IP_DROP_MEMBERSHIP of 225.1.2.3.
    const K_V3_LEAVE: &str =
        "46c00028000040000102f9e60a09000ae0000016940400002200f7f90000000103000000e1010203";

    // From FRR's pimd 8.4 on 10.9.0.1, with a query interval of 10 s.
    /// The first general query of pimd.
    const F_GENERAL: &str =
        "46c00024440740000102b6010a090001e0000001940400001114e46e000000000a7d0000";
    /// A query after a leave of 225.1.2.3.
    const F_GROUP: &str =
        "46c000248e9c4000010268690a090001e101020394040000110a0974e1010203027d0000";
    /// A query after a leave of (192.0.2.1, 232.1.2.3).
    const F_GROUP_SOURCE: &str =
        "46c00028254840000102cab90a090001e801020394040000110a4071e8010203027d0001c0000201";

    // Built by scapy 2.5: IP(ttl=1, tos=0xc0, options=[IPOption_Router_Alert()]) / IGMP() or
    // IGMPv3(); version 1 without tos and options.
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
    /// Raw: announces two records, contains one.
    const S_V3_BAD_RECORD_COUNT: &str =
        "46c0002800000000010239f00a00000ae0000016940400002200f6f80000000204000000e1010203";
    /// Raw: announces three sources, contains one.
    const S_V3_BAD_SOURCE_COUNT: &str =
        "46c0002c00000000010239ec0a00000ae000001694040000220037f50000000101000003e1010203c0000201";

    /// The valid packets.
    pub const VALID: &[&str] = &[
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
            max_response_time: Duration::from_millis(tenths * 100),
            suppress: false,
            robustness: 2,
            interval: Some(Duration::from_secs(125)),
            sources: sources.iter().map(|s| s.parse().unwrap()).collect(),
            generation: Generation::Three,
        }
    }

    #[test]
    fn linux_host_messages_are_parsed() {
        use crate::wire::membership_message::RecordType::*;
        let report = |generation| MembershipMessage::Report {
            generation,
            group: group("225.1.2.3"),
        };
        let leave = MembershipMessage::Leave {
            group: group("225.1.2.3"),
        };
        let any = "225.1.2.3";
        let one = |kind, g, sources| MembershipMessage::Records(vec![record(kind, g, sources)]);
        for (hex, to, message) in [
            (K_V1_REPORT, any, report(Generation::One)),
            (K_V2_REPORT, any, report(Generation::Two)),
            (K_V2_LEAVE, "224.0.0.2", leave),
            (K_V3_JOIN, "224.0.0.22", one(ChangeToExclude, any, &[])),
            (
                K_V3_SOURCE_JOIN,
                "224.0.0.22",
                MembershipMessage::Records(vec![
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
            let got = parsed(hex);
            assert_eq!(got.message, message);
            assert_eq!(got.source.to_string(), "10.9.0.10");
            assert_eq!(got.destination.to_string(), to);
            // The builder produces the same bytes.
            assert_eq!(rebuilt(hex), bytes(hex));
        }
    }

    #[test]
    fn pimd_queries_are_parsed() {
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
            assert_eq!(parsed(hex).message, MembershipMessage::Query(query));
            // pimd sets the IPv4 identification; the builder does not.
            assert_eq!(rebuilt(hex)[12..], bytes(hex)[12..]);
        }
    }

    #[test]
    fn queries_of_every_version_round_trip() {
        let before_v3 = |generation, g: Option<&str>, seconds: u64| Query {
            generation,
            suppress: false,
            robustness: 0,
            interval: None,
            ..query_v3(g, seconds * 10, &[])
        };
        let float = Query {
            // 0x9c: exponent 1, mantissa 12.
            max_response_time: Duration::from_millis(44_800),
            robustness: 7,
            interval: Some(Duration::from_secs(31_744)),
            ..query_v3(None, 0, &[])
        };
        let sources = Query {
            suppress: true,
            ..query_v3(Some("232.1.2.3"), 10, &["192.0.2.1", "192.0.2.2"])
        };
        for (hex, query) in [
            (S_V1_QUERY, before_v3(Generation::One, None, 10)),
            (S_V2_GENERAL, before_v3(Generation::Two, None, 10)),
            (S_V2_GROUP, before_v3(Generation::Two, Some("225.1.2.3"), 1)),
            (S_V3_GENERAL, query_v3(None, 100, &[])),
            (S_V3_FLOAT, float),
            (S_V3_GROUP_SOURCE, sources),
        ] {
            assert_eq!(
                parsed(hex).message,
                MembershipMessage::Query(query),
                "{hex}"
            );
            let header = usize::from(bytes(hex)[0] & 0xf) * 4;
            assert_eq!(rebuilt(hex)[24..], bytes(hex)[header..], "{hex}");
        }
    }

    #[test]
    fn reports_with_several_records_are_parsed() {
        use crate::wire::membership_message::RecordType::*;
        let several = vec![
            record(ChangeToExclude, "225.1.2.3", &[]),
            record(ModeIsInclude, "232.1.2.3", &["192.0.2.1", "192.0.2.2"]),
            record(BlockOldSources, "232.1.2.4", &["192.0.2.3"]),
        ];
        assert_eq!(
            parsed(S_V3_REPORT).message,
            MembershipMessage::Records(several)
        );
        assert_eq!(rebuilt(S_V3_REPORT)[24..], bytes(S_V3_REPORT)[24..]);
        let known_records = vec![
            record(ChangeToExclude, "225.1.2.3", &["192.0.2.1"]),
            record(ChangeToInclude, "225.1.2.5", &[]),
        ];
        assert_eq!(
            parsed(S_V3_AUXILIARY).message,
            MembershipMessage::Records(known_records)
        );
        for hex in [S_V3_BAD_RECORD_COUNT, S_V3_BAD_SOURCE_COUNT] {
            assert_eq!(rejected(&bytes(hex)), RejectReason::CountMismatch);
        }
    }

    #[test]
    fn query_length_determines_version() {
        // RFC 9776 section 7.1.
        let query_of = |len: usize, code: u8| {
            let mut message = vec![0; len];
            message[..2].copy_from_slice(&[QUERY, code]);
            parse(&message)
        };
        let generation = |len, code| match query_of(len, code) {
            Ok(MembershipMessage::Query(query)) => Ok(query.generation),
            Ok(other) => panic!("{other:?}"),
            Err(reason) => Err(reason),
        };
        assert_eq!(generation(7, 0), Err(RejectReason::Truncated));
        assert_eq!(generation(8, 0), Ok(Generation::One));
        assert_eq!(generation(8, 1), Ok(Generation::Two));
        for len in 9..12 {
            assert_eq!(generation(len, 1), Err(RejectReason::QueryLength));
        }
        assert_eq!(generation(12, 0), Ok(Generation::Three));
        assert_eq!(generation(40, 0), Ok(Generation::Three));
    }

    #[test]
    fn trailing_bytes_of_reports_are_ignored() {
        // RFC 2236 section 2.5, RFC 9776 section 4.2.
        for hex in [K_V2_REPORT, K_V2_LEAVE, K_V3_SOURCE_JOIN] {
            let message = &bytes(hex)[24..];
            let longer = [message, &[0xff; 9]].concat();
            assert_eq!(parse(&longer), parse(message));
        }
    }

    #[test]
    fn invalid_groups_and_sources_are_rejected() {
        let report = |g: [u8; 4]| parse(&[&[V2_REPORT, 0, 0, 0], &g[..]].concat());
        assert_eq!(report([0, 0, 0, 0]), Err(RejectReason::NotAGroup));
        assert_eq!(report([10, 0, 0, 1]), Err(RejectReason::NotAGroup));
        let query = |g: [u8; 4], list: &[[u8; 4]]| {
            let head = [QUERY, 10, 0, 0, g[0], g[1], g[2], g[3], 2, 125, 0];
            parse(&[&head, &[list.len() as u8][..], &list.concat()].concat())
        };
        let valid = [192, 0, 2, 1];
        let invalid = [225, 1, 1, 1];
        assert_eq!(query([10, 0, 0, 1], &[]), Err(RejectReason::NotAGroup));
        assert_eq!(query([0; 4], &[valid]), Err(RejectReason::NotASource));
        assert_eq!(
            query([232, 1, 1, 1], &[invalid]),
            Err(RejectReason::NotASource)
        );
        let expected = query_v3(Some("232.1.1.1"), 10, &["192.0.2.1"]);
        let mixed = [invalid, [127, 0, 0, 1], valid, [0; 4], [255; 4]];
        assert_eq!(
            query([232, 1, 1, 1], &mixed),
            Ok(MembershipMessage::Query(expected))
        );
        // Version 1 ignores the group address of a query.
        let Ok(MembershipMessage::Query(v1)) = parse(&[QUERY, 0, 0, 0, 225, 1, 2, 3]) else {
            panic!("no query");
        };
        assert_eq!((v1.generation, v1.group), (Generation::One, None));
    }

    #[test]
    fn unknown_types_are_rejected() {
        for kind in [0x00, 0x13, 0x14, 0x1f, 0x30, 0xff] {
            assert_eq!(parse(&[kind; 16]), Err(RejectReason::UnknownType));
        }
    }
}
