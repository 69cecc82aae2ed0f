//! The host side of IGMP or MLD on one interface (RFC 9776 section 5, RFC 9777 section 6).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::model::{Group, QuerierTimers, Source, SourceFilter};
use crate::wire::membership_message::{Generation, GroupRecord, MembershipMessage, Query};

use super::config::Protocol;
use super::deadlines::Deadlines;
use super::effective_timers::EffectiveTimers;
use super::host_compatibility::HostCompatibility;
use super::host_event::HostEvent;
use super::joined_group::JoinedGroup;
use super::random::RandomDelays;
use super::refusal::MembershipRefusal;

/// The Unsolicited Report Interval: the longest time between two reports of one change (RFC 9776
/// section 8.11).
const UNSOLICITED_REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// The same interval of IGMPv2 and MLDv1 (RFC 2236 section 8.10, RFC 2710 section 7.10).
const OLDER_UNSOLICITED_REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// The longest Max Response Time of a query that counts for the older version querier present
/// interval. A forged query could otherwise disable source filters for hours.
const MAX_RESPONSE_TIME: Duration = Duration::from_secs(60);

/// Shortest time between two answers to general queries. It bounds the reports that forged queries
/// can cause.
const GENERAL_ANSWER_GAP: Duration = Duration::from_millis(500);

/// Shortest time between two series of answers to specific queries, and between two series of
/// reports that correct other reports of this machine.
const ANSWER_GAP: Duration = Duration::from_millis(20);

/// Limit of the sources of pending group-and-source-specific queries. Beyond it, the answer
/// contains the state of the whole group.
const MAX_QUERIED_SOURCES: usize = 16_384;

/// Limit of the events that wait. A further event replaces the oldest one.
const MAX_EVENTS: usize = 16;

/// The addresses of the packets of one message: its sender, and where it was sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageAddresses {
    /// Source address.
    pub sender: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
}

/// Configuration of one [`Host`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostConfig {
    /// IGMP or MLD.
    pub protocol: Protocol,
    /// The version to use, whatever the querier uses; `None` for the version of the querier.
    pub generation: Option<Generation>,
    /// Interval of unsolicited reports of all groups, for links without queries. `None`: they are
    /// not sent.
    pub refresh: Option<Duration>,
}

/// A pending answer to a general query.
#[derive(Debug, Clone, Copy)]
struct GeneralAnswer {
    at: Instant,
    /// Time over which the reports of older versions are distributed, from `at` on.
    spread: Duration,
}

/// The groups that this machine joined on one interface, for one protocol. Answers queries and
/// reports changes.
///
/// Methods are of four kinds:
///
/// - Getters take `&self`.
/// - [`set_filter`](Self::set_filter) and [`leave_all`](Self::leave_all) change memberships.
/// - `handle_*`, [`set_own_addresses`](Self::set_own_addresses) and
///   [`reconfigure`](Self::reconfigure) take messages, expired timers and changes of the link.
/// - `poll_*` return outputs. After calls of the two kinds above, call
///   [`handle_timeout`](Self::handle_timeout) if [`poll_timeout`](Self::poll_timeout) is due, and
///   then [`poll_report`](Self::poll_report) and [`poll_event`](Self::poll_event) until they
///   return None. Changes that become due together share their reports.
#[derive(Debug)]
pub struct Host {
    config: HostConfig,
    /// The addresses of this machine on the link. Reports leave from the first.
    own_addresses: Vec<IpAddr>,
    groups: BTreeMap<Group, JoinedGroup>,
    /// Number of sources of INCLUDE filters, plus number of EXCLUDE filters.
    membership_count: usize,
    compatibility: HostCompatibility,
    /// The timers of the latest query; where it carries none, the defaults.
    timers: EffectiveTimers,
    /// When state changes are reported, for the first time or again.
    changes: Deadlines,
    /// When specific queries are answered; in older versions, also general ones.
    answers: Deadlines,
    /// The queried sources of pending answers. Other pending answers contain the whole group.
    queried: BTreeMap<Group, BTreeSet<Source>>,
    queried_count: usize,
    general_answer: Option<GeneralAnswer>,
    /// Earliest time of the next answer to a general query.
    general_answer_permitted: Instant,
    /// Earliest time of the next answers to specific queries.
    answer_permitted: Instant,
    /// Earliest time of the next reports that correct other reports of this machine.
    correction_permitted: Instant,
    refresh_at: Option<Instant>,
    /// When [`HostEvent::NoQuerier`] is due.
    no_querier_at: Option<Instant>,
    random: RandomDelays,
    reports: VecDeque<MembershipMessage>,
    events: VecDeque<HostEvent>,
}

