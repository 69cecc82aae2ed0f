//! IPv4 fragmentation for an egress whose MTU is smaller than the packet (RFC 791
//! section 3.2). IPv6 routers never fragment (RFC 8200 section 5); a translator does, what
//! came as IPv4 and may be fragmented there (RFC 7915 section 4).

use std::ops::Range;

use super::DropReason;
use crate::wire::ip::{IPV4_MIN_HEADER_LEN, IPV6_HEADER_LEN, refresh_ipv4_checksum};

pub(super) const DONT_FRAGMENT: u16 = 0x4000;
pub(super) const MORE_FRAGMENTS: u16 = 0x2000;
pub(super) const OFFSET_MASK: u16 = 0x1fff;

/// Cuts `packet` into fragments of at most `mtu` bytes, appended to `out`; `each` is told
/// where each stands. A packet that is a fragment itself is cut further.
pub fn fragment(
    packet: &[u8],
    mtu: usize,
    out: &mut Vec<u8>,
    mut each: impl FnMut(Range<usize>),
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
    let room = mtu.saturating_sub(header_len) & !7;
    if flags & DONT_FRAGMENT != 0 || room == 0 {
        return Err(DropReason::TooBig);
    }
    // A fragment that would end past the largest packet is hostile (RFC 791 section 3.1).
    if usize::from(flags & OFFSET_MASK) * 8 + packet.len() > usize::from(u16::MAX) {
        return Err(DropReason::Malformed);
    }
    let mut later_header = [0u8; 60];
    let later_len = later_options(header, &mut later_header);
    let mut at = 0;
    while at < body.len() {
        let piece = &body[at..(at + room).min(body.len())];
        let last = at + piece.len() == body.len();
        let start = out.len();
        out.extend_from_slice(if at == 0 {
            header
        } else {
            &later_header[..later_len]
        });
        out.extend_from_slice(piece);
        let bytes = &mut out[start..];
        let total = bytes.len() as u16;
        bytes[2..4].copy_from_slice(&total.to_be_bytes());
        let offset = (flags & OFFSET_MASK) + (at / 8) as u16;
        let more = if last {
            flags & MORE_FRAGMENTS
        } else {
            MORE_FRAGMENTS
        };
        bytes[6..8].copy_from_slice(&(more | offset).to_be_bytes());
        refresh_ipv4_checksum(bytes);
        each(start..out.len());
        at += piece.len();
    }
    Ok(())
}

/// The header of all fragments but the first: options without the copied flag are left out
/// (RFC 791 section 3.1, "Options"). Returns its length.
fn later_options(header: &[u8], later: &mut [u8; 60]) -> usize {
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

/// Cuts an IPv6 packet, without extensions but perhaps a Fragment header, into fragments of at
/// most `mtu` bytes with identification `id` (RFC 8200 section 4.5), appended to `out`; `each`
/// is told where each stands. A packet that is a fragment itself is cut further and keeps its
/// own identification.
pub fn fragment_v6(
    packet: &[u8],
    mtu: usize,
    id: u32,
    out: &mut Vec<u8>,
    mut each: impl FnMut(Range<usize>),
) -> Result<(), DropReason> {
    const FRAGMENT: u8 = 44;
    let Some((header, rest)) = packet.split_first_chunk::<IPV6_HEADER_LEN>() else {
        return Err(DropReason::Truncated);
    };
    let mut extension = [header[6], 0, 0, 0, 0, 0, 0, 0];
    extension[4..].copy_from_slice(&id.to_be_bytes());
    let (extension, body) = match rest.split_first_chunk::<8>() {
        Some((own, body)) if header[6] == FRAGMENT => (*own, body),
        _ => (extension, rest),
    };
    let field = u16::from_be_bytes([extension[2], extension[3]]);
    let room = mtu.saturating_sub(IPV6_HEADER_LEN + extension.len()) & !7;
    if room == 0 {
        return Err(DropReason::TooBig);
    }
    // Past what the field holds a fragment is hostile.
    if usize::from(field & !7) + body.len() > usize::from(u16::MAX) {
        return Err(DropReason::Malformed);
    }
    for (n, piece) in body.chunks(room).enumerate() {
        let at = n * room;
        let last = at + piece.len() == body.len();
        let more = if last { field & 1 } else { 1 };
        let start = out.len();
        out.extend_from_slice(header);
        out.extend_from_slice(&extension);
        out.extend_from_slice(piece);
        let bytes = &mut out[start..];
        let length = (extension.len() + piece.len()) as u16;
        bytes[4..6].copy_from_slice(&length.to_be_bytes());
        bytes[6] = FRAGMENT;
        let offset = (field & !7) + at as u16;
        bytes[IPV6_HEADER_LEN + 2..][..2].copy_from_slice(&(offset | more).to_be_bytes());
        each(start..out.len());
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

    fn cut(packet: &[u8], mtu: usize) -> Result<Vec<Vec<u8>>, DropReason> {
        let (mut out, mut ranges) = (Vec::new(), Vec::new());
        fragment(packet, mtu, &mut out, |r| ranges.push(r))?;
        Ok(ranges.into_iter().map(|r| out[r].to_vec()).collect())
    }

    #[test]
    fn df_and_ipv6_packets_are_too_big() {
        assert_eq!(
            cut(&packet(&[], 3000, DONT_FRAGMENT), 1500),
            Err(DropReason::TooBig)
        );
        let mut v6 = vec![0; 3000];
        v6[0] = 0x60;
        assert_eq!(cut(&v6, 1500), Err(DropReason::TooBig));
        assert_eq!(cut(&packet(&[], 3000, 0), 27), Err(DropReason::TooBig));
    }

    #[test]
    fn later_fragments_carry_only_copied_options() {
        // Router alert (148) is copied, record route (7) is not.
        let options = [148, 4, 0, 0, 7, 7, 4, 0, 0, 0, 0, 0];
        let pieces = cut(&packet(&options, 2000, 0), 1000).unwrap();
        assert_eq!(pieces[0][20..32], options);
        assert_eq!(pieces[1][0], 0x46);
        assert_eq!(pieces[1][20..24], [148, 4, 0, 0]);
    }

    proptest! {
        #[test]
        fn reassembled_fragments_equal_the_packet(
            body in 1usize..4000, mtu in 28usize..2000, more: bool, offset in 0u16..100,
        ) {
            let flags = if more { MORE_FRAGMENTS } else { 0 } | offset;
            // Only a last fragment may have a length that is no multiple of eight.
            let body = if more { body.next_multiple_of(8) } else { body };
            let whole = packet(&[], body, flags);
            let pieces = cut(&whole, mtu).unwrap();
            let mut together = Vec::new();
            for (i, piece) in pieces.iter().enumerate() {
                prop_assert!(piece.len() <= mtu);
                let d = IpHeader::parse(piece).unwrap();
                prop_assert_eq!(d.packet_len, piece.len());
                let field = u16::from_be_bytes([piece[6], piece[7]]);
                prop_assert_eq!(usize::from(field & OFFSET_MASK), usize::from(offset) + together.len() / 8);
                let last = i + 1 == pieces.len();
                prop_assert_eq!(field & MORE_FRAGMENTS != 0, !last || more);
                together.extend_from_slice(&piece[20..]);
            }
            prop_assert_eq!(&together, &whole[20..]);
        }
    }
}
