//! Discovery of the relay behind one address (RFC 7450 section 5.2.3.4).

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::random::AmtRandom;
use super::refusal::AmtRefusal;
use super::retry::Retry;
use crate::wire::amt::AmtMessage;

/// The discovery of the relay behind one address.
#[derive(Debug)]
pub(super) struct Discovery {
    nonce: u32,
    retry: Retry,
    relay: Option<SocketAddr>,
}

impl Discovery {
    /// Schedules the first Relay Discovery.
    pub(super) fn new(now: Instant, random: &mut AmtRandom) -> Self {
        Self {
            nonce: random.nonce(),
            retry: Retry::at(now),
            relay: None,
        }
    }

    /// Returns the relay, if it is known.
    pub(super) fn relay(&self) -> Option<SocketAddr> {
        self.relay
    }

    /// Returns whether the address does not answer.
    pub(super) fn is_failed(&self, now: Instant) -> bool {
        self.relay.is_none() && self.retry.is_unanswered(now)
    }

    /// Returns whether an advertisement with this nonce answers the discovery.
    pub(super) fn has_nonce(&self, nonce: u32) -> bool {
        self.nonce == nonce
    }

    /// Handles an advertisement with the nonce of this discovery of `address`.
    pub(super) fn handle_advertisement(
        &mut self,
        address: SocketAddr,
        relay: IpAddr,
    ) -> Result<(), AmtRefusal> {
        if relay.is_ipv4() != address.is_ipv4() {
            return Err(AmtRefusal::OtherFamily);
        }
        let is_broadcast = matches!(relay, IpAddr::V4(addr) if addr.is_broadcast());
        if relay.is_unspecified() || relay.is_multicast() || is_broadcast {
            return Err(AmtRefusal::BadAddress);
        }
        // Relays have the port of their discovery address.
        self.relay = Some(SocketAddr::new(relay, address.port()));
        Ok(())
    }

    /// Returns the message that is due.
    pub(super) fn poll(&mut self, now: Instant, random: &mut AmtRandom) -> Option<Vec<u8>> {
        let is_due = self.relay.is_none() && self.retry.take_due(now, random);
        let nonce = self.nonce;
        is_due.then(|| AmtMessage::RelayDiscovery { nonce }.to_bytes())
    }

    /// Returns the time of the next message.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.relay.is_none().then(|| self.retry.next())
    }
}
