//! One stream that arrives on two paths.
//!
//! Numbers are unwrapped to positions of a [`Window`]. A sender that starts again begins an *epoch*
//! with a window of its own: the packets of the former epoch that are still on their way on the
//! slower path are passed on first.

use std::collections::VecDeque;

use super::delay::PeakDelay;
use super::sequence::distance;
use super::statistics::MergeStatistics;
use super::step::Step;
use super::window::{MIN_SLOTS, SlotState, Window, WindowSlot};

/// A path that has brought no packet for this time is not waited for.
pub(super) const LIVENESS_NS: u64 = 1_000_000_000;

/// For this time after the first packet, any delay up to the window is expected.
pub(super) const LEARNING_NS: u64 = 2_000_000_000;

/// The first position of an epoch.
const ORIGIN: u64 = 1 << 40;

/// Largest distance between the two packets that confirm a restart.
const CONFIRMING_DISTANCE: i64 = 64;

/// Largest jump ahead of long numbers that is counted as loss, and not as a restart.
const MAX_OUTAGE: i64 = 1_000_000;

/// How many numbers a packet may skip on average. The work for a packet is proportional to the
/// numbers that it skips, so a sender of any numbers must not skip a whole window with each. A
/// window of the smallest size permits as many.
const SKIPPED_PER_PACKET: u64 = MIN_SLOTS as u64 / 2;

/// Stands for the packet that is being pushed.
const CURRENT: u32 = u32::MAX;

/// A held packet that is not stored.
const NOT_STORED: u32 = u32::MAX - 1;

/// What happens to a pushed packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is one of the steps.
    Passed,
    /// It waits; its number must be set at this place.
    Held(Place),
    /// Its number was passed on already.
    Duplicate,
    /// Later packets were passed on already.
    Late,
}

/// Where the number of a held packet is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Slot { epoch: u32, position: u64 },
    Candidate,
}

/// The packets between two restarts of the sender.
struct Epoch {
    id: u32,
    window: Window,
    opened_ns: u64,
    /// The number of the position `ORIGIN`.
    origin: u64,
}

/// A packet whose number does not fit: the first after a restart, or a stray.
#[derive(Clone, Copy)]
struct Candidate {
    path: usize,
    number: u64,
    time_ns: u64,
    held: u32,
}

#[derive(Clone, Copy, Default)]
struct PathState {
    /// The time of its last packet that fitted.
    fitted_ns: Option<u64>,
    /// The number of its last packet.
    number: Option<u64>,
}

/// A packet on one path, for [`MergedStream::push`].
#[derive(Clone, Copy)]
pub(super) struct NumberedPacket {
    pub path: usize,
    pub number: u64,
    /// Receive time.
    pub time_ns: u64,
    /// Both paths were read up to this time.
    pub clock_ns: u64,
    /// Whether no packet can be held.
    pub is_full: bool,
}

/// The state of a stream.
pub(super) struct MergedStream {
    bits: u32,
    window_ns: u64,
    /// Limit of the slots of a window.
    max_slots: usize,
    began_ns: u64,
    last_ns: u64,
    /// One or two, the oldest first.
    epochs: VecDeque<Epoch>,
    next_epoch: u32,
    candidate: Option<Candidate>,
    paths: [PathState; 2],
    /// How many numbers may be skipped now.
    skippable: u64,
    /// By how much packets are late that their own path has passed already.
    reordering: PeakDelay,
    /// By how much second copies are late.
    skew: PeakDelay,
}

impl MergedStream {
    /// Returns a stream without packets, with numbers of this many bits.
    pub fn new(bits: u32, window_ns: u64, max_slots: usize, now_ns: u64) -> Self {
        Self {
            bits,
            window_ns,
            max_slots,
            began_ns: now_ns,
            last_ns: now_ns,
            epochs: VecDeque::with_capacity(3),
            next_epoch: 0,
            candidate: None,
            paths: [PathState::default(); 2],
            skippable: max_slots as u64,
            reordering: PeakDelay::default(),
            skew: PeakDelay::default(),
        }
    }

    /// Returns the receive time of the last packet.
    pub fn last_ns(&self) -> u64 {
        self.last_ns
    }

    /// Returns whether packets are held.
    pub fn is_waiting(&self) -> bool {
        let is_complete = |epoch: &Epoch| epoch.window.is_complete();
        self.candidate.is_some() || self.epochs.len() > 1 || !self.epochs.iter().all(is_complete)
    }

