//! The rate limit of queries to name servers.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Largest number of queries in a [`RATE_INTERVAL`] (RFC 8777 section 2.4.2).
const RATE_LIMIT: usize = 10;
/// Interval of the rate limit.
const RATE_INTERVAL: Duration = Duration::from_millis(100);

/// The times of the latest queries.
#[derive(Debug, Default)]
pub(super) struct QueryRate(VecDeque<Instant>);

impl QueryRate {
    /// Counts a query at `now`, if it is permitted.
    ///
    /// # Errors
    /// The time at which it is.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Instant> {
        match self.limited_until().filter(|until| now < *until) {
            Some(until) => Err(until),
            None => {
                if self.0.len() >= RATE_LIMIT {
                    self.0.pop_front();
                }
                self.0.push_back(now);
                Ok(())
            }
        }
    }

    /// Returns the time from which the next query is permitted; `None` if it always was.
    pub(super) fn limited_until(&self) -> Option<Instant> {
        let is_full = self.0.len() >= RATE_LIMIT;
        let oldest = self.0.front().filter(|_| is_full)?;
        Some(*oldest + RATE_INTERVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_queries_are_permitted_in_each_100_ms() {
        let t0 = Instant::now();
        let mut rate = QueryRate::default();
        let mut times = Vec::new();
        let mut now = t0;
        while times.len() < 30 {
            match rate.take(now) {
                Ok(()) => times.push(now - t0),
                Err(until) => now = until,
            }
            now += Duration::from_millis(1);
        }
        assert_eq!(times[9], Duration::from_millis(9));
        for window in times.windows(11) {
            let between = window[10] - window[0];
            assert!(between >= Duration::from_millis(100), "{times:?}");
        }
    }
}
