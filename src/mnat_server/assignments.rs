//! Which global channel has which local channel. Pure; time and randomness are arguments.
//!
//! A channel that some watcher joins has a local channel, or waits for one. When its last watcher
//! leaves, the local channel is *held* for [`HOLD_DOWN`]: routers may still forward the old stream
//! there, and receivers would take it for another one. Only the same global channel gets it back
//! during that time, and preferably later too.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use ahash::AHashMap;
use lru::LruCache;

use super::changes::{StoreChange, StoredHold, StoredMapping};
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
    slot: Option<PoolSlot>,
}

#[derive(Debug)]
struct Hold {
    slot: PoolSlot,
    until: Instant,
}

/// Channels that wait for a local one, by number, for each IP version and with or without a source.
type WaitingChannels = BTreeMap<(bool, bool), BTreeMap<u64, Channel>>;

/// All joined channels and their local channels.
#[derive(Debug)]
pub struct Assignments {
    pool: Pool,
    free: Vec<FreeSlots>,
    streams: AHashMap<Channel, Stream>,
    /// The channels by number. The oldest mapping is the first one.
    by_id: BTreeMap<u64, Channel>,
    next_id: u64,
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
    /// Returns the assignments of a pool of which nothing is used.
    pub fn new(pool: Pool) -> Self {
        let free = pool.ranges().iter().map(|r| FreeSlots::new(r.size()));
        Self {
            free: free.collect(),
            pool,
            streams: AHashMap::new(),
            by_id: BTreeMap::new(),
            next_id: 1,
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
        self.by_id.values().filter_map(stream)
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

    /// Returns a new number, which no mapping has.
    pub fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
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
            let stream = Stream {
                id: mapping.id,
                local: Some(mapping.local),
                joiners: Vec::new(),
                slot: Some(slot),
            };
            self.next_id = self.next_id.max(mapping.id + 1);
            self.by_id.insert(mapping.id, mapping.global);
            self.streams.insert(mapping.global, stream);
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
        let id = self.new_id();
        self.by_id.insert(id, global);
        let stream = Stream {
            id,
            local: None,
            joiners: vec![watcher],
            slot: None,
        };
        self.streams.insert(global, stream);
        let slot = self
            .take_back(global, changes)
            .or_else(|| self.take_free(global, prefer_ipv4, random));
        match slot {
            Some(slot) => self.assign(global, slot, changes),
            None => {
                let waiting = self.waiting.entry(class(global)).or_default();
                waiting.insert(id, global);
            }
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
        let Some(Stream {
            id, local, slot, ..
        }) = self.streams.remove(&global)
        else {
            return;
        };
        self.by_id.remove(&id);
        let Some((local, slot)) = local.zip(slot) else {
            if let Some(waiting) = self.waiting.get_mut(&class(global)) {
                waiting.remove(&id);
            }
            return;
        };
        self.assigned -= 1;
        let mapping = StoredMapping { id, global, local };
        changes.push(StoreChange::RemoveMapping(mapping));
        self.insert_hold(global, slot, now);
        changes.push(StoreChange::PutHold(StoredHold { local, global }));
    }

    fn insert_hold(&mut self, global: Channel, slot: PoolSlot, now: Instant) {
        let until = now + HOLD_DOWN;
        self.holds.insert(global, Hold { slot, until });
        self.hold_ends.insert((until, global));
    }

    /// Takes the slot that the channel had before, if it is still free for it.
    fn take_back(&mut self, global: Channel, changes: &mut Vec<StoreChange>) -> Option<PoolSlot> {
        if let Some(Hold { slot, until }) = self.holds.remove(&global) {
            self.hold_ends.remove(&(until, global));
            let local = self.pool.local(slot, global)?;
            changes.push(StoreChange::RemoveHold(StoredHold { local, global }));
            return Some(slot);
        }
        let slot = self.former.pop(&global)?;
        self.free[slot.range].take(slot.index).then_some(slot)
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
        let local = self.pool.local(slot, global);
        let Some((stream, local)) = self.streams.get_mut(&global).zip(local) else {
            return;
        };
        (stream.local, stream.slot) = (Some(local), Some(slot));
        self.assigned += 1;
        let id = stream.id;
        changes.push(StoreChange::PutMapping(StoredMapping { id, global, local }));
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
        let range = &self.pool.ranges()[slot.range];
        let waiting = self.waiting.values_mut();
        let first = waiting
            .filter_map(|class| {
                let (id, first) = class.first_key_value()?;
                range.suits(*first, false)?;
                Some((*id, *first))
            })
            .min();
        match first {
            Some((id, first)) => {
                if let Some(class) = self.waiting.get_mut(&class(first)) {
                    class.remove(&id);
                }
                self.assign(first, slot, changes);
                Some(Some(first))
            }
            None => {
                self.free[slot.range].release(slot.index);
                self.former.put(global, slot);
                Some(None)
            }
        }
    }
}
