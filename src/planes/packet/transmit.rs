//! The sending end of the packet plane.

use std::io;
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::model::IfIndex;
use crate::pipeline::{OutPacket, PacketSink};
use crate::sys::poll::watch;
use crate::sys::transmit::{Transmitter, WritableSocket};

/// A packet socket that sends.
pub(super) struct SocketTransmit {
    socket: Transmitter,
    /// The registration with the runtime; exists only while the socket is full.
    waiting: Option<AsyncFd<WritableSocket>>,
}

impl SocketTransmit {
    /// Opens a socket on an interface. Its packets carry `mark`.
    pub(super) fn open(interface: IfIndex, mark: u32, qdisc_bypass: bool) -> io::Result<Self> {
        Ok(Self {
            socket: Transmitter::open(interface, mark, qdisc_bypass)?,
            waiting: None,
        })
    }
}

impl PacketSink for SocketTransmit {
    fn send(&mut self, packets: &mut dyn Iterator<Item = OutPacket<'_>>) -> io::Result<usize> {
        self.socket.send(packets)
    }

    fn accepts_gso(&mut self) -> bool {
        self.socket.accepts_gso()
    }

    fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let waiting = match self.waiting.take() {
            Some(waiting) => waiting,
            // A new registration reports whether the socket is writable now.
            None => watch(self.socket.writable(), Interest::WRITABLE)?,
        };
        let waiting = self.waiting.insert(waiting);
        ready!(waiting.poll_write_ready(cx))?.retain_ready();
        self.waiting = None;
        Poll::Ready(Ok(()))
    }
}
