//! How much of a stream another forwarder sends, compared with what this router has to send.
//!
//! A router yields a stream to a station that sends it. A station that sends only a few of its
//! packets, such as a host that forges them, must not take the stream from the other hosts of the
//! link.

use super::slot_table::{age_ms, stamp};

/// Shortest time over which the two are compared, in milliseconds.
const WINDOW_MS: u64 = 1000;

/// Longest such time, where this router has less than [`MIN_OWN`] to send.
const MAX_WINDOW_MS: u64 = 10_000;

/// Bytes in a unit.
const UNIT: u64 = 64;

/// Fewer units of this router are not compared: a single packet may still be on its way.
const MIN_OWN: u64 = 4096 / UNIT;

const COUNT_BITS: u32 = 20;
const MAX_COUNT: u64 = (1 << COUNT_BITS) - 1;
const OWN_SHIFT: u32 = 23;
const OTHER_SHIFT: u32 = OWN_SHIFT + COUNT_BITS;
const INCOMPLETE: u64 = 1 << 63;

/// The comparison in one word: the start of the window in the low 23 bits, the units that this
/// router had to send, those of the other station, and the last result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ForwarderShare(u64);

impl ForwarderShare {
    /// Starts a comparison.
    pub(super) fn new(now_ms: u64) -> Self {
        Self(stamp(now_ms))
    }

    /// Returns the comparison that a word contains.
    pub(super) fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// Returns the word.
    pub(super) fn word(self) -> u64 {
        self.0
    }

    /// Returns whether the station sent less than half of the stream in the last complete window.
    pub(super) fn is_incomplete(self) -> bool {
        self.0 & INCOMPLETE != 0
    }

    /// Adds a packet that this router has to send, whether or not it withholds it.
    pub(super) fn with_own(self, bytes: u64, now_ms: u64) -> Self {
        self.compared(now_ms).plus(bytes.div_ceil(UNIT), 0)
    }

    /// Adds a packet of the other station.
    pub(super) fn with_other(self, bytes: u64, now_ms: u64) -> Self {
        self.compared(now_ms).plus(0, bytes.div_ceil(UNIT))
    }

    fn own(self) -> u64 {
        self.0 >> OWN_SHIFT & MAX_COUNT
    }

    fn other(self) -> u64 {
        self.0 >> OTHER_SHIFT & MAX_COUNT
    }

    /// Ends the window if its time is over, and starts the next one.
    fn compared(self, now_ms: u64) -> Self {
        let age_ms = age_ms(self.0, now_ms);
        let is_enough = self.own() >= MIN_OWN;
        if age_ms < WINDOW_MS || !is_enough && age_ms < MAX_WINDOW_MS {
            return self;
        }
        let is_incomplete = match is_enough {
            true => 2 * self.other() < self.own(),
            false => self.is_incomplete(),
        };
        Self(stamp(now_ms) | if is_incomplete { INCOMPLETE } else { 0 })
    }

    /// Adds units. Where a count would overflow, both are halved, which keeps their ratio.
    fn plus(self, own: u64, other: u64) -> Self {
        let (mut own, mut other) = (self.own() + own, self.other() + other);
        while own.max(other) > MAX_COUNT {
            (own, other) = (own / 2, other / 2);
        }
        let rest = self.0 & INCOMPLETE | stamp(self.0);
        Self(rest | own << OWN_SHIFT | other << OTHER_SHIFT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends packets of 200 bytes every 10 ms from the first time to the second, of which the other
    /// station copies one in `every`.
    fn stream(
        mut share: ForwarderShare,
        (from, to): (u64, u64),
        every: Option<u64>,
    ) -> ForwarderShare {
        for now_ms in (from..to).step_by(10) {
            share = share.with_own(200, now_ms);
            if every.is_some_and(|every| now_ms / 10 % every == 0) {
                share = share.with_other(200, now_ms + 1);
            }
        }
        share
    }

    #[test]
    fn station_that_sends_less_than_half_is_incomplete() {
        let share = ForwarderShare::new(0);
        assert!(!stream(share, (0, 5000), Some(1)).is_incomplete());
        assert!(!stream(share, (0, 5000), Some(2)).is_incomplete());
        assert!(stream(share, (0, 5000), Some(3)).is_incomplete());
        assert!(stream(share, (0, 5000), None).is_incomplete());
    }

    #[test]
    fn first_result_is_after_a_second_and_changes_each_second() {
        let share = stream(ForwarderShare::new(0), (0, 1000), Some(50));
        assert!(!share.is_incomplete());
        let share = stream(share, (1000, 1010), Some(50));
        assert!(share.is_incomplete());
        let share = stream(share, (1010, 3010), Some(1));
        assert!(!share.is_incomplete());
        assert!(stream(share, (3010, 5010), Some(50)).is_incomplete());
    }

    #[test]
    fn slow_stream_is_compared_over_a_longer_time() {
        let mut share = ForwarderShare::new(0);
        // 200 bytes a second; 4096 bytes take 16 packets of four units.
        for second in 0..10 {
            share = share.with_own(200, second * 1000);
        }
        assert!(!share.is_incomplete());
        // The first window had too little.
        for second in 10..40 {
            share = share.with_own(400, second * 1000);
        }
        assert!(share.is_incomplete());
        // A packet of the station that is not judged by one packet of this router.
        share = ForwarderShare::new(0).with_own(1400, 0);
        assert!(!share.with_own(1400, 5000).is_incomplete());
    }

    #[test]
    fn offloaded_packets_are_compared_by_their_bytes() {
        let mut share = ForwarderShare::new(0);
        for now_ms in (0..3000).step_by(10) {
            // Sixteen datagrams in one packet on one side.
            (0..16).for_each(|_| share = share.with_own(1228, now_ms));
            share = share.with_other(16 * 1200 + 28, now_ms);
        }
        assert!(!share.is_incomplete());
    }

    #[test]
    fn high_rates_keep_the_ratio() {
        for (other, incomplete) in [(40_000, false), (20_000, true)] {
            let mut share = ForwarderShare::new(0);
            for now_ms in 0..2500 {
                (0..20).for_each(|_| share = share.with_own(65_000, now_ms));
                (0..20).for_each(|_| share = share.with_other(other, now_ms));
            }
            assert_eq!(share.is_incomplete(), incomplete);
        }
    }

    #[test]
    fn clock_wrap_does_not_matter() {
        let start = (1 << 23) - 500;
        let share = stream(ForwarderShare::new(start), (start, start + 3000), None);
        assert!(share.is_incomplete());
    }
}
