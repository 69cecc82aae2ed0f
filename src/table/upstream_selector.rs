//! Which of several upstream interfaces feeds a stream.
//!
//! The first to carry an (S,G) feeds it; the packets of the others are dropped until it has
//! been silent for a while. Shared by the interface actors without locks. Memory is fixed:
//! buckets of eight places, the one silent longest of a bucket is replaced, at the price of
//! a packet forwarded twice where more streams are alive than there are places. Two actors
//! that see the first packets of a stream in the same instant may both let one pass.

use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use ahash::RandomState;

use crate::model::InterfaceId;

const WAYS: usize = 8;
const BUCKETS: usize = 1 << 14;

/// How streams of a proxy with several upstreams change from one to another.
#[derive(Debug, Clone)]
pub struct UpstreamRule {
    /// Where these packets arrive.
    pub interface: InterfaceId,
    /// Tells proxies apart; stays the same while the proxy keeps its name.
    pub proxy: u64,
    /// How long an upstream must be silent before another may feed a stream, in
    /// milliseconds.
    pub takeover_ms: u64,
    /// The upstreams that run. What another fed is free at once.
    pub upstreams: Box<[InterfaceId]>,
}

impl UpstreamRule {
    /// Returns whether the interface of this rule is the active upstream `fed`, or may replace it:
    /// after silence, or if it is not an upstream any more.
    fn may_replace(&self, fed: u64, now_ms: u64) -> bool {
        let active = fed >> 32;
        active == u64::from(self.interface.get())
            || silence(fed, now_ms) >= self.takeover_ms
            || !self.upstreams.iter().any(|u| u64::from(u.get()) == active)
    }
}

#[derive(Default)]
struct Place {
    /// Hash of proxy, source and group; zero is empty.
    stream: AtomicU64,
    /// The interface that feeds it, and when it last did: 32 bits each.
    fed: AtomicU64,
}

/// Who feeds which stream. 2 MiB, from the first stream on.
pub struct UpstreamSelector {
    seed: RandomState,
    places: OnceLock<Box<[Place]>>,
}

impl Default for UpstreamSelector {
    fn default() -> Self {
        Self {
            seed: RandomState::new(),
            places: OnceLock::new(),
        }
    }
}

fn fed_by(interface: InterfaceId, now_ms: u64) -> u64 {
    u64::from(interface.get()) << 32 | now_ms & u64::from(u32::MAX)
}

/// Milliseconds since then.
fn silence(fed: u64, now_ms: u64) -> u64 {
    u64::from((now_ms as u32).wrapping_sub(fed as u32))
}

impl UpstreamSelector {
    /// Returns what [`UpstreamSelector::admits`] would return, without any change.
    pub fn would_admit(
        &self,
        rule: &UpstreamRule,
        (source, group): (IpAddr, IpAddr),
        now_ms: u64,
    ) -> bool {
        let Some(places) = self.places.get() else {
            return true;
        };
        let stream = self.seed.hash_one((rule.proxy, source, group)).max(1);
        let bucket = (stream as usize % BUCKETS) * WAYS;
        let mut places = places[bucket..bucket + WAYS].iter();
        let place = places.find(|p| p.stream.load(Ordering::Relaxed) == stream);
        place.is_none_or(|place| rule.may_replace(place.fed.load(Ordering::Relaxed), now_ms))
    }

