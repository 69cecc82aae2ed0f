//! Builds a forwarding table from rules and links.

use std::collections::btree_map::Entry::{Occupied, Vacant};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ahash::{AHashMap, AHashSet};
use ipnet::IpNet;

use super::active_ingress::{IngressDomain, IngressSelection};
use super::fib::{DownstreamInterface, Egress, Entry, Fib, Ingress, Path, ProxyIngress};
use super::ids::{DownstreamId, EgressId, EntryId, PathId};
use super::interface_options::InterfaceOptions;
use super::route_rules::RouteChange;
use super::shared_vec::SharedVec;
use super::subnet_conflict::{SubnetConflict, common_subnet, subnets};
use crate::model::rule::JoinPolicy;
use crate::model::{
    FragmentPolicy, IfName, InterfaceId, JoinRule, Link, Links, MAX_PROXIES, MonitorRules,
    ProxyRule, RouteName, RouteRule,
};

/// A forwarding table under construction, for the given links. It can be changed after a table was
/// built. The next table shares most of its parts with the former one, so the cost of a change
/// depends little on the number of routes.
pub struct FibBuilder {
    options: Vec<InterfaceOptions>,
    monitoring: Arc<MonitorRules>,
    /// Whether any entry asks for monitoring, or has asked.
    monitors: bool,
    links: Arc<Links>,
    egress_ids: AHashMap<InterfaceId, EgressId>,
    ingresses: Arc<AHashMap<InterfaceId, Arc<Ingress>>>,
    entries: SharedVec<Entry>,
    unused_entries: Vec<EntryId>,
    egresses: Arc<Vec<Egress>>,
    /// Number of paths to each egress.
    path_counts: Vec<usize>,
    paths: SharedVec<Path>,
    unused_paths: Vec<PathId>,
    downstreams: Arc<Vec<DownstreamInterface>>,
    skipped_proxies: Arc<Vec<(RouteName, IfName)>>,
    subnet_conflicts: Arc<BTreeSet<SubnetConflict>>,
    /// Pairs of an ingress and an egress whose subnets were compared, with the number of their
    /// paths.
    compared: BTreeMap<(InterfaceId, InterfaceId), usize>,
    /// Links where queries are answered, with the number of rules that require it.
    answering: BTreeMap<InterfaceId, usize>,
    /// The ingress and the egress of each path whose streams are forwarded from one active ingress
    /// only, with the number of such paths.
    edges: BTreeMap<(InterfaceId, InterfaceId), usize>,
    /// Egresses on which other forwarders are looked for, with the number of paths that need it.
    watched: BTreeMap<InterfaceId, usize>,
    /// The ingresses of the two paths of each merge, with the number of merges.
    merged: BTreeMap<(InterfaceId, InterfaceId), usize>,
    /// Whether the interfaces of `edges`, of `watched`, of `merged` or of `ingresses` changed since the
    /// selections were computed.
    connections_changed: bool,
}

/// The interfaces of one proxy, and what all of its ingresses share.
struct ProxyInterfaces<'a> {
    proxy: Arc<ProxyRule>,
    downstreams: Vec<&'a Link>,
    /// Position of the first of `downstreams` in [`Fib::downstreams`].
    first_downstream: DownstreamId,
}

impl FibBuilder {
    /// Returns a builder without rules.
    pub fn new(options: &[InterfaceOptions], links: &Links, monitoring: Arc<MonitorRules>) -> Self {
        Self {
            options: options.to_vec(),
            monitors: !monitoring.groups.is_empty(),
            monitoring,
            links: Arc::new(links.clone()),
            egress_ids: AHashMap::new(),
            ingresses: Arc::default(),
            entries: SharedVec::default(),
            unused_entries: Vec::new(),
            egresses: Arc::default(),
            path_counts: Vec::new(),
            paths: SharedVec::default(),
            unused_paths: Vec::new(),
            downstreams: Arc::default(),
            skipped_proxies: Arc::default(),
            subnet_conflicts: Arc::default(),
            compared: BTreeMap::new(),
            answering: BTreeMap::new(),
            edges: BTreeMap::new(),
            watched: BTreeMap::new(),
            merged: BTreeMap::new(),
            connections_changed: true,
        }
    }

