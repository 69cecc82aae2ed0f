//! The records of query replies. They contain only text and numbers, because they are data formats.
//! Their comments are the descriptions in the OpenAPI document.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A route, or the rule of a proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RouteView {
    /// Name of the route, as in the `route` label of metrics.
    pub name: String,
    /// `settings`, `command`, or `proxy` for streams that members of a `[[proxy]]` joined.
    pub origin: String,
    /// Name or pattern of the interfaces packets arrive on.
    pub from: String,
    /// Source, prefix, or `*`.
    pub source: String,
    /// Sources that the route does not match.
    pub except_sources: Vec<String>,
    /// Group or prefix.
    pub group: String,
    /// Names and patterns of the interfaces packets leave on.
    pub to: Vec<String>,
    /// `decrement`, `keep` or `set N`.
    pub ttl: String,
    /// Whether groups of link-local scope are forwarded too.
    pub link_local: bool,
    /// Translation of the packets.
    #[serde(default)]
    #[schema(required)]
    pub rewrite: Option<RewriteView>,
    /// The merge of the packets with those of another path.
    #[serde(default)]
    #[schema(required)]
    pub merge: Option<MergeView>,
    /// The present paths: pairs of ingress and egress interfaces.
    pub paths: Vec<PathView>,
    /// Names and patterns in the route that match no interface now.
    pub waiting_for: Vec<String>,
}

/// The merge of two paths. A route with `merge` in the settings is shown twice, once for each path.
/// Pairs of numbers are those of the first and of the second path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MergeView {
    /// `first` or `second`: the path of the packets of this route.
    pub path: String,
    /// Name of the interface on which the packets of the other path arrive.
    pub with: String,
    /// The longest time by which one path may be behind the other, in milliseconds.
    pub window_ms: u64,
    /// What identifies a packet: `rtp`, `sequence`, `payload`, or the place of a number.
    pub by: String,
    /// Number of streams.
    pub streams: u64,
    /// How much later the second path brings a packet than the first, in microseconds, as a moving
    /// average.
    pub skew_us: i64,
    /// The largest difference between the paths in the last ten to twenty seconds, in microseconds.
    pub peak_skew_us: u64,
    /// Packets that arrived on each path.
    pub received: [u64; 2],
    /// Packets that each path lost.
    pub lost: [u64; 2],
    /// Packets that no path brought in time.
    pub lost_on_both: u64,
    /// Packets of each path that were forwarded already.
    pub duplicates: [u64; 2],
    /// Packets of each path that arrived after later ones were forwarded.
    pub late: [u64; 2],
    /// Packets that waited for an earlier one.
    pub held: u64,
    /// Times that the sender began with other numbers.
    pub restarts: u64,
    /// Times that no more packets could be held.
    pub limited: u64,
    /// Packets that were compared by their payload.
    pub by_payload: u64,
}

/// The translation of a route. Fields that are not translated are null.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RewriteView {
    /// Source or prefix.
    #[schema(required)]
    pub source: Option<String>,
    /// Group or prefix.
    #[schema(required)]
    pub group: Option<String>,
    /// UDP destination port.
    #[schema(required)]
    pub port: Option<u16>,
}

