//! One gateway interface: its machine, its sockets and its log.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::actors::log_limit::LogLimit;
use crate::actors::messages::{TunnelEnd, TunnelReport};
use crate::actors::shared::RouterContext;
use crate::amt::config::GatewayInterface;
use crate::amt::driad::RelayAddress;
use crate::amt::gateway::RelayFailure;
use crate::amt::resolver::{FoundRelays, ResolverError};
use crate::amt::{
    AmtRandom, AmtRefusal, Gateway, GatewayConfig, GatewayEvent, GatewayOutput, LookupKey,
    RelayCandidate, TunnelState,
};
use crate::model::escape::quote;
use crate::model::{Group, Source, SourceFilter, TunnelEndpoint};
use crate::planes::tunnel::{ControlDatagram, GatewayPort, GatewaySockets};
use crate::sys::datagram::DatagramSocket;
use crate::table::flows::FlowKey;
use crate::wire::amt::AmtMessage;

/// The role label of metrics.
const ROLE: &str = "gateway";

/// The state label of tunnels that are needed, but have no connected relay.
const MISSING: &str = "missing";

/// The states of tunnels that are counted. A tunnel counts in the first one that it has.
const COUNTED_STATES: [TunnelState; 4] = [
    TunnelState::Connected,
    TunnelState::Requesting,
    TunnelState::LimitReached,
    TunnelState::Unresponsive,
];

/// A gateway interface.
pub(super) struct GatewayService {
    settings: GatewayInterface,
    port: Arc<GatewayPort>,
    /// `None` until the sockets could be opened.
    machine: Option<Gateway>,
    /// The random numbers of the machine, until it exists.
    random: Option<AmtRandom>,
    filters: BTreeMap<Group, SourceFilter>,
    /// The sources that are not requested, because their streams would exceed the limit.
    refused: BTreeMap<Group, BTreeSet<Source>>,
    /// The packets of each relay at the last tick.
    seen: BTreeMap<SocketAddr, u64>,
    /// The relays of the port.
    relays: BTreeSet<SocketAddr>,
    /// The last error of the sockets, until the next success.
    error: Option<String>,
    log_limit: LogLimit,
}

impl GatewayService {
    /// Creates a gateway without memberships.
    pub(super) fn new(
        settings: GatewayInterface,
        port: Arc<GatewayPort>,
        random: AmtRandom,
    ) -> Self {
        Self {
            settings,
            port,
            machine: None,
            random: Some(random),
            filters: BTreeMap::new(),
            refused: BTreeMap::new(),
            seen: BTreeMap::new(),
            relays: BTreeSet::new(),
            error: None,
            log_limit: LogLimit::default(),
        }
    }

    /// Returns the settings.
    pub(super) fn settings(&self) -> &GatewayInterface {
        &self.settings
    }

    fn name(&self) -> &str {
        self.settings.name.as_str()
    }

    /// Replaces filters of groups. If the list `is_complete`, other groups are left.
    pub(super) fn set_filters(&mut self, is_complete: bool, filters: Vec<(Group, SourceFilter)>) {
        let mut filters: BTreeMap<Group, SourceFilter> = filters.into_iter().collect();
        if is_complete {
            for group in self.filters.keys() {
                filters.entry(*group).or_default();
            }
        }
        for (group, filter) in filters {
            match filter.is_none() {
                true => self.filters.remove(&group),
                false => self.filters.insert(group, filter.clone()),
            };
            self.request(group);
        }
    }

    /// Requests a group, without the refused sources.
    fn request(&mut self, group: Group) {
        let filter = self.permitted(group);
        if let Some(machine) = &mut self.machine {
            machine.set_filter(group, filter);
        }
    }

    /// Returns the filter of a group without the refused sources.
    fn permitted(&self, group: Group) -> SourceFilter {
        let filter = self.filters.get(&group).cloned().unwrap_or_default();
        match self.refused.get(&group).filter(|_| !filter.is_none()) {
            Some(sources) => filter.without(sources),
            None => filter,
        }
    }

