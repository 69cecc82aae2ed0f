//! The rules as the routing actor owns them, and how a snapshot is made of them.
//!
//! Lifecycle: settings fill it at start and at every reload, commands add and remove, and
//! after each change, of rules or of links, [`Rib::fib`] makes the next snapshot.

use super::Fib;
use super::draft::{Draft, matching};
use std::collections::HashMap;
use std::time::Duration;

use crate::model::rule::MOST_JOINED_GROUPS;
use crate::model::translation_conflicts::{feeds_itself, merged, proxy_ways};
use crate::model::{
    GroupPrefix, IfPattern, InterfaceId, JoinRule, Link, Links, ProxyRule, RouteName, RouteRule,
    SourcePrefix, StreamSet, TtlThreshold,
};

/// Egresses of one route at most.
pub const MOST_EGRESSES: usize = 64;

/// Why a change of the rules is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RibError {
    /// A packet could fit two rules equally well.
    #[error(
        "route \"{0}\" takes the same source and group on an interface they share; change that one"
    )]
    Rival(RouteName),
    /// No rule has this interface, source and group.
    #[error(
        "there is no route from {from} for ({source_prefix}, {group}); `mcastor show routes` lists them"
    )]
    NoSuchRoute {
        /// The IIF asked for.
        from: IfPattern,
        /// The source asked for.
        source_prefix: SourcePrefix,
        /// The group asked for.
        group: GroupPrefix,
    },
    /// A route is added without egresses.
    #[error("name at least one interface to send to")]
    NoEgress,
    /// The route does not send there.
    #[error("the route does not send to {0}")]
    NoSuchEgress(IfPattern),
    /// Packets would go back to where they came from.
    #[error("{0} is where the packets come from; name another interface to send them to")]
    HoldsOwnFrom(IfPattern),
    /// More egresses than a route may have.
    #[error("a route sends to at most {MOST_EGRESSES} names and patterns")]
    TooManyEgresses,
    /// Such groups stay on their link unless the settings say so.
    #[error(
        "{0} is link-local and stays on its link; a [[route]] with link_local = true in the settings forwards it"
    )]
    LinkLocal(GroupPrefix),
    /// Of two routes, one of which rewrites, different streams would leave as the same one.
    #[error(
        "packets would leave as {1}, as those of route \"{0}\" do; name another source, group or interface"
    )]
    Merges(RouteName, StreamSet),
    /// The route keeps two others apart, of which one rewrites.
    #[error(
        "without it packets of the routes \"{0}\" and \"{1}\" would both leave as {2}; remove one of those first"
    )]
    Uncovers(RouteName, RouteName, StreamSet),
    /// What a route rewrites would come back to it.
    #[error(
        "packets that route \"{0}\" rewrites would come back to it; name the sources of each side"
    )]
    FeedsItself(RouteName),
    /// The route of the same interface, source and group rewrites differently.
    #[error("route \"{0}\" takes the same packets and rewrites them differently; remove it first")]
    OtherRewrite(RouteName),
    /// The route is not the one meant.
    #[error("route \"{0}\" rewrites something else; `mcastor show routes` shows what")]
    NotRewrittenSo(RouteName),
    /// Source and group of two IP versions.
    #[error("source {0} and group {1} are of different IP versions")]
    MixedFamily(SourcePrefix, GroupPrefix),
    /// The very same membership exists.
    #[error("already joined")]
    AlreadyJoined,
    /// There is no such membership that a command could take back.
    #[error("not joined by [[join]] or `mcastor join`; `mcastor show groups` lists what is")]
    NotJoined,
    /// More groups than one rule may join.
    #[error("{0} has more than the {MOST_JOINED_GROUPS} groups that one join may name")]
    TooManyGroups(GroupPrefix),
}

/// Options an operator gave to interfaces by name or pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceOptions {
    /// Which interfaces.
    pub name: IfPattern,
    /// Packets leave here only when they arrived with a TTL above this.
    pub ttl_threshold: Option<TtlThreshold>,
    /// How often multicast routers are announced on them.
    pub mrdisc: Option<Duration>,
    /// No packet is taken in or sent here, whatever the rules say.
    pub disabled: bool,
}

