//! Recognises copies by a fingerprint of their payload.
//!
//! The n-th packet with a payload on one path is the copy of the n-th packet with this payload on
//! the other path, so a sender may repeat a payload. A packet that one path itself has doubled
//! cannot be recognised.

use super::statistics::MergeStatistics;
use crate::model::MergePath;

/// Entries of a bucket.
const WAYS: usize = 8;

/// For how many packets a second there is room.
const PACKETS_PER_SECOND: u64 = 1_000_000;

/// A packet whose copy has not arrived.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    /// Zero if the entry is free.
    fingerprint: u64,
    /// Receive time. The lowest bit is the path.
    time_and_path: u64,
}

impl Entry {
    fn new(fingerprint: u64, path: MergePath, time_ns: u64) -> Self {
        Self {
            fingerprint,
            time_and_path: (time_ns & !1) | path.index() as u64,
        }
    }

    fn time_ns(self) -> u64 {
        self.time_and_path & !1
    }

    fn path(self) -> MergePath {
        match self.time_and_path & 1 {
            0 => MergePath::First,
            _ => MergePath::Second,
        }
    }
}

/// The packets of the last window whose copies have not arrived.
pub(super) struct Fingerprints {
    buckets: Vec<[Entry; WAYS]>,
    window_ns: u64,
}

impl Fingerprints {
    /// Returns an empty table for a window.
    pub fn new(window_ns: u64) -> Self {
        let packets = window_ns * PACKETS_PER_SECOND / 1_000_000_000;
        let buckets = (packets as usize / WAYS).next_power_of_two().max(64);
        Self {
            buckets: vec![[Entry::default(); WAYS]; buckets],
            window_ns,
        }
    }

    /// Notes a packet. Returns by how much it is later than the packet of the other path of which
    /// it is the copy; `None` if it is the first.
    pub fn push(
        &mut self,
        fingerprint: u64,
        path: MergePath,
        time_ns: u64,
        statistics: &mut MergeStatistics,
    ) -> Option<i64> {
        let window_ns = self.window_ns;
        let at = fingerprint as usize & (self.buckets.len() - 1);
        let bucket = &mut self.buckets[at];
        let is_copy = |e: &&mut Entry| {
            let is_within_window = time_ns.abs_diff(e.time_ns()) <= window_ns;
            e.fingerprint == fingerprint && e.path() != path && is_within_window
        };
        let oldest_copy = bucket.iter_mut().filter(is_copy);
        if let Some(entry) = oldest_copy.min_by_key(|e| e.time_ns()) {
            let skew = time_ns as i64 - entry.time_ns() as i64;
            *entry = Entry::default();
            return Some(skew);
        }
        let age = |e: &Entry| match e.fingerprint {
            0 => u64::MAX,
            _ => time_ns.saturating_sub(e.time_ns()),
        };
        if let Some(entry) = bucket.iter_mut().max_by_key(|e| age(e)) {
            if entry.fingerprint != 0 {
                statistics.lost[entry.path().other().index()] += 1;
                statistics.limited += u64::from(age(entry) <= window_ns);
            }
            *entry = Entry::new(fingerprint, path, time_ns);
        }
        None
    }

    /// Notes that the clock of the receive times was set back to `now_ns`.
    pub fn set_back(&mut self, now_ns: u64) {
        for entry in self.buckets.iter_mut().flatten() {
            *entry = Entry::new(entry.fingerprint, entry.path(), entry.time_ns().min(now_ns));
        }
    }

    /// Counts the packets whose copies have not arrived within the window.
    pub fn expire(&mut self, now_ns: u64, statistics: &mut MergeStatistics) {
        for entry in self.buckets.iter_mut().flatten() {
            let age = now_ns.saturating_sub(entry.time_ns());
            if entry.fingerprint != 0 && age > self.window_ns {
                statistics.lost[entry.path().other().index()] += 1;
                *entry = Entry::default();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    use MergePath::{First, Second};

    fn table() -> (Fingerprints, MergeStatistics) {
        (Fingerprints::new(50 * MS), MergeStatistics::default())
    }

    #[test]
    fn copy_within_the_window_is_recognised_once() {
        let (mut table, mut counts) = table();
        assert_eq!(table.push(7, First, 1000 * MS, &mut counts), None);
        assert_eq!(
            table.push(7, Second, 1030 * MS, &mut counts),
            Some(30 * MS as i64)
        );
        assert_eq!(table.push(7, Second, 1031 * MS, &mut counts), None);
        assert_eq!(table.push(7, First, 1082 * MS, &mut counts), None);
    }

    #[test]
    fn repeated_payload_is_paired_in_order() {
        let (mut table, mut counts) = table();
        for n in 0..3 {
            assert_eq!(table.push(7, First, (1000 + n) * MS, &mut counts), None);
        }
        for n in 0..3 {
            let skew = table.push(7, Second, (1010 + n) * MS, &mut counts);
            assert_eq!(skew, Some(10 * MS as i64));
        }
        assert_eq!(table.push(7, Second, 1014 * MS, &mut counts), None);
    }

    #[test]
    fn packets_without_copy_are_counted_as_lost_on_the_other_path() {
        let (mut table, mut counts) = table();
        table.push(7, First, 1000 * MS, &mut counts);
        table.push(8, Second, 1001 * MS, &mut counts);
        table.push(9, Second, 1001 * MS, &mut counts);
        table.expire(1050 * MS, &mut counts);
        assert_eq!(counts.lost, [0, 0]);
        table.expire(1100 * MS, &mut counts);
        assert_eq!(counts.lost, [2, 1]);
    }
}
