//! The rate limit of a connection. Pure; the time is an argument.

use std::time::{Duration, Instant};

/// The interval of requests in the long run: 20 requests a second.
const INTERVAL: Duration = Duration::from_millis(50);
/// How far a burst may be ahead of the interval: 40 requests at once.
const BURST: Duration = Duration::from_millis(50 * 40);

/// Delays requests that come too fast. Clients of the prototype do not survive a refusal (429 or
/// 503), but wait for a late answer.
#[derive(Debug)]
pub struct RequestPacer {
    /// When the next request would be due if all came in the interval.
    due: Instant,
}

impl RequestPacer {
    /// Returns a pacer that has seen no request.
    pub fn new(now: Instant) -> Self {
        Self { due: now }
    }

    /// Counts a request. Returns how long its answer has to wait.
    pub fn delay(&mut self, now: Instant) -> Duration {
        self.due = self.due.max(now) + INTERVAL;
        self.due.saturating_duration_since(now + BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_pass_and_floods_are_slowed_to_the_interval() {
        let start = Instant::now();
        let mut pacer = RequestPacer::new(start);
        let burst: Vec<Duration> = (0..40).map(|_| pacer.delay(start)).collect();
        assert_eq!(burst, [Duration::ZERO; 40]);
        assert_eq!(pacer.delay(start), INTERVAL);
        assert_eq!(pacer.delay(start), INTERVAL * 2);
        let later = start + Duration::from_secs(10);
        assert_eq!(pacer.delay(later), Duration::ZERO);
    }
}
