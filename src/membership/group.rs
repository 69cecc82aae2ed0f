//! State of one group on one interface (RFC 9776 sections 6.2 to 6.6, RFC 9777 sections 7.2 to
//! 7.6).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use crate::model::{BootTime, ClockReading, Group, Source, SourceFilter};
use crate::wire::membership_message::{Generation, Query, RecordType};

use super::effective_timers::EffectiveTimers;
use super::group_filter::{GroupFilter, RecordContext, RequiredQueries};
use super::host_tracker::HostTracker;
use super::query_builder::QueryBuilder;
use super::quota::QuotaSlot;
use super::received_record::ReceivedRecord;
use super::saved::SavedGroup;
use super::specific_queries::SpecificQueries;
use super::status::{GroupStatus, SourceStatus};

/// One group: its filter, the specific queries still to be sent, its compatibility mode and,
/// with `fast_leave`, its hosts.
#[derive(Debug)]
pub(super) struct GroupState {
    filter: GroupFilter,
    queries: SpecificQueries,
    /// Hosts of the first generation are considered present until this time.
    first_generation_until: Option<Instant>,
    /// Hosts of the second generation are considered present until this time.
    second_generation_until: Option<Instant>,
    last_reporter: IpAddr,
    slot: QuotaSlot,
    tracker: Option<Box<HostTracker>>,
}

impl GroupState {
    /// Creates a group without members, which occupies `slot`.
    pub(super) fn new(reporter: IpAddr, slot: QuotaSlot) -> Self {
        Self {
            filter: GroupFilter::default(),
            queries: SpecificQueries::default(),
            first_generation_until: None,
            second_generation_until: None,
            last_reporter: reporter,
            slot,
            tracker: None,
        }
    }

    /// Returns this group, whose address is `group`, as data. Tracked hosts are not part of it.
    pub(super) fn saved(&self, clock: &ClockReading, group: Group) -> SavedGroup {
        let to_boot = |at: Option<Instant>| at.map(|at| clock.to_boot(at));
        let sources = self.filter.sources();
        let older_hosts = [self.first_generation_until, self.second_generation_until];
        SavedGroup {
            group,
            group_timer: to_boot(self.filter.group_timer()),
            sources: sources.map(|(s, timer)| (s, to_boot(timer))).collect(),
            older_hosts_until: older_hosts.map(|until| to_boot(until.filter(|at| *at > clock.now))),
            last_reporter: self.last_reporter,
            slot_of: match self.slot {
                QuotaSlot::Common => None,
                QuotaSlot::Reserved(host) => Some(host),
            },
            queries: self.queries.saved(clock),
        }
    }

    /// Sets the filter to the saved timers of `sources` that still run, and the compatibility mode.
    /// If this router is the querier, continues its specific queries.
    pub(super) fn restore(
        &mut self,
        saved: &SavedGroup,
        sources: &BTreeSet<Source>,
        (clock, timers, is_querier): (&ClockReading, &EffectiveTimers, bool),
    ) {
        let longest = timers.group_membership_interval();
        let running = |at: Option<BootTime>| clock.running_timer(at?, longest);
        let accepted = saved.sources.iter().filter(|(s, _)| sources.contains(s));
        let accepted = accepted.map(|(source, timer)| (*source, running(*timer)));
        self.filter = GroupFilter::with_timers(running(saved.group_timer), accepted);
        let longest = timers.older_host_present_interval();
        let older_hosts = saved.older_hosts_until;
        let older_hosts = older_hosts.map(|until| clock.running_timer(until?, longest));
        [self.first_generation_until, self.second_generation_until] = older_hosts;
        if let Some(queries) = saved.queries.as_ref().filter(|_| is_querier) {
            self.queries = SpecificQueries::restored(queries, clock, timers);
            self.queries.cancel_ended_sources(&self.filter);
        }
    }

    /// Returns true if no host is a member.
    pub(super) fn is_empty(&self) -> bool {
        self.filter.is_empty()
    }

    /// Returns the sources to forward (section 6.3).
    pub(super) fn source_filter(&self) -> SourceFilter {
        self.filter.source_filter()
    }

