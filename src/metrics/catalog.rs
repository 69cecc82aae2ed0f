//! Every metric of the program. docs/metrics.md lists them for readers.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ahash::AHashSet;
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
    TextEncoder,
};

use super::families::Families;
use super::membership::MembershipFamilies;
use super::mnat::MnatFamilies;
use crate::forward::DropReason;
use crate::model::{FlowEnd, Link, RouteName, TranslationKind};

/// Upper bounds of the latency buckets, in seconds.
const LATENCY_BUCKETS: [f64; 14] = [
    5e-6, 10e-6, 20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 0.1,
];

/// Interfaces, and paths, that are gone but still shown.
pub const MOST_RETIRED: usize = 256;

/// Route, IIF, OIF.
type PathKey = (RouteName, Box<str>, Box<str>);

/// Label values that series were made for.
#[derive(Default)]
struct Known {
    interfaces: Shelf<Box<str>>,
    paths: Shelf<PathKey>,
    plane: Box<str>,
}

/// Keys in use, and those no longer in use, oldest first.
struct Shelf<K> {
    live: AHashSet<K>,
    retired: VecDeque<K>,
}

impl<K> Default for Shelf<K> {
    fn default() -> Self {
        Self {
            live: AHashSet::new(),
            retired: VecDeque::new(),
        }
    }
}

struct Gone<K> {
    /// No longer in use from now on.
    now: Vec<K>,
    /// Not shown any more.
    forgotten: Vec<K>,
}

impl<K: Clone + Eq + std::hash::Hash> Shelf<K> {
    fn use_it(&mut self, key: K) {
        if !self.live.contains(&key) {
            self.retired.retain(|k| *k != key);
            self.live.insert(key);
        }
    }

    fn retire(&mut self, stays: impl Fn(&K) -> bool) -> Gone<K> {
        let now: Vec<K> = self.live.iter().filter(|k| !stays(k)).cloned().collect();
        for key in &now {
            self.live.remove(key);
            self.retired.push_back(key.clone());
        }
        let over = self.retired.len().saturating_sub(MOST_RETIRED);
        Gone {
            now,
            forgotten: self.retired.drain(..over).collect(),
        }
    }
}

/// The registry and the families in it. Clones share them.
#[derive(Clone)]
pub struct Catalog {
    registry: Registry,
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
    filters_widened: IntCounterVec,
    translations: IntCounterVec,
    flow_ends: IntCounterVec,
    known: Arc<Mutex<Known>>,
    /// Flows being forwarded.
    pub flows: IntGauge,
    /// Flows that may be remembered.
    pub flow_limit: IntGauge,
    /// What the kernel dropped on the whole machine because a core's queue was full.
    backlog_dropped: IntCounter,
    /// 1 where the last reload of the settings worked.
    pub last_reload_successful: IntGauge,
    /// 1 while a container engine is followed.
    pub engine_connected: IntGauge,
    /// Kernel receive timestamp to return of the send call, of packets that left.
    pub forward_latency: Histogram,
    /// Routes in force.
    pub routes: IntGauge,
    /// IGMP and MLD.
    pub membership: MembershipFamilies,
    /// Multicast NAT.
    pub mnat: MnatFamilies,
}

/// What one path counts.
#[derive(Clone)]
pub struct PathCounters {
    /// Packets that left on the wire, fragments each for itself.
    pub packets: IntCounter,
    /// Their IP bytes.
    pub bytes: IntCounter,
}

/// What one interface counts.
#[derive(Clone)]
pub struct InterfaceCounters {
    /// Multicast packets taken in.
    pub received_packets: IntCounter,
    /// Their IP bytes.
    pub received_bytes: IntCounter,
    /// IGMP and MLD messages seen besides.
    pub membership_messages: IntCounter,
    /// Packets sent.
    pub transmitted_packets: IntCounter,
    /// Their IP bytes.
    pub transmitted_bytes: IntCounter,
    /// Packets the kernel dropped because we did not take them out of the socket in time.
    pub socket_dropped: IntCounter,
    dropped: Vec<IntCounter>,
}

impl InterfaceCounters {
    /// The counter of a reason.
    pub fn dropped(&self, reason: DropReason) -> &IntCounter {
        &self.dropped[reason as usize]
    }

