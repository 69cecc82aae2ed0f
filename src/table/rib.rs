//! The rules as the routing actor owns them, and how a snapshot is made of them.
//!
//! Lifecycle: settings fill it at start and at every reload, commands add and remove, and
//! after each change, of rules or of links, [`Rib::fib`] makes the next snapshot.

use ahash::AHashMap;

use super::fib::{Egress, EgressId, Entry, EntryId, Fib, Ingress, Path};
use crate::model::rule::MOST_JOINED_GROUPS;
use crate::model::{
    GroupPrefix, IfIndex, IfPattern, JoinRule, Link, Links, RouteName, RouteRule, SourcePrefix,
    TtlThreshold,
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
        let own = |to: &&IfPattern| !to.is_pattern() && rule.from.intersects(to);
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
        let at = same.unwrap_or(self.rules.len());
        match same {
            Some(at) => self.rules[at].to = to,
            None => self.rules.push(RouteRule { to, ..rule }),
        }
        Ok(self.rules[at].name.clone())
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
            return Ok(self.rules.remove(at).name);
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

    /// The threshold of an egress.
    pub fn ttl_threshold(&self, link: &Link) -> Option<TtlThreshold> {
        let fitting = |patterns: bool| {
            self.interfaces
                .iter()
                .find(move |o| o.name.is_pattern() == patterns && o.name.matches(&link.name))
        };
        fitting(false).or_else(|| fitting(true))?.ttl_threshold
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
    pub fn egresses_of<'a>(rule: &RouteRule, iif: IfIndex, links: &'a Links) -> Vec<&'a Link> {
        let mut found: Vec<&Link> = Vec::new();
        for pattern in &rule.to {
            for link in links.iter().filter(|l| pattern.matches(&l.name)) {
                // Linear, but over at most as many as a route may have egresses.
                if link.index != iif && !found.iter().any(|f| f.index == link.index) {
                    found.push(link);
                }
            }
        }
        found
    }

    /// The snapshot for the links there are.
    pub fn fib(&self, links: &Links, generation: u64) -> Fib {
        let mut fib = Fib {
            generation,
            ..Fib::default()
        };
        let mut egress_ids: AHashMap<IfIndex, EgressId> = AHashMap::new();
        for rule in &self.rules {
            for iif in Self::ingresses_of(rule, links) {
                let mut paths = Vec::new();
                for oif in Self::egresses_of(rule, iif.index, links) {
                    let egress = *egress_ids.entry(oif.index).or_insert_with(|| {
                        fib.egresses.push(Egress {
                            index: oif.index,
                            name: oif.name.clone(),
                            mtu: oif.mtu,
                            running: oif.up && oif.carrier,
                        });
                        fib.egresses.len() as EgressId - 1
                    });
                    paths.push(fib.paths.len() as u32);
                    fib.paths.push(Path {
                        route: rule.name.clone(),
                        iif: iif.name.clone(),
                        egress,
                        threshold: self.ttl_threshold(oif),
                    });
                }
                let entry = fib.entries.len() as EntryId;
                fib.entries.push(Entry {
                    route: rule.name.clone(),
                    except_sources: rule.except_sources.clone(),
                    ttl: rule.ttl,
                    link_local: rule.link_local,
                    loop_guard: rule.loop_guard,
                    paths,
                });
                fib.ingresses
                    .entry(iif.index)
                    .or_insert_with(|| Ingress {
                        entries: Default::default(),
                        vlans_elsewhere: links.vlans_on(iif.index).collect(),
                    })
                    .entries
                    .insert(rule.group, rule.source, entry);
            }
        }
        fib
    }
}

fn same_join(a: &JoinRule, b: &JoinRule) -> bool {
    (&a.interface, a.source, a.group) == (&b.interface, b.source, b.group)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RouteName;

    fn link(index: u32, name: &str) -> Link {
        Link::new(IfIndex::new(index).unwrap(), name.parse().unwrap())
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
}