    /// Leaves streams that would exceed the limit, and requests those that do not any more.
    pub(super) fn set_refused(&mut self, streams: &[FlowKey]) {
        let mut refused: BTreeMap<Group, BTreeSet<Source>> = BTreeMap::new();
        for (source, group) in streams {
            if let (Ok(source), Ok(group)) = (Source::new(*source), Group::new(*group)) {
                refused.entry(group).or_default().insert(source);
            }
        }
        let former = std::mem::replace(&mut self.refused, refused);
        let groups: BTreeSet<Group> = former.keys().chain(self.refused.keys()).copied().collect();
        for group in groups {
            if former.get(&group) != self.refused.get(&group) {
                self.request(group);
            }
        }
    }

    /// Handles a control message of a relay.
    pub(super) fn handle_message(
        &mut self,
        now: Instant,
        datagram: &ControlDatagram,
        context: &RouterContext,
    ) {
        let Some(machine) = &mut self.machine else {
            return;
        };
        let metrics = &context.catalog.amt;
        let name = self.settings.name.as_str();
        let from = datagram.endpoint.remote;
        match machine.handle_message(now, from, &datagram.payload) {
            Ok(kind) => metrics.count_message(name, kind, "received"),
            Err(refusal) => metrics.count_refused(name, refusal.label(), 1),
        }
    }

    /// Handles what a lookup found; `None` without a resolver.
    pub(super) fn handle_lookup(
        &mut self,
        now: Instant,
        key: &LookupKey,
        found: Option<Result<FoundRelays, ResolverError>>,
        to_candidates: impl FnOnce(Vec<RelayAddress>) -> (Vec<RelayCandidate>, usize),
        context: &RouterContext,
    ) {
        let (result, answer) = match found {
            Some(Ok(found)) => {
                let invalid = found.invalid.first();
                if let Some((reason, suppressed)) = invalid.zip(self.log_limit.permit(now)) {
                    let (name, reason) = (&self.settings.name, quote(reason));
                    warn!(interface = %name, "{name}: a relay in DNS is skipped: {reason}{suppressed}");
                }
                let result = match found.addresses.is_empty() {
                    true => "no_relay",
                    false => "found",
                };
                let (candidates, left_out) = to_candidates(found.addresses);
                if left_out > 0 {
                    let metrics = &context.catalog.amt;
                    metrics.count_discovery(self.name(), key.label(), "limited");
                }
                (result, Some((candidates, found.ttl)))
            }
            Some(Err(e)) => {
                if let Some(suppressed) = self.log_limit.permit(now) {
                    let (name, reason) = (&self.settings.name, quote(&e.to_string()));
                    warn!(interface = %name, "{name}: cannot look up relays: {reason}; trying again{suppressed}");
                }
                ("dns_error", None)
            }
            None => ("dns_error", None),
        };
        let metrics = &context.catalog.amt;
        metrics.count_discovery(self.name(), key.label(), result);
        if let Some(machine) = &mut self.machine {
            machine.handle_answer(now, key, answer);
        }
    }

    /// Opens sockets that are missing, notes traffic, and updates metrics.
    pub(super) fn tick(&mut self, now: Instant, context: &RouterContext) {
        if self.machine.is_none() || self.port.sockets().is_none() {
            self.open();
        }
        let (unknown, lost) = self.port.take_refused();
        let metrics = &context.catalog.amt;
        let name = self.settings.name.as_str();
        if unknown > 0 {
            let reason = AmtRefusal::UnknownRelay.label();
            metrics.count_refused(name, reason, unknown);
        }
        if lost > 0 {
            metrics.count_refused(name, AmtRefusal::RateLimit.label(), lost);
        }
        let Some(machine) = &mut self.machine else {
            let missing = usize::from(!self.filters.is_empty());
            metrics.set_tunnels(name, ROLE, MISSING, missing);
            return;
        };
        for (relay, traffic) in self.port.traffic().iter() {
            let packets = traffic.packets.load(Ordering::Relaxed);
            if self.seen.insert(*relay, packets).unwrap_or_default() != packets {
                machine.handle_traffic(now, *relay);
            }
        }
        let mut counts = [0; COUNTED_STATES.len()];
        for tunnel in machine.tunnels(now) {
            let best = COUNTED_STATES
                .iter()
                .position(|state| tunnel.states.contains(state));
            if let Some(position) = best {
                counts[position] += 1;
            }
            let is_connected = best == Some(0);
            metrics.set_relay_state(name, &tunnel.relay.to_string(), Some(is_connected));
        }
        for (state, count) in COUNTED_STATES.iter().zip(counts) {
            metrics.set_tunnels(name, ROLE, state.label(), count);
        }
        metrics.set_tunnels(name, ROLE, MISSING, machine.missing_tunnels());
    }

