//! The payload format of a test packet.
//!
//! A header of 40 bytes, all fields big-endian, then filler up to the requested size:
//!
//! ```text
//! offset  bytes  field
//!      0      4  magic "MCST"
//!      4      1  version, 1
//!      5      1  reserved: sent as 0, ignored
//!      6      2  flow number, from 0: the index of the group among the groups of this sender
//!      8      8  stream id, chosen at random by each run of a sender
//!     16      8  sequence number, from 0 in each flow
//!     24      8  time of sending, nanoseconds since 1970 (CLOCK_REALTIME)
//!     32      8  total number of packets of the flow; 0: not known in advance
//!     40      -  filler: the byte at offset n is n modulo 256
//! ```
//!
//! With the filler, a receiver detects damaged packets even if the sender omits UDP checksums.

/// Length of the header in bytes. It is also the smallest payload.
pub const HEADER_LEN: usize = 40;

/// Largest UDP payload over IPv4: 65,535 bytes minus 20 bytes of IP header and 8 of UDP header.
pub const MAX_LEN_V4: usize = 65_507;

/// Largest UDP payload sent over IPv6: 20 bytes less than over IPv4, as the IP header is larger.
pub const MAX_LEN_V6: usize = 65_487;

const MAGIC: [u8; 4] = *b"MCST";
const VERSION: u8 = 1;

/// Two periods of the filler, so that any stretch of 256 bytes is a slice of it.
const FILLER: [u8; 512] = {
    let mut bytes = [0; 512];
    let mut i = 0;
    while i < bytes.len() {
        bytes[i] = (i % 256) as u8;
        i += 1;
    }
    bytes
};

/// The header of a test packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload {
    /// Stream id, chosen at random by each run of a sender.
    pub stream: u64,
    /// Flow number within the stream, from 0.
    pub flow: u16,
    /// Sequence number of the packet within the flow, from 0.
    pub seq: u64,
    /// Time of sending in nanoseconds since 1970.
    pub sent_ns: u64,
    /// Total number of packets of the flow, if the sender knows it.
    pub total: Option<u64>,
}

/// The reason why bytes are not a test packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// The bytes are shorter than the header.
    #[error("{0} bytes, less than the {HEADER_LEN} bytes of the header")]
    TooShort(usize),
    /// The first four bytes are not the magic number.
    #[error("does not start with the magic number of a test packet")]
    Magic,
    /// This program does not support the version of the format.
    #[error("format version {0}; this program supports version {VERSION}")]
    Version(u8),
    /// A sequence number at or past the announced total.
    #[error("sequence number {seq} in a flow of only {total} packets")]
    PastTotal {
        /// The sequence number.
        seq: u64,
        /// The announced total.
        total: u64,
    },
}

fn u64_at(bytes: &[u8; HEADER_LEN], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(field)
}

impl Payload {
    /// Parses the header at the start of `bytes`.
    pub fn parse(bytes: &[u8]) -> Result<Self, PayloadError> {
        let header: &[u8; HEADER_LEN] = bytes
            .first_chunk()
            .ok_or(PayloadError::TooShort(bytes.len()))?;
        if header[..4] != MAGIC {
            return Err(PayloadError::Magic);
        }
        if header[4] != VERSION {
            return Err(PayloadError::Version(header[4]));
        }
        let payload = Self {
            flow: u16::from_be_bytes([header[6], header[7]]),
            stream: u64_at(header, 8),
            seq: u64_at(header, 16),
            sent_ns: u64_at(header, 24),
            total: Some(u64_at(header, 32)).filter(|&t| t > 0),
        };
        match payload.total {
            Some(total) if payload.seq >= total => Err(PayloadError::PastTotal {
                seq: payload.seq,
                total,
            }),
            _ => Ok(payload),
        }
    }

    /// Encodes the header.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[6..8].copy_from_slice(&self.flow.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.stream.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.seq.to_be_bytes());
        bytes[24..32].copy_from_slice(&self.sent_ns.to_be_bytes());
        bytes[32..40].copy_from_slice(&self.total.unwrap_or(0).to_be_bytes());
        bytes
    }

    /// Overwrites the first [`HEADER_LEN`] bytes of `packet` with the header. The filler stays, so
    /// a sender writes it only once per buffer. Does nothing if `packet` is shorter than the
    /// header.
    pub fn write_to(&self, packet: &mut [u8]) {
        if let Some(front) = packet.first_chunk_mut() {
            *front = self.to_bytes();
        }
    }
}

/// Writes the filler after the header of `packet`.
pub fn write_filler(packet: &mut [u8]) {
    for (at, byte) in packet.iter_mut().enumerate().skip(HEADER_LEN) {
        *byte = (at % 256) as u8;
    }
}

/// Returns whether all bytes after the header of `packet` are the filler that a sender writes.
pub fn filler_is_intact(packet: &[u8]) -> bool {
    let phase = HEADER_LEN % 256;
    packet
        .get(HEADER_LEN..)
        .unwrap_or_default()
        .chunks(256)
        .all(|chunk| chunk == &FILLER[phase..phase + chunk.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Payload = Payload {
        stream: 0x0102_0304_0506_0708,
        flow: 0x0a0b,
        seq: 0x11,
        sent_ns: 0x22,
        total: Some(0x33),
    };

    #[test]
    fn encoding_matches_documented_layout() {
        let mut expected = b"MCST\x01\x00\x0a\x0b\x01\x02\x03\x04\x05\x06\x07\x08".to_vec();
        for field in [0x11u64, 0x22, 0x33] {
            expected.extend(field.to_be_bytes());
        }
        assert_eq!(ONE.to_bytes().as_slice(), expected);
        assert_eq!(Payload::parse(&expected), Ok(ONE));
        // The reserved byte and the bytes after the header are ignored.
        expected[5] = 0xff;
        expected.push(0);
        assert_eq!(Payload::parse(&expected), Ok(ONE));
    }

    #[test]
    fn invalid_headers_are_rejected_with_reason() {
        let good = ONE.to_bytes();
        for len in 0..HEADER_LEN {
            assert_eq!(
                Payload::parse(&good[..len]),
                Err(PayloadError::TooShort(len))
            );
        }
        let mut bad = good;
        bad[0] = b'm';
        assert_eq!(Payload::parse(&bad), Err(PayloadError::Magic));
        let mut bad = good;
        bad[4] = 2;
        assert_eq!(Payload::parse(&bad), Err(PayloadError::Version(2)));
        let past = Payload { seq: 0x33, ..ONE };
        assert!(matches!(
            Payload::parse(&past.to_bytes()),
            Err(PayloadError::PastTotal { .. })
        ));
        let unknown = Payload {
            seq: u64::MAX,
            total: None,
            ..ONE
        };
        assert_eq!(Payload::parse(&unknown.to_bytes()), Ok(unknown));
    }

    #[test]
    fn one_damaged_filler_byte_is_detected() {
        let mut packet = vec![0; 1472];
        write_filler(&mut packet);
        ONE.write_to(&mut packet);
        assert!(filler_is_intact(&packet));
        for at in [HEADER_LEN, 295, 296, 297, 1471] {
            packet[at] ^= 1;
            assert!(!filler_is_intact(&packet), "byte {at}");
            packet[at] ^= 1;
        }
        assert!(filler_is_intact(&ONE.to_bytes()));
        assert!(filler_is_intact(b"short"));
    }
}
