//! Rate limit on received reports. A flood from unknown or spoofed addresses must not prevent
//! members from refreshing their memberships.
//!
//! The limit counts work: a report with many records, or about groups with many sources, takes the
//! tokens of several reports. One token is taken before a report is parsed, the others after that.
//!
//! Half of the rate is reserved for known members, half for unknown senders. An address becomes a
//! known member when two of its reports have been accepted, because random spoofed addresses
//! rarely repeat.
//!
//! Each half admits every report while more than half of its tokens are left. Below that, each
//! sender has only its fair share. Each member has a share of its own. Unknown senders are hashed
//! into buckets, which share a rate. The hash changes every ten seconds, so that no sender shares
//! the bucket of a flood for longer. Memory is bounded, and each decision takes constant time.
//!
//! A sender is an address on a link, or the address and port of a gateway behind an AMT tunnel.

use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ahash::RandomState;
use lru::LruCache;

use super::quota::SenderStatus;
use super::refusal::{MembershipRefusal, RefusalCounts};
use super::work::Work;

/// Maximum number of known members. Further senders stay unknown.
const MAX_MEMBERS: usize = 4096;

/// Number of slots for addresses with one accepted report.
const CANDIDATE_SLOTS: usize = 4096;

/// Maximum number of buckets for unknown senders.
const MAX_BUCKETS: usize = 1024;

/// Time after which unknown senders are hashed into other buckets.
const REHASH_INTERVAL: Duration = Duration::from_secs(10);

/// What tells the senders of reports apart.
pub trait ReportSender: Copy + Eq + Hash {
    /// Returns whether several hosts may use it. Such a sender is never a known member.
    fn is_shared(&self) -> bool;
}

impl ReportSender for IpAddr {
    fn is_shared(&self) -> bool {
        self.is_unspecified()
    }
}

impl ReportSender for SocketAddr {
    fn is_shared(&self) -> bool {
        self.ip().is_unspecified()
    }
}

/// A token bucket.
#[derive(Debug, Clone, Copy)]
struct Tokens {
    left: f64,
    /// Time of the last refill.
    refilled_at: Instant,
}

impl Tokens {
    /// Adds `rate` tokens per second, up to `max`.
    fn refill(&mut self, now: Instant, rate: f64, max: f64) {
        let elapsed = now
            .saturating_duration_since(self.refilled_at)
            .as_secs_f64();
        self.left = (self.left + elapsed * rate).min(max);
        self.refilled_at = self.refilled_at.max(now);
    }

    /// Removes `count` tokens. Returns false if fewer are left.
    fn take(&mut self, count: f64) -> bool {
        let has_tokens = self.left >= count;
        if has_tokens {
            self.left -= count;
        }
        has_tokens
    }
}

/// The half of the rate that one class of senders has.
#[derive(Debug)]
struct ClassLimiter {
    /// Reports per second.
    rate: f64,
    /// Holds the tokens of one second at most.
    pool: Tokens,
}

impl ClassLimiter {
    fn new(now: Instant, rate: f64) -> Self {
        let pool = Tokens {
            left: rate,
            refilled_at: now,
        };
        Self { rate, pool }
    }

    /// Takes `count` tokens of the pool while more than half of it is left; it may owe tokens after
    /// that. Otherwise takes them if `sender_tokens` allows: each of `shares` senders has an equal
    /// part of half the rate.
    fn take(
        &mut self,
        now: Instant,
        sender_tokens: &mut Tokens,
        shares: usize,
        count: f64,
    ) -> bool {
        self.pool.refill(now, self.rate, self.rate);
        let share = self.rate / 2.0 / shares as f64;
        sender_tokens.refill(now, share, share.max(1.0));
        let admitted = self.pool.left > self.rate / 2.0 || sender_tokens.take(count);
        if admitted {
            self.pool.left -= count;
        }
        admitted
    }
}

/// A known member.
#[derive(Debug)]
struct Member {
    /// The membership expires at this time.
    expires: Instant,
    tokens: Tokens,
}

