//! The forwarding information base, or forwarding table: an immutable snapshot of routes, proxies
//! and their paths.
//!
//! The routing actor builds a new table for each change, and all interface actors share it. Two
//! tables between which only memberships changed share everything except the OIF table. Two tables
//! between which a command changed a route share most of their entries and paths.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ahash::AHashMap;
use ipnet::IpNet;

use super::active_ingress::IngressSelection;
use super::bandwidth_table::BandwidthLimit;
use super::ids::{DownstreamId, EgressId, EntryId, PathId};
use super::lookup::PrefixTable;
use super::oif_table::OifTable;
use super::shared_vec::SharedVec;
use super::subnet_conflict::SubnetConflict;
use crate::model::{
    FragmentPolicy, GroupPrefix, IfName, InterfaceId, KernelForwarding, MacAddress, MergeRule,
    MonitorKind, MonitorRules, PlaneName, ProxyRule, RouteName, SourcePrefix, TranslationRule,
    TtlPolicy, TtlThreshold,
};

/// All that the data path needs for its decisions. A clone shares everything but the generation.
#[derive(Debug, Clone, Default)]
pub struct Fib {
    /// Incremented with every table.
    pub generation: u64,
    /// The interfaces on which packets arrive.
    pub ingresses: Arc<AHashMap<InterfaceId, Arc<Ingress>>>,
    /// One entry for each route and each proxy on each of its ingresses. Entries that no ingress
    /// refers to are unused.
    pub entries: SharedVec<Entry>,
    /// The interfaces on which packets leave.
    pub egresses: Arc<Vec<Egress>>,
    /// All (route or proxy, IIF, OIF) triples that packets can take. Packets are counted per path.
    /// Paths that no entry refers to are unused.
    pub paths: SharedVec<Path>,
    /// The downstream interfaces of proxies. Those of one proxy are adjacent.
    pub downstreams: Arc<Vec<DownstreamInterface>>,
    /// Proxies that are inactive on an interface, because the interface already has
    /// [`MAX_PROXIES`](crate::model::MAX_PROXIES) others.
    pub skipped_proxies: Arc<Vec<(RouteName, IfName)>>,
    /// Ingress and egress interfaces of a route or proxy with a common subnet.
    pub subnet_conflicts: Arc<BTreeSet<SubnetConflict>>,
    /// The downstream interfaces with members, per group and source.
    pub oif_table: OifTable,
    /// Whether any stream may be monitored.
    pub monitors: bool,
    /// What is monitored besides the entries that ask for it.
    pub monitoring: Arc<MonitorRules>,
}

/// A downstream interface of a proxy.
#[derive(Debug, Clone)]
pub struct DownstreamInterface {
    /// Its identity.
    pub index: InterfaceId,
    /// The only proxy of which it is a downstream interface.
    pub proxy: Arc<ProxyRule>,
}

/// An interface on which packets arrive.
#[derive(Debug, Clone, Default)]
pub struct Ingress {
    /// The interface; `None` if no rule uses it.
    pub interface: Option<InterfaceId>,
    /// The static routes for packets that arrive here.
    pub entries: PrefixTable<EntryId>,
    /// VLANs for which a VLAN interface exists on this interface. Their frames are also captured
    /// here, but belong to the VLAN interface.
    pub vlans_with_own_interface: Vec<u16>,
    /// Whether reports and router solicitations of hosts are processed: the interface is downstream
    /// of a proxy, or this router announces itself there.
    pub receives_membership: bool,
    /// Whether queries are answered: a rule may join groups on the interface.
    pub answers_queries: bool,
    /// The proxies that use the interface, at most [`MAX_PROXIES`](crate::model::MAX_PROXIES).
    pub proxies: Vec<ProxyIngress>,
    /// How the active ingress of a stream is selected; `None` if it can only be this one.
    pub selection: Option<IngressSelection>,
    /// Whether no route and no proxy forwards packets from here: the interface is an egress, on
    /// which other forwarders are recognised by their packets.
    pub watch_only: bool,
    /// The plane that serves the interface; `None` for the default plane.
    pub plane: Option<PlaneName>,
    /// Whether the kernel forwards what arrives on the interface.
    pub kernel_forwarding: KernelForwarding,
    /// The limit of what arrives: that of the gateway of tunnels.
    pub bandwidth: Option<BandwidthLimit>,
    /// The merges of which a path arrives here, with the name of the route.
    pub merges: Vec<(RouteName, MergeRule)>,
    /// The lowest ID of the interfaces that merges connect to this one, directly or through others.
    /// One thread serves all of them.
    pub merge_domain: Option<InterfaceId>,
}

