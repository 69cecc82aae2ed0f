//! Packets that are not forwarded.

use super::DropReason;
use crate::wire::WireError;

/// Why a packet is not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotData {
    /// An IGMP or MLD message, which no router forwards.
    Membership,
    /// The packet is dropped.
    Dropped(DropReason),
}

impl From<DropReason> for NotData {
    fn from(reason: DropReason) -> Self {
        Self::Dropped(reason)
    }
}

impl From<WireError> for NotData {
    fn from(e: WireError) -> Self {
        Self::Dropped(e.into())
    }
}
