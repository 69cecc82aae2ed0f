//! The routes of the RIB, in order, with an index by the streams that they match.

use std::ops::Index;
use std::sync::Arc;

use super::shared_map::SharedMap;
use super::shared_vec::SharedVec;
use crate::model::{GroupPrefix, IfPattern, RouteName, RouteRule, SourcePrefix};

/// The routes, in the configured order. A clone shares everything. The cost of an addition depends
/// little on their number.
#[derive(Debug, Clone, Default)]
pub struct RouteRules {
    rules: SharedVec<Arc<RouteRule>>,
    by_streams: SharedMap<(SourcePrefix, GroupPrefix), Vec<Arc<RouteRule>>>,
    /// Number of routes with a translation.
    translating: usize,
}

/// A change of one route.
#[derive(Debug, Clone, PartialEq)]
pub enum RouteChange {
    /// A new route, after all others.
    Added(Arc<RouteRule>),
    /// A route with another list of egresses.
    Replaced {
        /// The former route.
        before: Arc<RouteRule>,
        /// The route in its place.
        after: Arc<RouteRule>,
    },
    /// A former route.
    Removed(Arc<RouteRule>),
}

impl RouteChange {
    /// Returns the route before the change; `None` if it is new.
    pub fn before(&self) -> Option<&RouteRule> {
        match self {
            Self::Added(_) => None,
            Self::Replaced { before, .. } | Self::Removed(before) => Some(before),
        }
    }

    /// Returns the route after the change; `None` if it was removed.
    pub fn after(&self) -> Option<&RouteRule> {
        match self {
            Self::Removed(_) => None,
            Self::Added(after) | Self::Replaced { after, .. } => Some(after),
        }
    }

    /// Returns the name of the route.
    pub fn name(&self) -> &RouteName {
        match self {
            Self::Added(rule) | Self::Removed(rule) | Self::Replaced { after: rule, .. } => {
                &rule.name
            }
        }
    }
}

impl RouteRules {
    /// Returns the number of routes.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Returns whether there are no routes.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Returns the route at a position.
    pub fn get(&self, position: usize) -> Option<&RouteRule> {
        self.rules.get(position).map(Arc::as_ref)
    }

    /// Returns all routes in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &RouteRule> + Clone {
        self.rules.iter().map(Arc::as_ref)
    }

    /// Returns whether any route has a translation.
    pub fn has_translation(&self) -> bool {
        self.translating > 0
    }

    /// Returns the routes with this source and group, whatever their ingress.
    pub fn with_streams(
        &self,
        source: SourcePrefix,
        group: GroupPrefix,
    ) -> impl Iterator<Item = &RouteRule> {
        self.shared_with_streams(source, group).map(Arc::as_ref)
    }

    /// Returns the route with this ingress, source and group.
    pub fn find(
        &self,
        from: &IfPattern,
        source: SourcePrefix,
        group: GroupPrefix,
    ) -> Option<&Arc<RouteRule>> {
        let mut rules = self.shared_with_streams(source, group);
        rules.find(|rule| rule.from == *from)
    }

    fn shared_with_streams(
        &self,
        source: SourcePrefix,
        group: GroupPrefix,
    ) -> impl Iterator<Item = &Arc<RouteRule>> {
        self.by_streams.get(&(source, group)).into_iter().flatten()
    }

    /// Returns the position of `rule`; `None` if it is not one of these routes.
    pub fn position(&self, rule: &Arc<RouteRule>) -> Option<usize> {
        self.rules.iter().position(|other| Arc::ptr_eq(other, rule))
    }

    /// Appends a route.
    pub fn push(&mut self, rule: RouteRule) -> RouteChange {
        let rule = Arc::new(rule);
        self.insert_into_index(&rule);
        self.rules.push(rule.clone());
        RouteChange::Added(rule)
    }

    /// Replaces the route at a position. Returns `None` if there is no route there.
    pub fn set(&mut self, position: usize, rule: RouteRule) -> Option<RouteChange> {
        let before = self.rules.get(position)?.clone();
        let after = Arc::new(rule);
        self.remove_from_index(&before);
        self.insert_into_index(&after);
        self.rules.set(position, after.clone());
        Some(RouteChange::Replaced { before, after })
    }

    /// Removes the route at a position. Returns `None` if there is no route there.
    pub fn remove(&mut self, position: usize) -> Option<RouteChange> {
        let removed = self.rules.get(position)?.clone();
        self.remove_from_index(&removed);
        self.rules.remove(position);
        Some(RouteChange::Removed(removed))
    }

    /// Removes all routes for which `keeps`, called with the position and the route, returns false.
    pub fn retain(&mut self, mut keeps: impl FnMut(usize, &RouteRule) -> bool) {
        let mut kept = Vec::with_capacity(self.len());
        let mut removed = Vec::new();
        for (position, rule) in self.rules.iter().enumerate() {
            match keeps(position, rule) {
                true => kept.push(rule.clone()),
                false => removed.push(rule.clone()),
            }
        }
        if !removed.is_empty() {
            self.rules = kept.into();
            removed.iter().for_each(|rule| self.remove_from_index(rule));
        }
    }

    fn insert_into_index(&mut self, rule: &Arc<RouteRule>) {
        self.translating += usize::from(rule.translation.is_some());
        let key = (rule.source, rule.group);
        let mut rules = self.by_streams.get(&key).cloned().unwrap_or_default();
        rules.push(rule.clone());
        self.by_streams.replace(key, Some(rules));
    }

    fn remove_from_index(&mut self, rule: &Arc<RouteRule>) {
        self.translating -= usize::from(rule.translation.is_some());
        let key = (rule.source, rule.group);
        let mut rules = self.by_streams.get(&key).cloned().unwrap_or_default();
        rules.retain(|other| !Arc::ptr_eq(other, rule));
        let rules = (!rules.is_empty()).then_some(rules);
        self.by_streams.replace(key, rules);
    }
}

