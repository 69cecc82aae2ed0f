//! The state of a container engine, and the interface aliases that follow from it. Does no I/O.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::model::{Aliases, IfName, IfPattern, InterfaceId};

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

/// The error for text that is not an Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an Ethernet address")]
pub struct ParseMacError(String);

impl FromStr for MacAddr {
    type Err = ParseMacError;
    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let no = || ParseMacError(text.into());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let two_digits = |p: &&str| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit());
            let part = parts.next().filter(two_digits).ok_or_else(no)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| no())?;
        }
        match parts.next() {
            Some(_) => Err(no()),
            None => Ok(Self(bytes)),
        }
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A network of the container engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineNetwork {
    /// The network ID of the engine.
    pub id: String,
    /// The user-visible name.
    pub name: String,
    /// The bridge of the network; `None` for networks of other drivers.
    pub bridge: Option<IfName>,
}

/// The attachment of a container to a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// [`EngineNetwork::id`].
    pub network: String,
    /// The MAC address of the container's interface.
    pub mac: MacAddr,
}

/// A running container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// The names of the container, without the leading slash of the engine API.
    pub names: Vec<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its attachments; empty if the container shares a network namespace with another container or
    /// the host.
    pub endpoints: Vec<Endpoint>,
}

/// The networks and running containers of an engine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineState {
    /// Its networks.
    pub networks: Vec<EngineNetwork>,
    /// Its running containers.
    pub containers: Vec<Container>,
}

/// A veth pair whose other end is in another network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VethPeer {
    /// The index of the host end.
    pub index: InterfaceId,
    /// The bridge of which the host end is a port.
    pub bridge: Option<InterfaceId>,
    /// The MAC address of the other end.
    pub mac: MacAddr,
}

impl EngineState {
    /// Returns the aliases of interfaces, and true if some endpoint has no veth pair yet (the
    /// engine may still be creating it). `bridge_index` returns the interface index of a bridge.
    pub fn aliases(
        &self,
        peers: &[VethPeer],
        bridge_index: impl Fn(&IfName) -> Option<InterfaceId>,
    ) -> (Aliases, bool) {
        let mut aliases = Aliases::default();
        let mut is_incomplete = false;
        let bridge = |id: &str| {
            let network = self.networks.iter().find(|n| n.id == id);
            network.and_then(|n| n.bridge.as_ref())
        };
        for network in &self.networks {
            if let Some(bridge) = &network.bridge {
                let entry = aliases.by_name.entry(bridge.clone()).or_default();
                entry.extend(alias("network:", &network.name));
            }
        }
        for container in &self.containers {
            let names = container.names.iter();
            let names = names.filter_map(|name| alias("container:", name));
            let labels = container.labels.iter();
            let labels =
                labels.filter_map(|(key, value)| alias("label:", &format!("{key}={value}")));
            let all: Vec<IfPattern> = names.chain(labels).collect();
            for endpoint in &container.endpoints {
                // A network without a bridge has no veth pairs.
                let Some(bridge) = bridge(&endpoint.network) else {
                    continue;
                };
                // Endpoints of two networks may have the same MAC address.
                let bridge = bridge_index(bridge);
                let found = peers
                    .iter()
                    .find(|peer| peer.mac == endpoint.mac && peer.bridge == bridge);
                match found {
                    Some(peer) => {
                        let entry = aliases.by_index.entry(peer.index).or_default();
                        entry.extend(all.iter().cloned());
                    }
                    None => is_incomplete = true,
                }
            }
        }
        (aliases, is_incomplete)
    }
}

/// Returns an alias, or `None` if the name is not valid in the settings.
fn alias(kind: &str, name: &str) -> Option<IfPattern> {
    format!("{kind}{name}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(last: u8) -> MacAddr {
        MacAddr([2, 0x42, 0, 0, 0, last])
    }

    fn index(n: u32) -> InterfaceId {
        InterfaceId::new(n).unwrap()
    }

    fn network(id: &str, bridge: Option<&str>) -> EngineNetwork {
        EngineNetwork {
            id: id.into(),
            name: format!("net-{id}"),
            bridge: bridge.map(|b| b.parse().unwrap()),
        }
    }

    fn container(name: &str, endpoints: &[(&str, u8)]) -> Container {
        Container {
            names: vec![name.into()],
            labels: [("role".to_string(), "cam".to_string())].into(),
            endpoints: endpoints
                .iter()
                .map(|(network, last)| Endpoint {
                    network: (*network).into(),
                    mac: mac(*last),
                })
                .collect(),
        }
    }

    fn to_lines(aliases: &Aliases) -> Vec<String> {
        let joined = |patterns: &std::collections::BTreeSet<IfPattern>| {
            let all: Vec<_> = patterns.iter().map(ToString::to_string).collect();
            all.join(" ")
        };
        let by_name = aliases.by_name.iter();
        let by_name = by_name.map(|(name, patterns)| format!("{name} {}", joined(patterns)));
        let by_index = aliases.by_index.iter();
        by_name
            .chain(by_index.map(|(index, patterns)| format!("{index} {}", joined(patterns))))
            .collect()
    }

    fn bridges(name: &IfName) -> Option<InterfaceId> {
        match name.as_str() {
            "br-a" => Some(index(10)),
            "br-b" => Some(index(11)),
            _ => None,
        }
    }

    #[test]
    fn containers_map_to_veths_and_networks_to_bridges() {
        let engine = EngineState {
            networks: vec![
                network("a", Some("br-a")),
                network("b", Some("br-b")),
                network("m", None),
            ],
            containers: vec![
                // The same MAC address on two networks.
                container("one", &[("a", 1), ("b", 1), ("m", 9)]),
                container("two", &[("a", 2)]),
                container("shared", &[]),
            ],
        };
        let peer = |n: u32, bridge: u32, last: u8| VethPeer {
            index: index(n),
            bridge: InterfaceId::new(bridge),
            mac: mac(last),
        };
        let peers = [peer(20, 10, 1), peer(21, 11, 1), peer(22, 10, 2)];
        let (aliases, is_incomplete) = engine.aliases(&peers, bridges);
        assert!(!is_incomplete);
        assert_eq!(
            to_lines(&aliases),
            [
                "br-a network:net-a",
                "br-b network:net-b",
                "20 container:one label:role=cam",
                "21 container:one label:role=cam",
                "22 container:two label:role=cam",
            ]
        );
        let (aliases, is_incomplete) = engine.aliases(&peers[..1], bridges);
        assert!(is_incomplete, "veth pairs are missing");
        assert_eq!(aliases.by_index.len(), 1);
    }

    #[test]
    fn mac_address_has_six_bytes() {
        assert_eq!("02:42:00:00:00:ff".parse(), Ok(mac(255)));
        assert_eq!(mac(255).to_string(), "02:42:00:00:00:ff");
        for bad in [
            "",
            "02:42",
            "02:42:00:00:00:ff:00",
            "02:42:00:00:00:+f",
            "2:42:0:0:0:f",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad:?}");
        }
    }
}