/// A path through the router: an ingress and an egress interface of a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PathView {
    /// Name of the ingress interface.
    pub iif: String,
    /// Name of the egress interface.
    pub oif: String,
    /// Packets sent.
    pub packets: u64,
    /// IP bytes sent.
    pub bytes: u64,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InterfaceView {
    /// Interface index in the kernel.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it has a carrier.
    pub carrier: bool,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Whether the settings exclude it from all routes.
    #[serde(default)]
    #[schema(required)]
    pub disabled: bool,
    /// Whether packets are captured on it.
    pub ingress: bool,
    /// Whether routes send packets on it.
    pub egress: bool,
    /// Packets are sent on it only if they arrived with a TTL above this value.
    #[schema(required)]
    pub ttl_threshold: Option<u8>,
    /// Multicast packets received.
    pub received_packets: u64,
    /// Packets sent.
    pub transmitted_packets: u64,
    /// Packets dropped, by reason. Reasons without packets are omitted.
    pub dropped_packets: BTreeMap<String, u64>,
    /// Packets that the kernel dropped because the capture socket was full.
    pub socket_dropped_packets: u64,
    /// Name of the proxy that has it as a downstream interface.
    #[serde(default)]
    #[schema(required)]
    pub downstream_of: Option<String>,
    /// Names of the proxies that have it as an upstream interface.
    #[serde(default)]
    #[schema(required)]
    pub upstream_of: Vec<String>,
    /// IGMP and MLD messages and records that were refused on it, by reason. Reasons without any
    /// are omitted.
    #[serde(default)]
    #[schema(required)]
    pub refused_messages: BTreeMap<String, u64>,
    /// Why receivers behind it may drop what is sent there: its subnet is also that of an ingress
    /// interface, or of a sender elsewhere.
    #[serde(default)]
    #[schema(required)]
    pub subnet_conflicts: Vec<String>,
    /// The queriers on it, if it is a downstream interface of a proxy.
    #[serde(default)]
    #[schema(required)]
    pub queriers: Vec<QuerierView>,
    /// The limit of the streams that leave on it, or arrive through an AMT gateway; null for none.
    #[serde(default)]
    #[schema(required)]
    pub bandwidth: Option<BandwidthView>,
}

/// A bandwidth limit and what is used of it. Rates are bits per second of IP packets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BandwidthView {
    /// The limit.
    pub limit: u64,
    /// The measured rates of the admitted streams together.
    pub admitted: u64,
    /// The number of streams that are refused, because they would exceed the limit.
    pub refused: usize,
    /// Some of them, such as `(10.0.0.10, 232.1.1.1)`.
    pub refused_streams: Vec<String>,
}

/// A flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FlowView {
    /// Name of the ingress interface.
    pub iif: String,
    /// Source address.
    pub source: String,
    /// Group address.
    pub group: String,
    /// The route that forwards it. Null if routes or interfaces have changed since its last
    /// packet.
    #[schema(required)]
    pub route: Option<String>,
    /// Names of the egress interfaces; empty in the same case.
    pub oifs: Vec<String>,
    /// Whether its ingress is the active one of source and group. Packets that arrive elsewhere are
    /// dropped.
    #[serde(default = "always")]
    #[schema(required)]
    pub active: bool,
    /// Egress interfaces from which packets are withheld, because another forwarder sends them
    /// there, and its link-layer address.
    #[serde(default)]
    #[schema(required)]
    pub yields: BTreeMap<String, String>,
    /// Packets received.
    pub packets: u64,
    /// IP bytes received.
    pub bytes: u64,
    /// Milliseconds since its first packet.
    pub age_ms: u64,
    /// Milliseconds since its last packet.
    pub idle_ms: u64,
    /// Who forwards its packets: the `plane` label of metrics.
    #[serde(default)]
    #[schema(required)]
    pub plane: String,
    /// Why its packets are not forwarded in the kernel, if the settings ask for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    pub declined: Option<String>,
    /// Whether the numbers are those of dropped packets. Such flows are only returned on request.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dropped: bool,
}

/// Dropped packets of one source and group, for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DropView {
    /// The interface that the packets arrived on, or that they should have left on, as in the
    /// `iface` label of metrics.
    pub interface: String,
    /// Why they were dropped, as in the `reason` label of metrics.
    pub reason: String,
    /// Source address. Null if the packets were too short to have one.
    #[schema(required)]
    pub source: Option<String>,
    /// Destination address. Null if the packets were too short to have one.
    #[schema(required)]
    pub group: Option<String>,
    /// Packets dropped in the last 50 to 60 seconds.
    pub last_minute: u64,
    /// Packets dropped since they are counted.
    pub packets: u64,
    /// How many more may have been dropped before, while another stream had the place in the list.
    pub missed_at_most: u64,
    /// IP bytes of `packets`.
    pub bytes: u64,
    /// Milliseconds since they are counted.
    pub age_ms: u64,
    /// Milliseconds since the last of them.
    pub idle_ms: u64,
    /// TTL or hop limit of the last packet, as it arrived or would have left.
    #[schema(required)]
    pub ttl: Option<u8>,
    /// Length of the last packet in bytes.
    #[schema(required)]
    pub size: Option<u32>,
    /// UDP destination port of the last packet.
    #[schema(required)]
    pub port: Option<u16>,
    /// What the reason means.
    pub meaning: String,
    /// What can be done.
    pub remedy: String,
}

