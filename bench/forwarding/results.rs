//! The collected figures, and the statistics that the reports share.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::message_passing::MessageCosts;
use crate::peer::Peer;
use crate::plan::Scenario;

/// One value per round.
pub type Series = Vec<f64>;

/// The series of each peer, by name.
pub type Figures = BTreeMap<Peer, BTreeMap<String, Series>>;

/// All figures of a bench run.
#[derive(Default)]
pub struct Results {
    pub scenarios: Vec<(Scenario, Figures)>,
    /// Latency by rate.
    pub latency: BTreeMap<u64, Figures>,
    pub footprint: Figures,
    /// Loss and latency with and without `show flows`, by case.
    pub show_flows: BTreeMap<&'static str, BTreeMap<String, Series>>,
    pub message_costs: MessageCosts,
    /// Cores that other processes used, in each window.
    pub foreign: Series,
    /// Cores that the host of a virtual machine stole, in each window.
    pub stolen: Series,
    /// Number of windows whose CPU time is that of the threads, because other processes were busy.
    pub by_threads: usize,
    pub rounds: usize,
    pub seconds: f64,
    /// ID, title and error of each part that could not be measured.
    pub failed: Vec<(&'static str, &'static str, String)>,
}

impl Results {
    /// Returns a series of a scenario and peer; empty if it was not measured.
    pub fn series(&self, id: &str, peer: Peer, name: &str) -> &[f64] {
        let found = self.scenarios.iter().find(|(s, _)| s.id == id);
        found
            .and_then(|(_, figures)| figures.get(&peer)?.get(name))
            .map_or(&[], Vec::as_slice)
    }

    /// Returns the spread of the ratios of a scenario to its base, which are computed within each
    /// round.
    pub fn ratio_to_base(&self, id: &str, peer: Peer, name: &str) -> Option<Spread> {
        let (scenario, _) = self.scenarios.iter().find(|(s, _)| s.id == id)?;
        let own = self.series(id, peer, name);
        let base = self.series(scenario.base?, peer, name);
        let ratios: Vec<f64> = own.iter().zip(base).map(|(o, b)| o / b).collect();
        Spread::of(&ratios)
    }

    /// Returns the spread of the latency ratios of `peer` to the kernel, which are computed within
    /// each round.
    pub fn latency_ratio(&self, rate: u64, peer: Peer, name: &str) -> Option<Spread> {
        let peers = self.latency.get(&rate)?;
        let own = peers.get(&peer)?.get(name)?;
        let kernel = peers.get(&Peer::Kernel)?.get(name)?;
        let ratios: Vec<f64> = own.iter().zip(kernel).map(|(o, k)| o / k).collect();
        Spread::of(&ratios)
    }

    /// Returns the spread of the ratios of `peer` to the kernel, which are computed within each
    /// round.
    pub fn ratio(&self, id: &str, peer: Peer, name: &str) -> Option<Spread> {
        let own = self.series(id, peer, name);
        let kernel = self.series(id, Peer::Kernel, name);
        let ratios: Vec<f64> = own.iter().zip(kernel).map(|(o, k)| o / k).collect();
        Spread::of(&ratios)
    }
}

/// The median, smallest and largest value of a series.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// Returns `None` for an empty series.
    pub fn of(values: &[f64]) -> Option<Self> {
        (!values.is_empty()).then(|| Self {
            median: median(values),
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        })
    }

    /// Formats the spread with this number of decimal places.
    pub fn format(self, digits: usize) -> String {
        let Self { median, min, max } = self;
        format!("{median:.digits$} ({min:.digits$} to {max:.digits$})")
    }

    pub fn to_json(self) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max })
    }
}

/// Returns the median; NaN for an empty slice.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}