impl Host {
    /// Creates a host without groups. Machines on one link need different values of `seed`, so
    /// that they do not answer at the same time.
    pub fn new(now: Instant, config: HostConfig, own_addresses: Vec<IpAddr>, seed: u64) -> Self {
        let timers = EffectiveTimers::configured(&QuerierTimers::default());
        Self {
            config,
            own_addresses,
            groups: BTreeMap::new(),
            membership_count: 0,
            compatibility: HostCompatibility::default(),
            timers,
            changes: Deadlines::default(),
            answers: Deadlines::default(),
            queried: BTreeMap::new(),
            queried_count: 0,
            general_answer: None,
            general_answer_permitted: now,
            answer_permitted: now,
            correction_permitted: now,
            refresh_at: config.refresh.map(|interval| now + interval),
            no_querier_at: Some(now + timers.other_querier_present_interval()),
            random: RandomDelays::new(seed),
            reports: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    // Getters.

    /// Returns the configuration.
    pub fn config(&self) -> &HostConfig {
        &self.config
    }

    /// Returns the version of the reports.
    pub fn generation(&self) -> Generation {
        let querier = || self.compatibility.generation();
        match (self.config.protocol, self.config.generation) {
            // MLD has no counterpart of IGMPv1.
            (Protocol::Mld, generation) => generation.unwrap_or_else(querier).max(Generation::Two),
            (Protocol::Igmp, generation) => generation.unwrap_or_else(querier),
        }
    }

    /// Returns the filter of a group; the empty filter if it is not joined.
    pub fn filter(&self, group: Group) -> SourceFilter {
        let joined = self.groups.get(&group);
        joined.map_or_else(SourceFilter::none, |joined| joined.filter().clone())
    }

    /// Returns the number of memberships: each source of an INCLUDE filter counts, and each EXCLUDE
    /// filter.
    pub fn membership_count(&self) -> usize {
        self.membership_count
    }

    /// Returns how often a change is reported. A forged query must not prevent repetitions.
    fn report_count(&self) -> u8 {
        self.timers.robustness().max(2)
    }

    fn is_older(&self) -> bool {
        self.generation() < Generation::Three
    }

    // Memberships.

    /// Replaces the filter of a group; the empty filter leaves it. The report is due at `now`, in
    /// one message with the other changes that are due.
    pub fn set_filter(&mut self, now: Instant, group: Group, filter: SourceFilter) {
        if !is_reported(group) {
            return;
        }
        let is_member = !filter.is_none();
        let generation = self.generation();
        let count = self.report_count();
        let joined = self.groups.entry(group).or_default();
        self.membership_count -= memberships_in(joined.filter());
        self.membership_count += memberships_in(&filter);
        let is_changed = match generation {
            Generation::Three => joined.set_filter(filter, count),
            Generation::One | Generation::Two => joined.set_membership(filter, count),
        };
        if joined.is_gone() {
            self.groups.remove(&group);
        }
        if !is_member {
            self.answers.remove(group);
            self.forget_queried(group);
        }
        if !is_changed {
            return;
        }
        match generation {
            // RFC 2236 section 3: one leave. IGMPv1 has none.
            Generation::One | Generation::Two if !is_member => {
                self.changes.remove(group);
                if generation == Generation::Two {
                    self.reports.push_back(MembershipMessage::Leave { group });
                }
            }
            _ => self.changes.set(group, now),
        }
    }

    /// Leaves all groups. Each leave is reported once, because this machine is about to stop.
    pub fn leave_all(&mut self, now: Instant) {
        let groups: Vec<Group> = self.groups.keys().copied().collect();
        for group in groups {
            self.set_filter(now, group, SourceFilter::none());
        }
        self.send_changes(now);
        self.cancel_pending();
    }

    // Inputs.

    /// Handles a message whose checksum and headers have been checked.
    ///
    /// # Errors
    /// The reason to ignore the message.
    pub fn handle_message(
        &mut self,
        now: Instant,
        addresses: MessageAddresses,
        message: &MembershipMessage,
    ) -> Result<(), MembershipRefusal> {
        let MessageAddresses {
            sender,
            destination,
        } = addresses;
        if !self.config.protocol.is_family_of(sender) {
            return Err(MembershipRefusal::OtherFamily);
        }
        let is_own = self.own_addresses.contains(&sender);
        match message {
            MembershipMessage::Query(query) => self.handle_query(now, addresses, query)?,
            MembershipMessage::Report { group, .. } if !is_own => {
                if destination == group.addr() {
                    self.handle_other_report(*group);
                }
            }
            MembershipMessage::Report { .. } => {}
            MembershipMessage::Leave { group } if is_own => self.correct(now, *group, |_| true),
            MembershipMessage::Records(records) if is_own => {
                for record in records {
                    self.correct(now, record.group, |joined| {
                        joined.is_contradicted_by(record)
                    });
                }
            }
            MembershipMessage::Leave { .. } | MembershipMessage::Records(_) => {}
        }
        Ok(())
    }

    /// Handles the loss of messages: a query may be among them, so all groups are reported.
    pub fn handle_message_loss(&mut self, now: Instant) {
        self.schedule_general_answer(now, self.timers.query_response_interval());
    }

    /// Handles the return of the carrier: the switch may have forgotten this machine.
    pub fn handle_link_up(&mut self, now: Instant) {
        self.report_anew(now);
    }

    /// Sets the addresses of this machine on the link. If the first one is new, all groups are
    /// reported from it.
    pub fn set_own_addresses(&mut self, now: Instant, own_addresses: Vec<IpAddr>) {
        let first = own_addresses.first();
        let is_new = first.is_some() && first != self.own_addresses.first();
        self.own_addresses = own_addresses;
        if is_new {
            self.report_anew(now);
        }
    }

    /// Replaces the configuration. If the version of the reports changes, all groups are reported
    /// in the new version.
    pub fn reconfigure(&mut self, now: Instant, config: HostConfig) {
        if self.config.refresh != config.refresh {
            self.refresh_at = config.refresh.map(|interval| now + interval);
        }
        let generation = self.generation();
        self.config = config;
        if self.generation() != generation {
            self.cancel_pending();
            self.report_anew(now);
        }
    }

    /// Reports all groups as if they had just been joined, for instance because reports could not
    /// be sent.
    pub fn report_anew(&mut self, now: Instant) {
        let count = self.report_count();
        let is_older = self.is_older();
        for (group, joined) in &mut self.groups {
            match is_older {
                true => joined.report_membership_anew(count),
                false => joined.report_anew(count),
            }
            if joined.has_pending_reports() {
                self.changes.set(*group, now);
            }
        }
    }

    /// Handles expired timers.
    pub fn handle_timeout(&mut self, now: Instant) {
        let generation = self.generation();
        self.compatibility.handle_timeout(now);
        if self.generation() != generation {
            let spread = self.timers.query_response_interval();
            self.handle_version_change(now, None, spread);
        }
        if self.no_querier_at.take_if(|at| *at <= now).is_some()
            && self.config.refresh.is_none()
            && !self.groups.is_empty()
        {
            self.push_event(HostEvent::NoQuerier);
        }
        if self.refresh_at.is_some_and(|at| at <= now) {
            self.refresh_at = self.config.refresh.map(|interval| now + interval);
            let spread = UNSOLICITED_REPORT_INTERVAL;
            self.general_answer = Some(GeneralAnswer { at: now, spread });
        }
        self.send_changes(now);
        self.send_general_answer(now);
        self.send_answers(now);
    }

    // Outputs.

    /// Returns the next report or leave to send. The sender splits it by the MTU.
    pub fn poll_report(&mut self) -> Option<MembershipMessage> {
        self.reports.pop_front()
    }

    /// Returns the next event for the log.
    pub fn poll_event(&mut self) -> Option<HostEvent> {
        self.events.pop_front()
    }

    /// Returns the time at which [`handle_timeout`](Self::handle_timeout) is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let timeouts = [
            self.compatibility.poll_timeout(),
            self.no_querier_at,
            self.refresh_at,
            self.changes.next(),
            self.general_answer.map(|answer| answer.at),
            self.answers.next(),
        ];
        timeouts.into_iter().flatten().min()
    }

