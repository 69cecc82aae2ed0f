//! The rules as the routing actor owns them, and how a snapshot is made of them.
//!
//! Lifecycle: settings fill it at start and at every reload, commands add and remove, and
//! after each change, of rules or of links, [`Rib::fib`] makes the next snapshot.

use std::sync::Arc;

use ahash::AHashMap;

use super::fib::{Egress, EgressId, Entry, Fib, Ingress, Path};
use crate::model::{IfIndex, IfPattern, Link, Links, RouteRule, TtlThreshold};

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
}

impl Rib {
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
                let entry = Arc::new(Entry {
                    route: rule.name.clone(),
                    except_sources: rule.except_sources.clone(),
                    ttl: rule.ttl,
                    link_local: rule.link_local,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{IfName, Origin, RouteName, SourcePrefix, TtlPolicy};

    pub fn link(index: u32, name: &str) -> Link {
        Link {
            index: IfIndex::new(index).unwrap(),
            name: name.parse::<IfName>().unwrap(),
            mtu: 1500,
            up: true,
            carrier: true,
            vlan: None,
        }
    }

    fn rule(from: &str, group: &str, to: &[&str]) -> RouteRule {
        let group = group.parse().unwrap();
        RouteRule {
            name: RouteName::new(from),
            origin: Origin::Settings,
            from: from.parse().unwrap(),
            source: SourcePrefix::any_for(group),
            except_sources: vec![],
            group,
            to: to.iter().map(|t| t.parse().unwrap()).collect(),
            ttl: TtlPolicy::Decrement,
            link_local: false,
        }
    }

    #[test]
    fn patterns_take_what_exists_but_never_the_iif_itself() {
        let links: Links = [link(1, "br-a"), link(2, "br-b"), link(3, "eth0")]
            .into_iter()
            .collect();
        let rib = Rib {
            rules: vec![rule("br-*", "225.1.2.3", &["br-*", "eth0", "eth*", "gone"])],
            interfaces: vec![],
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
            interfaces: vec![],
        };
        let fib = rib.fib(&links, 1);
        assert_eq!(fib.ingresses.len(), 1);
        assert!(fib.paths.is_empty());
    }
}
