//! The sockets of discovery: one to receive and one to send for each link, and the reserved ports.

use std::io;
use std::pin::Pin;
use std::task::{Context as Task, Poll, ready};

use ahash::AHashMap;
use futures_util::Stream;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::discovery::askers::{AnswerPort, FIRST_PORT, PORTS, Ports};
use crate::discovery::relayed_message::OutgoingMessage;
use crate::forward::fragment::fragment;
use crate::model::IfIndex;
use crate::sys::buffer::Buffer;
use crate::sys::filter::CaptureFilter;
use crate::sys::link_sender::LinkSender;
use crate::sys::packet::{CaptureScope, Frame};
use crate::sys::poll::watch;
use crate::sys::port_reservation::PortReservation;
use crate::sys::receive::PacketReceiver;

/// Receive buffer in bytes.
const BUFFER_BYTES: u32 = 512 << 10;

/// Frames that were received at once.
pub(super) struct FrameBatch {
    pub buffer: Buffer,
    pub frames: Vec<Frame>,
}

/// The frames of a link.
pub(super) struct FrameStream(AsyncFd<PacketReceiver>);

impl Stream for FrameStream {
    type Item = io::Result<FrameBatch>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready_mut(task))?;
            let mut frames = Vec::new();
            match guard.get_inner_mut().receive(&mut frames) {
                Ok(buffer) => return Poll::Ready(Some(Ok(FrameBatch { buffer, frames }))),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Err(e) => return Poll::Ready(Some(Err(e))),
            }
        }
    }
}

/// The sockets of a link. Dropping them ends the stream.
pub(super) struct LinkSockets {
    sender: LinkSender,
    mtu: usize,
    /// The ports to which messages are received.
    pub ports: Vec<u16>,
    _receiving: DropGuard,
}

impl LinkSockets {
    /// Opens the sockets. Returns the stream of frames too, and the token that ends it.
    pub fn open(
        index: IfIndex,
        mtu: u32,
        mark: u32,
        ports: Vec<u16>,
    ) -> io::Result<(Self, FrameStream, CancellationToken)> {
        let filter = CaptureFilter::Datagrams {
            own_mark: mark,
            ports: ports.clone(),
            block: (FIRST_PORT, !(PORTS - 1)),
        };
        let receiver = PacketReceiver::open(index, &filter, BUFFER_BYTES, CaptureScope::All)?;
        let stream = FrameStream(watch(receiver, Interest::READABLE)?);
        let token = CancellationToken::new();
        let sockets = Self {
            sender: LinkSender::open(index, mark)?,
            mtu: mtu as usize,
            ports,
            _receiving: token.clone().drop_guard(),
        };
        Ok((sockets, stream, token))
    }

    /// Sends a packet, in fragments if it is larger than the MTU.
    ///
    /// # Errors
    /// The kernel refuses it, or it may not be fragmented.
    pub fn send(&self, message: &OutgoingMessage) -> io::Result<()> {
        let packet = &message.packet;
        if packet.len() <= self.mtu {
            return self.sender.send(packet, message.station);
        }
        let (mut bytes, mut ranges) = (Vec::new(), Vec::new());
        let fragmented = fragment(packet, self.mtu, &mut bytes, |range| ranges.push(range));
        fragmented.map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        for range in ranges {
            let part = bytes.get(range).unwrap_or_default();
            self.sender.send(part, message.station)?;
        }
        Ok(())
    }
}

/// The reserved ports.
#[derive(Default)]
pub(super) struct ReservedPorts(AHashMap<AnswerPort, PortReservation>);

impl ReservedPorts {
    /// Returns the reservation of a port.
    pub fn get(&self, port: &AnswerPort) -> Option<&PortReservation> {
        self.0.get(port)
    }
}

impl Ports for ReservedPorts {
    fn reserve(&mut self, port: AnswerPort) -> bool {
        let Some(index) = port.link.ifindex() else {
            return false;
        };
        match PortReservation::bind(port.address, port.port, index) {
            Ok(reservation) => {
                self.0.insert(port, reservation);
                true
            }
            Err(_) => false,
        }
    }

    fn release(&mut self, port: AnswerPort) {
        self.0.remove(&port);
    }
}
