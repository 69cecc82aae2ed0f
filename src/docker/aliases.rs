//! What an engine tells, and which links that names.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::model::{Aliases, IfIndex, IfName, IfPattern};

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

/// A text is no Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no Ethernet address")]
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

/// A network of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineNetwork {
    /// What the engine calls it for itself.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// The bridge it stands on; `None` for networks of other drivers.
    pub bridge: Option<IfName>,
}

/// Where a container is on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// [`EngineNetwork::id`].
    pub network: String,
    /// The address of the container's interface.
    pub mac: MacAddr,
}

/// A running container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// What people call it, without the slash the engine puts before it.
    pub names: Vec<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its networks; none where it shares the namespace of another, or of the host.
    pub endpoints: Vec<Endpoint>,
}

/// All that matters of an engine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineState {
    /// Its networks.
    pub networks: Vec<EngineNetwork>,
    /// Its running containers.
    pub containers: Vec<Container>,
}

/// A cable of which this host has one end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VethPeer {
    /// The end this host has.
    pub index: IfIndex,
    /// The bridge that end is a port of.
    pub bridge: Option<IfIndex>,
    /// The address of the other end.
    pub mac: MacAddr,
}

impl EngineState {
    /// The names of links, and whether an endpoint has no cable: it may be in the making.
    /// `bridge_index` tells the index of a bridge.
    pub fn names(
        &self,
        peers: &[VethPeer],
        bridge_index: impl Fn(&IfName) -> Option<IfIndex>,
    ) -> (Aliases, bool) {
        let mut aliases = Aliases::default();
        let mut lacking = false;
        let bridge = |id: &str| {
            let network = self.networks.iter().find(|n| n.id == id);
            network.and_then(|n| n.bridge.as_ref())
        };
        for network in &self.networks {
            if let Some(bridge) = &network.bridge {
                let of = aliases.by_name.entry(bridge.clone()).or_default();
                of.extend(alias("network:", &network.name));
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
                // A network without a bridge has no cable.
                let Some(bridge) = bridge(&endpoint.network) else {
                    continue;
                };
                // Two networks may hold the same address.
                let bridge = bridge_index(bridge);
                let found = peers
                    .iter()
                    .find(|peer| peer.mac == endpoint.mac && peer.bridge == bridge);
                match found {
                    Some(peer) => {
                        let of = aliases.by_index.entry(peer.index).or_default();
                        of.extend(all.iter().cloned());
                    }
                    None => lacking = true,
                }
            }
        }
        (aliases, lacking)
    }
}

/// A name of an engine; `None` for one that no settings could name.
fn alias(kind: &str, name: &str) -> Option<IfPattern> {
    format!("{kind}{name}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(last: u8) -> MacAddr {
        MacAddr([2, 0x42, 0, 0, 0, last])
    }

    fn index(n: u32) -> IfIndex {
        IfIndex::new(n).unwrap()
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

    fn shown(aliases: &Aliases) -> Vec<String> {
        let names = |of: &std::collections::BTreeSet<IfPattern>| {
            let all: Vec<_> = of.iter().map(ToString::to_string).collect();
            all.join(" ")
        };
        let by_name = aliases.by_name.iter();
        let by_name = by_name.map(|(name, of)| format!("{name} {}", names(of)));
        let by_index = aliases.by_index.iter();
        by_name
            .chain(by_index.map(|(index, of)| format!("{index} {}", names(of))))
            .collect()
    }

    fn bridges(name: &IfName) -> Option<IfIndex> {
        match name.as_str() {
            "br-a" => Some(index(10)),
            "br-b" => Some(index(11)),
            _ => None,
        }
    }

    #[test]
    fn a_container_is_each_of_its_cables_and_a_network_its_bridge() {
        let engine = EngineState {
            networks: vec![
                network("a", Some("br-a")),
                network("b", Some("br-b")),
                network("m", None),
            ],
            containers: vec![
                // The same address on two networks.
                container("one", &[("a", 1), ("b", 1), ("m", 9)]),
                container("two", &[("a", 2)]),
                container("shared", &[]),
            ],
        };
        let peer = |n: u32, bridge: u32, last: u8| VethPeer {
            index: index(n),
            bridge: IfIndex::new(bridge),
            mac: mac(last),
        };
        let peers = [peer(20, 10, 1), peer(21, 11, 1), peer(22, 10, 2)];
        let (aliases, lacking) = engine.names(&peers, bridges);
        assert!(!lacking);
        assert_eq!(
            shown(&aliases),
            [
                "br-a network:net-a",
                "br-b network:net-b",
                "20 container:one label:role=cam",
                "21 container:one label:role=cam",
                "22 container:two label:role=cam",
            ]
        );
        let (aliases, lacking) = engine.names(&peers[..1], bridges);
        assert!(lacking, "cables are missing");
        assert_eq!(aliases.by_index.len(), 1);
    }

    #[test]
    fn addresses_are_six_bytes() {
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
