//! The state of a container engine, and the interface aliases that follow from it. Does no I/O.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::model::{Aliases, IfName, IfPattern, InterfaceId, NoInterface};

/// The driver of networks with a bridge on the host.
pub(super) const BRIDGE_DRIVER: &str = "bridge";

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
    /// The user-visible names. The default network of Podman has two.
    pub names: Vec<String>,
    /// The driver, such as `bridge` or `overlay`.
    pub driver: String,
    /// The bridge of the network; `None` for networks of other drivers, or if it is not known.
    pub bridge: Option<IfName>,
    /// The interface of the host to which a `macvlan` or `ipvlan` network belongs, if it is known.
    pub parent: Option<IfName>,
    /// Whether the engine forwards nothing between the network and others.
    pub is_internal: bool,
}

impl EngineNetwork {
    /// Returns whether `id` is the ID or a name of the network. Podman gives a name in an
    /// [`Endpoint`].
    pub(super) fn is(&self, id: &str) -> bool {
        self.id == id || self.names.iter().any(|name| name == id)
    }

    /// Returns whether the driver creates a bridge on the host.
    fn has_bridge(&self) -> bool {
        self.driver == BRIDGE_DRIVER
    }
}

/// The attachment of a container to a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// [`EngineNetwork::id`], or one of its names.
    pub network: String,
    /// The MAC address of the container's interface.
    pub mac: MacAddr,
    /// The addresses of the container's interface.
    pub addresses: Vec<IpAddr>,
}

/// A port of a container that is published on addresses of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishedPort {
    /// The port of the container.
    pub private: u16,
    /// The port of the host.
    pub public: u16,
    /// Whether it is a port of TCP; else of UDP.
    pub is_tcp: bool,
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
    /// Its ports that other hosts reach at this host.
    pub published: Vec<PublishedPort>,
}

/// The networks and running containers of an engine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineState {
    /// Its networks.
    pub networks: Vec<EngineNetwork>,
    /// Its running containers.
    pub containers: Vec<Container>,
    /// Whether the engine runs without root and keeps its interfaces in another network namespace.
    pub is_rootless: bool,
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

/// The interfaces of this host that interface aliases can refer to.
#[derive(Debug, Default)]
pub struct HostInterfaces {
    /// The index of each interface name.
    pub indexes: BTreeMap<IfName, InterfaceId>,
    /// All veth pairs into other namespaces.
    pub veths: Vec<VethPeer>,
    /// True if the kernel refused to return the other ends because CAP_NET_ADMIN is missing.
    pub is_refused: bool,
}

