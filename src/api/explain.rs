//! What happens to a packet, and why.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{DropView, FlowView, GroupView, QuerierView, RewriteView};

/// A packet to explain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, IntoParams, ToSchema)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ExplainQuery {
    /// The interface on which it arrives. By default, each interface that receives packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    pub iif: Option<String>,
    /// Its source.
    #[schema(value_type = String)]
    #[param(value_type = String)]
    pub source: IpAddr,
    /// Its group.
    #[schema(value_type = String)]
    #[param(value_type = String)]
    pub group: IpAddr,
    /// Its UDP destination port.
    #[serde(default = "default_port")]
    #[schema(required)]
    #[param(default = default_port)]
    pub port: u16,
    /// Its size in bytes, from the IP header on, without offload.
    #[serde(default = "default_size")]
    #[schema(required)]
    #[param(default = default_size)]
    pub size: u16,
    /// The TTL or hop limit with which it arrives.
    #[serde(default = "default_ttl")]
    #[schema(required)]
    #[param(default = default_ttl)]
    pub ttl: u8,
}

/// The port of a packet if the query has none.
pub fn default_port() -> u16 {
    5000
}

/// The size of a packet if the query has none: seven packets of an MPEG transport stream.
pub fn default_size() -> u16 {
    1344
}

/// The TTL of a packet if the query has none. With it, the packet does not expire here.
pub fn default_ttl() -> u8 {
    64
}

/// What happens to a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExplainView {
    /// The packet.
    pub packet: ExplainQuery,
    /// What happens where it arrives.
    pub interfaces: Vec<ExplainedIngress>,
    /// The memberships of its group: those of hosts, and those that this host has joined.
    pub groups: Vec<GroupView>,
    /// The queriers of the interfaces on which hosts can join the group.
    #[serde(default)]
    #[schema(required)]
    pub queriers: Vec<ExplainedQuerier>,
    /// Reports and leaves for the group that were refused.
    #[serde(default)]
    #[schema(required)]
    pub refused: Vec<RefusedView>,
    /// Packets of the same source and group that arrived, forwarded or not.
    pub seen: Vec<FlowView>,
    /// Packets of the same source and group that were dropped.
    #[serde(default)]
    #[schema(required)]
    pub drops: Vec<DropView>,
    /// Each `[[discovery]]` that relays messages to this group and port, and how their answers come
    /// back.
    #[serde(default)]
    #[schema(required)]
    pub discovery: Vec<String>,
}

/// The querier of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExplainedQuerier {
    /// The interface.
    pub interface: String,
    /// Its querier.
    #[serde(flatten)]
    pub querier: QuerierView,
}

/// Refused reports and leaves that name a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RefusedView {
    /// The interface.
    pub interface: String,
    /// A reason of `mcastor_membership_refused_total`.
    pub reason: String,
    /// What the reason means.
    pub meaning: String,
    /// What can be done; null if nothing needs to be done.
    #[schema(required)]
    pub remedy: Option<String>,
    /// Number of messages.
    pub messages: u64,
    /// The sender of the last one.
    #[schema(required)]
    pub last_sender: Option<String>,
    /// Milliseconds since the last one.
    pub idle_ms: u64,
}

/// What happens to a packet that arrives on one interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExplainedIngress {
    /// The interface.
    pub iif: String,
    /// Whether the interface is down or has no carrier, so that no packet arrives on it now.
    #[serde(default)]
    #[schema(required)]
    pub is_down: bool,
    /// Whether at least one egress gets the packet.
    pub forwarded: bool,
    /// The way in which packets are received and sent: the `plane` label of metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    pub plane: Option<String>,
    /// Why such packets are not forwarded in the kernel, if the settings ask for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    pub declined: Option<String>,
    /// The interface from which source and group are forwarded now, if they can arrive on several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    pub active_ingress: Option<String>,
    /// Why no route or proxy forwards it: a reason of `mcastor_dropped_packets_total`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    pub reason: Option<String>,
    /// What this reason means.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    pub meaning: Option<String>,
    /// The routes and proxies that match the packet or refuse it, in the order of the decision.
    pub rules: Vec<ExplainedRule>,
    /// The interfaces on which it would leave.
    pub egresses: Vec<ExplainedEgress>,
}

/// A route or proxy in a decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExplainedRule {
    /// Its name.
    pub name: String,
    /// `matched`, `refused` or `excepted`.
    pub result: String,
    /// Why it refuses the packet: a reason of `mcastor_dropped_packets_total`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    pub reason: Option<String>,
    /// What this reason means.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    pub meaning: Option<String>,
    /// Its TTL policy: `decrement`, `keep` or `set N`.
    #[serde(default)]
    #[schema(required)]
    pub ttl: String,
    /// Whether it drops packets that return within half a second, which is not part of the answer.
    #[serde(default)]
    #[schema(required)]
    pub loop_guard: bool,
    /// The merge of the packet with its copy on another path, which is not part of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    pub merge: Option<String>,
}

/// An egress in a decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExplainedEgress {
    /// The interface.
    pub oif: String,
    /// The route or proxy.
    pub rule: String,
    /// Why the packet does not leave: a reason of `mcastor_dropped_packets_total`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    pub reason: Option<String>,
    /// What this reason means.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    pub meaning: Option<String>,
    /// The TTL with which it leaves.
    pub ttl: u8,
    /// The translation of the route.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = RewriteView)]
    pub rewrite: Option<RewriteView>,
    /// Largest IP packet of the interface, in bytes.
    pub mtu: u32,
    /// The number of packets that leave: more than one if it must be fragmented. Zero if it does not
    /// leave. A translation may change it.
    pub packets: usize,
}
