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
//! If the source is in the subnet of another ingress, a packet is probably a copy that another
//! router forwarded from there. On a busy machine it may be read before the original. So a router
//! that could forward it back withholds it until the other ingress had `HOLD_MS` for the
//! original.
//!
//! Interfaces that routes and proxies connect, directly or through others, form an
//! [`IngressDomain`]. An (S,G) has one active ingress in each domain.
//!
//! While a plane forwards a stream by itself, this process does not see its packets. So the active
//! ingress then has a lease, which it renews: until it gives the lease back, no other ingress may
//! forward the stream. An ingress that would replace it asks for that.
//!
//! The interface actors share the selection without locks. If more streams are active than the
//! table has slots, a packet may be forwarded twice. Two actors that receive the first packets of a
//! stream at the same time may both forward one.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ahash::RandomState;
use ipnet::IpNet;

use super::flow::FlowKey;
use super::slot_table::{SlotTable, StreamSlot, age_ms, stamp};
use super::stream_key::StreamKey;
use crate::model::{InterfaceId, MacAddress};

/// The smallest and the largest number of buckets, of eight streams each. Full, they take 2 MiB and
/// 68 MiB.
const MIN_BUCKETS: usize = 1 << 13;
const MAX_BUCKETS: usize = 1 << 18;

/// Time without packets after which a stream has no active ingress any more, in milliseconds.
const MAX_SILENCE_MS: u64 = 60_000;

/// Time that the ingress to which the source is attached has for the original of a packet, in
/// milliseconds. It exceeds the time for which a busy machine leaves a thread waiting.
const HOLD_MS: u64 = 100;

/// Time after which a lease ends that is not renewed, in milliseconds.
const LEASE_MS: u64 = 3000;

const INTERFACE_SHIFT: u32 = 32;
/// A copy was withheld since the last packet on the active ingress, to which the source is attached.
const HELD: u64 = 1 << 31;
const TTL_SHIFT: u32 = 23;
/// Another ingress asks for the lease.
const WANTED: u64 = 1 << 31;

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
    /// The subnets of the running ingresses, if it is two-way.
    pub subnets: Box<[(InterfaceId, IpNet)]>,
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
    /// Returns whether no other ingress of the domain could forward a stream.
    pub fn is_alone(&self) -> bool {
        *self.domain.running == [self.interface]
    }

    /// Returns whether packets of a source that arrive with a higher TTL than on the active ingress
    /// replace it.
    pub fn outranks(&self, source: IpAddr) -> bool {
        let is_host = |subnets: &[IpNet]| subnets.iter().any(|net| net.contains(&source));
        self.host_subnets.as_deref().is_none_or(is_host)
    }

    /// Returns the other ingress of a two-way domain to which a source is attached: it has a subnet
    /// with the source, and this ingress has none.
    pub fn source_link(&self, source: IpAddr) -> Option<InterfaceId> {
        let mut links = (self.domain.subnets.iter())
            .filter(|(_, subnet)| subnet.contains(&source))
            .map(|(link, _)| *link);
        let first = links.next()?;
        let is_here = first == self.interface || links.any(|link| link == self.interface);
        (!is_here).then_some(first)
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
    /// The other ingress to which the source is attached, if the packet was sent by a station.
    pub source_link: Option<InterfaceId>,
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
    pub const ACTIVE: Self = Self::Active {
        takeover: false,
        contested: false,
    };
}

/// The active ingresses of all streams. Allocates memory when streams begin.
pub struct ActiveIngresses {
    seed: RandomState,
    /// State: the ID of the active ingress (32 bits), the highest TTL of its packets, and the time
    /// of the last one. Extra: the time at which another station was last seen to send the stream,
    /// plus one; 0 for never. Share: the ID of the ingress with the lease (32 bits), whether another
    /// one asks for it, and the time at which it was last renewed; 0 for none.
    slots: SlotTable,
}

