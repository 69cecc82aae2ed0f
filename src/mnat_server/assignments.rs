//! Which global channel has which local channel. Pure; time and randomness are arguments.
//!
//! A channel that some watcher joins has a local channel, or waits for one. When its last watcher
//! leaves, the local channel is *held* for [`HOLD_DOWN`]: routers may still forward the old stream
//! there, and receivers would take it for another one. Only the same global channel gets it back
//! during that time, and preferably later too.
//!
//! With a shared store, other servers assign too, and the store decides. A local channel is then
//! *proposed*: its slot is taken here, but [`Stream::local`] is empty until an event of the store
//! says that the assignment took effect. [`Assignments::absorb`] makes the state that of the store.
//! Where the joins and the store disagree for a while, [`Assignments::repair`] proposes what is
//! missing: the server that should have done it may be dead.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use ahash::AHashMap;
use lru::LruCache;

use super::changes::{SharedEvent, StoreChange, StoredHold, StoredMapping};
use super::pool::{Pool, PoolSlot, Suitability};
use super::slots::FreeSlots;
use crate::mnat::Channel;

/// How long a local channel is not assigned to another global channel after its use.
pub const HOLD_DOWN: Duration = Duration::from_secs(60);
/// How many channels are remembered after the hold, to get their local channel back.
const MAX_FORMER: NonZeroUsize = NonZeroUsize::MIN.saturating_add(65_535);

/// The number of a watcher in this process.
pub type WatcherKey = u64;

/// A source of random numbers.
pub type RandomSource<'r> = &'r mut dyn FnMut() -> u128;

/// A global channel that is joined.
#[derive(Debug)]
pub struct Stream {
    /// The number of the mapping.
    pub id: u64,
    /// The local channel.
    pub local: Option<Channel>,
    /// The watchers that join it, in no order.
    pub joiners: Vec<WatcherKey>,
    /// Where it is among all channels.
    order: u64,
    slot: Option<PoolSlot>,
    /// The shared store holds its local channel.
    is_held: bool,
}

#[derive(Debug)]
struct Hold {
    slot: PoolSlot,
    /// When it ends. A shared store ends it by itself.
    until: Option<Instant>,
}

/// What a change that comes from a shared store needs, and what it causes.
pub struct SharedEffects<'a> {
    /// Random numbers.
    pub random: RandomSource<'a>,
    /// IPv4 ranges are preferred.
    pub prefer_ipv4: bool,
    /// What the store has to change.
    pub changes: &'a mut Vec<StoreChange>,
    /// The channels whose mapping changed.
    pub touched: Vec<Channel>,
}

/// Channels that wait for a local one, by age, for each IP version and with or without a source.
type WaitingChannels = BTreeMap<(bool, bool), BTreeMap<u64, Channel>>;

/// All joined channels and their local channels.
#[derive(Debug)]
pub struct Assignments {
    pool: Pool,
    free: Vec<FreeSlots>,
    is_shared: bool,
    streams: AHashMap<Channel, Stream>,
    /// The channels by age. The oldest one is the first.
    by_order: BTreeMap<u64, Channel>,
    next_order: u64,
    /// The global channel of each slot that is assigned, proposed or held.
    owners: AHashMap<PoolSlot, Channel>,
    /// Channels whose joins and mapping may disagree.
    suspects: BTreeSet<Channel>,
    waiting: WaitingChannels,
    assigned: usize,
    holds: AHashMap<Channel, Hold>,
    hold_ends: BTreeSet<(Instant, Channel)>,
    /// The slots that channels had, while other channels may have them.
    former: LruCache<Channel, PoolSlot>,
}

fn class(global: Channel) -> (bool, bool) {
    (global.is_ipv4(), global.source().is_some())
}

impl Assignments {
    /// Returns the assignments of a pool of which nothing is used. `is_shared`: a store that several
    /// servers share decides.
    pub fn new(pool: Pool, is_shared: bool) -> Self {
        let free = pool.ranges().iter().map(|r| FreeSlots::new(r.size()));
        Self {
            free: free.collect(),
            pool,
            is_shared,
            streams: AHashMap::new(),
            by_order: BTreeMap::new(),
            next_order: 1,
            owners: AHashMap::new(),
            suspects: BTreeSet::new(),
            waiting: BTreeMap::new(),
            assigned: 0,
            holds: AHashMap::new(),
            hold_ends: BTreeSet::new(),
            former: LruCache::new(MAX_FORMER),
        }
    }

    /// Returns the pool.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Returns a joined channel.
    pub fn stream(&self, global: Channel) -> Option<&Stream> {
        self.streams.get(&global)
    }