impl EngineState {
    /// Returns the aliases of interfaces, and true if some endpoint has no veth pair yet (the
    /// engine may still be creating it).
    pub fn aliases(&self, host: &HostInterfaces) -> (Aliases, bool) {
        let mut aliases = Aliases::default();
        let mut is_incomplete = false;
        for network in &self.networks {
            let names = || network.names.iter().filter_map(|n| alias("network:", n));
            if let Some(bridge) = &network.bridge {
                let entry = aliases.by_name.entry(bridge.clone()).or_default();
                entry.extend(names());
            }
            if let Some(reason) = self.missing_bridge(network, host) {
                let reasons = names().map(|name| (name, reason.clone()));
                aliases.without_interface.extend(reasons);
            }
        }
        for container in &self.containers {
            let addresses = container.endpoints.iter().flat_map(|e| &e.addresses);
            for address in addresses {
                for port in &container.published {
                    let key = (*address, port.private, port.is_tcp);
                    aliases.published.insert(key, port.public);
                }
            }
            let names = container.names.iter();
            let names = names.filter_map(|name| alias("container:", name));
            let labels = container.labels.iter();
            let labels =
                labels.filter_map(|(key, value)| alias("label:", &format!("{key}={value}")));
            let all: Vec<IfPattern> = names.chain(labels).collect();
            for endpoint in &container.endpoints {
                // A network without a bridge has no veth pairs.
                let Some(bridge) = self.network(endpoint).and_then(|n| n.bridge.as_ref()) else {
                    continue;
                };
                // Endpoints of two networks may have the same MAC address.
                let bridge = host.indexes.get(bridge).copied();
                let found = host
                    .veths
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
            if let Some(reason) = self.missing_veth(container, host) {
                let reasons = all.into_iter().map(|name| (name, reason.clone()));
                aliases.without_interface.extend(reasons);
            }
        }
        (aliases, is_incomplete)
    }

    fn network(&self, endpoint: &Endpoint) -> Option<&EngineNetwork> {
        self.networks.iter().find(|n| n.is(&endpoint.network))
    }

    /// Returns why a network has no interface; `None` if it has one or if the reason is not known.
    fn missing_bridge(
        &self,
        network: &EngineNetwork,
        host: &HostInterfaces,
    ) -> Option<NoInterface> {
        if !network.has_bridge() {
            return Some(NoInterface::Driver(network.driver.clone()));
        }
        let bridge = network.bridge.as_ref()?;
        if host.indexes.contains_key(bridge) {
            return None;
        }
        Some(match self.is_rootless {
            true => NoInterface::Rootless,
            false => NoInterface::NoBridge(bridge.clone()),
        })
    }

    /// Returns why a container has no interface. A veth pair that the engine may still be creating
    /// is no reason.
    fn missing_veth(&self, container: &Container, host: &HostInterfaces) -> Option<NoInterface> {
        let networks = container.endpoints.iter().map(|e| self.network(e));
        let networks: Vec<Option<&EngineNetwork>> = networks.collect();
        let Some(first) = networks.first() else {
            return Some(NoInterface::NoNetwork);
        };
        if networks.iter().all(|n| n.is_some_and(|n| !n.has_bridge())) {
            return first.map(|n| NoInterface::ContainerDriver(n.driver.clone()));
        }
        if self.is_rootless {
            return Some(NoInterface::Rootless);
        }
        host.is_refused.then_some(NoInterface::NoCapability)
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
            names: vec![format!("net-{id}")],
            driver: bridge.map_or("macvlan", |_| "bridge").into(),
            bridge: bridge.map(|b| b.parse().unwrap()),
            parent: None,
            is_internal: false,
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
                    addresses: vec![[172, 20, 0, *last].into()],
                })
                .collect(),
            published: Vec::new(),
        }
    }

    #[test]
    fn published_ports_belong_to_each_address_of_the_container() {
        let port = |private, public, is_tcp| PublishedPort {
            private,
            public,
            is_tcp,
        };
        let container = Container {
            published: vec![port(80, 8080, true), port(53, 5300, false)],
            ..container("web", &[("a", 2), ("b", 3)])
        };
        let state = EngineState {
            containers: vec![container],
            ..EngineState::default()
        };
        let (aliases, _) = state.aliases(&HostInterfaces::default());
        assert_eq!(aliases.published.len(), 4);
        let found = |last, port, is_tcp| {
            let key = ([172, 20, 0, last].into(), port, is_tcp);
            aliases.published.get(&key).copied()
        };
        assert_eq!(found(2, 80, true), Some(8080));
        assert_eq!(found(3, 53, false), Some(5300));
        assert_eq!(found(2, 80, false), None);
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

    /// Returns the bridges `br-a` and `br-b`, and a veth pair for each index of a host end, index
    /// of a bridge and MAC address.
    fn host(veths: &[(u32, u32, u8)]) -> HostInterfaces {
        let bridges = [("br-a", 10), ("br-b", 11)];
        let bridges = bridges.map(|(name, n)| (name.parse().unwrap(), index(n)));
        let veths = veths.iter().map(|(n, bridge, last)| VethPeer {
            index: index(*n),
            bridge: InterfaceId::new(*bridge),
            mac: mac(*last),
        });
        HostInterfaces {
            indexes: bridges.into(),
            veths: veths.collect(),
            is_refused: false,
        }
    }

    fn reasons(engine: &EngineState, host: &HostInterfaces) -> Vec<String> {
        let (aliases, _) = engine.aliases(host);
        let reasons = aliases.without_interface.iter();
        reasons
            .map(|(name, reason)| format!("{name}: {reason}"))
            .collect()
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
            is_rootless: false,
        };
        let peers = [(20, 10, 1), (21, 11, 1), (22, 10, 2)];
        let (aliases, is_incomplete) = engine.aliases(&host(&peers));
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
        let (aliases, is_incomplete) = engine.aliases(&host(&peers[..1]));
        assert!(is_incomplete, "veth pairs are missing");
        assert_eq!(aliases.by_index.len(), 1);
    }

    #[test]
    fn podman_endpoint_refers_to_its_network_by_name() {
        let mut default = network("b", Some("br-b"));
        default.names.push("podman".into());
        let engine = EngineState {
            networks: vec![network("a", Some("br-a")), default],
            containers: vec![
                container("one", &[("net-a", 1)]),
                container("two", &[("podman", 1)]),
            ],
            is_rootless: false,
        };
        let (aliases, is_incomplete) = engine.aliases(&host(&[(20, 10, 1), (21, 11, 1)]));
        assert!(!is_incomplete);
        assert_eq!(
            to_lines(&aliases),
            [
                "br-a network:net-a",
                "br-b network:net-b network:podman",
                "20 container:one label:role=cam",
                "21 container:two label:role=cam",
            ]
        );
    }

    #[test]
    fn names_without_interface_have_a_reason() {
        let mut engine = EngineState {
            networks: vec![
                network("a", Some("br-a")),
                network("gone", Some("br-gone")),
                network("m", None),
            ],
            containers: vec![container("one", &[("m", 1)]), container("two", &[("a", 2)])],
            is_rootless: false,
        };
        engine.containers[0].labels.clear();
        engine.containers[1].labels.clear();
        let mut host = host(&[]);
        let macvlan = [
            "container:one: a network with the driver macvlan has no veth pair here; its \
             containers receive from the LAN directly",
            "network:net-m: a network with the driver macvlan has no bridge here; its containers \
             receive from the LAN directly",
        ];
        let no_bridge = "network:net-gone: its bridge br-gone does not exist here; Podman creates \
                         the bridge with the first container";
        assert_eq!(reasons(&engine, &host), [macvlan[0], no_bridge, macvlan[1]]);
        host.is_refused = true;
        let no_capability = "container:two: CAP_NET_ADMIN is missing; network: needs none";
        assert!(reasons(&engine, &host).contains(&no_capability.to_string()));
        engine.is_rootless = true;
        host.indexes.clear();
        let rootless = reasons(&engine, &host);
        let rootless = rootless.iter().filter(|r| r.contains("rootless"));
        assert_eq!(rootless.count(), 3);
        engine.containers[0].endpoints.clear();
        let shared = &reasons(&engine, &host)[0];
        assert!(shared.contains("no network of its own"), "{shared}");
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
