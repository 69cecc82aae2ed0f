//! The interfaces of this network namespace, asked for once.

use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::model::{IfIndex, IfName};

/// An interface as it was at the time of asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceAddresses {
    /// Its name.
    pub name: IfName,
    /// Its index.
    pub index: IfIndex,
    /// Whether it is set up (`IFF_UP`).
    pub up: bool,
    /// Whether it has a carrier (`IFF_RUNNING`).
    pub running: bool,
    /// Its addresses of both families.
    pub addrs: Vec<IpAddr>,
}

/// All interfaces, in the kernel's order.
pub fn interfaces() -> io::Result<Vec<InterfaceAddresses>> {
    let mut list = std::ptr::null_mut();
    // SAFETY: `list` is a valid place for the pointer the call stores.
    if unsafe { libc::getifaddrs(&mut list) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found: Vec<InterfaceAddresses> = Vec::new();
    let mut next = list;
    while !next.is_null() {
        // SAFETY: `next` is an element of the list, which is freed only below.
        let entry = unsafe { &*next };
        next = entry.ifa_next;
        // SAFETY: the kernel's names end in NUL and live as long as the list.
        let name = unsafe { CStr::from_ptr(entry.ifa_name) };
        let flag = |f: libc::c_int| entry.ifa_flags & f as libc::c_uint != 0;
        // SAFETY: `name` ends in NUL.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        // Gone since the list was made.
        let Some(index) = IfIndex::new(index) else {
            continue;
        };
        let at = match found.iter().position(|i| i.index == index) {
            Some(at) => at,
            None => {
                // The first entry of an interface bears its name; later ones may bear the label
                // of an address, such as `eth0:1`.
                let Some(name) = name.to_str().ok().and_then(|n| n.parse::<IfName>().ok()) else {
                    continue;
                };
                found.push(InterfaceAddresses {
                    name,
                    index,
                    up: flag(libc::IFF_UP),
                    running: flag(libc::IFF_RUNNING),
                    addrs: Vec::new(),
                });
                found.len() - 1
            }
        };
        // SAFETY: `ifa_addr` is null or points at an address of the list.
        found[at].addrs.extend(unsafe { address(entry.ifa_addr) });
    }
    // SAFETY: `list` came from `getifaddrs` and nothing borrowed from it is left.
    unsafe { libc::freeifaddrs(list) };
    Ok(found)
}

/// The IP address at `addr`.
///
/// # Safety
/// `addr` is null or points at a socket address as large as its family says.
unsafe fn address(addr: *const libc::sockaddr) -> Option<IpAddr> {
    if addr.is_null() {
        return None;
    }
    // SAFETY: the caller vouches for the pointer, and the family for the type behind it.
    unsafe {
        match libc::c_int::from((*addr).sa_family) {
            libc::AF_INET => {
                let v4 = addr.cast::<libc::sockaddr_in>().read_unaligned();
                Some(Ipv4Addr::from_bits(u32::from_be(v4.sin_addr.s_addr)).into())
            }
            libc::AF_INET6 => {
                let v6 = addr.cast::<libc::sockaddr_in6>().read_unaligned();
                Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_found() {
        let all = interfaces().unwrap();
        let lo = all.iter().find(|i| i.name.as_str() == "lo").unwrap();
        assert_eq!(lo.index.get(), 1);
    }
}
