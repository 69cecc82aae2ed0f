//! UDP header layout (RFC 768; RFC 8200 section 8.1 for the checksum over IPv6).

use std::net::{IpAddr, SocketAddr};

use super::checksum;
use super::ip::{IPV4_MIN_HEADER_LEN, IPV6_HEADER_LEN, IpHeader};

/// Length of a UDP header in bytes.
pub const HEADER_LEN: usize = 8;
/// Offset of the destination port in the header.
pub const DESTINATION_PORT_OFFSET: usize = 2;
/// Offset of the length field in the header.
pub const LENGTH_OFFSET: usize = 4;
/// Offset of the checksum in the header.
pub const CHECKSUM_OFFSET: usize = 6;
/// IP protocol number of UDP.
pub const PROTOCOL: u8 = 17;

/// Returns the checksum field for a computed checksum.
///
/// Zero in the field means "no checksum", so a computed zero is sent as 0xffff (RFC 768).
pub fn checksum_field(computed: u16) -> u16 {
    if computed == 0 { 0xffff } else { computed }
}

/// Returns the destination of a datagram of which an IPv4 packet holds the first fragment.
pub fn first_fragment_destination(packet: &[u8]) -> Option<SocketAddr> {
    let header = IpHeader::parse(packet).ok()?;
    let flags: [u8; 2] = packet.get(6..8)?.try_into().ok()?;
    // More fragments follow, and none precedes.
    let is_first = u16::from_be_bytes(flags) & 0x3fff == 0x2000;
    let is_udp = header.source.is_ipv4() && header.protocol == PROTOCOL;
    let port: [u8; 2] = packet
        .get(header.header_len + 2..)?
        .first_chunk()
        .copied()?;
    let port = u16::from_be_bytes(port);
    (is_first && is_udp).then_some(SocketAddr::new(header.destination, port))
}

/// A UDP datagram that is not a fragment, with the addresses of its IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpDatagram<'p> {
    /// Address and port of the sender.
    pub source: SocketAddr,
    /// Address and port to which it was sent.
    pub destination: SocketAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// The bytes after the UDP header.
    pub payload: &'p [u8],
}

impl<'p> UdpDatagram<'p> {
    /// Parses an IP packet. `is_complete` says that the sender computed the checksum, which is
    /// checked then.
    ///
    /// Returns `None` if the packet is no UDP datagram, a fragment, malformed, or has IPv6 extension
    /// headers.
    pub fn parse(packet: &'p [u8], is_complete: bool) -> Option<Self> {
        let header = IpHeader::parse(packet).ok()?;
        let is_fragment = header.source.is_ipv4() && {
            let flags: [u8; 2] = packet.get(6..8)?.try_into().ok()?;
            u16::from_be_bytes(flags) & 0x3fff != 0
        };
        if header.protocol != PROTOCOL || is_fragment {
            return None;
        }
        let datagram = packet.get(header.header_len..header.packet_len)?;
        let fields: &[u8; HEADER_LEN] = datagram.first_chunk()?;
        let word = |at: usize| u16::from_be_bytes([fields[at], fields[at + 1]]);
        let len = usize::from(word(LENGTH_OFFSET));
        let datagram = datagram.get(..len)?;
        let payload = datagram.get(HEADER_LEN..)?;
        let (source, destination) = (header.source, header.destination);
        if is_complete && word(CHECKSUM_OFFSET) != 0 {
            let sum = checksum::pseudo_header(source, destination, PROTOCOL, len as u32);
            if checksum::fold(checksum::add(sum, datagram)) != 0xffff {
                return None;
            }
        }
        Some(Self {
            source: SocketAddr::new(source, word(0)),
            destination: SocketAddr::new(destination, word(DESTINATION_PORT_OFFSET)),
            ttl: header.ttl,
            payload,
        })
    }

