//! MLD: version 1 (RFC 2710) and 2 (RFC 9777). Only the messages themselves; their packets
//! are in [`super::envelope`].

use std::net::Ipv6Addr;
use std::time::Duration;

use super::Refusal;
use super::float_code;
use super::group_message::{Generation, Message, Query};
use super::igmp;
use super::records::{self, Family, Fields};
use crate::model::Group;

/// ICMPv6 type of a query of either version.
pub const QUERY: u8 = 130;
/// ICMPv6 type of a report of version 1.
pub const V1_REPORT: u8 = 131;
/// ICMPv6 type of a done of version 1: the leave.
pub const DONE: u8 = 132;
/// ICMPv6 type of a report of version 2.
pub const V2_REPORT: u8 = 143;

/// Where general queries go: every node of the link.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Where dones of version 1 go.
pub const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// Where reports of version 2 go.
pub const V2_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);

/// Bytes of the messages of version 1.
const SHORT_LEN: usize = 24;
/// Bytes of a report of version 2 without records.
const REPORT_LEN: usize = 8;
/// Bytes of a query of version 2 without sources.
pub(super) const V2_QUERY_LEN: usize = 28;

/// Whether an ICMPv6 message of this type is one of MLD.
pub fn is_type(kind: u8) -> bool {
    matches!(kind, QUERY | V1_REPORT | DONE | V2_REPORT)
}

/// Reads a message whose checksum is right. Bytes behind a message are legal, except behind
/// queries, whose length tells their version (RFC 9777 sections 5.2 and 8.1).
pub fn parse(message: &[u8]) -> Result<Message, Refusal> {
    let kind = *message.first().ok_or(Refusal::Truncated)?;
    if !is_type(kind) {
        return Err(Refusal::UnknownType);
    }
    let family = Family::V6;
    if kind == V2_REPORT {
        let (fixed, rest) = message
            .split_first_chunk::<REPORT_LEN>()
            .ok_or(Refusal::Truncated)?;
        let count = u16::from_be_bytes([fixed[6], fixed[7]]);
        return Ok(Message::Records(Fields { rest, family }.records(count)?));
    }
    let (fixed, rest) = message
        .split_first_chunk::<SHORT_LEN>()
        .ok_or(Refusal::Truncated)?;
    let group = &fixed[8..];
    match kind {
        V1_REPORT => Ok(Message::Report {
            generation: Generation::Two,
            group: records::reported_group(group)?,
        }),
        DONE => Ok(Message::Leave {
            group: records::reported_group(group)?,
        }),
        _ => query(
            u16::from_be_bytes([fixed[4], fixed[5]]),
            records::queried_group(group)?,
            rest,
        )
        .map(Message::Query),
    }
}

fn query(code: u16, group: Option<Group>, rest: &[u8]) -> Result<Query, Refusal> {
    let millis = |n: u32| Duration::from_millis(n.into());
    let Some(([flags, interval, high, low], sources)) = rest.split_first_chunk::<4>() else {
        if !rest.is_empty() {
            return Err(Refusal::QueryLength);
        }
        return Ok(Query {
            generation: Generation::Two,
            group,
            max_response: millis(code.into()),
            ..igmp::flagged(0, 0)
        });
    };
    let mut fields = Fields {
        rest: sources,
        family: Family::V6,
    };
    let count = u16::from_be_bytes([*high, *low]);
    Ok(Query {
        group,
        max_response: millis(float_code::value_16(code)),
        sources: records::queried_sources(&mut fields, count, group)?,
        ..igmp::flagged(*flags, *interval)
    })
}

/// Writes a query, but for its sources: as many as `count` must follow. The checksum is zero.
pub(super) fn write_query(query: &Query, count: u16) -> Vec<u8> {
    let millis = u32::try_from(query.max_response.as_millis()).unwrap_or(u32::MAX);
    let new = query.generation == Generation::Three;
    let code = if new {
        float_code::code_16(millis)
    } else {
        millis.min(u16::MAX.into()) as u16
    };
    let mut message = short(QUERY, code, query.group);
    if new {
        message.extend(igmp::flags(query));
        message.extend(count.to_be_bytes());
    }
    message
}

/// Writes a report of version 1 or a done. The checksum is zero.
pub(super) fn write_short(kind: u8, group: Group) -> Vec<u8> {
    short(kind, 0, Some(group))
}

