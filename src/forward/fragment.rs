//! Fragmentation for an egress whose MTU is smaller than the packet.
//!
//! IPv4 packets are fragmented (RFC 791 section 3.2). IPv6 routers do not fragment (RFC 8200
//! section 5), except for packets that they translated from IPv4 packets without DF (RFC 7915
//! section 4).

use std::ops::Range;

use super::DropReason;
use crate::wire::ip::{IPV4_MIN_HEADER_LEN, IPV6_HEADER_LEN, refresh_ipv4_checksum};

/// The DF flag in the flags and fragment offset field of IPv4.
pub(super) const DONT_FRAGMENT: u16 = 0x4000;
/// The MF flag in this field.
pub(super) const MORE_FRAGMENTS: u16 = 0x2000;
/// The fragment offset in this field, in units of eight bytes.
pub(super) const OFFSET_MASK: u16 = 0x1fff;

/// Clears DF in the header of an IPv4 packet that is no fragment, so that it can be fragmented, and
/// sets its identification to `id`. Packets with DF may all have the same identification (RFC 6864
/// section 4.1), but the fragments of different packets must not. Returns false, and changes
/// nothing, for any other packet.
pub fn clear_dont_fragment(packet: &mut [u8], id: u16) -> bool {
    let [0x45..=0x4f, _, _, _, id_high, id_low, flags, offset, ..] = packet else {
        return false;
    };
    let field = u16::from_be_bytes([*flags, *offset]);
    if field & DONT_FRAGMENT == 0 || field & (MORE_FRAGMENTS | OFFSET_MASK) != 0 {
        return false;
    }
    [*id_high, *id_low] = id.to_be_bytes();
    [*flags, *offset] = (field & !DONT_FRAGMENT).to_be_bytes();
    refresh_ipv4_checksum(packet);
    true
}

/// Appends the fragments of an IPv4 packet to `out`, each of at most `mtu` bytes. Calls
/// `on_fragment` with the range of each fragment in `out`. The packet may itself be a fragment.
///
/// # Errors
/// The packet cannot be fragmented; the reason says why. `out` is unchanged.
pub fn fragment(
    packet: &[u8],
    mtu: usize,
    out: &mut Vec<u8>,
    mut on_fragment: impl FnMut(Range<usize>),
) -> Result<(), DropReason> {
    let [first, ..] = packet else {
        return Err(DropReason::Truncated);
    };
    let header_len = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || packet.len() < header_len || header_len < IPV4_MIN_HEADER_LEN {
        return Err(DropReason::TooBig);
    }
    let (header, body) = packet.split_at(header_len);
    let flags = u16::from_be_bytes([header[6], header[7]]);
    // Fragments begin on multiples of eight bytes.
    let max_body_len = mtu.saturating_sub(header_len) & !7;
    if flags & DONT_FRAGMENT != 0 || max_body_len == 0 {
        return Err(DropReason::TooBig);
    }
    // A fragment that ends beyond the maximum length of a packet is an attack (RFC 791 section
    // 3.1).
    if usize::from(flags & OFFSET_MASK) * 8 + packet.len() > usize::from(u16::MAX) {
        return Err(DropReason::Malformed);
    }
    let mut later_header = [0u8; 60];
    let later_len = write_later_header(header, &mut later_header);
    let mut offset_bytes = 0;
    while offset_bytes < body.len() {
        let fragment = &body[offset_bytes..(offset_bytes + max_body_len).min(body.len())];
        let last = offset_bytes + fragment.len() == body.len();
        let start = out.len();
        out.extend_from_slice(if offset_bytes == 0 {
            header
        } else {
            &later_header[..later_len]
        });
        out.extend_from_slice(fragment);
        let bytes = &mut out[start..];
        let total = bytes.len() as u16;
        bytes[2..4].copy_from_slice(&total.to_be_bytes());
        let offset = (flags & OFFSET_MASK) + (offset_bytes / 8) as u16;
        let more = if last {
            flags & MORE_FRAGMENTS
        } else {
            MORE_FRAGMENTS
        };
        bytes[6..8].copy_from_slice(&(more | offset).to_be_bytes());
        refresh_ipv4_checksum(bytes);
        on_fragment(start..out.len());
        offset_bytes += fragment.len();
    }
    Ok(())
}

