//! Sets of downstream interfaces. Equal sets are stored once, because many groups have the same
//! few.

use std::sync::Arc;

use ahash::AHashMap;

use super::ids::DownstreamId;
use super::shared_vec::SharedVec;

/// Position of a set in [`OifSets`].
pub type OifSetId = u32;

/// The empty set, which always exists.
pub const EMPTY_SET: OifSetId = 0;

/// Downstream interfaces in rising order.
type OifSet = Arc<[DownstreamId]>;

/// Sets of downstream interfaces by number. A clone shares them.
#[derive(Debug, Clone, Default)]
pub struct OifSets(SharedVec<OifSet>);

impl OifSets {
    /// Returns the downstream interfaces of a set; an empty slice for an unknown number.
    #[inline]
    pub fn get(&self, id: OifSetId) -> &[DownstreamId] {
        self.0.get(id as usize).map_or(&[], |set| set)
    }

    /// Stores a set under a number that is in use or the next unused one.
    fn store(&mut self, id: OifSetId, set: OifSet) {
        let position = id as usize;
        match position == self.0.len() {
            true => self.0.push(set),
            false => self.0.set(position, set),
        }
    }
}

/// Assigns numbers to sets and counts their uses. The number of an unused set is assigned again.
#[derive(Debug, Default)]
pub struct OifSetInterner {
    /// The sets. An unused number keeps its old set until it is assigned again.
    pub sets: OifSets,
    ids: AHashMap<OifSet, OifSetId>,
    /// Number of uses, by number of the set.
    uses: Vec<u32>,
    unused: Vec<OifSetId>,
}

impl OifSetInterner {
    /// Returns the number of a set and counts one more use of it. `set` is in rising order.
    pub fn acquire(&mut self, set: &[DownstreamId]) -> OifSetId {
        if set.is_empty() {
            return EMPTY_SET;
        }
        if let Some(id) = self.ids.get(set) {
            self.uses[*id as usize] += 1;
            return *id;
        }
        if self.uses.is_empty() {
            self.uses.push(1);
            self.sets.store(EMPTY_SET, Arc::default());
        }
        let id = self.unused.pop().unwrap_or_else(|| {
            self.uses.push(0);
            self.uses.len() as OifSetId - 1
        });
        let set: OifSet = set.into();
        self.uses[id as usize] = 1;
        self.sets.store(id, set.clone());
        self.ids.insert(set, id);
        id
    }

    /// Counts one use of a set as removed.
    pub fn release(&mut self, id: OifSetId) {
        if id == EMPTY_SET {
            return;
        }
        let uses = &mut self.uses[id as usize];
        *uses -= 1;
        if *uses == 0 {
            self.ids.remove(self.sets.get(id));
            self.unused.push(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_sets_share_numbers_and_unused_are_reused() {
        let mut interner = OifSetInterner::default();
        assert_eq!(interner.acquire(&[]), EMPTY_SET);
        let one = interner.acquire(&[1]);
        let two = interner.acquire(&[1, 2]);
        assert_eq!(interner.acquire(&[1]), one);
        let before = interner.sets.clone();
        interner.release(one);
        assert_eq!(interner.acquire(&[1]), one);
        interner.release(one);
        interner.release(one);
        assert_eq!(interner.acquire(&[3]), one);
        assert_eq!(interner.sets.get(one), [3]);
        assert_eq!(interner.sets.get(two), [1, 2]);
        // A clone of the older sets is unchanged.
        assert_eq!(before.get(one), [1]);
        assert_eq!(interner.sets.get(EMPTY_SET), [0u32; 0]);
        for n in 10..2000 {
            let id = interner.acquire(&[n]);
            assert_eq!(interner.sets.get(id), [n]);
        }
    }
}