    /// Returns all joined channels, the oldest mapping first.
    pub fn streams(&self) -> impl Iterator<Item = (Channel, &Stream)> {
        let stream = |global: &Channel| Some((*global, self.streams.get(global)?));
        self.by_order.values().filter_map(stream)
    }

    /// Returns the number of joined channels.
    pub fn joined(&self) -> usize {
        self.streams.len()
    }

    /// Returns the number of channels with a local channel.
    pub fn assigned(&self) -> usize {
        self.assigned
    }

    /// Returns the number of local channels that are held.
    pub fn held(&self) -> usize {
        self.holds.len()
    }

    /// Returns a new number, which no mapping has. Servers that share a store draw them at random.
    /// All JSON parsers can read them: RFC 7493 section 2.2.
    pub fn new_id(&mut self, random: RandomSource) -> u64 {
        match self.is_shared {
            true => (random() >> 75) as u64,
            false => self.new_order(),
        }
    }

    fn new_order(&mut self) -> u64 {
        self.next_order += 1;
        self.next_order - 1
    }

    /// Returns whether a channel has a local channel that the shared store has not confirmed.
    pub fn is_proposed(&self, global: Channel) -> bool {
        let stream = self.streams.get(&global);
        stream.is_some_and(|s| s.local.is_none() && s.slot.is_some())
    }

    fn insert_stream(&mut self, global: Channel, id: u64, order: u64, joiners: Vec<WatcherKey>) {
        self.by_order.insert(order, global);
        let stream = Stream {
            id,
            local: None,
            joiners,
            order,
            slot: None,
            is_held: false,
        };
        self.streams.insert(global, stream);
    }

    fn insert_waiting(&mut self, global: Channel) {
        if let Some(stream) = self.streams.get(&global) {
            let waiting = self.waiting.entry(class(global)).or_default();
            waiting.insert(stream.order, global);
        }
    }

    fn take_stream(&mut self, global: Channel) -> Option<Stream> {
        let stream = self.streams.remove(&global)?;
        self.by_order.remove(&stream.order);
        self.assigned -= usize::from(stream.local.is_some());
        if stream.slot.is_none()
            && let Some(waiting) = self.waiting.get_mut(&class(global))
        {
            waiting.remove(&stream.order);
        }
        Some(stream)
    }

    /// Takes stored assignments and holds over. They must be joined by [`Self::join`], or released by
    /// [`Self::hold_unjoined`]. Holds start again.
    ///
    /// # Errors
    /// A local channel that is not in the pool, or that is there twice.
    pub fn restore(
        &mut self,
        mappings: &[StoredMapping],
        holds: &[StoredHold],
        now: Instant,
    ) -> Result<(), Channel> {
        for mapping in mappings {
            let slot = self.take_stored(mapping.local)?;
            self.next_order = self.next_order.max(mapping.id + 1);
            self.insert_stream(mapping.global, mapping.id, mapping.id, Vec::new());
            if let Some(stream) = self.streams.get_mut(&mapping.global) {
                (stream.local, stream.slot) = (Some(mapping.local), Some(slot));
            }
            self.owners.insert(slot, mapping.global);
            self.assigned += 1;
        }
        for hold in holds {
            let slot = self.take_stored(hold.local)?;
            self.insert_hold(hold.global, slot, now);
        }
        Ok(())
    }

    fn take_stored(&mut self, local: Channel) -> Result<PoolSlot, Channel> {
        let slot = self.pool.slot(local).ok_or(local)?;
        match self.free[slot.range].take(slot.index) {
            true => Ok(slot),
            false => Err(local),
        }
    }

    /// Holds the restored assignments that no watcher joined.
    pub fn hold_unjoined(&mut self, now: Instant, changes: &mut Vec<StoreChange>) {
        let unjoined = self.streams.iter().filter(|(_, s)| s.joiners.is_empty());
        let unjoined: Vec<Channel> = unjoined.map(|(global, _)| *global).collect();
        for global in unjoined {
            self.remove_stream(global, now, changes);
        }
    }

    /// Adds the join of a watcher that has not joined `global`. Assigns a local channel if it has
    /// none. With `prefer_ipv4`, IPv4 ranges are preferred.
    pub fn join(
        &mut self,
        global: Channel,
        watcher: WatcherKey,
        prefer_ipv4: bool,
        random: RandomSource,
        changes: &mut Vec<StoreChange>,
    ) {
        if let Some(stream) = self.streams.get_mut(&global) {
            stream.joiners.push(watcher);
            return;
        }
        let id = self.new_id(random);
        let order = match self.is_shared {
            true => self.new_order(),
            false => id,
        };
        self.insert_stream(global, id, order, vec![watcher]);
        if let Some(slot) = self.take_back(global, changes) {
            self.occupy(global, slot);
        } else {
            self.assign_free(global, prefer_ipv4, random, changes);
        }
    }

