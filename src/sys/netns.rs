//! Network namespaces, and the privileges to create them.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// A network namespace. The kernel removes an unnamed one when this value is dropped and no thread,
/// process, socket or other file descriptor refers to it, so nothing remains even if the program is
/// killed.
#[derive(Debug)]
pub struct NetNs(OwnedFd);

impl NetNs {
    /// Creates a namespace. The calling thread stays in its own. Needs CAP_SYS_ADMIN.
    pub fn new() -> io::Result<Self> {
        let made = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    // SAFETY: `unshare` takes no pointer. CLONE_NEWNET affects this thread only.
                    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                        return Err(io::Error::last_os_error());
                    }
                    File::open("/proc/thread-self/ns/net")
                })
                .join()
        });
        let file = made.map_err(|_| io::Error::other("the thread of a namespace panicked"))??;
        Ok(Self(file.into()))
    }

    /// Opens the namespace behind a file such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(File::open(path)?.into()))
    }

    /// Moves the calling thread, and no other, into the namespace.
    pub fn enter(&self) -> io::Result<()> {
        enter(self.0.as_fd())
    }

    /// Runs `work` on a thread inside the namespace and waits for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            scope
                .spawn(|| self.enter().map(|()| work()))
                .join()
                .map_err(|_| io::Error::other("a thread inside a namespace panicked"))?
        })
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Moves the calling thread into the network namespace behind `fd`.
fn enter(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: `setns` takes no pointer, and `fd` is open while it is borrowed.
    if unsafe { libc::setns(fd.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Returns true if the process holds CAP_SYS_ADMIN in its user namespace.
pub fn can_create_namespaces() -> bool {
    const CAP_SYS_ADMIN: u64 = 21;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|caps| caps >> CAP_SYS_ADMIN & 1 == 1)
}

/// Moves the process into a new user namespace, in which it is root. The network namespace does not
/// change.
///
/// # Errors
/// `EINVAL` if the process has more than one thread; other errors if the system forbids user
/// namespaces.
pub fn enter_user_namespace() -> io::Result<()> {
    // SAFETY: `geteuid` and `getegid` take no arguments and cannot fail.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    // SAFETY: `unshare` takes no pointer.
    if unsafe { libc::unshare(libc::CLONE_NEWUSER) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // An unprivileged process must deny setgroups before it writes a group map
    // (user_namespaces(7)).
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}