/// Writes the header of all fragments but the first to `later`, and returns its length. It contains
/// only the options with the copied flag (RFC 791 section 3.1, "Options").
fn write_later_header(header: &[u8], later: &mut [u8; 60]) -> usize {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const COPIED: u8 = 0x80;
    later[..IPV4_MIN_HEADER_LEN].copy_from_slice(&header[..IPV4_MIN_HEADER_LEN]);
    let mut len = IPV4_MIN_HEADER_LEN;
    let mut options = &header[IPV4_MIN_HEADER_LEN..];
    while let [kind, rest @ ..] = options {
        match *kind {
            END => break,
            NO_OPERATION => options = rest,
            kind => {
                let option_len = rest.first().map_or(0, |l| usize::from(*l));
                if option_len < 2 || option_len > options.len() {
                    break;
                }
                let (option, after) = options.split_at(option_len);
                if kind & COPIED != 0 {
                    later[len..len + option_len].copy_from_slice(option);
                    len += option_len;
                }
                options = after;
            }
        }
    }
    let padded = len.next_multiple_of(4);
    later[len..padded].fill(END);
    later[0] = 0x40 | (padded / 4) as u8;
    padded
}

/// Appends the fragments of an IPv6 packet to `out`, each of at most `mtu` bytes (RFC 8200 section
/// 4.5). Calls `on_fragment` with the range of each fragment in `out`.
///
/// The packet must have no extension header other than a Fragment header. With a Fragment header,
/// the fragments keep its identification; without one, they get the identification `id`.
///
/// # Errors
/// The packet cannot be fragmented; the reason says why. `out` is unchanged.
pub fn fragment_v6(
    packet: &[u8],
    mtu: usize,
    id: u32,
    out: &mut Vec<u8>,
    mut on_fragment: impl FnMut(Range<usize>),
) -> Result<(), DropReason> {
    const FRAGMENT: u8 = 44;
    let Some((header, rest)) = packet.split_first_chunk::<IPV6_HEADER_LEN>() else {
        return Err(DropReason::Truncated);
    };
    let mut extension = [header[6], 0, 0, 0, 0, 0, 0, 0];
    extension[4..].copy_from_slice(&id.to_be_bytes());
    let (extension, body) = match rest.split_first_chunk::<8>() {
        Some((existing, body)) if header[6] == FRAGMENT => (*existing, body),
        _ => (extension, rest),
    };
    let field = u16::from_be_bytes([extension[2], extension[3]]);
    let max_body_len = mtu.saturating_sub(IPV6_HEADER_LEN + extension.len()) & !7;
    if max_body_len == 0 {
        return Err(DropReason::TooBig);
    }
    // A fragment that ends beyond the range of the offset field is an attack.
    if usize::from(field & !7) + body.len() > usize::from(u16::MAX) {
        return Err(DropReason::Malformed);
    }
    for (n, fragment) in body.chunks(max_body_len).enumerate() {
        let offset_bytes = n * max_body_len;
        let last = offset_bytes + fragment.len() == body.len();
        let more = if last { field & 1 } else { 1 };
        let start = out.len();
        out.extend_from_slice(header);
        out.extend_from_slice(&extension);
        out.extend_from_slice(fragment);
        let bytes = &mut out[start..];
        let length = (extension.len() + fragment.len()) as u16;
        bytes[4..6].copy_from_slice(&length.to_be_bytes());
        bytes[6] = FRAGMENT;
        let offset = (field & !7) + offset_bytes as u16;
        bytes[IPV6_HEADER_LEN + 2..][..2].copy_from_slice(&(offset | more).to_be_bytes());
        on_fragment(start..out.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ip::IpHeader;
    use proptest::prelude::*;

    fn packet(options: &[u8], body: usize, flags: u16) -> Vec<u8> {
        let header_len = 20 + options.len();
        let mut p = vec![0u8; 20];
        p[0] = 0x40 | (header_len / 4) as u8;
        p[2..4].copy_from_slice(&((header_len + body) as u16).to_be_bytes());
        p[6..8].copy_from_slice(&flags.to_be_bytes());
        p[8] = 9;
        p[12..20].copy_from_slice(&[10, 0, 0, 1, 225, 1, 2, 3]);
        p.extend_from_slice(options);
        p.extend((0..body).map(|i| i as u8));
        refresh_ipv4_checksum(&mut p);
        p
    }

    fn fragments_of(packet: &[u8], mtu: usize) -> Result<Vec<Vec<u8>>, DropReason> {
        let (mut out, mut ranges) = (Vec::new(), Vec::new());
        fragment(packet, mtu, &mut out, |r| ranges.push(r))?;
        Ok(ranges.into_iter().map(|r| out[r].to_vec()).collect())
    }

    #[test]
    fn df_and_ipv6_packets_are_too_big() {
        assert_eq!(
            fragments_of(&packet(&[], 3000, DONT_FRAGMENT), 1500),
            Err(DropReason::TooBig)
        );
        let mut v6 = vec![0; 3000];
        v6[0] = 0x60;
        assert_eq!(fragments_of(&v6, 1500), Err(DropReason::TooBig));
        assert_eq!(
            fragments_of(&packet(&[], 3000, 0), 27),
            Err(DropReason::TooBig)
        );
    }

    /// RFC 791 section 3.1: no packet is longer than 65,535 bytes after reassembly.
    #[test]
    fn ipv4_fragment_beyond_the_maximum_length_is_malformed() {
        // 8,091 units of eight bytes, 20 bytes of header and 787 bytes of body: 65,535 bytes.
        let offset = 8091;
        let longest = packet(&[], 787, offset);
        let fragments = fragments_of(&longest, 500).unwrap();
        assert_eq!(fragments.len(), 2);
        let mut out = vec![7];
        for (body, offset) in [(788, offset), (787, offset + 1), (788, OFFSET_MASK)] {
            let beyond = packet(&[], body, offset | MORE_FRAGMENTS);
            let result = fragment(&beyond, 500, &mut out, |_| panic!("a fragment"));
            assert_eq!(result, Err(DropReason::Malformed), "{body} at {offset}");
        }
        assert_eq!(out, [7]);
    }

    #[test]
    fn df_is_cleared_of_whole_packets_with_df_only() {
        let mut with_df = packet(&[], 100, DONT_FRAGMENT);
        assert!(clear_dont_fragment(&mut with_df, 0x1234));
        let mut expected = packet(&[], 100, 0);
        expected[4..6].copy_from_slice(&[0x12, 0x34]);
        refresh_ipv4_checksum(&mut expected);
        assert_eq!(with_df, expected);
        for flags in [0, DONT_FRAGMENT | MORE_FRAGMENTS, DONT_FRAGMENT | 5] {
            let mut other = packet(&[], 100, flags);
            let before = other.clone();
            assert!(!clear_dont_fragment(&mut other, 1));
            assert_eq!(other, before);
        }
    }

    /// RFC 8200 section 4.5: offsets count eight bytes, and each but the last has the M flag.
    #[test]
    fn ipv6_fragments_contain_the_whole_body() {
        let body: Vec<u8> = (0..250).collect();
        let mut whole = vec![0u8; 40];
        (whole[0], whole[6], whole[7]) = (0x60, 17, 9);
        whole[4..6].copy_from_slice(&250u16.to_be_bytes());
        whole.extend(&body);
        let (mut out, mut ranges) = (Vec::new(), Vec::new());
        fragment_v6(&whole, 150, 0x0102_0304, &mut out, |r| ranges.push(r)).unwrap();
        let mut reassembled = Vec::new();
        for (n, range) in ranges.iter().enumerate() {
            let fragment = &out[range.clone()];
            assert!(fragment.len() <= 150);
            let length = u16::from_be_bytes([fragment[4], fragment[5]]);
            assert_eq!(usize::from(length), fragment.len() - 40);
            assert_eq!((fragment[6], fragment[40], fragment[7]), (44, 17, 9));
            assert_eq!(fragment[44..48], [1, 2, 3, 4]);
            let field = u16::from_be_bytes([fragment[42], fragment[43]]);
            assert_eq!(usize::from(field & !7), reassembled.len());
            assert_eq!(field & 7, u16::from(n + 1 < ranges.len()));
            reassembled.extend_from_slice(&fragment[48..]);
        }
        assert_eq!((reassembled, ranges.len()), (body, 3));
    }

    /// RFC 8200 section 4.5: no payload of an IPv6 packet is longer than 65,535 bytes after
    /// reassembly.
    #[test]
    fn ipv6_fragment_beyond_the_maximum_length_is_malformed() {
        let v6 = |body: usize, offset: u16| {
            let mut packet = vec![0u8; 48 + body];
            packet[0] = 0x60;
            packet[6] = 44;
            packet[42..44].copy_from_slice(&(offset * 8).to_be_bytes());
            packet
        };
        let mut out = Vec::new();
        let mut count = 0;
        // 8,091 units of eight bytes and 807 bytes of body: 65,535 bytes.
        fragment_v6(&v6(807, 8091), 500, 1, &mut out, |_| count += 1).unwrap();
        assert_eq!(count, 2);
        out.clear();
        for (body, offset) in [(808, 8091), (807, 8092), (808, OFFSET_MASK)] {
            let beyond = v6(body, offset);
            let result = fragment_v6(&beyond, 500, 1, &mut out, |_| panic!("a fragment"));
            assert_eq!(result, Err(DropReason::Malformed), "{body} at {offset}");
        }
        assert!(out.is_empty());
    }

    #[test]
    fn later_fragments_carry_only_copied_options() {
        // Router alert (148) is copied, record route (7) is not.
        let options = [148, 4, 0, 0, 7, 7, 4, 0, 0, 0, 0, 0];
        let fragments = fragments_of(&packet(&options, 2000, 0), 1000).unwrap();
        assert_eq!(fragments[0][20..32], options);
        assert_eq!(fragments[1][0], 0x46);
        assert_eq!(fragments[1][20..24], [148, 4, 0, 0]);
    }

    proptest! {
        #[test]
        fn reassembled_fragments_equal_the_packet(
            body in 1usize..4000, mtu in 28usize..2000, more: bool, offset in 0u16..100,
        ) {
            let flags = if more { MORE_FRAGMENTS } else { 0 } | offset;
            // Only the length of the last fragment may be other than a multiple of eight.
            let body = if more { body.next_multiple_of(8) } else { body };
            let original = packet(&[], body, flags);
            let fragments = fragments_of(&original, mtu).unwrap();
            let mut reassembled = Vec::new();
            for (i, fragment) in fragments.iter().enumerate() {
                prop_assert!(fragment.len() <= mtu);
                let d = IpHeader::parse(fragment).unwrap();
                prop_assert_eq!(d.packet_len, fragment.len());
                let field = u16::from_be_bytes([fragment[6], fragment[7]]);
                prop_assert_eq!(usize::from(field & OFFSET_MASK), usize::from(offset) + reassembled.len() / 8);
                let last = i + 1 == fragments.len();
                prop_assert_eq!(field & MORE_FRAGMENTS != 0, !last || more);
                reassembled.extend_from_slice(&fragment[20..]);
            }
            prop_assert_eq!(&reassembled, &original[20..]);
        }
    }
}
