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
    links: RefCell<AHashMap<InterfaceId, LinkFact>>,
}

/// What is known of a link.
#[derive(Clone, Copy)]
struct LinkFact {
    /// Its frames have an Ethernet header.
    ethernet_header: bool,
    /// Its frames also go to another link.
    feeds_another: bool,
    /// It is a veth, and the other end is in another network namespace.
    peer_elsewhere: bool,
}

impl LinkFact {
    const UNKNOWN: Self = Self {
        ethernet_header: false,
        feeds_another: true,
        peer_elsewhere: false,
    };
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

    fn link(&self, interface: InterfaceId) -> LinkFact {
        let ask = || {
            let Some(index) = interface.ifindex() else {
                return LinkFact::UNKNOWN;
            };
            link_properties(index).map_or(LinkFact::UNKNOWN, |link| LinkFact {
                ethernet_header: link.ethernet_header,
                feeds_another: link.has_master || carries_links(index).unwrap_or(true),
                peer_elsewhere: link.veth && link.peer_elsewhere,
            })
        };
        *(self.links.borrow_mut())
            .entry(interface)
            .or_insert_with(ask)
    }

    /// Returns whether frames of an interface start with an Ethernet header that the IP header
    /// follows.
    pub(super) fn is_plain_ethernet(&self, interface: InterfaceId) -> bool {
        self.link(interface).ethernet_header
    }

    /// Returns whether an interface is one end of a veth pair, and the other end is in another
    /// network namespace.
    pub(super) fn has_peer_elsewhere(&self, interface: InterfaceId) -> bool {
        self.link(interface).peer_elsewhere
    }

    /// Returns whether the host needs the packets to a group that arrive on an interface.
    pub(super) fn host_wants(&self, interface: InterfaceId, group: IpAddr) -> bool {
        let index = interface.ifindex();
        self.link(interface).feeds_another
            || index.is_none_or(|index| self.groups.wants(index, group))
    }
}