    /// Opens the sockets, unless a former actor has opened them, and starts the machine with the
    /// first ones.
    fn open(&mut self) {
        let sockets = match self.port.sockets() {
            Some(sockets) => Some(sockets),
            None => self.open_sockets(),
        };
        let (Some(sockets), Some(random)) = (sockets, self.random.take()) else {
            return;
        };
        let config = GatewayConfig {
            ways: self.settings.ways.clone(),
            families: self.settings.families,
            outer: [0, 1].map(|n: usize| sockets.sockets[n].is_some()),
        };
        let mut machine = Gateway::new(config, random);
        for group in self.filters.keys() {
            machine.set_filter(*group, self.permitted(*group));
        }
        self.machine = Some(machine);
    }

    fn open_sockets(&mut self) -> Option<Arc<GatewaySockets>> {
        let interface = self.settings.interface.as_ref().map(|name| name.as_str());
        let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let opened = any.map(|ip| DatagramSocket::open(SocketAddr::new(ip, 0), interface));
        let name = &self.settings.name;
        if let [Err(e), Err(_)] = &opened {
            let text = format!("cannot open sockets: {e}");
            if self.error.as_ref() != Some(&text) {
                warn!(interface = %name, "{name}: {text}; trying again");
            }
            self.error = Some(text);
            return None;
        }
        self.error = None;
        let sockets = opened.map(|socket| socket.ok().map(Arc::new));
        let sockets = Arc::new(GatewaySockets { sockets });
        self.port.set_sockets(Some(sockets.clone()));
        Some(sockets)
    }

    /// Sends the messages that are due. Returns the lookups that are due.
    pub(super) fn drive(&mut self, now: Instant, context: &RouterContext) -> Vec<LookupKey> {
        let Some(machine) = &mut self.machine else {
            return Vec::new();
        };
        machine.handle_timeout(now);
        let relays: BTreeSet<SocketAddr> = machine.relays().collect();
        if relays != self.relays {
            let metrics = &context.catalog.amt;
            for gone in self.relays.difference(&relays) {
                let name = self.settings.name.as_str();
                metrics.set_relay_state(name, &gone.to_string(), None);
                self.seen.remove(gone);
            }
            // Before the first message: the relay may answer with packets at once.
            self.port.set_relays(relays.iter().copied());
            self.relays = relays;
        }
        let lookups = self.send_outputs(context);
        self.log_events(now, context);
        lookups
    }

    fn send_outputs(&mut self, context: &RouterContext) -> Vec<LookupKey> {
        let mut lookups = Vec::new();
        let Some(machine) = &mut self.machine else {
            return lookups;
        };
        let mut sockets = self.port.sockets();
        let name = self.settings.name.as_str();
        while let Some(output) = machine.poll_output() {
            let (to, message) = match output {
                GatewayOutput::Lookup(key) => {
                    lookups.push(key);
                    continue;
                }
                GatewayOutput::Send { to, message } => (to, message),
            };
            let socket = sockets.as_ref();
            let socket = socket.and_then(|s| s.sockets[usize::from(to.is_ipv6())].clone());
            let Some(socket) = socket else { continue };
            let local = Ipv4Addr::UNSPECIFIED.into();
            let sent = socket.send(TunnelEndpoint { remote: to, local }, &message);
            match sent {
                Ok(()) => {
                    let kind = AmtMessage::parse(&message).map_or("unknown", |m| m.label());
                    context.catalog.amt.count_message(name, kind, "transmitted");
                }
                // The interface is gone. Other errors are like a lost message, which is repeated.
                Err(e) if is_interface_gone(&e) => {
                    self.port.set_sockets(None);
                    sockets = None;
                }
                Err(_) => {}
            }
        }
        lookups
    }

