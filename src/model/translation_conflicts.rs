//! What must hold between rules that rewrite and all others: no two streams become one on an
//! egress, and no rule gets its own output to take again.

use std::collections::HashSet;

use ipnet::IpNet;

use super::{GroupPrefix, IfPattern, ProxyRule, RouteRule, SourcePrefix, StreamSet};

/// Steps of the search for a rule that feeds itself, for each rule it begins with. Past it the
/// search gives up and finds none: rules in the thousands that feed one another.
const MOST_STEPS: usize = 10_000;

impl RouteRule {
    /// The streams the rule takes.
    pub fn takes(&self) -> StreamSet {
        StreamSet {
            source: self.source.net(),
            group: self.group.net(),
        }
    }

    /// What streams of a set leave as, as far as the rule takes them.
    pub fn leaves_as(&self, set: StreamSet) -> Option<StreamSet> {
        let taken = self.takes().overlap(set)?;
        match &self.translation {
            Some(translation) => translation.apply_set(taken),
            None => Some(taken),
        }
    }

    /// What streams of a set that leave were when they came.
    fn came_as(&self, set: StreamSet) -> Option<StreamSet> {
        match &self.translation {
            Some(translation) => translation.inverse().apply_set(set),
            None => self.takes().overlap(set),
        }
    }

    fn changes_stream(&self) -> bool {
        self.translation
            .as_ref()
            .is_some_and(|r| r.changes_stream())
    }

    fn excepts(&self, set: StreamSet) -> bool {
        let all = |except: &super::SourcePrefix| except.net().contains(&set.source);
        self.except_sources.iter().any(all)
    }

    fn leaves_where(&self, other: &RouteRule) -> bool {
        let meets = |a| other.to.iter().any(|b| b.intersects(a));
        self.to.iter().any(meets)
    }
}

/// The streams that two rules, one of which rewrites, would send out of one egress although
/// they came as different ones. `rules` are all there are: what a more specific one takes is
/// not counted against the two.
pub fn merged(a: &RouteRule, b: &RouteRule, rules: &[RouteRule]) -> Option<StreamSet> {
    if !(a.changes_stream() || b.changes_stream()) {
        return None;
    }
    let both = a.leaves_as(a.takes())?.overlap(b.leaves_as(b.takes())?)?;
    let (from_a, from_b) = (a.came_as(both)?, b.came_as(both)?);
    let same = from_a == from_b;
    let never = |rule: &RouteRule, set| rule.excepts(set) || shadowed(rule, set, rules);
    if same || !a.leaves_where(b) || never(a, from_a) || never(b, from_b) {
        return None;
    }
    Some(both)
}

/// Of all rules, those that merge streams with an earlier one, each with the first such one:
/// positions of the two, the later one first, and what they merge.
pub fn all_merged(rules: &[RouteRule]) -> Vec<(usize, usize, StreamSet)> {
    if !rules.iter().any(RouteRule::changes_stream) {
        return Vec::new();
    }
    // Looked at first: almost all pairs have nothing in common there.
    let leaves: Vec<_> = rules.iter().map(|r| r.leaves_as(r.takes())).collect();
    let meet = |a: usize, b: usize| leaves[a]?.overlap(leaves[b]?);
    let with_earlier = |later: usize| {
        (0..later).find_map(|earlier| {
            meet(later, earlier)?;
            let set = merged(&rules[later], &rules[earlier], rules)?;
            Some((later, earlier, set))
        })
    };
    (0..rules.len()).filter_map(with_earlier).collect()
}

/// Whether other, more specific rules of the same interfaces take all of a set.
fn shadowed(rule: &RouteRule, set: StreamSet, rules: &[RouteRule]) -> bool {
    let specific = |r: &RouteRule| (r.group.net().prefix_len(), r.source.net().prefix_len());
    rules.iter().any(|other| {
        other.from == rule.from
            && specific(other) > specific(rule)
            && other.except_sources.is_empty()
            && other.takes().overlap(set) == Some(set)
    })
}

/// The rules around which packets of `rules[start]` come back to it, itself first; `None`
/// where it does not change streams or they do not come back.
pub fn feeds_itself(rules: &[RouteRule], start: usize) -> Option<Vec<usize>> {
    let first = rules.get(start).filter(|r| r.changes_stream())?;
    let set = first.leaves_as(first.takes())?;
    let mut seen: HashSet<(usize, StreamSet)> = HashSet::new();
    let mut ways = vec![(vec![start], set)];
    while let Some((way, set)) = ways.pop() {
        let Some(last) = way.last().and_then(|at| rules.get(*at)) else {
            continue;
        };
        for (at, next) in rules.iter().enumerate() {
            if !last.to.iter().any(|to| to.intersects(&next.from)) {
                continue;
            }
            let Some(leaves) = next.leaves_as(set) else {
                continue;
            };
            if next
                .takes()
                .overlap(set)
                .is_some_and(|taken| next.excepts(taken))
            {
                continue;
            }
            if at == start {
                return Some(way);
            }
            if seen.len() < MOST_STEPS && seen.insert((at, leaves)) {
                let mut way = way.clone();
                way.push(at);
                ways.push((way, leaves));
            }
        }
    }
    None
}

