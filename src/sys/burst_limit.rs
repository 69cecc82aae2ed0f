//! Packets that wait for soft interrupts, and how many may leave in one burst because of that.
//!
//! What is sent on a veth waits at the other end, in a queue of the core that holds 1,000
//! (`net.core.netdev_max_backlog`). Where that end is a port of a bridge, each packet becomes as
//! many as there are ports, which all wait in the same queue. What does not fit is dropped; that
//! is not our packet any more, and so nothing tells us but a number of the whole machine
//! (`softnet_stat`, proc_net(5)). So bursts begin small, grow while that number stands still, and
//! shrink when it moves.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::time::{Duration, Instant};

/// Reads how many packets were dropped on all cores together.
pub struct SoftnetStat {
    file: File,
    text: String,
}

impl SoftnetStat {
    /// Opens the file. It is the same in every network namespace.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            file: File::open("/proc/net/softnet_stat")?,
            text: String::new(),
        })
    }

    /// Packets dropped since the machine started, each core's number modulo 2^32.
    pub fn dropped(&mut self) -> io::Result<u64> {
        self.text.clear();
        self.file.rewind()?;
        self.file.read_to_string(&mut self.text)?;
        Ok(sum(&self.text))
    }
}

/// The second number of every line, which are hexadecimal.
fn sum(text: &str) -> u64 {
    let second = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
    text.lines().filter_map(second).sum()
}

/// How often to look whether bursts of the present size still fit. A size may fit while the core
/// has time, and not when others want it.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// So many bursts of a new size are looked at one by one; half of them let it grow.
const ALL_LOOKED_AT: u32 = 32;

/// How long a size that did not fit is not tried again: somebody else may have been the cause.
const REMEMBERED: Duration = Duration::from_secs(600);

/// How many packets a burst may have.
#[derive(Debug)]
pub struct BurstLimit {
    least: usize,
    most: usize,
    now: usize,
    /// Never more, and until when.
    bound: Option<(usize, Instant)>,
    /// What had been dropped at the last look, and when that was.
    looked: Option<(u64, Instant)>,
    /// Bursts of this size that were looked at.
    looks: u32,
}

impl BurstLimit {
    /// Between `least`, where it begins, and `most`.
    pub fn new(least: usize, most: usize) -> Self {
        Self {
            least,
            most,
            now: least,
            bound: None,
            looked: None,
            looks: 0,
        }
    }

    /// How many at present; zero where not even the least fitted.
    pub fn get(&mut self, now: Instant) -> usize {
        if self.bound.is_some_and(|(_, until)| until <= now) {
            self.bound = None;
            self.set(self.now.max(self.least));
        }
        self.now
    }

    /// Whether to look, after a burst of `count` packets, at what was dropped. Before it too
    /// where [`BurstLimit::is_stale`].
    pub fn is_due(&self, count: usize, now: Instant) -> bool {
        let ago = |(_, at): (u64, Instant)| at + LOOK_EVERY <= now;
        count >= self.now && (self.looks < ALL_LOOKED_AT || self.looked.is_none_or(ago))
    }

    /// Whether the last look was so long ago that others may be the cause of what was dropped
    /// since.
    pub fn is_stale(&self, now: Instant) -> bool {
        let ago = |(_, at): (u64, Instant)| at + 2 * LOOK_EVERY <= now;
        self.looked.is_none_or(ago)
    }

    /// Tells what was dropped so far, before a burst.
    pub fn begin(&mut self, dropped: u64, now: Instant) {
        self.looked = Some((dropped, now));
    }

    /// Tells what was dropped so far, after a burst of so many packets as allowed. Returns how
    /// many were dropped since the last look, where bursts are smaller from now on for that.
    pub fn end(&mut self, dropped: u64, now: Instant) -> Option<u64> {
        let (before, _) = self.looked.replace((dropped, now))?;
        let lost = dropped.saturating_sub(before);
        if lost > 0 {
            let half = self.now / 2;
            self.set(if half < self.least { 0 } else { half });
            self.bound = Some((self.now, now + REMEMBERED));
            return Some(lost);
        }
        self.looks = self.looks.saturating_add(1);
        let most = self.bound.map_or(self.most, |(most, _)| most);
        if self.looks >= ALL_LOOKED_AT / 2 && self.now < most {
            self.set((self.now * 2).min(most));
        }
        None
    }

    fn set(&mut self, size: usize) {
        self.now = size;
        self.looks = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_numbers_are_summed() {
        let text =
            "12f6db3e 00000000 0000000f 00000000\n0beb1ec0 0000001a 0000000a\n\n1 ffffffff\n";
        assert_eq!(sum(text), 0x1a + 0xffff_ffff);
        assert_eq!(sum("nothing at all\n"), 0);
        assert!(SoftnetStat::open().unwrap().dropped().is_ok());
    }

    /// Bursts that drop nothing more than `dropped` so far, as many as make it grow.
    fn fits(size: &mut BurstLimit, dropped: u64, at: Instant) {
        size.begin(dropped, at);
        for _ in 0..ALL_LOOKED_AT / 2 {
            assert!(size.is_due(size.now, at));
            assert_eq!(size.end(dropped, at), None);
        }
    }

    #[test]
    fn a_burst_grows_while_nothing_is_dropped_and_is_then_looked_at_now_and_then() {
        let start = Instant::now();
        let mut size = BurstLimit::new(8, 32);
        assert!(size.is_stale(start));
        for expected in [8, 16, 32] {
            assert_eq!(size.get(start), expected);
            assert!(!size.is_due(expected - 1, start));
            fits(&mut size, 7, start);
        }
        fits(&mut size, 7, start);
        assert_eq!(size.get(start), 32);
        assert!(!size.is_due(32, start) && !size.is_stale(start));
        let later = start + LOOK_EVERY;
        assert!(size.is_due(32, later) && !size.is_stale(later));
        assert!(size.is_stale(later + LOOK_EVERY));
        assert_eq!(size.end(8, later), Some(1));
        assert_eq!(size.get(later), 16);
    }

    #[test]
    fn a_size_that_dropped_is_not_tried_again_for_long() {
        let start = Instant::now();
        let mut size = BurstLimit::new(8, 32);
        fits(&mut size, 0, start);
        fits(&mut size, 0, start);
        assert_eq!(size.end(5, start), Some(5));
        assert_eq!(size.get(start), 16);
        let later = start + REMEMBERED / 2;
        fits(&mut size, 5, later);
        assert_eq!(size.get(later), 16);
        let later = start + REMEMBERED;
        assert_eq!(size.get(later), 16);
        fits(&mut size, 5, later);
        assert_eq!(size.get(later), 32);
    }

    #[test]
    fn where_the_least_does_not_fit_there_are_none_for_long() {
        let start = Instant::now();
        let mut size = BurstLimit::new(8, 32);
        size.begin(100, start);
        assert_eq!(size.end(103, start), Some(3));
        assert_eq!(size.get(start), 0);
        assert_eq!(size.get(start + REMEMBERED), 8);
    }
}
