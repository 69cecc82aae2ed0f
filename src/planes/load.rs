//! What is on its way out: the memory of a decided batch, and where packets stand in it.

use super::Batch;
use crate::table::PathId;
use crate::wire::offload::GsoLayout;

/// One packet on its way out of one egress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// First byte in the batch, or in the second buffer.
    pub start: u32,
    /// Bytes of the IP packet.
    pub len: u32,
    /// Whether it stands in the second buffer.
    pub piece: bool,
    /// Where it stands for several datagrams: how it is cut into them.
    pub segments: Option<GsoLayout>,
    /// The path it takes.
    pub path: PathId,
    /// When it was received, in nanoseconds of `CLOCK_REALTIME`.
    pub received_ns: u64,
}

impl Slot {
    /// Packets on the wire that it stands for.
    pub fn packets(&self) -> u64 {
        self.segments.map_or(1, |s| s.count(self.len as usize))
    }

    /// Their bytes, from the IP header on.
    pub fn bytes(&self) -> u64 {
        let len = self.len as usize;
        self.segments.map_or(len as u64, |s| s.bytes(len))
    }
}

/// The memory of a decided batch; the last egress to let go of it gives it back.
pub struct Load {
    pub(super) batch: Batch,
    /// The second buffer.
    pub(super) pieces: Vec<u8>,
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
