//! Filter mode, group timer and source timers of one group, and the tables that define how
//! records change them (RFC 9776 sections 6.2 to 6.5, RFC 9777 sections 7.2 to 7.5).
//!
//! In the notation of the RFC: INCLUDE (A) is a filter without group timer, with the sources A.
//! EXCLUDE (X, Y) is a filter with a running group timer; X are the sources whose timers run, Y
//! the sources whose timers have expired.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::model::{Source, SourceFilter};
use crate::wire::membership_message::RecordType;

/// One source of a group.
#[derive(Debug, Clone, Copy, Default)]
struct SourceRecord {
    /// The source timer. None if it has expired.
    timer: Option<Instant>,
    grace: GracePeriod,
}

/// The extension of an expired timer, granted while reports may have been lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct GracePeriod {
    /// The value that the timer was extended to. If the timer has another value now, a report
    /// has set it since.
    extended_to: Option<Instant>,
    /// Extensions without a report in between.
    extensions: u8,
}

impl GracePeriod {
    /// Maximum number of extensions in a row. Without a limit, a flood of messages would keep an
    /// ended membership alive forever.
    const MAX_EXTENSIONS: u8 = 3;

    /// Extends `timer` to `until` if it has expired and the limit allows it.
    fn extend(&mut self, timer: &mut Option<Instant>, now: Instant, until: Instant) {
        if timer.is_none_or(|at| at > now) {
            return;
        }
        if self.extended_to != *timer {
            *self = Self::default();
        }
        if self.extensions < Self::MAX_EXTENSIONS && until > now {
            *timer = Some(until);
            (self.extended_to, self.extensions) = (*timer, self.extensions + 1);
        }
    }
}

/// The parameters that a record is applied with.
pub(super) struct RecordContext {
    pub(super) now: Instant,
    pub(super) group_membership_interval: Duration,
    /// Maximum number of sources of the group.
    pub(super) max_sources: usize,
}

/// The queries that the last column of the RFC's tables demands.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct RequiredQueries {
    /// `Send Q(G)`.
    pub(super) group: bool,
    /// `Send Q(G, sources)`. Empty if no such query is demanded.
    pub(super) sources: Vec<Source>,
}

/// The filter of one group on one interface.
#[derive(Debug, Default)]
pub(super) struct GroupFilter {
    /// The group timer. It runs in EXCLUDE mode; in INCLUDE mode it is None.
    group_timer: Option<Instant>,
    group_grace: GracePeriod,
    sources: BTreeMap<Source, SourceRecord>,
    /// A lower bound of all running timers.
    next_expiry: Option<Instant>,
    /// The forwarded sources before the changes that have not been collected yet.
    previous: Option<SourceFilter>,
    /// New sources refused by the limit and not collected yet.
    refused_sources: u32,
}

impl GroupFilter {
    /// Returns a filter with these timers. A source without a timer is not forwarded in EXCLUDE
    /// mode, and is omitted in INCLUDE mode.
    pub(super) fn with_timers(
        group_timer: Option<Instant>,
        sources: impl IntoIterator<Item = (Source, Option<Instant>)>,
    ) -> Self {
        let record = |timer| SourceRecord {
            timer,
            ..SourceRecord::default()
        };
        let is_kept = |timer: Option<Instant>| group_timer.is_some() || timer.is_some();
        let sources = sources.into_iter().filter(|(_, timer)| is_kept(*timer));
        let sources: BTreeMap<_, _> = sources.map(|(s, timer)| (s, record(timer))).collect();
        let timers = sources.values().filter_map(|s| s.timer).chain(group_timer);
        Self {
            group_timer,
            next_expiry: timers.min(),
            sources,
            previous: Some(SourceFilter::none()),
            ..Self::default()
        }
    }

    /// Returns true if no host is a member.
    pub(super) fn is_empty(&self) -> bool {
        self.group_timer.is_none() && self.sources.is_empty()
    }

    /// Returns the group timer. None in INCLUDE mode.
    pub(super) fn group_timer(&self) -> Option<Instant> {
        self.group_timer
    }

    /// Returns the timer of a source. None if it has expired, or the source is not stored.
    pub(super) fn source_timer(&self, source: &Source) -> Option<Instant> {
        self.sources.get(source)?.timer
    }

    /// Returns every stored source with its timer, lowest first.
    pub(super) fn sources(&self) -> impl Iterator<Item = (Source, Option<Instant>)> {
        self.sources.iter().map(|(s, record)| (*s, record.timer))
    }

    /// Returns the number of stored sources.
    pub(super) fn source_count(&self) -> usize {
        self.sources.len()
    }