    // Queries.

    fn handle_query(
        &mut self,
        now: Instant,
        addresses: MessageAddresses,
        query: &Query,
    ) -> Result<(), MembershipRefusal> {
        let destination = addresses.destination;
        let is_expected = destination == self.config.protocol.general_query_destination()
            || query.group.map(Group::addr) == Some(destination)
            || self.own_addresses.contains(&destination);
        if !is_expected {
            return Err(MembershipRefusal::QueryDestination);
        }
        self.timers = EffectiveTimers::configured(&QuerierTimers::default()).adopted(query);
        self.no_querier_at = Some(now + self.timers.other_querier_present_interval());
        let generation = self.generation();
        let response_time = query.max_response_time;
        if query.generation < Generation::Three {
            let query_interval = self.timers.query_interval();
            let present = query_interval * u32::from(self.timers.robustness());
            let until = now + present + response_time.min(MAX_RESPONSE_TIME);
            self.compatibility.note_query(query.generation, until);
        }
        if self.generation() != generation {
            self.handle_version_change(now, Some(addresses.sender), response_time);
        }
        match query.group {
            None => self.schedule_general_answer(now, response_time),
            Some(group) => self.schedule_answer(now, group, query),
        }
        Ok(())
    }

    /// Cancels what was scheduled for the former version (RFC 9776 section 7.2.1), and schedules a
    /// report of all groups in the new one.
    fn handle_version_change(&mut self, now: Instant, querier: Option<IpAddr>, spread: Duration) {
        self.cancel_pending();
        self.schedule_general_answer(now, spread);
        let generation = self.generation();
        self.push_event(HostEvent::VersionChanged {
            generation,
            querier,
        });
    }

