//! A batch of captured packets in the memory they were captured into.

use crate::sys::buffer::Buffer;
use crate::sys::ring::RingBlock;

pub use crate::sys::packet::Frame as Packet;

/// The memory of a batch.
pub(super) enum Memory {
    /// A block of a ring shared with the kernel. Dropping it returns the block to the kernel.
    Block(RingBlock),
    /// A pooled buffer. Dropping it returns the buffer to the pool.
    Buffer(Buffer),
    /// Memory that belongs to the batch.
    Heap(Vec<u8>),
}

/// Captured packets, and the memory that holds them.
pub struct Batch {
    memory: Memory,
    /// The packets in the order of arrival: ranges of [`Batch::bytes`].
    pub packets: Vec<Packet>,
}

impl Batch {
    /// Creates a batch over a block of a ring.
    pub fn from_block(block: RingBlock, packets: Vec<Packet>) -> Self {
        Self {
            memory: Memory::Block(block),
            packets,
        }
    }

    /// Creates a batch over a pooled buffer.
    pub fn from_buffer(buffer: Buffer, packets: Vec<Packet>) -> Self {
        Self {
            memory: Memory::Buffer(buffer),
            packets,
        }
    }

    /// Creates a batch over memory that belongs to it.
    pub fn from_bytes(bytes: Vec<u8>, packets: Vec<Packet>) -> Self {
        Self {
            memory: Memory::Heap(bytes),
            packets,
        }
    }

    /// Returns the whole memory; packets are ranges of it.
    pub fn bytes(&self) -> &[u8] {
        match &self.memory {
            Memory::Block(block) => block.bytes(),
            Memory::Buffer(buffer) => buffer.bytes(),
            Memory::Heap(bytes) => bytes,
        }
    }

    /// Returns the whole memory, to change packets in place.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Block(block) => block.bytes_mut(),
            Memory::Buffer(buffer) => buffer.bytes_mut(),
            Memory::Heap(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_ranges_that_change_in_place() {
        let packet = Packet {
            start: 2,
            len: 3,
            ..Packet::default()
        };
        let mut batch = Batch::from_bytes(vec![0, 1, 2, 3, 4, 5], vec![packet]);
        batch.bytes_mut()[2] = 9;
        let packet = batch.packets[0];
        let range = packet.start as usize..(packet.start + packet.len) as usize;
        assert_eq!(batch.bytes()[range], [9, 3, 4]);
        assert_eq!(batch.bytes().len(), 6);
    }
}
