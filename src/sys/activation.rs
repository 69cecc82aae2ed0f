//! Socket activation: listening sockets passed by the service manager (`sd_listen_fds(3)`).

use std::net::TcpListener;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use socket2::{Domain, Socket};

/// The first passed descriptor (`SD_LISTEN_FDS_START`).
const LISTEN_FDS_START: i32 = 3;

/// A passed listening socket.
pub enum PassedListener {
    /// TCP.
    Tcp(TcpListener),
    /// A UNIX socket.
    Unix(UnixListener),
}

impl PassedListener {
    /// Returns the listener of a listening socket.
    ///
    /// # Errors
    /// Returns any other descriptor.
    pub fn new(socket: OwnedFd) -> Result<Self, OwnedFd> {
        let socket = Socket::from(socket);
        match socket.local_addr().map(|address| address.domain()) {
            Ok(Domain::IPV4 | Domain::IPV6) => Ok(Self::Tcp(socket.into())),
            Ok(Domain::UNIX) => Ok(Self::Unix(OwnedFd::from(socket).into())),
            _ => Err(socket.into()),
        }
    }
}

/// Returns the passed listener named `http`, or the only passed socket.
///
/// Call once, before any other descriptor is opened.
pub fn http_listener() -> Option<PassedListener> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<i32>().ok();
    if number("LISTEN_PID")? != std::process::id() as i32 {
        return None;
    }
    let count = number("LISTEN_FDS").filter(|n| (1..=64).contains(n))?;
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let position = names
        .split(':')
        .position(|n| n == "http")
        .or((count == 1).then_some(0))? as i32;
    if position >= count {
        return None;
    }
    let fd = LISTEN_FDS_START + position;
    // SAFETY: `F_SETFD` takes no pointer. The call fails if `fd` is not open.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return None;
    }
    // SAFETY: the fcntl above proved that `fd` is open. The socket activation protocol assigns it
    // to this process, and nothing else in the process owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // Any other descriptor stays open for its owner.
    PassedListener::new(socket)
        .map_err(|other| other.into_raw_fd())
        .ok()
}
