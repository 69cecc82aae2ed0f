//! Waiting for descriptors in the runtime.

use std::io;
use std::os::fd::AsRawFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::receive::PacketReceiver;
use super::ring::CaptureRing;
use super::transmit::WritableSocket;

/// A type that owns one descriptor for as long as it lives and always names that one.
///
/// # Safety
/// `as_raw_fd` must return the same open descriptor from construction to drop.
pub unsafe trait OwnsDescriptor: AsRawFd {}

// SAFETY: the descriptor is an OwnedFd (shared or not) that nothing replaces.
unsafe impl OwnsDescriptor for CaptureRing {}
// SAFETY: as above.
unsafe impl OwnsDescriptor for PacketReceiver {}
// SAFETY: as above.
unsafe impl OwnsDescriptor for WritableSocket {}

/// Registers `inner` with the runtime of the current thread.
pub fn watch<T: OwnsDescriptor>(inner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: `OwnsDescriptor` promises what is asked for.
    unsafe { AsyncFd::register_with_interest(inner, interest) }.map_err(Into::into)
}
