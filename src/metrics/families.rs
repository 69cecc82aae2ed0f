//! Making families and registering them.

use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// Makes families in a registry.
pub(super) struct Families<'a>(pub &'a Registry);

impl Families<'_> {
    /// Registers a family.
    pub fn put<C: Collector + Clone + 'static>(&self, family: C) -> prometheus::Result<C> {
        self.0.register(Box::new(family.clone()))?;
        Ok(family)
    }

    /// Counters by labels.
    pub fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<IntCounterVec> {
        self.put(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    /// Gauges by labels.
    pub fn gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<IntGaugeVec> {
        self.put(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    /// One counter.
    pub fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.put(IntCounter::new(name, help)?)
    }

    /// One gauge.
    pub fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.put(IntGauge::new(name, help)?)
    }
}