/// Decides for each report whether the rate limit admits it.
#[derive(Debug)]
pub struct ReportRateLimiter<S: ReportSender = IpAddr> {
    hasher: RandomState,
    start: Instant,
    members: ClassLimiter,
    unknown_senders: ClassLimiter,
    /// Least recently reporting members first to remove: expired members are at the end.
    known_members: LruCache<S, Member>,
    /// Hashes of addresses with one accepted report. 0 marks a free slot.
    candidates: Box<[u64]>,
    buckets: Box<[Tokens]>,
    refusals: RefusalCounts,
}

impl<S: ReportSender> ReportRateLimiter<S> {
    /// Creates a limiter that admits `reports_per_second` on average, at least one. `seed`
    /// determines which unknown senders share a bucket, so it must not be predictable.
    pub fn new(now: Instant, reports_per_second: u32, seed: u64) -> Self {
        let half = f64::from(reports_per_second.max(1)) / 2.0;
        // Each bucket should receive about one token per second.
        let buckets = ((half / 2.0) as usize).clamp(1, MAX_BUCKETS);
        let full = Tokens {
            left: 1.0,
            refilled_at: now,
        };
        Self {
            hasher: RandomState::with_seeds(seed, !seed, seed.rotate_left(32), 0x6d63_6173),
            start: now,
            members: ClassLimiter::new(now, half),
            unknown_senders: ClassLimiter::new(now, half),
            known_members: LruCache::unbounded(),
            candidates: vec![0; CANDIDATE_SLOTS].into(),
            buckets: vec![full; buckets].into(),
            refusals: RefusalCounts::default(),
        }
    }

    /// Checks whether a report from `sender` is admitted now, and consumes its tokens.
    ///
    /// # Errors
    /// [`MembershipRefusal::MemberRate`] for a known member, and
    /// [`MembershipRefusal::UnknownSenderRate`] for an unknown sender.
    pub fn admit(&mut self, now: Instant, sender: S) -> Result<(), MembershipRefusal> {
        self.take(now, sender, 1.0)
    }

    /// Charges the work of a parsed report beyond the token that [`ReportRateLimiter::admit`] took.
    ///
    /// # Errors
    /// As [`ReportRateLimiter::admit`].
    pub fn charge(&mut self, now: Instant, sender: S, work: Work) -> Result<(), MembershipRefusal> {
        match work.tokens() - 1.0 {
            more if more > 0.0 => self.take(now, sender, more),
            _ => Ok(()),
        }
    }

    fn take(&mut self, now: Instant, sender: S, count: f64) -> Result<(), MembershipRefusal> {
        let shares = self.known_members.len().max(16);
        let member = self
            .known_members
            .peek_mut(&sender)
            .filter(|m| m.expires > now);
        let (admitted, reason) = match member {
            Some(member) => {
                let admitted = self.members.take(now, &mut member.tokens, shares, count);
                (admitted, MembershipRefusal::MemberRate)
            }
            None => {
                let round =
                    now.saturating_duration_since(self.start).as_secs() / REHASH_INTERVAL.as_secs();
                let bucket = self.hasher.hash_one((sender, round)) as usize % self.buckets.len();
                let shares = self.buckets.len();
                let admitted =
                    self.unknown_senders
                        .take(now, &mut self.buckets[bucket], shares, count);
                (admitted, MembershipRefusal::UnknownSenderRate)
            }
        };
        match admitted {
            true => Ok(()),
            false => {
                self.refusals.count(reason);
                Err(reason)
            }
        }
    }

    /// Notes that `Downstream` has accepted a report from `sender`, whose membership expires at
    /// `expires`. Must not be called for refused reports.
    pub fn handle_accepted_report(&mut self, now: Instant, sender: S, expires: Instant) {
        if let Some(member) = self.known_members.get_mut(&sender) {
            member.expires = member.expires.max(expires);
            return;
        }
        if sender.is_shared() {
            return;
        }
        let hash = self.hasher.hash_one(sender) | 1;
        let candidate = &mut self.candidates[(hash >> 32) as usize % CANDIDATE_SLOTS];
        if *candidate != hash {
            *candidate = hash;
            return;
        }
        while self
            .known_members
            .peek_lru()
            .is_some_and(|(_, m)| m.expires <= now)
        {
            self.known_members.pop_lru();
        }
        if self.known_members.len() < MAX_MEMBERS {
            *candidate = 0;
            let tokens = Tokens {
                left: 1.0,
                refilled_at: now,
            };
            self.known_members.put(sender, Member { expires, tokens });
        }
    }

