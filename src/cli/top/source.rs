//! Reads the tables of the running router.

use std::path::Path;
use std::time::Instant;

use super::snapshot::{MAX_DROPS, MAX_FLOWS, Reading};
use crate::api::{
    DropQuery, ExplainQuery, FlowOrder, FlowQuery, ShowQuery, ShowReply, StreamQuery,
};
use crate::cli::explain;
use crate::frontend::control::Command;
use crate::frontend::control::client::{self, ClientError};
use crate::model::escape::{EscapeStyle, escape};

/// Reads all tables from the control socket at `socket`, with the flows that match `search`.
pub(super) fn read(socket: &Path, search: &str, started: Instant) -> Result<Reading, ClientError> {
    // The counters of interfaces and flows are read first.
    let mut snapshot = Reading {
        at: started.elapsed(),
        search: search.into(),
        ..Reading::default()
    };
    for query in [
        ShowQuery::Interfaces,
        ShowQuery::Flows(FlowQuery {
            limit: Some(MAX_FLOWS),
            search: (!search.is_empty()).then(|| search.into()),
            order: FlowOrder::Packets,
            ..FlowQuery::default()
        }),
        ShowQuery::Drops(DropQuery {
            limit: Some(MAX_DROPS),
            ..DropQuery::default()
        }),
        ShowQuery::Groups,
        ShowQuery::Streams(StreamQuery::default()),
    ] {
        match client::send(socket, Command::Show(query))? {
            ShowReply::Interfaces(interfaces) => snapshot.interfaces = interfaces,
            ShowReply::Flows(flows) => snapshot.flows = flows,
            ShowReply::Drops(drops) => snapshot.drops = drops,
            ShowReply::Groups(groups) => snapshot.groups = groups,
            ShowReply::Streams(streams) => snapshot.streams = streams,
            _ => {}
        }
    }
    Ok(snapshot)
}

/// Returns the answer of the router to a packet, or why there is none, as text.
pub(super) fn explanation(socket: &Path, query: ExplainQuery) -> String {
    let text = match client::send(socket, Command::Explain(query)) {
        Ok(ShowReply::Explain(view)) => explain::text(&view),
        Ok(_) => "the running mcastor answered something else".into(),
        Err(e) => e.to_string(),
    };
    escape(&text, EscapeStyle::Lines).into_owned()
}
