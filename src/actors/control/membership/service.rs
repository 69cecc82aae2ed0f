//! One interface that the membership actor serves: the protocol machines, the rate limit of reports,
//! and the transmission of queries and advertisements.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::event_log::{is_report, log_event, remove_leaves, requests_only_link_local_groups};
use super::refusal_log::{RefusalLog, RefusalReason};
use crate::actors::control::message_labels::{MessageLabels, discovery_labels, membership_labels};
use crate::actors::control::message_sender::MessageSender;
use crate::actors::log_limit::LogLimit;
use crate::actors::messages::{MemberGroup, RefusedMessages, ServedInterface};
use crate::actors::shared::RouterContext;
use crate::membership::mrdisc::Advertiser;
use crate::membership::{
    Downstream, DownstreamConfig, MembershipEvent, MembershipRefusal, Protocol, QuerierStatus,
    ReportRateLimiter, SavedInterface, SenderStatus,
};
use crate::metrics::membership::{Direction, MembershipState};
use crate::model::{
    ClockReading, Group, HeaderChecks, IfName, InterfaceId, QuerierPolicy, SourceFilter,
};
use crate::pipeline::CapturedMessage;
use crate::sys::boot_clock;
use crate::wire::ip::IpHeader;
use crate::wire::link_control::HeaderPolicy;
use crate::wire::membership_message::MembershipMessage;
use crate::wire::{RejectReason, membership, mrdisc};

/// One protocol on the interface.
struct Family {
    protocol: Protocol,
    machine: Option<Downstream>,
    advertiser: Option<Advertiser>,
}

/// The service of one interface.
pub struct DownstreamService {
    served: ServedInterface,
    families: [Family; 2],
    rate_limiter: ReportRateLimiter,
    sender: MessageSender,
    /// Whether the next [`DownstreamService::flush`] returns every group and not only changes.
    report_all: bool,
    /// Whether the consequences of being the querier have been logged.
    querier_explained: bool,
    log_limit: LogLimit,
    refusal_log: RefusalLog,
    /// The state to continue, while the service starts.
    saved: Option<Arc<SavedInterface>>,
}

impl DownstreamService {
    /// Starts the service. Continues `saved` state; without it, queries are due at once.
    /// Advertisements are due at once.
    pub fn new(
        now: Instant,
        index: InterfaceId,
        served: ServedInterface,
        saved: Option<Arc<SavedInterface>>,
        context: &RouterContext,
    ) -> Self {
        let limit = served
            .proxy
            .as_ref()
            .map_or(0, |p| p.limits.reports_per_second);
        let mut service = Self {
            families: Protocol::ALL.map(|protocol| Family {
                protocol,
                machine: None,
                advertiser: None,
            }),
            rate_limiter: ReportRateLimiter::new(now, limit, seed()),
            sender: MessageSender::new(index),
            report_all: false,
            querier_explained: false,
            log_limit: LogLimit::default(),
            refusal_log: RefusalLog::default(),
            saved,
            served: ServedInterface {
                proxy: None,
                mrdisc: None,
                addresses: Vec::new(),
                on_link: Vec::new(),
                ..served.clone()
            },
        };
        service.update(now, served, context);
        service.saved = None;
        service
    }

    /// Returns the name of the interface.
    pub fn name(&self) -> &IfName {
        &self.served.name
    }

    /// Returns querier and memberships as data. None if no proxy serves the interface.
    pub fn saved(&self, clock: &ClockReading) -> Option<SavedInterface> {
        let saved = |family: &Family| family.machine.as_ref().map(|m| m.saved(clock));
        let [igmp, mld] = [&self.families[0], &self.families[1]].map(saved);
        let is_served = igmp.is_some() || mld.is_some();
        is_served.then_some(SavedInterface { igmp, mld })
    }

