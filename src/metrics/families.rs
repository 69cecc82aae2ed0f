//! Creation and registration of metric families.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// The registry of all families, and the families of counters by name. Clones share it.
#[derive(Clone, Default)]
pub(super) struct MetricsRegistry {
    registry: Registry,
    counters: Arc<Mutex<BTreeMap<String, CounterFamily>>>,
}

#[derive(Clone)]
enum CounterFamily {
    Labelled(IntCounterVec),
    Single(IntCounter),
}

impl MetricsRegistry {
    /// Registers a family.
    pub fn register(&self, family: Box<dyn Collector>) -> prometheus::Result<()> {
        self.registry.register(family)
    }

    /// Returns all metrics.
    pub fn gather(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }

    /// Adds to the counter of this family with these labels. Ignores a family or labels that do not
    /// exist.
    pub fn add_to_counter(&self, family: &str, labels: &HashMap<&str, &str>, value: u64) {
        let counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        match counters.get(family) {
            Some(CounterFamily::Labelled(family)) => {
                if let Ok(counter) = family.get_metric_with(labels) {
                    counter.inc_by(value);
                }
            }
            Some(CounterFamily::Single(counter)) => counter.inc_by(value),
            None => {}
        }
    }

    /// Returns the families of counters.
    pub fn counters(&self) -> Vec<Box<dyn Collector>> {
        let counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let collector = |family: &CounterFamily| -> Box<dyn Collector> {
            match family {
                CounterFamily::Labelled(family) => Box::new(family.clone()),
                CounterFamily::Single(counter) => Box::new(counter.clone()),
            }
        };
        counters.values().map(collector).collect()
    }

    fn note_counters(&self, name: &str, family: CounterFamily) {
        let counters = self.counters.lock();
        let mut counters = counters.unwrap_or_else(PoisonError::into_inner);
        counters.insert(name.to_owned(), family);
    }
}

/// Creates metric families in a registry.
pub(super) struct Families<'a>(pub &'a MetricsRegistry);

impl Families<'_> {
    /// Registers a family and returns it.
    pub fn register<C: Collector + Clone + 'static>(&self, family: C) -> prometheus::Result<C> {
        self.0.register(Box::new(family.clone()))?;
        Ok(family)
    }

    /// Registers counters with labels.
    pub fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<IntCounterVec> {
        let family = self.register(IntCounterVec::new(Opts::new(name, help), labels)?)?;
        let noted = CounterFamily::Labelled(family.clone());
        self.0.note_counters(name, noted);
        Ok(family)
    }

    /// Registers gauges with labels.
    pub fn gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<IntGaugeVec> {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    /// Registers a counter without labels.
    pub fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        let counter = self.register(IntCounter::new(name, help)?)?;
        let noted = CounterFamily::Single(counter.clone());
        self.0.note_counters(name, noted);
        Ok(counter)
    }

    /// Registers a gauge without labels.
    pub fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.register(IntGauge::new(name, help)?)
    }
}
