//! Limits the size of bursts so that they fit the receive queue of the kernel.
//!
//! Packets sent on a veth wait at the other end in a per-CPU queue of 1,000 packets
//! (`net.core.netdev_max_backlog`). If the other end is a port of a bridge, the bridge copies each
//! packet to all its ports, and all copies wait in the same queue. The kernel drops packets that do
//! not fit. No error reports such a drop; only a machine-wide counter shows it (`softnet_stat`,
//! proc_net(5)). So bursts start small, grow while the counter does not change, and shrink when it
//! does.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The file, which all senders of the process share.
static FILE: OnceLock<File> = OnceLock::new();

/// Reads the number of packets that all CPUs together dropped.
pub struct SoftnetStat {
    file: &'static File,
    text: Vec<u8>,
}

impl SoftnetStat {
    /// Opens the file. Its content is the same in every network namespace.
    pub fn open() -> io::Result<Self> {
        let file = match FILE.get() {
            Some(file) => file,
            None => {
                let file = File::open("/proc/net/softnet_stat")?;
                FILE.get_or_init(|| file)
            }
        };
        Ok(Self {
            file,
            text: vec![0; MIN_SPACE],
        })
    }

    /// Returns the number of packets dropped since boot. The counter of each CPU wraps at 2^32.
    pub fn dropped(&mut self) -> io::Result<u64> {
        let mut len = 0;
        loop {
            // At the end, the kernel returns zero.
            match self.file.read_at(&mut self.text[len..], len as u64)? {
                0 => return Ok(sum_dropped(&String::from_utf8_lossy(&self.text[..len]))),
                read => len += read,
            }
            if len == self.text.len() {
                self.text.resize(2 * len, 0);
            }
        }
    }
}

/// Sums the second column. All columns are hexadecimal.
fn sum_dropped(text: &str) -> u64 {
    let second = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
    text.lines().filter_map(second).sum()
}

/// First size of the space for the file, in bytes. A CPU takes up to 150.
const MIN_SPACE: usize = 4096;

/// Interval between checks of a size that fitted so far. The queue also depends on the load of the
/// CPU, so a size may stop fitting.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Number of bursts of a new size that are all checked. Half as many successes let the size grow.
const INITIAL_CHECKS: u32 = 32;

/// How long a size that caused drops is not tried again. Other traffic may have been the cause, so
/// the cap expires.
const CAP_DURATION: Duration = Duration::from_secs(600);

/// The largest number of packets per burst, adjusted to observed drops.
#[derive(Debug)]
pub struct BurstLimit {
    min: usize,
    max: usize,
    current: usize,
    /// The largest size allowed after drops, and when that cap expires.
    cap: Option<(usize, Instant)>,
    /// The drop counter at the last check, and the time of that check.
    last_check: Option<(u64, Instant)>,
    /// Checked bursts of the current size.
    checks: u32,
}

impl BurstLimit {
    /// Creates a limit between `min`, where it starts, and `max`.
    pub fn new(min: usize, max: usize) -> Self {
        Self {
            min,
            max,
            current: min,
            cap: None,
            last_check: None,
            checks: 0,
        }
    }

    /// Returns the current limit; 0 if not even the smallest burst fitted.
    pub fn current(&mut self, now: Instant) -> usize {
        if self.cap.is_some_and(|(_, until)| until <= now) {
            self.cap = None;
            self.set(self.current.max(self.min));
        }
        self.current
    }

    /// Returns true if the caller must check the drop counter after a burst of `count` packets. It
    /// must also read the counter before the burst if [`BurstLimit::is_stale`].
    pub fn should_check(&self, count: usize, now: Instant) -> bool {
        let is_old = |(_, at): (u64, Instant)| at + CHECK_INTERVAL <= now;
        count >= self.current
            && (self.checks < INITIAL_CHECKS || self.last_check.is_none_or(is_old))
    }

    /// Returns true if the last check is so old that other traffic may have caused the drops since
    /// then.
    pub fn is_stale(&self, now: Instant) -> bool {
        let is_old = |(_, at): (u64, Instant)| at + 2 * CHECK_INTERVAL <= now;
        self.last_check.is_none_or(is_old)
    }

