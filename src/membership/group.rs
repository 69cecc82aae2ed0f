//! The state of one group on one interface: filter mode, source and group timers, and the
//! tables that say how records change them (RFC 9776 sections 6.2 to 6.5).
//!
//! In the RFC's words: INCLUDE (A) is no group timer and A the sources; EXCLUDE (X, Y) is a
//! running group timer, X the sources whose timers run, Y those whose timers ran out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::model::{Group, Source, SourceFilter};
use crate::wire::group_message::{Generation, RecordType};

use super::host_tracker::HostTracker;
use super::quota::Place;
use super::status::{GroupStatus, SourceStatus};

/// One source of a group.
#[derive(Debug, Clone, Copy)]
pub(super) struct SourceState {
    /// The source timer; none where it ran out.
    pub(super) until: Option<Instant>,
    /// How many specific queries are still to ask for it.
    pub(super) asks: u8,
    spared: Spared,
}

/// A timer that ran out while answers may have been lost, and goes on for another round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Spared {
    /// What it was set to. Where it says something else now, a host was heard since.
    until: Option<Instant>,
    times: u8,
}

impl Spared {
    /// How often a timer is spared in a row: more would keep alive for ever what is gone, for as
    /// long as somebody floods us.
    const MOST: u8 = 3;

    fn spare(&mut self, timer: &mut Option<Instant>, now: Instant, until: Instant) {
        if timer.is_none_or(|at| at > now) {
            return;
        }
        if self.until != *timer {
            *self = Self::default();
        }
        if self.times < Self::MOST && until > now {
            *timer = Some(until);
            (self.until, self.times) = (*timer, self.times + 1);
        }
    }
}

/// What applies to a record besides itself.
pub(super) struct Terms {
    pub(super) now: Instant,
    /// The group membership interval.
    pub(super) interval: Duration,
    /// How many sources a group may have.
    pub(super) sources: usize,
}

/// What the last column of the tables asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Send {
    /// `Send Q(G)`.
    pub(super) group: bool,
    /// `Send Q(G, …)`.
    pub(super) sources: Vec<Source>,
}

/// One group.
#[derive(Debug)]
pub(super) struct GroupState {
    /// The group timer; running means EXCLUDE.
    pub(super) exclude_until: Option<Instant>,
    spared: Spared,
    pub(super) sources: BTreeMap<Source, SourceState>,
    /// Hosts of generation one and two are present until then.
    older: [Option<Instant>; 2],
    /// How many specific queries are still to ask for the group, and when.
    pub(super) group_asks: u8,
    pub(super) group_ask_at: Option<Instant>,
    /// When the sources with asks left are asked for again.
    pub(super) sources_ask_at: Option<Instant>,
    /// No timer of the group runs out before this.
    pub(super) wake: Option<Instant>,
    /// What was forwarded before the changes nobody was told of yet.
    pub(super) before: Option<SourceFilter>,
    pub(super) last_reporter: IpAddr,
    /// New sources that found no room.
    overflow: u32,
    /// The place it takes.
    pub(super) place: Place,
    /// Which host wants what, where hosts are tracked.
    pub(super) tracker: Option<Box<HostTracker>>,
}

impl GroupState {
    pub(super) fn new(from: IpAddr) -> Self {
        Self {
            exclude_until: None,
            spared: Spared::default(),
            sources: BTreeMap::new(),
            older: [None; 2],
            group_asks: 0,
            group_ask_at: None,
            sources_ask_at: None,
            wake: None,
            before: None,
            last_reporter: from,
            overflow: 0,
            place: Place::Common,
            tracker: None,
        }
    }

    /// Nobody wants anything.
    pub(super) fn is_gone(&self) -> bool {
        self.exclude_until.is_none() && self.sources.is_empty()
    }

    /// What is forwarded (section 6.3).
    pub(super) fn filter(&self) -> SourceFilter {
        match self.exclude_until {
            None => SourceFilter::Include(self.sources.keys().copied().collect()),
            Some(_) => {
                let out = self.sources.iter().filter(|(_, s)| s.until.is_none());
                SourceFilter::Exclude(out.map(|(source, _)| *source).collect())
            }
        }
    }

    /// The group compatibility mode (section 7.3.2).
    pub(super) fn generation(&self, now: Instant, spoken: Generation) -> Generation {
        let present = |at: Option<Instant>| at.is_some_and(|at| at > now);
        let mode = match self.older {
            [one, _] if present(one) => Generation::One,
            [_, two] if present(two) => Generation::Two,
            _ => Generation::Three,
        };
        mode.min(spoken)
    }

    /// A host of an older generation reported.
    pub(super) fn older_host(&mut self, generation: Generation, until: Instant) {
        match generation {
            Generation::One => self.older[0] = Some(until),
            Generation::Two => self.older[1] = Some(until),
            Generation::Three => {}
        }
    }

