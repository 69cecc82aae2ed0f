//! The state machine of an MNAT client. It decides which request is sent when, and how a response
//! changes the mappings. It has no sockets and no clock.
//!
//! A session starts with a request for a watcher id and its registration. An egress sends all its
//! joins after each change. Both roles request the mappings every [`POLL_INTERVAL`], and refresh
//! the id in the interval that the server names. A server that supports it answers a request for the
//! mappings when they change, and after [`POLL_INTERVAL`] otherwise. Failed requests are retried, with a separate delay
//! for each kind of request. If the server does not know the id any more, a new session starts.
//!
//! Mappings outlive sessions. A mapping ends when a response no longer contains it and the server
//! knows all joins in the current session, or when the server did not confirm it for the grace
//! time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::model::ClockReading;

use super::channel::Channel;
use super::config::MnatRole;
use super::mappings::{MappingChange, MappingReport, Mappings, PollContext};
use super::messages::MAX_ID_LEN;
use super::protocol::{self, Mapping, MnatRequest, Op, ProtocolFault, ServerResponse};
use super::saved::{SavedMnat, SavedWatcher};

/// Interval between requests for the mappings.
pub const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// Shortest interval between requests for the mappings, if the server answers when something changes.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Shortest time that the server is asked to wait for a change.
const MIN_WAIT: Duration = Duration::from_secs(1);
/// Time between two answers to requests for the mappings after which the server was away. An ingress
/// expects each egress to poll within this time.
const OUTAGE: Duration = Duration::from_millis(POLL_INTERVAL.as_millis() as u64 * 5 / 4);
/// Time within which every client has polled a server that answers again: one request that timed
/// out (10 seconds), the longest pause between attempts, and the time of the requests for a new session.
pub const RECOVERY_TIME: Duration = Duration::from_secs(25);
/// Refresh interval of the watcher id until the server names one.
const DEFAULT_REFRESH_INTERVAL: Duration = Duration::from_secs(20);
/// Limits of a restored refresh interval: those of the protocol.
const MIN_REFRESH_INTERVAL: Duration = Duration::from_secs(1);
const MAX_REFRESH_INTERVAL: Duration = Duration::from_secs(86_400);
/// Delay after the first failure. Each further failure doubles it.
const MIN_BACKOFF: Duration = Duration::from_secs(1);
/// Maximum delay after a failure.
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// Number of consecutive refusals after which a new id is requested. The server may have bound the
/// old one to another client certificate.
const MAX_REFUSALS: u32 = 3;
/// Maximum number of unusable mappings that an event describes.
const MAX_EXAMPLES: usize = 5;
/// Time until (*,G) joins are sent again to a server that refused them.
const ASM_RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// An event that [`Machine::poll_event`] reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MnatEvent {
    /// A mapping changed.
    Change(MappingChange),
    /// The server answered a request for the mappings.
    Polled {
        /// The server knows all joins in this session. A mapping that the response lacks has ended.
        settled: bool,
    },
    /// A request failed.
    Failed {
        /// The kind of the request.
        op: Op,
        /// The reason.
        why: String,
        /// The previous failure had another kind or reason.
        is_new: bool,
    },
    /// Mappings in a response cannot be used, or could be used in the response before.
    InvalidMappings {
        /// The number of such mappings.
        count: usize,
        /// Some of them, each with the reason.
        examples: Vec<String>,
    },
    /// The number of joins that are not sent to the server, because one request cannot hold them.
    /// They are the last ones in the order of [`Channel`].
    JoinsLeftOut(usize),
    /// A new watcher id is registered.
    Registered,
    /// The server does not know the watcher id any more.
    UnknownWatcher,
    /// The server answers for the first time, or again.
    ServerUp,
    /// The server did not answer for 2.5 refresh intervals.
    ServerDown,
    /// The server refuses these (*,G) joins. The (S,G) joins are sent without them.
    AsmRefused(Vec<Channel>),
}

/// Progress of the session with the server, with the watcher id.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Session {
    NoId,
    Unregistered(String),
    Registered(String),
}

