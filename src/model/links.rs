//! The current network interfaces, as reported by netlink.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::{Aliases, Bandwidth, IfName, IfPattern, InterfaceId, MacAddress, PlaneName};

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Link {
    /// Its identity.
    pub index: InterfaceId,
    /// The current name.
    pub name: IfName,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Whether it is administratively up (`IFF_UP`).
    pub up: bool,
    /// Whether it has a carrier (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// The link-layer address; `None` on links without addresses, such as tunnels.
    #[serde(skip)]
    pub address: Option<MacAddress>,
    /// The parent interface and the VLAN ID of a VLAN interface.
    pub vlan: Option<(InterfaceId, u16)>,
    /// Whether it is a port of a bridge, bond or team, whose packets belong to that interface.
    /// An interface in a VRF is none: its packets are its own.
    pub is_port: bool,
    /// Whether it is the loopback interface (`IFF_LOOPBACK`).
    pub loopback: bool,
    /// Aliases in addition to the kernel's name, such as `container:web`. [`IfPattern::is_alias`]
    /// is true for them.
    pub known_as: BTreeSet<IfPattern>,
    /// The plane that serves the link; `None` for the default plane, which serves all links of the
    /// kernel.
    #[serde(skip)]
    pub plane: Option<PlaneName>,
    /// Whether packets only arrive on it, such as on the gateway of a tunnel.
    #[serde(skip)]
    pub receives_only: bool,
    /// The limit of the streams on it, if it is part of its own configuration.
    #[serde(skip)]
    pub bandwidth: Option<Bandwidth>,
}

impl Link {
    /// Returns a link that is up, with an MTU of 1500 bytes and no aliases.
    pub fn new(index: InterfaceId, name: IfName) -> Self {
        Self {
            index,
            name,
            mtu: 1500,
            up: true,
            carrier: true,
            address: None,
            vlan: None,
            is_port: false,
            loopback: false,
            known_as: BTreeSet::new(),
            plane: None,
            receives_only: false,
            bandwidth: None,
        }
    }

    /// Returns whether a name or pattern in a rule selects the link.
    ///
    /// A port of a bridge, bond or team is selected by its exact name or an alias only. A pattern
    /// that fits the ports and the bridge would forward each packet several times. The same holds
    /// for the loopback interface, where only local programs receive, and for tunnels, which lead to
    /// other networks.
    pub fn matches(&self, pattern: &IfPattern) -> bool {
        let is_tunnel = self.index.ifindex().is_none();
        let needs_name = self.is_port || self.loopback || is_tunnel;
        let is_pattern = pattern.is_pattern() && !pattern.is_alias();
        !(needs_name && is_pattern) && self.is_named(pattern)
    }

    /// Returns whether a name or pattern matches the name or an alias of the link.
    pub fn is_named(&self, pattern: &IfPattern) -> bool {
        if pattern.is_alias() {
            self.known_as.iter().any(|a| pattern.matches_alias(a))
        } else {
            pattern.matches(&self.name)
        }
    }
}

/// An address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LinkAddress {
    /// The address of this host.
    pub address: IpAddr,
    /// The addresses that are on the link: the subnet of the address, or the peer of a
    /// point-to-point link.
    pub on_link: IpNet,
}

/// All network interfaces and their addresses, by index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Links {
    links: BTreeMap<InterfaceId, Link>,
    addresses: BTreeMap<InterfaceId, Vec<LinkAddress>>,
}

impl Links {
    /// Adds or replaces a link. A link without aliases keeps those of the link that it replaces.
    /// Returns whether anything changed.
    pub fn insert(&mut self, mut link: Link) -> bool {
        let old = self.links.get(&link.index);
        if let Some(old) = old.filter(|_| link.known_as.is_empty()) {
            link.known_as.clone_from(&old.known_as);
        }
        let changed = old != Some(&link);
        if changed {
            self.links.insert(link.index, link);
        }
        changed
    }

    /// Removes a link and its addresses. Returns whether it existed.
    pub fn remove(&mut self, index: InterfaceId) -> bool {
        self.addresses.remove(&index);
        self.links.remove(&index).is_some()
    }

    /// Adds an address. The kernel's primary address must be added first. Returns whether it is
    /// new.
    pub fn insert_address(&mut self, index: InterfaceId, address: LinkAddress) -> bool {
        let addresses = self.addresses.entry(index).or_default();
        let new = !addresses.contains(&address);
        if new {
            addresses.push(address);
        }
        new
    }

    /// Removes an address. Returns whether it existed.
    pub fn remove_address(&mut self, index: InterfaceId, address: LinkAddress) -> bool {
        let Some(addresses) = self.addresses.get_mut(&index) else {
            return false;
        };
        let before = addresses.len();
        addresses.retain(|a| *a != address);
        addresses.len() != before
    }

    /// Returns the addresses of an interface.
    pub fn addresses(&self, index: InterfaceId) -> &[LinkAddress] {
        self.addresses.get(&index).map_or(&[], Vec::as_slice)
    }

    /// Returns the links for which `keep` is true, with their addresses.
    pub fn filtered(&self, keep: impl Fn(&Link) -> bool) -> Self {
        let mut kept = self.clone();
        kept.links.retain(|_, link| keep(link));
        kept.addresses
            .retain(|index, _| kept.links.contains_key(index));
        kept
    }

    /// Adds an alias to a link. Does nothing if the link does not exist.
    pub fn add_alias(&mut self, index: InterfaceId, alias: IfPattern) {
        if let Some(link) = self.links.get_mut(&index) {
            link.known_as.insert(alias);
        }
    }

