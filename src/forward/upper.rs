//! What stands behind an IP header, its options and extension headers: where it begins, and
//! which part of a fragmented packet it is.

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
/// Most extension headers that are stepped over; RFC 8200 section 4.1 has seven.
const MOST_EXTENSIONS: usize = 8;
/// Which part of a fragmented packet this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// Offset in units of eight bytes.
    pub offset: u16,
    pub more: bool,
    pub id: u32,
}

impl Part {
    fn is_first(self) -> bool {
        self.offset == 0
    }

    fn is_whole(self) -> bool {
        self.offset == 0 && !self.more
    }
}

/// What stands behind the IP header and its extensions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Upper {
    pub protocol: u8,
    /// Where it starts.
    pub at: usize,
    /// Of IPv6 only where a Fragment header says so.
    pub part: Option<Part>,
}

impl Upper {
    /// Whether all of it is in this packet.
    pub fn is_whole(&self) -> bool {
        self.part.is_none_or(Part::is_whole)
    }

    /// Whether its header is in this packet.
    pub fn has_header(&self) -> bool {
        self.part.is_none_or(Part::is_first)
    }
}

pub(super) fn word(bytes: &[u8], at: usize) -> u16 {
    match bytes.get(at..at + 2) {
        Some(&[a, b]) => u16::from_be_bytes([a, b]),
        _ => 0,
    }
}

pub(super) fn put(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(field) = bytes.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

/// Finds the upper layer of the packet `datagram` was read from.
pub(super) fn upper(packet: &[u8], datagram: &IpHeader) -> Result<Upper, DropReason> {
    if datagram.source.is_ipv4() {
        let options = packet
            .get(IPV4_MIN_HEADER_LEN..datagram.header_len)
            .ok_or(DropReason::Truncated)?;
        // It is on its way to somewhere else (RFC 7915 section 4.1), and its checksum is over
        // that address.
        if has_source_route(options) {
            return Err(DropReason::TranslateOption);
        }
        let flags = word(packet, 6);
        let (offset, more) = (flags & OFFSET_MASK, flags & MORE_FRAGMENTS != 0);
        let part = Part {
            offset,
            more,
            id: word(packet, 4).into(),
        };
        return Ok(Upper {
            protocol: datagram.protocol,
            at: datagram.header_len,
            part: (!part.is_whole()).then_some(part),
        });
    }
    let mut found = Upper {
        protocol: datagram.protocol,
        at: IPV6_HEADER_LEN,
        part: None,
    };
    for _ in 0..MOST_EXTENSIONS {
        let header = packet.get(found.at..).unwrap_or_default();
        let len = match found.protocol {
            protocol::HOP_BY_HOP | protocol::DESTINATION_OPTIONS | protocol::ROUTING => {
                let [_, units, _, segments_left, ..] = header else {
                    return Err(DropReason::Truncated);
                };
                // It is on its way to somewhere else (RFC 7915 section 5.1), and its checksum
                // is over that address (RFC 8200 section 8.1).
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
                if found.part.is_some() {
                    return Err(DropReason::Malformed);
                }
                let field = u16::from_be_bytes([a, b]);
                found.part = Some(Part {
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
        // The parts of such a packet are parts of these headers too, which must go or be read
        // as a whole (RFC 7915 section 5.1.1).
        let extended = matches!(
            found.protocol,
            protocol::HOP_BY_HOP | protocol::DESTINATION_OPTIONS | protocol::ROUTING
        );
        if extended && !found.is_whole() {
            return Err(DropReason::TranslateOption);
        }
        // What follows a fragment that is not the first is no header.
        if !found.has_header() {
            return Ok(found);
        }
    }
    Err(DropReason::Malformed)
}

/// Whether IPv4 options name routers yet to come (RFC 791 section 3.1): such a packet is not
/// for the group in its destination alone.
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
            // A length that cannot be: nothing behind it can be read.
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv6 packet: a Fragment header with this offset and flag, then `next` and a body.
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

    fn found(packet: &[u8]) -> Result<Upper, DropReason> {
        upper(packet, &IpHeader::parse(packet).unwrap())
    }

    #[test]
    fn truncated_options_drop_all_fragments() {
        for next in [
            protocol::HOP_BY_HOP,
            protocol::DESTINATION_OPTIONS,
            protocol::ROUTING,
        ] {
            for part in [1, 8, 9] {
                let refused = found(&fragment(part, next)).err();
                assert_eq!(refused, Some(DropReason::TranslateOption), "{next} {part}");
            }
            // An only part is whole.
            let whole = found(&fragment(0, next)).unwrap();
            assert_eq!((whole.protocol, whole.at), (17, 56));
        }
        for part in [0, 1, 8, 9] {
            let plain = found(&fragment(part, 17)).unwrap();
            assert_eq!((plain.protocol, plain.at), (17, 48));
        }
    }
}