/// Most ways of proxies that are looked at; those beyond are not searched for rings.
const MOST_WAYS: usize = 4096;

/// What proxies may send where, told as rules that rewrite nothing: what a search for rules
/// that feed themselves needs to see of them. Whether hosts ask for it is not known.
pub fn proxy_ways(proxies: &[ProxyRule]) -> Vec<RouteRule> {
    let ways = proxies.iter().flat_map(|proxy| {
        let streams = proxy_streams(proxy);
        let down = proxy.upstream.iter().map(|from| (from, &[][..]));
        let up = if proxy.upward {
            &proxy.upstream[..]
        } else {
            &[]
        };
        let up = proxy.downstream.iter().map(move |from| (from, up));
        down.chain(up).flat_map(move |(from, up)| {
            let other = |to: &&IfPattern| to.is_pattern() || *to != from;
            let to = proxy.downstream.iter().chain(up).filter(other);
            let to: Vec<IfPattern> = to.cloned().collect();
            let rule = move |(source, group): (SourcePrefix, GroupPrefix)| RouteRule {
                source,
                except_sources: proxy.deny_sources.clone(),
                name: proxy.name.clone(),
                ..RouteRule::new(from.clone(), group, to.clone())
            };
            streams.clone().into_iter().map(rule)
        })
    });
    ways.take(MOST_WAYS).collect()
}

/// The sources and groups that a proxy takes.
fn proxy_streams(proxy: &ProxyRule) -> Vec<(SourcePrefix, GroupPrefix)> {
    let all = ["224.0.0.0/4", "ff00::/8"];
    let mut groups: Vec<IpNet> = proxy.groups.iter().map(|g| g.net()).collect();
    if groups.is_empty() {
        groups = all.iter().filter_map(|g| g.parse().ok()).collect();
    }
    for deny in &proxy.deny_groups {
        groups = groups
            .into_iter()
            .flat_map(|g| without(g, deny.net()))
            .collect();
    }
    let groups = groups.into_iter().filter_map(|g| GroupPrefix::new(g).ok());
    let streams = groups.flat_map(|group| {
        let v4 = group.net().addr().is_ipv4();
        let fits = |s: &&SourcePrefix| s.net().addr().is_ipv4() == v4;
        let mut sources: Vec<SourcePrefix> = proxy.sources.iter().filter(fits).copied().collect();
        if proxy.sources.is_empty() {
            sources.push(SourcePrefix::any_for(group));
        }
        sources.into_iter().map(move |source| (source, group))
    });
    streams.collect()
}

