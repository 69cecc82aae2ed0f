//! Log lines of events at the MNAT server.

use tracing::{debug, info, warn};

use super::Mnat;
use crate::mnat::MnatEvent;
use crate::mnat::protocol::LONGEST_REQUEST;

impl Mnat {
    pub(super) fn log_event(&mut self, event: MnatEvent) {
        let server = &self.config.target.host;
        match event {
            MnatEvent::Failed { op, why, news } => {
                match news {
                    true => warn!("mnat: {op}: {why}; trying again"),
                    false => debug!("mnat: {op}: {why}; trying again"),
                }
                self.last_error = Some(why);
            }
            MnatEvent::Oddity(what) => {
                warn!("mnat: {server} sent invalid data, which is ignored: {what}")
            }
            MnatEvent::LeftOut(0) => info!("mnat: all joins fit into a request again"),
            MnatEvent::LeftOut(joins) => warn!(
                "mnat: {joins} joins are not sent to {server}: a request has at most \
                 {LONGEST_REQUEST} bytes; spread the receivers over more egresses"
            ),
            MnatEvent::Registered => info!("mnat: registered with {server}"),
            MnatEvent::Forgotten => {
                warn!("mnat: {server} has forgotten the registration; registering again")
            }
            MnatEvent::Back => {
                info!("mnat: {server} answers");
                self.last_error = None;
            }
            MnatEvent::Away => {
                let grace = self.config.grace;
                warn!(
                    "mnat: {server} does not answer; mappings last for {grace:?} after its last answer"
                );
            }
            MnatEvent::AsmRefused(channels) => {
                for channel in channels {
                    warn!("mnat: {channel}: {server} refuses joins without a source");
                }
            }
            MnatEvent::Change(_) | MnatEvent::Polled { .. } => {}
        }
    }
}
