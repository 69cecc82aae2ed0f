//! The packet plane: `AF_PACKET` sockets in, `sendmmsg` out. Works on every link.

use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::capture::SocketCapture;
use super::rate::{Mode, Thresholds};
use super::{Capture, OutPacket, Plane, Transmit};
use crate::model::IfIndex;
use crate::sys::burst_limit::SoftnetStat;
use crate::sys::poll::watch;
use crate::sys::ring::RingSize;
use crate::sys::transmit::{Transmitter, WritableSocket};

/// Options of the plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketPlane {
    /// What everything this instance sends is marked with; not zero.
    pub mark: u32,
    /// Skip the device queue: faster, and invisible to tcpdump.
    pub qdisc_bypass: bool,
    /// Bytes that may wait in the kernel for an interface at low rates, the kernel's own
    /// bookkeeping included: about 800 for a small packet.
    pub room: u32,
    /// Size of the receive ring of an interface at high rates.
    pub ring: RingSize,
    /// When which of the two is used.
    pub modes: Modes,
    /// How long after a packet to look for the next one instead of sleeping, at low rates
    /// and where it is about to come; zero for never.
    pub busy_poll: Duration,
}

/// How the way of taking packets in is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Modes {
    /// By rate.
    Adaptive(Thresholds),
    /// Always this one. For tests and measurements.
    Fixed(Mode),
}

impl PacketPlane {
    /// The usual options; what is sent bears `mark`.
    pub fn new(mark: u32) -> Self {
        Self {
            mark,
            qdisc_bypass: false,
            room: 16 << 20,
            ring: RingSize::default(),
            modes: Modes::Adaptive(Thresholds::default()),
            busy_poll: Duration::ZERO,
        }
    }
}

impl Plane for PacketPlane {
    fn name(&self) -> &'static str {
        "packet"
    }

    fn capture(&self, interface: IfIndex) -> io::Result<Box<dyn Capture>> {
        Ok(Box::new(SocketCapture::open(*self, interface)?))
    }

    fn transmit(&self, interface: IfIndex) -> io::Result<Box<dyn Transmit>> {
        let socket = Transmitter::open(interface, self.mark, self.qdisc_bypass)?;
        Ok(Box::new(SocketTransmit {
            socket,
            waiting: None,
        }))
    }

    fn backlog_dropped(&self) -> Option<u64> {
        SoftnetStat::open()
            .and_then(|mut backlog| backlog.dropped())
            .ok()
    }
}

struct SocketTransmit {
    socket: Transmitter,
    /// Watched while the socket is full, and not longer.
    waiting: Option<AsyncFd<WritableSocket>>,
}

impl Transmit for SocketTransmit {
    fn send(&mut self, packets: &mut dyn Iterator<Item = OutPacket<'_>>) -> io::Result<usize> {
        self.socket.send(packets)
    }

    fn accepts_gso(&mut self) -> bool {
        self.socket.accepts_gso()
    }

    fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let waiting = match self.waiting.take() {
            Some(waiting) => waiting,
            // The kernel tells a new watcher how things stand.
            None => watch(self.socket.writable(), Interest::WRITABLE)?,
        };
        let waiting = self.waiting.insert(waiting);
        ready!(waiting.poll_write_ready(cx))?.retain_ready();
        self.waiting = None;
        Poll::Ready(Ok(()))
    }
}