    /// Applies new properties of the interface.
    pub fn update(&mut self, now: Instant, served: ServedInterface, context: &RouterContext) {
        if served.name != self.served.name {
            context
                .catalog
                .membership
                .remove_gauges(self.served.name.as_str());
        }
        if let Some(proxy) = &served.proxy {
            let limit = proxy.limits.reports_per_second;
            let old = self.served.proxy.as_ref();
            if old.is_none_or(|old| old.limits.reports_per_second != limit) {
                self.rate_limiter = ReportRateLimiter::new(now, limit, seed());
            }
        } else {
            context
                .catalog
                .membership
                .remove_gauges(served.name.as_str());
        }
        let mut stopped = Vec::new();
        for family in &mut self.families {
            let own = own_address(family.protocol, &served);
            let query_source = query_source(family.protocol, &served);
            match (&mut family.machine, &served.proxy) {
                (Some(machine), Some(proxy)) => {
                    if machine.config().rule != *proxy {
                        machine.reconfigure(now, proxy.clone());
                    }
                    machine.set_own_address(now, query_source);
                }
                (none, Some(proxy)) => {
                    let config = DownstreamConfig::new(family.protocol, proxy.clone());
                    let saved = self
                        .saved
                        .as_ref()
                        .and_then(|s| s.protocol(family.protocol));
                    *none = Some(match saved.zip(boot_clock::read().ok()) {
                        Some((saved, clock)) => {
                            Downstream::restored(&clock, config, query_source, saved)
                        }
                        None => Downstream::new(now, config, query_source),
                    });
                }
                (machine, None) => {
                    // The interface is not downstream of a proxy any more; its members are
                    // forgotten.
                    *machine = None;
                }
            }
            let is_advertised = self.served.mrdisc.is_some() && family.advertiser.is_some();
            match served.mrdisc.filter(|_| own.is_some()) {
                Some(interval) if !is_advertised || self.served.mrdisc != Some(interval) => {
                    family.advertiser = Some(Advertiser::new(now, interval, seed()));
                }
                Some(_) => {}
                None => stopped.extend(family.advertiser.take().map(|_| family.protocol)),
            }
        }
        for protocol in stopped {
            self.send_termination(protocol, context);
        }
        self.served = served;
    }

    /// Makes the next [`DownstreamService::flush`] return every group.
    pub fn report_all(&mut self) {
        self.report_all = true;
    }

    /// Returns how long it takes until all hosts have been queried and have had the time to answer.
    pub fn learning_time(&self, now: Instant) -> Duration {
        let can_query = |f: &Family| query_source(f.protocol, &self.served).is_some();
        let learning_time = |f: &Family| {
            let machine = f.machine.as_ref()?;
            // Without an address, the link usually has no hosts of this IP version.
            let counts = can_query(f) || machine.config().rule.querier == QuerierPolicy::Off;
            counts.then(|| machine.learning_time(now))
        };
        self.families
            .iter()
            .filter_map(learning_time)
            .max()
            .unwrap_or_default()
    }

