//! The packets that wait for an earlier one.

use std::net::IpAddr;

use crate::model::{InterfaceId, MergePath};
use crate::streams::StreamId;

/// Limit of held packets of one merge.
const MAX_PACKETS: usize = 1 << 15;

/// Limit of their bytes.
const MAX_BYTES: usize = 64 << 20;

/// The longest IP packet.
const MAX_PACKET: usize = 65_535;

/// Buffers of at most this size are used again.
const KEPT_CAPACITY: usize = 2048;

/// A held packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldPacket {
    /// The IP packet as it leaves.
    pub bytes: Vec<u8>,
    /// The path that brought it.
    pub path: MergePath,
    /// The interface on which it arrived.
    pub ingress: InterfaceId,
    /// The source and group with which it arrived.
    pub stream: (IpAddr, IpAddr),
    /// The identity of this stream, if it is monitored.
    pub monitored: Option<StreamId>,
    /// The TTL with which it arrived.
    pub ttl: u8,
    /// Receive time, in nanoseconds of `CLOCK_REALTIME`.
    pub received_ns: u64,
}

/// The held packets of a merge, by number. Buffers are used again, so that a packet needs no
/// allocation.
#[derive(Default)]
pub(super) struct HeldPackets {
    packets: Vec<Option<HeldPacket>>,
    free: Vec<u32>,
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

impl HeldPackets {
    /// Returns whether there may be no room for another packet.
    pub fn is_full(&self) -> bool {
        self.len() >= MAX_PACKETS || self.bytes + MAX_PACKET > MAX_BYTES
    }

    /// Returns the number of packets.
    pub fn len(&self) -> usize {
        self.packets.len() - self.free.len()
    }

    /// Holds a packet with a copy of `bytes`. Returns its number.
    pub fn insert(&mut self, mut packet: HeldPacket, bytes: &[u8]) -> u32 {
        let mut buffer = self.buffers.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(bytes);
        self.bytes += bytes.len();
        packet.bytes = buffer;
        match self.free.pop() {
            Some(number) => {
                self.packets[number as usize] = Some(packet);
                number
            }
            None => {
                self.packets.push(Some(packet));
                self.packets.len() as u32 - 1
            }
        }
    }

    /// Returns a held packet.
    pub fn get(&self, number: u32) -> Option<&HeldPacket> {
        self.packets.get(number as usize)?.as_ref()
    }

    /// Ends to hold a packet.
    pub fn remove(&mut self, number: u32) {
        let Some(packet) = self.packets.get_mut(number as usize).and_then(Option::take) else {
            return;
        };
        self.bytes -= packet.bytes.len();
        self.free.push(number);
        if packet.bytes.capacity() <= KEPT_CAPACITY {
            self.buffers.push(packet.bytes);
        }
    }
}
