//! The router side of IGMP or MLD on one downstream interface.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::{ClockReading, Group, HeaderChecks, ProxyRule, Source, SourceFilter};
use crate::wire::membership_message::{Generation, MembershipMessage, Query, RecordType};

use super::config::DownstreamConfig;
use super::effective_timers::EffectiveTimers;
use super::election::QuerierElection;
use super::event::{EventQueue, MembershipEvent};
use super::group::GroupState;
use super::group_filter::RecordContext;
use super::group_table::GroupTable;
use super::query_builder::QueryBuilder;
use super::quota::{QuotaSlot, SenderStatus};
use super::received_record::ReceivedRecord;
use super::refusal::{MembershipRefusal, RefusalCounts};
use super::saved::{SavedDownstream, SavedGroup};
use super::status::{GroupStatus, QuerierStatus};
use super::work::Work;

/// Minimum capacity of the queue of outgoing queries.
const MIN_QUERY_CAPACITY: usize = 1024;

/// Upper limit of the Max Response Time that is honoured in specific queries of other routers.
const MAX_FOREIGN_RESPONSE_TIME: Duration = Duration::from_secs(3600);

/// A query to be sent. The sender splits it if its sources do not fit into the MTU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutgoingQuery {
    /// The query.
    pub query: Query,
    /// The destination: all hosts, or the group of the query.
    pub destination: IpAddr,
}

/// Querier and group memberships of one downstream interface, for one protocol.
///
/// Methods are of four kinds:
///
/// - Getters take `&self`.
/// - `handle_*` take messages, losses and expired timers.
/// - [`set_own_address`](Self::set_own_address) and [`reconfigure`](Self::reconfigure) change the
///   configuration.
/// - `poll_*` return outputs. After each call of the two kinds above, call
///   [`poll_query`](Self::poll_query), [`poll_change`](Self::poll_change) and
///   [`poll_event`](Self::poll_event) until they return None, and
///   [`poll_timeout`](Self::poll_timeout) for the time of the next
///   [`handle_timeout`](Self::handle_timeout).
#[derive(Debug)]
pub struct Downstream {
    config: DownstreamConfig,
    election: QuerierElection,
    groups: GroupTable,
    queries: VecDeque<OutgoingQuery>,
    events: EventQueue,
    /// When messages were last lost before they were handled.
    last_message_loss: Option<Instant>,
    /// Until this time, hosts may be members without being known.
    members_unknown_until: Instant,
    refusals: RefusalCounts,
}

impl Downstream {
    /// Starts without members. With an address (0.0.0.0 for IGMP on a link without one), and a
    /// policy other than `off`, the first general query is due immediately: see
    /// [`poll_timeout`](Self::poll_timeout).
    pub fn new(now: Instant, config: DownstreamConfig, own_address: Option<IpAddr>) -> Self {
        let rule = &config.rule;
        let own_address = usable_address(own_address);
        let election = QuerierElection::new(now, rule.querier, &rule.timers, own_address);
        let mut downstream = Self {
            config,
            election,
            groups: GroupTable::default(),
            queries: VecDeque::new(),
            events: EventQueue::default(),
            last_message_loss: None,
            members_unknown_until: now,
            refusals: RefusalCounts::default(),
        };
        downstream.members_unknown_until = now + downstream.learning_time(now);
        downstream.report_querier();
        downstream
    }

    /// As [`new`](Self::new), and continues saved state as far as the configuration still permits
    /// it. Timers continue with what is left of them; expired ones have ended.
    pub fn restored(
        clock: &ClockReading,
        config: DownstreamConfig,
        own_address: Option<IpAddr>,
        saved: &SavedDownstream,
    ) -> Self {
        let mut downstream = Self::new(clock.now, config, own_address);
        // Another version is announced by startup queries.
        if generation_number(downstream.config.generation()) == saved.generation {
            downstream.election.restore(clock, &saved.querier);
        }
        downstream.events = EventQueue::default();
        downstream.report_querier();
        for group in &saved.groups {
            downstream.restore_group(clock, group);
        }
        downstream.members_unknown_until = clock.now + downstream.learning_time(clock.now);
        downstream
    }

