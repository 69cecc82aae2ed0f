//! A kernel socket that joins a group with a source filter; the kernel reports the filter as a host
//! does.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use socket2::{Domain, SockAddr, Socket, Type};

use super::ns::Ns;

// Options of RFC 3678 section 5, with the numbers of Linux.
const JOIN_GROUP: i32 = 42;
const BLOCK_SOURCE: i32 = 43;
const UNBLOCK_SOURCE: i32 = 44;
const JOIN_SOURCE: i32 = 46;
const LEAVE_SOURCE: i32 = 47;

#[repr(C)]
struct GroupReq {
    interface: u32,
    group: libc::sockaddr_storage,
}

#[repr(C)]
struct GroupSourceReq {
    interface: u32,
    group: libc::sockaddr_storage,
    source: libc::sockaddr_storage,
}

/// A socket that is a member of one group on one interface for as long as it lives.
pub struct GroupMember {
    socket: Socket,
    interface: u32,
    group: IpAddr,
}

impl GroupMember {
    /// Creates the socket without joining the group.
    pub fn new(ns: &Ns, iface: &str, group: &str) -> Self {
        let group: IpAddr = group.parse().expect("an address");
        let domain = if group.is_ipv4() {
            Domain::IPV4
        } else {
            Domain::IPV6
        };
        Self {
            socket: ns.enter(|| Socket::new(domain, Type::DGRAM, None).expect("a socket")),
            interface: ns.index(iface),
            group,
        }
    }

    /// Creates a socket that joins the group for any source.
    pub fn any_source(ns: &Ns, iface: &str, group: &str) -> Self {
        let member = Self::new(ns, iface, group);
        let request = GroupReq {
            interface: member.interface,
            group: storage(member.group),
        };
        member.set(JOIN_GROUP, &request);
        member
    }

    /// Adds `source` to the included sources.
    pub fn join(self, source: &str) -> Self {
        self.with(JOIN_SOURCE, source);
        self
    }

    /// Removes `source` from the included sources.
    pub fn leave(&self, source: &str) {
        self.with(LEAVE_SOURCE, source);
    }

    /// Adds `source` to the excluded sources.
    pub fn block(&self, source: &str) {
        self.with(BLOCK_SOURCE, source);
    }

    /// Removes `source` from the excluded sources.
    pub fn unblock(&self, source: &str) {
        self.with(UNBLOCK_SOURCE, source);
    }

    fn with(&self, option: i32, source: &str) {
        let request = GroupSourceReq {
            interface: self.interface,
            group: storage(self.group),
            source: storage(source.parse().expect("an address")),
        };
        self.set(option, &request);
    }

    fn set<T>(&self, option: i32, request: &T) {
        let level = if self.group.is_ipv4() {
            libc::IPPROTO_IP
        } else {
            libc::IPPROTO_IPV6
        };
        // SAFETY: `request` is a struct of the length given and outlives the call.
        let rc = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                level,
                option,
                std::ptr::from_ref(request).cast(),
                size_of::<T>() as u32,
            )
        };
        assert_eq!(rc, 0, "option {option}: {}", io::Error::last_os_error());
    }
}

fn storage(address: IpAddr) -> libc::sockaddr_storage {
    let address = SockAddr::from(SocketAddr::new(address, 0));
    // SAFETY: all-zero is a valid sockaddr_storage, and the copied address is shorter.
    unsafe {
        let mut storage: libc::sockaddr_storage = std::mem::zeroed();
        std::ptr::copy_nonoverlapping(
            address.as_ptr().cast::<u8>(),
            (&raw mut storage).cast::<u8>(),
            address.len() as usize,
        );
        storage
    }
}
