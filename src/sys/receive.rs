//! Receives single packets with low latency: a plain packet socket, read with `recvmmsg`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::buffer::Buffer;
use super::fanout::FanoutMember;
use super::filter::CaptureFilter;
use super::message_batch::{KernelData, MessageBatch, now_ns};
use super::packet::{
    CaptureScope, Frame, bind, join_all_multicast, sender, set_option_int, set_scope, socket,
};
use super::{filter, packet};
use crate::model::IfIndex;
use crate::wire::offload::{Offload, VNET_HEADER_LEN};
use crate::wire::vlan::vlan_id;

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

// SAFETY: the struct consists of integers.
unsafe impl KernelData for Auxdata {}

/// A capture socket without a ring.
pub struct PacketReceiver {
    fd: Arc<OwnedFd>,
    batch: MessageBatch<libc::sockaddr_ll>,
}

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
        Self {
            fd: Arc::new(fd),
            batch: MessageBatch::new(),
        }
    }

    /// Receives the waiting packets, at most one buffer of them, and appends their frames in order
    /// of arrival. Does not block: returns `WouldBlock` if there are none.
    pub fn receive(&mut self, frames: &mut Vec<Frame>) -> io::Result<Buffer> {
        let (mut buffer, count) = self.batch.receive(self.fd.as_fd())?;
        for n in 0..count {
            let len = self.batch.len(n);
            let start = buffer.make_contiguous(n, len);
            frames.extend(self.frame(n, &buffer, start, len));
        }
        Ok(buffer)
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
        let address = self.batch.address(n);
        let tagged = auxdata.status & libc::TP_STATUS_VLAN_VALID != 0;
        Some(Frame {
            start: (start + net) as u32,
            len: len.saturating_sub(net) as u32,
            received_ns: received_ns.unwrap_or_else(now_ns),
            ethertype: u16::from_be(address.sll_protocol),
            vlan: tagged.then(|| vlan_id(auxdata.vlan_tci)),
            offload: Offload::from_vnet_header(vnet, link_len),
            sender: sender(address),
            outgoing: packet::is_outgoing(address),
            truncated: self.batch.is_truncated(n),
        })
    }

    fn controls(&self, n: usize) -> (Option<Auxdata>, Option<u64>) {
        let (mut auxdata, mut time) = (None, None);
        self.batch
            .for_each_control(n, |control| match control.kind() {
                (libc::SOL_PACKET, libc::PACKET_AUXDATA) => auxdata = control.data(),
                (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => time = control.time_ns(),
                _ => {}
            });
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

impl AsRawFd for PacketReceiver {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for PacketReceiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
