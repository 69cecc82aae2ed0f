//! The socket on which queries, reports and advertisements leave an interface.

use std::io;

use crate::actors::shared::RouterContext;
use crate::model::{InterfaceId, PlaneName};
use crate::pipeline::{OutPacket, PacketSink};

/// Sends IGMP, MLD and router discovery messages on one interface. Opens the socket for the first
/// message, and again after an error.
pub(super) struct MessageSender {
    index: InterfaceId,
    sink: Option<Box<dyn PacketSink>>,
}

impl MessageSender {
    /// Creates a sender without a socket.
    pub(super) fn new(index: InterfaceId) -> Self {
        Self { index, sink: None }
    }

    /// Sends IP packets in order, and returns how many were sent, at least one. `plane` is the
    /// plane that serves the interface.
    ///
    /// # Errors
    /// The socket cannot be opened, or the first packet cannot be sent. After `WouldBlock` the
    /// socket stays open: its buffer is full for a moment.
    pub(super) fn send<'a>(
        &mut self,
        plane: Option<PlaneName>,
        packets: impl Iterator<Item = &'a [u8]>,
        context: &RouterContext,
    ) -> io::Result<usize> {
        let sink = match &mut self.sink {
            Some(sink) => sink,
            none => {
                let opened = context.planes.serving(plane)?.transmit(self.index)?;
                none.insert(opened)
            }
        };
        let sent = sink.send(&mut packets.map(OutPacket::plain));
        if let Err(e) = &sent
            && e.kind() != io::ErrorKind::WouldBlock
        {
            self.sink = None;
        }
        sent
    }
}
