//! One interface that membership serves: its machines, its gate, and the way out for what they
//! say.

mod said;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::membership::Served;
use crate::api::view::{GroupSourceView, GroupView, QuerierView};
use crate::membership::mrdisc::Advertiser;
use crate::membership::{
    Downstream, DownstreamConfig, MembershipEvent, MembershipRefusal, Protocol, ReportRateLimiter,
    SenderStatus,
};
use crate::metrics::membership::{Direction, MembershipState};
use crate::model::{Group, HeaderChecks, IfIndex, QuerierPolicy, SourceFilter};
use crate::pipeline::{OutPacket, Transmit};
use crate::wire::ip::IpHeader;
use crate::wire::link_control::HeaderPolicy;
use crate::wire::membership_message::MembershipMessage;
use crate::wire::{membership, mrdisc};

use super::context::RouterContext;
use super::log_limit::LogLimit;
use said::{Kind, drop_leaves, kind, log, mrdisc_kind, version};

/// What came of a batch of messages, or of a timer.
#[derive(Debug, Default)]
pub struct Spoken {
    /// What hosts want now, of groups where that changed.
    pub changes: Vec<(Group, SourceFilter)>,
}

/// One IP version on the interface.
struct Family {
    protocol: Protocol,
    machine: Option<Downstream>,
    announcer: Option<Advertiser>,
}

/// The service of one interface.
pub struct Service {
    index: IfIndex,
    served: Served,
    families: [Family; 2],
    gate: ReportRateLimiter,
    transmit: Option<Box<dyn Transmit>>,
    /// Whether the next [`Service::settle`] tells every group and not only changes.
    tell_all: bool,
    said_querier: bool,
    lines: LogLimit,
}

impl Service {
    /// Starts to serve: queries and advertisements are due at once.
    pub fn new(now: Instant, index: IfIndex, served: Served, context: &RouterContext) -> Self {
        let limit = served
            .proxy
            .as_ref()
            .map_or(0, |p| p.limits.reports_per_second);
        let mut service = Self {
            index,
            families: Protocol::ALL.map(|protocol| Family {
                protocol,
                machine: None,
                announcer: None,
            }),
            gate: ReportRateLimiter::new(now, limit, seed()),
            transmit: None,
            tell_all: false,
            said_querier: false,
            lines: LogLimit::default(),
            served: Served {
                proxy: None,
                mrdisc: None,
                addresses: Vec::new(),
                ..served.clone()
            },
        };
        service.follow(now, served, context);
        service
    }

