//! The timing of multicast router advertisements on a link (RFC 4286).

use std::time::{Duration, Instant};

use super::random::RandomDelays;

/// Number of initial advertisements (section 3.1, MAX_INITIAL_ADVERTISEMENTS).
const INITIAL_ADVERTISEMENTS: u8 = 3;
/// Maximum time between initial advertisements (MAX_INITIAL_ADVERT_INTERVAL).
const INITIAL_INTERVAL: Duration = Duration::from_secs(2);
/// Maximum delay of the answer to a solicitation (MAX_RESPONSE_DELAY).
const RESPONSE_DELAY: Duration = Duration::from_secs(2);
/// Maximum deviation from the interval, as a fraction of it (AdvertisementJitter).
const JITTER: f64 = 0.025;

/// Schedules the advertisements of one interface and IP version.
#[derive(Debug)]
pub struct Advertiser {
    interval: Duration,
    initial_left: u8,
    next: Instant,
    due: bool,
    random: RandomDelays,
}

impl Advertiser {
    /// Creates an advertiser whose first advertisement is due shortly after `now`. `interval` is
    /// 4 to 180 seconds. Routers need different values of `seed`, so that they do not advertise
    /// at the same time.
    pub fn new(now: Instant, interval: Duration, seed: u64) -> Self {
        let mut advertiser = Self {
            interval,
            initial_left: INITIAL_ADVERTISEMENTS,
            next: now,
            due: false,
            random: RandomDelays::new(seed),
        };
        // A random delay of the first advertisement separates routers that start together.
        advertiser.next = now + advertiser.random.part(INITIAL_INTERVAL / 20);
        advertiser
    }

    /// Handles a solicitation (section 3.2): an advertisement is due within the response delay.
    pub fn handle_solicitation(&mut self, now: Instant) {
        let answer_due = now + self.random.part(RESPONSE_DELAY);
        self.next = self.next.min(answer_due);
    }

    /// Returns the time at which [`handle_timeout`](Self::handle_timeout) must be called.
    pub fn poll_timeout(&self) -> Instant {
        self.next
    }

    /// Makes an advertisement due if its time has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        if now < self.next {
            return;
        }
        self.due = true;
        let jitter = self.interval.mul_f64(JITTER);
        let mut interval = self.interval - jitter + self.random.part(jitter * 2);
        if self.initial_left > 0 {
            self.initial_left -= 1;
        }
        if self.initial_left > 0 {
            interval = interval.min(INITIAL_INTERVAL);
        }
        self.next = now + interval;
    }

    /// Returns true once for each advertisement to send.
    pub fn poll_advertisement(&mut self) -> bool {
        std::mem::take(&mut self.due)
    }

    /// Returns the advertised interval (section 3.2.2) in seconds.
    pub fn interval_seconds(&self) -> u8 {
        self.interval.as_secs().clamp(4, 180) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(20);

    fn advertisement_times(
        advertiser: &mut Advertiser,
        start: Instant,
        until: Duration,
    ) -> Vec<f64> {
        let mut times = Vec::new();
        while advertiser.poll_timeout() <= start + until {
            let now = advertiser.poll_timeout();
            advertiser.handle_timeout(now);
            assert!(advertiser.poll_advertisement());
            assert!(!advertiser.poll_advertisement());
            times.push((now - start).as_secs_f64());
        }
        times
    }

    #[test]
    fn initial_advertisements_precede_periodic_ones() {
        for seed in 0..50 {
            let start = Instant::now();
            let mut advertiser = Advertiser::new(start, INTERVAL, seed);
            let times = advertisement_times(&mut advertiser, start, Duration::from_secs(300));
            assert!(times[0] <= 0.1, "{times:?}");
            assert!(times[2] <= 4.2, "{times:?}");
            for pair in times[2..].windows(2) {
                let gap = pair[1] - pair[0];
                assert!((19.5..=20.5).contains(&gap), "{gap}");
            }
        }
    }

    #[test]
    fn solicitation_is_answered_within_two_seconds() {
        let start = Instant::now();
        let mut advertiser = Advertiser::new(start, INTERVAL, 7);
        advertisement_times(&mut advertiser, start, Duration::from_secs(30));
        let now = start + Duration::from_secs(31);
        let regular = advertiser.poll_timeout();
        advertiser.handle_solicitation(now);
        assert!(advertiser.poll_timeout() <= now + RESPONSE_DELAY);
        assert!(advertiser.poll_timeout() < regular);
        // A second solicitation does not delay the answer.
        let soon = advertiser.poll_timeout();
        advertiser.handle_solicitation(now + Duration::from_millis(1));
        assert!(advertiser.poll_timeout() <= soon);
    }

    #[test]
    fn advertisement_is_not_sent_early() {
        let start = Instant::now();
        let mut advertiser = Advertiser::new(start, INTERVAL, 3);
        advertisement_times(&mut advertiser, start, Duration::from_secs(10));
        advertiser.handle_timeout(start + Duration::from_secs(11));
        assert!(!advertiser.poll_advertisement());
    }
}
