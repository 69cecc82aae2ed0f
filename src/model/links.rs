//! The interfaces that exist now, as netlink tells them.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{IfIndex, IfName, IfPattern};

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Link {
    /// The kernel's number.
    pub index: IfIndex,
    /// Its name now.
    pub name: IfName,
    /// Largest IP packet it carries, in bytes.
    pub mtu: u32,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// It has a carrier (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// Of a VLAN interface: the interface it stands on, and its VLAN.
    pub vlan: Option<(IfIndex, u16)>,
}

impl Link {
    /// A link that is up, with the MTU of Ethernet.
    pub fn new(index: IfIndex, name: IfName) -> Self {
        Self {
            index,
            name,
            mtu: 1500,
            up: true,
            carrier: true,
            vlan: None,
        }
    }
}

/// All interfaces, by index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Links(BTreeMap<IfIndex, Link>);

impl Links {
    /// Adds a link or replaces what was known of it. True where that changed something.
    pub fn insert(&mut self, link: Link) -> bool {
        let old = self.0.get(&link.index);
        let changed = old != Some(&link);
        if changed {
            self.0.insert(link.index, link);
        }
        changed
    }

    /// Forgets a link. True where it was known.
    pub fn remove(&mut self, index: IfIndex) -> bool {
        self.0.remove(&index).is_some()
    }

    /// The link of that index.
    pub fn get(&self, index: IfIndex) -> Option<&Link> {
        self.0.get(&index)
    }

    /// The link of that name.
    pub fn named(&self, name: &str) -> Option<&Link> {
        self.0.values().find(|l| l.name.as_str() == name)
    }

    /// All links, by index.
    pub fn iter(&self) -> impl Iterator<Item = &Link> {
        self.0.values()
    }

    /// The links whose name fits, by index.
    pub fn matching<'a>(&'a self, pattern: &'a IfPattern) -> impl Iterator<Item = &'a Link> {
        self.iter().filter(|l| pattern.matches(&l.name))
    }

    /// The VLANs that have an interface of their own on top of `parent`.
    pub fn vlans_on(&self, parent: IfIndex) -> impl Iterator<Item = u16> + '_ {
        self.iter()
            .filter_map(|l| l.vlan)
            .filter_map(move |(on, id)| (on == parent).then_some(id))
    }
}

impl FromIterator<Link> for Links {
    fn from_iter<T: IntoIterator<Item = Link>>(links: T) -> Self {
        Self(links.into_iter().map(|l| (l.index, l)).collect())
    }
}
