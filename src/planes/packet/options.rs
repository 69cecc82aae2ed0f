//! Options of the packet plane.

use std::time::Duration;

use super::rate::{Mode, Thresholds};
use crate::sys::filter::CaptureFilter;
use crate::sys::ring::RingSize;

/// The packet plane, described by its options: the plane itself holds no state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketPlane {
    /// The `SO_MARK` of every packet that this instance sends; not zero. The capture filter drops
    /// outgoing packets with this mark, so that they are not captured again.
    pub mark: u32,
    /// Sends with `PACKET_QDISC_BYPASS`: faster, and invisible to tcpdump.
    pub qdisc_bypass: bool,
    /// Receive buffer of the socket of the latency mode, in bytes. The kernel counts its own
    /// bookkeeping too: about 800 bytes for a small packet.
    pub receive_buffer: u32,
    /// Size of the receive ring of the throughput mode.
    pub ring: RingSize,
    /// How the capture mode is chosen.
    pub modes: Modes,
    /// How long the latency mode polls for the next packet before it sleeps, while the next
    /// packet is expected soon. Zero: never.
    pub busy_poll: Duration,
}

/// How the capture mode is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Modes {
    /// By the packet rate.
    Adaptive(Thresholds),
    /// Always this mode. For tests and measurements.
    Fixed(Mode),
}

impl PacketPlane {
    /// Its name.
    pub const NAME: &'static str = "packet";

    /// Returns the plane with the default options and this mark.
    pub fn new(mark: u32) -> Self {
        Self {
            mark,
            qdisc_bypass: false,
            receive_buffer: 16 << 20,
            ring: RingSize::default(),
            modes: Modes::Adaptive(Thresholds::default()),
            busy_poll: Duration::ZERO,
        }
    }

    /// Returns the filter of its captures.
    pub fn filter(&self) -> CaptureFilter {
        CaptureFilter::Multicast {
            own_mark: self.mark,
        }
    }
}
