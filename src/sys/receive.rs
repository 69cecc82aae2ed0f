//! Receives single packets with low latency: a plain packet socket, read with `recvmmsg`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::buffer::{Buffer, BufferPool, PACKETS, SMALL_LEN};
use super::fanout::FanoutMember;
use super::filter::CaptureFilter;
use super::packet::{
    CaptureScope, Frame, bind, join_all_multicast, sender, set_option_int, set_scope, socket,
};
use super::{filter, packet};
use crate::model::IfIndex;
use crate::wire::offload::{Offload, VNET_HEADER_LEN};
use crate::wire::vlan::vlan_id;

/// Smallest number of packets per call.
const MIN_BATCH: usize = 8;

/// Approximate number of bytes per call while large packets arrive.
const MAX_LARGE_BYTES: usize = 256 << 10;

/// `struct tpacket_auxdata`, the content of `PACKET_AUXDATA` (`linux/if_packet.h`).
#[repr(C)]
#[derive(Clone, Copy)]
struct Auxdata {
    status: u32,
    len: u32,
    snaplen: u32,
    mac: u16,
    net: u16,
    vlan_tci: u16,
    vlan_tpid: u16,
}

/// Space for the control messages of a packet: its auxdata and its timestamp.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct ControlBuffer([u8; 128]);

/// A capture socket without a ring.
pub struct PacketReceiver {
    fd: Arc<OwnedFd>,
    pool: BufferPool,
    /// The buffer for the next call, if it is already taken from the pool.
    spare: Option<Buffer>,
    /// Number of packets to request with the next call. Every requested packet needs a prepared
    /// message, so the limit follows the number of packets that arrive.
    limit: usize,
    messages: Box<[libc::mmsghdr; PACKETS]>,
    iovecs: Box<[[libc::iovec; 2]; PACKETS]>,
    names: Box<[libc::sockaddr_ll; PACKETS]>,
    controls: Box<[ControlBuffer; PACKETS]>,
}

// SAFETY: the pointers inside `messages` and `iovecs` are only followed during `receive`, which
// sets them before each system call.
unsafe impl Send for PacketReceiver {}