/// The state machine of an MNAT client.
///
/// The caller sends the requests of [`Machine::poll_request`] and passes each outcome to
/// [`Machine::handle_outcome`]. It calls [`Machine::handle_timeout`] at the time of
/// [`Machine::poll_timeout`], and reads [`Machine::poll_event`] after each call.
#[derive(Debug)]
pub struct Machine {
    role: MnatRole,
    grace: Duration,
    /// Creation time; a request that is due at once has this due time.
    created: Instant,
    random: u64,
    session: Session,
    session_number: u64,
    in_flight: Option<Op>,
    /// Earliest time of the next request, by [`Op::label`].
    not_before: BTreeMap<&'static str, Instant>,
    failures: u32,
    refusals: u32,
    last_failure: Option<(Op, String)>,
    refresh_interval: Duration,
    refresh_at: Instant,
    poll_at: Instant,
    /// The server answers polls when something changes.
    has_push: bool,
    /// The entity tag of the mappings in use, for the next poll.
    entity_tag: Option<String>,
    /// The request in flight names the mappings in use.
    is_conditional: bool,
    /// The joins changed since the poll in flight was sent.
    is_poll_stale: bool,
    /// The last mappings were complete: those that they lack have ended.
    was_settled: bool,
    /// The joins changed since they were sent.
    dirty: bool,
    /// The joins were sent in this session.
    joins_sent: bool,
    /// The last join request contained (*,G) joins.
    asm_sent: bool,
    /// A join request with (*,G) joins failed. The next one is sent without them.
    asm_suspect: bool,
    /// When (*,G) joins are sent again after the server refused them.
    asm_refused_until: Option<Instant>,
    /// Time of the first successful poll in this session.
    first_poll: Option<Instant>,
    /// Time of the last successful poll.
    last_poll: Option<Instant>,
    /// End of the time in which other clients may not have polled yet after an outage.
    recovered_at: Option<Instant>,
    /// Time of the last response.
    last_response: Option<Instant>,
    up: bool,
    mappings: Mappings,
    /// The problems of the last poll, which are not reported again.
    problems: BTreeSet<String>,
    events: VecDeque<MnatEvent>,
}

impl Machine {
    /// Returns a machine without a session and mappings. `seed` randomizes the retry delays.
    pub fn new(role: MnatRole, grace: Duration, now: Instant, seed: u64) -> Self {
        Self {
            role,
            grace,
            created: now,
            random: seed,
            session: Session::NoId,
            session_number: 0,
            in_flight: None,
            not_before: BTreeMap::new(),
            failures: 0,
            refusals: 0,
            last_failure: None,
            refresh_interval: DEFAULT_REFRESH_INTERVAL,
            refresh_at: now,
            poll_at: now,
            has_push: false,
            entity_tag: None,
            is_conditional: false,
            is_poll_stale: false,
            was_settled: false,
            dirty: false,
            joins_sent: false,
            asm_sent: false,
            asm_suspect: false,
            asm_refused_until: None,
            first_poll: None,
            last_poll: None,
            recovered_at: None,
            last_response: None,
            up: false,
            mappings: Mappings::new(role),
            problems: BTreeSet::new(),
            events: VecDeque::new(),
        }
    }

    /// Returns session, joins and mappings as data. `server` is that of the session. The transitions
    /// are those of a [`super::RoutePlan`].
    pub fn saved(&self, clock: &ClockReading, server: (String, u16)) -> SavedMnat {
        let refresh_interval_ms = self.refresh_interval.as_millis() as u64;
        let watcher = match &self.session {
            Session::NoId | Session::Unregistered(_) => None,
            Session::Registered(id) => Some(SavedWatcher {
                id: id.clone(),
                refresh_interval_ms,
            }),
        };
        SavedMnat {
            role: self.role.label().to_owned(),
            server,
            watcher,
            mappings: self.mappings.saved(clock),
            joins: self.mappings.joins().collect(),
            transitions: Vec::new(),
        }
    }

