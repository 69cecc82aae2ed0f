//! A table of fixed size that threads share without locks: state of streams, by hash.
//!
//! A key hashes to a bucket of eight slots, of which the one that was not used for longest is
//! replaced. So senders that invent streams cannot make the table grow. If there are more streams
//! than slots, the state of some is lost.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Slots in a bucket.
const WAYS: usize = 8;

/// The low bits of [`StreamSlot::state`] are the time of the last use.
const TIME_BITS: u32 = 23;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;

/// The state of one stream.
#[derive(Default)]
pub(super) struct StreamSlot {
    /// The hash; zero if the slot is empty.
    key: AtomicU64,
    /// State that changes as a whole. Its low bits are the [time of the last use](stamp).
    pub(super) state: AtomicU64,
    /// More state.
    pub(super) extra: AtomicU64,
    /// State that changes independently of the rest.
    pub(super) share: AtomicU64,
}

/// Returns the bits of a state for a time of last use. `now_ms` is a monotonic time in
/// milliseconds.
pub(super) fn stamp(now_ms: u64) -> u64 {
    now_ms & TIME_MASK
}

/// Returns the bits of a state without the time.
pub(super) fn without_stamp(state: u64) -> u64 {
    state & !TIME_MASK
}

/// Returns the time since the last use of a state in milliseconds. It is too small if that is
/// more than an hour ago.
pub(super) fn age_ms(state: u64, now_ms: u64) -> u64 {
    let age_ms = now_ms.wrapping_sub(state) & TIME_MASK;
    // Threads read the clock at different moments: a state may be newer than `now_ms`.
    match age_ms <= TIME_MASK / 2 {
        true => age_ms,
        false => 0,
    }
}

/// Slots of streams whose keys hash to the same value.
type Bucket = [StreamSlot; WAYS];

/// The table. Its memory is allocated for the first stream, and that of a bucket for the first stream
/// in it.
pub(super) struct SlotTable {
    buckets: usize,
    slots: OnceLock<Box<[OnceLock<Box<Bucket>>]>>,
}

impl SlotTable {
    /// Returns an empty table for `8 * buckets` streams.
    pub(super) fn new(buckets: usize) -> Self {
        Self {
            buckets,
            slots: OnceLock::new(),
        }
    }

    fn bucket(&self, key: u64) -> usize {
        key as usize % self.buckets
    }

    /// Returns the slot of a stream. `key` is not zero.
    pub(super) fn find(&self, key: u64) -> Option<&StreamSlot> {
        let slots = self.slots.get()?[self.bucket(key)].get()?;
        slots.iter().find(|s| s.key.load(Ordering::Relaxed) == key)
    }

    /// Gives a stream without a slot the least recently used one, with this state.
    pub(super) fn insert(&self, key: u64, state: u64, (extra, share): (u64, u64), now_ms: u64) {
        let new = || (0..self.buckets).map(|_| OnceLock::new()).collect();
        let slots = &self.slots.get_or_init(new)[self.bucket(key)];
        let slots = slots.get_or_init(Box::default);
        let age = |slot: &&StreamSlot| match slot.key.load(Ordering::Relaxed) {
            0 => u64::MAX,
            _ => age_ms(slot.state.load(Ordering::Relaxed), now_ms),
        };
        if let Some(slot) = slots.iter().max_by_key(age) {
            slot.extra.store(extra, Ordering::Relaxed);
            slot.share.store(share, Ordering::Relaxed);
            slot.state.store(state, Ordering::Relaxed);
            slot.key.store(key, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_recently_used_slot_is_replaced() {
        let table = SlotTable::new(1);
        for key in 1..=8 {
            table.insert(key, stamp(100 + key), (key, 0), 100 + key);
        }
        table
            .find(1)
            .unwrap()
            .state
            .store(stamp(200), Ordering::Relaxed);
        table.insert(9, stamp(201), (9, 0), 201);
        assert!(table.find(2).is_none());
        for key in [1, 3, 4, 5, 6, 7, 8, 9] {
            let slot = table.find(key).unwrap();
            assert_eq!(slot.extra.load(Ordering::Relaxed), key);
        }
    }

    #[test]
    fn age_is_correct_across_clock_wrap() {
        let late = TIME_MASK - 10;
        assert_eq!(age_ms(stamp(late), late + 100), 100);
        assert_eq!(age_ms(stamp(100), 99), 0);
        assert_eq!(age_ms(0xff << TIME_BITS | stamp(5), 7), 2);
        assert_eq!(without_stamp(0xff << TIME_BITS | 5), 0xff << TIME_BITS);
    }
}