    /// Assigns a free local channel to a channel that has none, or lets it wait.
    fn assign_free(
        &mut self,
        global: Channel,
        prefer_ipv4: bool,
        random: RandomSource,
        changes: &mut Vec<StoreChange>,
    ) {
        match self.take_free(global, prefer_ipv4, random) {
            Some(slot) => self.assign(global, slot, changes),
            None => self.insert_waiting(global),
        }
    }

    /// Removes the join of a watcher. Returns whether it was the last one.
    pub fn leave(
        &mut self,
        global: Channel,
        watcher: WatcherKey,
        now: Instant,
        changes: &mut Vec<StoreChange>,
    ) -> bool {
        let Some(stream) = self.streams.get_mut(&global) else {
            return false;
        };
        if let Some(position) = stream.joiners.iter().position(|key| *key == watcher) {
            stream.joiners.swap_remove(position);
        }
        let is_last = stream.joiners.is_empty();
        if is_last {
            self.remove_stream(global, now, changes);
        }
        is_last
    }

    fn remove_stream(&mut self, global: Channel, now: Instant, changes: &mut Vec<StoreChange>) {
        let Some(stream) = self.take_stream(global) else {
            return;
        };
        let Some(slot) = stream.slot else { return };
        if let Some(local) = self.pool.local(slot, global) {
            let id = stream.id;
            changes.push(StoreChange::HoldMapping(StoredMapping {
                id,
                global,
                local,
            }));
        }
        self.insert_hold(global, slot, now);
    }

    fn insert_hold(&mut self, global: Channel, slot: PoolSlot, now: Instant) {
        let until = (!self.is_shared).then_some(now + HOLD_DOWN);
        self.owners.insert(slot, global);
        self.holds.insert(global, Hold { slot, until });
        self.hold_ends.extend(until.map(|until| (until, global)));
    }

    /// Takes the slot that a new stream had before, if it is still free for it.
    fn take_back(&mut self, global: Channel, changes: &mut Vec<StoreChange>) -> Option<PoolSlot> {
        let id = self.streams.get(&global)?.id;
        if let Some(Hold { slot, until }) = self.holds.remove(&global) {
            if let Some(until) = until {
                self.hold_ends.remove(&(until, global));
            }
            let local = self.pool.local(slot, global)?;
            changes.push(StoreChange::ResumeMapping(StoredMapping {
                id,
                global,
                local,
            }));
            return Some(slot);
        }
        let slot = self.former.pop(&global)?;
        if !self.free[slot.range].take(slot.index) {
            return None;
        }
        let local = self.pool.local(slot, global)?;
        changes.push(StoreChange::PutMapping(StoredMapping { id, global, local }));
        Some(slot)
    }

    /// Takes a free slot at random, in the ranges that suit the channel best.
    fn take_free(
        &mut self,
        global: Channel,
        prefer_ipv4: bool,
        random: RandomSource,
    ) -> Option<PoolSlot> {
        let ranges = self.pool.ranges().iter().zip(&self.free).enumerate();
        let suitable: Vec<(Suitability, usize, u128)> = ranges
            .filter(|(_, (_, free))| free.free() > 0)
            .filter_map(|(n, (range, free))| {
                Some((range.suits(global, prefer_ipv4)?, n, free.free()))
            })
            .collect();
        let best = suitable.iter().map(|(suits, ..)| *suits).min()?;
        let suitable = suitable.iter().filter(|(suits, ..)| *suits == best);
        let total = suitable
            .clone()
            .fold(0u128, |sum, (.., free)| sum.saturating_add(*free));
        let mut position = random() % total;
        for (_, range, free) in suitable {
            if position < *free {
                let index = self.free[*range].take_random(random)?;
                return Some(PoolSlot {
                    range: *range,
                    index,
                });
            }
            position -= *free;
        }
        None
    }

    fn assign(&mut self, global: Channel, slot: PoolSlot, changes: &mut Vec<StoreChange>) {
        let stream = self.streams.get(&global);
        let Some((stream, local)) = stream.zip(self.pool.local(slot, global)) else {
            return;
        };
        let id = stream.id;
        changes.push(StoreChange::PutMapping(StoredMapping { id, global, local }));
        self.occupy(global, slot);
    }

