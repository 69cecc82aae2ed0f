//! What all actors share about monitored streams.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::api::StreamView;
use crate::model::EventSettings;
use crate::streams::Registry;
use crate::streams::view::{ViewContext, views};
use crate::table::Fib;

/// The monitored streams, and the settings of their events.
#[derive(Default)]
pub struct Monitoring {
    /// The streams.
    pub registry: Arc<Registry>,
    /// The settings in force.
    pub events: ArcSwap<EventSettings>,
}

impl Monitoring {
    /// Returns the views of all monitored streams, from the latest reports.
    pub fn views(&self, fib: &Fib, now_ms: u64) -> Vec<StreamView> {
        let (ingresses, egresses) = self.registry.reports();
        let events = self.events.load();
        views(
            &ingresses,
            &egresses,
            &ViewContext {
                now_ms,
                silent_after_ms: events.silent_after.as_millis() as u64,
                egress_name: &|index| {
                    let mut egresses = fib.egresses.iter();
                    let egress = egresses.find(|egress| egress.index == index)?;
                    Some(egress.name.to_string())
                },
            },
        )
    }
}
