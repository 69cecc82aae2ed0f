//! The tunnel of a gateway to one relay (RFC 7450 sections 5.2.3.5 to 5.2.3.7).

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::random::AmtRandom;
use super::refusal::AmtRefusal;
use super::retry::Retry;
use crate::membership::{Host, HostConfig, MessageAddresses, Protocol};
use crate::model::{Group, HeaderChecks, SourceFilter};
use crate::wire::amt::{AmtMessage, FlagLayout, ResponseMac};
use crate::wire::link_control::HeaderPolicy;
use crate::wire::membership;
use crate::wire::membership_message::{Generation, MembershipMessage, Query};

/// Largest IP packet with a report. With all headers outside, it fits the smallest MTU of IPv6.
const REPORT_MTU: usize = 1280 - 40 - 8 - 12;

/// Source of IGMPv3 reports: the gateway has no address inside the tunnel (RFC 9776 section
/// 4.2.14).
const IGMP_SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
/// Source of MLDv2 reports. MLD requires a link-local address.
const MLD_SOURCE: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2));

/// Time between Requests if the query names none (RFC 9776 section 8.2).
const DEFAULT_INTERVAL: Duration = Duration::from_secs(125);

/// A silence of this length after traffic or a join makes the gateway send a Request early: the
/// relay may be gone, or an update may be lost.
const SILENCE: Duration = Duration::from_secs(3);

/// Limits of the time after which a relay that has reached its limit is queried again.
const LIMIT_RETRY: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(120)];

/// Time for which a tunnel without streams stays, so that the last report is repeated.
const LINGER: Duration = Duration::from_secs(3);

/// How far a tunnel is, for one protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelState {
    /// Nothing is requested.
    Idle,
    /// A Request was sent.
    Requesting,
    /// The relay answers.
    Connected,
    /// The relay accepts no new gateway.
    LimitReached,
    /// The relay does not answer.
    Unresponsive,
}

impl TunnelState {
    /// Returns the label for metrics and `mcastor show tunnels`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Requesting => "requesting",
            Self::Connected => "connected",
            Self::LimitReached => "limit_reached",
            Self::Unresponsive => "unresponsive",
        }
    }
}

/// A tunnel as users see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelStatus {
    /// The address of the relay.
    pub relay: SocketAddr,
    /// The state for IGMP and for MLD.
    pub states: [TunnelState; 2],
    /// The address of this gateway as the relay receives it, if the relay reports it.
    pub gateway: Option<SocketAddr>,
    /// The memberships: each source of an INCLUDE filter counts, and each EXCLUDE filter.
    pub memberships: usize,
    /// Whether the relay uses the flags of the Linux driver.
    pub has_linux_flags: bool,
    /// Time since the last packet; `None` if there was none.
    pub silent_for: Option<Duration>,
}

/// What updates must contain.
#[derive(Debug, Clone, Copy)]
struct Response {
    mac: ResponseMac,
    nonce: u32,
    gateway: Option<SocketAddr>,
}

/// The query cycles of one protocol: Request, Query, and Updates until the next Request.
#[derive(Debug)]
struct QueryCycle {
    host: Host,
    /// The next Request; `None` if none is wanted.
    request: Option<Retry>,
    nonce: u32,
    /// The position of the flag in the last Request.
    flags: FlagLayout,
    response: Option<Response>,
    is_limit_reached: bool,
}

impl QueryCycle {
    fn state(&self, now: Instant) -> TunnelState {
        match (&self.request, &self.response) {
            (None, _) => TunnelState::Idle,
            (Some(_), None) if self.is_limit_reached => TunnelState::LimitReached,
            (Some(request), _) if request.is_unanswered(now) => TunnelState::Unresponsive,
            (Some(_), None) => TunnelState::Requesting,
            (Some(_), Some(_)) => TunnelState::Connected,
        }
    }

    /// Returns whether the next Request begins a cycle.
    fn begins_cycle(&self) -> bool {
        self.request.is_some_and(|request| request.sent() == 0)
    }

    fn is_due(&self, now: Instant) -> bool {
        self.request.is_some_and(|request| request.next() <= now)
    }
}

