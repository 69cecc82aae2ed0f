//! The answers of name servers, and when to query them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::candidate::{LookupKey, RelayCandidate};
use super::query_rate::QueryRate;
use super::random::AmtRandom;

/// Limits of the time for which an answer is used.
const MIN_TTL: Duration = Duration::from_secs(10);
const MAX_TTL: Duration = Duration::from_secs(86_400);

/// Limits of the time after a lookup without a result (RFC 8777 section 2.7).
const RETRY: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(120)];

/// One lookup.
#[derive(Debug)]
struct Lookup {
    candidates: Vec<RelayCandidate>,
    /// Whether a lookup has ended since the lookup was added.
    is_known: bool,
    /// Lookups in a row without a result.
    failures: u32,
    /// When the name servers are queried; `None` while they are.
    at: Option<Instant>,
}

/// All lookups of a gateway.
#[derive(Debug, Default)]
pub(super) struct Lookups {
    lookups: BTreeMap<LookupKey, Lookup>,
    rate: QueryRate,
}

impl Lookups {
    /// Returns the candidates of a lookup; `None` as long as it is not known whether there are
    /// any. Adds the lookup if it is new.
    pub(super) fn candidates(
        &mut self,
        now: Instant,
        key: &LookupKey,
    ) -> Option<&[RelayCandidate]> {
        if !self.lookups.contains_key(key) {
            let lookup = Lookup {
                candidates: Vec::new(),
                is_known: false,
                failures: 0,
                at: Some(now),
            };
            self.lookups.insert(key.clone(), lookup);
        }
        let lookup = self.lookups.get(key)?;
        lookup.is_known.then_some(&lookup.candidates)
    }

    /// Removes the lookups for which `is_used` is false.
    pub(super) fn retain(&mut self, mut is_used: impl FnMut(&LookupKey) -> bool) {
        self.lookups.retain(|key, _| is_used(key));
    }

    /// Handles the answer to a query: the candidates and their time to live, or `None` if no name
    /// server answered. Without an answer, former candidates stay.
    pub(super) fn handle_answer(
        &mut self,
        now: Instant,
        key: &LookupKey,
        answer: Option<(Vec<RelayCandidate>, Duration)>,
        random: &mut AmtRandom,
    ) {
        let Some(lookup) = self.lookups.get_mut(key) else {
            return;
        };
        lookup.is_known = true;
        let has_result = matches!(&answer, Some((candidates, _)) if !candidates.is_empty());
        let ttl = answer.map(|(candidates, ttl)| {
            lookup.candidates = candidates;
            ttl
        });
        let wait = match ttl.filter(|_| has_result) {
            Some(ttl) => {
                lookup.failures = 0;
                ttl.clamp(MIN_TTL, MAX_TTL)
            }
            None => {
                lookup.failures += 1;
                random.back_off(RETRY, lookup.failures)
            }
        };
        lookup.at = Some(now + wait);
    }

    /// Returns the next query that is due, within the rate limit.
    pub(super) fn poll(&mut self, now: Instant) -> Option<LookupKey> {
        let mut lookups = self.lookups.iter_mut();
        let (key, lookup) = lookups.find(|(_, lookup)| lookup.at.is_some_and(|at| at <= now))?;
        self.rate.take(now).ok()?;
        lookup.at = None;
        Some(key.clone())
    }

    /// Returns the time of the next query.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let next = self.lookups.values().filter_map(|lookup| lookup.at).min()?;
        let until = self.rate.limited_until();
        Some(until.map_or(next, |until| until.max(next)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> LookupKey {
        LookupKey::Host(format!("relay-{n:02}"), 2268)
    }

    #[test]
    fn queries_are_limited_to_ten_in_100_ms() {
        let t0 = Instant::now();
        let mut lookups = Lookups::default();
        for n in 0..25 {
            assert_eq!(lookups.candidates(t0, &key(n)), None);
        }
        let mut times = Vec::new();
        let mut now = t0;
        while times.len() < 25 {
            match lookups.poll(now) {
                Some(_) => times.push(now - t0),
                None => now = lookups.poll_timeout().unwrap(),
            }
        }
        let at = |ms| Duration::from_millis(ms);
        assert_eq!([times[9], times[10], times[20]], [at(0), at(100), at(200)]);
        assert_eq!(lookups.poll_timeout(), None);
    }

    #[test]
    fn answer_outlives_its_ttl_only_if_servers_fail() {
        let t0 = Instant::now();
        let mut random = AmtRandom::new([1; 32]);
        let mut lookups = Lookups::default();
        lookups.candidates(t0, &key(1));
        assert_eq!(lookups.poll(t0), Some(key(1)));
        let relay = RelayCandidate::new("192.0.2.1:2268".parse().unwrap());
        let ttl = Duration::from_secs(60);
        lookups.handle_answer(t0, &key(1), Some((vec![relay], ttl)), &mut random);
        assert_eq!(lookups.poll(t0 + ttl - Duration::from_secs(1)), None);
        let later = t0 + ttl;
        assert_eq!(lookups.poll(later), Some(key(1)));
        lookups.handle_answer(later, &key(1), None, &mut random);
        assert_eq!(lookups.candidates(later, &key(1)), Some(&[relay][..]));
        let wait = lookups.poll_timeout().unwrap() - later;
        assert!(wait >= RETRY[0] && wait <= Duration::from_secs(2));
        // No records: the relay is gone.
        let again = later + wait;
        assert_eq!(lookups.poll(again), Some(key(1)));
        lookups.handle_answer(again, &key(1), Some((vec![], ttl)), &mut random);
        assert_eq!(lookups.candidates(again, &key(1)), Some(&[][..]));
    }
}
