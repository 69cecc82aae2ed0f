//! A captured batch, decided packet by packet and sorted by egress.
//!
//! Packets are changed in place and not copied. Three things stand in a second buffer beside the
//! batch: the pieces that segmentation cuts, the packets that leave in another version than the
//! first, and those translated to the other IP version. What stands for several datagrams goes on
//! whole where nothing has to look at each; whether an egress takes it so is for the egress.

use std::sync::Arc;

use super::tally::Tally;
use super::translated::{Original, Translator, moves};
use super::{Batch, Load, Messages, Packet, Slot};
use crate::forward::rewrite::rewrite;
use crate::forward::segment::{leave_unfinished, segment, segments};
use crate::forward::{Arrival, Decision, DropReason, LoopGuard, NotData, Version, decide};
use crate::model::Rewrite;
use crate::table::flows::{FlowBudget, Flows};
use crate::table::{EgressId, Feeds, Fib, Ingress};
use crate::wire::offload::{GsoLayout, Offload};
use crate::wire::{ip, vlan};

/// A batch sorted by egress.
pub struct Switched {
    /// The bytes.
    pub load: Arc<Load>,
    /// Per egress with anything to send, its packets in order.
    pub egresses: Vec<(EgressId, Vec<Slot>)>,
    /// IGMP, MLD and router discovery messages, where somebody listens to those of the
    /// ingress.
    pub messages: Messages,
    /// What was counted.
    pub tally: Tally,
}

/// Decides batches of one interface, and knows its flows.
pub struct Switch {
    /// The flows the interface forwards.
    pub flows: Flows,
    guard: Arc<LoopGuard>,
    feeds: Arc<Feeds>,
    /// By egress id.
    egresses: Vec<Place>,
    /// Counts packets, to tell which egresses the present one has.
    turn: u64,
    /// Start and length of the packets a captured one stands for, in each version that is
    /// made: those of the first, then those of the others.
    cuts: Vec<(u32, u32)>,
    /// Where the captured one goes on whole: how it is cut later, and the packets it counts as.
    whole: Option<(GsoLayout, u64)>,
    /// The versions that are made besides the first, and where theirs begin in `cuts`.
    made: Vec<(Form, usize)>,
    /// By packet of the first version: whether it came back, once that was asked.
    came_back: Vec<bool>,
    /// Likewise: whether any version lets it go on.
    goes_on: Vec<bool>,
    /// Likewise, where it was translated: why that was refused.
    refused: Vec<Option<DropReason>>,
    /// Start and length of what became of those that were translated.
    translated: Vec<(u32, u32)>,
    translator: Translator,
}

/// What is known of an egress within a batch.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    /// Where it stands in [`Switched::egresses`].
    at: Option<u32>,
    /// The last packet that has it.
    turn: u64,
}

/// What the bytes of a version depend on: versions of one form are the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Form {
    ttl: u8,
}

impl Form {
    fn of(version: &Version<'_>) -> Self {
        Self { ttl: version.ttl }
    }

    /// Makes a packet of this form of one of the first.
    fn make(self, packet: &mut [u8]) {
        ip::set_ttl(packet, self.ttl);
    }
}

/// What a batch becomes.
#[derive(Default)]
struct Output {
    pieces: Vec<u8>,
    egresses: Vec<(EgressId, Vec<Slot>)>,
    messages: Messages,
    tally: Tally,
    /// Packets that came in: most that any egress may get, but for pieces.
    expected: usize,
}

impl Default for Switch {
    /// With flows, a loop window and feeds of its own.
    fn default() -> Self {
        let flows = Flows::new(FlowBudget::new(65_536));
        Self::new(flows, Arc::default(), Arc::default())
    }
}

impl Switch {
    /// Notes flows in `flows`, stops what comes back within the window of `guard`, and takes
    /// a stream that several upstreams carry from the one that `feeds` tells.
    pub fn new(flows: Flows, guard: Arc<LoopGuard>, feeds: Arc<Feeds>) -> Self {
        Self {
            flows,
            guard,
            feeds,
            egresses: Vec::new(),
            turn: 0,
            cuts: Vec::new(),
            whole: None,
            made: Vec::new(),
            came_back: Vec::new(),
            goes_on: Vec::new(),
            refused: Vec::new(),
            translated: Vec::new(),
            translator: Translator::default(),
        }
    }

