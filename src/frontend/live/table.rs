//! The tables of event streams: rows of the API with a key.

use std::cmp::Ordering;

use serde_json::{Map, Value, json};

use super::merge_patch::without_nulls;
use crate::api::events::EventView;
use crate::api::{DropQuery, FlowQuery, ShowQuery, StreamQuery};
use crate::frontend::search::Search;

/// Most rows of a table that has no page of its own in a view.
const MAX_SIDE_ROWS: usize = 200;
/// Rows of flows and drops in the overview.
const OVERVIEW_ROWS: usize = 5;

/// A kind of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TableName {
    /// Interfaces.
    Interfaces,
    /// Routes.
    Routes,
    /// Routes, joins and proxies that wait for an interface.
    Pending,
    /// Flows.
    Flows,
    /// Monitored streams.
    Streams,
    /// Joined groups and groups with members.
    Groups,
    /// Dropped packets.
    Drops,
    /// Tunnels of AMT.
    Tunnels,
    /// What devices offer.
    Offers,
    /// Who asks for what.
    Askers,
    /// Open questions of discovery.
    Questions,
    /// How the answers of discovery protocols come back.
    Protocols,
    /// Ends of multicast NAT.
    Mnat,
    /// Mappings of multicast NAT.
    Mappings,
}

/// A row.
#[derive(Debug, Clone, PartialEq)]
pub struct LiveRow {
    /// Identifies the row in its table.
    pub key: String,
    /// The properties of the API, without those that are null.
    pub values: Map<String, Value>,
}

/// A page of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct TablePage {
    /// The rows of the page.
    pub rows: Vec<LiveRow>,
    /// The number of rows that match the search.
    pub total: usize,
    /// How many of the first rows are left out.
    pub offset: usize,
}

