//! The memberships behind downstream interfaces (RFC 4605 section 4.1), and the OIF table made of
//! them.
//!
//! Routing updates [`MembershipDatabase`] group by group when membership reports a change. There
//! are two ways to apply the changes to a forwarding table:
//!
//! - [`MembershipDatabase::rebuild`] adds all memberships to a table that
//!   [`Rib::build_fib`](super::Rib::build_fib) has just built from new rules or links.
//! - [`MembershipDatabase::update`] makes the next table from the current one when only memberships
//!   changed. Its cost depends on the number of changes: the tables share everything else.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ahash::{AHashMap, AHashSet};

use super::fib::Fib;
use super::ids::DownstreamId;
use super::oif_sets::{EMPTY_SET, OifSetInterner};
use super::oif_table::{GroupInterest, OifTable};
use crate::model::{Group, InterfaceId, SourceFilter};

/// The memberships behind downstream interfaces. Routing owns it and fills it again after a
/// restart.
#[derive(Debug, Default)]
pub struct MembershipDatabase {
    groups: AHashMap<Group, BTreeMap<InterfaceId, SourceFilter>>,
    /// Groups that changed since the last forwarding table.
    changed: AHashSet<Group>,
    /// The OIF table of the last forwarding table.
    oif_table: OifTable,
    interner: OifSetInterner,
    /// Positions of the downstream interfaces in the last forwarding table.
    ids: AHashMap<InterfaceId, DownstreamId>,
}

impl MembershipDatabase {
    /// Sets the source filter of a group behind `downstream`. An empty filter ends the membership.
    /// The change takes effect with the next forwarding table.
    pub fn set(&mut self, downstream: InterfaceId, group: Group, filter: SourceFilter) {
        let members = self.groups.entry(group).or_default();
        let old = match filter.is_none() {
            true => members.remove(&downstream),
            false => members.insert(downstream, filter.clone()),
        };
        if members.is_empty() {
            self.groups.remove(&group);
        }
        if old.unwrap_or_default() != filter {
            self.changed.insert(group);
        }
    }

    /// Ends all memberships behind `downstream`.
    pub fn remove_downstream(&mut self, downstream: InterfaceId) {
        let changed = &mut self.changed;
        self.groups.retain(|group, members| {
            if members.remove(&downstream).is_some() {
                changed.insert(*group);
            }
            !members.is_empty()
        });
    }

    /// Returns every membership: downstream interface, group and source filter.
    pub fn memberships(&self) -> impl Iterator<Item = (InterfaceId, Group, &SourceFilter)> {
        let groups = self.groups.iter();
        groups.flat_map(|(group, members)| members.iter().map(|(i, f)| (*i, *group, f)))
    }

    /// Returns the number of groups with members.
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Returns whether no group has members.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Adds all memberships to a forwarding table that was built from rules and links.
    pub fn rebuild(&mut self, fib: &mut Fib) {
        self.ids = (0..)
            .zip(fib.downstreams.iter())
            .map(|(id, d)| (d.index, id))
            .collect();
        self.oif_table = OifTable::default();
        self.interner = OifSetInterner::default();
        self.changed = self.groups.keys().copied().collect();
        self.apply_changes(fib);
    }

    /// Returns the forwarding table after the membership changes, or `None` if they do not change
    /// what is forwarded. `fib` is the last table that was passed to
    /// [`MembershipDatabase::rebuild`] or returned by this method.
    pub fn update(&mut self, fib: &Fib, generation: u64) -> Option<Fib> {
        let mut next = Fib {
            generation,
            ..fib.clone()
        };
        self.apply_changes(&mut next).then_some(next)
    }

    /// Updates the OIF table of `fib`. Returns whether it changed.
    fn apply_changes(&mut self, fib: &mut Fib) -> bool {
        let mut changed = false;
        for group in std::mem::take(&mut self.changed) {
            let new = self.interest(group, fib);
            // `new` acquired its sets before `old` releases them: shared sets keep their number.
            if self.oif_table.interest(group.addr()) == new.as_ref() {
                release(&mut self.interner, new.as_ref());
                continue;
            }
            let old = self.oif_table.replace(group.addr(), new);
            release(&mut self.interner, old.as_deref());
            changed = true;
        }
        self.oif_table.set_sets(self.interner.sets.clone());
        fib.oif_table = self.oif_table.clone();
        changed
    }

    /// Returns the interest in a group; `None` if no member's proxy accepts the group. Acquires the
    /// sets of the result.
    fn interest(&mut self, group: Group, fib: &Fib) -> Option<GroupInterest> {
        let mut group_oifs = Vec::new();
        let mut default_oifs = Vec::new();
        // Per source, the interfaces whose filter treats it differently from unnamed sources.
        let mut exceptions: BTreeMap<IpAddr, Vec<DownstreamId>> = BTreeMap::new();
        let mut members: Vec<_> = self
            .groups
            .get(&group)?
            .iter()
            .filter_map(|(index, filter)| Some((*self.ids.get(index)?, filter)))
            .filter(|(id, _)| fib.downstreams[*id as usize].proxy.accepts_group(group))
            .collect();
        members.sort_unstable_by_key(|(id, _)| *id);
        for (id, filter) in members {
            group_oifs.push(id);
            let sources = match filter {
                SourceFilter::Include(sources) => sources,
                SourceFilter::Exclude(sources) => {
                    default_oifs.push(id);
                    sources
                }
            };
            for source in sources {
                exceptions.entry(source.addr()).or_default().push(id);
            }
        }
        if group_oifs.is_empty() {
            return None;
        }
        let mut source_oifs = Vec::new();
        let by_source = exceptions.into_iter().map(|(source, exceptions)| {
            let missing_in =
                |set: &[DownstreamId], id: &DownstreamId| set.binary_search(id).is_err();
            let unchanged = default_oifs.iter().filter(|id| missing_in(&exceptions, id));
            let included = exceptions.iter().filter(|id| missing_in(&default_oifs, id));
            source_oifs.clear();
            source_oifs.extend(unchanged.chain(included));
            source_oifs.sort_unstable();
            (source, self.interner.acquire(&source_oifs))
        });
        let by_source = by_source.collect();
        Some(GroupInterest {
            group_oifs: self.interner.acquire(&group_oifs),
            default_oifs: self.interner.acquire(&default_oifs),
            by_source,
        })
    }
}

fn release(interner: &mut OifSetInterner, interest: Option<&GroupInterest>) {
    let sets = interest.into_iter().flat_map(GroupInterest::sets);
    sets.filter(|set| *set != EMPTY_SET)
        .for_each(|set| interner.release(set));
}