    /// Goes on with what is known of the interface now.
    pub fn follow(&mut self, now: Instant, served: Served, context: &RouterContext) {
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
                self.gate = ReportRateLimiter::new(now, limit, seed());
            }
        } else {
            context
                .catalog
                .membership
                .remove_gauges(served.name.as_str());
        }
        let mut silenced = Vec::new();
        for family in &mut self.families {
            let own = own_address(family.protocol, &served);
            match (&mut family.machine, &served.proxy) {
                (Some(machine), Some(proxy)) => {
                    if machine.config().rule != *proxy {
                        machine.reconfigure(now, proxy.clone());
                    }
                    machine.set_own_address(now, own);
                }
                (none, Some(proxy)) => {
                    let config = DownstreamConfig::new(family.protocol, proxy.clone());
                    *none = Some(Downstream::new(now, config, own));
                }
                (machine, None) => {
                    // What its members wanted is forgotten with the interface's role.
                    *machine = None;
                }
            }
            let announced = self.served.mrdisc.is_some() && family.announcer.is_some();
            match served.mrdisc.filter(|_| own.is_some()) {
                Some(interval) if !announced || self.served.mrdisc != Some(interval) => {
                    family.announcer = Some(Advertiser::new(now, interval, seed()));
                }
                Some(_) => {}
                None => silenced.extend(family.announcer.take().map(|_| family.protocol)),
            }
        }
        for protocol in silenced {
            self.terminate(protocol, context);
        }
        self.served = served;
    }

    /// The next [`Service::settle`] tells all that is wanted.
    pub fn tell_all(&mut self) {
        self.tell_all = true;
    }

    /// How long it takes after the start until all hosts were asked, and had the time to answer.
    pub fn learning_time(&self) -> Duration {
        let may_ask = |f: &Family| own_address(f.protocol, &self.served).is_some();
        let asked = |f: &Family| {
            let machine = f.machine.as_ref()?;
            // Without an address there are no hosts of that IP version as a rule.
            let counts = may_ask(f) || machine.config().rule.querier == QuerierPolicy::Off;
            counts.then(|| machine.learning_time())
        };
        self.families
            .iter()
            .filter_map(asked)
            .max()
            .unwrap_or_default()
    }

    /// When [`Service::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let machines = self.families.iter().filter_map(|f| f.machine.as_ref());
        let machines = machines.filter_map(Downstream::poll_timeout);
        let announcers = self.families.iter().filter_map(|f| f.announcer.as_ref());
        machines
            .chain(announcers.map(Advertiser::poll_timeout))
            .min()
    }

    /// Messages were lost before they came here.
    pub fn handle_message_loss(&mut self, now: Instant) {
        let machines = self.families.iter_mut().filter_map(|f| f.machine.as_mut());
        machines.for_each(|machine| machine.handle_message_loss(now));
    }

    /// Does what is due; [`Service::settle`] carries it out.
    pub fn handle_timeout(&mut self, now: Instant) {
        for family in &mut self.families {
            if let Some(machine) = &mut family.machine {
                machine.handle_timeout(now);
            }
            if let Some(announcer) = &mut family.announcer {
                announcer.handle_timeout(now);
            }
        }
    }

    /// Takes a captured message.
    pub fn hear(&mut self, now: Instant, packet: &[u8], context: &RouterContext) {
        let refused = |reason| {
            let metrics = &context.catalog.membership;
            metrics.count_rejected(self.served.name.as_str(), reason, 1);
        };
        let datagram = match IpHeader::parse(packet) {
            Ok(datagram) => datagram,
            Err(e) => return refused(crate::wire::RejectReason::from(e).label()),
        };
        let v4 = datagram.source.is_ipv4();
        let proxy = self.served.proxy.as_ref();
        let checks = HeaderPolicy {
            headers: proxy.map_or(HeaderChecks::Strict, |p| p.header_checks),
            on_link: &self.served.addresses,
        };
        let family = &mut self.families[usize::from(!v4)];
        if mrdisc::is_message(&datagram, packet) {
            match mrdisc::parse(packet, &checks) {
                Err(reason) => refused(reason.label()),
                Ok(heard) => {
                    count(
                        context,
                        &self.served,
                        family.protocol,
                        Direction::Received,
                        (mrdisc_kind(&heard.message), "1"),
                    );
                    if let (mrdisc::RouterDiscoveryMessage::Solicitation, Some(announcer)) =
                        (heard.message, &mut family.announcer)
                    {
                        announcer.handle_solicitation(now);
                    }
                }
            }
            return;
        }
        let Some(machine) = &mut family.machine else {
            return;
        };
        if self.gate.admit(now, datagram.source).is_err() {
            return machine.handle_missed_report(now);
        }
        let mut heard = match membership::parse(packet, &checks) {
            Ok(heard) => heard,
            Err(reason) => return refused(reason.label()),
        };
        let kind = kind(&heard.message, family.protocol);
        count(
            context,
            &self.served,
            family.protocol,
            Direction::Received,
            kind,
        );
        let standing = self.gate.sender_status(now, heard.source);
        if standing == SenderStatus::Unknown
            && self.gate.is_flooded(now)
            && !drop_leaves(&mut heard.message)
        {
            machine.handle_missed_report(now);
            return refused(MembershipRefusal::StrangerRate.label());
        }
        let (from, to) = (heard.source, heard.destination);
        let taken = machine.handle_message_from(now, standing, from, to, &heard.message);
        // Who asks for all must be heard through a flood as members are.
        let counts = match heard.message {
            MembershipMessage::Query(_) => machine.querier(now).address == Some(from),
            _ => true,
        };
        match taken {
            // Every host reports groups of its link, too, IPv6 hosts in the same message.
            Ok(()) | Err(MembershipRefusal::LinkLocalGroup) if counts => {
                let until = now + machine.timers().group_membership_interval();
                self.gate.handle_accepted_report(now, heard.source, until);
            }
            Ok(()) => {}
            Err(reason) => debug!(
                "{}: from {}: {}",
                self.served.name,
                heard.source,
                reason.meaning()
            ),
        }
    }
}

