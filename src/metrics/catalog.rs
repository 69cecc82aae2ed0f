//! All metrics of the program. docs/metrics.md describes them for users.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ahash::{AHashMap, AHashSet};
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    TextEncoder,
};
use serde::{Deserialize, Serialize};

use super::amt::AmtFamilies;
use super::bandwidth::BandwidthFamilies;
use super::discovery::DiscoveryFamilies;
use super::families::{Families, MetricsRegistry};
use super::http::HttpFamilies;
use super::membership::MembershipFamilies;
use super::merge::MergeFamilies;
use super::mnat::MnatFamilies;
use super::process::ProcessFamilies;
use super::streams::StreamFamilies;
use crate::forward::DropReason;
use crate::model::{FlowEnd, IfName, Link, ProcessUsage, RouteName, TakeoverRole, TranslationKind};

/// Upper bounds of the latency buckets, in seconds.
const LATENCY_BUCKETS: [f64; 14] = [
    5e-6, 10e-6, 20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 0.1,
];

/// Largest number of retired interfaces, and of retired paths, whose series are kept.
pub const MAX_RETIRED: usize = 256;

/// The counter of packets that were dropped from full queues.
const BACKLOG_DROPPED: &str = "mcastor_backlog_dropped_packets_total";

/// Route, IIF, OIF.
type PathKey = (RouteName, Box<str>, Box<str>);

/// The label values of all existing series.
#[derive(Default)]
struct KnownSeries {
    interfaces: SeriesKeys<Box<str>>,
    paths: SeriesKeys<PathKey>,
    /// The planes that have series of a path.
    planes: AHashMap<PathKey, Vec<Box<str>>>,
}

/// Keys of series: those in use, and the retired ones, oldest first.
struct SeriesKeys<K> {
    live: AHashSet<K>,
    retired: VecDeque<K>,
}

impl<K> Default for SeriesKeys<K> {
    fn default() -> Self {
        Self {
            live: AHashSet::new(),
            retired: VecDeque::new(),
        }
    }
}

/// The result of [`SeriesKeys::retire`].
struct RetiredKeys<K> {
    /// Keys that were in use until now.
    newly_retired: Vec<K>,
    /// Oldest retired keys above [`MAX_RETIRED`]. Their series are to be removed.
    expired: Vec<K>,
}

impl<K: Clone + Eq + std::hash::Hash> SeriesKeys<K> {
    /// Marks `key` as in use.
    fn insert(&mut self, key: K) {
        if !self.live.contains(&key) {
            self.retired.retain(|k| *k != key);
            self.live.insert(key);
        }
    }

    /// Marks `key` as in use again, if it was retired.
    fn revive(&mut self, key: K) {
        if let Some(at) = self.retired.iter().position(|k| *k == key) {
            self.retired.remove(at);
            self.live.insert(key);
        }
    }

    /// Retires the keys in use for which `is_live` is false.
    fn retire(&mut self, is_live: impl Fn(&K) -> bool) -> RetiredKeys<K> {
        let dead: Vec<K> = self.live.iter().filter(|k| !is_live(k)).cloned().collect();
        self.retire_keys(dead)
    }

    /// Retires those of the keys that are in use.
    fn retire_keys(&mut self, keys: Vec<K>) -> RetiredKeys<K> {
        let mut newly_retired = keys;
        newly_retired.retain(|key| self.live.remove(key));
        self.retired.extend(newly_retired.iter().cloned());
        let excess = self.retired.len().saturating_sub(MAX_RETIRED);
        RetiredKeys {
            newly_retired,
            expired: self.retired.drain(..excess).collect(),
        }
    }
}

