//! Changes of single rules by commands. Changes that wait together are published once, and the cost
//! of a publication depends on what changed instead of on the number of rules.

use std::collections::BTreeSet;

use ahash::AHashSet;

use crate::model::{IfName, IfPattern, JoinRule, Links, RouteName, RouteRule};
use crate::table::joins::{self, DesiredMemberships, Join, JoiningRules};
use crate::table::rib_change::ChangedRule;
use crate::table::{FibBuilder, Rib, RouteChange};

/// Changes of rules, in the order of the commands.
#[derive(Default)]
pub(super) struct RuleChanges(Vec<ChangedRule>);

/// The route, ingress and egress of paths.
type PathNames = AHashSet<(RouteName, IfName, IfName)>;

/// The paths that changes of rules remove and add.
#[derive(Default)]
pub(super) struct ChangedPaths {
    pub(super) removed: PathNames,
    pub(super) added: PathNames,
}

impl RuleChanges {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn push(&mut self, change: ChangedRule) {
        self.0.push(change);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    fn routes(&self) -> impl Iterator<Item = &RouteChange> {
        self.0.iter().filter_map(|change| match change {
            ChangedRule::Route(route) => Some(route),
            ChangedRule::Joined(_) | ChangedRule::Left(_) => None,
        })
    }

    /// Returns the names and patterns of interfaces in the changed rules.
    pub(super) fn interface_patterns(&self) -> BTreeSet<&IfPattern> {
        self.0.iter().flat_map(interface_patterns).collect()
    }

    /// Returns whether the changes may affect other rules, so that everything must be computed
    /// anew. `rib` has the rules after the changes.
    pub(super) fn affect_others(&self, rib: &Rib) -> bool {
        let mut rules = self
            .routes()
            .flat_map(|r| r.before().into_iter().chain(r.after()));
        let mut routes = self.routes();
        // Memberships behind routes with a translation refer to the routes by position.
        let moves_others =
            rib.rules.has_translation() && routes.any(|r| matches!(r, RouteChange::Removed(_)));
        // The container engine is followed while any rule has one of its names.
        let has_engine_name = || self.interface_patterns().iter().any(|p| p.is_engine_name());
        moves_others || rules.any(|rule| rule.translation.is_some()) || has_engine_name()
    }

    /// Applies the changes to the builder of the forwarding table. Returns `None` if they affect
    /// other rules; the caller must then discard the builder.
    pub(super) fn apply(&self, builder: &mut FibBuilder) -> Option<ChangedPaths> {
        let mut paths = ChangedPaths::default();
        for change in &self.0 {
            let route = match change {
                ChangedRule::Route(route) => route,
                ChangedRule::Joined(join) => {
                    builder.add_join(join);
                    continue;
                }
                ChangedRule::Left(join) => {
                    builder.remove_join(join);
                    continue;
                }
            };
            if !builder.apply(route) {
                return None;
            }
            let names =
                |rule: Option<&RouteRule>| rule.map_or_else(Vec::new, |r| builder.path_names(r));
            for path in names(route.before()) {
                paths.added.remove(&path);
                paths.removed.insert(path);
            }
            for path in names(route.after()) {
                paths.removed.remove(&path);
                paths.added.insert(path);
            }
        }
        Some(paths)
    }

    /// Updates the memberships that joins and routes require on the links that are `up`. `rules`
    /// has the rules after the changes. Returns the changed memberships.
    pub(super) fn update_memberships(
        &self,
        rules: JoiningRules,
        fixed: &mut DesiredMemberships,
        up: &Links,
    ) -> DesiredMemberships {
        let mut changed = DesiredMemberships::new();
        for (rule, is_new) in self.0.iter().flat_map(changed_joins) {
            for link in up.matching(&rule.interface) {
                for group in rule.groups() {
                    let interface = link.index;
                    let join = Join { interface, group };
                    let filter = match is_new {
                        true => {
                            let former = fixed.get(&join).cloned().unwrap_or_default();
                            former.union(&joins::filter_of(&rule))
                        }
                        false => joins::fixed_filter(rules, join, up),
                    };
                    match filter.is_none() {
                        true => fixed.remove(&join),
                        false => fixed.insert(join, filter.clone()),
                    };
                    changed.insert(join, filter);
                }
            }
        }
        changed
    }
}

/// Returns the names and patterns of interfaces in a changed rule.
fn interface_patterns(change: &ChangedRule) -> Vec<&IfPattern> {
    match change {
        ChangedRule::Joined(join) | ChangedRule::Left(join) => vec![&join.interface],
        ChangedRule::Route(route) => {
            let rules = route.before().into_iter().chain(route.after());
            rules.flat_map(RouteRule::interface_patterns).collect()
        }
    }
}

/// Returns the joins that a changed rule adds or removes, and whether they are only added.
fn changed_joins(change: &ChangedRule) -> Vec<(JoinRule, bool)> {
    let implied = |rule: Option<&RouteRule>| rule.and_then(RouteRule::implied_join);
    match change {
        ChangedRule::Joined(join) => vec![(join.clone(), true)],
        ChangedRule::Left(join) => vec![(join.clone(), false)],
        ChangedRule::Route(RouteChange::Added(rule)) => {
            let join = rule.implied_join();
            join.into_iter().map(|join| (join, true)).collect()
        }
        ChangedRule::Route(route) => {
            let (before, after) = (implied(route.before()), implied(route.after()));
            let is_same = before == after;
            let joins = before.into_iter().chain(after).filter(|_| !is_same);
            joins.map(|join| (join, false)).collect()
        }
    }
}
