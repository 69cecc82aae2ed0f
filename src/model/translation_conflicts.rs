//! Conflicts between routes with translations and other routes: two streams that would leave as the
//! same stream, and packets that would return to the route that translated them.

use std::borrow::Borrow;
use std::collections::HashSet;

use ipnet::IpNet;

use super::{GroupPrefix, IfPattern, ProxyRule, RouteRule, SourcePrefix, StreamSet};

/// Largest number of (route, streams) pairs that a search for a loop visits for each start. A
/// search that exceeds it finds no loop. Only thousands of routes that forward to each other do.
const MAX_SEARCH_STEPS: usize = 10_000;

/// Returns the streams that leave both routes on a common egress interface although they arrived
/// as different streams; `None` if there are none or neither route changes streams. `rules` are all
/// routes: streams that a more specific route matches do not count.
pub fn merged_streams<R: Borrow<RouteRule>>(
    a: &RouteRule,
    b: &RouteRule,
    rules: &[R],
) -> Option<StreamSet> {
    if !(a.changes_streams() || b.changes_streams()) || a.is_merged_with(b) {
        return None;
    }
    let outgoing_a = a.outgoing_streams(a.matched_streams())?;
    let outgoing = outgoing_a.overlap(b.outgoing_streams(b.matched_streams())?)?;
    let (from_a, from_b) = (a.incoming_streams(outgoing)?, b.incoming_streams(outgoing)?);
    let is_unused =
        |rule: &RouteRule, set| rule.excepts_all(set) || is_overridden(rule, set, rules);
    if from_a == from_b || !a.shares_egress_with(b) || is_unused(a, from_a) || is_unused(b, from_b)
    {
        return None;
    }
    Some(outgoing)
}

/// Returns all routes that merge streams with an earlier route: the positions of the later and of
/// the first such earlier route, and the merged streams.
pub fn all_merged_streams(rules: &[RouteRule]) -> Vec<(usize, usize, StreamSet)> {
    if !rules.iter().any(RouteRule::changes_streams) {
        return Vec::new();
    }
    // A cheap check first: the outgoing streams of almost all pairs are disjoint.
    let outgoing: Vec<_> = rules
        .iter()
        .map(|r| r.outgoing_streams(r.matched_streams()))
        .collect();
    let overlap = |a: usize, b: usize| outgoing[a]?.overlap(outgoing[b]?);
    let with_earlier = |later: usize| {
        (0..later).find_map(|earlier| {
            overlap(later, earlier)?;
            let set = merged_streams(&rules[later], &rules[earlier], rules)?;
            Some((later, earlier, set))
        })
    };
    (0..rules.len()).filter_map(with_earlier).collect()
}

/// Returns whether a more specific route with the same ingress interfaces matches all of `set`.
fn is_overridden<R: Borrow<RouteRule>>(rule: &RouteRule, set: StreamSet, rules: &[R]) -> bool {
    let specificity = |r: &RouteRule| (r.group.net().prefix_len(), r.source.net().prefix_len());
    rules.iter().any(|other| {
        let other: &RouteRule = other.borrow();
        other.from == rule.from
            && specificity(other) > specificity(rule)
            && other.except_sources.is_empty()
            && other.matched_streams().overlap(set) == Some(set)
    })
}

