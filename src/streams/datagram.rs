//! The UDP payload of an IP packet.

use crate::wire::ip::{IPV4_MIN_HEADER_LEN, IPV6_HEADER_LEN};
use crate::wire::udp;

/// Returns the destination port and the payload of a UDP datagram, or of its first fragment. `None`
/// for other packets.
///
/// The packet was forwarded, so its lengths are those of its headers.
pub fn udp_payload(packet: &[u8]) -> Option<(u16, &[u8])> {
    let header_len = match packet.first()? >> 4 {
        4 => {
            let header: &[u8; IPV4_MIN_HEADER_LEN] = packet.first_chunk()?;
            let is_first = u16::from_be_bytes([header[6], header[7]]) & 0x1fff == 0;
            let is_udp = header[9] == udp::PROTOCOL && is_first;
            is_udp.then_some(usize::from(header[0] & 0xf) * 4)?
        }
        _ => (*packet.get(6)? == udp::PROTOCOL).then_some(IPV6_HEADER_LEN)?,
    };
    let datagram = packet.get(header_len..)?;
    let port: &[u8; 2] = datagram
        .get(udp::DESTINATION_PORT_OFFSET..)?
        .first_chunk()?;
    Some((u16::from_be_bytes(*port), datagram.get(udp::HEADER_LEN..)?))
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    #[test]
    fn payload_follows_either_header() {
        let v4 = PacketBuilder::ipv4([10, 0, 0, 1], [225, 1, 2, 3], 7);
        let v6 = PacketBuilder::ipv6([0xfd; 16], [0xff; 16], 7);
        for builder in [v4, v6] {
            let mut packet = Vec::new();
            let builder = builder.udp(4000, 5004);
            builder.write(&mut packet, &[9; 30]).unwrap();
            assert_eq!(udp_payload(&packet), Some((5004, &[9; 30][..])));
            for len in 0..packet.len() - 30 {
                assert_eq!(udp_payload(&packet[..len]), None);
            }
            let first = packet[0];
            let (protocol, fragment) = if first == 0x45 { (9, 7) } else { (6, 6) };
            packet[fragment] ^= 1;
            assert_eq!(udp_payload(&packet), None);
            packet[fragment] ^= 1;
            packet[protocol] = 58;
            assert_eq!(udp_payload(&packet), None);
        }
    }
}
