//! Times of the boot clock, which outlive a process.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The farthest time from now that is converted. Stored times beyond it are not plausible.
const MAX_DISTANCE: Duration = Duration::from_secs(365 * 24 * 3600);

/// A time of CLOCK_BOOTTIME, in milliseconds since the machine started. Time that the machine
/// sleeps counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootTime(u64);

impl BootTime {
    /// Returns the time that is `ms` milliseconds after the start of the machine.
    pub fn from_ms(ms: u64) -> Self {
        Self(ms)
    }

    /// Returns the milliseconds since the start of the machine.
    pub fn as_ms(self) -> u64 {
        self.0
    }

    /// Returns the time since `earlier`. Zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// The boot clock and the clock of timers, read at the same moment. Converts between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockReading {
    /// The clock of timers.
    pub now: Instant,
    /// The boot clock.
    pub boot: BootTime,
}

impl ClockReading {
    /// Returns a time of the clock of timers as a time of the boot clock.
    pub fn to_boot(&self, at: Instant) -> BootTime {
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let ahead = ms(at.saturating_duration_since(self.now));
        let ago = ms(self.now.saturating_duration_since(at));
        BootTime(self.boot.0.saturating_add(ahead).saturating_sub(ago))
    }

    /// Returns a time of the boot clock as a time of the clock of timers. Times that are more than
    /// a year away are moved nearer.
    pub fn to_instant(&self, at: BootTime) -> Instant {
        let ahead = at.since(self.boot).min(MAX_DISTANCE);
        let ago = self.boot.since(at).min(MAX_DISTANCE);
        let later = self.now.checked_add(ahead).unwrap_or(self.now);
        later.checked_sub(ago).unwrap_or(self.now)
    }

    /// Returns when a stored timer expires: at most `longest` from now. None if it has expired.
    pub fn running_timer(&self, expires: BootTime, longest: Duration) -> Option<Instant> {
        let left = expires.since(self.boot).min(longest);
        let expires = self.now.checked_add(left)?;
        (!left.is_zero()).then_some(expires)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_continue_with_what_is_left() {
        let now = Instant::now();
        let secs = Duration::from_secs;
        let before = ClockReading {
            now,
            boot: BootTime::from_ms(100_000),
        };
        let expires = before.to_boot(now + secs(60));
        // Another process, whose clock of timers has another origin, 20 s later.
        let after = ClockReading {
            now: now + secs(500),
            boot: BootTime::from_ms(120_000),
        };
        assert_eq!(after.to_instant(expires), after.now + secs(40));
        let timer = |longest| after.running_timer(expires, secs(longest));
        assert_eq!(timer(300), Some(after.now + secs(40)));
        assert_eq!(timer(10), Some(after.now + secs(10)));
        let past = before.to_boot(now - secs(5));
        assert_eq!(after.to_instant(past), after.now - secs(25));
        assert_eq!(after.running_timer(past, secs(300)), None);
    }

    #[test]
    fn implausible_times_do_not_overflow() {
        let clock = ClockReading {
            now: Instant::now(),
            boot: BootTime::from_ms(5),
        };
        for ms in [0, 1, u64::MAX] {
            clock.to_instant(BootTime::from_ms(ms));
            clock.running_timer(BootTime::from_ms(ms), Duration::MAX);
        }
        let late = ClockReading {
            boot: BootTime::from_ms(u64::MAX),
            ..clock
        };
        assert!(late.to_instant(BootTime::from_ms(0)) <= late.now);
        assert_eq!(
            late.to_boot(late.now + Duration::from_secs(1)).as_ms(),
            u64::MAX
        );
    }
}