    /// Adds what was counted by reason elsewhere.
    pub fn add_dropped(&self, by_reason: &[u64; DropReason::COUNT]) {
        for (counter, n) in self.dropped.iter().zip(by_reason) {
            if *n > 0 {
                counter.inc_by(*n);
            }
        }
    }
}

impl Catalog {
    /// Registers every family. The names are constants of this file, so an error is a
    /// mistake in it; the tests hold that there is none.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let make = Families(&registry);
        let path = ["route", "iif", "oif", "plane"];
        let route_packets = make.counters(
            "mcastor_route_packets_total",
            "Packets a route sent out of an interface",
            &path,
        )?;
        let route_bytes = make.counters(
            "mcastor_route_bytes_total",
            "IP bytes a route sent out of an interface",
            &path,
        )?;
        let dropped = make.counters(
            "mcastor_dropped_packets_total",
            "Packets not forwarded, by reason; iface is the egress for reasons of the egress",
            &["reason", "iface"],
        )?;
        let received_packets = make.counters(
            "mcastor_interface_received_packets_total",
            "Multicast packets taken in, routed or not",
            &["iface"],
        )?;
        let received_bytes = make.counters(
            "mcastor_interface_received_bytes_total",
            "IP bytes of multicast packets taken in, routed or not",
            &["iface"],
        )?;
        let membership_messages = make.counters(
            "mcastor_interface_membership_messages_total",
            "IGMP and MLD messages seen, which are never forwarded",
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
            "1 where the interface is up and has a carrier",
            &["iface"],
        )?;
        let interface_mtu = make.gauges(
            "mcastor_interface_mtu_bytes",
            "Largest IP packet the interface carries",
            &["iface"],
        )?;
        let socket_dropped = make.counters(
            "mcastor_socket_dropped_packets_total",
            "Packets the kernel dropped because the capture socket was full",
            &["iface"],
        )?;
        let actor_restarts = make.counters(
            "mcastor_actor_restarts_total",
            "Actors rebuilt after they died",
            &["actor"],
        )?;
        let joined_groups = make.gauges(
            "mcastor_joined_groups",
            "Groups joined as a host",
            &["iface"],
        )?;
        let filters_widened = make.counters(
            "mcastor_upstream_filters_widened_total",
            "Source filters the kernel's host side could not carry",
            &["iface"],
        )?;
        let flow_ends = make.counters(
            "mcastor_flow_ends_total",
            "Flows no longer remembered: idle, evicted for another one, or flushed",
            &["reason", "iface"],
        )?;
        let translations = make.counters(
            "mcastor_translations_total",
            "Packets rewritten, by the IP versions they came and left as",
            &["family"],
        )?;
        for family in TranslationKind::ALL {
            translations.with_label_values(&[family.label()]);
        }
        let flows = make.gauge("mcastor_flows", "Flows being forwarded")?;
        let flow_limit = make.gauge("mcastor_flow_limit", "Flows that may be remembered")?;
        let backlog_dropped = make.counter(
            "mcastor_backlog_dropped_packets_total",
            "Packets of anyone that the kernel dropped on this machine because a core's queue of \
             received packets was full",
        )?;
        let last_reload_successful = make.gauge(
            "mcastor_config_last_reload_successful",
            "1 where the last load of the settings worked",
        )?;
        last_reload_successful.set(1);
        let engine_connected = make.gauge(
            "mcastor_docker_connected",
            "1 while the container engine answers; 0 too where no name asks for it",
        )?;
        let forward_latency = Histogram::with_opts(
            HistogramOpts::new(
                "mcastor_forward_latency_seconds",
                "From the kernel's receive timestamp to the return of the send call",
            )
            .buckets(LATENCY_BUCKETS.to_vec()),
        )?;
        registry.register(Box::new(forward_latency.clone()))?;
        let routes = make.gauge("mcastor_routes", "Routes in force")?;
        let build = make.gauges(
            "mcastor_build_info",
            "1; the labels tell what runs",
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let membership = MembershipFamilies::new(&registry)?;
        let mnat = MnatFamilies::new(&registry)?;
        Ok(Self {
            registry,
            membership,
            mnat,
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
            filters_widened,
            flow_ends,
            translations,
            known: Arc::default(),
            flows,
            flow_limit,
            backlog_dropped,
            last_reload_successful,
            engine_connected,
            forward_latency,
            routes,
        })
    }

