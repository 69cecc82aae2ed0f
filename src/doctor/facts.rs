//! Facts about a host and about the mcastor that runs on it.

use std::net::IpAddr;

use ipnet::IpNet;

use super::firewall::FirewallRule;
use crate::api::{DiscoveryView, DropView, GroupView, InterfaceView, PendingView, RouteView};

/// The input of [`examine`](super::examine()).
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The host: one network namespace.
    pub host: HostFacts,
    /// The running mcastor, if one answers.
    pub router: Option<RouterFacts>,
    /// The interface that the user asks about.
    pub interface: Option<String>,
    /// The group that the user asks about.
    pub group: Option<IpAddr>,
}

/// Facts about the network namespace.
#[derive(Debug, Clone, Default)]
pub struct HostFacts {
    /// Its interfaces.
    pub interfaces: Vec<InterfaceFacts>,
    /// Its IPv4 and IPv6 routes: prefix, interface and metric.
    pub routes: Vec<(IpNet, String, u32)>,
    /// `net.ipv4.igmp_max_memberships`.
    pub max_memberships: Option<usize>,
    /// Whether bridged packets pass the rules of iptables
    /// (`net.bridge.bridge-nf-call-iptables`).
    pub bridge_nf: bool,
    /// The rules of the firewall that matter.
    pub firewall: Vec<FirewallRule>,
    /// Whether another program uses the multicast routing of the kernel.
    pub kernel_multicast_routing: bool,
    /// Packets that the kernel dropped while they waited for a core, during the examination.
    pub backlog_drops: u64,
    /// The processes of mcastor and of smcrouted that forward packets in this namespace.
    pub forwarders: Vec<i32>,
    /// UDP packets that the kernel dropped since the namespace exists, because their checksum was
    /// wrong.
    pub checksum_errors: u64,
    /// By how many milliseconds the clock was set forward during the examination; negative if back.
    pub clock_step_ms: i64,
    /// Whether this process has CAP_NET_RAW and CAP_NET_ADMIN.
    pub capabilities: (bool, bool),
    /// Why no packet socket can be opened although CAP_NET_RAW is present.
    pub packet_socket_error: Option<String>,
    /// Why this process cannot load the programs that forward in the kernel, and what to do.
    pub kernel_forwarding_error: Option<(String, &'static str)>,
    /// Release of the kernel, such as `6.1.0-13-amd64`.
    pub kernel: String,
    /// The socket of a container engine that exists, and why it cannot be used.
    pub engine_socket_error: Option<(String, String)>,
    /// What could not be examined, and why.
    pub not_examined: Vec<String>,
}

/// Facts about an interface.
#[derive(Debug, Clone, Default)]
pub struct InterfaceFacts {
    /// Its name.
    pub name: String,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it has a carrier.
    pub carrier: bool,
    /// Whether it is a loopback interface.
    pub loopback: bool,
    /// Whether it has the flag `MULTICAST`.
    pub multicast: bool,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its addresses with their prefix lengths.
    pub addresses: Vec<IpNet>,
    /// `rp_filter` of IPv4 as it is in force: 0 off, 1 strict, 2 loose.
    pub rp_filter: u8,
    /// The groups that programs of the host, or the kernel, have joined on it.
    pub groups: Vec<IpAddr>,
    /// Facts about the bridge, if the interface is one.
    pub bridge: Option<BridgeFacts>,
    /// The name of the bridge or bond that it is a port of.
    pub master: Option<String>,
}

/// Facts about a bridge.
#[derive(Debug, Clone, Copy, Default)]
pub struct BridgeFacts {
    /// Whether it forwards a group only to ports with members.
    pub snooping: bool,
    /// Whether it sends queries itself.
    pub querier: bool,
    /// Whether it knows another querier.
    pub other_querier: bool,
}

/// The answers of the running mcastor.
#[derive(Debug, Clone, Default)]
pub struct RouterFacts {
    /// Its interfaces.
    pub interfaces: Vec<InterfaceView>,
    /// Its routes.
    pub routes: Vec<RouteView>,
    /// Its groups.
    pub groups: Vec<GroupView>,
    /// What waits for an interface.
    pub pending: Vec<PendingView>,
    /// What it dropped.
    pub drops: Vec<DropView>,
    /// Its discovery between networks.
    pub discovery: Vec<DiscoveryView>,
}
