//! The memberships that this router requests as a host: groups, interfaces and source filters.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::translated_joins::joins_on_demand;
use crate::model::rule::JoinPolicy;
use crate::model::{Group, InterfaceId, JoinRule, Links, ProxyRule, RouteRule, SourceFilter};

/// A membership of this host: one group on one interface. It has one source filter, the union of
/// all requests (RFC 9776 section 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Join {
    /// The interface.
    pub interface: InterfaceId,
    /// The group.
    pub group: Group,
}

impl fmt::Display for Join {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.group.fmt(f)
    }
}

/// The source filter of each membership. [`desired_memberships`] returns no empty filters.
pub type DesiredMemberships = BTreeMap<Join, SourceFilter>;

/// Source filters by group, as requested by members.
pub type RequestedFilters = BTreeMap<Group, SourceFilter>;

/// The rules that request memberships.
#[derive(Debug, Clone, Copy)]
pub struct JoiningRules<'a> {
    /// Joins.
    pub joins: &'a [JoinRule],
    /// Routes, which join the groups that they match.
    pub routes: &'a [RouteRule],
    /// Proxies. Routes that translate towards their downstream interfaces join on demand.
    pub proxies: &'a [ProxyRule],
}

/// The proxy or route that passes requests of members on, as groups and sources to join.
#[derive(Debug, Clone, Copy)]
pub enum JoinOrigin<'a> {
    /// A proxy, which joins on its upstream interfaces.
    Proxy(&'a ProxyRule),
    /// A route that translates other streams into the requested ones. It joins on its ingress
    /// interfaces.
    Route(&'a RouteRule),
}

impl JoinOrigin<'_> {
    /// Returns the interfaces on which groups are joined.
    fn interfaces(self, links: &Links) -> Vec<InterfaceId> {
        match self {
            Self::Proxy(proxy) => {
                let upstreams = links.matching_any(&proxy.upstream);
                upstreams.iter().map(|link| link.index).collect()
            }
            Self::Route(rule) if rule.join == JoinPolicy::Never => Vec::new(),
            Self::Route(rule) => links.matching(&rule.from).map(|link| link.index).collect(),
        }
    }

    /// Returns the part of `filter` that may be joined.
    fn permitted(self, group: Group, filter: &SourceFilter) -> SourceFilter {
        match self {
            Self::Proxy(proxy) => permitted_filter(proxy, group, filter),
            Self::Route(_) => filter.clone(),
        }
    }
}

/// Returns the memberships that joins, routes and proxies request on the existing links.
/// `requested` are the requests of members. A proxy joins on each of its upstream interfaces.
pub fn desired_memberships<'a>(
    rules: JoiningRules<'_>,
    requested: impl IntoIterator<Item = (JoinOrigin<'a>, &'a RequestedFilters)>,
    links: &Links,
) -> DesiredMemberships {
    let is_unconditional = |route: &&RouteRule| !joins_on_demand(route, rules.proxies, links);
    let route_joins: Vec<JoinRule> = rules
        .routes
        .iter()
        .filter(is_unconditional)
        .filter_map(RouteRule::implied_join)
        .collect();
    let mut desired = DesiredMemberships::new();
    let mut add_rule = |rule: &JoinRule| {
        let filter = match rule.source {
            Some(source) => SourceFilter::Include(BTreeSet::from([source])),
            None => SourceFilter::any(),
        };
        for link in links.matching(&rule.interface) {
            let interface = link.index;
            for group in rule.groups() {
                add(&mut desired, Join { interface, group }, &filter);
            }
        }
    };
    rules.joins.iter().for_each(&mut add_rule);
    route_joins.iter().for_each(add_rule);
    for (origin, filters) in requested {
        let interfaces = origin.interfaces(links);
        for (group, filter) in filters {
            let filter = origin.permitted(*group, filter);
            for interface in interfaces.iter().copied() {
                let group = *group;
                add(&mut desired, Join { interface, group }, &filter);
            }
        }
    }
    desired
}

/// Returns the memberships of one group after the requests of members changed. An empty filter
/// means that the group is to be left. `fixed` is the result of [`desired_memberships`] without
/// requests of members. `requested` must contain all proxies and routes that join the group on a
/// common interface, with the filters of their members.
pub fn desired_memberships_of_group<'a>(
    group: Group,
    fixed: &DesiredMemberships,
    requested: impl IntoIterator<Item = (JoinOrigin<'a>, &'a SourceFilter)>,
    links: &Links,
) -> DesiredMemberships {
    let mut desired = DesiredMemberships::new();
    for (origin, filter) in requested {
        let filter = origin.permitted(group, filter);
        for interface in origin.interfaces(links) {
            let join = Join { interface, group };
            let union = desired.entry(join).or_insert_with(|| {
                let fixed = fixed.get(&join).cloned();
                fixed.unwrap_or_default()
            });
            *union = union.union(&filter);
        }
    }
    desired
}

fn add(desired: &mut DesiredMemberships, join: Join, filter: &SourceFilter) {
    if !filter.is_none() {
        let union = desired.entry(join).or_default();
        *union = union.union(filter);
    }
}