    fn restore_group(&mut self, clock: &ClockReading, saved: &SavedGroup) {
        let record_type = match saved.group_timer {
            Some(_) => RecordType::ModeIsExclude,
            None => RecordType::ModeIsInclude,
        };
        let sources: Vec<Source> = saved.sources.iter().map(|(source, _)| *source).collect();
        let record = ReceivedRecord {
            sender: saved.last_reporter,
            sender_status: SenderStatus::Unknown,
            generation: Generation::Three,
            group: saved.group,
            record_type,
            sources: &sources,
        };
        let limits = &self.config.rule.limits;
        let is_new = self.groups.get(saved.group).is_none();
        if !is_new
            || self.groups.len() >= limits.groups
            || record.check_group(&self.config).is_err()
        {
            return;
        }
        let sources = record.accepted_sources(&self.config, &mut |_| {});
        let free = (self.config.max_sources()).saturating_sub(self.groups.source_count());
        if sources.len() > limits.sources_per_group.min(free) {
            return;
        }
        let slot = saved.slot_of.map_or(QuotaSlot::Common, QuotaSlot::Reserved);
        self.groups.insert(saved.group, saved.last_reporter, slot);
        let timers = *self.election.timers();
        let context = (clock, &timers, self.election.is_us());
        let restore = |state: &mut GroupState| state.restore(saved, &sources, context);
        self.groups.update(saved.group, restore);
    }

    // Getters.

    /// Returns the time until every host has been queried and has had the time to answer: a query
    /// of this router is due at a known time; another querier may take longer.
    pub fn learning_time(&self, now: Instant) -> Duration {
        let timers = self.election.timers();
        match self.election.time_to_query(now) {
            Some(time) => time + timers.query_response_interval(),
            None => timers.group_membership_interval(),
        }
    }

    /// Returns querier and memberships as data.
    pub fn saved(&self, clock: &ClockReading) -> SavedDownstream {
        let groups = self.groups.iter();
        SavedDownstream {
            generation: generation_number(self.config.generation()),
            querier: self.election.saved(clock),
            groups: groups
                .map(|(group, state)| state.saved(clock, group))
                .collect(),
        }
    }

    /// Returns the configuration.
    pub fn config(&self) -> &DownstreamConfig {
        &self.config
    }

    /// Returns the timers and counters in effect, including those of the elected querier.
    pub fn timers(&self) -> &EffectiveTimers {
        self.election.timers()
    }

    /// Returns the status of the querier election.
    pub fn querier(&self, now: Instant) -> QuerierStatus {
        self.election.status(now)
    }

    /// Returns the number of groups with members.
    pub fn group_count(&self) -> usize {
        self.groups.len()
    }

    /// Returns the number of stored sources over all groups.
    pub fn source_count(&self) -> usize {
        self.groups.source_count()
    }

    /// Returns the status of every group with members, lowest address first.
    pub fn groups(&self, now: Instant) -> impl Iterator<Item = GroupStatus> {
        let configured = self.config.generation();
        let groups = self.groups.iter();
        groups.map(move |(group, state)| state.status(now, group, configured))
    }

    /// Returns the sources to forward of a group.
    pub fn filter(&self, group: Group) -> SourceFilter {
        self.groups.source_filter(group)
    }

    // Inputs.

    /// Handles a message of an unknown sender, like
    /// [`handle_message_from`](Self::handle_message_from).
    ///
    /// # Errors
    /// See [`handle_message_from`](Self::handle_message_from).
    pub fn handle_message(
        &mut self,
        now: Instant,
        sender: IpAddr,
        destination: IpAddr,
        message: &MembershipMessage,
    ) -> Result<(), MembershipRefusal> {
        let sender_status = SenderStatus::Unknown;
        self.handle_message_from(now, sender_status, sender, destination, message)
    }

