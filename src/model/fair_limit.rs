//! A limit that sources share.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;

use ahash::AHashMap;

/// Entries of several sources, whose weights together have a limit.
///
/// One source may use all of it. If the limit is exceeded, the source that uses most loses the entry
/// that has been inactive longest. So a source that uses less than an equal part loses nothing,
/// whatever the others do. If several sources use most, the entry that has been inactive longest of
/// all theirs is chosen.
#[derive(Debug)]
pub struct FairLimit<K, T> {
    limit: usize,
    used: usize,
    /// The next id, and the next number of an activity.
    next: u64,
    entries: AHashMap<u64, Entry<K, T>>,
    sources: AHashMap<K, SourceUse>,
    by_use: BTreeSet<Rank<K>>,
}

/// The weight of a source, its oldest activity, and the source. The last rank loses an entry first.
type Rank<K> = (usize, Reverse<u64>, K);

#[derive(Debug)]
struct Entry<K, T> {
    source: K,
    weight: usize,
    /// The number of its last activity.
    active: u64,
    holder: T,
}

#[derive(Debug, Default)]
struct SourceUse {
    weight: usize,
    /// The ids of its entries, by their last activity.
    by_activity: BTreeMap<u64, u64>,
}

impl SourceUse {
    /// Returns `None` if the source has no entry.
    fn rank<K>(&self, source: K) -> Option<Rank<K>> {
        let (oldest, _) = self.by_activity.first_key_value()?;
        Some((self.weight, Reverse(*oldest), source))
    }
}

/// An entry that was removed because the limit was exceeded.
#[derive(Debug, PartialEq, Eq)]
pub struct Evicted<K, T> {
    /// The source of the entry.
    pub source: K,
    /// The weight of all entries of the source, including this one.
    pub used: usize,
    /// Who held the entry.
    pub holder: T,
}

