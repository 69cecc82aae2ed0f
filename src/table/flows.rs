//! The flows that an interface forwards: one for each (S,G), with counters and the time of its last
//! packet.
//!
//! Any sender can create flows, so their number is limited. At the limit, an interface evicts its
//! flow that has been idle longest. An interface that has no flow to evict waits: the next new flow
//! of another interface evicts one flow more, which makes room for it. A flow is a cache entry and
//! not a permission: a packet without a flow is looked up in the forwarding table.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

pub use super::flow::{Flow, FlowFilter, FlowKey, FlowRecord, Verdicts};
use super::flow_store::FlowStore;
use crate::model::FlowEnd;

/// The limit of flows of all interfaces together, and the number of flows.
#[derive(Debug)]
pub struct FlowBudget {
    limit: AtomicUsize,
    live: AtomicUsize,
    /// Whether an interface without flows waits until one more flow is allowed.
    starved: AtomicBool,
}

impl FlowBudget {
    /// Returns an unused budget.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit: AtomicUsize::new(limit),
            live: AtomicUsize::new(0),
            starved: AtomicBool::new(false),
        })
    }

    /// Sets the limit. Above a lower limit, each new flow evicts older ones.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Returns the limit.
    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Counts one more flow if more than `spare` flows are below the limit. Returns whether it did.
    fn acquire(&self, spare: usize) -> bool {
        let more = |live: usize| (live + spare < self.limit()).then_some(live + 1);
        let acquired = self
            .live
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        acquired.is_ok()
    }

    /// Returns the number of flows.
    pub fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }
}

/// Largest number of flows that one new flow evicts.
const MAX_EVICTED_AT_ONCE: usize = 16;

/// Numbers of ended flows, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EndedFlows([u64; FlowEnd::ALL.len()]);

impl EndedFlows {
    /// Returns the number for one reason.
    pub fn count(&self, end: FlowEnd) -> u64 {
        self.0[end as usize]
    }

    fn add(&mut self, end: FlowEnd, flows: u64) {
        self.0[end as usize] += flows;
    }
}

/// The flows of one interface.
pub struct Flows {
    flows: FlowStore<Flow>,
    budget: Arc<FlowBudget>,
    ended: EndedFlows,
    looked_up: bool,
    /// `None`: changes are not recorded.
    changes: Option<FlowChanges>,
}

/// Changes of flows, for a plane that forwards flows by itself.
#[derive(Debug, Default)]
pub struct FlowChanges {
    /// Flows that started, or were looked up in another forwarding table.
    pub looked_up: Vec<FlowKey>,
    /// Flows that ended.
    pub ended: Vec<FlowKey>,
}

impl Flows {
    /// Returns an empty flow table. `budget` limits its flows.
    pub fn new(budget: Arc<FlowBudget>) -> Self {
        Self {
            flows: FlowStore::default(),
            budget,
            ended: EndedFlows::default(),
            looked_up: false,
            changes: None,
        }
    }

    /// Records changes from now on.
    pub fn record_changes(&mut self) {
        self.changes.get_or_insert_default();
    }

