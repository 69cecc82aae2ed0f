//! The merges of which a path arrives on one interface.

use std::cell::Cell;
use std::sync::{Arc, MutexGuard};

use ahash::AHashMap;

use crate::merge::{Merger, Merges, SharedMerge};
use crate::model::{MergePath, RouteName};
use crate::table::{Fib, Ingress};

/// The merges of an ingress, according to one forwarding table.
#[derive(Default)]
pub(super) struct Merging {
    merges: Option<Arc<Merges>>,
    generation: u64,
    by_route: AHashMap<RouteName, (MergePath, Arc<SharedMerge>)>,
    /// Merges of former tables that hold packets.
    replaced: Vec<Arc<SharedMerge>>,
    /// The number of batches.
    batches: Cell<u64>,
}

impl Merging {
    /// Returns an ingress that takes part in `merges`.
    pub fn new(merges: Arc<Merges>) -> Self {
        Self {
            merges: Some(merges),
            ..Self::default()
        }
    }

    /// Applies a forwarding table.
    pub fn update(&mut self, fib: &Fib, ingress: &Ingress) {
        let Some(merges) = &self.merges else {
            return;
        };
        if self.generation == fib.generation {
            return;
        }
        self.generation = fib.generation;
        let merges = ingress.merges.iter().map(|(route, rule)| {
            let shared = merges.of_route(route, rule);
            (route.clone(), (rule.path, shared))
        });
        // The former merges are dropped afterwards, so that those that remain keep their state.
        let former = std::mem::replace(&mut self.by_route, merges.collect());
        for (route, (_, merge)) in former {
            let remains = self.by_route.get(&route);
            let remains = remains.is_some_and(|(_, other)| Arc::ptr_eq(other, &merge));
            if merge.is_waiting() && !remains {
                self.replaced.push(merge);
            }
        }
    }

    /// Returns whether a merge of a former table holds packets.
    pub fn has_replaced(&self) -> bool {
        !self.replaced.is_empty()
    }

    /// Takes the merges of former tables that hold packets.
    pub fn take_replaced(&mut self) -> Vec<Arc<SharedMerge>> {
        std::mem::take(&mut self.replaced)
    }

    /// Returns all merges, and the path that arrives here.
    pub fn all(&self) -> impl Iterator<Item = (MergePath, &Arc<SharedMerge>)> {
        self.by_route.values().map(|(path, merge)| (*path, merge))
    }
}

/// The merge of the current packet.
struct LockedMerge<'m> {
    route: &'m RouteName,
    path: MergePath,
    shared: &'m SharedMerge,
    merger: MutexGuard<'m, Merger>,
}

/// The lock of the merge of the current packet. It is taken once for a run of packets of one merge.
pub(super) struct MergeLock<'m> {
    merging: &'m Merging,
    /// The number of the batch.
    batch: u64,
    locked: Option<LockedMerge<'m>>,
}

impl<'m> MergeLock<'m> {
    /// Returns a lock of nothing, for one batch.
    pub fn new(merging: &'m Merging) -> Self {
        let batch = merging.batches.get().wrapping_add(1);
        merging.batches.set(batch);
        Self {
            merging,
            batch,
            locked: None,
        }
    }

    /// Returns the locked merge of a route.
    pub fn of(&mut self, route: &RouteName) -> Option<&mut Merger> {
        if self.locked.as_ref().is_none_or(|l| l.route != route) {
            self.release();
            let (route, (path, shared)) = self.merging.by_route.get_key_value(route)?;
            self.locked = Some(LockedMerge {
                route,
                path: *path,
                shared,
                merger: shared.lock(),
            });
        }
        self.locked.as_mut().map(|locked| &mut *locked.merger)
    }

    fn release(&mut self) {
        if let Some(mut locked) = self.locked.take() {
            locked.merger.note_batch(locked.path, self.batch);
            locked.shared.set_waiting(locked.merger.is_waiting());
        }
    }
}

impl Drop for MergeLock<'_> {
    fn drop(&mut self) {
        self.release();
    }
}