    /// Returns the forwarded sources before the first change since the last call. None if
    /// nothing has changed.
    pub(super) fn take_previous_filter(&mut self) -> Option<SourceFilter> {
        self.filter.take_previous()
    }

    /// Returns the number of stored sources.
    pub(super) fn source_count(&self) -> usize {
        self.filter.source_count()
    }

    /// Returns the number of tracked hosts plus the number of their sources.
    pub(super) fn tracked_entries(&self) -> usize {
        self.tracker.as_ref().map_or(0, |t| t.entries())
    }

    /// Returns the slot that the group occupies.
    pub(super) fn slot(&self) -> QuotaSlot {
        self.slot
    }

    /// Returns the group compatibility mode (section 7.3.2), at most `configured`.
    pub(super) fn compatibility_mode(&self, now: Instant, configured: Generation) -> Generation {
        let is_present = |until: Option<Instant>| until.is_some_and(|at| at > now);
        let oldest = if is_present(self.first_generation_until) {
            Generation::One
        } else if is_present(self.second_generation_until) {
            Generation::Two
        } else {
            Generation::Three
        };
        oldest.min(configured)
    }

    /// Returns the status of this group, whose address is `group`.
    pub(super) fn status(&self, now: Instant, group: Group, configured: Generation) -> GroupStatus {
        let time_left = |at: Instant| at.saturating_duration_since(now);
        let source_status = |(source, timer): (Source, Option<Instant>)| SourceStatus {
            source,
            source_timer: timer.map(time_left),
        };
        GroupStatus {
            group,
            filter: self.source_filter(),
            group_timer: self.filter.group_timer().map(time_left),
            sources: self.filter.sources().map(source_status).collect(),
            generation: self.compatibility_mode(now, configured),
            reporters: self.tracker.iter().flat_map(|t| t.hosts()).collect(),
            last_reporter: self.last_reporter,
        }
    }

    /// Notes the sender of a report.
    pub(super) fn set_last_reporter(&mut self, reporter: IpAddr) {
        self.last_reporter = reporter;
    }

    /// Notes a report of an older generation, whose hosts are considered present until `until`.
    pub(super) fn note_older_host(&mut self, generation: Generation, until: Instant) {
        match generation {
            Generation::One => self.first_generation_until = Some(until),
            Generation::Two => self.second_generation_until = Some(until),
            Generation::Three => {}
        }
    }

    /// Applies a record to the filter, and returns the queries that the RFC's tables demand.
    pub(super) fn apply(
        &mut self,
        record_type: RecordType,
        named: &BTreeSet<Source>,
        context: &RecordContext,
    ) -> RequiredQueries {
        let required = self.filter.apply(record_type, named, context);
        self.queries.cancel_ended_sources(&self.filter);
        required
    }

    /// Returns the number of new sources refused by the limit since the last call.
    pub(super) fn take_refused_sources(&mut self) -> u32 {
        self.filter.take_refused_sources()
    }

    /// Starts the required queries: lowers the timers, and appends the queries that are sent
    /// immediately to `out`.
    pub(super) fn start_queries(
        &mut self,
        group: Group,
        required: &RequiredQueries,
        builder: &QueryBuilder<'_>,
        out: &mut Vec<Query>,
    ) {
        self.queries
            .start(group, required, &mut self.filter, builder, out);
    }

    /// Lowers the timers of `sources`, or the group timer if there are none, because the querier
    /// has sent a specific query (section 6.6.1).
    pub(super) fn lower_timers(&mut self, sources: &[Source], until: Instant) {
        if sources.is_empty() {
            self.filter.lower_group_timer(until);
        }
        for source in sources {
            if self.filter.lower_source_timer(source, until) {
                self.queries.cancel_source(source);
            }
        }
    }

