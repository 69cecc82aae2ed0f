//! What UDP segmentation offload put together (`UDP_SEGMENT`, `udp(7)`): cutting it into the
//! datagrams the sender meant, or making it ready for the kernel to cut.

use std::ops::Range;

use super::DropReason;
use super::upper::{put, word};
use crate::wire::ip::{IPV6_HEADER_LEN, IpHeader, refresh_ipv4_checksum};
use crate::wire::offload::GsoLayout;
use crate::wire::{checksum, udp};

/// How `packet` is cut into datagrams of `payload` bytes, where it may be handed to the kernel
/// whole. `None` where it is to be cut here, or may not be at all: see [`segment`].
pub fn segments(packet: &[u8], datagram: &IpHeader, payload: u16) -> Option<GsoLayout> {
    let segments = GsoLayout::new(payload, datagram.header_len + udp::HEADER_LEN)?;
    // The kernel cuts a fragment as if it were none, and one datagram is not cut.
    let is_fragment = datagram.source.is_ipv4() && word(packet, 6) & 0x3fff != 0;
    let whole = is_udp(packet, datagram) && !is_fragment && segments.count(datagram.packet_len) > 1;
    whole.then_some(segments)
}

/// Makes the UDP header of a packet that goes whole say what the kernel relies on when it cuts:
/// the length of all, and in the checksum field the sum of the pseudo-header. What the sender
/// wrote there may be a lie, or of other addresses. `packet` is one [`segments`] took.
pub fn leave_unfinished(packet: &mut [u8], segments: GsoLayout) {
    let is_v4 = packet.first().is_some_and(|b| b >> 4 == 4);
    let addresses = if is_v4 { 12..20 } else { 8..40 };
    let udp_at = segments.headers() - udp::HEADER_LEN;
    let udp_len = packet.len().saturating_sub(udp_at) as u16;
    let sum = checksum::add(0, packet.get(addresses).unwrap_or_default());
    let sum = sum + u64::from(udp::PROTOCOL) + u64::from(udp_len);
    put(packet, udp_at + udp::LENGTH_OFFSET, udp_len);
    put(packet, udp_at + udp::CHECKSUM_OFFSET, checksum::fold(sum));
}

fn is_udp(packet: &[u8], datagram: &IpHeader) -> bool {
    let protocol_at = if datagram.source.is_ipv4() { 9 } else { 6 };
    packet.get(protocol_at) == Some(&udp::PROTOCOL)
}