    /// Continues saved state: the session, if it was one with `server`, and the mappings that have
    /// not expired since. The server corrects them. State of the other role is ignored.
    ///
    /// An egress must set its joins before it sends a request.
    pub fn restore(&mut self, clock: &ClockReading, saved: &SavedMnat, server: &(String, u16)) {
        if saved.role != self.role.label() {
            return;
        }
        let watcher = saved.watcher.as_ref().filter(|_| saved.server == *server);
        if let Some(SavedWatcher {
            id,
            refresh_interval_ms,
        }) = watcher
            && (1..=MAX_ID_LEN).contains(&id.len())
        {
            let interval = Duration::from_millis(*refresh_interval_ms);
            self.refresh_interval = interval.clamp(MIN_REFRESH_INTERVAL, MAX_REFRESH_INTERVAL);
            self.session = Session::Registered(id.clone());
            self.dirty = self.role == MnatRole::Egress;
            self.first_poll = Some(clock.now);
        } else {
            // The mappings are those of an earlier session.
            self.session_number += 1;
        }
        // A restored session is the first one.
        let session = 0;
        let lifetime = self.mapping_lifetime();
        let restored = self
            .mappings
            .restore(clock, &saved.mappings, lifetime, session);
        self.report_changes(restored);
    }

    /// Returns the role.
    pub fn role(&self) -> MnatRole {
        self.role
    }

    /// Returns true while the server answers.
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<MnatEvent> {
        self.events.pop_front()
    }

    /// Sets how long a mapping stays in use without confirmation.
    pub fn set_grace(&mut self, grace: Duration) {
        self.grace = grace;
    }

    /// Restarts the protocol, because the server or the client certificate changed. The mappings
    /// stay in use. The outcome of a request that is in flight must not be passed to the machine.
    pub fn reset_connection(&mut self, now: Instant) {
        self.start_session(now);
        self.in_flight = None;
        self.failures = 0;
        self.last_failure = None;
        self.refresh_interval = DEFAULT_REFRESH_INTERVAL;
        self.last_response = None;
        self.up = false;
    }

    /// Replaces the requested channels. An ingress ignores them.
    pub fn set_joins(&mut self, now: Instant, joins: &BTreeSet<Channel>) {
        let left_out = self.mappings.left_out();
        let changes = self.mappings.set_joins(now, joins);
        if self.mappings.left_out() != left_out {
            let left_out = MnatEvent::JoinsLeftOut(self.mappings.left_out());
            self.events.push_back(left_out);
        }
        if let Some(changes) = changes {
            self.report_changes(changes);
            self.dirty = true;
            self.entity_tag = None;
            self.is_poll_stale = true;
        }
    }

    fn report_changes(&mut self, changes: Vec<MappingChange>) {
        self.events
            .extend(changes.into_iter().map(MnatEvent::Change));
    }

    /// Returns the next request if one is due. Its outcome must be passed to
    /// [`Machine::handle_outcome`]; until then no other request is due.
    pub fn poll_request(&mut self, now: Instant) -> Option<MnatRequest> {
        if self.in_flight.is_some() {
            return None;
        }
        let (at, op) = self.next_op(now)?;
        if now < at {
            return None;
        }
        let request = match (&self.session, op) {
            (Session::NoId, _) => MnatRequest::new_watcher(),
            (Session::Unregistered(id), _) => MnatRequest::register(self.role, id),
            (Session::Registered(id), Op::Join) => {
                let asm = !self.asm_suspect && self.asm_refused_until.is_none_or(|t| now >= t);
                let joins = self.mappings.joins();
                let joins = joins.filter(|c| asm || c.source().is_some());
                let request = MnatRequest::join(id, joins);
                self.asm_sent = asm && self.asm_joins().next().is_some();
                self.dirty = false;
                request
            }
            (Session::Registered(id), Op::Refresh) => MnatRequest::refresh(id),
            (Session::Registered(id), _) => {
                // The server answers before the next refresh, and in time after the last answer if
                // another request cancelled a poll.
                let until_refresh = self.refresh_at.saturating_duration_since(now);
                let answered = self.last_poll.unwrap_or(now);
                let until_late = answered + POLL_INTERVAL + MIN_WAIT;
                let until_late = until_late.saturating_duration_since(now);
                let wait = until_refresh.min(until_late).clamp(MIN_WAIT, POLL_INTERVAL);
                // The first response after the server knows all joins ends mappings, even if it is
                // that of the poll before.
                let known = self.entity_tag.clone();
                let known = known.filter(|_| self.was_settled || !self.is_settled(now));
                self.is_poll_stale = false;
                MnatRequest::poll(id).waiting(wait, known)
            }
        };
        self.in_flight = Some(request.op);
        let known = request.wait.as_ref().and_then(|wait| wait.known.as_ref());
        self.is_conditional = known.is_some();
        Some(request)
    }

