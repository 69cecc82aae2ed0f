//! Receiving packets one by one as they come: a plain packet socket, read with `recvmmsg`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::buffer::{Buffer, DENSE, PACKETS, Pool};
use super::fanout::FanoutMember;
use super::packet::{Frame, bind, join_all_multicast, set_option_int, socket};
use super::{filter, packet};
use crate::model::IfIndex;
use crate::wire::offload::{Offload, VNET_HEADER_LEN};
use crate::wire::vlan::vlan_id;

/// Packets to ask for with one call where the last brought none or one.
const FEWEST: usize = 8;

/// Bytes of large packets to take with one call, roughly.
const MOST_LARGE: usize = 256 << 10;

/// What `PACKET_AUXDATA` tells (`linux/if_packet.h`).
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

/// Room for what the kernel says of a packet: its auxdata and its time.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; 128]);

/// A capture socket without a ring.
pub struct PacketReceiver {
    fd: Arc<OwnedFd>,
    pool: Pool,
    /// Taken from the pool for the next call.
    spare: Option<Buffer>,
    /// Most packets of the next call: each must be described to the kernel beforehand, so
    /// this follows what the calls bring.
    limit: usize,
    messages: Box<[libc::mmsghdr; PACKETS]>,
    parts: Box<[[libc::iovec; 2]; PACKETS]>,
    names: Box<[libc::sockaddr_ll; PACKETS]>,
    controls: Box<[Control; PACKETS]>,
}

// SAFETY: the pointers inside `messages` and `parts` are only followed during `receive`,
// which sets them anew each time.
unsafe impl Send for PacketReceiver {}

impl PacketReceiver {
    /// Captures multicast of all IP protocols on an interface, incoming and outgoing, except
    /// what bears `mark` on its way out. The interface is told to take all multicast in
    /// (`PACKET_MR_ALLMULTI`) for as long as this lives. `room` is how many bytes may wait in
    /// the kernel, its own bookkeeping included.
    pub fn open(index: IfIndex, mark: u32, room: u32) -> io::Result<Self> {
        let fd = socket(libc::SOCK_RAW)?;
        set_option_int(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        set_option_int(&fd, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
        set_option_int(&fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
        // The kernel doubles what it is told. The forced form is for the administrator; the
        // plain one is capped by the system.
        let half = (room / 2).min(i32::MAX as u32) as i32;
        set_option_int(&fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, half)
            .or_else(|_| set_option_int(&fd, libc::SOL_SOCKET, libc::SO_RCVBUF, half))?;
        filter::attach(&fd, &filter::multicast(mark))?;
        join_all_multicast(&fd, index)?;
        bind(&fd, index, libc::ETH_P_ALL as u16)?;
        // SAFETY: these C structs are numbers and pointers, for which zeros are valid.
        let (message, name) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let part = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        Ok(Self {
            fd: Arc::new(fd),
            pool: Pool::default(),
            spare: None,
            limit: FEWEST,
            messages: Box::new([message; PACKETS]),
            parts: Box::new([[part; 2]; PACKETS]),
            names: Box::new([name; PACKETS]),
            controls: Box::new([Control([0; 128]); PACKETS]),
        })
    }

    /// Receives what is there, up to a bufferful; frames are appended in the order they came.
    pub fn receive(&mut self, frames: &mut Vec<Frame>) -> io::Result<Buffer> {
        let mut buffer = match self.spare.take() {
            Some(buffer) => buffer,
            None => self.pool.take()?,
        };
        let received = self.call(&mut buffer);
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
            let start = buffer.settle(n, len);
            frames.extend(self.frame(n, &buffer, start, len));
        }
        let most = match largest > DENSE {
            true => (MOST_LARGE / largest).clamp(1, PACKETS),
            false => PACKETS,
        };
        self.limit = (2 * count).clamp(FEWEST, PACKETS).min(most);
        Ok(buffer)
    }

    fn call(&mut self, buffer: &mut Buffer) -> io::Result<usize> {
        let base = buffer.bytes_mut().as_mut_ptr();
        for n in 0..self.limit {
            let places = Buffer::places(n);
            for (part, (start, len)) in self.parts[n].iter_mut().zip(places) {
                part.iov_base = base.wrapping_add(start).cast();
                part.iov_len = len;
            }
            let header = &mut self.messages[n].msg_hdr;
            header.msg_name = std::ptr::from_mut(&mut self.names[n]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            header.msg_iov = self.parts[n].as_mut_ptr();
            header.msg_iovlen = 2;
            header.msg_control = self.controls[n].0.as_mut_ptr().cast();
            header.msg_controllen = size_of::<Control>() as _;
            header.msg_flags = 0;
        }
        // SAFETY: each message points to parts, a name and control room that live in `self`,
        // and the parts to memory of `buffer` that `places` keeps apart and inside; all of it
        // outlives the call, and nothing else refers to it meanwhile.
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

    /// What the kernel said of packet `n`, whose `len` bytes start at `start`. `None` where
    /// it said too little, which it never does.
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
            cut: self.messages[n].msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        })
    }

    fn controls(&self, n: usize) -> (Option<Auxdata>, Option<u64>) {
        let header = &self.messages[n].msg_hdr;
        let (mut auxdata, mut time) = (None, None);
        // SAFETY: the kernel filled `msg_control` up to `msg_controllen`, and these walk it
        // by that; the length of each entry is checked before it is read, and both kinds are
        // numbers for which any bytes are valid.
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

    /// Packets the kernel dropped since the last call because nothing more might wait.
    pub fn take_dropped(&self) -> io::Result<u64> {
        packet::take_dropped(&self.fd)
    }

    /// Takes nothing more in; what waits can still be received.
    pub fn shut(&self) -> io::Result<()> {
        filter::attach(&self.fd, &filter::nothing())
    }

    /// The socket, to be joined to a group of sockets.
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
