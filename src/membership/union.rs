//! The memberships that one proxy requests upstream: the union of the filters of its downstream
//! interfaces (RFC 4605 section 4.1).

use std::collections::BTreeMap;

use crate::model::{Group, InterfaceId, SourceFilter};

/// The filters of the downstream interfaces of one proxy, and their union per group.
#[derive(Debug, Default)]
pub struct MembershipUnion {
    filters: BTreeMap<Group, BTreeMap<InterfaceId, SourceFilter>>,
    /// Groups whose union may have changed, with the union that the caller knows.
    changed: BTreeMap<Group, SourceFilter>,
}

impl MembershipUnion {
    /// Creates a union without members.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the filter of a group on one downstream interface. The interface leaves the group if
    /// the filter is INCLUDE without sources.
    pub fn set_filter(&mut self, downstream: InterfaceId, group: Group, filter: SourceFilter) {
        if self.filter_of(downstream, group) == Some(&filter) {
            return;
        }
        self.remember_union(group);
        let filters = self.filters.entry(group).or_default();
        if filter.is_none() {
            filters.remove(&downstream);
        } else {
            filters.insert(downstream, filter);
        }
        if filters.is_empty() {
            self.filters.remove(&group);
        }
    }

    /// Removes every filter of an interface that is no longer downstream.
    pub fn remove_downstream(&mut self, downstream: InterfaceId) {
        let has_filter = |(group, filters): (&Group, &BTreeMap<InterfaceId, _>)| {
            filters.contains_key(&downstream).then_some(*group)
        };
        let groups: Vec<Group> = self.filters.iter().filter_map(has_filter).collect();
        for group in groups {
            self.set_filter(downstream, group, SourceFilter::none());
        }
    }

    /// Returns the filter of a group on one interface. None if the interface has no member.
    pub fn filter_of(&self, downstream: InterfaceId, group: Group) -> Option<&SourceFilter> {
        self.filters.get(&group)?.get(&downstream)
    }

    /// Returns the union of the filters of a group.
    pub fn union(&self, group: Group) -> SourceFilter {
        let filters = self.filters.get(&group).into_iter().flatten();
        let filters = filters.map(|(_, filter)| filter);
        filters.fold(SourceFilter::none(), |a, b| a.union(b))
    }

    /// Returns every group with a member, lowest address first.
    pub fn groups(&self) -> impl Iterator<Item = Group> {
        self.filters.keys().copied()
    }

    /// Returns a group whose union has changed since the last call for it, and the new union.
    /// None if there is no such group.
    pub fn poll_change(&mut self) -> Option<(Group, SourceFilter)> {
        while let Some((group, before)) = self.changed.pop_first() {
            let union = self.union(group);
            if union != before {
                return Some((group, union));
            }
        }
        None
    }

    /// Stores the union before the first change of the group, unless it is stored.
    fn remember_union(&mut self, group: Group) {
        if !self.changed.contains_key(&group) {
            let union = self.union(group);
            self.changed.insert(group, union);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Source;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn group(n: u8) -> Group {
        Group::new([239, 1, 1, n].into()).unwrap()
    }

    fn source(n: u8) -> Source {
        Source::new([10, 0, 0, n + 1].into()).unwrap()
    }

    fn index(n: u32) -> InterfaceId {
        InterfaceId::new(n + 1).unwrap()
    }

    fn include(sources: &[u8]) -> SourceFilter {
        SourceFilter::Include(sources.iter().map(|n| source(*n)).collect())
    }

    #[test]
    fn leave_on_one_downstream_keeps_the_other() {
        let mut upstream = MembershipUnion::new();
        upstream.set_filter(index(0), group(1), SourceFilter::any());
        upstream.set_filter(index(1), group(1), SourceFilter::any());
        let all = Some((group(1), SourceFilter::any()));
        assert_eq!(upstream.poll_change(), all);
        upstream.set_filter(index(0), group(1), SourceFilter::none());
        assert_eq!(upstream.poll_change(), None, "the union does not change");
        assert_eq!(upstream.union(group(1)), SourceFilter::any());
        upstream.remove_downstream(index(1));
        let none = Some((group(1), SourceFilter::none()));
        assert_eq!(upstream.poll_change(), none);
        assert_eq!(upstream.groups().count(), 0);
    }

    #[test]
    fn changes_between_polls_are_merged() {
        let mut upstream = MembershipUnion::new();
        upstream.set_filter(index(0), group(1), include(&[1]));
        upstream.set_filter(index(1), group(1), include(&[2]));
        let both = Some((group(1), include(&[1, 2])));
        assert_eq!(upstream.poll_change(), both);
        upstream.set_filter(index(0), group(1), include(&[]));
        upstream.set_filter(index(0), group(1), include(&[1]));
        assert_eq!(upstream.poll_change(), None);
    }

    fn filter() -> impl Strategy<Value = SourceFilter> {
        let sources = proptest::collection::btree_set(0u8..5, 0..4);
        (any::<bool>(), sources).prop_map(|(is_include, sources)| {
            let sources: BTreeSet<_> = sources.into_iter().map(source).collect();
            match is_include {
                true => SourceFilter::Include(sources),
                false => SourceFilter::Exclude(sources),
            }
        })
    }

    proptest! {
        /// For every sequence of changes, the union contains each source that some downstream
        /// interface requests, and no other. The polled changes add up to the unions.
        #[test]
        fn union_contains_the_sources_of_every_downstream(
            steps in proptest::collection::vec(
                (0u32..4, 0u8..3, proptest::option::weighted(0.9, filter()), any::<bool>()), 1..60),
        ) {
            let mut upstream = MembershipUnion::new();
            let mut requested = BTreeMap::new();
            let mut polled = BTreeMap::new();
            for (downstream, g, filter, poll) in steps {
                match filter {
                    Some(filter) => {
                        upstream.set_filter(index(downstream), group(g), filter.clone());
                        requested.insert((downstream, g), filter);
                    }
                    None => {
                        upstream.remove_downstream(index(downstream));
                        requested.retain(|(d, _), _| *d != downstream);
                    }
                }
                for g in 0..3 {
                    for s in (0..6).map(source) {
                        let any = requested.iter().any(|((_, of_group), f)| *of_group == g && f.accepts(s));
                        prop_assert_eq!(upstream.union(group(g)).accepts(s), any);
                    }
                }
                while poll && let Some((group, filter)) = upstream.poll_change() {
                    prop_assert_ne!(polled.get(&group), Some(&filter));
                    polled.insert(group, filter);
                }
                for g in (0..3).filter(|_| poll) {
                    let known = polled.get(&group(g)).cloned().unwrap_or_default();
                    prop_assert_eq!(known, upstream.union(group(g)));
                }
            }
        }
    }
}
