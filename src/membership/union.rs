//! What one proxy asks for upstream: the union of what its downstream interfaces want
//! (RFC 4605 section 4.1).

use std::collections::BTreeMap;

use crate::model::{Group, IfIndex, SourceFilter};

/// The membership database of one proxy.
#[derive(Debug, Default)]
pub struct MembershipUnion {
    wanted: BTreeMap<Group, BTreeMap<IfIndex, SourceFilter>>,
    /// With the union when the caller was last told.
    changed: BTreeMap<Group, SourceFilter>,
}

impl MembershipUnion {
    /// Nothing is wanted.
    pub fn new() -> Self {
        Self::default()
    }

    /// What one downstream interface wants of a group now; `Include` of none where nothing.
    pub fn set_filter(&mut self, downstream: IfIndex, group: Group, filter: SourceFilter) {
        if self.filter_of(downstream, group) == Some(&filter) {
            return;
        }
        self.will_change(group);
        let wanted = self.wanted.entry(group).or_default();
        if filter.is_none() {
            wanted.remove(&downstream);
        } else {
            wanted.insert(downstream, filter);
        }
        if wanted.is_empty() {
            self.wanted.remove(&group);
        }
    }

    /// The interface is no longer downstream: all it wanted is forgotten.
    pub fn remove_downstream(&mut self, downstream: IfIndex) {
        let of = |(group, wanted): (&Group, &BTreeMap<IfIndex, _>)| {
            wanted.contains_key(&downstream).then_some(*group)
        };
        let groups: Vec<Group> = self.wanted.iter().filter_map(of).collect();
        for group in groups {
            self.set_filter(downstream, group, SourceFilter::none());
        }
    }

    /// What one interface wants of a group; none where nothing.
    pub fn filter_of(&self, downstream: IfIndex, group: Group) -> Option<&SourceFilter> {
        self.wanted.get(&group)?.get(&downstream)
    }

    /// What all of them want of a group together.
    pub fn union(&self, group: Group) -> SourceFilter {
        let wanted = self.wanted.get(&group).into_iter().flatten();
        let all = wanted.map(|(_, filter)| filter);
        all.fold(SourceFilter::none(), |a, b| a.union(b))
    }

    /// Every group that is wanted, lowest first.
    pub fn groups(&self) -> impl Iterator<Item = Group> {
        self.wanted.keys().copied()
    }

    /// A group whose union has changed since it was last told, and what it is now.
    pub fn poll_change(&mut self) -> Option<(Group, SourceFilter)> {
        while let Some((group, before)) = self.changed.pop_first() {
            let union = self.union(group);
            if union != before {
                return Some((group, union));
            }
        }
        None
    }

    fn will_change(&mut self, group: Group) {
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

    fn index(n: u32) -> IfIndex {
        IfIndex::new(n + 1).unwrap()
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
        assert_eq!(upstream.poll_change(), None, "nothing changes upstream");
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
        /// Whatever is filter_of and forgotten: upstream has each source that some downstream
        /// wants and no other, and who follows the changes knows the unions.
        #[test]
        fn union_contains_the_sources_of_every_downstream(
            steps in proptest::collection::vec(
                (0u32..4, 0u8..3, proptest::option::weighted(0.9, filter()), any::<bool>()), 1..60),
        ) {
            let mut upstream = MembershipUnion::new();
            let mut wanted = BTreeMap::new();
            let mut told = BTreeMap::new();
            for (downstream, g, filter, poll) in steps {
                match filter {
                    Some(filter) => {
                        upstream.set_filter(index(downstream), group(g), filter.clone());
                        wanted.insert((downstream, g), filter);
                    }
                    None => {
                        upstream.remove_downstream(index(downstream));
                        wanted.retain(|(d, _), _| *d != downstream);
                    }
                }
                for g in 0..3 {
                    for s in (0..6).map(source) {
                        let any = wanted.iter().any(|((_, of), f)| *of == g && f.takes(s));
                        prop_assert_eq!(upstream.union(group(g)).takes(s), any);
                    }
                }
                while poll && let Some((group, filter)) = upstream.poll_change() {
                    prop_assert_ne!(told.get(&group), Some(&filter));
                    told.insert(group, filter);
                }
                for g in (0..3).filter(|_| poll) {
                    let known = told.get(&group(g)).cloned().unwrap_or_default();
                    prop_assert_eq!(known, upstream.union(group(g)));
                }
            }
        }
    }
}
