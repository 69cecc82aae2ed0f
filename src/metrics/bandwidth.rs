//! Metrics of bandwidth limits. Only interfaces with a limit have them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::IntGaugeVec;

use super::families::{Families, MetricsRegistry};

/// The limit of an interface, and what is used of it. Rates are bits per second of IP packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BandwidthNumbers {
    /// The limit.
    pub limit: u64,
    /// What is reserved for the admitted streams.
    pub admitted: u64,
    /// What the admitted streams had when they were last measured.
    pub measured: u64,
    /// The number of refused streams.
    pub refused: usize,
}

/// The metric families of bandwidth limits. Clones share them.
#[derive(Clone)]
pub struct BandwidthFamilies {
    limit: IntGaugeVec,
    admitted: IntGaugeVec,
    measured: IntGaugeVec,
    refused: IntGaugeVec,
    /// The interfaces that have series.
    known: Arc<Mutex<BTreeSet<String>>>,
}

impl BandwidthFamilies {
    /// Registers the families.
    pub(super) fn new(registry: &MetricsRegistry) -> prometheus::Result<Self> {
        let gauges = |name: &str, help: &str| Families(registry).gauges(name, help, &["iface"]);
        Ok(Self {
            limit: gauges(
                "mcastor_bandwidth_limit_bits_per_second",
                "Bandwidth limit of an interface, an AMT gateway or an AMT relay",
            )?,
            admitted: gauges(
                "mcastor_bandwidth_admitted_bits_per_second",
                "Bits per second that are reserved for the streams that a bandwidth limit admits",
            )?,
            measured: gauges(
                "mcastor_bandwidth_measured_bits_per_second",
                "Bits per second of the streams that a bandwidth limit admits, as last measured",
            )?,
            refused: gauges(
                "mcastor_bandwidth_refused_streams",
                "Streams that are refused because they would exceed a bandwidth limit",
            )?,
            known: Arc::default(),
        })
    }

    /// Sets the metrics of all interfaces with a limit, by name. Those of other interfaces end.
    pub fn set(&self, interfaces: &BTreeMap<&str, BandwidthNumbers>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let families = [&self.limit, &self.admitted, &self.measured, &self.refused];
        known.retain(|name| {
            let is_limited = interfaces.contains_key(name.as_str());
            if !is_limited {
                for family in families {
                    // Each interface has a series in each family.
                    let _ = family.remove_label_values(&[name.as_str()]);
                }
            }
            is_limited
        });
        for (name, numbers) in interfaces {
            let refused = numbers.refused as u64;
            let values = [numbers.limit, numbers.admitted, numbers.measured, refused];
            for (family, value) in families.into_iter().zip(values) {
                let value = i64::try_from(value).unwrap_or(i64::MAX);
                family.with_label_values(&[*name]).set(value);
            }
            if !known.contains(*name) {
                known.insert((*name).to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_end_with_the_limit() {
        let registry = MetricsRegistry::default();
        let families = BandwidthFamilies::new(&registry).unwrap();
        let numbers = BandwidthNumbers {
            limit: 10,
            admitted: 6,
            measured: 5,
            refused: 1,
        };
        families.set(&BTreeMap::from([("eth0", numbers), ("tunnels", numbers)]));
        let series = || -> Vec<(String, f64)> {
            let metrics = registry.gather().into_iter().flat_map(|family| {
                let metrics = family.get_metric().to_vec().into_iter();
                metrics.map(|m| {
                    (
                        m.get_label()[0].value().to_owned(),
                        m.get_gauge().get_value(),
                    )
                })
            });
            metrics.collect()
        };
        let of = |name: &str| -> Vec<f64> {
            let of_name = series().into_iter().filter(|(label, _)| label == name);
            of_name.map(|(_, value)| value).collect()
        };
        // By name of the family.
        assert_eq!(of("eth0"), [6.0, 10.0, 5.0, 1.0]);
        families.set(&BTreeMap::from([("tunnels", numbers)]));
        assert!(of("eth0").is_empty());
        assert_eq!(of("tunnels").len(), 4);
        families.set(&BTreeMap::new());
        assert!(series().is_empty());
    }
}