/// All rules and interface options.
#[derive(Debug, Clone, Default)]
pub struct Rib {
    /// The rules, in the order they were given.
    pub rules: Vec<RouteRule>,
    /// Interface options; of several that fit an interface the first literal name counts,
    /// else the first pattern.
    pub interfaces: Vec<InterfaceOptions>,
    /// Groups to join as a host, besides those that rules join.
    pub joins: Vec<JoinRule>,
    /// The proxies. An interface is downstream of the first that names it.
    pub proxies: Vec<ProxyRule>,
}

impl Rib {
    /// Adds a rule, or its egresses to the rule of the same interface, source and group.
    /// Returns the name of that rule.
    pub fn add(&mut self, rule: RouteRule) -> Result<RouteName, RibError> {
        if rule.source.net().addr().is_ipv4() != rule.group.net().addr().is_ipv4() {
            return Err(RibError::MixedFamily(rule.source, rule.group));
        }
        if rule.group.is_link_local() && !rule.link_local {
            return Err(RibError::LinkLocal(rule.group));
        }
        // Under a pattern each ingress leaves itself out, as it does where `to` is one.
        let own = |to: &&IfPattern| rule.from == **to && !to.is_pattern();
        if let Some(own) = rule.to.iter().find(own) {
            return Err(RibError::HoldsOwnFrom(own.clone()));
        }
        let mut to = rule.to.clone();
        let same = self.find(&rule.from, rule.source, rule.group);
        if let Some(at) = same {
            to.splice(0..0, self.rules[at].to.iter().cloned());
        } else if let Some(rival) = self.rules.iter().find(|r| r.rivals(&rule)) {
            return Err(RibError::Rival(rival.name.clone()));
        }
        let mut seen = std::collections::HashSet::new();
        to.retain(|t| seen.insert(t.clone()));
        if to.len() > MOST_EGRESSES {
            return Err(RibError::TooManyEgresses);
        }
        let other = same.map(|at| &self.rules[at]);
        if let Some(other) =
            other.filter(|o| rule.translation.is_some() && o.translation != rule.translation)
        {
            return Err(RibError::OtherRewrite(other.name.clone()));
        }
        let at = same.unwrap_or(self.rules.len());
        let mut rules = self.rules.clone();
        match same {
            Some(at) => rules[at].to = to,
            None => rules.push(RouteRule { to, ..rule }),
        }
        refuse_conflicts(&rules, &self.proxies, at)?;
        self.rules = rules;
        Ok(self.rules[at].name.clone())
    }

    /// Refuses where the rule of this interface, source and group does not rewrite so; one that
    /// there is none of is refused by what is done with it.
    pub fn rewrites_so(&self, rule: &RouteRule) -> Result<(), RibError> {
        let at = self.find(&rule.from, rule.source, rule.group);
        match at.map(|at| &self.rules[at]) {
            Some(other) if rule.translation.is_some() && other.translation != rule.translation => {
                Err(RibError::NotRewrittenSo(other.name.clone()))
            }
            _ => Ok(()),
        }
    }

    /// Removes egresses of a rule, or without any named, the rule. A rule that loses its
    /// last egress stays: it takes its packets and drops them. Returns the name of the rule.
    pub fn remove(
        &mut self,
        from: &IfPattern,
        source: SourcePrefix,
        group: GroupPrefix,
        to: &[IfPattern],
    ) -> Result<RouteName, RibError> {
        let Some(at) = self.find(from, source, group) else {
            return Err(RibError::NoSuchRoute {
                from: from.clone(),
                source_prefix: source,
                group,
            });
        };
        if to.is_empty() {
            let mut rules = self.rules.clone();
            let removed = rules.remove(at);
            refuse_uncovered(&rules, &removed)?;
            self.rules = rules;
            return Ok(removed.name);
        }
        let rule = &mut self.rules[at];
        if let Some(unknown) = to.iter().find(|t| !rule.to.contains(t)) {
            return Err(RibError::NoSuchEgress(unknown.clone()));
        }
        rule.to.retain(|t| !to.contains(t));
        Ok(rule.name.clone())
    }

    fn find(&self, from: &IfPattern, source: SourcePrefix, group: GroupPrefix) -> Option<usize> {
        self.rules
            .iter()
            .position(|r| r.from == *from && r.source == source && r.group == group)
    }

