//! The configured tunnel interfaces.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::candidate::RelayWay;
use crate::model::{
    Bandwidth, HeaderChecks, IfName, MembershipLimits, ProxyRule, QuerierPolicy, QuerierTimers,
};

/// Robustness variable of the queries of a relay.
pub(super) const ROBUSTNESS: u8 = 2;

/// Time by which a report may be late.
const RESPONSE_INTERVAL: Duration = Duration::from_secs(1);

/// Time until a leave ends a stream. A tunnel has one member only, so no other one can still want it.
const LEAVE_TIME: Duration = Duration::from_millis(1);

/// `[amt]`: the tunnel interfaces. Names are unique.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AmtConfig {
    /// Each `[[amt.gateway]]`.
    pub gateways: Vec<GatewayInterface>,
    /// Each `[[amt.relay]]`.
    pub relays: Vec<RelayInterface>,
}

impl AmtConfig {
    /// Returns whether there is no tunnel interface.
    pub fn is_empty(&self) -> bool {
        self.gateways.is_empty() && self.relays.is_empty()
    }

    /// Returns the names of the tunnel interfaces.
    pub fn interface_names(&self) -> impl Iterator<Item = &IfName> {
        let gateways = self.gateways.iter().map(|gateway| &gateway.name);
        gateways.chain(self.relays.iter().map(|relay| &relay.name))
    }
}

/// `[[amt.gateway]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayInterface {
    /// The name of the interface.
    pub name: IfName,
    /// Where relays are looked for, in this order.
    pub ways: Vec<RelayWay>,
    /// The interface on which the tunnels leave; `None`: the kernel chooses.
    pub interface: Option<IfName>,
    /// Whether IPv4 and IPv6 streams are requested.
    pub families: [bool; 2],
    /// The limit of the streams that arrive.
    pub bandwidth: Option<Bandwidth>,
}

impl GatewayInterface {
    /// Returns whether both differ in the limit at most, which is no matter of the tunnels.
    pub fn has_same_tunnels(&self, other: &Self) -> bool {
        let bandwidth = self.bandwidth;
        *self
            == Self {
                bandwidth,
                ..other.clone()
            }
    }

    /// Returns whether name servers are needed.
    pub fn needs_resolver(&self) -> bool {
        let is_looked_up =
            |way: &RelayWay| matches!(way, RelayWay::Host(..) | RelayWay::DnsSd | RelayWay::Driad);
        self.ways.iter().any(is_looked_up)
    }
}

/// `[[amt.relay]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayInterface {
    /// The name of the interface.
    pub name: IfName,
    /// The addresses on which gateways are served.
    pub listen: Vec<SocketAddr>,
    /// Size of the largest packet inside a tunnel in bytes.
    pub mtu: u32,
    /// Whether datagrams that exceed the MTU of the path are fragmented. They are dropped otherwise.
    pub fragment: bool,
    /// The configuration of the relay.
    pub relay: RelayConfig,
    /// The limit of the streams in all tunnels.
    pub bandwidth: Option<Bandwidth>,
}

/// Configuration of one [`Relay`](super::Relay).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayConfig {
    /// The IPv4 and the IPv6 address in advertisements; `None`: the address that received the
    /// discovery.
    pub advertise: [Option<IpAddr>; 2],
    /// Time between the Requests of a gateway.
    pub query_interval: Duration,
    /// Largest number of gateways.
    pub gateways: usize,
    /// Largest number of groups of one gateway and protocol.
    pub groups_per_gateway: usize,
    /// Largest number of answers per second to a /24 or /48 of senders without a tunnel.
    pub answers_per_prefix: u32,
    /// Largest number of answers per second to all senders without a tunnel.
    pub answers: u32,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            advertise: [None; 2],
            query_interval: Duration::from_secs(125),
            gateways: 10_000,
            groups_per_gateway: 256,
            answers_per_prefix: 100,
            answers: 5_000,
        }
    }
}

impl RelayConfig {
    /// Returns the rule for the memberships of one tunnel. `lists` has the access lists.
    pub(super) fn rule(&self, lists: &ProxyRule) -> ProxyRule {
        ProxyRule {
            querier: QuerierPolicy::On,
            header_checks: HeaderChecks::Lenient,
            fast_leave: false,
            timers: QuerierTimers {
                robustness: ROBUSTNESS,
                query_interval: self.query_interval,
                query_response_interval: RESPONSE_INTERVAL,
                last_member_query_interval: LEAVE_TIME,
                last_member_query_count: Some(1),
                ..QuerierTimers::default()
            },
            limits: MembershipLimits {
                groups: self.groups_per_gateway,
                ..lists.limits
            },
            ..lists.clone()
        }
    }
}
