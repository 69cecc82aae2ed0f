//! IGMP and MLD messages as one set of types.
//!
//! MLDv1 equals IGMPv2, and MLDv2 equals IGMPv3, except for the addresses. So one set of types
//! serves both protocols.

use std::fmt;
use std::time::Duration;

use crate::model::{Group, Source};

/// A protocol generation: an IGMP version and the MLD version with the same capabilities.
///
/// Later generations compare as greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Generation {
    /// IGMPv1 (RFC 1112): no leave messages, a fixed response time. MLD has no such version.
    One,
    /// IGMPv2 (RFC 2236) and MLDv1 (RFC 2710).
    Two,
    /// IGMPv3 (RFC 9776) and MLDv2 (RFC 9777): source filters.
    Three,
}

/// The type of a group record (RFC 9776 section 4.2.13, RFC 9777 section 5.2.12).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RecordType {
    /// The filter mode is INCLUDE.
    ModeIsInclude = 1,
    /// The filter mode is EXCLUDE.
    ModeIsExclude = 2,
    /// The filter mode has changed to INCLUDE. Without sources, the host leaves the group.
    ChangeToInclude = 3,
    /// The filter mode has changed to EXCLUDE. Without sources, the host joins for any source.
    ChangeToExclude = 4,
    /// The host additionally requests these sources.
    AllowNewSources = 5,
    /// The host no longer requests these sources.
    BlockOldSources = 6,
}

/// A group record of a version 3 report (RFC 9776 section 4.2). RFC 9777 section 5.2 calls
/// it a multicast address record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupRecord {
    /// The record type: how to apply the sources.
    pub kind: RecordType,
    /// The multicast address.
    pub group: Group,
    /// The source addresses in the order of the record. Addresses that cannot be a source (such as
    /// multicast and loopback) are omitted.
    pub sources: Vec<Source>,
}

/// A query of any version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// The version, determined by the message length and the Max Resp Code
    /// (RFC 9776 section 7.1, RFC 9777 section 8.1).
    pub generation: Generation,
    /// The queried group; `None` in a general query.
    pub group: Option<Group>,
    /// Max Resp Time: the longest delay before a host answers. Always 10 s in IGMPv1.
    pub max_response_time: Duration,
    /// S flag: receiving routers suppress their timer updates (RFC 9776 section 4.1.5).
    pub suppress: bool,
    /// QRV: the querier's robustness variable, 0 to 7; 0 if the query carries none.
    pub robustness: u8,
    /// QQI: the querier's query interval; `None` if the query carries none, as before version 3.
    pub interval: Option<Duration>,
    /// The queried sources; empty in general and group-specific queries.
    pub sources: Vec<Source>,
}

/// An IGMP or MLD message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MembershipMessage {
    /// A membership query.
    Query(Query),
    /// A report of IGMPv1, IGMPv2 or MLDv1: the host is a member of the group.
    Report {
        /// The version of the report.
        generation: Generation,
        /// The multicast address.
        group: Group,
    },
    /// A Leave Group message of IGMPv2 or a Done message of MLDv1.
    Leave {
        /// The multicast address.
        group: Group,
    },
    /// A report of IGMPv3 or MLDv2: the group records of the host.
    Records(Vec<GroupRecord>),
}

impl MembershipMessage {
    /// Iterates over the groups that the message names.
    pub fn groups(&self) -> impl Iterator<Item = Group> {
        let (one, records): (Option<Group>, &[GroupRecord]) = match self {
            Self::Query(query) => (query.group, &[]),
            Self::Report { group, .. } | Self::Leave { group } => (Some(*group), &[]),
            Self::Records(records) => (None, records),
        };
        one.into_iter()
            .chain(records.iter().map(|record| record.group))
    }
}

impl fmt::Display for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ModeIsInclude => "MODE_IS_INCLUDE",
            Self::ModeIsExclude => "MODE_IS_EXCLUDE",
            Self::ChangeToInclude => "CHANGE_TO_INCLUDE",
            Self::ChangeToExclude => "CHANGE_TO_EXCLUDE",
            Self::AllowNewSources => "ALLOW_NEW_SOURCES",
            Self::BlockOldSources => "BLOCK_OLD_SOURCES",
        })
    }
}
