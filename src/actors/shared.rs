//! State that all actors share.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix::prelude::*;
use ahash::AHashMap;
use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::directory::Directory;
use super::forwarding_gate::ForwardingGate;
use super::inherited_relays::InheritedRelays;
use super::live_trace::LiveTrace;
use super::messages::{FlushFlows, QueryDrops, QueryFlows, Transmit};
use super::monitoring::Monitoring;
use super::ttl_warnings::TtlWarnings;
use crate::amt::config::AmtConfig;
use crate::api::UpgradeReport;
use crate::discovery::config::DiscoveryRule;
use crate::forward::LoopGuard;
use crate::merge::Merges;
use crate::metrics::Catalog;
use crate::metrics::bandwidth::BandwidthNumbers;
use crate::mnat;
use crate::model::{Aliases, IfName, InterfaceId, PlaneName};
use crate::planes::tunnel::TunnelPlane;
use crate::planes::{FlowForwarding, PlaneCounters, Planes};
use crate::store::Store;
use crate::sys::membership_keeper::MembershipKeeper;
use crate::table::flows::{FlowBudget, FlowKey};
use crate::table::{Fib, MembershipDatabase, Rib, StreamState};

/// The state that interface actors forward by. It is replaced as a whole.
#[derive(Default)]
pub struct Snapshot {
    /// The forwarding table.
    pub fib: Arc<Fib>,
    /// The forwarders of each worker thread, by egress interface.
    pub forwarders: Arc<Vec<AHashMap<InterfaceId, Recipient<Transmit>>>>,
    /// The same forwarders, as frontends address them.
    pub egress_drops: Arc<Vec<Recipient<QueryDrops>>>,
    /// Names of the ingress interfaces.
    pub names: AHashMap<InterfaceId, IfName>,
    /// The interface actors.
    pub interfaces: Arc<Vec<InterfaceHandle>>,
}

/// An interface actor, as frontends address it.
#[derive(Clone)]
pub struct InterfaceHandle {
    /// Its interface.
    pub index: InterfaceId,
    /// Receives queries for flows.
    pub flows: Recipient<QueryFlows>,
    /// Receives queries for dropped packets.
    pub drops: Recipient<QueryDrops>,
    /// Receives the command that ends all flows.
    pub flush: Recipient<FlushFlows>,
}

/// The state and services that every actor has access to.
pub struct RouterContext {
    /// All metrics.
    pub catalog: Catalog,
    /// The planes that capture, forward and transmit packets.
    pub planes: Arc<Planes>,
    /// The plane of tunnel interfaces. It is one of `planes`.
    pub tunnels: TunnelPlane,
    /// The snapshot in force.
    pub snapshot: ArcSwap<Snapshot>,
    /// The rules in force, with which a restarted routing actor continues.
    pub rib: ArcSwap<Rib>,
    /// The limit of flows, and their number.
    pub flows: Arc<FlowBudget>,
    flow_idle_ms: AtomicU64,
    /// Members of proxies as routing knows them. They outlive the routing actor, so that
    /// streams continue after its death.
    pub membership_database: Mutex<MembershipDatabase>,
    /// What was learned before this process started, or before an actor was rebuilt.
    pub store: Store,
    /// Holds the sockets of this host's memberships if the process ends unexpectedly.
    pub membership_keeper: MembershipKeeper,
    /// Packets that were forwarded in the last moments.
    pub loop_guard: Arc<LoopGuard>,
    /// The active ingress of each stream, and other forwarders.
    pub streams: Arc<StreamState>,
    /// The merges of two paths.
    pub merges: Arc<Merges>,
    /// The monitored streams.
    pub monitoring: Arc<Monitoring>,
    /// The routes of which a warning said that packets arrive with too low a TTL.
    pub ttl_warnings: TtlWarnings,
    /// The trace of live packets, if a client requests one.
    pub live_trace: LiveTrace,
    /// Notified when a flow starts, ends, or is looked up again. For one waiting task.
    pub flow_changes: Notify,
    /// Senders whose address belongs to the subnet of another interface.
    pub foreign_sources: ForeignSourceTable,
    /// The receivers of messages.
    pub directory: Directory,
    /// The settings of multicast NAT in force.
    pub mnat: ArcSwapOption<mnat::Config>,
    /// The settings of AMT in force.
    pub amt: ArcSwap<AmtSettings>,
    /// The settings of discovery in force.
    pub discovery: ArcSwap<DiscoverySettings>,
    /// The relays of another process, until the AMT actor continues them.
    pub inherited_relays: InheritedRelays,
    /// The socket of the container engine.
    pub engine_socket: PathBuf,
    /// Whether any rule contains a name of the container engine.
    pub engine_wanted: watch::Sender<bool>,
    /// The names of interfaces in the container engine.
    pub aliases: ArcSwap<Aliases>,
    /// Requests of clients to the process as a whole.
    pub requests: mpsc::Sender<ProcessRequest>,
    /// The state that probes report.
    pub health: Health,
    /// Holds back the data path while another process still forwards.
    pub gate: ForwardingGate,
    started: Instant,
}

