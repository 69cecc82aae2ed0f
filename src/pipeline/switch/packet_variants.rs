//! The packets that a captured packet represents, in each variant with which it leaves.

use super::output::Output;
use crate::forward::segment::{gso_layout, prepare_for_kernel_gso, segment};
use crate::forward::{Decision, DropReason, LoopGuard, Variant};
use crate::model::TranslationRule;
use crate::pipeline::translate::{Translator, UntranslatedPacket, uses_side_buffer};
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
    built: Vec<(VariantKey, usize)>,
    /// For each packet of the first variant: whether the loop guard recognised it. Empty until a
    /// variant needs it.
    pub looped: Vec<bool>,
    /// For each packet of the first variant: whether any variant forwards it.
    pub forwarded: Vec<bool>,
    /// For each packet that was to be translated: why translation failed, if it did.
    pub translation_errors: Vec<Option<DropReason>>,
    /// Start and length of the translated packets.
    pub translated: Vec<(u32, u32)>,
    translator: Translator,
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

    /// Begins the variants of the recorded packets.
    pub fn begin_variants(&mut self) {
        self.built.clear();
        self.looped.clear();
        self.translation_errors.clear();
        self.forwarded.clear();
        self.forwarded.resize(self.ranges.len(), false);
    }

    /// Looks up the packets of the first variant, which are in `memory`, in the loop guard. One lookup
    /// serves all variants: they differ only in TTL, which the loop guard ignores.
    pub fn check_loop_guard(
        &mut self,
        guard: &LoopGuard,
        egresses: u64,
        memory: &[u8],
        now_ms: u64,
    ) {
        let looped = self.ranges.iter().map(|(start, len)| {
            let packet = &memory[*start as usize..][..*len as usize];
            guard.recognises(egresses, packet, now_ms)
        });
        self.looped.extend(looped);
    }

    /// Translates the packets of the first variant. If `guarded`, skips those that the loop guard
    /// recognised. Returns the number of translated datagrams; their ranges are in `translated`.
    pub fn translate(
        &mut self,
        rule: &TranslationRule,
        original: UntranslatedPacket<'_>,
        guarded: bool,
        mtu: usize,
        batch: &mut Batch,
        out: &mut Output,
    ) -> u64 {
        self.translated.clear();
        let mut count = 0;
        for at in 0..self.forwarded.len() {
            let error = if guarded && self.looped[at] {
                Some(DropReason::Loop)
            } else {
                let original = UntranslatedPacket {
                    range: self.ranges[at],
                    ..original
                };
                let on_packet = |range| self.translated.push(range);
                let side_buffer = &mut out.side_buffer;
                let done =
                    (self.translator).run(rule, &original, mtu, batch, side_buffer, on_packet);
                done.err()
            };
            self.forwarded[at] = error.is_none();
            count += self.datagrams_each() * u64::from(error.is_none());
            self.translation_errors.push(error);
        }
        if let Some((segments, _)) = self.gso {
            let memory = match uses_side_buffer(rule, original.keep_original) {
                true => &mut out.side_buffer[..],
                false => batch.bytes_mut(),
            };
            for (start, len) in &self.translated {
                let packet = &mut memory[*start as usize..][..*len as usize];
                prepare_for_kernel_gso(packet, segments);
            }
        }
        out.counts.translated[rule.kind() as usize] += count;
        count
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
