//! The limit of what is examined.

use std::time::Instant;

use ahash::AHashMap;

use crate::model::InterfaceId;

/// Bytes of messages that are examined for each link in a second, in the long run. A network of a
/// thousand services needs a tenth of it.
const BYTES_PER_SECOND: f64 = 262_144.0;

/// The same at once.
const BURST: f64 = 8.0 * BYTES_PER_SECOND;

/// Limits the work for messages, which is proportional to their length: the messages of one link must
/// not delay those of others. It applies before messages are parsed, also to those that never cross.
#[derive(Debug, Default)]
pub struct WorkLimit(AHashMap<InterfaceId, (f64, Instant)>);

impl WorkLimit {
    /// Returns whether a message of this length that arrived on a link is examined.
    pub fn admits(&mut self, now: Instant, link: InterfaceId, len: usize) -> bool {
        let (left, at) = self.0.entry(link).or_insert((BURST, now));
        let passed = now.saturating_duration_since(*at).as_secs_f64();
        *left = (*left + passed * BYTES_PER_SECOND).min(BURST);
        *at = now;
        let is_admitted = *left >= len as f64;
        if is_admitted {
            *left -= len as f64;
        }
        is_admitted
    }

    /// Forgets all links but these.
    pub fn retain(&mut self, is_used: impl Fn(InterfaceId) -> bool) {
        self.0.retain(|link, _| is_used(*link));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn bytes_of_a_link_are_limited() {
        let (mut limit, now) = (WorkLimit::default(), Instant::now());
        let id = |n| InterfaceId::new(n).unwrap();
        let admitted = (0..10_000).filter(|n| {
            let at = now + Duration::from_millis(*n);
            limit.admits(at, id(1), 9000)
        });
        // 2 MiB at once, and 256 KiB in each of ten seconds.
        assert_eq!(admitted.count(), (8 + 10) * 262_144 / 9000);
        assert!(limit.admits(now, id(2), 9000));
        // What was not used for an hour is no more than what is admitted at once.
        let hour = now + Duration::from_secs(3600);
        let at_once = (0..10_000).filter(|_| limit.admits(hour, id(1), 9000));
        assert_eq!(at_once.count(), 8 * 262_144 / 9000);
    }
}
