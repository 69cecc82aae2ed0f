//! A capture that another process continues.

use std::os::fd::OwnedFd;

use crate::sys::fanout::FanoutGroupId;
use crate::sys::ring::RingSize;

/// The open sockets of a capture. The packets wait in the sockets, so the owner of a handle can
/// continue where the last reader stopped.
#[derive(Debug)]
pub struct CaptureHandle {
    /// The socket of the latency mode.
    pub socket: OwnedFd,
    /// The fanout group of both sockets; `None` if the capture mode never changes.
    pub group: Option<FanoutGroupId>,
    /// The socket of the throughput mode, if it is open.
    pub ring: Option<RingHandle>,
    /// Whether the kernel gives packets to the ring.
    pub is_ring_in_use: bool,
}

/// The open ring of a capture.
#[derive(Debug)]
pub struct RingHandle {
    /// The socket.
    pub socket: OwnedFd,
    /// The size of its ring.
    pub size: RingSize,
}

/// Where a capture was read last: the next block of its ring. Packets of the socket need no
/// position.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CapturePosition(pub u32);
