//! `show flows`: reads the flows in pages from the interface actors, which forward packets in the
//! meantime. Selects and renders them in the background.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use actix::MailboxError;
use futures_util::future::join_all;

use super::search::Search;
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

/// The flows that match a query, or a page of them.
#[derive(Debug, Clone, PartialEq)]
pub struct SelectedFlows {
    /// The flows of the page.
    pub flows: Vec<FlowView>,
    /// The number of flows that match.
    pub total: usize,
}

/// The flows of the router at one time. Pages are selected from it.
pub struct FlowTable {
    snapshot: Arc<Snapshot>,
    streams: Arc<StreamState>,
    planes: FlowPlanes,
    names: HashMap<InterfaceId, IfName>,
    rows: Vec<ListedFlow>,
    now_ms: u64,
}

/// A flow, and the interface that it arrives on.
#[derive(Debug, Clone, Copy)]
pub struct ListedFlow {
    /// The interface.
    pub index: InterfaceId,
    /// Whether the numbers are those of dropped packets.
    pub dropped: bool,
    /// The flow.
    pub record: FlowRecord,
}

/// Returns the flows that match a query. An interface that is removed in the meantime has none.
///
/// # Errors
/// An interface actor does not answer: the list would be incomplete.
pub async fn flows(context: &RouterContext, query: FlowQuery) -> Result<SelectedFlows, NoReceiver> {
    let table = read_table(context, &query).await?;
    let selected = background::run(move || {
        let (rows, total) = table.select(&query, |row| average_rate(&row.record.flow));
        let flows = rows.iter().map(|row| table.view(row)).collect();
        SelectedFlows { flows, total }
    });
    selected.await.ok_or(NoReceiver)
}

