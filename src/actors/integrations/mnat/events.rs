//! Log lines of events at the MNAT server.

use std::time::Duration;

use tracing::{debug, info, warn};

use crate::mnat::MnatEvent;
use crate::mnat::protocol::MAX_REQUEST_LEN;

/// Logs an event. `grace` is how long mappings last after the last answer of the server.
pub(super) fn log_event(server: &str, grace: Duration, event: &MnatEvent) {
    match event {
        MnatEvent::Failed { op, why, is_new } => match is_new {
            true => warn!("mnat: {op}: {why}; trying again"),
            false => debug!("mnat: {op}: {why}; trying again"),
        },
        MnatEvent::InvalidMapping(what) => {
            warn!("mnat: {server} sent invalid data, which is ignored: {what}");
        }
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
        MnatEvent::AsmRefused(channels) => {
            for channel in channels {
                warn!("mnat: {channel}: {server} refuses joins without a source");
            }
        }
        MnatEvent::Change(_) | MnatEvent::Polled { .. } => {}
    }
}
