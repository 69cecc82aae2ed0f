//! Renders routes, interfaces, pending rules and MNAT mappings.

use std::time::Duration;

use crate::actors::messages::{MnatStatus, RoutingTables, TunnelEnd, TunnelReport};
use crate::api::view::{
    BandwidthView, InterfaceView, MappingView, MergeView, MnatView, PathView, PendingView,
    QuerierView, RewriteView, RouteView, TunnelView,
};
use crate::forward::DropReason;
use crate::membership::{Protocol, QuerierStatus};
use crate::merge::{MergeStatistics, Merges};
use crate::metrics::{Catalog, InterfaceCounters};
use crate::mnat::Channel;
use crate::model::{
    IfPattern, InterfaceId, Link, Links, MAX_PROXIES, MergePath, MergeRule, ProxyRule, RouteRule,
    TranslationRule,
};
use crate::table::{BandwidthLimit, BandwidthTable, Fib, InterfaceOptions, Rib};

fn texts<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

/// Renders every route and every proxy, with its present paths.
pub fn routes(tables: &RoutingTables, catalog: &Catalog, merges: &Merges) -> Vec<RouteView> {
    let RoutingTables {
        rib, links, fib, ..
    } = tables;
    let links = &rib.usable(links);
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
        rewrite: rule.translation.as_ref().map(rewrite),
        merge: rule.merge.as_ref().map(|merge| {
            let counts = merges.statistics(&rule.name).unwrap_or_default();
            merge_view(merge, &counts)
        }),
        paths: paths(rule, links, catalog),
        waiting_for: waiting_for(rule.interface_patterns(), links),
    };
    let proxies = rib.proxies.iter();
    let proxies = proxies.map(|p| proxy(p, links, fib, catalog));
    rib.rules.iter().map(view).chain(proxies).collect()
}