    /// Handles a message whose checksum, TTL and IP options have been checked. The last quarter
    /// of the slots for groups and sources is reserved for known members.
    ///
    /// Memberships with an expired timer last until [`handle_timeout`](Self::handle_timeout). A
    /// caller that is late can handle the waiting reports first, so that no member is lost.
    ///
    /// # Errors
    /// The first reason to refuse a part of the message. The other parts take effect.
    /// [`take_refusals`](Self::take_refusals) returns all reasons.
    pub fn handle_message_from(
        &mut self,
        now: Instant,
        sender_status: SenderStatus,
        sender: IpAddr,
        destination: IpAddr,
        message: &MembershipMessage,
    ) -> Result<(), MembershipRefusal> {
        let mut refused = Vec::new();
        let refuse = &mut |reason| refused.push(reason);
        if let Err(reason) = self.check_sender(sender, message) {
            refuse(reason);
        } else if let MembershipMessage::Query(query) = message {
            if let Err(reason) = self.handle_query(now, sender, destination, query) {
                refuse(reason);
            }
        } else {
            self.handle_report(now, (sender, sender_status), message, refuse);
        }
        refused.iter().for_each(|r| self.refusals.count(*r));
        refused.first().map_or(Ok(()), |r| Err(*r))
    }

    fn check_sender(
        &self,
        sender: IpAddr,
        message: &MembershipMessage,
    ) -> Result<(), MembershipRefusal> {
        // Lenient checks accept reports of hosts without a link-local address, but no queries.
        let is_lenient = self.config.rule.header_checks == HeaderChecks::Lenient
            && !matches!(message, MembershipMessage::Query(_));
        match sender {
            _ if !self.config.protocol.is_family_of(sender) => Err(MembershipRefusal::OtherFamily),
            IpAddr::V6(a) if !a.is_unicast_link_local() && !is_lenient => {
                Err(MembershipRefusal::NotLinkLocalSender)
            }
            _ => Ok(()),
        }
    }

    /// Handles a query of another router (sections 6.6.1 and 6.6.2).
    fn handle_query(
        &mut self,
        now: Instant,
        sender: IpAddr,
        destination: IpAddr,
        query: &Query,
    ) -> Result<(), MembershipRefusal> {
        if Some(sender) == self.election.own_address() && !sender.is_unspecified() {
            return Err(MembershipRefusal::OwnAddress);
        }
        let to_all_hosts = destination == self.config.protocol.general_query_destination();
        let to_group = query.group.map(Group::addr) == Some(destination);
        if !to_all_hosts && !to_group {
            return Err(MembershipRefusal::QueryDestination);
        }
        if query.group.is_none() && sender.is_unspecified() {
            self.election.handle_unspecified_query(now, query);
            return Err(MembershipRefusal::QueryUnspecified);
        }
        let configured = self.config.generation();
        self.events
            .warn_version_mismatch(now, sender, query.generation, configured);
        match query.group {
            Some(group) => self.handle_specific_query(now, group, query),
            None => {
                if self.election.handle_general_query(now, sender, query) {
                    self.events.warn_competing_querier(now, sender);
                }
                self.report_querier();
            }
        }
        Ok(())
    }

    /// Lowers the timers as the querier does, unless the S flag is set (section 6.6.1). While
    /// this router is the querier, specific queries of other routers have no effect: the hosts
    /// may not have received them.
    fn handle_specific_query(&mut self, now: Instant, group: Group, query: &Query) {
        if query.suppress || self.election.is_us() {
            return;
        }
        let timers = self.election.timers();
        // Hosts may use the full Max Response Time of the query. A tiny Max Response Time must
        // not expire members early.
        let count = u32::from(timers.last_member_query_count());
        let response_time = query.max_response_time.min(MAX_FOREIGN_RESPONSE_TIME) * count;
        let until = now + timers.last_member_query_time().max(response_time);
        self.groups
            .update(group, |state| state.lower_timers(&query.sources, until));
    }

