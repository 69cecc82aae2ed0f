//! Parsing and building of complete IGMP and MLD packets, including their IP headers.

use std::net::IpAddr;

use super::link_control::{self, HeaderPolicy};
use super::membership_message::{Generation, MembershipMessage, Query};
use super::records::{self, AddressFamily};
use super::{RejectReason, igmp, mld};
use crate::model::{Group, Source};

/// The largest packet that [`build`] returns, regardless of the MTU.
const MAX_PACKET_LEN: usize = 65_535;

/// A received IGMP or MLD message with the addresses of its packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MembershipPacket {
    /// Source address. It is unspecified if an IPv4 host or snooping switch has no address yet. A
    /// report from such a source is valid; a query from such a source takes no part in the querier
    /// election.
    pub source: IpAddr,
    /// Destination address. A unicast destination is valid (RFC 9776 sections 4.1 and 4.2), but
    /// then no other host received the message: see [`MembershipPacket::is_multicast`].
    pub destination: IpAddr,
    /// The message.
    pub message: MembershipMessage,
}

impl MembershipPacket {
    /// Returns true if the destination is a multicast address.
    ///
    /// A unicast query takes no part in the querier election. A unicast report suppresses no report
    /// of another host.
    pub fn is_multicast(&self) -> bool {
        self.destination.is_multicast()
    }
}

/// Why a message cannot be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// A group or source has another IP version than the sender.
    #[error("the message mixes IP versions")]
    MixedFamily,
    /// The protocol version has no such message: MLD has no counterpart of IGMPv1, and older
    /// versions have no queries with groups or sources.
    #[error("the protocol version has no such message")]
    NoSuchVersion,
    /// A query lists sources without a group.
    #[error("the query lists sources but no group")]
    NoGroup,
    /// The MTU does not even fit a message with one source.
    #[error("an MTU of {0} bytes is too small")]
    SmallMtu(usize),
}

/// Parses the IP packet at the start of `bytes`: IPv4 with IGMP, or IPv6 with MLD. Ignores
/// link-layer padding after the packet.
///
/// # Errors
/// The first check that fails. Messages of [`super::mrdisc`] fail with
/// [`RejectReason::UnknownType`].
pub fn parse(bytes: &[u8], policy: &HeaderPolicy<'_>) -> Result<MembershipPacket, RejectReason> {
    let payload = link_control::decapsulate(bytes, policy)?;
    let message = match payload.source {
        IpAddr::V4(_) => igmp::parse(payload.message)?,
        IpAddr::V6(_) => mld::parse(payload.message)?,
    };
    Ok(MembershipPacket {
        source: payload.source,
        destination: payload.destination,
        message,
    })
}

/// Builds the IP packets of a message from `source`, each of at most `mtu` bytes.
///
/// The result is one packet, or several if the sources or records exceed the MTU. Each packet is
/// complete: TTL or hop limit 1, Router Alert option, checksums, and the destination that the RFC
/// of the message requires.
///
/// Times that the wire format cannot represent are rounded down. EXCLUDE records with more sources
/// than fit into a packet are shortened (RFC 9776 section 4.2); all other records are split.
///
/// # Errors
/// See [`BuildError`].
pub fn build(
    message: &MembershipMessage,
    source: IpAddr,
    mtu: usize,
) -> Result<Vec<Vec<u8>>, BuildError> {
    let family = AddressFamily::of(source);
    let headers_len = match family {
        AddressFamily::V4 => link_control::IPV4_HEADERS_LEN,
        AddressFamily::V6 => link_control::IPV6_HEADERS_LEN,
    };
    validate(message, family)?;
    let max_len = mtu.min(MAX_PACKET_LEN).saturating_sub(headers_len);
    if max_len < min_len(message, family) {
        return Err(BuildError::SmallMtu(mtu));
    }
    let (destination, messages) = match message {
        MembershipMessage::Query(query) => (
            query.group.map_or(all_nodes(family), Group::addr),
            write_queries(query, family, max_len),
        ),
        MembershipMessage::Report {
            generation,
            group: g,
        } => (
            g.addr(),
            vec![match (family, generation) {
                (AddressFamily::V4, Generation::One) => igmp::write_v1_v2(igmp::V1_REPORT, *g),
                (AddressFamily::V4, _) => igmp::write_v1_v2(igmp::V2_REPORT, *g),
                (AddressFamily::V6, _) => mld::write_v1(mld::V1_REPORT, *g),
            }],
        ),
        MembershipMessage::Leave { group: g } => match family {
            AddressFamily::V4 => (
                igmp::ALL_ROUTERS.into(),
                vec![igmp::write_v1_v2(igmp::LEAVE, *g)],
            ),
            AddressFamily::V6 => (mld::ALL_ROUTERS.into(), vec![mld::write_v1(mld::DONE, *g)]),
        },
        MembershipMessage::Records(records) => {
            let (destination, kind) = match family {
                AddressFamily::V4 => (igmp::V3_ROUTERS.into(), igmp::V3_REPORT),
                AddressFamily::V6 => (mld::V2_ROUTERS.into(), mld::V2_REPORT),
            };
            (
                destination,
                igmp::write_reports(kind, records, family, max_len),
            )
        }
    };
    messages
        .iter()
        .map(|message| match (source, destination) {
            (IpAddr::V4(s), IpAddr::V4(d)) => Ok(link_control::encapsulate_v4(s, d, message)),
            (IpAddr::V6(s), IpAddr::V6(d)) => Ok(link_control::encapsulate_v6(s, d, message)),
            _ => Err(BuildError::MixedFamily),
        })
        .collect()
}