/// The metrics registry and its families. Clones share them.
#[derive(Clone)]
pub struct Catalog {
    registry: MetricsRegistry,
    route_packets: IntCounterVec,
    route_bytes: IntCounterVec,
    dropped: IntCounterVec,
    received_packets: IntCounterVec,
    received_bytes: IntCounterVec,
    membership_messages: IntCounterVec,
    transmitted_packets: IntCounterVec,
    transmitted_bytes: IntCounterVec,
    interface_up: IntGaugeVec,
    interface_mtu: IntGaugeVec,
    socket_dropped: IntCounterVec,
    actor_restarts: IntCounterVec,
    joined_groups: IntGaugeVec,
    translations: IntCounterVec,
    takeovers: IntCounterVec,
    flow_ends: IntCounterVec,
    dropped_flows_evicted: IntCounterVec,
    state_writes: IntCounterVec,
    known: Arc<Mutex<KnownSeries>>,
    /// Flows being forwarded.
    pub flows: IntGauge,
    /// Limit of the number of flows.
    pub flow_limit: IntGauge,
    /// Packets that the kernel dropped on the whole machine because the queue of a core was full.
    backlog_dropped: IntCounter,
    /// 1 if the last load of the settings succeeded.
    pub last_reload_successful: IntGauge,
    /// When the settings were last loaded, in seconds since 1970.
    pub last_reload_success_time: IntGauge,
    /// 1 while the container engine answers.
    pub engine_connected: IntGauge,
    /// 1 while a name needs the container engine.
    pub engine_needed: IntGauge,
    /// Time from the kernel's receive timestamp to the return of the send call, for each packet
    /// sent.
    pub forward_latency: Histogram,
    /// Number of routes in force.
    pub routes: IntGauge,
    /// Metrics of the HTTP server.
    pub http: HttpFamilies,
    /// Metrics of IGMP and MLD.
    pub membership: MembershipFamilies,
    /// Metrics of multicast NAT.
    pub mnat: MnatFamilies,
    /// Metrics of AMT.
    pub amt: AmtFamilies,
    /// Metrics of bandwidth limits.
    pub bandwidth: BandwidthFamilies,
    /// Metrics of discovery.
    pub discovery: DiscoveryFamilies,
    /// Metrics of merges.
    pub merge: MergeFamilies,
    /// Metrics of monitored streams.
    pub streams: StreamFamilies,
    process: ProcessFamilies,
}

/// The value of a counter, for another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterValue {
    family: String,
    /// Names and values. There may be many counters, and a map would take more memory.
    labels: Vec<(Box<str>, Box<str>)>,
    value: u64,
}

/// The counters of one path.
#[derive(Clone)]
pub struct PathCounters {
    /// Packets sent; each fragment counts as a packet.
    pub packets: IntCounter,
    /// Their IP bytes.
    pub bytes: IntCounter,
}

/// The counts of one path, summed over all planes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PathTotals {
    /// Packets sent; each fragment counts as a packet.
    pub packets: u64,
    /// Their IP bytes.
    pub bytes: u64,
}

/// The counters of one interface.
#[derive(Clone)]
pub struct InterfaceCounters {
    /// Multicast packets received.
    pub received_packets: IntCounter,
    /// Their IP bytes.
    pub received_bytes: IntCounter,
    /// IGMP and MLD messages received, which do not count as packets.
    pub membership_messages: IntCounter,
    /// Packets sent.
    pub transmitted_packets: IntCounter,
    /// Their IP bytes.
    pub transmitted_bytes: IntCounter,
    /// Packets that the kernel dropped because the capture socket was full.
    pub socket_dropped: IntCounter,
    dropped: Vec<IntCounter>,
}

impl InterfaceCounters {
    /// Returns the counter of `reason`.
    pub fn dropped(&self, reason: DropReason) -> &IntCounter {
        &self.dropped[reason as usize]
    }

    /// Adds counts by reason to the counters.
    pub fn add_dropped(&self, by_reason: &[u64; DropReason::COUNT]) {
        for (counter, n) in self.dropped.iter().zip(by_reason) {
            if *n > 0 {
                counter.inc_by(*n);
            }
        }
    }
}

