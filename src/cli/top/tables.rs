//! The tables of `mcastor top`.

use super::snapshot::{Rates, Reading, drop_key, dropped, flow_key, group_key, stream_key};
use super::table::{Attention, Cell, Column, Row, Sorting, Table};
use crate::api::streams::StreamVerdict;
use crate::api::{DropView, FlowView, GroupView, InterfaceView, StreamView};

/// A table that can be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub(super) enum View {
    /// Interfaces: packets received, sent and dropped
    Interfaces,
    /// Flows that are being forwarded
    Flows,
    /// Streams with dropped packets, and why
    Drops,
    /// Groups joined as a host, and groups with members
    Joins,
    /// Monitored streams, and their health
    Streams,
}

impl View {
    /// All views, in the order of their keys.
    pub const ALL: [Self; 5] = [
        Self::Interfaces,
        Self::Flows,
        Self::Drops,
        Self::Joins,
        Self::Streams,
    ];

    /// Returns the title.
    pub fn title(self) -> &'static str {
        match self {
            Self::Interfaces => "Interfaces",
            Self::Flows => "Flows",
            Self::Drops => "Drops",
            Self::Joins => "Joins",
            Self::Streams => "Streams",
        }
    }

    /// Returns by what the table is sorted at first.
    pub fn default_sorting(self) -> Sorting {
        let column = match self {
            Self::Interfaces | Self::Joins | Self::Drops | Self::Streams => 0,
            Self::Flows => 3,
        };
        Sorting {
            column,
            reversed: false,
        }
    }

    /// Returns the table of this view, neither sorted nor filtered.
    pub fn table(self, snapshot: &Reading, rates: &Rates) -> Table {
        match self {
            Self::Interfaces => interfaces(&snapshot.interfaces, rates),
            Self::Flows => flows(&snapshot.flows, rates),
            Self::Drops => drops(&snapshot.drops, rates),
            Self::Joins => joins(&snapshot.groups),
            Self::Streams => streams(&snapshot.streams),
        }
    }
}

const INTERFACES: &[Column] = &[
    Column::text("NAME", u8::MAX),
    Column::text("STATE", 8),
    Column::text("ROLE", 7),
    Column::number("IN/S", u8::MAX),
    Column::number("OUT/S", u8::MAX),
    Column::number("DROP/S", u8::MAX),
    Column::number("RECEIVED", 5),
    Column::number("SENT", 4),
    Column::number("DROPPED", 6),
    Column::number("REFUSED", 1),
    Column::text("QUERIER", 2),
];

fn interfaces(interfaces: &[InterfaceView], rates: &Rates) -> Table {
    let row = |i: &InterfaceView| {
        let rate = rates.interfaces.get(&i.name);
        let is_used = i.ingress || i.egress;
        let (state, is_up) = match (i.up, i.carrier) {
            (true, true) => ("up", true),
            (true, false) => ("no carrier", false),
            _ => ("down", false),
        };
        let role = match (i.ingress, i.egress) {
            (true, true) => "in, out",
            (true, false) => "in",
            (false, true) => "out",
            (false, false) => "-",
        };
        let querier = i.queriers.iter().map(|querier| match &querier.address {
            Some(_) if querier.us => format!("{} self", querier.protocol),
            Some(address) => format!("{} {address}", querier.protocol),
            None => format!("{} none", querier.protocol),
        });
        let querier: Vec<String> = querier.collect();
        Row {
            key: i.name.clone(),
            cells: vec![
                Cell::text(&i.name),
                Cell::text(state),
                Cell::text(role),
                Cell::rate(rate.map(|rate| rate.received)),
                Cell::rate(rate.map(|rate| rate.sent)),
                Cell::rate(rate.map(|rate| rate.dropped)),
                Cell::count(i.received_packets),
                Cell::count(i.transmitted_packets),
                Cell::count(dropped(i)),
                Cell::count(i.refused_messages.values().sum()),
                Cell::text(or_none(querier.join(", "))),
            ],
            attention: match rate.is_some_and(|rate| rate.dropped > 0.0) {
                _ if is_used && !is_up => Attention::Fault,
                true => Attention::Warning,
                false => Attention::Normal,
            },
        }
    };
    Table {
        columns: INTERFACES,
        rows: interfaces.iter().map(row).collect(),
        empty: "There is no interface.",
    }
}

