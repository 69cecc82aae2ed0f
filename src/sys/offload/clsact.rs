//! Filters of the clsact queueing discipline, which carry the program where tcx is missing (before
//! Linux 6.6).
//!
//! Unlike a tcx link that is not pinned, a filter outlives its process. The next process of the
//! instance takes over the filters of a dead process. Each process has a handle for its filters, and
//! a socket of this name that lives as long as the process. The handle says which instance it is of.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

use crate::model::IfIndex;
use crate::sys::netlink::{self, attribute};

/// The name of the program that forwards, in `forward.c` and in the filters.
pub(super) const PROGRAM: &str = "mcastor_forward";

/// The priority of the filters: before those of others.
pub const PRIORITY: u16 = 1;

/// Handles and parents of `linux/pkt_sched.h`: of the discipline, and of its filters.
const CLSACT: u32 = 0xffff_0000;
const CLSACT_PARENT: u32 = 0xffff_fff1;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

const RTM_DELQDISC: u16 = 37;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;

/// `struct tcmsg` of `linux/rtnetlink.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TrafficControl {
    index: u32,
    handle: u32,
    parent: u32,
    /// For a filter, the priority and the protocol.
    info: u32,
}

impl TrafficControl {
    const LEN: usize = 20;

    fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let words = [self.index, self.handle, self.parent, self.info];
        for (field, word) in bytes[4..].chunks_exact_mut(4).zip(words) {
            field.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
        Some(Self {
            index: word(4)?,
            handle: word(8)?,
            parent: word(12)?,
            info: word(16)?,
        })
    }
}

/// A number of 15 bits for an instance, which is known by the path of the socket on which it serves
/// commands. Filters belong to the network namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InstanceTag(u16);

impl InstanceTag {
    /// Returns the number of the instance with this socket. It must be the same for each version of
    /// this program.
    pub fn of(socket: &Path) -> Self {
        // FNV-1a.
        let hash = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        let bytes = socket.as_os_str().as_encoded_bytes();
        let hash = bytes.iter().fold(0x811c_9dc5, hash);
        Self(((hash ^ hash >> 16) & 0x7fff) as u16)
    }

    fn is_of(self, handle: u32) -> bool {
        handle >> 16 == u32::from(self.0)
    }
}

/// The handle of the filters of this process: the instance, and 16 random bits. It is released when the process ends.
#[derive(Debug)]
pub struct FilterHandle {
    handle: u32,
    _name: UnixDatagram,
}

impl FilterHandle {
    /// Chooses a handle that no process uses in this network namespace.
    pub fn claim(instance: InstanceTag) -> io::Result<Self> {
        loop {
            // RandomState has a random seed. Handles above i32::MAX are those of hash tables.
            let random = RandomState::new().build_hasher().finish() as u16;
            let handle = u32::from(instance.0) << 16 | u32::from(random.max(1));
            match bind(handle) {
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
                name => {
                    let _name = name?;
                    return Ok(Self { handle, _name });
                }
            }
        }
    }

    /// Takes the handle of a process that has died; `None` if it lives.
    pub fn take_over(handle: u32) -> Option<Self> {
        let _name = bind(handle).ok()?;
        Some(Self { handle, _name })
    }

    pub fn get(&self) -> u32 {
        self.handle
    }
}

/// Takes the name of a handle. The kernel has the names of each network namespace separately, as it
/// has the filters.
fn bind(handle: u32) -> io::Result<UnixDatagram> {
    let address = SocketAddr::from_abstract_name(format!("mcastor/clsact/{handle}"))?;
    UnixDatagram::bind_addr(&address)
}

