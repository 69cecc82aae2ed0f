//! Sequence numbers: where they are in a payload, and how they wrap.

use crate::model::MergeBy;
use crate::probe::payload::Payload;

/// RTCP packets have types from 192 to 223 where RTP has marker and payload type (RFC 5761
/// section 4).
const RTCP_TYPES: std::ops::RangeInclusive<u8> = 192..=223;

/// The length of the fixed header of RTP (RFC 3550 section 5.1).
const RTP_HEADER_LEN: usize = 12;

/// The sequence number of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PacketNumber {
    /// The number.
    pub number: u64,
    /// Its length in bits.
    pub bits: u32,
    /// Distinguishes streams of one group and port: the SSRC, or the ID of a test stream.
    pub stream: u64,
}

impl PacketNumber {
    /// Reads the number from a UDP payload. Returns `None` if it has none.
    pub fn read(by: MergeBy, payload: &[u8]) -> Option<Self> {
        match by {
            MergeBy::Rtp => {
                let header: &[u8; RTP_HEADER_LEN] = payload.first_chunk()?;
                let is_rtp = header[0] >> 6 == 2 && !RTCP_TYPES.contains(&header[1]);
                is_rtp.then(|| Self {
                    number: big_endian(&header[2..4]),
                    bits: 16,
                    stream: big_endian(&header[8..12]),
                })
            }
            MergeBy::Sequence => {
                let test = Payload::parse(payload).ok()?;
                Some(Self {
                    number: test.seq,
                    bits: 64,
                    stream: test.stream.wrapping_add(test.flow.into()),
                })
            }
            MergeBy::Field { offset, bytes } => {
                let start = usize::from(offset);
                let field = payload.get(start..start + usize::from(bytes))?;
                Some(Self {
                    number: big_endian(field),
                    bits: u32::from(bytes) * 8,
                    stream: 0,
                })
            }
            MergeBy::Payload => None,
        }
    }
}

fn big_endian(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

/// Returns by how much `to` is ahead of `from`, for numbers of this length that wrap. The result is
/// negative if it is behind (serial number arithmetic, RFC 1982).
pub(super) fn distance(from: u64, to: u64, bits: u32) -> i64 {
    let unused = 64 - bits.clamp(1, 64);
    // The shift up puts the sign of the difference into the highest bit.
    (to.wrapping_sub(from) << unused) as i64 >> unused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_wraps_at_the_length_of_the_number() {
        assert_eq!(distance(65_535, 0, 16), 1);
        assert_eq!(distance(0, 65_535, 16), -1);
        assert_eq!(distance(0xffff_fff0, 0x10, 32), 0x20);
        assert_eq!(distance(u64::MAX, 2, 64), 3);
        assert_eq!(distance(5, 5, 24), 0);
        assert_eq!(distance(0, 0x7f_ffff, 24), 0x7f_ffff);
        assert_eq!(distance(0, 0x80_0000, 24), -0x80_0000);
    }

    #[test]
    fn rtp_header_is_read_and_rtcp_is_not() {
        let mut packet = [0x80, 33, 0x12, 0x34, 0, 0, 0, 0, 0xde, 0xad, 0xbe, 0xef];
        let read = PacketNumber::read(MergeBy::Rtp, &packet).unwrap();
        assert_eq!(
            (read.number, read.bits, read.stream),
            (0x1234, 16, 0xdead_beef)
        );
        // With marker.
        for payload_type in [33, 96, 127] {
            packet[1] = 0x80 | payload_type;
            assert!(PacketNumber::read(MergeBy::Rtp, &packet).is_some());
        }
        // A sender report.
        packet[1] = 200;
        assert!(PacketNumber::read(MergeBy::Rtp, &packet).is_none());
        packet[..2].copy_from_slice(&[0x40, 33]);
        assert!(PacketNumber::read(MergeBy::Rtp, &packet).is_none());
        assert!(PacketNumber::read(MergeBy::Rtp, &packet[..11]).is_none());
    }

    #[test]
    fn field_is_big_endian_at_its_offset() {
        let by = MergeBy::Field {
            offset: 4,
            bytes: 3,
        };
        let read = PacketNumber::read(by, &[9, 9, 9, 9, 1, 2, 3]).unwrap();
        assert_eq!((read.number, read.bits, read.stream), (0x01_0203, 24, 0));
        assert!(PacketNumber::read(by, &[9, 9, 9, 9, 1, 2]).is_none());
    }
}
