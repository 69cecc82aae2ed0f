//! Work the sender left to hardware: checksums not computed, segments not cut.
//!
//! The kernel tells of it in the ten bytes of a `virtio_net_hdr` (`linux/virtio_net.h`,
//! VIRTIO 1.2 section 5.1.6): flags u8, gso_type u8, hdr_len u16, gso_size u16,
//! csum_start u16, csum_offset u16, in the byte order of the host.

use std::num::NonZeroU16;

use super::udp;

/// Bytes of a `virtio_net_hdr`.
pub const VNET_HEADER_LEN: usize = 10;

const FLAG_NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// What is left to do before a packet may go on a wire. Offsets count from the start of the
/// IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Offload {
    /// Nothing.
    #[default]
    None,
    /// The checksum over everything from `start` on, to be stored at `start + offset`, which
    /// holds the sum of the pseudo-header until then.
    Checksum {
        /// First byte summed.
        start: u16,
        /// Where the checksum goes, counted from `start`.
        offset: u16,
    },
    /// Several UDP datagrams in one, each with `payload` bytes but the last; their checksums
    /// are not computed.
    UdpSegments {
        /// Payload bytes of each datagram.
        payload: u16,
    },
    /// Something this router cannot finish: cut by rules it does not know.
    Unknown,
}

impl Offload {
    /// Reads the header; `link_len` bytes of link header stand between the start of what the
    /// kernel counted from and the IP header.
    pub fn from_vnet_header(h: &[u8; VNET_HEADER_LEN], link_len: u16) -> Self {
        let word = |at: usize| u16::from_ne_bytes([h[at], h[at + 1]]);
        match h[1] & !GSO_ECN {
            GSO_NONE if h[0] & FLAG_NEEDS_CSUM == 0 => Self::None,
            GSO_NONE => match word(6).checked_sub(link_len) {
                Some(start) => Self::Checksum {
                    start,
                    offset: word(8),
                },
                None => Self::Unknown,
            },
            GSO_UDP_L4 if word(4) > 0 => Self::UdpSegments { payload: word(4) },
            _ => Self::Unknown,
        }
    }
}

/// How a packet is cut that stands for several UDP datagrams: the IP and UDP headers once, then
/// what the datagrams carry, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segments {
    payload: NonZeroU16,
    headers: u8,
}

impl Segments {
    /// Datagrams of `payload` bytes each but the last, behind headers of `headers` bytes. `None`
    /// where that cannot be.
    pub fn new(payload: u16, headers: usize) -> Option<Self> {
        Some(Self {
            payload: NonZeroU16::new(payload)?,
            headers: u8::try_from(headers)
                .ok()
                .filter(|h| usize::from(*h) > udp::HEADER_LEN)?,
        })
    }

    /// How many datagrams a packet of `len` bytes holds, from the IP header on.
    pub fn count(self, len: usize) -> u64 {
        let body = len.saturating_sub(self.headers.into());
        body.div_ceil(usize::from(self.payload.get())) as u64
    }

    /// Their bytes together, from the IP header on: each has headers of its own.
    pub fn bytes(self, len: usize) -> u64 {
        let more = self.count(len).saturating_sub(1);
        len as u64 + more * u64::from(self.headers)
    }

    /// Bytes of the longest of them, from the IP header on.
    pub fn longest(self, len: usize) -> usize {
        len.min(usize::from(self.headers) + usize::from(self.payload.get()))
    }

    /// Bytes of the IP and UDP headers.
    pub fn headers(self) -> usize {
        self.headers.into()
    }

    /// Payload bytes of each but the last.
    pub fn payload(self) -> u16 {
        self.payload.get()
    }

    /// The header that asks the kernel to cut a packet so, which stands behind `link_len` bytes
    /// of link header. Its UDP checksum must hold the sum of the pseudo-header.
    pub fn vnet_header(self, link_len: u8) -> [u8; VNET_HEADER_LEN] {
        let headers = u16::from(link_len) + u16::from(self.headers);
        let words = [
            headers,
            self.payload.get(),
            headers - udp::HEADER_LEN as u16,
            udp::CHECKSUM_AT as u16,
        ];
        let mut header = [0; VNET_HEADER_LEN];
        header[..2].copy_from_slice(&[FLAG_NEEDS_CSUM, GSO_UDP_L4]);
        for (field, word) in header[2..].chunks_exact_mut(2).zip(words) {
            field.copy_from_slice(&word.to_ne_bytes());
        }
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_of_the_kernel_is_what_it_tells() {
        let segments = Segments::new(1000, 28).unwrap();
        let asked = segments.vnet_header(14);
        // As a packet socket showed it for `UDP_SEGMENT` of 1,000 on a veth, IPv4.
        let told = [42u16, 1000, 34, 6];
        assert_eq!(asked[0..2], [1, 5]);
        let words = told.iter().flat_map(|w| w.to_ne_bytes());
        assert_eq!(asked[2..], words.collect::<Vec<_>>());
        assert_eq!(
            Offload::from_vnet_header(&asked, 14),
            Offload::UdpSegments { payload: 1000 }
        );
    }

    #[test]
    fn datagrams_are_counted_as_they_will_be_on_the_wire() {
        let segments = Segments::new(1000, 28).unwrap();
        for (body, count, longest) in [
            (0, 0, 28),
            (1, 1, 29),
            (1000, 1, 1028),
            (1001, 2, 1028),
            (5300, 6, 1028),
        ] {
            let len = 28 + body;
            assert_eq!(segments.count(len), count, "{body}");
            assert_eq!(segments.longest(len), longest, "{body}");
            let bytes = body as u64 + 28 * count.max(1);
            assert_eq!(segments.bytes(len), bytes, "{body}");
        }
        assert_eq!(Segments::new(0, 28), None);
        assert_eq!(Segments::new(1000, 256), None);
        assert_eq!(Segments::new(1000, 8), None);
    }

    fn header(flags: u8, gso: u8, size: u16, start: u16, offset: u16) -> [u8; 10] {
        let mut h = [0; 10];
        h[0] = flags;
        h[1] = gso;
        h[4..6].copy_from_slice(&size.to_ne_bytes());
        h[6..8].copy_from_slice(&start.to_ne_bytes());
        h[8..10].copy_from_slice(&offset.to_ne_bytes());
        h
    }

    #[test]
    fn the_kernel_s_headers_are_understood() {
        let read = |h| Offload::from_vnet_header(&h, 14);
        assert_eq!(read(header(0, 0, 0, 0, 0)), Offload::None);
        // DATA_VALID is no work.
        assert_eq!(read(header(2, 0, 0, 0, 0)), Offload::None);
        assert_eq!(
            read(header(1, 0, 0, 34, 6)),
            Offload::Checksum {
                start: 20,
                offset: 6
            }
        );
        assert_eq!(
            read(header(1, 5, 1000, 34, 6)),
            Offload::UdpSegments { payload: 1000 }
        );
        assert_eq!(read(header(1, 1, 1000, 34, 16)), Offload::Unknown);
        assert_eq!(read(header(1, 5, 0, 34, 6)), Offload::Unknown);
        assert_eq!(read(header(1, 0, 0, 3, 6)), Offload::Unknown);
    }
}
