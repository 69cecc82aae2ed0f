//! Specific queries of one group: which are sent, how often, and with which S flag (RFC 9776
//! section 6.6.3, RFC 9777 section 7.6.3).

use std::collections::BTreeMap;
use std::time::Instant;

use crate::model::{ClockReading, Group, Source};
use crate::wire::membership_message::Query;

use super::effective_timers::EffectiveTimers;
use super::group_filter::{GroupFilter, RequiredQueries};
use super::query_builder::QueryBuilder;
use super::saved::SavedQueries;

/// The specific queries of one group that are still to be sent.
#[derive(Debug, Default)]
pub(super) struct SpecificQueries {
    /// Group-specific queries still to be sent.
    group_queries_left: u8,
    /// The time of the next group-specific query.
    group_due: Option<Instant>,
    /// Group-and-source-specific queries still to be sent, by source.
    source_queries_left: BTreeMap<Source, u8>,
    /// The time of the next group-and-source-specific query.
    sources_due: Option<Instant>,
}

impl SpecificQueries {
    /// Returns the queries that are still to be sent. None if there are none.
    pub(super) fn saved(&self, clock: &ClockReading) -> Option<SavedQueries> {
        self.next_due()?;
        let group = self.group_due.map(|at| clock.to_boot(at));
        let sources = self.source_queries_left.iter();
        Some(SavedQueries {
            group: group.map(|at| (self.group_queries_left, at)),
            sources: sources.map(|(source, left)| (*source, *left)).collect(),
            sources_due: self.sources_due.map(|at| clock.to_boot(at)),
        })
    }

    /// Returns saved queries, as far as `timers` permit them.
    pub(super) fn restored(
        saved: &SavedQueries,
        clock: &ClockReading,
        timers: &EffectiveTimers,
    ) -> Self {
        let count = timers.last_member_query_count();
        let latest = clock.now + timers.last_member_query_interval();
        let due = |at| clock.to_instant(at).clamp(clock.now, latest);
        let sources = saved.sources.iter();
        Self {
            group_queries_left: saved.group.map_or(0, |(left, _)| left.min(count)),
            group_due: saved.group.map(|(_, at)| due(at)),
            source_queries_left: sources.map(|(s, left)| (*s, (*left).min(count))).collect(),
            sources_due: saved.sources_due.map(due),
        }
    }

    /// Starts the required queries: lowers the timers of `filter`, and appends the queries that
    /// are sent immediately to `out`.
    pub(super) fn start(
        &mut self,
        group: Group,
        required: &RequiredQueries,
        filter: &mut GroupFilter,
        builder: &QueryBuilder<'_>,
        out: &mut Vec<Query>,
    ) {
        if !builder.has_group_queries() {
            return;
        }
        let deadline = builder.last_member_deadline();
        let count = builder.timers.last_member_query_count();
        let mut any_source = false;
        for source in &required.sources {
            if !filter.lower_source_timer(source, deadline) {
                continue;
            }
            any_source = true;
            if builder.has_source_queries() {
                self.source_queries_left.insert(*source, count);
            } else {
                self.source_queries_left.remove(source);
            }
        }
        // An older generation queries the group instead of its sources.
        let instead_of_sources = any_source && !builder.has_source_queries();
        let group_due =
            (required.group && self.needs_group_query(filter, deadline)) || instead_of_sources;
        if group_due {
            filter.lower_group_timer(deadline);
            self.group_queries_left = count;
        }
        let sources_due = any_source && builder.has_source_queries();
        self.send(group, group_due, sources_due, filter, builder, out);
    }

    /// Returns false if the group is being queried already. A repeated leave then causes no
    /// further query.
    fn needs_group_query(&self, filter: &GroupFilter, deadline: Instant) -> bool {
        let is_lowered = filter.group_timer().is_some_and(|at| at <= deadline);
        !(is_lowered && self.group_queries_left > 0)
    }

    /// Appends the queries whose repetition is due to `out`.
    pub(super) fn repeat(
        &mut self,
        group: Group,
        filter: &GroupFilter,
        builder: &QueryBuilder<'_>,
        out: &mut Vec<Query>,
    ) {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= builder.now);
        let (group_due, sources_due) = (is_due(self.group_due), is_due(self.sources_due));
        self.send(group, group_due, sources_due, filter, builder, out);
    }

    fn send(
        &mut self,
        group: Group,
        group_due: bool,
        sources_due: bool,
        filter: &GroupFilter,
        builder: &QueryBuilder<'_>,
        out: &mut Vec<Query>,
    ) {
        let deadline = builder.last_member_deadline();
        let is_refreshed = |timer: Option<Instant>| timer.is_some_and(|at| at > deadline);
        if group_due {
            let suppress = is_refreshed(filter.group_timer());
            out.push(builder.specific_query(group, suppress, Vec::new()));
            self.group_queries_left = self.group_queries_left.saturating_sub(1);
            let is_last = self.group_queries_left == 0;
            self.group_due = (!is_last).then(|| builder.next_repetition());
        }
        if sources_due {
            let (refreshed, waiting): (Vec<Source>, Vec<Source>) = self
                .source_queries_left
                .keys()
                .partition(|source| is_refreshed(filter.source_timer(source)));
            self.source_queries_left.retain(|_, left| {
                *left = left.saturating_sub(1);
                *left > 0
            });
            let is_last = self.source_queries_left.is_empty();
            self.sources_due = (!is_last).then(|| builder.next_repetition());
            // Section 6.6.3.2: the message with the S flag is omitted if a group-specific query
            // is sent at the same time.
            if !refreshed.is_empty() && !group_due {
                out.push(builder.specific_query(group, true, refreshed));
            }
            if !waiting.is_empty() {
                out.push(builder.specific_query(group, false, waiting));
            }
        }
    }

    /// Returns the time at which [`repeat`](Self::repeat) is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.group_due.into_iter().chain(self.sources_due).min()
    }

    /// Cancels all queries, for instance because this router is no longer the querier.
    pub(super) fn cancel_all(&mut self) {
        *self = Self::default();
    }

    /// Cancels the group-specific queries.
    pub(super) fn cancel_group(&mut self) {
        (self.group_queries_left, self.group_due) = (0, None);
    }

    /// Cancels the queries for one source.
    pub(super) fn cancel_source(&mut self, source: &Source) {
        self.source_queries_left.remove(source);
    }

    /// Cancels the queries for the sources whose timers have ended in `filter`.
    pub(super) fn cancel_ended_sources(&mut self, filter: &GroupFilter) {
        self.source_queries_left
            .retain(|source, _| filter.source_timer(source).is_some());
        if self.source_queries_left.is_empty() {
            self.sources_due = None;
        }
    }
}
