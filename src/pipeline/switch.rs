//! Makes the forwarding decision for each packet of a captured batch, and sorts the packets by
//! egress.
//!
//! Packets are changed in place and not copied. A side buffer next to the batch holds three kinds
//! of packets: datagrams created by segmentation, packets that leave in another variant than the
//! first, and packets translated to the other IP version. A GSO packet is forwarded as a GSO packet
//! unless each of its datagrams must be examined. The egress segments it if its interface does not
//! accept GSO.

mod captured;
mod held;
mod monitored;
mod output;
mod packet_variants;
mod watched;

use std::sync::Arc;

use captured::{copy_message, decided_summary, ip_offset, on_wire, summary};
use held::HeldRelease;
use monitored::{observe_dropped, observe_stream};
pub use output::Switched;
use output::{EgressPosition, Output};
use packet_variants::{PacketVariants, VariantKey};
use watched::observe_forwarders;

use super::merging::{MergeLock, Merging};
use super::packet_trace::{NoPacketTrace, PacketTrace};
use super::translate::{UntranslatedPacket, uses_side_buffer};
use super::{Batch, Packet, Slot};
use crate::forward::finish::finish_packet;
use crate::forward::{
    Arrival, Decision, DropHistory, DropReason, LoopGuard, NotData, bandwidth_check, decide,
    egress_check,
};
use crate::merge::{HeldPacket, MergeOutcome, MergePacket, Merger, Merges, SharedMerge, Step};
use crate::model::{MergePath, MergeRule};
use crate::streams::{StreamId, StreamMonitor};
use crate::table::flows::{FlowBudget, Flows};
use crate::table::{Entry, Fib, Ingress, StreamState, YieldDecision};
use crate::wire::ip_summary::IpSummary;
use crate::wire::offload::Offload;

/// Makes the forwarding decisions for batches of one interface, and holds its flows.
pub struct Switch {
    /// The flows of the interface.
    pub flows: Flows,
    /// What was dropped before it was handed to an egress.
    pub drops: DropHistory,
    /// The streams that are monitored.
    pub monitor: StreamMonitor,
    guard: Arc<LoopGuard>,
    streams: Arc<StreamState>,
    /// Indexed by egress id.
    egresses: Vec<EgressPosition>,
    /// Number of the current packet, to detect the egresses it has been added to.
    packet_number: u64,
    /// The packets that the captured packet represents.
    packets: PacketVariants,
    merging: Merging,
    /// What a merge decided about the current packet.
    merged: MergeFate,
    /// A packet that waits, as it leaves: its range, and whether it is in the side buffer.
    held_range: Option<((u32, u32), bool)>,
}

/// What a merge decided about a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum MergeFate {
    /// It is forwarded, or no merge was asked.
    #[default]
    Forward,
    /// It waits.
    Hold,
    Drop(DropReason),
}

