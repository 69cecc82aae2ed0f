//! Parsing and modification of IPv4 (RFC 791) and IPv6 (RFC 8200) headers.

use std::net::IpAddr;

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice};

use super::{WireError, checksum};

/// Length of an IPv6 header without extension headers in bytes.
pub const IPV6_HEADER_LEN: usize = 40;
/// Length of an IPv4 header without options in bytes.
pub const IPV4_MIN_HEADER_LEN: usize = 20;

/// The header fields of an IP packet that the forwarding decision needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpHeader {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// TTL or hop limit, as received.
    pub ttl: u8,
    /// Length of the IP packet in bytes, including headers. Bytes after it are link-layer padding.
    pub packet_len: usize,
    /// Length of the IPv4 header with options, or [`IPV6_HEADER_LEN`].
    pub header_len: usize,
    /// The Protocol field of IPv4, or the Next Header field of IPv6, which may name an extension
    /// header.
    pub protocol: u8,
}

impl IpHeader {
    /// Parses the header at the start of `bytes`. Checks the version, the lengths, and the IPv4
    /// header checksum (RFC 1812 section 5.2.2).
    ///
    /// # Errors
    /// The first check that fails; [`WireError::Truncated`] if `bytes` is shorter than the packet.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        match bytes.first().map(|b| b >> 4) {
            Some(4) => Self::parse_v4(bytes),
            Some(6) => Self::parse_v6(bytes),
            Some(_) => Err(WireError::Malformed("the IP version")),
            None => Err(WireError::Truncated { needed: 1, got: 0 }),
        }
    }

    fn parse_v4(bytes: &[u8]) -> Result<Self, WireError> {
        use etherparse::err::ipv4::HeaderSliceError;
        let header = Ipv4HeaderSlice::from_slice(bytes).map_err(|e| match e {
            HeaderSliceError::Len(e) => WireError::Truncated {
                needed: e.required_len,
                got: e.len,
            },
            HeaderSliceError::Content(_) => WireError::Malformed("the IPv4 header length"),
        })?;
        let header_len = header.slice().len();
        let len = usize::from(header.total_len());
        if len < header_len {
            return Err(WireError::Malformed("the IPv4 total length"));
        }
        if len > bytes.len() {
            return Err(WireError::Truncated {
                needed: len,
                got: bytes.len(),
            });
        }
        if checksum::compute(header.slice()) != 0 {
            return Err(WireError::HeaderChecksum);
        }
        Ok(Self {
            source: IpAddr::V4(header.source_addr()),
            destination: IpAddr::V4(header.destination_addr()),
            ttl: header.ttl(),
            packet_len: len,
            header_len,
            protocol: header.protocol().0,
        })
    }

    fn parse_v6(bytes: &[u8]) -> Result<Self, WireError> {
        let header = Ipv6HeaderSlice::from_slice(bytes).map_err(|_| WireError::Truncated {
            needed: IPV6_HEADER_LEN,
            got: bytes.len(),
        })?;
        let len = IPV6_HEADER_LEN + usize::from(header.payload_length());
        if len > bytes.len() {
            return Err(WireError::Truncated {
                needed: len,
                got: bytes.len(),
            });
        }
        Ok(Self {
            source: IpAddr::V6(header.source_addr()),
            destination: IpAddr::V6(header.destination_addr()),
            ttl: header.hop_limit(),
            packet_len: len,
            header_len: IPV6_HEADER_LEN,
            protocol: header.next_header().0,
        })
    }

    /// Returns [`is_valid_source`] of the source.
    pub fn has_valid_source(&self) -> bool {
        is_valid_source(self.source)
    }
}

/// Returns false for source addresses that no packet may have: multicast, unspecified, loopback
/// (RFC 1812 section 5.3.7, RFC 4291 section 2.7), 0.0.0.0/8 and 240.0.0.0/4 (RFC 6890 section
/// 2.2.2), which includes the broadcast address.
pub fn is_valid_source(source: IpAddr) -> bool {
    let reserved = matches!(source, IpAddr::V4(v4) if matches!(v4.octets()[0], 0 | 240..));
    !(source.is_multicast() || source.is_unspecified() || source.is_loopback() || reserved)
}

/// Sets the TTL or hop limit in the header at the start of `packet`. Updates the IPv4 header
/// checksum incrementally (RFC 1624).
pub fn set_ttl(packet: &mut [u8], ttl: u8) {
    match packet.first().map(|b| b >> 4) {
        Some(4) if packet.len() >= IPV4_MIN_HEADER_LEN => {
            let old = u16::from_be_bytes([packet[8], packet[9]]);
            packet[8] = ttl;
            let new = u16::from_be_bytes([packet[8], packet[9]]);
            let sum = u16::from_be_bytes([packet[10], packet[11]]);
            packet[10..12].copy_from_slice(&checksum::update_word(sum, old, new).to_be_bytes());
        }
        Some(6) if packet.len() >= IPV6_HEADER_LEN => packet[7] = ttl,
        _ => {}
    }
}

