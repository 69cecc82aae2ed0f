//! A gateway (RFC 7450 section 5.2, RFC 8777): chooses a relay for each stream, and requests the
//! streams there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::candidate::{LookupKey, RelayCandidate, RelayWay};
use super::discovery::Discovery;
use super::lookups::Lookups;
use super::random::AmtRandom;
use super::refusal::AmtRefusal;
use super::tunnel::{RelayTunnel, TunnelState, TunnelStatus, protocol_of};
use crate::membership::Protocol;
use crate::model::{Group, Source, SourceFilter};
use crate::wire::amt::AmtMessage;

/// Head start of a candidate before another one of the same rank (RFC 8305 section 8).
const EQUAL_RANK_DELAY: Duration = Duration::from_millis(250);

/// Head start of a candidate before another one of a higher rank. It includes one retransmission.
const OTHER_RANK_DELAY: Duration = Duration::from_secs(2);

/// Limits of the time without a packet after which another relay is tried (RFC 8777 section
/// 2.5.4.1). It grows while relay after relay sends nothing, because the source may have paused.
const SILENCE: [Duration; 2] = [Duration::from_secs(4), Duration::from_secs(120)];

/// Limits of the time for which a relay that failed comes after all others (RFC 8777 section
/// 2.5.4.1).
const HOLD_DOWN: [Duration; 2] = [Duration::from_secs(180), Duration::from_secs(600)];

/// The same for a relay that has reached its limit (RFC 8777 section 2.5.5).
const LIMIT_HOLD_DOWN: [Duration; 2] = [Duration::from_secs(540), Duration::from_secs(660)];

/// Limit of the events that wait. A further event replaces the oldest one.
const MAX_EVENTS: usize = 64;

/// Configuration of one [`Gateway`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayConfig {
    /// Where relays are looked for, in this order.
    pub ways: Vec<RelayWay>,
    /// Whether IPv4 and IPv6 streams are requested.
    pub families: [bool; 2],
    /// Whether this host has an IPv4 and an IPv6 socket for tunnels.
    pub outer: [bool; 2],
}

impl GatewayConfig {
    /// Returns whether the relay depends on the source.
    fn is_source_specific(&self) -> bool {
        self.ways.contains(&RelayWay::Driad)
    }
}

/// An output of a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GatewayOutput {
    /// A message to send.
    Send {
        /// The address of the relay.
        to: SocketAddr,
        /// The payload of the datagram.
        message: Vec<u8>,
    },
    /// A question to name servers. The answer goes to [`Gateway::handle_answer`].
    Lookup(LookupKey),
}

/// Why a relay is not used any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayFailure {
    /// It does not answer.
    Unresponsive,
    /// It accepts no new gateway.
    LimitReached,
    /// No packet arrives from it.
    Silent,
}

impl RelayFailure {
    /// Returns the value of the `result` label of metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unresponsive => "unresponsive",
            Self::LimitReached => "limit_reached",
            Self::Silent => "silent",
        }
    }
}

/// An event for the log and the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GatewayEvent {
    /// A relay was chosen.
    Connected {
        /// The label of the way by which it was found.
        way: &'static str,
        /// The address of the relay.
        relay: SocketAddr,
        /// The protocol of the streams.
        protocol: Protocol,
    },
    /// A relay, or an address at which one should be discovered, failed.
    Failed {
        /// The label of the way by which it was found.
        way: &'static str,
        /// The address.
        address: SocketAddr,
        /// The reason.
        failure: RelayFailure,
        /// Whether the relay was in use.
        was_in_use: bool,
    },
    /// Streams are requested for which no relay is known.
    NoRelay {
        /// The source; `None` for streams whose source does not matter.
        source: Option<Source>,
    },
}

/// Streams that use the same relay: those of one source, or all of one protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct StreamKey {
    protocol: Protocol,
    source: Option<Source>,
}

/// A candidate with its position: the index of the way, then the rank within its lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ranked {
    way: usize,
    candidate: RelayCandidate,
}

impl Ranked {
    fn rank(&self) -> (usize, u16) {
        (self.way, self.candidate.rank)
    }
}

/// A candidate that is being tried.
#[derive(Debug, Clone, Copy)]
struct Trial {
    ranked: Ranked,
    started: Instant,
    has_failed: bool,
}