/// The tunnel to one relay.
#[derive(Debug)]
pub(super) struct RelayTunnel {
    relay: SocketAddr,
    /// IGMP and MLD.
    cycles: [QueryCycle; 2],
    /// The position of flags that the relay understands, as far as it is known.
    flags: FlagLayout,
    last_traffic: Option<Instant>,
    /// When the present silence began: the last packet, connection or join.
    silent_since: Option<Instant>,
    /// Whether a Request was sent because of the present silence.
    is_probed: bool,
    /// Since when no Request is wanted.
    idle_since: Option<Instant>,
    messages: VecDeque<Vec<u8>>,
}

impl RelayTunnel {
    /// Creates a tunnel that requests nothing.
    pub(super) fn new(now: Instant, relay: SocketAddr, random: &mut AmtRandom) -> Self {
        let cycles = Protocol::ALL.map(|protocol| {
            let config = HostConfig {
                protocol,
                generation: Some(Generation::Three),
                refresh: None,
            };
            QueryCycle {
                host: Host::new(now, config, vec![source(protocol)], random.nonce().into()),
                request: None,
                nonce: 0,
                flags: FlagLayout::default(),
                response: None,
                is_limit_reached: false,
            }
        });
        Self {
            relay,
            cycles,
            flags: FlagLayout::default(),
            last_traffic: None,
            silent_since: None,
            is_probed: false,
            idle_since: Some(now),
            messages: VecDeque::new(),
        }
    }

    /// Returns the state for a protocol.
    pub(super) fn state(&self, now: Instant, protocol: Protocol) -> TunnelState {
        self.cycles[protocol as usize].state(now)
    }

    /// Returns the time of the last packet.
    pub(super) fn last_traffic(&self) -> Option<Instant> {
        self.last_traffic
    }

    /// Returns whether nothing is wanted any more, and all reports were sent.
    pub(super) fn has_ended(&self, now: Instant) -> bool {
        self.idle_since.is_some_and(|since| now >= since + LINGER)
    }

    /// Returns the tunnel as users see it.
    pub(super) fn status(&self, now: Instant) -> TunnelStatus {
        let gateways = self.cycles.iter().map(|c| c.response?.gateway);
        TunnelStatus {
            relay: self.relay,
            states: Protocol::ALL.map(|protocol| self.state(now, protocol)),
            gateway: gateways.flatten().next(),
            memberships: self.cycles.iter().map(|c| c.host.membership_count()).sum(),
            has_linux_flags: self.flags == FlagLayout::Linux,
            silent_for: self.last_traffic.map(|at| now.duration_since(at)),
        }
    }

    /// Sends Requests of a protocol from now on, if it is `wanted`.
    pub(super) fn set_wanted(&mut self, now: Instant, protocol: Protocol, wanted: bool) {
        let cycle = &mut self.cycles[protocol as usize];
        match wanted {
            true if cycle.request.is_none() => {
                cycle.request = Some(Retry::at(now));
                cycle.is_limit_reached = false;
            }
            true => {}
            // The response stays, so that the last reports can be sent.
            false => cycle.request = None,
        }
        let is_idle = self.cycles.iter().all(|cycle| cycle.request.is_none());
        self.idle_since = is_idle.then(|| self.idle_since.unwrap_or(now));
    }

    /// Replaces the filter of a group.
    pub(super) fn set_filter(&mut self, now: Instant, group: Group, filter: SourceFilter) {
        let host = &mut self.cycles[usize::from(group.addr().is_ipv6())].host;
        let is_joined = !filter.is_none();
        host.set_filter(now, group, filter);
        if is_joined {
            self.begin_silence(now);
        }
    }

    fn begin_silence(&mut self, now: Instant) {
        self.silent_since = Some(now);
        self.is_probed = false;
    }

    /// Leaves all groups. Each leave is reported once.
    pub(super) fn leave_all(&mut self, now: Instant) {
        for protocol in Protocol::ALL {
            self.cycles[protocol as usize].host.leave_all(now);
            self.collect_reports(protocol);
        }
    }

    /// Handles packets that the relay sent.
    pub(super) fn handle_traffic(&mut self, now: Instant) {
        self.last_traffic = Some(now);
        self.begin_silence(now);
    }

