//! Work the sender left to hardware: checksums not computed, segments not cut.
//!
//! The kernel tells of it in the ten bytes of a `virtio_net_hdr` (`linux/virtio_net.h`,
//! VIRTIO 1.2 section 5.1.6): flags u8, gso_type u8, hdr_len u16, gso_size u16,
//! csum_start u16, csum_offset u16, in the byte order of the host.

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

#[cfg(test)]
mod tests {
    use super::*;

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
