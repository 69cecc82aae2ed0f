//! Retransmission of a message until it is answered.

use std::time::{Duration, Instant};

use super::random::AmtRandom;

/// Limits of the time between two transmissions (RFC 7450 section 5.2.3.4.3).
const WAIT: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(120)];

/// Number of transmissions without an answer after which a relay counts as unresponsive.
const MAX_UNANSWERED: u32 = 3;

/// The transmissions of a message since its last answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Retry {
    /// Number of transmissions without an answer.
    sent: u32,
    /// Time of the next transmission.
    at: Instant,
}

impl Retry {
    /// Schedules the first transmission.
    pub(super) fn at(at: Instant) -> Self {
        Self { sent: 0, at }
    }

    /// Returns the number of transmissions.
    pub(super) fn sent(&self) -> u32 {
        self.sent
    }

    /// Returns the time of the next transmission.
    pub(super) fn next(&self) -> Instant {
        self.at
    }

    /// Returns whether there was enough time to answer.
    pub(super) fn is_unanswered(&self, now: Instant) -> bool {
        self.sent >= MAX_UNANSWERED && now >= self.at
            // The wait before a later transmission is long.
            || self.sent > MAX_UNANSWERED
    }

    /// Counts a transmission that is due. Schedules the next one after a random time from 1 s to
    /// 2^n s, at most 120 s.
    pub(super) fn take_due(&mut self, now: Instant, random: &mut AmtRandom) -> bool {
        if self.at > now {
            return false;
        }
        self.sent += 1;
        self.at = now + random.back_off(WAIT, self.sent);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_grows_to_its_limit() {
        let t0 = Instant::now();
        let mut random = AmtRandom::new([1; 32]);
        let mut retry = Retry::at(t0);
        let mut now = t0;
        for n in 1..12u32 {
            assert!(retry.take_due(now, &mut random));
            let wait = retry.next() - now;
            let [min, max] = WAIT;
            assert!(wait >= min && wait <= max.min(Duration::from_secs(1 << n)));
            assert!(!retry.take_due(now, &mut random));
            assert_eq!(retry.is_unanswered(now), n > 3, "{n}");
            now = retry.next();
            assert_eq!(retry.is_unanswered(now), n >= 3, "{n}");
        }
    }
}
