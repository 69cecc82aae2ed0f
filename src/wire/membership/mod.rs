//! Whole IP packets and what they say about memberships, whichever the IP version.

use std::net::IpAddr;

use super::envelope::{self, Checks};
use super::group_message::{Generation, Message, Query};
use super::records::{self, Family};
use super::{Refusal, igmp, mld};
use crate::model::{Group, Source};

/// Largest packet that is written, whatever the MTU.
const LARGEST: usize = 65_535;

/// A message as it was heard on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Who says it. Unspecified where an IPv4 host or snooping switch has no address yet: such
    /// a report counts, such a query is not one of the elected querier.
    pub source: IpAddr,
    /// To whom. A message to a unicast address is legal (RFC 9776 sections 4.1 and 4.2),
    /// but others did not hear it: see [`Heard::is_for_all`].
    pub destination: IpAddr,
    /// What is said.
    pub message: Message,
}

impl Heard {
    /// True where it was sent to a multicast address. Otherwise a query takes no part in the
    /// election, and a report suppresses that of nobody else.
    pub fn is_for_all(&self) -> bool {
        self.destination.is_multicast()
    }
}

/// Why a message cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// Groups or sources are not of the IP version of the sender.
    #[error("the message mixes IP versions")]
    MixedFamily,
    /// The version has no words for it: MLD of IGMPv1, sources or groups before they existed.
    #[error("the protocol version has no such message")]
    NoSuchVersion,
    /// Sources of no group.
    #[error("the query asks for sources of no group")]
    NoGroup,
    /// Not even one source fits into a packet.
    #[error("an MTU of {0} bytes is too small")]
    SmallMtu(usize),
}

/// Reads the IP packet at the start of `bytes`: IPv4 with IGMP, or IPv6 with MLD. What follows
/// the packet is link-layer padding. Messages of [`super::mrdisc`] are refused as of unknown
/// type.
pub fn parse(bytes: &[u8], checks: &Checks<'_>) -> Result<Heard, Refusal> {
    let opened = envelope::open(bytes, checks)?;
    let message = match opened.source {
        IpAddr::V4(_) => igmp::parse(opened.message)?,
        IpAddr::V6(_) => mld::parse(opened.message)?,
    };
    Ok(Heard {
        source: opened.source,
        destination: opened.destination,
        message,
    })
}

/// Writes a message as IP packets of at most `mtu` bytes, from `source`: one, unless sources or
/// records need more. Each is complete, with TTL or hop limit 1, Router Alert option, checksums
/// and the destination the message has by its RFC.
///
/// Values without a code are told as the next lower one that has a code. A record that excludes
/// more sources than fit leaves some out (RFC 9776 section 4.2); all others are split.
pub fn build(message: &Message, source: IpAddr, mtu: usize) -> Result<Vec<Vec<u8>>, BuildError> {
    let family = Family::of(source);
    let header = match family {
        Family::V4 => envelope::IPV4_LEN,
        Family::V6 => envelope::IPV6_LEN,
    };
    check(message, family)?;
    let room = mtu.min(LARGEST).saturating_sub(header);
    if room < least(message, family) {
        return Err(BuildError::SmallMtu(mtu));
    }
    let (destination, messages) = match message {
        Message::Query(query) => (
            query.group.map_or(all_hosts(family), Group::addr),
            queries(query, family, room),
        ),
        Message::Report {
            generation,
            group: g,
        } => (
            g.addr(),
            vec![match (family, generation) {
                (Family::V4, Generation::One) => igmp::write_short(igmp::V1_REPORT, *g),
                (Family::V4, _) => igmp::write_short(igmp::V2_REPORT, *g),
                (Family::V6, _) => mld::write_short(mld::V1_REPORT, *g),
            }],
        ),
        Message::Leave { group: g } => match family {
            Family::V4 => (
                igmp::ALL_ROUTERS.into(),
                vec![igmp::write_short(igmp::LEAVE, *g)],
            ),
            Family::V6 => (
                mld::ALL_ROUTERS.into(),
                vec![mld::write_short(mld::DONE, *g)],
            ),
        },
        Message::Records(records) => {
            let (to, kind) = match family {
                Family::V4 => (igmp::V3_ROUTERS.into(), igmp::V3_REPORT),
                Family::V6 => (mld::V2_ROUTERS.into(), mld::V2_REPORT),
            };
            (to, igmp::write_records(kind, records, family, room))
        }
    };
    messages
        .iter()
        .map(|message| match (source, destination) {
            (IpAddr::V4(s), IpAddr::V4(d)) => Ok(envelope::seal_v4(s, d, message)),
            (IpAddr::V6(s), IpAddr::V6(d)) => Ok(envelope::seal_v6(s, d, message)),
            _ => Err(BuildError::MixedFamily),
        })
        .collect()
}

fn all_hosts(family: Family) -> IpAddr {
    match family {
        Family::V4 => igmp::ALL_SYSTEMS.into(),
        Family::V6 => mld::ALL_NODES.into(),
    }
}

/// Whether the message can be said at all.
fn check(message: &Message, family: Family) -> Result<(), BuildError> {
    let ours = |addr: IpAddr| Family::of(addr) == family;
    let no_such = match message {
        Message::Query(q) => {
            let sources = !q.sources.is_empty();
            if sources && q.group.is_none() {
                return Err(BuildError::NoGroup);
            }
            sources && q.generation < Generation::Three
                || q.generation == Generation::One && (q.group.is_some() || family == Family::V6)
        }
        Message::Report { generation, .. } => match generation {
            Generation::One => family == Family::V6,
            Generation::Two => false,
            Generation::Three => true,
        },
        Message::Leave { .. } | Message::Records(_) => false,
    };
    if no_such {
        return Err(BuildError::NoSuchVersion);
    }
    let one_family = match message {
        Message::Query(q) => {
            q.group.is_none_or(|g| ours(g.addr())) && q.sources.iter().all(|s| ours(s.addr()))
        }
        Message::Report { group, .. } | Message::Leave { group } => ours(group.addr()),
        Message::Records(records) => records
            .iter()
            .all(|r| ours(r.group.addr()) && r.sources.iter().all(|s| ours(s.addr()))),
    };
    if one_family {
        Ok(())
    } else {
        Err(BuildError::MixedFamily)
    }
}

/// Bytes a message needs at least, with one source where it can have some.
fn least(message: &Message, family: Family) -> usize {
    match (message, family) {
        (Message::Query(_), Family::V4) => igmp::V3_QUERY_LEN + 4,
        (Message::Query(_), Family::V6) => mld::V2_QUERY_LEN + 16,
        (Message::Records(_), _) => 8 + records::record_len(family, 1),
        (_, Family::V4) => 8,
        (_, Family::V6) => 24,
    }
}

/// One query, or as many as its sources need.
fn queries(query: &Query, family: Family, room: usize) -> Vec<Vec<u8>> {
    let write = |count| match family {
        Family::V4 => igmp::write_query(query, count),
        Family::V6 => mld::write_query(query, count),
    };
    let len = match family {
        Family::V4 => igmp::V3_QUERY_LEN,
        Family::V6 => mld::V2_QUERY_LEN,
    };
    if query.sources.is_empty() {
        return vec![write(0)];
    }
    let most = (room.saturating_sub(len) / family.addr_len()).max(1);
    let one = |sources: &[Source]| {
        let mut message = write(sources.len() as u16);
        sources
            .iter()
            .for_each(|s| records::push(&mut message, s.addr()));
        message
    };
    query.sources.chunks(most).map(one).collect()
}

#[cfg(test)]
pub(super) mod tests;
