//! Deadlines of groups.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::model::Group;

/// At most one deadline for each group.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    of_group: BTreeMap<Group, Instant>,
    in_order: BTreeSet<(Instant, Group)>,
}

impl Deadlines {
    /// Returns the deadline of a group.
    pub(super) fn get(&self, group: Group) -> Option<Instant> {
        self.of_group.get(&group).copied()
    }

    /// Sets the deadline of a group.
    pub(super) fn set(&mut self, group: Group, at: Instant) {
        if let Some(old) = self.of_group.insert(group, at) {
            self.in_order.remove(&(old, group));
        }
        self.in_order.insert((at, group));
    }

    /// Sets the deadline of a group, unless it has an earlier one.
    pub(super) fn lower(&mut self, group: Group, at: Instant) {
        if self.get(group).is_none_or(|old| at < old) {
            self.set(group, at);
        }
    }

    /// Removes the deadline of a group.
    pub(super) fn remove(&mut self, group: Group) {
        if let Some(old) = self.of_group.remove(&group) {
            self.in_order.remove(&(old, group));
        }
    }

    /// Removes all deadlines.
    pub(super) fn clear(&mut self) {
        self.of_group.clear();
        self.in_order.clear();
    }

    /// Returns the earliest deadline.
    pub(super) fn next(&self) -> Option<Instant> {
        self.in_order.first().map(|(at, _)| *at)
    }

    /// Removes and returns the groups whose deadline has passed, by deadline.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Group> {
        let mut due = Vec::new();
        while let Some((at, group)) = self.in_order.first().copied()
            && at <= now
        {
            self.remove(group);
            due.push(group);
        }
        due
    }
}
