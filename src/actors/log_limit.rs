//! A rate limit for log lines that any host can cause.

use std::fmt;
use std::time::{Duration, Instant};

/// Default number of lines of one kind within [`WINDOW`].
const MAX_LINES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);

/// The lines of one kind.
#[derive(Debug)]
pub struct LogLimit {
    /// Lines within [`WINDOW`], at most.
    max_lines: u32,
    since: Option<Instant>,
    logged: u32,
    suppressed: u64,
}

impl Default for LogLimit {
    fn default() -> Self {
        Self::new(MAX_LINES)
    }
}

impl LogLimit {
    /// Returns a limit of `max_lines` a minute.
    pub fn new(max_lines: u32) -> Self {
        Self {
            max_lines,
            since: None,
            logged: 0,
            suppressed: 0,
        }
    }

    /// Returns whether a line may be logged now. The returned value is appended to the line: the
    /// number of lines that were suppressed before.
    pub fn permit(&mut self, now: Instant) -> Option<SuppressedLines> {
        let open = self.since.filter(|at| now.duration_since(*at) < WINDOW);
        if open.is_none() {
            (self.since, self.logged) = (Some(now), 0);
        }
        if self.logged == self.max_lines {
            self.suppressed += 1;
            return None;
        }
        self.logged += 1;
        Some(SuppressedLines(std::mem::take(&mut self.suppressed)))
    }
}

/// A number of suppressed lines. Zero is displayed as nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuppressedLines(u64);

impl SuppressedLines {
    /// Returns the number.
    pub fn count(self) -> u64 {
        self.0
    }
}

impl fmt::Display for SuppressedLines {
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
    fn flood_is_limited_and_suppressed_lines_are_counted() {
        let t0 = Instant::now();
        let mut log_limit = LogLimit::default();
        let mut flood = |from: u64| {
            let times = (0..1000).map(|n| t0 + Duration::from_secs(from) + n * WINDOW / 2000);
            times
                .filter_map(|at| log_limit.permit(at))
                .collect::<Vec<_>>()
        };
        let first = flood(0);
        assert_eq!(first, [SuppressedLines(0); 10]);
        let next = flood(60);
        assert_eq!(next.len(), 10);
        assert_eq!(next[0], SuppressedLines(990));
        assert!(next[0].to_string().contains("990 more"));
        assert_eq!(next[1].to_string(), "");
    }
}
