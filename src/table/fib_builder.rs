//! Builds a forwarding table from rules and links.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ahash::{AHashMap, AHashSet};
use ipnet::IpNet;

use super::active_ingress::{IngressDomain, IngressSelection};
use super::fib::{DownstreamInterface, Egress, Entry, Fib, Ingress, Path, ProxyIngress};
use super::ids::{DownstreamId, EgressId, EntryId, PathId};
use super::interface_options::InterfaceOptions;
use super::subnet_conflict::{SubnetConflict, common_subnet, subnets};
use crate::model::rule::JoinPolicy;
use crate::model::{
    FragmentPolicy, IfName, InterfaceId, JoinRule, Link, Links, MAX_PROXIES, ProxyRule, RouteName,
    RouteRule,
};

/// A forwarding table under construction, for the given links.
pub(super) struct FibBuilder<'a> {
    options: &'a [InterfaceOptions],
    links: &'a Links,
    egress_ids: AHashMap<InterfaceId, EgressId>,
    ingresses: AHashMap<InterfaceId, Ingress>,
    entries: Vec<Entry>,
    egresses: Vec<Egress>,
    paths: Vec<Path>,
    downstreams: Vec<DownstreamInterface>,
    skipped_proxies: Vec<(RouteName, IfName)>,
    subnet_conflicts: BTreeSet<SubnetConflict>,
    /// Pairs of an ingress and an egress whose subnets were compared.
    compared: AHashSet<(InterfaceId, InterfaceId)>,
    /// The ingress and the egress of each path of which one ingress is active at a time.
    edges: Vec<(InterfaceId, InterfaceId)>,
    /// Egresses on which other forwarders are looked for.
    watched: AHashSet<InterfaceId>,
}

/// The interfaces of one proxy, and what all of its ingresses share.
struct ProxyInterfaces<'a> {
    proxy: Arc<ProxyRule>,
    downstreams: Vec<&'a Link>,
    /// Position of the first of `downstreams` in [`Fib::downstreams`].
    first_downstream: DownstreamId,
}

impl<'a> FibBuilder<'a> {
    pub(super) fn new(options: &'a [InterfaceOptions], links: &'a Links) -> Self {
        Self {
            options,
            links,
            egress_ids: AHashMap::new(),
            ingresses: AHashMap::new(),
            entries: Vec::new(),
            egresses: Vec::new(),
            paths: Vec::new(),
            downstreams: Vec::new(),
            skipped_proxies: Vec::new(),
            subnet_conflicts: BTreeSet::new(),
            compared: AHashSet::new(),
            edges: Vec::new(),
            watched: AHashSet::new(),
        }
    }

    /// Returns the forwarding table, with an empty OIF table.
    pub(super) fn build(mut self, generation: u64) -> Fib {
        self.add_selections();
        Fib {
            generation,
            ingresses: Arc::new(self.ingresses),
            entries: Arc::new(self.entries),
            egresses: Arc::new(self.egresses),
            paths: Arc::new(self.paths),
            downstreams: Arc::new(self.downstreams),
            skipped_proxies: Arc::new(self.skipped_proxies),
            subnet_conflicts: Arc::new(self.subnet_conflicts),
            oif_table: Default::default(),
        }
    }

    pub(super) fn add_route(&mut self, rule: &RouteRule) {
        let links = self.links;
        for iif in rule.ingresses(links) {
            self.ingress(iif.index).answers_queries |= rule.join != JoinPolicy::Never;
            let oifs = rule.egresses(iif.index, links);
            let rule_of_path = (&rule.name, rule.fragment);
            let paths = oifs.iter().map(|oif| self.add_path(rule_of_path, iif, oif));
            let paths = paths.collect();
            // A translated packet belongs to another stream, which other forwarders do not send.
            let yields = rule.redundant && rule.takeover.is_some() && rule.translation.is_none();
            if rule.takeover.is_some() {
                self.edges
                    .extend(oifs.iter().map(|oif| (iif.index, oif.index)));
            }
            if yields {
                let is_named = |oif: &&&Link| rule.names_egress(oif);
                self.watched
                    .extend(oifs.iter().filter(is_named).map(|oif| oif.index));
            }
            let entry = self.add_entry(Entry {
                route: rule.name.clone(),
                except_sources: rule.except_sources.clone(),
                ttl: rule.ttl,
                link_local: rule.link_local,
                link_local_sources: rule.forwards_link_local_sources(),
                loop_guard: rule.loop_guard,
                translation: rule.translation,
                takeover_ms: rule.takeover.map(|time| time.as_millis() as u64),
                yields,
                paths,
            });
            let entries = &mut self.ingress(iif.index).entries;
            entries.insert(rule.group, rule.source, entry);
        }
    }

    /// Answers queries on the links where groups are joined.
    pub(super) fn add_join(&mut self, rule: &JoinRule) {
        for link in self.links.matching(&rule.interface) {
            self.ingress(link.index).answers_queries = true;
        }
    }