    pub(super) fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |w| w.min(at)));
    }

    /// To be called before what is forwarded changes.
    fn touch(&mut self) {
        if self.before.is_none() {
            self.before = Some(self.filter());
        }
    }

    /// Sets the timer of a source, which is added where it is new and there is room.
    fn set(&mut self, source: Source, until: Instant, terms: &Terms) {
        let exclude = self.exclude_until.is_some();
        match self.sources.get(&source).map(|s| s.until) {
            Some(Some(_)) => {}
            Some(None) => self.touch(),
            None if self.sources.len() >= terms.sources => {
                self.overflow += 1;
                return;
            }
            None if exclude => {}
            None => self.touch(),
        }
        let state = self.sources.entry(source);
        let state = state.or_insert(SourceState {
            until: None,
            asks: 0,
            spared: Spared::default(),
        });
        state.until = Some(until);
        self.wake_at(until);
    }

    /// Deletes every source that is not of these.
    fn keep(&mut self, kept: &BTreeSet<Source>) {
        let exclude = self.exclude_until.is_some();
        let gone = |(source, state): (&Source, &SourceState)| {
            !kept.contains(source) && (!exclude || state.until.is_none())
        };
        if self.sources.iter().any(gone) {
            self.touch();
        }
        self.sources.retain(|source, _| kept.contains(source));
    }

    /// Applies a record as the tables of sections 6.4.1 and 6.4.2 say.
    pub(super) fn apply(
        &mut self,
        kind: RecordType,
        named: &BTreeSet<Source>,
        terms: &Terms,
    ) -> Send {
        match self.exclude_until {
            None => self.apply_in_include(kind, named, terms),
            Some(timer) => self.apply_in_exclude(kind, named, timer, terms),
        }
    }

    fn apply_in_include(
        &mut self,
        kind: RecordType,
        named: &BTreeSet<Source>,
        terms: &Terms,
    ) -> Send {
        use RecordType::{
            AllowNewSources, BlockOldSources, ChangeToExclude, ChangeToInclude, ModeIsExclude,
            ModeIsInclude,
        };
        let until = terms.now + terms.interval;
        let mut send = Send::default();
        match kind {
            ModeIsInclude | AllowNewSources => {
                named.iter().for_each(|s| self.set(*s, until, terms));
            }
            ChangeToInclude => {
                send.sources = self.sources_without(named, |_| true);
                named.iter().for_each(|s| self.set(*s, until, terms));
            }
            BlockOldSources => {
                let known = named.iter().filter(|s| self.sources.contains_key(s));
                send.sources = known.copied().collect();
            }
            ModeIsExclude | ChangeToExclude => {
                self.touch();
                self.keep(named);
                if kind == ChangeToExclude {
                    send.sources = self.sources.keys().copied().collect();
                }
                self.exclude_until = Some(until);
                self.wake_at(until);
                for source in named {
                    self.add_out(*source, terms);
                }
            }
        }
        send
    }

    fn apply_in_exclude(
        &mut self,
        kind: RecordType,
        named: &BTreeSet<Source>,
        timer: Instant,
        terms: &Terms,
    ) -> Send {
        use RecordType::{
            AllowNewSources, BlockOldSources, ChangeToExclude, ChangeToInclude, ModeIsExclude,
            ModeIsInclude,
        };
        let until = terms.now + terms.interval;
        let mut send = Send::default();
        match kind {
            ModeIsInclude | AllowNewSources => {
                named.iter().for_each(|s| self.set(*s, until, terms));
            }
            ChangeToInclude => {
                send.sources = self.sources_without(named, |s| s.until.is_some());
                send.group = true;
                named.iter().for_each(|s| self.set(*s, until, terms));
            }
            BlockOldSources => {
                self.add_running(named, timer, terms);
                send.sources = self.running(named);
            }
            ModeIsExclude | ChangeToExclude => {
                self.keep(named);
                let fresh = if kind == ModeIsExclude { until } else { timer };
                self.add_running(named, fresh, terms);
                if kind == ChangeToExclude {
                    send.sources = self.running(named);
                }
                self.exclude_until = Some(until);
                self.wake_at(until);
            }
        }
        send
    }

    /// Adds those that are new, with a running timer.
    fn add_running(&mut self, named: &BTreeSet<Source>, until: Instant, terms: &Terms) {
        for source in named {
            if !self.sources.contains_key(source) {
                self.set(*source, until, terms);
            }
        }
    }

    /// Adds a source that is not forwarded, where it is new and there is room.
    fn add_out(&mut self, source: Source, terms: &Terms) {
        if self.sources.contains_key(&source) {
        } else if self.sources.len() >= terms.sources {
            self.overflow += 1;
        } else {
            let state = SourceState {
                until: None,
                asks: 0,
                spared: Spared::default(),
            };
            self.sources.insert(source, state);
        }
    }

    /// Those of the named whose timer runs.
    fn running(&self, named: &BTreeSet<Source>) -> Vec<Source> {
        let runs = |s: &&Source| self.sources.get(s).is_some_and(|s| s.until.is_some());
        named.iter().filter(runs).copied().collect()
    }

    fn sources_without(
        &self,
        named: &BTreeSet<Source>,
        of: impl Fn(&SourceState) -> bool,
    ) -> Vec<Source> {
        let rest = self.sources.iter();
        let rest = rest.filter(|(source, state)| !named.contains(source) && of(state));
        rest.map(|(source, _)| *source).collect()
    }

    /// What ran out goes on until then: an answer may have been lost before we had it.
    pub(super) fn spare(&mut self, now: Instant, until: Instant) {
        self.spared.spare(&mut self.exclude_until, now, until);
        for state in self.sources.values_mut() {
            state.spared.spare(&mut state.until, now, until);
        }
    }

    /// Ends what ran out (sections 6.3 and 6.5).
    pub(super) fn expire(&mut self, now: Instant) {
        let over = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let group_over = over(self.exclude_until);
        let include = self.exclude_until.is_none() || group_over;
        if group_over || self.sources.values().any(|s| over(s.until)) {
            self.touch();
        }
        if group_over {
            self.exclude_until = None;
            self.group_asks = 0;
            self.group_ask_at = None;
        }
        self.sources.retain(|_, state| {
            if over(state.until) {
                state.until = None;
                state.asks = 0;
            }
            !include || state.until.is_some()
        });
        if self.sources.values().all(|s| s.asks == 0) {
            self.sources_ask_at = None;
        }
        if let Some(tracker) = &mut self.tracker {
            tracker.expire(now);
        }
    }

    /// Ends the timers of these sources, and where asked the EXCLUDE mode.
    pub(super) fn give_up(&mut self, sources: &[Source], group: bool) {
        if sources.is_empty() && !group {
            return;
        }
        self.touch();
        for source in sources {
            if let Some(state) = self.sources.get_mut(source) {
                (state.until, state.asks) = (None, 0);
            }
        }
        if group {
            self.exclude_until = None;
            (self.group_asks, self.group_ask_at) = (0, None);
        }
        if self.exclude_until.is_none() {
            self.sources.retain(|_, state| state.until.is_some());
        }
    }

    /// Adds a source that was forgotten; one that is known keeps its timer.
    pub(super) fn restore(&mut self, source: Source, until: Instant) {
        if !self.sources.contains_key(&source) {
            self.touch();
            let state = SourceState {
                until: Some(until),
                asks: 0,
                spared: Spared::default(),
            };
            self.sources.insert(source, state);
            self.wake_at(until);
        }
    }

    /// Ends all.
    pub(super) fn clear(&mut self) {
        self.touch();
        self.exclude_until = None;
        self.sources.clear();
    }

    /// How many hosts and sources of theirs are tracked.
    pub(super) fn tracked(&self) -> usize {
        self.tracker.as_ref().map_or(0, |t| t.size())
    }

    /// How many new sources found no room since this was last asked.
    pub(super) fn take_overflow(&mut self) -> u32 {
        std::mem::take(&mut self.overflow)
    }

    /// Finds when the next timer runs out.
    pub(super) fn find_wake(&mut self) {
        let sources = self.sources.values().filter_map(|s| s.until);
        let others = [
            self.exclude_until,
            self.group_ask_at,
            self.sources_ask_at,
            self.tracker.as_ref().and_then(|t| t.next_expiry()),
        ];
        self.wake = sources.chain(others.into_iter().flatten()).min();
    }

    /// Shortens the group timer, never lengthens it.
    pub(super) fn lower_group(&mut self, until: Instant) -> bool {
        match self.exclude_until.filter(|at| *at > until) {
            Some(_) => {
                self.exclude_until = Some(until);
                self.wake_at(until);
                true
            }
            None => false,
        }
    }

    /// Shortens source timers; true for each that was longer.
    pub(super) fn lower_source(&mut self, source: &Source, until: Instant, asks: u8) -> bool {
        let state = self.sources.get_mut(source);
        let Some(state) = state.filter(|s| s.until.is_some_and(|at| at > until)) else {
            return false;
        };
        state.until = Some(until);
        state.asks = asks;
        self.wake_at(until);
        true
    }

    pub(super) fn view(&self, now: Instant, group: Group, spoken: Generation) -> GroupStatus {
        let left = |at: Instant| at.saturating_duration_since(now);
        GroupStatus {
            group,
            filter: self.filter(),
            group_timer: self.exclude_until.map(left),
            sources: self
                .sources
                .iter()
                .map(|(source, state)| SourceStatus {
                    source: *source,
                    source_timer: state.until.map(left),
                })
                .collect(),
            generation: self.generation(now, spoken),
            reporters: self.tracker.iter().flat_map(|t| t.hosts()).collect(),
            last_reporter: self.last_reporter,
        }
    }
}
