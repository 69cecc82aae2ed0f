//! The process of the keeper: it holds sockets, and does nothing else.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use caps::CapSet;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Uid;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use super::names::address;
use crate::sys::message_socket::MessageSocket;

/// The subcommand of this process.
pub const COMMAND: &str = "keep-memberships";

/// A message of the process that started this one.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum KeeperMessage {
    /// Hold the socket that comes with it under this number.
    Hold(u64),
    /// Close the socket with this number.
    Release(u64),
    /// End.
    End,
}

/// Holds the sockets that come through standard input. When that ends, holds them for `keep_for`,
/// or until another process of the same user, or root, connects to `name`.
///
/// # Errors
/// Standard input is no connection, or the kernel refuses to listen on `name`.
pub fn run(name: &str, keep_for: Duration) -> io::Result<()> {
    close_inherited()?;
    let owner = MessageSocket::from_stdin()?;
    nix::sys::prctl::set_name(c"mcastor-keeper")?;
    for set in [
        CapSet::Ambient,
        CapSet::Effective,
        CapSet::Inheritable,
        CapSet::Permitted,
    ] {
        caps::clear(None, set).map_err(io::Error::other)?;
    }
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    listener.bind(&address(name)?)?;
    listener.listen(8)?;
    listener.set_nonblocking(true)?;
    let mut sockets = HashMap::new();
    while let Some(keep) = serve(&owner, &listener, &mut sockets)? {
        if !keep {
            return Ok(());
        }
    }
    keep_orphaned(&listener, keep_for)
}

/// Waits for a message and handles it. Returns `None` if the owner has ended, and false if this
/// process has to end.
fn serve(
    owner: &MessageSocket,
    listener: &Socket,
    sockets: &mut HashMap<u64, OwnedFd>,
) -> io::Result<Option<bool>> {
    wait_for(&[owner.as_fd(), listener.as_fd()], PollTimeout::NONE)?;
    let message = match owner.receive(Instant::now()) {
        Err(e) if e.kind() == ErrorKind::TimedOut => {
            // The owner lives, so nobody else may end this process.
            let _ = listener.accept();
            return Ok(Some(true));
        }
        received => received?,
    };
    let Some((bytes, descriptors)) = message else {
        return Ok(None);
    };
    match serde_json::from_slice(&bytes)? {
        KeeperMessage::Hold(number) => {
            sockets.extend(descriptors.into_iter().map(|socket| (number, socket)));
        }
        KeeperMessage::Release(number) => drop(sockets.remove(&number)),
        KeeperMessage::End => return Ok(Some(false)),
    }
    Ok(Some(true))
}

/// Waits for the next process of the instance.
fn keep_orphaned(listener: &Socket, keep_for: Duration) -> io::Result<()> {
    let until = Instant::now() + keep_for;
    loop {
        let wait = until.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return Ok(());
        }
        // Rounded up, so that it does not wait in vain for the last millisecond.
        let wait = i32::try_from(wait.as_millis() + 1).unwrap_or(i32::MAX);
        let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
        wait_for(&[listener.as_fd()], wait)?;
        let Ok((mut peer, _)) = listener.accept() else {
            continue;
        };
        let user = getsockopt(&peer, PeerCredentials)?.uid();
        peer.set_nonblocking(true)?;
        // A process that has ended meanwhile holds no memberships. It may have waited from before
        // the end of the owner.
        let is_waiting = peer
            .read(&mut [0])
            .is_err_and(|e| e.kind() == ErrorKind::WouldBlock);
        if is_waiting && (user == 0 || user == Uid::effective().as_raw()) {
            let _ = peer.write(&[1]);
            return Ok(());
        }
    }
}

/// Waits until one of the descriptors is readable or closed, or the time is over.
fn wait_for(descriptors: &[BorrowedFd<'_>], timeout: PollTimeout) -> io::Result<()> {
    let polled = descriptors.iter();
    let mut polled: Vec<_> = polled
        .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
        .collect();
    match poll(&mut polled, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Closes all descriptors but the standard ones.
fn close_inherited() -> io::Result<()> {
    // Not every libc has a wrapper.
    // SAFETY: the call takes no pointer. This process has just started, and owns no descriptor from
    // this number on.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    match io::Error::last_os_error() {
        _ if closed == 0 => Ok(()),
        // Before Linux 5.9. Nothing of this program is inherited.
        e if e.kind() == ErrorKind::Unsupported => Ok(()),
        e => Err(e),
    }
}
