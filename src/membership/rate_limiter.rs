//! Which reports are taken when more come than can be: a flood by strangers, spoofed addresses
//! included, must not keep a member from refreshing its membership.
//!
//! Half of the rate is for known members, half for strangers. Within each half, first come is
//! first served as long as the half has reserves; then each has only its fair share. A member's
//! share is its own; strangers are hashed into buckets, anew every ten seconds, so that nobody
//! stays in the bucket of a flood. Known is who had two reports taken: addresses made up at
//! random do not come twice. Memory is bounded, and each decision takes constant time.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ahash::RandomState;
use lru::LruCache;

use super::quota::SenderStatus;
use super::refusal::{MembershipRefusal, RefusalCounts};

/// How many members are known at most. A further one stays a stranger.
const KNOWN: usize = 4096;

/// How many addresses are remembered that had one report taken.
const SEEN: usize = 4096;

/// How many buckets strangers are hashed into at most.
const BUCKETS: usize = 1024;

/// How long a stranger stays in its bucket.
const REHASH: Duration = Duration::from_secs(10);

/// Tokens that come back with time.
#[derive(Debug, Clone, Copy)]
struct Tokens {
    left: f64,
    at: Instant,
}

impl Tokens {
    fn refill(&mut self, now: Instant, rate: f64, most: f64) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * rate).min(most);
        self.at = self.at.max(now);
    }

    fn take(&mut self) -> bool {
        let one = self.left >= 1.0;
        if one {
            self.left -= 1.0;
        }
        one
    }
}

/// One half of the rate.
#[derive(Debug)]
struct Half {
    /// A second.
    rate: f64,
    /// At most what comes in a second.
    pool: Tokens,
}

impl Half {
    fn new(now: Instant, rate: f64) -> Self {
        let pool = Tokens {
            left: rate,
            at: now,
        };
        Self { rate, pool }
    }

    /// First come, first served as long as more than half of the pool is left; then the fair
    /// share decides, one of `shares` equal parts of half the rate.
    fn admits(&mut self, now: Instant, fair: &mut Tokens, shares: usize) -> bool {
        self.pool.refill(now, self.rate, self.rate);
        let share = self.rate / 2.0 / shares as f64;
        fair.refill(now, share, share.max(1.0));
        if self.pool.left > self.rate / 2.0 {
            return self.pool.take();
        }
        let own = fair.take();
        if own {
            self.pool.left = (self.pool.left - 1.0).max(0.0);
        }
        own
    }
}

#[derive(Debug)]
struct Member {
    until: Instant,
    fair: Tokens,
}

/// Decides for each report whether it is taken within the rate.
#[derive(Debug)]
pub struct ReportRateLimiter {
    hasher: RandomState,
    start: Instant,
    members: Half,
    strangers: Half,
    /// In order of their last report, so those whose membership ran out are at the end.
    known: LruCache<IpAddr, Member>,
    /// Hashes of addresses that had one report taken; 0 is nobody.
    seen: Box<[u64]>,
    buckets: Box<[Tokens]>,
    refusals: RefusalCounts,
}

impl ReportRateLimiter {
    /// Takes up to `reports_per_second`, at least one, on average. Strangers must not know
    /// `seed`: it decides who shares a bucket.
    pub fn new(now: Instant, reports_per_second: u32, seed: u64) -> Self {
        let half = f64::from(reports_per_second.max(1)) / 2.0;
        // A bucket is of use only if it gets something within a second or so.
        let buckets = ((half / 2.0) as usize).clamp(1, BUCKETS);
        let full = Tokens { left: 1.0, at: now };
        Self {
            hasher: RandomState::with_seeds(seed, !seed, seed.rotate_left(32), 0x6d63_6173),
            start: now,
            members: Half::new(now, half),
            strangers: Half::new(now, half),
            known: LruCache::unbounded(),
            seen: vec![0; SEEN].into(),
            buckets: vec![full; buckets].into(),
            refusals: RefusalCounts::default(),
        }
    }

