//! `trace`: live packets, and the decision for each.

use std::fmt::Write as _;

use super::explain::packets_on_link;
use super::ingress_names::ingress_named;
use super::query::QueryError;
use crate::actors::RouterContext;
use crate::actors::live_trace::TraceBusy;
use crate::actors::shared::Snapshot;
use crate::api::{TraceQuery, TraceView, TracedPacketView, TracedPathView};
use crate::forward::{DropReason, NotData};
use crate::model::GroupPrefix;
use crate::pipeline::packet_trace::{TraceFilter, TracedPacket, TracedPath};

/// Starts or continues a trace. Returns the packets that it has recorded.
///
/// # Errors
/// The query has no valid group or interface, or another client traces.
pub fn trace(context: &RouterContext, query: &TraceQuery) -> Result<TraceView, QueryError> {
    let group: Result<GroupPrefix, _> = query.group.parse();
    let group = group.map_err(|e| QueryError::Refused(e.to_string()))?;
    let snapshot = context.snapshot.load_full();
    let ingress = query
        .iif
        .as_deref()
        .map(|iif| ingress_named(&snapshot, iif));
    let filter = TraceFilter {
        group,
        port: query.port,
        source: query.source,
        ingress: ingress.transpose().map_err(QueryError::Refused)?,
    };
    let polled = context.live_trace.poll(query.id, filter, context.now_ms());
    let polled = polled.map_err(|TraceBusy| {
        QueryError::Refused(
            "another client traces packets; try again when it has finished".to_owned(),
        )
    })?;
    if query.end {
        context.live_trace.end(query.id);
    }
    let packets = polled.packets.iter();
    Ok(TraceView {
        packets: packets
            .map(|packet| packet_view(&snapshot, packet, query.bytes))
            .collect(),
        missed: polled.missed,
    })
}

fn packet_view(snapshot: &Snapshot, packet: &TracedPacket, with_bytes: bool) -> TracedPacketView {
    let iif = snapshot.names.get(&packet.ingress);
    let outcome = match packet.outcome {
        Err(NotData::Dropped(reason)) => Some(reason),
        _ => None,
    };
    let dropped = outcome.iter().chain(&packet.dropped);
    TracedPacketView {
        received_ns: packet.received_ns,
        // The interface may have gone since.
        iif: iif.map_or_else(|| packet.ingress.to_string(), ToString::to_string),
        source: packet.header.source,
        group: packet.header.destination,
        port: packet.header.port,
        ttl: packet.header.ttl,
        size: packet.len,
        dropped: dropped.map(|reason| reason.label().into()).collect(),
        membership: packet.outcome == Err(NotData::Membership),
        egresses: packet
            .paths
            .iter()
            .filter_map(|path| path_view(packet, path))
            .collect(),
        bytes: with_bytes.then(|| {
            let mut digits = String::with_capacity(2 * packet.bytes.len());
            for byte in &packet.bytes {
                let _ = write!(digits, "{byte:02x}");
            }
            digits
        }),
    }
}

fn path_view(packet: &TracedPacket, traced: &TracedPath) -> Option<TracedPathView> {
    let path = packet.fib.paths.get(traced.path as usize)?;
    let egress = packet.fib.egress_of(traced.path)?;
    let fragments = traced
        .result
        .and_then(|()| fragments(packet, traced, egress.mtu));
    let translated = traced.translated;
    Some(TracedPathView {
        oif: egress.name.to_string(),
        rule: path.route.to_string(),
        reason: fragments.err().map(|reason| reason.label().into()),
        ttl: translated.map_or(traced.ttl, |header| header.ttl),
        source: translated.map(|header| header.source),
        group: translated.map(|header| header.destination),
        port: translated.and_then(|header| header.port),
        fragments: fragments.ok().flatten(),
    })
}

/// Returns the number of fragments in which the egress sends an untranslated packet that is larger
/// than its MTU.
fn fragments(
    packet: &TracedPacket,
    path: &TracedPath,
    mtu: u32,
) -> Result<Option<usize>, DropReason> {
    let is_complete = packet.bytes.len() == packet.len as usize;
    let is_single = packet.len == packet.header.len;
    if path.translated.is_some() || !is_complete || !is_single {
        return Ok(None);
    }
    let fragments = packets_on_link(&packet.bytes, mtu)?;
    Ok(Some(fragments).filter(|fragments| *fragments > 1))
}
