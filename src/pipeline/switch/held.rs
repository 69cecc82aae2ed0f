//! What becomes of a packet that waited in a merge.

use super::output::{EgressPosition, Output};
use crate::forward::{DropHistory, DropReason, bandwidth_check, egress_check, look_up};
use crate::merge::{HeldPacket, Merger, Step};
use crate::pipeline::Slot;
use crate::streams::StreamMonitor;
use crate::table::{EgressId, Entry, Fib, StreamState};
use crate::wire::ip_summary::IpSummary;

/// Forwards or drops packets that were held.
pub(super) struct HeldRelease<'a> {
    pub fib: &'a Fib,
    pub streams: &'a StreamState,
    pub drops: &'a mut DropHistory,
    pub monitor: &'a mut StreamMonitor,
    pub egresses: &'a mut [EgressPosition],
    pub out: &'a mut Output,
    pub now_ms: u64,
}

impl HeldRelease<'_> {
    /// Takes a step of a merge, if it concerns a packet that was held.
    pub fn take(&mut self, step: Step, merger: &mut Merger) {
        let (Step::Held(number) | Step::Expired(number)) = step else {
            return;
        };
        if let Some(held) = merger.held(number) {
            match (step, route_of(self.fib, held)) {
                (Step::Expired(_), _) => self.drop_packet(held, DropReason::MergeLate, None),
                (_, None) => self.drop_packet(held, DropReason::NoRoute, None),
                (_, Some(route)) => self.forward(held, route),
            }
        }
        merger.remove(number);
    }

    /// Copies a packet to the side buffer, and adds it to its egresses.
    fn forward(&mut self, held: &HeldPacket, route: &Entry) {
        let start = self.out.side_buffer.len() as u32;
        self.out.side_buffer.extend_from_slice(&held.bytes);
        for id in &route.paths {
            let path = &self.fib.paths[*id as usize];
            let egress = &self.fib.egresses[path.egress as usize];
            let bandwidth = &self.streams.bandwidth;
            let checked = egress_check(path, egress, held.ttl)
                .and_then(|()| bandwidth_check(bandwidth, egress.bandwidth, &held.stream, || 0));
            if let Err(reason) = checked {
                self.drop_packet(held, reason, Some(path.egress));
                continue;
            }
            let position = &mut self.egresses[path.egress as usize];
            let position = position.index(path.egress, self.out);
            self.out.egresses[position].1.push(Slot {
                start,
                len: held.bytes.len() as u32,
                in_side_buffer: true,
                segments: None,
                path: *id,
                received_ns: held.received_ns,
                stream: held.monitored,
            });
        }
    }

    fn drop_packet(&mut self, held: &HeldPacket, reason: DropReason, egress: Option<EgressId>) {
        let counts = &mut self.out.counts;
        match egress {
            Some(egress) => counts.count_refused(egress, reason, 1),
            None => counts.dropped[reason as usize] += 1,
        }
        let egress = egress.and_then(|id| self.fib.egresses.get(id as usize));
        let egress = egress.map(|egress| egress.index);
        let summary = IpSummary::read(&held.bytes);
        let counted = (1, held.bytes.len() as u64);
        self.drops
            .count(reason, egress, summary, counted, self.now_ms);
        if let Some(id) = held.monitored {
            self.monitor
                .count_dropped(id, egress, reason, 1, self.now_ms);
        }
    }
}

/// Returns the route of a held packet, if it still merges two paths.
fn route_of<'f>(fib: &'f Fib, held: &HeldPacket) -> Option<&'f Entry> {
    let ingress = fib.ingresses.get(&held.ingress)?;
    let verdicts = look_up(fib, ingress, held.stream).ok()?;
    let entry = fib.entries.get(verdicts.entry? as usize)?;
    entry.merge.is_some().then_some(entry)
}