    /// Returns the time at which [`DownstreamService::handle_timeout`] must be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let machines = self.families.iter().filter_map(|f| f.machine.as_ref());
        let machines = machines.filter_map(Downstream::poll_timeout);
        let advertisers = self.families.iter().filter_map(|f| f.advertiser.as_ref());
        machines
            .chain(advertisers.map(Advertiser::poll_timeout))
            .min()
    }

    /// Counts `count` messages that were lost because the queue was full, and handles their loss.
    pub fn handle_overflow(&mut self, now: Instant, count: u64, context: &RouterContext) {
        let metrics = &context.catalog.membership;
        metrics.count_rejected(self.served.name.as_str(), "busy", count);
        self.handle_message_loss(now);
    }

    /// Handles the loss of captured messages.
    pub fn handle_message_loss(&mut self, now: Instant) {
        let machines = self.families.iter_mut().filter_map(|f| f.machine.as_mut());
        machines.for_each(|machine| machine.handle_message_loss(now));
    }

    /// Handles expired timers. [`DownstreamService::flush`] transmits what they cause.
    pub fn handle_timeout(&mut self, now: Instant) {
        for family in &mut self.families {
            if let Some(machine) = &mut family.machine {
                machine.handle_timeout(now);
            }
            if let Some(advertiser) = &mut family.advertiser {
                advertiser.handle_timeout(now);
            }
        }
    }

    /// Handles a captured message.
    pub fn handle_message(
        &mut self,
        now: Instant,
        captured: CapturedMessage<'_>,
        context: &RouterContext,
    ) {
        let packet = captured.bytes;
        let datagram = match IpHeader::parse(packet) {
            Ok(datagram) => datagram,
            Err(e) => return self.reject(now, None, None, RejectReason::from(e).into(), context),
        };
        let source = datagram.source;
        let v4 = source.is_ipv4();
        let proxy = self.served.proxy.as_ref();
        let checks = HeaderPolicy {
            headers: proxy.map_or(HeaderChecks::default(), |p| p.header_checks),
            on_link: &self.served.on_link,
        };
        let family = &mut self.families[usize::from(!v4)];
        if mrdisc::is_message(&datagram, packet) {
            match mrdisc::parse(packet, &checks) {
                Err(reason) => self.reject(now, Some(source), None, reason.into(), context),
                Ok(received) => {
                    count(
                        context,
                        &self.served,
                        family.protocol,
                        Direction::Received,
                        discovery_labels(&received.message),
                    );
                    if let (mrdisc::RouterDiscoveryMessage::Solicitation, Some(advertiser)) =
                        (received.message, &mut family.advertiser)
                        && let Err(reason) = advertiser.handle_solicitation(now)
                    {
                        self.reject(now, Some(source), None, reason.into(), context);
                    }
                }
            }
            return;
        }
        let Some(machine) = &mut family.machine else {
            return;
        };
        if let Err(reason) = self.rate_limiter.admit(now, source) {
            machine.handle_missed_report(now);
            // The rate limiter counts it.
            return self.log_refusal(now, Some(source), None, reason.into());
        }
        let mut received = match membership::parse(packet, &checks) {
            Ok(received) => received,
            Err(reason) => return self.reject(now, Some(source), None, reason.into(), context),
        };
        let labels = membership_labels(&received.message, family.protocol);
        count(
            context,
            &self.served,
            family.protocol,
            Direction::Received,
            labels,
        );
        if captured.outgoing && is_report(&received.message) {
            // Frames that are sent on an interface do not return to this host, so it cannot be a
            // member there. The kernel itself reports link-local groups.
            let reason = match requests_only_link_local_groups(&received.message) {
                true => MembershipRefusal::LinkLocalGroup,
                false => MembershipRefusal::OwnHost,
            };
            return self.reject(
                now,
                Some(source),
                Some(&received.message),
                reason.into(),
                context,
            );
        }
        let work = machine.work_of(&received.message);
        if let Err(reason) = self.rate_limiter.charge(now, source, work) {
            machine.handle_missed_report(now);
            return self.log_refusal(now, Some(source), Some(&received.message), reason.into());
        }
        let sender = self.rate_limiter.sender_status(now, received.source);
        if sender == SenderStatus::Unknown
            && self.rate_limiter.is_flooded(now)
            && !remove_leaves(&mut received.message)
        {
            machine.handle_missed_report(now);
            let reason = MembershipRefusal::UnknownSenderRate.into();
            return self.reject(now, Some(source), Some(&received.message), reason, context);
        }
        let (from, to) = (received.source, received.destination);
        let result = machine.handle_message_from(now, sender, from, to, &received.message);
        // During a flood, messages of members and of the querier are accepted.
        let is_known_sender = match received.message {
            MembershipMessage::Query(_) => machine.querier(now).address == Some(from),
            _ => true,
        };
        // Hosts also report link-local groups, which are refused. IPv6 hosts report them in the
        // same message as other groups.
        if matches!(result, Ok(()) | Err(MembershipRefusal::LinkLocalGroup)) && is_known_sender {
            let until = now + machine.timers().group_membership_interval();
            self.rate_limiter
                .handle_accepted_report(now, received.source, until);
        }
        // The machine counts its refusals.
        if let Err(reason) = result {
            self.log_refusal(now, Some(from), Some(&received.message), reason.into());
        }
    }

    /// Counts and logs a message that is not processed.
    fn reject(
        &mut self,
        now: Instant,
        sender: Option<IpAddr>,
        message: Option<&MembershipMessage>,
        reason: RefusalReason,
        context: &RouterContext,
    ) {
        let metrics = &context.catalog.membership;
        metrics.count_rejected(self.served.name.as_str(), reason.label(), 1);
        self.log_refusal(now, sender, message, reason);
    }

    fn log_refusal(
        &mut self,
        now: Instant,
        sender: Option<IpAddr>,
        message: Option<&MembershipMessage>,
        reason: RefusalReason,
    ) {
        let groups = message.into_iter().flat_map(MembershipMessage::groups);
        let name = &self.served.name;
        self.refusal_log.log(now, name, sender, groups, reason);
    }
}