    /// Returns true if unknown senders exceed, or have just exceeded, the rate at which every
    /// report is admitted. Reports of unknown members may then be refused, so a leave from an
    /// unknown sender should not take effect.
    pub fn is_flooded(&self, now: Instant) -> bool {
        let mut pool = self.unknown_senders.pool;
        pool.refill(now, self.unknown_senders.rate, self.unknown_senders.rate);
        pool.left <= self.unknown_senders.rate * 0.75
    }

    /// Returns whether `sender` is a known member.
    pub fn sender_status(&self, now: Instant, sender: S) -> SenderStatus {
        match self.known_members.peek(&sender).filter(|m| m.expires > now) {
            Some(_) => SenderStatus::Member {
                known_members: self.known_members.len(),
            },
            None => SenderStatus::Unknown,
        }
    }

    /// Returns the number of known members.
    pub fn member_count(&self) -> usize {
        self.known_members.len()
    }

    /// Returns the number of refused reports per reason since the last call.
    pub fn take_refusals(&mut self) -> impl Iterator<Item = (MembershipRefusal, u64)> + use<S> {
        self.refusals.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const SECOND: Duration = Duration::from_secs(1);

    fn host(n: u32) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0000 + n).into()
    }

    /// Returns the n-th address of a pseudorandom sequence without early repetitions.
    fn spoofed(n: u32) -> IpAddr {
        Ipv4Addr::from_bits(n.wrapping_mul(0x9e37_79b1) | 1 << 31).into()
    }

    fn add_members(limiter: &mut ReportRateLimiter, now: Instant, count: u32) {
        for n in 0..count {
            for _ in 0..2 {
                limiter.handle_accepted_report(now, host(n), now + 270 * SECOND);
            }
        }
    }

    #[test]
    fn members_refresh_during_a_spoofed_flood() {
        let t0 = Instant::now();
        let mut limiter = ReportRateLimiter::new(t0, 10_000, 7);
        add_members(&mut limiter, t0, 1000);
        let (mut admitted, mut n) = (0, 0);
        // 100,000 spoofed reports per second for ten seconds. Each member reports ten times.
        for ms in 0..10_000u32 {
            let now = t0 + Duration::from_millis(ms.into());
            for _ in 0..100 {
                n += 1;
                if limiter.admit(now, spoofed(n)).is_ok() {
                    admitted += 1;
                    limiter.handle_accepted_report(now, spoofed(n), now + 270 * SECOND);
                }
            }
            assert_eq!(limiter.admit(now, host(ms % 1000)), Ok(()), "{ms} ms");
        }
        // Half of the rate, plus the initial tokens.
        assert!((50_000..=55_000).contains(&admitted), "{admitted}");
        assert!(
            limiter.member_count() < 1000 + 50,
            "{}",
            limiter.member_count()
        );
        let refused: Vec<_> = limiter.take_refusals().collect();
        assert_eq!(
            refused,
            [(
                MembershipRefusal::UnknownSenderRate,
                1_000_000 - u64::from(admitted as u32)
            )]
        );
    }

    #[test]
    fn new_host_passes_a_flood_from_few_addresses() {
        let t0 = Instant::now();
        let mut limiter = ReportRateLimiter::new(t0, 10_000, 7);
        let mut admitted = 0;
        for ms in 0..20_000u32 {
            let now = t0 + Duration::from_millis(ms.into());
            for n in 0..100 {
                let _ = limiter.admit(now, spoofed(n % 8));
            }
            if ms % 1000 == 500 {
                admitted += u32::from(limiter.admit(now, host(1)).is_ok());
            }
        }
        assert!(admitted >= 18, "{admitted} of 20");
    }

    /// 1,400 reports per second, each with 183 records about groups with 256 sources.
    #[test]
    fn large_reports_take_the_tokens_of_several() {
        const LARGE: Work = Work(183 * (Work::RECORD + 256));
        for is_member in [false, true] {
            let t0 = Instant::now();
            let mut limiter = ReportRateLimiter::new(t0, 10_000, 7);
            if is_member {
                add_members(&mut limiter, t0, 3);
            }
            let mut processed = 0u64;
            for n in 0..14_000u64 {
                let now = t0 + Duration::from_micros(n * 714);
                let admitted = limiter.admit(now, host(1)).is_ok();
                if admitted && limiter.charge(now, host(1), LARGE).is_ok() {
                    processed += u64::from(LARGE.0);
                }
                // Small reports of other hosts are not affected.
                if n % 1000 == 0 {
                    assert_eq!(limiter.admit(now, host(2)), Ok(()), "{n}");
                    assert_eq!(limiter.charge(now, host(2), Work(16)), Ok(()), "{n}");
                }
            }
            // Half of the rate for ten seconds, plus the initial tokens and one report.
            let most = (11 * 5000 * u64::from(Work::TOKEN)) + u64::from(LARGE.0);
            assert!(processed <= most, "{processed} of {most}");
            assert!(processed >= most / 4, "{processed} of {most}");
        }
    }

    #[test]
    fn member_cannot_starve_other_members() {
        let t0 = Instant::now();
        let mut limiter = ReportRateLimiter::new(t0, 1000, 7);
        add_members(&mut limiter, t0, 50);
        let mut refused = 0;
        for ms in 0..10_000u32 {
            let now = t0 + Duration::from_millis(ms.into());
            for _ in 0..20 {
                refused += u32::from(limiter.admit(now, host(0)).is_err());
            }
            if ms % 20 == 0 {
                let other = host(1 + ms / 20 % 49);
                assert_eq!(limiter.admit(now, other), Ok(()), "{ms} ms");
            }
        }
        assert!(refused > 190_000, "{refused}");
    }

    #[test]
    fn host_with_many_groups_is_unlimited_without_flood() {
        let t0 = Instant::now();
        let mut limiter = ReportRateLimiter::new(t0, 10_000, 7);
        for n in 0..40_000u32 {
            let now = t0 + Duration::from_micros(u64::from(n) * 250);
            assert_eq!(limiter.admit(now, host(1)), Ok(()), "report {n}");
        }
    }

    #[test]
    fn flood_is_detected_while_it_lasts() {
        let t0 = Instant::now();
        let mut limiter = ReportRateLimiter::new(t0, 10_000, 7);
        add_members(&mut limiter, t0, 3);
        let member = SenderStatus::Member { known_members: 3 };
        assert_eq!(limiter.sender_status(t0, host(1)), member);
        assert_eq!(limiter.sender_status(t0, host(9)), SenderStatus::Unknown);
        for n in 0..1000 {
            let _ = limiter.admit(t0, spoofed(n));
        }
        assert!(!limiter.is_flooded(t0));
        for n in 0..5000 {
            let _ = limiter.admit(t0, spoofed(n));
        }
        assert!(limiter.is_flooded(t0));
        assert!(!limiter.is_flooded(t0 + SECOND));
        let later = t0 + 271 * SECOND;
        assert_eq!(limiter.sender_status(later, host(1)), SenderStatus::Unknown);
    }

    #[test]
    fn known_members_are_bounded_and_expire() {
        let t0 = Instant::now();
        let mut limiter = ReportRateLimiter::new(t0, 1000, 7);
        add_members(&mut limiter, t0, 10_000);
        assert_eq!(limiter.member_count(), MAX_MEMBERS);
        limiter.handle_accepted_report(t0, IpAddr::from([0, 0, 0, 0]), t0 + 270 * SECOND);
        // Expired members are removed for new ones.
        let later = t0 + 271 * SECOND;
        for _ in 0..2 {
            limiter.handle_accepted_report(later, host(20_000), later + SECOND);
        }
        assert_eq!(limiter.member_count(), 1);
    }
}
