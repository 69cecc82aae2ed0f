//! Policies and thresholds for the TTL (IPv4) or hop limit (IPv6) of forwarded packets.

use std::fmt;

use serde::{Serialize, Serializer};

/// How a route sets the TTL of the packets that it forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TtlPolicy {
    /// Decrements the TTL. A packet that arrives with 1 or 0 is dropped (RFC 1812 section 5.3.1).
    #[default]
    Decrement,
    /// Keeps the TTL. The TTL does not end loops then; the loop guard does.
    Keep,
    /// Sets the TTL to this value, 1 to 255. The TTL does not end loops then; the loop guard does.
    Set(u8),
}

impl TtlPolicy {
    /// Returns whether packets can circulate in a loop forever, because their TTL does not reach 0.
    pub fn allows_endless_loop(self) -> bool {
        !matches!(self, Self::Decrement)
    }
}

impl fmt::Display for TtlPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Decrement => f.write_str("decrement"),
            Self::Keep => f.write_str("keep"),
            Self::Set(ttl) => write!(f, "set {ttl}"),
        }
    }
}

impl Serialize for TtlPolicy {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// The TTL threshold of an egress, 1 to 255: packets leave only if they arrived with a higher TTL.
///
/// A threshold of 1 differs from no threshold under [`TtlPolicy::Keep`] and [`TtlPolicy::Set`]:
/// with [`TtlPolicy::Decrement`] packets with TTL 1 are dropped in both cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct TtlThreshold(u8);

impl TtlThreshold {
    /// The lowest threshold.
    pub const MIN: Self = Self(1);

    /// Returns the threshold; `None` for zero.
    pub fn new(ttl: u8) -> Option<Self> {
        (ttl > 0).then_some(Self(ttl))
    }

    /// Returns the value.
    pub fn get(self) -> u8 {
        self.0
    }

    /// Returns whether a packet that arrived with `ttl` may leave.
    pub fn passes(self, ttl: u8) -> bool {
        ttl > self.0
    }
}
