//! What a client of the server does when: a machine without sockets and clocks.
//!
//! Lifecycle of a session: an id is asked for and registered; an egress tells what is joined,
//! whole, after each change; both ask for the mappings every [`POLL_EVERY`] and refresh the id as
//! often as the server wants it. Whatever fails is tried again, each kind of request at its own
//! time. A server that forgot the id gets a new session.
//!
//! Mappings outlive sessions: what was assigned stays until the server, in a session that knows
//! all joins again, no longer says so, or until nothing was heard of it for the grace time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::channel::Channel;
use super::mappings::{MappingChange, MappingReport, Mappings, Weight};
use super::protocol::{self, Mapping, MnatRequest, MnatRole, Op, ProtocolFault, ServerResponse};

/// How often the mappings are asked for.
pub const POLL_EVERY: Duration = Duration::from_secs(10);
/// How often an id is refreshed until the server says how often.
const REFRESH_EVERY: Duration = Duration::from_secs(20);
/// First wait after a failure; doubled with each further one.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// Longest such wait.
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// Refusals in a row after which another id is asked for: the server may have bound this one
/// to something we no longer are.
const MOST_REFUSALS: u32 = 3;
/// How long no (*,G) is told to a server that refuses them.
const ASM_REFUSED_FOR: Duration = Duration::from_secs(60);
/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MnatEvent {
    /// A mapping changed.
    Change(MappingChange),
    /// The mappings were asked for and answered.
    Polled {
        /// The server knows all joins, in this session: what it does not name is gone.
        settled: bool,
    },
    /// A request failed.
    Failed {
        /// Which.
        op: Op,
        /// Why.
        why: String,
        /// It did not fail so before.
        news: bool,
    },
    /// Something in an answer was left out.
    Oddity(String),
    /// So many joins, the last in order, are not told: a request cannot hold them.
    LeftOut(usize),
    /// A new id is registered.
    Registered,
    /// The server does not know our id any more.
    Forgotten,
    /// It answers again, or for the first time.
    Back,
    /// It did not answer for 2.5 refresh periods.
    Away,
    /// It refuses these (*,G); the (S,G) are told without them.
    AsmRefused(Vec<Channel>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Session {
    Nameless,
    Named(String),
    Registered(String),
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    role: MnatRole,
    grace: Duration,
    born: Instant,
    random: u64,
    session: Session,
    session_number: u64,
    in_flight: Option<Op>,
    not_before: BTreeMap<&'static str, Instant>,
    failures: u32,
    refusals: u32,
    last_failure: Option<(Op, String)>,
    refresh_every: Duration,
    refresh_at: Instant,
    poll_at: Instant,
    /// What is wanted was not told yet.
    dirty: bool,
    /// What is wanted was told in this session.
    told: bool,
    asm_sent: bool,
    asm_suspect: bool,
    asm_refused_until: Option<Instant>,
    /// The first good poll of this session.
    session_polled: Option<Instant>,
    contact: Option<Instant>,
    up: bool,
    mappings: Mappings,
    oddities: BTreeSet<String>,
    events: VecDeque<MnatEvent>,
}

impl Machine {
    /// A machine that knows nothing yet. `seed` varies the waits between attempts.
    pub fn new(role: MnatRole, grace: Duration, now: Instant, seed: u64) -> Self {
        Self {
            role,
            grace,
            born: now,
            random: seed,
            session: Session::Nameless,
            session_number: 0,
            in_flight: None,
            not_before: BTreeMap::new(),
            failures: 0,
            refusals: 0,
            last_failure: None,
            refresh_every: REFRESH_EVERY,
            refresh_at: now,
            poll_at: now,
            dirty: false,
            told: false,
            asm_sent: false,
            asm_suspect: false,
            asm_refused_until: None,
            session_polled: None,
            contact: None,
            up: false,
            mappings: Mappings::new(role),
            oddities: BTreeSet::new(),
            events: VecDeque::new(),
        }
    }

    /// Which side this is.
    pub fn role(&self) -> MnatRole {
        self.role
    }

    /// Whether the server answers.
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<MnatEvent> {
        self.events.pop_front()
    }

    /// Mappings that the server does not confirm last that long from now on.
    pub fn set_grace(&mut self, grace: Duration) {
        self.grace = grace;
    }

    /// The server is another one, or knows us as somebody else: it is told everything anew, and
    /// what is mapped is held meanwhile. A request that is on its way has no outcome.
    pub fn start_over(&mut self, now: Instant) {
        self.start_anew(now);
        self.in_flight = None;
        self.failures = 0;
        self.last_failure = None;
        self.refresh_every = REFRESH_EVERY;
        self.contact = None;
        self.up = false;
    }

    /// What is wanted from now on, whole. Only an egress wants.
    pub fn want(&mut self, now: Instant, wanted: &BTreeSet<Channel>) {
        let left_out = self.mappings.left_out();
        let changes = self.mappings.want(now, wanted);
        if self.mappings.left_out() != left_out {
            let left_out = MnatEvent::LeftOut(self.mappings.left_out());
            self.events.push_back(left_out);
        }
        if let Some(changes) = changes {
            self.tell(changes);
            self.dirty = true;
        }
    }

    fn tell(&mut self, changes: Vec<MappingChange>) {
        self.events
            .extend(changes.into_iter().map(MnatEvent::Change));
    }

    /// The next request to send, if one is due. Its outcome must be told to
    /// [`Machine::handle_outcome`]; until then there is no other.
    pub fn poll_request(&mut self, now: Instant) -> Option<MnatRequest> {
        if self.in_flight.is_some() {
            return None;
        }
        let (at, op) = self.next_op()?;
        if now < at {
            return None;
        }
        let request = match (&self.session, op) {
            (Session::Nameless, _) => MnatRequest::new_watcher(),
            (Session::Named(id), _) => MnatRequest::register(self.role, id),
            (Session::Registered(id), Op::Join) => {
                let asm = !self.asm_suspect && self.asm_refused_until.is_none_or(|t| now >= t);
                let joined = self.mappings.wanted();
                let joined = joined.filter(|c| asm || c.source().is_some());
                let request = MnatRequest::join(id, joined);
                self.asm_sent = asm && self.asm_wanted().next().is_some();
                self.dirty = false;
                request
            }
            (Session::Registered(id), Op::Refresh) => MnatRequest::refresh(id),
            (Session::Registered(id), _) => MnatRequest::poll(id),
        };
        self.in_flight = Some(request.op);
        Some(request)
    }

    fn asm_wanted(&self) -> impl Iterator<Item = Channel> {
        let wanted = self.mappings.wanted();
        wanted.filter(|c| c.source().is_none())
    }

    /// The request to be sent next, and when.
    fn next_op(&self) -> Option<(Instant, Op)> {
        let after = |op: Op, at: Instant| {
            let earliest = self.not_before.get(op.label());
            (earliest.map_or(at, |e| at.max(*e)), op)
        };
        // What is due at once is due since the beginning.
        let start = self.born;
        match &self.session {
            Session::Nameless => Some(after(Op::NewWatcher, start)),
            Session::Named(_) => Some(after(Op::Register, start)),
            Session::Registered(_) => {
                // Of those that are due together the first counts: what is wanted goes first.
                let join = self.dirty.then(|| after(Op::Join, start));
                let asm = self.asm_refused_until.map(|at| after(Op::Join, at));
                let refresh = Some(after(Op::Refresh, self.refresh_at));
                let poll = Some(after(Op::Poll, self.poll_at));
                let all = [join, asm, refresh, poll].into_iter().flatten();
                all.min_by_key(|(at, _)| *at)
            }
        }
    }

    /// When [`Machine::poll_request`] or [`Machine::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let request = match self.in_flight {
            None => self.next_op().map(|(at, _)| at),
            Some(_) => None,
        };
        let away = self.contact.filter(|_| self.up);
        let away = away.map(|contact| contact + self.patience());
        [request, away, self.expiry()].into_iter().flatten().min()
    }

    /// What happens by itself: the server counts as away, mappings are given up.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.up && self.contact.is_none_or(|c| now >= c + self.patience()) {
            self.up = false;
            self.events.push_back(MnatEvent::Away);
        }
        if self.expiry().is_some_and(|at| now >= at) {
            let over = self.mappings.expire(now, self.keep());
            self.tell(over);
        }
    }

    /// A server is away only after more than 2.5 refresh periods.
    fn patience(&self) -> Duration {
        self.refresh_every * 5 / 2
    }

    /// How long a mapping lasts that is not confirmed.
    fn keep(&self) -> Duration {
        self.grace.max(self.patience())
    }

    /// When the first mapping is given up, unless the server confirms it.
    fn expiry(&self) -> Option<Instant> {
        self.mappings.oldest().map(|at| at + self.keep())
    }

    /// What came of the request: status and body, or why there is none.
    pub fn handle_outcome(&mut self, now: Instant, outcome: Result<(u16, &[u8]), String>) {
        let Some(op) = self.in_flight.take() else {
            return;
        };
        let read = match outcome {
            Ok((status, body)) => protocol::read(op, status, body),
            Err(why) => return self.failed(now, op, why),
        };
        match read {
            Ok(ServerResponse::Forgotten) => self.forgotten(now),
            Ok(answer) => {
                self.succeeded(now, op);
                self.handle_answer(now, op, answer);
            }
            Err(fault) => {
                let refused = matches!(fault, ProtocolFault::Status { .. });
                self.refusals += u32::from(refused);
                self.failed(now, op, fault.to_string());
                let stale = op == Op::Register && refused;
                if stale || self.refusals >= MOST_REFUSALS {
                    self.start_anew(now);
                    self.put_off(now, Op::NewWatcher);
                }
            }
        }
    }

    fn succeeded(&mut self, now: Instant, op: Op) {
        self.failures = 0;
        self.refusals = 0;
        self.last_failure = None;
        self.not_before.remove(op.label());
        self.heard(now);
    }

    fn heard(&mut self, now: Instant) {
        self.contact = Some(now);
        if !self.up {
            self.up = true;
            self.events.push_back(MnatEvent::Back);
        }
    }

    fn failed(&mut self, now: Instant, op: Op, why: String) {
        self.failures = self.failures.saturating_add(1);
        let failure = (op, why);
        let news = self.last_failure.as_ref() != Some(&failure);
        self.last_failure = Some(failure.clone());
        let (op, why) = failure;
        self.events.push_back(MnatEvent::Failed { op, why, news });
        self.put_off(now, op);
        if op == Op::Join {
            self.dirty = true;
            // The prototype drops the connection for a (*,G); the others must not suffer.
            self.asm_suspect = self.asm_sent;
        }
    }

    fn put_off(&mut self, now: Instant, op: Op) {
        let doublings = self.failures.saturating_sub(1).min(8);
        let wait = (FIRST_BACKOFF * 2u32.pow(doublings)).min(LONGEST_BACKOFF);
        // Half of it by chance, so that not all clients come back at once.
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005);
        self.random = self.random.wrapping_add(1_442_695_040_888_963_407);
        let part = 0.5 + (self.random >> 40) as f64 / (1u64 << 25) as f64;
        self.not_before.insert(op.label(), now + wait.mul_f64(part));
    }

    fn forgotten(&mut self, now: Instant) {
        self.heard(now);
        self.events.push_back(MnatEvent::Forgotten);
        let young = self.session_polled.is_none();
        self.start_anew(now);
        if young {
            // Forgotten before it was of any use: not at once again.
            self.failures = self.failures.saturating_add(1);
            self.put_off(now, Op::NewWatcher);
        }
    }

    fn start_anew(&mut self, now: Instant) {
        self.session = Session::Nameless;
        self.session_number += 1;
        self.not_before.clear();
        self.refusals = 0;
        self.poll_at = now;
        self.session_polled = None;
        self.told = false;
        self.asm_suspect = false;
        self.asm_refused_until = None;
        self.mappings.doubt();
    }

    fn handle_answer(&mut self, now: Instant, op: Op, answer: ServerResponse) {
        match (op, answer) {
            (_, ServerResponse::Watcher { id, refresh }) => {
                self.session = Session::Named(id);
                self.refresh_every = refresh;
                self.refresh_at = now + refresh;
            }
            (_, ServerResponse::Mappings { mappings, oddities }) => {
                self.poll_at = next_beat(self.poll_at, POLL_EVERY, now);
                self.polled(now, mappings, oddities);
            }
            (Op::Register, _) => {
                if let Session::Named(id) = &self.session {
                    self.session = Session::Registered(id.clone());
                    self.dirty = self.role == MnatRole::Egress;
                    self.poll_at = now;
                    self.events.push_back(MnatEvent::Registered);
                }
            }
            (Op::Join, _) => {
                self.told = true;
                self.poll_at = now;
                let asm: Vec<Channel> = self.asm_wanted().collect();
                if self.asm_suspect && !self.asm_sent && !asm.is_empty() {
                    self.asm_refused_until = Some(now + ASM_REFUSED_FOR);
                    self.events.push_back(MnatEvent::AsmRefused(asm));
                } else if self.asm_sent || asm.is_empty() {
                    self.asm_refused_until = None;
                }
                self.asm_suspect = false;
            }
            _ => self.refresh_at = next_beat(self.refresh_at, self.refresh_every, now),
        }
    }

    /// Compares what the server says with what is in use.
    fn polled(&mut self, now: Instant, mappings: Vec<Mapping>, oddities: Vec<String>) {
        let began = *self.session_polled.get_or_insert(now);
        // A server that starts anew knows of no joins until all egresses have told theirs.
        let settled = match self.role {
            MnatRole::Egress => self.told,
            MnatRole::Ingress => now >= began + self.patience(),
        };
        let weight = Weight {
            session: self.session_number,
            settled,
            whole: oddities.is_empty(),
        };
        for oddity in &oddities {
            if !self.oddities.contains(oddity) {
                self.events.push_back(MnatEvent::Oddity(oddity.clone()));
            }
        }
        self.oddities = oddities.into_iter().collect();
        let (changes, odd) = self.mappings.compare(now, mappings, weight);
        self.events.extend(odd.into_iter().map(MnatEvent::Oddity));
        self.tell(changes);
        self.events.push_back(MnatEvent::Polled { settled });
    }

    /// Every global channel that is mapped or wanted, in order.
    pub fn standings(&self) -> Vec<MappingReport> {
        self.mappings.standings(self.up)
    }

    /// How many mappings stand in each way, in the order of [`super::MappingStatus::ALL`].
    pub fn counts(&self) -> [usize; 4] {
        self.mappings.counts(self.up)
    }

    /// The global channels that go through now.
    pub fn assigned(&self) -> impl Iterator<Item = Channel> {
        self.mappings.assigned()
    }
}

/// The next time of something regular: on its beat, or from now on where that is long past.
fn next_beat(was: Instant, every: Duration, now: Instant) -> Instant {
    let next = was + every;
    if next > now { next } else { now + every }
}

#[cfg(test)]
mod tests;
