//! The messages between the two processes, as JSON. Fields can be added within a protocol version.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::learned::LearnedState;
use crate::amt::SavedRelay;
use crate::app::listeners::ListeningPlace;
use crate::metrics::catalog::CounterValue;
use crate::model::InterfaceId;
use crate::pipeline::{CaptureHandle, CapturePosition, RingHandle};
use crate::sys::fanout::FanoutGroupId;
use crate::sys::ring::RingSize;

/// Version of the messages, and of what the capture sockets deliver.
pub(super) const PROTOCOL: u32 = 1;

/// From the new process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum FromIncoming {
    /// The settings are valid.
    Hello { protocol: u32, version: String },
    /// It cannot take over, for this reason, and ends.
    Refused(String),
    /// It forwards as soon as it may.
    Ready,
    /// It reads the captures.
    Forwarding,
    /// It serves clients. This number of packets had waited for it.
    TookOver { waiting_packets: u64 },
}

/// From the running process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum FromOutgoing {
    /// What the new process continues.
    Offer(Box<Offer>),
    /// One capture.
    Capture(OfferedCapture),
    /// The relay of this tunnel interface.
    Relay(String, Box<SavedRelay>),
    /// A socket of the relay of this tunnel interface. Its descriptor comes with the message.
    RelaySocket(String),
    /// All captures are offered.
    Prepare,
    /// The new process may read the captures.
    Go(Box<Go>),
    /// All counters.
    Counters(Vec<CounterValue>),
}

/// What the new process continues. The descriptors of the sockets come with the message, in the
/// order of the fields.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Offer {
    pub(super) version: String,
    /// The mark of sent packets. Each process drops what it captures of the other one by it.
    pub(super) mark: u32,
    pub(super) control: ListeningPlace,
    pub(super) http: Option<ListeningPlace>,
    pub(super) learned: LearnedState,
}

/// A capture. The descriptors come with the message: the socket, then the ring.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct OfferedCapture {
    interface: u32,
    group: Option<u16>,
    ring: Option<OfferedRing>,
    is_ring_in_use: bool,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct OfferedRing {
    block: u32,
    blocks: u32,
    retire_ms: u32,
}

/// Where the new process reads on, and what hosts have reported until now.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Go {
    /// Interface, and the position of its capture.
    pub(super) positions: Vec<(u32, u32)>,
    pub(super) learned: LearnedState,
}

impl Go {
    pub(super) fn new(
        positions: Vec<(InterfaceId, CapturePosition)>,
        learned: LearnedState,
    ) -> Self {
        let positions = positions.into_iter();
        Self {
            positions: positions.map(|(index, at)| (index.get(), at.0)).collect(),
            learned,
        }
    }

    pub(super) fn positions(&self) -> impl Iterator<Item = (InterfaceId, CapturePosition)> {
        let positions = self.positions.iter();
        positions.filter_map(|(index, at)| Some((InterfaceId::new(*index)?, CapturePosition(*at))))
    }
}

impl OfferedCapture {
    pub(super) fn new(index: InterfaceId, handle: &CaptureHandle) -> Self {
        Self {
            interface: index.get(),
            group: handle.group.map(FanoutGroupId::number),
            ring: handle.ring.as_ref().map(|ring| OfferedRing {
                block: ring.size.block,
                blocks: ring.size.blocks,
                retire_ms: ring.size.retire_ms,
            }),
            is_ring_in_use: handle.is_ring_in_use,
        }
    }

    /// Returns the capture that these descriptors belong to; `None` if some are missing.
    pub(super) fn handle(self, descriptors: Vec<OwnedFd>) -> Option<(InterfaceId, CaptureHandle)> {
        let mut descriptors = descriptors.into_iter();
        let socket = descriptors.next()?;
        let ring = match self.ring {
            Some(ring) => Some(RingHandle {
                socket: descriptors.next()?,
                size: RingSize {
                    block: ring.block,
                    blocks: ring.blocks,
                    retire_ms: ring.retire_ms,
                },
            }),
            None => None,
        };
        let handle = CaptureHandle {
            socket,
            group: self.group.map(FanoutGroupId::from_number),
            ring,
            is_ring_in_use: self.is_ring_in_use,
        };
        Some((InterfaceId::new(self.interface)?, handle))
    }
}

/// Returns the descriptors of a capture, in the order of [`OfferedCapture::handle`].
pub(super) fn descriptors(handle: &CaptureHandle) -> Vec<BorrowedFd<'_>> {
    let ring = handle.ring.as_ref().map(|ring| ring.socket.as_fd());
    std::iter::once(handle.socket.as_fd()).chain(ring).collect()
}
