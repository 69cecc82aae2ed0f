//! Times between packets, as a histogram in constant memory.

use crate::api::streams::InterArrivalView;

/// Each power of two is divided into this many buckets, so a bucket is at most 1/16 wide.
const BUCKETS_PER_OCTAVE: u64 = 16;

/// Times from 2^36 ns, or 69 seconds, share the last bucket.
const OCTAVES: u64 = 36;

const BUCKETS: usize = ((OCTAVES - 3) * BUCKETS_PER_OCTAVE) as usize;

/// How long a histogram counts, before the next one takes its place.
const PERIOD_NS: u64 = 30_000_000_000;

/// The times between the packets of the last 30 to 60 seconds.
#[derive(Debug, Clone, Default)]
pub struct InterArrival {
    last_ns: Option<u64>,
    /// Number of the current period.
    period: u64,
    current: Histogram,
    before: Histogram,
}

#[derive(Debug, Clone)]
struct Histogram {
    counts: Box<[u32; BUCKETS]>,
    total: u64,
    max_ns: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: Box::new([0; BUCKETS]),
            total: 0,
            max_ns: 0,
        }
    }
}

impl Histogram {
    fn clear(&mut self) {
        self.counts.fill(0);
        (self.total, self.max_ns) = (0, 0);
    }
}

/// Returns the bucket of a time: the exponent and the next four bits of the number.
fn bucket(ns: u64) -> usize {
    if ns < BUCKETS_PER_OCTAVE {
        return ns as usize;
    }
    let exponent = u64::from(ns.ilog2());
    let mantissa = (ns >> (exponent - 4)) & 0xf;
    (((exponent - 3) * BUCKETS_PER_OCTAVE + mantissa) as usize).min(BUCKETS - 1)
}

/// Returns the longest time of a bucket.
fn upper_ns(bucket: usize) -> u64 {
    let (octave, mantissa) = (bucket as u64 / 16, bucket as u64 % 16);
    match octave {
        0 => mantissa,
        _ => ((16 + mantissa + 1) << (octave - 1)) - 1,
    }
}

impl InterArrival {
    /// Counts the time since the packet before.
    pub fn add(&mut self, now_ns: u64) {
        self.advance(now_ns);
        if let Some(last) = self.last_ns.replace(now_ns) {
            let ns = now_ns.saturating_sub(last);
            let histogram = &mut self.current;
            if let Some(count) = histogram.counts.get_mut(bucket(ns)) {
                *count = count.saturating_add(1);
            }
            histogram.total += 1;
            histogram.max_ns = histogram.max_ns.max(ns);
        }
    }

    /// Starts another period, if the time of the current one is over.
    fn advance(&mut self, now_ns: u64) {
        let period = now_ns / PERIOD_NS;
        if period <= self.period {
            return;
        }
        if period > self.period + 1 {
            self.current.clear();
        }
        std::mem::swap(&mut self.current, &mut self.before);
        self.current.clear();
        self.period = period;
    }

    /// Returns the median, the 99th percentile and the longest time; `None` without any.
    pub fn view(&mut self, now_ns: u64) -> Option<InterArrivalView> {
        self.advance(now_ns);
        let total = self.current.total + self.before.total;
        if total == 0 {
            return None;
        }
        let max_ns = self.current.max_ns.max(self.before.max_ns);
        let percentile = |percent: u64| {
            // The smallest time that is not shorter than this share of all.
            let rank = (total * percent).div_ceil(100);
            let mut sum = 0;
            let counts = self.current.counts.iter().zip(self.before.counts.iter());
            let bucket = counts.enumerate().find_map(|(bucket, (a, b))| {
                sum += u64::from(*a) + u64::from(*b);
                (sum >= rank).then_some(bucket)
            });
            bucket.map_or(max_ns, |bucket| upper_ns(bucket).min(max_ns))
        };
        Some(InterArrivalView {
            p50_us: percentile(50) / 1000,
            p99_us: percentile(99) / 1000,
            max_us: max_ns / 1000,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_in_a_bucket_of_at_most_a_sixteenth() {
        let mut times: Vec<u64> = (0..10_000).collect();
        times.extend((0..36).flat_map(|n| [(1u64 << n) - 1, 1 << n, (1 << n) + 1]));
        for ns in times {
            let upper = upper_ns(bucket(ns));
            assert!(upper >= ns, "{ns} {upper}");
            assert!(upper <= ns + ns / 16, "{ns} {upper}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_are_those_of_the_times() {
        let mut times = InterArrival::default();
        let mut now_ns = 1_000_000_000;
        times.add(now_ns);
        assert_eq!(times.view(now_ns), None);
        // 980 times 1 ms, 20 times 40 ms, one of them 90 ms.
        for n in 0..1000u64 {
            now_ns += match n % 50 {
                0 if n == 500 => 90_000_000,
                0 => 40_000_000,
                _ => 1_000_000,
            };
            times.add(now_ns);
        }
        let view = times.view(now_ns).unwrap();
        assert!((1000..=1063).contains(&view.p50_us), "{view:?}");
        assert!((40_000..=42_500).contains(&view.p99_us), "{view:?}");
        assert_eq!(view.max_us, 90_000);
    }

    #[test]
    fn times_are_forgotten_after_a_minute() {
        let mut times = InterArrival::default();
        times.add(0);
        times.add(5_000_000);
        assert_eq!(times.view(59_000_000_000).unwrap().max_us, 5000);
        assert_eq!(times.view(60_000_000_000), None);
    }
}
