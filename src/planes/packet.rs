//! The packet plane: `AF_PACKET` rings in, `sendmmsg` out. Works on every link.

use std::io;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};

use super::{Batch, Capture, Packet, Plane, Transmit};
use crate::model::IfIndex;
use crate::sys::poll::watch;
use crate::sys::ring::{Frame, Ring, RingSize};
use crate::sys::transmit::Transmitter;

/// Options of the plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketPlane {
    /// What everything this instance sends is marked with; not zero.
    pub mark: u32,
    /// Skip the device queue: faster, and invisible to tcpdump.
    pub qdisc_bypass: bool,
    /// Size of the receive ring of each interface.
    pub ring: RingSize,
}

impl Plane for PacketPlane {
    fn name(&self) -> &'static str {
        "packet"
    }

    fn capture(&self, interface: IfIndex) -> io::Result<Box<dyn Capture>> {
        let ring = Ring::open(interface, self.mark, self.ring)?;
        let ring = watch(ring, Interest::READABLE)?;
        Ok(Box::new(RingCapture {
            ring,
            frames: Vec::new(),
        }))
    }

    fn transmit(&self, interface: IfIndex) -> io::Result<Box<dyn Transmit>> {
        let socket = Transmitter::open(interface, self.mark, self.qdisc_bypass)?;
        let socket = watch(socket, Interest::WRITABLE)?;
        Ok(Box::new(SocketTransmit {
            socket,
            waiting: false,
        }))
    }
}

struct RingCapture {
    ring: AsyncFd<Ring>,
    frames: Vec<Frame>,
}

impl Capture for RingCapture {
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Batch>> {
        loop {
            if let Some(block) = self.ring.get_mut().next_block() {
                self.frames.clear();
                block.frames(&mut self.frames);
                let packets = self.frames.iter().map(Packet::from).collect();
                return Poll::Ready(Ok(Batch::from_block(block, packets)));
            }
            let mut guard = ready!(self.ring.poll_read_ready_mut(cx))?;
            // A link that goes down leaves an error on the socket and the socket readable;
            // it goes on when the link comes up again, so reading the error is enough. A
            // link that is gone is reported by netlink, not here.
            guard.get_inner().take_error()?;
            guard.clear_ready_matching(Ready::READABLE | Ready::ERROR | Ready::READ_CLOSED);
            // A block handed over before this was cleared rings no second time: look again.
        }
    }

    fn take_dropped(&mut self) -> u64 {
        self.ring.get_ref().take_dropped().unwrap_or_default()
    }
}

impl From<&Frame> for Packet {
    fn from(f: &Frame) -> Self {
        Self {
            start: f.start,
            len: f.len,
            received_ns: f.received_ns,
            ethertype: f.ethertype,
            vlan: f.vlan,
            offload: f.offload,
            cut: f.cut,
        }
    }
}

struct SocketTransmit {
    socket: AsyncFd<Transmitter>,
    /// Asked for readiness and not told of it yet.
    waiting: bool,
}

impl Transmit for SocketTransmit {
    fn send(&mut self, packets: &mut dyn Iterator<Item = &[u8]>) -> io::Result<usize> {
        self.socket.get_mut().send(packets)
    }

    fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.waiting {
            // First asked after the socket was full: what is known of it is stale. Forgetting
            // again at the wake-up would forget the news and wait for ever.
            if let Poll::Ready(guard) = self.socket.poll_write_ready_mut(cx) {
                guard?.clear_ready();
            }
            self.waiting = true;
        }
        ready!(self.socket.poll_write_ready_mut(cx))?.retain_ready();
        self.waiting = false;
        Poll::Ready(Ok(()))
    }
}
