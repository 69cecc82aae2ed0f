//! What a keeper does, whichever holds the sockets.

use std::io;
use std::os::fd::OwnedFd;

/// A holder of duplicates of sockets. Its methods may block.
pub(super) trait KeeperBackend: Send {
    /// Holds a socket under a number.
    fn hold(&mut self, number: u64, socket: OwnedFd) -> io::Result<()>;

    /// Closes the socket with a number.
    fn release(&mut self, number: u64) -> io::Result<()>;

    /// Closes all sockets.
    fn end(&mut self) -> io::Result<()>;

    /// Closes the sockets that earlier processes left.
    fn end_former(&mut self) -> io::Result<()>;
}
