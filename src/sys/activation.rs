//! Descriptors passed by the service manager (`sd_listen_fds(3)`): listening sockets, and what an
//! earlier process of the service stored.

use std::net::TcpListener;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use socket2::{Domain, Socket};

/// The first passed descriptor (`SD_LISTEN_FDS_START`).
const LISTEN_FDS_START: i32 = 3;

/// Limit of the passed descriptors.
const MAX_PASSED: i32 = 4096;

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

/// What the service manager passed to this process.
#[derive(Default)]
pub struct PassedDescriptors {
    /// The listener named `http`, or else the only one.
    pub http: Option<PassedListener>,
    /// The descriptors that an earlier process of this service stored, with their names.
    pub stored: Vec<(String, OwnedFd)>,
}

impl PassedDescriptors {
    /// Takes what was passed. The names of stored descriptors start with `stored_prefix`.
    ///
    /// Call once, before any other descriptor is opened.
    pub fn take(stored_prefix: &str) -> Self {
        let number = |name: &str| std::env::var(name).ok()?.parse::<i32>().ok();
        let mut passed = Self::default();
        if number("LISTEN_PID") != Some(std::process::id() as i32) {
            return passed;
        }
        let Some(count) = number("LISTEN_FDS").filter(|n| (1..=MAX_PASSED).contains(n)) else {
            return passed;
        };
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let names = names.split(':').chain(std::iter::repeat(""));
        let (stored, others): (Vec<_>, Vec<_>) = (0..count)
            .zip(names)
            .partition(|(_, name)| name.starts_with(stored_prefix));
        let own = |(position, name): (i32, &str)| {
            let descriptor = take_descriptor(LISTEN_FDS_START + position)?;
            Some((name.to_owned(), descriptor))
        };
        passed.stored = stored.into_iter().filter_map(own).collect();
        let http = others.iter().find(|(_, name)| *name == "http");
        let only = (others.len() == 1).then(|| &others[0]);
        let http = http.or(only).copied().and_then(own);
        // Any other descriptor stays open for its owner.
        passed.http = http.and_then(|(_, socket)| {
            let listener = PassedListener::new(socket);
            listener.map_err(|other| other.into_raw_fd()).ok()
        });
        passed
    }
}

/// Takes over a descriptor, if it is open.
fn take_descriptor(fd: i32) -> Option<OwnedFd> {
    // SAFETY: `F_SETFD` takes no pointer. The call fails if `fd` is not open.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return None;
    }
    // SAFETY: the fcntl above proved that `fd` is open. The socket activation protocol assigns it
    // to this process, and nothing else in the process owns it.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}
