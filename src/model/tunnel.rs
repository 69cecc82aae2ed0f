//! Tunnels: the interfaces, and the addresses outside.

use std::net::{IpAddr, SocketAddr};

use super::{Bandwidth, IfName};

/// The far end of a tunnel, and the address of this host that the far end knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TunnelEndpoint {
    /// The far end.
    pub remote: SocketAddr,
    /// The address of this host; unspecified if the kernel chooses.
    pub local: IpAddr,
}

/// An interface that is no link of the kernel: packets arrive and leave inside datagrams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelInterface {
    /// Its name.
    pub name: IfName,
    /// Size of the largest packet in bytes.
    pub mtu: u32,
    /// Whether packets only arrive on it.
    pub receives_only: bool,
    /// The limit of the streams on it.
    pub bandwidth: Option<Bandwidth>,
}
