//! Finds the upper-layer header of a packet after the IP header, its options and extension headers.

use super::DropReason;
use super::fragment::{MORE_FRAGMENTS, OFFSET_MASK};
use crate::wire::ip::{IPV4_MIN_HEADER_LEN, IPV6_HEADER_LEN, IpHeader};

pub(super) mod protocol {
    //! Protocol numbers.
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const IPV4: u8 = 4;
    pub const IPV6: u8 = 41;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const GRE: u8 = 47;
    pub const ICMPV6: u8 = 58;
    pub const DESTINATION_OPTIONS: u8 = 60;
}

/// Bytes of an IPv6 Fragment header (RFC 8200 section 4.5).
pub(super) const FRAGMENT_HEADER_LEN: usize = 8;
/// Maximum number of extension headers that are skipped; RFC 8200 section 4.1 lists seven.
const MAX_EXTENSIONS: usize = 8;

/// The position of a fragment in its original packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FragmentInfo {
    /// Offset in units of eight bytes.
    pub offset: u16,
    /// Whether more fragments follow (MF in IPv4, M in IPv6).
    pub more: bool,
    /// The identification of the original packet.
    pub id: u32,
}

impl FragmentInfo {
    fn is_first(self) -> bool {
        self.offset == 0
    }

    fn is_complete(self) -> bool {
        self.offset == 0 && !self.more
    }
}

/// The upper layer of a packet: what follows the IP header and its extensions.
#[derive(Debug, Clone, Copy)]
pub(super) struct UpperLayer {
    /// The protocol number.
    pub protocol: u8,
    /// Offset of the upper layer from the start of the packet, in bytes.
    pub at: usize,
    /// `None` if the packet is not a fragment. An IPv6 packet with a Fragment header that contains
    /// the complete upper layer (RFC 6946) has one.
    pub fragment: Option<FragmentInfo>,
}

impl UpperLayer {
    /// Returns whether the packet contains the complete upper layer.
    pub fn is_complete(&self) -> bool {
        self.fragment.is_none_or(FragmentInfo::is_complete)
    }

    /// Returns whether the packet contains the start of the upper-layer header.
    pub fn has_header(&self) -> bool {
        self.fragment.is_none_or(FragmentInfo::is_first)
    }
}

/// Reads a big-endian integer; 0 beyond the end of `bytes`.
pub(super) fn read_u16(bytes: &[u8], at: usize) -> u16 {
    match bytes.get(at..at + 2) {
        Some(&[a, b]) => u16::from_be_bytes([a, b]),
        _ => 0,
    }
}