/// Reads the flows that arrive on the interface of a query, with its source and its group. The rest
/// of the query is applied by [`FlowTable::select`].
///
/// # Errors
/// An interface actor does not answer: the list would be incomplete.
pub async fn read_table(
    context: &RouterContext,
    query: &FlowQuery,
) -> Result<FlowTable, NoReceiver> {
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
    let mut names = HashMap::new();
    let mut rows = Vec::new();
    for page in pages
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .flatten()
    {
        let index = page.index;
        names.entry(index).or_insert(page.interface);
        rows.extend(page.flows.into_iter().map(|record| ListedFlow {
            index,
            dropped: false,
            record,
        }));
    }
    if query.dropped {
        let idle_ms = context.flow_idle_ms();
        for handle in interfaces {
            if let Some(page) = drop_views::read(&handle.drops).await? {
                let index = handle.index;
                let dropped = dropped_flows(&page, filter, idle_ms, now_ms);
                names.entry(index).or_insert(page.interface);
                rows.extend(dropped.into_iter().map(|record| ListedFlow {
                    index,
                    dropped: true,
                    record,
                }));
            }
        }
    }
    Ok(FlowTable {
        streams: context.streams.clone(),
        planes: context.flow_planes(),
        snapshot,
        names,
        rows,
        now_ms,
    })
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

/// Returns the average rate of a flow since its first packet, in bits per second.
fn average_rate(flow: &Flow) -> f64 {
    let seconds = flow.seen_ms.saturating_sub(flow.began_ms).max(1) as f64 / 1000.0;
    flow.bytes as f64 * 8.0 / seconds
}

impl FlowTable {
    /// Returns all flows.
    pub fn rows(&self) -> &[ListedFlow] {
        &self.rows
    }

    /// Returns when the flows were read, in milliseconds since the start.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Returns the flows of the page that `query` asks for, and the number of flows that match.
    /// `bit_rate` returns the rate of a flow, for the order by rate.
    pub fn select(
        &self,
        query: &FlowQuery,
        bit_rate: impl Fn(&ListedFlow) -> f64,
    ) -> (Vec<ListedFlow>, usize) {
        let search = Search::new(query.search.as_deref().unwrap_or_default());
        let is_wanted = |row: &&ListedFlow| {
            (query.dropped || !row.dropped)
                && (search.is_empty() || search.matches(&self.texts(row)))
        };
        let mut rows: Vec<ListedFlow> = self.rows.iter().filter(is_wanted).copied().collect();
        // The address decides between equal flows, so that pages do not overlap.
        let address = |row: &ListedFlow| (row.record.key.1, row.record.key.0, row.index);
        let flow = |row: &ListedFlow| row.record.flow;
        match query.order {
            FlowOrder::Recent => rows.sort_by_key(|r| (Reverse(flow(r).seen_ms), address(r))),
            FlowOrder::Packets => rows.sort_by_key(|r| (Reverse(flow(r).packets), address(r))),
            FlowOrder::Bytes => rows.sort_by_key(|r| (Reverse(flow(r).bytes), address(r))),
            FlowOrder::Rate => {
                rows.sort_by_cached_key(|r| (Reverse(bit_rate(r) as u64), address(r)));
            }
            FlowOrder::Address => rows.sort_by_key(address),
        }
        let total = rows.len();
        let rows = rows.into_iter().skip(query.offset);
        (
            rows.take(query.limit.unwrap_or(usize::MAX)).collect(),
            total,
        )
    }

    /// Returns the texts of a flow that can be searched.
    fn texts(&self, row: &ListedFlow) -> Vec<String> {
        let view = self.view(row);
        let mut texts = vec![view.iif, view.source, view.group, view.plane];
        texts.extend(view.route);
        texts.extend(view.oifs);
        if view.dropped {
            texts.push("dropped".into());
        }
        texts
    }

    /// Renders a flow with the route that forwards it in this snapshot.
    pub fn view(&self, row: &ListedFlow) -> FlowView {
        let name = self.names.get(&row.index).map_or("", IfName::as_str);
        FlowView {
            dropped: row.dropped,
            ..flow(
                &self.snapshot,
                (&self.streams, &self.planes),
                (row.index, name),
                &row.record,
                self.now_ms,
            )
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planes::Planes;
    use crate::planes::sim::SimPlane;

    fn index() -> InterfaceId {
        InterfaceId::new(1).unwrap()
    }

    /// Returns a flow. Flow `n` has `n` packets of 100 bytes.
    fn row(n: u32) -> ListedFlow {
        let [_, _, high, low] = n.to_be_bytes();
        let flow = Flow {
            verdicts: Verdicts::default(),
            generation: 0,
            packets: n.into(),
            bytes: u64::from(n) * 100,
            began_ms: 0,
            seen_ms: 1_000 + u64::from(n % 7),
        };
        let key = ([10, 0, high, low].into(), [232, 1, high, low].into());
        ListedFlow {
            index: index(),
            dropped: n % 1_000 == 999,
            record: FlowRecord { key, flow },
        }
    }

    fn table(flows: u32) -> FlowTable {
        let planes = Planes::new(Box::new(SimPlane::default()), Vec::new());
        FlowTable {
            snapshot: Arc::default(),
            streams: Arc::new(StreamState::for_streams(16)),
            planes: FlowPlanes::new(planes.into()),
            names: [(index(), "eth0".parse().unwrap())].into(),
            rows: (0..flows).map(row).collect(),
            now_ms: 2_000,
        }
    }

    fn select(table: &FlowTable, query: FlowQuery) -> (Vec<u64>, usize) {
        let (rows, total) = table.select(&query, |row| row.record.flow.bytes as f64);
        let packets = rows.iter().map(|row| row.record.flow.packets).collect();
        (packets, total)
    }

    #[test]
    fn ten_thousand_flows_are_searched_sorted_and_paged() {
        let table = table(10_000);
        let query = |search: &str, offset, limit| FlowQuery {
            search: Some(search.into()),
            order: FlowOrder::Rate,
            offset,
            limit: Some(limit),
            ..FlowQuery::default()
        };
        assert_eq!(select(&table, query("", 0, 2)), (vec![9_998, 9_997], 9_990));
        assert_eq!(select(&table, query("", 9_989, 50)), (vec![0], 9_990));
        assert_eq!(
            select(&table, query("232.1.3.0/24 eth0", 0, 1)),
            (vec![1_023], 255)
        );
        assert_eq!(
            select(&table, query("10.0.7.77", 0, 50)),
            (vec![7 * 256 + 77], 1)
        );
        assert_eq!(select(&table, query("eth1", 0, 50)), (vec![], 0));
        let dropped = FlowQuery {
            dropped: true,
            ..query("dropped", 0, 1)
        };
        assert_eq!(select(&table, dropped), (vec![9_999], 10));
    }

    /// The flows that share a time or a rate are on one page each.
    #[test]
    fn pages_of_equal_flows_do_not_overlap() {
        let table = table(500);
        for order in [FlowOrder::Recent, FlowOrder::Rate, FlowOrder::Address] {
            let page = |offset| FlowQuery {
                order,
                offset,
                limit: Some(50),
                ..FlowQuery::default()
            };
            let pages = (0..10).map(|n| table.select(&page(n * 50), |_| 0.0).0);
            let mut seen: Vec<u64> = pages.flatten().map(|r| r.record.flow.packets).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..500).collect::<Vec<u64>>(), "{order:?}");
        }
    }
}
