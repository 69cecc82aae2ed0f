//! Fingerprints of recently forwarded packets, for routes whose TTL policy does not end a loop.
//!
//! A packet that returns differs from the packet that left only in the TTL and the IPv4 header
//! checksum. The fingerprint covers everything else, and the egresses. A packet is a returned packet
//! if a packet with the same fingerprint was forwarded less than [`WINDOW_MS`] ago: an identical
//! packet, to the same interfaces. So every dropped packet was already sent to its receivers, and a
//! copy that another route forwards elsewhere does not stop the original.
//!
//! The table is a hash table of fixed size with four slots per bucket; a new fingerprint replaces
//! the oldest one in its bucket. All workers share the table without locks. Two workers that
//! receive identical packets at the same time may forward both; the loop then ends when they
//! return.

use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

use ahash::RandomState;

use crate::wire::ip::{IPV4_MIN_HEADER_LEN, IPV6_HEADER_LEN};

/// Lifetime of a fingerprint in milliseconds. It is longer than the round trip of a loop through a
/// few routers, and shorter than the usual pause between identical packets of a sender.
pub const WINDOW_MS: u64 = 500;

/// Slots per bucket.
const WAYS: usize = 4;
const BUCKETS: usize = 1 << 15;
const TIME_BITS: u32 = 24;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;

/// The table of fingerprints; 1 MiB.
pub struct LoopGuard {
    seed: RandomState,
    /// Each slot has 40 bits of fingerprint and 24 bits of milliseconds. Zero is an empty slot.
    slots: Box<[AtomicU64]>,
}

impl Default for LoopGuard {
    fn default() -> Self {
        Self {
            seed: RandomState::new(),
            slots: (0..WAYS * BUCKETS).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl LoopGuard {
    /// Returns whether an identical packet was forwarded to the same egresses within the last
    /// [`WINDOW_MS`]. If not, stores the fingerprint. `egresses` is a hash of the egresses; `packet`
    /// is the packet as it is sent; `now_ms` is the time in milliseconds of a monotonic clock.
    pub fn recognises(&self, egresses: u64, packet: &[u8], now_ms: u64) -> bool {
        let fingerprint = self.fingerprint(egresses, packet);
        let bucket = (fingerprint as usize % BUCKETS) * WAYS;
        let tag = fingerprint & !TIME_MASK;
        // Zero is an empty slot.
        let now = (now_ms & TIME_MASK).max(1);
        let slots = &self.slots[bucket..bucket + WAYS];
        let mut oldest = (0, 0);
        for (i, slot) in slots.iter().enumerate() {
            let stored = slot.load(Ordering::Relaxed);
            let age = if stored == 0 {
                u64::MAX
            } else {
                now.wrapping_sub(stored) & TIME_MASK
            };
            if stored & !TIME_MASK == tag && age < WINDOW_MS {
                // Keeps the first time: a sender of identical packets loses only those within the
                // window, not all of them.
                return true;
            }
            if age >= oldest.1 {
                oldest = (i, age);
            }
        }
        slots[oldest.0].store(tag | now, Ordering::Relaxed);
        false
    }

    fn fingerprint(&self, egresses: u64, packet: &[u8]) -> u64 {
        let mut hasher = self.seed.build_hasher();
        hasher.write_u64(egresses);
        match packet.first().map(|b| b >> 4) {
            Some(4) if packet.len() >= IPV4_MIN_HEADER_LEN => {
                hasher.write(&packet[..8]);
                hasher.write_u8(packet[9]);
                hasher.write(&packet[12..]);
            }
            Some(6) if packet.len() >= IPV6_HEADER_LEN => {
                hasher.write(&packet[..7]);
                hasher.write(&packet[8..]);
            }
            _ => hasher.write(packet),
        }
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ip::{refresh_ipv4_checksum, set_ttl};
    use proptest::prelude::*;

    fn packet(id: u16, body: &[u8]) -> Vec<u8> {
        let mut p = vec![0u8; 20];
        p[0] = 0x45;
        p[2..4].copy_from_slice(&((20 + body.len()) as u16).to_be_bytes());
        p[4..6].copy_from_slice(&id.to_be_bytes());
        p[8] = 8;
        p[9] = 17;
        p[12..20].copy_from_slice(&[10, 0, 0, 1, 225, 1, 2, 3]);
        p.extend_from_slice(body);
        refresh_ipv4_checksum(&mut p);
        p
    }

    fn recognises(guard: &LoopGuard, packet: &[u8], now_ms: u64) -> bool {
        guard.recognises(1, packet, now_ms)
    }

    #[test]
    fn packet_with_another_ttl_is_recognised() {
        let guard = LoopGuard::default();
        let mut p = packet(7, b"hello");
        assert!(!recognises(&guard, &p, 1000));
        set_ttl(&mut p, 3);
        assert!(recognises(&guard, &p, 1001));
        assert!(recognises(&guard, &p, 1000 + WINDOW_MS - 1));
        assert!(!recognises(&guard, &p, 1000 + WINDOW_MS));
        let mut v6 = vec![0u8; 48];
        v6[0] = 0x60;
        v6[7] = 8;
        assert!(!recognises(&guard, &v6, 1000));
        v6[7] = 7;
        assert!(recognises(&guard, &v6, 1001));
    }

    /// Every bit of the header except TTL and IPv4 header checksum distinguishes packets.
    #[test]
    fn packet_that_differs_elsewhere_is_new() {
        let mut v6 = vec![0u8; 48];
        v6[0] = 0x60;
        for (packet, ignored) in [(packet(7, b"hello"), &[8, 10, 11][..]), (v6, &[7])] {
            for at in 1..packet.len() {
                let guard = LoopGuard::default();
                let mut other = packet.clone();
                other[at] ^= 1;
                assert!(!recognises(&guard, &packet, 1000));
                let is_same = recognises(&guard, &other, 1000);
                assert_eq!(is_same, ignored.contains(&at), "byte {at}");
            }
            let guard = LoopGuard::default();
            assert!(!recognises(&guard, &packet, 1000));
            assert!(!recognises(&guard, &[&packet[..], b"!"].concat(), 1000));
        }
    }

    #[test]
    fn same_packet_to_other_egresses_is_new() {
        let guard = LoopGuard::default();
        let p = packet(7, b"hello");
        assert!(!guard.recognises(1, &p, 1000));
        assert!(!guard.recognises(2, &p, 1001));
        assert!(guard.recognises(1, &p, 1002));
        assert!(guard.recognises(2, &p, 1002));
    }

    #[test]
    fn clock_wrap_is_tolerated() {
        let guard = LoopGuard::default();
        let p = packet(7, b"hello");
        assert!(!recognises(&guard, &p, TIME_MASK));
        assert!(recognises(&guard, &p, TIME_MASK + 10));
    }

    proptest! {
        #[test]
        fn distinct_packets_are_not_recognised(ids in proptest::collection::hash_set(any::<u16>(), 0..2000)) {
            let guard = LoopGuard::default();
            for id in ids {
                prop_assert!(!recognises(&guard, &packet(id, b"x"), 5));
            }
        }
    }
}
