//! Metrics of the process, with the names that all Prometheus clients use.

use prometheus::{Counter, Gauge, IntGauge, Opts};

use super::families::{Families, MetricsRegistry};
use crate::model::ProcessUsage;

/// The metric families of the process. Clones share them.
#[derive(Clone)]
pub struct ProcessFamilies {
    cpu_seconds: Counter,
    start_time: Gauge,
    resident_memory: IntGauge,
    virtual_memory: IntGauge,
    threads: IntGauge,
    open_fds: IntGauge,
    max_fds: IntGauge,
}

impl ProcessFamilies {
    /// Registers the families.
    pub(super) fn new(registry: &MetricsRegistry) -> prometheus::Result<Self> {
        let make = Families(registry);
        Ok(Self {
            cpu_seconds: make.register(Counter::with_opts(Opts::new(
                "process_cpu_seconds_total",
                "User and system CPU time of the process in seconds",
            ))?)?,
            start_time: make.register(Gauge::with_opts(Opts::new(
                "process_start_time_seconds",
                "Start of the process in seconds since 1970",
            ))?)?,
            resident_memory: make.gauge(
                "process_resident_memory_bytes",
                "Resident memory of the process in bytes",
            )?,
            virtual_memory: make.gauge(
                "process_virtual_memory_bytes",
                "Virtual memory of the process in bytes",
            )?,
            threads: make.gauge("process_threads", "Threads of the process")?,
            open_fds: make.gauge("process_open_fds", "Open file descriptors of the process")?,
            max_fds: make.gauge(
                "process_max_fds",
                "Limit of open file descriptors of the process",
            )?,
        })
    }

    /// Sets all values.
    pub(super) fn set(&self, usage: &ProcessUsage) {
        let used = usage.cpu_seconds - self.cpu_seconds.get();
        self.cpu_seconds.inc_by(used.max(0.0));
        self.start_time.set(usage.start_seconds);
        for (gauge, value) in [
            (&self.resident_memory, usage.resident_bytes),
            (&self.virtual_memory, usage.virtual_bytes),
            (&self.threads, usage.threads),
            (&self.open_fds, usage.open_files),
            (&self.max_fds, usage.max_files),
        ] {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
    }
}
