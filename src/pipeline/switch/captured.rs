//! What a captured packet is, for counters and copies, before or after the decision about it.

use crate::forward::segment::gso_layout;
use crate::forward::{Decision, DropReason, NotData};
use crate::pipeline::{Batch, CapturedMessage, Messages, Packet};
use crate::table::Ingress;
use crate::wire::ip_summary::IpSummary;
use crate::wire::offload::{GsoLayout, Offload};
use crate::wire::{ip, vlan};

/// Returns the offset of the IP header in a captured frame that arrived on `ingress`.
///
/// # Errors
/// The frame belongs to a VLAN interface, or has no IP packet of its type.
pub(super) fn ip_offset(
    ingress: &Ingress,
    packet: &Packet,
    frame: &[u8],
) -> Result<usize, NotData> {
    // The outermost tag decides which interface a frame belongs to. The kernel strips this tag,
    // except from outgoing frames on a device that cannot insert tags.
    let vlan = packet
        .vlan
        .or_else(|| vlan::outer_tag(packet.ethertype, frame));
    if vlan.is_some_and(|id| ingress.vlans_with_own_interface.contains(&id)) {
        return Err(DropReason::VlanElsewhere.into());
    }
    let (ethertype, tags) = vlan::skip_tags(packet.ethertype, frame)?;
    let ip_version = frame.get(tags).map(|first| first >> 4);
    match (ethertype, ip_version) {
        (vlan::ETHERTYPE_IPV4, Some(4)) | (vlan::ETHERTYPE_IPV6, Some(6)) => Ok(tags),
        (vlan::ETHERTYPE_IPV4 | vlan::ETHERTYPE_IPV6, None) => Err(DropReason::Truncated.into()),
        _ => Err(DropReason::Malformed.into()),
    }
}

/// Returns the bytes of a captured IP packet, and how it is segmented. `None` if it cannot be parsed.
pub(super) fn ip_packet<'b>(
    batch: &'b Batch,
    packet: &Packet,
) -> Option<(&'b [u8], Option<GsoLayout>)> {
    let bytes = batch.bytes().get(packet.start as usize..)?;
    let bytes = bytes.get(..packet.len as usize)?;
    let (_, tags) = vlan::skip_tags(packet.ethertype, bytes).ok()?;
    let datagram = ip::IpHeader::parse(&bytes[tags..]).ok()?;
    let segments = match packet.offload {
        Offload::UdpSegments { payload } => gso_layout(&bytes[tags..], &datagram, payload),
        _ => None,
    };
    Some((&bytes[tags..tags + datagram.packet_len], segments))
}

/// Returns the packets and bytes on the wire of a captured packet; a GSO packet counts as its
/// segments.
pub(super) fn on_wire(batch: &Batch, packet: &Packet) -> (u64, u64) {
    let gso = || {
        let (bytes, segments) = ip_packet(batch, packet)?;
        let gso = segments?;
        Some((gso.count(bytes.len()), gso.bytes(bytes.len())))
    };
    gso().unwrap_or((1, packet.len.into()))
}

/// Returns the summary of a dropped packet.
pub(super) fn summary(batch: &Batch, packet: &Packet) -> Option<IpSummary> {
    let bytes = batch.bytes().get(packet.start as usize..)?;
    let bytes = bytes.get(..packet.len as usize)?;
    let (_, tags) = vlan::skip_tags(packet.ethertype, bytes).ok()?;
    IpSummary::read(&bytes[tags..])
}

/// Returns the summary of a packet that was dropped after the decision. The packet is one of
/// `datagrams` in a GSO packet, and may have been translated in place.
pub(super) fn decided_summary(
    decision: &Decision<'_>,
    batch: &Batch,
    packet: &Packet,
    datagrams: u64,
) -> IpSummary {
    let datagram = &decision.datagram;
    let is_original =
        |s: &IpSummary| (s.source, s.destination) == (datagram.source, datagram.destination);
    IpSummary {
        source: datagram.source,
        destination: datagram.destination,
        ttl: datagram.ttl,
        len: (datagram.packet_len as u64 / datagrams.max(1)) as u32,
        port: summary(batch, packet)
            .filter(is_original)
            .and_then(|s| s.port),
    }
}

/// Copies an IGMP, MLD or router discovery message out of the batch.
pub(super) fn copy_message(batch: &Batch, packet: &Packet, messages: &mut Messages) {
    let start = packet.start as usize;
    let bytes = &batch.bytes()[start..start + packet.len as usize];
    if let Ok((_, tags)) = vlan::skip_tags(packet.ethertype, bytes) {
        messages.push(CapturedMessage {
            bytes: &bytes[tags..],
            outgoing: packet.outgoing,
        });
    }
}
