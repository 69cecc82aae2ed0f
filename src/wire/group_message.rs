//! What IGMP and MLD messages say, in one vocabulary: MLDv1 is IGMPv2 and MLDv2 is IGMPv3 with
//! other addresses.

use std::fmt;
use std::time::Duration;

use crate::model::{Group, Source};

/// How far the protocol had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Generation {
    /// IGMPv1 (RFC 1112): no leave, a fixed response time. MLD has none.
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
    /// The filter mode has changed to INCLUDE. With no sources, the leave of version 3.
    ChangeToInclude = 3,
    /// The filter mode has changed to EXCLUDE. With no sources, the plain join of version 3.
    ChangeToExclude = 4,
    /// These sources are wanted in addition.
    AllowNewSources = 5,
    /// These sources are no longer wanted.
    BlockOldSources = 6,
}

/// One group record of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What the sources mean.
    pub kind: RecordType,
    /// The group.
    pub group: Group,
    /// The sources, as listed. Addresses that can be no source are left out.
    pub sources: Vec<Source>,
}

/// A query of any version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Of which version it is, by its length and maximum response code
    /// (RFC 9776 section 7.1, RFC 9777 section 8.1).
    pub generation: Generation,
    /// The group asked for; none in a general query.
    pub group: Option<Group>,
    /// How long hosts may wait with the answer. 10 s in IGMPv1.
    pub max_response: Duration,
    /// The S flag: routers that hear it leave their timers alone.
    pub suppress: bool,
    /// The querier's robustness variable, 0 to 7; 0 where it has none to tell.
    pub robustness: u8,
    /// The querier's query interval; none before version 3.
    pub interval: Option<Duration>,
    /// The sources asked for; none in general and group-specific queries.
    pub sources: Vec<Source>,
}

/// A message about memberships.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A querier asks.
    Query(Query),
    /// A host of an older version is a member.
    Report {
        /// Of which version.
        generation: Generation,
        /// The group.
        group: Group,
    },
    /// A host of IGMPv2 or MLDv1 leaves.
    Leave {
        /// The group.
        group: Group,
    },
    /// A host of IGMPv3 or MLDv2 tells its filters.
    Records(Vec<Record>),
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
