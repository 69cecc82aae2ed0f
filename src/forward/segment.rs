//! GSO packets of UDP datagrams (`UDP_SEGMENT`, `udp(7)`): segmentation into datagrams, and
//! preparation for segmentation by the kernel.

use std::ops::Range;

use super::DropReason;
use super::upper::{read_u16, write_u16};
use crate::wire::ip::{IPV6_HEADER_LEN, IpHeader, refresh_ipv4_checksum};
use crate::wire::offload::GsoLayout;
use crate::wire::{checksum, udp};

/// Returns the layout of a GSO packet with `payload` bytes per datagram, if the kernel can segment
/// the packet. Returns `None` if the packet must be passed to [`segment`], which segments or
/// rejects it.
pub fn gso_layout(packet: &[u8], datagram: &IpHeader, payload: u16) -> Option<GsoLayout> {
    let layout = GsoLayout::new(payload, datagram.header_len + udp::HEADER_LEN)?;
    // The kernel would segment an IP fragment as if it were a complete packet. A single datagram
    // needs no segmentation.
    let is_fragment = datagram.source.is_ipv4() && read_u16(packet, 6) & 0x3fff != 0;
    let is_gso = is_udp(packet, datagram) && !is_fragment && layout.count(datagram.packet_len) > 1;
    is_gso.then_some(layout)
}

/// Writes the UDP header fields that the kernel relies on when it segments a GSO packet: the total
/// length, and in the checksum field the sum of the pseudo-header.
///
/// The received fields cannot be used: the sender may have written wrong values, and a translation
/// changes the addresses. `packet` must have the layout `layout` as [`gso_layout`] returned it.
pub fn prepare_for_kernel_gso(packet: &mut [u8], layout: GsoLayout) {
    let is_v4 = packet.first().is_some_and(|b| b >> 4 == 4);
    let addresses = if is_v4 { 12..20 } else { 8..40 };
    let udp_at = layout.headers() - udp::HEADER_LEN;
    let udp_len = packet.len().saturating_sub(udp_at) as u16;
    let sum = checksum::add(0, packet.get(addresses).unwrap_or_default());
    let sum = sum + u64::from(udp::PROTOCOL) + u64::from(udp_len);
    write_u16(packet, udp_at + udp::LENGTH_OFFSET, udp_len);
    write_u16(packet, udp_at + udp::CHECKSUM_OFFSET, checksum::fold(sum));
}

fn is_udp(packet: &[u8], datagram: &IpHeader) -> bool {
    let protocol_at = if datagram.source.is_ipv4() { 9 } else { 6 };
    packet.get(protocol_at) == Some(&udp::PROTOCOL)
}

