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
            window: Duration::from_millis(30),
            down: 15_000,
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

/// Whether it pays to look for the next packet again and again instead of sleeping until
/// it comes. Waking a core that sleeps takes longer than forwarding a packet.
#[derive(Debug)]
pub struct Spin {
    /// Longest time to look after a packet.
    most: Duration,
    /// When the last packet came, by its own time, and the mean time between packets.
    last: Option<u64>,
    gap: u64,
    /// When the last was taken in, by ours; `None` when it was looked for long enough.
    since: Option<Instant>,
    /// The last look that found nothing.
    looked: Option<Instant>,
    /// For how long others took the core from us, and since when that is counted.
    taken: Duration,
    counted: Option<Instant>,
    rest: Duration,
    resting: Option<Instant>,
}

impl Spin {
    /// A look that comes so much later than the one before says that others had the core.
    const TAKEN: Duration = Duration::from_millis(1);
    /// When others had it for an eighth of this long, they need it: once in a while somebody
    /// runs on any core.
    const COUNTED: Duration = Duration::from_millis(100);
    /// Most that one time counts: a host that stopped the whole machine needs no core of it.
    const MOST_AT_ONCE: Duration = Duration::from_millis(5);
    /// How long to sleep like everybody else then, at first; twice as long each time.
    const REST: Duration = Duration::from_secs(1);
    const LONGEST_REST: Duration = Duration::from_secs(64);

    /// Looks for at most `most` after a packet; never where that is zero.
    pub fn new(most: Duration) -> Self {
        Self {
            most,
            last: None,
            gap: u64::MAX >> 8,
            since: None,
            looked: None,
            taken: Duration::ZERO,
            counted: None,
            rest: Self::REST,
            resting: None,
        }
    }

    /// Packets were taken in `now`, the last received at `at` nanoseconds.
    pub fn came(&mut self, packets: u64, at: u64, now: Instant) {
        let most = self.most.as_nanos() as u64;
        if most == 0 {
            return;
        }
        let since = self.last.and_then(|last| at.checked_sub(last));
        self.last = Some(at);
        // Twice as long as one looks at most: a single pause must not outweigh many packets.
        let gap = since.map_or(u64::MAX, |s| s / packets.max(1)).min(2 * most);
        self.gap = (self.gap.min(2 * most) * 7 + gap) / 8;
        // A packet that came while others had the core hides nothing of that.
        let before = self.looked.take();
        if self.resting_at(now) || self.contended(before, now) {
            self.since = None;
            return;
        }
        // Half as much again as between two packets: few come later than that.
        let pays = self.gap + self.gap / 2 <= most;
        self.since = pays.then_some(now);
    }

    /// Whether to look again at once.
    pub fn goes_on(&mut self, now: Instant) -> bool {
        let Some(since) = self.since else {
            return false;
        };
        let before = self.looked.replace(now);
        let goes_on =
            !self.contended(before, now) && now.saturating_duration_since(since) < self.most;
        if !goes_on {
            self.since = None;
            self.looked = None;
        }
        goes_on
    }

    /// Whether we sleep like everybody else.
    fn resting_at(&mut self, now: Instant) -> bool {
        let Some(resting) = self.resting else {
            return false;
        };
        let rested = now.saturating_duration_since(resting);
        if rested > self.rest + Self::LONGEST_REST {
            self.rest = Self::REST;
            self.resting = None;
        }
        rested < self.rest
    }