    /// Handles a report or leave. Each is converted to records of the third generation (section
    /// 7.3.2).
    fn handle_report(
        &mut self,
        now: Instant,
        (sender, sender_status): (IpAddr, SenderStatus),
        message: &MembershipMessage,
        refuse: &mut impl FnMut(MembershipRefusal),
    ) {
        let received = |generation, group, record_type, sources| ReceivedRecord {
            sender,
            sender_status,
            generation,
            group,
            record_type,
            sources,
        };
        match message {
            MembershipMessage::Query(_) => {}
            MembershipMessage::Report { generation, group } => {
                let record = received(*generation, *group, RecordType::ModeIsExclude, &[]);
                self.handle_record(now, &record, refuse);
            }
            MembershipMessage::Leave { group } => {
                let record = received(Generation::Two, *group, RecordType::ChangeToInclude, &[]);
                self.handle_record(now, &record, refuse);
            }
            MembershipMessage::Records(records) => {
                for r in records {
                    let record = received(Generation::Three, r.group, r.kind, &r.sources);
                    self.handle_record(now, &record, refuse);
                }
            }
        }
    }

    /// Returns the work that [`Downstream::handle_message`] would do for a message.
    pub fn work_of(&self, message: &MembershipMessage) -> Work {
        Work::of(message, |group| {
            self.groups.get(group).map_or(0, |g| g.source_count())
        })
    }

    /// Handles one record (section 6.4). Calls `refuse` with the reason of each refusal.
    fn handle_record(
        &mut self,
        now: Instant,
        record: &ReceivedRecord<'_>,
        refuse: &mut impl FnMut(MembershipRefusal),
    ) {
        use RecordType::{BlockOldSources, ChangeToExclude, ChangeToInclude, ModeIsExclude};
        if let Err(reason) = record.check_group(&self.config) {
            return refuse(reason);
        }
        let group = record.group;
        let record_type = record.record_type;
        let mut named = record.accepted_sources(&self.config, refuse);
        let configured = self.config.generation();
        let known = self.groups.get(group);
        let is_new = known.is_none();
        let mode = known.map_or(configured, |g| g.compatibility_mode(now, configured));
        let known_sources = known.map_or(0, |g| g.source_count());
        // Section 7.3.2: a compatibility mode ignores what its hosts cannot express.
        match record_type {
            BlockOldSources if mode < Generation::Three => return,
            ChangeToInclude if mode == Generation::One => return,
            ChangeToExclude if mode < Generation::Three => named.clear(),
            _ => {}
        }
        let limits = &self.config.rule.limits;
        if is_new {
            let is_join =
                record.is_exclude() || (record_type != BlockOldSources && !named.is_empty());
            if !is_join {
                return;
            }
            let (sender, sender_status) = (record.sender, record.sender_status);
            match self.groups.find_slot(limits.groups, sender, sender_status) {
                Some(slot) => self.groups.insert(group, sender, slot),
                None => return refuse(MembershipRefusal::GroupLimit),
            }
        }
        let timers = *self.election.timers();
        let group_limit = record.sender_status.usable_slots(limits.sources_per_group);
        let total_limit = record.sender_status.usable_slots(self.config.max_sources());
        let free_sources = total_limit.saturating_sub(self.groups.source_count());
        let context = RecordContext {
            now,
            group_membership_interval: timers.group_membership_interval(),
            max_sources: group_limit.min(free_sources + known_sources),
        };
        let is_querier = self.election.is_us();
        let all_members_known = now >= self.members_unknown_until;
        let fast_leave = self.config.rule.fast_leave;
        let max_tracked = self.config.max_tracked_entries;
        let free_entries = max_tracked.saturating_sub(self.groups.tracked_entries());
        let builder = self.query_builder(now, &timers);
        let mut queries = Vec::new();
        self.groups.update(group, |state| {
            state.set_last_reporter(record.sender);
            if record_type == ModeIsExclude {
                let until = now + timers.older_host_present_interval();
                state.note_older_host(record.generation, until);
            }
            let mut required = state.apply(record_type, &named, &context);
            (0..state.take_refused_sources()).for_each(|_| refuse(MembershipRefusal::SourceLimit));
            if fast_leave {
                let expires = now + timers.group_membership_interval();
                let is_only_reporter = state.is_only_reporter(now, record.sender);
                if !state.track_sender(record, &named, is_new, free_entries, expires) {
                    refuse(MembershipRefusal::HostLimit);
                }
                let is_complete = all_members_known && state.tracks_every_member(now);
                if mode == Generation::Three && is_complete {
                    required = state.end_unrequested(required, context.max_sources);
                }
                let is_leave = record_type == ChangeToInclude && named.is_empty();
                if mode == Generation::Two && is_leave && is_only_reporter && all_members_known {
                    // Another member may have suppressed its reports. The query that follows
                    // makes it report again.
                    state.clear();
                }
            }
            if is_querier {
                state.start_queries(group, &required, &builder, &mut queries);
            }
        });
        self.enqueue_queries(queries);
    }

