//! The flows an interface forwards now: one (S,G) each, with what it carried and when last.
//!
//! Strangers create flows by sending, so there are at most as many as the limit says: past
//! it the one of this interface that has been idle longest goes. An interface that has none
//! to give up waits for one place, which the others leave to it with their next flow. A flow
//! is a note and a cache, never a permission: what has no flow is looked up.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ahash::RandomState;
use lru::LruCache;

use super::EntryId;
use super::sets::SetId;
use crate::model::FlowEnd;

/// How many flows all interfaces together may have.
#[derive(Debug)]
pub struct FlowBudget {
    limit: AtomicUsize,
    live: AtomicUsize,
    /// An interface without any flow found no place.
    starved: AtomicBool,
}

impl FlowBudget {
    /// A budget nobody has used yet.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit: AtomicUsize::new(limit),
            live: AtomicUsize::new(0),
            starved: AtomicBool::new(false),
        })
    }

    /// Changes the limit; flows over a lower one go as new ones come.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// The limit.
    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Takes a place while there are more than `spare`.
    fn take(&self, spare: usize) -> bool {
        let more = |live: usize| (live + spare < self.limit()).then_some(live + 1);
        let took = self
            .live
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        took.is_ok()
    }

    /// Flows there are now.
    pub fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }
}

/// Flows that make room for one, at most.
const MOST_EVICTED_AT_ONCE: usize = 16;

/// What forwards the packets of a source and group, in one snapshot: the static rule, and the
/// proxies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// The static rule.
    pub entry: Option<EntryId>,
    /// The proxies, one bit each: their positions in [`Ingress::proxies`](super::Ingress).
    pub proxies: u64,
    /// The downstream interfaces that want the source.
    pub wanted: SetId,
}

/// One flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// What forwards it, in the snapshot of `generation`.
    pub verdicts: Verdicts,
    /// The snapshot that was found in.
    pub generation: u64,
    /// Packets taken in for it.
    pub packets: u64,
    /// Their IP bytes.
    pub bytes: u64,
    /// When it began, in milliseconds of a clock that never goes back.
    pub began_ms: u64,
    /// When it last had a packet, by the same clock.
    pub seen_ms: u64,
}

/// How many flows ended, and why.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ended([u64; FlowEnd::ALL.len()]);

impl Ended {
    /// How many ended for this reason.
    pub fn of(&self, end: FlowEnd) -> u64 {
        self.0[end as usize]
    }

    fn add(&mut self, end: FlowEnd, flows: u64) {
        self.0[end as usize] += flows;
    }
}

/// Source and group of a flow.
pub type FlowKey = (IpAddr, IpAddr);

/// The flows of one interface.
pub struct Flows {
    flows: LruCache<FlowKey, Flow, RandomState>,
    budget: Arc<FlowBudget>,
    ended: Ended,
}

impl Flows {
    /// No flows yet; new ones are taken from `budget`.
    pub fn new(budget: Arc<FlowBudget>) -> Self {
        Self {
            flows: LruCache::unbounded_with_hasher(RandomState::new()),
            budget,
            ended: Ended::default(),
        }
    }

    /// What forwards a flow, where that is known of this snapshot; counts a packet of `bytes`.
    pub fn touch(
        &mut self,
        key: &FlowKey,
        generation: u64,
        bytes: u64,
        now_ms: u64,
    ) -> Option<Verdicts> {
        let flow = self.flows.get_mut(key)?;
        if flow.generation != generation {
            return None;
        }
        flow.packets += 1;
        flow.bytes += bytes;
        flow.seen_ms = now_ms;
        Some(flow.verdicts)
    }

    /// Notes what forwards a flow and counts a packet of `bytes`. A flow that is forwarded
    /// otherwise than before keeps its numbers.
    pub fn note(
        &mut self,
        key: FlowKey,
        verdicts: Verdicts,
        generation: u64,
        bytes: u64,
        now_ms: u64,
    ) {
        if let Some(flow) = self.flows.get_mut(&key) {
            flow.verdicts = verdicts;
            flow.generation = generation;
            flow.packets += 1;
            flow.bytes += bytes;
            flow.seen_ms = now_ms;
            return;
        }
        if !self.make_room() {
            return;
        }
        self.flows.put(
            key,
            Flow {
                verdicts,
                generation,
                packets: 1,
                bytes,
                began_ms: now_ms,
                seen_ms: now_ms,
            },
        );
    }

    /// Takes a place, for which older flows go where they must.
    fn make_room(&mut self) -> bool {
        if self.flows.is_empty() {
            let took = self.budget.take(0);
            self.budget.starved.store(!took, Ordering::Relaxed);
            return took;
        }
        let starved = self.budget.starved.load(Ordering::Relaxed);
        let spare = usize::from(starved && self.budget.limit() > 1);
        // A limit that was lowered far is reached in steps, so that no packet waits for all.
        for _ in 0..MOST_EVICTED_AT_ONCE {
            if self.budget.take(spare) {
                return true;
            }
            if self.flows.pop_lru().is_none() {
                return false;
            }
            self.budget.live.fetch_sub(1, Ordering::Relaxed);
            self.ended.add(FlowEnd::Evicted, 1);
        }
        false
    }

