//! What was decided about messages: the offers that were seen, and what was withheld.

use std::time::Instant;

use super::mdns::FilteredItem;
use super::observed::{ObservedOffers, OfferKey};
use super::protocol::DiscoveryProtocol;
use super::reason::WithheldReason;
use super::relayed_message::{DiscoveryMessage, WithheldMessage};
use crate::model::InterfaceId;

/// The largest number of withheld messages. More are not needed before the actor takes them.
const MAX_WITHHELD: usize = 65_536;

/// The decisions.
#[derive(Debug)]
pub struct DecisionLog {
    offers: ObservedOffers,
    /// What was withheld since the last call of [`DecisionLog::take_withheld`].
    withheld: Vec<WithheldMessage>,
}

impl DecisionLog {
    /// Returns an empty log for at most `limit` offers.
    pub fn new(limit: usize) -> Self {
        Self {
            offers: ObservedOffers::new(limit),
            withheld: Vec::new(),
        }
    }

    /// Returns what was offered.
    pub fn offers(&self) -> &ObservedOffers {
        &self.offers
    }

    /// Returns what was withheld since the last call.
    pub fn take_withheld(&mut self) -> Vec<WithheldMessage> {
        std::mem::take(&mut self.withheld)
    }

    /// Notes that a message was withheld.
    pub fn withhold(
        &mut self,
        protocol: DiscoveryProtocol,
        kind: &'static str,
        reason: WithheldReason,
    ) {
        if self.withheld.len() < MAX_WITHHELD {
            self.withheld.push(WithheldMessage {
                protocol,
                kind,
                reason,
            });
        }
    }

    /// Notes an offer on the first link of `ends` for askers on the second: what is offered, the
    /// instance, and why it is withheld.
    pub fn note_offer(
        &mut self,
        now: Instant,
        (from, to): (InterfaceId, InterfaceId),
        protocol: DiscoveryProtocol,
        received: &DiscoveryMessage<'_>,
        (what, instance): (&str, &str),
        withheld: Option<WithheldReason>,
    ) {
        let key = OfferKey {
            from,
            to,
            protocol,
            device: received.datagram.source.ip(),
            what: what.into(),
            instance: instance.into(),
        };
        self.offers.note(now, key, received.station, withheld);
    }

    /// Notes the questions or records of a message of multicast DNS.
    pub fn note_items(
        &mut self,
        now: Instant,
        ends: (InterfaceId, InterfaceId),
        received: &DiscoveryMessage<'_>,
        kind: &'static str,
        items: &[FilteredItem],
    ) {
        let protocol = DiscoveryProtocol::Mdns;
        for item in items {
            if let Some(reason) = item.withheld {
                self.withhold(protocol, kind, reason);
            }
            if kind != "question" {
                let text = (item.what.as_str(), item.instance.as_str());
                self.note_offer(now, ends, protocol, received, text, item.withheld);
            }
        }
    }

    /// Forgets old offers, and those of links that are gone.
    pub fn expire(&mut self, now: Instant, is_used: impl Fn(InterfaceId) -> bool) {
        self.offers.expire(now, is_used);
    }
}