const FLOWS: &[Column] = &[
    Column::text("IIF", u8::MAX),
    Column::text("SOURCE", u8::MAX),
    Column::text("GROUP", u8::MAX),
    Column::number("PKT/S", u8::MAX),
    Column::number("BIT/S", 8),
    Column::number("PACKETS", 7),
    Column::number("IDLE", 4),
    Column::text("OIFS", 6),
    Column::text("ROUTE", 3),
    Column::text("PLANE", 2),
];

fn flows(flows: &[FlowView], rates: &Rates) -> Table {
    let row = |flow: &FlowView| {
        let key = flow_key(flow);
        let rate = rates.flows.get(&key);
        let oifs = flow
            .oifs
            .iter()
            .map(|oif| match flow.yields.contains_key(oif) {
                true => format!("{oif} (other)"),
                false => oif.clone(),
            });
        let oifs: Vec<String> = oifs.collect();
        let iif = match flow.active {
            true => flow.iif.clone(),
            false => format!("{} (standby)", flow.iif),
        };
        Row {
            cells: vec![
                Cell::text(iif),
                Cell::text(&flow.source),
                Cell::text(&flow.group),
                Cell::rate(rate.map(|rate| rate.packets)),
                Cell::rate(rate.map(|rate| rate.bits)),
                Cell::count(flow.packets),
                idle(flow.idle_ms),
                Cell::text(match flow.dropped {
                    true => "(dropped)".into(),
                    false => or_none(oifs.join(" ")),
                }),
                Cell::text(flow.route.as_deref().unwrap_or("-")),
                Cell::text(&flow.plane),
            ],
            key,
            attention: match (flow.dropped, flow.active) {
                (true, _) => Attention::Fault,
                (_, false) => Attention::Warning,
                _ => Attention::Normal,
            },
        }
    };
    Table {
        columns: FLOWS,
        rows: flows.iter().map(row).collect(),
        empty: "No packet is being forwarded. `mcastor doctor` looks for the cause.",
    }
}

const DROPS: &[Column] = &[
    Column::number("MINUTE", u8::MAX),
    Column::number("DROP/S", 8),
    Column::number("TOTAL", 6),
    Column::text("INTERFACE", u8::MAX),
    Column::text("REASON", u8::MAX),
    Column::text("SOURCE", u8::MAX),
    Column::text("GROUP", u8::MAX),
    Column::number("IDLE", 5),
    Column::number("TTL", 2),
    Column::number("SIZE", 1),
];

fn drops(drops: &[DropView], rates: &Rates) -> Table {
    let row = |drop: &DropView| {
        let key = drop_key(drop);
        let address = |address: &Option<String>| Cell::text(address.as_deref().unwrap_or("-"));
        let number = |number: Option<u64>| match number {
            Some(number) => Cell::count(number),
            None => Cell::rate(None),
        };
        let total = match drop.missed_at_most {
            0 => Cell::count(drop.packets),
            _ => Cell::number(format!("{}+", drop.packets), drop.packets as f64),
        };
        Row {
            cells: vec![
                Cell::count(drop.last_minute),
                Cell::rate(rates.drops.get(&key).copied()),
                total,
                Cell::text(&drop.interface),
                Cell::text(&drop.reason),
                address(&drop.source),
                address(&drop.group),
                idle(drop.idle_ms),
                number(drop.ttl.map(u64::from)),
                number(drop.size.map(u64::from)),
            ],
            attention: match rates.drops.get(&key).is_some_and(|rate| *rate > 0.0) {
                true => Attention::Fault,
                false => Attention::Normal,
            },
            key,
        }
    };
    Table {
        columns: DROPS,
        rows: drops.iter().map(row).collect(),
        empty: "No packet was dropped.",
    }
}

const JOINS: &[Column] = &[
    Column::text("INTERFACE", u8::MAX),
    Column::text("ROLE", 8),
    Column::text("GROUP", u8::MAX),
    Column::text("MODE", 4),
    Column::text("SOURCES", 6),
    Column::text("REPORTERS", 5),
    Column::number("EXPIRES", 3),
    Column::text("VERSION", 1),
    Column::text("STATE", 7),
];

