//! Names of messages for the counters, lines for the log, and what is left of a message.

use tracing::{info, warn};

use crate::actors::log_limit::LeftOut;
use crate::membership::{MembershipEvent, Protocol};
use crate::wire::membership_message::{Generation, MembershipMessage, Query, RecordType};
use crate::wire::mrdisc;

/// Takes out of a message what ends memberships. False where nothing is left of it.
pub(super) fn drop_leaves(message: &mut MembershipMessage) -> bool {
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

/// The `type` and `version` labels of a message.
pub(super) type Kind = (&'static str, &'static str);

pub(super) fn kind(message: &MembershipMessage, protocol: Protocol) -> Kind {
    match message {
        MembershipMessage::Query(query) => (query_kind(query), version(query.generation, protocol)),
        MembershipMessage::Report { generation, .. } => ("report", version(*generation, protocol)),
        MembershipMessage::Leave { .. } => ("leave", version(Generation::Two, protocol)),
        MembershipMessage::Records(_) => ("report", version(Generation::Three, protocol)),
    }
}

fn query_kind(query: &Query) -> &'static str {
    match (query.group, query.sources.is_empty()) {
        (None, _) => "general_query",
        (Some(_), true) => "group_query",
        (Some(_), false) => "source_query",
    }
}

pub(super) fn mrdisc_kind(message: &mrdisc::RouterDiscoveryMessage) -> &'static str {
    match message {
        mrdisc::RouterDiscoveryMessage::Advertisement { .. } => "advertisement",
        mrdisc::RouterDiscoveryMessage::Solicitation => "solicitation",
        mrdisc::RouterDiscoveryMessage::Termination => "termination",
    }
}

/// What the protocol calls its generation.
pub(super) fn version(generation: Generation, protocol: Protocol) -> &'static str {
    match (generation, protocol) {
        (Generation::One, _) | (Generation::Two, Protocol::Mld) => "1",
        (Generation::Two, Protocol::Igmp) | (Generation::Three, Protocol::Mld) => "2",
        (Generation::Three, Protocol::Igmp) => "3",
    }
}

pub(super) fn log(
    name: &crate::model::IfName,
    protocol: Protocol,
    event: MembershipEvent,
    left: LeftOut,
    said: &mut bool,
) {
    match event {
        MembershipEvent::QuerierChanged { is_us: true, .. } if !*said => {
            *said = true;
            info!(
                "{name}: we are the {protocol} querier now. A bridge or switch with snooping that \
                 hears us stops flooding: receivers that never report get nothing any more. \
                 querier = \"off\" only listens"
            );
        }
        MembershipEvent::QuerierChanged { is_us: true, .. } => {
            info!("{name}: we are the {protocol} querier{left}")
        }
        MembershipEvent::QuerierChanged {
            address: Some(address),
            ..
        } => warn!("{name}: {address} is the {protocol} querier now{left}"),
        MembershipEvent::QuerierChanged { address: None, .. } => {
            warn!("{name}: nobody asks for {protocol} members any more{left}");
        }
        MembershipEvent::NoQuerier => warn!(
            "{name}: nobody asks for {protocol} members, and querier = \"off\" does not either: \
             members are forgotten after a while"
        ),
        MembershipEvent::CompetingQuerier { address } => warn!(
            "{name}: {address} asks for {protocol} members too, and has the lower address; \
             querier = \"on\" goes on asking"
        ),
        MembershipEvent::VersionMismatch {
            address,
            received,
            configured,
        } => warn!(
            "{name}: the {protocol} querier {address} speaks version {}, we speak {}; routers of \
             one link must be set alike (version = {{ … }})",
            version(received, protocol),
            version(configured, protocol)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::membership_message::GroupRecord;

    #[test]
    fn of_a_message_what_joins_is_left() {
        let record = |kind| GroupRecord {
            kind,
            group: "239.1.2.3".parse().unwrap(),
            sources: vec![],
        };
        let (joins, leaves) = (RecordType::ChangeToExclude, RecordType::ChangeToInclude);
        let mut mixed = MembershipMessage::Records(vec![record(leaves), record(joins)]);
        assert!(drop_leaves(&mut mixed));
        assert_eq!(mixed, MembershipMessage::Records(vec![record(joins)]));
        let mut gone =
            MembershipMessage::Records(vec![record(leaves), record(RecordType::BlockOldSources)]);
        assert!(!drop_leaves(&mut gone));
        let group = "239.1.2.3".parse().unwrap();
        assert!(!drop_leaves(&mut MembershipMessage::Leave { group }));
    }
}
