//! The two ends of the pipeline: a source of received packets and a sink for packets to send.

use std::io;
use std::task::{Context, Poll};

use super::Batch;
use super::hand_over::HandOver;
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