    /// Forgets what the relay answered, because it does not answer any more.
    pub(super) fn forget_response(&mut self, protocol: Protocol) {
        self.cycles[protocol as usize].response = None;
    }

    /// Handles a Membership Query of the relay; other messages are none that a relay sends here.
    pub(super) fn handle_query(
        &mut self,
        now: Instant,
        message: &AmtMessage<'_>,
        random: &mut AmtRandom,
    ) -> Result<(), AmtRefusal> {
        let AmtMessage::MembershipQuery {
            is_limit_reached,
            mac,
            nonce,
            packet,
            gateway,
            ..
        } = *message
        else {
            return Err(AmtRefusal::UnexpectedType);
        };
        let (addresses, mut query) = general_query(packet)?;
        let protocol = protocol_of(addresses.sender);
        let cycle = &mut self.cycles[protocol as usize];
        let is_requested = cycle.request.is_some_and(|request| request.sent() > 0);
        // The answer to a Request that was sent twice arrives twice.
        let is_repeated = cycle
            .response
            .is_some_and(|response| response.nonce == nonce);
        let is_awaited = is_requested && cycle.nonce == nonce;
        if !is_awaited && (!is_repeated || cycle.request.is_none()) {
            let other = &self.cycles[1 - protocol as usize];
            let is_of_other = other.request.is_some() && other.nonce == nonce;
            return Err(match is_of_other {
                true => AmtRefusal::BadQuery,
                false => AmtRefusal::WrongNonce,
            });
        }
        if is_limit_reached && cycle.response.is_none() {
            let [min, max] = LIMIT_RETRY;
            cycle.is_limit_reached = true;
            cycle.request = Some(Retry::at(now + random.between(min, max)));
            return Ok(());
        }
        let interval = query.interval.unwrap_or(DEFAULT_INTERVAL);
        let was_unresponsive = cycle.state(now) == TunnelState::Unresponsive;
        cycle.request = Some(Retry::at(now + interval));
        cycle.is_limit_reached = false;
        let response = Response {
            mac,
            nonce,
            gateway,
        };
        let former = cycle.response.replace(response);
        if former.is_none() || was_unresponsive {
            // The first report is repeated, because it may be lost.
            cycle.host.report_anew(now);
        } else {
            // The query was sent to this gateway only, so no delay is needed.
            query.max_response_time = Duration::ZERO;
            let message = MembershipMessage::Query(query);
            let handled = cycle.host.handle_message(now, addresses, &message);
            handled.map_err(|_| AmtRefusal::BadQuery)?;
        }
        if let Some(former) = former {
            self.tear_down_former(former, gateway);
        }
        if protocol == Protocol::Mld {
            self.learn_flags(now);
        }
        Ok(())
    }

    /// Ends the tunnel to the former address of this gateway, if the relay reports another one.
    fn tear_down_former(&mut self, former: Response, gateway: Option<SocketAddr>) {
        if let (Some(old), Some(new)) = (former.gateway, gateway)
            && old != new
        {
            let teardown = AmtMessage::Teardown {
                mac: former.mac,
                nonce: former.nonce,
                gateway: old,
            };
            self.messages.push_back(teardown.to_bytes());
        }
    }

    /// Takes over the position of flags that the relay answered to.
    fn learn_flags(&mut self, now: Instant) {
        let flags = self.cycles[Protocol::Mld as usize].flags;
        if self.flags == flags {
            return;
        }
        self.flags = flags;
        if flags == FlagLayout::Linux {
            self.begin_cycles(now);
        }
    }

    /// Begins new cycles.
    fn begin_cycles(&mut self, now: Instant) {
        for cycle in &mut self.cycles {
            if cycle.begins_cycle() {
                cycle.request = Some(Retry::at(now));
            }
        }
    }

