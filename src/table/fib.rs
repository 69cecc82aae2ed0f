//! The forwarding snapshot: immutable, shared by every interface actor, replaced whole.

use std::net::IpAddr;

use ahash::AHashMap;

use super::lookup::PrefixTable;
use crate::model::{IfIndex, IfName, RouteName, SourcePrefix, TtlPolicy, TtlThreshold};

/// Position of an egress in [`Fib::egresses`].
pub type EgressId = u32;

/// Position of an entry in [`Fib::entries`].
pub type EntryId = u32;

/// Position of a path in [`Fib::paths`].
pub type PathId = u32;

/// What the data path needs to know, all of it.
#[derive(Debug, Default)]
pub struct Fib {
    /// Counts up with every snapshot.
    pub generation: u64,
    /// Per interface that packets arrive on.
    pub ingresses: AHashMap<IfIndex, Ingress>,
    /// Every rule on every ingress.
    pub entries: Vec<Entry>,
    /// The interfaces packets leave on.
    pub egresses: Vec<Egress>,
    /// Every (route, IIF, OIF) packets can take; what is counted is counted per path.
    pub paths: Vec<Path>,
}

/// What is known of an interface packets arrive on.
#[derive(Debug, Default)]
pub struct Ingress {
    /// Rules for packets that arrive here.
    pub entries: PrefixTable<EntryId>,
    /// VLANs that have an interface of their own on top of this one: their frames are that
    /// interface's, although they are seen here too.
    pub vlans_elsewhere: Vec<u16>,
}

/// One rule on one ingress.
#[derive(Debug)]
pub struct Entry {
    /// Whose packets these are.
    pub route: RouteName,
    /// Senders the rule leaves to less specific rules.
    pub except_sources: Vec<SourcePrefix>,
    /// What happens to the TTL.
    pub ttl: TtlPolicy,
    /// Whether groups of link-local scope are forwarded too.
    pub link_local: bool,
    /// Whether packets that come back within a moment are stopped.
    pub loop_guard: bool,
    /// Where packets go; empty while none of the egresses exists.
    pub paths: Vec<PathId>,
}

impl Entry {
    /// Whether the rule takes packets of `source`, which its prefix is known to hold.
    pub fn takes(&self, source: IpAddr) -> bool {
        !self
            .except_sources
            .iter()
            .any(|except| except.net().contains(&source))
    }
}

/// An interface packets leave on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Egress {
    /// The kernel's number.
    pub index: IfIndex,
    /// Its name.
    pub name: IfName,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// It is up and has a carrier. Without one the kernel takes packets and throws them away,
    /// without an error.
    pub running: bool,
}

/// One way through the router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// The route it belongs to.
    pub route: RouteName,
    /// Name of the interface packets arrive on.
    pub iif: IfName,
    /// Where they leave.
    pub egress: EgressId,
    /// They leave only when they arrived with a TTL above this.
    pub threshold: Option<TtlThreshold>,
}

impl Fib {
    /// The interface a path leaves on.
    pub fn egress_of(&self, path: PathId) -> Option<&Egress> {
        let path = self.paths.get(path as usize)?;
        self.egresses.get(path.egress as usize)
    }
}
