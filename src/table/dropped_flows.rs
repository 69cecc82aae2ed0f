//! The flows whose packets an interface drops: one for each (S,G), with counters. They show where a
//! stream arrives that no route takes, or that arrives with too low a TTL.
//!
//! Any sender can create them, so their number is limited: a new one replaces the one that has been
//! idle longest.

use super::flow::FlowKey;
use super::flow_store::FlowStore;

/// Largest number of dropped flows that an interface remembers.
pub const MAX_DROPPED_FLOWS: usize = 1024;

/// Largest number of flows that [`DroppedFlows::take_ttl_expired`] returns at once.
const MAX_TTL_EXPIRED: usize = 16;

/// A flow whose packets are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DroppedFlow {
    /// Packets dropped.
    pub packets: u64,
    /// Their IP bytes.
    pub bytes: u64,
    /// Time of the first of them, in milliseconds of a monotonic clock.
    pub began_ms: u64,
    /// Time of the last of them, by the same clock.
    pub seen_ms: u64,
    /// Whether [`DroppedFlows::take_ttl_expired`] has it, or has returned it.
    ttl_expired: bool,
}

/// The dropped flows of one interface.
#[derive(Default)]
pub struct DroppedFlows {
    flows: FlowStore<DroppedFlow>,
    ttl_expired: Vec<FlowKey>,
    evicted: u64,
}

impl DroppedFlows {
    /// Counts a dropped packet of `bytes`. `ttl_expired` is true if it was dropped for its TTL.
    pub fn count(&mut self, key: FlowKey, ttl_expired: bool, bytes: u64, now_ms: u64) {
        let flow = match self.flows.get_mut(&key) {
            Some(flow) => flow,
            None => {
                if self.flows.len() >= MAX_DROPPED_FLOWS && self.flows.remove_oldest() {
                    self.evicted += 1;
                }
                let flow = DroppedFlow {
                    packets: 0,
                    bytes: 0,
                    began_ms: now_ms,
                    seen_ms: now_ms,
                    ttl_expired: false,
                };
                self.flows.insert(key, flow)
            }
        };
        flow.packets += 1;
        flow.bytes += bytes;
        flow.seen_ms = now_ms;
        if ttl_expired && !flow.ttl_expired && self.ttl_expired.len() < MAX_TTL_EXPIRED {
            flow.ttl_expired = true;
            self.ttl_expired.push(key);
        }
    }

    /// Returns flows that lost a packet to its TTL and were not returned before.
    pub fn take_ttl_expired(&mut self) -> Vec<FlowKey> {
        std::mem::take(&mut self.ttl_expired)
    }

    /// Returns the number of flows that were replaced since the last call.
    pub fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.evicted)
    }

    /// Forgets the flows without a packet for `idle_ms`.
    pub fn expire(&mut self, now_ms: u64, idle_ms: u64) {
        while let Some(flow) = self.flows.oldest() {
            if now_ms.saturating_sub(flow.seen_ms) < idle_ms {
                return;
            }
            self.flows.remove_oldest();
        }
    }

    /// Forgets all flows.
    pub fn clear(&mut self) {
        self.flows.clear();
    }

    /// Iterates over the flows.
    pub fn iter(&self) -> impl Iterator<Item = (&FlowKey, &DroppedFlow)> {
        self.flows.page(0, usize::MAX).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> FlowKey {
        (
            std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).into(),
            [225, 1, 2, 3].into(),
        )
    }

    #[test]
    fn new_flow_replaces_the_longest_idle_one() {
        let mut dropped = DroppedFlows::default();
        let limit = MAX_DROPPED_FLOWS as u32;
        (0..limit).for_each(|n| dropped.count(key(n), false, 100, n.into()));
        dropped.count(key(0), false, 50, 5000);
        dropped.count(key(limit), false, 100, 6000);
        assert_eq!((dropped.iter().count(), dropped.take_evicted()), (1024, 1));
        let find = |n| dropped.iter().find(|(k, _)| **k == key(n)).map(|f| *f.1);
        assert_eq!(find(1), None);
        let first = find(0).unwrap();
        assert_eq!((first.packets, first.bytes), (2, 150));
        assert_eq!((first.began_ms, first.seen_ms), (0, 5000));
        dropped.expire(60_000 + 5000, 60_000);
        assert_eq!(dropped.iter().count(), 1);
        assert_eq!(dropped.take_evicted(), 0);
    }

    #[test]
    fn flow_with_expired_ttl_is_returned_once() {
        let mut dropped = DroppedFlows::default();
        dropped.count(key(1), false, 100, 0);
        assert_eq!(dropped.take_ttl_expired(), []);
        (0..20).for_each(|n| dropped.count(key(n), true, 100, 0));
        let first = dropped.take_ttl_expired();
        assert_eq!(first.len(), 16);
        (0..20).for_each(|n| dropped.count(key(n), true, 100, 0));
        let rest = dropped.take_ttl_expired();
        assert_eq!(rest, (16..20).map(key).collect::<Vec<_>>());
    }
}