    /// Handles expired timers, and returns the messages for the relay.
    pub(super) fn poll(&mut self, now: Instant, random: &mut AmtRandom) -> VecDeque<Vec<u8>> {
        if self.silence_ends().is_some_and(|at| at <= now) {
            self.is_probed = true;
            self.begin_cycles(now);
        }
        let begins = |cycle: &QueryCycle| cycle.is_due(now) && cycle.begins_cycle();
        // The Linux driver keeps one nonce for both protocols.
        if self.flags == FlagLayout::Linux && self.cycles.iter().any(begins) {
            self.begin_cycles(now);
            let nonce = random.nonce();
            self.cycles.iter_mut().for_each(|cycle| cycle.nonce = nonce);
        }
        for protocol in Protocol::ALL {
            self.send_request(now, protocol, random);
            let host = &mut self.cycles[protocol as usize].host;
            if host.poll_timeout().is_some_and(|at| at <= now) {
                host.handle_timeout(now);
            }
            while host.poll_event().is_some() {}
            self.collect_reports(protocol);
        }
        std::mem::take(&mut self.messages)
    }

    fn send_request(&mut self, now: Instant, protocol: Protocol, random: &mut AmtRandom) {
        let cycle = &mut self.cycles[protocol as usize];
        let Some(request) = &mut cycle.request else {
            return;
        };
        let begins_cycle = request.sent() == 0;
        if !request.take_due(now, random) {
            return;
        }
        if begins_cycle && self.flags == FlagLayout::Standard {
            cycle.nonce = random.nonce();
        }
        // A relay that does not answer may understand only the other position.
        cycle.flags = match (self.flags, request.sent() % 2 == 1) {
            (flags, true) => flags,
            (FlagLayout::Standard, false) => FlagLayout::Linux,
            (FlagLayout::Linux, false) => FlagLayout::Standard,
        };
        let message = AmtMessage::Request {
            nonce: cycle.nonce,
            is_mld: protocol == Protocol::Mld,
            flags: cycle.flags,
        };
        self.messages.push_back(message.to_bytes());
    }

    /// Makes updates of the reports of one protocol. Without a response they are discarded: the
    /// relay knows no membership, and the next query is answered with all of them.
    fn collect_reports(&mut self, protocol: Protocol) {
        let cycle = &mut self.cycles[protocol as usize];
        while let Some(report) = cycle.host.poll_report() {
            let Some(response) = cycle.response else {
                continue;
            };
            let built = membership::build(&report, source(protocol), REPORT_MTU);
            for packet in built.unwrap_or_default() {
                let update = AmtMessage::MembershipUpdate {
                    mac: response.mac,
                    nonce: response.nonce,
                    packet: &packet,
                };
                self.messages.push_back(update.to_bytes());
            }
        }
    }

    /// Returns the time at which [`RelayTunnel::poll`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let requests = self.cycles.iter().filter_map(|c| Some(c.request?.next()));
        let hosts = self.cycles.iter().filter_map(|c| c.host.poll_timeout());
        let ends = self.idle_since.map(|since| since + LINGER);
        let others = self.silence_ends().into_iter().chain(ends);
        requests.chain(hosts).chain(others).min()
    }

    /// Returns when a silence is long enough for a Request.
    fn silence_ends(&self) -> Option<Instant> {
        let since = self.silent_since.filter(|_| !self.is_probed)?;
        let is_connected = |c: &QueryCycle| c.response.is_some() && c.begins_cycle();
        self.cycles
            .iter()
            .any(is_connected)
            .then(|| since + SILENCE)
    }
}

fn source(protocol: Protocol) -> IpAddr {
    match protocol {
        Protocol::Igmp => IGMP_SOURCE,
        Protocol::Mld => MLD_SOURCE,
    }
}

/// Returns the protocol of an IP version.
pub(super) fn protocol_of(addr: IpAddr) -> Protocol {
    match addr {
        IpAddr::V4(_) => Protocol::Igmp,
        IpAddr::V6(_) => Protocol::Mld,
    }
}

/// Returns the general query in an IP packet.
fn general_query(packet: &[u8]) -> Result<(MessageAddresses, Query), AmtRefusal> {
    let policy = HeaderPolicy {
        headers: HeaderChecks::Lenient,
        on_link: &[],
    };
    let parsed = membership::parse(packet, &policy).map_err(|_| AmtRefusal::BadQuery)?;
    let addresses = MessageAddresses {
        sender: parsed.source,
        destination: parsed.destination,
    };
    match parsed.message {
        MembershipMessage::Query(query)
            if query.group.is_none() && query.generation == Generation::Three =>
        {
            Ok((addresses, query))
        }
        _ => Err(AmtRefusal::BadQuery),
    }
}
