//! Values of flows by key and by recency, in one slab.
//!
//! A flow keeps its position in the slab for its whole life. So readers can walk through all flows
//! in bounded pieces while packets change the order of recency. An insertion allocates only when
//! the slab grows.

use ahash::AHashMap;

use super::flow::FlowKey;

/// Marks the end of the recency list.
const NONE: u32 = u32::MAX;

struct Slot<F> {
    key: FlowKey,
    flow: F,
    /// The slot that was used next, or [`NONE`].
    newer: u32,
    /// The slot that was used before, or [`NONE`].
    older: u32,
    /// Whether the slot holds a flow. Free slots are in [`FlowStore::free`].
    in_use: bool,
}

/// A map from [`FlowKey`] to the data of a flow. It knows the flow that was used least recently.
/// Every operation but [`FlowStore::clear`] takes constant time.
pub(super) struct FlowStore<F> {
    positions: AHashMap<FlowKey, u32>,
    slots: Vec<Slot<F>>,
    free: Vec<u32>,
    newest: u32,
    oldest: u32,
}

impl<F> Default for FlowStore<F> {
    fn default() -> Self {
        Self {
            positions: AHashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            newest: NONE,
            oldest: NONE,
        }
    }
}

impl<F> FlowStore<F> {
    /// Returns the number of flows.
    pub(super) fn len(&self) -> usize {
        self.positions.len()
    }

    /// Returns whether there are no flows.
    pub(super) fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Returns the flow and makes it the most recently used one.
    pub(super) fn get_mut(&mut self, key: &FlowKey) -> Option<&mut F> {
        let position = *self.positions.get(key)?;
        if position != self.newest {
            self.unlink(position);
            self.link_as_newest(position);
        }
        Some(&mut self.slots[position as usize].flow)
    }

    /// Returns the flow, and leaves the order of use as it is.
    pub(super) fn peek(&self, key: &FlowKey) -> Option<&F> {
        let position = *self.positions.get(key)?;
        Some(&self.slots[position as usize].flow)
    }

    /// Adds a flow that is not in the store, as the most recently used one. Returns it.
    pub(super) fn insert(&mut self, key: FlowKey, flow: F) -> &mut F {
        let slot = Slot {
            key,
            flow,
            newer: NONE,
            older: NONE,
            in_use: true,
        };
        let position = match self.free.pop() {
            Some(position) => {
                self.slots[position as usize] = slot;
                position
            }
            None => {
                self.slots.push(slot);
                (self.slots.len() - 1) as u32
            }
        };
        self.positions.insert(key, position);
        self.link_as_newest(position);
        &mut self.slots[position as usize].flow
    }

    /// Returns the least recently used flow.
    pub(super) fn oldest(&self) -> Option<&F> {
        let slot = self.slots.get(self.oldest as usize)?;
        Some(&slot.flow)
    }

    /// Removes the least recently used flow and returns its key; `None` if there was none.
    pub(super) fn remove_oldest(&mut self) -> Option<FlowKey> {
        if self.oldest == NONE {
            return None;
        }
        let position = self.oldest;
        self.unlink(position);
        let slot = &mut self.slots[position as usize];
        slot.in_use = false;
        let key = slot.key;
        self.positions.remove(&key);
        self.free.push(position);
        if self.positions.is_empty() {
            // Releases the memory of a flood of flows that has ended.
            self.clear();
        }
        Some(key)
    }

    /// Removes all flows and releases their memory.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Examines `limit` positions from `position`. Returns their flows and the next position, or
    /// `None` after the last one. A flow that exists during a whole walk is returned once.
    pub(super) fn page(
        &self,
        position: usize,
        limit: usize,
    ) -> (impl Iterator<Item = (&FlowKey, &F)>, Option<usize>) {
        let begin = position.min(self.slots.len());
        let end = begin.saturating_add(limit).min(self.slots.len());
        let in_use = self.slots[begin..end].iter().filter(|slot| slot.in_use);
        let flows = in_use.map(|slot| (&slot.key, &slot.flow));
        (flows, (end < self.slots.len()).then_some(end))
    }

