//! When a multicast router announces itself on a link (RFC 4286).

use std::time::{Duration, Instant};

/// Advertisements that come soon after the start (section 3.1, MAX_INITIAL_ADVERTISEMENTS).
const INITIAL_ADVERTISEMENTS: u8 = 3;
/// The longest time between those (MAX_INITIAL_ADVERT_INTERVAL).
const INITIAL_INTERVAL: Duration = Duration::from_secs(2);
/// The longest wait before a solicitation is answered (MAX_RESPONSE_DELAY).
const RESPONSE_DELAY: Duration = Duration::from_secs(2);
/// The part of the interval by which advertisements vary (AdvertisementJitter).
const JITTER: f64 = 0.025;

/// Announces on one interface, for one IP version.
#[derive(Debug)]
pub struct Advertiser {
    interval: Duration,
    initial_left: u8,
    next: Instant,
    due: bool,
    chance: u64,
}

impl Advertiser {
    /// Starts to announce. `interval` is 4 to 180 seconds, `seed` any number; different routers
    /// want different ones, so that they do not announce at once.
    pub fn new(now: Instant, interval: Duration, seed: u64) -> Self {
        let mut announcer = Self {
            interval,
            initial_left: INITIAL_ADVERTISEMENTS,
            next: now,
            due: false,
            chance: seed | 1,
        };
        // The first one waits a little too: routers that start together do not speak together.
        announcer.next = now + announcer.random_part(INITIAL_INTERVAL / 20);
        announcer
    }

    /// Somebody asks who the multicast routers are (section 3.2).
    pub fn handle_solicitation(&mut self, now: Instant) {
        let answer = now + self.random_part(RESPONSE_DELAY);
        self.next = self.next.min(answer);
    }

    /// When [`Advertiser::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Instant {
        self.next
    }

    /// Makes an advertisement due whose time has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        if now < self.next {
            return;
        }
        self.due = true;
        let jitter = self.interval.mul_f64(JITTER);
        let mut interval = self.interval - jitter + self.random_part(jitter * 2);
        if self.initial_left > 0 {
            self.initial_left -= 1;
        }
        if self.initial_left > 0 {
            interval = interval.min(INITIAL_INTERVAL);
        }
        self.next = now + interval;
    }

    /// True once for each advertisement to be sent.
    pub fn poll_advertisement(&mut self) -> bool {
        std::mem::take(&mut self.due)
    }

    /// The interval to tell (section 3.2.2), in whole seconds.
    pub fn interval_seconds(&self) -> u8 {
        self.interval.as_secs().clamp(4, 180) as u8
    }

    /// Some part of a time, evenly spread (xorshift64).
    fn random_part(&mut self, of: Duration) -> Duration {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        of.mul_f64((self.chance >> 11) as f64 / (1u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(20);

    fn advertised(announcer: &mut Advertiser, start: Instant, until: Duration) -> Vec<f64> {
        let mut times = Vec::new();
        while announcer.poll_timeout() <= start + until {
            let now = announcer.poll_timeout();
            announcer.handle_timeout(now);
            assert!(announcer.poll_advertisement());
            assert!(!announcer.poll_advertisement());
            times.push((now - start).as_secs_f64());
        }
        times
    }

    #[test]
    fn initial_advertisements_precede_periodic_ones() {
        for seed in 0..50 {
            let start = Instant::now();
            let mut announcer = Advertiser::new(start, INTERVAL, seed);
            let times = advertised(&mut announcer, start, Duration::from_secs(300));
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
        let mut announcer = Advertiser::new(start, INTERVAL, 7);
        advertised(&mut announcer, start, Duration::from_secs(30));
        let now = start + Duration::from_secs(31);
        let regular = announcer.poll_timeout();
        announcer.handle_solicitation(now);
        assert!(announcer.poll_timeout() <= now + RESPONSE_DELAY);
        assert!(announcer.poll_timeout() < regular);
        // Asked again, it does not put the answer off.
        let soon = announcer.poll_timeout();
        announcer.handle_solicitation(now + Duration::from_millis(1));
        assert!(announcer.poll_timeout() <= soon);
    }

    #[test]
    fn advertisement_is_not_sent_early() {
        let start = Instant::now();
        let mut announcer = Advertiser::new(start, INTERVAL, 3);
        advertised(&mut announcer, start, Duration::from_secs(10));
        announcer.handle_timeout(start + Duration::from_secs(11));
        assert!(!announcer.poll_advertisement());
    }
}
