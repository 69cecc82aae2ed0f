//! What the switch counts of a batch.

use crate::forward::DropReason;
use crate::model::Family;
use crate::table::EgressId;

/// What happened to a batch, in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwitchCounts {
    /// IP packets that came in; one that segmentation cuts counts as its pieces.
    pub packets: u64,
    /// Their IP bytes.
    pub bytes: u64,
    /// Packets dropped before any egress, by [`DropReason`].
    pub dropped: [u64; DropReason::COUNT],
    /// IGMP and MLD messages that came in besides: no router forwards one.
    pub membership: u64,
    /// Packets an egress did not take because of its TTL threshold.
    pub below_threshold: Vec<(EgressId, u64)>,
    /// Packets that were translated, by [`Family`].
    pub translated: [u64; Family::ALL.len()],
}

impl Default for SwitchCounts {
    fn default() -> Self {
        Self {
            packets: 0,
            bytes: 0,
            dropped: [0; DropReason::COUNT],
            membership: 0,
            below_threshold: Vec::new(),
            translated: [0; Family::ALL.len()],
        }
    }
}

impl SwitchCounts {
    /// Counts packets that an egress did not take.
    pub(super) fn below_threshold(&mut self, egress: EgressId, packets: u64) {
        match self.below_threshold.iter_mut().find(|(e, _)| *e == egress) {
            Some((_, n)) => *n += packets,
            None => self.below_threshold.push((egress, packets)),
        }
    }
}
