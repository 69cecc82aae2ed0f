//! Builds a forwarding table from rules and links.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use ahash::AHashMap;

use super::fib::{DownstreamInterface, Egress, Entry, Fib, Ingress, Path, ProxyIngress};
use super::ids::{DownstreamId, EgressId, EntryId, PathId};
use super::interface_options::InterfaceOptions;
use super::upstream_selector::UpstreamRule;
use crate::model::{
    FragmentPolicy, IfName, InterfaceId, Link, Links, MAX_PROXIES, ProxyRule, RouteName, RouteRule,
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
        }
    }

    /// Returns the forwarding table, with an empty OIF table.
    pub(super) fn build(self, generation: u64) -> Fib {
        Fib {
            generation,
            ingresses: Arc::new(self.ingresses),
            entries: Arc::new(self.entries),
            egresses: Arc::new(self.egresses),
            paths: Arc::new(self.paths),
            downstreams: Arc::new(self.downstreams),
            skipped_proxies: Arc::new(self.skipped_proxies),
            oif_table: Default::default(),
        }
    }

    pub(super) fn add_route(&mut self, rule: &RouteRule) {
        let links = self.links;
        for iif in rule.ingresses(links) {
            let oifs = rule.egresses(iif.index, links);
            let rule_of_path = (&rule.name, rule.fragment);
            let paths = oifs.iter().map(|oif| self.add_path(rule_of_path, iif, oif));
            let paths = paths.collect();
            let entry = self.add_entry(Entry {
                route: rule.name.clone(),
                except_sources: rule.except_sources.clone(),
                ttl: rule.ttl,
                link_local: rule.link_local,
                link_local_sources: rule.forwards_link_local_sources(),
                loop_guard: rule.loop_guard,
                translation: rule.translation,
                paths,
            });
            let entries = &mut self.ingress(iif.index).entries;
            entries.insert(rule.group, rule.source, entry);
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
        let mut hasher = DefaultHasher::new();
        proxy.name.hash(&mut hasher);
        let upstream_rule = |interface: InterfaceId| UpstreamRule {
            interface,
            proxy: hasher.finish(),
            takeover_ms: proxy.takeover.as_millis() as u64,
            upstreams: upstreams
                .iter()
                .filter(|l| l.up && l.carrier)
                .map(|l| l.index)
                .collect(),
        };
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
            let rule = (upstreams.len() > 1).then(|| upstream_rule(iif.index));
            self.add_proxy_ingress(&interfaces, iif, None, rule);
        }
        for iif in &interfaces.downstreams {
            self.add_proxy_ingress(&interfaces, iif, upstream_egress.copied(), None);
        }
    }

    fn add_proxy_ingress(
        &mut self,
        interfaces: &ProxyInterfaces<'_>,
        iif: &Link,
        upstream_egress: Option<&Link>,
        upstream_rule: Option<UpstreamRule>,
    ) {
        let proxy = &interfaces.proxy;
        let rule = (&proxy.name, proxy.fragment);
        let upstream_path = upstream_egress.map(|oif| self.add_path(rule, iif, oif));
        let downstream_paths = interfaces.downstreams.iter().map(|oif| {
            let is_other = oif.index != iif.index;
            is_other.then(|| self.add_path(rule, iif, oif))
        });
        let downstream_paths = downstream_paths.collect();
        let entry = self.add_entry(Entry {
            route: proxy.name.clone(),
            except_sources: Vec::new(),
            ttl: proxy.ttl,
            link_local: false,
            link_local_sources: proxy.link_local_sources,
            loop_guard: proxy.ttl.allows_endless_loop(),
            translation: None,
            paths: upstream_path.into_iter().collect(),
        });
        let ingress = self.ingress(iif.index);
        ingress.receives_membership = true;
        if ingress.proxies.len() >= MAX_PROXIES {
            let skipped = (proxy.name.clone(), iif.name.clone());
            self.skipped_proxies.push(skipped);
            return;
        }
        ingress.proxies.push(ProxyIngress {
            entry,
            proxy: proxy.clone(),
            upstream_rule,
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
        let egresses = &mut self.egresses;
        let egress = *self.egress_ids.entry(oif.index).or_insert_with(|| {
            egresses.push(Egress {
                index: oif.index,
                name: oif.name.clone(),
                mtu: oif.mtu,
                running: oif.up && oif.carrier,
                plane: oif.plane,
            });
            egresses.len() as EgressId - 1
        });
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
