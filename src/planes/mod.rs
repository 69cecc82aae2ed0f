//! How packets come in and go out. A plane captures in batches and transmits in batches;
//! what happens in between is the same for all of them.

pub mod batch;
pub mod capture;
pub mod egress;
pub mod load;
pub mod messages;
pub mod packet;
pub mod rate;
pub mod sim;
pub mod switch;
pub mod tally;
mod translated;

use std::io;
use std::task::{Context, Poll};

use crate::model::IfIndex;

pub use crate::sys::packet::OutPacket;
pub use batch::{Batch, Packet};
pub use egress::{EgressQueue, Progress};
pub use load::{Load, Slot};
pub use messages::Messages;
pub use switch::Switch;
pub use tally::Tally;

/// A way of moving packets.
pub trait Plane: Send + Sync + 'static {
    /// The `plane` label of metrics.
    fn name(&self) -> &'static str;

    /// Starts to capture on an interface. Called inside the runtime that will poll it.
    fn capture(&self, interface: IfIndex) -> io::Result<Box<dyn Capture>>;

    /// Opens an interface to send on. Called inside the runtime that will poll it.
    fn transmit(&self, interface: IfIndex) -> io::Result<Box<dyn Transmit>>;

    /// Packets of anyone that were dropped on this machine, since it started, because a core's
    /// queue of received packets was full: what a bridge makes of packets we sent among them.
    /// Where nothing tells, `None`.
    fn backlog_dropped(&self) -> Option<u64> {
        None
    }
}

/// Packets of one interface, coming in.
pub trait Capture {
    /// The next batch. An error ends the capture: the interface is gone.
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Batch>>;

    /// Packets lost since the last call because nobody took them out in time.
    fn take_dropped(&mut self) -> u64;

    /// Takes no new packets in. What came before is still handed out, all of it within some
    /// milliseconds.
    fn shut(&mut self);

    /// How packets are taken in at present, in a word.
    fn mode(&self) -> &'static str;
}

/// Packets of one interface, going out.
pub trait Transmit {
    /// Sends IP packets in order, returns how many were taken, at least one. An error speaks
    /// of the first packet: `WouldBlock` is no loss, it may be tried again after
    /// [`Transmit::poll_writable`].
    fn send(&mut self, packets: &mut dyn Iterator<Item = OutPacket<'_>>) -> io::Result<usize>;

    /// Whether packets that stand for several datagrams may be sent as they are. Asked whenever
    /// there are any: it may end with an error of [`Transmit::send`].
    fn accepts_gso(&mut self) -> bool {
        false
    }

    /// Ready when `send` may take more.
    fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}