    /// Shows what was dropped from full queues since the machine started.
    pub fn set_backlog_dropped(&self, packets: u64) {
        let shown = self.backlog_dropped.get();
        if packets < shown {
            // A core's own count began anew.
            self.backlog_dropped.reset();
        }
        let shown = self.backlog_dropped.get();
        self.backlog_dropped.inc_by(packets - shown);
    }

    /// The counters of a path; asked for again they are the same.
    pub fn path(&self, route: &RouteName, iif: &str, oif: &str, plane: &str) -> PathCounters {
        let labels = [route.as_str(), iif, oif, plane];
        {
            let mut known = self.known();
            known.plane = plane.into();
            known.paths.use_it((route.clone(), iif.into(), oif.into()));
        }
        PathCounters {
            packets: self.route_packets.with_label_values(&labels),
            bytes: self.route_bytes.with_label_values(&labels),
        }
    }

    /// The counters of an interface; asked for again they are the same.
    pub fn interface(&self, name: &str) -> InterfaceCounters {
        self.known().interfaces.use_it(name.into());
        let of = |family: &IntCounterVec| family.with_label_values(&[name]);
        InterfaceCounters {
            received_packets: of(&self.received_packets),
            received_bytes: of(&self.received_bytes),
            membership_messages: of(&self.membership_messages),
            transmitted_packets: of(&self.transmitted_packets),
            transmitted_bytes: of(&self.transmitted_bytes),
            socket_dropped: of(&self.socket_dropped),
            dropped: DropReason::ALL
                .iter()
                .map(|r| self.dropped.with_label_values(&[r.label(), name]))
                .collect(),
        }
    }

    /// Shows the state of a link that routes use.
    pub fn show_link(&self, link: &Link) {
        let name = [link.name.as_str()];
        let up = link.up && link.carrier;
        self.interface_up.with_label_values(&name).set(up.into());
        self.interface_mtu
            .with_label_values(&name)
            .set(link.mtu.into());
    }

    /// Shows a link that is gone as down.
    pub fn show_gone(&self, name: &str) {
        self.interface_up.with_label_values(&[name]).set(0);
    }

    /// Shows how many groups are joined on an interface.
    pub fn show_joined(&self, name: &str, groups: u64) {
        self.joined_groups
            .with_label_values(&[name])
            .set(groups as i64);
    }

    /// Counts a source filter that was widened on an interface.
    pub fn filter_widened(&self, name: &str) {
        self.filters_widened.with_label_values(&[name]).inc();
    }

    /// Forgets how many groups were joined on an interface that is gone.
    pub fn forget_joined(&self, name: &str) {
        // What was never made cannot be removed, and need not be.
        let _ = self.joined_groups.remove_label_values(&[name]);
    }

    /// Tells which interfaces routes use now. The others are shown as down, and forgotten when
    /// [`MOST_RETIRED`] others have gone after them, so that names that come and go, as those
    /// of containers do, do not fill the memory.
    pub fn retire_interfaces(&self, live: &AHashSet<&str>) {
        let mut known = self.known();
        let gone = known.interfaces.retire(|name| live.contains(&**name));
        for name in &gone.now {
            self.show_gone(name);
        }
        for name in &gone.forgotten {
            let name = &**name;
            for family in [
                &self.received_packets,
                &self.received_bytes,
                &self.membership_messages,
                &self.transmitted_packets,
                &self.transmitted_bytes,
                &self.socket_dropped,
                &self.filters_widened,
            ] {
                // What was never made cannot be removed, and need not be.
                let _ = family.remove_label_values(&[name]);
            }
            for family in [&self.interface_up, &self.interface_mtu, &self.joined_groups] {
                let _ = family.remove_label_values(&[name]);
            }
            self.membership.forget_counters(name);
            for reason in DropReason::ALL {
                let _ = self.dropped.remove_label_values(&[reason.label(), name]);
            }
            for end in FlowEnd::ALL {
                let _ = self.flow_ends.remove_label_values(&[end.label(), name]);
            }
        }
    }