impl Service {
    /// Sends what is to be sent, counts, logs; hands back what changed.
    pub fn settle(&mut self, context: &RouterContext) -> Spoken {
        let mut spoken = Spoken::default();
        let mut packets = Vec::new();
        let name = self.served.name.clone();
        for family in &mut self.families {
            let own = own_address(family.protocol, &self.served);
            let Some(machine) = &mut family.machine else {
                continue;
            };
            while let Some(query) = machine.poll_query() {
                let Some(own) = own else { continue };
                let message = MembershipMessage::Query(query.query);
                match membership::build(&message, own, self.served.mtu as usize) {
                    Ok(built) => {
                        let kind = kind(&message, family.protocol);
                        packets.extend(built.into_iter().map(|p| (family.protocol, kind, p)));
                    }
                    Err(e) => warn!("{name}: cannot ask: {e}"),
                }
            }
            while let Some(change) = machine.poll_change() {
                spoken.changes.push(change);
            }
            while let Some(event) = machine.poll_event() {
                if let Some(left) = self.lines.turn(Instant::now()) {
                    log(&name, family.protocol, event, left, &mut self.said_querier);
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
            if self.tell_all {
                spoken.changes = machine
                    .groups(Instant::now())
                    .map(|g| (g.group, g.filter))
                    .chain(std::mem::take(&mut spoken.changes))
                    .collect();
            }
        }
        self.tell_all = false;
        for (reason, count) in self.gate.take_refusals() {
            let metrics = &context.catalog.membership;
            metrics.count_rejected(name.as_str(), reason.label(), count);
        }
        packets.extend(self.advertisements());
        for (protocol, kind, packet) in packets {
            self.send(&packet, context, protocol, kind);
        }
        spoken
    }

    /// The advertisements that are due.
    fn advertisements(&mut self) -> Vec<(Protocol, Kind, Vec<u8>)> {
        let mut packets = Vec::new();
        for family in &mut self.families {
            let own = own_address(family.protocol, &self.served);
            let (Some(announcer), Some(own)) = (&mut family.announcer, own) else {
                continue;
            };
            if !announcer.poll_advertisement() {
                continue;
            }
            let asks = family
                .machine
                .as_ref()
                .filter(|m| m.querier(Instant::now()).is_us);
            let timing = asks.map(Downstream::timers);
            let message = mrdisc::RouterDiscoveryMessage::Advertisement {
                interval: announcer.interval_seconds(),
                query_interval: timing.map_or(0, |t| t.query_interval().as_secs() as u16),
                robustness: timing.map_or(0, |t| t.robustness().into()),
            };
            let packet = mrdisc::build(&message, own);
            packets.push((family.protocol, (mrdisc_kind(&message), "1"), packet));
        }
        packets
    }

    /// Ends the service. Where the process ends or the announcing does, the switches are told.
    pub fn end(&mut self, context: &RouterContext) {
        for at in 0..self.families.len() {
            let family = &mut self.families[at];
            if family.announcer.take().is_some() {
                let protocol = family.protocol;
                self.terminate(protocol, context);
            }
        }
        context
            .catalog
            .membership
            .remove_gauges(self.served.name.as_str());
    }

    /// Tells switches that we are no longer a router of theirs (RFC 4286 section 3.3).
    fn terminate(&mut self, protocol: Protocol, context: &RouterContext) {
        if let Some(own) = own_address(protocol, &self.served) {
            let message = mrdisc::RouterDiscoveryMessage::Termination;
            let packet = mrdisc::build(&message, own);
            self.send(&packet, context, protocol, (mrdisc_kind(&message), "1"));
        }
    }

    fn send(&mut self, packet: &[u8], context: &RouterContext, protocol: Protocol, kind: Kind) {
        let transmit = match &mut self.transmit {
            Some(transmit) => transmit,
            none => match context.plane.transmit(self.index) {
                Ok(opened) => none.insert(opened),
                Err(e) => return warn!("{}: cannot send: {e}", self.served.name),
            },
        };
        match transmit.send(&mut std::iter::once(OutPacket::plain(packet))) {
            Ok(_) => count(
                context,
                &self.served,
                protocol,
                Direction::Transmitted,
                kind,
            ),
            Err(e) => {
                // Queries are repeated; the link may be going down.
                debug!("{}: cannot send: {e}", self.served.name);
                self.transmit = None;
            }
        }
    }

    /// Every group with members.
    pub fn members(&self, now: Instant) -> Vec<GroupView> {
        let machines = self.families.iter().filter_map(|f| f.machine.as_ref());
        let views = machines.flat_map(|machine| {
            let protocol = machine.config().protocol;
            machine
                .groups(now)
                .map(move |g| self.member_view(protocol, g))
        });
        views.collect()
    }

    fn member_view(&self, protocol: Protocol, group: crate::membership::GroupStatus) -> GroupView {
        let ms = |d: Duration| d.as_millis() as u64;
        let source = |s: &crate::membership::SourceStatus| GroupSourceView {
            source: s.source.to_string(),
            forwarded: group.filter.takes(s.source),
            expires_ms: s.source_timer.map(ms),
        };
        GroupView {
            interface: self.served.name.to_string(),
            role: "router".into(),
            group: group.group.to_string(),
            mode: mode(&group.filter).into(),
            sources: group.sources.iter().map(source).collect(),
            expires_ms: group.group_timer.map(ms),
            version: Some(version(group.generation, protocol).into()),
            reporters: group.reporters.iter().map(IpAddr::to_string).collect(),
            last_reporter: Some(group.last_reporter.to_string()),
            original: Vec::new(),
            joined_for: Vec::new(),
            error: None,
        }
    }

    /// Who asks, for each IP version with a machine.
    pub fn queriers(&self, now: Instant) -> Vec<QuerierView> {
        let machines = self.families.iter().filter_map(|f| f.machine.as_ref());
        let view = |machine: &Downstream| {
            let querier = machine.querier(now);
            QuerierView {
                protocol: machine.config().protocol.label().into(),
                address: querier.address.map(|a| a.to_string()),
                us: querier.is_us,
                expires_ms: querier.expires_in.map(|d| d.as_millis() as u64),
            }
        };
        machines.map(view).collect()
    }
}

/// A number that strangers do not know.
fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    // RandomState is seeded by the system.
    RandomState::new().build_hasher().finish()
}

/// `include` or `exclude`.
pub fn mode(filter: &SourceFilter) -> &'static str {
    match filter {
        SourceFilter::Include(_) => "include",
        SourceFilter::Exclude(_) => "exclude",
    }
}

/// The address we ask from: the primary one of IPv4, the link-local one of IPv6
/// (RFC 9777 section 5.1.14).
fn own_address(protocol: Protocol, served: &Served) -> Option<IpAddr> {
    let usable = |addr: &IpAddr| match (protocol, addr) {
        (Protocol::Igmp, IpAddr::V4(_)) => true,
        (Protocol::Mld, IpAddr::V6(addr)) => addr.is_unicast_link_local(),
        _ => false,
    };
    served.addresses.iter().map(|net| net.addr()).find(usable)
}

fn count(
    context: &RouterContext,
    served: &Served,
    protocol: Protocol,
    direction: Direction,
    kind: Kind,
) {
    let iface = served.name.as_str();
    let metrics = &context.catalog.membership;
    metrics.count_message(iface, protocol, direction, kind.0, kind.1);
}