    /// Decides every packet of a batch that came in on `ingress`. `now_ms` is a clock that
    /// never goes back.
    pub fn run(&mut self, fib: &Fib, ingress: &Ingress, mut batch: Batch, now_ms: u64) -> Switched {
        self.egresses.clear();
        self.egresses.resize(fib.egresses.len(), Place::default());
        self.turn = 0;
        let packets = std::mem::take(&mut batch.packets);
        let mut out = Output {
            expected: packets.len(),
            ..Output::default()
        };
        for packet in &packets {
            self.cuts.clear();
            let decided = self.decide(fib, ingress, &mut batch, packet, now_ms);
            let cut = decided.and_then(|(decision, start)| {
                self.cut(&mut batch, packet, &decision, start, &mut out.pieces)?;
                Ok(decision)
            });
            let tally = &mut out.tally;
            match cut {
                Ok(decision) => {
                    let bytes = |(_, len): &(u32, u32)| match self.whole {
                        Some((segments, _)) => segments.bytes(*len as usize),
                        None => u64::from(*len),
                    };
                    tally.packets += self.cuts.len() as u64 * self.weight();
                    tally.bytes += self.cuts.iter().map(bytes).sum::<u64>();
                    self.spread(fib, &decision, &mut batch, packet, now_ms, &mut out);
                }
                Err(NotData::Membership) => {
                    tally.membership += 1;
                    if ingress.hears {
                        hand_over(&batch, packet, &mut out.messages);
                    }
                }
                Err(NotData::Dropped(reason)) => {
                    let (packets, bytes) = on_wire(&batch, packet);
                    tally.packets += packets;
                    tally.bytes += bytes;
                    tally.dropped[reason as usize] += packets;
                }
            }
        }
        let Output {
            pieces,
            egresses,
            messages,
            tally,
            ..
        } = out;
        Switched {
            load: Arc::new(Load { batch, pieces }),
            egresses,
            messages,
            tally,
        }
    }

    /// Gives a packet, or its pieces, to the egresses of all its versions, each egress once:
    /// what several versions would send there is sent by the first. What is translated is
    /// another stream, and goes there besides. A packet that no version lets go on came back,
    /// or could not be translated.
    fn spread(
        &mut self,
        fib: &Fib,
        decision: &Decision<'_>,
        batch: &mut Batch,
        packet: &Packet,
        now_ms: u64,
        out: &mut Output,
    ) {
        let cuts = self.cuts.len();
        let (weight, segments) = (self.weight(), self.whole.map(|(segments, _)| segments));
        let is_piece = matches!(packet.offload, Offload::UdpSegments { .. }) && segments.is_none();
        let is_union = decision.is_union();
        let mut first = None;
        self.turn += 1;
        self.made.clear();
        self.came_back.clear();
        self.refused.clear();
        self.goes_on.clear();
        self.goes_on.resize(cuts, false);
        for version in decision.versions() {
            let form = Form::of(&version);
            let guarded = version.entry.loop_guard;
            if guarded && self.came_back.is_empty() {
                self.look_back(batch, &out.pieces, is_piece, now_ms);
            }
            let stopped = |at: usize, came_back: &[bool]| guarded && came_back[at];
            let rewrite = version.entry.rewrite.as_ref();
            let mut translated = 0;
            if let Some(rewrite) = rewrite {
                let mtus = version
                    .paths()
                    .filter_map(|id| Some(fib.egress_of(id)?.mtu));
                let original = Original {
                    cut: (0, 0),
                    is_piece,
                    keep: is_union,
                    datagram: &decision.datagram,
                };
                let mtu = mtus.min().unwrap_or(u32::MAX) as usize;
                translated = self.translate(rewrite, original, guarded, mtu, batch, out);
            }
            let in_place = *first.get_or_insert(form) == form;
            let mut begin = in_place.then_some(0);
            for id in version.paths() {
                let path = &fib.paths[id as usize];
                let place = &mut self.egresses[path.egress as usize];
                let again = is_union && rewrite.is_none();
                if again && std::mem::replace(&mut place.turn, self.turn) == self.turn {
                    continue;
                }
                let mut count = translated;
                for (at, goes_on) in self.goes_on.iter_mut().enumerate() {
                    if rewrite.is_none() && !stopped(at, &self.came_back) {
                        *goes_on = true;
                        count += weight;
                    }
                }
                if count == 0 {
                    continue;
                }
                let passes = path
                    .threshold
                    .is_none_or(|t| t.passes(decision.datagram.ttl));
                if !passes {
                    out.tally.below_threshold(path.egress, count);
                    continue;
                }
                let egresses = &mut out.egresses;
                let place = *place.at.get_or_insert_with(|| {
                    egresses.push((path.egress, Vec::with_capacity(out.expected)));
                    egresses.len() as u32 - 1
                });
                if let Some(rewrite) = rewrite {
                    let slots = &mut out.egresses[place as usize].1;
                    slots.extend(self.translated.iter().map(|(start, len)| Slot {
                        start: *start,
                        len: *len,
                        piece: is_piece || moves(rewrite, is_union),
                        segments,
                        path: id,
                        received_ns: packet.received_ns,
                    }));
                    continue;
                }
                let begin = match begin {
                    Some(begin) => begin,
                    None => {
                        let made = self.make(form, cuts, batch, &mut out.pieces, is_piece);
                        *begin.insert(made)
                    }
                };
                let slots = &mut out.egresses[place as usize].1;
                let these = self.cuts[begin..begin + cuts].iter().enumerate();
                let these = these.filter(|(at, _)| !stopped(*at, &self.came_back));
                slots.extend(these.map(|(_, (start, len))| Slot {
                    start: *start,
                    len: *len,
                    piece: is_piece || !in_place,
                    segments,
                    path: id,
                    received_ns: packet.received_ns,
                }));
            }
        }
        for (at, goes_on) in self.goes_on.iter().enumerate() {
            if !goes_on {
                let refused = self.refused.get(at).copied().flatten();
                out.tally.dropped[refused.unwrap_or(DropReason::Loop) as usize] += weight;
            }
        }
    }

