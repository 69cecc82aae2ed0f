//! A batch of captured packets in the memory they were captured into.

use crate::sys::buffer::Buffer;
use crate::sys::ring::RingBlock;

pub use crate::sys::packet::Frame as Packet;

/// Memory of a batch.
pub(super) enum Memory {
    /// A block of a ring shared with the kernel; dropping it gives it back.
    Block(RingBlock),
    /// A pooled buffer; dropping it gives it back.
    Buffer(Buffer),
    /// Memory of our own.
    Heap(Vec<u8>),
}

/// Packets, and the memory they stand in.
pub struct Batch {
    memory: Memory,
    /// The packets in the order they came in.
    pub packets: Vec<Packet>,
}

impl Batch {
    /// A batch over a block of a ring.
    pub fn from_block(block: RingBlock, packets: Vec<Packet>) -> Self {
        Self {
            memory: Memory::Block(block),
            packets,
        }
    }

    /// A batch over a pooled buffer.
    pub fn from_buffer(buffer: Buffer, packets: Vec<Packet>) -> Self {
        Self {
            memory: Memory::Buffer(buffer),
            packets,
        }
    }

    /// A batch over memory of our own.
    pub fn from_bytes(bytes: Vec<u8>, packets: Vec<Packet>) -> Self {
        Self {
            memory: Memory::Heap(bytes),
            packets,
        }
    }

    /// All bytes; packets are ranges of these.
    pub fn bytes(&self) -> &[u8] {
        match &self.memory {
            Memory::Block(block) => block.bytes(),
            Memory::Buffer(buffer) => buffer.bytes(),
            Memory::Heap(bytes) => bytes,
        }
    }

    /// All bytes, to change packets in place.
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
    fn packets_are_ranges_of_the_bytes_and_change_in_place() {
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
