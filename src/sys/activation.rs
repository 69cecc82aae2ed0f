//! Sockets handed over by whoever started us (`sd_listen_fds(3)`).

use std::net::TcpListener;
use std::os::fd::FromRawFd;

const FIRST: i32 = 3;

/// The listening TCP socket handed over under the name `http`, or the only one handed over.
/// Call once, before any other descriptor is opened.
pub fn http_listener() -> Option<TcpListener> {
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
    let fd = FIRST + position;
    // SAFETY: fcntl takes no pointers here; it tells whether the descriptor is open.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return None;
    }
    // SAFETY: the protocol says that this descriptor is open and was made for us, and nobody
    // else in this process knows of it.
    let listener = unsafe { TcpListener::from_raw_fd(fd) };
    // Something else than a TCP socket has no such address; leave it alone then.
    listener.local_addr().is_ok().then_some(listener)
}