    /// Returns the (*,G) joins.
    fn asm_joins(&self) -> impl Iterator<Item = Channel> {
        let joins = self.mappings.joins();
        joins.filter(|c| c.source().is_none())
    }

    /// Returns the kind of the next request, and when it is due. If several are due, a poll comes last:
    /// the server may delay its response. Joins come first.
    fn next_op(&self, now: Instant) -> Option<(Instant, Op)> {
        let order = |(at, op): &(Instant, Op)| (*at.max(&now), *op == Op::Poll, *at);
        self.ops().min_by_key(order)
    }

    /// Returns the kinds of requests of the session, and when they are due.
    fn ops(&self) -> impl Iterator<Item = (Instant, Op)> {
        let delayed = |op: Op, at: Instant| {
            let earliest = self.not_before.get(op.label());
            (earliest.map_or(at, |e| at.max(*e)), op)
        };
        // A request that is due at once was due at creation. It thus precedes all others.
        let start = self.created;
        let ops = match &self.session {
            Session::NoId => [Some(delayed(Op::NewWatcher, start)), None, None, None],
            Session::Unregistered(_) => [Some(delayed(Op::Register, start)), None, None, None],
            Session::Registered(_) => {
                let join = self.dirty.then(|| delayed(Op::Join, start));
                let asm = self.asm_refused_until.map(|at| delayed(Op::Join, at));
                let refresh = Some(delayed(Op::Refresh, self.refresh_at));
                let poll = Some(delayed(Op::Poll, self.poll_at));
                [join, asm, refresh, poll]
            }
        };
        ops.into_iter().flatten()
    }

