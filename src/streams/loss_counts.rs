//! Packets of a stream that were lost here, by reason and egress.

use crate::api::streams::StreamLoss;
use crate::forward::DropReason;
use crate::forward::drop_history::LastMinute;
use crate::model::InterfaceId;

/// The most combinations of reason and egress that are counted. There are far fewer.
const MAX_KEYS: usize = 256;

/// The packets of one reason and egress.
#[derive(Debug, Clone, Copy)]
struct Lost {
    egress: Option<InterfaceId>,
    reason: DropReason,
    total: u64,
    minute: LastMinute,
}

/// Counts lost packets of one stream.
#[derive(Debug, Clone, Default)]
pub struct LossCounts(Vec<Lost>);

/// A count, with its reason and egress.
pub type LossCount = (Option<InterfaceId>, DropReason, StreamLoss);

/// Returns whether a packet that was dropped for this reason is missing anywhere. Others were
/// withheld because they arrive by another way.
fn is_loss(reason: DropReason) -> bool {
    !matches!(
        reason,
        DropReason::Standby
            | DropReason::OtherForwarder
            | DropReason::Loop
            | DropReason::VlanElsewhere
    )
}

impl LossCounts {
    /// Counts packets that were dropped, if they are lost.
    pub fn add(
        &mut self,
        egress: Option<InterfaceId>,
        reason: DropReason,
        packets: u64,
        now_ms: u64,
    ) {
        if !is_loss(reason) || packets == 0 {
            return;
        }
        let is_same = |lost: &Lost| (lost.egress, lost.reason) == (egress, reason);
        let known = self.0.iter().position(is_same);
        if known.is_none() && self.0.len() >= MAX_KEYS {
            return;
        }
        let at = known.unwrap_or(self.0.len());
        if known.is_none() {
            self.0.push(Lost {
                egress,
                reason,
                total: 0,
                minute: LastMinute::default(),
            });
        }
        if let Some(lost) = self.0.get_mut(at) {
            lost.total += packets;
            lost.minute.add(packets, now_ms);
        }
    }

    /// Returns all counts.
    pub fn counts(&self, now_ms: u64) -> Vec<LossCount> {
        let count = |lost: &Lost| {
            let count = StreamLoss {
                total: lost.total,
                minute: lost.minute.packets(now_ms),
            };
            (lost.egress, lost.reason, count)
        };
        self.0.iter().map(count).collect()
    }
}
