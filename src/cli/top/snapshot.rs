//! What the router said at one moment, and the rates between two moments.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use crate::api::{DropView, FlowView, GroupView, InterfaceView, StreamView};

/// Most flows that are read at a time. They are those with the most packets of all that match.
pub(super) const MAX_FLOWS: usize = 1000;
/// Most streams with dropped packets that are read at a time.
pub(super) const MAX_DROPS: usize = 200;

/// The tables of the router at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Reading {
    /// When they were read, since the start.
    pub at: Duration,
    /// The interfaces.
    pub interfaces: Vec<InterfaceView>,
    /// The flows, at most [`MAX_FLOWS`].
    pub flows: Vec<FlowView>,
    /// The words that the router searched for in its flows.
    pub search: String,
    /// What is dropped, at most [`MAX_DROPS`].
    pub drops: Vec<DropView>,
    /// Groups that this host has joined, or that have members.
    pub groups: Vec<GroupView>,
    /// The monitored streams.
    pub streams: Vec<StreamView>,
}

/// The rates of one interface.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct InterfaceRates {
    /// Packets received in a second.
    pub received: f64,
    /// Packets sent in a second.
    pub sent: f64,
    /// Packets dropped in a second.
    pub dropped: f64,
}

/// The rates of one flow.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct FlowSpeed {
    /// Packets in a second.
    pub packets: f64,
    /// Bits in a second.
    pub bits: f64,
}

/// Rates between two snapshots, by the keys of their rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Rates {
    /// By name.
    pub interfaces: HashMap<String, InterfaceRates>,
    /// By [`flow_key`].
    pub flows: HashMap<String, FlowSpeed>,
    /// Packets in a second, by [`drop_key`].
    pub drops: HashMap<String, f64>,
}

/// Identifies a flow.
pub(super) fn flow_key(flow: &FlowView) -> String {
    let FlowView {
        iif, source, group, ..
    } = flow;
    format!("{iif} {source} {group}")
}

/// Identifies a drop.
pub(super) fn drop_key(drop: &DropView) -> String {
    let address = |address: &Option<String>| address.clone().unwrap_or_default();
    let (source, group) = (address(&drop.source), address(&drop.group));
    format!("{} {} {source} {group}", drop.interface, drop.reason)
}

/// Identifies a group.
pub(super) fn group_key(group: &GroupView) -> String {
    format!("{} {} {}", group.interface, group.role, group.group)
}

/// Identifies a stream.
pub(super) fn stream_key(stream: &StreamView) -> String {
    format!("{} {} {}", stream.iif, stream.source, stream.group)
}

/// Returns the packets that were dropped on an interface for any reason.
pub(super) fn dropped(interface: &InterfaceView) -> u64 {
    let by_reason: u64 = interface.dropped_packets.values().sum();
    by_reason + interface.socket_dropped_packets
}

impl Rates {
    /// Returns the rates from `before` to `now`. What has no earlier count, or whose counters
    /// started again, has none.
    pub fn between(before: &Reading, now: &Reading) -> Self {
        let seconds = now.at.saturating_sub(before.at).as_secs_f64();
        if seconds <= 0.0 {
            return Self::default();
        }
        let rate = |before: u64, now: u64| {
            let grown = now.checked_sub(before)?;
            Some(grown as f64 / seconds)
        };
        let interface = |before: &InterfaceView, now: &InterfaceView| {
            Some(InterfaceRates {
                received: rate(before.received_packets, now.received_packets)?,
                sent: rate(before.transmitted_packets, now.transmitted_packets)?,
                dropped: rate(dropped(before), dropped(now))?,
            })
        };
        let flow = |before: &FlowView, now: &FlowView| {
            Some(FlowSpeed {
                packets: rate(before.packets, now.packets)?,
                bits: rate(before.bytes, now.bytes)? * 8.0,
            })
        };
        Self {
            interfaces: pairs(
                &before.interfaces,
                &now.interfaces,
                |i| i.name.clone(),
                interface,
            ),
            flows: pairs(&before.flows, &now.flows, flow_key, flow),
            drops: pairs(&before.drops, &now.drops, drop_key, |before, now| {
                rate(before.packets, now.packets)
            }),
        }
    }
}

/// Returns what `compare` makes of the rows that are in both lists, by key.
fn pairs<T, K: Hash + Eq, R>(
    before: &[T],
    now: &[T],
    key: impl Fn(&T) -> K,
    compare: impl Fn(&T, &T) -> Option<R>,
) -> HashMap<K, R> {
    let before: HashMap<K, &T> = before.iter().map(|row| (key(row), row)).collect();
    let found = now.iter().filter_map(|row| {
        let key = key(row);
        let compared = compare(before.get(&key)?, row)?;
        Some((key, compared))
    });
    found.collect()
}