    /// Returns the forwarding table, with an empty OIF table.
    pub fn build(&mut self, generation: u64) -> Fib {
        if std::mem::take(&mut self.connections_changed) {
            self.update_selections();
            self.connections_changed = false;
        }
        Fib {
            generation,
            ingresses: self.ingresses.clone(),
            entries: self.entries.clone(),
            egresses: self.egresses.clone(),
            paths: self.paths.clone(),
            downstreams: self.downstreams.clone(),
            skipped_proxies: self.skipped_proxies.clone(),
            subnet_conflicts: self.subnet_conflicts.clone(),
            oif_table: Default::default(),
            monitors: self.monitors,
            monitoring: self.monitoring.clone(),
        }
    }

    /// Applies a change of a route. Returns whether the next table equals one that is built from
    /// all rules. If not, the caller must discard the builder.
    pub fn apply(&mut self, change: &RouteChange) -> bool {
        if let Some(before) = change.before()
            && !self.remove_route(before)
        {
            return false;
        }
        if let Some(after) = change.after() {
            self.add_route(after);
        }
        // An egress without paths keeps its number, which a table built from all rules lacks.
        !self.path_counts.contains(&0)
    }

    /// Adds a route. It replaces a route with the same streams on its ingresses.
    pub fn add_route(&mut self, rule: &RouteRule) {
        let links = self.links.clone();
        for iif in rule.ingresses(&links) {
            if rule.join != JoinPolicy::Never {
                self.count_answering(iif.index, true);
            }
            let oifs = rule.egresses(iif.index, &links);
            let rule_of_path = (&rule.name, rule.fragment);
            let paths = oifs.iter().map(|oif| self.add_path(rule_of_path, iif, oif));
            let paths = paths.collect();
            self.count_connections(rule, iif, &oifs, true);
            self.count_merge(rule, iif, true);
            let entry = self.add_entry(Entry {
                route: rule.name.clone(),
                except_sources: rule.except_sources.clone(),
                ttl: rule.ttl,
                link_local: rule.link_local,
                link_local_sources: rule.forwards_link_local_sources(),
                loop_guard: rule.loop_guard,
                translation: rule.translation,
                takeover_ms: rule.takeover.map(|time| time.as_millis() as u64),
                yields: yields(rule),
                merge: rule.merge.clone(),
                monitor: rule.monitor,
                paths,
            });
            let entries = &mut self.ingress(iif.index).entries;
            entries.insert(rule.group, rule.source, entry);
        }
    }

    /// Returns the route, ingress and egress of each path of a route.
    pub fn path_names(&self, rule: &RouteRule) -> Vec<(RouteName, IfName, IfName)> {
        let mut paths = Vec::new();
        for iif in rule.ingresses(&self.links) {
            let oifs = rule.egresses(iif.index, &self.links).into_iter();
            let path = |oif: &Link| (rule.name.clone(), iif.name.clone(), oif.name.clone());
            paths.extend(oifs.map(path));
        }
        paths
    }

    /// Removes a route. Returns false if another route replaced it on one of its ingresses.
    fn remove_route(&mut self, rule: &RouteRule) -> bool {
        let links = self.links.clone();
        for iif in rule.ingresses(&links) {
            let entries = &mut self.edit_ingress(iif.index).entries;
            let Some(id) = entries.remove(rule.group, rule.source) else {
                return false;
            };
            let entry = &self.entries[id as usize];
            if entry.route != rule.name {
                return false;
            }
            for path in &entry.paths {
                let egress = self.paths[*path as usize].egress;
                self.path_counts[egress as usize] -= 1;
                self.unused_paths.push(*path);
            }
            self.unused_entries.push(id);
            let oifs = rule.egresses(iif.index, &links);
            oifs.iter()
                .for_each(|oif| self.count_compared(iif, oif, false));
            self.count_connections(rule, iif, &oifs, false);
            self.count_merge(rule, iif, false);
            if rule.join != JoinPolicy::Never {
                self.count_answering(iif.index, false);
            }
            self.remove_unused_ingress(iif);
        }
        true
    }

