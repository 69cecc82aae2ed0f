//! What was decided about messages: the offers and questions that were seen, and what was withheld.

use std::time::Instant;

use super::mdns::FilteredItem;
use super::observed::{ObservationKey, ObservationTable};
use super::protocol::DiscoveryProtocol;
use super::reason::WithheldReason;
use super::relayed_message::{DiscoveryMessage, WithheldMessage};
use crate::model::InterfaceId;

/// The largest number of withheld messages. More are not needed before the actor takes them.
const MAX_WITHHELD: usize = 65_536;

/// The decisions.
#[derive(Debug)]
pub struct DecisionLog {
    offers: ObservationTable,
    /// The questions, by asker.
    asked: ObservationTable,
    /// What was withheld since the last call of [`DecisionLog::take_withheld`].
    withheld: Vec<WithheldMessage>,
}

impl DecisionLog {
    /// Returns an empty log for at most `limit` offers, and as many questions.
    pub fn new(limit: usize) -> Self {
        Self {
            offers: ObservationTable::new(limit),
            asked: ObservationTable::new(limit),
            withheld: Vec::new(),
        }
    }

    /// Returns what was offered.
    pub fn offers(&self) -> &ObservationTable {
        &self.offers
    }

    /// Returns what was asked for, by asker.
    pub fn asked(&self) -> &ObservationTable {
        &self.asked
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
        ends: (InterfaceId, InterfaceId),
        protocol: DiscoveryProtocol,
        received: &DiscoveryMessage<'_>,
        text: (&str, &str),
        withheld: Option<WithheldReason>,
    ) {
        let key = observation_key(ends, protocol, received, text);
        self.offers.note(now, key, received.station, withheld);
    }

    /// Notes a question of an asker on the first link of `ends` for devices on the second: what it
    /// asks for, the instance, and why the question is withheld.
    pub fn note_question(
        &mut self,
        now: Instant,
        ends: (InterfaceId, InterfaceId),
        protocol: DiscoveryProtocol,
        received: &DiscoveryMessage<'_>,
        text: (&str, &str),
        withheld: Option<WithheldReason>,
    ) {
        // The same question is on the other link already.
        let withheld = withheld.filter(|reason| *reason != WithheldReason::Repeated);
        let key = observation_key(ends, protocol, received, text);
        self.asked.note(now, key, received.station, withheld);
    }

    /// Notes the questions of a message of multicast DNS. `withheld` is why the message as a whole is
    /// withheld.
    pub fn note_questions(
        &mut self,
        now: Instant,
        ends: (InterfaceId, InterfaceId),
        received: &DiscoveryMessage<'_>,
        items: &[FilteredItem],
        withheld: Option<WithheldReason>,
    ) {
        for item in items {
            let text = (item.what.as_str(), item.instance.as_str());
            let withheld = item.withheld.or(withheld);
            let protocol = DiscoveryProtocol::Mdns;
            self.note_question(now, ends, protocol, received, text, withheld);
        }
    }

    /// Notes what is withheld of the questions or records of a message of multicast DNS, and what the
    /// records offer.
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

    /// Forgets old offers and questions, and those of links that are gone.
    pub fn expire(&mut self, now: Instant, is_used: impl Fn(InterfaceId) -> bool) {
        self.offers.expire(now, &is_used);
        self.asked.expire(now, is_used);
    }
}

fn observation_key(
    (from, to): (InterfaceId, InterfaceId),
    protocol: DiscoveryProtocol,
    received: &DiscoveryMessage<'_>,
    (what, instance): (&str, &str),
) -> ObservationKey {
    ObservationKey {
        from,
        to,
        protocol,
        host: received.datagram.source.ip(),
        what: what.into(),
        instance: instance.into(),
    }
}
