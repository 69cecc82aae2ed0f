//! Why a test stream cannot be sent or received, and what mends it.

use std::io;

use crate::model::{Group, IfName};

/// Names the cause, then the mend.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// No such interface in this network namespace.
    #[error("there is no interface `{name}`; this network namespace has: {have}")]
    NoInterface {
        /// The name asked for.
        name: IfName,
        /// The names there are, separated by commas.
        have: String,
    },
    /// The interface is not up.
    #[error("interface {0} is down; `ip link set {0} up` mends it")]
    Down(IfName),
    /// No address to send from.
    #[error(
        "interface {interface} has no {family} address to send from; add one with \
         `ip addr add ADDRESS/LENGTH dev {interface}`"
    )]
    NoAddress {
        /// The interface.
        interface: IfName,
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// The address asked for is not one of the interface.
    #[error("{source_addr} is not an address of {interface}, which has: {have}")]
    NotItsAddress {
        /// The interface.
        interface: IfName,
        /// The address asked for.
        source_addr: std::net::IpAddr,
        /// The addresses there are, separated by commas.
        have: String,
    },
    /// Arguments that do not fit together.
    #[error("{0}")]
    Usage(String),
    /// The kernel refused.
    #[error("cannot {what} ({group} on {interface}): {error}{}", mend(.error))]
    Socket {
        /// What was tried.
        what: &'static str,
        /// The interface.
        interface: IfName,
        /// The group.
        group: Group,
        /// The kernel's answer.
        error: io::Error,
    },
    /// A call without a group or an interface failed.
    #[error("cannot {what}: {error}{}", mend(.error))]
    System {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        error: io::Error,
    },
}

/// What usually mends `error`, as an addition to its text; empty where nothing is usual.
fn mend(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "; a firewall or a security policy forbids it: see `nft list ruleset` on this host"
        }
        Some(libc::ENOBUFS) => {
            "; too many groups for one socket or no memory: see the sysctls \
             net.ipv4.igmp_max_memberships and net.core.optmem_max"
        }
        Some(libc::EADDRINUSE) => {
            "; another program holds the port without SO_REUSEADDR: choose another with --port"
        }
        Some(libc::EADDRNOTAVAIL) => {
            "; the interface has no usable address of this IP version (an IPv6 address is not \
             usable until duplicate address detection ends)"
        }
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH) => {
            "; the interface is down, has lost its address, or has IPv6 disabled"
        }
        Some(libc::EMSGSIZE) => "; the packet is too large: choose a smaller --size",
        Some(libc::EMFILE) => {
            "; each group takes one socket: raise the limit with `ulimit -n` or lower --flows"
        }
        Some(libc::ENODEV) => "; the interface has vanished",
        Some(libc::EIO) => "; the interface cannot segment: leave --gso out",
        _ => "",
    }
}
