//! Routes of MNAT mappings. They exist beside the routes of operators (settings and commands),
//! which take precedence: an MNAT route that conflicts with one of them is refused.

use std::collections::{HashMap, HashSet};

use super::rib::Rib;
use super::route_conflicts::{refuse_loops, refuse_merges};
use crate::model::translation_conflicts::proxy_routes;
use crate::model::{GroupPrefix, JoinRule, Origin, RouteName, RouteRule, SourcePrefix};

/// A change of the MNAT routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MnatRouteChange {
    /// Adds a route and its join, or replaces the MNAT route with the same source and group. The
    /// origin of both is [`Origin::Mnat`].
    Install(Box<RouteRule>, Option<JoinRule>),
    /// Removes routes and their joins.
    Withdraw {
        /// The source; `None` removes all routes of the group.
        source: Option<SourcePrefix>,
        /// The group.
        group: GroupPrefix,
    },
}

type RouteKey = (SourcePrefix, GroupPrefix);

/// An MNAT route that conflicts with a route of an operator, and the reason as a text.
pub type RefusedMnatRoute = (RouteName, String);

/// Applies changes to the MNAT routes. Returns the refused routes.
pub fn update_mnat_routes(rib: &mut Rib, changes: Vec<MnatRouteChange>) -> Vec<RefusedMnatRoute> {
    let mut checker = OperatorRoutes::new(rib);
    let mut positions: HashMap<RouteKey, usize> = HashMap::new();
    for (at, rule) in rib.rules.iter().enumerate() {
        if is_mnat_route(rule) {
            positions.insert((rule.source, rule.group), at);
        }
    }
    let mut refused = Vec::new();
    let mut removed = Vec::new();
    for change in changes {
        match change {
            MnatRouteChange::Install(rule, join) => {
                let key = (rule.source, rule.group);
                if let Some(reason) = checker.conflict(&rule) {
                    refused.push((rule.name, reason));
                    // The mapping of the previous route does not exist any more.
                    if positions.contains_key(&key) {
                        remove_joins(rib, rule.group);
                        removed.extend(positions.remove(&key));
                    }
                    continue;
                }
                remove_joins(rib, rule.group);
                rib.joins.extend(join);
                match positions.get(&key) {
                    Some(at) => {
                        rib.rules.set(*at, *rule);
                    }
                    None => {
                        positions.insert(key, rib.rules.len());
                        rib.rules.push(*rule);
                    }
                }
            }
            MnatRouteChange::Withdraw { source, group } => {
                let keys: Vec<RouteKey> = match source {
                    Some(source) => vec![(source, group)],
                    None => positions.keys().filter(|k| k.1 == group).copied().collect(),
                };
                for key in keys {
                    remove_joins(rib, group);
                    removed.extend(positions.remove(&key));
                }
            }
        }
    }
    if !removed.is_empty() {
        let removed: HashSet<usize> = removed.into_iter().collect();
        rib.rules.retain(|at, _| !removed.contains(&at));
    }
    refused
}

/// Removes all MNAT routes and applies the changes. Returns the refused routes.
pub fn replace_mnat_routes(rib: &mut Rib, changes: Vec<MnatRouteChange>) -> Vec<RefusedMnatRoute> {
    rib.rules.retain(|_, rule| !is_mnat_route(rule));
    rib.joins.retain(|join| join.origin != Origin::Mnat);
    update_mnat_routes(rib, changes)
}

/// Replaces the MNAT routes of `rib` with those of `previous`, for example after a reload. Returns
/// the refused routes.
pub fn keep_mnat_routes(rib: &mut Rib, previous: &Rib) -> Vec<RefusedMnatRoute> {
    let joins = previous.joins.iter();
    let joins: Vec<&JoinRule> = joins.filter(|j| j.origin == Origin::Mnat).collect();
    let install = |rule: &RouteRule| {
        let join = joins.iter().find(|j| j.group == rule.group);
        MnatRouteChange::Install(Box::new(rule.clone()), join.map(|j| (*j).clone()))
    };
    let rules = previous.rules.iter().filter(|r| is_mnat_route(r));
    let changes = rules.map(install).collect();
    replace_mnat_routes(rib, changes)
}