/// Appends the datagrams of a GSO packet to `out`, each with `payload` bytes, the last with the
/// rest. Calls `on_segment` with the range of each datagram in `out`.
///
/// The datagrams have the TTL and the addresses of the packet. Their IPv4 identifications count up
/// from that of the packet, as in the kernel.
///
/// # Errors
/// The packet cannot be segmented; the reason says why. `out` is unchanged.
pub fn segment(
    packet: &[u8],
    datagram: &IpHeader,
    payload: u16,
    out: &mut Vec<u8>,
    mut on_segment: impl FnMut(Range<usize>),
) -> Result<(), DropReason> {
    let udp_at = datagram.header_len;
    let headers_len = udp_at + udp::HEADER_LEN;
    let (Some(headers), Some(body)) = (packet.get(..headers_len), packet.get(headers_len..)) else {
        return Err(DropReason::Truncated);
    };
    // The kernel creates no GSO packets with extension headers between IPv6 and UDP, or without
    // payload. Other protocols than UDP would be segmented wrongly.
    if !is_udp(packet, datagram) || payload == 0 || body.is_empty() {
        return Err(DropReason::GsoUnknown);
    }
    let first_id = u16::from_be_bytes([packet[4], packet[5]]);
    for (i, chunk) in body.chunks(usize::from(payload)).enumerate() {
        let start = out.len();
        out.extend_from_slice(headers);
        out.extend_from_slice(chunk);
        let segment = &mut out[start..];
        let udp_len = (udp::HEADER_LEN + chunk.len()) as u16;
        segment[udp_at + udp::LENGTH_OFFSET..][..2].copy_from_slice(&udp_len.to_be_bytes());
        if datagram.source.is_ipv4() {
            let total = segment.len() as u16;
            segment[2..4].copy_from_slice(&total.to_be_bytes());
            segment[4..6].copy_from_slice(&first_id.wrapping_add(i as u16).to_be_bytes());
            refresh_ipv4_checksum(segment);
        } else {
            let length = (segment.len() - IPV6_HEADER_LEN) as u16;
            segment[4..6].copy_from_slice(&length.to_be_bytes());
        }
        let field = udp_at + udp::CHECKSUM_OFFSET;
        segment[field..field + 2].fill(0);
        let sum = checksum::pseudo_header(
            datagram.source,
            datagram.destination,
            udp::PROTOCOL,
            u32::from(udp_len),
        );
        let sum = !checksum::fold(checksum::add(sum, &segment[udp_at..]));
        segment[field..field + 2].copy_from_slice(&udp::checksum_field(sum).to_be_bytes());
        on_segment(start..out.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn super_packet(v6: bool, body: usize) -> Vec<u8> {
        let mut p = if v6 {
            let mut p = vec![0u8; 40];
            p[0] = 0x60;
            p[4..6].copy_from_slice(&((8 + body) as u16).to_be_bytes());
            p[6] = 17;
            p[7] = 9;
            p[8] = 0x20;
            p[23] = 1;
            p[24] = 0xff;
            p[25] = 0x3e;
            p
        } else {
            let mut p = vec![0u8; 20];
            p[0] = 0x45;
            p[2..4].copy_from_slice(&((28 + body) as u16).to_be_bytes());
            p[4..6].copy_from_slice(&0xffffu16.to_be_bytes());
            p[8] = 9;
            p[9] = 17;
            p[12..20].copy_from_slice(&[10, 0, 0, 1, 225, 1, 2, 3]);
            p
        };
        p.extend_from_slice(&[0x03, 0xe8, 0x13, 0x88, 0, 0, 0xab, 0xcd]);
        p.extend((0..body).map(|i| i as u8));
        refresh_ipv4_checksum(&mut p);
        if v6 {
            // `refresh_ipv4_checksum` overwrote two bytes of the IPv6 header.
            p[10..12].fill(0);
        }
        p
    }

    #[test]
    fn segments_are_datagrams_with_correct_checksums() {
        for v6 in [false, true] {
            let packet = super_packet(v6, 2500);
            let header = IpHeader::parse(&packet).unwrap();
            let (mut out, mut ranges) = (Vec::new(), Vec::new());
            segment(&packet, &header, 1000, &mut out, |r| ranges.push(r)).unwrap();
            assert_eq!(ranges.len(), 3);
            let mut body = Vec::new();
            for range in ranges {
                let chunk = &out[range];
                let d = IpHeader::parse(chunk).unwrap();
                assert_eq!(d.packet_len, chunk.len());
                let udp = &chunk[d.header_len..];
                let sum = checksum::pseudo_header(d.source, d.destination, 17, udp.len() as u32);
                assert_eq!(checksum::fold(checksum::add(sum, udp)), 0xffff);
                body.extend_from_slice(&udp[8..]);
            }
            assert_eq!(body, packet[packet.len() - 2500..]);
        }
    }

    #[test]
    fn any_segment_size_yields_the_whole_payload() {
        for v6 in [false, true] {
            let headers = if v6 { 48 } else { 28 };
            for body in [0, 1, 2, 999, 1000, 1001, 2500] {
                let packet = super_packet(v6, body);
                let datagram = IpHeader::parse(&packet).unwrap();
                for payload in [0, 1, 999, 1000, 1001, u16::MAX] {
                    let count = body.div_ceil(usize::from(payload).max(1)) as u64;
                    let layout = gso_layout(&packet, &datagram, payload);
                    assert_eq!(
                        layout.is_some(),
                        payload > 0 && count > 1,
                        "{body} {payload}"
                    );
                    let mut ranges = Vec::new();
                    let done =
                        segment(&packet, &datagram, payload, &mut vec![], |r| ranges.push(r));
                    assert_eq!(done.is_ok(), payload > 0 && body > 0);
                    if let Some(layout) = layout {
                        let bytes: usize = ranges.iter().map(|r| r.len()).sum();
                        let totals = (layout.count(packet.len()), layout.bytes(packet.len()));
                        assert_eq!(totals, (ranges.len() as u64, bytes as u64));
                        assert_eq!(layout.longest(packet.len()), ranges[0].len());
                        assert_eq!(layout.headers(), headers);
                    }
                }
            }
        }
    }

    #[test]
    fn only_complete_udp_datagrams_are_gso() {
        let is_gso = |packet: &[u8]| {
            let datagram = IpHeader::parse(packet).unwrap();
            gso_layout(packet, &datagram, 100).is_some()
        };
        let changed = |at: usize, to: u8| {
            let mut packet = super_packet(false, 500);
            packet[at] = to;
            refresh_ipv4_checksum(&mut packet);
            packet
        };
        assert!(is_gso(&changed(8, 3)) && is_gso(&changed(6, 0x40)));
        assert!(!is_gso(&changed(9, 6)));
        // A fragment with MF set, and a last fragment.
        assert!(!is_gso(&changed(6, 0x20)) && !is_gso(&changed(7, 1)));
        let mut packet = super_packet(false, 0);
        packet.truncate(24);
        packet[3] = 24;
        refresh_ipv4_checksum(&mut packet);
        assert!(!is_gso(&packet));
        let mut packet = super_packet(true, 500);
        packet[6] = 0;
        assert!(!is_gso(&packet));
    }

    #[test]
    fn gso_udp_header_has_total_length_and_pseudo_header_sum() {
        for v6 in [false, true] {
            let mut packet = super_packet(v6, 2500);
            let before = packet.clone();
            let datagram = IpHeader::parse(&packet).unwrap();
            let layout = gso_layout(&packet, &datagram, 1000).unwrap();
            prepare_for_kernel_gso(&mut packet, layout);
            let at = datagram.header_len;
            let addresses = (datagram.source, datagram.destination);
            let sum = checksum::pseudo_header(addresses.0, addresses.1, 17, 2508);
            assert_eq!(read_u16(&packet, at + 4), 2508);
            assert_eq!(read_u16(&packet, at + 6), checksum::fold(sum));
            // The other bytes are unchanged.
            packet[at + 4..at + 8].copy_from_slice(&before[at + 4..at + 8]);
            assert_eq!(packet, before);
        }
    }

    #[test]
    fn segmenting_other_than_plain_udp_is_refused() {
        let mut packet = super_packet(false, 100);
        packet[9] = 6;
        refresh_ipv4_checksum(&mut packet);
        let header = IpHeader::parse(&packet).unwrap();
        let refused = segment(&packet, &header, 50, &mut Vec::new(), |_| {});
        assert_eq!(refused, Err(DropReason::GsoUnknown));
    }
}