    /// Adds a join.
    pub fn join(&mut self, join: JoinRule) -> Result<(), RibError> {
        if join.group.count() > MOST_JOINED_GROUPS {
            return Err(RibError::TooManyGroups(join.group));
        }
        if let Some(source) = join.source
            && source.addr().is_ipv4() != join.group.net().addr().is_ipv4()
        {
            let source = SourcePrefix::from(source);
            return Err(RibError::MixedFamily(source, join.group));
        }
        if self.joins.iter().any(|j| same_join(j, &join)) {
            return Err(RibError::AlreadyJoined);
        }
        self.joins.push(join);
        Ok(())
    }

    /// Takes a join back.
    pub fn leave(&mut self, join: &JoinRule) -> Result<(), RibError> {
        let at = self.joins.iter().position(|j| same_join(j, join));
        self.joins.remove(at.ok_or(RibError::NotJoined)?);
        Ok(())
    }

    /// Every name and pattern of an interface in it.
    pub fn patterns(&self) -> impl Iterator<Item = &IfPattern> {
        let rules = self.rules.iter().flat_map(RouteRule::from_and_to);
        let proxies = self.proxies.iter();
        let proxies = proxies.flat_map(|p| p.upstream.iter().chain(&p.downstream));
        let joins = self.joins.iter().map(|join| &join.interface);
        let options = self.interfaces.iter().map(|options| &options.name);
        rules.chain(proxies).chain(joins).chain(options)
    }

    /// The threshold of an egress.
    pub fn ttl_threshold(&self, link: &Link) -> Option<TtlThreshold> {
        self.options(link)?.ttl_threshold
    }

    /// The options of a link: those of its name, else of the first pattern that fits.
    pub fn options(&self, link: &Link) -> Option<&InterfaceOptions> {
        let fitting = |patterns: bool| {
            self.interfaces
                .iter()
                .find(move |o| o.name.is_pattern() == patterns && link.fits(&o.name))
        };
        fitting(false).or_else(|| fitting(true))
    }

    /// The links that rules may use.
    pub fn usable(&self, links: &Links) -> Links {
        let usable = |link: &&Link| !self.options(link).is_some_and(|o| o.disabled);
        links.iter().filter(usable).cloned().collect()
    }

    /// The links a rule takes packets from. A link that is down is one: it may come up, and
    /// nothing has to be rebuilt then.
    pub fn ingresses_of<'a>(
        rule: &'a RouteRule,
        links: &'a Links,
    ) -> impl Iterator<Item = &'a Link> {
        links.matching(&rule.from)
    }

    /// The links a rule sends packets from `iif` to, each once, in the order of `to`.
    pub fn egresses_of<'a>(rule: &RouteRule, iif: InterfaceId, links: &'a Links) -> Vec<&'a Link> {
        let mut found: Vec<&Link> = Vec::new();
        for pattern in &rule.to {
            for link in links.iter().filter(|l| l.fits(pattern)) {
                // Linear, but over at most as many as a route may have egresses.
                if link.index != iif && !found.iter().any(|f| f.index == link.index) {
                    found.push(link);
                }
            }
        }
        found
    }

    /// The snapshot for the links there are, without what proxies learned: that is put in by
    /// [`MembershipDatabase::rebuild`](super::MembershipDatabase::rebuild).
    pub fn fib(&self, links: &Links, generation: u64) -> Fib {
        let mut draft = Draft::new(self, links);
        self.rules.iter().for_each(|rule| draft.rule(rule));
        // Those without a downstream interface now forward nothing, and take no place from others.
        let has_hosts = |proxy: &&ProxyRule| !matching(&proxy.downstream, links).is_empty();
        let (first, last): (Vec<_>, Vec<_>) = self.proxies.iter().partition(has_hosts);
        first
            .into_iter()
            .chain(last)
            .for_each(|proxy| draft.proxy(proxy));
        draft.announced();
        draft.finish(generation)
    }
}