/// Removes the MNAT joins of a group. Only one MNAT route of a group has a join.
fn remove_joins(rib: &mut Rib, group: GroupPrefix) {
    let is_removed = |j: &JoinRule| j.origin == Origin::Mnat && j.group == group;
    if rib.joins.iter().any(is_removed) {
        rib.joins.retain(|j| !is_removed(j));
    }
}

/// The routes of operators, against which MNAT routes are checked.
struct OperatorRoutes {
    rules: Vec<RouteRule>,
    /// `rules` and the routes of [`proxy_routes`].
    with_proxies: Vec<RouteRule>,
}

impl OperatorRoutes {
    fn new(rib: &Rib) -> Self {
        let rules = rib.rules.iter().filter(|r| !is_mnat_route(r));
        let rules: Vec<RouteRule> = rules.cloned().collect();
        let mut with_proxies = rules.clone();
        with_proxies.extend(proxy_routes(&rib.proxies));
        Self {
            rules,
            with_proxies,
        }
    }

    /// Returns why an MNAT route conflicts with these routes, if it does. `self` is only changed
    /// during the call, to avoid a copy.
    fn conflict(&mut self, rule: &RouteRule) -> Option<String> {
        if let Some(other) = self.rules.iter().find(|r| r.is_ambiguous_with(rule)) {
            return Some(format!("route \"{}\" matches the same packets", other.name));
        }
        self.rules.push(rule.clone());
        let merges = refuse_merges(&self.rules, self.rules.len() - 1);
        self.rules.pop();
        self.with_proxies.push(rule.clone());
        let loops = refuse_loops(&self.with_proxies, self.with_proxies.len() - 1);
        self.with_proxies.pop();
        merges.and(loops).err().map(|e| e.to_string())
    }
}