impl RouterContext {
    /// Returns a context without rules, on a simulated plane, and the receiver of its requests.
    #[cfg(test)]
    pub fn for_test() -> (Arc<Self>, mpsc::Receiver<ProcessRequest>) {
        let plane = crate::planes::sim::SimPlane::default();
        Self::new(
            Catalog::new().expect("metrics"),
            Planes::new(Box::new(plane), Vec::new()),
            Rib::default(),
            Store::in_memory(),
            MembershipKeeper::default(),
            1000,
            "/nowhere/docker.sock".into(),
        )
    }

    /// Returns a context with these rules, what is in `store`, and a limit of `flows`, and the
    /// receiver of requests to the process. `engine` is the socket of the container engine.
    pub fn new(
        catalog: Catalog,
        mut planes: Planes,
        rib: Rib,
        store: Store,
        membership_keeper: MembershipKeeper,
        flows: usize,
        engine: PathBuf,
    ) -> (Arc<Self>, mpsc::Receiver<ProcessRequest>) {
        let (requests, receiver) = mpsc::channel(MAX_WAITING_REQUESTS);
        catalog.flow_limit.set(flows as i64);
        let tunnels = TunnelPlane::default();
        planes.add(Box::new(tunnels.clone()));
        let context = Arc::new(Self {
            catalog,
            planes: Arc::new(planes),
            tunnels,
            snapshot: ArcSwap::from_pointee(Snapshot::default()),
            rib: ArcSwap::from_pointee(rib),
            flows: FlowBudget::new(flows),
            flow_idle_ms: AtomicU64::new(60_000),
            membership_database: Mutex::default(),
            store,
            membership_keeper,
            loop_guard: Arc::default(),
            streams: Arc::new(StreamState::for_streams(flows)),
            merges: Arc::default(),
            monitoring: Arc::default(),
            ttl_warnings: TtlWarnings::default(),
            live_trace: LiveTrace::default(),
            flow_changes: Notify::new(),
            foreign_sources: ForeignSourceTable::default(),
            directory: Directory::default(),
            mnat: ArcSwapOption::empty(),
            amt: ArcSwap::default(),
            discovery: ArcSwap::default(),
            inherited_relays: InheritedRelays::default(),
            engine_socket: engine,
            engine_wanted: watch::Sender::new(false),
            aliases: ArcSwap::default(),
            requests,
            health: Health::default(),
            gate: ForwardingGate::default(),
            started: Instant::now(),
        });
        (context, receiver)
    }

    /// Returns the milliseconds since the start: the clock of flows and of the loop guard.
    pub fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Adds what planes have forwarded by themselves to the metrics.
    pub fn count_planes(&self) {
        let catalog = &self.catalog;
        for plane in self.planes.all() {
            let PlaneCounters {
                paths,
                received,
                translated,
                dropped,
            } = plane.take_counters();
            for path in paths {
                let (iif, oif) = (path.iif.as_str(), path.oif.as_str());
                let counters = catalog.path(&path.route, iif, oif, plane.name());
                counters.packets.inc_by(path.packets);
                counters.bytes.inc_by(path.bytes);
                let counters = catalog.interface(oif);
                counters.transmitted_packets.inc_by(path.packets);
                counters.transmitted_bytes.inc_by(path.bytes);
            }
            for received in received {
                let counters = catalog.interface(received.iif.as_str());
                counters.received_packets.inc_by(received.packets);
                counters.received_bytes.inc_by(received.bytes);
            }
            catalog.add_translated(&translated);
            for (interface, reason, packets) in dropped {
                let counters = catalog.interface(interface.as_str());
                counters.dropped(reason).inc_by(packets);
            }
        }
    }

