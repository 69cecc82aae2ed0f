//! The difference between two forwarding tables.

use std::sync::Arc;

use super::{Fib, Ingress};
use crate::model::InterfaceId;

/// A change of the forwarding table.
#[derive(Debug, Clone)]
pub struct FibDiff {
    /// The table in force until now.
    pub old: Arc<Fib>,
    /// The new table.
    pub new: Arc<Fib>,
}

impl FibDiff {
    /// Returns whether routes, proxies or interfaces changed. Otherwise only memberships did.
    pub fn routes_changed(&self) -> bool {
        // Tables between which only memberships changed share everything else.
        !Arc::ptr_eq(&self.old.ingresses, &self.new.ingresses)
            || !self.old.paths.ptr_eq(&self.new.paths)
    }

    /// Returns whether packets arrive or leave on other interfaces than before, or whether an
    /// interface is served in another way.
    pub fn interfaces_changed(&self) -> bool {
        let service = |i: &Ingress| {
            let messages = (i.answers_queries, i.receives_membership);
            (i.watch_only, messages, i.merge_domain)
        };
        let is_same = |(index, new): (&InterfaceId, &Arc<Ingress>)| {
            let old = self.old.ingresses.get(index);
            old.is_some_and(|old| service(old) == service(new) && old.plane == new.plane)
        };
        let same_ingresses = self.old.ingresses.len() == self.new.ingresses.len()
            && self.new.ingresses.iter().all(is_same);
        !(same_ingresses && Arc::ptr_eq(&self.old.egresses, &self.new.egresses))
    }

    /// Returns the ingress interfaces that the new table does not have any more.
    pub fn removed_ingresses(&self) -> impl Iterator<Item = InterfaceId> {
        let old = self.old.ingresses.keys().copied();
        old.filter(|index| !self.new.ingresses.contains_key(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fib(ingresses: &[u32]) -> Arc<Fib> {
        let indexes = ingresses.iter().filter_map(|n| InterfaceId::new(*n));
        Arc::new(Fib {
            ingresses: Arc::new(indexes.map(|n| (n, Arc::default())).collect()),
            ..Fib::default()
        })
    }

    #[test]
    fn membership_change_leaves_routes_unchanged() {
        let old = fib(&[1, 2]);
        let new = Arc::new(Fib {
            generation: 2,
            ..Fib::clone(&old)
        });
        let diff = FibDiff { old, new };
        assert!(!diff.routes_changed() && !diff.interfaces_changed());
        assert_eq!(diff.removed_ingresses().count(), 0);
    }

    #[test]
    fn removed_ingress_is_listed() {
        let diff = FibDiff {
            old: fib(&[1, 2]),
            new: fib(&[2, 3]),
        };
        assert!(diff.routes_changed() && diff.interfaces_changed());
        assert_eq!(
            diff.removed_ingresses().collect::<Vec<_>>(),
            [InterfaceId::new(1).unwrap()]
        );
    }
}
