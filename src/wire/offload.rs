//! Transmit offloads: checksums and segmentation that the sender left to the device.
//!
//! Packet sockets with `PACKET_VNET_HDR` describe them in a `virtio_net_hdr` of 10 bytes
//! (`linux/virtio_net.h`, VIRTIO 1.2 section 5.1.6): flags u8, gso_type u8, hdr_len u16,
//! gso_size u16, csum_start u16, csum_offset u16, all in host byte order.
//!
//! A *GSO packet* holds the IP and UDP headers once, followed by the payloads of several UDP
//! datagrams. Generic segmentation offload (GSO) splits it into these datagrams, its *segments*.

use std::num::NonZeroU16;

use super::udp;

/// Length of a `virtio_net_hdr` in bytes.
pub const VNET_HEADER_LEN: usize = 10;

const FLAG_NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// The work that remains before a packet can be put on a wire. Offsets count from the start of the
/// IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Offload {
    /// No work remains.
    #[default]
    None,
    /// The checksum of all bytes from `start` must be computed and stored at `start + offset`,
    /// where the sum of the pseudo-header is now.
    Checksum {
        /// Offset of the first byte that the checksum covers (`csum_start`).
        start: u16,
        /// Offset of the checksum field from `start` (`csum_offset`).
        offset: u16,
    },
    /// A GSO packet of UDP datagrams (`VIRTIO_NET_HDR_GSO_UDP_L4`) without valid UDP checksums.
    UdpSegments {
        /// Payload bytes of each segment except the last, which may be shorter (`gso_size`).
        payload: u16,
    },
    /// An offload that this router cannot complete, such as TCP segmentation.
    Unknown,
}

impl Offload {
    /// Parses a `virtio_net_hdr`. `link_len` is the length of the link header before the IP header,
    /// which the offsets in `h` include.
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

/// How a GSO packet divides into UDP datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GsoLayout {
    payload: NonZeroU16,
    headers: u8,
}

impl GsoLayout {
    /// Returns the layout with `payload` bytes per segment and IP and UDP headers of `headers`
    /// bytes.
    ///
    /// Returns `None` if `payload` is zero, or if `headers` exceeds 255 bytes or leaves no room for
    /// an IP header.
    pub fn new(payload: u16, headers: usize) -> Option<Self> {
        Some(Self {
            payload: NonZeroU16::new(payload)?,
            headers: u8::try_from(headers)
                .ok()
                .filter(|h| usize::from(*h) > udp::HEADER_LEN)?,
        })
    }

    /// Returns the number of segments of a GSO packet of `len` bytes, IP header included.
    pub fn count(self, len: usize) -> u64 {
        let body = len.saturating_sub(self.headers.into());
        body.div_ceil(usize::from(self.payload.get())) as u64
    }

    /// Returns the total length of all segments of a GSO packet of `len` bytes. Each segment has
    /// its own headers.
    pub fn bytes(self, len: usize) -> u64 {
        let added_headers = self.count(len).saturating_sub(1);
        len as u64 + added_headers * u64::from(self.headers)
    }

    /// Returns the length of the longest segment of a GSO packet of `len` bytes, IP header
    /// included.
    pub fn longest(self, len: usize) -> usize {
        len.min(usize::from(self.headers) + usize::from(self.payload.get()))
    }

    /// Returns the length of the IP and UDP headers in bytes.
    pub fn headers(self) -> usize {
        self.headers.into()
    }

    /// Returns the payload bytes of each segment except the last.
    pub fn payload(self) -> u16 {
        self.payload.get()
    }

    /// Returns the `virtio_net_hdr` that makes the kernel segment a packet with this layout.
    ///
    /// `link_len` is the length of the link header before the IP header. The UDP checksum field of
    /// the packet must contain the sum of the pseudo-header.
    pub fn vnet_header(self, link_len: u8) -> [u8; VNET_HEADER_LEN] {
        let headers = u16::from(link_len) + u16::from(self.headers);
        let words = [
            headers,
            self.payload.get(),
            headers - udp::HEADER_LEN as u16,
            udp::CHECKSUM_OFFSET as u16,
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
    fn vnet_header_matches_kernel_output() {
        let layout = GsoLayout::new(1000, 28).unwrap();
        let header = layout.vnet_header(14);
        // Captured from a packet socket on a veth: an IPv4 packet sent with `UDP_SEGMENT` 1000.
        let captured = [42u16, 1000, 34, 6];
        assert_eq!(header[0..2], [1, 5]);
        let words = captured.iter().flat_map(|w| w.to_ne_bytes());
        assert_eq!(header[2..], words.collect::<Vec<_>>());
        assert_eq!(
            Offload::from_vnet_header(&header, 14),
            Offload::UdpSegments { payload: 1000 }
        );
    }

    #[test]
    fn segments_are_counted_as_on_the_wire() {
        let layout = GsoLayout::new(1000, 28).unwrap();
        for (body, count, longest) in [
            (0, 0, 28),
            (1, 1, 29),
            (1000, 1, 1028),
            (1001, 2, 1028),
            (5300, 6, 1028),
        ] {
            let len = 28 + body;
            assert_eq!(layout.count(len), count, "{body}");
            assert_eq!(layout.longest(len), longest, "{body}");
            let bytes = body as u64 + 28 * count.max(1);
            assert_eq!(layout.bytes(len), bytes, "{body}");
        }
        assert_eq!(GsoLayout::new(0, 28), None);
        assert_eq!(GsoLayout::new(1000, 256), None);
        assert_eq!(GsoLayout::new(1000, 8), None);
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
    fn kernel_vnet_headers_are_parsed() {
        let parse = |h| Offload::from_vnet_header(&h, 14);
        assert_eq!(parse(header(0, 0, 0, 0, 0)), Offload::None);
        // VIRTIO_NET_HDR_F_DATA_VALID leaves no work.
        assert_eq!(parse(header(2, 0, 0, 0, 0)), Offload::None);
        assert_eq!(
            parse(header(1, 0, 0, 34, 6)),
            Offload::Checksum {
                start: 20,
                offset: 6
            }
        );
        assert_eq!(
            parse(header(1, 5, 1000, 34, 6)),
            Offload::UdpSegments { payload: 1000 }
        );
        assert_eq!(parse(header(1, 1, 1000, 34, 16)), Offload::Unknown);
        assert_eq!(parse(header(1, 5, 0, 34, 6)), Offload::Unknown);
        assert_eq!(parse(header(1, 0, 0, 3, 6)), Offload::Unknown);
    }
}
