//! MLD messages: version 1 (RFC 2710) and 2 (RFC 9777), without their IP packets.

use std::net::Ipv6Addr;
use std::time::Duration;

use super::RejectReason;
use super::floating_point;
use super::igmp;
use super::membership_message::{Generation, MembershipMessage, Query};
use super::records::{self, AddressFamily, FieldReader};
use crate::model::Group;

/// ICMPv6 type of a Multicast Listener Query of either version.
pub const QUERY: u8 = 130;
/// ICMPv6 type of a Multicast Listener Report of version 1.
pub const V1_REPORT: u8 = 131;
/// ICMPv6 type of a Multicast Listener Done of version 1.
pub const DONE: u8 = 132;
/// ICMPv6 type of a Multicast Listener Report of version 2.
pub const V2_REPORT: u8 = 143;

/// Destination of general queries: all nodes of the link.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Destination of Done messages of version 1: all routers of the link.
pub const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// Destination of reports of version 2: all MLDv2-capable routers of the link.
pub const V2_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);

/// Length of the messages of version 1 in bytes.
const V1_LEN: usize = 24;
/// Length of a report of version 2 without records.
const REPORT_LEN: usize = 8;
/// Length of a query of version 2 without sources.
pub(super) const V2_QUERY_LEN: usize = 28;

/// Returns true for the ICMPv6 types of MLD.
pub fn is_type(kind: u8) -> bool {
    matches!(kind, QUERY | V1_REPORT | DONE | V2_REPORT)
}

/// Parses an ICMPv6 message with a verified checksum.
///
/// Trailing bytes are valid, except after queries, whose length determines their version
/// (RFC 9777 sections 5.2 and 8.1).
pub fn parse(message: &[u8]) -> Result<MembershipMessage, RejectReason> {
    let kind = *message.first().ok_or(RejectReason::Truncated)?;
    if !is_type(kind) {
        return Err(RejectReason::UnknownType);
    }
    let family = AddressFamily::V6;
    if kind == V2_REPORT {
        let (fixed, rest) = message
            .split_first_chunk::<REPORT_LEN>()
            .ok_or(RejectReason::Truncated)?;
        let count = u16::from_be_bytes([fixed[6], fixed[7]]);
        return Ok(MembershipMessage::Records(
            FieldReader { rest, family }.records(count)?,
        ));
    }
    let (fixed, rest) = message
        .split_first_chunk::<V1_LEN>()
        .ok_or(RejectReason::Truncated)?;
    let group = &fixed[8..];
    match kind {
        V1_REPORT => Ok(MembershipMessage::Report {
            generation: Generation::Two,
            group: records::reported_group(group)?,
        }),
        DONE => Ok(MembershipMessage::Leave {
            group: records::reported_group(group)?,
        }),
        _ => query(
            u16::from_be_bytes([fixed[4], fixed[5]]),
            records::queried_group(group)?,
            rest,
        )
        .map(MembershipMessage::Query),
    }
}

fn query(code: u16, group: Option<Group>, rest: &[u8]) -> Result<Query, RejectReason> {
    let from_millis = |n: u32| Duration::from_millis(n.into());
    let Some(([flags, interval, high, low], sources)) = rest.split_first_chunk::<4>() else {
        if !rest.is_empty() {
            return Err(RejectReason::QueryLength);
        }
        return Ok(Query {
            generation: Generation::Two,
            group,
            max_response_time: from_millis(code.into()),
            ..igmp::v3_query(0, 0)
        });
    };
    let mut fields = FieldReader {
        rest: sources,
        family: AddressFamily::V6,
    };
    let count = u16::from_be_bytes([*high, *low]);
    Ok(Query {
        group,
        max_response_time: from_millis(floating_point::decode_16(code)),
        sources: records::queried_sources(&mut fields, count, group)?,
        ..igmp::v3_query(*flags, *interval)
    })
}

/// Writes a query without its sources. The caller appends `count` source addresses. The checksum
/// field is zero.
pub(super) fn write_query(query: &Query, count: u16) -> Vec<u8> {
    let millis = u32::try_from(query.max_response_time.as_millis()).unwrap_or(u32::MAX);
    let is_v2 = query.generation == Generation::Three;
    let code = if is_v2 {
        floating_point::encode_16(millis)
    } else {
        millis.min(u16::MAX.into()) as u16
    };
    let mut message = fixed_part(QUERY, code, query.group);
    if is_v2 {
        message.extend(igmp::flags_and_qqic(query));
        message.extend(count.to_be_bytes());
    }
    message
}

