//! Routes that mappings made: kept beside those of operators, and never in their way.

use std::collections::HashMap;

use super::rib::{Rib, refuse_cycles, refuse_merges};
use crate::model::translation_conflicts::proxy_ways;
use crate::model::{GroupPrefix, JoinRule, Origin, RouteName, RouteRule, SourcePrefix};

/// A change of the mapped routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MnatRouteChange {
    /// This route from now on, in place of the one of the same interface, source and group.
    /// Its origin is [`Origin::Mnat`], and that of its join too.
    Install(Box<RouteRule>, Option<JoinRule>),
    /// None any more.
    Withdraw {
        /// From whom; `None` withdraws all of the group.
        source: Option<SourcePrefix>,
        /// To whom.
        group: GroupPrefix,
    },
}

type Key = (SourcePrefix, GroupPrefix);

impl Rib {
    /// Carries out changes of mapped routes. `whole`: those that are not installed by them are
    /// gone. Routes that are in the way of a route of an operator are left out: their names are
    /// returned, and why.
    pub fn map(&mut self, whole: bool, changes: Vec<MnatRouteChange>) -> Vec<(RouteName, String)> {
        if whole {
            self.forget_mapped();
        }
        let mut operators = Operators::of(self);
        let mut places: HashMap<Key, usize> = HashMap::new();
        for (at, rule) in self.rules.iter().enumerate().filter(|(_, r)| mapped(r)) {
            places.insert((rule.source, rule.group), at);
        }
        let mut refused = Vec::new();
        let mut gone = Vec::new();
        for change in changes {
            match change {
                MnatRouteChange::Install(rule, join) => {
                    let key = (rule.source, rule.group);
                    if let Some(why) = operators.refuse(&rule) {
                        refused.push((rule.name, why));
                        // What it was to take the place of is no longer true either.
                        if places.contains_key(&key) {
                            self.leave_mapped(rule.group);
                            gone.extend(places.remove(&key));
                        }
                        continue;
                    }
                    self.leave_mapped(rule.group);
                    self.joins.extend(join);
                    match places.get(&key) {
                        Some(at) => self.rules[*at] = *rule,
                        None => {
                            places.insert(key, self.rules.len());
                            self.rules.push(*rule);
                        }
                    }
                }
                MnatRouteChange::Withdraw { source, group } => {
                    let keys: Vec<Key> = match source {
                        Some(source) => vec![(source, group)],
                        None => places.keys().filter(|k| k.1 == group).copied().collect(),
                    };
                    for key in keys {
                        self.leave_mapped(group);
                        gone.extend(places.remove(&key));
                    }
                }
            }
        }
        // From the end, so that places before stay what they are.
        gone.sort_unstable();
        gone.into_iter()
            .rev()
            .for_each(|at| drop(self.rules.remove(at)));
        refused
    }

    /// The mapped joins of a group are those of its one route.
    fn leave_mapped(&mut self, group: GroupPrefix) {
        let ours = |j: &JoinRule| j.origin == Origin::Mnat && j.group == group;
        if self.joins.iter().any(ours) {
            self.joins.retain(|j| !ours(j));
        }
    }

    fn forget_mapped(&mut self) {
        self.rules.retain(|rule| !mapped(rule));
        self.joins.retain(|join| join.origin != Origin::Mnat);
    }

    /// Takes over the mapped routes of the rules that were in force before, as after a reload.
    pub fn keep_mapped(&mut self, before: &Rib) -> Vec<(RouteName, String)> {
        let rules = before.rules.iter().filter(|r| mapped(r));
        let joins: Vec<&JoinRule> = before
            .joins
            .iter()
            .filter(|j| j.origin == Origin::Mnat)
            .collect();
        let install = |rule: &RouteRule| {
            let join = joins.iter().find(|j| j.group == rule.group);
            MnatRouteChange::Install(Box::new(rule.clone()), join.map(|j| (*j).clone()))
        };
        let all = rules.map(install).collect();
        self.map(true, all)
    }
}

/// What mapped routes must not be in the way of.
struct Operators {
    rules: Vec<RouteRule>,
    /// The same, and the ways of proxies.
    ways: Vec<RouteRule>,
}

impl Operators {
    fn of(rib: &Rib) -> Self {
        let rules: Vec<RouteRule> = rib.rules.iter().filter(|r| !mapped(r)).cloned().collect();
        let mut ways = rules.clone();
        ways.extend(proxy_ways(&rib.proxies));
        Self { rules, ways }
    }

