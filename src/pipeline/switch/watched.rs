//! Recognises other forwarders by packets that are neither counted nor forwarded.

use super::captured::ip_offset;
use crate::forward::{Arrival, observe};
use crate::pipeline::Batch;
use crate::table::{Fib, Ingress, StreamState};
use crate::wire::ip;

/// Recognises other forwarders by the packets of a batch that arrived on an ingress.
pub(super) fn observe_forwarders(
    streams: &StreamState,
    (fib, ingress): (&Fib, &Ingress),
    batch: &Batch,
    now_ms: u64,
) {
    for packet in &batch.packets {
        let start = packet.start as usize;
        let frame = batch.bytes().get(start..start + packet.len as usize);
        let Some(frame) = frame.filter(|_| packet.sender.is_some()) else {
            continue;
        };
        let Ok(offset) = ip_offset(ingress, packet, frame) else {
            continue;
        };
        let Ok(header) = ip::IpHeader::parse(&frame[offset..]) else {
            continue;
        };
        let arrival = Arrival {
            fib,
            ingress,
            streams,
            sender: packet.sender,
            now_ms,
        };
        let stream = (header.source, header.destination);
        observe(arrival, stream, header.packet_len as u64);
    }
}
