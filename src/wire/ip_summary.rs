//! The summary of a dropped IP packet that is shown to users.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::ip::{IPV4_MIN_HEADER_LEN, IPV6_HEADER_LEN};

/// The Protocol field of UDP.
const UDP: u8 = 17;

/// Fields of an IP packet as they were received. None of them is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpSummary {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Length that the header states, in bytes.
    pub len: u32,
    /// UDP destination port, if UDP follows the header and the packet is not a later fragment.
    pub port: Option<u16>,
}

impl IpSummary {
    /// Reads the packet at the start of `bytes`. Returns `None` if they do not begin with the fixed
    /// part of an IPv4 header (RFC 791 section 3.1) or IPv6 header (RFC 8200 section 3).
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let u16_at = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
        let udp_port = |header_len: usize| u16_at(header_len + 2);
        match bytes.first()? >> 4 {
            4 => {
                let header: &[u8; IPV4_MIN_HEADER_LEN] = bytes.first_chunk()?;
                let address =
                    |at: usize| -> Option<[u8; 4]> { header.get(at..at + 4)?.try_into().ok() };
                let is_first_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff == 0;
                let has_port = header[9] == UDP && is_first_fragment;
                Some(Self {
                    source: Ipv4Addr::from(address(12)?).into(),
                    destination: Ipv4Addr::from(address(16)?).into(),
                    ttl: header[8],
                    len: u16::from_be_bytes([header[2], header[3]]).into(),
                    port: udp_port(usize::from(header[0] & 0xf) * 4).filter(|_| has_port),
                })
            }
            6 => {
                let header: &[u8; IPV6_HEADER_LEN] = bytes.first_chunk()?;
                let address =
                    |at: usize| -> Option<[u8; 16]> { header.get(at..at + 16)?.try_into().ok() };
                let payload = u16::from_be_bytes([header[4], header[5]]);
                Some(Self {
                    source: Ipv6Addr::from(address(8)?).into(),
                    destination: Ipv6Addr::from(address(24)?).into(),
                    ttl: header[7],
                    len: IPV6_HEADER_LEN as u32 + u32::from(payload),
                    port: udp_port(IPV6_HEADER_LEN).filter(|_| header[6] == UDP),
                })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn packet(v6: bool) -> Vec<u8> {
        let builder = match v6 {
            false => PacketBuilder::ipv4([10, 0, 0, 1], [225, 1, 2, 3], 7),
            true => {
                let [mut source, mut group] = [[0; 16]; 2];
                (source[0], source[15], group[0], group[15]) = (0xfd, 1, 0xff, 9);
                PacketBuilder::ipv6(source, group, 7)
            }
        };
        let mut bytes = Vec::new();
        builder.udp(4000, 5004).write(&mut bytes, &[0; 30]).unwrap();
        bytes
    }

    #[test]
    fn fields_are_read() {
        let v4 = IpSummary::read(&packet(false)).unwrap();
        assert_eq!(
            v4,
            IpSummary {
                source: [10, 0, 0, 1].into(),
                destination: [225, 1, 2, 3].into(),
                ttl: 7,
                len: 58,
                port: Some(5004),
            }
        );
        let v6 = IpSummary::read(&packet(true)).unwrap();
        assert_eq!(v6.source, "fd00::1".parse::<IpAddr>().unwrap());
        assert_eq!(v6.destination, "ff00::9".parse::<IpAddr>().unwrap());
        assert_eq!((v6.ttl, v6.len, v6.port), (7, 78, Some(5004)));
    }

    #[test]
    fn later_fragments_and_other_protocols_have_no_port() {
        let mut fragment = packet(false);
        fragment[7] = 1;
        assert_eq!(IpSummary::read(&fragment).unwrap().port, None);
        let mut other = packet(true);
        other[6] = 58;
        assert_eq!(IpSummary::read(&other).unwrap().port, None);
    }

    #[test]
    fn short_and_foreign_bytes_are_no_packet() {
        for v6 in [false, true] {
            let bytes = packet(v6);
            let header = if v6 { 40 } else { 20 };
            for len in 0..bytes.len() {
                let read = IpSummary::read(&bytes[..len]);
                assert_eq!(read.is_some(), len >= header);
                assert_eq!(read.and_then(|r| r.port).is_some(), len >= header + 4);
            }
        }
        assert_eq!(IpSummary::read(&[0x50; 60]), None);
    }
}
