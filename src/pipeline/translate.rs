//! Translation of the packets of a batch: in place, or into the side buffer.

use std::ops::Range;

use super::Batch;
use crate::forward::DropReason;
use crate::forward::translate::{Identifications, translate_in_place, translate_version};
use crate::model::TranslationRule;
use crate::wire::ip::IpHeader;

/// Translates packets; keeps the state that is needed between packets.
#[derive(Default)]
pub(super) struct Translator {
    ids: Identifications,
    copy: Vec<u8>,
}

/// A packet to translate.
pub(super) struct UntranslatedPacket<'a> {
    /// Offset of the first byte, and length.
    pub range: (u32, u32),
    /// Whether the packet is in the side buffer.
    pub in_side_buffer: bool,
    /// Whether the untranslated packet is needed too.
    pub keep_original: bool,
    /// The parsed header of the packet, or of the GSO packet it was segmented from.
    pub datagram: &'a IpHeader,
}

impl Translator {
    /// Translates one packet. Calls `on_packet` with the range of each resulting packet: in the
    /// side buffer if [`uses_side_buffer`] returns true, otherwise in the range of the original.
    pub fn run(
        &mut self,
        rule: &TranslationRule,
        original: &UntranslatedPacket<'_>,
        mtu: usize,
        batch: &mut Batch,
        side_buffer: &mut Vec<u8>,
        mut on_packet: impl FnMut((u32, u32)),
    ) -> Result<(), DropReason> {
        let (start, len) = original.range;
        let range = start as usize..(start + len) as usize;
        let datagram = IpHeader {
            packet_len: len as usize,
            ..*original.datagram
        };
        if !uses_side_buffer(rule, original.keep_original) {
            let memory = match original.in_side_buffer {
                true => &mut side_buffer[..],
                false => batch.bytes_mut(),
            };
            let bytes = memory.get_mut(range).ok_or(DropReason::Truncated)?;
            translate_in_place(bytes, &datagram, rule)?;
            on_packet(original.range);
            return Ok(());
        }
        let offset_and_len = |r: Range<usize>| (r.start as u32, r.len() as u32);
        if !original.in_side_buffer && !rule.kind().keeps_ip_version() {
            let bytes = batch.bytes().get(range).ok_or(DropReason::Truncated)?;
            let (ids, on_packet) = (&mut self.ids, |r| on_packet(offset_and_len(r)));
            translate_version(bytes, &datagram, rule, ids, mtu, side_buffer, on_packet)?;
            return Ok(());
        }
        // The result goes to the side buffer. Copy the packet first if it is read from there too.
        let bytes = match original.in_side_buffer {
            true => side_buffer.get(range),
            false => batch.bytes().get(range),
        };
        self.copy.clear();
        self.copy
            .extend_from_slice(bytes.ok_or(DropReason::Truncated)?);
        if rule.kind().keeps_ip_version() {
            translate_in_place(&mut self.copy, &datagram, rule)?;
            let at = side_buffer.len();
            side_buffer.extend_from_slice(&self.copy);
            on_packet(offset_and_len(at..side_buffer.len()));
        } else {
            let (ids, on_packet) = (&mut self.ids, |r| on_packet(offset_and_len(r)));
            translate_version(
                &self.copy,
                &datagram,
                rule,
                ids,
                mtu,
                side_buffer,
                on_packet,
            )?;
        }
        Ok(())
    }
}

/// Returns whether translated packets are written to the side buffer: the IP version changes, or
/// the original is needed too.
pub(super) fn uses_side_buffer(rule: &TranslationRule, keep_original: bool) -> bool {
    keep_original || !rule.kind().keeps_ip_version()
}
