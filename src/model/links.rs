//! The interfaces that exist now, as netlink tells them.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::Serialize;

use super::{IfName, IfPattern, InterfaceId, PlaneName};

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Link {
    /// Its identity.
    pub index: InterfaceId,
    /// Its name now.
    pub name: IfName,
    /// Largest IP packet it carries, in bytes.
    pub mtu: u32,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// It has a carrier (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// Of a VLAN interface: the interface it stands on, and its VLAN.
    pub vlan: Option<(InterfaceId, u16)>,
    /// Names it has besides the kernel's, such as `container:web`: what
    /// [`IfPattern::is_alias`] is true for.
    pub known_as: BTreeSet<IfPattern>,
    /// The plane that serves it. `None` for the default plane, which serves all links of the
    /// kernel.
    #[serde(skip)]
    pub plane: Option<PlaneName>,
}

impl Link {
    /// A link that is up, with the MTU of Ethernet.
    pub fn new(index: InterfaceId, name: IfName) -> Self {
        Self {
            index,
            name,
            mtu: 1500,
            up: true,
            carrier: true,
            vlan: None,
            known_as: BTreeSet::new(),
            plane: None,
        }
    }

    /// True where a name or pattern means this link.
    pub fn fits(&self, pattern: &IfPattern) -> bool {
        if pattern.is_alias() {
            self.known_as.iter().any(|a| pattern.matches_alias(a))
        } else {
            pattern.matches(&self.name)
        }
    }
}

/// Names of links that somebody other than the kernel gives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Aliases {
    /// Of links known by index.
    pub by_index: BTreeMap<InterfaceId, BTreeSet<IfPattern>>,
    /// Of links known by name.
    pub by_name: BTreeMap<IfName, BTreeSet<IfPattern>>,
}

/// All interfaces and their addresses, by index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Links {
    links: BTreeMap<InterfaceId, Link>,
    addresses: BTreeMap<InterfaceId, Vec<IpNet>>,
}

impl Links {
    /// Adds a link or replaces what was known of it, but for its other names: a link that
    /// brings none keeps them. True where that changed something.
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

    /// Forgets a link. True where it was known.
    pub fn remove(&mut self, index: InterfaceId) -> bool {
        self.addresses.remove(&index);
        self.links.remove(&index).is_some()
    }

    /// Adds an address with the length of its prefix; the kernel's primary one comes first.
    /// True where it was new.
    pub fn insert_address(&mut self, index: InterfaceId, address: IpNet) -> bool {
        let addresses = self.addresses.entry(index).or_default();
        let new = !addresses.contains(&address);
        if new {
            addresses.push(address);
        }
        new
    }

    /// Forgets an address. True where it was known.
    pub fn remove_address(&mut self, index: InterfaceId, address: IpNet) -> bool {
        let Some(addresses) = self.addresses.get_mut(&index) else {
            return false;
        };
        let before = addresses.len();
        addresses.retain(|a| *a != address);
        addresses.len() != before
    }

    /// The addresses of an interface, each with the length of its prefix.
    pub fn addresses(&self, index: InterfaceId) -> &[IpNet] {
        self.addresses.get(&index).map_or(&[], Vec::as_slice)
    }

    /// Gives a link another name.
    pub fn call(&mut self, index: InterfaceId, name: IfPattern) {
        if let Some(link) = self.links.get_mut(&index) {
            link.known_as.insert(name);
        }
    }

    /// These links, with these names besides those they have.
    pub fn called(&self, aliases: &Aliases) -> Self {
        let mut links = self.clone();
        for link in links.links.values_mut() {
            let by_index = aliases.by_index.get(&link.index);
            let by_name = aliases.by_name.get(&link.name);
            let more = by_index.into_iter().chain(by_name).flatten();
            link.known_as.extend(more.cloned());
        }
        links
    }

    /// The link of that index.
    pub fn get(&self, index: InterfaceId) -> Option<&Link> {
        self.links.get(&index)
    }

    /// The link of that name.
    pub fn named(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|l| l.name.as_str() == name)
    }

    /// All links, by index.
    pub fn iter(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }

    /// The links whose name fits, by index.
    pub fn matching<'a>(&'a self, pattern: &'a IfPattern) -> impl Iterator<Item = &'a Link> {
        self.iter().filter(|l| l.fits(pattern))
    }

    /// Returns the links that match any of `patterns`, without duplicates, in the order of the
    /// patterns.
    pub fn matching_any(&self, patterns: &[IfPattern]) -> Vec<&Link> {
        let mut matching: Vec<&Link> = Vec::new();
        for pattern in patterns {
            for link in self.iter().filter(|l| l.fits(pattern)) {
                if !matching.iter().any(|m| m.index == link.index) {
                    matching.push(link);
                }
            }
        }
        matching
    }

    /// The VLANs that have an interface of their own on top of `parent`.
    pub fn vlans_on(&self, parent: InterfaceId) -> impl Iterator<Item = u16> + '_ {
        self.iter()
            .filter_map(|l| l.vlan)
            .filter_map(move |(on, id)| (on == parent).then_some(id))
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
