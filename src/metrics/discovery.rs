//! Metrics of discovery. Without `[[discovery]]` in the settings, none of them is exposed.

use prometheus::{IntCounterVec, IntGaugeVec};

use super::families::{Families, MetricsRegistry};

/// The metric families of discovery. Clones share them.
#[derive(Clone)]
pub struct DiscoveryFamilies {
    messages: IntCounterVec,
    withheld: IntCounterVec,
    questions: IntGaugeVec,
    offers: IntGaugeVec,
}

impl DiscoveryFamilies {
    /// Registers the families.
    pub(super) fn new(registry: &MetricsRegistry) -> prometheus::Result<Self> {
        let make = Families(registry);
        Ok(Self {
            messages: make.counters(
                "mcastor_discovery_messages_total",
                "Discovery messages sent on another link, by protocol and kind",
                &["protocol", "kind"],
            )?,
            withheld: make.counters(
                "mcastor_discovery_withheld_total",
                "Discovery messages, or questions and records in them, that were withheld, by reason",
                &["protocol", "kind", "reason"],
            )?,
            questions: make.gauges(
                "mcastor_discovery_questions",
                "Open questions, whose answers are passed on",
                &["protocol"],
            )?,
            offers: make.gauges(
                "mcastor_discovery_offers",
                "Offers that were seen",
                &["protocol"],
            )?,
        })
    }

    /// Counts a message that was sent. `kind` is `question`, `answer` or `announcement`.
    pub fn count_message(&self, protocol: &str, kind: &str) {
        self.messages.with_label_values(&[protocol, kind]).inc();
    }

    /// Counts what was withheld.
    pub fn count_withheld(&self, protocol: &str, kind: &str, reason: &str) {
        let labels = [protocol, kind, reason];
        self.withheld.with_label_values(&labels).inc();
    }

    /// Sets the number of open questions and of offers of a protocol.
    pub fn set_known(&self, protocol: &str, questions: usize, offers: usize) {
        let gauge = self.questions.with_label_values(&[protocol]);
        gauge.set(questions as i64);
        let gauge = self.offers.with_label_values(&[protocol]);
        gauge.set(offers as i64);
    }
}
