//! Metrics of IGMP, MLD and multicast router discovery.

use std::collections::{BTreeMap, HashMap};

use prometheus::{IntCounterVec, IntGaugeVec};

use super::families::{Families, MetricsRegistry};
use crate::membership::Protocol;

/// Direction of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Received by this router.
    Received,
    /// Sent by this router.
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

/// The membership gauges of one interface and protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MembershipState {
    /// Groups with members.
    pub groups: u64,
    /// Sources listed for these groups.
    pub sources: u64,
    /// Whether this router is the querier.
    pub querier: bool,
}

/// The metric families of group membership. Clones share them.
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
    /// Registers the families.
    pub(super) fn new(registry: &MetricsRegistry) -> prometheus::Result<Self> {
        let make = Families(registry);
        let message_labels = ["iface", "direction", "type", "version"];
        let interface_labels = ["iface", "protocol"];
        Ok(Self {
            igmp: make.counters(
                "mcastor_igmp_messages_total",
                "IGMP messages received or sent",
                &message_labels,
            )?,
            mld: make.counters(
                "mcastor_mld_messages_total",
                "MLD messages received or sent",
                &message_labels,
            )?,
            refused: make.counters(
                "mcastor_membership_refused_total",
                "Rejected IGMP and MLD messages and records",
                &["iface", "reason"],
            )?,
            groups: make.gauges(
                "mcastor_membership_groups",
                "Groups with members behind the interface",
                &interface_labels,
            )?,
            sources: make.gauges(
                "mcastor_membership_sources",
                "Sources listed for the groups with members behind the interface",
                &interface_labels,
            )?,
            querier: make.gauges(
                "mcastor_querier",
                "1 if this router is the querier of the interface",
                &interface_labels,
            )?,
            querier_changes: make.counters(
                "mcastor_querier_changes_total",
                "How often the querier of the interface changed, including to or from this router",
                &interface_labels,
            )?,
        })
    }

    /// Counts a message.
    pub fn count_message(
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

    /// Counts `count` rejected messages or records. `reason` is the label of a reason enum.
    pub fn count_rejected(&self, iface: &str, reason: &'static str, count: u64) {
        self.refused
            .with_label_values(&[iface, reason])
            .inc_by(count);
    }

    /// Returns the number of rejected messages and records of an interface, by reason.
    pub fn rejected(&self, iface: &str) -> BTreeMap<String, u64> {
        use prometheus::core::Collector;
        let mut by_reason = BTreeMap::new();
        for metric in self.refused.collect().iter().flat_map(|f| f.get_metric()) {
            let label = |name: &str| {
                let labels = metric.get_label().iter();
                labels.clone().find(|l| l.name() == name).map(|l| l.value())
            };
            let count = metric.get_counter().get_value() as u64;
            if let Some(reason) = label("reason").filter(|_| label("iface") == Some(iface))
                && count > 0
            {
                by_reason.insert(reason.to_string(), count);
            }
        }
        by_reason
    }

    /// Sets the gauges of an interface.
    pub fn set_state(&self, iface: &str, protocol: Protocol, state: MembershipState) {
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
        // Exposes the counter at 0, so that its first change is a visible increase.
        self.querier_changes.with_label_values(&labels);
    }

    /// Counts a change of the querier.
    pub fn count_querier_change(&self, iface: &str, protocol: Protocol) {
        self.querier_changes
            .with_label_values(&[iface, protocol.label()])
            .inc();
    }

    /// Removes the gauges of an interface that is no longer downstream of a proxy.
    pub fn remove_gauges(&self, iface: &str) {
        for protocol in Protocol::ALL {
            let labels = [iface, protocol.label()];
            // Fails if the series does not exist, which is fine.
            for family in [&self.groups, &self.sources, &self.querier] {
                let _ = family.remove_label_values(&labels);
            }
        }
    }

    /// Removes the counters of an interface that has been gone for long.
    pub(super) fn remove_interface(&self, iface: &str) {
        self.remove_gauges(iface);
        for protocol in Protocol::ALL {
            let labels = [iface, protocol.label()];
            let _ = self.querier_changes.remove_label_values(&labels);
        }
        for family in [&self.igmp, &self.mld, &self.refused] {
            remove_series_of_interface(family, iface);
        }
    }
}

/// Removes every series of `iface`, with any values of the other labels.
fn remove_series_of_interface(family: &IntCounterVec, iface: &str) {
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
    fn removed_interface_has_no_series() {
        let registry = MetricsRegistry::default();
        let families = MembershipFamilies::new(&registry).unwrap();
        for iface in ["eth0", "eth1"] {
            families.count_message(iface, Protocol::Mld, Direction::Received, "report", "2");
            families.count_rejected(iface, "checksum", 3);
            families.set_state(iface, Protocol::Igmp, MembershipState::default());
        }
        families.remove_interface("eth0");
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