fn joins(groups: &[GroupView]) -> Table {
    let row = |group: &GroupView| {
        let sources = group.sources.iter().map(|s| match s.forwarded {
            true => s.source.clone(),
            false => format!("not {}", s.source),
        });
        let sources: Vec<String> = sources.collect();
        let reporters = match group.reporters.is_empty() {
            true => group.last_reporter.clone().unwrap_or_default(),
            false => group.reporters.join(" "),
        };
        Row {
            key: group_key(group),
            cells: vec![
                Cell::text(&group.interface),
                Cell::text(&group.role),
                Cell::text(&group.group),
                Cell::text(&group.mode),
                Cell::text(or_none(sources.join(" "))),
                Cell::text(or_none(reporters)),
                group.expires_ms.map_or(Cell::rate(None), idle),
                Cell::text(group.version.as_deref().unwrap_or("-")),
                Cell::text(group.error.as_deref().unwrap_or("joined")),
            ],
            attention: match group.error.is_some() {
                true => Attention::Fault,
                false => Attention::Normal,
            },
        }
    };
    Table {
        columns: JOINS,
        rows: groups.iter().map(row).collect(),
        empty: "No group is joined, and none has members.",
    }
}

const STREAMS: &[Column] = &[
    Column::rank("VERDICT", u8::MAX),
    Column::text("IIF", 8),
    Column::text("SOURCE", u8::MAX),
    Column::text("GROUP", u8::MAX),
    Column::number("PKT/S", u8::MAX),
    Column::number("BIT/S", 5),
    Column::number("LOST", 7),
    Column::number("HERE", 6),
    Column::number("JITTER", 4),
    Column::text("KIND", 2),
    Column::number("IDLE", 3),
    Column::text("ROUTE", 1),
];

fn streams(streams: &[StreamView]) -> Table {
    let row = |stream: &StreamView| {
        let rate = &stream.ingress.rate;
        let verdict = stream.verdict;
        // The worst first.
        let rank = match verdict {
            StreamVerdict::Fine => 0.0,
            StreamVerdict::Faulty => 1.0,
            StreamVerdict::LostBefore => 2.0,
            StreamVerdict::LostHere => 3.0,
            StreamVerdict::LostBeforeAndHere => 4.0,
            StreamVerdict::Silent => 5.0,
        };
        let here: u64 = stream.lost_here.values().map(|lost| lost.minute).sum();
        let jitter_us = stream.ingress.rtp.as_ref().and_then(|rtp| rtp.jitter_us);
        let jitter = jitter_us.map(|us| {
            let ms = us as f64 / 1000.0;
            Cell::number(format!("{ms:.1} ms"), ms)
        });
        Row {
            key: stream_key(stream),
            cells: vec![
                Cell::number(verdict.words().to_owned(), rank),
                Cell::text(&stream.iif),
                Cell::text(&stream.source),
                Cell::text(&stream.group),
                Cell::rate(Some(rate.packets_per_second as f64)),
                Cell::rate(Some(rate.bits_per_second as f64)),
                stream
                    .lost_before
                    .map_or(Cell::rate(None), |lost| Cell::count(lost.minute)),
                Cell::count(here),
                jitter.unwrap_or(Cell::rate(None)),
                Cell::text(&stream.kind),
                idle(stream.idle_ms),
                Cell::text(stream.route.as_deref().unwrap_or("-")),
            ],
            attention: match verdict {
                StreamVerdict::Fine => Attention::Normal,
                StreamVerdict::Faulty => Attention::Warning,
                _ => Attention::Fault,
            },
        }
    };
    Table {
        columns: STREAMS,
        rows: streams.iter().map(row).collect(),
        empty: "No stream is monitored. Set `monitor` in a route or proxy.",
    }
}

/// A cell with a time.
fn idle(ms: u64) -> Cell {
    let seconds = ms as f64 / 1000.0;
    let text = match ms {
        0..10_000 => format!("{seconds:.1}s"),
        10_000..600_000 => format!("{seconds:.0}s"),
        _ => format!("{}m", ms / 60_000),
    };
    Cell::number(text, seconds)
}

fn or_none(text: String) -> String {
    match text.is_empty() {
        true => "-".into(),
        false => text,
    }
}
