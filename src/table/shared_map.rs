//! A hash map whose clones share their entries, so that a changed copy of a large one is cheap.

use std::hash::Hash;
use std::sync::Arc;

use ahash::{AHashMap, RandomState};

/// Number of maps over which the keys are spread. A change copies one of the maps.
const SHARDS: usize = 256;

type Shard<K, V> = AHashMap<K, V>;

/// A hash map. A clone shares everything; a change copies the part of the changed key if a clone
/// shares it.
#[derive(Debug)]
pub struct SharedMap<K, V> {
    seed: RandomState,
    shards: Arc<[Arc<Shard<K, V>>]>,
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        Self {
            seed: self.seed.clone(),
            shards: self.shards.clone(),
        }
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        let empty: Arc<Shard<K, V>> = Arc::new(AHashMap::default());
        Self {
            seed: RandomState::new(),
            shards: std::iter::repeat_n(empty, SHARDS).collect(),
        }
    }
}

impl<K: Eq + Hash, V> SharedMap<K, V> {
    fn shard(&self, key: &K) -> usize {
        self.seed.hash_one(key) as usize % SHARDS
    }

    /// Returns the value of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.shards[self.shard(key)].get(key)
    }
}

impl<K: Clone + Eq + Hash, V: Clone> SharedMap<K, V> {
    /// Sets the value of a key; `None` removes it. Returns the previous value.
    pub fn replace(&mut self, key: K, value: Option<V>) -> Option<V> {
        let shard = self.shard(&key);
        let shard = Arc::make_mut(&mut Arc::make_mut(&mut self.shards)[shard]);
        match value {
            Some(value) => shard.insert(key, value),
            None => shard.remove(&key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_keep_their_values() {
        let mut map = SharedMap::default();
        (0..1000).for_each(|n| assert_eq!(map.replace(n, Some(n)), None));
        let before = map.clone();
        assert_eq!(map.replace(7, Some(70)), Some(7));
        assert_eq!(map.replace(8, None), Some(8));
        assert_eq!((map.get(&7), map.get(&8)), (Some(&70), None));
        assert!((0..1000).all(|n| before.get(&n) == Some(&n)));
    }
}
