//! The decision about offers on one way: the policy of a rule, and the translation between links.

use std::net::IpAddr;

use super::link_table::OfferTranslator;
use super::mdns::RecordGate;
use super::offer::{OfferPolicy, ServiceOffer, Way};
use super::reason::WithheldReason;
use crate::model::MacAddress;

/// Decides about the offers of a device on one link for askers on another.
#[derive(Debug, Clone, Copy)]
pub struct OfferGate<'a> {
    /// The rules.
    pub policy: &'a OfferPolicy,
    /// Both links.
    pub translator: OfferTranslator<'a>,
    /// The sender of the message.
    pub device: IpAddr,
    /// Its station.
    pub station: Option<MacAddress>,
}

impl OfferGate<'_> {
    fn way(&self, is_offer: bool) -> Way<'_> {
        Way {
            from: &self.translator.from.link,
            to: &self.translator.to.link,
            device: is_offer.then_some(self.device),
            station: self.station.filter(|_| is_offer),
        }
    }
}

impl RecordGate for OfferGate<'_> {
    fn check_offer(&self, offer: &ServiceOffer<'_>) -> Result<(), WithheldReason> {
        self.policy.check_offer(offer, &self.way(true))
    }

    fn check_question(&self, offer: &ServiceOffer<'_>) -> Result<(), WithheldReason> {
        self.policy.check_question(offer, &self.way(false))
    }

    fn address(&self, address: IpAddr) -> Result<IpAddr, WithheldReason> {
        self.translator.address(address)
    }

    fn port(&self, port: u16, is_tcp: bool) -> Result<u16, WithheldReason> {
        self.translator.port(self.device, port, is_tcp)
    }
}
