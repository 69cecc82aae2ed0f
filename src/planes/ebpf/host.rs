//! What the kernel needs to know of this host to forward by itself: kinds of links, and the groups
//! that programs of the host listen to.

use std::cell::RefCell;
use std::net::IpAddr;

use ahash::AHashMap;

use crate::model::InterfaceId;
use crate::sys::host_groups::HostGroups;
use crate::sys::link_properties::{carries_links, link_properties};

/// The facts, as of the last look.
#[derive(Default)]
pub(super) struct OffloadHost {
    groups: HostGroups,
    /// Whether the frames of a link have an Ethernet header, and whether they also go to another
    /// link.
    links: RefCell<AHashMap<InterfaceId, (bool, bool)>>,
}

impl OffloadHost {
    /// Returns the facts as they are now.
    pub(super) fn look_first() -> Self {
        let mut facts = Self::default();
        facts.look();
        facts
    }

    /// Looks again which groups the programs of this host listen to.
    pub(super) fn look(&mut self) {
        self.groups = HostGroups::read();
    }

    /// Asks the kernel again about each link.
    pub(super) fn forget_links(&mut self) {
        self.links.borrow_mut().clear();
    }

    fn link(&self, interface: InterfaceId) -> (bool, bool) {
        let ask = || {
            let Some(index) = interface.ifindex() else {
                return (false, true);
            };
            link_properties(index).map_or((false, true), |link| {
                let feeds_another = link.has_master || carries_links(index).unwrap_or(true);
                (link.ethernet_header, feeds_another)
            })
        };
        *(self.links.borrow_mut())
            .entry(interface)
            .or_insert_with(ask)
    }

    /// Returns whether frames of an interface start with an Ethernet header that the IP header
    /// follows.
    pub(super) fn is_plain_ethernet(&self, interface: InterfaceId) -> bool {
        self.link(interface).0
    }

    /// Returns whether the host needs the packets to a group that arrive on an interface.
    pub(super) fn host_wants(&self, interface: InterfaceId, group: IpAddr) -> bool {
        let index = interface.ifindex();
        self.link(interface).1 || index.is_none_or(|index| self.groups.wants(index, group))
    }
}
