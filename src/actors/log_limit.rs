//! Log lines that strangers can cause: a few a minute, and then how many were left out.

use std::fmt;
use std::time::{Duration, Instant};

/// So many lines of a kind within [`WINDOW`].
const LINES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);

/// Lines of one kind.
#[derive(Debug, Default)]
pub struct LogLimit {
    since: Option<Instant>,
    said: u32,
    left_out: u64,
}

impl LogLimit {
    /// Whether the line may be said now. What comes back ends it: how many were left out before.
    pub fn turn(&mut self, now: Instant) -> Option<LeftOut> {
        let open = self.since.filter(|at| now.duration_since(*at) < WINDOW);
        if open.is_none() {
            (self.since, self.said) = (Some(now), 0);
        }
        if self.said == LINES {
            self.left_out += 1;
            return None;
        }
        self.said += 1;
        Some(LeftOut(std::mem::take(&mut self.left_out)))
    }
}

/// How many lines were left out; nothing is written for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeftOut(u64);

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            n => write!(f, " ({n} more lines like this one were left out)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_few_lines_a_minute_and_says_what_was_left_out() {
        let t0 = Instant::now();
        let mut log_limit = LogLimit::default();
        let mut flood = |from: u64| {
            let times = (0..1000).map(|n| t0 + Duration::from_secs(from) + n * WINDOW / 2000);
            times
                .filter_map(|at| log_limit.turn(at))
                .collect::<Vec<_>>()
        };
        let first = flood(0);
        assert_eq!(first, [LeftOut(0); 10]);
        let next = flood(60);
        assert_eq!(next.len(), 10);
        assert_eq!(next[0], LeftOut(990));
        assert!(next[0].to_string().contains("990 more"));
        assert_eq!(next[1].to_string(), "");
    }
}
