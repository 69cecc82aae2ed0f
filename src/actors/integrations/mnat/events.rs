//! Log lines of events at the MNAT server.

use std::fmt::Display;
use std::time::Duration;

use tracing::{debug, info, warn};

use crate::mnat::MnatEvent;
use crate::mnat::protocol::MAX_REQUEST_LEN;

/// Maximum number of items that a line names.
const MAX_NAMED: usize = 5;

/// Returns the first of `count` items, and the number of the others.
pub(super) fn summary<T: Display>(count: usize, items: impl IntoIterator<Item = T>) -> String {
    let items = items.into_iter().take(MAX_NAMED);
    let named: Vec<String> = items.map(|item| item.to_string()).collect();
    let text = named.join("; ");
    match count.saturating_sub(named.len()) {
        0 => text,
        more => format!("{text}; and {more} more"),
    }
}

/// Logs an event. `grace` is how long mappings last after the last answer of the server.
pub(super) fn log_event(server: &str, grace: Duration, event: &MnatEvent) {
    match event {
        MnatEvent::Failed { op, why, is_new } => match is_new {
            true => warn!("mnat: {op}: {why}; trying again"),
            false => debug!("mnat: {op}: {why}; trying again"),
        },
        MnatEvent::InvalidMappings { count, examples } => warn!(
            "mnat: {server} sent invalid data, which is ignored: {}",
            summary(*count, examples)
        ),
        MnatEvent::JoinsLeftOut(0) => info!("mnat: all joins fit into a request again"),
        MnatEvent::JoinsLeftOut(joins) => warn!(
            "mnat: {joins} joins are not sent to {server}: a request has at most \
             {MAX_REQUEST_LEN} bytes; spread the receivers over more egresses"
        ),
        MnatEvent::Registered => info!("mnat: registered with {server}"),
        MnatEvent::UnknownWatcher => {
            warn!("mnat: {server} has forgotten the registration; registering again");
        }
        MnatEvent::ServerUp => info!("mnat: {server} answers"),
        MnatEvent::ServerDown => warn!(
            "mnat: {server} does not answer; mappings last for {grace:?} after its last answer"
        ),
        MnatEvent::AsmRefused(channels) => warn!(
            "mnat: {server} refuses joins without a source: {}",
            summary(channels.len(), channels)
        ),
        MnatEvent::Change(_) | MnatEvent::Polled { .. } => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_names_five_items_and_counts_the_others() {
        assert_eq!(summary(2, 1..=2), "1; 2");
        assert_eq!(summary(65_546, 1..), "1; 2; 3; 4; 5; and 65541 more");
    }
}