    /// Schedules reports of all groups within `response_time`, unless they are due earlier.
    fn schedule_general_answer(&mut self, now: Instant, response_time: Duration) {
        // Older versions delay the report of each group separately. Version 3 delays one report of
        // all groups.
        let delay = match self.is_older() {
            true => Duration::ZERO,
            false => self.random.part(response_time),
        };
        let at = (now + delay).max(self.general_answer_permitted);
        if self.general_answer.is_none_or(|pending| at < pending.at) {
            let spread = response_time;
            self.general_answer = Some(GeneralAnswer { at, spread });
        }
    }

    /// Schedules the answer to a group-specific or group-and-source-specific query (RFC 9776
    /// section 5.2).
    fn schedule_answer(&mut self, now: Instant, group: Group, query: &Query) {
        let Some(joined) = self.groups.get(&group) else {
            return;
        };
        let filter = joined.filter();
        if filter.is_none() {
            return;
        }
        let accepted = query.sources.iter().filter(|s| filter.accepts(**s));
        let accepted: BTreeSet<Source> = accepted.copied().collect();
        if !query.sources.is_empty() && accepted.is_empty() && !self.is_older() {
            return;
        }
        let delay = self.random.part(query.max_response_time);
        let at = (now + delay).max(self.answer_permitted);
        if self.general_answer.is_some_and(|pending| pending.at <= at) {
            return;
        }
        let is_pending = self.answers.get(group).is_some();
        let is_whole = query.sources.is_empty()
            || self.is_older()
            || (is_pending && !self.queried.contains_key(&group))
            || self.queried_count + accepted.len() > MAX_QUERIED_SOURCES;
        if is_whole {
            self.forget_queried(group);
        } else {
            let queried = self.queried.entry(group).or_default();
            self.queried_count -= queried.len();
            queried.extend(accepted);
            self.queried_count += queried.len();
        }
        self.answers.lower(group, at);
    }

    /// Handles a report of another host in an older version: one report for each group is enough
    /// (RFC 2236 section 3).
    fn handle_other_report(&mut self, group: Group) {
        if self.is_older() {
            self.answers.remove(group);
        }
    }

    /// Reports a group at once if another program of this machine sent a report that contradicts
    /// its state, because routers and switches see both as one host.
    fn correct(
        &mut self,
        now: Instant,
        group: Group,
        is_contradicted: impl FnOnce(&JoinedGroup) -> bool,
    ) {
        let is_older = self.is_older();
        let count = self.report_count();
        let Some(joined) = self.groups.get_mut(&group) else {
            return;
        };
        if joined.filter().is_none() || !is_contradicted(joined) {
            return;
        }
        match is_older {
            true => joined.report_membership_anew(count),
            false => joined.report_anew(count),
        }
        let at = now.max(self.correction_permitted);
        self.correction_permitted = at.max(now + ANSWER_GAP);
        self.changes.lower(group, at);
    }

