//! The history of drops: the streams with the most dropped packets, by reason and egress, in
//! bounded memory, with the last packet of each.

use crate::model::InterfaceId;
use crate::table::flows::FlowKey;
use crate::table::top_counts::{TopCount, TopCounts};
use crate::wire::ip_summary::IpSummary;

use super::DropReason;

/// Largest number of [`DropKey`]s that a history counts.
pub const MAX_DROP_KEYS: usize = 1024;

/// Largest number of flows that [`DropHistory::take_ttl_expired`] returns at once.
const MAX_TTL_EXPIRED: usize = 16;

/// Length of one of the periods of [`LastMinute`] in milliseconds.
const PERIOD_MS: u64 = 10_000;

/// The properties by which dropped packets are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DropKey {
    /// Source and group, if the packets have them.
    pub flow: Option<FlowKey>,
    /// Why they were dropped.
    pub reason: DropReason,
    /// The egress that they should have left on, if they were dropped there.
    pub egress: Option<InterfaceId>,
}

/// The dropped packets of one [`DropKey`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DropRecord {
    /// Their IP bytes.
    pub bytes: u64,
    /// Time of the first of them, in milliseconds of a monotonic clock.
    pub began_ms: u64,
    /// Time of the last of them, by the same clock.
    pub seen_ms: u64,
    /// How many there were in the last minute.
    pub last_minute: LastMinute,
    /// The last of them. `None` if it was too short for an IP header.
    pub last: Option<IpSummary>,
    /// Whether [`DropHistory::take_ttl_expired`] has the flow, or has returned it.
    ttl_expired: bool,
}

/// A count of packets with its key.
pub type Dropped = TopCount<DropKey, DropRecord>;

/// Counts packets of the last 50 to 60 seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LastMinute {
    /// The number of the current period.
    period: u64,
    /// The packets of each period. The index is the number of the period modulo 6.
    packets: [u32; 6],
}

impl LastMinute {
    fn advance(&mut self, now_ms: u64) {
        let now = now_ms / PERIOD_MS;
        let passed = now.saturating_sub(self.period).min(6);
        for period in now + 1 - passed..=now {
            self.packets[(period % 6) as usize] = 0;
        }
        self.period = self.period.max(now);
    }

    /// Counts packets.
    pub fn add(&mut self, packets: u64, now_ms: u64) {
        self.advance(now_ms);
        let current = &mut self.packets[(self.period % 6) as usize];
        *current = current.saturating_add(u32::try_from(packets).unwrap_or(u32::MAX));
    }

    /// Takes packets back that were counted, the latest first.
    pub fn remove(&mut self, mut packets: u64) {
        for ago in 0..6 {
            let period = &mut self.packets[((self.period + 6 - ago) % 6) as usize];
            let taken = packets.min(u64::from(*period));
            *period -= taken as u32;
            packets -= taken;
        }
    }

    /// Returns the number of packets.
    pub fn packets(mut self, now_ms: u64) -> u64 {
        self.advance(now_ms);
        self.packets.iter().map(|n| u64::from(*n)).sum()
    }
}

/// The dropped packets of one interface or egress.
///
/// Strangers can create any number of streams. So only [`MAX_DROP_KEYS`] are counted, and the one
/// with the fewest packets loses its place first.
pub struct DropHistory {
    counts: TopCounts<DropKey, DropRecord>,
    ttl_expired: Vec<FlowKey>,
    evicted: u64,
}

impl Default for DropHistory {
    fn default() -> Self {
        Self {
            counts: TopCounts::new(MAX_DROP_KEYS),
            ttl_expired: Vec::new(),
            evicted: 0,
        }
    }
}

impl DropHistory {
    /// Counts dropped packets, of which `last` is the last one. `bytes` is the length of all of
    /// them.
    pub fn count(
        &mut self,
        reason: DropReason,
        egress: Option<InterfaceId>,
        last: Option<IpSummary>,
        (packets, bytes): (u64, u64),
        now_ms: u64,
    ) {
        let flow = last.map(|last| (last.source, last.destination));
        let key = DropKey {
            flow,
            reason,
            egress,
        };
        let (record, has_replaced) = self.counts.add(key, packets);
        self.evicted += u64::from(has_replaced);
        if record.bytes == 0 {
            record.began_ms = now_ms;
        }
        record.bytes += bytes;
        record.seen_ms = now_ms;
        record.last = last;
        record.last_minute.add(packets, now_ms);
        if reason == DropReason::TtlExpired
            && let Some(flow) = flow
            && !record.ttl_expired
            && self.ttl_expired.len() < MAX_TTL_EXPIRED
        {
            record.ttl_expired = true;
            self.ttl_expired.push(flow);
        }
    }