    /// Translates the packets of the first version, without those that came back where
    /// `guarded`. Returns how many; what they became is in `translated`.
    fn translate(
        &mut self,
        rewrite: &Rewrite,
        original: Original<'_>,
        guarded: bool,
        mtu: usize,
        batch: &mut Batch,
        out: &mut Output,
    ) -> u64 {
        self.translated.clear();
        let mut count = 0;
        for at in 0..self.goes_on.len() {
            let refused = if guarded && self.came_back[at] {
                Some(DropReason::Loop)
            } else {
                let original = Original {
                    cut: self.cuts[at],
                    ..original
                };
                let each = |cut| self.translated.push(cut);
                let pieces = &mut out.pieces;
                let done = (self.translator).run(rewrite, &original, mtu, batch, pieces, each);
                done.err()
            };
            self.goes_on[at] = refused.is_none();
            count += self.weight() * u64::from(refused.is_none());
            self.refused.push(refused);
        }
        if let Some((segments, _)) = self.whole {
            let memory = match moves(rewrite, original.keep) {
                true => &mut out.pieces[..],
                false => batch.bytes_mut(),
            };
            for (start, len) in &self.translated {
                let packet = &mut memory[*start as usize..][..*len as usize];
                leave_unfinished(packet, segments);
            }
        }
        out.tally.translated[rewrite.family() as usize] += count;
        count
    }

    /// Looks up in the loop window which packets of the first version came back. Once for
    /// all versions: they differ in what a packet that comes back may differ in too.
    fn look_back(&mut self, batch: &Batch, pieces: &[u8], is_piece: bool, now_ms: u64) {
        let memory = if is_piece { pieces } else { batch.bytes() };
        let guard = &self.guard;
        self.came_back.extend(self.cuts.iter().map(|(start, len)| {
            let packet = &memory[*start as usize..][..*len as usize];
            guard.came_back(packet, now_ms)
        }));
    }

    /// Makes the packets of another form, of the first ones, behind the pieces; unless that
    /// was done. Returns where they begin in `cuts`.
    fn make(
        &mut self,
        form: Form,
        cuts: usize,
        batch: &Batch,
        pieces: &mut Vec<u8>,
        is_piece: bool,
    ) -> usize {
        if let Some((_, begin)) = self.made.iter().find(|(made, _)| *made == form) {
            return *begin;
        }
        let begin = self.cuts.len();
        self.made.push((form, begin));
        for at in 0..cuts {
            let (start, len) = self.cuts[at];
            let from = start as usize..(start + len) as usize;
            let to = pieces.len();
            match is_piece {
                true => pieces.extend_from_within(from),
                false => pieces.extend_from_slice(&batch.bytes()[from]),
            }
            form.make(&mut pieces[to..]);
            self.cuts.push((to as u32, len));
        }
        begin
    }

    /// Packets on the wire that each of `cuts` stands for.
    fn weight(&self) -> u64 {
        self.whole.map_or(1, |(_, count)| count)
    }

