//! IPv4 (RFC 791) and IPv6 (RFC 8200) headers as a multicast router needs them.

use std::net::IpAddr;

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice};

use super::{WireError, checksum, envelope};

/// Bytes of an IPv6 header without extensions.
pub const IPV6_HEADER_LEN: usize = 40;
/// Smallest IPv4 header.
pub const IPV4_MIN_HEADER_LEN: usize = 20;

/// What the routing decision needs of one packet. Holds no bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// TTL or hop limit as it arrived.
    pub ttl: u8,
    /// Bytes of the IP packet, headers included; what follows is link-layer padding.
    pub len: usize,
    /// Bytes of the IPv4 header with options, or [`IPV6_HEADER_LEN`].
    pub header_len: usize,
    /// The protocol of IPv4, or the next header of IPv6, which may be an extension.
    pub protocol: u8,
}

impl Datagram {
    /// Reads and checks the header at the start of `bytes`: version, lengths, and for IPv4
    /// the header checksum (RFC 1812 section 5.2.2).
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
        if checksum::of(header.slice()) != 0 {
            return Err(WireError::HeaderChecksum);
        }
        Ok(Self {
            source: IpAddr::V4(header.source_addr()),
            destination: IpAddr::V4(header.destination_addr()),
            ttl: header.ttl(),
            len,
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
            len,
            header_len: IPV6_HEADER_LEN,
            protocol: header.next_header().0,
        })
    }

    /// True for IGMP, MLD and multicast router discovery: see [`envelope::is_link_message`].
    /// `bytes` is the packet.
    pub fn is_membership_message(&self, bytes: &[u8]) -> bool {
        envelope::is_link_message(self, bytes)
    }

    /// False for addresses no packet may come from: multicast, unspecified, loopback
    /// (RFC 1812 section 5.3.7, RFC 4291 section 2.7), IPv4 broadcast.
    pub fn source_is_valid(&self) -> bool {
        let a = self.source;
        let broadcast = matches!(a, IpAddr::V4(v4) if v4.is_broadcast());
        !(a.is_multicast() || a.is_unspecified() || a.is_loopback() || broadcast)
    }
}

/// Writes a new TTL or hop limit into the header at the start of `packet`, and for IPv4
/// updates the header checksum (RFC 1624).
pub fn set_ttl(packet: &mut [u8], ttl: u8) {
    match packet.first().map(|b| b >> 4) {
        Some(4) if packet.len() >= IPV4_MIN_HEADER_LEN => {
            let old = u16::from_be_bytes([packet[8], packet[9]]);
            packet[8] = ttl;
            let new = u16::from_be_bytes([packet[8], packet[9]]);
            let sum = u16::from_be_bytes([packet[10], packet[11]]);
            packet[10..12].copy_from_slice(&checksum::replaced(sum, old, new).to_be_bytes());
        }
        Some(6) if packet.len() >= IPV6_HEADER_LEN => packet[7] = ttl,
        _ => {}
    }
}

/// Computes the header checksum of the IPv4 header at the start of `packet` afresh.
pub fn refresh_ipv4_checksum(packet: &mut [u8]) {
    let header_len = packet
        .first()
        .map_or(0, |b| usize::from(b & 0x0f) * 4)
        .min(packet.len());
    if header_len < IPV4_MIN_HEADER_LEN {
        return;
    }
    packet[10..12].fill(0);
    let sum = checksum::of(&packet[..header_len]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `IP(src="10.0.0.1", dst="225.1.2.3", ttl=5, id=1, tos=0xb8)/UDP(sport=1000,
    /// dport=5000)/b"hello"`, built by scapy.
    pub const V4: &str = "45b80021000100000511c80e0a000001e101020303e81388000db78c68656c6c6f";
    /// `IPv6(src="2001:db8::1", dst="ff3e::225:1", hlim=7, tc=0xb8)/UDP(sport=1000,
    /// dport=5000)/b"hello"`, built by scapy.
    pub const V6: &str = "6b800000000d110720010db8000000000000000000000001ff3e000000000000000000000225000103e81388000d757368656c6c6f";

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
            .collect()
    }

    #[test]
    fn headers_are_read() {
        let v4 = Datagram::parse(&bytes(V4)).unwrap();
        assert_eq!(v4.source.to_string(), "10.0.0.1");
        assert_eq!(v4.destination.to_string(), "225.1.2.3");
        assert_eq!((v4.ttl, v4.len, v4.header_len), (5, 33, 20));
        let v6 = Datagram::parse(&bytes(V6)).unwrap();
        assert_eq!(v6.source.to_string(), "2001:db8::1");
        assert_eq!(v6.destination.to_string(), "ff3e::225:1");
        assert_eq!((v6.ttl, v6.len, v6.header_len), (7, 53, 40));
    }

    #[test]
    fn padding_is_not_part_of_the_packet() {
        let mut padded = bytes(V4);
        padded.resize(46, 0);
        assert_eq!(Datagram::parse(&padded).unwrap().len, 33);
    }

    #[test]
    fn membership_messages_are_told_from_data() {
        // `IP(src="10.0.0.1", dst="224.0.0.22", ttl=1, proto=2)/b"\x22\0\0\0\0\0\0\0"` and
        // `IPv6(src="fe80::1", dst="ff02::16", hlim=1)/IPv6ExtHdrHopByHop(options=
        // RouterAlert())/ICMPv6MLReport2()`, built by scapy.
        let igmp = "4500001c000100000102cfc80a000001e00000162200000000000000";
        let mld = "6000000000100001fe800000000000000000000000000001ff0200000000000000000000000000163a000502000001008f00732200000000";
        let told = |hex: &str| {
            let bytes = bytes(hex);
            let datagram = Datagram::parse(&bytes).unwrap();
            datagram.is_membership_message(&bytes)
        };
        assert!(told(igmp));
        assert!(told(mld));
        assert!(!told(V4));
        assert!(!told(V6));
    }

    #[test]
    fn a_new_ttl_keeps_the_header_checksum_right() {
        let mut packet = bytes(V4);
        for ttl in [4, 1, 255, 0, 64] {
            set_ttl(&mut packet, ttl);
            assert_eq!(Datagram::parse(&packet).unwrap().ttl, ttl);
        }
    }

    #[test]
    fn faults_have_names() {
        let good = bytes(V4);
        let with = |at: usize, value: u8| {
            let mut b = good.clone();
            b[at] = value;
            Datagram::parse(&b)
        };
        assert_eq!(with(0, 0x55), Err(WireError::Malformed("the IP version")));
        assert_eq!(
            with(0, 0x44),
            Err(WireError::Malformed("the IPv4 header length"))
        );
        assert_eq!(
            with(3, 19),
            Err(WireError::Malformed("the IPv4 total length"))
        );
        assert_eq!(with(8, 6), Err(WireError::HeaderChecksum));
        for cut in 0..good.len() {
            assert!(
                matches!(
                    Datagram::parse(&good[..cut]),
                    Err(WireError::Truncated { .. })
                ),
                "{cut}"
            );
        }
        let six = bytes(V6);
        for cut in 0..six.len() {
            assert!(matches!(
                Datagram::parse(&six[..cut]),
                Err(WireError::Truncated { .. })
            ));
        }
    }
}