/// The relay in use.
#[derive(Debug, Clone, Copy)]
struct Chosen {
    ranked: Ranked,
    relay: SocketAddr,
    /// Beginning of the present silence, as far as it was examined.
    silent_since: Instant,
    /// Length of a silence after which another relay is tried.
    max_silence: Duration,
}

/// The choice of a relay for one key.
#[derive(Debug, Default)]
struct Selection {
    groups: BTreeSet<Group>,
    chosen: Option<Chosen>,
    trials: Vec<Trial>,
    /// Timeouts in a row without a packet, whichever relay was in use.
    silences: u32,
    is_missing_reported: bool,
}

/// The candidates of one key.
struct Candidates {
    ranked: Vec<Ranked>,
    /// Whether no lookup is missing.
    is_complete: bool,
}

/// A gateway.
///
/// Methods are of four kinds:
///
/// - Getters take `&self`.
/// - [`set_filter`](Self::set_filter) and [`leave_all`](Self::leave_all) change memberships.
/// - `handle_*` take messages, answers, traffic and expired timers.
/// - `poll_*` return outputs. After calls of the two kinds above, call
///   [`handle_timeout`](Self::handle_timeout), and then [`poll_output`](Self::poll_output) and
///   [`poll_event`](Self::poll_event) until they return None.
///   [`handle_timeout`](Self::handle_timeout) is also due at [`poll_timeout`](Self::poll_timeout).
#[derive(Debug)]
pub struct Gateway {
    config: GatewayConfig,
    random: AmtRandom,
    /// The desired memberships.
    filters: BTreeMap<Group, SourceFilter>,
    selections: BTreeMap<StreamKey, Selection>,
    lookups: Lookups,
    discoveries: BTreeMap<SocketAddr, Discovery>,
    tunnels: BTreeMap<SocketAddr, RelayTunnel>,
    /// The filters that the tunnels have.
    placed: BTreeMap<Group, BTreeMap<SocketAddr, SourceFilter>>,
    /// Groups whose filters have to be placed anew.
    unplaced: BTreeSet<Group>,
    /// Candidates that come after all others, and until when.
    held_down: BTreeMap<SocketAddr, Instant>,
    /// Next time at which a choice may change without another event.
    selection_at: Option<Instant>,
    outputs: VecDeque<GatewayOutput>,
    events: VecDeque<GatewayEvent>,
}

impl Gateway {
    /// Creates a gateway without memberships. It sends nothing until there are some.
    pub fn new(config: GatewayConfig, random: AmtRandom) -> Self {
        Self {
            config,
            random,
            filters: BTreeMap::new(),
            selections: BTreeMap::new(),
            lookups: Lookups::default(),
            discoveries: BTreeMap::new(),
            tunnels: BTreeMap::new(),
            placed: BTreeMap::new(),
            unplaced: BTreeSet::new(),
            held_down: BTreeMap::new(),
            selection_at: None,
            outputs: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    // Getters.

    /// Returns the tunnels.
    pub fn tunnels(&self, now: Instant) -> impl Iterator<Item = TunnelStatus> {
        self.tunnels.values().map(move |tunnel| tunnel.status(now))
    }

    /// Returns the addresses of the relays whose packets are received.
    pub fn relays(&self) -> impl Iterator<Item = SocketAddr> {
        self.tunnels.keys().copied()
    }

    /// Returns how many tunnels are needed and missing: one for each source or protocol without a
    /// connected relay.
    pub fn missing_tunnels(&self) -> usize {
        let selections = self.selections.values();
        selections.filter(|s| s.chosen.is_none()).count()
    }

    /// Returns why a stream is not received; `None` if its relay is connected.
    pub fn missing(&self, group: Group, source: Option<Source>) -> Option<&'static str> {
        let key = self.key(group, source);
        match self.selections.get(&key) {
            None => Some("it is not requested"),
            Some(selection) if selection.chosen.is_some() => None,
            Some(selection) if selection.trials.is_empty() => Some("no relay is known"),
            Some(_) => Some("no relay answers"),
        }
    }

    // Memberships.

    /// Replaces the filter of a group; the empty filter leaves it. Groups of an IP version that is
    /// not configured are ignored.
    pub fn set_filter(&mut self, group: Group, filter: SourceFilter) {
        if !self.config.families[usize::from(group.addr().is_ipv6())] {
            return;
        }
        let former = match filter.is_none() {
            true => self.filters.remove(&group),
            false => self.filters.insert(group, filter.clone()),
        };
        let former = former.map_or_else(BTreeSet::new, |filter| self.keys(group, &filter));
        let keys = self.keys(group, &filter);
        for key in former.difference(&keys) {
            if let Some(selection) = self.selections.get_mut(key) {
                selection.groups.remove(&group);
            }
        }
        for key in keys {
            self.selections.entry(key).or_default().groups.insert(group);
        }
        self.unplaced.insert(group);
    }

    /// Leaves all groups. Each leave is reported once, because this gateway is about to end.
    pub fn leave_all(&mut self, now: Instant) {
        for tunnel in self.tunnels.values_mut() {
            tunnel.leave_all(now);
        }
        self.filters.clear();
        self.placed.clear();
        self.unplaced.clear();
        self.selections.clear();
        self.poll_tunnels(now);
    }

    // Inputs.

    /// Handles a message from `from`.
    ///
    /// # Errors
    /// The reason to ignore it.
    pub fn handle_message(
        &mut self,
        now: Instant,
        from: SocketAddr,
        bytes: &[u8],
    ) -> Result<&'static str, AmtRefusal> {
        let message = AmtMessage::parse(bytes)?;
        match message {
            AmtMessage::RelayAdvertisement { nonce, relay } => {
                let mut discoveries = self.discoveries.iter_mut();
                let found = discoveries.find(|(_, discovery)| discovery.has_nonce(nonce));
                let (address, discovery) = found.ok_or(AmtRefusal::WrongNonce)?;
                if discovery.relay().is_none() {
                    discovery.handle_advertisement(*address, relay)?;
                }
            }
            AmtMessage::MembershipQuery { .. } => {
                let tunnel = self.tunnels.get_mut(&from);
                let tunnel = tunnel.ok_or(AmtRefusal::UnknownRelay)?;
                // The choice of a relay follows from the state of the tunnel.
                tunnel.handle_query(now, &message, &mut self.random)?;
            }
            _ => return Err(AmtRefusal::UnexpectedType),
        }
        Ok(message.label())
    }

