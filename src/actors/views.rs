//! What routing shows: rules, interfaces and what waits, as readers see them.

use crate::api::view::{FlowView, InterfaceView, PathView, PendingView, RewriteView, RouteView};
use crate::forward::{DropReason, look_up, ways};
use crate::metrics::{Catalog, InterfaceCounters};
use crate::model::{IfPattern, Link, Links, MOST_PROXIES, ProxyRule, RouteRule, TranslationRule};
use crate::table::flows::{Flow, FlowKey};
use crate::table::{Fib, Ingress, Rib};

fn texts<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

/// Every rule and every proxy, with the paths it opens on these links.
pub fn routes(
    rib: &Rib,
    links: &Links,
    fib: &Fib,
    catalog: &Catalog,
    plane: &str,
) -> Vec<RouteView> {
    let view = |rule: &RouteRule| RouteView {
        name: rule.name.to_string(),
        origin: rule.origin.to_string(),
        from: rule.from.to_string(),
        source: rule.source.to_string(),
        except_sources: texts(&rule.except_sources),
        group: rule.group.to_string(),
        to: texts(&rule.to),
        ttl: rule.ttl.to_string(),
        link_local: rule.link_local,
        rewrite: rule.rewrite.as_ref().map(rewrite),
        paths: paths(rule, links, catalog, plane),
        waiting_for: waiting_for(rule.from_and_to(), links),
    };
    let proxies = rib.proxies.iter();
    let learned = proxies.map(|p| proxy(p, links, fib, catalog, plane));
    rib.rules.iter().map(view).chain(learned).collect()
}

/// A proxy as the route that it is for every group somebody asked for.
fn proxy(proxy: &ProxyRule, links: &Links, fib: &Fib, catalog: &Catalog, plane: &str) -> RouteView {
    let names = |list: &[IfPattern]| texts(list).join(" ");
    let own = fib.paths.iter().filter(|path| path.route == proxy.name);
    let paths = own.filter_map(|path| {
        let oif = &fib.egresses.get(path.egress as usize)?.name;
        let counters = catalog.path(&proxy.name, path.iif.as_str(), oif.as_str(), plane);
        Some(PathView {
            iif: path.iif.to_string(),
            oif: oif.to_string(),
            packets: counters.packets.get(),
            bytes: counters.bytes.get(),
        })
    });
    RouteView {
        name: proxy.name.to_string(),
        origin: "proxy".into(),
        from: names(&proxy.upstream),
        source: "*".into(),
        except_sources: texts(&proxy.deny_sources),
        group: "*".into(),
        to: texts(&proxy.downstream),
        ttl: proxy.ttl.to_string(),
        link_local: false,
        rewrite: None,
        paths: paths.collect(),
        waiting_for: waiting_for(proxy.upstream.iter().chain(&proxy.downstream), links),
    }
}

fn rewrite(rewrite: &TranslationRule) -> RewriteView {
    let (source, group) = rewrite.becomes();
    RewriteView {
        source: source.map(|s| s.to_string()),
        group: group.map(|g| g.to_string()),
        port: rewrite.port().map(u16::from),
    }
}

fn paths(rule: &RouteRule, links: &Links, catalog: &Catalog, plane: &str) -> Vec<PathView> {
    let mut paths = Vec::new();
    for iif in Rib::ingresses_of(rule, links) {
        for oif in Rib::egresses_of(rule, iif.index, links) {
            let counters = catalog.path(&rule.name, iif.name.as_str(), oif.name.as_str(), plane);
            paths.push(PathView {
                iif: iif.name.to_string(),
                oif: oif.name.to_string(),
                packets: counters.packets.get(),
                bytes: counters.bytes.get(),
            });
        }
    }
    paths
}

/// The names and patterns that no link fits.
fn waiting_for<'a>(wanted: impl Iterator<Item = &'a IfPattern>, links: &Links) -> Vec<String> {
    wanted
        .filter(|p| links.matching(p).next().is_none())
        .map(ToString::to_string)
        .collect()
}

