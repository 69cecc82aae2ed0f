//! Source filters of a socket, set in one step (RFC 3678 section 5.2).

use std::io;
use std::mem::size_of;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use libc::c_void;

use crate::model::{Group, IfIndex, Source};

/// Sources that [`exclude`] can name at all; the kernel's own limits are lower by default.
pub const MOST_EXCLUDED: usize = 1024;

/// Of `group` on interface `index`, which `socket` has joined for any source, everything but
/// `sources` is wanted from now on, in one step (RFC 3678 section 5.2.1).
///
/// # Errors
/// `ENOBUFS` where that are more sources than the kernel carries (`net.ipv4.igmp_max_msf`,
/// `net.ipv6.mld_max_msf`), `EINVAL` where the group is not joined.
pub fn exclude<'a>(
    socket: &impl AsFd,
    index: IfIndex,
    group: Group,
    sources: impl ExactSizeIterator<Item = &'a Source>,
) -> io::Result<()> {
    if sources.len() > MOST_EXCLUDED {
        return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
    }
    // `struct group_filter` of linux/in.h, byte by byte: addresses stand at multiples of eight.
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
    // SAFETY: `filter` lives through the call, which reads as many bytes as it is told, and
    // from any alignment.
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
        // A port stands before the address, and in IPv6 the flow label too.
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
