//! The bytes of a test packet.
//!
//! A header of 40 bytes, all fields big-endian, then filler up to the wanted size:
//!
//! ```text
//! offset  bytes  field
//!      0      4  magic "MCST"
//!      4      1  version, 1
//!      5      1  reserved: sent as 0, ignored
//!      6      2  flow number, from 0: the how-manieth group of this sender
//!      8      8  stream id, drawn at random by each run of a sender
//!     16      8  sequence number, from 0 in each flow
//!     24      8  time of sending, nanoseconds since 1970 (CLOCK_REALTIME)
//!     32      8  how many packets the flow will have; 0: not known in advance
//!     40      -  filler: the byte at offset n is n modulo 256
//! ```
//!
//! The filler lets a receiver see damage that a sender without UDP checksums would hide.

/// Bytes of the header, and so the smallest payload.
pub const HEADER_LEN: usize = 40;

/// Largest UDP payload over IPv4: 65,535 less 20 bytes of IP and 8 of UDP.
pub const MAX_LEN_V4: usize = 65_507;

/// Largest UDP payload sent over IPv6: as over IPv4, less the 20 bytes the larger header takes.
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
    /// Drawn at random by each run of a sender.
    pub stream: u64,
    /// Number of the flow within the stream, from 0.
    pub flow: u16,
    /// Number of the packet within the flow, from 0.
    pub seq: u64,
    /// Time of sending in nanoseconds since 1970.
    pub sent_ns: u64,
    /// Packets the flow will have, where the sender knows.
    pub total: Option<u64>,
}

/// Why bytes are not a test packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// Shorter than the header.
    #[error("{0} bytes, and the header alone has {HEADER_LEN}")]
    TooShort(usize),
    /// The first four bytes differ.
    #[error("does not begin with the magic bytes of a test packet")]
    Magic,
    /// A version this program does not read.
    #[error("version {0} of the format, and this program reads version {VERSION}")]
    Version(u8),
    /// A sequence number at or past the announced total.
    #[error("sequence number {seq} in a flow of {total} packets")]
    PastTotal {
        /// The sequence number found.
        seq: u64,
        /// The total found.
        total: u64,
    },
}

fn u64_at(bytes: &[u8; HEADER_LEN], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(field)
}

impl Payload {
    /// Reads the header at the front of `bytes`.
    pub fn read(bytes: &[u8]) -> Result<Self, PayloadError> {
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

    /// The header as it goes on the wire.
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

    /// Writes the header over the front of `packet`; the rest is left as it is, so that a sender
    /// fills a buffer once. Does nothing where `packet` is shorter than [`HEADER_LEN`].
    pub fn write(&self, packet: &mut [u8]) {
        if let Some(front) = packet.first_chunk_mut() {
            *front = self.to_bytes();
        }
    }
}

/// Writes the filler behind the header of `packet`.
pub fn fill(packet: &mut [u8]) {
    for (at, byte) in packet.iter_mut().enumerate().skip(HEADER_LEN) {
        *byte = (at % 256) as u8;
    }
}

/// True where everything behind the header of `packet` is the filler a sender wrote.
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
    fn layout_is_as_documented() {
        let mut want = b"MCST\x01\x00\x0a\x0b\x01\x02\x03\x04\x05\x06\x07\x08".to_vec();
        for field in [0x11u64, 0x22, 0x33] {
            want.extend(field.to_be_bytes());
        }
        assert_eq!(ONE.to_bytes().as_slice(), want);
        assert_eq!(Payload::read(&want), Ok(ONE));
        // The reserved byte is ignored, and so is what follows the header.
        want[5] = 0xff;
        want.push(0);
        assert_eq!(Payload::read(&want), Ok(ONE));
    }

    #[test]
    fn hostile_bytes_are_refused_with_a_reason() {
        let good = ONE.to_bytes();
        for len in 0..HEADER_LEN {
            assert_eq!(
                Payload::read(&good[..len]),
                Err(PayloadError::TooShort(len))
            );
        }
        let mut bad = good;
        bad[0] = b'm';
        assert_eq!(Payload::read(&bad), Err(PayloadError::Magic));
        let mut bad = good;
        bad[4] = 2;
        assert_eq!(Payload::read(&bad), Err(PayloadError::Version(2)));
        let past = Payload { seq: 0x33, ..ONE };
        assert!(matches!(
            Payload::read(&past.to_bytes()),
            Err(PayloadError::PastTotal { .. })
        ));
        let unknown = Payload {
            seq: u64::MAX,
            total: None,
            ..ONE
        };
        assert_eq!(Payload::read(&unknown.to_bytes()), Ok(unknown));
    }

    #[test]
    fn one_damaged_byte_of_filler_is_seen() {
        let mut packet = vec![0; 1472];
        fill(&mut packet);
        ONE.write(&mut packet);
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
