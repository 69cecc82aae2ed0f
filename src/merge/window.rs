//! The packets around the next one of a stream: which are missing, held, passed on or given up.

use super::statistics::MergeStatistics;

/// The smallest number of slots.
pub(super) const MIN_SLOTS: usize = 1024;

/// The largest number of slots, a power of two. At a window of 50 ms it is enough for a million packets a second.
pub(super) const MAX_SLOTS: usize = 1 << 17;

/// The state of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum SlotState {
    /// A later packet has arrived.
    #[default]
    Missing,
    /// Its packet is held.
    Held,
    /// Its packet was passed on.
    Passed,
    /// It was given up.
    GivenUp,
}

/// A number of the window.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct WindowSlot {
    /// When its first packet arrived; until then, since when it is missing.
    pub time_ns: u64,
    /// The held packet.
    pub held: u32,
    pub state: SlotState,
    /// The paths on which it arrived, one bit each.
    pub seen: u8,
}

/// The slots of the positions from `base` to `end`. A position is a sequence number without wrap.
///
/// Positions from `next` on are missing or held, those before are passed on or given up. The
/// number of slots is a power of two. It grows with the rate of the stream, up to a limit.
pub(super) struct Window {
    slots: Vec<WindowSlot>,
    max_slots: usize,
    /// The position of the first packet.
    first: u64,
    base: u64,
    /// The oldest position whose loss is not counted.
    settled: u64,
    next: u64,
    end: u64,
    /// For each path, its first and its highest position.
    pub span: [Option<(u64, u64)>; 2],
}

impl Window {
    /// Returns a window without packets, of numbers with this many bits. It has at most `limit`
    /// slots, a power of two.
    pub fn new(first: u64, bits: u32, limit: usize) -> Self {
        // Positions that are half the numbers apart could be ahead or behind.
        let unambiguous = 1usize << bits.clamp(2, 32).saturating_sub(1);
        let max_slots = MAX_SLOTS.min(limit).min(unambiguous);
        Self {
            slots: vec![WindowSlot::default(); MIN_SLOTS.min(max_slots)],
            max_slots,
            first,
            base: first,
            settled: first,
            next: first,
            end: first,
            span: [None; 2],
        }
    }

    /// Returns the position of the oldest slot.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Returns the position of the packet that is passed on next.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Returns the position after the highest.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Returns whether the oldest slot is that of the first packet.
    pub fn has_first(&self) -> bool {
        self.base == self.first
    }

    /// Returns whether nothing was passed on or given up yet.
    pub fn is_untouched(&self) -> bool {
        self.has_first() && self.next == self.base
    }

    /// Returns whether all packets up to the highest were passed on or given up.
    pub fn is_complete(&self) -> bool {
        self.next == self.end
    }

    /// Returns the number of slots now, and at most.
    pub fn capacity(&self) -> (u64, u64) {
        (self.slots.len() as u64, self.max_slots as u64)
    }

    /// Returns the slot of a position from `base` to `end`.
    pub fn slot(&self, position: u64) -> WindowSlot {
        self.slots[self.index(position)]
    }

    /// Returns the slot of a position from `base` to `end`.
    pub fn slot_mut(&mut self, position: u64) -> &mut WindowSlot {
        let index = self.index(position);
        &mut self.slots[index]
    }

    fn index(&self, position: u64) -> usize {
        position as usize & (self.slots.len() - 1)
    }

    /// Goes on to the next position.
    pub fn advance(&mut self) {
        debug_assert!(self.next < self.end);
        self.next += 1;
    }

    /// Adds the positions up to `position`, which become missing. The caller makes sure that at
    /// most `max_slots` of them are missing or held. Slots are kept for `keep_ns` if there is room.
    pub fn extend(
        &mut self,
        position: u64,
        time_ns: u64,
        keep_ns: u64,
        statistics: &mut MergeStatistics,
    ) {
        let base_for = |slots: usize| (position + 1).saturating_sub(slots as u64);
        while base_for(self.slots.len()) > self.base && self.slots.len() < self.max_slots {
            let removed = base_for(self.slots.len()) - 1;
            let is_old = |slot: WindowSlot| time_ns.saturating_sub(slot.time_ns) > keep_ns;
            if removed < self.next && is_old(self.slot(removed)) {
                break;
            }
            self.grow();
        }
        let base = base_for(self.slots.len()).max(self.base);
        self.settle_to(base.min(self.next), statistics);
        self.base = base;
        self.settled = self.settled.max(base);
        self.next = self.next.max(base);
        for missing in self.end.max(base)..=position {
            *self.slot_mut(missing) = WindowSlot {
                time_ns,
                ..WindowSlot::default()
            };
        }
        self.end = position + 1;
    }

    /// Adds positions before the first one, if nothing was passed on yet. Returns false if
    /// something was, or if there is no room.
    pub fn prepend(&mut self, position: u64, time_ns: u64) -> bool {
        let has_room = self.end.saturating_sub(position) <= self.slots.len() as u64;
        if !self.is_untouched() || !has_room {
            return false;
        }
        for missing in position..self.base {
            *self.slot_mut(missing) = WindowSlot {
                time_ns,
                ..WindowSlot::default()
            };
        }
        self.first = position;
        (self.base, self.next, self.settled) = (position, position, position);
        true
    }

    fn grow(&mut self) {
        let mut slots = vec![WindowSlot::default(); self.slots.len() * 2];
        let mask = slots.len() - 1;
        for position in self.base..self.end {
            slots[position as usize & mask] = self.slot(position);
        }
        self.slots = slots;
    }

    /// Notes that a path brought the packet of a position.
    pub fn note_path(&mut self, path: usize, position: u64) {
        self.slot_mut(position).seen |= 1 << path;
        let (first, highest) = self.span[path].unwrap_or((position, position));
        self.span[path] = Some((first.min(position), highest.max(position)));
    }

    /// Notes that the clock of the receive times was set back to `now_ns`.
    pub fn set_back(&mut self, now_ns: u64) {
        for slot in &mut self.slots {
            slot.time_ns = slot.time_ns.min(now_ns);
        }
    }

    /// Counts the packets that a path lost, of those that arrived before `time_ns`.
    pub fn settle(&mut self, time_ns: u64, statistics: &mut MergeStatistics) {
        while self.settled < self.next && self.slot(self.settled).time_ns < time_ns {
            self.settle_to(self.settled + 1, statistics);
        }
    }

    /// Counts the packets before `position` that a path lost.
    pub fn settle_to(&mut self, position: u64, statistics: &mut MergeStatistics) {
        for position in self.settled..position {
            let seen = self.slot(position).seen;
            for (path, lost) in statistics.lost.iter_mut().enumerate() {
                // A path has not lost what was sent before it began.
                let has_begun = self.span[path].is_none_or(|(first, _)| position >= first);
                *lost += u64::from(has_begun && seen & 1 << path == 0);
            }
        }
        self.settled = self.settled.max(position);
    }
}
