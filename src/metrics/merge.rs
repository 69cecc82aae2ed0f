//! Metrics of merges. Without a route with `merge` in the settings, none of them is exposed.

use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts};

use super::families::{Families, MetricsRegistry};
use crate::merge::MergeStatistics;

/// The values of the label `path`.
const PATHS: [&str; 2] = ["first", "second"];

/// The metric families of merges. Clones share them.
#[derive(Clone)]
pub struct MergeFamilies {
    received: IntCounterVec,
    lost: IntCounterVec,
    duplicates: IntCounterVec,
    late: IntCounterVec,
    lost_on_both: IntCounterVec,
    held: IntCounterVec,
    restarts: IntCounterVec,
    limited: IntCounterVec,
    by_payload: IntCounterVec,
    skew: GaugeVec,
    peak_skew: GaugeVec,
    streams: IntGaugeVec,
    holding: IntGaugeVec,
}

impl MergeFamilies {
    /// Registers the families.
    pub(super) fn new(registry: &MetricsRegistry) -> prometheus::Result<Self> {
        let make = Families(registry);
        let by_path = |name: &str, help: &str| make.counters(name, help, &["route", "path"]);
        let by_route = |name: &str, help: &str| make.counters(name, help, &["route"]);
        let gauge = |name: &str, help: &str| {
            make.register(GaugeVec::new(Opts::new(name, help), &["route"])?)
        };
        Ok(Self {
            received: by_path(
                "mcastor_merge_received_packets_total",
                "Packets of a merge that arrived on each of its two paths",
            )?,
            lost: by_path(
                "mcastor_merge_lost_packets_total",
                "Packets of a merge that a path lost",
            )?,
            duplicates: by_path(
                "mcastor_merge_duplicate_packets_total",
                "Packets of a path that were forwarded already",
            )?,
            late: by_path(
                "mcastor_merge_late_packets_total",
                "Packets of a path that arrived after later ones were forwarded",
            )?,
            lost_on_both: by_route(
                "mcastor_merge_lost_on_both_packets_total",
                "Packets of a merge that no path brought in time",
            )?,
            held: by_route(
                "mcastor_merge_held_packets_total",
                "Packets of a merge that waited for an earlier one",
            )?,
            restarts: by_route(
                "mcastor_merge_restarts_total",
                "Times that the sender of a merged stream began with other numbers",
            )?,
            limited: by_route(
                "mcastor_merge_limited_total",
                "Times that a merge could not hold more packets, and did not wait for an earlier one",
            )?,
            by_payload: by_route(
                "mcastor_merge_by_payload_packets_total",
                "Packets of a merge that were compared by their payload",
            )?,
            skew: gauge(
                "mcastor_merge_skew_seconds",
                "How much later the second path of a merge brings a packet, as a moving average",
            )?,
            peak_skew: gauge(
                "mcastor_merge_peak_skew_seconds",
                "Largest difference between the paths of a merge in the last ten to twenty seconds",
            )?,
            streams: make.gauges("mcastor_merge_streams", "Streams of a merge", &["route"])?,
            holding: make.gauges(
                "mcastor_merge_holding_packets",
                "Packets of a merge that wait for an earlier one now",
                &["route"],
            )?,
        })
    }

    /// Adds what the merge of a route has counted since `former`.
    pub fn add(&self, route: &str, former: &MergeStatistics, counts: &MergeStatistics) {
        type Read = fn(&MergeStatistics) -> u64;
        let by_route: [(&IntCounterVec, Read); 5] = [
            (&self.lost_on_both, |s| s.lost_on_both),
            (&self.held, |s| s.held),
            (&self.restarts, |s| s.restarts),
            (&self.limited, |s| s.limited),
            (&self.by_payload, |s| s.by_payload),
        ];
        for (family, read) in by_route {
            let counter = family.with_label_values(&[route]);
            counter.inc_by(read(counts).saturating_sub(read(former)));
        }
        type ReadBoth = fn(&MergeStatistics) -> [u64; 2];
        let by_path: [(&IntCounterVec, ReadBoth); 4] = [
            (&self.received, |s| s.received),
            (&self.lost, |s| s.lost),
            (&self.duplicates, |s| s.duplicates),
            (&self.late, |s| s.late),
        ];
        for (family, read) in by_path {
            let pairs = read(counts).into_iter().zip(read(former));
            for ((now, before), path) in pairs.zip(PATHS) {
                let counter = family.with_label_values(&[route, path]);
                counter.inc_by(now.saturating_sub(before));
            }
        }
        let gauge = self.skew.with_label_values(&[route]);
        gauge.set(counts.skew_ns as f64 / 1e9);
        let gauge = self.peak_skew.with_label_values(&[route]);
        gauge.set(counts.peak_skew_ns as f64 / 1e9);
        let gauge = self.streams.with_label_values(&[route]);
        gauge.set(counts.streams as i64);
        let gauge = self.holding.with_label_values(&[route]);
        gauge.set(counts.holding as i64);
    }
}