    /// Removes an ingress without routes, proxies and other uses.
    fn remove_unused_ingress(&mut self, link: &Link) {
        let options = InterfaceOptions::of_link(&self.options, link);
        let is_unused = self.ingresses.get(&link.index).is_some_and(|ingress| {
            ingress.entries.is_empty()
                && ingress.proxies.is_empty()
                && !(ingress.receives_membership || ingress.answers_queries || ingress.watch_only)
                && !options.is_some_and(|o| o.capture)
        });
        if is_unused {
            Arc::make_mut(&mut self.ingresses).remove(&link.index);
            self.connections_changed = true;
        }
    }

    /// Counts a rule that joins groups on an interface as added or removed.
    fn count_answering(&mut self, interface: InterfaceId, added: bool) {
        if count(&mut self.answering, interface, added) {
            self.ingress(interface).answers_queries = added;
        }
    }

    /// Counts a path between two links as added or removed. Compares the subnets of the links with
    /// the first path, and removes their conflict with the last.
    fn count_compared(&mut self, iif: &Link, oif: &Link, added: bool) {
        if iif.index == oif.index || !count(&mut self.compared, (iif.index, oif.index), added) {
            return;
        }
        let addresses = |link: &Link| self.links.addresses(link.index);
        if let Some(subnet) = common_subnet(addresses(iif), addresses(oif)) {
            let conflict = SubnetConflict {
                egress: oif.name.clone(),
                ingress: iif.name.clone(),
                subnet,
            };
            let conflicts = Arc::make_mut(&mut self.subnet_conflicts);
            match added {
                true => conflicts.insert(conflict),
                false => conflicts.remove(&conflict),
            };
        }
    }

    /// Adds a join: queries are answered on the links that it matches.
    pub fn add_join(&mut self, rule: &JoinRule) {
        let links = self.links.clone();
        for link in links.matching(&rule.interface) {
            self.count_answering(link.index, true);
        }
    }

    /// Removes a join.
    pub fn remove_join(&mut self, rule: &JoinRule) {
        let links = self.links.clone();
        for link in links.matching(&rule.interface) {
            self.count_answering(link.index, false);
            self.remove_unused_ingress(link);
        }
    }

    /// Captures packets on the links whose options require it, even without a route.
    pub fn add_captures(&mut self) {
        let links = self.links.clone();
        for link in links.iter() {
            let options = InterfaceOptions::of_link(&self.options, link);
            if options.is_some_and(|o| o.capture) {
                self.ingress(link.index);
            }
        }
    }

    /// Counts the connections of a route from one ingress as added or removed.
    fn count_connections(&mut self, rule: &RouteRule, iif: &Link, oifs: &[&Link], added: bool) {
        if rule.takeover.is_some() {
            let edges = oifs.iter().map(|oif| (iif.index, oif.index));
            edges.for_each(|edge| self.connections_changed |= count(&mut self.edges, edge, added));
        }
        if yields(rule) {
            let named = oifs.iter().filter(|oif| rule.names_egress(oif));
            named.for_each(|oif| {
                self.connections_changed |= count(&mut self.watched, oif.index, added);
            });
        }
    }

    /// Counts the path of a merge that arrives on an ingress as added or removed.
    fn count_merge(&mut self, rule: &RouteRule, iif: &Link, added: bool) {
        let Some(merge) = &rule.merge else {
            return;
        };
        let links = self.links.clone();
        for peer in links.matching(&merge.with) {
            let edge = (iif.index, peer.index);
            self.connections_changed |= count(&mut self.merged, edge, added);
        }
        let name = &rule.name;
        let merges = &mut self.edit_ingress(iif.index).merges;
        match added {
            true => merges.push((name.clone(), merge.clone())),
            false => merges.retain(|(route, other)| (route, other) != (name, merge)),
        }
    }

    /// Receives router solicitations on the links where this router announces itself.
    pub fn add_router_discovery(&mut self) {
        let links = self.links.clone();
        for link in links.iter() {
            let options = InterfaceOptions::of_link(&self.options, link);
            if options.is_some_and(|o| o.mrdisc.is_some()) {
                self.ingress(link.index).receives_membership = true;
            }
        }
    }

