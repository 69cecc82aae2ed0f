//! Routes and interfaces as readers see them. Plain texts and numbers: these are formats.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteView {
    /// Its name, the `route` label of metrics.
    pub name: String,
    /// `settings`, `command`, or `proxy` for what hosts ask a `[[proxy]]` for.
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
    /// What packets leave with instead of what they came with.
    #[serde(default)]
    pub rewrite: Option<RewriteView>,
    /// The interfaces there are now, as pairs of in and out.
    pub paths: Vec<PathView>,
    /// Names and patterns it mentions that no interface fits now.
    pub waiting_for: Vec<String>,
}

/// What a route rewrites; what stays is null.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewriteView {
    /// Source or prefix.
    pub source: Option<String>,
    /// Group or prefix.
    pub group: Option<String>,
    /// UDP destination port.
    pub port: Option<u16>,
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
    /// Routes may not use it, whatever they say.
    #[serde(default)]
    pub disabled: bool,
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
    /// The proxy it is downstream of.
    #[serde(default)]
    pub downstream_of: Option<String>,
    /// The proxies it is upstream of.
    #[serde(default)]
    pub upstream_of: Vec<String>,
    /// Who asks for members, where it is downstream of a proxy.
    #[serde(default)]
    pub queriers: Vec<QuerierView>,
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

/// A group: joined by this machine as a host, or with members behind a downstream interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupView {
    /// On which interface.
    pub interface: String,
    /// `host`: joined by us. `router`: hosts behind the interface are members.
    pub role: String,
    /// Which group.
    pub group: String,
    /// `include`: only the sources listed. `exclude`: all but those that are not forwarded.
    pub mode: String,
    /// The sources known.
    pub sources: Vec<GroupSourceView>,
    /// Milliseconds until `exclude` ends, if no host reports.
    pub expires_ms: Option<u64>,
    /// The version of the oldest host.
    pub version: Option<String>,
    /// The members, where they are tracked (`fast_leave`).
    pub reporters: Vec<String>,
    /// Who reported last.
    pub last_reporter: Option<String>,
    /// Of members: what routes that rewrite make this of, and where it is joined, as in
    /// `(10.0.0.10, 225.1.2.3) from eth0`.
    #[serde(default)]
    pub original: Vec<String>,
    /// Of what is joined: what routes that rewrite make of it for members, and behind which
    /// interface these are, as in `(10.9.1.2, 239.1.1.1) to br0`.
    #[serde(default, rename = "for")]
    pub joined_for: Vec<String>,
    /// What else there is to say: that the kernel refuses it (it is tried again every
    /// second), or joins more than was asked for.
    pub error: Option<String>,
}

/// A source of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSourceView {
    /// Its address.
    pub source: String,
    /// Whether its packets are wanted.
    pub forwarded: bool,
    /// Milliseconds until it is given up, if no host reports.
    pub expires_ms: Option<u64>,
}

/// Who asks the hosts of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuerierView {
    /// `igmp` or `mld`.
    pub protocol: String,
    /// Its address; `None` while nobody asks.
    pub address: Option<String>,
    /// Whether that is us.
    pub us: bool,
    /// Milliseconds until it is given up, if it stays silent.
    pub expires_ms: Option<u64>,
}

/// Something that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingView {
    /// `route`, `join` or `proxy`.
    pub kind: String,
    /// Which one.
    pub name: String,
    /// Names and patterns that no interface fits now.
    pub waiting_for: Vec<String>,
    /// `settings` or `command`.
    pub origin: String,
}

/// One end of multicast NAT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MnatView {
    /// `ingress` or `egress`.
    pub role: String,
    /// Name and port of the server.
    pub server: String,
    /// Whether it answers.
    pub up: bool,
    /// What went wrong last, until something works.
    pub error: Option<String>,
    /// Where streams come from.
    pub upstream: String,
    /// Where they go.
    pub downstream: String,
    /// What is mapped or wanted.
    pub mappings: Vec<MappingView>,
}

/// One global channel, and the local one it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappingView {
    /// Who sends; `None` is any.
    pub source: Option<String>,
    /// To which group.
    pub group: String,
    /// The source in the network; `None` where there is no mapping, or any source has it.
    pub local_source: Option<String>,
    /// The group in the network; `None` where there is no mapping.
    pub local_group: Option<String>,
    /// `assigned`, `held` (while the server is away or starts anew), `unassigned` or `conflict`.
    pub state: String,
    /// Why what the server says of it cannot be used, or what is in its way.
    pub error: Option<String>,
}
