//! The groups of one interface, with their deadlines, quota and counts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use crate::model::{Group, SourceFilter};

use super::group::GroupState;
use super::quota::{GroupQuota, QuotaSlot, SenderStatus};

/// The groups with members. Every change goes through [`update`](Self::update), which keeps the
/// counts and deadlines up to date and removes groups without members.
#[derive(Debug, Default)]
pub(super) struct GroupTable {
    /// Boxed, because a node of the map has space for eleven values, and most hosts behind a tunnel
    /// join one group.
    groups: BTreeMap<Group, Box<GroupState>>,
    quota: GroupQuota,
    /// The next timeout of each group that has one.
    deadlines: BTreeSet<(Instant, Group)>,
    source_count: usize,
    tracked_entries: usize,
    /// The groups that have changed, each with its filter when it was last collected.
    changed: BTreeMap<Group, SourceFilter>,
}

impl GroupTable {
    /// Returns the number of groups.
    pub(super) fn len(&self) -> usize {
        self.groups.len()
    }

    /// Returns the number of stored sources over all groups.
    pub(super) fn source_count(&self) -> usize {
        self.source_count
    }

    /// Returns the number of tracked hosts plus the number of their sources, over all groups.
    pub(super) fn tracked_entries(&self) -> usize {
        self.tracked_entries
    }

    /// Returns a group.
    pub(super) fn get(&self, group: Group) -> Option<&GroupState> {
        self.groups.get(&group).map(Box::as_ref)
    }

    /// Returns every group, lowest address first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Group, &GroupState)> {
        self.groups.iter().map(|(group, state)| (*group, &**state))
    }

    /// Returns the sources to forward of a group.
    pub(super) fn source_filter(&self, group: Group) -> SourceFilter {
        let state = self.get(group);
        state.map_or_else(SourceFilter::none, GroupState::source_filter)
    }

    /// Returns a free slot for a further group of this sender, if there is one.
    pub(super) fn find_slot(
        &self,
        limit: usize,
        sender: IpAddr,
        sender_status: SenderStatus,
    ) -> Option<QuotaSlot> {
        let occupied = self.groups.len();
        self.quota.find_slot(occupied, limit, sender, sender_status)
    }

    /// Adds a group without members. The next [`update`](Self::update) removes it if it still
    /// has none.
    pub(super) fn insert(&mut self, group: Group, reporter: IpAddr, slot: QuotaSlot) {
        self.quota.occupy(slot);
        let state = GroupState::new(reporter, slot);
        self.groups.insert(group, Box::new(state));
    }

    /// Changes a group. Does nothing if the group does not exist.
    pub(super) fn update(&mut self, group: Group, change: impl FnOnce(&mut GroupState)) {
        let Some(state) = self.groups.get_mut(&group) else {
            return;
        };
        let timeout_before = state.next_timeout();
        self.source_count -= state.source_count();
        self.tracked_entries -= state.tracked_entries();
        change(state);
        if let Some(previous) = state.take_previous_filter() {
            self.changed.entry(group).or_insert(previous);
        }
        let mut timeout = None;
        if state.is_empty() {
            self.quota.release(state.slot());
            self.groups.remove(&group);
        } else {
            self.source_count += state.source_count();
            self.tracked_entries += state.tracked_entries();
            timeout = state.next_timeout();
        }
        if timeout_before != timeout {
            if let Some(at) = timeout_before {
                self.deadlines.remove(&(at, group));
            }
            if let Some(at) = timeout {
                self.deadlines.insert((at, group));
            }
        }
    }

    /// Changes every group.
    pub(super) fn update_all(&mut self, mut change: impl FnMut(Group, &mut GroupState)) {
        let groups: Vec<Group> = self.groups.keys().copied().collect();
        for group in groups {
            self.update(group, |state| change(group, state));
        }
    }

    /// Returns the next group whose filter has changed since it was last collected, with its
    /// present filter. Several changes of one group are reported as one.
    pub(super) fn poll_change(&mut self) -> Option<(Group, SourceFilter)> {
        while let Some((group, previous)) = self.changed.pop_first() {
            let filter = self.source_filter(group);
            if filter != previous {
                return Some((group, filter));
            }
        }
        None
    }

    /// Returns the time of the first timeout.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Returns a group whose timeout is due.
    pub(super) fn next_due(&self, now: Instant) -> Option<Group> {
        let (at, group) = self.deadlines.first()?;
        (*at <= now).then_some(*group)
    }
}