impl DownstreamService {
    /// Transmits pending messages, updates metrics, logs events. Returns the groups whose filters
    /// changed.
    pub fn flush(&mut self, context: &RouterContext) -> Vec<(Group, SourceFilter)> {
        let mut changes = Vec::new();
        let mut packets = Vec::new();
        let name = self.served.name.clone();
        for family in &mut self.families {
            let own = query_source(family.protocol, &self.served);
            let Some(machine) = &mut family.machine else {
                continue;
            };
            while let Some(query) = machine.poll_query() {
                let Some(own) = own else { continue };
                let message = MembershipMessage::Query(query.query);
                match membership::build(&message, own, self.served.mtu as usize) {
                    Ok(built) => {
                        let labels = membership_labels(&message, family.protocol);
                        packets.extend(built.into_iter().map(|p| (family.protocol, labels, p)));
                    }
                    Err(e) => warn!(interface = %name, "{name}: cannot build a query: {e}"),
                }
            }
            while let Some(change) = machine.poll_change() {
                changes.push(change);
            }
            while let Some(event) = machine.poll_event() {
                if let Some(suppressed) = self.log_limit.permit(Instant::now()) {
                    let explained = &mut self.querier_explained;
                    log_event(&name, family.protocol, event, suppressed, explained);
                }
                if matches!(event, MembershipEvent::QuerierChanged { .. }) {
                    context
                        .catalog
                        .membership
                        .count_querier_change(name.as_str(), family.protocol);
                }
            }
            for (reason, count) in machine.take_refusals() {
                let metrics = &context.catalog.membership;
                metrics.count_rejected(name.as_str(), reason.label(), count);
            }
            let state = MembershipState {
                groups: machine.group_count() as u64,
                sources: machine.source_count() as u64,
                querier: machine.querier(Instant::now()).is_us,
            };
            context
                .catalog
                .membership
                .set_state(name.as_str(), family.protocol, state);
            if self.report_all {
                changes = machine
                    .groups(Instant::now())
                    .map(|g| (g.group, g.filter))
                    .chain(std::mem::take(&mut changes))
                    .collect();
            }
        }
        self.report_all = false;
        for (reason, count) in self.rate_limiter.take_refusals() {
            let metrics = &context.catalog.membership;
            metrics.count_rejected(name.as_str(), reason.label(), count);
        }
        packets.extend(self.advertisements());
        for (protocol, labels, packet) in packets {
            self.send(&packet, context, protocol, labels);
        }
        changes
    }

    /// Returns the advertisements that are due.
    fn advertisements(&mut self) -> Vec<(Protocol, MessageLabels, Vec<u8>)> {
        let mut packets = Vec::new();
        for family in &mut self.families {
            let own = own_address(family.protocol, &self.served);
            let (Some(advertiser), Some(own)) = (&mut family.advertiser, own) else {
                continue;
            };
            if !advertiser.poll_advertisement() {
                continue;
            }
            let querier = family
                .machine
                .as_ref()
                .filter(|m| m.querier(Instant::now()).is_us);
            let timing = querier.map(Downstream::timers);
            let message = mrdisc::RouterDiscoveryMessage::Advertisement {
                interval: advertiser.interval_seconds(),
                query_interval: timing.map_or(0, |t| t.query_interval().as_secs() as u16),
                robustness: timing.map_or(0, |t| t.robustness().into()),
            };
            let packet = mrdisc::build(&message, own);
            packets.push((family.protocol, discovery_labels(&message), packet));
        }
        packets
    }