/// Recomputes the header checksum of the IPv4 header at the start of `packet`.
pub fn refresh_ipv4_checksum(packet: &mut [u8]) {
    let header_len = packet
        .first()
        .map_or(0, |b| usize::from(b & 0x0f) * 4)
        .min(packet.len());
    if header_len < IPV4_MIN_HEADER_LEN {
        return;
    }
    packet[10..12].fill(0);
    let sum = checksum::compute(&packet[..header_len]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// `IP(src="10.0.0.1", dst="225.1.2.3", ttl=5, id=1, tos=0xb8)/UDP(sport=1000,
    /// dport=5000)/b"hello"`, built by scapy.
    pub const V4: &str = "45b80021000100000511c80e0a000001e101020303e81388000db78c68656c6c6f";
    /// `IPv6(src="2001:db8::1", dst="ff3e::225:1", hlim=7, tc=0xb8)/UDP(sport=1000,
    /// dport=5000)/b"hello"`, built by scapy.
    pub const V6: &str = "6b800000000d110720010db8000000000000000000000001ff3e000000000000000000000225000103e81388000d757368656c6c6f";

    pub fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
            .collect()
    }

    #[test]
    fn headers_are_parsed() {
        let v4 = IpHeader::parse(&bytes(V4)).unwrap();
        assert_eq!(v4.source.to_string(), "10.0.0.1");
        assert_eq!(v4.destination.to_string(), "225.1.2.3");
        assert_eq!((v4.ttl, v4.packet_len, v4.header_len), (5, 33, 20));
        let v6 = IpHeader::parse(&bytes(V6)).unwrap();
        assert_eq!(v6.source.to_string(), "2001:db8::1");
        assert_eq!(v6.destination.to_string(), "ff3e::225:1");
        assert_eq!((v6.ttl, v6.packet_len, v6.header_len), (7, 53, 40));
    }

    #[test]
    fn reserved_sources_are_invalid() {
        let header = IpHeader::parse(&bytes(V4)).unwrap();
        for (source, is_valid) in [
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("1.0.0.1", true),
            ("127.0.0.1", false),
            ("223.255.255.254", true),
            ("224.0.0.1", false),
            ("240.0.0.1", false),
            ("255.255.255.255", false),
            ("169.254.1.1", true),
            ("::", false),
            ("::1", false),
            ("fe80::1", true),
            ("ff02::1", false),
        ] {
            let source = source.parse().unwrap();
            let header = IpHeader { source, ..header };
            assert_eq!(header.has_valid_source(), is_valid, "{source}");
        }
    }

    #[test]
    fn padding_is_excluded_from_packet_length() {
        let mut padded = bytes(V4);
        padded.resize(46, 0);
        assert_eq!(IpHeader::parse(&padded).unwrap().packet_len, 33);
    }

    #[test]
    fn set_ttl_keeps_header_checksum_valid() {
        let mut packet = bytes(V4);
        for ttl in [4, 1, 255, 0, 64] {
            set_ttl(&mut packet, ttl);
            assert_eq!(IpHeader::parse(&packet).unwrap().ttl, ttl);
        }
    }

    #[test]
    fn invalid_headers_yield_specific_errors() {
        let valid = bytes(V4);
        let parse_with = |at: usize, value: u8| {
            let mut b = valid.clone();
            b[at] = value;
            IpHeader::parse(&b)
        };
        assert_eq!(
            parse_with(0, 0x55),
            Err(WireError::Malformed("the IP version"))
        );
        assert_eq!(
            parse_with(0, 0x44),
            Err(WireError::Malformed("the IPv4 header length"))
        );
        assert_eq!(
            parse_with(3, 19),
            Err(WireError::Malformed("the IPv4 total length"))
        );
        assert_eq!(parse_with(8, 6), Err(WireError::HeaderChecksum));
        for len in 0..valid.len() {
            assert!(
                matches!(
                    IpHeader::parse(&valid[..len]),
                    Err(WireError::Truncated { .. })
                ),
                "{len}"
            );
        }
        let v6 = bytes(V6);
        for len in 0..v6.len() {
            assert!(matches!(
                IpHeader::parse(&v6[..len]),
                Err(WireError::Truncated { .. })
            ));
        }
    }
}