/// Returns the positions of the routes over which packets of `rules[start]` return to it, beginning
/// with `start`; `None` if the route does not change streams or its packets do not return.
pub fn translation_loop<R: Borrow<RouteRule>>(rules: &[R], start: usize) -> Option<Vec<usize>> {
    let rule_at = |at: usize| -> Option<&RouteRule> { rules.get(at).map(Borrow::borrow) };
    let first = rule_at(start).filter(|r| r.changes_streams())?;
    let set = first.outgoing_streams(first.matched_streams())?;
    let mut visited: HashSet<(usize, StreamSet)> = HashSet::new();
    let mut pending = vec![(vec![start], set)];
    while let Some((route_path, set)) = pending.pop() {
        let Some(last) = route_path.last().and_then(|at| rule_at(*at)) else {
            continue;
        };
        for (at, next) in rules.iter().enumerate() {
            let next: &RouteRule = next.borrow();
            if !last.to.iter().any(|to| to.intersects(&next.from)) {
                continue;
            }
            let Some(outgoing) = next.outgoing_streams(set) else {
                continue;
            };
            let matched = next.matched_streams().overlap(set);
            if matched.is_some_and(|matched| next.excepts_all(matched)) {
                continue;
            }
            if at == start {
                return Some(route_path);
            }
            if visited.len() < MAX_SEARCH_STEPS && visited.insert((at, outgoing)) {
                let mut route_path = route_path.clone();
                route_path.push(at);
                pending.push((route_path, outgoing));
            }
        }
    }
    None
}

/// Largest number of routes that [`proxy_routes`] returns. Loops over others are not found.
const MAX_PROXY_ROUTES: usize = 4096;

/// Returns routes without translation that forward what proxies may forward, as input for
/// [`translation_loop`]. Memberships are unknown here, so every group counts as joined.
pub fn proxy_routes(proxies: &[ProxyRule]) -> Vec<RouteRule> {
    let routes = proxies.iter().flat_map(|proxy| {
        let streams = proxy_streams(proxy);
        let from_upstream = proxy.upstream.iter().map(|from| (from, &[][..]));
        let upstream_egresses = if proxy.upward {
            &proxy.upstream[..]
        } else {
            &[]
        };
        let from_downstream = proxy.downstream.iter();
        let from_downstream = from_downstream.map(move |from| (from, upstream_egresses));
        let ingresses = from_upstream.chain(from_downstream);
        ingresses.flat_map(move |(from, upstream_egresses)| {
            let is_other = |to: &&IfPattern| to.is_pattern() || *to != from;
            let to = proxy.downstream.iter().chain(upstream_egresses);
            let to: Vec<IfPattern> = to.filter(is_other).cloned().collect();
            let rule = move |(source, group): (SourcePrefix, GroupPrefix)| RouteRule {
                source,
                except_sources: proxy.deny_sources.clone(),
                name: proxy.name.clone(),
                ..RouteRule::new(from.clone(), group, to.clone())
            };
            streams.clone().into_iter().map(rule)
        })
    });
    routes.take(MAX_PROXY_ROUTES).collect()
}

/// Returns the sources and groups that a proxy accepts, except for `deny_sources`.
fn proxy_streams(proxy: &ProxyRule) -> Vec<(SourcePrefix, GroupPrefix)> {
    let all = ["224.0.0.0/4", "ff00::/8"];
    let mut groups: Vec<IpNet> = proxy.groups.iter().map(|g| g.net()).collect();
    if groups.is_empty() {
        groups = all.iter().filter_map(|g| g.parse().ok()).collect();
    }
    for deny in &proxy.deny_groups {
        groups = groups
            .into_iter()
            .flat_map(|g| subtract(g, deny.net()))
            .collect();
    }
    let groups = groups.into_iter().filter_map(|g| GroupPrefix::new(g).ok());
    let streams = groups.flat_map(|group| {
        let v4 = group.net().addr().is_ipv4();
        let is_same_version = |s: &&SourcePrefix| s.net().addr().is_ipv4() == v4;
        let sources = proxy.sources.iter().filter(is_same_version);
        let mut sources: Vec<SourcePrefix> = sources.copied().collect();
        if proxy.sources.is_empty() {
            sources.push(SourcePrefix::any_for(group));
        }
        sources.into_iter().map(move |source| (source, group))
    });
    streams.collect()
}