    /// Notes where the packets are that a captured one stands for: itself, or its pieces.
    fn cut(
        &mut self,
        batch: &mut Batch,
        packet: &Packet,
        decision: &Decision<'_>,
        start: usize,
        pieces: &mut Vec<u8>,
    ) -> Result<(), DropReason> {
        let len = decision.datagram.packet_len;
        self.whole = None;
        let Offload::UdpSegments { payload } = packet.offload else {
            self.cuts.push((start as u32, len as u32));
            return Ok(());
        };
        let bytes = &mut batch.bytes_mut()[start..start + len];
        // The loop window knows datagrams, and each gets a header of its own in the other IP
        // version.
        let one_by_one = decision.versions().any(|v| {
            v.entry.loop_guard
                || v.entry
                    .rewrite
                    .as_ref()
                    .is_some_and(|r| !r.family().stays())
        });
        let whole = segments(bytes, &decision.datagram, payload).filter(|_| !one_by_one);
        if let Some(whole) = whole {
            leave_unfinished(bytes, whole);
            self.whole = Some((whole, whole.count(len)));
            self.cuts.push((start as u32, len as u32));
            return Ok(());
        }
        segment(bytes, &decision.datagram, payload, pieces, |range| {
            self.cuts.push((range.start as u32, range.len() as u32));
        })
    }

    /// Decides one packet and makes its first version, in place. Also returns where its IP
    /// header starts.
    fn decide<'f>(
        &mut self,
        fib: &'f Fib,
        ingress: &'f Ingress,
        batch: &mut Batch,
        packet: &Packet,
        now_ms: u64,
    ) -> Result<(Decision<'f>, usize), NotData> {
        if packet.cut {
            return Err(DropReason::Truncated.into());
        }
        let start = packet.start as usize;
        let bytes = batch
            .bytes_mut()
            .get_mut(start..start + packet.len as usize)
            .ok_or(DropReason::Truncated)?;
        // The outermost tag says whose frame it is. The kernel strips it, but not from frames that
        // go out on a device which cannot insert tags.
        let vlan = packet
            .vlan
            .or_else(|| vlan::outer_tag(packet.ethertype, bytes));
        if vlan.is_some_and(|id| ingress.vlans_elsewhere.contains(&id)) {
            return Err(DropReason::VlanElsewhere.into());
        }
        let (ethertype, tags) = vlan::skip_tags(packet.ethertype, bytes)?;
        let bytes = &mut bytes[tags..];
        let version = bytes.first().map_or(0, |b| b >> 4);
        match (ethertype, version) {
            (vlan::ETHERTYPE_IPV4, 4) | (vlan::ETHERTYPE_IPV6, 6) => {}
            (vlan::ETHERTYPE_IPV4 | vlan::ETHERTYPE_IPV6, _) if bytes.is_empty() => {
                return Err(DropReason::Truncated.into());
            }
            _ => return Err(DropReason::Malformed.into()),
        }
        let arrival = Arrival {
            fib,
            ingress,
            feeds: &self.feeds,
            now_ms,
        };
        let decision = decide(arrival, &mut self.flows, bytes)?;
        let offload = match packet.offload {
            // Counted from where the tags are.
            Offload::Checksum { start, offset } => Offload::Checksum {
                start: start
                    .checked_sub(tags as u16)
                    .ok_or(DropReason::ChecksumUnknown)?,
                offset,
            },
            other => other,
        };
        let ttl = decision.versions().next().map(|version| version.ttl);
        let ttl = ttl.unwrap_or(decision.datagram.ttl);
        rewrite(&mut bytes[..decision.datagram.packet_len], offload, ttl)?;
        Ok((decision, start + tags))
    }
}

/// Packets and bytes on the wire that a captured packet stands for.
fn on_wire(batch: &Batch, packet: &Packet) -> (u64, u64) {
    let whole = || {
        let Offload::UdpSegments { payload } = packet.offload else {
            return None;
        };
        let bytes = batch.bytes().get(packet.start as usize..)?;
        let bytes = bytes.get(..packet.len as usize)?;
        let (_, tags) = vlan::skip_tags(packet.ethertype, bytes).ok()?;
        let datagram = ip::IpHeader::parse(&bytes[tags..]).ok()?;
        let whole = segments(&bytes[tags..], &datagram, payload)?;
        Some((
            whole.count(datagram.packet_len),
            whole.bytes(datagram.packet_len),
        ))
    };
    whole().unwrap_or((1, packet.len.into()))
}

/// Copies a message that was found to be one.
fn hand_over(batch: &Batch, packet: &Packet, messages: &mut Messages) {
    let start = packet.start as usize;
    let bytes = &batch.bytes()[start..start + packet.len as usize];
    if let Ok((_, tags)) = vlan::skip_tags(packet.ethertype, bytes) {
        messages.push(&bytes[tags..]);
    }
}

#[cfg(test)]
mod tests;