    fn unlink(&mut self, position: u32) {
        let Slot { newer, older, .. } = self.slots[position as usize];
        match newer {
            NONE => self.newest = older,
            newer => self.slots[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.slots[older as usize].newer = newer,
        }
    }

    fn link_as_newest(&mut self, position: u32) {
        let older = std::mem::replace(&mut self.newest, position);
        let slot = &mut self.slots[position as usize];
        (slot.newer, slot.older) = (NONE, older);
        match older {
            NONE => self.oldest = position,
            older => self.slots[older as usize].newer = position,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use lru::LruCache;
    use proptest::prelude::*;

    use super::super::flow::{Flow, Verdicts};
    use super::*;

    fn key(n: u8) -> FlowKey {
        ([10, 0, 0, n].into(), [225, 1, 2, 3].into())
    }

    fn flow(packets: u64) -> Flow {
        Flow {
            verdicts: Verdicts::default(),
            generation: 1,
            packets,
            bytes: 0,
            began_ms: 0,
            seen_ms: 0,
        }
    }

    /// Returns the flows, the least recently used one first.
    fn by_recency(store: &FlowStore<Flow>) -> Vec<(FlowKey, u64)> {
        let mut flows = Vec::new();
        let mut position = store.oldest;
        while position != NONE {
            let slot = &store.slots[position as usize];
            flows.push((slot.key, slot.flow.packets));
            position = slot.newer;
        }
        flows
    }

    proptest! {
        #[test]
        fn order_of_recency_equals_that_of_lru(steps in prop::collection::vec((0u8..4, 0u8..16), 1..200)) {
            let mut store = FlowStore::default();
            let mut model: LruCache<FlowKey, u64> = LruCache::unbounded();
            for (n, (operation, id)) in (0..).zip(steps) {
                match operation {
                    0 | 1 if model.peek(&key(id)).is_none() => {
                        store.insert(key(id), flow(n));
                        model.put(key(id), n);
                    }
                    0..=2 => {
                        let found = store.get_mut(&key(id)).map(|f| f.packets);
                        prop_assert_eq!(found, model.get(&key(id)).copied());
                    }
                    _ => {
                        prop_assert_eq!(store.remove_oldest(), model.pop_lru().map(|(key, _)| key));
                    }
                }
                let expected: Vec<_> = model.iter().rev().map(|(k, n)| (*k, *n)).collect();
                prop_assert_eq!(by_recency(&store), expected);
                prop_assert_eq!(store.oldest().map(|f| f.packets), model.peek_lru().map(|(_, n)| *n));
                prop_assert_eq!(store.len(), model.len());
            }
        }
    }

    #[test]
    fn pages_return_lasting_flows_once_during_changes() {
        let mut store = FlowStore::default();
        (0..100).for_each(|n| {
            store.insert(key(n), flow(0));
        });
        // Flows 0 to 9 leave, and others take their positions.
        (0..10).for_each(|_| assert!(store.remove_oldest().is_some()));
        let mut seen = Vec::new();
        let mut position = Some(0);
        let mut more = 200..;
        while let Some(from) = position {
            let (flows, next) = store.page(from, 7);
            seen.extend(flows.map(|(key, _)| *key));
            position = next;
            store.get_mut(&key(50));
            store.insert(key(more.next().unwrap()), flow(0));
        }
        let lasting: BTreeSet<_> = (10..100).map(key).collect();
        let seen_lasting: Vec<_> = seen.iter().filter(|k| lasting.contains(k)).collect();
        assert_eq!(seen_lasting.len(), lasting.len());
        let distinct: BTreeSet<_> = seen.iter().collect();
        assert_eq!(distinct.len(), seen.len());
        assert_eq!(store.page(1000, 7).1, None);
    }
}
