//! The packets that a captured packet represents, in each variant with which it leaves.

use crate::forward::segment::{gso_layout, prepare_for_kernel_gso, segment};
use crate::forward::{Decision, DropReason, Variant};
use crate::pipeline::{Batch, Packet};
use crate::wire::ip;
use crate::wire::offload::{GsoLayout, Offload};

/// The properties that decide the bytes of a variant: variants with equal keys have equal bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct VariantKey {
    ttl: u8,
}

impl VariantKey {
    /// Returns the key of a variant.
    pub fn of(variant: &Variant<'_>) -> Self {
        Self { ttl: variant.ttl }
    }

    /// Turns a copy of a packet of the first variant into one of this variant.
    fn apply(self, packet: &mut [u8]) {
        ip::set_ttl(packet, self.ttl);
    }
}

/// The packets that the current captured packet represents.
#[derive(Default)]
pub(super) struct PacketVariants {
    /// Start and length of the packets: those of the first variant, then those of each further
    /// variant that was built.
    pub ranges: Vec<(u32, u32)>,
    /// If the captured packet is forwarded as a GSO packet: its segment layout, and the number of
    /// datagrams it contains.
    pub gso: Option<(GsoLayout, u64)>,
    /// The further variants that were built, and the position of their first packet in `ranges`.
    pub built: Vec<(VariantKey, usize)>,
}

impl PacketVariants {
    /// Records the packets that a captured packet represents: itself, or its segments.
    pub fn record(
        &mut self,
        batch: &mut Batch,
        packet: &Packet,
        decision: &Decision<'_>,
        start: usize,
        side_buffer: &mut Vec<u8>,
    ) -> Result<(), DropReason> {
        let len = decision.datagram.packet_len;
        self.gso = None;
        let Offload::UdpSegments { payload } = packet.offload else {
            self.ranges.push((start as u32, len as u32));
            return Ok(());
        };
        let bytes = &mut batch.bytes_mut()[start..start + len];
        // The loop guard and a merge compare single datagrams, and a translation to the other IP version
        // writes a header for each datagram.
        let needs_segmentation = decision.variants().any(|v| {
            v.entry.loop_guard
                || v.entry.merge.is_some()
                || v.entry
                    .translation
                    .as_ref()
                    .is_some_and(|r| !r.kind().keeps_ip_version())
        });
        let gso = gso_layout(bytes, &decision.datagram, payload).filter(|_| !needs_segmentation);
        if let Some(gso) = gso {
            prepare_for_kernel_gso(bytes, gso);
            self.gso = Some((gso, gso.count(len)));
            self.ranges.push((start as u32, len as u32));
            return Ok(());
        }
        segment(bytes, &decision.datagram, payload, side_buffer, |range| {
            self.ranges.push((range.start as u32, range.len() as u32));
        })
    }

    /// Builds the packets of a further variant in the side buffer, unless they exist already.
    /// Returns the position of the first in `ranges`.
    pub fn build_variant(
        &mut self,
        key: VariantKey,
        ranges: usize,
        batch: &Batch,
        side_buffer: &mut Vec<u8>,
        in_side_buffer: bool,
    ) -> usize {
        if let Some((_, first_range)) = self.built.iter().find(|(built, _)| *built == key) {
            return *first_range;
        }
        let first_range = self.ranges.len();
        self.built.push((key, first_range));
        for at in 0..ranges {
            let (start, len) = self.ranges[at];
            let from = start as usize..(start + len) as usize;
            let to = side_buffer.len();
            match in_side_buffer {
                true => side_buffer.extend_from_within(from),
                false => side_buffer.extend_from_slice(&batch.bytes()[from]),
            }
            key.apply(&mut side_buffer[to..]);
            self.ranges.push((to as u32, len));
        }
        first_range
    }

    /// Returns the number of packets on the wire for each entry of `ranges`.
    pub fn datagrams_each(&self) -> u64 {
        self.gso.map_or(1, |(_, count)| count)
    }
}
