//! Other forwarders on egress links: several routers that serve a link deliver each (S,G) once.
//!
//! This needs no protocol. A router that forwards (S,G) to a link and sees (S,G) arrive on this
//! link from another station yields: it withholds its own packets for the link. Between two routers
//! with this rule, the one with the lower MAC address continues to forward. A station that does not
//! stop within a second does not follow the rule. The router yields to it, even if its address is
//! higher.
//!
//! A router that yields forwards again when it has not seen packets of the other station for the
//! takeover time. If the packets of the stream are further apart than that, the router withholds
//! one more packet. It forwards the next one if the other station did not send the withheld one.
//!
//! The router does not yield to a station that sends less than half of what the router would send:
//! such a station is a router that loses packets, or a host that forges them. Without this rule, a
//! packet every half second would be enough to withhold a stream from a link.
//!
//! RFC 4605 section 4.2 lets only the elected querier forward, which fails where a switch is the
//! querier.

use std::sync::atomic::Ordering;

use super::forwarder_share::ForwarderShare;
use super::slot_table::{SlotTable, StreamSlot, age_ms, stamp, without_stamp};
use super::stream_key::StreamKey;
use crate::model::{InterfaceId, MacAddress};

/// Number of buckets, each of eight streams.
const BUCKETS: usize = 1 << 12;

/// Time without packets of another station after which it is forgotten, in milliseconds.
const MAX_SILENCE_MS: u64 = 60_000;

/// Time after which a station that still sends does not know the rule, in milliseconds.
const PERSISTENCE_MS: u64 = 1000;

/// Time without packets of another station after which the plane may forward a stream without a look
/// at each packet, in milliseconds. A station that sends again is noticed then too, only later.
const PLANE_SILENCE_MS: u64 = 2 * PERSISTENCE_MS;

/// Smallest number of packets by which such a station is recognised.
const PERSISTENT_PACKETS: u64 = 3;

/// If the last packet of the other station is older than this, in milliseconds, it is not a copy of
/// the packet that this router is about to forward.
const COPY_DELAY_MS: u64 = 100;

/// Longest pause, in milliseconds, after which a station still counts as one that persists, while
/// this router forwards [`MAX_OWN_PACKETS`].
const MAX_GAP_MS: u64 = 200;

/// This router withholds its packets.
const YIELDS: u64 = 1 << 63;
/// A packet was withheld since the last one of the other station.
const WITHHELD: u64 = 1 << 62;
const OWN_SHIFT: u32 = 51;
/// Packets that this router forwarded since the last one of the other station, at most
/// [`MAX_OWN_PACKETS`].
const OWN_MASK: u64 = 0xf << OWN_SHIFT;
const MAX_OWN_PACKETS: u64 = 8;
const PACKETS_SHIFT: u32 = 47;
/// Packets of the other station since [`FIRST_SHIFT`], at most [`PERSISTENT_PACKETS`].
const PACKETS_MASK: u64 = 0xf << PACKETS_SHIFT;
/// Time of the first of these packets.
const FIRST_SHIFT: u32 = 23;
const FIRST_MASK: u64 = 0x7f_ffff << FIRST_SHIFT;

/// Whether this router forwards a packet to a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum YieldDecision {
    /// This router forwards the packet.
    Forward {
        /// Whether this router had yielded until now.
        takeover: bool,
    },
    /// This router withholds the packet, because the station with this address sends the stream to
    /// the link.
    Yield(Option<MacAddress>),
}

impl YieldDecision {
    /// This router forwards the packet, as before.
    pub const FORWARD: Self = Self::Forward { takeover: false };
}

/// The other forwarders of all streams, by egress. Allocates 1 MiB for the first one.
pub struct OtherForwarders {
    /// State: flags, numbers of packets, the time of the first and of the last packet seen.
    /// Extra: the address of the station. Share: how much of the stream it sends.
    slots: SlotTable,
}

impl Default for OtherForwarders {
    fn default() -> Self {
        Self {
            slots: SlotTable::new(BUCKETS),
        }
    }
}