    /// Returns the largest difference between the paths that was recently observed.
    pub fn peak_skew_ns(&mut self) -> u64 {
        self.skew.peak(self.last_ns)
    }

    /// Takes a packet. Adds the packets that can be passed on now to `steps`, in order.
    pub fn push(
        &mut self,
        arrival: NumberedPacket,
        steps: &mut Vec<Step>,
        counts: &mut MergeStatistics,
    ) -> Fate {
        self.last_ns = arrival.time_ns;
        self.skippable = (self.skippable + SKIPPED_PER_PACKET).min(self.max_slots as u64);
        if self.epochs.is_empty() {
            self.open(arrival.number, arrival.time_ns);
        }
        let first_step = steps.len();
        let mut fate = match self.locate(arrival) {
            Location::Fits { epoch, position } => {
                self.insert(epoch, position, arrival, CURRENT, steps, counts)
            }
            Location::BeforeFirst => {
                self.note_fitted(arrival);
                Fate::Late
            }
            Location::Elsewhere => self.suspect_restart(arrival, steps, counts),
        };
        self.advance(arrival.clock_ns, false, steps, counts);
        let is_passed = |steps: &[Step]| steps.contains(&Step::Current);
        if matches!(fate, Fate::Held(_)) && is_passed(&steps[first_step..]) {
            fate = Fate::Passed;
        }
        if let (Fate::Held(place), true) = (fate, arrival.is_full) {
            counts.limited += 1;
            fate = match place {
                Place::Candidate => {
                    self.candidate = None;
                    Fate::Late
                }
                Place::Slot { .. } => {
                    self.advance(arrival.clock_ns, true, steps, counts);
                    Fate::Passed
                }
            };
        }
        match fate {
            Fate::Held(place) => {
                counts.held += 1;
                self.set_held(place, NOT_STORED);
            }
            Fate::Duplicate => counts.duplicates[arrival.path] += 1,
            Fate::Late => counts.late[arrival.path] += 1,
            Fate::Passed => {}
        }
        self.settle(arrival.clock_ns, counts);
        fate
    }

    /// Sets the number of a packet that is held.
    pub fn set_held(&mut self, place: Place, held: u32) {
        match place {
            Place::Candidate => {
                if let Some(candidate) = &mut self.candidate {
                    candidate.held = held;
                }
            }
            Place::Slot { epoch, position } => {
                let epoch = self.epochs.iter_mut().find(|e| e.id == epoch);
                if let Some(epoch) = epoch {
                    epoch.window.slot_mut(position).held = held;
                }
            }
        }
    }

    /// Passes on what is not waited for any more. Both paths were read up to `clock_ns`.
    pub fn poll(&mut self, clock_ns: u64, steps: &mut Vec<Step>, counts: &mut MergeStatistics) {
        let is_due = |c: &Candidate| clock_ns >= c.time_ns + self.window_ns;
        if let Some(candidate) = self.candidate.filter(is_due) {
            self.candidate = None;
            let fitted = self.paths.iter().filter_map(|path| path.fitted_ns);
            // A stream that continues has not started again.
            match fitted
                .max()
                .is_some_and(|fitted| fitted > candidate.time_ns)
            {
                true => expire(candidate, steps, counts),
                false => self.restart(candidate.number, candidate, clock_ns, steps, counts),
            }
        }
        self.advance(clock_ns, false, steps, counts);
        self.settle(clock_ns, counts);
    }

    /// Passes on everything that is held.
    pub fn flush(&mut self, clock_ns: u64, steps: &mut Vec<Step>, counts: &mut MergeStatistics) {
        if let Some(candidate) = self.candidate.take() {
            self.restart(candidate.number, candidate, clock_ns, steps, counts);
        }
        self.advance(clock_ns, true, steps, counts);
    }

    /// Counts the losses of packets whose copies cannot come any more.
    pub fn settle(&mut self, clock_ns: u64, counts: &mut MergeStatistics) {
        let before = clock_ns.saturating_sub(self.window_ns);
        for epoch in &mut self.epochs {
            epoch.window.settle(before, counts);
        }
    }

    /// Notes that the clock of the receive times was set back to `now_ns`. What happened before would
    /// lie in the future, and what is missing since then would be waited for until then.
    pub fn set_back(&mut self, now_ns: u64) {
        let limit = |time_ns: &mut u64| *time_ns = (*time_ns).min(now_ns);
        limit(&mut self.began_ns);
        limit(&mut self.last_ns);
        for epoch in &mut self.epochs {
            limit(&mut epoch.opened_ns);
            epoch.window.set_back(now_ns);
        }
        let candidate = self.candidate.iter_mut().map(|c| &mut c.time_ns);
        let fitted = self.paths.iter_mut().filter_map(|p| p.fitted_ns.as_mut());
        candidate.chain(fitted).for_each(limit);
        self.reordering.set_back(now_ns);
        self.skew.set_back(now_ns);
    }

