//! Resource limits of the process: open files and locked memory.
//!
//! Strangers can make this process open descriptors: by joins, and by interfaces that appear. The
//! last eighth, at most 64, is left to the control socket, to HTTP and to files. Memberships of the
//! kernel leave more free, half of the limit and at most 256, so that the sockets for packets have
//! room: everything works without these memberships. The kernel always hands out the lowest free
//! number, so a new descriptor in the reserve means that all below it are in use.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::LazyLock;

use super::kernel_release;

/// What a descriptor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DescriptorUse {
    /// Capture or send packets.
    Packets,
    /// Hold memberships in the kernel.
    KernelMemberships,
}

/// The limit at the first use.
static LIMIT: LazyLock<u64> =
    LazyLock::new(|| open_file_limit().map_or(u64::MAX, |limit| limit.rlim_cur));

/// Returns the first descriptor that is reserved for others.
fn first_reserved(limit: u64, usage: DescriptorUse) -> RawFd {
    let reserve = match usage {
        DescriptorUse::Packets => (limit / 8).min(64),
        DescriptorUse::KernelMemberships => (limit / 2).min(256),
    };
    RawFd::try_from(limit - reserve).unwrap_or(RawFd::MAX)
}

/// Returns the number of descriptors that the process may use.
pub fn max_open_files() -> usize {
    let limit = open_file_limit().map_or(u64::MAX, |limit| limit.rlim_cur);
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// Passes on a new descriptor that a stranger may have caused.
///
/// # Errors
/// `EMFILE` if it is in the reserve. The descriptor is closed.
pub fn outside_reserve<T: AsRawFd>(descriptor: T, usage: DescriptorUse) -> io::Result<T> {
    match descriptor.as_raw_fd() < first_reserved(*LIMIT, usage) {
        true => Ok(descriptor),
        false => Err(io::Error::from_raw_os_error(libc::EMFILE)),
    }
}

fn open_file_limit() -> Option<libc::rlimit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` outlives the call, which writes one `rlimit` to it.
    let done = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    (done == 0).then_some(limit)
}

/// Raises the soft limit of open files to the hard limit; ignores a failure. Must be called before
/// the first descriptor is checked by [`outside_reserve`].
///
/// Each capture, each egress and each membership socket uses a descriptor. The usual soft limit of
/// 1,024 exists for programs that use `select(2)`.
pub fn raise_open_file_limit() {
    if let Some(mut limit) = open_file_limit() {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: `limit` outlives the call, which reads one `rlimit` from it.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
    }
}

/// The first release of Linux that does not count BPF tables as locked memory of the process.
const UNCOUNTED_TABLES: (u32, u32) = (5, 11);

/// Raises the limit of locked memory so that BPF tables of this size can be created, on kernels
/// that count them.
///
/// # Errors
/// The limit, if the tables exceed it and it cannot be raised.
pub(super) fn permit_locked_tables(bytes: u64) -> Result<(), u64> {
    let version = kernel_release::version(&kernel_release::release());
    if version.is_none_or(|version| version >= UNCOUNTED_TABLES) {
        return Ok(());
    }
    raise_locked_memory_limit(bytes)
}

fn raise_locked_memory_limit(bytes: u64) -> Result<(), u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` outlives the call, which writes one `rlimit` to it.
    if unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) } != 0 || limit.rlim_cur >= bytes
    {
        return Ok(());
    }
    // The limit is for all processes of the user. Only CAP_SYS_RESOURCE may exceed the hard limit.
    let hard = limit.rlim_max;
    for maximum in [libc::RLIM_INFINITY, hard] {
        (limit.rlim_cur, limit.rlim_max) = (maximum, maximum);
        // SAFETY: `limit` outlives the call, which reads one `rlimit` from it.
        let is_set = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) } == 0;
        if is_set && maximum >= bytes {
            return Ok(());
        }
    }
    Err(hard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_of_locked_memory_is_raised_or_named() {
        let limit = || {
            let mut limit = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            // SAFETY: `limit` outlives the call, which writes one `rlimit` to it.
            unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
            limit
        };
        let before = limit();
        let wanted = before.rlim_cur.saturating_add(4096);
        match raise_locked_memory_limit(wanted) {
            Ok(()) => assert!(limit().rlim_cur >= wanted),
            Err(hard) => assert!(hard < wanted && hard == before.rlim_max),
        }
    }

    #[test]
    fn part_of_the_limit_is_reserved() {
        let packets = |limit| first_reserved(limit, DescriptorUse::Packets);
        assert_eq!([64, 1024, 1 << 20].map(packets), [56, 960, (1 << 20) - 64]);
        assert_eq!(packets(u64::MAX), RawFd::MAX);
        let memberships = |limit| first_reserved(limit, DescriptorUse::KernelMemberships);
        assert_eq!([64, 1024].map(memberships), [32, 768]);
    }
}