    /// Sets the metrics of the bandwidth limits of all interfaces that rules use.
    pub fn set_bandwidth_metrics(&self) {
        let snapshot = self.snapshot.load();
        let fib = &snapshot.fib;
        let ingresses = fib.ingresses.iter().filter_map(|(index, ingress)| {
            let name = snapshot.names.get(index)?;
            Some((name, ingress.bandwidth?))
        });
        let egresses = fib.egresses.iter();
        let egresses = egresses.filter_map(|egress| Some((&egress.name, egress.bandwidth?)));
        let limits = ingresses.chain(egresses).map(|(name, limit)| {
            let usage = self.streams.bandwidth.usage(limit.interface);
            let numbers = BandwidthNumbers {
                limit: limit.limit.bits(),
                admitted: usage.map_or(0, |usage| usage.admitted.bits()),
                measured: usage.map_or(0, |usage| usage.measured.bits()),
                refused: usage.map_or(0, |usage| usage.refused),
            };
            (name.as_str(), numbers)
        });
        self.catalog.bandwidth.set(&limits.collect());
    }

    /// Returns what says which plane forwards a flow.
    pub fn flow_planes(&self) -> FlowPlanes {
        FlowPlanes::new(self.planes.clone())
    }

    /// Sets the limit of flows, and how long a flow lasts after its last packet.
    pub fn set_flow_limits(&self, flows: usize, idle: Duration) {
        self.flows.set_limit(flows);
        self.catalog.flow_limit.set(flows as i64);
        let idle = idle.as_millis() as u64;
        self.flow_idle_ms.store(idle, Ordering::Relaxed);
    }

    /// Returns how long a flow lasts after its last packet, in milliseconds.
    pub fn flow_idle_ms(&self) -> u64 {
        self.flow_idle_ms.load(Ordering::Relaxed)
    }
}

/// The settings of AMT, and the name servers for the lookup of relays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AmtSettings {
    /// The tunnel interfaces.
    pub config: AmtConfig,
    /// The text of `/etc/resolv.conf`. The AMT actor can open no file.
    pub resolv_conf: Vec<u8>,
}

/// The settings of discovery.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiscoverySettings {
    /// Each `[[discovery]]`.
    pub rules: Vec<DiscoveryRule>,
    /// The mark of the packets that this process sends.
    pub mark: u32,
}

/// Says which plane forwards a flow.
pub struct FlowPlanes(Arc<Planes>);

impl FlowPlanes {
    /// Returns what answers for these planes.
    pub fn new(planes: Arc<Planes>) -> Self {
        Self(planes)
    }

    /// Returns who forwards the packets of a flow that arrives on an interface of this plane.
    pub fn forwarding(
        &self,
        plane: Option<PlaneName>,
        ingress: InterfaceId,
        flow: FlowKey,
    ) -> Option<FlowForwarding> {
        let plane = self.0.serving(plane).ok()?;
        Some(plane.flow_forwarding(ingress, flow))
    }
}

/// Limit of [`RouterContext::requests`] that wait.
const MAX_WAITING_REQUESTS: usize = 16;

/// A request of a client to the process as a whole. The answer is a sentence.
pub enum ProcessRequest {
    /// Read the settings again.
    Reload(oneshot::Sender<Result<String, String>>),
    /// Let a new process take over: the program at this path, or else the one that this process
    /// was started from.
    Upgrade(
        Option<PathBuf>,
        oneshot::Sender<Result<UpgradeReport, String>>,
    ),
    /// Make an actor panic, if the process was started for such tests.
    Panic(String, oneshot::Sender<Result<String, String>>),
    /// End the process. If the flag is set, what can forward without the process continues.
    Stop(bool),
}

/// The state that `/readyz` reports.
#[derive(Default)]
pub struct Health {
    ready: AtomicBool,
}

impl Health {
    /// Returns whether every ingress interface that exists is being captured.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    pub(super) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }
}

/// For each egress interface, the first sender whose address is in a subnet of that interface,
/// although its packets arrive on another one.
#[derive(Default)]
pub struct ForeignSourceTable(Mutex<BTreeMap<InterfaceId, (IfName, IpAddr)>>);

impl ForeignSourceTable {
    /// Adds a sender that sends from `ingress`. Returns false if the egress has one already.
    pub fn insert(&self, egress: InterfaceId, ingress: IfName, source: IpAddr) -> bool {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = !table.contains_key(&egress);
        table.entry(egress).or_insert((ingress, source));
        is_new
    }

    /// Returns the sender of an egress, and the interface that it sends from.
    pub fn get(&self, egress: InterfaceId) -> Option<(IfName, IpAddr)> {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.get(&egress).cloned()
    }
}
