//! Packets on their way to the egresses: the memory of a switched batch, and slots that point into
//! it.

use super::Batch;
use crate::streams::StreamId;
use crate::table::PathId;
use crate::wire::offload::GsoLayout;

/// One packet for one egress: a range of a [`SharedBatch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Offset of the first byte, in the batch or in the side buffer.
    pub start: u32,
    /// Length of the IP packet in bytes.
    pub len: u32,
    /// Whether the packet is in the side buffer.
    pub in_side_buffer: bool,
    /// For a GSO packet: how it is segmented into datagrams.
    pub segments: Option<GsoLayout>,
    /// The path in whose counters the packet is counted.
    pub path: PathId,
    /// Receive time, in nanoseconds of `CLOCK_REALTIME`.
    pub received_ns: u64,
    /// The stream, if it is monitored.
    pub stream: Option<StreamId>,
}

impl Slot {
    /// Returns the number of packets on the wire: for a GSO packet, its segments.
    pub fn packets(&self) -> u64 {
        self.segments.map_or(1, |s| s.count(self.len as usize))
    }

    /// Returns the bytes of those packets, counted from the IP header.
    pub fn bytes(&self) -> u64 {
        let len = self.len as usize;
        self.segments.map_or(len as u64, |s| s.bytes(len))
    }
}

/// The memory of a switched batch, shared by its egresses. The memory returns to the capture when
/// the last egress drops its reference.
pub struct SharedBatch {
    pub(super) batch: Batch,
    /// Packets that could not be made in place: segments, further variants, and packets translated
    /// to the other IP version.
    pub(super) side_buffer: Vec<u8>,
}

impl SharedBatch {
    /// Returns the bytes of a slot.
    pub fn packet(&self, slot: &Slot) -> &[u8] {
        let memory = if slot.in_side_buffer {
            &self.side_buffer[..]
        } else {
            self.batch.bytes()
        };
        &memory[slot.start as usize..][..slot.len as usize]
    }
}
