//! Network namespaces without a name, and the right to make them.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// A network namespace that lives as long as this value, a thread, a process or an interface's
/// peer keeps it: nothing to remove, whatever ends the program.
#[derive(Debug)]
pub struct NetNs(OwnedFd);

impl NetNs {
    /// Makes one. The calling thread stays where it is. Needs CAP_SYS_ADMIN.
    pub fn new() -> io::Result<Self> {
        let made = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    // SAFETY: moves this thread alone to a namespace of its own; no memory is
                    // involved.
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

    /// Moves the calling thread, and it alone, into the namespace.
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
    // SAFETY: `setns` changes the calling thread's namespace; no memory is involved.
    if unsafe { libc::setns(fd.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether the process holds CAP_SYS_ADMIN in its user namespace.
pub fn can_create_namespaces() -> bool {
    const CAP_SYS_ADMIN: u64 = 21;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|caps| caps >> CAP_SYS_ADMIN & 1 == 1)
}

/// Moves the process into a user namespace of its own, where it is root. Its network namespace
/// stays the one it was in. Fails with `EINVAL` where the process has more than one thread, and
/// with other errors where the system forbids it.
pub fn enter_user_namespace() -> io::Result<()> {
    // SAFETY: plain getters.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    // SAFETY: moves this process to a user namespace of its own; no memory is involved.
    if unsafe { libc::unshare(libc::CLONE_NEWUSER) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Without it an unprivileged process may not write a group map (user_namespaces(7)).
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}
