//! The configured tunnel interfaces.

use std::net::SocketAddr;

use super::candidate::RelayWay;
use super::relay::RelayConfig;
use crate::model::{Bandwidth, IfName};

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
    /// The configuration of the relay.
    pub relay: RelayConfig,
    /// The limit of the streams in all tunnels.
    pub bandwidth: Option<Bandwidth>,
}
