//! Recognises what was sent to a link a moment ago, so that no message circulates between
//! reflectors, and limits the messages of a link.

use std::hash::Hash;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use ahash::AHashMap;
use lru::LruCache;

use crate::model::InterfaceId;

/// The largest number of items that are remembered.
const MAX_ITEMS: usize = 16_384;

/// An item is a repetition for this long after it was seen. A record may be multicast once a second
/// (RFC 6762 section 6); queriers wait at least a second before they repeat a question (section 5.2).
const QUIET: Duration = Duration::from_millis(800);
/// An item that others repeat without end passes again after this time.
const LONGEST_QUIET: Duration = Duration::from_secs(4);

/// How often a message that is answered by unicast may be repeated by one sender: clients of SSDP
/// send each question two or three times.
const REPEATS: u32 = 4;
/// In this time.
const REPEAT_TIME: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy)]
struct Seen {
    first: Instant,
    last: Instant,
    count: u32,
}

impl Seen {
    fn new(now: Instant) -> Self {
        Self {
            first: now,
            last: now,
            count: 1,
        }
    }

    fn is_recent(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) < QUIET
            && now.saturating_duration_since(self.first) < LONGEST_QUIET
    }
}

/// The items that were seen on each link.
#[derive(Debug)]
pub struct RepeatGuard {
    seen: LruCache<(InterfaceId, u64), Seen>,
    /// What was sent to each link.
    sent: LruCache<(InterfaceId, u64), ()>,
    hasher: ahash::RandomState,
}

impl Default for RepeatGuard {
    fn default() -> Self {
        let max = NonZeroUsize::new(MAX_ITEMS).unwrap_or(NonZeroUsize::MIN);
        Self {
            seen: LruCache::new(max),
            sent: LruCache::new(max),
            hasher: ahash::RandomState::new(),
        }
    }
}

impl RepeatGuard {
    /// Returns a hash that senders cannot predict.
    pub fn hash(&self, item: impl Hash) -> u64 {
        self.hasher.hash_one(item)
    }

    /// Notes that an item was seen on a link.
    pub fn note_seen(&mut self, now: Instant, link: InterfaceId, item: u64) {
        match self.seen.get_mut(&(link, item)) {
            Some(seen) if seen.is_recent(now) => seen.last = now,
            Some(seen) => *seen = Seen::new(now),
            None => {
                self.seen.put((link, item), Seen::new(now));
            }
        }
    }

    /// Returns whether an item was seen on a link a moment ago, or was sent there. What was not sent
    /// for this reason does not count, so others who ask the same cannot keep a question away.
    pub fn is_repeated(&self, now: Instant, link: InterfaceId, item: u64) -> bool {
        let seen = self.seen.peek(&(link, item));
        seen.is_some_and(|seen| seen.is_recent(now))
    }

    /// Notes that an item was sent to a link.
    pub fn note_sent(&mut self, link: InterfaceId, item: u64) {
        self.sent.put((link, item), ());
    }

    /// Returns whether an item was sent to a link, as far as it is remembered.
    pub fn was_sent(&self, link: InterfaceId, item: u64) -> bool {
        self.sent.contains(&(link, item))
    }

    /// Notes that a sender repeats a message to a link. Returns whether that is too often.
    pub fn exceeds_repeats(&mut self, now: Instant, link: InterfaceId, item: u64) -> bool {
        let Some(seen) = self.seen.get_mut(&(link, item)) else {
            self.seen.put((link, item), Seen::new(now));
            return false;
        };
        if now.saturating_duration_since(seen.first) >= REPEAT_TIME {
            *seen = Seen::new(now);
            return false;
        }
        seen.count = seen.count.saturating_add(1);
        seen.count > REPEATS
    }
}

/// Limits the messages that leave on each link: a token bucket of two seconds.
#[derive(Debug, Default)]
pub struct LinkRates(AHashMap<InterfaceId, (f64, Instant)>);

impl LinkRates {
    /// Returns whether a message may leave on a link now.
    pub fn admits(&mut self, now: Instant, link: InterfaceId, per_second: u32) -> bool {
        let rate = f64::from(per_second);
        let (tokens, at) = self.0.entry(link).or_insert((2.0 * rate, now));
        let passed = now.saturating_duration_since(*at).as_secs_f64();
        *tokens = (*tokens + passed * rate).min(2.0 * rate);
        *at = now;
        let admits = *tokens >= 1.0;
        if admits {
            *tokens -= 1.0;
        }
        admits
    }

    /// Forgets all links but these.
    pub fn retain(&mut self, is_used: impl Fn(InterfaceId) -> bool) {
        self.0.retain(|link, _| is_used(*link));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u32) -> InterfaceId {
        InterfaceId::new(n).unwrap()
    }

    /// Sends an item unless it is a repetition, as the machine does.
    fn passes(guard: &mut RepeatGuard, now: Instant, link: InterfaceId, item: u64) -> bool {
        let passes = !guard.is_repeated(now, link, item);
        if passes {
            guard.note_seen(now, link, item);
        }
        passes
    }

    #[test]
    fn item_passes_once_a_second_and_link() {
        let (mut guard, now) = (RepeatGuard::default(), Instant::now());
        let ms = |n| now + Duration::from_millis(n);
        assert!(passes(&mut guard, now, id(1), 7));
        assert!(!passes(&mut guard, ms(100), id(1), 7));
        assert!(passes(&mut guard, ms(100), id(2), 7));
        assert!(passes(&mut guard, ms(100), id(1), 8));
        assert!(passes(&mut guard, ms(1000), id(1), 7));
    }

    /// What many hosts of another link ask passes about once a second.
    #[test]
    fn item_that_is_asked_without_end_passes_once_a_second() {
        let (mut guard, now) = (RepeatGuard::default(), Instant::now());
        let passed = (0..600).filter(|n| {
            let at = now + Duration::from_millis(100) * *n;
            passes(&mut guard, at, id(1), 7)
        });
        assert_eq!(passed.count(), 75);
    }

    /// What is on the link every 100 ms passes every four seconds, so a minute sees 15 copies.
    #[test]
    fn circulating_item_passes_rarely() {
        let (mut guard, now) = (RepeatGuard::default(), Instant::now());
        let passed = (0..600).filter(|n| {
            let at = now + Duration::from_millis(100) * *n;
            let passes = passes(&mut guard, at, id(1), 7);
            guard.note_seen(at, id(1), 7);
            passes
        });
        assert_eq!(passed.count(), 15);
    }

    #[test]
    fn sender_may_repeat_a_message_a_few_times() {
        let (mut guard, now) = (RepeatGuard::default(), Instant::now());
        let passed = (0..100).filter(|n| {
            let at = now + Duration::from_millis(19) * *n;
            !guard.exceeds_repeats(at, id(1), 7)
        });
        assert_eq!(passed.count(), 4);
        assert!(!guard.exceeds_repeats(now + Duration::from_secs(2), id(1), 7));
    }

    #[test]
    fn link_admits_its_rate() {
        let (mut rates, now) = (LinkRates::default(), Instant::now());
        let admitted = (0..10_000).filter(|n| {
            let at = now + Duration::from_millis(1) * *n;
            rates.admits(at, id(1), 100)
        });
        let admitted = admitted.count();
        assert!((1190..=1210).contains(&admitted), "{admitted}");
    }
}
