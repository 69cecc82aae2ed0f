//! Selection of the active upstream interface of each stream of a proxy with several upstreams.
//!
//! The first interface on which an (S,G) arrives becomes its active upstream. Packets that arrive
//! on the others are dropped until the active upstream has been silent for the takeover time.
//!
//! The interface actors share the selector without locks, and its memory is fixed. A stream hashes
//! to a bucket of eight slots, of which the one that was silent for longest is replaced. If there
//! are more streams than slots, a packet may therefore be forwarded twice. Two actors that receive
//! the first packets of a stream at the same time may both forward one.

use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use ahash::RandomState;

use crate::model::InterfaceId;

/// Slots in a bucket.
const WAYS: usize = 8;
const BUCKETS: usize = 1 << 14;

/// How the active upstream changes, for packets that arrive on one of the upstreams of a proxy.
#[derive(Debug, Clone)]
pub struct UpstreamRule {
    /// The upstream interface on which the packets arrive.
    pub interface: InterfaceId,
    /// Identifies the proxy: a hash of its name.
    pub proxy: u64,
    /// Time without packets on the active upstream after which another may become active, in
    /// milliseconds.
    pub takeover_ms: u64,
    /// The upstreams that are running. An active upstream that is not among them is replaced
    /// without delay.
    pub upstreams: Box<[InterfaceId]>,
}

impl UpstreamRule {
    /// Returns whether the interface of this rule is the active upstream in `state`, or may replace
    /// it: after silence, or if it is not a running upstream any more.
    fn may_replace(&self, state: u64, now_ms: u64) -> bool {
        let active = state >> 32;
        active == u64::from(self.interface.get())
            || silence_ms(state, now_ms) >= self.takeover_ms
            || !self.upstreams.iter().any(|u| u64::from(u.get()) == active)
    }
}

/// The active upstream of one stream.
#[derive(Default)]
struct Slot {
    /// Hash of proxy, source and group; zero if the slot is empty.
    stream: AtomicU64,
    /// The index of the active upstream interface and the time of its last packet in milliseconds,
    /// 32 bits each.
    state: AtomicU64,
}

/// The active upstreams of all streams. Allocates 2 MiB for the first stream.
pub struct UpstreamSelector {
    seed: RandomState,
    slots: OnceLock<Box<[Slot]>>,
}

impl Default for UpstreamSelector {
    fn default() -> Self {
        Self {
            seed: RandomState::new(),
            slots: OnceLock::new(),
        }
    }
}

fn pack_state(interface: InterfaceId, now_ms: u64) -> u64 {
    u64::from(interface.get()) << 32 | now_ms & u64::from(u32::MAX)
}

/// Returns the time since the last packet in milliseconds.
fn silence_ms(state: u64, now_ms: u64) -> u64 {
    u64::from((now_ms as u32).wrapping_sub(state as u32))
}

impl UpstreamSelector {
    /// Returns the result that [`UpstreamSelector::admits`] would have, without changing anything.
    pub fn would_admit(
        &self,
        rule: &UpstreamRule,
        (source, group): (IpAddr, IpAddr),
        now_ms: u64,
    ) -> bool {
        let Some(slots) = self.slots.get() else {
            return true;
        };
        let stream = self.seed.hash_one((rule.proxy, source, group)).max(1);
        let bucket = (stream as usize % BUCKETS) * WAYS;
        let mut slots = slots[bucket..bucket + WAYS].iter();
        let slot = slots.find(|slot| slot.stream.load(Ordering::Relaxed) == stream);
        slot.is_none_or(|slot| rule.may_replace(slot.state.load(Ordering::Relaxed), now_ms))
    }

    /// Returns whether a packet of (source, group) that arrived on the interface of `rule` is
    /// forwarded. The interface becomes or stays the active upstream of the stream then. `now_ms`
    /// is a monotonic time in milliseconds.
    pub fn admits(
        &self,
        rule: &UpstreamRule,
        (source, group): (IpAddr, IpAddr),
        now_ms: u64,
    ) -> bool {
        let slots = self
            .slots
            .get_or_init(|| (0..WAYS * BUCKETS).map(|_| Slot::default()).collect());
        let stream = self.seed.hash_one((rule.proxy, source, group)).max(1);
        let bucket = (stream as usize % BUCKETS) * WAYS;
        let slots = &slots[bucket..bucket + WAYS];
        let interface = rule.interface;
        let new = pack_state(interface, now_ms);
        let is_stream = |slot: &&Slot| slot.stream.load(Ordering::Relaxed) == stream;
        if let Some(slot) = slots.iter().find(is_stream) {
            let state = slot.state.load(Ordering::Relaxed);
            if state == new {
                return true;
            }
            // If two interfaces try to become active at the same time, one of them succeeds.
            return rule.may_replace(state, now_ms)
                && slot
                    .state
                    .compare_exchange(state, new, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok();
        }
        let silence = |slot: &&Slot| match slot.stream.load(Ordering::Relaxed) {
            0 => u64::MAX,
            _ => silence_ms(slot.state.load(Ordering::Relaxed), now_ms),
        };
        if let Some(slot) = slots.iter().max_by_key(silence) {
            slot.state.store(new, Ordering::Relaxed);
            slot.stream.store(stream, Ordering::Relaxed);
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
    fn first_upstream_is_active_until_it_is_silent() {
        let selector = UpstreamSelector::default();
        let admits = |n, interface, now| selector.admits(&rule(interface, &[1, 2]), stream(n), now);
        assert!(admits(1, 1, 0));
        assert!(!admits(1, 2, 0));
        // Each stream of each proxy has its own active upstream.
        assert!(admits(2, 2, 5));
        assert!(!admits(2, 1, 5));
        let other = UpstreamRule {
            proxy: 8,
            ..rule(2, &[1, 2])
        };
        assert!(selector.admits(&other, stream(1), 5));
        assert!(admits(1, 1, 900));
        assert!(!admits(1, 2, 1899));
        assert!(admits(1, 2, 1900));
        // The first upstream does not replace the second while that is active.
        assert!(!admits(1, 1, 1901));
        assert!(admits(1, 2, 1901));
        assert!(admits(1, 2, 1901));
    }

    #[test]
    fn lost_upstream_is_replaced_without_delay() {
        let selector = UpstreamSelector::default();
        assert!(selector.admits(&rule(1, &[1, 2]), stream(1), 0));
        assert!(!selector.admits(&rule(2, &[1, 2]), stream(1), 1));
        assert!(selector.admits(&rule(2, &[2]), stream(1), 2));
    }

    #[test]
    fn silence_is_correct_across_clock_wrap() {
        let selector = UpstreamSelector::default();
        let late = u64::from(u32::MAX) - 10;
        assert!(selector.admits(&rule(1, &[1, 2]), stream(1), late));
        assert!(!selector.admits(&rule(2, &[1, 2]), stream(1), late + 100));
        assert!(selector.admits(&rule(2, &[1, 2]), stream(1), late + 1000));
    }

    #[test]
    fn only_one_thread_takes_over() {
        let selector = UpstreamSelector::default();
        let rule = |n| rule(n, &[1, 2, 3]);
        for round in 0..200u64 {
            let now = round * 2000;
            selector.admits(&rule(3), stream(1), now);
            let takeovers: usize = std::thread::scope(|s| {
                let (selector, rule) = (&selector, &rule);
                let take = |n| s.spawn(move || selector.admits(&rule(n), stream(1), now + 1000));
                [take(1), take(2)]
                    .map(|t| usize::from(t.join().unwrap()))
                    .iter()
                    .sum()
            });
            assert_eq!(takeovers, 1, "round {round}");
        }
    }
}