fn short(kind: u8, code: u16, group: Option<Group>) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(code.to_be_bytes());
    message.extend([0, 0]);
    let any = Ipv6Addr::UNSPECIFIED.into();
    records::push(&mut message, group.map_or(any, Group::addr));
    message
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::wire::membership::tests::{bytes, group, heard, rebuilt, record, refused};

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

    // By scapy 2.5: IPv6(hlim=1) / IPv6ExtHdrHopByHop(options=[RouterAlert(), PadN(b"")]) / ...
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
    /// The same as scapy writes it when left alone: it counts auxiliary data in bytes, and so
    /// speaks of four words.
    const S_V2_LYING: &str = "6000000000600001fe800000000000000000000000000010ff0200000000000000000000000000163a000502000001008f00f6750000000304000000ff3e000000000000000000008000000105000001ff3e000000000000000000008000000220010db800000000000000000000000103040000ff3e000000000000000000008000000361626364";

    /// All that are heard.
    pub const GOOD: &[&str] = &[
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
    fn what_linux_hosts_say() {
        use crate::wire::group_message::RecordType::*;
        let one = |kind, g, sources| Message::Records(vec![record(kind, g, sources)]);
        let any = "ff3e::8000:1";
        let (generation, g) = (Generation::Two, group(any));
        for (hex, to, message) in [
            (
                K_V1_REPORT,
                any,
                Message::Report {
                    generation,
                    group: g,
                },
            ),
            (K_V1_DONE, "ff02::2", Message::Leave { group: g }),
            (K_V2_JOIN, "ff02::16", one(ChangeToExclude, any, &[])),
            (
                K_V2_SOURCE_JOIN,
                "ff02::16",
                one(AllowNewSources, "ff3e::8000:2", &["2001:db8::1"]),
            ),
            (K_V2_LEAVE, "ff02::16", one(ChangeToInclude, any, &[])),
        ] {
            let got = heard(hex);
            assert_eq!(got.message, message);
            assert_eq!(got.source.to_string(), "fe80::5842:7eff:feda:bc39");
            assert_eq!(got.destination.to_string(), to);
            // Ours is the same to the last byte.
            assert_eq!(rebuilt(hex), bytes(hex));
        }
    }

    #[test]
    fn queries_of_both_versions() {
        let general = Query {
            generation: Generation::Two,
            group: None,
            max_response: Duration::from_secs(10),
            suppress: false,
            robustness: 0,
            interval: None,
            sources: vec![],
        };
        let newer = Query {
            generation: Generation::Three,
            robustness: 2,
            interval: Some(Duration::from_secs(125)),
            ..general.clone()
        };
        let sources = Query {
            group: Some(group("ff3e::8000:1")),
            max_response: Duration::from_millis(0x1765 << 3),
            suppress: true,
            // (15 + 16) << 3
            interval: Some(Duration::from_secs(248)),
            sources: ["2001:db8::1", "2001:db8::2"]
                .map(|s| s.parse().unwrap())
                .into(),
            ..newer.clone()
        };
        for (hex, query) in [
            (S_V1_GENERAL, general),
            (S_V2_GENERAL, newer),
            (S_V2_GROUP_SOURCE, sources),
        ] {
            assert_eq!(heard(hex).message, Message::Query(query), "{hex}");
            assert_eq!(rebuilt(hex), bytes(hex), "{hex}");
        }
    }

    #[test]
    fn auxiliary_data_is_passed_over_in_words() {
        use crate::wire::group_message::RecordType::*;
        let records = vec![
            record(ChangeToExclude, "ff3e::8000:1", &[]),
            record(AllowNewSources, "ff3e::8000:2", &["2001:db8::1"]),
            record(ChangeToInclude, "ff3e::8000:3", &[]),
        ];
        assert_eq!(heard(S_V2_REPORT).message, Message::Records(records));
        assert_eq!(refused(&bytes(S_V2_LYING)), Refusal::LyingCount);
    }

    #[test]
    fn lengths_tell_versions() {
        // RFC 9777 section 8.1.
        let of_len = |len: usize| {
            let mut message = vec![0; len];
            message[0] = QUERY;
            parse(&message)
        };
        let generation = |len| match of_len(len) {
            Ok(Message::Query(query)) => Ok(query.generation),
            Ok(other) => panic!("{other:?}"),
            Err(refusal) => Err(refusal),
        };
        assert_eq!(generation(23), Err(Refusal::Truncated));
        assert_eq!(generation(24), Ok(Generation::Two));
        for len in 25..28 {
            assert_eq!(generation(len), Err(Refusal::QueryLength));
        }
        assert_eq!(generation(28), Ok(Generation::Three));
        assert_eq!(generation(100), Ok(Generation::Three));
    }
}