fn all_nodes(family: AddressFamily) -> IpAddr {
    match family {
        AddressFamily::V4 => igmp::ALL_SYSTEMS.into(),
        AddressFamily::V6 => mld::ALL_NODES.into(),
    }
}

/// Checks that `message` exists in its protocol version and uses one IP version.
fn validate(message: &MembershipMessage, family: AddressFamily) -> Result<(), BuildError> {
    let has_family = |addr: IpAddr| AddressFamily::of(addr) == family;
    let is_missing = match message {
        MembershipMessage::Query(q) => {
            let has_sources = !q.sources.is_empty();
            if has_sources && q.group.is_none() {
                return Err(BuildError::NoGroup);
            }
            has_sources && q.generation < Generation::Three
                || q.generation == Generation::One
                    && (q.group.is_some() || family == AddressFamily::V6)
        }
        MembershipMessage::Report { generation, .. } => match generation {
            Generation::One => family == AddressFamily::V6,
            Generation::Two => false,
            Generation::Three => true,
        },
        MembershipMessage::Leave { .. } | MembershipMessage::Records(_) => false,
    };
    if is_missing {
        return Err(BuildError::NoSuchVersion);
    }
    let is_one_family = match message {
        MembershipMessage::Query(q) => {
            q.group.is_none_or(|g| has_family(g.addr()))
                && q.sources.iter().all(|s| has_family(s.addr()))
        }
        MembershipMessage::Report { group, .. } | MembershipMessage::Leave { group } => {
            has_family(group.addr())
        }
        MembershipMessage::Records(records) => records
            .iter()
            .all(|r| has_family(r.group.addr()) && r.sources.iter().all(|s| has_family(s.addr()))),
    };
    if is_one_family {
        Ok(())
    } else {
        Err(BuildError::MixedFamily)
    }
}

/// Returns the least length of a message, with one source if the message may have sources.
fn min_len(message: &MembershipMessage, family: AddressFamily) -> usize {
    match (message, family) {
        (MembershipMessage::Query(_), AddressFamily::V4) => igmp::V3_QUERY_LEN + 4,
        (MembershipMessage::Query(_), AddressFamily::V6) => mld::V2_QUERY_LEN + 16,
        (MembershipMessage::Records(_), _) => 8 + records::record_len(family, 1),
        (_, AddressFamily::V4) => 8,
        (_, AddressFamily::V6) => 24,
    }
}

/// Writes a query, or as many queries as its sources need.
fn write_queries(query: &Query, family: AddressFamily, max_len: usize) -> Vec<Vec<u8>> {
    let write_fixed = |count| match family {
        AddressFamily::V4 => igmp::write_query(query, count),
        AddressFamily::V6 => mld::write_query(query, count),
    };
    let fixed_len = match family {
        AddressFamily::V4 => igmp::V3_QUERY_LEN,
        AddressFamily::V6 => mld::V2_QUERY_LEN,
    };
    if query.sources.is_empty() {
        return vec![write_fixed(0)];
    }
    let max_sources = (max_len.saturating_sub(fixed_len) / family.addr_len()).max(1);
    let write = |sources: &[Source]| {
        let mut message = write_fixed(sources.len() as u16);
        sources
            .iter()
            .for_each(|s| records::push_addr(&mut message, s.addr()));
        message
    };
    query.sources.chunks(max_sources).map(write).collect()
}

#[cfg(test)]
pub(super) mod tests;
