//! Spreads the reports of many streams over time, so that no packet waits for all of them.

/// How often a stream is reported, in milliseconds.
const REPORT_MS: u64 = 500;

/// How often an owner of streams reports some of them, in milliseconds.
const TICK_MS: u64 = 100;

/// The most streams that are reported at once.
pub(super) const REPORTS_AT_ONCE: usize = 64;

/// Decides which streams an owner reports now.
#[derive(Debug)]
pub(super) struct ReportTurns {
    interval_ms: u64,
    left: usize,
}

impl ReportTurns {
    /// Returns the turns of an owner of this many streams. Each stream has its turn, however many
    /// there are.
    pub fn new(streams: usize) -> Self {
        let turns = streams.div_ceil(REPORTS_AT_ONCE) as u64;
        Self {
            interval_ms: REPORT_MS.max((turns + 1) * TICK_MS),
            left: REPORTS_AT_ONCE,
        }
    }

    /// Returns whether a stream is reported now. `reported_ms` is the time of its last report.
    pub fn is_due(&mut self, reported_ms: Option<u64>, now_ms: u64) -> bool {
        let is_due = |at: u64| now_ms >= at + self.interval_ms;
        let is_due = self.left > 0 && reported_ms.is_none_or(is_due);
        self.left -= usize::from(is_due);
        is_due
    }

    /// Returns whether some stream was due.
    pub fn has_reported(&self) -> bool {
        self.left < REPORTS_AT_ONCE
    }
}