impl TableName {
    /// Returns the tables of a view, and the largest number of rows of each. `None` for the table
    /// whose page the client chooses.
    pub fn of_view(view: EventView) -> &'static [(Self, Option<usize>)] {
        const SIDE: Option<usize> = Some(MAX_SIDE_ROWS);
        const TOP: Option<usize> = Some(OVERVIEW_ROWS);
        match view {
            EventView::Overview => &[
                (Self::Interfaces, SIDE),
                (Self::Flows, TOP),
                (Self::Drops, TOP),
                (Self::Streams, SIDE),
                (Self::Pending, SIDE),
            ],
            EventView::Interfaces => &[(Self::Interfaces, None)],
            EventView::Routes => &[(Self::Routes, None), (Self::Pending, SIDE)],
            EventView::Flows => &[(Self::Flows, None)],
            EventView::Streams => &[(Self::Streams, None)],
            EventView::Groups => &[(Self::Groups, None)],
            EventView::Drops => &[(Self::Drops, None)],
            EventView::Tunnels => &[(Self::Tunnels, None)],
            EventView::Discovery => &[
                (Self::Offers, None),
                (Self::Askers, SIDE),
                (Self::Questions, SIDE),
                (Self::Protocols, SIDE),
            ],
            EventView::Mnat => &[(Self::Mappings, None), (Self::Mnat, SIDE)],
        }
    }

    /// Returns the name of the table in events.
    pub fn label(self) -> &'static str {
        match self {
            Self::Interfaces => "interfaces",
            Self::Routes => "routes",
            Self::Pending => "pending",
            Self::Flows => "flows",
            Self::Streams => "streams",
            Self::Groups => "groups",
            Self::Drops => "drops",
            Self::Tunnels => "tunnels",
            Self::Offers => "offers",
            Self::Askers => "askers",
            Self::Questions => "questions",
            Self::Protocols => "protocols",
            Self::Mnat => "mnat",
            Self::Mappings => "mappings",
        }
    }

    /// Returns the query whose reply has the rows.
    pub fn source(self) -> ShowQuery {
        match self {
            Self::Interfaces => ShowQuery::Interfaces,
            Self::Routes => ShowQuery::Routes,
            Self::Pending => ShowQuery::Pending,
            Self::Flows => ShowQuery::Flows(FlowQuery::default()),
            Self::Streams => ShowQuery::Streams(StreamQuery::default()),
            Self::Groups => ShowQuery::Groups,
            Self::Drops => ShowQuery::Drops(DropQuery::default()),
            Self::Tunnels => ShowQuery::Tunnels,
            Self::Offers | Self::Askers | Self::Questions | Self::Protocols => ShowQuery::Discovery,
            Self::Mnat | Self::Mappings => ShowQuery::Mnat,
        }
    }

    /// Returns the properties that identify a row.
    fn key_properties(self) -> &'static [&'static str] {
        match self {
            Self::Interfaces => &["name"],
            Self::Routes => &["name"],
            Self::Pending => &["kind", "name"],
            Self::Flows | Self::Streams => &["iif", "source", "group"],
            Self::Groups => &["interface", "role", "group"],
            Self::Drops => &["interface", "reason", "source", "group"],
            Self::Tunnels => &["interface", "role", "remote"],
            Self::Offers => &[
                "discovery",
                "from",
                "to",
                "protocol",
                "device",
                "what",
                "instance",
            ],
            Self::Askers => &[
                "discovery",
                "from",
                "to",
                "protocol",
                "asker",
                "what",
                "instance",
            ],
            Self::Questions => &["discovery", "from", "to", "protocol", "asker"],
            Self::Protocols => &["discovery", "protocol"],
            Self::Mnat => &["role", "upstream", "downstream"],
            Self::Mappings => &["source", "group"],
        }
    }

    /// Returns the counters whose rates are added to the rows.
    pub fn counters(self) -> &'static [&'static str] {
        match self {
            Self::Interfaces => &["received_packets", "transmitted_packets"],
            Self::Routes | Self::Tunnels => &["packets", "bytes"],
            Self::Drops => &["packets"],
            _ => &[],
        }
    }

    /// Returns the rows in the data of the reply to [`Self::source`]: a list of objects.
    pub fn rows(self, list: Vec<Value>) -> Vec<LiveRow> {
        let objects = list.into_iter().flat_map(|value| match self {
            Self::Offers => nested(value, "offers"),
            Self::Askers => nested(value, "askers"),
            Self::Questions => nested(value, "questions"),
            Self::Protocols => nested(value, "protocols"),
            Self::Mappings => nested(value, "mappings"),
            Self::Mnat => vec![without(value, "mappings")],
            Self::Routes => vec![with_totals(value)],
            _ => vec![value],
        });
        let mut rows: Vec<LiveRow> = Vec::new();
        for mut object in objects {
            without_nulls(&mut object);
            if let Value::Object(values) = object {
                let key = self.key(&values);
                rows.push(LiveRow { key, values });
            }
        }
        number_equal_keys(&mut rows);
        rows
    }

    fn key(self, values: &Map<String, Value>) -> String {
        let texts = self.key_properties().iter();
        let texts = texts.map(|name| values.get(*name).and_then(Value::as_str).unwrap_or("-"));
        texts.collect::<Vec<_>>().join(" ")
    }
}

/// Makes the keys of a table different, for instance those of two routes of the same name.
fn number_equal_keys(rows: &mut [LiveRow]) {
    let mut numbers: ahash::AHashMap<String, usize> = ahash::AHashMap::new();
    for row in rows {
        let number = numbers.entry(row.key.clone()).or_default();
        *number += 1;
        if *number > 1 {
            row.key += &format!(" #{number}");
        }
    }
}

/// Returns the objects of a list in `value`, with its name as `discovery`.
fn nested(mut value: Value, list: &str) -> Vec<Value> {
    let name = value.get("name").cloned();
    let Some(Value::Array(mut objects)) = value.get_mut(list).map(Value::take) else {
        return Vec::new();
    };
    if let Some(name) = name {
        for object in objects.iter_mut().filter_map(Value::as_object_mut) {
            object.insert("discovery".into(), name.clone());
        }
    }
    objects
}

fn without(mut value: Value, property: &str) -> Value {
    if let Some(object) = value.as_object_mut() {
        object.remove(property);
    }
    value
}

