//! Passes the packets of an ingress to the forwarders of its worker thread.

use std::sync::Arc;

use actix::prelude::*;
use ahash::AHashMap;

use crate::actors::messages::{MAX_WAITING_BATCHES, Transmit};
use crate::actors::shared::{RouterContext, Snapshot};
use crate::actors::supervision::WorkerId;
use crate::forward::{DropHistory, DropReason};
use crate::metrics::InterfaceCounters;
use crate::model::InterfaceId;
use crate::pipeline::{SharedBatch, Slot, Switched};
use crate::streams::StreamMonitor;
use crate::table::{Egress, EgressId};
use crate::wire::ip_summary::IpSummary;

/// The forwarders of one worker thread, as one ingress sees them.
pub(super) struct WorkerForwarders {
    worker: WorkerId,
    /// By egress: one reference here, and one for each batch that waits for it.
    waiting: AHashMap<InterfaceId, Arc<()>>,
    /// Counters of egresses that packets were dropped for, by the names of the last snapshot.
    counters: AHashMap<InterfaceId, InterfaceCounters>,
}

impl WorkerForwarders {
    /// Returns the forwarders of a worker thread, for which nothing waits.
    pub fn new(worker: WorkerId) -> Self {
        Self {
            worker,
            waiting: AHashMap::new(),
            counters: AHashMap::new(),
        }
    }

    /// Returns whether the forwarders have sent all packets.
    pub fn is_all_sent(&self) -> bool {
        self.waiting.values().all(|w| Arc::strong_count(w) == 1)
    }

    /// Applies a snapshot with another forwarding table: an egress may have another name, or be gone.
    pub fn update(&mut self, snapshot: &Snapshot) {
        self.counters.clear();
        let forwarders = snapshot.forwarders.get(self.worker);
        let exists = |index: &InterfaceId| forwarders.is_some_and(|f| f.contains_key(index));
        self.waiting.retain(|index, _| exists(index));
    }

    /// Passes switched packets to the forwarders. Counts those that an egress refused, and those that
    /// its forwarder cannot take.
    pub fn transmit(
        &mut self,
        context: &RouterContext,
        snapshot: &Snapshot,
        switched: Switched,
        (drops, monitor): (&mut DropHistory, &mut StreamMonitor),
    ) {
        let egress_of = |id: EgressId| &snapshot.fib.egresses[id as usize];
        for (egress, reason, packets) in switched.counts.refused {
            self.count_refused(context, egress_of(egress), reason, packets);
        }
        let batch = switched.shared;
        for (id, slots) in switched.egresses {
            let Err((reason, slots)) = self.send(snapshot, id, &batch, slots) else {
                continue;
            };
            let egress = egress_of(id);
            let now_ms = context.now_ms();
            for slot in &slots {
                let packet = IpSummary::read(batch.packet(slot));
                let counted = (slot.packets(), slot.bytes());
                drops.count(reason, Some(egress.index), packet, counted, now_ms);
                if let Some(stream) = slot.stream {
                    monitor.count_dropped(stream, Some(egress.index), reason, counted.0, now_ms);
                }
            }
            let packets = slots.iter().map(Slot::packets).sum();
            self.count_refused(context, egress, reason, packets);
        }
    }

    /// Passes packets to the forwarder of an egress. Returns them if it cannot take them, and why.
    fn send(
        &mut self,
        snapshot: &Snapshot,
        egress: EgressId,
        batch: &Arc<SharedBatch>,
        slots: Vec<Slot>,
    ) -> Result<(), (DropReason, Vec<Slot>)> {
        let index = snapshot.fib.egresses[egress as usize].index;
        let forwarders = snapshot.forwarders.get(self.worker);
        let Some(forwarder) = forwarders.and_then(|f| f.get(&index)) else {
            return Err((DropReason::EgressDown, slots));
        };
        let waiting = self.waiting.entry(index).or_default();
        if Arc::strong_count(waiting) > MAX_WAITING_BATCHES {
            return Err((DropReason::QueueFull, slots));
        }
        let sent = forwarder.try_send(Transmit {
            fib: snapshot.fib.clone(),
            egress,
            batch: batch.clone(),
            slots,
            waiting: waiting.clone(),
        });
        sent.map_err(|refused| match refused {
            SendError::Full(lost) => (DropReason::QueueFull, lost.slots),
            SendError::Closed(lost) => (DropReason::EgressDown, lost.slots),
        })
    }

    fn count_refused(
        &mut self,
        context: &RouterContext,
        egress: &Egress,
        reason: DropReason,
        packets: u64,
    ) {
        let counters = self.counters.entry(egress.index);
        let new = || context.catalog.interface(egress.name.as_str());
        let counters = counters.or_insert_with(new);
        counters.dropped(reason).inc_by(packets);
    }
}
