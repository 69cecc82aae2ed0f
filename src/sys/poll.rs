//! Registration of descriptors with the async runtime.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::datagram::{DatagramReceiver, DatagramSocket};
use super::receive::PacketReceiver;
use super::ring::CaptureRing;
use super::transmit::WritableSocket;

/// A type that owns one descriptor for its whole lifetime.
///
/// # Safety
/// `as_raw_fd` must return the same open descriptor from construction to drop.
pub unsafe trait OwnsDescriptor: AsRawFd {}

// SAFETY: each type holds an `OwnedFd` (possibly in an `Arc`) that it never replaces or closes
// before drop.
unsafe impl OwnsDescriptor for CaptureRing {}
// SAFETY: as for `CaptureRing`.
unsafe impl OwnsDescriptor for PacketReceiver {}
// SAFETY: as for `CaptureRing`.
unsafe impl OwnsDescriptor for WritableSocket {}

// SAFETY: as for `CaptureRing`.
unsafe impl OwnsDescriptor for DatagramReceiver {}
// SAFETY: as for `CaptureRing`.
unsafe impl OwnsDescriptor for Arc<DatagramSocket> {}

/// Registers `inner` with the runtime of the current thread.
pub fn watch<T: OwnsDescriptor>(inner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: `OwnsDescriptor` guarantees that the descriptor stays open and unchanged until drop.
    unsafe { AsyncFd::register_with_interest(inner, interest) }.map_err(Into::into)
}
