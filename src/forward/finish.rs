//! Completion of offloaded checksums and the change of the TTL, in the capture buffer.

use super::DropReason;
use crate::wire::offload::Offload;
use crate::wire::{checksum, ip, udp};

/// Completes a checksum that the sender left to hardware, and sets the TTL or hop limit. `packet`
/// is the IP packet without padding.
///
/// # Errors
/// The offload cannot be completed; the reason says why. The packet is unchanged.
pub fn finish_packet(packet: &mut [u8], offload: Offload, ttl: u8) -> Result<(), DropReason> {
    match offload {
        Offload::None => {}
        Offload::Checksum { start, offset } => finish_checksum(packet, start, offset)?,
        // Segmentation computes the checksums of the segments.
        Offload::UdpSegments { .. } => {}
        Offload::Unknown => return Err(DropReason::GsoUnknown),
    }
    ip::set_ttl(packet, ttl);
    Ok(())
}

/// Computes the checksum of the bytes from `start` to the end, and stores it at `start + offset`.
/// The field there contains the sum of the pseudo-header, which is part of the checksum.
fn finish_checksum(packet: &mut [u8], start: u16, offset: u16) -> Result<(), DropReason> {
    let (start, offset) = (usize::from(start), usize::from(offset));
    // A virtual machine may give any offset. A checksum stored in the IP header would corrupt it.
    let header_len = match packet.first() {
        Some(first) if first >> 4 == 4 => usize::from(first & 0x0f) * 4,
        _ => ip::IPV6_HEADER_LEN,
    };
    let body = packet
        .get_mut(start..)
        .filter(|_| start >= header_len.max(ip::IPV4_MIN_HEADER_LEN))
        .ok_or(DropReason::ChecksumUnknown)?;
    let sum = !checksum::fold(checksum::add(0, body));
    let field = body
        .get_mut(offset..offset + 2)
        .ok_or(DropReason::ChecksumUnknown)?;
    // Replaces 0 by 0xffff, as the kernel does for every protocol. In UDP, 0 means "no checksum".
    // The two values are equal in one's complement arithmetic.
    field.copy_from_slice(&udp::checksum_field(sum).to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `IP(src="10.0.0.1", dst="225.1.2.3", ttl=5, id=1, tos=0xb8)/UDP(sport=1000,
    /// dport=5000)/b"hello"`, built by scapy.
    const PACKET: [u8; 33] = [
        0x45, 0xb8, 0x00, 0x21, 0x00, 0x01, 0x00, 0x00, 0x05, 0x11, 0xc8, 0x0e, 0x0a, 0x00, 0x00,
        0x01, 0xe1, 0x01, 0x02, 0x03, 0x03, 0xe8, 0x13, 0x88, 0x00, 0x0d, 0xb7, 0x8c, 0x68, 0x65,
        0x6c, 0x6c, 0x6f,
    ];

    #[test]
    fn checksum_field_inside_the_header_is_refused() {
        // Four bytes of options.
        let mut packet = [0u8; 40];
        packet[0] = 0x46;
        packet[3] = 40;
        ip::refresh_ipv4_checksum(&mut packet);
        let before = packet;
        for start in [0, 19, 20, 22, 23] {
            let offload = Offload::Checksum { start, offset: 0 };
            let refused = finish_packet(&mut packet, offload, 9);
            assert_eq!(refused, Err(DropReason::ChecksumUnknown));
            assert_eq!(packet, before);
        }
        let behind = Offload::Checksum {
            start: 24,
            offset: 0,
        };
        assert_eq!(finish_packet(&mut packet, behind, 9), Ok(()));
        assert_eq!(checksum::compute(&packet[..24]), 0);
    }

    /// `PACKET` as the sender's kernel passes it to the hardware: the checksum field contains the
    /// sum of the pseudo-header.
    fn with_partial_checksum() -> [u8; 33] {
        let mut p = PACKET;
        let sum = checksum::pseudo_header(
            [10, 0, 0, 1].into(),
            [225, 1, 2, 3].into(),
            udp::PROTOCOL,
            13,
        );
        p[26..28].copy_from_slice(&checksum::fold(sum).to_be_bytes());
        p
    }

    #[test]
    fn partial_checksum_is_completed_as_scapy_computes_it() {
        let mut p = with_partial_checksum();
        let offload = Offload::Checksum {
            start: 20,
            offset: 6,
        };
        finish_packet(&mut p, offload, 5).unwrap();
        assert_eq!(p, PACKET);
    }

    #[test]
    fn finish_changes_only_ttl_and_header_checksum() {
        let mut p = PACKET;
        finish_packet(&mut p, Offload::None, 4).unwrap();
        let mut expected = PACKET;
        expected[8] = 4;
        // Decrementing the high byte increases the checksum by 0x0100 (RFC 1141).
        expected[10..12].copy_from_slice(&(0xc80e + 0x0100u16).to_be_bytes());
        assert_eq!(p, expected);
    }

    proptest! {
        #[test]
        fn checksum_offset_outside_the_packet_is_refused(
            start in any::<u16>(), offset in any::<u16>(), len in 0usize..80,
        ) {
            let mut p = vec![0x45; len];
            let inside = usize::from(start) >= 20
                && usize::from(start) + usize::from(offset) + 2 <= len;
            let done = finish_packet(&mut p, Offload::Checksum { start, offset }, 5);
            prop_assert_eq!(done.is_ok(), inside);
        }
    }
}