    /// Ends the service. Sends a termination message to switches (RFC 4286 section 3.3).
    pub fn stop(&mut self, context: &RouterContext) {
        for at in 0..self.families.len() {
            let family = &mut self.families[at];
            if family.advertiser.take().is_some() {
                let protocol = family.protocol;
                self.send_termination(protocol, context);
            }
        }
        context
            .catalog
            .membership
            .remove_gauges(self.served.name.as_str());
    }

    fn send_termination(&mut self, protocol: Protocol, context: &RouterContext) {
        if let Some(own) = own_address(protocol, &self.served) {
            let message = mrdisc::RouterDiscoveryMessage::Termination;
            let packet = mrdisc::build(&message, own);
            self.send(&packet, context, protocol, discovery_labels(&message));
        }
    }

    fn send(
        &mut self,
        packet: &[u8],
        context: &RouterContext,
        protocol: Protocol,
        labels: MessageLabels,
    ) {
        let packets = std::iter::once(packet);
        match self.sender.send(self.served.plane, packets, context) {
            Ok(_) => count(
                context,
                &self.served,
                protocol,
                Direction::Transmitted,
                labels,
            ),
            // Queries are repeated. The link may be going down.
            Err(e) => debug!("{}: cannot send: {e}", self.served.name),
        }
    }

    /// Returns every group with members.
    pub fn members(&self, now: Instant) -> Vec<MemberGroup> {
        let machines = self.families.iter().filter_map(|f| f.machine.as_ref());
        let groups = machines.flat_map(|machine| {
            let protocol = machine.config().protocol;
            machine.groups(now).map(move |status| MemberGroup {
                interface: self.served.name.clone(),
                protocol,
                status,
            })
        });
        groups.collect()
    }

    /// Returns the refused messages that name `group`.
    pub fn refused(&self, now: Instant, group: Group) -> Vec<RefusedMessages> {
        self.refusal_log.refused(now, &self.served.name, group)
    }

    /// Returns the querier for each protocol with a machine.
    pub fn queriers(&self, now: Instant) -> Vec<(Protocol, QuerierStatus)> {
        let machines = self.families.iter().filter_map(|f| f.machine.as_ref());
        let status = |machine: &Downstream| (machine.config().protocol, machine.querier(now));
        machines.map(status).collect()
    }
}

/// Returns a number that other hosts cannot predict.
fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    // RandomState is seeded by the system.
    RandomState::new().build_hasher().finish()
}

/// Returns the source address of queries: [`own_address`], or 0.0.0.0 for IGMP on an interface
/// without an IPv4 address.
///
/// The address of another interface would be an alternative. Hosts with `rp_filter` drop such
/// queries if they have no route to it, as on an isolated network. They accept 0.0.0.0, and so do
/// bridges.
fn query_source(protocol: Protocol, served: &ServedInterface) -> Option<IpAddr> {
    let unspecified = (protocol == Protocol::Igmp).then_some(Ipv4Addr::UNSPECIFIED.into());
    own_address(protocol, served).or(unspecified)
}

/// Returns the first IPv4 address, or the link-local IPv6 address (RFC 9777 section 5.1.14).
fn own_address(protocol: Protocol, served: &ServedInterface) -> Option<IpAddr> {
    let usable = |addr: &IpAddr| match (protocol, addr) {
        (Protocol::Igmp, IpAddr::V4(_)) => true,
        (Protocol::Mld, IpAddr::V6(addr)) => addr.is_unicast_link_local(),
        _ => false,
    };
    served.addresses.iter().copied().find(usable)
}

fn count(
    context: &RouterContext,
    served: &ServedInterface,
    protocol: Protocol,
    direction: Direction,
    labels: MessageLabels,
) {
    let iface = served.name.as_str();
    let metrics = &context.catalog.membership;
    metrics.count_message(iface, protocol, direction, labels.0, labels.1);
}