    fn log_events(&mut self, now: Instant, context: &RouterContext) {
        let Some(machine) = &mut self.machine else {
            return;
        };
        let metrics = &context.catalog.amt;
        let name = &self.settings.name;
        while let Some(event) = machine.poll_event() {
            match event {
                GatewayEvent::Connected { way, .. } => {
                    metrics.count_discovery(name.as_str(), way, "connected");
                }
                GatewayEvent::Failed { way, failure, .. } => {
                    metrics.count_discovery(name.as_str(), way, failure.label());
                }
                GatewayEvent::NoRelay { .. } => {}
            }
            let Some(suppressed) = self.log_limit.permit(now) else {
                continue;
            };
            match event {
                GatewayEvent::Connected {
                    relay, protocol, ..
                } => {
                    info!(interface = %name, "{name}: {protocol} groups are requested from the relay {relay}{suppressed}");
                }
                GatewayEvent::Failed {
                    address,
                    failure,
                    was_in_use,
                    ..
                } => {
                    let reason = match failure {
                        RelayFailure::Unresponsive => "does not answer",
                        RelayFailure::LimitReached => "accepts no further gateway",
                        RelayFailure::Silent => "sends no packets",
                    };
                    let next = match was_in_use {
                        true => "its streams are requested from the next one",
                        false => "trying on, and the next one",
                    };
                    warn!(interface = %name, "{name}: the relay {address} {reason}; {next}{suppressed}");
                }
                GatewayEvent::NoRelay { source } => {
                    let of = source.map(|source| format!(" for the source {source}"));
                    let of = of.unwrap_or_default();
                    warn!(interface = %name, "{name}: no relay is known{of}; its streams are not received{suppressed}");
                }
            }
        }
    }

    /// Returns the time at which [`GatewayService::drive`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let next = self.machine.as_ref()?.poll_timeout()?;
        // A deadline in the past must not occupy the thread.
        Some(next.max(Instant::now() + Duration::from_micros(100)))
    }

    /// Leaves all groups.
    pub(super) fn end(&mut self, now: Instant, context: &RouterContext) {
        if let Some(machine) = &mut self.machine {
            machine.leave_all(now);
        }
        self.send_outputs(context);
        self.port.set_relays(std::iter::empty());
        self.port.set_sockets(None);
        let metrics = &context.catalog.amt;
        for relay in &self.relays {
            metrics.set_relay_state(self.name(), &relay.to_string(), None);
        }
        for state in COUNTED_STATES.iter().map(|state| state.label()) {
            metrics.set_tunnels(self.name(), ROLE, state, 0);
        }
        metrics.set_tunnels(self.name(), ROLE, MISSING, 0);
    }

    /// Returns the tunnels.
    pub(super) fn reports(&self, now: Instant) -> Vec<TunnelReport> {
        let traffic = self.port.traffic();
        let tunnels = self.machine.iter().flat_map(|machine| machine.tunnels(now));
        let report = |status: crate::amt::TunnelStatus| {
            let counted = traffic.get(&status.relay).map(|traffic| {
                let load = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
                (load(&traffic.packets), load(&traffic.bytes))
            });
            TunnelReport {
                interface: self.settings.name.clone(),
                end: TunnelEnd::Relay(status, counted.unwrap_or_default()),
            }
        };
        tunnels.map(report).collect()
    }
}

/// Returns whether an error means that the interface of a socket is gone.
fn is_interface_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO))
}