    /// Why a mapped route cannot be beside them. They are as before afterwards.
    fn refuse(&mut self, rule: &RouteRule) -> Option<String> {
        if let Some(other) = self.rules.iter().find(|r| r.rivals(rule)) {
            return Some(format!("route \"{}\" takes the same packets", other.name));
        }
        self.rules.push(rule.clone());
        let merges = refuse_merges(&self.rules, self.rules.len() - 1);
        self.rules.pop();
        self.ways.push(rule.clone());
        let cycles = refuse_cycles(&self.ways, self.ways.len() - 1);
        self.ways.pop();
        merges.and(cycles).err().map(|e| e.to_string())
    }
}

fn mapped(rule: &RouteRule) -> bool {
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

    fn rewriting(from: (&str, &str), to: (&str, &str), origin: Origin) -> RouteRule {
        let mut rule = rule(from.0, from.1, origin);
        let becomes = (Some(to.0.parse().unwrap()), Some(to.1.parse().unwrap()));
        let translation = TranslationRule::new((rule.source, rule.group), becomes, None, false);
        rule.translation = Some(translation.unwrap());
        rule
    }

    #[test]
    fn mappings_that_merge_with_a_route_of_an_operator_are_left_out() {
        let (a, b) = (("10.0.0.1", "232.1.1.1"), ("10.0.0.2", "232.1.1.2"));
        let out = ("10.9.9.9", "239.1.1.1");
        let mut rib = Rib {
            rules: vec![rewriting(a, out, Origin::Settings)],
            ..Rib::default()
        };
        let install = |to| MnatRouteChange::Install(Box::new(rewriting(b, to, Origin::Mnat)), None);
        let refused = rib.map(false, vec![install(out)]);
        assert_eq!(refused.len(), 1);
        assert!(refused[0].1.contains("10.0.0.1 232.1.1.1"), "{refused:?}");
        assert_eq!(rib.rules.len(), 1);
        let other = ("10.9.9.9", "239.1.1.2");
        assert_eq!(rib.map(false, vec![install(other)]), []);
        assert_eq!(rib.rules.len(), 2);
        // What took its place before is gone too: the server says so.
        assert_eq!(rib.map(false, vec![install(out)]).len(), 1);
        assert_eq!(names(&rib), ["10.0.0.1 232.1.1.1"]);
        // Two local channels become one global one between two mappings: that is no conflict.
        let mut rib = Rib::default();
        let both = [a, b].map(|from| rewriting(from, out, Origin::Mnat));
        let both = both.map(|rule| MnatRouteChange::Install(Box::new(rule), None));
        assert_eq!(rib.map(false, both.into()), []);
        assert_eq!(rib.rules.len(), 2);
    }

    #[test]
    fn a_command_beside_ten_thousand_mappings_does_not_compare_each_with_each() {
        let mapping = |n: u32| {
            let (from, to) = (
                format!("10.{}.{}.1", n / 256, n % 256),
                format!("11.{}.{}.1", n / 256, n % 256),
            );
            let rule = rewriting((&from, "232.1.1.1"), (&to, "239.1.1.1"), Origin::Mnat);
            MnatRouteChange::Install(Box::new(rule), None)
        };
        let mut rib = Rib::default();
        rib.map(false, (0..10_000).map(mapping).collect());
        for (from, to) in [("eth0", "eth1"), ("eth2", "eth3")] {
            let mut added = rule("12.0.0.1", "232.9.9.9", Origin::Command);
            added.from = from.parse().unwrap();
            added.to = vec![to.parse().unwrap()];
            let start = std::time::Instant::now();
            rib.add(added).unwrap();
            let took = start.elapsed();
            println!("add {from} beside {} routes: {took:?}", rib.rules.len());
            // Without optimisation, and on a machine that does other things.
            assert!(took < std::time::Duration::from_secs(2), "{took:?}");
        }
    }

    #[test]
    fn one_change_touches_one_route_and_none_of_an_operator() {
        let mut rib = Rib {
            rules: vec![rule("10.0.0.1", "232.1.1.1", Origin::Settings)],
            ..Rib::default()
        };
        let refused = rib.map(
            false,
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
        rib.map(false, vec![MnatRouteChange::Install(Box::new(other), None)]);
        let changed = before.iter().zip(&rib.rules).filter(|(a, b)| a != b);
        assert_eq!(changed.count(), 1);
        rib.map(false, vec![withdraw(Some("10.0.0.2"), "232.1.1.1")]);
        assert_eq!(names(&rib), ["10.0.0.1 232.1.1.1", "10.0.0.3 232.1.1.1"]);
        // A reload knows nothing of mappings; they are kept.
        let mut reloaded = Rib::default();
        assert!(reloaded.keep_mapped(&rib).is_empty());
        assert_eq!(names(&reloaded), ["10.0.0.3 232.1.1.1"]);
        rib.map(true, vec![]);
        assert_eq!(names(&rib), ["10.0.0.1 232.1.1.1"]);
        rib.map(false, vec![withdraw(None, "232.1.1.1")]);
        assert_eq!(names(&rib), ["10.0.0.1 232.1.1.1"]);
    }
}