    /// Returns the IP packet, with computed checksums and without DF. Returns `None` if the addresses
    /// have different IP versions, or the payload is too long.
    pub fn to_packet(&self) -> Option<Vec<u8>> {
        let len = u16::try_from(HEADER_LEN + self.payload.len()).ok()?;
        let (source, destination) = (self.source.ip(), self.destination.ip());
        let mut packet = Vec::with_capacity(IPV6_HEADER_LEN + usize::from(len));
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let total = u16::try_from(IPV4_MIN_HEADER_LEN).ok()?.checked_add(len)?;
                packet.extend([0x45, 0]);
                packet.extend(total.to_be_bytes());
                packet.extend([0, 0, 0, 0, self.ttl, PROTOCOL, 0, 0]);
                packet.extend(source.octets());
                packet.extend(destination.octets());
                let sum = checksum::compute(&packet).to_be_bytes();
                if let Some(field) = packet.get_mut(10..12) {
                    field.copy_from_slice(&sum);
                }
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                packet.extend([0x60, 0, 0, 0]);
                packet.extend(len.to_be_bytes());
                packet.extend([PROTOCOL, self.ttl]);
                packet.extend(source.octets());
                packet.extend(destination.octets());
            }
            _ => return None,
        }
        let ports = [self.source.port(), self.destination.port()];
        let mut udp = Vec::with_capacity(usize::from(len));
        udp.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
        udp.extend(len.to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(self.payload);
        let sum = checksum::pseudo_header(source, destination, PROTOCOL, len.into());
        let sum = checksum_field(!checksum::fold(checksum::add(sum, &udp)));
        if let Some(field) = udp.get_mut(CHECKSUM_OFFSET..HEADER_LEN) {
            field.copy_from_slice(&sum.to_be_bytes());
        }
        packet.extend(udp);
        Some(packet)
    }
}

#[cfg(test)]
mod tests {
    use super::super::ip::tests::{V4, V6, bytes};
    use super::*;

    /// The packets of scapy are parsed, and are what is built of their fields, except DSCP and
    /// identification.
    #[test]
    fn datagrams_of_scapy_are_parsed_and_built() {
        for hex in [V4, V6] {
            let mut packet = bytes(hex);
            let datagram = UdpDatagram::parse(&packet, true).unwrap();
            assert_eq!(
                (datagram.source.port(), datagram.destination.port()),
                (1000, 5000)
            );
            assert_eq!(datagram.payload, b"hello");
            let built = datagram.to_packet().unwrap();
            assert_eq!(UdpDatagram::parse(&built, true), Some(datagram));
            let udp = packet.len() - 13;
            assert_eq!(built[built.len() - 13..], packet[udp..]);
            packet[udp + 12] ^= 1;
            assert_eq!(UdpDatagram::parse(&packet, true), None, "wrong checksum");
            assert!(UdpDatagram::parse(&packet, false).is_some());
        }
    }

    #[test]
    fn fragments_and_wrong_lengths_are_no_datagrams() {
        let packet = bytes(V4);
        for len in 0..packet.len() {
            assert_eq!(UdpDatagram::parse(&packet[..len], false), None);
        }
        let mut fragment = packet.clone();
        fragment[6] = 0x20;
        crate::wire::ip::refresh_ipv4_checksum(&mut fragment);
        assert_eq!(UdpDatagram::parse(&fragment, false), None);
        let to = first_fragment_destination(&fragment);
        assert_eq!(to, Some("225.1.2.3:5000".parse().unwrap()));
        assert_eq!(first_fragment_destination(&packet), None);
        let mut long = packet;
        long[24..26].copy_from_slice(&14u16.to_be_bytes());
        assert_eq!(UdpDatagram::parse(&long, false), None);
    }

    #[test]
    fn computed_zero_is_sent_as_all_ones() {
        assert_eq!(checksum_field(0), 0xffff);
        assert_eq!(checksum_field(0xffff), 0xffff);
        assert_eq!(checksum_field(0x1234), 0x1234);
    }
}
