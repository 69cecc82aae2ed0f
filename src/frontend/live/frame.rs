//! The tables of the router at one time.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::rates::{CounterRates, FlowRates};
use super::table::{LiveRow, TableName, TablePage};
use crate::api::events::EventQuery;
use crate::api::{FlowOrder, FlowQuery, ShowReply};
use crate::frontend::flow_views::{FlowTable, ListedFlow};
use crate::frontend::search::Search;

/// The tables that clients watch, at one time.
#[derive(Default)]
pub struct LiveFrame {
    at_ms: u64,
    /// Properties of the router as a whole.
    router: Value,
    tables: BTreeMap<TableName, Vec<LiveRow>>,
    flows: Option<(FlowTable, Arc<FlowRates>)>,
    /// Why tables are missing.
    error: Option<String>,
}

/// What was read for a frame.
#[derive(Default)]
pub struct Readings {
    /// The time, in milliseconds since the start.
    pub at_ms: u64,
    /// Properties of the router as a whole.
    pub router: Value,
    /// The replies that have rows of tables, and these tables.
    pub replies: Vec<(Vec<TableName>, ShowReply)>,
    /// The flows, if a client watches them.
    pub flows: Option<FlowTable>,
    /// Why readings are missing.
    pub error: Option<String>,
}

/// The counters of the frame before.
#[derive(Default)]
pub struct RateMemory {
    counters: BTreeMap<TableName, CounterRates>,
    flows: Arc<FlowRates>,
}

impl LiveFrame {
    /// Returns the frame with these readings, and with the rates since the readings before.
    pub fn new(readings: Readings, memory: &mut RateMemory) -> Self {
        let at_ms = readings.at_ms;
        let mut tables = BTreeMap::new();
        let mut kept = BTreeMap::new();
        for (names, reply) in readings.replies {
            let list = list_of(&reply);
            for name in names {
                let mut rows = name.rows(list.clone());
                if !name.counters().is_empty() {
                    let mut rates = memory.counters.remove(&name).unwrap_or_default();
                    rates.add_to(&mut rows, name.counters(), at_ms);
                    kept.insert(name, rates);
                }
                tables.insert(name, rows);
            }
        }
        memory.counters = kept;
        let rates = |flows: &FlowTable| memory.flows.after(flows.rows(), flows.now_ms());
        memory.flows = readings
            .flows
            .as_ref()
            .map(rates)
            .unwrap_or_default()
            .into();
        Self {
            at_ms,
            router: readings.router,
            tables,
            flows: readings.flows.map(|flows| (flows, memory.flows.clone())),
            error: readings.error,
        }
    }

    /// Returns the document that a client with this query is shown. `None` if tables of its view
    /// have not been read.
    pub fn state(&self, query: &EventQuery) -> Option<Value> {
        let mut tables = serde_json::Map::new();
        for (name, limit) in TableName::of_view(query.view) {
            let page = self.page(*name, *limit, query);
            match (page, &self.error) {
                (Some(page), _) => _ = tables.insert(name.label().into(), page.into_json()),
                // The error says why.
                (None, Some(_)) => {}
                (None, None) => return None,
            }
        }
        let mut state = json!({ "at_ms": self.at_ms, "router": self.router, "tables": tables });
        if let (Some(error), Some(state)) = (&self.error, state.as_object_mut()) {
            state.insert("error".into(), error.as_str().into());
        }
        Some(state)
    }

    fn page(&self, name: TableName, limit: Option<usize>, query: &EventQuery) -> Option<TablePage> {
        if name == TableName::Flows {
            return self.flow_page(limit, query);
        }
        let rows = self.tables.get(&name)?;
        Some(match limit {
            None => {
                let search = Search::new(&query.search);
                TablePage::select(rows, &search, &query.order, query.offset, query.limit)
            }
            Some(limit) => TablePage::select(rows, &Search::default(), "", 0, limit),
        })
    }