    /// Whether a packet of (source, group) that arrived on the interface of the rule is one of
    /// those that feed the stream. `now_ms` is a clock of milliseconds that never goes back.
    pub fn admits(
        &self,
        rule: &UpstreamRule,
        (source, group): (IpAddr, IpAddr),
        now_ms: u64,
    ) -> bool {
        let places = self
            .places
            .get_or_init(|| (0..WAYS * BUCKETS).map(|_| Place::default()).collect());
        let stream = self.seed.hash_one((rule.proxy, source, group)).max(1);
        let bucket = (stream as usize % BUCKETS) * WAYS;
        let places = &places[bucket..bucket + WAYS];
        let interface = rule.interface;
        let new = fed_by(interface, now_ms);
        let held = |p: &&Place| p.stream.load(Ordering::Relaxed) == stream;
        if let Some(place) = places.iter().find(held) {
            let fed = place.fed.load(Ordering::Relaxed);
            if fed == new {
                return true;
            }
            // If two interfaces take over at once, one of them succeeds.
            return rule.may_replace(fed, now_ms)
                && place
                    .fed
                    .compare_exchange(fed, new, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok();
        }
        let age = |p: &&Place| match p.stream.load(Ordering::Relaxed) {
            0 => u64::MAX,
            _ => silence(p.fed.load(Ordering::Relaxed), now_ms),
        };
        if let Some(place) = places.iter().max_by_key(age) {
            place.fed.store(new, Ordering::Relaxed);
            place.stream.store(stream, Ordering::Relaxed);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(n: u32) -> InterfaceId {
        InterfaceId::new(n).unwrap()
    }

    fn rule(interface: u32, upstreams: &[u32]) -> UpstreamRule {
        UpstreamRule {
            interface: index(interface),
            proxy: 7,
            takeover_ms: 1000,
            upstreams: upstreams.iter().map(|u| index(*u)).collect(),
        }
    }

    fn stream(n: u8) -> (IpAddr, IpAddr) {
        ([10, 0, 0, n].into(), [225, 1, 2, 3].into())
    }

    #[test]
    fn the_first_feeds_a_stream_and_the_next_takes_over_after_silence() {
        let feeds = UpstreamSelector::default();
        let admits = |n, interface, now| feeds.admits(&rule(interface, &[1, 2]), stream(n), now);
        assert!(admits(1, 1, 0));
        assert!(!admits(1, 2, 0));
        // Each stream by itself, and each proxy.
        assert!(admits(2, 2, 5));
        assert!(!admits(2, 1, 5));
        let other = UpstreamRule {
            proxy: 8,
            ..rule(2, &[1, 2])
        };
        assert!(feeds.admits(&other, stream(1), 5));
        assert!(admits(1, 1, 900));
        assert!(!admits(1, 2, 1899));
        assert!(admits(1, 2, 1900));
        // The first is back, and waits.
        assert!(!admits(1, 1, 1901));
        assert!(admits(1, 2, 1901));
        assert!(admits(1, 2, 1901));
    }

    #[test]
    fn what_a_lost_upstream_fed_is_free_at_once() {
        let feeds = UpstreamSelector::default();
        assert!(feeds.admits(&rule(1, &[1, 2]), stream(1), 0));
        assert!(!feeds.admits(&rule(2, &[1, 2]), stream(1), 1));
        assert!(feeds.admits(&rule(2, &[2]), stream(1), 2));
    }

    #[test]
    fn the_clock_may_wrap() {
        let feeds = UpstreamSelector::default();
        let late = u64::from(u32::MAX) - 10;
        assert!(feeds.admits(&rule(1, &[1, 2]), stream(1), late));
        assert!(!feeds.admits(&rule(2, &[1, 2]), stream(1), late + 100));
        assert!(feeds.admits(&rule(2, &[1, 2]), stream(1), late + 1000));
    }

    #[test]
    fn two_threads_never_both_take_over() {
        let feeds = UpstreamSelector::default();
        let rule = |n| rule(n, &[1, 2, 3]);
        for round in 0..200u64 {
            let now = round * 2000;
            feeds.admits(&rule(3), stream(1), now);
            let took: usize = std::thread::scope(|s| {
                let (feeds, rule) = (&feeds, &rule);
                let take = |n| s.spawn(move || feeds.admits(&rule(n), stream(1), now + 1000));
                [take(1), take(2)]
                    .map(|t| usize::from(t.join().unwrap()))
                    .iter()
                    .sum()
            });
            assert_eq!(took, 1, "round {round}");
        }
    }
}