/// Returns the part of a filter that a proxy accepts. `Exclude` filters are not reduced by the
/// source lists of the proxy, because a filter cannot contain a prefix: sources that the proxy does
/// not accept may arrive, but are not forwarded.
pub fn permitted_filter(proxy: &ProxyRule, group: Group, filter: &SourceFilter) -> SourceFilter {
    if !proxy.accepts_group(group) {
        return SourceFilter::none();
    }
    match filter {
        SourceFilter::Include(sources) => {
            let is_accepted = |source: &&_| proxy.accepts_source(**source);
            SourceFilter::Include(sources.iter().filter(is_accepted).copied().collect())
        }
        exclude => exclude.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Link, Origin};

    fn links() -> Links {
        ["eth0", "eth1"]
            .iter()
            .enumerate()
            .map(|(i, name)| {
                Link::new(
                    InterfaceId::new(i as u32 + 1).unwrap(),
                    name.parse().unwrap(),
                )
            })
            .collect()
    }

    fn rule(interface: &str, source: Option<&str>, group: &str) -> JoinRule {
        JoinRule {
            interface: interface.parse().unwrap(),
            source: source.map(|s| s.parse().unwrap()),
            group: group.parse().unwrap(),
            origin: Origin::Settings,
        }
    }

    fn only(joins: &[JoinRule]) -> JoiningRules<'_> {
        JoiningRules {
            joins,
            routes: &[],
            proxies: &[],
        }
    }

    fn texts(rules: &[JoinRule]) -> Vec<String> {
        desired_memberships(only(rules), [], &links())
            .iter()
            .map(|(j, filter)| format!("{} {j} {filter}", j.interface))
            .collect()
    }

    #[test]
    fn every_group_and_interface_is_joined() {
        assert_eq!(
            texts(&[rule("eth*", None, "225.1.2.0/31")]),
            [
                "1 225.1.2.0 exclude {}",
                "1 225.1.2.1 exclude {}",
                "2 225.1.2.0 exclude {}",
                "2 225.1.2.1 exclude {}"
            ]
        );
    }

    #[test]
    fn any_source_includes_single_sources() {
        assert_eq!(
            texts(&[
                rule("eth0", Some("10.0.0.1"), "225.1.2.3"),
                rule("eth0", None, "225.1.2.3"),
                rule("eth1", Some("10.0.0.1"), "225.1.2.3"),
            ]),
            ["1 225.1.2.3 exclude {}", "2 225.1.2.3 include {10.0.0.1}"]
        );
    }

    #[test]
    fn proxies_join_permitted_filters_beside_rules() {
        let pattern = |name: &str| vec![name.parse().unwrap()];
        let mut proxy = ProxyRule::new(pattern("eth*"), pattern("br0"));
        proxy.deny_groups = vec!["225.9.0.0/16".parse().unwrap()];
        proxy.deny_sources = vec!["10.0.0.9/32".parse().unwrap()];
        let group = |g: &str| g.parse::<Group>().unwrap();
        let include =
            |all: &[&str]| SourceFilter::Include(all.iter().map(|s| s.parse().unwrap()).collect());
        let exclude = SourceFilter::Exclude(["10.0.0.2".parse().unwrap()].into());
        let requested = RequestedFilters::from([
            (group("225.1.2.3"), include(&["10.0.0.2", "10.0.0.9"])),
            (group("225.1.2.4"), exclude.clone()),
            (group("225.1.2.5"), include(&["10.0.0.9"])),
            (group("225.9.9.9"), SourceFilter::any()),
            (group("224.0.0.251"), SourceFilter::any()),
        ]);
        let rules = [
            rule("eth0", Some("10.0.0.1"), "225.1.2.3"),
            rule("eth1", Some("10.0.0.2"), "225.1.2.4"),
        ];
        let all = desired_memberships(
            only(&rules),
            [(JoinOrigin::Proxy(&proxy), &requested)],
            &links(),
        );
        let text = |joins: &DesiredMemberships| -> Vec<String> {
            let line =
                |(j, filter): (&Join, &SourceFilter)| format!("{} {j} {filter}", j.interface);
            joins.iter().map(line).collect()
        };
        assert_eq!(
            text(&all),
            [
                "1 225.1.2.3 include {10.0.0.1, 10.0.0.2}",
                "1 225.1.2.4 exclude {10.0.0.2}",
                "2 225.1.2.3 include {10.0.0.2}",
                "2 225.1.2.4 exclude {}",
            ]
        );
        // The memberships of one group are the same, except that groups to leave have an empty
        // filter.
        let fixed = desired_memberships(only(&rules), [], &links());
        for (group, filter) in &requested {
            let one = desired_memberships_of_group(
                *group,
                &fixed,
                [(JoinOrigin::Proxy(&proxy), filter)],
                &links(),
            );
            assert_eq!(one.len(), 2);
            for (join, filter) in one {
                assert_eq!(all.get(&join).cloned().unwrap_or_default(), filter);
            }
        }
        let none = SourceFilter::none();
        let left = desired_memberships_of_group(
            group("225.1.2.3"),
            &fixed,
            [(JoinOrigin::Proxy(&proxy), &none)],
            &links(),
        );
        assert_eq!(
            text(&left),
            ["1 225.1.2.3 include {10.0.0.1}", "2 225.1.2.3 include {}"]
        );
    }
}
