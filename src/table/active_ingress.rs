//! Selection of the active ingress of each (S,G).
//!
//! A stream may arrive on several interfaces: by redundant uplinks, or because another router
//! forwards it to a link that this router serves too. Packets are forwarded from one interface, the
//! active ingress, as in the kernel's multicast routing. Packets that arrive on the others are
//! dropped. This is also what prevents packet storms between parallel routers.
//!
//! The first interface on which an (S,G) arrives becomes its active ingress. It is replaced:
//! - after it has been silent for the takeover time;
//! - without delay if it is not running any more;
//! - without delay by an interface on which packets arrive with a higher TTL, and so over fewer
//!   hops. This corrects a first choice that fell on the copies of another router.
//!
//! Interfaces that routes and proxies connect, directly or through others, form an
//! [`IngressDomain`]. An (S,G) has one active ingress in each domain.
//!
//! The interface actors share the selection without locks. If more streams are active than the
//! table has slots, a packet may be forwarded twice. Two actors that receive the first packets of a
//! stream at the same time may both forward one.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ahash::RandomState;
use ipnet::IpNet;

use super::flow::FlowKey;
use super::slot_table::{SlotTable, StreamSlot, age_ms, stamp};
use super::stream_key::StreamKey;
use crate::model::{InterfaceId, MacAddress};

/// Buckets of eight streams.
const BUCKETS: usize = 1 << 13;

/// Time without packets after which a stream has no active ingress any more, in milliseconds.
const MAX_SILENCE_MS: u64 = 60_000;

const INTERFACE_SHIFT: u32 = 32;
const TTL_SHIFT: u32 = 23;

/// Interfaces that routes and proxies connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressDomain {
    /// Its interface with the lowest ID identifies the domain.
    pub id: InterfaceId,
    /// Its ingresses that are up and have a carrier.
    pub running: Box<[InterfaceId]>,
    /// Whether an ingress is also an egress of another one, so that what this router sends there
    /// may return through other routers.
    pub is_two_way: bool,
}

/// How an ingress takes part in the selection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressSelection {
    /// The ingress.
    pub interface: InterfaceId,
    /// Its link-layer address.
    pub address: Option<MacAddress>,
    /// On a downstream interface of a proxy, its subnets. Hosts there could take a stream away from
    /// its upstream interface by packets with a higher TTL, so only sources of the subnets outrank
    /// another ingress. `None` on other interfaces.
    pub host_subnets: Option<Box<[IpNet]>>,
    /// The domain that it belongs to.
    pub domain: Arc<IngressDomain>,
}

impl IngressSelection {
    /// Returns whether packets of a source that arrive with a higher TTL than on the active ingress
    /// replace it.
    pub fn outranks(&self, source: IpAddr) -> bool {
        let is_host = |subnets: &[IpNet]| subnets.iter().any(|net| net.contains(&source));
        self.host_subnets.as_deref().is_none_or(is_host)
    }
}

/// A packet of a stream, for the selection of the active ingress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamArrival {
    /// The TTL or hop limit with which it arrived. 0 if forwarding does not decrement it: then the
    /// copies that routers make do not have a lower one.
    pub ttl: u8,
    /// Whether a higher TTL than on the active ingress makes this ingress the active one.
    pub outranks: bool,
    /// Time without packets on the active ingress after which this one replaces it, in
    /// milliseconds.
    pub takeover_ms: u64,
}

/// Whether a packet may be forwarded from the ingress on which it arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// The ingress is the active one of the stream, or became it with this packet.
    Active {
        /// Whether the ingress replaced another one.
        takeover: bool,
        /// Whether another station also sends the stream to a link of the domain.
        contested: bool,
    },
    /// Another ingress is active.
    Standby,
}

impl Admission {
    /// The admission of a packet whose ingress is active, without a takeover or another station.
    pub const FIRST: Self = Self::Active {
        takeover: false,
        contested: false,
    };
}

/// The active ingresses of all streams. Allocates 1.5 MiB for the first stream.
pub struct ActiveIngresses {
    seed: RandomState,
    /// State: the ID of the active ingress (32 bits), the highest TTL of its packets, and the time
    /// of the last one. Extra: the time at which another station was last seen to send the stream,
    /// plus one; 0 for never.
    slots: SlotTable,
}

impl Default for ActiveIngresses {
    fn default() -> Self {
        Self {
            seed: RandomState::new(),
            slots: SlotTable::new(BUCKETS),
        }
    }
}

fn pack_state(interface: InterfaceId, ttl: u8, now_ms: u64) -> u64 {
    u64::from(interface.get()) << INTERFACE_SHIFT | u64::from(ttl) << TTL_SHIFT | stamp(now_ms)
}

fn ttl_of(state: u64) -> u8 {
    (state >> TTL_SHIFT) as u8
}

fn interface_of(state: u64) -> Option<InterfaceId> {
    InterfaceId::new((state >> INTERFACE_SHIFT) as u32)
}