    /// Ends the flows that had no packet for `idle_ms`.
    pub fn expire(&mut self, now_ms: u64, idle_ms: u64) {
        while let Some((_, flow)) = self.flows.peek_lru() {
            if now_ms.saturating_sub(flow.seen_ms) < idle_ms {
                return;
            }
            self.flows.pop_lru();
            self.budget.live.fetch_sub(1, Ordering::Relaxed);
            self.ended.add(FlowEnd::Idle, 1);
        }
    }

    /// Ends all flows; returns how many there were.
    pub fn flush(&mut self) -> u64 {
        let flushed = self.release();
        self.ended.add(FlowEnd::Flushed, flushed);
        flushed
    }

    /// What ended since the last call.
    pub fn take_ended(&mut self) -> Ended {
        std::mem::take(&mut self.ended)
    }

    /// The flows, the one with the latest packet first.
    pub fn iter(&self) -> impl Iterator<Item = (&FlowKey, &Flow)> {
        self.flows.iter()
    }

    fn release(&mut self) -> u64 {
        let n = self.flows.len();
        self.flows.clear();
        self.budget.live.fetch_sub(n, Ordering::Relaxed);
        n as u64
    }
}

impl Drop for Flows {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> FlowKey {
        ([10, 0, 0, n].into(), [225, 1, 2, 3].into())
    }

    fn by(entry: EntryId) -> Verdicts {
        Verdicts {
            entry: Some(entry),
            ..Verdicts::default()
        }
    }

    fn ended(end: FlowEnd, flows: u64) -> Ended {
        let mut ended = Ended::default();
        ended.add(end, flows);
        assert_eq!(FlowEnd::ALL.map(|e| ended.of(e)).iter().sum::<u64>(), flows);
        ended
    }

    #[test]
    fn the_longest_idle_flow_makes_room_and_is_counted() {
        let budget = FlowBudget::new(2);
        let mut flows = Flows::new(budget.clone());
        flows.note(key(1), by(0), 1, 100, 10);
        flows.note(key(2), by(0), 1, 100, 20);
        assert_eq!(flows.touch(&key(1), 1, 50, 30), Some(by(0)));
        flows.note(key(3), by(0), 1, 100, 40);
        assert_eq!(flows.touch(&key(2), 1, 50, 50), None);
        assert_eq!(flows.touch(&key(1), 1, 50, 50), Some(by(0)));
        assert_eq!(flows.take_ended(), ended(FlowEnd::Evicted, 1));
        assert_eq!(budget.live(), 2);
        drop(flows);
        assert_eq!(budget.live(), 0);
    }

    #[test]
    fn idle_flows_expire_and_no_others() {
        let mut flows = Flows::new(FlowBudget::new(10));
        flows.note(key(1), by(0), 1, 100, 0);
        flows.note(key(2), by(0), 1, 100, 59_000);
        flows.expire(60_000, 60_000);
        assert_eq!(flows.iter().count(), 1);
        assert_eq!(flows.take_ended(), ended(FlowEnd::Idle, 1));
        assert_eq!(flows.flush(), 1);
        assert_eq!(flows.take_ended(), ended(FlowEnd::Flushed, 1));
        assert_eq!(flows.take_ended(), Ended::default());
    }

    #[test]
    fn a_new_snapshot_asks_for_the_rule_again_and_keeps_the_numbers() {
        let mut flows = Flows::new(FlowBudget::new(10));
        flows.note(key(1), by(4), 1, 100, 0);
        assert_eq!(flows.touch(&key(1), 2, 100, 5), None);
        flows.note(key(1), by(7), 2, 100, 5);
        let (_, flow) = flows.iter().next().unwrap();
        assert_eq!((flow.verdicts, flow.packets, flow.bytes), (by(7), 2, 200));
        assert_eq!((flow.began_ms, flow.seen_ms), (0, 5));
    }

    #[test]
    fn the_limit_holds_over_all_interfaces_and_none_is_shut_out() {
        let budget = FlowBudget::new(4);
        let (mut flood, mut quiet) = (Flows::new(budget.clone()), Flows::new(budget.clone()));
        (0..10).for_each(|n| flood.note(key(n), by(0), 1, 1, 0));
        quiet.note(key(1), by(0), 1, 1, 1);
        assert_eq!((quiet.iter().count(), budget.live()), (0, 4));
        flood.note(key(11), by(0), 1, 1, 2);
        assert_eq!(budget.live(), 3);
        quiet.note(key(1), by(0), 1, 1, 3);
        assert_eq!((quiet.iter().count(), budget.live()), (1, 4));
        (20..30).for_each(|n| flood.note(key(n), by(0), 1, 1, 4));
        assert_eq!((quiet.iter().count(), budget.live()), (1, 4));
    }

    #[test]
    fn a_lowered_limit_is_reached_as_flows_come() {
        let budget = FlowBudget::new(10);
        let mut flows = Flows::new(budget.clone());
        (0..10).for_each(|n| flows.note(key(n), by(0), 1, 1, 0));
        budget.set_limit(4);
        (10..20).for_each(|n| flows.note(key(n), by(0), 1, 1, 1));
        assert_eq!(budget.live(), 4);
    }
}