    /// Counts the time from one look to the next where others had the core, and begins to
    /// rest where that is much.
    fn contended(&mut self, before: Option<Instant>, now: Instant) -> bool {
        let gap = before.map_or(Duration::ZERO, |b| now.saturating_duration_since(b));
        if gap <= Self::TAKEN {
            return false;
        }
        let counted = self.counted.filter(|c| *c + Self::COUNTED > now);
        if counted.is_none() {
            self.counted = Some(now);
            self.taken = Duration::ZERO;
        }
        self.taken += gap.min(Self::MOST_AT_ONCE);
        if self.taken < Self::COUNTED / 8 {
            return false;
        }
        if self.resting.is_some() {
            self.rest = (self.rest * 2).min(Self::LONGEST_REST);
        }
        self.resting = Some(now);
        self.counted = None;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: u64 = 1_000;

    /// After `count` packets `gap` microseconds apart: for how many microseconds it looks for
    /// the next, one look each.
    fn looks(spin: &mut Spin, start: Instant, count: u64, gap: u64) -> u64 {
        let at = |us: u64| start + Duration::from_micros(us);
        for n in 0..count {
            spin.came(1, 1_000_000 + n * gap * US, at(n * gap));
        }
        let last = (count - 1) * gap;
        (0..10_000)
            .take_while(|us| spin.goes_on(at(last + us)))
            .count() as u64
    }

    #[test]
    fn busy_poll_starts_only_when_packets_are_frequent() {
        let new = || Spin::new(Duration::from_micros(200));
        let start = Instant::now();
        assert_eq!(looks(&mut new(), start, 100, 20), 200);
        assert_eq!(looks(&mut new(), start, 100, 100), 200);
        assert_eq!(looks(&mut new(), start, 100, 1_000), 0);
        assert_eq!(looks(&mut new(), start, 1, 20), 0);
        assert_eq!(looks(&mut Spin::new(Duration::ZERO), start, 100, 20), 0);
    }

    #[test]
    fn busy_poll_stops_at_a_pause_and_resumes() {
        let mut spin = Spin::new(Duration::from_micros(200));
        let start = Instant::now();
        assert_eq!(looks(&mut spin, start, 100, 20), 200);
        // The next ones far apart.
        for n in 1..20u64 {
            let now = start + Duration::from_millis(5 * n);
            spin.came(1, 5 * n * 1_000_000 + 10_000_000, now);
            assert!(n < 4 || !spin.goes_on(now), "{n}");
        }
        assert_eq!(looks(&mut spin, start, 100, 20), 200);
    }

    #[test]
    fn busy_poll_backs_off_when_the_core_is_contended() {
        let mut spin = Spin::new(Duration::from_micros(200));
        let mut now = Instant::now();
        let ms = Duration::from_millis;
        let mut rests = Vec::new();
        for _ in 0..3 {
            assert!(looks(&mut spin, now, 100, 20) > 0);
            for times in 1..=4 {
                poll_late(&mut spin, now + ms(8 * times), times < 4);
            }
            let taken = now + ms(36);
            rests.push((0..100_000).step_by(100).find(|t| {
                let at = taken + ms(*t);
                looks(&mut spin, at - Duration::from_micros(99 * 20), 100, 20) > 0
            }));
            now = taken + ms(rests[rests.len() - 1].unwrap());
        }
        assert!(
            rests.is_sorted() && rests[0] >= Some(900) && rests[2] > Some(3_000),
            "{rests:?}"
        );
    }

    /// A look in time, and one that comes 4 ms later.
    fn poll_late(spin: &mut Spin, at: Instant, goes_on: bool) {
        for n in 0..100 {
            spin.came(1, 1_000_000_000 + n * 20 * US, at);
        }
        assert!(spin.goes_on(at));
        let late = at + Duration::from_millis(4);
        // By then the next packet is there.
        spin.came(1, 1_000_004_000 + 2_000 * US, late);
        assert_eq!(spin.goes_on(late), goes_on);
        // Nothing comes any more.
        assert!(!spin.goes_on(late + Duration::from_micros(200)));
    }

    #[test]
    fn machine_pause_does_not_trigger_back_off() {
        let mut spin = Spin::new(Duration::from_micros(200));
        let start = Instant::now();
        for second in 1..100 {
            let at = start + Duration::from_secs(second);
            for n in 0..100 {
                spin.came(1, second * 1_000_000_000 + n * 20 * US, at);
            }
            assert!(spin.goes_on(at), "{second}");
            let late = at + Duration::from_millis(60);
            assert!(!spin.goes_on(late));
            assert!(looks(&mut spin, late, 100, 20) > 0, "{second}");
        }
    }

    #[test]
    fn sender_pause_does_not_stop_busy_poll() {
        let mut spin = Spin::new(Duration::from_micros(200));
        let start = Instant::now();
        assert!(looks(&mut spin, start, 100, 100) > 0);
        // 3 ms of nothing, then at the pace of before.
        let at = |n: u64| 1_000_000 + (99 * 100 + 3_000 + n * 100) * US;
        let looking = |n: u64| {
            let now = start + Duration::from_millis(20) + Duration::from_micros(n * 100);
            spin.came(1, at(n), now);
            spin.goes_on(now)
        };
        let stopped = (0..20).map(looking).filter(|goes_on| !goes_on).count();
        assert!(stopped <= 2, "{stopped}");
    }

    #[test]
    fn ten_thousand_packets_a_second_stay_in_latency_mode() {
        let mut governor = Governor::new(Thresholds::default());
        let start = Instant::now();
        // A little more and a little less, as packets come.
        let advice = (0..12).map(|tick| {
            governor.came(if tick % 2 == 0 { 1_020 } else { 980 }, 0);
            governor.look(Mode::Throughput, start + Duration::from_millis(100 * tick))
        });
        assert!(advice.into_iter().any(|a| a == Advice::Down));
    }

    const MS: u64 = 1_000_000;

    /// Packets every `gap` nanoseconds from `from` to `to`; when it first called for more.
    fn feed(governor: &mut Governor, from: u64, to: u64, gap: u64) -> Option<u64> {
        (from..to)
            .step_by(gap as usize)
            .find(|at| governor.came(1, *at))
    }

    #[test]
    fn throughput_mode_starts_after_one_window_above_threshold() {
        let mut governor = Governor::new(Thresholds::default());
        assert_eq!(feed(&mut governor, MS, 1000 * MS, 100_000), None);
        // 50,000 a second: at the end of the window that began with them, or of the next.
        let at = feed(&mut governor, 1000 * MS, 2000 * MS, 20_000);
        assert!(at.is_some_and(|at| at <= 1062 * MS), "{at:?}");
    }

    #[test]
    fn burst_after_silence_keeps_latency_mode() {
        let mut governor = Governor::new(Thresholds::default());
        for burst in 1..20u64 {
            // 500 packets within a millisecond, every 40.
            let at = burst * 40 * MS;
            assert_eq!(feed(&mut governor, at, at + MS, 2_000), None, "{burst}");
        }
    }

    #[test]
    fn clock_set_back_restarts_the_window() {
        let mut governor = Governor::new(Thresholds::default());
        assert!(!governor.came(1, 10_000 * MS));
        assert!(!governor.came(100_000, 5_000 * MS));
        assert!(!governor.came(1, 5_031 * MS));
        assert!(governor.came(2000, 5_062 * MS));
    }

    #[test]
    fn latency_mode_returns_only_after_sustained_quiet() {
        let mut governor = Governor::new(Thresholds::default());
        let start = Instant::now();
        let mut look = |tick: u64, packets: u64| {
            governor.came(packets, 0);
            governor.look(Mode::Throughput, start + Duration::from_millis(100 * tick))
        };
        // 1,400 packets in 100 ms are 14,000 a second, 1,600 are 16,000.
        assert!((0..10).all(|t| look(t, 1_400) == Advice::Stay));
        assert_eq!(look(10, 1_600), Advice::Stay);
        assert!((11..20).all(|t| look(t, 1_400) == Advice::Stay));
        assert_eq!(look(20, 0), Advice::Down);
    }

    #[test]
    fn ring_is_released_after_sustained_latency_mode() {
        let mut governor = Governor::new(Thresholds::default());
        let start = Instant::now();
        let mut look = |s: u64| governor.look(Mode::Latency, start + Duration::from_secs(s));
        assert!((0..60).all(|s| look(s) == Advice::Stay));
        assert_eq!(look(60), Advice::Release);
    }
}