impl PacketReceiver {
    /// Captures what `filter` accepts in `scope` on an interface.
    ///
    /// While the socket is open, the interface receives all multicast (`PACKET_MR_ALLMULTI`).
    /// `buffer_bytes` is the size of the kernel's receive buffer, including its bookkeeping.
    pub fn open(
        index: IfIndex,
        filter: &CaptureFilter,
        buffer_bytes: u32,
        scope: CaptureScope,
    ) -> io::Result<Self> {
        let fd = socket(libc::SOCK_RAW)?;
        set_option_int(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        set_option_int(&fd, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
        set_option_int(&fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
        // The kernel doubles the value. SO_RCVBUFFORCE needs CAP_NET_ADMIN; SO_RCVBUF is limited by
        // net.core.rmem_max.
        let half = (buffer_bytes / 2).min(i32::MAX as u32) as i32;
        set_option_int(&fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, half)
            .or_else(|_| set_option_int(&fd, libc::SOL_SOCKET, libc::SO_RCVBUF, half))?;
        filter.attach(&fd)?;
        set_scope(&fd, scope)?;
        join_all_multicast(&fd, index)?;
        bind(&fd, index, libc::ETH_P_ALL as u16)?;
        Ok(Self::from_socket(fd))
    }

    /// Continues the capture of a socket that [`PacketReceiver::open`] has opened in another
    /// process.
    pub fn from_socket(fd: OwnedFd) -> Self {
        // SAFETY: these C structs consist of integers and pointers, for which zeros are valid.
        let (message, name) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let iovec = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        Self {
            fd: Arc::new(fd),
            pool: BufferPool::default(),
            spare: None,
            limit: MIN_BATCH,
            messages: Box::new([message; PACKETS]),
            iovecs: Box::new([[iovec; 2]; PACKETS]),
            names: Box::new([name; PACKETS]),
            controls: Box::new([ControlBuffer([0; 128]); PACKETS]),
        }
    }

    /// Receives the waiting packets, at most one buffer of them, and appends their frames in order
    /// of arrival. Does not block: returns `WouldBlock` if there are none.
    pub fn receive(&mut self, frames: &mut Vec<Frame>) -> io::Result<Buffer> {
        let mut buffer = match self.spare.take() {
            Some(buffer) => buffer,
            None => self.pool.take()?,
        };
        let received = self.receive_into(&mut buffer);
        let count = match received {
            Ok(count) => count,
            Err(e) => {
                self.spare = Some(buffer);
                return Err(e);
            }
        };
        let mut largest = 0;
        for n in 0..count {
            let len = self.messages[n].msg_len as usize;
            largest = largest.max(len);
            let start = buffer.make_contiguous(n, len);
            frames.extend(self.frame(n, &buffer, start, len));
        }
        let max = match largest > SMALL_LEN {
            true => (MAX_LARGE_BYTES / largest).clamp(1, PACKETS),
            false => PACKETS,
        };
        self.limit = (2 * count).clamp(MIN_BATCH, PACKETS).min(max);
        Ok(buffer)
    }

    fn receive_into(&mut self, buffer: &mut Buffer) -> io::Result<usize> {
        let base = buffer.bytes_mut().as_mut_ptr();
        for n in 0..self.limit {
            let slots = Buffer::slots(n);
            for (iovec, (start, len)) in self.iovecs[n].iter_mut().zip(slots) {
                iovec.iov_base = base.wrapping_add(start).cast();
                iovec.iov_len = len;
            }
            let header = &mut self.messages[n].msg_hdr;
            header.msg_name = std::ptr::from_mut(&mut self.names[n]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            header.msg_iov = self.iovecs[n].as_mut_ptr();
            header.msg_iovlen = 2;
            header.msg_control = self.controls[n].0.as_mut_ptr().cast();
            header.msg_controllen = size_of::<ControlBuffer>() as _;
            header.msg_flags = 0;
        }
        // SAFETY: each message points to iovecs, a name and a control buffer that live in `self`.
        // The iovecs point to memory of `buffer`, inside it and without overlap (`Buffer::slots`).
        // All of it outlives the call, and no other reference to it exists during the call.
        let received = unsafe {
            libc::recvmmsg(
                self.fd.as_raw_fd(),
                self.messages.as_mut_ptr(),
                self.limit as u32,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        if received < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(received as usize)
    }

    /// Returns the frame of packet `n`, whose `len` bytes start at `start`. `None` if the kernel
    /// left out the auxdata or a header, which it never does.
    fn frame(&self, n: usize, buffer: &Buffer, start: usize, len: usize) -> Option<Frame> {
        let (auxdata, received_ns) = self.controls(n);
        let auxdata = auxdata?;
        let bytes = buffer.bytes().get(start..start + len)?;
        let vnet: &[u8; VNET_HEADER_LEN] = bytes.first_chunk()?;
        let link_len = auxdata.net;
        let net = VNET_HEADER_LEN + usize::from(link_len);
        let tagged = auxdata.status & libc::TP_STATUS_VLAN_VALID != 0;
        Some(Frame {
            start: (start + net) as u32,
            len: len.saturating_sub(net) as u32,
            received_ns: received_ns.unwrap_or_else(now),
            ethertype: u16::from_be(self.names[n].sll_protocol),
            vlan: tagged.then(|| vlan_id(auxdata.vlan_tci)),
            offload: Offload::from_vnet_header(vnet, link_len),
            sender: sender(&self.names[n]),
            outgoing: packet::is_outgoing(&self.names[n]),
            truncated: self.messages[n].msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        })
    }

    fn controls(&self, n: usize) -> (Option<Auxdata>, Option<u64>) {
        let header = &self.messages[n].msg_hdr;
        let (mut auxdata, mut time) = (None, None);
        // SAFETY: the kernel filled `msg_control` up to `msg_controllen`, and the CMSG functions
        // stay within that length. The length of each entry is checked before it is read, and both
        // structs consist of integers, for which any bytes are valid.
        unsafe {
            let mut at = libc::CMSG_FIRSTHDR(header);
            while let Some(entry) = at.as_ref() {
                let data = libc::CMSG_DATA(entry);
                let fits = |size: usize| entry.cmsg_len >= libc::CMSG_LEN(size as u32) as usize;
                match (entry.cmsg_level, entry.cmsg_type) {
                    (libc::SOL_PACKET, libc::PACKET_AUXDATA) if fits(size_of::<Auxdata>()) => {
                        auxdata = Some(data.cast::<Auxdata>().read_unaligned());
                    }
                    (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS)
                        if fits(size_of::<libc::timespec>()) =>
                    {
                        let t = data.cast::<libc::timespec>().read_unaligned();
                        time = Some(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64);
                    }
                    _ => {}
                }
                at = libc::CMSG_NXTHDR(header, at);
            }
        }
        (auxdata, time)
    }

    /// Returns the number of packets that the kernel dropped since the last call because the
    /// receive buffer was full.
    pub fn take_dropped(&self) -> io::Result<u64> {
        packet::take_dropped(&self.fd)
    }

    /// Replaces the filter.
    ///
    /// # Errors
    /// The kernel refuses the filter.
    pub fn set_filter(&self, filter: &CaptureFilter) -> io::Result<()> {
        filter.attach(&self.fd)
    }

    /// Stops the capture. Packets that already wait can still be received.
    pub fn stop_capture(&self) -> io::Result<()> {
        filter::attach(&self.fd, &filter::drop_all())
    }

    /// Returns a handle that lets the socket join a fanout group.
    pub fn member(&self) -> FanoutMember {
        FanoutMember::new(self.fd.clone())
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_nanos() as u64
}

impl AsRawFd for PacketReceiver {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}