/// Renders a proxy as a route for every group.
fn proxy(proxy: &ProxyRule, links: &Links, fib: &Fib, catalog: &Catalog) -> RouteView {
    let names = |list: &[IfPattern]| texts(list).join(" ");
    let own = fib.paths.iter().filter(|path| path.route == proxy.name);
    let paths = own.filter_map(|path| {
        let oif = &fib.egresses.get(path.egress as usize)?.name;
        let counters = catalog.path_totals(&proxy.name, path.iif.as_str(), oif.as_str());
        Some(PathView {
            iif: path.iif.to_string(),
            oif: oif.to_string(),
            packets: counters.packets,
            bytes: counters.bytes,
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
        merge: None,
        paths: paths.collect(),
        waiting_for: waiting_for(proxy.upstream.iter().chain(&proxy.downstream), links),
    }
}

/// Renders one path of a merge.
fn merge_view(merge: &MergeRule, counts: &MergeStatistics) -> MergeView {
    let path = match merge.path {
        MergePath::First => "first",
        MergePath::Second => "second",
    };
    MergeView {
        path: path.into(),
        with: merge.with.to_string(),
        window_ms: merge.window.as_millis() as u64,
        by: merge.by.to_string(),
        streams: counts.streams,
        skew_us: counts.skew_ns / 1000,
        peak_skew_us: counts.peak_skew_ns / 1000,
        received: counts.received,
        lost: counts.lost,
        lost_on_both: counts.lost_on_both,
        duplicates: counts.duplicates,
        late: counts.late,
        held: counts.held,
        restarts: counts.restarts,
        limited: counts.limited,
        by_payload: counts.by_payload,
    }
}

/// Renders a translation.
pub fn rewrite(rewrite: &TranslationRule) -> RewriteView {
    let (source, group) = rewrite.replacements();
    RewriteView {
        source: source.map(|s| s.to_string()),
        group: group.map(|g| g.to_string()),
        port: rewrite.port().map(u16::from),
    }
}

fn paths(rule: &RouteRule, links: &Links, catalog: &Catalog) -> Vec<PathView> {
    let mut paths = Vec::new();
    for iif in rule.ingresses(links) {
        for oif in rule.egresses(iif.index, links) {
            let counters = catalog.path_totals(&rule.name, iif.name.as_str(), oif.name.as_str());
            paths.push(PathView {
                iif: iif.name.to_string(),
                oif: oif.name.to_string(),
                packets: counters.packets,
                bytes: counters.bytes,
            });
        }
    }
    paths
}

/// Returns the names and patterns that match no link.
fn waiting_for<'a>(wanted: impl Iterator<Item = &'a IfPattern>, links: &Links) -> Vec<String> {
    wanted
        .filter(|p| links.matching(p).next().is_none())
        .map(ToString::to_string)
        .collect()
}

/// Renders every rule and join with a name or pattern that matches no link, and every proxy beyond
/// the limit of proxies per interface.
pub fn pending(tables: &RoutingTables) -> Vec<PendingView> {
    let rib = &tables.rib;
    let routes = rib.rules.iter().filter_map(|rule| {
        let name = rule.name.to_string();
        let origin = rule.origin.to_string();
        waiting(tables, "route", name, origin, rule.interface_patterns())
    });
    let joins = rib.joins.iter().filter_map(|join| {
        let origin = join.origin.to_string();
        let patterns = std::iter::once(&join.interface);
        waiting(tables, "join", join.to_string(), origin, patterns)
    });
    let proxies = rib.proxies.iter().filter_map(|proxy| {
        let patterns = proxy.upstream.iter().chain(&proxy.downstream);
        let name = proxy.name.to_string();
        waiting(tables, "proxy", name, "settings".into(), patterns)
    });
    let left_out = tables
        .fib
        .skipped_proxies
        .iter()
        .map(|(proxy, iface)| PendingView {
            kind: "proxy".into(),
            name: proxy.to_string(),
            waiting_for: vec![format!("fewer than {MAX_PROXIES} other proxies of {iface}")],
            hints: Vec::new(),
            origin: "settings".into(),
        });
    routes.chain(joins).chain(proxies).chain(left_out).collect()
}

/// Returns a hint about why a name matches no link.
pub fn name_hint(tables: &RoutingTables, name: &IfPattern) -> Option<String> {
    let of_engine = tables.aliases.hint(name).map(|hint| hint.to_string());
    let similar = || Some(format!("did you mean {}?", tables.links.similar(name)?));
    of_engine.or_else(similar)
}

/// Renders a rule with a name or pattern that matches no link.
fn waiting<'a>(
    tables: &RoutingTables,
    kind: &str,
    name: String,
    origin: String,
    patterns: impl Iterator<Item = &'a IfPattern>,
) -> Option<PendingView> {
    let unmatched = |p: &&IfPattern| tables.links.matching(p).next().is_none();
    let unmatched: Vec<&IfPattern> = patterns.filter(unmatched).collect();
    let hint = |p: &&IfPattern| Some(format!("{p}: {}", name_hint(tables, p)?));
    (!unmatched.is_empty()).then(|| PendingView {
        kind: kind.into(),
        name,
        waiting_for: unmatched.iter().map(ToString::to_string).collect(),
        hints: unmatched.iter().filter_map(hint).collect(),
        origin,
    })
}

/// Renders every link with its counters. `fib` is the forwarding table in force.
pub fn interfaces(
    tables: &RoutingTables,
    fib: &Fib,
    catalog: &Catalog,
    bandwidth: &BandwidthTable,
) -> Vec<InterfaceView> {
    let links = tables.links.iter();
    let views = links.map(|link| InterfaceView {
        bandwidth: InterfaceOptions::bandwidth_of(&tables.rib.interfaces, link)
            .map(|limit| bandwidth_view(limit, bandwidth)),
        ..interface(&tables.rib, link, fib, catalog)
    });
    views.collect()
}

/// The refused streams that an interface lists.
const LISTED_STREAMS: usize = 16;

/// Renders the limit of an interface.
fn bandwidth_view(limit: BandwidthLimit, table: &BandwidthTable) -> BandwidthView {
    let BandwidthLimit { interface, limit } = limit;
    let usage = table.usage(interface);
    let refused = table.refused(interface).into_iter().take(LISTED_STREAMS);
    BandwidthView {
        limit: limit.bits(),
        admitted: usage.map_or(0, |usage| usage.admitted.bits()),
        refused: usage.map_or(0, |usage| usage.refused),
        refused_streams: refused.map(|(s, g)| format!("({s}, {g})")).collect(),
    }
}

/// Renders the queriers of an interface.
pub fn queriers(queriers: &[(Protocol, QuerierStatus)]) -> Vec<QuerierView> {
    let view = |(protocol, querier): &(Protocol, QuerierStatus)| QuerierView {
        protocol: protocol.label().into(),
        address: querier.address.map(|a| a.to_string()),
        us: querier.is_us,
        expires_ms: querier.expires_in.map(|d| d.as_millis() as u64),
    };
    queriers.iter().map(view).collect()
}

/// Renders one end of multicast NAT.
pub fn mnat(status: MnatStatus) -> MnatView {
    let config = &status.config;
    let source = |c: Channel| c.source().map(|s| s.to_string());
    let mappings = status.mappings.into_iter().map(|mapping| MappingView {
        source: source(mapping.global),
        group: mapping.global.group().to_string(),
        local_source: mapping.local.and_then(source),
        local_group: mapping.local.map(|l| l.group().to_string()),
        state: mapping.status.label().into(),
        error: mapping.why,
    });
    MnatView {
        role: config.role.label().into(),
        server: format!("{}:{}", config.target.host, config.target.port),
        up: status.is_up,
        error: status.error,
        upstream: config.upstream.to_string(),
        downstream: config.downstream.to_string(),
        mappings: mappings.collect(),
    }
}

/// Renders a tunnel.
pub fn tunnel(
    report: TunnelReport,
    id: Option<InterfaceId>,
    fib: &Fib,
    table: &BandwidthTable,
) -> TunnelView {
    let ingresses = fib.ingresses.values().filter_map(|i| i.bandwidth);
    let egresses = fib.egresses.iter().filter_map(|e| e.bandwidth);
    let mut limits = ingresses.chain(egresses);
    let limit = limits.find(|limit| Some(limit.interface) == id);
    let bandwidth = limit.map(|limit| bandwidth_view(limit, table));
    let ms = |duration: Duration| duration.as_millis() as u64;
    let interface = report.interface.to_string();
    match report.end {
        TunnelEnd::Relay(status, (packets, bytes)) => TunnelView {
            interface,
            role: "gateway".into(),
            remote: status.relay.to_string(),
            igmp: Some(status.states[0].label().into()),
            mld: Some(status.states[1].label().into()),
            outside: status.gateway.map(|address| address.to_string()),
            memberships: status.memberships,
            packets: Some(packets),
            bytes: Some(bytes),
            idle_ms: status.silent_for.map(ms),
            bandwidth,
        },
        TunnelEnd::Gateway(status) => TunnelView {
            interface,
            role: "relay".into(),
            remote: status.gateway.to_string(),
            igmp: None,
            mld: None,
            outside: None,
            memberships: status.groups,
            packets: None,
            bytes: None,
            idle_ms: Some(ms(status.updated)),
            bandwidth,
        },
    }
}

fn interface(rib: &Rib, link: &Link, fib: &Fib, catalog: &Catalog) -> InterfaceView {
    let ingress = fib
        .ingresses
        .get(&link.index)
        .is_some_and(|i| !i.watch_only);
    let egress = fib.egresses.iter().any(|e| e.index == link.index);
    // Reading counters creates them, and an interface that no route uses must have none.
    let counters = (ingress || egress).then(|| catalog.interface(link.name.as_str()));
    let downstream = fib.downstreams.iter().find(|d| d.index == link.index);
    let upstream_of = rib
        .proxies
        .iter()
        .filter(|p| p.upstream.iter().any(|u| link.matches(u)))
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
        ttl_threshold: rib
            .options(link)
            .and_then(|o| o.ttl_threshold)
            .map(|t| t.get()),
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
        refused_messages: catalog.membership.rejected(link.name.as_str()),
        subnet_conflicts: fib
            .subnet_conflicts
            .iter()
            .filter(|conflict| conflict.egress == link.name)
            .map(ToString::to_string)
            .collect(),
        queriers: Vec::new(),
        bandwidth: None,
    }
}