    /// Returns a time at or before the expiry of the first timer. None if no timer runs.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.next_expiry
    }

    /// Returns the sources to forward (section 6.3).
    pub(super) fn source_filter(&self) -> SourceFilter {
        match self.group_timer {
            None => SourceFilter::Include(self.sources.keys().copied().collect()),
            Some(_) => {
                let expired = self.sources.iter().filter(|(_, s)| s.timer.is_none());
                SourceFilter::Exclude(expired.map(|(source, _)| *source).collect())
            }
        }
    }

    /// Returns the forwarded sources before the first change since the last call. None if
    /// nothing has changed.
    pub(super) fn take_previous(&mut self) -> Option<SourceFilter> {
        self.previous.take()
    }

    /// Returns the number of new sources refused by the limit since the last call.
    pub(super) fn take_refused_sources(&mut self) -> u32 {
        std::mem::take(&mut self.refused_sources)
    }

    /// Applies a record as the tables of sections 6.4.1 and 6.4.2 define. `named` are the
    /// sources of the record.
    pub(super) fn apply(
        &mut self,
        record_type: RecordType,
        named: &BTreeSet<Source>,
        context: &RecordContext,
    ) -> RequiredQueries {
        match self.group_timer {
            None => self.apply_in_include(record_type, named, context),
            Some(group_timer) => self.apply_in_exclude(record_type, named, group_timer, context),
        }
    }

    fn apply_in_include(
        &mut self,
        record_type: RecordType,
        named: &BTreeSet<Source>,
        context: &RecordContext,
    ) -> RequiredQueries {
        use RecordType::{
            AllowNewSources, BlockOldSources, ChangeToExclude, ChangeToInclude, ModeIsExclude,
            ModeIsInclude,
        };
        let refreshed = context.now + context.group_membership_interval;
        let mut required = RequiredQueries::default();
        match record_type {
            ModeIsInclude | AllowNewSources => {
                self.set_source_timers(named, refreshed, context);
            }
            ChangeToInclude => {
                required.sources = self.sources_except(named, |_| true);
                self.set_source_timers(named, refreshed, context);
            }
            BlockOldSources => {
                let known = named.iter().filter(|s| self.sources.contains_key(s));
                required.sources = known.copied().collect();
            }
            ModeIsExclude | ChangeToExclude => {
                self.note_change();
                self.retain_sources(named);
                if record_type == ChangeToExclude {
                    required.sources = self.sources.keys().copied().collect();
                }
                self.group_timer = Some(refreshed);
                self.note_timer(refreshed);
                for source in named {
                    self.add_excluded_source(*source, context);
                }
            }
        }
        required
    }

    fn apply_in_exclude(
        &mut self,
        record_type: RecordType,
        named: &BTreeSet<Source>,
        group_timer: Instant,
        context: &RecordContext,
    ) -> RequiredQueries {
        use RecordType::{
            AllowNewSources, BlockOldSources, ChangeToExclude, ChangeToInclude, ModeIsExclude,
            ModeIsInclude,
        };
        let refreshed = context.now + context.group_membership_interval;
        let mut required = RequiredQueries::default();
        match record_type {
            ModeIsInclude | AllowNewSources => {
                self.set_source_timers(named, refreshed, context);
            }
            ChangeToInclude => {
                required.sources = self.sources_except(named, |s| s.timer.is_some());
                required.group = true;
                self.set_source_timers(named, refreshed, context);
            }
            BlockOldSources => {
                self.add_new_sources(named, group_timer, context);
                required.sources = self.running_sources(named);
            }
            ModeIsExclude | ChangeToExclude => {
                self.retain_sources(named);
                let timer_of_new = match record_type {
                    ModeIsExclude => refreshed,
                    _ => group_timer,
                };
                self.add_new_sources(named, timer_of_new, context);
                if record_type == ChangeToExclude {
                    required.sources = self.running_sources(named);
                }
                self.group_timer = Some(refreshed);
                self.note_timer(refreshed);
            }
        }
        required
    }

    /// Stores the forwarded sources for [`take_previous`](Self::take_previous). Must be called
    /// before each change of them.
    fn note_change(&mut self) {
        if self.previous.is_none() {
            self.previous = Some(self.source_filter());
        }
    }

    /// Lowers [`next_expiry`](Self::next_expiry) to a timer that has been set.
    fn note_timer(&mut self, at: Instant) {
        self.next_expiry = Some(self.next_expiry.map_or(at, |next| next.min(at)));
    }

    /// Sets the timers of the named sources. Adds the new ones as far as the limit allows.
    fn set_source_timers(
        &mut self,
        named: &BTreeSet<Source>,
        until: Instant,
        context: &RecordContext,
    ) {
        for source in named {
            self.set_source_timer(*source, until, context);
        }
    }

    fn set_source_timer(&mut self, source: Source, until: Instant, context: &RecordContext) {
        let is_exclude = self.group_timer.is_some();
        match self.sources.get(&source).map(|s| s.timer) {
            Some(Some(_)) => {}
            Some(None) => self.note_change(),
            None if self.sources.len() >= context.max_sources => {
                self.refused_sources += 1;
                return;
            }
            None if is_exclude => {}
            None => self.note_change(),
        }
        self.sources.entry(source).or_default().timer = Some(until);
        self.note_timer(until);
    }

    /// Adds the named sources that are not stored yet, with a running timer.
    fn add_new_sources(
        &mut self,
        named: &BTreeSet<Source>,
        until: Instant,
        context: &RecordContext,
    ) {
        for source in named {
            if !self.sources.contains_key(source) {
                self.set_source_timer(*source, until, context);
            }
        }
    }

    /// Adds a source without a timer, so that it is not forwarded in EXCLUDE mode.
    fn add_excluded_source(&mut self, source: Source, context: &RecordContext) {
        if self.sources.contains_key(&source) {
        } else if self.sources.len() >= context.max_sources {
            self.refused_sources += 1;
        } else {
            self.sources.insert(source, SourceRecord::default());
        }
    }

    /// Deletes the sources that are not in `kept`.
    fn retain_sources(&mut self, kept: &BTreeSet<Source>) {
        let is_exclude = self.group_timer.is_some();
        let changes_filter = |(source, record): (&Source, &SourceRecord)| {
            !kept.contains(source) && (!is_exclude || record.timer.is_none())
        };
        if self.sources.iter().any(changes_filter) {
            self.note_change();
        }
        self.sources.retain(|source, _| kept.contains(source));
    }

    /// Returns the named sources whose timer runs.
    fn running_sources(&self, named: &BTreeSet<Source>) -> Vec<Source> {
        let is_running = |s: &&Source| self.source_timer(s).is_some();
        named.iter().filter(is_running).copied().collect()
    }

    /// Returns the stored sources that are not named and satisfy `predicate`.
    fn sources_except(
        &self,
        named: &BTreeSet<Source>,
        predicate: impl Fn(&SourceRecord) -> bool,
    ) -> Vec<Source> {
        let unnamed = self.sources.iter();
        let unnamed =
            unnamed.filter(|(source, record)| !named.contains(source) && predicate(record));
        unnamed.map(|(source, _)| *source).collect()
    }

    /// Shortens the group timer to `until`. A shorter timer stays as it is.
    pub(super) fn lower_group_timer(&mut self, until: Instant) {
        if self.group_timer.is_some_and(|at| at > until) {
            self.group_timer = Some(until);
            self.note_timer(until);
        }
    }

    /// Shortens the timer of a source to `until`. Returns false if the timer is shorter, or does
    /// not run.
    pub(super) fn lower_source_timer(&mut self, source: &Source, until: Instant) -> bool {
        let record = self.sources.get_mut(source);
        let Some(record) = record.filter(|s| s.timer.is_some_and(|at| at > until)) else {
            return false;
        };
        record.timer = Some(until);
        self.note_timer(until);
        true
    }

    /// Extends the expired timers to `until`, because a report may have been lost.
    pub(super) fn extend_expired(&mut self, now: Instant, until: Instant) {
        self.group_grace.extend(&mut self.group_timer, now, until);
        for record in self.sources.values_mut() {
            record.grace.extend(&mut record.timer, now, until);
        }
    }

    /// Handles expired timers (sections 6.3 and 6.5). Returns true if the group timer expired.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let is_expired = |timer: Option<Instant>| timer.is_some_and(|at| at <= now);
        let group_expired = is_expired(self.group_timer);
        if group_expired || self.sources.values().any(|s| is_expired(s.timer)) {
            self.note_change();
        }
        if group_expired {
            self.group_timer = None;
        }
        let is_include = self.group_timer.is_none();
        self.sources.retain(|_, record| {
            record.timer = record.timer.filter(|at| *at > now);
            !is_include || record.timer.is_some()
        });
        let sources = self.sources.values().filter_map(|s| s.timer);
        self.next_expiry = sources.chain(self.group_timer).min();
        group_expired
    }

    /// Ends the timers of `sources` and, if `end_exclude`, the EXCLUDE mode.
    pub(super) fn end_timers(&mut self, sources: &[Source], end_exclude: bool) {
        if sources.is_empty() && !end_exclude {
            return;
        }
        self.note_change();
        for source in sources {
            if let Some(record) = self.sources.get_mut(source) {
                record.timer = None;
            }
        }
        if end_exclude {
            self.group_timer = None;
        }
        if self.group_timer.is_none() {
            self.sources.retain(|_, record| record.timer.is_some());
        }
    }

    /// Adds a source with a timer. A source that is stored already keeps its timer.
    pub(super) fn restore_source(&mut self, source: Source, until: Instant) {
        if !self.sources.contains_key(&source) {
            self.note_change();
            let record = SourceRecord {
                timer: Some(until),
                ..SourceRecord::default()
            };
            self.sources.insert(source, record);
            self.note_timer(until);
        }
    }

    /// Ends all memberships.
    pub(super) fn clear(&mut self) {
        self.note_change();
        self.group_timer = None;
        self.sources.clear();
    }
}