/// Adds the packets and bytes of all paths of a route.
fn with_totals(mut route: Value) -> Value {
    let sum = |counter: &str| -> u64 {
        let paths = route.get("paths").and_then(Value::as_array);
        let counts = paths.into_iter().flatten();
        counts.filter_map(|path| path.get(counter)?.as_u64()).sum()
    };
    let (packets, bytes) = (sum("packets"), sum("bytes"));
    if let Some(route) = route.as_object_mut() {
        route.insert("packets".into(), packets.into());
        route.insert("bytes".into(), bytes.into());
    }
    route
}

impl TablePage {
    /// Returns a page of the rows that match `search`. `order` is a property, or empty.
    pub fn select(
        rows: &[LiveRow],
        search: &Search,
        order: &str,
        offset: usize,
        limit: usize,
    ) -> Self {
        let matches = |row: &&LiveRow| search.is_empty() || search.matches(&texts(&row.values));
        let mut matching: Vec<&LiveRow> = rows.iter().filter(matches).collect();
        let (property, is_reverse) = match order.strip_prefix('-') {
            Some(property) => (property, true),
            None => (order, false),
        };
        if !property.is_empty() {
            matching.sort_by(|a, b| {
                let key = property_of(&a.values, property);
                let order = compare(key, property_of(&b.values, property));
                if is_reverse { order.reverse() } else { order }
            });
        }
        let total = matching.len();
        let rows = matching.into_iter().skip(offset).take(limit).cloned();
        Self {
            rows: rows.collect(),
            total,
            offset,
        }
    }

    /// Returns the page as it is in events.
    pub fn into_json(self) -> Value {
        let order: Vec<&String> = self.rows.iter().map(|row| &row.key).collect();
        let order = json!(order);
        let rows = self
            .rows
            .into_iter()
            .map(|row| (row.key, row.values.into()));
        let rows: Map<String, Value> = rows.collect();
        json!({ "total": self.total, "offset": self.offset, "order": order, "rows": rows })
    }
}

/// Returns a property, also one of a nested object: `rates.packets`.
fn property_of<'a>(values: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    let mut names = path.split('.');
    let first = values.get(names.next()?)?;
    names.try_fold(first, |value, name| value.get(name))
}

/// Compares properties: numbers before texts, and rows without the property last.
fn compare(a: Option<&Value>, b: Option<&Value>) -> Ordering {
    let number = |value: Option<&Value>| value.and_then(Value::as_f64);
    let text = |value: Option<&Value>| {
        value.map(|v| v.as_str().map_or_else(|| v.to_string(), String::from))
    };
    match (number(a), number(b)) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => match (text(a), text(b)) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
            (Some(a), Some(b)) => a.cmp(&b),
        },
    }
}

/// Returns all texts of a row, also those of nested lists and objects.
fn texts(values: &Map<String, Value>) -> Vec<&str> {
    let mut texts = Vec::new();
    values
        .values()
        .for_each(|value| add_texts(value, &mut texts));
    texts
}

