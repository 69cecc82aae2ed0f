//! The latest packets of a stream, bounded by time and by bytes.

use std::collections::VecDeque;
use std::time::Duration;

/// What a packet takes besides its bytes: the entry of the ring and of the allocator.
const OVERHEAD: usize = 48;

const NS_PER_SECOND: u64 = 1_000_000_000;

/// A captured packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingPacket {
    /// Time of reception, in nanoseconds since 1970.
    pub received_ns: u64,
    /// The packet from the IP header on.
    pub bytes: Box<[u8]>,
}

/// The packets that a ring held.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RingContents {
    /// The packets in order of arrival.
    pub packets: Vec<RingPacket>,
    /// How many older packets of the same time were left out, because of the limit of bytes.
    pub left_out: u64,
}

/// Holds the packets of the last time.
#[derive(Debug)]
pub struct PacketRing {
    duration_ns: u64,
    max_bytes: usize,
    packets: VecDeque<RingPacket>,
    bytes: usize,
    /// Packets that were left out because of `max_bytes`, by the second of their reception.
    left_out: VecDeque<(u64, u64)>,
}

impl PacketRing {
    /// Creates a ring for the packets of the last `duration`, with `max_bytes` at most.
    pub fn new(duration: Duration, max_bytes: usize) -> Self {
        Self {
            duration_ns: u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX),
            max_bytes,
            packets: VecDeque::new(),
            bytes: 0,
            left_out: VecDeque::new(),
        }
    }

    /// Adds a packet. Removes the oldest ones for which there is no room.
    pub fn push(&mut self, received_ns: u64, bytes: &[u8]) {
        self.expire(received_ns);
        self.bytes += bytes.len() + OVERHEAD;
        self.packets.push_back(RingPacket {
            received_ns,
            bytes: bytes.into(),
        });
        while self.bytes > self.max_bytes {
            let Some(oldest) = self.remove_oldest() else {
                break;
            };
            let second = oldest.received_ns / NS_PER_SECOND;
            match self.left_out.back_mut() {
                Some((last, packets)) if *last == second => *packets += 1,
                _ => self.left_out.push_back((second, 1)),
            }
        }
    }

    /// Removes the packets that are too old at `now_ns`.
    pub fn expire(&mut self, now_ns: u64) {
        let oldest_ns = now_ns.saturating_sub(self.duration_ns);
        while self
            .packets
            .front()
            .is_some_and(|p| p.received_ns < oldest_ns)
        {
            self.remove_oldest();
        }
        let oldest_second = oldest_ns / NS_PER_SECOND;
        while self
            .left_out
            .front()
            .is_some_and(|(second, _)| *second < oldest_second)
        {
            self.left_out.pop_front();
        }
    }

    fn remove_oldest(&mut self) -> Option<RingPacket> {
        let oldest = self.packets.pop_front()?;
        self.bytes -= oldest.bytes.len() + OVERHEAD;
        Some(oldest)
    }

    /// Returns whether there is no packet.
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Puts back what was taken out of the ring, which is empty since then.
    pub fn put_back(&mut self, contents: RingContents) {
        if let Some(first) = contents.packets.first() {
            let second = first.received_ns / NS_PER_SECOND;
            let left_out = (contents.left_out > 0).then_some((second, contents.left_out));
            self.left_out.extend(left_out);
        }
        for packet in contents.packets {
            self.push(packet.received_ns, &packet.bytes);
        }
    }

    /// Takes all packets out.
    pub fn take(&mut self) -> RingContents {
        self.bytes = 0;
        let left_out = self.left_out.drain(..).map(|(_, packets)| packets).sum();
        RingContents {
            packets: self.packets.drain(..).collect(),
            left_out,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = NS_PER_SECOND;

    fn times(contents: &RingContents) -> Vec<u64> {
        contents
            .packets
            .iter()
            .map(|p| p.received_ns / SECOND)
            .collect()
    }

    #[test]
    fn packets_of_the_last_time_are_kept() {
        let mut ring = PacketRing::new(Duration::from_secs(60), 1 << 20);
        (0..100).for_each(|second| ring.push(second * SECOND, b"packet"));
        let contents = ring.take();
        assert_eq!(times(&contents), (39..100).collect::<Vec<_>>());
        assert_eq!(contents.left_out, 0);
        assert!(ring.is_empty());
        ring.push(100 * SECOND, b"packet");
        ring.expire(161 * SECOND);
        assert!(ring.is_empty());
    }

    #[test]
    fn byte_limit_removes_the_oldest_and_counts_them() {
        let mut ring = PacketRing::new(Duration::from_secs(60), 10 * (100 + OVERHEAD));
        for n in 0..50 {
            ring.push(n * SECOND / 2, &[0; 100]);
        }
        let contents = ring.take();
        assert_eq!(contents.packets.len(), 10);
        assert_eq!(contents.left_out, 40);
        ring.put_back(contents.clone());
        assert_eq!(ring.take(), contents);
        // Those that are too old by now are not missing.
        (0..20).for_each(|n| ring.push(n * SECOND, &[0; 100]));
        ring.expire(65 * SECOND);
        let contents = ring.take();
        assert_eq!((contents.packets.len(), contents.left_out), (10, 5));
        // A packet that is larger than the limit.
        ring.push(66 * SECOND, &[0; 5000]);
        assert_eq!(ring.take().left_out, 1);
    }
}
