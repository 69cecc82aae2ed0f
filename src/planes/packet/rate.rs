//! Chooses the capture mode by packet rate, and decides when to poll busily.
//!
//! The latency mode delivers each packet at once and costs the most CPU per packet; the throughput
//! mode delivers blocks. The change to throughput uses the receive times of the kernel over some
//! milliseconds, so that a stall of this process does not count as a high rate. The change back
//! uses the clock of this process, because a stream that ended brings no more receive times.

use std::time::{Duration, Instant};

/// A capture mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Each packet is delivered at once.
    Latency,
    /// Packets are delivered in blocks.
    Throughput,
}

impl Mode {
    /// Returns the name of the mode in metrics and tables.
    pub fn label(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Throughput => "throughput",
        }
    }
}

/// When the capture mode changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// The throughput mode starts above this rate, in packets per second.
    pub up: u64,
    /// The time over which `up` is measured, at least.
    pub window: Duration,
    /// The latency mode returns below this rate, in packets per second.
    pub down: u64,
    /// How long the rate must stay below `down`.
    pub quiet: Duration,
    /// How long the ring is kept without need.
    pub keep: Duration,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            up: 30_000,
            window: Duration::from_millis(30),
            down: 15_000,
            quiet: Duration::from_secs(1),
            keep: Duration::from_secs(60),
        }
    }
}

/// The result of [`RateMonitor::check`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModeAdvice {
    /// Keep the mode.
    Stay,
    /// Change to [`Mode::Latency`].
    Down,
    /// Release the ring.
    Release,
}

/// Measures the packet rate and advises mode changes.
#[derive(Debug)]
pub struct RateMonitor {
    thresholds: Thresholds,
    /// Start of the window for `up`, in nanoseconds of packet time, and the packets in it.
    began: Option<u64>,
    count: u64,
    /// The last check, the packets since then, and when the rate fell below `down`.
    last_check: Option<Instant>,
    count_since: u64,
    quiet: Option<Instant>,
}

impl RateMonitor {
    /// Creates a monitor without measurements.
    pub fn new(thresholds: Thresholds) -> Self {
        Self {
            thresholds,
            began: None,
            count: 0,
            last_check: None,
            count_since: 0,
            quiet: None,
        }
    }

    /// Returns the interval for [`RateMonitor::check`].
    pub fn interval(&self) -> Duration {
        (self.thresholds.quiet / 10).max(Duration::from_millis(1))
    }

    /// Resets all measurements after a mode change.
    pub fn changed(&mut self) {
        *self = Self::new(self.thresholds);
    }

