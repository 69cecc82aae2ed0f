//! Sets of downstream interfaces, each kept once: many groups have the same few.

use std::sync::Arc;

use ahash::AHashMap;

use super::DownstreamId;

/// Position of a set in [`Sets`].
pub type SetId = u32;

/// The set of none, which is always there.
pub const EMPTY: SetId = 0;

/// Sets in one chunk. A change copies one chunk and the list of chunks, and not all sets.
const CHUNK: usize = 256;

/// Downstream interfaces in rising order.
type Set = Arc<[DownstreamId]>;

/// The sets by number. A clone shares them.
#[derive(Debug, Clone, Default)]
pub struct Sets(Vec<Arc<Vec<Set>>>);

impl Sets {
    /// The downstream interfaces of a set; none where there is no such set.
    #[inline]
    pub fn get(&self, id: SetId) -> &[DownstreamId] {
        let chunk = self.0.get(id as usize / CHUNK);
        chunk
            .and_then(|chunk| chunk.get(id as usize % CHUNK))
            .map_or(&[], |set| set)
    }

    fn put(&mut self, id: SetId, set: Set) {
        let (chunk, at) = (id as usize / CHUNK, id as usize % CHUNK);
        if chunk == self.0.len() {
            self.0.push(Arc::default());
        }
        let chunk = Arc::make_mut(&mut self.0[chunk]);
        match chunk.get_mut(at) {
            Some(place) => *place = set,
            None => chunk.push(set),
        }
    }
}

/// Gives sets their numbers, and takes back those nobody uses any more.
#[derive(Debug, Default)]
pub struct Interner {
    /// The sets; a number that was taken back keeps its old one until it is used again.
    pub sets: Sets,
    ids: AHashMap<Set, SetId>,
    /// By number: how often it is in use.
    uses: Vec<u32>,
    free: Vec<SetId>,
}

impl Interner {
    /// The number of a set, in use once more.
    pub fn hold(&mut self, set: &[DownstreamId]) -> SetId {
        if set.is_empty() {
            return EMPTY;
        }
        if let Some(id) = self.ids.get(set) {
            self.uses[*id as usize] += 1;
            return *id;
        }
        if self.uses.is_empty() {
            self.uses.push(1);
            self.sets.put(EMPTY, Arc::default());
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.uses.push(0);
            self.uses.len() as SetId - 1
        });
        let set: Set = set.into();
        self.uses[id as usize] = 1;
        self.sets.put(id, set.clone());
        self.ids.insert(set, id);
        id
    }

    /// Ends one use of a number.
    pub fn release(&mut self, id: SetId) {
        if id == EMPTY {
            return;
        }
        let uses = &mut self.uses[id as usize];
        *uses -= 1;
        if *uses == 0 {
            self.ids.remove(self.sets.get(id));
            self.free.push(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_sets_have_one_number_and_what_nobody_uses_is_used_again() {
        let mut interner = Interner::default();
        assert_eq!(interner.hold(&[]), EMPTY);
        let one = interner.hold(&[1]);
        let two = interner.hold(&[1, 2]);
        assert_eq!(interner.hold(&[1]), one);
        let before = interner.sets.clone();
        interner.release(one);
        assert_eq!(interner.hold(&[1]), one);
        interner.release(one);
        interner.release(one);
        assert_eq!(interner.hold(&[3]), one);
        assert_eq!(interner.sets.get(one), [3]);
        assert_eq!(interner.sets.get(two), [1, 2]);
        // Who has the older sets is not disturbed.
        assert_eq!(before.get(one), [1]);
        assert_eq!(interner.sets.get(EMPTY), [0u32; 0]);
        for n in 10..2000 {
            let id = interner.hold(&[n]);
            assert_eq!(interner.sets.get(id), [n]);
        }
    }
}