    fn flow_page(&self, limit: Option<usize>, query: &EventQuery) -> Option<TablePage> {
        let (flows, rates) = self.flows.as_ref()?;
        let selection = match limit {
            None => FlowQuery {
                limit: Some(query.limit),
                offset: query.offset,
                search: Some(query.search.clone()),
                order: flow_order(&query.order)?,
                dropped: true,
                ..FlowQuery::default()
            },
            Some(limit) => FlowQuery {
                limit: Some(limit),
                order: FlowOrder::Rate,
                ..FlowQuery::default()
            },
        };
        let bit_rate = |row: &ListedFlow| rates.rate(row).map_or(0.0, |rate| rate.bits);
        let (rows, total) = flows.select(&selection, bit_rate);
        let row = |row: &ListedFlow| {
            let mut value = serde_json::to_value(flows.view(row)).unwrap_or_default();
            if let (Some(rate), Some(object)) = (rates.rate(row), value.as_object_mut()) {
                let rates = json!({ "packets": rate.packets, "bits": rate.bits });
                object.insert("rates".into(), rates);
            }
            value
        };
        Some(TablePage {
            rows: TableName::Flows.rows(rows.iter().map(row).collect()),
            total,
            offset: selection.offset,
        })
    }
}

/// Returns the order of flows with this name; without a name, that by rate.
pub fn flow_order(name: &str) -> Option<FlowOrder> {
    match name {
        "" => Some(FlowOrder::Rate),
        name => serde_json::from_value(name.into()).ok(),
    }
}

/// Returns the list in a reply.
fn list_of(reply: &ShowReply) -> Vec<Value> {
    let Ok(Value::Object(reply)) = serde_json::to_value(reply) else {
        return Vec::new();
    };
    match reply.into_iter().next() {
        Some((_, Value::Array(list))) => list,
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::events::EventView;
    use crate::api::{PendingView, RouteView};

    fn route(name: &str) -> RouteView {
        serde_json::from_value(json!({
            "name": name, "origin": "settings", "from": "eth0", "source": "*",
            "except_sources": [], "group": "225.1.2.3", "to": ["eth1"], "ttl": "decrement",
            "link_local": false, "waiting_for": [],
            "paths": [{"iif": "eth0", "oif": "eth1", "packets": 5, "bytes": 500}],
        }))
        .unwrap()
    }

    fn readings(at_ms: u64, names: &[&str]) -> Readings {
        let routes = names.iter().map(|name| route(name)).collect();
        let pending: Vec<PendingView> = Vec::new();
        Readings {
            at_ms,
            router: json!({"version": "1"}),
            replies: vec![
                (vec![TableName::Routes], ShowReply::Routes(routes)),
                (vec![TableName::Pending], ShowReply::Pending(pending)),
            ],
            ..Readings::default()
        }
    }

    fn query(view: EventView) -> EventQuery {
        EventQuery {
            view,
            ..EventQuery::default()
        }
    }

    #[test]
    fn state_has_the_tables_of_the_view() {
        let mut memory = RateMemory::default();
        let routes = query(EventView::Routes);
        let frame = LiveFrame::new(readings(1_000, &["a", "b"]), &mut memory);
        let state = frame.state(&routes).unwrap();
        assert_eq!(state["tables"]["routes"]["order"], json!(["a", "b"]));
        assert_eq!(state["tables"]["pending"]["total"], 0);
        assert_eq!(frame.state(&query(EventView::Groups)), None, "not read");
        let frame = LiveFrame::new(readings(2_000, &["a"]), &mut memory);
        let state = frame.state(&routes).unwrap();
        assert_eq!(
            state["tables"]["routes"]["rows"]["a"]["rates"]["packets"],
            0.0
        );
    }

    #[test]
    fn state_without_a_reading_says_why() {
        let readings = Readings {
            error: Some("routing does not answer".into()),
            ..Readings::default()
        };
        let frame = LiveFrame::new(readings, &mut RateMemory::default());
        let state = frame.state(&query(EventView::Groups)).unwrap();
        assert_eq!(state["error"], "routing does not answer");
    }

    #[test]
    fn orders_of_flows_have_the_names_of_the_api() {
        assert_eq!(flow_order(""), Some(FlowOrder::Rate));
        assert_eq!(flow_order("address"), Some(FlowOrder::Address));
        assert_eq!(flow_order("size"), None);
    }
}
