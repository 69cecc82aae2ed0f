//! Log lines of membership events, and the removal of leaves from reports.

use tracing::{info, warn};

use crate::actors::log_limit::SuppressedLines;
use crate::membership::{MembershipEvent, Protocol};
use crate::wire::membership_message::{MembershipMessage, RecordType};

/// Removes the parts of a message that end memberships. Returns false if nothing remains.
pub(super) fn remove_leaves(message: &mut MembershipMessage) -> bool {
    match message {
        MembershipMessage::Query(_) | MembershipMessage::Report { .. } => true,
        MembershipMessage::Leave { .. } => false,
        MembershipMessage::Records(records) => {
            records.retain(|record| {
                !matches!(
                    record.kind,
                    RecordType::ChangeToInclude | RecordType::BlockOldSources
                )
            });
            !records.is_empty()
        }
    }
}

/// Returns whether a message is a report or a leave.
pub(super) fn is_report(message: &MembershipMessage) -> bool {
    !matches!(message, MembershipMessage::Query(_))
}

/// Returns whether every group in a report or leave has link-local scope.
pub(super) fn requests_only_link_local_groups(message: &MembershipMessage) -> bool {
    match message {
        MembershipMessage::Query(_) => false,
        MembershipMessage::Report { group, .. } | MembershipMessage::Leave { group } => {
            group.is_link_local()
        }
        MembershipMessage::Records(records) => records.iter().all(|r| r.group.is_link_local()),
    }
}

/// Logs an event. `explained` is set when the consequences of being the querier are logged.
pub(super) fn log_event(
    name: &crate::model::IfName,
    protocol: Protocol,
    event: MembershipEvent,
    suppressed: SuppressedLines,
    explained: &mut bool,
) {
    match event {
        MembershipEvent::QuerierChanged { is_us: true, .. } if !*explained => {
            *explained = true;
            info!(
                interface = %name, "{name}: this router is the {protocol} querier now. Bridges and switches with snooping \
                 stop flooding groups when they receive queries: receivers that send no reports get them no \
                 longer. querier = \"off\" only listens"
            );
        }
        MembershipEvent::QuerierChanged { is_us: true, .. } => {
            info!(interface = %name, "{name}: this router is the {protocol} querier{suppressed}")
        }
        MembershipEvent::QuerierChanged {
            address: Some(address),
            ..
        } => {
            warn!(interface = %name, "{name}: {address} is the {protocol} querier now{suppressed}")
        }
        MembershipEvent::QuerierChanged { address: None, .. } => {
            warn!(
                interface = %name, "{name}: the {protocol} querier is gone, and no other one sends queries{suppressed}"
            );
        }
        MembershipEvent::NoQuerier => warn!(
            interface = %name, "{name}: no {protocol} querier sends queries on this link, and querier = \"off\" does not \
             either: memberships will expire"
        ),
        MembershipEvent::CompetingQuerier { address } => warn!(
            interface = %name, "{name}: {address} is a second {protocol} querier with a lower address; querier = \"on\" \
             continues to send queries"
        ),
        MembershipEvent::VersionMismatch {
            address,
            received,
            configured,
        } => warn!(
            interface = %name, "{name}: the {protocol} querier {address} uses version {}, this router uses {}; all \
             routers of a link must use the same version (version = {{ … }})",
            protocol.version(received),
            protocol.version(configured)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::membership_message::GroupRecord;

    #[test]
    fn joins_remain_when_leaves_are_removed() {
        let record = |kind| GroupRecord {
            kind,
            group: "239.1.2.3".parse().unwrap(),
            sources: vec![],
        };
        let (joins, leaves) = (RecordType::ChangeToExclude, RecordType::ChangeToInclude);
        let mut mixed = MembershipMessage::Records(vec![record(leaves), record(joins)]);
        assert!(remove_leaves(&mut mixed));
        assert_eq!(mixed, MembershipMessage::Records(vec![record(joins)]));
        let mut gone =
            MembershipMessage::Records(vec![record(leaves), record(RecordType::BlockOldSources)]);
        assert!(!remove_leaves(&mut gone));
        let group = "239.1.2.3".parse().unwrap();
        assert!(!remove_leaves(&mut MembershipMessage::Leave { group }));
    }
}
