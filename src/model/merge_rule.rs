//! The merge of two paths of one stream, as an operator configures it.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::IfPattern;

/// One of the two paths of a merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MergePath {
    /// The packets that arrive on `from` of the route.
    First,
    /// The packets that arrive on `with` of the merge.
    Second,
}

impl MergePath {
    /// Both paths.
    pub const ALL: [Self; 2] = [Self::First, Self::Second];

    /// Returns 0 for the first path and 1 for the second.
    pub fn index(self) -> usize {
        self as usize
    }

    /// Returns the other path.
    pub fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }
}

/// What identifies a packet on both paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MergeBy {
    /// The sequence number of RTP (RFC 3550).
    Rtp,
    /// The sequence number of the test packets of `mcastor send`.
    Sequence,
    /// A number in the UDP payload that grows by one with each packet.
    Field {
        /// Offset in the UDP payload.
        offset: u16,
        /// Length in bytes, 2 to 8. The first byte is the most significant one.
        bytes: u8,
    },
    /// All bytes of the payload.
    Payload,
}

impl fmt::Display for MergeBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rtp => f.pad("rtp"),
            Self::Sequence => f.pad("sequence"),
            Self::Field { offset, bytes } => write!(f, "{bytes} bytes at offset {offset}"),
            Self::Payload => f.pad("payload"),
        }
    }
}

/// The merge of a route, for the packets of one of its two paths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MergeRule {
    /// The path of these packets.
    pub path: MergePath,
    /// The interface on which the packets of the other path arrive.
    pub with: IfPattern,
    /// The longest time by which one path may be behind the other.
    pub window: Duration,
    /// What identifies a packet.
    pub by: MergeBy,
}

impl MergeRule {
    /// Returns whether both rules belong to merges with the same properties.
    pub fn is_same_merge(&self, other: &Self) -> bool {
        (self.window, self.by) == (other.window, other.by)
    }
}
