//! The parts of an IP packet that both copies have in common.

use std::hash::{BuildHasher, Hasher};
use std::net::IpAddr;

use ahash::RandomState;

use crate::wire::ip::{IPV6_HEADER_LEN, IpHeader};

/// Protocol numbers.
const UDP: u8 = 17;
const IPV6_FRAGMENT: u8 = 44;

/// Length of the UDP header and of the Fragment header of IPv6.
const UDP_HEADER_LEN: usize = 8;
const FRAGMENT_HEADER_LEN: usize = 8;

/// MF and offset in the IPv4 header (RFC 791 section 3.1).
const IPV4_FRAGMENT_BITS: u16 = 0x3fff;
const IPV4_OFFSET_BITS: u16 = 0x1fff;

/// A packet of one of the paths, without what may differ between the paths: the addresses, the
/// source port, the checksums and the identification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergePacket<'a> {
    protocol: u8,
    /// The position of a fragment, with the flags.
    fragment: u16,
    /// The destination port, if the packet has a complete UDP header.
    pub(super) port: Option<u16>,
    /// The group with which the packet leaves.
    group: IpAddr,
    /// The UDP payload of a packet that is no fragment.
    pub(super) payload: Option<&'a [u8]>,
    /// All bytes after the header, which are compared where there is no payload.
    rest: &'a [u8],
}

impl<'a> MergePacket<'a> {
    /// Returns the parts of a packet with this header. `group` is the group with which it leaves,
    /// which is the same on both paths.
    pub fn new(header: &IpHeader, packet: &'a [u8], group: IpAddr) -> Self {
        let u16_at = |bytes: &[u8], at: usize| match bytes.get(at..at + 2) {
            Some([high, low]) => u16::from_be_bytes([*high, *low]),
            _ => 0,
        };
        let (mut protocol, mut fragment, mut at) = (header.protocol, 0, header.header_len);
        let mut is_first = true;
        match header.destination {
            IpAddr::V4(_) => {
                fragment = u16_at(packet, 6) & IPV4_FRAGMENT_BITS;
                is_first = fragment & IPV4_OFFSET_BITS == 0;
            }
            IpAddr::V6(_) if protocol == IPV6_FRAGMENT => {
                // Next header, reserved, offset and M, identification (RFC 8200 section 4.5).
                protocol = packet.get(IPV6_HEADER_LEN).copied().unwrap_or_default();
                fragment = u16_at(packet, IPV6_HEADER_LEN + 2);
                is_first = fragment & !1 == 0;
                at += FRAGMENT_HEADER_LEN;
            }
            IpAddr::V6(_) => {}
        }
        let rest = packet.get(at..).unwrap_or_default();
        let is_udp = protocol == UDP && is_first && rest.len() >= UDP_HEADER_LEN;
        let content = match is_udp {
            true => &rest[UDP_HEADER_LEN..],
            false => rest,
        };
        Self {
            protocol,
            fragment,
            port: is_udp.then(|| u16_at(rest, 2)),
            group,
            payload: (is_udp && fragment == 0).then_some(content),
            rest: content,
        }
    }

    /// Returns the group and the port, which distinguish streams.
    pub(super) fn flow(&self) -> (IpAddr, u16) {
        (self.group, self.port.unwrap_or_default())
    }

    /// Returns a hash of everything that both copies have in common. It is never zero.
    pub(super) fn fingerprint(&self, hasher: &RandomState) -> u64 {
        let mut hasher = hasher.build_hasher();
        hasher.write_u8(self.protocol);
        hasher.write_u16(self.fragment);
        hasher.write_u16(self.port.unwrap_or_default());
        match self.group {
            IpAddr::V4(group) => hasher.write(&group.octets()),
            IpAddr::V6(group) => hasher.write(&group.octets()),
        }
        hasher.write(self.rest);
        hasher.finish().max(1)
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn packet(source: [u8; 4], port: u16, payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ipv4(source, [239, 1, 1, 1], 7).udp(port, 5004);
        let mut bytes = Vec::new();
        builder.write(&mut bytes, payload).unwrap();
        bytes
    }

    fn fingerprint(hasher: &RandomState, bytes: &[u8]) -> u64 {
        let header = IpHeader::parse(bytes).unwrap();
        MergePacket::new(&header, bytes, header.destination).fingerprint(hasher)
    }

    #[test]
    fn copies_with_other_sources_have_the_same_fingerprint() {
        let hasher = RandomState::new();
        let first = fingerprint(&hasher, &packet([10, 0, 0, 1], 4000, b"payload"));
        let copy = fingerprint(&hasher, &packet([10, 9, 0, 2], 4001, b"payload"));
        let other = fingerprint(&hasher, &packet([10, 0, 0, 1], 4000, b"Payload"));
        assert_eq!(first, copy);
        assert_ne!(first, other);
    }

    #[test]
    fn fragments_have_no_payload_and_differ_by_offset() {
        let hasher = RandomState::new();
        let mut bytes = packet([10, 0, 0, 1], 4000, &[7; 64]);
        let header = IpHeader::parse(&bytes).unwrap();
        let whole = MergePacket::new(&header, &bytes, header.destination);
        assert_eq!(whole.payload, Some(&[7; 64][..]));
        let mut prints = Vec::new();
        for fragment in [0x2000u16, 0x2001, 0x0002] {
            bytes[6..8].copy_from_slice(&fragment.to_be_bytes());
            let packet = MergePacket::new(&header, &bytes, header.destination);
            assert_eq!(packet.payload, None);
            assert_eq!(packet.port.is_some(), fragment == 0x2000);
            prints.push(packet.fingerprint(&hasher));
        }
        prints.dedup();
        assert_eq!(prints.len(), 3);
    }
}