impl Catalog {
    /// Creates and registers all families. An error means that a name in this file is invalid or
    /// used twice; the tests exclude that.
    pub fn new() -> prometheus::Result<Self> {
        let registry = MetricsRegistry::default();
        let make = Families(&registry);
        let path = ["route", "iif", "oif", "plane"];
        let route_packets = make.counters(
            "mcastor_route_packets_total",
            "Packets that a route sent on an interface",
            &path,
        )?;
        let route_bytes = make.counters(
            "mcastor_route_bytes_total",
            "IP bytes that a route sent on an interface",
            &path,
        )?;
        let dropped = make.counters(
            "mcastor_dropped_packets_total",
            "Packets that were not forwarded, by reason; iface is the egress for egress reasons",
            &["reason", "iface"],
        )?;
        let received_packets = make.counters(
            "mcastor_interface_received_packets_total",
            "Multicast packets captured, routed or not",
            &["iface"],
        )?;
        let received_bytes = make.counters(
            "mcastor_interface_received_bytes_total",
            "IP bytes of multicast packets captured, routed or not",
            &["iface"],
        )?;
        let membership_messages = make.counters(
            "mcastor_interface_membership_messages_total",
            "IGMP and MLD messages captured; they are never forwarded",
            &["iface"],
        )?;
        let transmitted_packets = make.counters(
            "mcastor_interface_transmitted_packets_total",
            "Packets sent",
            &["iface"],
        )?;
        let transmitted_bytes = make.counters(
            "mcastor_interface_transmitted_bytes_total",
            "IP bytes of packets sent",
            &["iface"],
        )?;
        let interface_up = make.gauges(
            "mcastor_interface_up",
            "1 if the interface is up and has a carrier",
            &["iface"],
        )?;
        let interface_mtu = make.gauges(
            "mcastor_interface_mtu_bytes",
            "Largest IP packet that the interface carries",
            &["iface"],
        )?;
        let socket_dropped = make.counters(
            "mcastor_socket_dropped_packets_total",
            "Packets that the kernel dropped because the capture socket was full",
            &["iface"],
        )?;
        let actor_restarts = make.counters(
            "mcastor_actor_restarts_total",
            "Actors that were rebuilt after they died",
            &["actor"],
        )?;
        let joined_groups = make.gauges(
            "mcastor_joined_groups",
            "Groups joined as a host",
            &["iface"],
        )?;
        let flow_ends = make.counters(
            "mcastor_flow_ends_total",
            "Flows that ended: idle, evicted by another flow, or flushed",
            &["reason", "iface"],
        )?;
        let dropped_flows_evicted = make.counters(
            "mcastor_dropped_flows_evicted_total",
            "Streams of dropped packets that `show drops` no longer lists, because others replaced them",
            &["iface"],
        )?;
        let translations = make.counters(
            "mcastor_translations_total",
            "Packets translated, by the IP versions that they arrived and left with",
            &["family"],
        )?;
        for family in TranslationKind::ALL {
            translations.with_label_values(&[family.label()]);
        }
        let takeovers = make.counters(
            "mcastor_takeovers_total",
            "Streams that an interface took over as the active ingress, or as an egress that another \
             router no longer serves",
            &["role", "iface"],
        )?;
        let state_writes = make.counters(
            "mcastor_state_writes_total",
            "Writes of the state that outlives the process",
            &["result"],
        )?;
        for result in ["ok", "error"] {
            state_writes.with_label_values(&[result]);
        }
        let flows = make.gauge("mcastor_flows", "Flows being forwarded")?;
        let flow_limit = make.gauge("mcastor_flow_limit", "Limit of the number of flows")?;
        let backlog_dropped = make.counter(
            BACKLOG_DROPPED,
            "Packets of any program that the kernel dropped on this machine because the receive \
             queue of a core was full",
        )?;
        let last_reload_successful = make.gauge(
            "mcastor_config_last_reload_successful",
            "1 if the last load of the settings worked",
        )?;
        last_reload_successful.set(1);
        let last_reload_success_time = make.gauge(
            "mcastor_config_last_reload_success_timestamp_seconds",
            "Time of the last load of the settings that worked, in seconds since 1970",
        )?;
        let engine_connected = make.gauge(
            "mcastor_docker_connected",
            "1 while the container engine answers; 0 also if no name needs it",
        )?;
        let engine_needed = make.gauge(
            "mcastor_docker_needed",
            "1 while a route, join or proxy has a name of the container engine",
        )?;
        let forward_latency = Histogram::with_opts(
            HistogramOpts::new(
                "mcastor_forward_latency_seconds",
                "Time from the kernel's receive timestamp to the return of the send call",
            )
            .buckets(LATENCY_BUCKETS.to_vec()),
        )?;
        registry.register(Box::new(forward_latency.clone()))?;
        let routes = make.gauge("mcastor_routes", "Routes in force")?;
        let build = make.gauges(
            "mcastor_build_info",
            "Always 1; the labels have the version of the program and the revision of its source",
            &["version", "revision"],
        )?;
        let revision = option_env!("MCASTOR_REVISION").unwrap_or("unknown");
        let version = env!("CARGO_PKG_VERSION");
        build.with_label_values(&[version, revision]).set(1);
        let http = HttpFamilies::new(&registry)?;
        let membership = MembershipFamilies::new(&registry)?;
        let mnat = MnatFamilies::new(&registry)?;
        let amt = AmtFamilies::new(&registry)?;
        let bandwidth = BandwidthFamilies::new(&registry)?;
        let discovery = DiscoveryFamilies::new(&registry)?;
        let merge = MergeFamilies::new(&registry)?;
        let streams = StreamFamilies::new(&registry)?;
        let process = ProcessFamilies::new(&registry)?;
        Ok(Self {
            registry,
            http,
            membership,
            mnat,
            amt,
            bandwidth,
            discovery,
            merge,
            streams,
            process,
            route_packets,
            route_bytes,
            dropped,
            received_packets,
            received_bytes,
            membership_messages,
            transmitted_packets,
            transmitted_bytes,
            interface_up,
            interface_mtu,
            socket_dropped,
            actor_restarts,
            joined_groups,
            flow_ends,
            dropped_flows_evicted,
            translations,
            takeovers,
            known: Arc::default(),
            flows,
            flow_limit,
            backlog_dropped,
            last_reload_successful,
            last_reload_success_time,
            engine_connected,
            engine_needed,
            state_writes,
            forward_latency,
            routes,
        })
    }

