//! Names of messages for the counters, lines for the log, and what is left of a message.

use tracing::{info, warn};

use crate::actors::seldom::LeftOut;
use crate::membership::{MembershipEvent, Protocol};
use crate::wire::group_message::{Generation, Message, Query, RecordType};
use crate::wire::mrdisc;

/// Takes out of a message what ends memberships. False where nothing is left of it.
pub(super) fn drop_leaves(message: &mut Message) -> bool {
    match message {
        Message::Query(_) | Message::Report { .. } => true,
        Message::Leave { .. } => false,
        Message::Records(records) => {
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

pub(super) fn kind(message: &Message, protocol: Protocol) -> Kind {
    match message {
        Message::Query(query) => (query_kind(query), version(query.generation, protocol)),
        Message::Report { generation, .. } => ("report", version(*generation, protocol)),
        Message::Leave { .. } => ("leave", version(Generation::Two, protocol)),
        Message::Records(_) => ("report", version(Generation::Three, protocol)),
    }
}

fn query_kind(query: &Query) -> &'static str {
    match (query.group, query.sources.is_empty()) {
        (None, _) => "general_query",
        (Some(_), true) => "group_query",
        (Some(_), false) => "source_query",
    }
}

pub(super) fn mrdisc_kind(message: &mrdisc::Message) -> &'static str {
    match message {
        mrdisc::Message::Advertisement { .. } => "advertisement",
        mrdisc::Message::Solicitation => "solicitation",
        mrdisc::Message::Termination => "termination",
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
    use crate::wire::group_message::Record;

    #[test]
    fn of_a_message_what_joins_is_left() {
        let record = |kind| Record {
            kind,
            group: "239.1.2.3".parse().unwrap(),
            sources: vec![],
        };
        let (joins, leaves) = (RecordType::ChangeToExclude, RecordType::ChangeToInclude);
        let mut mixed = Message::Records(vec![record(leaves), record(joins)]);
        assert!(drop_leaves(&mut mixed));
        assert_eq!(mixed, Message::Records(vec![record(joins)]));
        let mut gone = Message::Records(vec![record(leaves), record(RecordType::BlockOldSources)]);
        assert!(!drop_leaves(&mut gone));
        let group = "239.1.2.3".parse().unwrap();
        assert!(!drop_leaves(&mut Message::Leave { group }));
    }
}