    /// Returns a copy of the links with additional aliases.
    pub fn with_aliases(&self, aliases: &Aliases) -> Self {
        let mut links = self.clone();
        for link in links.links.values_mut() {
            let by_index = aliases.by_index.get(&link.index);
            let by_name = aliases.by_name.get(&link.name);
            let added = by_index.into_iter().chain(by_name).flatten();
            link.known_as.extend(added.cloned());
        }
        links
    }

    /// Returns the link with an index.
    pub fn get(&self, index: InterfaceId) -> Option<&Link> {
        self.links.get(&index)
    }

    /// Returns the link with a name.
    pub fn by_name(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|l| l.name.as_str() == name)
    }

    /// Removes the links of the kernel whose names other interfaces have, such as tunnels. Returns
    /// the names.
    pub fn remove_named(&mut self, names: &BTreeSet<IfName>) -> BTreeSet<IfName> {
        let named = self.iter().filter(|link| names.contains(&link.name));
        let named: Vec<_> = named.map(|l| (l.index, l.name.clone())).collect();
        let removed = named.into_iter().map(|(index, name)| {
            self.remove(index);
            name
        });
        removed.collect()
    }

    /// Returns all links, by index.
    pub fn iter(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }

    /// Returns the links that match `pattern`, by index.
    pub fn matching<'a>(&'a self, pattern: &'a IfPattern) -> impl Iterator<Item = &'a Link> {
        self.iter().filter(|l| l.matches(pattern))
    }

    /// Returns the link whose name is most likely meant by the name of a link that does not exist:
    /// one with a typing error in its letters. Another number is another link.
    pub fn similar(&self, wanted: &IfPattern) -> Option<&IfName> {
        if !wanted.is_single() || wanted.is_engine_name() {
            return None;
        }
        let wanted = wanted.as_str();
        let letters = |name: &str| name.replace(|c: char| c.is_ascii_digit(), "");
        let rated = self.iter().filter_map(|link| {
            let name = link.name.as_str();
            let difference = strsim::osa_distance(wanted, name);
            let is_typing_error = difference <= name.len() / 3 && letters(wanted) != letters(name);
            is_typing_error.then_some((difference, &link.name))
        });
        rated.min().map(|(_, name)| name)
    }

    /// Returns the links that a pattern fits but does not select, because they must be named, if it
    /// selects no other link.
    pub fn unselected<'a>(&'a self, pattern: &'a IfPattern) -> Vec<&'a Link> {
        match self.matching(pattern).next() {
            Some(_) => Vec::new(),
            None => self.iter().filter(|l| l.is_named(pattern)).collect(),
        }
    }

    /// Returns the links that match any of `patterns`, without duplicates, in the order of the
    /// patterns.
    pub fn matching_any(&self, patterns: &[IfPattern]) -> Vec<&Link> {
        let mut matching: Vec<&Link> = Vec::new();
        for pattern in patterns {
            for link in self.iter().filter(|l| l.matches(pattern)) {
                if !matching.iter().any(|m| m.index == link.index) {
                    matching.push(link);
                }
            }
        }
        matching
    }

    /// Returns the IDs of the VLANs for which a VLAN interface with this parent exists.
    pub fn vlan_ids_of(&self, parent: InterfaceId) -> impl Iterator<Item = u16> + '_ {
        self.iter()
            .filter_map(|l| l.vlan)
            .filter_map(move |(of, id)| (of == parent).then_some(id))
    }
}

impl Extend<Link> for Links {
    fn extend<T: IntoIterator<Item = Link>>(&mut self, links: T) {
        for link in links {
            self.insert(link);
        }
    }
}

impl FromIterator<Link> for Links {
    fn from_iter<T: IntoIterator<Item = Link>>(links: T) -> Self {
        Self {
            links: links.into_iter().map(|l| (l.index, l)).collect(),
            addresses: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_links_and_their_addresses_are_removed() {
        let id = |n| InterfaceId::new(n).unwrap();
        let name = |text: &str| text.parse::<IfName>().unwrap();
        let mut links: Links = [Link::new(id(1), name("a")), Link::new(id(2), name("b"))]
            .into_iter()
            .collect();
        let address = "10.0.0.1".parse::<IpAddr>().unwrap();
        let on_link = "10.0.0.0/24".parse().unwrap();
        links.insert_address(id(1), LinkAddress { address, on_link });
        let names = BTreeSet::from([name("a"), name("c")]);
        assert_eq!(links.remove_named(&names), BTreeSet::from([name("a")]));
        assert!(links.by_name("a").is_none() && links.by_name("b").is_some());
        assert!(links.addresses(id(1)).is_empty());
    }

    #[test]
    fn ports_and_loopback_are_selected_by_name_only() {
        let id = |n| InterfaceId::new(n).unwrap();
        let pattern = |text: &str| text.parse::<IfPattern>().unwrap();
        let mut port = Link::new(id(1), "eth1".parse().unwrap());
        let plain = port.clone();
        port.is_port = true;
        port.known_as.insert(pattern("container:web"));
        for (text, selects_port, selects_plain) in [
            ("eth1", true, true),
            ("eth*", false, true),
            ("*", false, true),
            ("container:web", true, false),
            ("container:*", true, false),
        ] {
            assert_eq!(port.matches(&pattern(text)), selects_port, "{text}");
            assert_eq!(plain.matches(&pattern(text)), selects_plain, "{text}");
        }
        assert!(port.is_named(&pattern("eth*")));
        let mut lo = Link::new(id(2), "lo".parse().unwrap());
        lo.loopback = true;
        assert!(lo.matches(&pattern("lo")));
        assert!(!lo.matches(&pattern("l*")));
    }
}
