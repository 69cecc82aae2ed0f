//! Metrics of AMT tunnels. Without `[amt]` in the settings, none of them is exposed.

use prometheus::{IntCounterVec, IntGaugeVec};

use super::families::{Families, MetricsRegistry};

/// The metric families of AMT. Clones share them.
#[derive(Clone)]
pub struct AmtFamilies {
    tunnels: IntGaugeVec,
    relay_state: IntGaugeVec,
    messages: IntCounterVec,
    refused: IntCounterVec,
    discoveries: IntCounterVec,
    copies: IntCounterVec,
    copy_bytes: IntCounterVec,
    failed_copies: IntCounterVec,
}

impl AmtFamilies {
    /// Registers the families.
    pub(super) fn new(registry: &MetricsRegistry) -> prometheus::Result<Self> {
        let make = Families(registry);
        Ok(Self {
            tunnels: make.gauges(
                "mcastor_amt_tunnels",
                "AMT tunnels, by interface and state",
                &["iface", "role", "state"],
            )?,
            relay_state: make.gauges(
                "mcastor_amt_relay_state",
                "1 if the AMT relay answers, 0 if it does not",
                &["iface", "relay"],
            )?,
            messages: make.counters(
                "mcastor_amt_messages_total",
                "AMT control messages, by type and direction",
                &["iface", "type", "direction"],
            )?,
            refused: make.counters(
                "mcastor_amt_refused_total",
                "AMT messages that were refused, by reason",
                &["iface", "reason"],
            )?,
            discoveries: make.counters(
                "mcastor_amt_discoveries_total",
                "Relays that were tried or looked up, by way and result",
                &["iface", "way", "result"],
            )?,
            copies: make.counters(
                "mcastor_amt_copies_total",
                "Packets sent to AMT gateways, one for each gateway",
                &["iface"],
            )?,
            copy_bytes: make.counters(
                "mcastor_amt_copy_bytes_total",
                "IP bytes sent to AMT gateways",
                &["iface"],
            )?,
            failed_copies: make.counters(
                "mcastor_amt_failed_copies_total",
                "Packets for AMT gateways that could not be sent, by reason",
                &["iface", "reason"],
            )?,
        })
    }

    /// Sets the number of tunnels in a state.
    pub fn set_tunnels(&self, interface: &str, role: &str, state: &str, count: usize) {
        let gauge = self.tunnels.with_label_values(&[interface, role, state]);
        gauge.set(count as i64);
    }

    /// Sets whether a relay answers; `None` removes it.
    pub fn set_relay_state(&self, interface: &str, relay: &str, is_connected: Option<bool>) {
        match is_connected {
            Some(is_connected) => {
                let gauge = self.relay_state.with_label_values(&[interface, relay]);
                gauge.set(is_connected.into());
            }
            // Fails if it was never set.
            None => drop(self.relay_state.remove_label_values(&[interface, relay])),
        }
    }

    /// Counts a message. `direction` is `received` or `transmitted`.
    pub fn count_message(&self, interface: &str, kind: &str, direction: &str) {
        let labels = [interface, kind, direction];
        self.messages.with_label_values(&labels).inc();
    }

    /// Counts refused messages.
    pub fn count_refused(&self, interface: &str, reason: &str, count: u64) {
        let counter = self.refused.with_label_values(&[interface, reason]);
        counter.inc_by(count);
    }

    /// Counts a relay that was tried or looked up.
    pub fn count_discovery(&self, interface: &str, way: &str, result: &str) {
        let labels = [interface, way, result];
        self.discoveries.with_label_values(&labels).inc();
    }

    /// Adds what a relay sent.
    pub fn add_copies(&self, interface: &str, copies: u64, bytes: u64) {
        self.copies.with_label_values(&[interface]).inc_by(copies);
        let counter = self.copy_bytes.with_label_values(&[interface]);
        counter.inc_by(bytes);
    }

    /// Adds copies that could not be sent. `reason` is `too_big` or `refused`.
    pub fn add_failed_copies(&self, interface: &str, reason: &str, count: u64) {
        let counter = self.failed_copies.with_label_values(&[interface, reason]);
        counter.inc_by(count);
    }
}
