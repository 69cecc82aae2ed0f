//! Live packets, and the decision for each.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Requests the packets that a trace recorded since the last request. The first request starts the
/// trace. It ends three seconds after the last one, or with `end`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceQuery {
    /// A number that the client chooses at random. Requests with the same number belong together.
    pub id: u64,
    /// Group or prefix.
    pub group: String,
    /// UDP destination port; `None` traces all ports and protocols.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Source; `None` traces all sources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// The interface on which packets arrive; `None` traces all interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iif: Option<String>,
    /// Whether the reply contains the bytes of the packets.
    #[serde(default)]
    pub bytes: bool,
    /// Whether the trace ends with this request.
    #[serde(default)]
    pub end: bool,
}

/// The reply to a [`TraceQuery`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceView {
    /// The packets.
    pub packets: Vec<TracedPacketView>,
    /// Packets that matched, but were not recorded because 1,024 waited for this request.
    pub missed: u64,
}

/// A packet, and what happened to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedPacketView {
    /// When the kernel received it: nanoseconds since 1970 (UTC).
    pub received_ns: u64,
    /// The interface.
    pub iif: String,
    /// Its source.
    pub source: IpAddr,
    /// Its group.
    pub group: IpAddr,
    /// Its UDP destination port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// TTL or hop limit with which it arrived.
    pub ttl: u8,
    /// Bytes from the IP header on. A GSO packet contains several datagrams.
    pub size: u32,
    /// Why it was dropped before an egress: reasons of `mcastor_dropped_packets_total`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<String>,
    /// Whether it is an IGMP or MLD message, which is not forwarded.
    #[serde(default)]
    pub membership: bool,
    /// The egresses.
    pub egresses: Vec<TracedPathView>,
    /// The packet from the IP header on, in hexadecimal digits; at most 9,216 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<String>,
}

/// What happened to a packet at an egress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedPathView {
    /// The interface.
    pub oif: String,
    /// The route or proxy.
    pub rule: String,
    /// Why it was not sent: a reason of `mcastor_dropped_packets_total`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// TTL or hop limit with which it leaves.
    pub ttl: u8,
    /// Its source after translation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// Its group after translation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<IpAddr>,
    /// Its UDP destination port after translation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The number of fragments, if it is larger than the MTU of the egress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fragments: Option<usize>,
}