impl PartialEq for RouteRules {
    fn eq(&self, other: &Self) -> bool {
        self.rules.ptr_eq(&other.rules) || self.iter().eq(other.iter())
    }
}

impl FromIterator<RouteRule> for RouteRules {
    fn from_iter<I: IntoIterator<Item = RouteRule>>(rules: I) -> Self {
        let mut all = Self::default();
        for rule in rules {
            all.push(rule);
        }
        all
    }
}

impl From<Vec<RouteRule>> for RouteRules {
    fn from(rules: Vec<RouteRule>) -> Self {
        rules.into_iter().collect()
    }
}

impl Index<usize> for RouteRules {
    type Output = RouteRule;

    fn index(&self, position: usize) -> &RouteRule {
        &self.rules[position]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(from: u8, group: u8, to: u8) -> RouteRule {
        let pattern = |name: String| name.parse::<IfPattern>().unwrap();
        let group = format!("225.0.0.{group}").parse().unwrap();
        let to = vec![pattern(format!("out{to}"))];
        RouteRule::new(pattern(format!("in{from}")), group, to)
    }

    #[test]
    fn emptiness_follows_the_number_of_routes() {
        let mut rules = RouteRules::default();
        assert!(rules.is_empty());
        rules.push(rule(1, 1, 1));
        assert!(!rules.is_empty());
    }

    proptest! {
        #[test]
        fn index_equals_a_search_in_all_routes(
            steps in prop::collection::vec((0u8..5, 0u8..3, 0u8..6, any::<prop::sample::Index>()), 1..100),
        ) {
            let mut rules = RouteRules::default();
            let mut model: Vec<RouteRule> = Vec::new();
            for (operation, from, group, at) in steps {
                let new = rule(from, group, operation);
                match operation {
                    0..=2 => {
                        rules.push(new.clone());
                        model.push(new);
                    }
                    _ if model.is_empty() => {}
                    3 => {
                        let at = at.index(model.len());
                        rules.set(at, new.clone());
                        model[at] = new;
                    }
                    _ => {
                        let at = at.index(model.len());
                        rules.remove(at);
                        model.remove(at);
                    }
                }
                if from == 0 && operation == 2 {
                    rules.retain(|_, rule| rule.group != model[0].group);
                    let group = model[0].group;
                    model.retain(|rule| rule.group != group);
                }
            }
            prop_assert!(rules.iter().eq(&model));
            for (from, group) in (0..3).flat_map(|from| (0..6).map(move |group| (from, group))) {
                let key = rule(from, group, 0);
                let found = rules.with_streams(key.source, key.group).count();
                prop_assert_eq!(found, model.iter().filter(|r| r.group == key.group).count());
                let found = rules.find(&key.from, key.source, key.group);
                let is_same = |r: &RouteRule| r.from == key.from && r.group == key.group;
                prop_assert_eq!(found.is_some(), model.iter().any(is_same));
                if let Some(found) = found {
                    let at = rules.position(found).unwrap();
                    prop_assert!(is_same(&model[at]));
                }
            }
        }
    }
}
