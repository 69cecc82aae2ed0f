//! Metric labels of IGMP, MLD and router discovery messages.

use crate::membership::Protocol;
use crate::wire::membership_message::{Generation, MembershipMessage, Query};
use crate::wire::mrdisc;

/// The `type` and `version` labels of a message.
pub(super) type MessageLabels = (&'static str, &'static str);

/// Returns the labels of an IGMP or MLD message.
pub(super) fn membership_labels(message: &MembershipMessage, protocol: Protocol) -> MessageLabels {
    match message {
        MembershipMessage::Query(query) => (query_type(query), protocol.version(query.generation)),
        MembershipMessage::Report { generation, .. } => ("report", protocol.version(*generation)),
        MembershipMessage::Leave { .. } => ("leave", protocol.version(Generation::Two)),
        MembershipMessage::Records(_) => ("report", protocol.version(Generation::Three)),
    }
}

fn query_type(query: &Query) -> &'static str {
    match (query.group, query.sources.is_empty()) {
        (None, _) => "general_query",
        (Some(_), true) => "group_query",
        (Some(_), false) => "source_query",
    }
}

/// Returns the labels of a multicast router discovery message.
pub(super) fn discovery_labels(message: &mrdisc::RouterDiscoveryMessage) -> MessageLabels {
    let name = match message {
        mrdisc::RouterDiscoveryMessage::Advertisement { .. } => "advertisement",
        mrdisc::RouterDiscoveryMessage::Solicitation => "solicitation",
        mrdisc::RouterDiscoveryMessage::Termination => "termination",
    };
    (name, "1")
}