    /// Tells which paths, as (route, IIF, OIF), there are now; see
    /// [`Catalog::retire_interfaces`].
    pub fn retire_paths<'a>(&self, live: impl Iterator<Item = (&'a RouteName, &'a str, &'a str)>) {
        let live: AHashSet<PathKey> = live
            .map(|(route, iif, oif)| (route.clone(), iif.into(), oif.into()))
            .collect();
        let mut known = self.known();
        let gone = known.paths.retire(|path| live.contains(path));
        for (route, iif, oif) in &gone.forgotten {
            let labels = [route.as_str(), iif, oif, &known.plane];
            let _ = self.route_packets.remove_label_values(&labels);
            let _ = self.route_bytes.remove_label_values(&labels);
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts flows of an interface that ended, even none, so that a rate has a beginning.
    pub fn flows_ended(&self, name: &str, end: FlowEnd, flows: u64) {
        let ends = self.flow_ends.with_label_values(&[end.label(), name]);
        ends.inc_by(flows);
    }

    /// Counts packets that were translated, by [`TranslationKind`].
    pub fn translated(&self, by_family: &[u64; TranslationKind::ALL.len()]) {
        for (family, packets) in TranslationKind::ALL.iter().zip(by_family) {
            if *packets > 0 {
                let counter = self.translations.with_label_values(&[family.label()]);
                counter.inc_by(*packets);
            }
        }
    }

    /// Shows an actor that was not rebuilt yet: a counter whose first value is not 0 has no rise.
    pub fn show_actor(&self, actor: &str) {
        self.actor_restarts.with_label_values(&[actor]);
    }

    /// Counts an actor that was rebuilt.
    pub fn restarted(&self, actor: &str) {
        self.actor_restarts.with_label_values(&[actor]).inc();
    }

    /// Everything in Prometheus' text format.
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
    fn what_the_kernel_dropped_is_shown_as_it_says() {
        let catalog = Catalog::new().unwrap();
        // The third time a core's own count began anew.
        for packets in [5, 9, 3, 3] {
            catalog.set_backlog_dropped(packets);
            assert_eq!(catalog.backlog_dropped.get(), packets);
        }
    }

    #[test]
    fn counters_end_in_total_and_gauges_do_not() {
        let catalog = Catalog::new().unwrap();
        catalog.interface("eth0");
        catalog.restarted("routing");
        catalog.show_joined("eth0", 1);
        catalog.flows_ended("eth0", FlowEnd::Idle, 0);
        catalog.path(&RouteName::new("r"), "eth0", "eth1", "packet");
        let text = String::from_utf8(catalog.text().unwrap()).unwrap();
        let types: Vec<(&str, &str)> = text
            .lines()
            .filter_map(|l| l.strip_prefix("# TYPE ")?.split_once(' '))
            .collect();
        assert!(types.len() >= 12, "{types:?}");
        for (name, kind) in types {
            assert!(name.starts_with("mcastor_"), "{name}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
        }
    }

    #[test]
    fn names_that_come_and_go_do_not_pile_up() {
        let catalog = Catalog::new().unwrap();
        let route = RouteName::new("r");
        let none = AHashSet::new();
        for i in 0..2000 {
            let name = format!("veth{i}");
            catalog.interface(&name).received_packets.inc();
            catalog.path(&route, "eth0", &name, "packet");
            catalog.retire_interfaces(&none);
            catalog.retire_paths(std::iter::empty());
        }
        let text = String::from_utf8(catalog.text().unwrap()).unwrap();
        let of = |family: &str| text.lines().filter(|l| l.starts_with(family)).count();
        assert_eq!(of("mcastor_route_packets_total{"), MOST_RETIRED);
        assert_eq!(
            of("mcastor_interface_received_packets_total{"),
            MOST_RETIRED
        );
        assert!(text.contains("veth1999") && !text.contains("veth10\""));
    }

    #[test]
    fn flows_end_under_the_label_of_their_reason_and_are_forgotten() {
        let catalog = Catalog::new().unwrap();
        for (n, end) in FlowEnd::ALL.into_iter().enumerate() {
            catalog.flows_ended("eth0", end, n as u64);
            catalog.flows_ended("eth0", end, 10);
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
        for name in std::iter::once("eth0".into()).chain((0..MOST_RETIRED).map(|i| i.to_string())) {
            catalog.interface(&name);
            catalog.retire_interfaces(&none);
        }
        assert!(ends().is_empty());
    }

    #[test]
    fn the_same_labels_are_the_same_counter() {
        let catalog = Catalog::new().unwrap();
        catalog.interface("eth0").received_packets.inc_by(2);
        catalog.interface("eth0").received_packets.inc_by(3);
        assert_eq!(catalog.interface("eth0").received_packets.get(), 5);
    }
}
