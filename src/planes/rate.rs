//! Which way of taking packets in suits the rate they come at.
//!
//! One by one costs the least time for a packet and the most work; whole blocks the other way
//! round. Upward decides what came within some milliseconds, by the times the kernel received
//! it at, so that a stall of ours looks like nothing. Downward decides our own clock, since a
//! stream that ends brings no more packets to decide by.

use std::time::{Duration, Instant};

/// How packets are taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Each as it comes.
    Latency,
    /// In blocks.
    Throughput,
}

impl Mode {
    /// The word metrics use.
    pub fn label(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Throughput => "throughput",
        }
    }
}

/// When to change the mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// To throughput above this many packets a second,
    pub up: u64,
    /// measured over at least this long.
    pub window: Duration,
    /// To latency below this many packets a second,
    pub down: u64,
    /// for this long without interruption.
    pub quiet: Duration,
    /// The ring of blocks is given back when it was not needed for this long.
    pub keep: Duration,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            up: 30_000,
            window: Duration::from_millis(10),
            down: 10_000,
            quiet: Duration::from_secs(1),
            keep: Duration::from_secs(60),
        }
    }
}

/// What a look at the clock calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// Nothing.
    Stay,
    /// Change to [`Mode::Latency`].
    Down,
    /// Give the ring back.
    Release,
}

/// Measures the rate and says when to change.
#[derive(Debug)]
pub struct Governor {
    thresholds: Thresholds,
    /// When the window upward began, in nanoseconds of packet time, and what came in it.
    began: Option<u64>,
    count: u64,
    /// The last look at the clock, what came since, and since when it has been quiet.
    looked: Option<Instant>,
    since: u64,
    quiet: Option<Instant>,
}

impl Governor {
    /// Nothing measured yet.
    pub fn new(thresholds: Thresholds) -> Self {
        Self {
            thresholds,
            began: None,
            count: 0,
            looked: None,
            since: 0,
            quiet: None,
        }
    }

    /// How often to look at the clock.
    pub fn interval(&self) -> Duration {
        (self.thresholds.quiet / 10).max(Duration::from_millis(1))
    }

    /// The mode has changed: measure anew.
    pub fn changed(&mut self) {
        *self = Self::new(self.thresholds);
    }

    /// Counts packets, the last received at `at` nanoseconds. True when the rate calls for
    /// [`Mode::Throughput`].
    pub fn came(&mut self, packets: u64, at: u64) -> bool {
        self.since += packets;
        let Some(elapsed) = self.began.and_then(|b| at.checked_sub(b)) else {
            // The first, or the clock was set back.
            self.began = Some(at);
            self.count = 0;
            return false;
        };
        self.count += packets;
        if u128::from(elapsed) < self.thresholds.window.as_nanos() {
            return false;
        }
        let count = std::mem::take(&mut self.count);
        self.began = Some(at);
        u128::from(count) * 1_000_000_000 > u128::from(self.thresholds.up) * u128::from(elapsed)
    }

    /// Looks at the clock, about every [`Governor::interval`].
    pub fn look(&mut self, mode: Mode, now: Instant) -> Advice {
        let since = std::mem::take(&mut self.since);
        let Some(before) = self.looked.replace(now) else {
            return Advice::Stay;
        };
        let elapsed = now.saturating_duration_since(before);
        let most = u128::from(self.thresholds.down) * elapsed.as_nanos();
        let (calm, limit, advice) = match mode {
            Mode::Throughput => (
                u128::from(since) * 1_000_000_000 < most,
                self.thresholds.quiet,
                Advice::Down,
            ),
            Mode::Latency => (true, self.thresholds.keep, Advice::Release),
        };
        if !calm {
            self.quiet = None;
            return Advice::Stay;
        }
        let began = *self.quiet.get_or_insert(before);
        match now.saturating_duration_since(began) >= limit {
            true => advice,
            false => Advice::Stay,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Packets every `gap` nanoseconds from `from` to `to`; when it first called for more.
    fn feed(governor: &mut Governor, from: u64, to: u64, gap: u64) -> Option<u64> {
        (from..to)
            .step_by(gap as usize)
            .find(|at| governor.came(1, *at))
    }

    #[test]
    fn up_above_the_threshold_after_one_window() {
        let mut governor = Governor::new(Thresholds::default());
        assert_eq!(feed(&mut governor, MS, 1000 * MS, 100_000), None);
        // 50,000 a second: at the end of the window that began with them, or of the next.
        let at = feed(&mut governor, 1000 * MS, 2000 * MS, 20_000);
        assert!(at.is_some_and(|at| at <= 1022 * MS), "{at:?}");
    }

    #[test]
    fn a_burst_after_silence_is_no_rate() {
        let mut governor = Governor::new(Thresholds::default());
        for burst in 1..20u64 {
            // 500 packets within a millisecond, every 40.
            let at = burst * 40 * MS;
            assert_eq!(feed(&mut governor, at, at + MS, 2_000), None, "{burst}");
        }
    }

    #[test]
    fn a_clock_set_back_begins_anew() {
        let mut governor = Governor::new(Thresholds::default());
        assert!(!governor.came(1, 10_000 * MS));
        assert!(!governor.came(100_000, 5_000 * MS));
        assert!(!governor.came(1, 5_011 * MS));
        assert!(governor.came(1000, 5_022 * MS));
    }

    #[test]
    fn down_only_after_it_was_quiet_without_interruption() {
        let mut governor = Governor::new(Thresholds::default());
        let start = Instant::now();
        let mut look = |tick: u64, packets: u64| {
            governor.came(packets, 0);
            governor.look(Mode::Throughput, start + Duration::from_millis(100 * tick))
        };
        // 900 packets in 100 ms are 9,000 a second, 1,100 are 11,000.
        assert!((0..10).all(|t| look(t, 900) == Advice::Stay));
        assert_eq!(look(10, 1_100), Advice::Stay);
        assert!((11..20).all(|t| look(t, 900) == Advice::Stay));
        assert_eq!(look(20, 0), Advice::Down);
    }

    #[test]
    fn the_ring_is_released_after_a_while_of_latency() {
        let mut governor = Governor::new(Thresholds::default());
        let start = Instant::now();
        let mut look = |s: u64| governor.look(Mode::Latency, start + Duration::from_secs(s));
        assert!((0..60).all(|s| look(s) == Advice::Stay));
        assert_eq!(look(60), Advice::Release);
    }
}
