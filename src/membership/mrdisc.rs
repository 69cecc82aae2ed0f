//! The timing of multicast router advertisements on a link (RFC 4286).

use std::time::{Duration, Instant};

use super::random::RandomDelays;
use super::refusal::MembershipRefusal;

/// Number of initial advertisements (section 3.1, MAX_INITIAL_ADVERTISEMENTS).
const INITIAL_ADVERTISEMENTS: u8 = 3;
/// Maximum time between initial advertisements (MAX_INITIAL_ADVERT_INTERVAL).
const INITIAL_INTERVAL: Duration = Duration::from_secs(2);
/// Maximum delay of the answer to a solicitation (MAX_RESPONSE_DELAY).
const RESPONSE_DELAY: Duration = Duration::from_secs(2);
/// Maximum number of messages per second that are processed or sent on an interface (section 3.1.6,
/// MaxMessageRate).
const MAX_MESSAGE_RATE: u32 = 10;
/// Minimum time between two advertisements.
const MIN_GAP: Duration = Duration::from_millis(1000 / MAX_MESSAGE_RATE as u64);
/// Maximum deviation from the interval, as a fraction of it (AdvertisementJitter).
const JITTER: f64 = 0.025;

/// Schedules the advertisements of one interface and IP version.
#[derive(Debug)]
pub struct Advertiser {
    interval: Duration,
    initial_left: u8,
    next: Instant,
    /// Whether the advertisement at `next` answers a solicitation.
    answers: bool,
    /// When the last advertisement became due.
    last: Option<Instant>,
    due: bool,
    /// Start of the current second of received solicitations, and their number.
    solicited: Option<(Instant, u32)>,
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
            answers: false,
            last: None,
            due: false,
            solicited: None,
            random: RandomDelays::new(seed),
        };
        // A random delay of the first advertisement separates routers that start together.
        advertiser.next = now + advertiser.random.part(INITIAL_INTERVAL / 20);
        advertiser
    }

    /// Handles a solicitation (sections 3.2 and 4): an advertisement is due within the response delay.
    /// It answers all solicitations that arrive before it is sent.
    ///
    /// # Errors
    /// More solicitations than MaxMessageRate arrived within a second. This one has no effect.
    pub fn handle_solicitation(&mut self, now: Instant) -> Result<(), MembershipRefusal> {
        let second = self.solicited.filter(|(start, _)| {
            let elapsed = now.saturating_duration_since(*start);
            elapsed < Duration::from_secs(1)
        });
        let (start, count) = second.unwrap_or((now, 0));
        if count == MAX_MESSAGE_RATE {
            return Err(MembershipRefusal::SolicitationRate);
        }
        self.solicited = Some((start, count + 1));
        // A new random delay for each solicitation would move the answer of a flood to its start.
        if !self.answers {
            let mut answer_due = now + self.random.part(RESPONSE_DELAY);
            if let Some(last) = self.last {
                answer_due = answer_due.max(last + MIN_GAP);
            }
            self.next = self.next.min(answer_due);
            self.answers = true;
        }
        Ok(())
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
        self.answers = false;
        self.last = Some(now);
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
        let mut gaps = Vec::new();
        for seed in 0..50 {
            let start = Instant::now();
            let mut advertiser = Advertiser::new(start, INTERVAL, seed);
            let times = advertisement_times(&mut advertiser, start, Duration::from_secs(300));
            assert!(times[0] <= 0.1, "{times:?}");
            assert!(times[2] <= 4.2, "{times:?}");
            for pair in times[2..].windows(2) {
                let gap = pair[1] - pair[0];
                assert!((19.5..=20.5).contains(&gap), "{gap}");
                gaps.push(gap);
            }
        }
        // The jitter uses its whole range.
        assert!(gaps.iter().any(|gap| *gap < 19.6));
        assert!(gaps.iter().any(|gap| *gap > 20.4));
    }

    /// RFC 4286 section 3.1.1: 4 to 180 seconds.
    #[test]
    fn advertised_interval_is_within_its_range() {
        for (configured, advertised) in [(1, 4), (4, 4), (20, 20), (180, 180), (1000, 180)] {
            let interval = Duration::from_secs(configured);
            let advertiser = Advertiser::new(Instant::now(), interval, 1);
            assert_eq!(advertiser.interval_seconds(), advertised);
        }
    }

    #[test]
    fn solicitation_is_answered_within_two_seconds() {
        let start = Instant::now();
        let mut advertiser = Advertiser::new(start, INTERVAL, 7);
        advertisement_times(&mut advertiser, start, Duration::from_secs(30));
        let now = start + Duration::from_secs(31);
        let regular = advertiser.poll_timeout();
        advertiser.handle_solicitation(now).unwrap();
        assert!(advertiser.poll_timeout() <= now + RESPONSE_DELAY);
        assert!(advertiser.poll_timeout() < regular);
        // A second solicitation does not delay the answer.
        let soon = advertiser.poll_timeout();
        let second = now + Duration::from_millis(1);
        advertiser.handle_solicitation(second).unwrap();
        assert_eq!(advertiser.poll_timeout(), soon);
    }

    /// RFC 4286 section 3.2: the delay is random, so that the routers of a link do not answer together.
    #[test]
    fn answers_have_random_delays_over_two_seconds() {
        let start = Instant::now();
        let delay = |seed| {
            let mut advertiser = Advertiser::new(start, INTERVAL, seed);
            advertisement_times(&mut advertiser, start, Duration::from_secs(30));
            let now = start + Duration::from_secs(31);
            advertiser.handle_solicitation(now).unwrap();
            (advertiser.poll_timeout() - now).as_secs_f64()
        };
        let delays: Vec<f64> = (0..100).map(delay).collect();
        let mean = delays.iter().sum::<f64>() / delays.len() as f64;
        assert!((0.7..1.3).contains(&mean), "{mean}");
        assert!(delays.iter().any(|d| *d < 0.4), "{delays:?}");
        assert!(delays.iter().any(|d| *d > 1.6), "{delays:?}");
    }

    /// 1,000 solicitations a second for a minute cause about one advertisement a second, and all but
    /// ten solicitations a second are refused.
    #[test]
    fn flood_of_solicitations_is_limited() {
        // The delays of several seeds are needed to reach the minimum gap.
        for seed in 0..10 {
            let start = Instant::now();
            let mut advertiser = Advertiser::new(start, INTERVAL, seed);
            let (mut sent, mut refused) = (Vec::new(), 0);
            for ms in 0..60_000 {
                let now = start + Duration::from_millis(ms);
                if let Err(reason) = advertiser.handle_solicitation(now) {
                    assert_eq!(reason, MembershipRefusal::SolicitationRate);
                    refused += 1;
                }
                advertiser.handle_timeout(now);
                if advertiser.poll_advertisement() {
                    sent.push(now);
                }
            }
            assert_eq!(refused, 60_000 - 60 * 10);
            assert!((30..=90).contains(&sent.len()), "{}", sent.len());
            for pair in sent.windows(2) {
                let gap = pair[1] - pair[0];
                assert!(gap >= Duration::from_millis(100), "{gap:?}");
                assert!(gap <= RESPONSE_DELAY + Duration::from_secs(1), "{gap:?}");
            }
        }
    }

    /// MaxMessageRate also limits what is sent.
    #[test]
    fn answer_is_sent_100_ms_after_the_last_advertisement() {
        let start = Instant::now();
        let gaps = (0..100).map(|seed| {
            let mut advertiser = Advertiser::new(start, INTERVAL, seed);
            advertisement_times(&mut advertiser, start, Duration::from_secs(30));
            let sent = advertiser.poll_timeout();
            advertiser.handle_timeout(sent);
            advertiser.handle_solicitation(sent).unwrap();
            advertiser.poll_timeout() - sent
        });
        assert_eq!(gaps.min(), Some(Duration::from_millis(100)));
    }

    #[test]
    fn ten_solicitations_are_accepted_each_second() {
        let start = Instant::now();
        let mut advertiser = Advertiser::new(start, INTERVAL, 5);
        for second in 0..3 {
            let at = |ms: u64| start + Duration::from_millis(second * 1000 + ms);
            for ms in 0..10 {
                assert_eq!(advertiser.handle_solicitation(at(ms)), Ok(()));
            }
            let refused = Err(MembershipRefusal::SolicitationRate);
            assert_eq!(advertiser.handle_solicitation(at(10)), refused);
            assert_eq!(advertiser.handle_solicitation(at(999)), refused);
        }
    }

    #[test]
    fn one_answer_follows_many_solicitations() {
        let start = Instant::now();
        let mut advertiser = Advertiser::new(start, INTERVAL, 9);
        advertisement_times(&mut advertiser, start, Duration::from_secs(30));
        let now = start + Duration::from_secs(31);
        for ms in 0..10 {
            let at = now + Duration::from_millis(ms);
            advertiser.handle_solicitation(at).unwrap();
        }
        let until = Duration::from_secs(31) + RESPONSE_DELAY;
        let times = advertisement_times(&mut advertiser, start, until);
        assert_eq!(times.len(), 1, "{times:?}");
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