    /// Handles packets that a relay sent since the last call.
    pub fn handle_traffic(&mut self, now: Instant, relay: SocketAddr) {
        if let Some(tunnel) = self.tunnels.get_mut(&relay) {
            tunnel.handle_traffic(now);
        }
    }

    /// Handles the answer to a [`GatewayOutput::Lookup`]: candidates in order of preference, and
    /// their time to live. `None`: no name server answered.
    pub fn handle_answer(
        &mut self,
        now: Instant,
        key: &LookupKey,
        answer: Option<(Vec<RelayCandidate>, Duration)>,
    ) {
        self.lookups
            .handle_answer(now, key, answer, &mut self.random);
    }

    /// Handles expired timers and what the other inputs changed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.held_down.retain(|_, until| *until > now);
        for (address, discovery) in &mut self.discoveries {
            if let Some(message) = discovery.poll(now, &mut self.random) {
                let to = *address;
                self.outputs.push_back(GatewayOutput::Send { to, message });
            }
        }
        self.select_all(now);
        for group in std::mem::take(&mut self.unplaced) {
            self.place(now, group);
        }
        self.poll_tunnels(now);
        while let Some(key) = self.lookups.poll(now) {
            self.outputs.push_back(GatewayOutput::Lookup(key));
        }
    }

    // Outputs.

    /// Returns the next output.
    pub fn poll_output(&mut self) -> Option<GatewayOutput> {
        self.outputs.pop_front()
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<GatewayEvent> {
        self.events.pop_front()
    }

    /// Returns the time at which [`handle_timeout`](Self::handle_timeout) is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let discoveries = self
            .discoveries
            .values()
            .filter_map(Discovery::poll_timeout);
        let tunnels = self.tunnels.values().filter_map(RelayTunnel::poll_timeout);
        let others = [self.selection_at, self.lookups.poll_timeout()];
        let others = others.into_iter().flatten();
        discoveries.chain(tunnels).chain(others).min()
    }

    // The choice of relays.

    /// Returns the key of a stream; without a source, of a filter that accepts any.
    fn key(&self, group: Group, source: Option<Source>) -> StreamKey {
        StreamKey {
            protocol: protocol_of(group.addr()),
            source: source.filter(|_| self.config.is_source_specific()),
        }
    }

    /// Returns the keys of a filter.
    fn keys(&self, group: Group, filter: &SourceFilter) -> BTreeSet<StreamKey> {
        match filter {
            SourceFilter::Include(sources) => {
                let keys = sources.iter().map(|source| self.key(group, Some(*source)));
                keys.collect()
            }
            SourceFilter::Exclude(_) => BTreeSet::from([self.key(group, None)]),
        }
    }

    /// Returns the candidates of a key, in order.
    fn candidates(&mut self, now: Instant, key: StreamKey) -> Candidates {
        let mut ranked = Vec::new();
        let mut is_complete = true;
        for (way, kind) in self.config.ways.iter().enumerate() {
            let known = kind.known();
            let looked_up = kind.lookup(key.source);
            let looked_up = match &looked_up {
                None => &[],
                Some(lookup) => match self.lookups.candidates(now, lookup) {
                    Some(candidates) => candidates,
                    None => {
                        // Later ways wait for it.
                        is_complete = false;
                        break;
                    }
                },
            };
            let found = known.iter().chain(looked_up).copied();
            let found = found.filter(|c| self.config.outer[usize::from(c.address.is_ipv6())]);
            ranked.extend(found.map(|candidate| Ranked { way, candidate }));
        }
        Candidates {
            ranked,
            is_complete,
        }
    }

    /// Updates the choice of each key, and starts and ends what the choices need.
    fn select_all(&mut self, now: Instant) {
        self.selections.retain(|_, s| !s.groups.is_empty());
        let keys: Vec<StreamKey> = self.selections.keys().copied().collect();
        self.selection_at = None;
        let mut wanted = BTreeSet::new();
        let mut discovered = BTreeSet::new();
        for key in keys {
            let Some(mut selection) = self.selections.remove(&key) else {
                continue;
            };
            let next = self.select(now, key, &mut selection);
            self.selection_at = self.selection_at.into_iter().chain(next).min();
            wanted.extend(selection.chosen.map(|chosen| (chosen.relay, key.protocol)));
            for trial in &selection.trials {
                let candidate = trial.ranked.candidate;
                discovered.extend(candidate.needs_discovery.then_some(candidate.address));
                let relay = self.relay_of(candidate);
                wanted.extend(relay.map(|relay| (relay, key.protocol)));
            }
            self.selections.insert(key, selection);
        }
        for (relay, _) in &wanted {
            if !self.tunnels.contains_key(relay) {
                let tunnel = RelayTunnel::new(now, *relay, &mut self.random);
                self.tunnels.insert(*relay, tunnel);
            }
        }
        for (relay, tunnel) in &mut self.tunnels {
            for protocol in Protocol::ALL {
                tunnel.set_wanted(now, protocol, wanted.contains(&(*relay, protocol)));
            }
        }
        for address in &discovered {
            if !self.discoveries.contains_key(address) {
                let mut discovery = Discovery::new(now, &mut self.random);
                if let Some(message) = discovery.poll(now, &mut self.random) {
                    let to = *address;
                    self.outputs.push_back(GatewayOutput::Send { to, message });
                }
                self.discoveries.insert(*address, discovery);
            }
        }
        let tunnels = &self.tunnels;
        self.discoveries.retain(|address, discovery| {
            let is_in_use = discovery.relay().is_some_and(|r| tunnels.contains_key(&r));
            is_in_use || discovered.contains(address)
        });
        let (ways, selections) = (&self.config.ways, &self.selections);
        let lookups = selections.keys().flat_map(|key| {
            let lookups = ways.iter().filter_map(|way| way.lookup(key.source));
            lookups.collect::<Vec<_>>()
        });
        let used: BTreeSet<LookupKey> = lookups.collect();
        self.lookups.retain(|key| used.contains(key));
    }

    /// Returns the relay of a candidate, if it is known.
    fn relay_of(&self, candidate: RelayCandidate) -> Option<SocketAddr> {
        match candidate.needs_discovery {
            true => self.discoveries.get(&candidate.address)?.relay(),
            false => Some(candidate.address),
        }
    }

    /// Returns the state of the tunnel to a candidate.
    fn state_of(&self, now: Instant, ranked: Ranked, protocol: Protocol) -> TunnelState {
        let candidate = ranked.candidate;
        let discovery = self.discoveries.get(&candidate.address);
        if candidate.needs_discovery && discovery.is_some_and(|d| d.is_failed(now)) {
            return TunnelState::Unresponsive;
        }
        let relay = self.relay_of(candidate);
        let tunnel = relay.and_then(|relay| self.tunnels.get(&relay));
        tunnel.map_or(TunnelState::Idle, |tunnel| tunnel.state(now, protocol))
    }

    /// Updates the choice for one key. Returns when it may change without another event.
    fn select(
        &mut self,
        now: Instant,
        key: StreamKey,
        selection: &mut Selection,
    ) -> Option<Instant> {
        let candidates = self.candidates(now, key);
        if let Some(chosen) = &mut selection.chosen {
            let silences = &mut selection.silences;
            let failure = self.failure_of(now, key, (chosen, silences), &candidates);
            match failure {
                None => return Some(chosen.silent_since + chosen.max_silence),
                Some(failure) => {
                    let ranked = chosen.ranked;
                    let relay = chosen.relay;
                    selection.chosen = None;
                    self.unplaced.extend(&selection.groups);
                    self.give_up(now, ranked, failure, true);
                    if failure == RelayFailure::Unresponsive
                        && let Some(tunnel) = self.tunnels.get_mut(&relay)
                    {
                        tunnel.forget_response(key.protocol);
                    }
                }
            }
        }
        self.try_candidates(now, key, selection, &candidates)
    }

    /// Returns why the chosen relay must be replaced.
    fn failure_of(
        &mut self,
        now: Instant,
        key: StreamKey,
        (chosen, silences): (&mut Chosen, &mut u32),
        candidates: &Candidates,
    ) -> Option<RelayFailure> {
        let tunnel = self.tunnels.get(&chosen.relay);
        let state = tunnel.map_or(TunnelState::Unresponsive, |t| t.state(now, key.protocol));
        match state {
            TunnelState::Connected => {}
            TunnelState::LimitReached => return Some(RelayFailure::LimitReached),
            _ => return Some(RelayFailure::Unresponsive),
        }
        let last_traffic = tunnel.and_then(RelayTunnel::last_traffic);
        if let Some(last) = last_traffic.filter(|at| *at > chosen.silent_since) {
            chosen.silent_since = last;
            if std::mem::take(silences) > 0 {
                chosen.max_silence = self.max_silence(0);
            }
        }
        if now < chosen.silent_since + chosen.max_silence {
            return None;
        }
        *silences = silences.saturating_add(1);
        let is_other = |ranked: &&Ranked| {
            let address = &ranked.candidate.address;
            *address != chosen.ranked.candidate.address && !self.held_down.contains_key(address)
        };
        if candidates.ranked.iter().find(is_other).is_some() {
            return Some(RelayFailure::Silent);
        }
        chosen.silent_since = now;
        chosen.max_silence = self.max_silence(*silences);
        None
    }

    /// Returns how long a relay may be silent before another one is tried. `silences` is the number
    /// of relays that were left for this reason before. The time is random from the first on:
    /// otherwise all gateways of a relay that lost its sources would ask the next one at once.
    fn max_silence(&mut self, silences: u32) -> Duration {
        self.random.back_off(SILENCE, silences.saturating_add(1))
    }

    /// Tries candidates until one is connected. Returns when the next one may be tried.
    fn try_candidates(
        &mut self,
        now: Instant,
        key: StreamKey,
        selection: &mut Selection,
        candidates: &Candidates,
    ) -> Option<Instant> {
        let is_known = |trial: &Trial| candidates.ranked.contains(&trial.ranked);
        selection.trials.retain(is_known);
        for trial in &mut selection.trials {
            let failure = match self.state_of(now, trial.ranked, key.protocol) {
                TunnelState::Connected => {
                    let relay = self.relay_of(trial.ranked.candidate)?;
                    self.note_connected(key, trial.ranked, relay);
                    selection.chosen = Some(Chosen {
                        ranked: trial.ranked,
                        relay,
                        silent_since: now,
                        max_silence: self.max_silence(selection.silences),
                    });
                    selection.trials.clear();
                    selection.is_missing_reported = false;
                    self.unplaced.extend(&selection.groups);
                    return selection.chosen.map(|c| c.silent_since + c.max_silence);
                }
                TunnelState::Unresponsive => RelayFailure::Unresponsive,
                TunnelState::LimitReached => RelayFailure::LimitReached,
                TunnelState::Idle | TunnelState::Requesting => {
                    trial.has_failed = false;
                    continue;
                }
            };
            if !std::mem::replace(&mut trial.has_failed, true) {
                self.give_up(now, trial.ranked, failure, false);
            }
        }
        let has_active = selection.trials.iter().any(|trial| !trial.has_failed);
        let untried = candidates.ranked.iter().filter(|ranked| {
            let mut trials = selection.trials.iter();
            trials.all(|trial| trial.ranked != **ranked)
        });
        let (held_down, free): (Vec<&Ranked>, Vec<&Ranked>) =
            untried.partition(|ranked| self.held_down.contains_key(&ranked.candidate.address));
        // Candidates that failed a while ago are tried when all others have failed.
        let next = free.first().or(match has_active {
            true => None,
            false => held_down.first(),
        });
        let Some(next) = next.copied().copied() else {
            let is_missing = selection.trials.is_empty() && candidates.is_complete;
            if is_missing && !std::mem::replace(&mut selection.is_missing_reported, true) {
                self.push_event(GatewayEvent::NoRelay { source: key.source });
            }
            return None;
        };
        if let Some(last) = selection.trials.last().filter(|_| has_active) {
            let delay = match last.ranked.rank() == next.rank() {
                true => EQUAL_RANK_DELAY,
                false => OTHER_RANK_DELAY,
            };
            if now < last.started + delay {
                return Some(last.started + delay);
            }
        }
        selection.trials.push(Trial {
            ranked: next,
            started: now,
            has_failed: false,
        });
        // It may be connected already, by another key.
        self.try_candidates(now, key, selection, candidates)
    }

    fn note_connected(&mut self, key: StreamKey, ranked: Ranked, relay: SocketAddr) {
        self.held_down.remove(&ranked.candidate.address);
        self.push_event(GatewayEvent::Connected {
            way: self.config.ways[ranked.way].label(),
            relay,
            protocol: key.protocol,
        });
    }

    /// Holds a candidate down, because it failed.
    fn give_up(&mut self, now: Instant, ranked: Ranked, failure: RelayFailure, was_in_use: bool) {
        let [min, max] = match failure {
            RelayFailure::LimitReached => LIMIT_HOLD_DOWN,
            RelayFailure::Unresponsive | RelayFailure::Silent => HOLD_DOWN,
        };
        let until = now + self.random.between(min, max);
        let address = ranked.candidate.address;
        self.held_down.insert(address, until);
        self.push_event(GatewayEvent::Failed {
            way: self.config.ways[ranked.way].label(),
            address,
            failure,
            was_in_use,
        });
    }

    // Tunnels.

    /// Gives each tunnel its part of the filter of a group.
    fn place(&mut self, now: Instant, group: Group) {
        let relay = |source| {
            let selection = self.selections.get(&self.key(group, source));
            selection.and_then(|s| s.chosen).map(|chosen| chosen.relay)
        };
        let mut parts: BTreeMap<SocketAddr, SourceFilter> = BTreeMap::new();
        match self.filters.get(&group) {
            None => {}
            Some(SourceFilter::Include(sources)) => {
                for source in sources {
                    let Some(relay) = relay(Some(*source)) else {
                        continue;
                    };
                    let part = parts.entry(relay).or_default();
                    *part = part.union(&SourceFilter::Include([*source].into()));
                }
            }
            Some(filter) => parts.extend(relay(None).map(|relay| (relay, filter.clone()))),
        }
        let placed = match parts.is_empty() {
            true => self.placed.remove(&group),
            false => self.placed.insert(group, parts.clone()),
        };
        let placed = placed.unwrap_or_default();
        // Joins come before leaves, so that no packet is missed between two relays.
        let left = placed.keys().filter(|relay| !parts.contains_key(relay));
        let left = left.map(|relay| (*relay, SourceFilter::none()));
        let left: Vec<_> = left.collect();
        for (relay, filter) in parts.into_iter().chain(left) {
            if let Some(tunnel) = self.tunnels.get_mut(&relay)
                && placed.get(&relay) != Some(&filter)
            {
                tunnel.set_filter(now, group, filter);
            }
        }
    }

    /// Collects the messages of the tunnels, and removes those that have ended.
    fn poll_tunnels(&mut self, now: Instant) {
        for (relay, tunnel) in &mut self.tunnels {
            for message in tunnel.poll(now, &mut self.random) {
                let to = *relay;
                self.outputs.push_back(GatewayOutput::Send { to, message });
            }
        }
        self.tunnels.retain(|_, tunnel| !tunnel.has_ended(now));
    }

    fn push_event(&mut self, event: GatewayEvent) {
        if self.events.len() >= MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }
}

#[cfg(test)]
mod tests;
