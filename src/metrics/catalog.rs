//! Every metric of the program. docs/metrics.md lists them for readers.

use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::forward::DropReason;
use crate::model::{Link, RouteName};

/// Upper bounds of the latency buckets, in seconds.
const LATENCY_BUCKETS: [f64; 14] = [
    5e-6, 10e-6, 20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 0.1,
];

/// The registry and the families in it. Clones share them.
#[derive(Clone)]
pub struct Catalog {
    registry: Registry,
    route_packets: IntCounterVec,
    route_bytes: IntCounterVec,
    dropped: IntCounterVec,
    received_packets: IntCounterVec,
    received_bytes: IntCounterVec,
    transmitted_packets: IntCounterVec,
    transmitted_bytes: IntCounterVec,
    interface_up: IntGaugeVec,
    interface_mtu: IntGaugeVec,
    socket_dropped: IntCounterVec,
    actor_restarts: IntCounterVec,
    /// Kernel receive timestamp to return of the send call, of packets that left.
    pub forward_latency: Histogram,
    /// Routes in force.
    pub routes: IntGauge,
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
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let family = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(family.clone()))?;
            prometheus::Result::Ok(family)
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let family = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(family.clone()))?;
            prometheus::Result::Ok(family)
        };
        let path = ["route", "iif", "oif", "plane"];
        let route_packets = counters(
            "mcastor_route_packets_total",
            "Packets a route sent out of an interface",
            &path,
        )?;
        let route_bytes = counters(
            "mcastor_route_bytes_total",
            "IP bytes a route sent out of an interface",
            &path,
        )?;
        let dropped = counters(
            "mcastor_dropped_packets_total",
            "Packets not forwarded, by reason; iface is the egress for reasons of the egress",
            &["reason", "iface"],
        )?;
        let received_packets = counters(
            "mcastor_interface_received_packets_total",
            "Multicast packets taken in, routed or not",
            &["iface"],
        )?;
        let received_bytes = counters(
            "mcastor_interface_received_bytes_total",
            "IP bytes of multicast packets taken in, routed or not",
            &["iface"],
        )?;
        let transmitted_packets = counters(
            "mcastor_interface_transmitted_packets_total",
            "Packets sent",
            &["iface"],
        )?;
        let transmitted_bytes = counters(
            "mcastor_interface_transmitted_bytes_total",
            "IP bytes of packets sent",
            &["iface"],
        )?;
        let interface_up = gauges(
            "mcastor_interface_up",
            "1 where the interface is up and has a carrier",
            &["iface"],
        )?;
        let interface_mtu = gauges(
            "mcastor_interface_mtu_bytes",
            "Largest IP packet the interface carries",
            &["iface"],
        )?;
        let socket_dropped = counters(
            "mcastor_socket_dropped_packets_total",
            "Packets the kernel dropped because the capture socket was full",
            &["iface"],
        )?;
        let actor_restarts = counters(
            "mcastor_actor_restarts_total",
            "Actors rebuilt after they died",
            &["actor"],
        )?;
        let forward_latency = Histogram::with_opts(
            HistogramOpts::new(
                "mcastor_forward_latency_seconds",
                "From the kernel's receive timestamp to the return of the send call",
            )
            .buckets(LATENCY_BUCKETS.to_vec()),
        )?;
        registry.register(Box::new(forward_latency.clone()))?;
        let routes = IntGauge::new("mcastor_routes", "Routes in force")?;
        registry.register(Box::new(routes.clone()))?;
        let build = gauges(
            "mcastor_build_info",
            "1; the labels tell what runs",
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Self {
            registry,
            route_packets,
            route_bytes,
            dropped,
            received_packets,
            received_bytes,
            transmitted_packets,
            transmitted_bytes,
            interface_up,
            interface_mtu,
            socket_dropped,
            actor_restarts,
            forward_latency,
            routes,
        })
    }

    /// The counters of a path; asked for again they are the same.
    pub fn path(&self, route: &RouteName, iif: &str, oif: &str, plane: &str) -> PathCounters {
        let labels = [route.as_str(), iif, oif, plane];
        PathCounters {
            packets: self.route_packets.with_label_values(&labels),
            bytes: self.route_bytes.with_label_values(&labels),
        }
    }

    /// The counters of an interface; asked for again they are the same.
    pub fn interface(&self, name: &str) -> InterfaceCounters {
        let of = |family: &IntCounterVec| family.with_label_values(&[name]);
        InterfaceCounters {
            received_packets: of(&self.received_packets),
            received_bytes: of(&self.received_bytes),
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
    fn counters_end_in_total_and_gauges_do_not() {
        let catalog = Catalog::new().unwrap();
        catalog.interface("eth0");
        catalog.restarted("routing");
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
    fn the_same_labels_are_the_same_counter() {
        let catalog = Catalog::new().unwrap();
        catalog.interface("eth0").received_packets.inc_by(2);
        catalog.interface("eth0").received_packets.inc_by(3);
        assert_eq!(catalog.interface("eth0").received_packets.get(), 5);
    }
}
