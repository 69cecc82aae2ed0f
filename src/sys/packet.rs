//! Packet sockets (`packet(7)`): the types and functions that capture and transmit share.

use super::limits::{DescriptorUse, outside_reserve};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::model::{IfIndex, MacAddress};
use crate::wire::offload::{GsoLayout, Offload};

/// The position of a captured frame in its buffer, and the metadata from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Frame {
    /// Offset of the network header in the buffer.
    pub start: u32,
    /// Bytes from the network header to the end of the frame.
    pub len: u32,
    /// Time of reception by the kernel, in nanoseconds of `CLOCK_REALTIME`.
    pub received_ns: u64,
    /// EtherType of the header at `start`.
    pub ethertype: u16,
    /// VLAN ID of the tag that the kernel stripped.
    pub vlan: Option<u16>,
    /// The work that the sender left to the device, such as checksum and segmentation.
    pub offload: Offload,
    /// True if this host sent the frame (`PACKET_OUTGOING`).
    pub outgoing: bool,
    /// True if the buffer was too small for the frame.
    pub truncated: bool,
    /// The station that sent the frame; `None` if this host sent it, or the link has no addresses.
    pub sender: Option<MacAddress>,
}

/// Returns the station that sent a frame with this packet socket address.
pub(super) fn sender(address: &libc::sockaddr_ll) -> Option<MacAddress> {
    if is_outgoing(address) {
        return None;
    }
    let len = usize::from(address.sll_halen);
    MacAddress::from_slice(address.sll_addr.get(..len)?)
}

/// Which frames a capture receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaptureScope {
    /// Incoming frames, and those that other programs of this host send.
    All,
    /// Incoming frames. Sending costs nothing more because of the capture then.
    Incoming,
}

/// Lets a packet socket receive only the frames of a scope. Called before frames arrive.
pub(super) fn set_scope(fd: &OwnedFd, scope: CaptureScope) -> io::Result<()> {
    match scope {
        CaptureScope::All => Ok(()),
        CaptureScope::Incoming => {
            set_option_int(fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)
        }
    }
}

impl Frame {
    /// Returns the approximate number of packets on the wire: for a GSO packet its segments. This
    /// is an estimate from the length, because the headers are not parsed yet.
    pub fn packets(&self) -> u64 {
        match self.offload {
            Offload::UdpSegments { payload } => {
                u64::from(self.len / u32::from(payload).max(1)).max(1)
            }
            _ => 1,
        }
    }
}

/// An IP packet to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutPacket<'a> {
    /// The bytes from the IP header on.
    pub bytes: &'a [u8],
    /// The segment layout of a GSO packet.
    pub segments: Option<GsoLayout>,
}

impl<'a> OutPacket<'a> {
    /// Creates a packet without segmentation.
    pub fn plain(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            segments: None,
        }
    }
}

/// Returns whether an address from the kernel belongs to a frame that this host sent.
pub(super) fn is_outgoing(address: &libc::sockaddr_ll) -> bool {
    address.sll_pkttype == libc::PACKET_OUTGOING
}

/// Opens a packet socket that receives nothing until it is bound to a protocol.
pub(super) fn socket(kind: libc::c_int) -> io::Result<OwnedFd> {
    let flags = kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: `socket` takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, flags, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel created this descriptor above, and nothing else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    outside_reserve(fd, DescriptorUse::Packets)
}

/// Sets a socket option. `T` is the C struct or integer type of the option.
pub(super) fn set_option<T>(fd: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is valid for reads of `len` bytes during the call.
    let done = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            len,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sets a socket option of type `int`.
pub(super) fn set_option_int(fd: &OwnedFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    set_option(fd, level, name, &value)
}

/// Makes the interface receive all multicast while the socket is open (`PACKET_MR_ALLMULTI`).
pub(super) fn join_all_multicast(fd: &OwnedFd, index: IfIndex) -> io::Result<()> {
    let all = libc::packet_mreq {
        mr_ifindex: index.get() as i32,
        mr_type: libc::PACKET_MR_ALLMULTI as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set_option(fd, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &all)
}

/// Returns the number of packets that a socket dropped since the last call because it was full.
pub(super) fn take_dropped(fd: &OwnedFd) -> io::Result<u64> {
    let mut stats = libc::tpacket_stats_v3 {
        tp_packets: 0,
        tp_drops: 0,
        tp_freeze_q_cnt: 0,
    };
    let mut len = size_of_val(&stats) as libc::socklen_t;
    // SAFETY: `stats` is valid for writes of `len` bytes during the call. A socket without a ring
    // writes the shorter `tpacket_stats`, whose fields are the first two of `stats`.
    let done = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &mut len,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(stats.tp_drops.into())
}

/// Returns the packet socket address of an interface.
pub(super) fn address(index: IfIndex, protocol: u16) -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: index.get() as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    }
}

/// Binds a socket to an interface. With protocol 0 it receives nothing.
pub(super) fn bind(fd: &OwnedFd, index: IfIndex, protocol: u16) -> io::Result<()> {
    let address = address(index, protocol);
    // SAFETY: `address` is valid for reads of its size during the call.
    let done = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            std::ptr::from_ref(&address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Checks that this process may open packet sockets (`CAP_NET_RAW`). Returns the socket, because the
/// kernel takes at least 16 ms to close it: drop it on another thread.
pub fn probe() -> io::Result<OwnedFd> {
    socket(libc::SOCK_DGRAM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gso_packet_counts_as_its_segments() {
        let packets = |len, offload| {
            let frame = Frame {
                len,
                offload,
                ..Frame::default()
            };
            frame.packets()
        };
        assert_eq!(packets(60_000, Offload::None), 1);
        let segments = |payload| Offload::UdpSegments { payload };
        assert_eq!(packets(28 + 16 * 200, segments(200)), 16);
        assert_eq!(packets(28 + 199, segments(200)), 1);
        assert_eq!(packets(0, segments(0)), 1);
    }
}
