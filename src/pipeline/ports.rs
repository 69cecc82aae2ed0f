//! The two ends of the pipeline: a source of received packets and a sink for packets to send.

use std::io;
use std::task::{Context, Poll};

use super::hand_over::HandOver;
use super::{Batch, CaptureHandle, CapturePosition};
use crate::sys::packet::OutPacket;

/// A source of packets that arrive on one interface.
pub trait PacketSource: Send {
    /// Returns the next batch. An error ends the capture: the interface is gone.
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Batch>>;

    /// Returns the number of packets that the kernel dropped since the last call because the
    /// capture did not read them in time. Drops may be returned one call late.
    fn take_dropped(&mut self) -> u64;

    /// Returns the number of packets since the last call that the kernel dropped because it could
    /// not describe their offload.
    fn take_unknown_offload(&mut self) -> u64 {
        0
    }

    /// Returns the hand-over of flows to the kernel; `None` if the plane forwards nothing by itself
    /// on this interface.
    fn hand_over(&mut self) -> Option<&mut dyn HandOver> {
        None
    }

    /// Stops the capture of new packets. Packets that arrived earlier are still returned by
    /// [`PacketSource::poll_batch`], all of them within some milliseconds.
    fn stop_capture(&mut self);

    /// Returns the name of the present capture mode, for `mcastor show`.
    fn mode(&self) -> &'static str;

    /// Returns whether the capture mode is changing. Packets may wait meanwhile, although
    /// [`PacketSource::poll_batch`] returns none.
    fn is_changing_mode(&self) -> bool {
        false
    }

    /// Returns the open sockets, with which another process can continue the capture. The capture
    /// mode does not change from then on. `None` while it is changing: poll, and call again.
    ///
    /// # Errors
    /// The plane cannot pass captures on.
    fn share(&mut self) -> io::Result<Option<CaptureHandle>> {
        let reason = "its plane cannot pass captures to another process";
        Err(io::Error::new(io::ErrorKind::Unsupported, reason))
    }

    /// Ends [`PacketSource::share`]: this process continues alone.
    fn end_sharing(&mut self) {}

    /// Returns where another process continues the shared capture. `None` while this process still
    /// holds packets in the memory of the capture.
    fn position(&mut self) -> Option<CapturePosition> {
        None
    }

    /// Continues a capture of another process, which has stopped to read it at this position. No
    /// batch may be read before.
    ///
    /// # Errors
    /// The kernel refuses the filter of this process.
    fn continue_at(&mut self, position: CapturePosition) -> io::Result<()> {
        let _ = position;
        Ok(())
    }
}

/// A sink for packets that leave one interface.
pub trait PacketSink: Send {
    /// Sends IP packets in order and returns how many were sent, at least one. An error
    /// refers to the first packet. `WouldBlock` loses nothing: the caller tries again after
    /// [`PacketSink::poll_writable`].
    fn send(&mut self, packets: &mut dyn Iterator<Item = OutPacket<'_>>) -> io::Result<usize>;

    /// Returns whether GSO packets may be sent without segmentation. The result may change after an
    /// error of [`PacketSink::send`], so callers query it for each run of packets that contains GSO
    /// packets.
    fn accepts_gso(&mut self) -> bool {
        false
    }

    /// Resolves when [`PacketSink::send`] may accept more packets.
    fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}
