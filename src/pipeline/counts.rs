//! The counters of the switch for one batch.

use crate::forward::DropReason;
use crate::model::{MacAddress, TranslationKind};
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
    /// Packets that [`egress_check`](crate::forward::egress_check) refused, by egress and reason.
    pub refused: Vec<(EgressId, DropReason, u64)>,
    /// The first packet that another forwarder sends to an egress too: the egress, and the station.
    pub yielded: Option<(EgressId, Option<MacAddress>)>,
    /// Number of streams of which the ingress became the active one in place of another.
    pub takeovers: u64,
    /// Egresses to which this router forwards a stream in place of another router: one for each
    /// stream.
    pub egress_takeovers: Vec<EgressId>,
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
            refused: Vec::new(),
            yielded: None,
            takeovers: 0,
            egress_takeovers: Vec::new(),
            translated: [0; TranslationKind::ALL.len()],
        }
    }
}

impl SwitchCounts {
    /// Counts packets that an egress refused.
    pub(super) fn count_refused(&mut self, egress: EgressId, reason: DropReason, packets: u64) {
        let same = |(e, r, _): &&mut (EgressId, DropReason, u64)| *e == egress && *r == reason;
        match self.refused.iter_mut().find(same) {
            Some((_, _, n)) => *n += packets,
            None => self.refused.push((egress, reason, packets)),
        }
    }
}
