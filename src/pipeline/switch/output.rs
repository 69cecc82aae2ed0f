//! The result of switching a batch, finished and under construction.

use std::sync::Arc;

use crate::pipeline::counts::SwitchCounts;
use crate::pipeline::{Batch, Messages, SharedBatch, Slot};
use crate::table::EgressId;

/// The result of switching a batch: its packets, sorted by egress.
pub struct Switched {
    /// The bytes of the packets.
    pub shared: Arc<SharedBatch>,
    /// For each egress with packets to send: its packets, in order.
    pub egresses: Vec<(EgressId, Vec<Slot>)>,
    /// IGMP, MLD and router discovery messages, if the ingress is one whose messages are processed.
    pub messages: Messages,
    /// The counters of this batch.
    pub counts: SwitchCounts,
}

/// The position of an egress in the result of the current batch.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct EgressPosition {
    /// Index into [`Switched::egresses`].
    pub at: Option<u32>,
    /// Number of the last packet that was added to it.
    pub packet_number: u64,
}

impl EgressPosition {
    /// Returns the index of the egress in the result, and adds the egress if necessary.
    pub fn index(&mut self, egress: EgressId, out: &mut Output) -> usize {
        let at = self.at.get_or_insert_with(|| {
            let slots = Vec::with_capacity(out.expected);
            out.egresses.push((egress, slots));
            out.egresses.len() as u32 - 1
        });
        *at as usize
    }
}

/// The result under construction.
#[derive(Default)]
pub(super) struct Output {
    pub side_buffer: Vec<u8>,
    pub egresses: Vec<(EgressId, Vec<Slot>)>,
    pub messages: Messages,
    pub counts: SwitchCounts,
    /// Packets in the batch: the capacity to reserve for each egress. Segmentation may exceed it.
    pub expected: usize,
}

impl Output {
    /// Returns the result.
    pub fn finish(self, batch: Batch) -> Switched {
        let side_buffer = self.side_buffer;
        Switched {
            shared: Arc::new(SharedBatch { batch, side_buffer }),
            egresses: self.egresses,
            messages: self.messages,
            counts: self.counts,
        }
    }
}
