//! Changes of single rules by commands. Changes that wait together are published once, and the cost
//! of a publication depends on what changed instead of on the number of rules.

use std::collections::BTreeSet;
use std::sync::Arc;

use actix::prelude::*;
use ahash::AHashSet;
use tracing::info;

use super::{Routing, warn_of_unselected};
use crate::actors::messages::{ApplyChange, Publish, UpdateJoins};
use crate::model::{IfPattern, JoinRule, RouteRule};
use crate::table::joins::{self, DesiredMemberships, Join};
use crate::table::rib_change::ChangedRule;
use crate::table::{FibDiff, Rib, RibError, RouteChange};

impl Handler<ApplyChange> for Routing {
    type Result = Result<String, RibError>;

    fn handle(
        &mut self,
        ApplyChange(change): ApplyChange,
        ctx: &mut Self::Context,
    ) -> Self::Result {
        let mut rib = Rib::clone(&self.rib);
        let frees_addresses = change.removes_egresses();
        let (changed, description) = change.apply(&mut rib)?;
        if frees_addresses {
            self.retry_refused();
        }
        self.rib = Arc::new(rib);
        self.context.rib.store(self.rib.clone());
        if self.unpublished.is_empty() {
            // The context polls this after the messages that wait in the mailbox.
            let publication = async {}.into_actor(self);
            ctx.spawn(publication.map(|(), actor, _| actor.publish_changes()));
        }
        self.unpublished.push(changed);
        info!("by command: {description}");
        Ok(description)
    }
}

impl Routing {
    /// Publishes the changes of rules that are not published yet.
    pub(super) fn publish_changes(&mut self) {
        let changes = std::mem::take(&mut self.unpublished);
        if !changes.is_empty() && !self.publish_changed_rules(&changes) {
            self.publish();
        }
    }

    /// Publishes changes of single rules. Returns false, without a publication, if they affect
    /// other rules, so that everything must be computed anew.
    fn publish_changed_rules(&mut self, changes: &[ChangedRule]) -> bool {
        let (Some(builder), Some(links)) = (self.builder.as_mut(), &self.links) else {
            return false;
        };
        let routes: Vec<&RouteChange> = changes.iter().filter_map(route_of).collect();
        let rules = || {
            routes
                .iter()
                .flat_map(|r| r.before().into_iter().chain(r.after()))
        };
        let translates = |rule: &RouteRule| rule.translation.is_some();
        // Memberships behind routes with a translation refer to the routes by position.
        let moves_others = self.rib.rules.has_translation()
            && routes.iter().any(|r| matches!(r, RouteChange::Removed(_)));
        // The container engine is followed while any rule has one of its names.
        let patterns: BTreeSet<&IfPattern> = changes.iter().flat_map(interface_patterns).collect();
        if moves_others || rules().any(translates) || patterns.iter().any(|p| p.is_engine_name()) {
            return false;
        }
        let (mut removed, mut added) = (AHashSet::new(), AHashSet::new());
        for change in changes {
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
                return false;
            }
            for path in route
                .before()
                .iter()
                .flat_map(|rule| builder.path_names(rule))
            {
                added.remove(&path);
                removed.insert(path);
            }
            for path in route
                .after()
                .iter()
                .flat_map(|rule| builder.path_names(rule))
            {
                removed.remove(&path);
                added.insert(path);
            }
        }
        let mut fib = builder.build(self.generation + 1);
        fib.oif_table = self.fib.oif_table.clone();
        let diff = FibDiff {
            old: self.fib.clone(),
            new: Arc::new(fib),
        };
        if diff.interfaces_changed() || diff.old.subnet_conflicts != diff.new.subnet_conflicts {
            return false;
        }
        for pattern in patterns {
            warn_of_unselected(pattern, (&self.rib, links), &mut self.warned_patterns);
        }
        if diff.routes_changed() {
            self.generation += 1;
            self.fib = diff.new.clone();
            self.context.catalog.routes.set(self.rib.rules.len() as i64);
            self.context.catalog.update_paths(&removed, &added);
            self.context.directory.do_send(Publish {
                fib: diff.new,
                names: None,
            });
        }
        self.update_fixed_joins(changes);
        true
    }

    /// Sends the memberships that changed with rules to the joins actor.
    fn update_fixed_joins(&mut self, changes: &[ChangedRule]) {
        let rules = joins::JoiningRules {
            joins: &self.rib.joins,
            routes: &self.rib.rules,
            proxies: &self.rib.proxies,
        };
        let mut memberships = DesiredMemberships::new();
        for (rule, is_new) in changes.iter().flat_map(changed_joins) {
            for link in self.up.matching(&rule.interface) {
                for group in rule.groups() {
                    let interface = link.index;
                    let join = Join { interface, group };
                    let filter = match is_new {
                        true => {
                            let former = self.fixed.get(&join).cloned().unwrap_or_default();
                            former.union(&joins::filter_of(&rule))
                        }
                        false => joins::fixed_filter(rules, join, &self.up),
                    };
                    match filter.is_none() {
                        true => self.fixed.remove(&join),
                        false => self.fixed.insert(join, filter.clone()),
                    };
                    memberships.insert(join, filter);
                }
            }
        }
        let groups: BTreeSet<_> = memberships.keys().map(|join| join.group).collect();
        for group in groups {
            memberships.extend(self.memberships_of_group(group));
        }
        if !memberships.is_empty() {
            self.context.directory.do_send(UpdateJoins(memberships));
        }
    }
}

fn route_of(change: &ChangedRule) -> Option<&RouteChange> {
    match change {
        ChangedRule::Route(route) => Some(route),
        ChangedRule::Joined(_) | ChangedRule::Left(_) => None,
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