    /// Returns whether the path has recently brought packets that fit.
    fn is_live(&self, path: usize, clock_ns: u64) -> bool {
        let fitted = self.paths[path].fitted_ns;
        fitted.is_some_and(|at| clock_ns.saturating_sub(at) <= LIVENESS_NS)
    }

    fn note_fitted(&mut self, arrival: NumberedPacket) {
        let path = &mut self.paths[arrival.path];
        path.fitted_ns = Some(arrival.time_ns);
        path.number = Some(arrival.number);
    }

    fn open(&mut self, number: u64, now_ns: u64) {
        self.epochs.push_back(Epoch {
            id: self.next_epoch,
            window: Window::new(ORIGIN, self.bits, self.max_slots),
            opened_ns: now_ns,
            origin: number,
        });
        self.next_epoch = self.next_epoch.wrapping_add(1);
    }

    /// Looks for the epoch of a packet: first in those that its path has reached.
    fn locate(&self, arrival: NumberedPacket) -> Location {
        let has_reached = |e: &Epoch| e.window.span[arrival.path].is_some();
        let reached = self.epochs.iter().rposition(has_reached);
        let mut order: [usize; 2] = [0, 1];
        if reached == Some(1) {
            order.reverse();
        }
        let mut before_first = false;
        for at in order {
            let Some(epoch) = self.epochs.get(at) else {
                continue;
            };
            match self.locate_in(epoch, arrival) {
                Some(Ok(position)) => {
                    return Location::Fits {
                        epoch: at,
                        position,
                    };
                }
                Some(Err(())) => before_first = true,
                None => {}
            }
        }
        match before_first {
            true => Location::BeforeFirst,
            false => Location::Elsewhere,
        }
    }

    /// Returns the position of a packet in an epoch, or an error if it was sent before the first
    /// packet of the epoch.
    fn locate_in(&self, epoch: &Epoch, arrival: NumberedPacket) -> Option<Result<u64, ()>> {
        let NumberedPacket { path, time_ns, .. } = arrival;
        let window = &epoch.window;
        let (slots, max_slots) = window.capacity();
        let highest = window.end().max(ORIGIN + 1) - 1;
        let number_of_highest = epoch.origin.wrapping_add(highest.wrapping_sub(ORIGIN));
        let ahead = distance(number_of_highest, arrival.number, self.bits);
        let position = highest.checked_add_signed(ahead)?;
        if position >= window.end() {
            // A path that was not here before may be ahead by the whole window. On one that was, a
            // large jump is more likely a restart.
            let is_here = window.span[path].is_some() && self.is_live(path, time_ns);
            let limit = match is_here {
                true => slots / 2,
                false => max_slots / 2,
            };
            let skipped = position - window.end();
            return (skipped < limit && skipped <= self.skippable).then_some(Ok(position));
        }
        let is_young = |since: u64| time_ns.saturating_sub(since) <= 2 * self.window_ns;
        if position < window.base() {
            let distance = window.base() - position;
            let is_start = window.has_first() && is_young(epoch.opened_ns);
            return (is_start && distance < slots / 2).then_some(match window.is_untouched() {
                true => Ok(position),
                false => Err(()),
            });
        }
        let slot = window.slot(position);
        let may_come = position >= window.next() || is_young(slot.time_ns);
        may_come.then_some(Ok(position))
    }

