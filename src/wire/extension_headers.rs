//! The chain of IPv6 extension headers (RFC 8200 section 4), as far as a router reads it.

use super::WireError;
use super::icmpv6::PROTOCOL as ICMPV6;
use super::ip::{IPV6_HEADER_LEN, IpHeader};

/// Maximum number of extension headers that are read. RFC 8200 section 4.1 lists seven.
const MAX_HEADERS: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HOST_IDENTITY: u8 = 139;
const SHIM6: u8 = 140;

/// Returns the type of the ICMPv6 message in an IPv6 packet, behind any extension headers; `None`
/// if it contains another protocol, or a fragment other than the first.
///
/// # Errors
/// The chain of headers is longer than [`MAX_HEADERS`], or does not end within the packet. A first
/// fragment must contain the whole chain (RFC 7112 section 5).
pub fn icmpv6_type(header: &IpHeader, bytes: &[u8]) -> Result<Option<u8>, WireError> {
    let packet = bytes.get(..header.packet_len).unwrap_or(bytes);
    let (mut next, mut at) = (header.protocol, IPV6_HEADER_LEN);
    for _ in 0..=MAX_HEADERS {
        let rest = packet.get(at..).unwrap_or_default();
        let truncated = WireError::Truncated {
            needed: at + 8,
            got: packet.len(),
        };
        let len = match next {
            ICMPV6 => return rest.first().map(|kind| Some(*kind)).ok_or(truncated),
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | MOBILITY | HOST_IDENTITY | SHIM6 => {
                rest.get(1).map(|units| (usize::from(*units) + 1) * 8)
            }
            // Its length is in units of four bytes (RFC 4302 section 2.2).
            AUTHENTICATION => rest.get(1).map(|units| (usize::from(*units) + 2) * 4),
            FRAGMENT => match rest {
                [_, _, high, low, ..] if u16::from_be_bytes([*high, *low]) >> 3 != 0 => {
                    return Ok(None);
                }
                _ => Some(8),
            },
            _ => return Ok(None),
        };
        match len {
            Some(len) if rest.len() >= len => {
                next = rest[0];
                at += len;
            }
            _ => return Err(truncated),
        }
    }
    Err(WireError::Malformed("the number of extension headers"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ip::tests::{V6, bytes};

    fn icmpv6_type_of(hex: &str) -> Result<Option<u8>, WireError> {
        let bytes = bytes(hex);
        icmpv6_type(&IpHeader::parse(&bytes).unwrap(), &bytes)
    }

    /// `IPv6(src="2001:db8::1", dst="ff3e::225:1", hlim=1)`, the extension headers of the name, and
    /// `ICMPv6MLReport2()`, built by scapy.
    const REPORTS: [&str; 5] = [
        // destination options
        "6000000000103c0120010db8000000000000000000000001ff3e00000000000000000000022500013a000104000000008f00419e00000000",
        // hop by hop and destination options
        "600000000018000120010db8000000000000000000000001ff3e00000000000000000000022500013c000502000001003a000104000000008f00419e00000000",
        // routing
        "6000000000202b0120010db8000000000000000000000001ff3e00000000000000000000022500013a0200000000000020010db80000000000000000000000028f00419e00000000",
        // atomic fragment
        "6000000000102c0120010db8000000000000000000000001ff3e00000000000000000000022500013a000000000000078f00419e00000000",
        // authentication
        "600000000020330120010db8000000000000000000000001ff3e00000000000000000000022500013a04000000000001000000010000000000000000000000008f00419e00000000",
    ];
    /// As above, with `IPv6ExtHdrFragment(id=7, offset=3, nh=58)`.
    const LATER_FRAGMENT: &str = "6000000000182c0120010db8000000000000000000000001ff3e00000000000000000000022500013a000018000000078f8f8f8f8f8f8f8f8f8f8f8f8f8f8f8f";

    #[test]
    fn message_is_found_behind_extension_headers() {
        for report in REPORTS {
            assert_eq!(icmpv6_type_of(report), Ok(Some(143)), "{report}");
        }
        assert_eq!(icmpv6_type_of(LATER_FRAGMENT), Ok(None));
        assert_eq!(icmpv6_type_of(V6), Ok(None));
    }

    #[test]
    fn chain_that_does_not_end_is_an_error() {
        for report in REPORTS {
            let full = bytes(report);
            let header = IpHeader::parse(&full).unwrap();
            // Every length up to the first byte of the message.
            for len in IPV6_HEADER_LEN..full.len() - 8 {
                let mut cut = full.clone();
                cut.truncate(len);
                let header = IpHeader {
                    packet_len: len,
                    ..header
                };
                let found = icmpv6_type(&header, &cut);
                assert!(
                    matches!(found, Err(WireError::Truncated { .. })),
                    "{len}: {found:?}"
                );
            }
        }
        let options = |count: usize| {
            let mut packet = bytes(REPORTS[0]);
            let header = packet[40..48].to_vec();
            for _ in 1..count {
                let mut more = header.clone();
                more[0] = DESTINATION_OPTIONS;
                packet.splice(40..40, more);
            }
            let len = (packet.len() - IPV6_HEADER_LEN) as u16;
            packet[4..6].copy_from_slice(&len.to_be_bytes());
            icmpv6_type(&IpHeader::parse(&packet).unwrap(), &packet)
        };
        assert_eq!(options(MAX_HEADERS), Ok(Some(143)));
        assert!(matches!(
            options(MAX_HEADERS + 1),
            Err(WireError::Malformed(_))
        ));
    }
}