/// Returns a hash of the egresses of a packet. It does not depend on their order.
fn hash_of_egresses(fib: &Fib, decision: &Decision<'_>) -> u64 {
    let paths = decision.variants().flat_map(|variant| variant.paths());
    let egresses = paths.filter_map(|id| fib.egress_of(id));
    // An odd factor distributes the bits of small numbers (Fibonacci hashing).
    let hash = |index: u32| u64::from(index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    egresses.fold(0, |sum, egress| sum.wrapping_add(hash(egress.index.get())))
}

/// A packet that is forwarded, and by what.
#[derive(Clone, Copy)]
struct Decided<'a, 'f> {
    fib: &'a Fib,
    decision: &'a Decision<'f>,
    packet: &'a Packet,
    /// The stream, if it is monitored.
    stream: Option<StreamId>,
    now_ms: u64,
}

impl Default for Switch {
    /// Creates a switch with its own flows, loop guard and state of streams.
    fn default() -> Self {
        let flows = Flows::new(FlowBudget::new(65_536));
        let monitor = StreamMonitor::new(Arc::default());
        Self::new(flows, Arc::default(), Arc::default(), monitor)
    }
}

impl Switch {
    /// Creates a switch that records flows in `flows`, drops packets that `guard` recognises, and
    /// forwards each stream from its active ingress in `streams`. `monitor` examines the streams for
    /// which the settings ask for it.
    pub fn new(
        flows: Flows,
        guard: Arc<LoopGuard>,
        streams: Arc<StreamState>,
        monitor: StreamMonitor,
    ) -> Self {
        Self {
            flows,
            drops: DropHistory::default(),
            monitor,
            guard,
            streams,
            egresses: Vec::new(),
            packet_number: 0,
            packets: PacketVariants::default(),
            merging: Merging::default(),
            merged: MergeFate::Forward,
            held_range: None,
        }
    }

    /// Lets the switch take part in these merges.
    pub fn with_merges(mut self, merges: Arc<Merges>) -> Self {
        self.merging = Merging::new(merges);
        self
    }

    /// Switches every packet of a batch that arrived on `ingress`. `now_ms` is a monotonic clock in
    /// milliseconds.
    pub fn run(&mut self, fib: &Fib, ingress: &Ingress, batch: Batch, now_ms: u64) -> Switched {
        self.run_traced(fib, ingress, batch, now_ms, &mut NoPacketTrace)
    }

    /// Like [`run`](Self::run), and reports to `trace` what happens to each packet.
    pub fn run_traced(
        &mut self,
        fib: &Fib,
        ingress: &Ingress,
        mut batch: Batch,
        now_ms: u64,
        trace: &mut impl PacketTrace,
    ) -> Switched {
        self.begin(fib);
        let mut merging = std::mem::take(&mut self.merging);
        merging.update(fib, ingress);
        let packets = std::mem::take(&mut batch.packets);
        let mut out = Output {
            expected: packets.len(),
            ..Output::default()
        };
        self.flush_replaced(fib, &mut merging, &mut out, now_ms);
        let mut lock = MergeLock::new(&merging);
        for packet in &packets {
            self.packets.ranges.clear();
            trace.begin(&batch, packet);
            let decided = self.decide(fib, ingress, &mut batch, packet, now_ms);
            let recorded = decided.and_then(|(decision, start)| {
                (self.packets).record(
                    &mut batch,
                    packet,
                    &decision,
                    start,
                    &mut out.side_buffer,
                )?;
                Ok(decision)
            });
            let counts = &mut out.counts;
            match recorded {
                Ok(decision) => {
                    let bytes = |(_, len): &(u32, u32)| match self.packets.gso {
                        Some((segments, _)) => segments.bytes(*len as usize),
                        None => u64::from(*len),
                    };
                    counts.packets +=
                        self.packets.ranges.len() as u64 * self.packets.datagrams_each();
                    counts.takeovers += u64::from(decision.takeover);
                    counts.bytes += self.packets.ranges.iter().map(bytes).sum::<u64>();
                    let stream = decision.monitor().and_then(|kind| {
                        let memory = (&batch, &out.side_buffer[..]);
                        let method = (kind, fib.monitoring.sequence);
                        let packets = &self.packets;
                        observe_stream(
                            &mut self.monitor,
                            method,
                            &decision,
                            (packet, packets),
                            memory,
                            now_ms,
                        )
                    });
                    let decided = Decided {
                        fib,
                        decision: &decision,
                        packet,
                        stream,
                        now_ms,
                    };
                    match decision.merging_route() {
                        None => self.distribute(decided, &mut batch, &mut out, trace),
                        Some(route) => {
                            let merger = lock.of(&route.0.route);
                            let merged = (route, ingress, merger);
                            self.distribute_merged(decided, merged, &mut batch, &mut out, trace);
                        }
                    }
                    trace.end(Ok(()));
                }
                Err(NotData::Membership) => {
                    trace.end(Err(NotData::Membership));
                    counts.membership += 1;
                    if ingress.receives_membership || ingress.answers_queries {
                        copy_message(&batch, packet, &mut out.messages);
                    }
                }
                Err(NotData::Dropped(reason)) => {
                    trace.end(Err(reason.into()));
                    let (packets, bytes) = on_wire(&batch, packet);
                    counts.packets += packets;
                    counts.bytes += bytes;
                    counts.dropped[reason as usize] += packets;
                    let summary = summary(&batch, packet);
                    let bytes = match (packets, summary) {
                        (1, Some(summary)) => summary.len.into(),
                        _ => bytes,
                    };
                    self.drops
                        .count(reason, None, summary, (packets, bytes), now_ms);
                    if let Some(summary) = summary {
                        let key = (summary.source, summary.destination);
                        let dropped = (key, reason, packet);
                        observe_dropped(&mut self.monitor, (fib, ingress), dropped, &batch, now_ms);
                    }
                }
            }
        }
        drop(lock);
        self.merging = merging;
        out.finish(batch)
    }

    /// Prepares for a batch.
    fn begin(&mut self, fib: &Fib) {
        self.egresses.clear();
        self.egresses
            .resize(fib.egresses.len(), EgressPosition::default());
        self.packet_number = 0;
    }

    /// Returns the merges of which a path arrives on the interface.
    pub fn merges(
        &mut self,
        fib: &Fib,
        ingress: &Ingress,
    ) -> impl Iterator<Item = (MergePath, &Arc<SharedMerge>)> {
        self.merging.update(fib, ingress);
        self.merging.all()
    }

    /// Passes on the held packets that are not waited for any more. All packets of the interface
    /// that were received until `read_until_ns` were switched. Without this time, passes on
    /// everything that is held.
    pub fn poll_merges(
        &mut self,
        fib: &Fib,
        ingress: &Ingress,
        read_until_ns: Option<u64>,
        now_ms: u64,
    ) -> Switched {
        self.begin(fib);
        let mut merging = std::mem::take(&mut self.merging);
        merging.update(fib, ingress);
        let mut out = Output::default();
        self.flush_replaced(fib, &mut merging, &mut out, now_ms);
        for (path, shared) in merging.all().filter(|(_, merge)| merge.is_waiting()) {
            let mut merger = shared.lock();
            match read_until_ns {
                Some(until_ns) => {
                    merger.note_read(path, until_ns);
                    merger.poll();
                }
                None => merger.flush(),
            }
            self.pass_on_held(fib, (shared, &mut merger), &mut out, now_ms);
        }
        self.merging = merging;
        out.finish(Batch::from_bytes(Vec::new(), Vec::new()))
    }

    /// Returns whether a merge of a former forwarding table holds packets.
    pub fn has_replaced_merges(&self) -> bool {
        self.merging.has_replaced()
    }

    /// Passes on what merges of former forwarding tables hold.
    pub fn flush_replaced_merges(&mut self, fib: &Fib, now_ms: u64) -> Switched {
        self.begin(fib);
        let mut merging = std::mem::take(&mut self.merging);
        let mut out = Output::default();
        self.flush_replaced(fib, &mut merging, &mut out, now_ms);
        self.merging = merging;
        out.finish(Batch::from_bytes(Vec::new(), Vec::new()))
    }

    fn flush_replaced(&mut self, fib: &Fib, merging: &mut Merging, out: &mut Output, now_ms: u64) {
        if !merging.has_replaced() {
            return;
        }
        for shared in merging.take_replaced() {
            let mut merger = shared.lock();
            merger.flush();
            self.pass_on_held(fib, (&shared, &mut merger), out, now_ms);
        }
    }

    /// Takes the steps of a merge, and notes whether it still holds packets.
    fn pass_on_held(
        &mut self,
        fib: &Fib,
        (shared, merger): (&SharedMerge, &mut Merger),
        out: &mut Output,
        now_ms: u64,
    ) {
        let steps = merger.take_steps();
        for step in &steps {
            self.held(fib, out, now_ms).take(*step, merger);
        }
        merger.recycle(steps);
        shared.set_waiting(merger.is_waiting());
    }

    /// Recognises other forwarders by the packets of a batch that arrived on `ingress`, which is
    /// [watched only](Ingress::watch_only). Neither counts nor forwards the packets.
    pub fn observe(&self, fib: &Fib, ingress: &Ingress, batch: &Batch, now_ms: u64) {
        observe_forwarders(&self.streams, (fib, ingress), batch, now_ms);
    }

    /// Distributes the packets of a route that merges two paths, and the held packets that can be
    /// passed on then.
    fn distribute_merged(
        &mut self,
        decided: Decided<'_, '_>,
        ((route, rule), ingress, merger): ((&Entry, &MergeRule), &Ingress, Option<&mut Merger>),
        batch: &mut Batch,
        out: &mut Output,
        trace: &mut impl PacketTrace,
    ) {
        let Decided {
            fib,
            decision,
            packet,
            stream: monitored,
            now_ms,
        } = decided;
        let Some((merger, interface)) = merger.zip(ingress.interface) else {
            return self.distribute(decided, batch, out, trace);
        };
        let in_side_buffer = matches!(packet.offload, Offload::UdpSegments { .. });
        let stream = (decision.datagram.source, decision.datagram.destination);
        let group = match &route.translation {
            Some(rule) => rule.addresses(stream.0, stream.1).1,
            None => stream.1,
        };
        let ranges = std::mem::take(&mut self.packets.ranges);
        for (start, len) in &ranges {
            self.packets.ranges.clear();
            self.packets.ranges.push((*start, *len));
            let memory = match in_side_buffer {
                true => &out.side_buffer[..],
                false => batch.bytes(),
            };
            let bytes = &memory[*start as usize..][..*len as usize];
            let merge_packet = MergePacket::new(&decision.datagram, bytes, group);
            let outcome = merger.push(rule.path, &merge_packet, packet.received_ns);
            let steps = merger.take_steps();
            for step in &steps {
                match step {
                    Step::Current => self.distribute(decided, batch, out, trace),
                    step => self.held(fib, out, now_ms).take(*step, merger),
                }
            }
            merger.recycle(steps);
            self.merged = match outcome {
                MergeOutcome::Passed => continue,
                MergeOutcome::Held(_) => MergeFate::Hold,
                MergeOutcome::Duplicate => MergeFate::Drop(DropReason::MergeDuplicate),
                MergeOutcome::Late => MergeFate::Drop(DropReason::MergeLate),
            };
            self.distribute(decided, batch, out, trace);
            self.merged = MergeFate::Forward;
            if let (MergeOutcome::Held(held_as), Some((range, in_side_buffer))) =
                (outcome, self.held_range.take())
            {
                let memory = match in_side_buffer {
                    true => &out.side_buffer[..],
                    false => batch.bytes(),
                };
                let held = HeldPacket {
                    bytes: Vec::new(),
                    path: rule.path,
                    ingress: interface,
                    stream,
                    monitored,
                    ttl: decision.datagram.ttl,
                    received_ns: packet.received_ns,
                };
                let bytes = &memory[range.0 as usize..][..range.1 as usize];
                merger.hold(held_as, held, bytes);
            }
        }
        self.packets.ranges = ranges;
    }

    /// Returns what forwards or drops packets that were held.
    fn held<'a>(&'a mut self, fib: &'a Fib, out: &'a mut Output, now_ms: u64) -> HeldRelease<'a> {
        HeldRelease {
            fib,
            streams: &self.streams,
            drops: &mut self.drops,
            monitor: &mut self.monitor,
            egresses: &mut self.egresses,
            out,
            now_ms,
        }
    }

    /// Adds a packet, or its segments, to the egresses of all its variants. An untranslated packet
    /// is added to each egress once, for the first variant with this egress. A translated packet
    /// belongs to another stream and is always added. A packet that no variant forwards is counted
    /// as dropped: the loop guard recognised it, or its translation failed.
    fn distribute(
        &mut self,
        decided: Decided<'_, '_>,
        batch: &mut Batch,
        out: &mut Output,
        trace: &mut impl PacketTrace,
    ) {
        let Decided {
            fib,
            decision,
            packet,
            stream: monitored,
            now_ms,
        } = decided;
        let ranges = self.packets.ranges.len();
        let (datagrams_each, segments) = (
            self.packets.datagrams_each(),
            self.packets.gso.map(|(segments, _)| segments),
        );
        let in_side_buffer =
            matches!(packet.offload, Offload::UdpSegments { .. }) && segments.is_none();
        let is_union = decision.is_union();
        let mut first = None;
        self.packet_number += 1;
        self.packets.begin_variants();
        for variant in decision.variants() {
            let key = VariantKey::of(&variant);
            let guarded = variant.entry.loop_guard;
            let is_dropped =
                variant.entry.merge.is_some() && matches!(self.merged, MergeFate::Drop(_));
            if guarded && self.packets.looped.is_empty() && !is_dropped {
                let egresses = hash_of_egresses(fib, decision);
                let memory = match in_side_buffer {
                    true => &out.side_buffer[..],
                    false => batch.bytes(),
                };
                (self.packets).check_loop_guard(&self.guard, egresses, memory, now_ms);
            }
            let stopped = |at: usize, looped: &[bool]| is_dropped || guarded && looped[at];
            let rule = variant.entry.translation.as_ref();
            let mut translated = 0;
            if let Some(rule) = rule.filter(|_| !is_dropped) {
                let mtus = variant
                    .paths()
                    .filter_map(|id| Some(fib.egress_of(id)?.mtu));
                let original = UntranslatedPacket {
                    range: (0, 0),
                    in_side_buffer,
                    keep_original: is_union,
                    datagram: &decision.datagram,
                };
                let mtu = mtus.min().unwrap_or(u32::MAX) as usize;
                translated = (self.packets).translate(rule, original, guarded, mtu, batch, out);
            }
            let in_place = *first.get_or_insert(key) == key;
            let held = match variant.entry.merge {
                Some(_) => self.merged,
                None => MergeFate::Forward,
            };
            if held == MergeFate::Hold && !stopped(0, &self.packets.looped) {
                let range =
                    match rule {
                        Some(rule) => self.packets.translated.first().map(|range| {
                            (*range, in_side_buffer || uses_side_buffer(rule, is_union))
                        }),
                        None => self
                            .packets
                            .ranges
                            .first()
                            .map(|range| (*range, in_side_buffer)),
                    };
                self.packets.forwarded.fill(range.is_some());
                self.held_range = range;
                // An egress gets the packet once.
                for path in variant.paths().filter_map(|id| fib.paths.get(id as usize)) {
                    self.egresses[path.egress as usize].packet_number = self.packet_number;
                }
                continue;
            }
            let mut first_range = in_place.then_some(0);
            for id in variant.paths() {
                let path = &fib.paths[id as usize];
                let position = &mut self.egresses[path.egress as usize];
                if decision.reaches_once(variant.entry)
                    && std::mem::replace(&mut position.packet_number, self.packet_number)
                        == self.packet_number
                {
                    continue;
                }
                let mut count = translated;
                for (at, forwarded) in self.packets.forwarded.iter_mut().enumerate() {
                    if rule.is_none() && !stopped(at, &self.packets.looped) {
                        *forwarded = true;
                        count += datagrams_each;
                    }
                }
                if count == 0 {
                    continue;
                }
                let egress = &fib.egresses[path.egress as usize];
                let stream = (decision.datagram.source, decision.datagram.destination);
                let bytes = || self.flows.get(&stream).map_or(0, |flow| flow.bytes);
                let bandwidth = &self.streams.bandwidth;
                let mut checked = egress_check(path, egress, decision.datagram.ttl)
                    .and_then(|()| bandwidth_check(bandwidth, egress.bandwidth, &stream, bytes));
                if checked.is_ok() {
                    match decision.yield_decision(
                        variant.entry,
                        egress.index,
                        &self.streams,
                        now_ms,
                    ) {
                        YieldDecision::Forward { takeover: false } => {}
                        YieldDecision::Forward { takeover: true } => {
                            out.counts.egress_takeovers.push(path.egress);
                        }
                        YieldDecision::Yield(station) => {
                            out.counts.yielded.get_or_insert((path.egress, station));
                            checked = Err(DropReason::OtherForwarder);
                        }
                    }
                }
                trace.path(id, variant.ttl, checked, || {
                    let in_side_buffer = in_side_buffer || uses_side_buffer(rule?, is_union);
                    let memory = match in_side_buffer {
                        true => &out.side_buffer[..],
                        false => batch.bytes(),
                    };
                    IpSummary::read(memory.get(self.packets.translated.first()?.0 as usize..)?)
                });
                if let Err(reason) = checked {
                    out.counts.count_refused(path.egress, reason, count);
                    let summary = decided_summary(decision, batch, packet, datagrams_each);
                    let counted = (count, count * u64::from(summary.len));
                    let egress = Some(egress.index);
                    self.drops
                        .count(reason, egress, Some(summary), counted, now_ms);
                    if let Some(id) = monitored {
                        self.monitor
                            .count_dropped(id, egress, reason, count, now_ms);
                    }
                    continue;
                }
                let position = position.index(path.egress, out);
                if let Some(rule) = rule {
                    let slots = &mut out.egresses[position].1;
                    slots.extend(self.packets.translated.iter().map(|(start, len)| Slot {
                        start: *start,
                        len: *len,
                        in_side_buffer: in_side_buffer || uses_side_buffer(rule, is_union),
                        segments,
                        path: id,
                        received_ns: packet.received_ns,
                        stream: monitored,
                    }));
                    continue;
                }
                let first_range = match first_range {
                    Some(first_range) => first_range,
                    None => {
                        let built = self.packets.build_variant(
                            key,
                            ranges,
                            batch,
                            &mut out.side_buffer,
                            in_side_buffer,
                        );
                        *first_range.insert(built)
                    }
                };
                let slots = &mut out.egresses[position].1;
                let packets = self.packets.ranges[first_range..first_range + ranges]
                    .iter()
                    .enumerate();
                let packets = packets.filter(|(at, _)| !stopped(*at, &self.packets.looped));
                slots.extend(packets.map(|(_, (start, len))| Slot {
                    start: *start,
                    len: *len,
                    in_side_buffer: in_side_buffer || !in_place,
                    segments,
                    path: id,
                    received_ns: packet.received_ns,
                    stream: monitored,
                }));
            }
        }
        for (at, forwarded) in self.packets.forwarded.iter().enumerate() {
            if !forwarded {
                let error = self.packets.translation_errors.get(at).copied().flatten();
                let reason = match (error, self.merged) {
                    (Some(error), _) => error,
                    (None, MergeFate::Drop(reason)) => reason,
                    (None, _) => DropReason::Loop,
                };
                trace.dropped(reason);
                out.counts.dropped[reason as usize] += datagrams_each;
                let summary = decided_summary(decision, batch, packet, datagrams_each);
                let counted = (datagrams_each, datagrams_each * u64::from(summary.len));
                self.drops
                    .count(reason, None, Some(summary), counted, now_ms);
                // A copy is no loss.
                let is_copy = reason == DropReason::MergeDuplicate;
                if let Some(id) = monitored.filter(|_| !is_copy) {
                    (self.monitor).count_dropped(id, None, reason, datagrams_each, now_ms);
                }
            }
        }
    }

    /// Makes the forwarding decision for one packet and builds its first variant in place. Also
    /// returns the offset of its IP header.
    fn decide<'f>(
        &mut self,
        fib: &'f Fib,
        ingress: &'f Ingress,
        batch: &mut Batch,
        packet: &Packet,
        now_ms: u64,
    ) -> Result<(Decision<'f>, usize), NotData> {
        if packet.truncated {
            return Err(DropReason::Truncated.into());
        }
        let start = packet.start as usize;
        let bytes = batch
            .bytes_mut()
            .get_mut(start..start + packet.len as usize)
            .ok_or(DropReason::Truncated)?;
        let tags = ip_offset(ingress, packet, bytes)?;
        let bytes = &mut bytes[tags..];
        let arrival = Arrival {
            fib,
            ingress,
            streams: &self.streams,
            sender: packet.sender,
            now_ms,
        };
        let decision = decide(arrival, &mut self.flows, bytes)?;
        let offload = match packet.offload {
            // The kernel counts from the start of the tags.
            Offload::Checksum { start, offset } => Offload::Checksum {
                start: start
                    .checked_sub(tags as u16)
                    .ok_or(DropReason::ChecksumUnknown)?,
                offset,
            },
            other => other,
        };
        let ttl = decision.variants().next().map(|variant| variant.ttl);
        let ttl = ttl.unwrap_or(decision.datagram.ttl);
        finish_packet(&mut bytes[..decision.datagram.packet_len], offload, ttl)?;
        Ok((decision, start + tags))
    }
}

#[cfg(test)]
mod tests;
