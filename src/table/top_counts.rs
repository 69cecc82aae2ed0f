//! The largest counts among any number of keys, in bounded memory.
//!
//! This is the Space-Saving algorithm (Metwally, Agrawal, El Abbadi: *Efficient Computation of
//! Frequent and Top-k Elements in Data Streams*, 2005). While there is room, each key has a counter.
//! After that, a new key takes over the counter with the smallest count. Among `capacity` counters,
//! a key with more than `1 / capacity` of all that was counted always has one, whatever keys a
//! stranger adds.

use std::hash::Hash;

use ahash::AHashMap;

/// A key with its count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopCount<K, V> {
    /// The key.
    pub key: K,
    /// The count of the key since it has this counter.
    pub count: u64,
    /// The largest count that the key may have had before.
    pub missed_at_most: u64,
    /// Further data of the key.
    pub value: V,
}

impl<K, V> TopCount<K, V> {
    /// Returns the rank of the counter: the most that may have been counted for the key.
    fn rank(&self) -> u64 {
        self.count + self.missed_at_most
    }
}

struct Counter<K, V> {
    top: TopCount<K, V>,
    /// The position in [`TopCounts::heap`].
    at: u32,
}

/// Counts keys.
pub struct TopCounts<K, V> {
    capacity: usize,
    counters: Vec<Counter<K, V>>,
    /// The counter of each key.
    positions: AHashMap<K, u32>,
    /// A binary heap of counters; the one with the smallest rank is first.
    heap: Vec<u32>,
}

impl<K: Copy + Eq + Hash, V: Default> TopCounts<K, V> {
    /// Returns counters for `capacity` keys, at least one. They take memory as keys appear.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            counters: Vec::new(),
            positions: AHashMap::new(),
            heap: Vec::new(),
        }
    }

    /// Adds `n` to the count of a key. Returns its data, which is new if the key had no counter, and
    /// whether another key lost its counter.
    pub fn add(&mut self, key: K, n: u64) -> (&mut V, bool) {
        if let Some(position) = self.positions.get(&key) {
            let position = *position;
            let counter = &mut self.counters[position as usize];
            counter.top.count += n;
            let at = counter.at as usize;
            self.move_down(at);
            return (&mut self.counters[position as usize].top.value, false);
        }
        let new = |missed_at_most| TopCount {
            key,
            count: n,
            missed_at_most,
            value: V::default(),
        };
        if self.counters.len() < self.capacity {
            let position = self.counters.len() as u32;
            let at = self.heap.len();
            self.counters.push(Counter {
                top: new(0),
                at: at as u32,
            });
            self.positions.insert(key, position);
            self.heap.push(position);
            self.move_up(at);
            return (&mut self.counters[position as usize].top.value, false);
        }
        let position = self.heap[0];
        let counter = &mut self.counters[position as usize];
        self.positions.remove(&counter.top.key);
        self.positions.insert(key, position);
        counter.top = new(counter.top.rank());
        self.move_down(0);
        (&mut self.counters[position as usize].top.value, true)
    }

    /// Iterates over the keys that have a counter, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &TopCount<K, V>> {
        self.counters.iter().map(|counter| &counter.top)
    }

    fn rank(&self, at: usize) -> u64 {
        self.counters[self.heap[at] as usize].top.rank()
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        for at in [a, b] {
            self.counters[self.heap[at] as usize].at = at as u32;
        }
    }

    fn move_down(&mut self, mut at: usize) {
        loop {
            let children = [2 * at + 1, 2 * at + 2].into_iter();
            let present = children.filter(|child| *child < self.heap.len());
            match present.min_by_key(|child| self.rank(*child)) {
                Some(child) if self.rank(child) < self.rank(at) => {
                    self.swap(at, child);
                    at = child;
                }
                _ => return,
            }
        }
    }

    fn move_up(&mut self, mut at: usize) {
        while at > 0 && self.rank(at) < self.rank((at - 1) / 2) {
            self.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn new_key_takes_over_the_smallest_counter() {
        let mut top: TopCounts<&str, u32> = TopCounts::new(2);
        *top.add("a", 5).0 = 1;
        *top.add("b", 3).0 = 2;
        let (value, replaced) = top.add("c", 1);
        assert_eq!((*value, replaced), (0, true));
        let mut all: Vec<_> = top.iter().copied().collect();
        all.sort_by_key(|top| top.key);
        let expected = |key, count, missed_at_most, value| TopCount {
            key,
            count,
            missed_at_most,
            value,
        };
        assert_eq!(all, [expected("a", 5, 0, 1), expected("c", 1, 3, 0)]);
    }

    proptest! {
        /// The promises of the algorithm, against a count of everything.
        #[test]
        fn counts_bound_the_truth(
            capacity in 1usize..20,
            adds in proptest::collection::vec((0u8..40, 1u64..9), 0..400),
        ) {
            let mut top: TopCounts<u8, ()> = TopCounts::new(capacity);
            let mut truth: HashMap<u8, u64> = HashMap::new();
            for (key, n) in adds {
                // A few keys have most of the counts.
                let key = if key > 30 { key } else { key % 5 };
                top.add(key, n);
                *truth.entry(key).or_default() += n;
            }
            let total: u64 = truth.values().sum();
            prop_assert!(top.iter().count() <= capacity);
            for counted in top.iter() {
                let all = truth[&counted.key];
                prop_assert!(counted.count <= all && all <= counted.rank());
                prop_assert!(counted.missed_at_most <= total / capacity as u64);
            }
            for (key, all) in truth {
                let is_counted = top.iter().any(|counted| counted.key == key);
                prop_assert!(is_counted || all <= total / capacity as u64);
            }
        }
    }
}