/// Returns the admission of a packet that arrives on the ingress of `selection`, for a stream in
/// this state.
fn assess(
    slot: &StreamSlot,
    state: u64,
    selection: &IngressSelection,
    arrival: StreamArrival,
    now_ms: u64,
) -> Admission {
    let active = interface_of(state);
    let is_active = active == Some(selection.interface);
    let is_running = |active| selection.domain.running.contains(&active);
    let may_replace = age_ms(state, now_ms) >= arrival.takeover_ms
        || arrival.outranks && arrival.ttl > ttl_of(state)
        || !active.is_some_and(is_running);
    if !is_active && !may_replace {
        return Admission::Standby;
    }
    let seen = slot.extra.load(Ordering::Relaxed);
    Admission::Active {
        takeover: !is_active,
        contested: seen != 0 && now_ms.saturating_sub(seen - 1) < MAX_SILENCE_MS,
    }
}

impl ActiveIngresses {
    /// Returns the key of a stream in a domain.
    pub fn key(&self, domain: &IngressDomain, stream: FlowKey) -> StreamKey {
        StreamKey::from_hash(self.seed.hash_one((domain.id, stream)))
    }

    /// Decides whether a packet is forwarded from the ingress of `selection`, which becomes or
    /// stays the active ingress of the stream then. `now_ms` is a monotonic time in milliseconds.
    pub fn admit(
        &self,
        selection: &IngressSelection,
        stream: StreamKey,
        arrival: StreamArrival,
        now_ms: u64,
    ) -> Admission {
        let interface = selection.interface;
        let Some(slot) = self.slots.find(stream.get()) else {
            let state = pack_state(interface, arrival.ttl, now_ms);
            self.slots.insert(stream.get(), state, 0, now_ms);
            return Admission::FIRST;
        };
        let state = slot.state.load(Ordering::Relaxed);
        let admission = assess(slot, state, selection, arrival, now_ms);
        let ttl = match admission {
            Admission::Standby => return Admission::Standby,
            Admission::Active { takeover: true, .. } => arrival.ttl,
            Admission::Active { .. } => arrival.ttl.max(ttl_of(state)),
        };
        let (new, order) = (pack_state(interface, ttl, now_ms), Ordering::Relaxed);
        // If two ingresses try to become active at the same time, one of them succeeds.
        let exchanged = slot.state.compare_exchange(state, new, order, order);
        match state == new || exchanged.is_ok() {
            true => admission,
            false => Admission::Standby,
        }
    }

    /// Returns the result that [`ActiveIngresses::admit`] would have, without changing anything.
    pub fn would_admit(
        &self,
        selection: &IngressSelection,
        stream: StreamKey,
        arrival: StreamArrival,
        now_ms: u64,
    ) -> Admission {
        let Some(slot) = self.slots.find(stream.get()) else {
            return Admission::FIRST;
        };
        let state = slot.state.load(Ordering::Relaxed);
        assess(slot, state, selection, arrival, now_ms)
    }

    /// Returns the active ingress of a stream that had a packet in the last minute.
    pub fn active(&self, stream: StreamKey, now_ms: u64) -> Option<InterfaceId> {
        let state = self.slots.find(stream.get())?.state.load(Ordering::Relaxed);
        let recent = age_ms(state, now_ms) < MAX_SILENCE_MS;
        interface_of(state).filter(|_| recent)
    }