    /// Inserts a packet at its position.
    fn insert(
        &mut self,
        at: usize,
        position: u64,
        arrival: NumberedPacket,
        held: u32,
        steps: &mut Vec<Step>,
        counts: &mut MergeStatistics,
    ) -> Fate {
        let NumberedPacket { path, time_ns, .. } = arrival;
        self.note_fitted(arrival);
        let keep_ns = 2 * self.window_ns;
        let Some(epoch) = self.epochs.get_mut(at) else {
            return Fate::Late;
        };
        let id = epoch.id;
        let window = &mut epoch.window;
        if position < window.base() && !window.prepend(position, time_ns) {
            return Fate::Late;
        }
        let is_ahead = position >= window.end();
        if is_ahead {
            let skipped = position - window.end();
            self.skippable = self.skippable.saturating_sub(skipped);
            let (_, max_slots) = window.capacity();
            let first = (position + 1).saturating_sub(max_slots);
            if first > window.next() {
                counts.limited += 1;
                give_up_to(window, first, steps, counts);
            }
            window.extend(position, time_ns, keep_ns, counts);
        }
        let slot = window.slot(position);
        let is_reordered = window.span[path].is_some_and(|(_, highest)| position < highest);
        let is_new_on_path = slot.seen & 1 << path == 0;
        if is_reordered && is_new_on_path {
            let delay_ns = time_ns.saturating_sub(slot.time_ns);
            self.reordering.note(delay_ns, time_ns);
        }
        let fate = match slot.state {
            SlotState::Missing => {
                *window.slot_mut(position) = WindowSlot {
                    time_ns,
                    held,
                    state: SlotState::Held,
                    seen: slot.seen,
                };
                Fate::Held(Place::Slot {
                    epoch: id,
                    position,
                })
            }
            SlotState::Held | SlotState::Passed => {
                if is_new_on_path {
                    self.skew.note(time_ns.abs_diff(slot.time_ns), time_ns);
                    let delay_ns = time_ns as i64 - slot.time_ns as i64;
                    counts.note_skew(if path == 1 { delay_ns } else { -delay_ns });
                }
                Fate::Duplicate
            }
            SlotState::GivenUp => Fate::Late,
        };
        window.note_path(path, position);
        fate
    }

    /// Takes a packet whose number fits nowhere.
    fn suspect_restart(
        &mut self,
        arrival: NumberedPacket,
        steps: &mut Vec<Step>,
        counts: &mut MergeStatistics,
    ) -> Fate {
        let NumberedPacket {
            path,
            number,
            time_ns,
            clock_ns,
            ..
        } = arrival;
        let last = self.paths[path].number.replace(number);
        let continues = last.is_some_and(|last| {
            let ahead = distance(last, number, self.bits);
            (1..=CONFIRMING_DISTANCE).contains(&ahead)
        });
        // While the other path continues, a path that continues too, or that was not here before,
        // is behind by more than the window.
        let is_behind = self.candidate.is_none() && continues || !self.is_live(path, clock_ns);
        if is_behind && self.is_live(1 - path, clock_ns) {
            return Fate::Late;
        }
        let new = Candidate {
            path,
            number,
            time_ns,
            held: CURRENT,
        };
        let Some(first) = self.candidate.take() else {
            self.candidate = Some(new);
            return Fate::Held(Place::Candidate);
        };
        let ahead = distance(first.number, number, self.bits);
        let is_same_packet = ahead == 0 && first.path == path;
        if is_same_packet || ahead.unsigned_abs() > CONFIRMING_DISTANCE.unsigned_abs() {
            expire(first, steps, counts);
            self.candidate = Some(new);
            return Fate::Held(Place::Candidate);
        }
        let lower = match ahead < 0 {
            true => number,
            false => first.number,
        };
        self.restart(lower, first, clock_ns, steps, counts);
        match self.locate(arrival) {
            Location::Fits { epoch, position } => {
                self.insert(epoch, position, arrival, CURRENT, steps, counts)
            }
            Location::BeforeFirst | Location::Elsewhere => Fate::Late,
        }
    }

    /// Begins an epoch at this number, with a packet that was held for it.
    fn restart(
        &mut self,
        number: u64,
        first: Candidate,
        clock_ns: u64,
        steps: &mut Vec<Step>,
        counts: &mut MergeStatistics,
    ) {
        while self.epochs.len() > 1 {
            self.close_first(steps, counts);
        }
        let outage = self.epochs.back().map(|epoch| {
            let after = epoch.window.end().wrapping_sub(ORIGIN);
            distance(epoch.origin.wrapping_add(after), number, self.bits)
        });
        match outage {
            Some(lost @ 1..=MAX_OUTAGE) if self.bits >= 32 => {
                counts.lost_on_both += lost as u64;
                counts.lost.iter_mut().for_each(|path| *path += lost as u64);
            }
            _ => counts.restarts += 1,
        }
        self.open(number, first.time_ns.max(clock_ns));
        let Some(at) = self.epochs.len().checked_sub(1) else {
            return;
        };
        let ahead = distance(number, first.number, self.bits).max(0) as u64;
        let arrival = NumberedPacket {
            path: first.path,
            number: first.number,
            time_ns: first.time_ns,
            clock_ns,
            is_full: false,
        };
        self.insert(at, ORIGIN + ahead, arrival, first.held, steps, counts);
    }