/// Returns the handles of the filters on an interface that forward and whose process is dead: those
/// of one instance, or all.
///
/// # Errors
/// The kernel refuses.
pub(super) fn left_filters(index: IfIndex, of: Option<InstanceTag>) -> io::Result<Vec<u32>> {
    let left = |filter: Vec<u8>| {
        let handle = TrafficControl::from_bytes(&filter)?.handle;
        let attributes = filter.get(TrafficControl::LEN..)?;
        let options = attribute(attributes, TCA_OPTIONS)?;
        let name = attribute(options, TCA_BPF_NAME).unwrap_or_default();
        // Some kernels keep no name. The handle tells then.
        let is_named = match name.strip_suffix(b"\0") {
            None | Some(b"") => of.is_some(),
            Some(name) => name == PROGRAM.as_bytes(),
        };
        let is_ours = attribute(attributes, TCA_KIND) == Some(b"bpf\0")
            && is_named
            && of.is_none_or(|instance| instance.is_of(handle));
        let is_alive = || bind(handle).is_err_and(|e| e.kind() == io::ErrorKind::AddrInUse);
        (is_ours && !is_alive()).then_some(handle)
    };
    Ok(filters(index, INGRESS)?
        .into_iter()
        .filter_map(left)
        .collect())
}

/// Removes the filters of dead processes from all interfaces of the network namespace of this thread:
/// those of one instance, or all. Returns on how many interfaces there were some.
///
/// # Errors
/// The list of interfaces cannot be read, or the kernel refuses.
pub fn remove_left_filters(of: Option<InstanceTag>) -> io::Result<usize> {
    let mut interfaces = 0;
    for index in nix::net::if_::if_nameindex()?.iter() {
        let Some(index) = IfIndex::new(index.index()) else {
            continue;
        };
        let left = left_filters(index, of)?;
        interfaces += usize::from(!left.is_empty());
        for handle in left {
            remove_filter(index, handle)?;
        }
    }
    Ok(interfaces)
}

/// Removes a filter. Then removes the queueing discipline, unless it has other filters.
pub fn remove_filter(index: IfIndex, handle: u32) -> io::Result<()> {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    let filter = TrafficControl {
        index: index.get(),
        handle,
        parent: INGRESS,
        info: u32::from(PRIORITY) << 16 | u32::from(protocol),
    };
    netlink::request(RTM_DELTFILTER, 0, &filter.to_bytes())?;
    remove_if_unused(index)
}

/// Removes the clsact queueing discipline of an interface, unless somebody has filters there.
pub fn remove_if_unused(index: IfIndex) -> io::Result<()> {
    if !filters(index, INGRESS)?.is_empty() || !filters(index, EGRESS)?.is_empty() {
        return Ok(());
    }
    let discipline = TrafficControl {
        index: index.get(),
        handle: CLSACT,
        parent: CLSACT_PARENT,
        info: 0,
    };
    netlink::request(RTM_DELQDISC, 0, &discipline.to_bytes()).map(drop)
}

/// Returns the filters on one side of an interface.
fn filters(index: IfIndex, parent: u32) -> io::Result<Vec<Vec<u8>>> {
    let request = TrafficControl {
        index: index.get(),
        handle: 0,
        parent,
        info: 0,
    };
    netlink::request(RTM_GETTFILTER, netlink::DUMP, &request.to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handle_of_a_dead_process_can_be_taken() {
        let instance = InstanceTag::of(Path::new("/run/mcastor/control.sock"));
        let handle = FilterHandle::claim(instance).unwrap();
        assert!(instance.is_of(handle.get()) && !InstanceTag(0).is_of(handle.get()));
        let taken = bind(handle.get()).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        let number = handle.get();
        drop(handle);
        bind(number).unwrap();
    }

    #[test]
    fn tc_message_has_the_layout_of_the_kernel() {
        let message = TrafficControl {
            index: 1,
            handle: 2,
            parent: 3,
            info: 4,
        };
        let bytes = message.to_bytes();
        assert_eq!(bytes[4..8], 1u32.to_ne_bytes());
        assert_eq!(bytes[16..], 4u32.to_ne_bytes());
        assert_eq!(TrafficControl::from_bytes(&bytes), Some(message));
    }
}