fn add_texts<'a>(value: &'a Value, texts: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => texts.push(text),
        Value::Array(values) => values.iter().for_each(|value| add_texts(value, texts)),
        Value::Object(values) => values.values().for_each(|value| add_texts(value, texts)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(number: usize) -> Vec<LiveRow> {
        let group = |n: usize| {
            json!({
                "interface": "eth1", "role": "router", "mode": "include", "expires_ms": null,
                "group": format!("232.1.{}.{}", n / 256, n % 256), "number": n,
                "sources": [{"source": format!("10.0.{}.{}", n / 256, n % 256)}],
            })
        };
        TableName::Groups.rows((0..number).map(group).collect())
    }

    #[test]
    fn ten_thousand_rows_are_searched_sorted_and_paged() {
        let rows = groups(10_000);
        let page = |search: &str, order: &str, offset, limit| {
            TablePage::select(&rows, &Search::new(search), order, offset, limit)
        };
        let numbers = |page: &TablePage| -> Vec<u64> {
            let number = |row: &LiveRow| row.values["number"].as_u64().unwrap();
            page.rows.iter().map(number).collect()
        };
        let all = page("", "", 9_990, 50);
        assert_eq!((all.total, all.rows.len(), all.offset), (10_000, 10, 9_990));
        assert_eq!(numbers(&page("", "-number", 1, 3)), [9_998, 9_997, 9_996]);
        let prefix = page("232.1.3.0/24", "number", 0, 2);
        assert_eq!((prefix.total, numbers(&prefix)), (256, vec![768, 769]));
        let source = page("10.0.7.77 router", "", 0, 50);
        assert_eq!((source.total, numbers(&source)), (1, vec![7 * 256 + 77]));
        assert_eq!(page("absent", "", 0, 50).total, 0);
        assert_eq!(page("", "", 20_000, 50).rows, []);
    }

    #[test]
    fn rows_are_identified_by_their_key_and_have_no_nulls() {
        let rows = groups(1);
        assert_eq!(rows[0].key, "eth1 router 232.1.0.0");
        assert!(!rows[0].values.contains_key("expires_ms"));
        let page = TablePage::select(&rows, &Search::default(), "", 0, 50);
        let json = page.into_json();
        assert_eq!(json["order"], json!(["eth1 router 232.1.0.0"]));
        assert_eq!(json["rows"]["eth1 router 232.1.0.0"]["mode"], "include");
    }

    #[test]
    fn equal_keys_are_numbered() {
        let route = || json!({"name": "r", "paths": [{"packets": 1, "bytes": 2}]});
        let rows = TableName::Routes.rows(vec![route(), route()]);
        let keys: Vec<&str> = rows.iter().map(|row| row.key.as_str()).collect();
        assert_eq!(keys, ["r", "r #2"]);
        assert_eq!(
            (&rows[0].values["packets"], &rows[0].values["bytes"]),
            (&json!(1), &json!(2))
        );
    }

    #[test]
    fn lists_of_discovery_and_mnat_become_rows() {
        let discovery = json!({
            "name": "office",
            "offers": [{"from": "a", "to": "b", "protocol": "mdns", "device": "10.0.0.1",
                "what": "_ipp._tcp", "instance": "Printer", "mac": null}],
            "askers": [{"from": "b", "to": "a", "protocol": "mdns", "asker": "10.0.1.9",
                "what": "_ipp._tcp", "instance": "", "mac": null}],
            "questions": [],
            "protocols": [{"protocol": "mdns", "answers": "relay"}],
        });
        let offers = TableName::Offers.rows(vec![discovery.clone()]);
        assert_eq!(offers[0].key, "office a b mdns 10.0.0.1 _ipp._tcp Printer");
        let askers = TableName::Askers.rows(vec![discovery.clone()]);
        assert_eq!(askers[0].key, "office b a mdns 10.0.1.9 _ipp._tcp ");
        assert_eq!(TableName::Questions.rows(vec![discovery.clone()]), []);
        assert_eq!(
            TableName::Protocols.rows(vec![discovery])[0].key,
            "office mdns"
        );
        let mnat = json!({"role": "egress", "upstream": "a", "downstream": "b",
            "mappings": [{"source": null, "group": "232.1.1.1"}]});
        assert_eq!(
            TableName::Mappings.rows(vec![mnat.clone()])[0].key,
            "- 232.1.1.1"
        );
        let ends = TableName::Mnat.rows(vec![mnat]);
        assert!(!ends[0].values.contains_key("mappings"));
    }

    #[test]
    fn rows_without_the_property_of_the_order_come_last() {
        let list = vec![
            json!({"name": "a"}),
            json!({"name": "b", "x": {"y": 2}}),
            json!({"name": "c", "x": {"y": 10}}),
        ];
        let rows = TableName::Interfaces.rows(list);
        let page = TablePage::select(&rows, &Search::default(), "x.y", 0, 50);
        let keys: Vec<&str> = page.rows.iter().map(|row| row.key.as_str()).collect();
        assert_eq!(keys, ["b", "c", "a"]);
    }
}
