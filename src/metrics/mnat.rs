//! Metrics of multicast NAT. Without `[mnat]` in the settings, none of them is exposed.

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec};

use super::families::{Families, MetricsRegistry};

/// Upper bounds of the buckets for the time from join to mapping, in seconds.
const JOIN_BUCKETS: [f64; 12] = [
    0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 300.0,
];

/// The metric families of multicast NAT. Clones share them.
#[derive(Clone)]
pub struct MnatFamilies {
    mappings: IntGaugeVec,
    // Families with an empty list of labels: they are exposed only after their first use.
    server_up: IntGaugeVec,
    join_seconds: HistogramVec,
    requests: IntCounterVec,
}

impl MnatFamilies {
    /// Registers the families.
    pub(super) fn new(registry: &MetricsRegistry) -> prometheus::Result<Self> {
        let make = Families(registry);
        let join_seconds = HistogramOpts::new(
            "mcastor_mnat_join_seconds",
            "Time from a join to its mapping, at an egress",
        );
        let join_seconds = join_seconds.buckets(JOIN_BUCKETS.to_vec());
        Ok(Self {
            mappings: make.gauges(
                "mcastor_mnat_mappings",
                "Global streams, by state of their mapping",
                &["role", "state"],
            )?,
            server_up: make.gauges(
                "mcastor_mnat_server_up",
                "1 if the MNAT server answers",
                &[],
            )?,
            join_seconds: make.register(HistogramVec::new(join_seconds, &[])?)?,
            requests: make.counters(
                "mcastor_mnat_requests_total",
                "Requests to the MNAT server, by operation and result",
                &["op", "code"],
            )?,
        })
    }

    /// Sets the number of global channels in `state`.
    pub fn set_mappings(&self, role: &str, state: &str, count: usize) {
        let gauge = self.mappings.with_label_values(&[role, state]);
        gauge.set(count as i64);
    }

    /// Sets whether the server answers.
    pub fn set_server_up(&self, up: bool) {
        // The family has no labels, so it has one metric.
        self.server_up.with_label_values::<&str>(&[]).set(up.into());
    }

    /// Records the time from a join to its mapping, in seconds.
    pub fn observe_join_seconds(&self, seconds: f64) {
        let histogram = self.join_seconds.with_label_values::<&str>(&[]);
        histogram.observe(seconds);
    }

    /// Exposes the histogram of join times before its first value.
    pub fn expose_join_seconds(&self) {
        let _ = self.join_seconds.with_label_values::<&str>(&[]);
    }

    /// Counts a request. `code` is an HTTP status, or a word for the reason why there is none.
    pub fn count_request(&self, op: &str, code: &str) {
        self.requests.with_label_values(&[op, code]).inc();
    }
}
