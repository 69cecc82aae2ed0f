//! A snapshot in the making: rules and proxies on the links there are.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use ahash::AHashMap;

use super::fib::{DownstreamInterface, Egress, Entry, Fib, Ingress, Path, ProxyIngress};
use super::ids::{DownstreamId, EgressId, EntryId, PathId};
use super::rib::Rib;
use super::upstream_selector::UpstreamRule;
use crate::model::{
    IfName, IfPattern, InterfaceId, Link, Links, MOST_PROXIES, ProxyRule, RouteName, RouteRule,
};

pub(super) struct Draft<'a> {
    rib: &'a Rib,
    links: &'a Links,
    egress_ids: AHashMap<InterfaceId, EgressId>,
    ingresses: AHashMap<InterfaceId, Ingress>,
    entries: Vec<Entry>,
    egresses: Vec<Egress>,
    paths: Vec<Path>,
    downstreams: Vec<DownstreamInterface>,
    left_out: Vec<(RouteName, IfName)>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(rib: &'a Rib, links: &'a Links) -> Self {
        Self {
            rib,
            links,
            egress_ids: AHashMap::new(),
            ingresses: AHashMap::new(),
            entries: Vec::new(),
            egresses: Vec::new(),
            paths: Vec::new(),
            downstreams: Vec::new(),
            left_out: Vec::new(),
        }
    }

    pub(super) fn finish(self, generation: u64) -> Fib {
        Fib {
            generation,
            ingresses: Arc::new(self.ingresses),
            entries: Arc::new(self.entries),
            egresses: Arc::new(self.egresses),
            paths: Arc::new(self.paths),
            downstreams: Arc::new(self.downstreams),
            left_out: Arc::new(self.left_out),
            oif_table: Default::default(),
        }
    }

    pub(super) fn rule(&mut self, rule: &RouteRule) {
        for iif in Rib::ingresses_of(rule, self.links) {
            let oifs = Rib::egresses_of(rule, iif.index, self.links);
            let paths = oifs.iter().map(|oif| self.path(&rule.name, iif, oif));
            let paths = paths.collect();
            let entry = self.entry(Entry {
                route: rule.name.clone(),
                except_sources: rule.except_sources.clone(),
                ttl: rule.ttl,
                link_local: rule.link_local,
                loop_guard: rule.loop_guard,
                translation: rule.translation,
                paths,
            });
            let entries = &mut self.ingress(iif.index).entries;
            entries.insert(rule.group, rule.source, entry);
        }
    }

    /// Hears the switches of links on which we announce ourselves.
    pub(super) fn announced(&mut self) {
        let (rib, links) = (self.rib, self.links);
        let announced = |link: &&Link| rib.options(link).is_some_and(|o| o.mrdisc.is_some());
        for link in links.iter().filter(announced) {
            self.ingress(link.index).receives_membership = true;
        }
    }

    pub(super) fn proxy(&mut self, proxy: &ProxyRule) {
        let links = self.links;
        let upstreams = proxy_upstreams(proxy, links);
        let mut downstreams = matching(&proxy.downstream, links);
        downstreams.retain(|link| {
            let upstream = upstreams.iter().any(|u| u.index == link.index);
            !upstream && !self.downstreams.iter().any(|d| d.index == link.index)
        });
        let proxy = Arc::new(proxy.clone());
        let first = self.downstreams.len() as DownstreamId;
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
        // Where none runs, what is sent up is counted as dropped by the one that should.
        let running = upstreams.iter().find(|l| l.up && l.carrier);
        let up = running.or(upstreams.first()).filter(|_| proxy.upward);
        for iif in &upstreams {
            let upstream_rule = (upstreams.len() > 1).then(|| upstream_rule(iif.index));
            self.proxy_ingress(&proxy, first, &downstreams, (iif, None), upstream_rule);
        }
        for iif in &downstreams {
            self.proxy_ingress(&proxy, first, &downstreams, (iif, up), None);
        }
    }

    fn proxy_ingress(
        &mut self,
        proxy: &Arc<ProxyRule>,
        first: DownstreamId,
        downstreams: &[&Link],
        (iif, up): (&Link, Option<&&Link>),
        upstream_rule: Option<UpstreamRule>,
    ) {
        let up = up.map(|up| self.path(&proxy.name, iif, up));
        let paths = downstreams.iter().map(|oif| {
            let elsewhere = oif.index != iif.index;
            elsewhere.then(|| self.path(&proxy.name, iif, oif))
        });
        let paths = paths.collect();
        let entry = self.entry(Entry {
            route: proxy.name.clone(),
            except_sources: Vec::new(),
            ttl: proxy.ttl,
            link_local: false,
            loop_guard: proxy.ttl.can_feed_a_loop(),
            translation: None,
            paths: up.into_iter().collect(),
        });
        let ingress = self.ingress(iif.index);
        ingress.receives_membership = true;
        let proxies = &mut ingress.proxies;
        if proxies.len() >= MOST_PROXIES {
            self.left_out.push((proxy.name.clone(), iif.name.clone()));
            return;
        }
        proxies.push(ProxyIngress {
            entry,
            proxy: proxy.clone(),
            upstream_rule,
            first,
            paths,
        });
    }

    fn path(&mut self, route: &RouteName, iif: &Link, oif: &Link) -> PathId {
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
        self.paths.push(Path {
            route: route.clone(),
            iif: iif.name.clone(),
            egress,
            threshold: self.rib.ttl_threshold(oif),
        });
        self.paths.len() as PathId - 1
    }

    fn entry(&mut self, entry: Entry) -> EntryId {
        self.entries.push(entry);
        self.entries.len() as EntryId - 1
    }

    fn ingress(&mut self, iif: InterfaceId) -> &mut Ingress {
        let links = self.links;
        self.ingresses.entry(iif).or_insert_with(|| Ingress {
            vlans_with_own_interface: links.vlans_on(iif).collect(),
            plane: links.get(iif).and_then(|link| link.plane),
            ..Ingress::default()
        })
    }
}

/// The links that are upstream of a proxy, in the order of its patterns.
pub(super) fn proxy_upstreams<'a>(proxy: &ProxyRule, links: &'a Links) -> Vec<&'a Link> {
    matching(&proxy.upstream, links)
}

/// The links that fit any of the patterns, each once, in the order of these.
pub(super) fn matching<'a>(patterns: &[IfPattern], links: &'a Links) -> Vec<&'a Link> {
    let mut found: Vec<&Link> = Vec::new();
    for pattern in patterns {
        for link in links.iter().filter(|l| l.fits(pattern)) {
            if !found.iter().any(|f| f.index == link.index) {
                found.push(link);
            }
        }
    }
    found
}
