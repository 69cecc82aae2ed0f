//! Routes and interfaces as readers see them. Plain texts and numbers: these are formats.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteView {
    /// Its name, the `route` label of metrics.
    pub name: String,
    /// `settings` or `command`.
    pub origin: String,
    /// Name or pattern of the interfaces packets arrive on.
    pub from: String,
    /// Source, prefix, or `*`.
    pub source: String,
    /// Sources it leaves to other rules.
    pub except_sources: Vec<String>,
    /// Group or prefix.
    pub group: String,
    /// Names and patterns of the interfaces packets leave on.
    pub to: Vec<String>,
    /// `decrement`, `keep` or `set N`.
    pub ttl: String,
    /// Whether groups of link-local scope are forwarded too.
    pub link_local: bool,
    /// The interfaces there are now, as pairs of in and out.
    pub paths: Vec<PathView>,
    /// Names and patterns it mentions that no interface fits now.
    pub waiting_for: Vec<String>,
}

/// One way through the router that a rule opens now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathView {
    /// Name of the interface packets arrive on.
    pub iif: String,
    /// Name of the interface packets leave on.
    pub oif: String,
    /// Packets sent.
    pub packets: u64,
    /// IP bytes sent.
    pub bytes: u64,
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceView {
    /// The kernel's number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Administratively up.
    pub up: bool,
    /// It has a carrier.
    pub carrier: bool,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Routes take packets from it.
    pub ingress: bool,
    /// Routes send packets to it.
    pub egress: bool,
    /// Packets leave only when they arrived with a TTL above this.
    pub ttl_threshold: Option<u8>,
    /// Multicast packets taken in.
    pub received_packets: u64,
    /// Packets sent.
    pub transmitted_packets: u64,
    /// Packets dropped, by reason; reasons with none are left out.
    pub dropped_packets: BTreeMap<String, u64>,
    /// Packets the kernel dropped because the capture socket was full.
    pub socket_dropped_packets: u64,
}

/// One flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowView {
    /// Interface it arrives on.
    pub iif: String,
    /// Who sends.
    pub source: String,
    /// To which group.
    pub group: String,
    /// The route that forwards it; `None` until its next packet, when routes or interfaces
    /// changed since the last.
    pub route: Option<String>,
    /// Interfaces it leaves on; empty likewise.
    pub oifs: Vec<String>,
    /// Packets taken in.
    pub packets: u64,
    /// Their IP bytes.
    pub bytes: u64,
    /// Milliseconds since its first packet.
    pub age_ms: u64,
    /// Milliseconds since its last packet.
    pub idle_ms: u64,
}

/// One group joined as a host, or wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupView {
    /// On which interface.
    pub interface: String,
    /// From which source only.
    pub source: Option<String>,
    /// Which group.
    pub group: String,
    /// Why the kernel refuses; it is tried again every second.
    pub error: Option<String>,
}

/// Something that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingView {
    /// `route` or `join`.
    pub kind: String,
    /// Which one.
    pub name: String,
    /// Names and patterns that no interface fits now.
    pub waiting_for: Vec<String>,
    /// `settings` or `command`.
    pub origin: String,
}
