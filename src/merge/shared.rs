//! The merges of this process, as the actors of their two ingresses share them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;

use ahash::AHashMap;
use futures_util::task::AtomicWaker;

use super::merger::Merger;
use super::statistics::MergeStatistics;
use crate::model::{MergePath, MergeRule, RouteName};

/// A merge. Both ingresses are read by one thread, so its lock is free.
pub struct SharedMerge {
    rule: MergeRule,
    merger: Mutex<Merger>,
    is_waiting: AtomicBool,
    wakers: [AtomicWaker; 2],
    published: Mutex<MergeStatistics>,
}

impl SharedMerge {
    /// Returns a merge without packets.
    pub fn new(rule: &MergeRule) -> Self {
        Self {
            rule: rule.clone(),
            merger: Mutex::new(Merger::new(rule)),
            is_waiting: AtomicBool::new(false),
            wakers: Default::default(),
            published: Mutex::default(),
        }
    }

    /// Returns its state.
    pub fn lock(&self) -> MutexGuard<'_, Merger> {
        self.merger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether packets are held.
    pub fn is_waiting(&self) -> bool {
        self.is_waiting.load(Ordering::Acquire)
    }

    /// Sets whether packets are held, and wakes the readers of both paths if they are held now.
    pub fn set_waiting(&self, is_waiting: bool) {
        let was_waiting = self.is_waiting.swap(is_waiting, Ordering::AcqRel);
        if is_waiting && !was_waiting {
            self.wakers.iter().for_each(AtomicWaker::wake);
        }
    }

    /// Sets what wakes the reader of a path when packets are held.
    pub fn register(&self, path: MergePath, waker: &Waker) {
        self.wakers[path.index()].register(waker);
    }

    /// Publishes the counts. Returns the counts that were published before.
    pub fn publish(&self, counts: MergeStatistics) -> MergeStatistics {
        let published = self.published.lock();
        let mut published = published.unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut published, counts)
    }

    /// Returns the counts that were published last.
    pub fn published(&self) -> MergeStatistics {
        let published = self.published.lock();
        *published.unwrap_or_else(PoisonError::into_inner)
    }
}

/// All merges, by the name of their route. A merge ends when no actor uses it.
#[derive(Default)]
pub struct Merges(Mutex<AHashMap<RouteName, Weak<SharedMerge>>>);

impl Merges {
    /// Returns the merge of a route. It is a new one if the route had none with these properties.
    pub fn of_route(&self, route: &RouteName, rule: &MergeRule) -> Arc<SharedMerge> {
        let mut merges = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        merges.retain(|_, merge| merge.strong_count() > 0);
        let existing = merges.get(route).and_then(Weak::upgrade);
        if let Some(merge) = existing.filter(|merge| merge.rule.is_same_merge(rule)) {
            return merge;
        }
        let merge = Arc::new(SharedMerge::new(rule));
        merges.insert(route.clone(), Arc::downgrade(&merge));
        merge
    }

    /// Returns the counts of the merge of a route, if it is in use.
    pub fn statistics(&self, route: &RouteName) -> Option<MergeStatistics> {
        let merges = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Some(merges.get(route)?.upgrade()?.published())
    }
}