    /// Returns when [`Machine::poll_request`] or [`Machine::handle_timeout`] must be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let request = match self.in_flight {
            None => self.ops().map(|(at, _)| at).min(),
            Some(_) => None,
        };
        let down = self.last_response.filter(|_| self.up);
        let down = down.map(|last| last + self.server_timeout());
        [request, down, self.expiry()].into_iter().flatten().min()
    }

    /// Marks the server as down if it did not answer, and removes mappings that were not confirmed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.up
            && self
                .last_response
                .is_none_or(|last| now >= last + self.server_timeout())
        {
            self.up = false;
            self.events.push_back(MnatEvent::ServerDown);
        }
        if self.expiry().is_some_and(|at| now >= at) {
            let expired = self.mappings.expire(now, self.mapping_lifetime());
            self.report_changes(expired);
        }
    }

    /// Returns the time without a response after which the server counts as down: 2.5 refresh
    /// intervals.
    fn server_timeout(&self) -> Duration {
        self.refresh_interval * 5 / 2
    }

    /// Returns how long a mapping stays in use without confirmation.
    fn mapping_lifetime(&self) -> Duration {
        self.grace.max(self.server_timeout())
    }

    /// Returns when the next mapping expires, unless the server confirms it before.
    fn expiry(&self) -> Option<Instant> {
        self.mappings
            .oldest()
            .map(|at| at + self.mapping_lifetime())
    }

    /// Returns whether the poll in flight, which may take [`POLL_INTERVAL`], delays another request.
    /// The caller then cancels it and calls [`Machine::handle_cancelled`].
    pub fn should_cancel(&self, now: Instant) -> bool {
        let is_due = |(at, op): (Instant, Op)| op != Op::Poll && at <= now;
        self.in_flight == Some(Op::Poll) && self.has_push && self.ops().any(is_due)
    }

    /// Ends the request in flight without an outcome.
    pub fn handle_cancelled(&mut self) {
        self.in_flight = None;
    }

    /// Sets the entity tag of a response, before its outcome is handled. `None` if the server does not
    /// answer polls when something changes.
    pub fn set_entity_tag(&mut self, entity_tag: Option<String>) {
        if self.in_flight == Some(Op::Poll) {
            self.has_push = entity_tag.is_some();
            self.entity_tag = entity_tag.filter(|_| !self.is_poll_stale);
        }
    }

    /// Handles the outcome of the request in flight: status and body of the response, or the reason
    /// why there is none.
    pub fn handle_outcome(&mut self, now: Instant, outcome: Result<(u16, &[u8]), String>) {
        let Some(op) = self.in_flight.take() else {
            return;
        };
        let response = match outcome {
            // Only a conditional request can be answered so.
            Ok((304, _)) if !self.is_conditional => Err(ProtocolFault::Status {
                status: 304,
                message: None,
            }),
            Ok((status, body)) => protocol::parse_response(op, status, body),
            Err(why) => return self.handle_failure(now, op, why),
        };
        match response {
            Ok(ServerResponse::UnknownWatcher) => self.handle_unknown_watcher(now),
            Ok(response) => {
                self.handle_success(now, op);
                self.handle_response(now, op, response);
            }
            Err(fault) => {
                let refused = matches!(fault, ProtocolFault::Status { .. });
                self.refusals += u32::from(refused);
                self.handle_failure(now, op, fault.to_string());
                let invalid_id = op == Op::Register && refused;
                if invalid_id || self.refusals >= MAX_REFUSALS {
                    self.start_session(now);
                    self.back_off(now, Op::NewWatcher);
                }
            }
        }
    }

    fn handle_success(&mut self, now: Instant, op: Op) {
        self.failures = 0;
        self.refusals = 0;
        self.last_failure = None;
        self.not_before.remove(op.label());
        self.handle_contact(now);
        if op == Op::Poll {
            if self.last_poll.is_none_or(|last| now > last + OUTAGE) {
                self.recovered_at = Some(now + RECOVERY_TIME);
            }
            self.last_poll = Some(now);
        }
    }

    /// Marks the server as up.
    fn handle_contact(&mut self, now: Instant) {
        self.last_response = Some(now);
        if !self.up {
            self.up = true;
            self.events.push_back(MnatEvent::ServerUp);
        }
    }

    fn handle_failure(&mut self, now: Instant, op: Op, why: String) {
        self.failures = self.failures.saturating_add(1);
        let failure = (op, why);
        let is_new = self.last_failure.as_ref() != Some(&failure);
        self.last_failure = Some(failure.clone());
        let (op, why) = failure;
        self.events.push_back(MnatEvent::Failed { op, why, is_new });
        self.back_off(now, op);
        if op == Op::Join {
            self.dirty = true;
            // The prototype's server drops the connection if a request contains a (*,G) join. The
            // next attempt sends the (S,G) joins alone.
            self.asm_suspect = self.asm_sent;
        }
    }

    /// Delays the next request of kind `op`, depending on the number of failures.
    fn back_off(&mut self, now: Instant, op: Op) {
        let doublings = self.failures.saturating_sub(1).min(8);
        let delay = (MIN_BACKOFF * 2u32.pow(doublings)).min(MAX_BACKOFF);
        // Half of the delay is random, so that not all clients retry at the same time.
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005);
        self.random = self.random.wrapping_add(1_442_695_040_888_963_407);
        let fraction = 0.5 + (self.random >> 40) as f64 / (1u64 << 25) as f64;
        self.not_before
            .insert(op.label(), now + delay.mul_f64(fraction));
    }

    fn handle_unknown_watcher(&mut self, now: Instant) {
        self.handle_contact(now);
        self.events.push_back(MnatEvent::UnknownWatcher);
        let new_session = self.first_poll.is_none();
        self.start_session(now);
        if new_session {
            // Waits before the next session, because this one ended before its first poll.
            self.failures = self.failures.saturating_add(1);
            self.back_off(now, Op::NewWatcher);
        }
    }

    /// Starts a new session. All mappings stay in use, but count as not confirmed.
    fn start_session(&mut self, now: Instant) {
        self.session = Session::NoId;
        self.session_number += 1;
        self.not_before.clear();
        self.refusals = 0;
        self.poll_at = now;
        self.entity_tag = None;
        self.was_settled = false;
        self.first_poll = None;
        self.joins_sent = false;
        self.asm_suspect = false;
        self.asm_refused_until = None;
        self.mappings.clear_current();
    }

    fn handle_response(&mut self, now: Instant, op: Op, response: ServerResponse) {
        match (op, response) {
            (_, ServerResponse::Watcher { id, refresh }) => {
                self.session = Session::Unregistered(id);
                self.refresh_interval = refresh;
                self.refresh_at = now + refresh;
            }
            (_, ServerResponse::Mappings { mappings, problems }) => {
                self.schedule_poll(now);
                self.handle_mappings(now, mappings, problems);
            }
            (_, ServerResponse::NotModified) => {
                self.schedule_poll(now);
                self.mappings.confirm(now);
                let settled = self.is_settled(now);
                self.events.push_back(MnatEvent::Polled { settled });
            }
            (Op::Register, _) => {
                if let Session::Unregistered(id) = &self.session {
                    self.session = Session::Registered(id.clone());
                    self.dirty = self.role == MnatRole::Egress;
                    self.poll_at = now;
                    self.events.push_back(MnatEvent::Registered);
                }
            }
            (Op::Join, _) => {
                self.joins_sent = true;
                self.poll_at = now;
                let asm: Vec<Channel> = self.asm_joins().collect();
                if self.asm_suspect && !self.asm_sent && !asm.is_empty() {
                    self.asm_refused_until = Some(now + ASM_RETRY_INTERVAL);
                    self.events.push_back(MnatEvent::AsmRefused(asm));
                } else if self.asm_sent || asm.is_empty() {
                    self.asm_refused_until = None;
                }
                self.asm_suspect = false;
            }
            _ => self.refresh_at = next_due(self.refresh_at, self.refresh_interval, now),
        }
    }

    /// Returns whether the server knows all joins in this session.
    fn is_settled(&self, now: Instant) -> bool {
        // After a restart, the server knows all joins only when every egress has sent its own.
        match self.role {
            MnatRole::Egress => self.joins_sent,
            MnatRole::Ingress => {
                let start = self.first_poll;
                start.is_some_and(|start| now >= start + self.server_timeout())
            }
        }
    }

    /// Sets when the next poll is due, after a response to one.
    fn schedule_poll(&mut self, now: Instant) {
        self.poll_at = match self.has_push {
            // The server delays its response.
            true => now + MIN_POLL_INTERVAL,
            false => next_due(self.poll_at, POLL_INTERVAL, now),
        };
    }

    /// Updates the mappings in use from the mappings of a response.
    fn handle_mappings(&mut self, now: Instant, mappings: Vec<Mapping>, problems: Vec<String>) {
        self.first_poll.get_or_insert(now);
        let settled = self.is_settled(now);
        self.was_settled = settled;
        let context = PollContext {
            session: self.session_number,
            settled,
            complete: problems.is_empty(),
            after_outage: self.recovered_at.is_some_and(|at| now < at),
        };
        let problems: BTreeSet<String> = problems.into_iter().collect();
        let (changes, unusable) = self.mappings.compare(now, mappings, context);
        let new = problems.difference(&self.problems);
        let new: Vec<&String> = new.chain(&unusable).collect();
        if !new.is_empty() {
            let examples = new.iter().take(MAX_EXAMPLES);
            self.events.push_back(MnatEvent::InvalidMappings {
                count: new.len(),
                examples: examples.map(ToString::to_string).collect(),
            });
        }
        self.problems = problems;
        self.report_changes(changes);
        self.events.push_back(MnatEvent::Polled { settled });
    }

    /// Returns the status of every global channel that is mapped or requested, in order.
    pub fn mapping_reports(&self) -> Vec<MappingReport> {
        self.mappings.reports(self.up)
    }

    /// Returns the number of channels of each status, in the order of
    /// [`super::MappingStatus::ALL`].
    pub fn counts(&self) -> [usize; 4] {
        self.mappings.counts(self.up)
    }

    /// Returns the global channels with a mapping in use.
    pub fn assigned(&self) -> impl Iterator<Item = Channel> {
        self.mappings.assigned()
    }
}

/// Returns the next due time of a periodic request: one interval after the previous due time, or
/// after `now` if that is past.
fn next_due(previous: Instant, interval: Duration, now: Instant) -> Instant {
    let next = previous + interval;
    if next > now { next } else { now + interval }
}

#[cfg(test)]
mod tests;
