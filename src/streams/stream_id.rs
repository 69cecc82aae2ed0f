//! The identity of a monitored stream.

use std::num::NonZeroU64;

/// The identity of a monitored stream. It is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(NonZeroU64);

impl StreamId {
    /// Returns the identity with a number; `None` for 0.
    pub(super) fn new(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }
}