/// Refuses what the rule at `at`, new or changed, would do to the others or they to it.
fn refuse_conflicts(rules: &[RouteRule], proxies: &[ProxyRule], at: usize) -> Result<(), RibError> {
    refuse_merges(rules, at)?;
    if !rules.iter().any(|rule| rule.translation.is_some()) {
        return Ok(());
    }
    let mut ways = rules.to_vec();
    ways.extend(proxy_ways(proxies));
    refuse_cycles(&ways, at)
}

/// Refuses the rule at `at` where it or another would send out two streams as one.
pub(super) fn refuse_merges(rules: &[RouteRule], at: usize) -> Result<(), RibError> {
    let others = (0..rules.len()).filter(|other| *other != at);
    for other in others {
        if let Some(set) = merged(&rules[at], &rules[other], rules) {
            return Err(RibError::Merges(rules[other].name.clone(), set));
        }
    }
    Ok(())
}

/// Refuses to remove a rule where it alone kept others from sending out two streams as one: it
/// took some of their packets.
fn refuse_uncovered(rules: &[RouteRule], removed: &RouteRule) -> Result<(), RibError> {
    let uncovered = |rule: &RouteRule| {
        rule.from == removed.from && rule.takes().overlap(removed.takes()).is_some()
    };
    for rule in rules.iter().filter(|rule| uncovered(rule)) {
        let other = rules.iter().find_map(|other| {
            let set = merged(rule, other, rules)?;
            Some((other.name.clone(), set))
        });
        if let Some((other, set)) = other {
            return Err(RibError::Uncovers(rule.name.clone(), other, set));
        }
    }
    Ok(())
}

/// Refuses the rule at `at` where packets come back to a rule that rewrote them, around it.
/// `ways` are all rules, and the ways of proxies.
pub(super) fn refuse_cycles(ways: &[RouteRule], at: usize) -> Result<(), RibError> {
    // Cycles there were before are none of this change. Most rules cannot be in one at all.
    let around = rules_around(ways, at).into_iter().find(|start| {
        let way = feeds_itself(ways, *start);
        way.is_some_and(|way| way.contains(&at))
    });
    match around {
        Some(start) => Err(RibError::FeedsItself(ways[start].name.clone())),
        None => Ok(()),
    }
}

/// The rules that a cycle through `at` may hold, by their interfaces alone. Of ten thousand
/// mappings all have the same.
fn rules_around(rules: &[RouteRule], at: usize) -> Vec<usize> {
    let mut shapes: HashMap<(&IfPattern, &[IfPattern]), usize> = HashMap::new();
    let mut of_rule = Vec::with_capacity(rules.len());
    for rule in rules {
        let next = shapes.len();
        of_rule.push(*shapes.entry((&rule.from, &rule.to)).or_insert(next));
    }
    let mut sides = vec![None; shapes.len()];
    shapes.into_iter().for_each(|(s, n)| sides[n] = Some(s));
    let sides: Vec<(&IfPattern, &[IfPattern])> = sides.into_iter().flatten().collect();
    let leads = |a: usize, b: usize| sides[a].1.iter().any(|to| to.intersects(sides[b].0));
    let reached = |forward: bool| {
        let mut seen = vec![false; sides.len()];
        let mut ways = vec![of_rule[at]];
        while let Some(from) = ways.pop() {
            for (to, seen) in seen.iter_mut().enumerate() {
                let edge = match forward {
                    true => leads(from, to),
                    false => leads(to, from),
                };
                if edge && !*seen {
                    *seen = true;
                    ways.push(to);
                }
            }
        }
        seen
    };
    let (after, before) = (reached(true), reached(false));
    (0..rules.len())
        .filter(|rule| after[of_rule[*rule]] && before[of_rule[*rule]])
        .collect()
}

