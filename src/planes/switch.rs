//! A captured batch, decided packet by packet and sorted by egress.
//!
//! Packets are changed in place and never copied, except those that segmentation cuts: their
//! pieces stand in a second buffer beside the batch.

use std::sync::Arc;

use super::{Batch, Packet};
use crate::forward::rewrite::rewrite;
use crate::forward::segment::segment;
use crate::forward::{Decision, DropReason, decide};
use crate::table::{EgressId, Fib, Ingress, PathId};
use crate::wire::offload::Offload;
use crate::wire::vlan;

/// One packet on its way out of one egress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// First byte in the batch, or in the cut pieces.
    pub start: u32,
    /// Bytes of the IP packet.
    pub len: u32,
    /// Whether it stands in the cut pieces.
    pub piece: bool,
    /// The path it takes.
    pub path: PathId,
    /// When it was received, in nanoseconds of `CLOCK_REALTIME`.
    pub received_ns: u64,
}

/// The memory of a decided batch; the last egress to let go of it gives it back.
pub struct Load {
    batch: Batch,
    pieces: Vec<u8>,
}

impl Load {
    /// The bytes of a slot.
    pub fn packet(&self, slot: &Slot) -> &[u8] {
        let memory = if slot.piece {
            &self.pieces[..]
        } else {
            self.batch.bytes()
        };
        &memory[slot.start as usize..][..slot.len as usize]
    }
}

/// What happened to a batch, in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    /// IP packets that came in; one that segmentation cuts counts as its pieces.
    pub packets: u64,
    /// Their IP bytes.
    pub bytes: u64,
    /// Packets dropped before any egress, by [`DropReason`].
    pub dropped: [u64; DropReason::COUNT],
    /// Packets an egress did not take because of its TTL threshold.
    pub below_threshold: Vec<(EgressId, u64)>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            packets: 0,
            bytes: 0,
            dropped: [0; DropReason::COUNT],
            below_threshold: Vec::new(),
        }
    }
}

impl Tally {
    fn below_threshold(&mut self, egress: EgressId, packets: u64) {
        match self.below_threshold.iter_mut().find(|(e, _)| *e == egress) {
            Some((_, n)) => *n += packets,
            None => self.below_threshold.push((egress, packets)),
        }
    }
}

/// A batch sorted by egress.
pub struct Switched {
    /// The bytes.
    pub load: Arc<Load>,
    /// Per egress with anything to send, its packets in order.
    pub egresses: Vec<(EgressId, Vec<Slot>)>,
    /// What was counted.
    pub tally: Tally,
}

/// Decides batches. Holds only scratch space.
#[derive(Default)]
pub struct Switch {
    /// Where in `egresses` an egress stands; by egress id.
    places: Vec<Option<u32>>,
    cuts: Vec<(u32, u32)>,
}

impl Switch {
    /// Decides every packet of a batch that came in on `ingress`.
    pub fn run(&mut self, fib: &Fib, ingress: &Ingress, mut batch: Batch) -> Switched {
        let mut tally = Tally::default();
        let mut pieces = Vec::new();
        let mut egresses: Vec<(EgressId, Vec<Slot>)> = Vec::new();
        self.places.clear();
        self.places.resize(fib.egresses.len(), None);
        let packets = std::mem::take(&mut batch.packets);
        let expected = packets.len();
        for packet in &packets {
            self.cuts.clear();
            let decided = decide_packet(ingress, &mut batch, packet);
            let cut = decided.and_then(|(decision, start)| {
                self.cut(&batch, packet, &decision, start, &mut pieces)?;
                Ok(decision)
            });
            let decision = match cut {
                Ok(decision) => decision,
                Err(reason) => {
                    tally.packets += 1;
                    tally.bytes += u64::from(packet.len);
                    tally.dropped[reason as usize] += 1;
                    continue;
                }
            };
            let count = self.cuts.len() as u64;
            tally.packets += count;
            tally.bytes += self
                .cuts
                .iter()
                .map(|(_, len)| u64::from(*len))
                .sum::<u64>();
            let piece = matches!(packet.offload, Offload::UdpSegments { .. });
            for id in &decision.entry.paths {
                let path = &fib.paths[*id as usize];
                if path
                    .threshold
                    .is_some_and(|t| !t.passes(decision.datagram.ttl))
                {
                    tally.below_threshold(path.egress, count);
                    continue;
                }
                let place = &mut self.places[path.egress as usize];
                let place = *place.get_or_insert_with(|| {
                    egresses.push((path.egress, Vec::with_capacity(expected)));
                    egresses.len() as u32 - 1
                });
                let slots = &mut egresses[place as usize].1;
                slots.extend(self.cuts.iter().map(|(start, len)| Slot {
                    start: *start,
                    len: *len,
                    piece,
                    path: *id,
                    received_ns: packet.received_ns,
                }));
            }
        }
        Switched {
            load: Arc::new(Load { batch, pieces }),
            egresses,
            tally,
        }
    }

    /// Notes where the packets are that a captured one stands for: itself, or its pieces.
    fn cut(
        &mut self,
        batch: &Batch,
        packet: &Packet,
        decision: &Decision<'_>,
        start: usize,
        pieces: &mut Vec<u8>,
    ) -> Result<(), DropReason> {
        let len = decision.datagram.len;
        let Offload::UdpSegments { payload } = packet.offload else {
            self.cuts.push((start as u32, len as u32));
            return Ok(());
        };
        let bytes = &batch.bytes()[start..start + len];
        segment(bytes, &decision.datagram, payload, pieces, |range| {
            self.cuts.push((range.start as u32, range.len() as u32));
        })
    }
}

/// Decides one packet and rewrites it in place. Also returns where its IP header starts.
fn decide_packet<'f>(
    ingress: &'f Ingress,
    batch: &mut Batch,
    packet: &Packet,
) -> Result<(Decision<'f>, usize), DropReason> {
    if packet.cut {
        return Err(DropReason::Truncated);
    }
    if packet
        .vlan
        .is_some_and(|id| ingress.vlans_elsewhere.contains(&id))
    {
        return Err(DropReason::VlanElsewhere);
    }
    let start = packet.start as usize;
    let bytes = batch
        .bytes_mut()
        .get_mut(start..start + packet.len as usize)
        .ok_or(DropReason::Truncated)?;
    let (ethertype, tags) = vlan::skip_tags(packet.ethertype, bytes)?;
    let bytes = &mut bytes[tags..];
    let version = bytes.first().map_or(0, |b| b >> 4);
    match (ethertype, version) {
        (vlan::ETHERTYPE_IPV4, 4) | (vlan::ETHERTYPE_IPV6, 6) => {}
        (vlan::ETHERTYPE_IPV4 | vlan::ETHERTYPE_IPV6, _) if bytes.is_empty() => {
            return Err(DropReason::Truncated);
        }
        _ => return Err(DropReason::Malformed),
    }
    let decision = decide(ingress, bytes)?;
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
    rewrite(&mut bytes[..decision.datagram.len], offload, decision.ttl)?;
    Ok((decision, start + tags))
}