/// Returns what routers without a selection of the active ingress report.
fn always() -> bool {
    true
}

/// A group that this machine joined as a host, or that has members behind a downstream interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupView {
    /// Interface name.
    pub interface: String,
    /// `host`: joined by this machine. `router`: hosts behind the interface are members.
    pub role: String,
    /// Group address.
    pub group: String,
    /// `include`: only the listed sources. `exclude`: all sources except those not forwarded.
    pub mode: String,
    /// The known sources.
    pub sources: Vec<GroupSourceView>,
    /// Milliseconds until exclude mode ends if no host sends a report.
    #[schema(required)]
    pub expires_ms: Option<u64>,
    /// The oldest protocol version among the hosts.
    #[schema(required)]
    pub version: Option<String>,
    /// The members, if they are tracked (`fast_leave`).
    pub reporters: Vec<String>,
    /// The host that sent the last report.
    #[schema(required)]
    pub last_reporter: Option<String>,
    /// For role `router`: the streams that routes translate to this group, and the interfaces on
    /// which they are joined, such as `(10.0.0.10, 225.1.2.3) from eth0`.
    #[serde(default)]
    #[schema(required)]
    pub original: Vec<String>,
    /// For role `host`: the streams to which routes translate this group for members, and the
    /// interfaces of these members, such as `(10.9.1.2, 239.1.1.1) to br0`.
    #[serde(default, rename = "for")]
    #[schema(required)]
    pub joined_for: Vec<String>,
    /// A problem: the kernel refuses the join, which is retried every second, or the kernel joins
    /// more sources than requested.
    #[schema(required)]
    pub error: Option<String>,
}

/// A source of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupSourceView {
    /// Source address.
    pub source: String,
    /// Whether packets of the source are forwarded.
    pub forwarded: bool,
    /// Milliseconds until the source expires if no host sends a report.
    #[schema(required)]
    pub expires_ms: Option<u64>,
}

/// The querier of an interface for one protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QuerierView {
    /// `igmp` or `mld`.
    pub protocol: String,
    /// Address of the querier; null while there is none.
    #[schema(required)]
    pub address: Option<String>,
    /// Whether this router is the querier.
    pub us: bool,
    /// Milliseconds until the querier expires if it sends no query.
    #[schema(required)]
    pub expires_ms: Option<u64>,
}

/// A route, join or proxy that waits for an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PendingView {
    /// `route`, `join` or `proxy`.
    pub kind: String,
    /// Name of the route, join or proxy.
    pub name: String,
    /// Names and patterns that match no interface now.
    pub waiting_for: Vec<String>,
    /// What the container engine knows of these names: a reason, or a similar name.
    #[serde(default)]
    #[schema(required)]
    pub hints: Vec<String>,
    /// `settings` or `command`.
    pub origin: String,
}

/// One end of multicast NAT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MnatView {
    /// `ingress` or `egress`.
    pub role: String,
    /// Host name and port of the MNAT server.
    pub server: String,
    /// Whether the server answers.
    pub up: bool,
    /// The last error; cleared by the next success.
    #[schema(required)]
    pub error: Option<String>,
    /// Name of the upstream interface.
    pub upstream: String,
    /// Name of the downstream interface.
    pub downstream: String,
    /// The mapped and the requested streams.
    pub mappings: Vec<MappingView>,
}

/// One `[[discovery]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiscoveryView {
    /// Its name.
    pub name: String,
    /// The interfaces of the devices that exist now.
    pub from: Vec<String>,
    /// The interfaces of the askers that exist now.
    pub to: Vec<String>,
    /// Its protocols.
    pub protocols: Vec<DiscoveryProtocolView>,
    /// What was offered, the latest first.
    pub offers: Vec<DiscoveryOfferView>,
    /// Who asked for what, the latest first.
    #[serde(default)]
    #[schema(required)]
    pub askers: Vec<DiscoveryAskerView>,
    /// The open questions.
    pub questions: Vec<DiscoveryQuestionView>,
}

/// How the answers of a discovery protocol come back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiscoveryProtocolView {
    /// The protocol, as in the settings.
    pub protocol: String,
    /// `relay` or `direct`.
    pub answers: String,
    /// Why.
    pub reason: String,
}