    /// Records the drop counter before a burst.
    pub fn record_before_burst(&mut self, dropped: u64, now: Instant) {
        self.last_check = Some((dropped, now));
    }

    /// Records the drop counter after a burst of the current size. If packets were dropped since
    /// the last check, reduces the limit and returns their number.
    pub fn record_after_burst(&mut self, dropped: u64, now: Instant) -> Option<u64> {
        let (before, _) = self.last_check.replace((dropped, now))?;
        let lost = dropped.saturating_sub(before);
        if lost > 0 {
            let half = self.current / 2;
            self.set(if half < self.min { 0 } else { half });
            self.cap = Some((self.current, now + CAP_DURATION));
            return Some(lost);
        }
        self.checks = self.checks.saturating_add(1);
        let max = self.cap.map_or(self.max, |(cap, _)| cap);
        if self.checks >= INITIAL_CHECKS / 2 && self.current < max {
            self.set((self.current * 2).min(max));
        }
        None
    }

    fn set(&mut self, size: usize) {
        self.current = size;
        self.checks = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_counters_of_all_cpus_are_summed() {
        let text =
            "12f6db3e 00000000 0000000f 00000000\n0beb1ec0 0000001a 0000000a\n\n1 ffffffff\n";
        assert_eq!(sum_dropped(text), 0x1a + 0xffff_ffff);
        assert_eq!(sum_dropped("nothing at all\n"), 0);
        assert!(SoftnetStat::open().unwrap().dropped().is_ok());
    }

    /// Records as many bursts without a new drop as the limit needs to grow.
    fn record_successes(limit: &mut BurstLimit, dropped: u64, at: Instant) {
        limit.record_before_burst(dropped, at);
        for _ in 0..INITIAL_CHECKS / 2 {
            assert!(limit.should_check(limit.current, at));
            assert_eq!(limit.record_after_burst(dropped, at), None);
        }
    }

    #[test]
    fn limit_grows_without_drops_then_checks_less_often() {
        let start = Instant::now();
        let mut limit = BurstLimit::new(8, 32);
        assert!(limit.is_stale(start));
        for expected in [8, 16, 32] {
            assert_eq!(limit.current(start), expected);
            assert!(!limit.should_check(expected - 1, start));
            record_successes(&mut limit, 7, start);
        }
        record_successes(&mut limit, 7, start);
        assert_eq!(limit.current(start), 32);
        assert!(!limit.should_check(32, start) && !limit.is_stale(start));
        let later = start + CHECK_INTERVAL;
        assert!(limit.should_check(32, later) && !limit.is_stale(later));
        assert!(limit.is_stale(later + CHECK_INTERVAL));
        assert_eq!(limit.record_after_burst(8, later), Some(1));
        assert_eq!(limit.current(later), 16);
    }

    #[test]
    fn size_that_dropped_is_capped_until_expiry() {
        let start = Instant::now();
        let mut limit = BurstLimit::new(8, 32);
        record_successes(&mut limit, 0, start);
        record_successes(&mut limit, 0, start);
        assert_eq!(limit.record_after_burst(5, start), Some(5));
        assert_eq!(limit.current(start), 16);
        let later = start + CAP_DURATION / 2;
        record_successes(&mut limit, 5, later);
        assert_eq!(limit.current(later), 16);
        let later = start + CAP_DURATION;
        assert_eq!(limit.current(later), 16);
        record_successes(&mut limit, 5, later);
        assert_eq!(limit.current(later), 32);
    }

    #[test]
    fn drops_at_minimum_size_disable_bursts_until_expiry() {
        let start = Instant::now();
        let mut limit = BurstLimit::new(8, 32);
        limit.record_before_burst(100, start);
        assert_eq!(limit.record_after_burst(103, start), Some(3));
        assert_eq!(limit.current(start), 0);
        assert_eq!(limit.current(start + CAP_DURATION), 8);
    }
}