/// Writes a report or Done of version 1. The checksum field is zero.
pub(super) fn write_v1(kind: u8, group: Group) -> Vec<u8> {
    fixed_part(kind, 0, Some(group))
}

/// Writes type, code, checksum, Maximum Response Delay, reserved field and multicast address.
fn fixed_part(kind: u8, code: u16, group: Option<Group>) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(code.to_be_bytes());
    message.extend([0, 0]);
    let unspecified = Ipv6Addr::UNSPECIFIED.into();
    records::push_addr(&mut message, group.map_or(unspecified, Group::addr));
    message
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::wire::membership::tests::{bytes, group, parsed, rebuilt, record, rejected};

    // From the Linux 6.18 kernel, captured with tcpdump on the far end of a veth while a socket
    // joined and left.
    /// IPV6_JOIN_GROUP of ff3e::8000:1 with `force_mld_version` 1.
    const K_V1_REPORT: &str = "6000000000200001fe8000000000000058427efffedabc39ff3e00000000000000000000800000013a000502000001008300ed5400000000ff3e0000000000000000000080000001";
    /// IPV6_LEAVE_GROUP after it.
    const K_V1_DONE: &str = "6000000000200001fe8000000000000058427efffedabc39ff0200000000000000000000000000023a0005020000010084006c9000000000ff3e0000000000000000000080000001";
    /// IPV6_JOIN_GROUP of ff3e::8000:1 in version 2.
    const K_V2_JOIN: &str = "6000000000240001fe8000000000000058427efffedabc39ff0200000000000000000000000000163a000502000001008f005d770000000104000000ff3e0000000000000000000080000001";
    /// MCAST_JOIN_SOURCE_GROUP of (2001:db8::1, ff3e::8000:2).
    const K_V2_SOURCE_JOIN: &str = "6000000000340001fe8000000000000058427efffedabc39ff0200000000000000000000000000163a000502000001008f002eab0000000105000001ff3e000000000000000000008000000220010db8000000000000000000000001";
    /// IPV6_LEAVE_GROUP of ff3e::8000:1.
    const K_V2_LEAVE: &str = "6000000000240001fe8000000000000058427efffedabc39ff0200000000000000000000000000163a000502000001008f005e770000000103000000ff3e0000000000000000000080000001";

    // Built by scapy 2.5: IPv6(hlim=1) / IPv6ExtHdrHopByHop(options=[RouterAlert(), PadN(b"")]) /
    // ...
    /// ICMPv6MLQuery(mrd=10000)
    const S_V1_GENERAL: &str = "6000000000200001fe800000000000000000000000000001ff0200000000000000000000000000013a00050200000100820059172710000000000000000000000000000000000000";
    /// ICMPv6MLQuery2(mrd=10000, QRV=2, QQIC=125)
    const S_V2_GENERAL: &str = "6000000000240001fe800000000000000000000000000001ff0200000000000000000000000000013a00050200000100820056962710000000000000000000000000000000000000027d0000";
    /// ICMPv6MLQuery2(mrd=0x8765, S=1, QRV=2, QQIC=0x8f, mladdr="ff3e::8000:1",
    /// sources=["2001:db8::1", "2001:db8::2"])
    const S_V2_GROUP_SOURCE: &str = "6000000000440001fe800000000000000000000000000001ff3e00000000000000000000800000013a000502000001008200931a87650000ff3e00000000000000000000800000010a8f000220010db800000000000000000000000120010db8000000000000000000000002";
    /// Three ICMPv6MLDMultAddrRec: rtype 4 of ff3e::8000:1; 5 of ff3e::8000:2 with 2001:db8::1;
    /// 3 of ff3e::8000:3 with a word of auxiliary data.
    const S_V2_REPORT: &str = "6000000000600001fe800000000000000000000000000010ff0200000000000000000000000000163a000502000001008f00f6780000000304000000ff3e000000000000000000008000000105000001ff3e000000000000000000008000000220010db800000000000000000000000103010000ff3e000000000000000000008000000361626364";
    /// The default output of scapy. It counts auxiliary data in bytes, so the record announces four
    /// words instead of one.
    const S_V2_BAD_AUX_LEN: &str = "6000000000600001fe800000000000000000000000000010ff0200000000000000000000000000163a000502000001008f00f6750000000304000000ff3e000000000000000000008000000105000001ff3e000000000000000000008000000220010db800000000000000000000000103040000ff3e000000000000000000008000000361626364";

    /// The valid packets.
    pub const VALID: &[&str] = &[
        K_V1_REPORT,
        K_V1_DONE,
        K_V2_JOIN,
        K_V2_SOURCE_JOIN,
        K_V2_LEAVE,
        S_V1_GENERAL,
        S_V2_GENERAL,
        S_V2_GROUP_SOURCE,
        S_V2_REPORT,
    ];

    #[test]
    fn linux_host_messages_are_parsed() {
        use crate::wire::membership_message::RecordType::*;
        let one = |kind, g, sources| MembershipMessage::Records(vec![record(kind, g, sources)]);
        let any = "ff3e::8000:1";
        let (generation, g) = (Generation::Two, group(any));
        for (hex, to, message) in [
            (
                K_V1_REPORT,
                any,
                MembershipMessage::Report {
                    generation,
                    group: g,
                },
            ),
            (K_V1_DONE, "ff02::2", MembershipMessage::Leave { group: g }),
            (K_V2_JOIN, "ff02::16", one(ChangeToExclude, any, &[])),
            (
                K_V2_SOURCE_JOIN,
                "ff02::16",
                one(AllowNewSources, "ff3e::8000:2", &["2001:db8::1"]),
            ),
            (K_V2_LEAVE, "ff02::16", one(ChangeToInclude, any, &[])),
        ] {
            let got = parsed(hex);
            assert_eq!(got.message, message);
            assert_eq!(got.source.to_string(), "fe80::5842:7eff:feda:bc39");
            assert_eq!(got.destination.to_string(), to);
            // The builder produces the same bytes.
            assert_eq!(rebuilt(hex), bytes(hex));
        }
    }

    #[test]
    fn queries_of_both_versions_round_trip() {
        let general = Query {
            generation: Generation::Two,
            group: None,
            max_response_time: Duration::from_secs(10),
            suppress: false,
            robustness: 0,
            interval: None,
            sources: vec![],
        };
        let v2 = Query {
            generation: Generation::Three,
            robustness: 2,
            interval: Some(Duration::from_secs(125)),
            ..general.clone()
        };
        let sources = Query {
            group: Some(group("ff3e::8000:1")),
            max_response_time: Duration::from_millis(0x1765 << 3),
            suppress: true,
            // (15 + 16) << 3
            interval: Some(Duration::from_secs(248)),
            sources: ["2001:db8::1", "2001:db8::2"]
                .map(|s| s.parse().unwrap())
                .into(),
            ..v2.clone()
        };
        for (hex, query) in [
            (S_V1_GENERAL, general),
            (S_V2_GENERAL, v2),
            (S_V2_GROUP_SOURCE, sources),
        ] {
            assert_eq!(
                parsed(hex).message,
                MembershipMessage::Query(query),
                "{hex}"
            );
            assert_eq!(rebuilt(hex), bytes(hex), "{hex}");
        }
    }

    #[test]
    fn auxiliary_data_length_counts_32_bit_words() {
        use crate::wire::membership_message::RecordType::*;
        let records = vec![
            record(ChangeToExclude, "ff3e::8000:1", &[]),
            record(AllowNewSources, "ff3e::8000:2", &["2001:db8::1"]),
            record(ChangeToInclude, "ff3e::8000:3", &[]),
        ];
        assert_eq!(
            parsed(S_V2_REPORT).message,
            MembershipMessage::Records(records)
        );
        assert_eq!(
            rejected(&bytes(S_V2_BAD_AUX_LEN)),
            RejectReason::CountMismatch
        );
    }

    #[test]
    fn query_length_determines_version() {
        // RFC 9777 section 8.1.
        let query_of = |len: usize| {
            let mut message = vec![0; len];
            message[0] = QUERY;
            parse(&message)
        };
        let generation = |len| match query_of(len) {
            Ok(MembershipMessage::Query(query)) => Ok(query.generation),
            Ok(other) => panic!("{other:?}"),
            Err(reason) => Err(reason),
        };
        assert_eq!(generation(23), Err(RejectReason::Truncated));
        assert_eq!(generation(24), Ok(Generation::Two));
        for len in 25..28 {
            assert_eq!(generation(len), Err(RejectReason::QueryLength));
        }
        assert_eq!(generation(28), Ok(Generation::Three));
        assert_eq!(generation(100), Ok(Generation::Three));
    }
}