    /// Handles the loss of messages before they reached this type, for instance because a queue
    /// was full. A lost message may have been an answer, so that silence does not end a
    /// membership until the hosts have been queried again.
    pub fn handle_message_loss(&mut self, now: Instant) {
        self.last_message_loss = Some(now);
        self.handle_missed_report(now);
    }

    /// Handles a report that was not evaluated, so that its sender may be an unknown member.
    /// Every leave is verified by queries until each host has reported again.
    pub fn handle_missed_report(&mut self, now: Instant) {
        self.members_unknown_until = now + self.election.timers().group_membership_interval();
    }

    /// Handles expired timers.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.election.poll_timeout().is_some_and(|at| at <= now) {
            let is_query_due = self.election.handle_timeout(now);
            self.report_querier();
            if self.election.poll_no_querier(now) {
                self.events.push(MembershipEvent::NoQuerier);
            }
            if is_query_due {
                let builder = self.query_builder(now, self.election.timers());
                let query = builder.general_query();
                self.enqueue_queries(vec![query]);
            }
        }
        let is_querier = self.election.is_us();
        let timers = *self.election.timers();
        // The time within which every host is queried again and has answered.
        let next_round = timers.query_interval() + timers.query_response_interval();
        let is_grace_period = self
            .last_message_loss
            .is_some_and(|at| now < at + next_round);
        let grace_until = is_grace_period.then(|| now + next_round);
        let builder = self.query_builder(now, &timers);
        let mut queries = Vec::new();
        while let Some(group) = self.groups.next_due(now) {
            self.groups.update(group, |state| {
                state.handle_timeout(group, grace_until, is_querier, &builder, &mut queries);
            });
        }
        self.enqueue_queries(queries);
    }

    // Configuration.

    /// Sets the address that queries are sent from. A change restarts the election and the
    /// startup queries. Without an address no queries are sent. IGMP queries may be sent from
    /// 0.0.0.0. MLD requires a link-local address; any other counts as none.
    pub fn set_own_address(&mut self, now: Instant, own_address: Option<IpAddr>) {
        self.election
            .set_own_address(now, usable_address(own_address));
        self.report_querier();
    }

    /// Replaces the proxy's configuration. Memberships are kept if the access lists still allow
    /// their group. The election and the startup queries restart if policy, timers or version
    /// change.
    pub fn reconfigure(&mut self, now: Instant, rule: Arc<ProxyRule>) {
        let generation = self.config.generation();
        self.config.rule = rule.clone();
        self.election.reconfigure(now, rule.querier, &rule.timers);
        if self.config.generation() != generation {
            self.election.restart(now);
        }
        self.report_querier();
        self.groups.update_all(|group, state| {
            if !rule.fast_leave {
                state.stop_tracking();
            }
            if !rule.accepts_group(group) {
                state.clear();
            }
        });
    }

    // Outputs.

    /// Returns the next query to be sent.
    pub fn poll_query(&mut self) -> Option<OutgoingQuery> {
        self.queries.pop_front()
    }

    /// Returns the next group whose filter has changed, with its present filter: an empty
    /// `Include` if no member is left. Several changes of one group between two calls are
    /// reported as one.
    pub fn poll_change(&mut self) -> Option<(Group, SourceFilter)> {
        self.groups.poll_change()
    }

    /// Returns the next event for the log.
    pub fn poll_event(&mut self) -> Option<MembershipEvent> {
        self.events.pop()
    }

    /// Returns the number of refusals per reason since the last call.
    pub fn take_refusals(&mut self) -> impl Iterator<Item = (MembershipRefusal, u64)> + use<> {
        self.refusals.take()
    }

    /// Returns the time at which [`handle_timeout`](Self::handle_timeout) is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let timeouts = [self.groups.poll_timeout(), self.election.poll_timeout()];
        timeouts.into_iter().flatten().min()
    }

    fn query_builder<'t>(&self, now: Instant, timers: &'t EffectiveTimers) -> QueryBuilder<'t> {
        QueryBuilder {
            now,
            generation: self.config.generation(),
            timers,
        }
    }

    /// Queues queries. Drops those beyond the capacity, so that a caller that does not collect
    /// them does not make the queue grow without limit.
    fn enqueue_queries(&mut self, queries: Vec<Query>) {
        let general_destination = self.config.protocol.general_query_destination();
        let limit = self.config.rule.limits.groups;
        let capacity = limit.saturating_mul(2).max(MIN_QUERY_CAPACITY);
        for query in queries {
            if self.queries.len() < capacity {
                let destination = query.group.map_or(general_destination, Group::addr);
                self.queries.push_back(OutgoingQuery { query, destination });
            }
        }
    }

    fn report_querier(&mut self) {
        self.events.report_querier(self.election.current());
    }
}