    /// Adds a proxy.
    pub fn add_proxy(&mut self, proxy: &ProxyRule) {
        let links = self.links.clone();
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
        let all_downstreams = Arc::make_mut(&mut self.downstreams);
        all_downstreams.extend(downstreams.iter().map(|link| DownstreamInterface {
            index: link.index,
            proxy: proxy.clone(),
        }));
        // If no upstream is running, packets take the path to the first, which counts them as
        // dropped.
        let senders = || upstreams.iter().filter(|link| !link.receives_only);
        let running = senders().find(|l| l.up && l.carrier);
        let upstream_egress = running.or(senders().next()).filter(|_| proxy.upward);
        let interfaces = ProxyInterfaces {
            proxy: proxy.clone(),
            downstreams,
            first_downstream,
        };
        for iif in &upstreams {
            self.count_answering(iif.index, true);
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
        for edge in egresses.map(|oif| (iif.index, oif.index)) {
            self.connections_changed |= count(&mut self.edges, edge, true);
        }
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
            merge: None,
            monitor: proxy.monitor,
            paths: upstream_path.into_iter().collect(),
        });
        let ingress = self.ingress(iif.index);
        if ingress.proxies.len() >= MAX_PROXIES {
            let skipped = (proxy.name.clone(), iif.name.clone());
            Arc::make_mut(&mut self.skipped_proxies).push(skipped);
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
        let options = InterfaceOptions::of_link(&self.options, oif);
        let threshold = options.and_then(|options| options.ttl_threshold);
        let kernel_forwarding = options.map(|options| options.kernel_forwarding);
        let bandwidth = InterfaceOptions::bandwidth_of(&self.options, oif);
        let (egresses, path_counts, links) =
            (&mut self.egresses, &mut self.path_counts, &self.links);
        let egress = *self.egress_ids.entry(oif.index).or_insert_with(|| {
            Arc::make_mut(egresses).push(Egress {
                index: oif.index,
                name: oif.name.clone(),
                mtu: oif.mtu,
                running: oif.up && oif.carrier,
                plane: oif.plane,
                kernel_forwarding: kernel_forwarding.unwrap_or_default(),
                bandwidth,
                subnets: subnets(links.addresses(oif.index)).collect(),
                address: oif.address,
            });
            path_counts.push(0);
            egresses.len() as EgressId - 1
        });
        self.path_counts[egress as usize] += 1;
        self.count_compared(iif, oif, true);
        let path = Path {
            route: route.clone(),
            iif: iif.name.clone(),
            egress,
            threshold,
            fragment,
        };
        insert(&mut self.paths, &mut self.unused_paths, path)
    }

    fn add_entry(&mut self, entry: Entry) -> EntryId {
        self.monitors |= entry.monitor.is_some();
        insert(&mut self.entries, &mut self.unused_entries, entry)
    }

    /// Divides the interfaces into domains, and sets for each ingress how the active ingress of a
    /// stream is selected. Adds the watched egresses that are not ingresses, and removes those that
    /// are not watched any more.
    fn update_selections(&mut self) {
        let watched: Vec<InterfaceId> = self.watched.keys().copied().collect();
        for egress in &watched {
            if !self.ingresses.contains_key(egress) {
                self.edit_ingress(*egress).watch_only = true;
            }
        }
        let is_watched = |id: &InterfaceId| self.watched.contains_key(id);
        let is_unused = |(id, i): &(&InterfaceId, &Arc<Ingress>)| i.watch_only && !is_watched(id);
        if self.ingresses.iter().any(|ingress| is_unused(&ingress)) {
            Arc::make_mut(&mut self.ingresses).retain(|id, i| !is_unused(&(id, &*i)));
        }
        let mut merge_domains = AHashMap::new();
        let merged: Vec<_> = self.merged.keys().copied().collect();
        for (id, members) in connected_interfaces(&merged) {
            merge_domains.extend(members.into_iter().map(|member| (member, id)));
        }
        let moved = self.ingresses.iter().filter_map(|(id, ingress)| {
            let domain = merge_domains.get(id).copied();
            (ingress.merge_domain != domain).then_some((*id, domain))
        });
        for (id, domain) in moved.collect::<Vec<_>>() {
            self.edit_ingress(id).merge_domain = domain;
        }
        let mut selections = self.selections();
        let changed: Vec<_> = self
            .ingresses
            .iter()
            .map(|(id, ingress)| (*id, ingress, selections.remove(id)))
            .filter(|(_, ingress, selection)| ingress.selection != *selection)
            .map(|(id, _, selection)| (id, selection))
            .collect();
        for (id, selection) in changed {
            self.edit_ingress(id).selection = selection;
        }
    }

