//! The rates of a stream: of the last full second, and the highest within 10 ms of it.

use crate::api::streams::StreamRate;

const SECOND_NS: u64 = 1_000_000_000;
const SLICE_NS: u64 = 10_000_000;

/// Measures the rates of a stream.
#[derive(Debug, Clone, Default)]
pub struct RateMeter {
    /// The number of the current second.
    second: u64,
    /// Packets and bytes of the current second.
    current: (u64, u64),
    /// The number of the current 10 ms, and its packets and bytes.
    slice: u64,
    in_slice: (u64, u64),
    /// The most packets, and the most bytes, in 10 ms of the current second.
    peak: (u64, u64),
    /// The rates of the second before.
    last: StreamRate,
}

impl RateMeter {
    /// Counts packets and their bytes.
    pub fn add(&mut self, packets: u64, bytes: u64, now_ns: u64) {
        self.advance(now_ns);
        let slice = now_ns / SLICE_NS;
        if slice != self.slice {
            self.slice = slice;
            self.in_slice = (0, 0);
        }
        self.in_slice = (self.in_slice.0 + packets, self.in_slice.1 + bytes);
        self.peak.0 = self.peak.0.max(self.in_slice.0);
        self.peak.1 = self.peak.1.max(self.in_slice.1);
        self.current = (self.current.0 + packets, self.current.1 + bytes);
    }

    /// Ends the current second, if its time is over. A clock that was set back does not end it.
    fn advance(&mut self, now_ns: u64) {
        let now = now_ns / SECOND_NS;
        if now <= self.second && self.second - now < 2 {
            return;
        }
        self.last = match now == self.second + 1 {
            true => StreamRate {
                packets_per_second: self.current.0,
                bits_per_second: self.current.1 * 8,
                peak_10ms_packets: self.peak.0,
                peak_10ms_bits: self.peak.1 * 8,
            },
            false => StreamRate::default(),
        };
        self.second = now;
        (self.current, self.peak, self.in_slice) = ((0, 0), (0, 0), (0, 0));
    }

    /// Returns the rates of the last full second.
    pub fn rates(&self, now_ns: u64) -> StreamRate {
        let mut meter = self.clone();
        meter.advance(now_ns);
        meter.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn rates_are_those_of_the_last_full_second() {
        let mut meter = RateMeter::default();
        // 100 packets of 200 bytes in 1 s, ten of them within 10 ms.
        let start = 50 * SECOND_NS;
        (0..90).for_each(|n| meter.add(1, 200, start + n * 10 * MS));
        (0..10).for_each(|n| meter.add(1, 200, start + 950 * MS + n * MS / 2));
        assert_eq!(meter.rates(start + 999 * MS), StreamRate::default());
        let expected = StreamRate {
            packets_per_second: 100,
            bits_per_second: 160_000,
            peak_10ms_packets: 10,
            peak_10ms_bits: 16_000,
        };
        assert_eq!(meter.rates(start + 1000 * MS), expected);
        assert_eq!(meter.rates(start + 1999 * MS), expected);
        assert_eq!(meter.rates(start + 2000 * MS), StreamRate::default());
        meter.add(1, 200, start + 1500 * MS);
        assert_eq!(meter.rates(start + 1500 * MS), expected);
        assert_eq!(meter.rates(start + 2500 * MS).packets_per_second, 1);
    }

    #[test]
    fn clock_that_is_set_back_starts_a_new_second() {
        let mut meter = RateMeter::default();
        meter.add(1, 100, 50 * SECOND_NS);
        meter.add(1, 100, 50 * SECOND_NS - MS);
        assert_eq!(meter.rates(51 * SECOND_NS).packets_per_second, 2);
        meter.add(1, 100, 10 * SECOND_NS);
        assert_eq!(meter.rates(11 * SECOND_NS).packets_per_second, 1);
    }
}
