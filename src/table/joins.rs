//! The memberships that this router requests as a host: groups, interfaces and source filters.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::route_rules::RouteRules;
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
    pub routes: &'a RouteRules,
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
        let filter = filter_of(rule);
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

/// Returns the filter that joins and routes request for one membership, without requests of
/// members. An empty filter means that none of them requests it.
pub fn fixed_filter(rules: JoiningRules<'_>, join: Join, links: &Links) -> SourceFilter {
    let Some(link) = links.get(join.interface) else {
        return SourceFilter::none();
    };
    let is_requested = |rule: &JoinRule| {
        rule.group.net().contains(&join.group.addr())
            && link.matches(&rule.interface)
            && rule.groups().any(|group| group == join.group)
    };
    let routes = rules.routes.iter().filter(|route| {
        route.group.net().contains(&join.group.addr())
            && !joins_on_demand(route, rules.proxies, links)
    });
    let of_routes = routes.filter_map(RouteRule::implied_join);
    let of_joins = rules.joins.iter().filter(|rule| is_requested(rule));
    let filters = of_joins
        .map(filter_of)
        .chain(of_routes.filter(is_requested).map(|rule| filter_of(&rule)));
    filters.fold(SourceFilter::none(), |union, filter| union.union(&filter))
}

/// Returns the filter that a join requests.
pub fn filter_of(rule: &JoinRule) -> SourceFilter {
    match rule.source {
        Some(source) => SourceFilter::Include(BTreeSet::from([source])),
        None => SourceFilter::any(),
    }
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

    fn only<'a>(joins: &'a [JoinRule], routes: &'a RouteRules) -> JoiningRules<'a> {
        JoiningRules {
            joins,
            routes,
            proxies: &[],
        }
    }

    fn texts(rules: &[JoinRule]) -> Vec<String> {
        let routes = RouteRules::default();
        desired_memberships(only(rules, &routes), [], &links())
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
    fn fixed_filter_equals_the_desired_membership_without_members() {
        let links = links();
        let joins = [
            rule("eth0", Some("10.0.0.1"), "225.1.2.3"),
            rule("eth*", None, "225.1.2.4/30"),
        ];
        let route = |from: &str, group: &str, source: &str| RouteRule {
            source: source.parse().unwrap(),
            ..RouteRule::new(from.parse().unwrap(), group.parse().unwrap(), Vec::new())
        };
        let routes = vec![
            route("eth0", "225.1.2.3", "10.0.0.2"),
            route("eth1", "225.1.2.9", "0.0.0.0/0"),
            route("eth1", "225.1.3.0/24", "0.0.0.0/0"),
        ];
        let routes = RouteRules::from(routes);
        let rules = only(&joins, &routes);
        let all = desired_memberships(rules, [], &links);
        let groups = (0..12).map(|n| format!("225.1.2.{n}").parse::<Group>().unwrap());
        for group in groups.chain(["225.1.3.1".parse().unwrap()]) {
            for link in links.iter() {
                let interface = link.index;
                let join = Join { interface, group };
                let expected = all.get(&join).cloned().unwrap_or_default();
                assert_eq!(fixed_filter(rules, join, &links), expected, "{join}");
            }
        }
        assert_eq!(all.len(), 10);
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
        let routes = RouteRules::default();
        let all = desired_memberships(
            only(&rules, &routes),
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
        let fixed = desired_memberships(only(&rules, &routes), [], &links());
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

    #[test]
    fn route_without_joins_joins_for_no_translated_stream() {
        let group = "225.1.2.3".parse().unwrap();
        let to = vec!["eth1".parse().unwrap()];
        let mut rule = RouteRule::new("eth0".parse().unwrap(), group, to);
        assert_eq!(JoinOrigin::Route(&rule).interfaces(&links()).len(), 1);
        rule.join = JoinPolicy::Never;
        assert_eq!(JoinOrigin::Route(&rule).interfaces(&links()), []);
    }
}
