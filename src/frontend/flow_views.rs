//! `show flows`: reads the flows in pages from the interface actors, which forward packets in the
//! meantime, and renders them in the background.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use actix::MailboxError;
use futures_util::future::join_all;

use super::{background, drop_views};
use crate::actors::directory::NoReceiver;
use crate::actors::messages::{DropPage, FlowPage, QueryFlows};
use crate::actors::shared::{FlowPlanes, InterfaceHandle, RouterContext, Snapshot};
use crate::api::{FlowOrder, FlowQuery, FlowView};
use crate::forward::{entry_paths, look_up};
use crate::model::addr::is_link_local_group;
use crate::model::{IfName, InterfaceId};
use crate::table::StreamState;
use crate::table::flows::{Flow, FlowFilter, FlowKey, FlowRecord, Verdicts};

/// How long an interface actor may take to return a page.
const PAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// Returns the flows that match a query. An interface that is removed in the meantime has none.
///
/// # Errors
/// An interface actor does not answer: the list would be incomplete.
pub async fn flows(context: &RouterContext, query: FlowQuery) -> Result<Vec<FlowView>, NoReceiver> {
    let snapshot = context.snapshot.load_full();
    let now_ms = context.now_ms();
    let filter = FlowFilter {
        source: query.source,
        group: query.group,
    };
    let iif = query.iif.as_ref();
    let is_selected = |handle: &&InterfaceHandle| {
        let name = snapshot.names.get(&handle.index);
        iif.is_none_or(|iif| name.is_some_and(|name| name.as_str() == iif))
    };
    let interfaces = snapshot.interfaces.iter().filter(is_selected);
    let pages = join_all(interfaces.clone().map(|handle| read_all(handle, filter))).await;
    let pages = pages.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut dropped = Vec::new();
    if query.dropped {
        let idle_ms = context.flow_idle_ms();
        for handle in interfaces {
            if let Some(page) = drop_views::read(&handle.drops).await? {
                dropped.push((handle.index, dropped_flows(&page, filter, idle_ms, now_ms)));
            }
        }
    }
    let (streams, planes) = (context.streams.clone(), context.flow_planes());
    let rendered = background::run(move || {
        let pages = pages.into_iter().flatten().collect();
        render(
            &snapshot,
            (&streams, &planes),
            pages,
            dropped,
            &query,
            now_ms,
        )
    });
    rendered.await.ok_or(NoReceiver)
}

/// Reads all flows of one interface.
async fn read_all(
    handle: &InterfaceHandle,
    filter: FlowFilter,
) -> Result<Vec<FlowPage>, NoReceiver> {
    let mut pages = Vec::new();
    let mut next = Some(0);
    while let Some(position) = next {
        let query = QueryFlows { position, filter };
        match handle.flows.send(query).timeout(PAGE_TIMEOUT).await {
            Ok(page) => {
                next = page.next;
                pages.push(page);
            }
            Err(MailboxError::Closed) => return Ok(Vec::new()),
            Err(MailboxError::Timeout) => return Err(NoReceiver),
        }
    }
    Ok(pages)
}

fn render(
    snapshot: &Arc<Snapshot>,
    (streams, planes): (&StreamState, &FlowPlanes),
    pages: Vec<FlowPage>,
    dropped: Vec<(InterfaceId, Vec<FlowRecord>)>,
    query: &FlowQuery,
    now_ms: u64,
) -> Vec<FlowView> {
    let mut names: HashMap<InterfaceId, IfName> = HashMap::new();
    let mut flows: Vec<(InterfaceId, bool, FlowRecord)> = Vec::new();
    for page in pages {
        names.entry(page.index).or_insert(page.interface);
        let index = page.index;
        flows.extend(page.flows.into_iter().map(|flow| (index, false, flow)));
    }
    for (index, records) in dropped {
        flows.extend(records.into_iter().map(|flow| (index, true, flow)));
    }
    match query.order {
        FlowOrder::Recent => flows.sort_by_key(|(_, _, f)| Reverse(f.flow.seen_ms)),
        FlowOrder::Packets => flows.sort_by_key(|(_, _, f)| Reverse(f.flow.packets)),
        FlowOrder::Bytes => flows.sort_by_key(|(_, _, f)| Reverse(f.flow.bytes)),
        FlowOrder::Address => flows.sort_by_key(|(_, _, f)| (f.key.1, f.key.0)),
    }
    flows.truncate(query.limit.unwrap_or(usize::MAX));
    let view = |(index, dropped, record): (InterfaceId, bool, FlowRecord)| {
        let name = names.get(&index).map_or("", IfName::as_str);
        FlowView {
            dropped,
            ..flow(snapshot, (streams, planes), (index, name), &record, now_ms)
        }
    };
    flows.into_iter().map(view).collect()
}