    /// Receives router solicitations on the links where this router announces itself.
    pub(super) fn add_router_discovery(&mut self) {
        let options = self.options;
        let announces = |link: &&Link| {
            InterfaceOptions::of_link(options, link).is_some_and(|o| o.mrdisc.is_some())
        };
        for link in self.links.iter().filter(announces) {
            self.ingress(link.index).receives_membership = true;
        }
    }

    /// Captures packets on the links whose options require it, without a route.
    pub(super) fn add_captures(&mut self) {
        let options = self.options;
        let captures =
            |link: &&Link| InterfaceOptions::of_link(options, link).is_some_and(|o| o.capture);
        for link in self.links.iter().filter(captures) {
            self.ingress(link.index);
        }
    }

    pub(super) fn add_proxy(&mut self, proxy: &ProxyRule) {
        let links = self.links;
        let upstreams = links.matching_any(&proxy.upstream);
        let mut downstreams = links.matching_any(&proxy.downstream);
        downstreams.retain(|link| {
            let is_upstream = upstreams.iter().any(|u| u.index == link.index);
            // Our packets return on the loopback interface, so it cannot have members.
            !link.loopback
                && !is_upstream
                && !self.downstreams.iter().any(|d| d.index == link.index)
        });
        let proxy = Arc::new(proxy.clone());
        let first_downstream = self.downstreams.len() as DownstreamId;
        self.downstreams
            .extend(downstreams.iter().map(|link| DownstreamInterface {
                index: link.index,
                proxy: proxy.clone(),
            }));
        // If no upstream is running, packets take the path to the first, which counts them as
        // dropped.
        let running = upstreams.iter().find(|l| l.up && l.carrier);
        let upstream_egress = running.or(upstreams.first()).filter(|_| proxy.upward);
        let interfaces = ProxyInterfaces {
            proxy: proxy.clone(),
            downstreams,
            first_downstream,
        };
        for iif in &upstreams {
            self.ingress(iif.index).answers_queries = true;
            self.add_proxy_ingress(&interfaces, iif, None);
        }
        for iif in &interfaces.downstreams {
            self.ingress(iif.index).receives_membership = true;
            self.add_proxy_ingress(&interfaces, iif, upstream_egress.copied());
        }
    }

    fn add_proxy_ingress(
        &mut self,
        interfaces: &ProxyInterfaces<'_>,
        iif: &Link,
        upstream_egress: Option<&Link>,
    ) {
        let proxy = &interfaces.proxy;
        let rule = (&proxy.name, proxy.fragment);
        let upstream_path = upstream_egress.map(|oif| self.add_path(rule, iif, oif));
        let downstream_paths = interfaces.downstreams.iter().map(|oif| {
            let is_other = oif.index != iif.index;
            is_other.then(|| self.add_path(rule, iif, oif))
        });
        let downstream_paths = downstream_paths.collect();
        let egresses = interfaces.downstreams.iter().chain(&upstream_egress);
        self.edges
            .extend(egresses.map(|oif| (iif.index, oif.index)));
        let entry = self.add_entry(Entry {
            route: proxy.name.clone(),
            except_sources: Vec::new(),
            ttl: proxy.ttl,
            link_local: false,
            link_local_sources: proxy.link_local_sources,
            loop_guard: proxy.ttl.allows_endless_loop(),
            translation: None,
            takeover_ms: Some(proxy.takeover.as_millis() as u64),
            yields: proxy.redundant,
            paths: upstream_path.into_iter().collect(),
        });
        let ingress = self.ingress(iif.index);
        if ingress.proxies.len() >= MAX_PROXIES {
            let skipped = (proxy.name.clone(), iif.name.clone());
            self.skipped_proxies.push(skipped);
            return;
        }
        ingress.proxies.push(ProxyIngress {
            entry,
            proxy: proxy.clone(),
            first_downstream: interfaces.first_downstream,
            downstream_paths,
        });
    }

    fn add_path(
        &mut self,
        (route, fragment): (&RouteName, FragmentPolicy),
        iif: &Link,
        oif: &Link,
    ) -> PathId {
        let (egresses, links) = (&mut self.egresses, self.links);
        let egress = *self.egress_ids.entry(oif.index).or_insert_with(|| {
            egresses.push(Egress {
                index: oif.index,
                name: oif.name.clone(),
                mtu: oif.mtu,
                running: oif.up && oif.carrier,
                plane: oif.plane,
                subnets: subnets(links.addresses(oif.index)).collect(),
            });
            egresses.len() as EgressId - 1
        });
        self.compare_subnets(iif, oif);
        let options = InterfaceOptions::of_link(self.options, oif);
        self.paths.push(Path {
            route: route.clone(),
            iif: iif.name.clone(),
            egress,
            threshold: options.and_then(|options| options.ttl_threshold),
            fragment,
        });
        self.paths.len() as PathId - 1
    }

