//! The counters of the switch for one batch.

use crate::forward::DropReason;
use crate::model::TranslationKind;
use crate::table::EgressId;

/// The number of packets of a batch with each outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwitchCounts {
    /// IP packets received. A GSO packet counts as its segments.
    pub packets: u64,
    /// Bytes of these packets, counted from the IP header.
    pub bytes: u64,
    /// Packets dropped before any egress, by [`DropReason`].
    pub dropped: [u64; DropReason::COUNT],
    /// IGMP and MLD messages received. They are not in `packets`: routers do not forward them.
    pub membership: u64,
    /// For each egress: packets that it did not get because of its TTL threshold.
    pub below_threshold: Vec<(EgressId, u64)>,
    /// Packets that were translated, by [`TranslationKind`].
    pub translated: [u64; TranslationKind::ALL.len()],
}

impl Default for SwitchCounts {
    fn default() -> Self {
        Self {
            packets: 0,
            bytes: 0,
            dropped: [0; DropReason::COUNT],
            membership: 0,
            below_threshold: Vec::new(),
            translated: [0; TranslationKind::ALL.len()],
        }
    }
}

impl SwitchCounts {
    /// Counts packets that an egress did not get because of its TTL threshold.
    pub(super) fn below_threshold(&mut self, egress: EgressId, packets: u64) {
        match self.below_threshold.iter_mut().find(|(e, _)| *e == egress) {
            Some((_, n)) => *n += packets,
            None => self.below_threshold.push((egress, packets)),
        }
    }
}