impl<K: Copy + Ord + Hash, T> FairLimit<K, T> {
    /// Returns a limit of which nothing is used.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            used: 0,
            next: 0,
            entries: AHashMap::new(),
            sources: AHashMap::new(),
            by_use: BTreeSet::new(),
        }
    }

    /// Returns the limit.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Adds an entry. Returns its id.
    pub fn insert(&mut self, source: K, weight: usize, holder: T) -> u64 {
        let id = self.take_number();
        let entry = Entry {
            source,
            weight,
            active: id,
            holder,
        };
        self.entries.insert(id, entry);
        self.used += weight;
        self.update_source(source, |uses| {
            uses.weight += weight;
            uses.by_activity.insert(id, id);
        });
        id
    }

    /// Makes an entry the one that was active last. Ignores an entry that was removed.
    pub fn touch(&mut self, id: u64) {
        let now = self.take_number();
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let (source, last) = (entry.source, entry.active);
        entry.active = now;
        self.update_source(source, |uses| {
            uses.by_activity.remove(&last);
            uses.by_activity.insert(now, id);
        });
    }

    /// Adds to the weight of an entry. Ignores an entry that was removed.
    pub fn grow(&mut self, id: u64, by: usize) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let source = entry.source;
        entry.weight += by;
        self.used += by;
        self.update_source(source, |uses| uses.weight += by);
    }

    /// Removes an entry. Ignores one that was removed already.
    pub fn remove(&mut self, id: u64) -> Option<T> {
        let Entry {
            source,
            weight,
            active,
            holder,
        } = self.entries.remove(&id)?;
        self.used -= weight;
        self.update_source(source, |uses| {
            uses.weight -= weight;
            uses.by_activity.remove(&active);
        });
        Some(holder)
    }

    /// Removes the entry that gives way, if the limit is exceeded.
    pub fn evict(&mut self) -> Option<Evicted<K, T>> {
        if self.used <= self.limit {
            return None;
        }
        let (used, Reverse(oldest), source) = *self.by_use.last()?;
        let id = *self.sources.get(&source)?.by_activity.get(&oldest)?;
        Some(Evicted {
            source,
            used,
            holder: self.remove(id)?,
        })
    }

    fn take_number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Changes the entries of a source, and its rank.
    fn update_source(&mut self, source: K, update: impl FnOnce(&mut SourceUse)) {
        let uses = self.sources.entry(source).or_default();
        if let Some(rank) = uses.rank(source) {
            self.by_use.remove(&rank);
        }
        update(uses);
        match uses.rank(source) {
            Some(rank) => {
                self.by_use.insert(rank);
            }
            None => {
                self.sources.remove(&source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Holders are the names of entries.
    type Limit = FairLimit<char, &'static str>;

    fn evicted(limit: &mut Limit) -> Option<&'static str> {
        limit.evict().map(|evicted| evicted.holder)
    }

    #[test]
    fn one_source_may_use_the_whole_limit() {
        let mut limit = Limit::new(3);
        for name in ["a1", "a2", "a3"] {
            limit.insert('a', 1, name);
            assert_eq!(evicted(&mut limit), None, "{name}");
        }
        limit.insert('a', 1, "a4");
        let expected = Evicted {
            source: 'a',
            used: 4,
            holder: "a1",
        };
        assert_eq!(limit.evict(), Some(expected));
        assert_eq!(evicted(&mut limit), None);
    }

    #[test]
    fn source_that_uses_most_loses_its_longest_inactive_entry() {
        let mut limit = Limit::new(4);
        limit.insert('b', 1, "b1");
        let first = limit.insert('a', 1, "a1");
        limit.insert('a', 1, "a2");
        limit.insert('a', 1, "a3");
        limit.touch(first);
        limit.insert('b', 1, "b2");
        // b1 has been inactive longer.
        assert_eq!(evicted(&mut limit), Some("a2"));
        limit.insert('c', 1, "c1");
        // Both a and b use most.
        assert_eq!(evicted(&mut limit), Some("b1"));
        limit.insert('c', 1, "c2");
        assert_eq!(evicted(&mut limit), Some("a3"));
    }

    #[test]
    fn weights_count_and_not_the_number_of_entries() {
        let mut limit = Limit::new(10);
        let heavy = limit.insert('a', 2, "heavy");
        for name in ["b1", "b2", "b3"] {
            limit.insert('b', 1, name);
        }
        limit.grow(heavy, 5);
        assert_eq!(evicted(&mut limit), None);
        limit.insert('b', 1, "b4");
        assert_eq!(evicted(&mut limit), Some("heavy"));
        // Nothing is known of it any more.
        limit.grow(heavy, 100);
        limit.touch(heavy);
        assert_eq!(limit.remove(heavy), None);
        assert_eq!(evicted(&mut limit), None);
    }

    /// Compares random operations with a search of all entries.
    #[test]
    fn evicted_entries_are_those_that_a_search_finds() {
        const SOURCES: u64 = 5;
        let mut limit: FairLimit<u64, u64> = FairLimit::new(40);
        // Id, source, weight and last activity of each entry.
        let mut naive: Vec<(u64, u64, usize, u64)> = Vec::new();
        let mut state = 7u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005);
            state = state.wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut evictions = 0;
        for step in 1..20_000u64 {
            let known = naive.len() as u64;
            match random(4) {
                0 | 1 => {
                    let (source, weight) = (random(SOURCES), random(4) as usize);
                    let id = limit.insert(source, weight, step);
                    naive.push((id, source, weight, step));
                }
                2 if known > 0 => {
                    let entry = &mut naive[random(known) as usize];
                    entry.3 = step;
                    limit.touch(entry.0);
                }
                _ if known > 0 && random(2) == 0 => {
                    let entry = &mut naive[random(known) as usize];
                    entry.2 += 1;
                    limit.grow(entry.0, 1);
                }
                _ if known > 0 => {
                    let (id, ..) = naive.swap_remove(random(known) as usize);
                    assert!(limit.remove(id).is_some());
                }
                _ => {}
            }
            let weight_of = |naive: &[(u64, u64, usize, u64)], source: u64| -> usize {
                let of_source = naive.iter().filter(|entry| entry.1 == source);
                of_source.map(|entry| entry.2).sum()
            };
            while let Some(evicted) = limit.evict() {
                let total: usize = naive.iter().map(|entry| entry.2).sum();
                assert!(total > limit.limit(), "step {step}");
                let expected = (0..naive.len())
                    .max_by_key(|n| (weight_of(&naive, naive[*n].1), Reverse(naive[*n].3)));
                let (_, source, ..) = naive[expected.unwrap()];
                assert_eq!(evicted.source, source, "step {step}");
                assert_eq!(evicted.used, weight_of(&naive, source), "step {step}");
                naive.swap_remove(expected.unwrap());
                evictions += 1;
            }
            let total: usize = naive.iter().map(|entry| entry.2).sum();
            assert!(total <= limit.limit() && total == limit.used, "step {step}");
        }
        assert!(evictions > 1000, "{evictions}");
        for (id, ..) in naive {
            limit.remove(id);
        }
        assert!(limit.sources.is_empty() && limit.by_use.is_empty() && limit.used == 0);
    }
}
