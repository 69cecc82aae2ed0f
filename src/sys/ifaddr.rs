//! A one-time query of the interfaces of the current network namespace (`getifaddrs(3)`).

use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::model::{IfIndex, IfName};

/// An interface and its addresses at the time of the query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceAddresses {
    /// Interface name.
    pub name: IfName,
    /// Interface index.
    pub index: IfIndex,
    /// Whether the interface is administratively up (`IFF_UP`).
    pub up: bool,
    /// Whether the interface has a carrier (`IFF_RUNNING`).
    pub running: bool,
    /// Its IPv4 and IPv6 addresses.
    pub addrs: Vec<IpAddr>,
}

/// Returns all interfaces in the order of the kernel.
pub fn interfaces() -> io::Result<Vec<InterfaceAddresses>> {
    let mut list = std::ptr::null_mut();
    // SAFETY: `list` is a valid pointer variable for the call to write to.
    if unsafe { libc::getifaddrs(&mut list) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found: Vec<InterfaceAddresses> = Vec::new();
    let mut next = list;
    while !next.is_null() {
        // SAFETY: `next` is an element of the list, which is freed only below.
        let entry = unsafe { &*next };
        next = entry.ifa_next;
        // SAFETY: `ifa_name` is a NUL-terminated string that lives until `freeifaddrs`.
        let name = unsafe { CStr::from_ptr(entry.ifa_name) };
        let flag = |f: libc::c_int| entry.ifa_flags & f as libc::c_uint != 0;
        // SAFETY: `name` is a `CStr`, hence NUL-terminated.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        // Index 0: the interface was removed after the list was created.
        let Some(index) = IfIndex::new(index) else {
            continue;
        };
        let at = match found.iter().position(|i| i.index == index) {
            Some(at) => at,
            None => {
                // The first entry of an interface holds its name. Later entries may hold the label
                // of an address instead, such as `eth0:1`.
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
        // SAFETY: `ifa_addr` is null or points to a socket address of the list.
        found[at].addrs.extend(unsafe { address(entry.ifa_addr) });
    }
    // SAFETY: `list` comes from `getifaddrs`, and no reference into it remains.
    unsafe { libc::freeifaddrs(list) };
    Ok(found)
}

/// Returns the IP address at `addr`, or `None` for other address families.
///
/// # Safety
/// `addr` must be null or point to a socket address of the size that its family implies.
unsafe fn address(addr: *const libc::sockaddr) -> Option<IpAddr> {
    if addr.is_null() {
        return None;
    }
    // SAFETY: the caller guarantees a valid pointer, and the family determines the struct type.
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
    fn loopback_interface_is_found() {
        let all = interfaces().unwrap();
        let lo = all.iter().find(|i| i.name.as_str() == "lo").unwrap();
        assert_eq!(lo.index.get(), 1);
    }
}