    /// Divides the interfaces into domains, and adds to each ingress how the active ingress of a
    /// stream is selected. Adds the watched egresses that are not ingresses yet.
    fn add_selections(&mut self) {
        let watched = std::mem::take(&mut self.watched);
        for egress in &watched {
            if !self.ingresses.contains_key(egress) {
                self.ingress(*egress).watch_only = true;
            }
        }
        // Interfaces from which routes and proxies forward.
        let sources: AHashSet<InterfaceId> = self.edges.iter().map(|(from, _)| *from).collect();
        for (id, members) in connected_interfaces(&self.edges) {
            let is_watched = members.iter().any(|member| watched.contains(member));
            let mut ingresses = members;
            ingresses.retain(|member| self.ingresses.contains_key(member));
            if ingresses.len() < 2 && !is_watched {
                continue;
            }
            let is_running =
                |id: &InterfaceId| self.links.get(*id).is_some_and(|l| l.up && l.carrier);
            let forwards = |id: &InterfaceId| sources.contains(id) && is_running(id);
            let running = ingresses.iter().copied().filter(forwards).collect();
            let is_return = |(from, to): &(InterfaceId, InterfaceId)| {
                from != to && ingresses.contains(from) && sources.contains(to)
            };
            let domain = Arc::new(IngressDomain {
                id,
                running,
                is_two_way: self.edges.iter().any(is_return),
            });
            for interface in ingresses {
                let selection = IngressSelection {
                    interface,
                    address: self.links.get(interface).and_then(|link| link.address),
                    host_subnets: self.host_subnets(interface),
                    domain: domain.clone(),
                };
                self.ingress(interface).selection = Some(selection);
            }
        }
    }

    /// Returns the subnets of a downstream interface of a proxy; `None` for other interfaces.
    fn host_subnets(&self, interface: InterfaceId) -> Option<Box<[IpNet]>> {
        let is_downstream = self.downstreams.iter().any(|d| d.index == interface);
        let addresses = self.links.addresses(interface).iter();
        is_downstream.then(|| addresses.map(|a| a.on_link.trunc()).collect())
    }

    fn compare_subnets(&mut self, iif: &Link, oif: &Link) {
        if iif.index == oif.index || !self.compared.insert((iif.index, oif.index)) {
            return;
        }
        let addresses = |link: &Link| self.links.addresses(link.index);
        if let Some(subnet) = common_subnet(addresses(iif), addresses(oif)) {
            self.subnet_conflicts.insert(SubnetConflict {
                egress: oif.name.clone(),
                ingress: iif.name.clone(),
                subnet,
            });
        }
    }

    fn add_entry(&mut self, entry: Entry) -> EntryId {
        self.entries.push(entry);
        self.entries.len() as EntryId - 1
    }

    fn ingress(&mut self, iif: InterfaceId) -> &mut Ingress {
        let links = self.links;
        self.ingresses.entry(iif).or_insert_with(|| Ingress {
            vlans_with_own_interface: links.vlan_ids_of(iif).collect(),
            plane: links.get(iif).and_then(|link| link.plane),
            ..Ingress::default()
        })
    }
}

/// Returns the interfaces of each connected part of a graph, by their lowest ID.
fn connected_interfaces(
    edges: &[(InterfaceId, InterfaceId)],
) -> BTreeMap<InterfaceId, Vec<InterfaceId>> {
    // Each interface points to one with a lower ID in the same part, the lowest to itself.
    let mut lower: BTreeMap<InterfaceId, InterfaceId> = BTreeMap::new();
    fn lowest(lower: &mut BTreeMap<InterfaceId, InterfaceId>, of: InterfaceId) -> InterfaceId {
        let mut lowest = of;
        while let Some(next) = lower.get(&lowest).filter(|next| **next != lowest) {
            lowest = *next;
        }
        lower.insert(of, lowest);
        lowest
    }
    for (a, b) in edges {
        let (a, b) = (lowest(&mut lower, *a), lowest(&mut lower, *b));
        lower.insert(a.max(b), a.min(b));
    }
    let interfaces: Vec<InterfaceId> = lower.keys().copied().collect();
    let mut parts: BTreeMap<InterfaceId, Vec<InterfaceId>> = BTreeMap::new();
    for interface in interfaces {
        let id = lowest(&mut lower, interface);
        parts.entry(id).or_default().push(interface);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connected_interfaces_share_the_lowest_id() {
        let id = |n| InterfaceId::new(n).unwrap();
        let edges = [(9, 4), (7, 2), (4, 7), (5, 6), (8, 8)].map(|(a, b)| (id(a), id(b)));
        let parts = connected_interfaces(&edges);
        let expected = [(2, vec![2, 4, 7, 9]), (5, vec![5, 6]), (8, vec![8])];
        let expected = expected.map(|(n, part)| (id(n), part.into_iter().map(id).collect()));
        assert_eq!(parts, BTreeMap::from(expected));
    }
}
