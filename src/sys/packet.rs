//! Packet sockets (`packet(7)`): what capture and transmit have in common.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::model::IfIndex;
use crate::wire::offload::{GsoLayout, Offload};

/// Where a captured frame stands in its memory, and what the kernel says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Frame {
    /// First byte of the network header, counted from the start of its memory.
    pub start: u32,
    /// Bytes from there on.
    pub len: u32,
    /// When the kernel received it, in nanoseconds of `CLOCK_REALTIME`.
    pub received_ns: u64,
    /// EtherType of what stands at `start`.
    pub ethertype: u16,
    /// VLAN of the tag the kernel stripped.
    pub vlan: Option<u16>,
    /// What the sender left to hardware.
    pub offload: Offload,
    /// There was no room for all of it.
    pub cut: bool,
}

impl Frame {
    /// Packets on the wire that it stands for, roughly: nothing has been read of it yet.
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
    /// From the IP header on.
    pub bytes: &'a [u8],
    /// Where it stands for several datagrams: how it is cut into them.
    pub segments: Option<GsoLayout>,
}

impl<'a> OutPacket<'a> {
    /// A packet that is one.
    pub fn plain(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            segments: None,
        }
    }
}

/// Makes a packet socket that receives nothing until it is bound to a protocol.
pub(super) fn socket(kind: libc::c_int) -> io::Result<OwnedFd> {
    let flags = kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket() takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, flags, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets a socket option. `T` is the plain C struct or integer the option takes.
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

/// Sets an option that takes an integer.
pub(super) fn set_option_int(fd: &OwnedFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    set_option(fd, level, name, &value)
}

/// Tells the interface to take all multicast in for as long as the socket lives.
pub(super) fn join_all_multicast(fd: &OwnedFd, index: IfIndex) -> io::Result<()> {
    let all = libc::packet_mreq {
        mr_ifindex: index.get() as i32,
        mr_type: libc::PACKET_MR_ALLMULTI as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set_option(fd, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &all)
}

/// Packets a socket dropped since the last call because it was full.
pub(super) fn take_dropped(fd: &OwnedFd) -> io::Result<u64> {
    let mut stats = libc::tpacket_stats_v3 {
        tp_packets: 0,
        tp_drops: 0,
        tp_freeze_q_cnt: 0,
    };
    let mut len = size_of_val(&stats) as libc::socklen_t;
    // SAFETY: `stats` is valid for writes of `len` bytes during the call. A socket without a
    // ring fills only the first two numbers, which are the same ones.
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

/// The address of an interface as packet sockets know it.
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

/// Binds to an interface; protocol 0 receives nothing.
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

/// Tries whether this process may use packet sockets at all (`CAP_NET_RAW`).
pub fn probe() -> io::Result<()> {
    socket(libc::SOCK_DGRAM).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_datagrams_in_one_packet_are_several() {
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