/// The prefixes that hold what is in `net` and not in `less`.
fn without(net: IpNet, less: IpNet) -> Vec<IpNet> {
    if less.contains(&net) {
        return Vec::new();
    }
    let mut left = net;
    let mut all = Vec::new();
    // Of the two halves, the one that does not hold `less` is kept whole.
    while left.contains(&less) && left != less {
        let Ok(halves) = left.subnets(left.prefix_len() + 1) else {
            break;
        };
        for half in halves {
            match half.contains(&less) {
                true => left = half,
                false => all.push(half),
            }
        }
    }
    if all.is_empty() { vec![net] } else { all }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TranslationRule;

    /// `from`, source, group, `to`, source and group it becomes (empty: as it came).
    type Told<'a> = (&'a str, &'a str, &'a str, &'a str, &'a str, &'a str);

    fn rule((from, source, group, to, to_source, to_group): Told<'_>) -> RouteRule {
        let to = to.split(' ').map(|t| t.parse().unwrap()).collect();
        let mut rule = RouteRule::new(from.parse().unwrap(), group.parse().unwrap(), to);
        if !source.is_empty() {
            rule.source = source.parse().unwrap();
        }
        let becomes = (
            (!to_source.is_empty()).then(|| to_source.parse().unwrap()),
            (!to_group.is_empty()).then(|| to_group.parse().unwrap()),
        );
        rule.translation =
            TranslationRule::new((rule.source, rule.group), becomes, None, false).ok();
        rule
    }

    fn merge(all: &[Told<'_>]) -> Option<String> {
        let rules: Vec<_> = all.iter().map(|t| rule(*t)).collect();
        let found = merged(&rules[0], &rules[1], &rules);
        assert_eq!(merged(&rules[1], &rules[0], &rules), found);
        found.map(|set| set.to_string())
    }

    const ONE: Told<'_> = ("eth0", "", "225.1.2.3", "eth1", "", "239.1.1.1");

    #[test]
    fn different_streams_may_not_become_one() {
        let other = ("eth0", "", "225.1.2.4", "eth*", "", "239.1.1.1");
        assert_eq!(merge(&[ONE, other]).as_deref(), Some("(*, 239.1.1.1)"));
        let plain = ("eth2", "10.0.0.0/8", "239.1.0.0/16", "eth1", "", "");
        let found = merge(&[ONE, plain]);
        assert_eq!(found.as_deref(), Some("(10.0.0.0/8, 239.1.1.1)"));
        let elsewhere = ("eth0", "", "225.1.2.4", "eth2", "", "239.1.1.1");
        assert_eq!(merge(&[ONE, elsewhere]), None);
        // The same stream from another side, as redundant feeds come.
        let again = ("eth3", "", "225.1.2.3", "eth1", "", "239.1.1.1");
        assert_eq!(merge(&[ONE, again]), None);
        // Two sources stay two.
        let (a, b) = ("10.0.0.1", "10.0.0.2");
        let two = |s| ("eth0", s, "225.1.2.3", "eth1", "", "239.1.1.1");
        assert_eq!(merge(&[two(a), two(b)]), None);
        let onto = |s| ("eth0", s, "225.1.2.3", "eth1", "10.9.9.9", "");
        let found = merge(&[onto(a), onto(b)]);
        assert_eq!(found.as_deref(), Some("(10.9.9.9, 225.1.2.3)"));
    }

    #[test]
    fn what_a_more_specific_rule_takes_merges_with_nothing() {
        let wide = ("eth0", "", "239.0.0.0/8", "eth1", "", "");
        assert!(merge(&[ONE, wide]).is_some());
        let aside = ("eth0", "", "239.1.1.1", "eth2", "", "");
        assert_eq!(merge(&[ONE, wide, aside]), None);
    }

    fn cycle(all: &[Told<'_>]) -> Option<Vec<usize>> {
        let rules: Vec<_> = all.iter().map(|t| rule(*t)).collect();
        feeds_itself(&rules, 0)
    }

    #[test]
    fn a_rewrite_that_feeds_itself_is_found_directly_and_around_others() {
        assert_eq!(cycle(&[ONE]), None);
        let swap = ("br-*", "", "225.1.2.0/24", "br-*", "10.9.9.9", "");
        // Not a rule that could be made: many sources to one.
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
        // With the sources of each side named, nothing comes back.
        let there = ("eth0", "10.0.0.0/24", "225.1.2.3", "eth1", "", "239.1.1.1");
        let back = ("eth1", "10.0.1.0/24", "239.1.1.1", "eth0", "", "225.1.2.3");
        assert_eq!(cycle(&[there, back]), None);
        // Back, but to another group.
        let off = ("eth1", "", "239.1.1.1", "eth0", "", "225.1.2.4");
        assert_eq!(cycle(&[ONE, off]), None);
    }

    #[test]
    fn rings_over_proxies_are_found() {
        let named = |names: &[&str]| names.iter().map(|n| n.parse().unwrap()).collect::<Vec<_>>();
        let mut proxy = ProxyRule::new(named(&["eth2"]), named(&["eth1", "eth3"]));
        let there = rule(ONE);
        let back = rule(("eth2", "", "239.1.1.1", "eth0", "", "225.1.2.3"));
        let found = |rules: &[&RouteRule], proxy: &ProxyRule| {
            let mut all: Vec<RouteRule> = rules.iter().copied().cloned().collect();
            all.extend(proxy_ways(std::slice::from_ref(proxy)));
            feeds_itself(&all, 0).map(|way| way.len())
        };
        assert_eq!(found(&[&there], &proxy), None);
        assert_eq!(found(&[&there, &back], &proxy), Some(3));
        let quiet = ProxyRule {
            upward: false,
            ..proxy.clone()
        };
        assert_eq!(found(&[&there, &back], &quiet), None);
        proxy.deny_groups = vec!["239.1.0.0/16".parse().unwrap()];
        assert_eq!(found(&[&there, &back], &proxy), None);
        proxy.deny_groups = vec!["239.1.1.2/32".parse().unwrap()];
        assert_eq!(found(&[&there, &back], &proxy), Some(3));
        proxy.groups = vec!["225.0.0.0/8".parse().unwrap()];
        assert_eq!(found(&[&there, &back], &proxy), None);
    }

    #[test]
    fn a_prefix_without_another() {
        let net = |n: &str| n.parse::<IpNet>().unwrap();
        let left = |a: &str, b: &str| without(net(a), net(b));
        assert_eq!(left("10.0.0.0/8", "11.0.0.0/8"), [net("10.0.0.0/8")]);
        assert_eq!(left("10.0.0.0/8", "10.0.0.0/7"), []);
        assert_eq!(
            left("10.0.0.0/30", "10.0.0.2/32"),
            [net("10.0.0.0/31"), net("10.0.0.3/32")]
        );
        assert_eq!(left("ff00::/8", "10.0.0.2/32"), [net("ff00::/8")]);
    }
}
