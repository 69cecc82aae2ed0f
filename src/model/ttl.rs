//! What happens to the TTL (IPv4) or hop limit (IPv6) of a forwarded packet.

use std::fmt;

use serde::{Serialize, Serializer};

/// What a route does to the TTL of the packets it forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TtlPolicy {
    /// One less on the way out; a packet that arrives with 1 or 0 is dropped
    /// (RFC 1812 section 5.3.1).
    #[default]
    Decrement,
    /// As it came. TTL no longer ends a loop: the loop guard has to.
    Keep,
    /// This value, 1 to 255. TTL no longer ends a loop: the loop guard has to.
    Set(u8),
}

impl TtlPolicy {
    /// True where a packet that goes round comes back with a TTL that lets it go round again.
    pub fn can_feed_a_loop(self) -> bool {
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

/// An egress forwards only packets that arrived with a TTL above this, 1 to 255.
///
/// Absent and 1 differ: [`TtlPolicy::Decrement`] drops TTL 1 anyway, while under `Keep` and
/// `Set` only a threshold somebody wrote applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct TtlThreshold(u8);

impl TtlThreshold {
    /// `None` for zero.
    pub fn new(ttl: u8) -> Option<Self> {
        (ttl > 0).then_some(Self(ttl))
    }

    /// The value.
    pub fn get(self) -> u8 {
        self.0
    }

    /// Whether a packet that arrived with `ttl` passes.
    pub fn passes(self, ttl: u8) -> bool {
        ttl > self.0
    }
}
