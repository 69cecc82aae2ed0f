//! What happened with the server, in the log.

use tracing::{debug, info, warn};

use super::Mnat;
use crate::mnat::MnatEvent;
use crate::mnat::protocol::LONGEST_REQUEST;

impl Mnat {
    pub(super) fn tell(&mut self, event: MnatEvent) {
        let server = &self.config.target.host;
        match event {
            MnatEvent::Failed { op, why, news } => {
                match news {
                    true => warn!("mnat: {op}: {why}; trying again"),
                    false => debug!("mnat: {op}: {why}; trying again"),
                }
                self.trouble = Some(why);
            }
            MnatEvent::Oddity(what) => warn!("mnat: {server} says something odd: {what}; left out"),
            MnatEvent::LeftOut(0) => info!("mnat: all joins fit into a request again"),
            MnatEvent::LeftOut(joins) => warn!(
                "mnat: {joins} joins are not told to {server}: a request has at most \
                 {LONGEST_REQUEST} bytes; spread the receivers over more egresses"
            ),
            MnatEvent::Registered => info!("mnat: registered with {server}"),
            MnatEvent::Forgotten => {
                warn!("mnat: {server} does not know us any more; registering anew")
            }
            MnatEvent::Back => {
                info!("mnat: {server} answers");
                self.trouble = None;
            }
            MnatEvent::Away => {
                let grace = self.config.grace;
                warn!("mnat: {server} is away; mappings last for {grace:?} since its last answer");
            }
            MnatEvent::AsmRefused(channels) => {
                for channel in channels {
                    warn!("mnat: {channel}: {server} takes no joins without a source");
                }
            }
            MnatEvent::Change(_) | MnatEvent::Polled { .. } => {}
        }
    }
}