    /// Returns how the active ingress of a stream is selected, for each ingress of a domain that
    /// has several ingresses or a watched interface.
    fn selections(&self) -> AHashMap<InterfaceId, IngressSelection> {
        let mut selections = AHashMap::new();
        let edges: Vec<_> = self.edges.keys().copied().collect();
        // Interfaces from which routes and proxies forward.
        let sources: AHashSet<InterfaceId> = edges.iter().map(|(from, _)| *from).collect();
        for (id, members) in connected_interfaces(&edges) {
            let is_watched = members.iter().any(|m| self.watched.contains_key(m));
            let mut ingresses = members;
            ingresses.retain(|member| self.ingresses.contains_key(member));
            if ingresses.len() < 2 && !is_watched {
                continue;
            }
            let is_running =
                |id: &InterfaceId| self.links.get(*id).is_some_and(|l| l.up && l.carrier);
            let forwards = |id: &InterfaceId| sources.contains(id) && is_running(id);
            let is_return = |(from, to): &(InterfaceId, InterfaceId)| {
                from != to && ingresses.contains(from) && sources.contains(to)
            };
            let running: Box<[InterfaceId]> = ingresses.iter().copied().filter(forwards).collect();
            let is_two_way = edges.iter().any(is_return);
            let subnets = |id: InterfaceId| self.subnets(id).map(move |net| (id, net));
            let domain = Arc::new(IngressDomain {
                id,
                subnets: match is_two_way {
                    true => running.iter().copied().flat_map(subnets).collect(),
                    false => Box::default(),
                },
                running,
                is_two_way,
            });
            selections.extend(ingresses.into_iter().map(|interface| {
                let selection = IngressSelection {
                    interface,
                    address: self.links.get(interface).and_then(|link| link.address),
                    host_subnets: self.host_subnets(interface),
                    domain: domain.clone(),
                };
                (interface, selection)
            }));
        }
        selections
    }

    /// Returns the subnets of a downstream interface of a proxy; `None` for other interfaces.
    fn host_subnets(&self, interface: InterfaceId) -> Option<Box<[IpNet]>> {
        let is_downstream = self.downstreams.iter().any(|d| d.index == interface);
        is_downstream.then(|| self.subnets(interface).collect())
    }

    fn subnets(&self, interface: InterfaceId) -> impl Iterator<Item = IpNet> {
        let addresses = self.links.addresses(interface).iter();
        addresses.map(|address| address.on_link.trunc())
    }

    /// Returns an ingress from which packets are forwarded. Adds it if necessary.
    fn ingress(&mut self, iif: InterfaceId) -> &mut Ingress {
        let is_new = self.ingresses.get(&iif).is_none_or(|i| i.watch_only);
        self.connections_changed |= is_new;
        let ingress = self.edit_ingress(iif);
        ingress.watch_only = false;
        ingress
    }

    /// Returns an interface on which packets arrive. Adds it if necessary.
    fn edit_ingress(&mut self, iif: InterfaceId) -> &mut Ingress {
        let (links, options) = (&self.links, &self.options);
        let link = links.get(iif);
        let ingresses = Arc::make_mut(&mut self.ingresses);
        let ingress = ingresses.entry(iif).or_insert_with(|| {
            Arc::new(Ingress {
                interface: Some(iif),
                vlans_with_own_interface: links.vlan_ids_of(iif).collect(),
                plane: link.and_then(|link| link.plane),
                kernel_forwarding: link
                    .and_then(|link| InterfaceOptions::of_link(options, link))
                    .map(|options| options.kernel_forwarding)
                    .unwrap_or_default(),
                bandwidth: link
                    .filter(|link| link.receives_only)
                    .and_then(|link| InterfaceOptions::bandwidth_of(options, link)),
                ..Ingress::default()
            })
        });
        Arc::make_mut(ingress)
    }
}