    /// Counts a write of the state that outlives the process.
    pub fn count_state_write(&self, is_written: bool) {
        let result = if is_written { "ok" } else { "error" };
        self.state_writes.with_label_values(&[result]).inc();
    }

    /// Sets the number of packets dropped from full queues since the boot of the machine.
    pub fn set_backlog_dropped(&self, packets: u64) {
        let current = self.backlog_dropped.get();
        if packets < current {
            // The kernel's counter of a core restarted at 0.
            self.backlog_dropped.reset();
        }
        let current = self.backlog_dropped.get();
        self.backlog_dropped.inc_by(packets - current);
    }

    /// Returns the counters of a path. The same arguments return the same counters.
    pub fn path(&self, route: &RouteName, iif: &str, oif: &str, plane: &str) -> PathCounters {
        let labels = [route.as_str(), iif, oif, plane];
        {
            let mut known = self.known();
            let key: PathKey = (route.clone(), iif.into(), oif.into());
            known.paths.insert(key.clone());
            let planes = known.planes.entry(key).or_default();
            if !planes.iter().any(|p| **p == *plane) {
                planes.push(plane.into());
            }
        }
        PathCounters {
            packets: self.route_packets.with_label_values(&labels),
            bytes: self.route_bytes.with_label_values(&labels),
        }
    }

    /// Returns the counts of a path, summed over all planes.
    pub fn path_totals(&self, route: &RouteName, iif: &str, oif: &str) -> PathTotals {
        let known = self.known();
        let key: PathKey = (route.clone(), iif.into(), oif.into());
        let planes = known.planes.get(&key);
        let mut totals = PathTotals::default();
        for plane in planes.into_iter().flatten() {
            let labels = [route.as_str(), iif, oif, plane];
            totals.packets += self.route_packets.with_label_values(&labels).get();
            totals.bytes += self.route_bytes.with_label_values(&labels).get();
        }
        totals
    }

    /// Returns the counters of an interface. The same name returns the same counters.
    pub fn interface(&self, name: &str) -> InterfaceCounters {
        self.known().interfaces.insert(name.into());
        let counter = |family: &IntCounterVec| family.with_label_values(&[name]);
        InterfaceCounters {
            received_packets: counter(&self.received_packets),
            received_bytes: counter(&self.received_bytes),
            membership_messages: counter(&self.membership_messages),
            transmitted_packets: counter(&self.transmitted_packets),
            transmitted_bytes: counter(&self.transmitted_bytes),
            socket_dropped: counter(&self.socket_dropped),
            dropped: DropReason::ALL
                .iter()
                .map(|r| self.dropped.with_label_values(&[r.label(), name]))
                .collect(),
        }
    }

    /// Sets the state of a link that routes use.
    pub fn set_link(&self, link: &Link) {
        let name = [link.name.as_str()];
        let up = link.up && link.carrier;
        self.interface_up.with_label_values(&name).set(up.into());
        self.interface_mtu
            .with_label_values(&name)
            .set(link.mtu.into());
    }