    /// Returns flows that lost a packet to its TTL and were not returned before.
    pub fn take_ttl_expired(&mut self) -> Vec<FlowKey> {
        std::mem::take(&mut self.ttl_expired)
    }

    /// Returns how many keys lost their place since the last call.
    pub fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.evicted)
    }

    /// Iterates over what was counted, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Dropped> {
        self.counts.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(n: u32) -> Option<IpSummary> {
        Some(IpSummary {
            source: std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).into(),
            destination: [225, 1, 2, 3].into(),
            ttl: 1,
            len: 100,
            port: None,
        })
    }

    fn flow(n: u32) -> FlowKey {
        let packet = packet(n).unwrap();
        (packet.source, packet.destination)
    }

    #[test]
    fn streams_are_counted_by_reason_and_egress() {
        let mut history = DropHistory::default();
        let egress = InterfaceId::new(7);
        let count = |history: &mut DropHistory, reason, egress, now| {
            history.count(reason, egress, packet(1), (2, 200), now);
        };
        count(&mut history, DropReason::NoRoute, None, 1000);
        count(&mut history, DropReason::NoRoute, None, 3000);
        count(&mut history, DropReason::TooBig, egress, 4000);
        let find = |reason| history.iter().find(|d| d.key.reason == reason).copied();
        let no_route = find(DropReason::NoRoute).unwrap();
        assert_eq!((no_route.count, no_route.value.bytes), (4, 400));
        assert_eq!(
            (no_route.value.began_ms, no_route.value.seen_ms),
            (1000, 3000)
        );
        let too_big = find(DropReason::TooBig).unwrap();
        assert_eq!((too_big.count, too_big.key.egress), (2, egress));
        assert_eq!(
            (too_big.value.last, too_big.key.flow),
            (packet(1), Some(flow(1)))
        );
    }

    #[test]
    fn last_minute_forgets_after_fifty_to_sixty_seconds() {
        let mut minute = LastMinute::default();
        minute.add(5, 9_999);
        minute.add(3, 10_000);
        assert_eq!(minute.packets(59_999), 8);
        assert_eq!(minute.packets(60_000), 3);
        assert_eq!(minute.packets(70_000), 0);
        minute.add(1, 10_000_000);
        assert_eq!(minute.packets(10_000_000), 1);
        // A clock of another thread may be a little behind.
        minute.add(1, 9_989_999);
        assert_eq!(minute.packets(10_000_000), 2);
    }

    #[test]
    fn flow_with_expired_ttl_is_returned_once() {
        let mut history = DropHistory::default();
        let mut count = |n: u32, reason| history.count(reason, None, packet(n), (1, 100), 0);
        count(1, DropReason::NoRoute);
        (0..20).for_each(|n| count(n, DropReason::TtlExpired));
        assert_eq!(history.take_ttl_expired().len(), 16);
        let mut count = |n: u32, reason| history.count(reason, None, packet(n), (1, 100), 0);
        (0..20).for_each(|n| count(n, DropReason::TtlExpired));
        let rest = history.take_ttl_expired();
        assert_eq!(rest, (16..20).map(flow).collect::<Vec<_>>());
    }

    #[test]
    fn new_sources_do_not_displace_large_streams() {
        let mut history = DropHistory::default();
        for n in 0..50_000 {
            history.count(DropReason::NoRoute, None, packet(1_000 + n), (1, 100), 0);
            if n % 100 == 0 {
                history.count(DropReason::NoRoute, None, packet(1), (1, 100), 0);
            }
        }
        assert_eq!(history.iter().count(), MAX_DROP_KEYS);
        let stream = history.iter().find(|d| d.key.flow == Some(flow(1)));
        assert_eq!(
            stream.map(|d| d.count + d.missed_at_most >= 500),
            Some(true)
        );
        assert!(history.take_evicted() > 48_000);
    }
}
