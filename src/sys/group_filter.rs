//! The full-state source filter API of sockets (RFC 3678 section 5.2).

use std::io;
use std::mem::size_of;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use libc::c_void;

use crate::model::{Group, IfIndex, Source};

/// The largest source list that [`exclude`] accepts. The default limits of the kernel are lower.
pub const MAX_EXCLUDED: usize = 1024;

/// Sets the filter of `group` on interface `index` to EXCLUDE `sources` (RFC 3678 section 5.2.1).
/// `socket` must have joined the group for any source. The new filter replaces the old one
/// atomically.
///
/// # Errors
/// `ENOBUFS` if the kernel does not accept that many sources (`net.ipv4.igmp_max_msf`,
/// `net.ipv6.mld_max_msf`), `EINVAL` if the group is not joined.
pub fn exclude<'a>(
    socket: &impl AsFd,
    index: IfIndex,
    group: Group,
    sources: impl ExactSizeIterator<Item = &'a Source>,
) -> io::Result<()> {
    if sources.len() > MAX_EXCLUDED {
        return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
    }
    // The layout of `struct group_filter` (linux/in.h). Addresses are aligned to 8 bytes.
    let mut filter = Vec::with_capacity(144 + 128 * sources.len());
    filter.extend_from_slice(&index.get().to_ne_bytes());
    filter.extend_from_slice(&[0; 4]);
    push_address(&mut filter, group.addr());
    filter.extend_from_slice(&(libc::MCAST_EXCLUDE as u32).to_ne_bytes());
    filter.extend_from_slice(&(sources.len() as u32).to_ne_bytes());
    for source in sources {
        push_address(&mut filter, source.addr());
    }
    let level = match group.addr() {
        IpAddr::V4(_) => libc::IPPROTO_IP,
        IpAddr::V6(_) => libc::IPPROTO_IPV6,
    };
    // SAFETY: `filter` outlives the call and is `filter.len()` bytes long. The kernel copies
    // exactly that many bytes and requires no alignment.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            libc::MCAST_MSFILTER,
            filter.as_ptr().cast::<c_void>(),
            filter.len() as libc::socklen_t,
        )
    };
    match rc {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Appends an address as the 128 bytes of a `sockaddr_storage`.
fn push_address(out: &mut Vec<u8>, addr: IpAddr) {
    let end = out.len() + size_of::<libc::sockaddr_storage>();
    let (family, before) = match addr {
        // The port precedes the address; in IPv6 the flow label does, too.
        IpAddr::V4(_) => (libc::AF_INET, 2),
        IpAddr::V6(_) => (libc::AF_INET6, 6),
    };
    out.extend_from_slice(&(family as libc::sa_family_t).to_ne_bytes());
    out.extend(std::iter::repeat_n(0, before));
    match addr {
        IpAddr::V4(addr) => out.extend_from_slice(&addr.octets()),
        IpAddr::V6(addr) => out.extend_from_slice(&addr.octets()),
    }
    out.resize(end, 0);
}