    /// Applies a record to the filter of its sender. `is_new` is true for the first record of
    /// the group. The sender expires at `expires`. Returns false if the sender cannot be tracked
    /// with `free_entries` further entries.
    pub(super) fn track_sender(
        &mut self,
        record: &ReceivedRecord<'_>,
        named: &BTreeSet<Source>,
        is_new: bool,
        free_entries: usize,
        expires: Instant,
    ) -> bool {
        let tracking_starts = self.tracker.is_none();
        let tracker = self.tracker.get_or_insert_default();
        if tracking_starts && !is_new {
            tracker.mark_incomplete(expires);
        }
        // Hosts without an address cannot be distinguished, and IGMPv1 hosts leave silently.
        if record.generation == Generation::One || record.sender.is_unspecified() {
            tracker.mark_incomplete(expires);
            return true;
        }
        // Hosts of the second generation suppress their reports when they receive the report of
        // another host.
        if record.generation == Generation::Two {
            tracker.mark_suppressible(expires);
        }
        let max_entries = tracker.entries().saturating_add(free_entries);
        let is_tracked = tracker.apply(
            record.sender,
            record.record_type,
            named,
            expires,
            max_entries,
        );
        if !is_tracked {
            tracker.mark_incomplete(expires);
        }
        is_tracked
    }

    /// Forgets the tracked hosts.
    pub(super) fn stop_tracking(&mut self) {
        self.tracker = None;
    }

    /// Returns true if every member is tracked.
    pub(super) fn tracks_every_member(&self, now: Instant) -> bool {
        self.tracker.as_ref().is_some_and(|t| t.is_complete(now))
    }

    /// Returns true if `host` is a known member, and no other host has reported that it is one.
    /// Members that suppressed their reports are not known.
    pub(super) fn is_only_reporter(&self, now: Instant, host: IpAddr) -> bool {
        self.tracker
            .as_ref()
            .is_some_and(|t| t.is_only_reporter(now, host))
    }

    /// Ends the group membership and the sources in `required` that no tracked host requests,
    /// instead of querying for them. Returns the queries that are still required: none, or all of
    /// them if the group would have more than `max_sources` sources.
    pub(super) fn end_unrequested(
        &mut self,
        mut required: RequiredQueries,
        max_sources: usize,
    ) -> RequiredQueries {
        let Some(tracker) = &self.tracker else {
            return required;
        };
        let end_exclude = required.group && !tracker.has_exclude_host();
        // In EXCLUDE mode the RFC's tables do not store which sources hosts in INCLUDE mode
        // request. The tracker knows them.
        let restored: Vec<Source> = match end_exclude {
            true => tracker.included_sources().collect(),
            false => Vec::new(),
        };
        if restored.len() > max_sources {
            return required;
        }
        required.sources.retain(|s| !tracker.is_requested(s));
        self.filter.end_timers(&required.sources, end_exclude);
        if end_exclude {
            self.queries.cancel_group();
        }
        self.queries.cancel_ended_sources(&self.filter);
        if let Some(expires) = tracker.last_expiry() {
            for source in restored {
                self.filter.restore_source(source, expires);
            }
        }
        RequiredQueries::default()
    }

    /// Ends all memberships.
    pub(super) fn clear(&mut self) {
        self.filter.clear();
    }

    /// Returns a time at or before the first timeout. None if there is none.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let tracker_expiry = self.tracker.as_ref().and_then(|t| t.next_expiry());
        [
            self.filter.next_expiry(),
            self.queries.next_due(),
            tracker_expiry,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Handles expired timers. With `grace_until`, expired memberships are extended to that
    /// time. If this router is the querier, appends the queries that are due to `out`.
    pub(super) fn handle_timeout(
        &mut self,
        group: Group,
        grace_until: Option<Instant>,
        is_querier: bool,
        builder: &QueryBuilder<'_>,
        out: &mut Vec<Query>,
    ) {
        let now = builder.now;
        if let Some(until) = grace_until {
            self.filter.extend_expired(now, until);
        }
        if self.filter.expire(now) {
            self.queries.cancel_group();
        }
        self.queries.cancel_ended_sources(&self.filter);
        if let Some(tracker) = &mut self.tracker {
            tracker.expire(now);
        }
        match is_querier {
            true => self.queries.repeat(group, &self.filter, builder, out),
            false => self.queries.cancel_all(),
        }
    }
}
