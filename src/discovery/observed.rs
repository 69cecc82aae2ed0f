//! Who offers what, and who asks for what, for `show discovery`.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::protocol::DiscoveryProtocol;
use super::reason::WithheldReason;
use crate::model::{InterfaceId, MacAddress};

/// What is not repeated for this long is forgotten. Devices announce themselves again after half of
/// it (UPnP section 1.2.2), records of DNS-SD last 75 minutes (RFC 6762 section 10), and programs
/// repeat a question at least once an hour (section 5.2).
const LIFETIME: Duration = Duration::from_secs(75 * 60);
/// The longest text. Longer ones are cut.
const MAX_TEXT: usize = 128;

/// What a host offers or asks for, and where.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ObservationKey {
    /// The link of the host.
    pub from: InterfaceId,
    /// The link where the offer would be seen, or the question would be asked.
    pub to: InterfaceId,
    /// The protocol.
    pub protocol: DiscoveryProtocol,
    /// The address of the host: of a device, or of an asker.
    pub host: IpAddr,
    /// A service type, a search target, types, or a host name.
    pub what: String,
    /// The instance name of DNS-SD; empty for others.
    pub instance: String,
}

/// When and how often a host offered or asked for the same.
#[derive(Debug, Clone)]
pub struct Observation {
    /// The station of the host.
    pub station: Option<MacAddress>,
    /// When it was seen last.
    pub last: Instant,
    /// How often.
    pub messages: u64,
    /// Why it is withheld; `None` if it crosses.
    pub withheld: Option<WithheldReason>,
}

/// What was seen last.
#[derive(Debug)]
pub struct ObservationTable(LruCache<ObservationKey, Observation>);

impl ObservationTable {
    /// Returns a table for at most `limit` observations.
    pub fn new(limit: usize) -> Self {
        let limit = NonZeroUsize::new(limit).unwrap_or(NonZeroUsize::MIN);
        Self(LruCache::new(limit))
    }

    /// Notes an offer or question. What was seen least recently is forgotten at the limit.
    pub fn note(
        &mut self,
        now: Instant,
        mut key: ObservationKey,
        station: Option<MacAddress>,
        withheld: Option<WithheldReason>,
    ) {
        for text in [&mut key.what, &mut key.instance] {
            if text.len() > MAX_TEXT {
                let end = (0..=MAX_TEXT).rev().find(|at| text.is_char_boundary(*at));
                text.truncate(end.unwrap_or(0));
            }
        }
        let observation = self.0.get_or_insert_mut(key, || Observation {
            station,
            last: now,
            messages: 0,
            withheld,
        });
        observation.station = station;
        observation.last = now;
        observation.messages = observation.messages.saturating_add(1);
        observation.withheld = withheld;
    }

    /// Forgets what was not seen for long, and what concerns links that are gone.
    pub fn expire(&mut self, now: Instant, is_used: impl Fn(InterfaceId) -> bool) {
        let is_over = |key: &ObservationKey, observation: &Observation| {
            now.saturating_duration_since(observation.last) > LIFETIME
                || !is_used(key.from)
                || !is_used(key.to)
        };
        let over = self.0.iter().filter(|(key, seen)| is_over(key, seen));
        let over: Vec<ObservationKey> = over.map(|(key, _)| key.clone()).collect();
        for key in over {
            self.0.pop(&key);
        }
    }

    /// Returns what was seen, the latest first.
    pub fn iter(&self) -> impl Iterator<Item = (&ObservationKey, &Observation)> {
        self.0.iter()
    }

    /// Returns the number of observations.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observations_are_limited_and_expire() {
        let now = Instant::now();
        let id = |n| InterfaceId::new(n).unwrap();
        let mut table = ObservationTable::new(10);
        for n in 0..50u8 {
            let key = ObservationKey {
                from: id(1),
                to: id(2),
                protocol: DiscoveryProtocol::Ssdp,
                host: [10, 0, 0, n].into(),
                what: "ü".repeat(100),
                instance: String::new(),
            };
            table.note(now, key, None, None);
        }
        assert_eq!(table.len(), 10);
        assert!(table.iter().all(|(key, _)| key.what.len() <= MAX_TEXT));
        table.expire(now + LIFETIME, |_| true);
        assert_eq!(table.len(), 10);
        table.expire(now + LIFETIME + Duration::from_millis(1), |_| true);
        assert!(table.is_empty());
    }

    #[test]
    fn observations_of_links_that_are_gone_are_forgotten() {
        let id = |n| InterfaceId::new(n).unwrap();
        for gone in [1, 2] {
            let (mut table, now) = (ObservationTable::new(10), Instant::now());
            let key = ObservationKey {
                from: id(1),
                to: id(2),
                protocol: DiscoveryProtocol::Mdns,
                host: [10, 0, 0, 1].into(),
                what: "_ipp._tcp".into(),
                instance: String::new(),
            };
            table.note(now, key, None, None);
            table.expire(now, |link| link != id(gone));
            assert!(table.is_empty(), "{gone}");
        }
    }
}