fn same_join(a: &JoinRule, b: &JoinRule) -> bool {
    (&a.interface, a.source, a.group) == (&b.interface, b.source, b.group)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RouteName;

    fn link(index: u32, name: &str) -> Link {
        Link::new(InterfaceId::new(index).unwrap(), name.parse().unwrap())
    }

    fn rule(from: &str, group: &str, to: &[&str]) -> RouteRule {
        let to = to.iter().map(|t| t.parse().unwrap()).collect();
        RouteRule {
            name: RouteName::new(from),
            ..RouteRule::new(from.parse().unwrap(), group.parse().unwrap(), to)
        }
    }

    #[test]
    fn patterns_take_what_exists_but_never_the_iif_itself() {
        let links: Links = [link(1, "br-a"), link(2, "br-b"), link(3, "eth0")]
            .into_iter()
            .collect();
        let rib = Rib {
            rules: vec![rule("br-*", "225.1.2.3", &["br-*", "eth0", "eth*", "gone"])],
            ..Rib::default()
        };
        let fib = rib.fib(&links, 1);
        let mut ways: Vec<_> = fib
            .paths
            .iter()
            .map(|p| {
                let oif = &fib.egresses[p.egress as usize];
                (p.iif.to_string(), oif.name.to_string())
            })
            .collect();
        ways.sort();
        let expected = [
            ("br-a", "br-b"),
            ("br-a", "eth0"),
            ("br-b", "br-a"),
            ("br-b", "eth0"),
        ];
        assert_eq!(ways, expected.map(|(i, o)| (i.into(), o.into())));
        assert_eq!(fib.egresses.len(), 3);
    }

    #[test]
    fn a_literal_interface_option_goes_before_a_pattern() {
        let option = |name: &str, ttl| InterfaceOptions {
            name: name.parse().unwrap(),
            ttl_threshold: TtlThreshold::new(ttl),
            mrdisc: None,
            disabled: false,
        };
        let rib = Rib {
            rules: vec![],
            interfaces: vec![option("eth*", 8), option("eth0", 3)],
            ..Rib::default()
        };
        assert_eq!(rib.ttl_threshold(&link(1, "eth0")), TtlThreshold::new(3));
        assert_eq!(rib.ttl_threshold(&link(1, "eth1")), TtlThreshold::new(8));
        assert_eq!(rib.ttl_threshold(&link(1, "br0")), None);
    }

    #[test]
    fn a_rule_without_egresses_is_still_an_entry() {
        let links: Links = [link(1, "eth0")].into_iter().collect();
        let rib = Rib {
            rules: vec![rule("eth0", "225.1.2.3", &["eth1"])],
            ..Rib::default()
        };
        let fib = rib.fib(&links, 1);
        assert_eq!(fib.ingresses.len(), 1);
        assert!(fib.paths.is_empty());
    }

    #[test]
    fn adding_extends_the_rule_of_the_same_key_and_refuses_rivals() {
        let mut rib = Rib::default();
        rib.add(rule("eth0", "225.1.2.3", &["eth1"])).unwrap();
        rib.add(rule("eth0", "225.1.2.3", &["eth2", "eth1"]))
            .unwrap();
        assert_eq!(rib.rules.len(), 1);
        assert_eq!(rib.rules[0].to.len(), 2);
        let refused = |rib: &mut Rib, r| rib.add(r).unwrap_err();
        assert!(matches!(
            refused(&mut rib, rule("eth*", "225.1.2.3", &["br0"])),
            RibError::Rival(_)
        ));
        assert!(matches!(
            refused(&mut rib, rule("eth0", "225.1.2.4", &["eth0"])),
            RibError::HoldsOwnFrom(_)
        ));
        assert!(matches!(
            refused(&mut rib, rule("eth0", "224.0.0.0/24", &["eth1"])),
            RibError::LinkLocal(_)
        ));
        assert_eq!(rib.rules.len(), 1);
    }

    fn rewriting(from: &str, group: &str, to: &[&str], becomes: &str) -> RouteRule {
        use crate::model::TranslationRule;
        let mut r = rule(from, group, to);
        let becomes = (None, Some(becomes.parse().unwrap()));
        r.translation = TranslationRule::new((r.source, r.group), becomes, None, false).ok();
        assert!(r.translation.is_some());
        r
    }

    #[test]
    fn routes_that_rewrite_neither_merge_streams_nor_feed_themselves() {
        let mut rib = Rib::default();
        let first = rewriting("eth0", "225.1.2.3", &["eth1"], "239.1.1.1");
        rib.add(first.clone()).unwrap();
        let mut refused = |r: RouteRule| {
            let before = rib.rules.clone();
            let error = rib.add(r).unwrap_err();
            assert_eq!(rib.rules, before);
            error
        };
        let second = rewriting("eth0", "225.1.2.4", &["eth1"], "239.1.1.1");
        assert!(matches!(refused(second), RibError::Merges(..)));
        let plain = rule("eth2", "239.1.1.1", &["eth*"]);
        assert!(matches!(refused(plain), RibError::Merges(..)));
        let back = rewriting("eth1", "239.1.1.1", &["eth0"], "225.1.2.3");
        assert!(matches!(refused(back), RibError::FeedsItself(_)));
        let other = rewriting("eth0", "225.1.2.3", &["eth2"], "239.1.1.2");
        assert!(matches!(refused(other), RibError::OtherRewrite(_)));
        // More egresses for the same, named with what it rewrites or without.
        rib.add(rule("eth0", "225.1.2.3", &["eth2"])).unwrap();
        let again = rewriting("eth0", "225.1.2.3", &["eth3"], "239.1.1.1");
        rib.add(again).unwrap();
        assert_eq!((rib.rules.len(), rib.rules[0].to.len()), (1, 3));
        assert_eq!(rib.rules[0].translation, first.translation);
    }

    #[test]
    fn removing_takes_egresses_first_and_the_rule_only_when_none_is_named() {
        let mut rib = Rib::default();
        rib.add(rule("eth0", "225.1.2.3", &["eth1", "eth2"]))
            .unwrap();
        let (from, r) = ("eth0".parse().unwrap(), rib.rules[0].clone());
        let to = |n: &str| vec![n.parse::<IfPattern>().unwrap()];
        rib.remove(&from, r.source, r.group, &to("eth1")).unwrap();
        assert_eq!(
            rib.remove(&from, r.source, r.group, &to("eth1")),
            Err(RibError::NoSuchEgress("eth1".parse().unwrap()))
        );
        rib.remove(&from, r.source, r.group, &to("eth2")).unwrap();
        assert_eq!(rib.rules.len(), 1);
        rib.remove(&from, r.source, r.group, &[]).unwrap();
        assert!(rib.rules.is_empty());
        assert!(matches!(
            rib.remove(&from, r.source, r.group, &[]),
            Err(RibError::NoSuchRoute { .. })
        ));
    }

    #[test]
    fn a_rule_that_keeps_two_others_apart_stays() {
        let mut rib = Rib::default();
        for rule in [
            rule("up0", "239.1.1.1", &["up1"]),
            rule("up0", "239.0.0.0/8", &["br0"]),
            rewriting("up0", "225.1.2.3", &["br0"], "239.1.1.1"),
        ] {
            rib.add(rule).unwrap();
        }
        let up0: IfPattern = "up0".parse().unwrap();
        let mut remove = |group: &str| {
            let group: GroupPrefix = group.parse().unwrap();
            rib.remove(&up0, SourcePrefix::any_for(group), group, &[])
        };
        assert!(matches!(remove("239.1.1.1"), Err(RibError::Uncovers(..))));
        remove("225.1.2.3").unwrap();
        remove("239.1.1.1").unwrap();
    }

    #[test]
    fn proxies_without_hosts_take_no_place_and_those_without_a_place_are_told() {
        let proxy = |n: u32| {
            let names = |name: &str| vec![name.parse().unwrap()];
            let proxy = ProxyRule::new(names("up0"), names(&format!("d{n}")));
            ProxyRule {
                name: RouteName::new(format!("p{n}")),
                ..proxy
            }
        };
        let rib = Rib {
            proxies: (0..66).map(proxy).collect(),
            ..Rib::default()
        };
        let up0 = || link(1, "up0");
        let links: Links = [up0(), link(2, "d65")].into_iter().collect();
        let fib = rib.fib(&links, 1);
        let places = &fib.ingresses[&up0().index].proxies;
        assert_eq!(places[0].proxy.name.as_str(), "p65");
        let all = (0..66).map(|n| link(n + 2, &format!("d{n}")));
        let links: Links = all.chain([up0()]).collect();
        let left_out = rib.fib(&links, 2).left_out;
        let left_out: Vec<_> = left_out.iter().map(|(p, i)| format!("{p} {i}")).collect();
        assert_eq!(left_out, ["p64 up0", "p65 up0"]);
    }
}
