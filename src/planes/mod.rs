//! Planes: ways to receive and send packets. Each plane implements [`Plane`] and hands batches to
//! the [pipeline](crate::pipeline), which is the same for all of them.

pub mod packet;
pub mod sim;

use std::io;

use crate::model::IfIndex;
use crate::pipeline::{PacketSink, PacketSource};

/// A way to receive and send packets.
pub trait Plane: Send + Sync + 'static {
    /// Returns the `plane` label of metrics.
    fn name(&self) -> &'static str;

    /// Starts to capture on an interface. Called inside the runtime that will poll it.
    fn capture(&self, interface: IfIndex) -> io::Result<Box<dyn PacketSource>>;

    /// Opens an interface to send on. Called inside the runtime that will poll it.
    fn transmit(&self, interface: IfIndex) -> io::Result<Box<dyn PacketSink>>;

    /// Returns the number of packets that this machine dropped since it started because the
    /// receive queue of a core was full (`softnet_stat`). The number covers all programs; copies
    /// that a bridge makes of our packets are among them. `None` where no source has the number.
    fn backlog_dropped(&self) -> Option<u64> {
        None
    }
}