impl Default for ActiveIngresses {
    fn default() -> Self {
        Self::for_streams(0)
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
/// this state, and the next state. A new stream has state 0. `contested_ms` is the time at which
/// another station was last seen, plus one.
fn assess(
    (state, contested_ms): (u64, u64),
    selection: &IngressSelection,
    arrival: StreamArrival,
    now_ms: u64,
) -> (Admission, u64) {
    let active = interface_of(state);
    let is_active = active == Some(selection.interface);
    let is_running = active.is_some_and(|active| selection.domain.running.contains(&active));
    let silent_ms = age_ms(state, now_ms);
    if !is_active {
        if let Some(link) = arrival.source_link
            && (active.is_none() || active == Some(link) && state & HELD == 0)
        {
            let state = active.map(|_| state);
            return (Admission::Standby, hold(state, link, arrival, now_ms));
        }
        let outranks = arrival.outranks && arrival.source_link.is_none();
        let may_replace = silent_ms >= arrival.takeover_ms
            || outranks && arrival.ttl > ttl_of(state)
            || !is_running;
        if !may_replace {
            return (Admission::Standby, state);
        }
    }
    let admission = Admission::Active {
        takeover: !is_active && active.is_some(),
        contested: contested_ms != 0 && now_ms.saturating_sub(contested_ms - 1) < MAX_SILENCE_MS,
    };
    let ttl = match is_active {
        true => arrival.ttl.max(ttl_of(state)),
        false => arrival.ttl,
    };
    (admission, pack_state(selection.interface, ttl, now_ms))
}

/// Returns the state of a stream of which a packet is withheld on an ingress, while its source is
/// attached to `link`, which is active or has had no packet yet. It lets another ingress take over
/// after [`HOLD_MS`] or when the takeover time is over, whichever is later.
fn hold(state: Option<u64>, link: InterfaceId, arrival: StreamArrival, now_ms: u64) -> u64 {
    let silent_ms = state.map_or(u64::MAX, |state| age_ms(state, now_ms));
    if let Some(state) = state.filter(|_| silent_ms < HOLD_MS) {
        return state;
    }
    let takeover_ms = arrival.takeover_ms;
    let remaining_ms = takeover_ms.saturating_sub(silent_ms).max(HOLD_MS);
    let passed_ms = takeover_ms.saturating_sub(remaining_ms);
    let ttl = state.map_or(0, ttl_of);
    pack_state(link, ttl, now_ms.wrapping_sub(passed_ms)) | HELD
}

fn load(slot: &StreamSlot) -> (u64, u64) {
    let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
    (load(&slot.state), load(&slot.extra))
}

/// Returns whether a running ingress other than that of `selection` has the lease of a stream.
fn leased_to_another(slot: &StreamSlot, selection: &IngressSelection, now_ms: u64) -> bool {
    let lease = slot.share.load(Ordering::SeqCst);
    let holder = interface_of(lease).filter(|holder| *holder != selection.interface);
    holder.is_some_and(|holder| {
        age_ms(lease, now_ms) < LEASE_MS && selection.domain.running.contains(&holder)
    })
}

impl ActiveIngresses {
    /// Returns a table for this number of streams, at least 65,536 and at most two million. It is
    /// twice as large, because keys are not spread evenly over the buckets.
    pub fn for_streams(streams: usize) -> Self {
        let buckets = (streams.min(MAX_BUCKETS * 8) / 4).next_power_of_two();
        Self {
            seed: RandomState::new(),
            slots: SlotTable::new(buckets.clamp(MIN_BUCKETS, MAX_BUCKETS)),
        }
    }

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
        let Some(slot) = self.slots.find(stream.get()) else {
            let (admission, state) = assess((0, 0), selection, arrival, now_ms);
            self.slots.insert(stream.get(), state, (0, 0), now_ms);
            return admission;
        };
        let (state, contested_ms) = load(slot);
        let (admission, new) = assess((state, contested_ms), selection, arrival, now_ms);
        if admission != Admission::Standby && leased_to_another(slot, selection, now_ms) {
            slot.share.fetch_or(WANTED, Ordering::SeqCst);
            return Admission::Standby;
        }
        // If two ingresses try to become active at the same time, one of them succeeds.
        let order = Ordering::SeqCst;
        let exchanged = || {
            slot.state
                .compare_exchange(state, new, order, Ordering::Relaxed)
        };
        if state != new && exchanged().is_err() {
            return Admission::Standby;
        }
        // A lease may have been given at the same time: see `lease`.
        let is_new = interface_of(state) != Some(selection.interface);
        match is_new && leased_to_another(slot, selection, now_ms) {
            true => Admission::Standby,
            false => admission,
        }
    }

    /// Gives the lease of a stream to its active ingress, or renews it. Returns whether the ingress
    /// has it: not if it is not the active one, or if another ingress asks for the lease. A plane
    /// may forward the stream by itself only with the lease, and stops before it is given back.
    pub fn lease(&self, selection: &IngressSelection, stream: StreamKey, now_ms: u64) -> bool {
        let Some(slot) = self.slots.find(stream.get()) else {
            return false;
        };
        let is_active = || {
            let state = slot.state.load(Ordering::SeqCst);
            interface_of(state) == Some(selection.interface)
        };
        let before = slot.share.load(Ordering::SeqCst);
        let is_own = interface_of(before) == Some(selection.interface);
        if !is_active()
            || is_own && before & WANTED != 0
            || leased_to_another(slot, selection, now_ms)
        {
            return false;
        }
        let new = u64::from(selection.interface.get()) << INTERFACE_SHIFT | stamp(now_ms);
        let order = Ordering::SeqCst;
        if (slot.share.compare_exchange(before, new, order, order)).is_err() {
            return false;
        }
        // Another ingress becomes active before it looks for a lease, and this one looks for the
        // active ingress after it has the lease: so they do not both forward.
        if !is_active() {
            self.give_back(selection, stream);
            return false;
        }
        true
    }

    /// Gives the lease of a stream back, if the ingress has it.
    pub fn give_back(&self, selection: &IngressSelection, stream: StreamKey) {
        if let Some(slot) = self.slots.find(stream.get())
            && interface_of(slot.share.load(Ordering::SeqCst)) == Some(selection.interface)
        {
            slot.share.store(0, Ordering::SeqCst);
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
        let slot = self.slots.find(stream.get());
        if slot.is_some_and(|slot| leased_to_another(slot, selection, now_ms)) {
            return Admission::Standby;
        }
        assess(slot.map_or((0, 0), load), selection, arrival, now_ms).0
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
                subnets: [].into(),
            }),
        }
    }

    fn arrival(ttl: u8) -> StreamArrival {
        StreamArrival {
            ttl,
            outranks: true,
            source_link: None,
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

    /// A copy of a packet that arrives on interface 2, with a source in the subnet of interface 1.
    fn copy(ingresses: &ActiveIngresses, key: StreamKey, now_ms: u64) -> bool {
        let copy = StreamArrival {
            source_link: Some(id(1)),
            ..arrival(8)
        };
        let selection = selection(2, &[1, 2]);
        let would = ingresses.would_admit(&selection, key, copy, now_ms);
        let admission = ingresses.admit(&selection, key, copy, now_ms);
        assert_eq!(would, admission);
        admission != Admission::Standby
    }

    #[test]
    fn copies_of_an_attached_source_wait_for_the_original() {
        let ingresses = ActiveIngresses::default();
        let stream = ([10, 0, 0, 1].into(), [225, 1, 2, 3].into());
        let original = selection(1, &[1, 2]);
        let key = ingresses.key(&original.domain, stream);
        let original = |now_ms| ingresses.admit(&original, key, arrival(9), now_ms);
        let copy = |now_ms| copy(&ingresses, key, now_ms);
        for now_ms in [0, 0, 99] {
            assert!(!copy(now_ms));
        }
        assert_eq!(original(99), Admission::ACTIVE);
        // After a pause, the next copies are withheld too.
        for now_ms in [5000, 5000, 5099] {
            assert!(!copy(now_ms), "{now_ms}");
        }
        assert_eq!(original(5099), Admission::ACTIVE);
        // The takeover time of a stream without pauses is not extended.
        for now_ms in (5100..6099).step_by(10) {
            assert!(!copy(now_ms), "{now_ms}");
        }
        assert!(copy(6099));
    }

    #[test]
    fn source_that_sends_on_another_link_is_forwarded_after_the_hold() {
        let ingresses = ActiveIngresses::default();
        let stream = ([10, 0, 0, 1].into(), [225, 1, 2, 3].into());
        let key = ingresses.key(&selection(2, &[1, 2]).domain, stream);
        assert!(!copy(&ingresses, key, 0));
        for now_ms in [100, 101, 90_000] {
            assert!(copy(&ingresses, key, now_ms));
        }
    }

    #[test]
    fn source_is_attached_to_the_ingress_with_its_subnet() {
        let subnets = |subnets: &[(u32, &str)]| {
            let subnets = subnets
                .iter()
                .map(|(n, net)| (id(*n), net.parse().unwrap()));
            let domain = IngressDomain {
                subnets: subnets.collect(),
                ..(*selection(2, &[1, 2]).domain).clone()
            };
            IngressSelection {
                domain: Arc::new(domain),
                ..selection(2, &[])
            }
        };
        let source = [10, 0, 0, 1].into();
        let link = subnets(&[(1, "10.0.0.0/24"), (2, "10.0.1.0/24")]).source_link(source);
        assert_eq!(link, Some(id(1)));
        let here = subnets(&[(1, "10.0.0.0/24"), (2, "10.0.0.0/24")]).source_link(source);
        assert_eq!(here, None);
        let far = subnets(&[(1, "10.9.0.0/24")]).source_link(source);
        assert_eq!(far, None);
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