/// Cuts `packet` into datagrams of `payload` bytes each, the last with the rest. They are
/// appended to `out`; `each` is told where each stands. TTL and addresses are those of
/// `packet`; IPv4 identifications count up, as the kernel's do.
pub fn segment(
    packet: &[u8],
    datagram: &IpHeader,
    payload: u16,
    out: &mut Vec<u8>,
    mut each: impl FnMut(Range<usize>),
) -> Result<(), DropReason> {
    let udp_at = datagram.header_len;
    let headers_len = udp_at + udp::HEADER_LEN;
    let (Some(headers), Some(body)) = (packet.get(..headers_len), packet.get(headers_len..)) else {
        return Err(DropReason::Truncated);
    };
    // Extension headers between IPv6 and UDP, and cuts into nothing, are not what the kernel
    // makes; anything else would be cut wrongly.
    if !is_udp(packet, datagram) || payload == 0 || body.is_empty() {
        return Err(DropReason::GsoUnknown);
    }
    let first_id = u16::from_be_bytes([packet[4], packet[5]]);
    for (i, piece) in body.chunks(usize::from(payload)).enumerate() {
        let start = out.len();
        out.extend_from_slice(headers);
        out.extend_from_slice(piece);
        let segment = &mut out[start..];
        let udp_len = (udp::HEADER_LEN + piece.len()) as u16;
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
        each(start..out.len());
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
            // The refresh is for IPv4 only; undo what it did to an IPv6 header.
            p[10..12].fill(0);
        }
        p
    }

    #[test]
    fn segments_are_datagrams_with_correct_checksums() {
        for v6 in [false, true] {
            let packet = super_packet(v6, 2500);
            let whole = IpHeader::parse(&packet).unwrap();
            let (mut out, mut cuts) = (Vec::new(), Vec::new());
            segment(&packet, &whole, 1000, &mut out, |r| cuts.push(r)).unwrap();
            assert_eq!(cuts.len(), 3);
            let mut body = Vec::new();
            for cut in cuts {
                let piece = &out[cut];
                let d = IpHeader::parse(piece).unwrap();
                assert_eq!(d.packet_len, piece.len());
                let udp = &piece[d.header_len..];
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
                    let whole = segments(&packet, &datagram, payload);
                    assert_eq!(
                        whole.is_some(),
                        payload > 0 && count > 1,
                        "{body} {payload}"
                    );
                    let mut cuts = Vec::new();
                    let done = segment(&packet, &datagram, payload, &mut vec![], |r| cuts.push(r));
                    assert_eq!(done.is_ok(), payload > 0 && body > 0);
                    if let Some(whole) = whole {
                        let bytes: usize = cuts.iter().map(|r| r.len()).sum();
                        let told = (whole.count(packet.len()), whole.bytes(packet.len()));
                        assert_eq!(told, (cuts.len() as u64, bytes as u64));
                        assert_eq!(whole.longest(packet.len()), cuts[0].len());
                        assert_eq!(whole.headers(), headers);
                    }
                }
            }
        }
    }

    #[test]
    fn only_complete_udp_datagrams_are_gso() {
        let told = |packet: &[u8]| {
            let datagram = IpHeader::parse(packet).unwrap();
            segments(packet, &datagram, 100).is_some()
        };
        let changed = |at: usize, to: u8| {
            let mut packet = super_packet(false, 500);
            packet[at] = to;
            refresh_ipv4_checksum(&mut packet);
            packet
        };
        assert!(told(&changed(8, 3)) && told(&changed(6, 0x40)));
        assert!(!told(&changed(9, 6)));
        // More fragments, and the last of some.
        assert!(!told(&changed(6, 0x20)) && !told(&changed(7, 1)));
        let mut packet = super_packet(false, 0);
        packet.truncate(24);
        packet[3] = 24;
        refresh_ipv4_checksum(&mut packet);
        assert!(!told(&packet));
        let mut packet = super_packet(true, 500);
        packet[6] = 0;
        assert!(!told(&packet));
    }

    #[test]
    fn gso_udp_header_has_total_length_and_pseudo_header_sum() {
        for v6 in [false, true] {
            let mut packet = super_packet(v6, 2500);
            let before = packet.clone();
            let datagram = IpHeader::parse(&packet).unwrap();
            let whole = segments(&packet, &datagram, 1000).unwrap();
            leave_unfinished(&mut packet, whole);
            let at = datagram.header_len;
            let addresses = (datagram.source, datagram.destination);
            let sum = checksum::pseudo_header(addresses.0, addresses.1, 17, 2508);
            assert_eq!(word(&packet, at + 4), 2508);
            assert_eq!(word(&packet, at + 6), checksum::fold(sum));
            // Nothing else changed.
            packet[at + 4..at + 8].copy_from_slice(&before[at + 4..at + 8]);
            assert_eq!(packet, before);
        }
    }

    #[test]
    fn segmenting_other_than_plain_udp_is_refused() {
        let mut packet = super_packet(false, 100);
        packet[9] = 6;
        refresh_ipv4_checksum(&mut packet);
        let whole = IpHeader::parse(&packet).unwrap();
        let refused = segment(&packet, &whole, 50, &mut Vec::new(), |_| {});
        assert_eq!(refused, Err(DropReason::GsoUnknown));
    }
}