/// Returns whether packets of a route are withheld from egresses to which another forwarder sends
/// them. A translated packet belongs to another stream, which other forwarders do not send.
fn yields(rule: &RouteRule) -> bool {
    rule.redundant && rule.takeover.is_some() && rule.translation.is_none()
}

/// Stores a value under an unused number. Returns the number.
fn insert<T: Clone>(values: &mut SharedVec<T>, unused: &mut Vec<u32>, value: T) -> u32 {
    match unused.pop() {
        Some(id) => {
            values.set(id as usize, value);
            id
        }
        None => {
            values.push(value);
            values.len() as u32 - 1
        }
    }
}

/// Counts one use of a key as added or removed. Returns whether it was the first or the last use.
fn count<K: Ord>(uses: &mut BTreeMap<K, usize>, key: K, added: bool) -> bool {
    match uses.entry(key) {
        Occupied(mut uses) if added => {
            *uses.get_mut() += 1;
            false
        }
        Occupied(mut uses) => {
            *uses.get_mut() -= 1;
            let is_gone = *uses.get() == 0;
            if is_gone {
                uses.remove();
            }
            is_gone
        }
        Vacant(entry) if added => {
            entry.insert(1);
            true
        }
        Vacant(_) => false,
    }
}

/// Returns the interfaces of each connected component of a graph, by their lowest ID.
fn connected_interfaces(
    edges: &[(InterfaceId, InterfaceId)],
) -> BTreeMap<InterfaceId, Vec<InterfaceId>> {
    // Each interface points to one with a lower ID in the same component, the lowest to itself.
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
    let mut components: BTreeMap<InterfaceId, Vec<InterfaceId>> = BTreeMap::new();
    for interface in interfaces {
        let id = lowest(&mut lower, interface);
        components.entry(id).or_default().push(interface);
    }
    components
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::super::rib::Rib;
    use super::super::rib_change::{ChangedRule, RibChange};
    use super::*;
    use crate::model::{IfPattern, LinkAddress, TtlThreshold};

    const LINKS: [&str; 5] = ["eth0", "eth1", "br0", "br1", "tap0"];
    const PATTERNS: [&str; 8] = ["eth0", "eth1", "br0", "br1", "tap0", "eth*", "br*", "gone"];

    fn links() -> Links {
        let index = |n| InterfaceId::new(n).unwrap();
        let link = |(n, name): (u32, &&str)| Link::new(index(n), name.parse().unwrap());
        let mut links: Links = (1..).zip(&LINKS).map(link).collect();
        let on_link: IpNet = "10.0.0.1/24".parse().unwrap();
        let address = LinkAddress {
            address: on_link.addr(),
            on_link,
        };
        links.insert_address(index(1), address);
        links
    }

    fn patterns(numbers: &[usize]) -> Vec<IfPattern> {
        let pattern = |n: &usize| PATTERNS[*n].parse().unwrap();
        numbers.iter().map(pattern).collect()
    }

    /// Describes what a table forwards, without the numbers of entries, paths and egresses.
    fn description(fib: &Fib) -> BTreeSet<String> {
        let path = |id: &PathId| {
            let path = &fib.paths[*id as usize];
            let egress = &fib.egresses[path.egress as usize];
            let (threshold, fragment) = (path.threshold, path.fragment);
            format!(
                "{} {} {egress:?} {threshold:?} {fragment:?}",
                path.route, path.iif
            )
        };
        let entry = |id: EntryId| {
            let entry = &fib.entries[id as usize];
            let paths: Vec<String> = entry.paths.iter().map(path).collect();
            let without_paths = Entry {
                paths: Vec::new(),
                ..entry.clone()
            };
            format!("{without_paths:?} {paths:?}")
        };
        let mut lines = BTreeSet::new();
        for (id, ingress) in fib.ingresses.iter() {
            let keys = (0..4).map(|n| format!("225.0.0.{n}/32"));
            for group in keys.chain(["225.0.0.0/30".into()]) {
                let group = group.parse().unwrap();
                for source in ["0.0.0.0/0", "10.0.0.9/32"] {
                    let found = ingress.entries.get(group, source.parse().unwrap());
                    let found = found.map(|id| entry(*id));
                    lines.insert(format!("{id} {source} {group}: {found:?}"));
                }
            }
            for proxy in &ingress.proxies {
                let paths = proxy.downstream_paths.iter().flatten().map(path);
                let paths: Vec<String> = paths.collect();
                lines.insert(format!("{id} {} {paths:?}", entry(proxy.entry)));
            }
            let (entries, messages) = (ingress.entries.len(), ingress.receives_membership);
            let (selection, watch_only) = (&ingress.selection, ingress.watch_only);
            lines.insert(format!(
                "{id} {entries} {messages} {} {watch_only} {selection:?}",
                ingress.answers_queries
            ));
        }
        let egresses = fib.egresses.iter().map(|egress| format!("{egress:?}"));
        lines.extend(egresses);
        lines.insert(format!("{:?} {:?}", fib.downstreams, fib.skipped_proxies));
        lines.insert(format!("{:?}", fib.subnet_conflicts));
        lines
    }

    #[test]
    fn paths_of_patterns_have_the_names_of_links() {
        let rule = RouteRule {
            name: RouteName::new("r"),
            ..RouteRule::new(
                "eth*".parse().unwrap(),
                "225.0.0.1/32".parse().unwrap(),
                patterns(&[2, 6, 7]),
            )
        };
        let builder = FibBuilder::new(&[], &links(), Arc::default());
        let names: Vec<String> = (builder.path_names(&rule).iter())
            .map(|(route, iif, oif)| format!("{route} {iif} {oif}"))
            .collect();
        assert_eq!(
            names,
            ["r eth0 br0", "r eth0 br1", "r eth1 br0", "r eth1 br1"]
        );
    }

    /// Streams have an active ingress only where they can arrive on several.
    #[test]
    fn several_ingresses_of_an_egress_select_an_active_one() {
        let selections = |from: &str, takeover: bool| {
            let mut rule = RouteRule::new(
                from.parse().unwrap(),
                "225.0.0.1/32".parse().unwrap(),
                patterns(&[2]),
            );
            rule.redundant = false;
            if !takeover {
                rule.takeover = None;
            }
            let rib = Rib {
                rules: vec![rule].into(),
                ..Rib::default()
            };
            let fib = rib.build_fib(&links(), 1);
            let ingresses = fib.ingresses.values();
            ingresses
                .filter(|ingress| ingress.selection.is_some())
                .count()
        };
        assert_eq!(selections("eth*", true), 2);
        assert_eq!(selections("eth*", false), 0);
        assert_eq!(selections("eth0", true), 0);
    }

    fn rule() -> impl Strategy<Value = RouteRule> {
        let to = prop::collection::vec(0usize..PATTERNS.len(), 0..4);
        let options = (any::<bool>(), any::<bool>(), any::<bool>());
        (0usize..PATTERNS.len(), 0u8..5, any::<bool>(), to, options).prop_map(
            |(from, group, any_source, to, (redundant, selective, loop_guard))| {
                let group = match group {
                    4 => "225.0.0.0/30".into(),
                    n => format!("225.0.0.{n}/32"),
                };
                let from = patterns(&[from]).remove(0);
                let rule = RouteRule::new(from, group.parse().unwrap(), patterns(&to));
                let source = match any_source {
                    true => "0.0.0.0/0",
                    false => "10.0.0.9/32",
                };
                let source = source.parse().unwrap();
                RouteRule {
                    name: RouteName::default_for(&rule.from, source, rule.group),
                    source,
                    redundant,
                    takeover: rule.takeover.filter(|_| selective),
                    loop_guard,
                    ..rule
                }
            },
        )
    }

    proptest! {
        /// If `apply` returns true, the next table equals one that is built from all rules.
        #[test]
        fn changed_table_equals_one_built_from_all_rules(
            first in prop::collection::vec(rule(), 0..6),
            steps in prop::collection::vec((0u8..3, rule()), 1..30),
            proxied in any::<bool>(),
        ) {
            let links = links();
            let mut proxy = ProxyRule::new(patterns(&[0]), patterns(&[2, 4]));
            proxy.name = RouteName::new("proxy");
            let options = InterfaceOptions {
                name: "br*".parse().unwrap(),
                ttl_threshold: TtlThreshold::new(3),
                mrdisc: None,
                disabled: false,
                capture: false,
                kernel_forwarding: Default::default(),
                bandwidth: None,
                reports: Default::default(),
            };
            let mut rib = Rib {
                interfaces: vec![options],
                proxies: Vec::from_iter(proxied.then_some(proxy)),
                ..Rib::default()
            };
            first.into_iter().for_each(|rule| {
                let _ = rib.add(rule);
            });
            let mut builder = rib.fib_builder(&links);
            let mut former = builder.build(0);
            for (generation, (operation, mut rule)) in (1..).zip(steps) {
                if operation == 2 {
                    rule.to.clear();
                }
                let change = match operation {
                    0 => RibChange::AddRoute { rule: Box::new(rule), allow_no_effect: true },
                    _ => RibChange::RemoveRoute(Box::new(rule)),
                };
                let Ok((ChangedRule::Route(change), _)) = change.apply(&mut rib) else {
                    continue;
                };
                let before = description(&former);
                if !builder.apply(&change) {
                    builder = rib.fib_builder(&links);
                }
                let built = builder.build(generation);
                let expected = description(&rib.build_fib(&links, generation));
                prop_assert_eq!(description(&built), expected);
                // The former table is in force until the next one is.
                prop_assert_eq!(description(&former), before);
                former = built;
            }
        }
    }

    /// Single routes are added and removed without a table that is built from all rules.
    #[test]
    fn single_routes_are_applied() {
        let links = links();
        let mut rib = Rib::default();
        let mut builder = rib.fib_builder(&links);
        let rule = |n: u32| {
            let group = format!("225.1.2.{n}").parse().unwrap();
            let rule = RouteRule::new("eth0".parse().unwrap(), group, patterns(&[1]));
            RouteRule {
                name: RouteName::new(n.to_string()),
                ..rule
            }
        };
        for n in 1..=100 {
            let change = rib.add(rule(n)).unwrap();
            assert!(builder.apply(&change), "{n}");
        }
        // The last route keeps its interfaces in use.
        for n in 2..=100 {
            let RouteRule {
                from,
                source,
                group,
                ..
            } = rule(n);
            let change = rib.remove(&from, source, group, &[]).unwrap();
            assert!(builder.apply(&change), "{n}");
        }
        let all = rib.fib_builder(&links).build(1);
        assert_eq!(description(&builder.build(1)), description(&all));
    }

    #[test]
    fn added_route_shares_most_entries_and_reuses_unused_ones() {
        let rule = |n: u32| {
            let group = format!("225.1.{}.{}", n / 256, n % 256).parse().unwrap();
            RouteRule::new("eth0".parse().unwrap(), group, patterns(&[1]))
        };
        let mut rib = Rib {
            rules: (0..10_000).map(rule).collect(),
            ..Rib::default()
        };
        let mut builder = rib.fib_builder(&links());
        let old = builder.build(1);
        let added = rib.add(rule(10_000)).unwrap();
        assert!(builder.apply(&added));
        let new = builder.build(2);
        assert!(new.entries.unshared(&old.entries).count() <= 64);
        assert!(new.paths.unshared(&old.paths).count() <= 64);
        for n in 0..100 {
            let (from, rule) = ("eth0".parse().unwrap(), rule(n));
            let removed = rib.remove(&from, rule.source, rule.group, &[]).unwrap();
            assert!(builder.apply(&removed));
            assert!(builder.apply(&rib.add(rule).unwrap()));
        }
        let last = builder.build(3);
        assert_eq!(last.entries.len(), 10_001);
        assert_eq!(last.paths.len(), 10_001);
    }

    #[test]
    fn connected_interfaces_share_the_lowest_id() {
        let id = |n| InterfaceId::new(n).unwrap();
        let edges = [(9, 4), (7, 2), (4, 7), (5, 6), (8, 8)].map(|(a, b)| (id(a), id(b)));
        let components = connected_interfaces(&edges);
        let expected = [(2, vec![2, 4, 7, 9]), (5, vec![5, 6]), (8, vec![8])];
        let expected = expected.map(|(n, ids)| (id(n), ids.into_iter().map(id).collect()));
        assert_eq!(components, BTreeMap::from(expected));
    }
}