/// Every rule and join with a name or pattern that no link fits, and proxies that found no place.
pub fn pending(rib: &Rib, links: &Links, fib: &Fib) -> Vec<PendingView> {
    let routes = rib.rules.iter().map(|rule| PendingView {
        kind: "route".into(),
        name: rule.name.to_string(),
        waiting_for: waiting_for(rule.from_and_to(), links),
        origin: rule.origin.to_string(),
    });
    let joins = rib.joins.iter().map(|join| PendingView {
        kind: "join".into(),
        name: join.to_string(),
        waiting_for: waiting_for(std::iter::once(&join.interface), links),
        origin: join.origin.to_string(),
    });
    let proxies = rib.proxies.iter().map(|proxy| PendingView {
        kind: "proxy".into(),
        name: proxy.name.to_string(),
        waiting_for: waiting_for(proxy.upstream.iter().chain(&proxy.downstream), links),
        origin: "settings".into(),
    });
    let left_out = fib.left_out.iter().map(|(proxy, iface)| PendingView {
        kind: "proxy".into(),
        name: proxy.to_string(),
        waiting_for: vec![format!(
            "a place among the {MOST_PROXIES} proxies of {iface}"
        )],
        origin: "settings".into(),
    });
    routes
        .chain(joins)
        .chain(proxies)
        .chain(left_out)
        .filter(|p| !p.waiting_for.is_empty())
        .collect()
}

/// Whether packets of any route arrive on a link, and whether any leave on it.
pub fn uses(fib: &Fib, link: &Link) -> (bool, bool) {
    (
        fib.ingresses.contains_key(&link.index),
        fib.egresses.iter().any(|e| e.index == link.index),
    )
}

/// Every link, with what is counted on it.
pub fn interfaces(rib: &Rib, links: &Links, fib: &Fib, catalog: &Catalog) -> Vec<InterfaceView> {
    links
        .iter()
        .map(|link| interface(rib, link, fib, catalog))
        .collect()
}

fn interface(rib: &Rib, link: &Link, fib: &Fib, catalog: &Catalog) -> InterfaceView {
    let (ingress, egress) = uses(fib, link);
    // Asking for the counters of an interface makes them; one that no route uses has none.
    let counters = (ingress || egress).then(|| catalog.interface(link.name.as_str()));
    let downstream = fib.downstreams.iter().find(|d| d.index == link.index);
    let upstream_of = rib
        .proxies
        .iter()
        .filter(|p| p.upstream.iter().any(|u| link.fits(u)))
        .map(|p| p.name.to_string());
    let count = |of: fn(&InterfaceCounters) -> u64| counters.as_ref().map_or(0, of);
    InterfaceView {
        index: link.index.get(),
        name: link.name.to_string(),
        up: link.up,
        carrier: link.carrier,
        mtu: link.mtu,
        disabled: rib.options(link).is_some_and(|o| o.disabled),
        ingress,
        egress,
        ttl_threshold: rib.ttl_threshold(link).map(|t| t.get()),
        received_packets: count(|c| c.received_packets.get()),
        transmitted_packets: count(|c| c.transmitted_packets.get()),
        dropped_packets: DropReason::ALL
            .iter()
            .filter_map(|r| {
                let n = counters.as_ref()?.dropped(*r).get();
                (n > 0).then(|| (r.label().to_string(), n))
            })
            .collect(),
        socket_dropped_packets: count(|c| c.socket_dropped.get()),
        downstream_of: downstream.map(|d| d.proxy.name.to_string()),
        upstream_of: upstream_of.collect(),
        queriers: Vec::new(),
    }
}

/// A flow that arrives on `iif`, as the snapshot of `fib` forwards it at `now_ms`.
pub fn flow(
    iif: &str,
    ingress: Option<&Ingress>,
    (key, flow): (&FlowKey, &Flow),
    fib: &Fib,
    now_ms: u64,
) -> FlowView {
    let found = ingress.and_then(|i| Some((i, look_up(fib, i, *key).ok()?)));
    let ways = || {
        let (ingress, verdicts) = found?;
        Some(ways(fib, ingress, verdicts))
    };
    let route = ways().and_then(|mut all| all.next());
    let mut oifs: Vec<String> = Vec::new();
    for (_, paths) in ways().into_iter().flatten() {
        for egress in paths.filter_map(|path| fib.egress_of(path)) {
            let name = egress.name.to_string();
            if !oifs.contains(&name) {
                oifs.push(name);
            }
        }
    }
    FlowView {
        iif: iif.into(),
        source: key.0.to_string(),
        group: key.1.to_string(),
        route: route.map(|(entry, _)| entry.route.to_string()),
        oifs,
        packets: flow.packets,
        bytes: flow.bytes,
        age_ms: now_ms.saturating_sub(flow.began_ms),
        idle_ms: now_ms.saturating_sub(flow.seen_ms),
    }
}