/// Returns the flows whose packets would be forwarded with other routes, other members or a higher
/// TTL, and had a packet in the last `idle_ms`.
fn dropped_flows(
    page: &DropPage,
    filter: FlowFilter,
    idle_ms: u64,
    now_ms: u64,
) -> Vec<FlowRecord> {
    let mut flows: HashMap<FlowKey, Flow> = HashMap::new();
    for dropped in &page.drops {
        let record = &dropped.value;
        let Some(key) = dropped.key.flow else {
            continue;
        };
        let is_shown = dropped.key.reason.concerns_routes()
            && !is_link_local_group(key.1)
            && filter.matches(&key)
            && record.seen_ms >= page.flushed_ms
            && now_ms.saturating_sub(record.seen_ms) < idle_ms;
        if !is_shown {
            continue;
        }
        let flow = flows.entry(key).or_insert(Flow {
            verdicts: Verdicts::default(),
            generation: 0,
            packets: 0,
            bytes: 0,
            began_ms: record.began_ms,
            seen_ms: record.seen_ms,
        });
        flow.packets += dropped.count;
        flow.bytes += record.bytes;
        flow.began_ms = flow.began_ms.min(record.began_ms);
        flow.seen_ms = flow.seen_ms.max(record.seen_ms);
    }
    let record = |(key, flow)| FlowRecord { key, flow };
    flows.into_iter().map(record).collect()
}

/// Renders a flow with the route that forwards it in this snapshot.
fn flow(
    snapshot: &Snapshot,
    (streams, planes): (&StreamState, &FlowPlanes),
    (index, iif): (InterfaceId, &str),
    FlowRecord { key, flow }: &FlowRecord,
    now_ms: u64,
) -> FlowView {
    let fib = &snapshot.fib;
    let ingress = fib.ingresses.get(&index);
    let found = ingress.and_then(|i| Some((i, look_up(fib, i, *key).ok()?)));
    let entry_paths = || {
        let (ingress, verdicts) = found?;
        Some(entry_paths(fib, ingress, verdicts))
    };
    let route = entry_paths().and_then(|mut all| all.next());
    let selection = ingress.and_then(|ingress| ingress.selection.as_ref());
    let stream = selection.map(|s| streams.ingresses.key(&s.domain, *key));
    let active = stream.and_then(|stream| streams.ingresses.active(stream, now_ms));
    let mut oifs: Vec<String> = Vec::new();
    let mut yields = BTreeMap::new();
    for (entry, paths) in entry_paths().into_iter().flatten() {
        for egress in paths.filter_map(|path| fib.egress_of(path)) {
            let name = egress.name.to_string();
            let station = stream
                .zip(entry.takeover_ms)
                .and_then(|(stream, takeover_ms)| {
                    let forwarders = &streams.forwarders;
                    forwarders.yields_to(stream, egress.index, takeover_ms, now_ms)
                });
            if let Some(station) = station.filter(|_| entry.yields) {
                yields.insert(name.clone(), station.to_string());
            }
            if !oifs.contains(&name) {
                oifs.push(name);
            }
        }
    }
    let forwarding = planes.forwarding(ingress.and_then(|i| i.plane), index, *key);
    FlowView {
        plane: forwarding.as_ref().map_or("", |f| f.plane).into(),
        declined: forwarding.and_then(|f| f.declined),
        iif: iif.into(),
        source: key.0.to_string(),
        group: key.1.to_string(),
        route: route.map(|(entry, _)| entry.route.to_string()),
        oifs,
        active: active.is_none_or(|active| active == index),
        yields,
        packets: flow.packets,
        bytes: flow.bytes,
        age_ms: now_ms.saturating_sub(flow.began_ms),
        idle_ms: now_ms.saturating_sub(flow.seen_ms),
        dropped: false,
    }
}