/// Writes a big-endian integer; nothing beyond the end of `bytes`.
pub(super) fn write_u16(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(field) = bytes.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

/// Finds the upper layer of a packet with the header `datagram`.
///
/// # Errors
/// The packet is malformed, or cannot be translated.
pub(super) fn find_upper_layer(
    packet: &[u8],
    datagram: &IpHeader,
) -> Result<UpperLayer, DropReason> {
    if datagram.source.is_ipv4() {
        let options = packet
            .get(IPV4_MIN_HEADER_LEN..datagram.header_len)
            .ok_or(DropReason::Truncated)?;
        // A source-routed packet has another final destination (RFC 7915 section 4.1), and its
        // upper-layer checksum covers that address.
        if has_source_route(options) {
            return Err(DropReason::TranslateOption);
        }
        let flags = read_u16(packet, 6);
        let (offset, more) = (flags & OFFSET_MASK, flags & MORE_FRAGMENTS != 0);
        let fragment = FragmentInfo {
            offset,
            more,
            id: read_u16(packet, 4).into(),
        };
        return Ok(UpperLayer {
            protocol: datagram.protocol,
            at: datagram.header_len,
            fragment: (!fragment.is_complete()).then_some(fragment),
        });
    }
    let mut found = UpperLayer {
        protocol: datagram.protocol,
        at: IPV6_HEADER_LEN,
        fragment: None,
    };
    for _ in 0..MAX_EXTENSIONS {
        let header = packet.get(found.at..).unwrap_or_default();
        let len = match found.protocol {
            protocol::HOP_BY_HOP | protocol::DESTINATION_OPTIONS | protocol::ROUTING => {
                let [_, units, _, segments_left, ..] = header else {
                    return Err(DropReason::Truncated);
                };
                // A source-routed packet has another final destination (RFC 7915 section 5.1),
                // and its upper-layer checksum covers that address (RFC 8200 section 8.1).
                if found.protocol == protocol::ROUTING && *segments_left != 0 {
                    return Err(DropReason::TranslateOption);
                }
                (usize::from(*units) + 1) * 8
            }
            protocol::FRAGMENT => {
                let Some(&[_, _, a, b, i, j, k, l]) = header.first_chunk::<FRAGMENT_HEADER_LEN>()
                else {
                    return Err(DropReason::Truncated);
                };
                if found.fragment.is_some() {
                    return Err(DropReason::Malformed);
                }
                let field = u16::from_be_bytes([a, b]);
                found.fragment = Some(FragmentInfo {
                    offset: field >> 3,
                    more: field & 1 != 0,
                    id: u32::from_be_bytes([i, j, k, l]),
                });
                FRAGMENT_HEADER_LEN
            }
            _ => return Ok(found),
        };
        if header.len() < len {
            return Err(DropReason::Truncated);
        }
        found.protocol = header[0];
        found.at += len;
        // These extension headers follow the Fragment header and are fragmented themselves. They
        // must be removed or read completely (RFC 7915 section 5.1.1).
        let extended = matches!(
            found.protocol,
            protocol::HOP_BY_HOP | protocol::DESTINATION_OPTIONS | protocol::ROUTING
        );
        if extended && !found.is_complete() {
            return Err(DropReason::TranslateOption);
        }
        // A fragment that is not the first contains no header after the Fragment header.
        if !found.has_header() {
            return Ok(found);
        }
    }
    Err(DropReason::Malformed)
}

/// Returns whether IPv4 options contain a source route with routers that the packet has not passed
/// (RFC 791 section 3.1). The destination address of such a packet is not its final destination.
fn has_source_route(mut options: &[u8]) -> bool {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE: u8 = 131;
    const STRICT: u8 = 137;
    loop {
        match options {
            [] | [END, ..] => return false,
            [NO_OPERATION, rest @ ..] => options = rest,
            [LOOSE | STRICT, len, pointer, ..] if pointer <= len => return true,
            [_, len, ..] if *len >= 2 => {
                options = options.get(usize::from(*len)..).unwrap_or_default();
            }
            // Options after an invalid length cannot be read.
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv6 packet that consists of a Fragment header with this offset and flag, an extension
    /// header of kind `next`, and a body.
    fn fragment(offset_and_more: u16, next: u8) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 24, protocol::FRAGMENT, 9];
        packet.extend([0xfd; 16]);
        packet.extend([0xff; 16]);
        packet.extend([next, 0]);
        packet.extend(offset_and_more.to_be_bytes());
        packet.extend([0, 0, 0, 7]);
        packet.extend([17, 0, 1, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        packet
    }

    fn parse(packet: &[u8]) -> Result<UpperLayer, DropReason> {
        find_upper_layer(packet, &IpHeader::parse(packet).unwrap())
    }

    #[test]
    fn unfinished_source_routes_are_found_behind_other_options() {
        for (options, expected) in [
            (&[][..], false),
            (&[131, 7, 4, 1, 2, 3, 4], true),
            (&[137, 7, 7, 1, 2, 3, 4], true),
            // The packet has passed all routers.
            (&[137, 7, 8, 1, 2, 3, 4], false),
            (&[1, 7, 4, 5, 6, 131, 7, 4], true),
            (&[0, 131, 7, 4], false),
            // Nothing behind an invalid length is read.
            (&[7, 0, 131, 7, 4], false),
            (&[7, 1, 131, 7, 4], false),
            (&[7, 9, 131, 7, 4], false),
        ] {
            assert_eq!(has_source_route(options), expected, "{options:?}");
        }
    }

    #[test]
    fn fragmented_extension_headers_are_not_translated() {
        for next in [
            protocol::HOP_BY_HOP,
            protocol::DESTINATION_OPTIONS,
            protocol::ROUTING,
        ] {
            for field in [1, 8, 9] {
                let refused = parse(&fragment(field, next)).err();
                assert_eq!(refused, Some(DropReason::TranslateOption), "{next} {field}");
            }
            // A single fragment is complete.
            let complete = parse(&fragment(0, next)).unwrap();
            assert_eq!((complete.protocol, complete.at), (17, 56));
        }
        for field in [0, 1, 8, 9] {
            let plain = parse(&fragment(field, 17)).unwrap();
            assert_eq!((plain.protocol, plain.at), (17, 48));
        }
    }
}
