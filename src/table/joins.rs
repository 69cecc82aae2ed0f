//! Which groups to join as a host, on which interfaces, and from which sources.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::translated_joins::waits_for_members;
use crate::model::rule::JoinPolicy;
use crate::model::{Group, InterfaceId, JoinRule, Links, ProxyRule, RouteRule, SourceFilter};

/// Where this host is a member of a group. Which sources it wants there is one filter for all
/// that ask (RFC 9776 section 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Join {
    /// On which interface.
    pub interface: InterfaceId,
    /// The group.
    pub group: Group,
}

impl fmt::Display for Join {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.group.fmt(f)
    }
}

/// What is wanted of each group on each interface; none of the filters is empty.
pub type DesiredMemberships = BTreeMap<Join, SourceFilter>;

/// What the hosts behind a proxy want of each group.
pub type Asked = BTreeMap<Group, SourceFilter>;

/// The rules that say what is joined.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// Groups to join.
    pub joins: &'a [JoinRule],
    /// Routes, which join what they take.
    pub routes: &'a [RouteRule],
    /// Proxies: whose hosts say what routes to them that rewrite shall join.
    pub proxies: &'a [ProxyRule],
}

/// Who passes on what hosts behind a proxy want, told in the groups and sources to join.
#[derive(Debug, Clone, Copy)]
pub enum JoinOrigin<'a> {
    /// The proxy, on its upstream interfaces.
    Proxy(&'a ProxyRule),
    /// A route that makes of other streams what they want, on the interfaces it takes packets
    /// from.
    Route(&'a RouteRule),
}

impl JoinOrigin<'_> {
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

    fn permitted(self, group: Group, filter: &SourceFilter) -> SourceFilter {
        match self {
            Self::Proxy(proxy) => permitted(proxy, group, filter),
            Self::Route(_) => filter.clone(),
        }
    }
}

/// The memberships that joins, routes and proxies ask for, on the links there are. A proxy
/// asks on each of its upstream interfaces.
pub fn wanted<'a>(
    rules: Rules<'_>,
    asked: impl IntoIterator<Item = (JoinOrigin<'a>, &'a Asked)>,
    links: &Links,
) -> DesiredMemberships {
    let waits = |route: &&RouteRule| !waits_for_members(route, rules.proxies, links);
    let of_routes: Vec<JoinRule> = rules
        .routes
        .iter()
        .filter(waits)
        .filter_map(RouteRule::implied_join)
        .collect();
    let mut wanted = DesiredMemberships::new();
    let mut want = |rule: &JoinRule| {
        let filter = match rule.source {
            Some(source) => SourceFilter::Include(BTreeSet::from([source])),
            None => SourceFilter::any(),
        };
        for link in links.matching(&rule.interface) {
            let interface = link.index;
            for group in rule.groups() {
                add(&mut wanted, Join { interface, group }, &filter);
            }
        }
    };
    rules.joins.iter().for_each(&mut want);
    of_routes.iter().for_each(want);
    for (asker, asked) in asked {
        let interfaces = asker.interfaces(links);
        for (group, filter) in asked {
            let filter = asker.permitted(*group, filter);
            for interface in interfaces.iter().copied() {
                let group = *group;
                add(&mut wanted, Join { interface, group }, &filter);
            }
        }
    }
    wanted
}

/// What is wanted of one group where proxies and routes pass on what hosts want, now that they
/// want it otherwise: a filter that takes nothing where it is to be left. `fixed` is what
/// [`wanted`] says of joins and routes alone; `asked` are all that share an interface, each
/// with what is wanted behind it.
pub fn wanted_of_group<'a>(
    group: Group,
    fixed: &DesiredMemberships,
    asked: impl IntoIterator<Item = (JoinOrigin<'a>, &'a SourceFilter)>,
    links: &Links,
) -> DesiredMemberships {
    let mut wanted = DesiredMemberships::new();
    for (asker, filter) in asked {
        let filter = asker.permitted(group, filter);
        for interface in asker.interfaces(links) {
            let join = Join { interface, group };
            let all = wanted.entry(join).or_insert_with(|| {
                let fixed = fixed.get(&join).cloned();
                fixed.unwrap_or_default()
            });
            *all = all.union(&filter);
        }
    }
    wanted
}

fn add(wanted: &mut DesiredMemberships, join: Join, filter: &SourceFilter) {
    if !filter.is_none() {
        let all = wanted.entry(join).or_default();
        *all = all.union(filter);
    }
}

/// The part of a filter that a proxy would forward. Of all sources but some, those it leaves
/// out come too: a filter cannot name a prefix.
pub fn permitted(proxy: &ProxyRule, group: Group, filter: &SourceFilter) -> SourceFilter {
    if !proxy.accepts_group(group) {
        return SourceFilter::none();
    }
    match filter {
        SourceFilter::Include(sources) => {
            let takes = |source: &&_| proxy.accepts_source(**source);
            SourceFilter::Include(sources.iter().filter(takes).copied().collect())
        }
        all_but => all_but.clone(),
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

    fn only(joins: &[JoinRule]) -> Rules<'_> {
        Rules {
            joins,
            routes: &[],
            proxies: &[],
        }
    }

    fn texts(rules: &[JoinRule]) -> Vec<String> {
        wanted(only(rules), [], &links())
            .iter()
            .map(|(j, filter)| format!("{} {j} {filter}", j.interface))
            .collect()
    }

    #[test]
    fn prefixes_and_patterns_are_joined_one_by_one() {
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
    fn any_source_takes_in_every_single_one() {
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
    fn proxies_ask_upstream_for_what_they_forward_and_rules_keep_theirs() {
        let pattern = |name: &str| vec![name.parse().unwrap()];
        let mut proxy = ProxyRule::new(pattern("eth*"), pattern("br0"));
        proxy.deny_groups = vec!["225.9.0.0/16".parse().unwrap()];
        proxy.deny_sources = vec!["10.0.0.9/32".parse().unwrap()];
        let group = |g: &str| g.parse::<Group>().unwrap();
        let include =
            |all: &[&str]| SourceFilter::Include(all.iter().map(|s| s.parse().unwrap()).collect());
        let exclude = SourceFilter::Exclude(["10.0.0.2".parse().unwrap()].into());
        let asked = Asked::from([
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
        let all = wanted(
            only(&rules),
            [(JoinOrigin::Proxy(&proxy), &asked)],
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
        // One group alone is the same, and says what is to be left.
        let fixed = wanted(only(&rules), [], &links());
        for (group, filter) in &asked {
            let one = wanted_of_group(
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
        let left = wanted_of_group(
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
