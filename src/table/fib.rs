//! The forwarding snapshot: immutable, shared by every interface actor, replaced whole.
//!
//! What rules and links make of it is shared by the snapshots between which only memberships
//! changed.

use std::net::IpAddr;
use std::sync::Arc;

use ahash::AHashMap;

use super::ids::{DownstreamId, EgressId, EntryId, PathId};
use super::lookup::PrefixTable;
use super::oif_table::OifTable;
use super::upstream_selector::UpstreamRule;
use crate::model::{
    IfName, InterfaceId, PlaneName, ProxyRule, RouteName, SourcePrefix, TranslationRule, TtlPolicy,
    TtlThreshold,
};

/// What the data path needs to know, all of it. A clone shares all but the number.
#[derive(Debug, Clone, Default)]
pub struct Fib {
    /// Counts up with every snapshot.
    pub generation: u64,
    /// Per interface that packets arrive on.
    pub ingresses: Arc<AHashMap<InterfaceId, Ingress>>,
    /// Every rule and every proxy on every ingress.
    pub entries: Arc<Vec<Entry>>,
    /// The interfaces packets leave on.
    pub egresses: Arc<Vec<Egress>>,
    /// Every (route or proxy, IIF, OIF) packets can take; what is counted is counted per path.
    pub paths: Arc<Vec<Path>>,
    /// The interfaces behind which hosts ask, those of one proxy side by side.
    pub downstreams: Arc<Vec<DownstreamInterface>>,
    /// Proxies that found [`MOST_PROXIES`](crate::model::MOST_PROXIES) on an interface: nothing is forwarded for them there.
    pub left_out: Arc<Vec<(RouteName, IfName)>>,
    /// What they ask for.
    pub oif_table: OifTable,
}

/// An interface behind which hosts ask for streams.
#[derive(Debug)]
pub struct DownstreamInterface {
    /// Its identity.
    pub index: InterfaceId,
    /// Whose downstream it is; of one proxy only.
    pub proxy: Arc<ProxyRule>,
}

/// What is known of an interface packets arrive on.
#[derive(Debug, Default)]
pub struct Ingress {
    /// Rules for packets that arrive here.
    pub entries: PrefixTable<EntryId>,
    /// VLANs that have an interface of their own on top of this one: their frames are that
    /// interface's, although they are seen here too.
    pub vlans_with_own_interface: Vec<u16>,
    /// Messages of hosts and switches are for us: for a proxy, or for router discovery.
    pub receives_membership: bool,
    /// The proxies this is an interface of, at most [`MOST_PROXIES`](crate::model::MOST_PROXIES).
    pub proxies: Vec<ProxyIngress>,
    /// The plane that serves the interface; `None` for the default plane.
    pub plane: Option<PlaneName>,
}

/// What a proxy does with packets that arrive on one of its interfaces.
#[derive(Debug)]
pub struct ProxyIngress {
    /// Its entry. The paths in there are those that every packet takes, whoever asked: on a
    /// downstream interface the way upstream.
    pub entry: EntryId,
    /// Which groups and sources it takes.
    pub proxy: Arc<ProxyRule>,
    /// On one of several upstreams: who else may feed a stream.
    pub upstream_rule: Option<UpstreamRule>,
    /// The first of the downstream interfaces of the proxy.
    pub(super) first: DownstreamId,
    /// The paths to those, in their order; none back to where a packet came from.
    pub(super) paths: Box<[Option<PathId>]>,
}

impl ProxyIngress {
    /// The paths to those interfaces of a set that are downstream of this proxy.
    pub fn paths_to<'a>(&'a self, set: &'a [DownstreamId]) -> impl Iterator<Item = PathId> + 'a {
        set.iter().filter_map(|id| {
            let at = id.checked_sub(self.first)?;
            *self.paths.get(at as usize)?
        })
    }
}

/// One rule or proxy on one ingress.
#[derive(Debug, Clone)]
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
    /// Other source, group or port that packets leave with.
    pub translation: Option<TranslationRule>,
    /// Where packets go; empty while none of the egresses exists. Those a proxy learned are
    /// not among them.
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
    /// Its identity.
    pub index: InterfaceId,
    /// Its name.
    pub name: IfName,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// It is up and has a carrier. Without one the kernel takes packets and throws them away,
    /// without an error.
    pub running: bool,
    /// The plane that serves it; `None` for the default plane.
    pub plane: Option<PlaneName>,
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
    /// Returns whether packets of any route arrive or leave on an interface.
    pub fn uses(&self, index: InterfaceId) -> bool {
        self.ingresses.contains_key(&index) || self.egresses.iter().any(|e| e.index == index)
    }

    /// The interface a path leaves on.
    pub fn egress_of(&self, path: PathId) -> Option<&Egress> {
        let path = self.paths.get(path as usize)?;
        self.egresses.get(path.egress as usize)
    }
}