    /// Passes on what can be passed on; with `force`, all that is held.
    fn advance(
        &mut self,
        clock_ns: u64,
        force: bool,
        steps: &mut Vec<Step>,
        counts: &mut MergeStatistics,
    ) {
        loop {
            if self.epochs.len() > 1 && (force || self.is_first_finished(clock_ns)) {
                self.close_first(steps, counts);
                continue;
            }
            let Some(epoch) = self.epochs.front() else {
                return;
            };
            let (next, end) = (epoch.window.next(), epoch.window.end());
            if next == end {
                return;
            }
            let slot = epoch.window.slot(next);
            let is_given_up = slot.state == SlotState::Missing
                && (force || self.is_given_up(next, slot.time_ns, clock_ns));
            if slot.state == SlotState::Missing && !is_given_up {
                return;
            }
            if let Some(epoch) = self.epochs.front_mut() {
                give_up_to(&mut epoch.window, next + 1, steps, counts);
            }
        }
    }

    /// Returns whether a packet of the oldest epoch that is missing since `since_ns` will not come.
    fn is_given_up(&mut self, position: u64, since_ns: u64, clock_ns: u64) -> bool {
        let age = clock_ns.saturating_sub(since_ns);
        if age >= self.window_ns {
            return true;
        }
        for path in 0..2 {
            let has_passed = || {
                let epochs = self.epochs.iter().enumerate();
                let mut spans = epochs.filter_map(|(at, e)| Some((at, e.window.span[path]?)));
                spans.any(|(at, (_, highest))| at > 0 || highest > position)
            };
            if self.is_live(path, clock_ns) && !has_passed() {
                return false;
            }
        }
        let is_learning = clock_ns.saturating_sub(self.began_ns) < LEARNING_NS;
        // The clock may be behind the packet after which this one is missing.
        !is_learning && clock_ns >= since_ns && age >= self.reordering.peak(clock_ns)
    }

    /// Returns whether no packet of the oldest epoch is expected, because of a newer epoch.
    fn is_first_finished(&self, clock_ns: u64) -> bool {
        let Some(newer) = self.epochs.get(1) else {
            return false;
        };
        let is_over = clock_ns >= newer.opened_ns + self.window_ns;
        let has_left = |path: usize| newer.window.span[path].is_some();
        is_over || (0..2).all(|path| has_left(path) || !self.is_live(path, clock_ns))
    }

    /// Ends the oldest epoch.
    fn close_first(&mut self, steps: &mut Vec<Step>, counts: &mut MergeStatistics) {
        if let Some(mut epoch) = self.epochs.pop_front() {
            let end = epoch.window.end();
            give_up_to(&mut epoch.window, end, steps, counts);
            epoch.window.settle_to(end, counts);
        }
    }

    /// Counts what was not counted yet, before the stream is forgotten.
    pub fn end(&mut self, steps: &mut Vec<Step>, counts: &mut MergeStatistics) {
        self.flush(self.last_ns, steps, counts);
        while !self.epochs.is_empty() {
            self.close_first(steps, counts);
        }
    }
}

/// The result of [`MergedStream::locate`].
enum Location {
    Fits {
        epoch: usize,
        position: u64,
    },
    /// Before the first packet that was passed on.
    BeforeFirst,
    Elsewhere,
}

/// Passes on what is held before `position`, and gives up what is missing.
fn give_up_to(
    window: &mut Window,
    position: u64,
    steps: &mut Vec<Step>,
    counts: &mut MergeStatistics,
) {
    while window.next() < position.min(window.end()) {
        let slot = window.slot_mut(window.next());
        match slot.state {
            SlotState::Held => {
                slot.state = SlotState::Passed;
                match slot.held {
                    CURRENT => steps.push(Step::Current),
                    NOT_STORED => {}
                    held => steps.push(Step::Held(held)),
                }
            }
            SlotState::Missing => {
                slot.state = SlotState::GivenUp;
                counts.lost_on_both += 1;
            }
            SlotState::Passed | SlotState::GivenUp => {}
        }
        window.advance();
    }
}

/// Drops a packet that was taken for the first one after a restart.
fn expire(candidate: Candidate, steps: &mut Vec<Step>, counts: &mut MergeStatistics) {
    counts.late[candidate.path] += 1;
    if candidate.held != NOT_STORED {
        steps.push(Step::Expired(candidate.held));
    }
}