    /// Whether a report from this address is taken now.
    ///
    /// # Errors
    /// [`MembershipRefusal::MemberRate`] and [`MembershipRefusal::StrangerRate`].
    pub fn admit(&mut self, now: Instant, from: IpAddr) -> Result<(), MembershipRefusal> {
        let shares = self.known.len().max(16);
        let member = self.known.peek_mut(&from).filter(|m| m.until > now);
        let (admitted, reason) = match member {
            Some(member) => {
                let admitted = self.members.admits(now, &mut member.fair, shares);
                (admitted, MembershipRefusal::MemberRate)
            }
            None => {
                let round = now.saturating_duration_since(self.start).as_secs() / REHASH.as_secs();
                let n = self.hasher.hash_one((from, round)) as usize % self.buckets.len();
                let shares = self.buckets.len();
                let admitted = self.strangers.admits(now, &mut self.buckets[n], shares);
                (admitted, MembershipRefusal::StrangerRate)
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

    /// A report of this address was taken and makes it a member until then. To be called after
    /// the machine took the report, not for those it refused.
    pub fn handle_accepted_report(&mut self, now: Instant, from: IpAddr, until: Instant) {
        if let Some(member) = self.known.get_mut(&from) {
            member.until = member.until.max(until);
            return;
        }
        // An address that several hosts may use at once is nobody's.
        if from.is_unspecified() {
            return;
        }
        let hash = self.hasher.hash_one(from) | 1;
        let seen = &mut self.seen[(hash >> 32) as usize % SEEN];
        if *seen != hash {
            *seen = hash;
            return;
        }
        while self.known.peek_lru().is_some_and(|(_, m)| m.until <= now) {
            self.known.pop_lru();
        }
        if self.known.len() < KNOWN {
            *seen = 0;
            let fair = Tokens { left: 1.0, at: now };
            self.known.put(from, Member { until, fair });
        }
    }

    /// Whether strangers send so much that only their fair shares are taken, or did a moment ago.
    /// What members answer may be lost in that, so that a stranger should not be believed who
    /// says that a member has left.
    pub fn is_flooded(&self, now: Instant) -> bool {
        let mut pool = self.strangers.pool;
        pool.refill(now, self.strangers.rate, self.strangers.rate);
        pool.left <= self.strangers.rate * 0.75
    }

    /// Whether reports of this address made it a member.
    pub fn sender_status(&self, now: Instant, from: IpAddr) -> SenderStatus {
        match self.known.peek(&from).filter(|m| m.until > now) {
            Some(_) => SenderStatus::Member {
                known_members: self.known.len(),
            },
            None => SenderStatus::Unknown,
        }
    }

    /// How many members are known.
    pub fn member_count(&self) -> usize {
        self.known.len()
    }

    /// How often each reason to refuse came up since this was last called.
    pub fn take_refusals(&mut self) -> impl Iterator<Item = (MembershipRefusal, u64)> + use<> {
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

    /// Random enough for addresses that do not come twice soon.
    fn spoofed(n: u32) -> IpAddr {
        Ipv4Addr::from_bits(n.wrapping_mul(0x9e37_79b1) | 1 << 31).into()
    }

    fn known(gate: &mut ReportRateLimiter, now: Instant, count: u32) {
        for n in 0..count {
            for _ in 0..2 {
                gate.handle_accepted_report(now, host(n), now + 270 * SECOND);
            }
        }
    }

    #[test]
    fn members_refresh_during_a_spoofed_flood() {
        let t0 = Instant::now();
        let mut gate = ReportRateLimiter::new(t0, 10_000, 7);
        known(&mut gate, t0, 1000);
        let (mut taken, mut n) = (0, 0);
        // 100,000 reports a second for ten seconds; each member reports ten times in between.
        for ms in 0..10_000u32 {
            let now = t0 + Duration::from_millis(ms.into());
            for _ in 0..100 {
                n += 1;
                if gate.admit(now, spoofed(n)).is_ok() {
                    taken += 1;
                    gate.handle_accepted_report(now, spoofed(n), now + 270 * SECOND);
                }
            }
            assert_eq!(gate.admit(now, host(ms % 1000)), Ok(()), "{ms} ms");
        }
        // Half of the rate, and the reserve at the start.
        assert!((50_000..=55_000).contains(&taken), "{taken}");
        assert!(gate.member_count() < 1000 + 50, "{}", gate.member_count());
        let refused: Vec<_> = gate.take_refusals().collect();
        assert_eq!(
            refused,
            [(
                MembershipRefusal::StrangerRate,
                1_000_000 - u64::from(taken as u32)
            )]
        );
    }

    #[test]
    fn new_host_passes_a_flood_from_few_addresses() {
        let t0 = Instant::now();
        let mut gate = ReportRateLimiter::new(t0, 10_000, 7);
        let mut taken = 0;
        for ms in 0..20_000u32 {
            let now = t0 + Duration::from_millis(ms.into());
            for n in 0..100 {
                let _ = gate.admit(now, spoofed(n % 8));
            }
            if ms % 1000 == 500 {
                taken += u32::from(gate.admit(now, host(1)).is_ok());
            }
        }
        assert!(taken >= 18, "{taken} of 20");
    }

    #[test]
    fn member_cannot_starve_other_members() {
        let t0 = Instant::now();
        let mut gate = ReportRateLimiter::new(t0, 1000, 7);
        known(&mut gate, t0, 50);
        let mut refused = 0;
        for ms in 0..10_000u32 {
            let now = t0 + Duration::from_millis(ms.into());
            for _ in 0..20 {
                refused += u32::from(gate.admit(now, host(0)).is_err());
            }
            if ms % 20 == 0 {
                let other = host(1 + ms / 20 % 49);
                assert_eq!(gate.admit(now, other), Ok(()), "{ms} ms");
            }
        }
        assert!(refused > 190_000, "{refused}");
    }

    #[test]
    fn host_with_many_groups_is_unlimited_without_flood() {
        let t0 = Instant::now();
        let mut gate = ReportRateLimiter::new(t0, 10_000, 7);
        for n in 0..40_000u32 {
            let now = t0 + Duration::from_micros(u64::from(n) * 250);
            assert_eq!(gate.admit(now, host(1)), Ok(()), "report {n}");
        }
    }

    #[test]
    fn flood_is_detected_while_it_lasts() {
        let t0 = Instant::now();
        let mut gate = ReportRateLimiter::new(t0, 10_000, 7);
        known(&mut gate, t0, 3);
        let of_three = SenderStatus::Member { known_members: 3 };
        assert_eq!(gate.sender_status(t0, host(1)), of_three);
        assert_eq!(gate.sender_status(t0, host(9)), SenderStatus::Unknown);
        for n in 0..1000 {
            let _ = gate.admit(t0, spoofed(n));
        }
        assert!(!gate.is_flooded(t0));
        for n in 0..5000 {
            let _ = gate.admit(t0, spoofed(n));
        }
        assert!(gate.is_flooded(t0));
        assert!(!gate.is_flooded(t0 + SECOND));
        let later = t0 + 271 * SECOND;
        assert_eq!(gate.sender_status(later, host(1)), SenderStatus::Unknown);
    }

    #[test]
    fn known_members_are_bounded_and_expire() {
        let t0 = Instant::now();
        let mut gate = ReportRateLimiter::new(t0, 1000, 7);
        known(&mut gate, t0, 10_000);
        assert_eq!(gate.member_count(), KNOWN);
        gate.handle_accepted_report(t0, IpAddr::from([0, 0, 0, 0]), t0 + 270 * SECOND);
        // Those whose membership ran out make room.
        let later = t0 + 271 * SECOND;
        for _ in 0..2 {
            gate.handle_accepted_report(later, host(20_000), later + SECOND);
        }
        assert_eq!(gate.member_count(), 1);
    }
}
