//! Errors of sending and receiving test streams, each with its usual remedy.

use std::io;

use crate::model::{Group, IfName};

/// An error that ends `mcastor send` or `mcastor recv`. The text names the cause, then a remedy.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// No such interface in this network namespace.
    #[error("there is no interface `{name}`; this network namespace has: {have}")]
    NoInterface {
        /// The requested name.
        name: IfName,
        /// The existing interfaces, separated by commas.
        have: String,
    },
    /// The interface is not up.
    #[error("interface {0} is down; set it up with `ip link set {0} up`")]
    Down(IfName),
    /// The interface has no address of the IP version of the group.
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
    /// The requested source address is not an address of the interface.
    #[error("{source_addr} is not an address of {interface}, which has: {have}")]
    NotItsAddress {
        /// The interface.
        interface: IfName,
        /// The requested source address.
        source_addr: std::net::IpAddr,
        /// The addresses of the interface, separated by commas.
        have: String,
    },
    /// Arguments that contradict each other or are out of range.
    #[error("{0}")]
    Usage(String),
    /// A capture file cannot be read.
    #[error("cannot play {path}: {cause}")]
    Capture {
        /// The file.
        path: String,
        /// What is wrong with it, and what can be done.
        cause: String,
    },
    /// A system call that concerns a group on an interface failed.
    #[error("cannot {what} ({group} on {interface}): {error}{}", remedy(.error))]
    Socket {
        /// The operation, as an infinitive.
        what: &'static str,
        /// The interface.
        interface: IfName,
        /// The group.
        group: Group,
        /// The kernel's answer.
        error: io::Error,
    },
    /// A system call that concerns no group or interface failed.
    #[error("cannot {what}: {error}{}", remedy(.error))]
    System {
        /// The operation, as an infinitive.
        what: &'static str,
        /// The kernel's answer.
        error: io::Error,
    },
}

/// Returns the usual remedy for `error`, to append to its text; empty if there is none.
fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "; a firewall or a security policy forbids it: check `nft list ruleset` on this host"
        }
        Some(libc::ENOBUFS) => {
            "; too many groups for one socket, or no memory: check the sysctls \
             net.ipv4.igmp_max_memberships and net.core.optmem_max"
        }
        Some(libc::EADDRINUSE) => {
            "; another program uses the port without SO_REUSEADDR: choose another port with --port"
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
            "; each group needs one socket: raise the limit with `ulimit -n` or lower --flows"
        }
        Some(libc::ENODEV) => "; the interface no longer exists",
        Some(libc::EIO) => "; the interface cannot segment packets: omit --gso",
        _ => "",
    }
}