/// A proxy on one of its interfaces, for packets that arrive there.
#[derive(Debug, Clone)]
pub struct ProxyIngress {
    /// The entry of the proxy. Its paths are those that do not depend on memberships: from a
    /// downstream interface to the upstream interface.
    pub entry: EntryId,
    /// The proxy, with its lists of groups and sources.
    pub proxy: Arc<ProxyRule>,
    /// Position of the first downstream interface of the proxy in [`Fib::downstreams`].
    pub(super) first_downstream: DownstreamId,
    /// The paths to the downstream interfaces of the proxy, in the order of [`Fib::downstreams`].
    /// `None` for the interface on which the packets arrive.
    pub(super) downstream_paths: Box<[Option<PathId>]>,
}

impl ProxyIngress {
    /// Returns the paths to the interfaces in `set` that are downstream interfaces of this proxy.
    pub fn paths_to<'a>(&'a self, set: &'a [DownstreamId]) -> impl Iterator<Item = PathId> + 'a {
        set.iter().filter_map(|id| {
            let offset = id.checked_sub(self.first_downstream)?;
            *self.downstream_paths.get(offset as usize)?
        })
    }
}

/// A route or proxy on one ingress.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The name of the route or proxy.
    pub route: RouteName,
    /// Sources that the route does not match. Less specific routes may match them.
    pub except_sources: Vec<SourcePrefix>,
    /// The TTL of forwarded packets.
    pub ttl: TtlPolicy,
    /// Whether link-local groups are forwarded too.
    pub link_local: bool,
    /// Whether packets from link-local sources to groups with a wider scope are forwarded too.
    pub link_local_sources: bool,
    /// Whether packets that return shortly after they were forwarded are dropped.
    pub loop_guard: bool,
    /// Replacement of source, group or UDP port.
    pub translation: Option<TranslationRule>,
    /// Time without packets on the active ingress of a stream after which another one becomes
    /// active, in milliseconds. `None`: packets are forwarded from every ingress.
    pub takeover_ms: Option<u64>,
    /// Whether packets are withheld from an egress to which another forwarder sends them.
    pub yields: bool,
    /// The merge of the packets with those of another path.
    pub merge: Option<MergeRule>,
    /// Whether the streams are monitored, and as what.
    pub monitor: Option<MonitorKind>,
    /// The paths of the packets; empty while no egress exists. Paths that depend on memberships are
    /// not included.
    pub paths: Vec<PathId>,
}

impl Entry {
    /// Returns whether the route matches packets from `source`, which must be within its source
    /// prefix.
    pub fn accepts(&self, source: IpAddr) -> bool {
        !self
            .except_sources
            .iter()
            .any(|except| except.net().contains(&source))
    }
}

/// An interface on which packets leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Egress {
    /// Its identity.
    pub index: InterfaceId,
    /// The name.
    pub name: IfName,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Whether the interface is up and has a carrier. Without a carrier the kernel accepts packets
    /// and drops them without an error.
    pub running: bool,
    /// The plane that serves it; `None` for the default plane.
    pub plane: Option<PlaneName>,
    /// Whether the kernel forwards what leaves on the interface.
    pub kernel_forwarding: KernelForwarding,
    /// The limit of what leaves.
    pub bandwidth: Option<BandwidthLimit>,
    /// Its subnets.
    pub subnets: Vec<IpNet>,
    /// Its link-layer address.
    pub address: Option<MacAddress>,
}

/// A path through the router: route, ingress and egress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// The name of the route or proxy.
    pub route: RouteName,
    /// The name of the ingress interface.
    pub iif: IfName,
    /// The egress interface.
    pub egress: EgressId,
    /// Packets leave only if they arrived with a TTL above this.
    pub threshold: Option<TtlThreshold>,
    /// Which packets that are larger than the MTU of the egress are fragmented.
    pub fragment: FragmentPolicy,
}

impl Fib {
    /// Returns whether packets of any route arrive or leave on an interface.
    pub fn uses(&self, index: InterfaceId) -> bool {
        self.ingresses.contains_key(&index) || self.egresses.iter().any(|e| e.index == index)
    }

    /// Returns how streams to a group are monitored by the rules for groups.
    pub fn monitored_group(&self, group: IpAddr) -> Option<MonitorKind> {
        let MonitorRules { groups, kind, .. } = &*self.monitoring;
        let contains = |prefix: &GroupPrefix| prefix.net().contains(&group);
        let is_monitored = groups.iter().any(contains);
        is_monitored.then_some(kind.unwrap_or(MonitorKind::Auto))
    }

    /// Returns the egress interface of a path; `None` for an unknown path.
    pub fn egress_of(&self, path: PathId) -> Option<&Egress> {
        let path = self.paths.get(path as usize)?;
        self.egresses.get(path.egress as usize)
    }
}