fn is_mnat_route(rule: &RouteRule) -> bool {
    rule.origin == Origin::Mnat
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TranslationRule;

    fn rule(source: &str, group: &str, origin: Origin) -> RouteRule {
        let to = vec!["eth1".parse().unwrap()];
        RouteRule {
            name: RouteName::new(format!("{source} {group}")),
            source: source.parse().unwrap(),
            origin,
            ..RouteRule::new("eth0".parse().unwrap(), group.parse().unwrap(), to)
        }
    }

    fn install(source: &str, group: &str) -> MnatRouteChange {
        MnatRouteChange::Install(Box::new(rule(source, group, Origin::Mnat)), None)
    }

    fn withdraw(source: Option<&str>, group: &str) -> MnatRouteChange {
        MnatRouteChange::Withdraw {
            source: source.map(|s| s.parse().unwrap()),
            group: group.parse().unwrap(),
        }
    }

    fn names(rib: &Rib) -> Vec<&str> {
        rib.rules.iter().map(|r| r.name.as_str()).collect()
    }

    fn translating(from: (&str, &str), to: (&str, &str), origin: Origin) -> RouteRule {
        let mut rule = rule(from.0, from.1, origin);
        let replacement = (Some(to.0.parse().unwrap()), Some(to.1.parse().unwrap()));
        let translation = TranslationRule::new((rule.source, rule.group), replacement, None, false);
        rule.translation = Some(translation.unwrap());
        rule
    }

    #[test]
    fn mnat_routes_that_merge_with_configured_routes_are_refused() {
        let (a, b) = (("10.0.0.1", "232.1.1.1"), ("10.0.0.2", "232.1.1.2"));
        let out = ("10.9.9.9", "239.1.1.1");
        let mut rib = Rib {
            rules: vec![translating(a, out, Origin::Settings)].into(),
            ..Rib::default()
        };
        let install =
            |to| MnatRouteChange::Install(Box::new(translating(b, to, Origin::Mnat)), None);
        let refused = update_mnat_routes(&mut rib, vec![install(out)]);
        assert_eq!(refused.len(), 1);
        assert!(refused[0].1.contains("10.0.0.1 232.1.1.1"), "{refused:?}");
        assert_eq!(rib.rules.len(), 1);
        let other = ("10.9.9.9", "239.1.1.2");
        assert_eq!(update_mnat_routes(&mut rib, vec![install(other)]), []);
        assert_eq!(rib.rules.len(), 2);
        // The server replaces the previous route, so that one is removed although the new one is
        // refused.
        assert_eq!(update_mnat_routes(&mut rib, vec![install(out)]).len(), 1);
        assert_eq!(names(&rib), ["10.0.0.1 232.1.1.1"]);
        // Two mappings may map two local channels to one global channel.
        let mut rib = Rib::default();
        let both = [a, b].map(|from| translating(from, out, Origin::Mnat));
        let both = both.map(|rule| MnatRouteChange::Install(Box::new(rule), None));
        assert_eq!(update_mnat_routes(&mut rib, both.into()), []);
        assert_eq!(rib.rules.len(), 2);
    }

    #[test]
    fn add_is_fast_beside_ten_thousand_mnat_routes() {
        let mapping = |n: u32| {
            let (from, to) = (
                format!("10.{}.{}.1", n / 256, n % 256),
                format!("11.{}.{}.1", n / 256, n % 256),
            );
            let rule = translating((&from, "232.1.1.1"), (&to, "239.1.1.1"), Origin::Mnat);
            MnatRouteChange::Install(Box::new(rule), None)
        };
        let mut rib = Rib::default();
        update_mnat_routes(&mut rib, (0..10_000).map(mapping).collect());
        for (from, to) in [("eth0", "eth1"), ("eth2", "eth3")] {
            let mut added = rule("12.0.0.1", "232.9.9.9", Origin::Command);
            added.from = from.parse().unwrap();
            added.to = vec![to.parse().unwrap()];
            let start = std::time::Instant::now();
            rib.add(added).unwrap();
            let duration = start.elapsed();
            println!("add {from} beside {} routes: {duration:?}", rib.rules.len());
            // A generous limit: this is an unoptimised build, and the machine may be busy.
            assert!(duration < std::time::Duration::from_secs(2), "{duration:?}");
        }
    }

    #[test]
    fn change_affects_only_its_own_mnat_route() {
        let mut rib = Rib {
            rules: vec![rule("10.0.0.1", "232.1.1.1", Origin::Settings)].into(),
            ..Rib::default()
        };
        let refused = update_mnat_routes(
            &mut rib,
            vec![
                install("10.0.0.1", "232.1.1.1"),
                install("10.0.0.2", "232.1.1.1"),
                install("10.0.0.3", "232.1.1.1"),
            ],
        );
        assert_eq!(refused.len(), 1);
        assert_eq!(rib.rules.len(), 3);
        let before = rib.rules.clone();
        let mut other = rule("10.0.0.2", "232.1.1.1", Origin::Mnat);
        other.name = RouteName::new("other");
        update_mnat_routes(
            &mut rib,
            vec![MnatRouteChange::Install(Box::new(other), None)],
        );
        let changed = before.iter().zip(rib.rules.iter()).filter(|(a, b)| a != b);
        assert_eq!(changed.count(), 1);
        update_mnat_routes(&mut rib, vec![withdraw(Some("10.0.0.2"), "232.1.1.1")]);
        assert_eq!(names(&rib), ["10.0.0.1 232.1.1.1", "10.0.0.3 232.1.1.1"]);
        // A reload keeps the MNAT routes, which the settings do not contain.
        let mut reloaded = Rib::default();
        assert!(keep_mnat_routes(&mut reloaded, &rib).is_empty());
        assert_eq!(names(&reloaded), ["10.0.0.3 232.1.1.1"]);
        replace_mnat_routes(&mut rib, vec![]);
        assert_eq!(names(&rib), ["10.0.0.1 232.1.1.1"]);
        update_mnat_routes(&mut rib, vec![withdraw(None, "232.1.1.1")]);
        assert_eq!(names(&rib), ["10.0.0.1 232.1.1.1"]);
    }

    #[test]
    fn only_mnat_joins_of_the_group_are_removed() {
        let join = |group: &str, origin| JoinRule {
            interface: "eth0".parse().unwrap(),
            source: None,
            group: group.parse().unwrap(),
            origin,
        };
        let kept = [
            join("225.1.2.3", Origin::Settings),
            join("225.1.2.4", Origin::Mnat),
        ];
        let mut rib = Rib::default();
        rib.joins.push(join("225.1.2.3", Origin::Mnat));
        rib.joins.extend(kept.clone());
        remove_joins(&mut rib, "225.1.2.3".parse().unwrap());
        assert_eq!(rib.joins, kept);
    }
}