/// Returns the key of a stream on an egress; never zero.
fn slot_key(stream: StreamKey, egress: InterfaceId) -> u64 {
    let spread = u64::from(egress.get()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (stream.get() ^ spread).max(1)
}

fn first_packet(now_ms: u64) -> u64 {
    1 << PACKETS_SHIFT | stamp(now_ms) << FIRST_SHIFT
}

impl OtherForwarders {
    /// Notes a packet of `bytes` bytes of a stream that arrived on an egress link from `other`.
    /// `own` is the address of this router there.
    pub(super) fn note(
        &self,
        stream: StreamKey,
        egress: InterfaceId,
        own: Option<MacAddress>,
        (other, bytes): (MacAddress, u64),
        now_ms: u64,
    ) {
        let key = slot_key(stream, egress);
        let slot = self.slots.find(key);
        let share = slot.map(|slot| change_share(slot, |share| share.with_other(bytes, now_ms)));
        let is_incomplete = share.is_some_and(ForwarderShare::is_incomplete);
        let has_precedence = own.is_some_and(|own| other < own);
        let yields = |state: u64| {
            let first_ms = (state & FIRST_MASK) >> FIRST_SHIFT;
            let persists = (state & PACKETS_MASK) >> PACKETS_SHIFT >= PERSISTENT_PACKETS
                && age_ms(first_ms, now_ms) >= PERSISTENCE_MS;
            !is_incomplete && (has_precedence || persists || state & YIELDS != 0)
        };
        let finish = |state: u64| {
            let flag = if yields(state) { YIELDS } else { 0 };
            without_stamp(state) & !(YIELDS | WITHHELD | OWN_MASK) | flag | stamp(now_ms)
        };
        let Some(slot) = slot else {
            let state = finish(first_packet(now_ms));
            let share = ForwarderShare::new(now_ms).word();
            self.slots
                .insert(key, state, (other.to_u64(), share), now_ms);
            return;
        };
        let state = slot.state.load(Ordering::Relaxed);
        let packets = (state & PACKETS_MASK) >> PACKETS_SHIFT;
        // A station that does not copy every packet of this router does not persist.
        let silent_ms = age_ms(state, now_ms);
        let paused = (state & OWN_MASK) >> OWN_SHIFT >= MAX_OWN_PACKETS && silent_ms >= MAX_GAP_MS;
        let next = if silent_ms >= MAX_SILENCE_MS || packets == 0 || paused {
            first_packet(now_ms)
        } else {
            let packets = (packets + 1).min(PERSISTENT_PACKETS);
            state & !PACKETS_MASK | packets << PACKETS_SHIFT
        };
        slot.extra.store(other.to_u64(), Ordering::Relaxed);
        slot.state.store(finish(next), Ordering::Relaxed);
    }

    /// Decides whether this router forwards a packet of `bytes` bytes of a stream to `egress`.
    pub fn decide(
        &self,
        stream: StreamKey,
        egress: InterfaceId,
        bytes: u64,
        takeover_ms: u64,
        now_ms: u64,
    ) -> YieldDecision {
        let Some(slot) = self.slots.find(slot_key(stream, egress)) else {
            return YieldDecision::FORWARD;
        };
        let share = change_share(slot, |share| share.with_own(bytes, now_ms));
        let state = slot.state.load(Ordering::Relaxed);
        if state & YIELDS == 0 {
            if (state & OWN_MASK) >> OWN_SHIFT < MAX_OWN_PACKETS {
                // A lost update only delays the count.
                let next = state + (1 << OWN_SHIFT);
                let order = Ordering::Relaxed;
                let _ = slot.state.compare_exchange(state, next, order, order);
            }
            return YieldDecision::FORWARD;
        }
        if !share.is_incomplete() && yield_lasts(state, takeover_ms, now_ms) {
            if age_ms(state, now_ms) >= COPY_DELAY_MS {
                slot.state.fetch_or(WITHHELD, Ordering::Relaxed);
            }
            return YieldDecision::Yield(MacAddress::from_u64(slot.extra.load(Ordering::Relaxed)));
        }
        let next = state & !(YIELDS | WITHHELD | PACKETS_MASK);
        let order = Ordering::Relaxed;
        let ended = slot.state.compare_exchange(state, next, order, order);
        YieldDecision::Forward {
            takeover: ended.is_ok(),
        }
    }

    /// Returns the station to which this router yields a stream on `egress`, without any change.
    pub fn yields_to(
        &self,
        stream: StreamKey,
        egress: InterfaceId,
        takeover_ms: u64,
        now_ms: u64,
    ) -> Option<MacAddress> {
        let slot = self.slots.find(slot_key(stream, egress))?;
        let state = slot.state.load(Ordering::Relaxed);
        let yields = state & YIELDS != 0 && yield_lasts(state, takeover_ms, now_ms);
        yields.then(|| MacAddress::from_u64(slot.extra.load(Ordering::Relaxed)))?
    }

    /// Returns whether each packet of the stream to the link needs a decision: this router yields, or
    /// another station has sent the stream lately.
    pub fn needs_decisions(&self, stream: StreamKey, link: InterfaceId, now_ms: u64) -> bool {
        let slot = self.slots.find(slot_key(stream, link));
        let state = slot.map(|slot| slot.state.load(Ordering::Relaxed));
        state.is_some_and(|state| {
            let silence_ms = match state & YIELDS {
                0 => PLANE_SILENCE_MS,
                _ => MAX_SILENCE_MS,
            };
            age_ms(state, now_ms) < silence_ms
        })
    }
}

/// Changes how much of its stream the other station sends, and returns the result.
fn change_share(
    slot: &StreamSlot,
    change: impl Fn(ForwarderShare) -> ForwarderShare,
) -> ForwarderShare {
    let order = Ordering::Relaxed;
    let mut former = slot.share.load(order);
    loop {
        let next = change(ForwarderShare::from_word(former));
        match slot
            .share
            .compare_exchange_weak(former, next.word(), order, order)
        {
            Ok(_) => return next,
            Err(changed) => former = changed,
        }
    }
}

/// Returns whether a router that yields continues to yield.
fn yield_lasts(state: u64, takeover_ms: u64, now_ms: u64) -> bool {
    let silent_ms = age_ms(state, now_ms);
    silent_ms < takeover_ms || silent_ms < MAX_SILENCE_MS && state & WITHHELD == 0
}

#[cfg(test)]
mod tests {
    use super::super::active_ingress::{ActiveIngresses, IngressDomain};
    use super::*;

    const LOW: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
    const OWN: MacAddress = MacAddress([2, 0, 0, 0, 0, 5]);
    const HIGH: MacAddress = MacAddress([2, 0, 0, 0, 0, 9]);

    struct EgressLink {
        forwarders: OtherForwarders,
        stream: StreamKey,
        egress: InterfaceId,
    }

    impl EgressLink {
        fn new() -> Self {
            let egress = InterfaceId::new(3).unwrap();
            let domain = IngressDomain {
                id: egress,
                running: [].into(),
                is_two_way: false,
                subnets: [].into(),
            };
            let stream = ([10, 0, 0, 1].into(), [225, 1, 2, 3].into());
            Self {
                forwarders: OtherForwarders::default(),
                stream: ActiveIngresses::default().key(&domain, stream),
                egress,
            }
        }

        fn see(&self, other: MacAddress, now_ms: u64) {
            let (stream, egress) = (self.stream, self.egress);
            self.forwarders
                .note(stream, egress, Some(OWN), (other, 200), now_ms);
        }

        fn forwards(&self, now_ms: u64) -> bool {
            let (forwarders, stream, egress) = (&self.forwarders, self.stream, self.egress);
            let yields = forwarders.yields_to(stream, egress, 500, now_ms).is_some();
            let decision = forwarders.decide(stream, egress, 200, 500, now_ms);
            let withheld = matches!(decision, YieldDecision::Yield(_));
            // The comparison of shares may end a yield.
            assert!(yields || !withheld);
            !withheld
        }
    }

    #[test]
    fn lower_address_takes_precedence_until_silent() {
        let link = EgressLink::new();
        assert!(link.forwards(0));
        link.see(LOW, 1);
        for now_ms in [1, 200, 500] {
            assert!(!link.forwards(now_ms));
        }
        assert!(link.forwards(501));
        assert!(link.forwards(502));
        link.see(LOW, 503);
        assert!(!link.forwards(504));
        let other = InterfaceId::new(4).unwrap();
        for (egress, expected) in [(link.egress, true), (other, false)] {
            let forwarders = &link.forwarders;
            let needed = forwarders.needs_decisions(link.stream, egress, 504);
            assert_eq!(needed, expected);
        }
    }

    #[test]
    fn plane_forwards_after_silence_unless_this_router_yields() {
        for (station, silence_ms) in [(HIGH, PLANE_SILENCE_MS), (LOW, MAX_SILENCE_MS)] {
            let link = EgressLink::new();
            link.see(station, 1);
            for (now_ms, expected) in [(silence_ms, true), (1 + silence_ms, false)] {
                let forwarders = &link.forwarders;
                let needed = forwarders.needs_decisions(link.stream, link.egress, now_ms);
                assert_eq!(needed, expected, "{now_ms}");
            }
        }
        // It has taken over.
        let link = EgressLink::new();
        link.see(LOW, 1);
        assert!(!link.forwards(500));
        assert!(link.forwards(501));
        assert!(
            !link
                .forwarders
                .needs_decisions(link.stream, link.egress, 1 + PLANE_SILENCE_MS)
        );
    }

    #[test]
    fn takeover_is_reported_once() {
        let link = EgressLink::new();
        assert!(link.forwards(0));
        link.see(LOW, 1);
        assert!(!link.forwards(500));
        let decide = |now_ms| (link.forwarders).decide(link.stream, link.egress, 200, 500, now_ms);
        assert_eq!(decide(501), YieldDecision::Forward { takeover: true });
        for now_ms in [502, 503, 700] {
            assert_eq!(decide(now_ms), YieldDecision::FORWARD);
        }
    }

    #[test]
    fn higher_address_is_expected_to_yield() {
        let link = EgressLink::new();
        link.see(HIGH, 1);
        assert!(link.forwards(2));
        // A few packets that were on their way, or a single one much later.
        link.see(HIGH, 3);
        link.see(HIGH, 900);
        assert!(link.forwards(901));
    }

    #[test]
    fn router_yields_to_a_station_that_does_not_stop() {
        let link = EgressLink::new();
        for now_ms in (0..1000).step_by(10) {
            link.see(HIGH, now_ms);
            assert!(link.forwards(now_ms));
        }
        link.see(HIGH, 1000);
        assert!(!link.forwards(1001));
        link.see(HIGH, 1400);
        assert!(!link.forwards(1800));
        assert!(link.forwards(1900));
        // It has to persist again.
        link.see(HIGH, 1901);
        assert!(link.forwards(1902));
    }

    #[test]
    fn station_that_paused_has_to_persist_again() {
        let link = EgressLink::new();
        for now_ms in 0..100 {
            link.see(HIGH, now_ms);
            assert!(link.forwards(now_ms));
        }
        // It yields, and forwards again for a moment because it saw no packet of this router.
        (100..2000).for_each(|now_ms| assert!(link.forwards(now_ms)));
        for now_ms in 2000..2010 {
            link.see(HIGH, now_ms);
            assert!(link.forwards(now_ms));
        }
    }

    #[test]
    fn station_that_was_silent_has_to_persist_again() {
        let link = EgressLink::new();
        (0..3).for_each(|now_ms| link.see(HIGH, now_ms));
        link.see(HIGH, 2 + MAX_SILENCE_MS);
        assert!(link.forwards(3 + MAX_SILENCE_MS));
    }

    #[test]
    fn slow_stream_loses_one_packet_at_a_takeover() {
        let link = EgressLink::new();
        // One packet every ten seconds, copied by the other station a moment later.
        assert!(link.forwards(0));
        link.see(LOW, 1);
        for second in [10, 20, 30] {
            assert!(!link.forwards(second * 1000));
            link.see(LOW, second * 1000 + 1);
        }
        // The other station has ended.
        assert!(!link.forwards(40_000));
        assert!(link.forwards(50_000));
        assert!(link.forwards(60_000));
    }

    /// A host that forges a packet every 100 ms withholds the stream for a second, once.
    #[test]
    fn station_that_sends_few_packets_gets_no_stream() {
        let link = EgressLink::new();
        let mut withheld = 0;
        for now_ms in 0..60_000 {
            if now_ms % 100 == 0 {
                link.see(LOW, now_ms);
            }
            withheld += u32::from(!link.forwards(now_ms));
        }
        assert!((900..=1001).contains(&withheld), "{withheld}");
        // It pauses for longer than the state of a station lasts, and forges again.
        (60_000..150_000).for_each(|now_ms| assert!(link.forwards(now_ms)));
        link.see(LOW, 150_000);
        assert!(link.forwards(150_001));
    }

    #[test]
    fn station_that_begins_to_send_everything_gets_the_stream() {
        let link = EgressLink::new();
        for now_ms in 0..3000 {
            if now_ms % 100 == 0 {
                link.see(LOW, now_ms);
            }
            link.forwards(now_ms);
        }
        assert!(link.forwards(3000));
        for now_ms in 3001..5100 {
            link.see(LOW, now_ms);
            link.forwards(now_ms);
        }
        link.see(LOW, 5100);
        assert!(!link.forwards(5101));
    }

    #[test]
    fn yield_does_not_outlast_a_minute_of_silence() {
        let link = EgressLink::new();
        link.see(LOW, 0);
        assert!(link.forwards(MAX_SILENCE_MS));
    }
}