    /// Sets the state of a link that is gone to down.
    pub fn set_link_down(&self, name: &str) {
        self.interface_up.with_label_values(&[name]).set(0);
    }

    /// Sets the number of groups joined on an interface.
    pub fn set_joined_groups(&self, name: &str, groups: u64) {
        self.joined_groups
            .with_label_values(&[name])
            .set(groups as i64);
    }

    /// Removes the number of joined groups of an interface that is gone.
    pub fn remove_joined_groups(&self, name: &str) {
        // Fails if the series does not exist, which is fine.
        let _ = self.joined_groups.remove_label_values(&[name]);
    }

    /// Retires all interfaces that are not in `live`, the interfaces that routes use now. Retired
    /// interfaces are shown as down. The series of an interface are removed when [`MAX_RETIRED`]
    /// others were retired after it, so that short-lived names, such as those of containers, do not
    /// fill memory.
    pub fn retire_interfaces(&self, live: &AHashSet<&str>) {
        let mut known = self.known();
        let retired = known.interfaces.retire(|name| live.contains(&**name));
        for name in &retired.newly_retired {
            self.set_link_down(name);
        }
        for name in &retired.expired {
            let name = &**name;
            for family in [
                &self.received_packets,
                &self.received_bytes,
                &self.membership_messages,
                &self.transmitted_packets,
                &self.transmitted_bytes,
                &self.socket_dropped,
                &self.dropped_flows_evicted,
            ] {
                // Fails if the series does not exist, which is fine.
                let _ = family.remove_label_values(&[name]);
            }
            for family in [&self.interface_up, &self.interface_mtu, &self.joined_groups] {
                let _ = family.remove_label_values(&[name]);
            }
            self.membership.remove_interface(name);
            for reason in DropReason::ALL {
                let _ = self.dropped.remove_label_values(&[reason.label(), name]);
            }
            for end in FlowEnd::ALL {
                let _ = self.flow_ends.remove_label_values(&[end.label(), name]);
            }
            for role in TakeoverRole::ALL {
                let _ = self.takeovers.remove_label_values(&[role.label(), name]);
            }
        }
    }

