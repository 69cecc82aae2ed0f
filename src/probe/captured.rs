//! UDP datagrams in captured packets.

use std::net::IpAddr;

use etherparse::{EtherType, NetSlice, SlicedPacket, TransportSlice, err};
use serde::Serialize;

/// Link types of captures (LINKTYPE values of the registry of tcpdump).
mod link_type {
    pub const NULL: u16 = 0;
    pub const ETHERNET: u16 = 1;
    pub const RAW: u16 = 101;
    pub const LOOP: u16 = 108;
    pub const LINUX_SLL: u16 = 113;
    pub const IPV4: u16 = 228;
    pub const IPV6: u16 = 229;
    pub const LINUX_SLL2: u16 = 276;
}

/// The link type of packets that begin with the IP header.
pub const LINK_TYPE_IP: u16 = link_type::RAW;

/// Length of the header of LINUX_SLL2.
const SLL2_HEADER_LEN: usize = 20;
/// Length of the header of NULL and LOOP: the address family.
const NULL_HEADER_LEN: usize = 4;

/// A UDP datagram of a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CapturedDatagram<'a> {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port.
    pub port: u16,
    /// The payload.
    pub payload: &'a [u8],
}

/// Why a captured packet is no UDP datagram that can be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotADatagram {
    /// The capture has only its beginning.
    Truncated,
    /// It is a fragment of an IP packet.
    Fragment,
    /// It is not UDP.
    OtherProtocol,
    /// Its headers contradict each other.
    Damaged,
    /// The link type of the capture is not supported.
    LinkType(u16),
}

/// Numbers of packets of a capture that were skipped, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SkippedPackets {
    /// The capture has only their beginning.
    pub truncated: u64,
    /// Fragments of IP packets.
    pub fragments: u64,
    /// Not UDP.
    pub not_udp: u64,
    /// To a unicast address, while no group was given.
    pub unicast: u64,
    /// To another destination than the selected one.
    pub not_selected: u64,
    /// Headers that contradict each other.
    pub damaged: u64,
    /// Of a link type that is not supported.
    pub link_type: u64,
    /// Too large for a datagram of the IP version of the group.
    pub too_large: u64,
}

impl SkippedPackets {
    /// Counts a packet.
    pub fn count(&mut self, why: NotADatagram) {
        let counter = match why {
            NotADatagram::Truncated => &mut self.truncated,
            NotADatagram::Fragment => &mut self.fragments,
            NotADatagram::OtherProtocol => &mut self.not_udp,
            NotADatagram::Damaged => &mut self.damaged,
            NotADatagram::LinkType(_) => &mut self.link_type,
        };
        *counter += 1;
    }

    /// Returns the reasons that occurred, with numbers and what can be done.
    pub fn reasons(&self) -> Vec<String> {
        [
            (
                self.truncated,
                "truncated: capture whole packets (tcpdump -s 0)",
            ),
            (self.fragments, "fragments of IP packets"),
            (self.not_udp, "not UDP"),
            (
                self.unicast,
                "to unicast addresses: give --group to send them to a group",
            ),
            (self.not_selected, "to other destinations than --only"),
            (self.damaged, "damaged"),
            (self.link_type, "of a link type that is not supported"),
            (self.too_large, "too large for a datagram to the group"),
        ]
        .into_iter()
        .filter(|(packets, _)| *packets > 0)
        .map(|(packets, why)| format!("{packets} {why}"))
        .collect()
    }
}

