//! What is counted of IGMP, MLD and multicast router discovery.

use std::collections::HashMap;

use prometheus::{IntCounterVec, IntGaugeVec, Registry};

use super::families::Families;
use crate::membership::Protocol;

/// Which way a message went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// To us.
    Received,
    /// From us.
    Transmitted,
}

impl Direction {
    fn label(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Transmitted => "transmitted",
        }
    }
}

/// The state of one interface and protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MembershipState {
    /// Groups with members.
    pub groups: u64,
    /// Sources listed for them.
    pub sources: u64,
    /// Whether we ask.
    pub querier: bool,
}

/// The families. Clones share them.
#[derive(Clone)]
pub struct MembershipFamilies {
    igmp: IntCounterVec,
    mld: IntCounterVec,
    refused: IntCounterVec,
    groups: IntGaugeVec,
    sources: IntGaugeVec,
    querier: IntGaugeVec,
    querier_changes: IntCounterVec,
}

impl MembershipFamilies {
    /// Registers them.
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let make = Families(registry);
        let message = ["iface", "direction", "type", "version"];
        let one = ["iface", "protocol"];
        Ok(Self {
            igmp: make.counters(
                "mcastor_igmp_messages_total",
                "IGMP messages that were taken in or sent",
                &message,
            )?,
            mld: make.counters(
                "mcastor_mld_messages_total",
                "MLD messages that were taken in or sent",
                &message,
            )?,
            refused: make.counters(
                "mcastor_membership_refused_total",
                "IGMP and MLD messages, or records in them, that were refused",
                &["iface", "reason"],
            )?,
            groups: make.gauges(
                "mcastor_membership_groups",
                "Groups with members behind the interface",
                &one,
            )?,
            sources: make.gauges(
                "mcastor_membership_sources",
                "Sources listed for the groups with members behind the interface",
                &one,
            )?,
            querier: make.gauges(
                "mcastor_querier",
                "1 where this router is the querier of the interface",
                &one,
            )?,
            querier_changes: make.counters(
                "mcastor_querier_changes_total",
                "How often another router became the querier of the interface",
                &one,
            )?,
        })
    }

    /// Counts a message.
    pub fn message(
        &self,
        iface: &str,
        protocol: Protocol,
        direction: Direction,
        kind: &str,
        version: &str,
    ) {
        let family = match protocol {
            Protocol::Igmp => &self.igmp,
            Protocol::Mld => &self.mld,
        };
        family
            .with_label_values(&[iface, direction.label(), kind, version])
            .inc();
    }

    /// Counts messages or records that were refused, under a reason from one of the enums.
    pub fn refused(&self, iface: &str, reason: &'static str, count: u64) {
        self.refused
            .with_label_values(&[iface, reason])
            .inc_by(count);
    }

    /// Shows what is known of an interface.
    pub fn show(&self, iface: &str, protocol: Protocol, state: MembershipState) {
        let labels = [iface, protocol.label()];
        self.groups
            .with_label_values(&labels)
            .set(state.groups as i64);
        self.sources
            .with_label_values(&labels)
            .set(state.sources as i64);
        self.querier
            .with_label_values(&labels)
            .set(state.querier.into());
        // So that its rate has a beginning.
        self.querier_changes.with_label_values(&labels);
    }

    /// Counts a new querier.
    pub fn querier_changed(&self, iface: &str, protocol: Protocol) {
        self.querier_changes
            .with_label_values(&[iface, protocol.label()])
            .inc();
    }

    /// Forgets the gauges of an interface that is no longer downstream of a proxy.
    pub fn forget(&self, iface: &str) {
        for protocol in Protocol::ALL {
            let labels = [iface, protocol.label()];
            // What was never made cannot be removed, and need not be.
            for family in [&self.groups, &self.sources, &self.querier] {
                let _ = family.remove_label_values(&labels);
            }
        }
    }

    /// Forgets the counters of an interface that went long ago.
    pub(super) fn forget_counters(&self, iface: &str) {
        self.forget(iface);
        for protocol in Protocol::ALL {
            let labels = [iface, protocol.label()];
            let _ = self.querier_changes.remove_label_values(&labels);
        }
        for family in [&self.igmp, &self.mld, &self.refused] {
            forget_all_of(family, iface);
        }
    }
}

/// Removes every series of an interface, whatever its other labels.
fn forget_all_of(family: &IntCounterVec, iface: &str) {
    use prometheus::core::Collector;
    for metric in family.collect().iter().flat_map(|f| f.get_metric()) {
        let labels = metric.get_label();
        if labels
            .iter()
            .any(|l| l.name() == "iface" && l.value() == iface)
        {
            let labels: HashMap<_, _> = labels.iter().map(|l| (l.name(), l.value())).collect();
            let _ = family.remove(&labels);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_went_leaves_nothing() {
        let registry = Registry::new();
        let families = MembershipFamilies::new(&registry).unwrap();
        for iface in ["eth0", "eth1"] {
            families.message(iface, Protocol::Mld, Direction::Received, "report", "2");
            families.refused(iface, "checksum", 3);
            families.show(iface, Protocol::Igmp, MembershipState::default());
        }
        families.forget_counters("eth0");
        let left: Vec<String> = registry
            .gather()
            .iter()
            .flat_map(|f| f.get_metric().to_vec())
            .flat_map(|m| m.get_label().to_vec())
            .filter(|l| l.name() == "iface")
            .map(|l| l.value().to_string())
            .collect();
        assert!(!left.is_empty());
        assert!(left.iter().all(|iface| iface == "eth1"), "{left:?}");
    }
}
