//! Translating the packets of a batch: where they stand, or where that does not do behind the
//! pieces beside it.

use std::ops::Range;

use super::Batch;
use crate::forward::DropReason;
use crate::forward::translate::{Identifications, across, in_place};
use crate::model::Rewrite;
use crate::wire::ip::IpHeader;

/// What is kept from packet to packet.
#[derive(Default)]
pub(super) struct Translator {
    ids: Identifications,
    scratch: Vec<u8>,
}

/// A packet to translate.
pub(super) struct Original<'a> {
    /// First byte and length.
    pub cut: (u32, u32),
    /// Whether it stands in the pieces.
    pub is_piece: bool,
    /// Whether it is needed as it is, too.
    pub keep: bool,
    /// What was read of it, or of the packet it was cut from.
    pub datagram: &'a IpHeader,
}

impl Translator {
    /// Translates one packet. `each` is told where each packet stands that it becomes: where
    /// `moves` says so in the pieces, else where it stood.
    pub fn run(
        &mut self,
        rewrite: &Rewrite,
        original: &Original<'_>,
        mtu: usize,
        batch: &mut Batch,
        pieces: &mut Vec<u8>,
        mut each: impl FnMut((u32, u32)),
    ) -> Result<(), DropReason> {
        let (start, len) = original.cut;
        let range = start as usize..(start + len) as usize;
        let datagram = IpHeader {
            packet_len: len as usize,
            ..*original.datagram
        };
        if !moves(rewrite, original.keep) {
            let memory = match original.is_piece {
                true => &mut pieces[..],
                false => batch.bytes_mut(),
            };
            let bytes = memory.get_mut(range).ok_or(DropReason::Truncated)?;
            in_place(bytes, &datagram, rewrite)?;
            each(original.cut);
            return Ok(());
        }
        let cut = |r: Range<usize>| (r.start as u32, r.len() as u32);
        if !original.is_piece && !rewrite.family().stays() {
            let bytes = batch.bytes().get(range).ok_or(DropReason::Truncated)?;
            let (ids, each) = (&mut self.ids, |r| each(cut(r)));
            across(bytes, &datagram, rewrite, ids, mtu, pieces, each)?;
            return Ok(());
        }
        // It changes apart, or is read from the memory that is written to.
        let bytes = match original.is_piece {
            true => pieces.get(range),
            false => batch.bytes().get(range),
        };
        self.scratch.clear();
        self.scratch
            .extend_from_slice(bytes.ok_or(DropReason::Truncated)?);
        if rewrite.family().stays() {
            in_place(&mut self.scratch, &datagram, rewrite)?;
            let at = pieces.len();
            pieces.extend_from_slice(&self.scratch);
            each(cut(at..pieces.len()));
        } else {
            let (ids, each) = (&mut self.ids, |r| each(cut(r)));
            across(&self.scratch, &datagram, rewrite, ids, mtu, pieces, each)?;
        }
        Ok(())
    }
}

/// Whether translated packets stand in the pieces: where the IP version changes, or where the
/// original is needed too.
pub(super) fn moves(rewrite: &Rewrite, keep: bool) -> bool {
    keep || !rewrite.family().stays()
}
