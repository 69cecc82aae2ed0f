//! What was offered, for `show discovery`.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::protocol::DiscoveryProtocol;
use super::reason::WithheldReason;
use crate::model::{InterfaceId, MacAddress};

/// An offer that is not repeated for this long is forgotten. Devices announce themselves again after
/// half of it (UPnP section 1.2.2), records of DNS-SD last 75 minutes (RFC 6762 section 10).
const LIFETIME: Duration = Duration::from_secs(75 * 60);
/// The longest text of an offer. Longer ones are cut.
const MAX_TEXT: usize = 128;

/// Which offer: by whom, of what, and where it would be seen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OfferKey {
    /// The link of the device.
    pub from: InterfaceId,
    /// The link where it would be seen.
    pub to: InterfaceId,
    /// The protocol.
    pub protocol: DiscoveryProtocol,
    /// The address of the device.
    pub device: IpAddr,
    /// What is offered: a service type, a search target, types, or a host name.
    pub what: String,
    /// The instance name of DNS-SD; empty for others.
    pub instance: String,
}

/// An offer that was seen.
#[derive(Debug, Clone)]
pub struct ObservedOffer {
    /// The station of the device.
    pub station: Option<MacAddress>,
    /// When it was seen last.
    pub last: Instant,
    /// How often.
    pub messages: u64,
    /// Why it is withheld; `None` if it crosses.
    pub withheld: Option<WithheldReason>,
}

/// The offers that were seen last.
#[derive(Debug)]
pub struct ObservedOffers(LruCache<OfferKey, ObservedOffer>);

impl ObservedOffers {
    /// Returns a table for at most `limit` offers.
    pub fn new(limit: usize) -> Self {
        let limit = NonZeroUsize::new(limit).unwrap_or(NonZeroUsize::MIN);
        Self(LruCache::new(limit))
    }

    /// Notes an offer. The offer that was seen least recently is forgotten at the limit.
    pub fn note(
        &mut self,
        now: Instant,
        mut key: OfferKey,
        station: Option<MacAddress>,
        withheld: Option<WithheldReason>,
    ) {
        for text in [&mut key.what, &mut key.instance] {
            if text.len() > MAX_TEXT {
                let end = (0..=MAX_TEXT).rev().find(|at| text.is_char_boundary(*at));
                text.truncate(end.unwrap_or(0));
            }
        }
        let offer = self.0.get_or_insert_mut(key, || ObservedOffer {
            station,
            last: now,
            messages: 0,
            withheld,
        });
        offer.station = station;
        offer.last = now;
        offer.messages = offer.messages.saturating_add(1);
        offer.withheld = withheld;
    }

    /// Forgets what was not seen for long, and offers of links that are gone.
    pub fn expire(&mut self, now: Instant, is_used: impl Fn(InterfaceId) -> bool) {
        let is_over = |key: &OfferKey, offer: &ObservedOffer| {
            now.saturating_duration_since(offer.last) > LIFETIME
                || !is_used(key.from)
                || !is_used(key.to)
        };
        let over = self.0.iter().filter(|(key, offer)| is_over(key, offer));
        let over: Vec<OfferKey> = over.map(|(key, _)| key.clone()).collect();
        for key in over {
            self.0.pop(&key);
        }
    }

    /// Returns the offers, the latest first.
    pub fn iter(&self) -> impl Iterator<Item = (&OfferKey, &ObservedOffer)> {
        self.0.iter()
    }

    /// Returns the number of offers.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether nothing was offered.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_are_limited_and_expire() {
        let now = Instant::now();
        let id = |n| InterfaceId::new(n).unwrap();
        let mut offers = ObservedOffers::new(10);
        for n in 0..50u8 {
            let key = OfferKey {
                from: id(1),
                to: id(2),
                protocol: DiscoveryProtocol::Ssdp,
                device: [10, 0, 0, n].into(),
                what: "ü".repeat(100),
                instance: String::new(),
            };
            offers.note(now, key, None, None);
        }
        assert_eq!(offers.len(), 10);
        assert!(offers.iter().all(|(key, _)| key.what.len() <= MAX_TEXT));
        offers.expire(now + LIFETIME, |_| true);
        assert_eq!(offers.len(), 10);
        offers.expire(now, |link| link != id(2));
        assert!(offers.is_empty());
    }
}
