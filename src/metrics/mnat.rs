//! What is counted of multicast NAT. Nothing of it is shown where there is no `[mnat]`.

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Registry};

use super::families::Families;

/// Upper bounds of the buckets from report to mapping, in seconds.
const JOIN_BUCKETS: [f64; 12] = [
    0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 300.0,
];

/// The families. Clones share them.
#[derive(Clone)]
pub struct MnatFamilies {
    mappings: IntGaugeVec,
    // Families without labels, so that they are not shown before they are used.
    server_up: IntGaugeVec,
    join_seconds: HistogramVec,
    requests: IntCounterVec,
}

impl MnatFamilies {
    /// Registers them.
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let make = Families(registry);
        let join_seconds = HistogramOpts::new(
            "mcastor_mnat_join_seconds",
            "From a join to its mapping, at an egress",
        );
        let join_seconds = join_seconds.buckets(JOIN_BUCKETS.to_vec());
        Ok(Self {
            mappings: make.gauges(
                "mcastor_mnat_mappings",
                "Global channels, by how they stand",
                &["role", "state"],
            )?,
            server_up: make.gauges(
                "mcastor_mnat_server_up",
                "1 where the MNAT server answers",
                &[],
            )?,
            join_seconds: make.put(HistogramVec::new(join_seconds, &[])?)?,
            requests: make.counters(
                "mcastor_mnat_requests_total",
                "Requests to the MNAT server, by what came of them",
                &["op", "code"],
            )?,
        })
    }

    /// Shows how many global channels stand in one way.
    pub fn show_mappings(&self, role: &str, state: &str, count: usize) {
        let gauge = self.mappings.with_label_values(&[role, state]);
        gauge.set(count as i64);
    }

    /// Shows whether the server answers.
    pub fn show_server(&self, up: bool) {
        // The family has no labels, so there is one member.
        self.server_up.with_label_values::<&str>(&[]).set(up.into());
    }

    /// Observes the time from a join to its mapping, in seconds.
    pub fn joined_after(&self, seconds: f64) {
        let histogram = self.join_seconds.with_label_values::<&str>(&[]);
        histogram.observe(seconds);
    }

    /// Makes the histogram shown, with nothing in it yet.
    pub fn show_joins(&self) {
        let _ = self.join_seconds.with_label_values::<&str>(&[]);
    }

    /// Counts a request. `code` is a status or a word for why there is none.
    pub fn request(&self, op: &str, code: &str) {
        self.requests.with_label_values(&[op, code]).inc();
    }
}