    /// Returns the recorded changes since the last call.
    pub fn take_changes(&mut self) -> FlowChanges {
        self.changes
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    /// Returns a flow.
    pub fn get(&self, key: &FlowKey) -> Option<&Flow> {
        self.flows.peek(key)
    }

    /// Replaces the verdicts of a flow.
    pub fn set_verdicts(&mut self, key: &FlowKey, verdicts: Verdicts, generation: u64) {
        if let Some(flow) = self.flows.get_mut(key) {
            (flow.verdicts, flow.generation) = (verdicts, generation);
        }
    }

    /// Counts packets that the plane forwarded by itself. Returns the verdicts of the flow and the
    /// generation of their forwarding table; `None` if the flow has ended.
    pub fn add_forwarded(
        &mut self,
        key: &FlowKey,
        (packets, bytes): (u64, u64),
        now_ms: u64,
    ) -> Option<(Verdicts, u64)> {
        if packets == 0 {
            let flow = self.flows.peek(key)?;
            return Some((flow.verdicts, flow.generation));
        }
        let flow = self.flows.get_mut(key)?;
        flow.packets += packets;
        flow.bytes += bytes;
        flow.seen_ms = now_ms;
        Some((flow.verdicts, flow.generation))
    }

    /// Counts a packet of `bytes`. Returns the verdicts of its flow if they are of the forwarding
    /// table `generation`.
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

    /// Stores the verdicts of a flow and counts a packet of `bytes`. An existing flow keeps its
    /// counters.
    pub fn note(
        &mut self,
        key: FlowKey,
        verdicts: Verdicts,
        generation: u64,
        bytes: u64,
        now_ms: u64,
    ) {
        self.looked_up = true;
        if let Some(changes) = &mut self.changes {
            changes.looked_up.push(key);
        }
        if let Some(flow) = self.flows.get_mut(&key) {
            flow.verdicts = verdicts;
            flow.generation = generation;
            flow.packets += 1;
            flow.bytes += bytes;
            flow.seen_ms = now_ms;
            return;
        }
        if !self.reserve_flow() {
            return;
        }
        self.flows.insert(
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

    /// Adds a flow that the plane has forwarded since before this process started. Returns whether
    /// there was space for it.
    pub fn adopt(
        &mut self,
        key: FlowKey,
        verdicts: Verdicts,
        generation: u64,
        (packets, bytes): (u64, u64),
        now_ms: u64,
    ) -> bool {
        if self.flows.peek(&key).is_some() {
            return true;
        }
        if !self.reserve_flow() {
            return false;
        }
        self.looked_up = true;
        let flow = Flow {
            verdicts,
            generation,
            packets,
            bytes,
            began_ms: now_ms,
            seen_ms: now_ms,
        };
        self.flows.insert(key, flow);
        true
    }

    /// Counts a new flow; evicts older flows if the limit is reached.
    fn reserve_flow(&mut self) -> bool {
        if self.flows.is_empty() {
            let acquired = self.budget.acquire(0);
            self.budget.starved.store(!acquired, Ordering::Relaxed);
            return acquired;
        }
        let starved = self.budget.starved.load(Ordering::Relaxed);
        let spare = usize::from(starved && self.budget.limit() > 1);
        // A much lower limit is reached in steps, so that no packet waits for all evictions.
        for _ in 0..MAX_EVICTED_AT_ONCE {
            if self.budget.acquire(spare) {
                return true;
            }
            if !self.remove_oldest() {
                return false;
            }
            self.budget.live.fetch_sub(1, Ordering::Relaxed);
            self.ended.add(FlowEnd::Evicted, 1);
        }
        false
    }

    /// Ends the flows without a packet for `idle_ms`.
    pub fn expire(&mut self, now_ms: u64, idle_ms: u64) {
        while let Some(flow) = self.flows.oldest() {
            if now_ms.saturating_sub(flow.seen_ms) < idle_ms {
                return;
            }
            self.remove_oldest();
            self.budget.live.fetch_sub(1, Ordering::Relaxed);
            self.ended.add(FlowEnd::Idle, 1);
        }
    }

    /// Ends all flows. Returns their number.
    pub fn flush(&mut self) -> u64 {
        let flushed = self.release();
        self.ended.add(FlowEnd::Flushed, flushed);
        flushed
    }

    /// Returns whether a flow started since the last call, or was looked up again in another
    /// forwarding table.
    pub fn take_looked_up(&mut self) -> bool {
        std::mem::take(&mut self.looked_up)
    }

    /// Returns the flows that ended since the last call.
    pub fn take_ended(&mut self) -> EndedFlows {
        std::mem::take(&mut self.ended)
    }

    /// Examines `limit` flows from `position`, which is 0 at first. Returns those that match
    /// and the next position, or `None` after the last flow. A flow that exists during a whole
    /// walk is returned once.
    pub fn page(
        &self,
        position: usize,
        limit: usize,
        filter: &FlowFilter,
    ) -> (Vec<FlowRecord>, Option<usize>) {
        let (flows, next) = self.flows.page(position, limit);
        let matching = flows.filter(|(key, _)| filter.matches(key));
        let record = |(key, flow): (&FlowKey, &Flow)| FlowRecord {
            key: *key,
            flow: *flow,
        };
        (matching.map(record).collect(), next)
    }

    /// Iterates over the flows.
    pub fn iter(&self) -> impl Iterator<Item = (&FlowKey, &Flow)> {
        self.flows.page(0, usize::MAX).0
    }

    /// Removes the flow that has been idle longest. Returns whether there was one.
    fn remove_oldest(&mut self) -> bool {
        let removed = self.flows.remove_oldest();
        if let (Some(changes), Some(key)) = (&mut self.changes, removed) {
            changes.ended.push(key);
        }
        removed.is_some()
    }

    fn release(&mut self) -> u64 {
        let n = self.flows.len();
        if let Some(changes) = &mut self.changes {
            changes
                .ended
                .extend(self.flows.page(0, usize::MAX).0.map(|(key, _)| *key));
        }
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
    use super::super::EntryId;
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

    fn ended(end: FlowEnd, flows: u64) -> EndedFlows {
        let mut ended = EndedFlows::default();
        ended.add(end, flows);
        assert_eq!(
            FlowEnd::ALL.map(|e| ended.count(e)).iter().sum::<u64>(),
            flows
        );
        ended
    }

    #[test]
    fn longest_idle_flow_is_evicted_at_the_limit() {
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
    fn only_idle_flows_expire() {
        let mut flows = Flows::new(FlowBudget::new(10));
        flows.note(key(1), by(0), 1, 100, 0);
        flows.note(key(2), by(0), 1, 100, 59_000);
        flows.expire(60_000, 60_000);
        assert_eq!(flows.iter().count(), 1);
        assert_eq!(flows.take_ended(), ended(FlowEnd::Idle, 1));
        assert_eq!(flows.flush(), 1);
        assert_eq!(flows.take_ended(), ended(FlowEnd::Flushed, 1));
        assert_eq!(flows.take_ended(), EndedFlows::default());
    }

    #[test]
    fn new_generation_invalidates_verdicts_but_keeps_counters() {
        let mut flows = Flows::new(FlowBudget::new(10));
        flows.note(key(1), by(4), 1, 100, 0);
        assert_eq!(flows.touch(&key(1), 2, 100, 5), None);
        flows.note(key(1), by(7), 2, 100, 5);
        let (_, flow) = flows.iter().next().unwrap();
        assert_eq!((flow.verdicts, flow.packets, flow.bytes), (by(7), 2, 200));
        assert_eq!((flow.began_ms, flow.seen_ms), (0, 5));
    }

    #[test]
    fn limit_is_shared_and_every_interface_gets_a_flow() {
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
    fn lowered_limit_is_reached_by_new_flows() {
        let budget = FlowBudget::new(10);
        let mut flows = Flows::new(budget.clone());
        (0..10).for_each(|n| flows.note(key(n), by(0), 1, 1, 0));
        budget.set_limit(4);
        (10..20).for_each(|n| flows.note(key(n), by(0), 1, 1, 1));
        assert_eq!(budget.live(), 4);
    }
}
