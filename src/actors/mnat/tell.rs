//! What happened with the server, in the log.

use tracing::{debug, info, warn};

use super::Mnat;
use crate::mnat::Event;
use crate::mnat::protocol::LONGEST_REQUEST;

impl Mnat {
    pub(super) fn tell(&mut self, event: Event) {
        let server = &self.config.target.host;
        match event {
            Event::Failed { op, why, news } => {
                match news {
                    true => warn!("mnat: {op}: {why}; trying again"),
                    false => debug!("mnat: {op}: {why}; trying again"),
                }
                self.trouble = Some(why);
            }
            Event::Oddity(what) => warn!("mnat: {server} says something odd: {what}; left out"),
            Event::LeftOut(0) => info!("mnat: all joins fit into a request again"),
            Event::LeftOut(joins) => warn!(
                "mnat: {joins} joins are not told to {server}: a request has at most \
                 {LONGEST_REQUEST} bytes; spread the receivers over more egresses"
            ),
            Event::Registered => info!("mnat: registered with {server}"),
            Event::Forgotten => warn!("mnat: {server} does not know us any more; registering anew"),
            Event::Back => {
                info!("mnat: {server} answers");
                self.trouble = None;
            }
            Event::Away => {
                let grace = self.config.grace;
                warn!("mnat: {server} is away; mappings last for {grace:?} since its last answer");
            }
            Event::AsmRefused(channels) => {
                for channel in channels {
                    warn!("mnat: {channel}: {server} takes no joins without a source");
                }
            }
            Event::Change(_) | Event::Polled { .. } => {}
        }
    }
}