    /// Notes that another station sends the stream to a link of the domain.
    pub(super) fn mark_contested(&self, stream: StreamKey, now_ms: u64) {
        if let Some(slot) = self.slots.find(stream.get()) {
            slot.extra.store(now_ms + 1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u32) -> InterfaceId {
        InterfaceId::new(n).unwrap()
    }

    fn selection(interface: u32, running: &[u32]) -> IngressSelection {
        IngressSelection {
            interface: id(interface),
            address: None,
            host_subnets: None,
            domain: Arc::new(IngressDomain {
                id: id(1),
                running: running.iter().map(|n| id(*n)).collect(),
                is_two_way: false,
            }),
        }
    }

    fn arrival(ttl: u8) -> StreamArrival {
        StreamArrival {
            ttl,
            outranks: true,
            takeover_ms: 1000,
        }
    }

    /// Streams of one domain with interfaces 1 and 2, which are running.
    #[derive(Default)]
    struct Pair(ActiveIngresses);

    impl Pair {
        fn admits_ttl(&self, source: u8, interface: u32, ttl: u8, now_ms: u64) -> bool {
            let selection = selection(interface, &[1, 2]);
            let stream = ([10, 0, 0, source].into(), [225, 1, 2, 3].into());
            let key = self.0.key(&selection.domain, stream);
            let would = self.0.would_admit(&selection, key, arrival(ttl), now_ms);
            let admission = self.0.admit(&selection, key, arrival(ttl), now_ms);
            assert_eq!(would, admission);
            admission != Admission::Standby
        }

        fn admits(&self, source: u8, interface: u32, now_ms: u64) -> bool {
            self.admits_ttl(source, interface, 0, now_ms)
        }
    }

    #[test]
    fn first_ingress_is_active_until_it_is_silent() {
        let pair = Pair::default();
        assert!(pair.admits(1, 1, 0));
        assert!(!pair.admits(1, 2, 0));
        // Each stream has its own active ingress.
        assert!(pair.admits(2, 2, 5));
        assert!(!pair.admits(2, 1, 5));
        assert!(pair.admits(1, 1, 900));
        assert!(!pair.admits(1, 2, 1899));
        assert!(pair.admits(1, 2, 1900));
        // The first ingress does not replace the second while that is active.
        assert!(!pair.admits(1, 1, 1901));
        assert!(pair.admits(1, 2, 1901));
        assert!(pair.admits(1, 2, 1901));
    }

    #[test]
    fn higher_ttl_takes_over_without_delay() {
        let pair = Pair::default();
        assert!(pair.admits_ttl(1, 1, 8, 0));
        // The copies of another router have a lower TTL than the original.
        assert!(pair.admits_ttl(1, 2, 9, 1));
        assert!(!pair.admits_ttl(1, 1, 8, 1));
        // The highest TTL counts, also if other packets of the stream have lower ones.
        assert!(pair.admits_ttl(1, 2, 3, 2));
        assert!(!pair.admits_ttl(1, 1, 9, 2));
        assert!(pair.admits_ttl(1, 1, 1, 1002));
    }

    #[test]
    fn only_hosts_of_a_downstream_subnet_outrank_the_active_ingress() {
        let downstream = IngressSelection {
            host_subnets: Some(["10.0.9.0/24".parse().unwrap()].into()),
            ..selection(2, &[1, 2])
        };
        assert!(downstream.outranks([10, 0, 9, 7].into()));
        assert!(!downstream.outranks([192, 0, 2, 1].into()));
        assert!(selection(1, &[1, 2]).outranks([192, 0, 2, 1].into()));
        let ingresses = ActiveIngresses::default();
        let stream = ([192, 0, 2, 1].into(), [225, 1, 2, 3].into());
        let key = ingresses.key(&downstream.domain, stream);
        ingresses.admit(&selection(1, &[1, 2]), key, arrival(8), 0);
        let forged = StreamArrival {
            outranks: false,
            ..arrival(255)
        };
        assert_eq!(
            ingresses.admit(&downstream, key, forged, 1),
            Admission::Standby
        );
        let host = ingresses.admit(&downstream, key, arrival(255), 1);
        assert_ne!(host, Admission::Standby);
    }

    #[test]
    fn takeovers_and_stopped_ingresses_are_recognised() {
        let ingresses = ActiveIngresses::default();
        let stream = ([10, 0, 0, 1].into(), [225, 1, 2, 3].into());
        let key = ingresses.key(&selection(1, &[]).domain, stream);
        let admit = |interface, running: &[u32], now_ms| {
            let selection = selection(interface, running);
            ingresses.admit(&selection, key, arrival(0), now_ms)
        };
        let active = |takeover| Admission::Active {
            takeover,
            contested: false,
        };
        assert_eq!(admit(1, &[1, 2], 0), active(false));
        assert_eq!(admit(2, &[1, 2], 1), Admission::Standby);
        assert_eq!(admit(2, &[2], 2), active(true));
        assert_eq!(ingresses.active(key, 3), Some(id(2)));
        assert_eq!(ingresses.active(key, 3 + MAX_SILENCE_MS), None);
    }

    #[test]
    fn contested_stream_is_marked_for_a_minute() {
        let ingresses = ActiveIngresses::default();
        let selection = selection(1, &[1]);
        let key = ingresses.key(
            &selection.domain,
            ([10, 0, 0, 1].into(), [225, 1, 2, 3].into()),
        );
        let contested = |now_ms| match ingresses.admit(&selection, key, arrival(0), now_ms) {
            Admission::Active { contested, .. } => contested,
            Admission::Standby => panic!("the only ingress is on standby"),
        };
        assert!(!contested(0));
        ingresses.mark_contested(key, 0);
        assert!(contested(1));
        assert!(!contested(MAX_SILENCE_MS));
    }

    #[test]
    fn only_one_thread_takes_over() {
        let ingresses = ActiveIngresses::default();
        let domain = selection(1, &[]).domain;
        let key = ingresses.key(&domain, ([10, 0, 0, 1].into(), [225, 1, 2, 3].into()));
        for round in 0..200u64 {
            let now_ms = round * 2000;
            let admit = |interface, now_ms| {
                let selection = selection(interface, &[1, 2, 3]);
                ingresses.admit(&selection, key, arrival(0), now_ms)
            };
            admit(3, now_ms);
            let takeovers = std::thread::scope(|s| {
                let admit = &admit;
                let take = |n| s.spawn(move || admit(n, now_ms + 1000));
                let admissions = [take(1), take(2)].map(|t| t.join().unwrap());
                admissions
                    .iter()
                    .filter(|a| **a != Admission::Standby)
                    .count()
            });
            assert_eq!(takeovers, 1, "round {round}");
        }
    }
}