/// Something that a device offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiscoveryOfferView {
    /// The interface of the device.
    pub from: String,
    /// The interface where it can be found.
    pub to: String,
    /// The protocol.
    pub protocol: String,
    /// The address of the device.
    pub device: String,
    /// Its link-layer address; null on links without addresses.
    #[schema(required)]
    pub mac: Option<String>,
    /// Service type, search target, types, or host name.
    pub what: String,
    /// Instance name of DNS-SD; empty for other protocols.
    pub instance: String,
    /// The number of messages that offered it.
    pub messages: u64,
    /// Milliseconds since the last of them.
    pub idle_ms: u64,
    /// The reason label for which it is withheld; null if it can be found.
    #[schema(required)]
    pub withheld: Option<String>,
    /// What the reason means.
    #[schema(required)]
    pub explanation: Option<String>,
}

/// Something that a host asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiscoveryAskerView {
    /// The interface of the asker.
    pub from: String,
    /// The interface where it is asked for.
    pub to: String,
    /// The protocol.
    pub protocol: String,
    /// The address of the asker.
    pub asker: String,
    /// Its link-layer address; null on links without addresses.
    #[schema(required)]
    pub mac: Option<String>,
    /// Service type, search target, types, or host name; empty if the question names none.
    pub what: String,
    /// Instance name of DNS-SD; empty for other questions.
    pub instance: String,
    /// The number of messages that asked for it.
    pub messages: u64,
    /// Milliseconds since the last of them.
    pub idle_ms: u64,
    /// The reason label for which the question is withheld; null if it is asked.
    #[schema(required)]
    pub withheld: Option<String>,
    /// What the reason means.
    #[schema(required)]
    pub explanation: Option<String>,
}

/// A question whose answers are passed on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiscoveryQuestionView {
    /// The interface of the asker.
    pub from: String,
    /// The interface where the question was asked.
    pub to: String,
    /// The protocol.
    pub protocol: String,
    /// Address and port of the asker.
    pub asker: String,
    /// The port of this router to which devices answer.
    pub port: u16,
    /// The number of answers so far.
    pub answers: u32,
    /// Milliseconds for which answers are passed on.
    pub remaining_ms: u64,
}

/// A tunnel of AMT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TunnelView {
    /// The tunnel interface.
    pub interface: String,
    /// `gateway` if the far end is a relay, `relay` if it is a gateway.
    pub role: String,
    /// Address and port of the far end.
    pub remote: String,
    /// State for IGMP: `idle`, `requesting`, `connected`, `limit_reached` or `unresponsive`. Null
    /// at a relay.
    #[schema(required)]
    pub igmp: Option<String>,
    /// State for MLD. Null at a relay.
    #[schema(required)]
    pub mld: Option<String>,
    /// Address and port of this gateway as the relay receives them; null if the relay does not
    /// report them.
    #[schema(required)]
    pub outside: Option<String>,
    /// The groups that a gateway joined; at a gateway, each source counts.
    pub memberships: usize,
    /// Packets that the relay sent; null at a relay.
    #[schema(required)]
    pub packets: Option<u64>,
    /// IP bytes of these packets; null at a relay.
    #[schema(required)]
    pub bytes: Option<u64>,
    /// Milliseconds since the last packet of the relay, or since the last report of the gateway;
    /// null if there was none.
    #[schema(required)]
    pub idle_ms: Option<u64>,
    /// The limit of the interface, for all its tunnels together; null for none.
    #[serde(default)]
    #[schema(required)]
    pub bandwidth: Option<BandwidthView>,
}

/// A global stream and the local stream that it is mapped to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MappingView {
    /// Global source; null means any source.
    #[schema(required)]
    pub source: Option<String>,
    /// Global group.
    pub group: String,
    /// Local source; null if there is no mapping, or the mapping is for any source.
    #[schema(required)]
    pub local_source: Option<String>,
    /// Local group; null if there is no mapping.
    #[schema(required)]
    pub local_group: Option<String>,
    /// `assigned`, `held` (the server does not answer, or has forgotten the mapping), `unassigned`
    /// or `conflict`.
    pub state: String,
    /// Why the mapping of the server cannot be used, or what it conflicts with.
    #[schema(required)]
    pub error: Option<String>,
}