    /// Counts packets, the last of them received at `at` nanoseconds. Returns true if the rate
    /// calls for [`Mode::Throughput`].
    pub fn record(&mut self, packets: u64, at: u64) -> bool {
        self.count_since += packets;
        let Some(elapsed) = self.began.and_then(|b| at.checked_sub(b)) else {
            // First packet, or the clock was set back.
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

    /// Checks the rate against the clock. Call it about every [`RateMonitor::interval`].
    pub fn check(&mut self, mode: Mode, now: Instant) -> ModeAdvice {
        let count_since = std::mem::take(&mut self.count_since);
        let Some(before) = self.last_check.replace(now) else {
            return ModeAdvice::Stay;
        };
        let elapsed = now.saturating_duration_since(before);
        let max = u128::from(self.thresholds.down) * elapsed.as_nanos();
        let (calm, limit, advice) = match mode {
            Mode::Throughput => (
                u128::from(count_since) * 1_000_000_000 < max,
                self.thresholds.quiet,
                ModeAdvice::Down,
            ),
            Mode::Latency => (true, self.thresholds.keep, ModeAdvice::Release),
        };
        if !calm {
            self.quiet = None;
            return ModeAdvice::Stay;
        }
        let began = *self.quiet.get_or_insert(before);
        match now.saturating_duration_since(began) >= limit {
            true => advice,
            false => ModeAdvice::Stay,
        }
    }
}

/// Decides whether to poll for the next packet instead of sleeping. Waking a sleeping core takes
/// longer than forwarding a packet.
#[derive(Debug)]
pub struct BusyPoll {
    /// Longest time to poll after a packet.
    max: Duration,
    /// Receive time of the last packet, and the mean time between packets, in nanoseconds.
    last: Option<u64>,
    gap: u64,
    /// When the last packet was read; `None` when polling has ended.
    count_since: Option<Instant>,
    /// The last poll that found no packet.
    last_check: Option<Instant>,
    /// How long other processes had the core, and the start of that measurement.
    delay: Duration,
    counted: Option<Instant>,
    back_off: Duration,
    backing_off_since: Option<Instant>,
}

impl BusyPoll {
    /// A poll this much later than the one before means that other processes had the core.
    const LATE: Duration = Duration::from_millis(1);
    /// Other processes need the core if they had it for an eighth of this time. Short interruptions
    /// are normal on every core.
    const CONTENTION_WINDOW: Duration = Duration::from_millis(100);
    /// The most that one interruption counts: a hypervisor that stops the whole machine does not
    /// need the core.
    const MAX_DELAY_COUNTED: Duration = Duration::from_millis(5);
    /// How long polling stays off after that, at first. It doubles each time.
    const FIRST_BACK_OFF: Duration = Duration::from_secs(1);
    const MAX_BACK_OFF: Duration = Duration::from_secs(64);

    /// Polls for at most `max` after a packet; never if that is zero.
    pub fn new(max: Duration) -> Self {
        Self {
            max,
            last: None,
            gap: u64::MAX >> 8,
            count_since: None,
            last_check: None,
            delay: Duration::ZERO,
            counted: None,
            back_off: Self::FIRST_BACK_OFF,
            backing_off_since: None,
        }
    }

    /// Records packets that were read at `now`, the last of them received at `at` nanoseconds.
    pub fn record(&mut self, packets: u64, at: u64, now: Instant) {
        let max = self.max.as_nanos() as u64;
        if max == 0 {
            return;
        }
        let count_since = self.last.and_then(|last| at.checked_sub(last));
        self.last = Some(at);
        // At most twice the polling time: a single pause must not outweigh many packets.
        let gap = count_since
            .map_or(u64::MAX, |s| s / packets.max(1))
            .min(2 * max);
        self.gap = (self.gap.min(2 * max) * 7 + gap) / 8;
        // Contention counts even if a packet arrived meanwhile.
        let before = self.last_check.take();
        if self.is_backing_off(now) || self.contended(before, now) {
            self.count_since = None;
            return;
        }
        // One and a half mean gaps: few packets arrive later than that.
        let pays = self.gap + self.gap / 2 <= max;
        self.count_since = pays.then_some(now);
    }

    /// Returns whether to poll again at once.
    pub fn poll_again(&mut self, now: Instant) -> bool {
        let Some(count_since) = self.count_since else {
            return false;
        };
        let before = self.last_check.replace(now);
        let poll_again =
            !self.contended(before, now) && now.saturating_duration_since(count_since) < self.max;
        if !poll_again {
            self.count_since = None;
            self.last_check = None;
        }
        poll_again
    }

    /// Returns whether polling is off because other processes need the core.
    fn is_backing_off(&mut self, now: Instant) -> bool {
        let Some(backing_off_since) = self.backing_off_since else {
            return false;
        };
        let rested = now.saturating_duration_since(backing_off_since);
        if rested > self.back_off + Self::MAX_BACK_OFF {
            self.back_off = Self::FIRST_BACK_OFF;
            self.backing_off_since = None;
        }
        rested < self.back_off
    }

    /// Measures how long other processes had the core between two polls. Backs off if that is much.
    fn contended(&mut self, before: Option<Instant>, now: Instant) -> bool {
        let gap = before.map_or(Duration::ZERO, |b| now.saturating_duration_since(b));
        if gap <= Self::LATE {
            return false;
        }
        let counted = self.counted.filter(|c| *c + Self::CONTENTION_WINDOW > now);
        if counted.is_none() {
            self.counted = Some(now);
            self.delay = Duration::ZERO;
        }
        self.delay += gap.min(Self::MAX_DELAY_COUNTED);
        if self.delay < Self::CONTENTION_WINDOW / 8 {
            return false;
        }
        if self.backing_off_since.is_some() {
            self.back_off = (self.back_off * 2).min(Self::MAX_BACK_OFF);
        }
        self.backing_off_since = Some(now);
        self.counted = None;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: u64 = 1_000;

    /// Records `count` packets `gap` microseconds apart. Returns for how many microseconds
    /// `busy_poll` then polls for the next packet.
    fn polling_time_us(busy_poll: &mut BusyPoll, start: Instant, count: u64, gap: u64) -> u64 {
        let at = |us: u64| start + Duration::from_micros(us);
        for n in 0..count {
            busy_poll.record(1, 1_000_000 + n * gap * US, at(n * gap));
        }
        let last = (count - 1) * gap;
        (0..10_000)
            .take_while(|us| busy_poll.poll_again(at(last + us)))
            .count() as u64
    }

    #[test]
    fn busy_poll_starts_only_when_packets_are_frequent() {
        let new = || BusyPoll::new(Duration::from_micros(200));
        let start = Instant::now();
        assert_eq!(polling_time_us(&mut new(), start, 100, 20), 200);
        assert_eq!(polling_time_us(&mut new(), start, 100, 100), 200);
        assert_eq!(polling_time_us(&mut new(), start, 100, 1_000), 0);
        assert_eq!(polling_time_us(&mut new(), start, 1, 20), 0);
        assert_eq!(
            polling_time_us(&mut BusyPoll::new(Duration::ZERO), start, 100, 20),
            0
        );
    }

    #[test]
    fn busy_poll_stops_at_a_pause_and_resumes() {
        let mut busy_poll = BusyPoll::new(Duration::from_micros(200));
        let start = Instant::now();
        assert_eq!(polling_time_us(&mut busy_poll, start, 100, 20), 200);
        // The next packets are far apart.
        for n in 1..20u64 {
            let now = start + Duration::from_millis(5 * n);
            busy_poll.record(1, 5 * n * 1_000_000 + 10_000_000, now);
            assert!(n < 4 || !busy_poll.poll_again(now), "{n}");
        }
        assert_eq!(polling_time_us(&mut busy_poll, start, 100, 20), 200);
    }

    #[test]
    fn busy_poll_backs_off_when_the_core_is_contended() {
        let mut busy_poll = BusyPoll::new(Duration::from_micros(200));
        let mut now = Instant::now();
        let ms = Duration::from_millis;
        let mut back_offs = Vec::new();
        for _ in 0..3 {
            assert!(polling_time_us(&mut busy_poll, now, 100, 20) > 0);
            for times in 1..=4 {
                poll_late(&mut busy_poll, now + ms(8 * times), times < 4);
            }
            let delay = now + ms(36);
            back_offs.push((0..100_000).step_by(100).find(|t| {
                let at = delay + ms(*t);
                polling_time_us(&mut busy_poll, at - Duration::from_micros(99 * 20), 100, 20) > 0
            }));
            now = delay + ms(back_offs[back_offs.len() - 1].unwrap());
        }
        assert!(
            back_offs.is_sorted() && back_offs[0] >= Some(900) && back_offs[2] > Some(3_000),
            "{back_offs:?}"
        );
    }

    /// Polls at `at`, and again with a delay of 4 ms.
    fn poll_late(busy_poll: &mut BusyPoll, at: Instant, poll_again: bool) {
        for n in 0..100 {
            busy_poll.record(1, 1_000_000_000 + n * 20 * US, at);
        }
        assert!(busy_poll.poll_again(at));
        let late = at + Duration::from_millis(4);
        // A packet has arrived in the meantime.
        busy_poll.record(1, 1_000_004_000 + 2_000 * US, late);
        assert_eq!(busy_poll.poll_again(late), poll_again);
        // No more packets arrive.
        assert!(!busy_poll.poll_again(late + Duration::from_micros(200)));
    }

    #[test]
    fn machine_pause_does_not_trigger_back_off() {
        let mut busy_poll = BusyPoll::new(Duration::from_micros(200));
        let start = Instant::now();
        for second in 1..100 {
            let at = start + Duration::from_secs(second);
            for n in 0..100 {
                busy_poll.record(1, second * 1_000_000_000 + n * 20 * US, at);
            }
            assert!(busy_poll.poll_again(at), "{second}");
            let late = at + Duration::from_millis(60);
            assert!(!busy_poll.poll_again(late));
            assert!(
                polling_time_us(&mut busy_poll, late, 100, 20) > 0,
                "{second}"
            );
        }
    }

    #[test]
    fn sender_pause_does_not_stop_busy_poll() {
        let mut busy_poll = BusyPoll::new(Duration::from_micros(200));
        let start = Instant::now();
        assert!(polling_time_us(&mut busy_poll, start, 100, 100) > 0);
        // A pause of 3 ms, then packets at the previous rate.
        let at = |n: u64| 1_000_000 + (99 * 100 + 3_000 + n * 100) * US;
        let is_polling = |n: u64| {
            let now = start + Duration::from_millis(20) + Duration::from_micros(n * 100);
            busy_poll.record(1, at(n), now);
            busy_poll.poll_again(now)
        };
        let stopped = (0..20)
            .map(is_polling)
            .filter(|poll_again| !poll_again)
            .count();
        assert!(stopped <= 2, "{stopped}");
    }

    #[test]
    fn ten_thousand_packets_a_second_stay_in_latency_mode() {
        let mut monitor = RateMonitor::new(Thresholds::default());
        let start = Instant::now();
        // The number of packets per tick varies around 1,000.
        let advice = (0..12).map(|tick| {
            monitor.record(if tick % 2 == 0 { 1_020 } else { 980 }, 0);
            monitor.check(Mode::Throughput, start + Duration::from_millis(100 * tick))
        });
        assert!(advice.into_iter().any(|a| a == ModeAdvice::Down));
    }

    const MS: u64 = 1_000_000;

    /// Records packets every `gap` nanoseconds from `from` to `to`. Returns the time at which the
    /// rate first called for the throughput mode.
    fn feed(monitor: &mut RateMonitor, from: u64, to: u64, gap: u64) -> Option<u64> {
        (from..to)
            .step_by(gap as usize)
            .find(|at| monitor.record(1, *at))
    }

    #[test]
    fn throughput_mode_starts_after_one_window_above_threshold() {
        let mut monitor = RateMonitor::new(Thresholds::default());
        assert_eq!(feed(&mut monitor, MS, 1000 * MS, 100_000), None);
        // 50,000 packets per second: the mode changes at the end of their first or second window.
        let at = feed(&mut monitor, 1000 * MS, 2000 * MS, 20_000);
        assert!(at.is_some_and(|at| at <= 1062 * MS), "{at:?}");
    }

    #[test]
    fn burst_after_silence_keeps_latency_mode() {
        let mut monitor = RateMonitor::new(Thresholds::default());
        for burst in 1..20u64 {
            // 500 packets within a millisecond, every 40 ms.
            let at = burst * 40 * MS;
            assert_eq!(feed(&mut monitor, at, at + MS, 2_000), None, "{burst}");
        }
    }

    #[test]
    fn clock_set_back_restarts_the_window() {
        let mut monitor = RateMonitor::new(Thresholds::default());
        assert!(!monitor.record(1, 10_000 * MS));
        assert!(!monitor.record(100_000, 5_000 * MS));
        assert!(!monitor.record(1, 5_031 * MS));
        assert!(monitor.record(2000, 5_062 * MS));
    }

    #[test]
    fn latency_mode_returns_only_after_sustained_quiet() {
        let mut monitor = RateMonitor::new(Thresholds::default());
        let start = Instant::now();
        let mut check = |tick: u64, packets: u64| {
            monitor.record(packets, 0);
            monitor.check(Mode::Throughput, start + Duration::from_millis(100 * tick))
        };
        // 1,400 packets in 100 ms are 14,000 a second, 1,600 are 16,000.
        assert!((0..10).all(|t| check(t, 1_400) == ModeAdvice::Stay));
        assert_eq!(check(10, 1_600), ModeAdvice::Stay);
        assert!((11..20).all(|t| check(t, 1_400) == ModeAdvice::Stay));
        assert_eq!(check(20, 0), ModeAdvice::Down);
    }

    #[test]
    fn ring_is_released_after_sustained_latency_mode() {
        let mut monitor = RateMonitor::new(Thresholds::default());
        let start = Instant::now();
        let mut check = |s: u64| monitor.check(Mode::Latency, start + Duration::from_secs(s));
        assert!((0..60).all(|s| check(s) == ModeAdvice::Stay));
        assert_eq!(check(60), ModeAdvice::Release);
    }
}