    /// Retires all paths that are not in `live`, the present (route, IIF, OIF) triples. Works like
    /// [`Catalog::retire_interfaces`].
    pub fn retire_paths<'a>(&self, live: impl Iterator<Item = (&'a RouteName, &'a str, &'a str)>) {
        let live: AHashSet<PathKey> = live
            .map(|(route, iif, oif)| (route.clone(), iif.into(), oif.into()))
            .collect();
        let mut known = self.known();
        let retired = known.paths.retire(|path| live.contains(path));
        self.remove_expired_paths(&mut known, &retired.expired);
    }

    /// Retires the removed paths, and keeps the series of added ones: (route, IIF, OIF) triples.
    /// Works like [`Catalog::retire_paths`] if no other paths changed.
    pub fn update_paths(
        &self,
        removed: &AHashSet<(RouteName, IfName, IfName)>,
        added: &AHashSet<(RouteName, IfName, IfName)>,
    ) {
        let key = |(route, iif, oif): &(RouteName, IfName, IfName)| -> PathKey {
            (route.clone(), iif.as_str().into(), oif.as_str().into())
        };
        let mut known = self.known();
        added.iter().for_each(|path| known.paths.revive(key(path)));
        let retired = known.paths.retire_keys(removed.iter().map(key).collect());
        self.remove_expired_paths(&mut known, &retired.expired);
    }

    fn remove_expired_paths(&self, known: &mut KnownSeries, expired: &[PathKey]) {
        for key in expired {
            let (route, iif, oif) = key;
            for plane in known.planes.remove(key).unwrap_or_default() {
                let labels = [route.as_str(), iif, oif, &plane];
                let _ = self.route_packets.remove_label_values(&labels);
                let _ = self.route_bytes.remove_label_values(&labels);
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, KnownSeries> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts `flows` ended flows of an interface. With 0, exposes the counter, so that its first
    /// change is a visible increase.
    pub fn count_ended_flows(&self, name: &str, end: FlowEnd, flows: u64) {
        let ends = self.flow_ends.with_label_values(&[end.label(), name]);
        ends.inc_by(flows);
    }

    /// Counts `streams` that an interface took over.
    pub fn count_takeovers(&self, name: &str, role: TakeoverRole, streams: u64) {
        let takeovers = self.takeovers.with_label_values(&[role.label(), name]);
        takeovers.inc_by(streams);
    }

    /// Counts flows of dropped packets that an interface no longer lists. With 0, exposes the
    /// counter.
    pub fn count_evicted_dropped_flows(&self, name: &str, flows: u64) {
        let evicted = self.dropped_flows_evicted.with_label_values(&[name]);
        evicted.inc_by(flows);
    }

    /// Sets the metrics of the process.
    pub fn set_process_usage(&self, usage: &ProcessUsage) {
        self.process.set(usage);
    }

    /// Adds counts of translated packets, indexed by [`TranslationKind`].
    pub fn add_translated(&self, by_family: &[u64; TranslationKind::ALL.len()]) {
        for (family, packets) in TranslationKind::ALL.iter().zip(by_family) {
            if *packets > 0 {
                let counter = self.translations.with_label_values(&[family.label()]);
                counter.inc_by(*packets);
            }
        }
    }

    /// Exposes the restart counter of an actor at 0, so that its first restart is a visible
    /// increase.
    pub fn expose_actor(&self, actor: &str) {
        self.actor_restarts.with_label_values(&[actor]);
    }

    /// Counts the restart of an actor.
    pub fn count_restart(&self, actor: &str) {
        self.actor_restarts.with_label_values(&[actor]).inc();
    }

    /// Returns all counters that are not zero, except that of [`Catalog::set_backlog_dropped`], which
    /// is the number of the kernel.
    pub fn counter_values(&self) -> Vec<CounterValue> {
        let mut values = Vec::new();
        // One family after the other: together they take much memory.
        for collector in self.registry.counters() {
            for family in collector.collect() {
                if family.name() == BACKLOG_DROPPED {
                    continue;
                }
                let metrics = family.get_metric().iter();
                let used = metrics.filter(|metric| metric.get_counter().get_value() > 0.0);
                values.extend(used.map(|metric| {
                    CounterValue {
                        family: family.name().to_owned(),
                        labels: (metric.get_label().iter())
                            .map(|label| (label.name().into(), label.value().into()))
                            .collect(),
                        value: metric.get_counter().get_value() as u64,
                    }
                }));
            }
        }
        values
    }

    /// Adds the counters of another process. Ignores those that this version does not have.
    pub fn add_counter_values(&self, values: &[CounterValue]) {
        for CounterValue {
            family,
            labels,
            value,
        } in values
        {
            let label = |name: &str| {
                let mut known = labels.iter();
                known
                    .find(|(known, _)| **known == *name)
                    .map(|(_, value)| &**value)
            };
            // Their series end when they have been retired for long.
            match (label("route"), label("iif"), label("oif"), label("plane")) {
                (Some(route), Some(iif), Some(oif), Some(plane)) => {
                    self.path(&RouteName::new(route), iif, oif, plane);
                }
                _ => {
                    if let Some(name) = label("iface") {
                        self.known().interfaces.insert(name.into());
                    }
                }
            }
            let labels: HashMap<&str, &str> = labels
                .iter()
                .map(|(name, value)| (&**name, &**value))
                .collect();
            self.registry.add_to_counter(family, &labels, *value);
        }
    }

    /// Returns all metrics in the Prometheus text format.
    pub fn text(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backlog_drops_follow_the_kernel_counter() {
        let catalog = Catalog::new().unwrap();
        // The third value is lower: the kernel's counter of a core restarted.
        for packets in [5, 9, 3, 3] {
            catalog.set_backlog_dropped(packets);
            assert_eq!(catalog.backlog_dropped.get(), packets);
        }
    }

    #[test]
    fn only_counter_names_end_in_total() {
        let catalog = Catalog::new().unwrap();
        catalog.interface("eth0");
        catalog.count_restart("routing");
        catalog.set_joined_groups("eth0", 1);
        catalog.count_ended_flows("eth0", FlowEnd::Idle, 0);
        catalog.path(&RouteName::new("r"), "eth0", "eth1", "packet");
        let text = String::from_utf8(catalog.text().unwrap()).unwrap();
        let types: Vec<(&str, &str)> = text
            .lines()
            .filter_map(|l| l.strip_prefix("# TYPE ")?.split_once(' '))
            .collect();
        assert!(types.len() >= 12, "{types:?}");
        for (name, kind) in types {
            let prefixes = ["mcastor_", "process_"];
            assert!(
                prefixes.iter().any(|prefix| name.starts_with(prefix)),
                "{name}"
            );
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
        }
    }

    #[test]
    fn series_of_retired_names_are_limited() {
        let catalog = Catalog::new().unwrap();
        let route = RouteName::new("r");
        let none = AHashSet::new();
        for i in 0..2000 {
            let name = format!("veth{i}");
            catalog.interface(&name).received_packets.inc();
            catalog.path(&route, "eth0", &name, "packet");
            catalog.retire_interfaces(&none);
            match i % 2 {
                0 => catalog.retire_paths(std::iter::empty()),
                _ => {
                    let iface = |name: &str| name.parse::<IfName>().unwrap();
                    let path = (route.clone(), iface("eth0"), iface(&name));
                    let (paths, none) = (AHashSet::from_iter([path]), AHashSet::new());
                    catalog.update_paths(&paths, &none);
                    catalog.update_paths(&none, &paths);
                    catalog.update_paths(&paths, &none);
                }
            }
        }
        let text = String::from_utf8(catalog.text().unwrap()).unwrap();
        let count = |family: &str| text.lines().filter(|l| l.starts_with(family)).count();
        assert_eq!(count("mcastor_route_packets_total{"), MAX_RETIRED);
        assert_eq!(
            count("mcastor_interface_received_packets_total{"),
            MAX_RETIRED
        );
        assert!(text.contains("veth1999") && !text.contains("veth10\""));
    }

    #[test]
    fn flow_ends_are_counted_by_reason_and_removed() {
        let catalog = Catalog::new().unwrap();
        for (n, end) in FlowEnd::ALL.into_iter().enumerate() {
            catalog.count_ended_flows("eth0", end, n as u64);
            catalog.count_ended_flows("eth0", end, 10);
        }
        let ends = || -> Vec<String> {
            let text = String::from_utf8(catalog.text().unwrap()).unwrap();
            let lines = text
                .lines()
                .filter_map(|l| l.strip_prefix("mcastor_flow_ends_total{iface=\"eth0\",reason="));
            lines.map(String::from).collect()
        };
        assert_eq!(
            ends(),
            ["\"evicted\"} 11", "\"flushed\"} 12", "\"idle\"} 10"]
        );
        let none = AHashSet::new();
        for name in std::iter::once("eth0".into()).chain((0..MAX_RETIRED).map(|i| i.to_string())) {
            catalog.interface(&name);
            catalog.retire_interfaces(&none);
        }
        assert!(ends().is_empty());
    }

    #[test]
    fn counters_of_another_process_are_added_once() {
        let old = Catalog::new().unwrap();
        let route = RouteName::new("r");
        old.path(&route, "eth0", "eth1", "packet").packets.inc_by(7);
        old.interface("eth0")
            .dropped(DropReason::QueueFull)
            .inc_by(2);
        old.set_backlog_dropped(9);
        let new = Catalog::new().unwrap();
        new.set_backlog_dropped(9);
        new.path(&route, "eth0", "eth1", "packet").packets.inc_by(3);
        let values = serde_json::to_string(&old.counter_values()).unwrap();
        new.add_counter_values(&serde_json::from_str::<Vec<CounterValue>>(&values).unwrap());
        assert_eq!(new.path_totals(&route, "eth0", "eth1").packets, 10);
        let dropped = new.interface("eth0");
        assert_eq!(dropped.dropped(DropReason::QueueFull).get(), 2);
        assert_eq!(new.backlog_dropped.get(), 9);
        let unknown = CounterValue {
            family: "mcastor_unknown_total".into(),
            ..new.counter_values()[0].clone()
        };
        let before = new.text().unwrap();
        new.add_counter_values(&[unknown]);
        assert_eq!(new.text().unwrap(), before);
    }

    #[test]
    fn same_labels_return_same_counter() {
        let catalog = Catalog::new().unwrap();
        catalog.interface("eth0").received_packets.inc_by(2);
        catalog.interface("eth0").received_packets.inc_by(3);
        assert_eq!(catalog.interface("eth0").received_packets.get(), 5);
    }
}
