//! Metrics of the MNAT server, `mcastor mnat-server`.

use prometheus::{
    Encoder, Gauge, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, TextEncoder,
};

use super::families::{Families, MetricsRegistry};
use super::http::HttpFamilies;
use super::process::ProcessFamilies;
use crate::model::ProcessUsage;

/// Upper bounds of the buckets for the time of requests, in seconds. Waiting polls take up to 20 s.
const REQUEST_BUCKETS: [f64; 11] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0, 20.0,
];

/// Why the server closed the connection of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// A new connection exceeded the limit.
    Evicted,
    /// The bodies of all requests exceeded the limit.
    BodyMemory,
    /// The answers that clients had not read exceeded the limit.
    AnswerMemory,
    /// The handshakes of TLS and HTTP/2 took too long.
    HandshakeTimeout,
    /// A handshake failed.
    HandshakeFailed,
    /// The client did not answer a ping.
    Silent,
    /// The client sent no request.
    Idle,
    /// The client did not send a body in time.
    SlowBody,
    /// A body was so long that it was not read to its end.
    LongBody,
    /// The client did not read its answer.
    SlowReader,
    /// The shared store did not decide.
    StoreTimeout,
}

impl CloseReason {
    /// All reasons.
    pub const ALL: [Self; 11] = [
        Self::Evicted,
        Self::BodyMemory,
        Self::AnswerMemory,
        Self::HandshakeTimeout,
        Self::HandshakeFailed,
        Self::Silent,
        Self::Idle,
        Self::SlowBody,
        Self::LongBody,
        Self::SlowReader,
        Self::StoreTimeout,
    ];

    /// Returns the value of the label `reason`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Evicted => "evicted",
            Self::BodyMemory => "body_memory",
            Self::AnswerMemory => "answer_memory",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::HandshakeFailed => "handshake_failed",
            Self::Silent => "silent",
            Self::Idle => "idle",
            Self::SlowBody => "slow_body",
            Self::LongBody => "long_body",
            Self::SlowReader => "slow_reader",
            Self::StoreTimeout => "store_timeout",
        }
    }
}

/// The metrics of an MNAT server. Clones share them.
#[derive(Clone)]
pub struct MnatServerCatalog {
    registry: MetricsRegistry,
    pool_size: Gauge,
    assigned: IntGauge,
    waiting: IntGauge,
    held_down: IntGauge,
    watchers: IntGauge,
    connections: IntGauge,
    closed_connections: IntCounterVec,
    store_up: IntGauge,
    requests: HistogramVec,
    process: ProcessFamilies,
    /// The metrics of the HTTP server.
    pub http: HttpFamilies,
}

impl MnatServerCatalog {
    /// Returns a catalogue in a registry of its own.
    ///
    /// # Errors
    /// Two families have the same name, which a test excludes.
    pub fn new() -> prometheus::Result<Self> {
        let registry = MetricsRegistry::default();
        let make = Families(&registry);
        let requests = HistogramOpts::new(
            "mcastor_mnat_request_seconds",
            "Time from a request of an MNAT client to its answer",
        );
        let requests = requests.buckets(REQUEST_BUCKETS.to_vec());
        let closed_connections = make.counters(
            "mcastor_mnat_closed_connections_total",
            "Connections of MNAT clients that the server closed",
            &["reason"],
        )?;
        for reason in CloseReason::ALL {
            closed_connections.with_label_values(&[reason.label()]);
        }
        Ok(Self {
            pool_size: make.register(Gauge::new(
                "mcastor_mnat_pool_size",
                "Local (S,G)s in the pool",
            )?)?,
            assigned: make.gauge("mcastor_mnat_assigned", "Local (S,G)s that are assigned")?,
            waiting: make.gauge(
                "mcastor_mnat_waiting",
                "Joined streams for which the pool has no free local (S,G)",
            )?,
            held_down: make.gauge(
                "mcastor_mnat_held_down",
                "Local (S,G)s that wait after their use, before another stream may have them",
            )?,
            watchers: make.gauge("mcastor_mnat_watchers", "Watcher ids that are valid")?,
            connections: make.gauge("mcastor_mnat_connections", "Connections of MNAT clients")?,
            closed_connections,
            store_up: make.gauge(
                "mcastor_mnat_store_up",
                "1 if the last write of the state succeeded",
            )?,
            requests: make.register(HistogramVec::new(requests, &["op", "code"])?)?,
            process: ProcessFamilies::new(&registry)?,
            http: HttpFamilies::new(&registry)?,
            registry,
        })
    }

    /// Sets the number of local channels in the pool.
    pub fn set_pool_size(&self, size: u128) {
        self.pool_size.set(size as f64);
    }

    /// Sets the numbers of local channels that are assigned and held down, and of streams that wait.
    pub fn set_streams(&self, assigned: usize, waiting: usize, held_down: usize) {
        self.assigned.set(assigned as i64);
        self.waiting.set(waiting as i64);
        self.held_down.set(held_down as i64);
    }

    /// Sets the number of watchers.
    pub fn set_watchers(&self, count: usize) {
        self.watchers.set(count as i64);
    }

    /// Sets the number of connections.
    pub fn set_connections(&self, count: usize) {
        self.connections.set(count as i64);
    }

    /// Counts a connection that the server closed.
    pub fn count_closed_connection(&self, reason: CloseReason) {
        let labels = &[reason.label()];
        self.closed_connections.with_label_values(labels).inc();
    }

    /// Sets whether the state can be written.
    pub fn set_store_up(&self, up: bool) {
        self.store_up.set(up.into());
    }

    /// Returns whether the state can be written.
    pub fn store_up(&self) -> bool {
        self.store_up.get() == 1
    }

    /// Records a request: its kind, the status of the answer, and how long it took.
    pub fn observe_request(&self, op: &str, code: &str, seconds: f64) {
        self.requests
            .with_label_values(&[op, code])
            .observe(seconds);
    }

    /// Sets the metrics of the process.
    pub fn set_process_usage(&self, usage: &ProcessUsage) {
        self.process.set(usage);
    }

    /// Returns all metrics in the Prometheus text format.
    ///
    /// # Errors
    /// A metric cannot be encoded.
    pub fn text(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}