/// Returns the prefixes that cover `net` without `removed`.
fn subtract(net: IpNet, removed: IpNet) -> Vec<IpNet> {
    if removed.contains(&net) {
        return Vec::new();
    }
    let mut remaining = net;
    let mut prefixes = Vec::new();
    // Halves the prefix that contains `removed` until it is `removed`, and keeps the other halves.
    while remaining.contains(&removed) && remaining != removed {
        let Ok(halves) = remaining.subnets(remaining.prefix_len() + 1) else {
            break;
        };
        for half in halves {
            match half.contains(&removed) {
                true => remaining = half,
                false => prefixes.push(half),
            }
        }
    }
    if prefixes.is_empty() {
        vec![net]
    } else {
        prefixes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TranslationRule;

    /// `from`, source, group, `to`, new source, new group. An empty source or group is left out.
    type RuleText<'a> = (&'a str, &'a str, &'a str, &'a str, &'a str, &'a str);

    fn rule((from, source, group, to, to_source, to_group): RuleText<'_>) -> RouteRule {
        let to = to.split(' ').map(|t| t.parse().unwrap()).collect();
        let mut rule = RouteRule::new(from.parse().unwrap(), group.parse().unwrap(), to);
        if !source.is_empty() {
            rule.source = source.parse().unwrap();
        }
        let replacement = (
            (!to_source.is_empty()).then(|| to_source.parse().unwrap()),
            (!to_group.is_empty()).then(|| to_group.parse().unwrap()),
        );
        rule.translation =
            TranslationRule::new((rule.source, rule.group), replacement, None, false).ok();
        rule
    }

    fn merge(all: &[RuleText<'_>]) -> Option<String> {
        let rules: Vec<_> = all.iter().map(|t| rule(*t)).collect();
        let found = merged_streams(&rules[0], &rules[1], &rules);
        assert_eq!(merged_streams(&rules[1], &rules[0], &rules), found);
        found.map(|set| set.to_string())
    }

    const ONE: RuleText<'_> = ("eth0", "", "225.1.2.3", "eth1", "", "239.1.1.1");

    #[test]
    fn different_streams_on_one_egress_are_merged() {
        let other = ("eth0", "", "225.1.2.4", "eth*", "", "239.1.1.1");
        assert_eq!(merge(&[ONE, other]).as_deref(), Some("(*, 239.1.1.1)"));
        let plain = ("eth2", "10.0.0.0/8", "239.1.0.0/16", "eth1", "", "");
        let found = merge(&[ONE, plain]);
        assert_eq!(found.as_deref(), Some("(10.0.0.0/8, 239.1.1.1)"));
        let elsewhere = ("eth0", "", "225.1.2.4", "eth2", "", "239.1.1.1");
        assert_eq!(merge(&[ONE, elsewhere]), None);
        // The same stream from another ingress, as redundant senders use.
        let again = ("eth3", "", "225.1.2.3", "eth1", "", "239.1.1.1");
        assert_eq!(merge(&[ONE, again]), None);
        // Two sources remain distinct until both become the same source.
        let (a, b) = ("10.0.0.1", "10.0.0.2");
        let two = |s| ("eth0", s, "225.1.2.3", "eth1", "", "239.1.1.1");
        assert_eq!(merge(&[two(a), two(b)]), None);
        let onto = |s| ("eth0", s, "225.1.2.3", "eth1", "10.9.9.9", "");
        let found = merge(&[onto(a), onto(b)]);
        assert_eq!(found.as_deref(), Some("(10.9.9.9, 225.1.2.3)"));
    }

    #[test]
    fn streams_of_more_specific_routes_do_not_merge() {
        let wide = ("eth0", "", "239.0.0.0/8", "eth1", "", "");
        assert!(merge(&[ONE, wide]).is_some());
        let specific = ("eth0", "", "239.1.1.1", "eth2", "", "");
        assert_eq!(merge(&[ONE, wide, specific]), None);
    }

    fn cycle(all: &[RuleText<'_>]) -> Option<Vec<usize>> {
        let rules: Vec<_> = all.iter().map(|t| rule(*t)).collect();
        translation_loop(&rules, 0)
    }

    #[test]
    fn translation_loop_is_found_directly_and_over_other_routes() {
        assert_eq!(cycle(&[ONE]), None);
        let swap = ("br-*", "", "225.1.2.0/24", "br-*", "10.9.9.9", "");
        // An invalid rule, which the helper leaves without translation: many sources become one.
        assert_eq!(cycle(&[swap]), None);
        let own = (
            "br-*",
            "10.0.0.0/24",
            "225.1.0.0/16",
            "br-*",
            "",
            "225.2.0.0/16",
        );
        assert_eq!(cycle(&[own]), None);
        let within = (
            "br-*",
            "10.0.0.0/24",
            "225.1.0.0/16",
            "br-*",
            "10.0.1.0/24",
            "",
        );
        assert_eq!(cycle(&[within]), None);
        let back = ("eth1", "", "239.1.1.1", "eth0", "", "225.1.2.3");
        assert_eq!(cycle(&[ONE, back]), Some(vec![0, 1]));
        let plain = ("eth1", "", "239.0.0.0/8", "eth2", "", "");
        let third = ("eth2", "", "239.1.1.1", "eth0", "", "225.1.2.3");
        assert_eq!(cycle(&[ONE, plain, third]), Some(vec![0, 1, 2]));
        // No loop if the sources of each side are set.
        let forth = ("eth0", "10.0.0.0/24", "225.1.2.3", "eth1", "", "239.1.1.1");
        let back = ("eth1", "10.0.1.0/24", "239.1.1.1", "eth0", "", "225.1.2.3");
        assert_eq!(cycle(&[forth, back]), None);
        // The packets return as another group.
        let off = ("eth1", "", "239.1.1.1", "eth0", "", "225.1.2.4");
        assert_eq!(cycle(&[ONE, off]), None);
    }

    #[test]
    fn loops_over_proxies_are_found() {
        let named = |names: &[&str]| names.iter().map(|n| n.parse().unwrap()).collect::<Vec<_>>();
        let mut proxy = ProxyRule::new(named(&["eth2"]), named(&["eth1", "eth3"]));
        let forth = rule(ONE);
        let back = rule(("eth2", "", "239.1.1.1", "eth0", "", "225.1.2.3"));
        let loop_len = |rules: &[&RouteRule], proxy: &ProxyRule| {
            let mut all: Vec<RouteRule> = rules.iter().copied().cloned().collect();
            all.extend(proxy_routes(std::slice::from_ref(proxy)));
            translation_loop(&all, 0).map(|route_path| route_path.len())
        };
        assert_eq!(loop_len(&[&forth], &proxy), None);
        assert_eq!(loop_len(&[&forth, &back], &proxy), Some(3));
        let no_upward = ProxyRule {
            upward: false,
            ..proxy.clone()
        };
        assert_eq!(loop_len(&[&forth, &back], &no_upward), None);
        proxy.deny_groups = vec!["239.1.0.0/16".parse().unwrap()];
        assert_eq!(loop_len(&[&forth, &back], &proxy), None);
        proxy.deny_groups = vec!["239.1.1.2/32".parse().unwrap()];
        assert_eq!(loop_len(&[&forth, &back], &proxy), Some(3));
        proxy.groups = vec!["225.0.0.0/8".parse().unwrap()];
        assert_eq!(loop_len(&[&forth, &back], &proxy), None);
    }

    #[test]
    fn prefix_is_subtracted_from_another() {
        let net = |n: &str| n.parse::<IpNet>().unwrap();
        let remaining = |a: &str, b: &str| subtract(net(a), net(b));
        assert_eq!(remaining("10.0.0.0/8", "11.0.0.0/8"), [net("10.0.0.0/8")]);
        assert_eq!(remaining("10.0.0.0/8", "10.0.0.0/7"), []);
        assert_eq!(
            remaining("10.0.0.0/30", "10.0.0.2/32"),
            [net("10.0.0.0/31"), net("10.0.0.3/32")]
        );
        assert_eq!(remaining("ff00::/8", "10.0.0.2/32"), [net("ff00::/8")]);
    }
}
