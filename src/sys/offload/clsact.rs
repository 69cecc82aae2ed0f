//! Filters of the clsact queueing discipline, which carry the program where tcx is missing (before
//! Linux 6.6).
//!
//! Unlike a tcx link, a filter outlives its process. The next process takes over the filters of a
//! dead process, if their tables are pinned ([`super::pins`]), and otherwise removes them. Each process has a random handle for its filters, and a socket of this name that lives
//! as long as the process.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::model::IfIndex;
use crate::sys::netlink::{self, attribute};

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
const TCA_BPF_TAG: u16 = 10;

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

/// The handle of the filters of this process. It is released when the process ends.
#[derive(Debug)]
pub struct FilterHandle {
    handle: u32,
    _name: UnixDatagram,
}

impl FilterHandle {
    /// Chooses a handle that no process uses in this network namespace.
    pub fn claim() -> io::Result<Self> {
        loop {
            // RandomState has a random seed. Handles above i32::MAX are those of hash tables.
            let random = RandomState::new().build_hasher().finish() as u32;
            let handle = (random & i32::MAX as u32).max(1);
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

/// Removes the filters on an interface that run the program with this tag and whose process is dead.
/// Returns whether there were any.
pub fn remove_filters_of_dead_processes(index: IfIndex, tag: u64) -> io::Result<bool> {
    let mut removed = false;
    for filter in filters(index, INGRESS)? {
        let Some(message) = TrafficControl::from_bytes(&filter) else {
            continue;
        };
        let attributes = filter.get(TrafficControl::LEN..).unwrap_or_default();
        let options = attribute(attributes, TCA_OPTIONS).unwrap_or_default();
        let is_ours = attribute(attributes, TCA_KIND) == Some(b"bpf\0")
            && attribute(options, TCA_BPF_TAG) == Some(&tag.to_be_bytes());
        let alive = || bind(message.handle).is_err_and(|e| e.kind() == io::ErrorKind::AddrInUse);
        if is_ours && !alive() {
            netlink::request(RTM_DELTFILTER, 0, &message.to_bytes())?;
            removed = true;
        }
    }
    Ok(removed)
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
        let handle = FilterHandle::claim().unwrap();
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