    // Reports.

    /// Sends the state changes that are due (RFC 9776 section 5.1), and schedules repetitions.
    fn send_changes(&mut self, now: Instant) {
        let due = self.changes.take_due(now);
        if due.is_empty() {
            return;
        }
        let generation = self.generation();
        let next = now + self.random.part(UNSOLICITED_REPORT_INTERVAL);
        let mut records: Vec<GroupRecord> = Vec::new();
        for group in due {
            let Some(joined) = self.groups.get_mut(&group) else {
                continue;
            };
            let next = match generation {
                Generation::Three => {
                    records.extend(joined.take_change_records(group));
                    next
                }
                Generation::One | Generation::Two => {
                    if joined.take_membership_report() {
                        let report = MembershipMessage::Report { generation, group };
                        self.reports.push_back(report);
                    }
                    now + self.random.part(OLDER_UNSOLICITED_REPORT_INTERVAL)
                }
            };
            if joined.has_pending_reports() {
                self.changes.set(group, next);
            } else if joined.is_gone() {
                self.groups.remove(&group);
            }
        }
        self.push_records(records);
    }

    /// Sends the answer to a general query if it is due. In older versions, schedules the report
    /// of each group.
    fn send_general_answer(&mut self, now: Instant) {
        let Some(answer) = self.general_answer.take_if(|answer| answer.at <= now) else {
            return;
        };
        self.general_answer_permitted = now + GENERAL_ANSWER_GAP;
        if self.is_older() {
            for (group, joined) in &self.groups {
                if !joined.filter().is_none() {
                    let at = now + self.random.part(answer.spread);
                    self.answers.lower(*group, at);
                }
            }
            return;
        }
        self.answers.clear();
        self.queried.clear();
        self.queried_count = 0;
        let groups = self.groups.iter();
        let records =
            groups.filter_map(|(group, joined)| joined.current_state_record(*group, None));
        let records = records.collect();
        self.push_records(records);
    }

    /// Sends the answers to specific queries that are due.
    fn send_answers(&mut self, now: Instant) {
        let due = self.answers.take_due(now);
        if due.is_empty() {
            return;
        }
        self.answer_permitted = now + ANSWER_GAP;
        let generation = self.generation();
        let mut records = Vec::new();
        for group in due {
            let queried = self.forget_queried(group);
            let Some(joined) = self.groups.get(&group) else {
                continue;
            };
            match generation {
                Generation::Three => {
                    records.extend(joined.current_state_record(group, queried.as_ref()));
                }
                Generation::One | Generation::Two => {
                    let report = MembershipMessage::Report { generation, group };
                    self.reports.push_back(report);
                }
            }
        }
        self.push_records(records);
    }

    fn push_records(&mut self, records: Vec<GroupRecord>) {
        if !records.is_empty() {
            self.reports.push_back(MembershipMessage::Records(records));
        }
    }

    /// Removes and returns the queried sources of a pending answer.
    fn forget_queried(&mut self, group: Group) -> Option<BTreeSet<Source>> {
        let queried = self.queried.remove(&group)?;
        self.queried_count -= queried.len();
        Some(queried)
    }

    /// Cancels all answers and repetitions.
    fn cancel_pending(&mut self) {
        self.changes.clear();
        self.answers.clear();
        self.queried.clear();
        self.queried_count = 0;
        self.general_answer = None;
        self.groups.retain(|_, joined| {
            joined.cancel_reports();
            !joined.is_gone()
        });
    }

    fn push_event(&mut self, event: HostEvent) {
        if self.events.len() >= MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }
}

/// Returns the contribution of a filter to [`Host::membership_count`].
fn memberships_in(filter: &SourceFilter) -> usize {
    match filter {
        SourceFilter::Include(sources) => sources.len(),
        SourceFilter::Exclude(_) => 1,
    }
}

/// Returns whether memberships of a group are reported: all except the all-systems groups (RFC 9776
/// section 5) and groups that never leave the host (RFC 9777 section 6).
fn is_reported(group: Group) -> bool {
    match group.addr() {
        IpAddr::V4(addr) => addr != Ipv4Addr::new(224, 0, 0, 1),
        IpAddr::V6(addr) => {
            let is_link_or_wider = addr.octets()[1] & 0x0f >= 2;
            is_link_or_wider && addr != Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)
        }
    }
}
