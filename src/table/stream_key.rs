//! The key of a stream in a domain.

use std::num::NonZeroU64;

/// Identifies a stream in an [`IngressDomain`](super::IngressDomain).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamKey(NonZeroU64);

impl StreamKey {
    /// Returns the key with this hash of domain and stream.
    pub(super) fn from_hash(hash: u64) -> Self {
        Self(NonZeroU64::new(hash).unwrap_or(NonZeroU64::MIN))
    }

    /// Returns the number of the key.
    pub(super) fn get(self) -> u64 {
        self.0.get()
    }
}