    /// Gives a slot to a stream. With a shared store, this is a proposal.
    fn occupy(&mut self, global: Channel, slot: PoolSlot) {
        self.owners.insert(slot, global);
        let local = self.pool.local(slot, global);
        if let Some(stream) = self.streams.get_mut(&global) {
            stream.slot = Some(slot);
            if !self.is_shared {
                stream.local = local;
                self.assigned += 1;
            }
        }
    }

    /// Returns when the next hold ends.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.hold_ends.first().map(|(end, _)| *end)
    }

    /// Ends the next hold that is over, and gives its slot to the channel that waits longest for it.
    /// Returns that channel, if there is one; `None` if no hold is over.
    pub fn handle_timeout(
        &mut self,
        now: Instant,
        changes: &mut Vec<StoreChange>,
    ) -> Option<Option<Channel>> {
        let (until, global) = *self.hold_ends.first()?;
        if now < until {
            return None;
        }
        self.hold_ends.pop_first();
        let hold = self.holds.remove(&global)?;
        let slot = hold.slot;
        if let Some(local) = self.pool.local(slot, global) {
            changes.push(StoreChange::RemoveHold(StoredHold { local, global }));
        }
        Some(self.release_slot(slot, global, changes))
    }

    /// Gives a slot of `former` to the channel that waits longest for it, and returns that channel.
    /// Frees the slot if there is none.
    fn release_slot(
        &mut self,
        slot: PoolSlot,
        former: Channel,
        changes: &mut Vec<StoreChange>,
    ) -> Option<Channel> {
        self.owners.remove(&slot);
        let range = &self.pool.ranges()[slot.range];
        let waiting = self.waiting.values_mut();
        let first = waiting
            .filter_map(|class| {
                let (order, first) = class.first_key_value()?;
                range.suits(*first, false)?;
                Some((*order, *first))
            })
            .min();
        match first {
            Some((order, first)) => {
                if let Some(class) = self.waiting.get_mut(&class(first)) {
                    class.remove(&order);
                }
                self.assign(first, slot, changes);
                Some(first)
            }
            None => {
                self.free[slot.range].release(slot.index);
                self.former.put(former, slot);
                None
            }
        }
    }

    /// Adds the join of a watcher that another server serves. That server assigns.
    pub fn join_elsewhere(&mut self, global: Channel, watcher: WatcherKey, random: RandomSource) {
        if let Some(stream) = self.streams.get_mut(&global) {
            return stream.joiners.push(watcher);
        }
        let (id, order) = (self.new_id(random), self.new_order());
        self.insert_stream(global, id, order, vec![watcher]);
        self.suspects.insert(global);
        match self.holds.remove(&global) {
            Some(Hold { slot, .. }) => {
                let local = self.pool.local(slot, global);
                if let Some(stream) = self.streams.get_mut(&global) {
                    (stream.slot, stream.local, stream.is_held) = (Some(slot), local, true);
                    self.assigned += 1;
                }
            }
            None => self.insert_waiting(global),
        }
    }

    /// Removes the join of a watcher that another server serves. That server starts the hold.
    /// Returns whether the join was the last one.
    pub fn leave_elsewhere(&mut self, global: Channel, watcher: WatcherKey) -> bool {
        let Some(stream) = self.streams.get_mut(&global) else {
            return false;
        };
        stream.joiners.retain(|key| *key != watcher);
        let (is_last, has_slot) = (stream.joiners.is_empty(), stream.slot.is_some());
        match (is_last, has_slot) {
            (true, true) => {
                self.suspects.insert(global);
            }
            (true, false) => {
                self.take_stream(global);
            }
            (false, _) => {}
        }
        is_last
    }

    /// Takes an event of the shared store over. Returns false if the pool lacks the local channel.
    pub fn absorb(&mut self, event: &SharedEvent, effects: &mut SharedEffects) -> bool {
        match event {
            SharedEvent::Mapping(mapping) => self.absorb_mapping(*mapping, false, effects),
            SharedEvent::Hold(mapping) => self.absorb_mapping(*mapping, true, effects),
            SharedEvent::MappingRemoved(global) => {
                self.absorb_removal(*global, effects);
                true
            }
            SharedEvent::Watcher(..) | SharedEvent::WatcherExpired(_) => true,
        }
    }

    fn absorb_mapping(
        &mut self,
        mapping: StoredMapping,
        is_held: bool,
        effects: &mut SharedEffects,
    ) -> bool {
        let StoredMapping { id, global, local } = mapping;
        let Some(slot) = self.pool.slot(local) else {
            return false;
        };
        // A channel that has the slot here was refused it by the store, or will be.
        let owner = self.owners.get(&slot).copied();
        if let Some(owner) = owner.filter(|owner| *owner != global) {
            self.lose_slot(owner, effects);
        }
        self.free[slot.range].take(slot.index);
        self.owners.insert(slot, global);
        let former = match self.streams.get(&global) {
            Some(stream) => stream.slot,
            None => self.holds.get(&global).map(|hold| hold.slot),
        };
        if let Some(former) = former.filter(|former| *former != slot) {
            self.release_slot(former, global, effects.changes);
        }
        if !self.streams.contains_key(&global) {
            if is_held {
                self.holds.insert(global, Hold { slot, until: None });
                return true;
            }
            self.holds.remove(&global);
            let order = self.new_order();
            self.insert_stream(global, id, order, Vec::new());
        }
        let Some(stream) = self.streams.get_mut(&global) else {
            return true;
        };
        if stream.slot.is_none()
            && let Some(waiting) = self.waiting.get_mut(&class(global))
        {
            waiting.remove(&stream.order);
        }
        if (stream.local, stream.id) != (Some(local), id) {
            effects.touched.push(global);
        }
        self.assigned += usize::from(stream.local.is_none());
        (stream.id, stream.local, stream.slot) = (id, Some(local), Some(slot));
        stream.is_held = is_held;
        match (is_held, stream.joiners.is_empty()) {
            (true, true) => {
                self.take_stream(global);
                self.holds.insert(global, Hold { slot, until: None });
                effects.touched.push(global);
            }
            (false, false) => {}
            _ => {
                self.suspects.insert(global);
            }
        }
        true
    }

    /// Takes the slot away from a channel, which another one has in the shared store.
    fn lose_slot(&mut self, global: Channel, effects: &mut SharedEffects) {
        self.holds.remove(&global);
        let Some(stream) = self.streams.get_mut(&global) else {
            return;
        };
        stream.slot = None;
        if stream.local.take().is_some() {
            self.assigned -= 1;
            effects.touched.push(global);
        }
        match stream.joiners.is_empty() {
            true => {
                self.take_stream(global);
            }
            false => {
                self.assign_free(global, effects.prefer_ipv4, effects.random, effects.changes);
            }
        }
    }

    fn absorb_removal(&mut self, global: Channel, effects: &mut SharedEffects) {
        if let Some(hold) = self.holds.remove(&global) {
            self.release_slot(hold.slot, global, effects.changes);
            return;
        }
        let Some(stream) = self.streams.get_mut(&global) else {
            return;
        };
        stream.is_held = false;
        if stream.local.take().is_some() {
            self.assigned -= 1;
            effects.touched.push(global);
        }
        let Some(slot) = stream.slot else { return };
        match stream.joiners.is_empty() {
            true => {
                self.take_stream(global);
                self.release_slot(slot, global, effects.changes);
            }
            // Proposes the same local channel again. Without effect if that was done already.
            false => self.assign(global, slot, effects.changes),
        }
    }

    /// Returns the global channels that the shared store has assigned or held.
    pub fn confirmed(&self) -> impl Iterator<Item = Channel> {
        let streams = self.streams.iter().filter(|(_, s)| s.local.is_some());
        let streams = streams.map(|(global, _)| *global);
        streams.chain(self.holds.keys().copied())
    }

    /// Returns whether [`Self::repair`] may have something to do.
    pub fn has_suspects(&self) -> bool {
        !self.suspects.is_empty()
    }

    /// Proposes what the shared store lacks, or has too much, according to the joins.
    pub fn repair(&mut self, now: Instant, effects: &mut SharedEffects) {
        for global in std::mem::take(&mut self.suspects) {
            let Some(stream) = self.streams.get(&global) else {
                continue;
            };
            let (id, is_joined) = (stream.id, !stream.joiners.is_empty());
            match (stream.local, stream.slot) {
                (Some(_), _) if !is_joined => {
                    self.remove_stream(global, now, effects.changes);
                    effects.touched.push(global);
                }
                (Some(local), _) if stream.is_held => {
                    let mapping = StoredMapping { id, global, local };
                    effects.changes.push(StoreChange::ResumeMapping(mapping));
                }
                (None, None) if is_joined => {
                    if let Some(waiting) = self.waiting.get_mut(&class(global)) {
                        waiting.remove(&stream.order);
                    }
                    self.assign_free(global, effects.prefer_ipv4, effects.random, effects.changes);
                }
                // Proposed, or complete.
                _ => {}
            }
        }
    }
}
