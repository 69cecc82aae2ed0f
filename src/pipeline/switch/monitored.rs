//! Passes packets of monitored streams to their monitor.

use super::captured::ip_packet;
use super::packet_variants::PacketVariants;
use crate::forward::{Decision, DropReason, look_up, monitor_of};
use crate::pipeline::{Batch, Packet};
use crate::streams::{Method, ObservedPacket, StreamId, StreamMonitor};
use crate::table::flows::FlowKey;
use crate::table::{Fib, Ingress};
use crate::wire::offload::Offload;

/// Examines the packets of a captured packet as they arrived. Returns the identity of the stream.
pub(super) fn observe_stream(
    monitor: &mut StreamMonitor,
    method: Method,
    decision: &Decision<'_>,
    (packet, packets): (&Packet, &PacketVariants),
    (batch, side_buffer): (&Batch, &[u8]),
    now_ms: u64,
) -> Option<StreamId> {
    let datagram = &decision.datagram;
    let is_segmented = matches!(packet.offload, Offload::UdpSegments { .. });
    let memory = match is_segmented && packets.gso.is_none() {
        true => side_buffer,
        false => batch.bytes(),
    };
    let mut stream = None;
    for (start, len) in &packets.ranges {
        let bytes = memory.get(*start as usize..)?.get(..*len as usize)?;
        let observed = ObservedPacket {
            bytes,
            segments: packets.gso.map(|(segments, _)| segments),
            received_ns: packet.received_ns,
            now_ms,
        };
        let key = (datagram.source, datagram.destination);
        stream = monitor.observe(key, method, observed);
    }
    stream
}

/// Counts a packet that was dropped for all egresses, if its stream is monitored.
pub(super) fn observe_dropped(
    monitor: &mut StreamMonitor,
    (fib, ingress): (&Fib, &Ingress),
    (key, reason, packet): (FlowKey, DropReason, &Packet),
    batch: &Batch,
    now_ms: u64,
) {
    // With routes and members as they are, other streams are not forwarded anyway.
    let concerns_stream = match reason {
        DropReason::TtlExpired | DropReason::NoEgress => fib.monitors,
        _ => fib.monitors && monitor.contains(&key),
    };
    let kind = || monitor_of(fib, ingress, look_up(fib, ingress, key).ok()?, key);
    let Some(kind) = concerns_stream.then(kind).flatten() else {
        return;
    };
    let Some((bytes, segments)) = ip_packet(batch, packet) else {
        return;
    };
    let observed = ObservedPacket {
        bytes,
        segments,
        received_ns: packet.received_ns,
        now_ms,
    };
    let method = (kind, fib.monitoring.sequence);
    if let Some(id) = monitor.observe(key, method, observed) {
        let packets = segments.map_or(1, |segments| segments.count(bytes.len()));
        monitor.count_dropped(id, None, reason, packets, now_ms);
    }
}