/// Returns the UDP datagram in a captured packet, whose full length is `len`. VLAN tags are
/// skipped.
///
/// # Errors
/// The packet is something else, or not complete.
pub fn udp_datagram(
    link_type: u16,
    bytes: &[u8],
    len: u32,
) -> Result<CapturedDatagram<'_>, NotADatagram> {
    let parsed = match link_type {
        link_type::ETHERNET => SlicedPacket::from_ethernet(bytes),
        link_type::LINUX_SLL => SlicedPacket::from_linux_sll(bytes),
        link_type::RAW | link_type::IPV4 | link_type::IPV6 => SlicedPacket::from_ip(bytes),
        link_type::NULL | link_type::LOOP => {
            let packet = bytes.get(NULL_HEADER_LEN..);
            SlicedPacket::from_ip(packet.ok_or(NotADatagram::Damaged)?)
        }
        link_type::LINUX_SLL2 => {
            let (Some(kind), Some(packet)) = (bytes.first_chunk(), bytes.get(SLL2_HEADER_LEN..))
            else {
                return Err(NotADatagram::Damaged);
            };
            SlicedPacket::from_ether_type(EtherType(u16::from_be_bytes(*kind)), packet)
        }
        other => return Err(NotADatagram::LinkType(other)),
    };
    let is_whole = bytes.len() >= len as usize;
    let packet = match parsed {
        Ok(packet) => packet,
        Err(_) if !is_whole => return Err(NotADatagram::Truncated),
        // What is not IP has no version that is known.
        Err(err::packet::SliceError::Ip(err::ip::HeaderError::UnsupportedIpVersion { .. })) => {
            return Err(NotADatagram::OtherProtocol);
        }
        Err(_) => return Err(NotADatagram::Damaged),
    };
    if packet.is_ip_payload_fragmented() {
        return Err(NotADatagram::Fragment);
    }
    let (source, destination): (IpAddr, IpAddr) = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            (
                header.source_addr().into(),
                header.destination_addr().into(),
            )
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            (
                header.source_addr().into(),
                header.destination_addr().into(),
            )
        }
        _ => return Err(NotADatagram::OtherProtocol),
    };
    match packet.transport {
        Some(TransportSlice::Udp(_)) if !is_whole => Err(NotADatagram::Truncated),
        Some(TransportSlice::Udp(udp)) => Ok(CapturedDatagram {
            source,
            destination,
            port: udp.destination_port(),
            payload: udp.payload(),
        }),
        _ => Err(NotADatagram::OtherProtocol),
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn frame(vlan: bool) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [1, 0, 0x5e, 1, 2, 3]);
        let mut frame = Vec::new();
        let addresses = ([10, 0, 0, 1], [225, 1, 2, 3]);
        let builder = match vlan {
            true => {
                let tagged = builder.single_vlan(7u16.try_into().expect("a VLAN"));
                tagged.ipv4(addresses.0, addresses.1, 16)
            }
            false => builder.ipv4(addresses.0, addresses.1, 16),
        };
        builder
            .udp(9, 5000)
            .write(&mut frame, b"payload")
            .expect("a packet");
        frame
    }

    #[test]
    fn datagram_is_found_behind_each_link_header() {
        let plain = frame(false);
        let ip = &plain[14..];
        let mut sll = vec![0, 0, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0];
        sll.extend(ip);
        let mut sll2 = vec![0; 20];
        sll2[0] = 8;
        sll2.extend(ip);
        let mut null = vec![2, 0, 0, 0];
        null.extend(ip);
        let mut padded = plain.clone();
        padded.extend([0; 20]);
        for (link, bytes) in [
            (1, &plain[..]),
            (1, &frame(true)),
            (1, &padded),
            (101, ip),
            (228, ip),
            (113, &sll),
            (276, &sll2),
            (0, &null),
        ] {
            let expected = CapturedDatagram {
                source: [10, 0, 0, 1].into(),
                destination: [225, 1, 2, 3].into(),
                port: 5000,
                payload: b"payload",
            };
            let found = udp_datagram(link, bytes, bytes.len() as u32);
            assert_eq!(found, Ok(expected), "{link}");
        }
        assert_eq!(udp_datagram(147, ip, 1), Err(NotADatagram::LinkType(147)));
    }

    #[test]
    fn what_cannot_be_sent_again_has_a_reason() {
        let whole = frame(false);
        let len = whole.len() as u32;
        for short in [20, 40, whole.len() - 1] {
            let found = udp_datagram(1, &whole[..short], len);
            assert_eq!(found, Err(NotADatagram::Truncated), "{short}");
        }
        let mut fragment = whole.clone();
        fragment[14 + 6] = 0x20;
        assert_eq!(udp_datagram(1, &fragment, len), Err(NotADatagram::Fragment));
        let mut arp = whole.clone();
        (arp[12], arp[13]) = (0x88, 0xcc);
        assert_eq!(udp_datagram(1, &arp, len), Err(NotADatagram::OtherProtocol));
        let mut tcp = whole.clone();
        tcp[14 + 9] = 89;
        assert_eq!(udp_datagram(1, &tcp, len), Err(NotADatagram::OtherProtocol));
        // The UDP header promises more than there is.
        let mut damaged = whole;
        damaged[14 + 20 + 4] = 9;
        assert_eq!(udp_datagram(1, &damaged, len), Err(NotADatagram::Damaged));
    }
}