/// Returns the address if queries can be sent from it. MLD requires a link-local address.
fn usable_address(own_address: Option<IpAddr>) -> Option<IpAddr> {
    own_address.filter(|a| match a {
        IpAddr::V4(_) => true,
        IpAddr::V6(a) => a.is_unicast_link_local(),
    })
}

/// Returns the number of a generation in saved state.
fn generation_number(generation: Generation) -> u8 {
    match generation {
        Generation::One => 1,
        Generation::Two => 2,
        Generation::Three => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::Protocol;

    #[test]
    fn join_is_reported_and_expires_without_reports() {
        let t0 = Instant::now();
        let rule = Arc::new(ProxyRule::new(vec![], vec![]));
        let config = DownstreamConfig::new(Protocol::Igmp, rule);
        let mut downstream = Downstream::new(t0, config, Some([10, 0, 0, 1].into()));
        assert_eq!(downstream.poll_timeout(), Some(t0));
        downstream.handle_timeout(t0);
        let general = downstream.poll_query().unwrap();
        assert_eq!(
            (general.query.group, general.destination),
            (None, [224, 0, 0, 1].into())
        );
        let group: Group = "239.1.2.3".parse().unwrap();
        let join = MembershipMessage::Report {
            generation: Generation::Two,
            group,
        };
        downstream
            .handle_message(t0, [10, 0, 0, 9].into(), group.addr(), &join)
            .unwrap();
        let joined = (group, SourceFilter::any());
        assert_eq!(downstream.poll_change(), Some(joined));
        assert_eq!(downstream.poll_change(), None);
        let end = t0 + Duration::from_secs(270);
        while let Some(at) = downstream.poll_timeout().filter(|at| *at < end) {
            downstream.handle_timeout(at);
        }
        assert_eq!(downstream.filter(group), SourceFilter::any());
        downstream.handle_timeout(end);
        let left = (group, SourceFilter::none());
        assert_eq!(downstream.poll_change(), Some(left));
        assert_eq!(downstream.group_count(), 0);
    }
}
