//! A relay (RFC 7450 section 5.3): answers gateways, and knows which streams each of them
//! receives.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::config::{ROBUSTNESS, RelayConfig};
use super::prefix_limit::{PrefixLimit, prefix_range};
use super::random::AmtRandom;
use super::receivers::{GroupReceivers, union};
use super::refusal::AmtRefusal;
use super::request_memory::RequestMemory;
use super::response_mac::MacSecrets;
use super::saved::{SavedGateway, SavedRelay};
use crate::membership::{
    Downstream, DownstreamConfig, MembershipRefusal, Protocol, ReportRateLimiter, SenderStatus,
    Work,
};
use crate::model::{ClockReading, Group, HeaderChecks, ProxyRule, SourceFilter, TunnelEndpoint};
use crate::wire::amt::{AmtMessage, FlagLayout};
use crate::wire::link_control::HeaderPolicy;
use crate::wire::membership;
use crate::wire::membership_message::{Generation, MembershipMessage, Query};

/// Maximum Response Time of IGMP and MLD queries: the shortest ones, because a tunnel has one host
/// and there is nothing to spread. The Linux driver drops packets between a query and its report.
const RESPONSE_TIME: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(1)];

/// Shortest lifetime of a MAC secret.
const MIN_SECRET_LIFETIME: Duration = Duration::from_secs(600);

/// Tracked hosts of one tunnel: none, because it has one.
const MAX_TRACKED: usize = 0;

/// The part of all gateways that one prefix, /24 or /48, may have when the relay is half full, and
/// the least that it may have: one host with many ports must not keep all others out.
const PREFIX_SHARE: usize = 16;
const MIN_PREFIX_SHARE: usize = 16;

/// Source of IGMP queries if no IPv4 address is advertised: the IPv4 dummy address (RFC 7600).
const DUMMY_SOURCE: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
/// Source of MLD queries, which must be link-local.
const MLD_SOURCE: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Size of a query packet: all of them fit.
const QUERY_MTU: usize = 1280;

/// A message to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayMessage {
    /// The receiver, and the address that it sent to.
    pub to: TunnelEndpoint,
    /// The label of its type.
    pub label: &'static str,
    /// The payload of the datagram.
    pub message: Vec<u8>,
}

/// A group whose members changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupChange {
    /// The group.
    pub group: Group,
    /// The union of the filters of all gateways.
    pub filter: SourceFilter,
    /// The gateways.
    pub receivers: Arc<GroupReceivers>,
}

/// A tunnel as users see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayStatus {
    /// The address of the gateway.
    pub gateway: SocketAddr,
    /// Number of its groups.
    pub groups: usize,
    /// Time since the first update.
    pub age: Duration,
    /// Time since the last update.
    pub updated: Duration,
}

/// The tunnel to one gateway.
#[derive(Debug)]
struct GatewayTunnel {
    /// The address of this host that the gateway sent its last update to.
    local: IpAddr,
    /// IGMP and MLD. Boxed, because most gateways use one of them.
    downstreams: [Option<Box<Downstream>>; 2],
    since: Instant,
    updated: Instant,
    /// The deadline in [`Relay::deadlines`].
    deadline: Option<Instant>,
}

impl GatewayTunnel {
    fn group_count(&self) -> usize {
        let downstreams = self.downstreams.iter().flatten();
        downstreams.map(|downstream| downstream.group_count()).sum()
    }

    fn groups(&self) -> impl Iterator<Item = Group> {
        let downstreams = self.downstreams.iter().flatten();
        let groups = downstreams.flat_map(|downstream| downstream.groups(self.updated));
        groups.map(|status| status.group)
    }
}

/// A relay.
///
/// `handle_*` take messages and expired timers. After each of them, call
/// [`poll_message`](Self::poll_message) until it returns None, [`take_changes`](Self::take_changes)
/// now and then, and [`handle_timeout`](Self::handle_timeout) at
/// [`poll_timeout`](Self::poll_timeout).
///
/// Nothing is stored for a sender until an update proves that it receives what is sent to its
/// address.
#[derive(Debug)]
pub struct Relay {
    config: RelayConfig,
    random: AmtRandom,
    rule: Arc<ProxyRule>,
    secrets: MacSecrets,
    limit: PrefixLimit,
    /// Limits the work of updates.
    update_limit: ReportRateLimiter<SocketAddr>,
    tunnels: BTreeMap<SocketAddr, GatewayTunnel>,
    deadlines: BTreeSet<(Instant, SocketAddr)>,
    members: BTreeMap<Group, BTreeMap<SocketAddr, SourceFilter>>,
    changed: BTreeSet<Group>,
    requests: RequestMemory,
    messages: VecDeque<RelayMessage>,
}

impl Relay {
    /// Creates a relay without gateways. `lists` has the access lists for memberships.
    pub fn new(
        now: Instant,
        config: RelayConfig,
        lists: &ProxyRule,
        mut random: AmtRandom,
    ) -> Self {
        let lifetime = MIN_SECRET_LIFETIME.max(2 * config.query_interval);
        let secrets = MacSecrets::new(now, lifetime, &mut random);
        let (per_prefix, total) = (config.answers_per_prefix, config.answers);
        let limit = PrefixLimit::new(now, per_prefix, total, random.nonce());
        let rule = config.rule(lists);
        Self {
            update_limit: update_limit(now, &rule, &mut random),
            rule: Arc::new(rule),
            config,
            secrets,
            limit,
            tunnels: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            members: BTreeMap::new(),
            changed: BTreeSet::new(),
            requests: RequestMemory::new(random.nonce()),
            messages: VecDeque::new(),
            random,
        }
    }

    /// Continues the tunnels of another process, up to the limit of gateways. Timers continue with
    /// what is left of them.
    pub fn restore(&mut self, clock: &ClockReading, saved: &SavedRelay) {
        self.secrets.restore(clock, &saved.secrets);
        for gateway in saved.gateways.iter().take(self.config.gateways) {
            let downstreams = Protocol::ALL.map(|protocol| {
                let config = downstream_config(&self.rule, protocol);
                let own = Some(own_address(protocol));
                let saved = gateway.downstreams[protocol as usize].as_ref()?;
                Some(Box::new(Downstream::restored(clock, config, own, saved)))
            });
            let tunnel = GatewayTunnel {
                local: gateway.local,
                downstreams,
                since: clock.to_instant(gateway.since),
                updated: clock.to_instant(gateway.updated),
                deadline: None,
            };
            self.tunnels.insert(gateway.gateway, tunnel);
            self.update_tunnel(clock.now, gateway.gateway);
        }
    }

    // Getters.

    /// Returns tunnels and secrets as data.
    pub fn saved(&self, clock: &ClockReading) -> SavedRelay {
        let tunnels = self.tunnels.iter();
        let gateways = tunnels.map(|(address, tunnel)| SavedGateway {
            gateway: *address,
            local: tunnel.local,
            since: clock.to_boot(tunnel.since),
            updated: clock.to_boot(tunnel.updated),
            downstreams: Protocol::ALL.map(|protocol| {
                let downstream = tunnel.downstreams[protocol as usize].as_ref()?;
                Some(downstream.saved(clock))
            }),
        });
        SavedRelay {
            secrets: self.secrets.saved(clock),
            gateways: gateways.collect(),
        }
    }

    /// Returns the number of gateways.
    pub fn gateway_count(&self) -> usize {
        self.tunnels.len()
    }

    /// Returns the gateways, by address.
    pub fn gateways(&self, now: Instant) -> impl Iterator<Item = GatewayStatus> {
        self.tunnels
            .iter()
            .map(move |(address, tunnel)| GatewayStatus {
                gateway: *address,
                groups: tunnel.group_count(),
                age: now.duration_since(tunnel.since),
                updated: now.duration_since(tunnel.updated),
            })
    }

    /// Returns the groups with members, and the union of their filters.
    pub fn groups(&self) -> impl Iterator<Item = (Group, SourceFilter)> {
        self.members
            .iter()
            .map(|(group, members)| (*group, union(members)))
    }

    // Inputs.

    /// Replaces configuration and access lists. Gateways stay; memberships that are not permitted
    /// any more end.
    pub fn reconfigure(&mut self, now: Instant, config: RelayConfig, lists: &ProxyRule) {
        let rule = config.rule(lists);
        if rule.limits.reports_per_second != self.rule.limits.reports_per_second {
            self.update_limit = update_limit(now, &rule, &mut self.random);
        }
        self.rule = Arc::new(rule);
        self.config = config;
        let addresses: Vec<SocketAddr> = self.tunnels.keys().copied().collect();
        for address in addresses {
            let rule = &self.rule;
            if let Some(tunnel) = self.tunnels.get_mut(&address) {
                let downstreams = tunnel.downstreams.iter_mut().flatten();
                downstreams.for_each(|d| d.reconfigure(now, rule.clone()));
            }
            self.update_tunnel(now, address);
        }
    }

    /// Handles a message that `from` sent to the address `to` of this host. Returns the label of
    /// its type.
    ///
    /// # Errors
    /// The reason to refuse it, or a part of it.
    pub fn handle_message(
        &mut self,
        now: Instant,
        from: SocketAddr,
        to: IpAddr,
        bytes: &[u8],
    ) -> Result<&'static str, AmtRefusal> {
        self.secrets.handle_timeout(now, &mut self.random);
        let message = AmtMessage::parse(bytes)?;
        match message {
            AmtMessage::RelayDiscovery { nonce } => self.advertise(now, from, to, nonce)?,
            AmtMessage::Request {
                nonce,
                is_mld,
                flags,
            } => self.handle_request(now, (from, to), (nonce, is_mld, flags))?,
            AmtMessage::MembershipUpdate { mac, nonce, packet } => {
                if !self.secrets.is_valid(from, nonce, mac) {
                    return Err(AmtRefusal::WrongMac);
                }
                self.handle_update(now, (from, to), packet)?;
            }
            AmtMessage::Teardown {
                mac,
                nonce,
                gateway,
            } => {
                if !self.secrets.is_valid(gateway, nonce, mac) {
                    return Err(AmtRefusal::WrongMac);
                }
                if !self.tunnels.contains_key(&gateway) {
                    return Err(AmtRefusal::UnknownGateway);
                }
                self.remove_tunnel(gateway);
            }
            _ => return Err(AmtRefusal::UnexpectedType),
        }
        Ok(message.label())
    }

    /// Handles expired timers.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.secrets.handle_timeout(now, &mut self.random);
        while let Some((at, address)) = self.deadlines.first().copied()
            && at <= now
        {
            if let Some(tunnel) = self.tunnels.get_mut(&address) {
                for downstream in tunnel.downstreams.iter_mut().flatten() {
                    downstream.handle_timeout(now);
                }
            }
            self.update_tunnel(now, address);
        }
    }

    // Outputs.

    /// Returns the next message.
    pub fn poll_message(&mut self) -> Option<RelayMessage> {
        self.messages.pop_front()
    }

    /// Returns the groups whose members changed since the last call. Each costs time in proportion
    /// to its members, so many changes should be collected before.
    pub fn take_changes(&mut self) -> Vec<GroupChange> {
        let changed = std::mem::take(&mut self.changed);
        let none = BTreeMap::new();
        let changes = changed.into_iter().map(|group| {
            let members = self.members.get(&group).unwrap_or(&none);
            GroupChange {
                group,
                filter: union(members),
                receivers: Arc::new(GroupReceivers::new(members, |gateway| {
                    let tunnel = self.tunnels.get(gateway);
                    tunnel.map_or(Ipv4Addr::UNSPECIFIED.into(), |tunnel| tunnel.local)
                })),
            }
        });
        changes.collect()
    }

    /// Returns whether [`take_changes`](Self::take_changes) would return something.
    pub fn has_changes(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Returns the time at which [`handle_timeout`](Self::handle_timeout) is due.
    pub fn poll_timeout(&self) -> Instant {
        let next = self.deadlines.first().map(|(at, _)| *at);
        let secret = self.secrets.changes_at();
        next.map_or(secret, |at| at.min(secret))
    }

    // Answers.

    fn advertise(
        &mut self,
        now: Instant,
        from: SocketAddr,
        to: IpAddr,
        nonce: u32,
    ) -> Result<(), AmtRefusal> {
        self.check_rate(now, from)?;
        let configured = self.config.advertise[usize::from(from.is_ipv6())];
        let relay = configured.unwrap_or(to);
        if relay.is_unspecified() || relay.is_ipv4() != from.is_ipv4() {
            return Err(AmtRefusal::BadAddress);
        }
        self.send((from, to), &AmtMessage::RelayAdvertisement { nonce, relay });
        Ok(())
    }

    fn handle_request(
        &mut self,
        now: Instant,
        (from, to): (SocketAddr, IpAddr),
        (nonce, is_mld, flags): (u32, bool, FlagLayout),
    ) -> Result<(), AmtRefusal> {
        self.check_rate(now, from)?;
        let source: IpAddr = match (is_mld, self.config.advertise[0]) {
            (true, _) => MLD_SOURCE.into(),
            (false, address) => address.unwrap_or(DUMMY_SOURCE.into()),
        };
        let query = Query {
            generation: Generation::Three,
            group: None,
            max_response_time: RESPONSE_TIME[usize::from(is_mld)],
            suppress: false,
            robustness: ROBUSTNESS,
            interval: Some(self.config.query_interval),
            sources: Vec::new(),
        };
        let built = membership::build(&MembershipMessage::Query(query), source, QUERY_MTU);
        let built = built.unwrap_or_default();
        let packet = built.first().ok_or(AmtRefusal::BadQuery)?;
        let has_gateway = self.requests.note(from, nonce, is_mld, flags);
        let is_full = self.is_full_for(from.ip());
        self.send(
            (from, to),
            &AmtMessage::MembershipQuery {
                is_limit_reached: is_full && !self.tunnels.contains_key(&from),
                mac: self.secrets.mac(from, nonce),
                nonce,
                packet,
                gateway: has_gateway.then_some(from),
                flags,
            },
        );
        Ok(())
    }

    /// Returns whether the relay accepts no new gateway with this address.
    fn is_full_for(&self, address: IpAddr) -> bool {
        let limit = self.config.gateways;
        if self.tunnels.len() < limit / 2 {
            return false;
        }
        let share = (limit / PREFIX_SHARE).max(MIN_PREFIX_SHARE);
        let of_prefix = self.tunnels.range(prefix_range(address));
        self.tunnels.len() >= limit || of_prefix.take(share).count() >= share
    }

    /// Limits the answers, so that forged addresses cause little.
    fn check_rate(&mut self, now: Instant, from: SocketAddr) -> Result<(), AmtRefusal> {
        let is_permitted = match self.tunnels.contains_key(&from) {
            true => self.limit.permits_gateway(now, from),
            false => self.limit.permits(now, from.ip()),
        };
        is_permitted.then_some(()).ok_or(AmtRefusal::RateLimit)
    }

    fn send(&mut self, (remote, local): (SocketAddr, IpAddr), message: &AmtMessage<'_>) {
        self.messages.push_back(RelayMessage {
            to: TunnelEndpoint { remote, local },
            label: message.label(),
            message: message.to_bytes(),
        });
    }

    // Memberships.

    /// Handles the report of a gateway whose address is verified.
    fn handle_update(
        &mut self,
        now: Instant,
        (from, to): (SocketAddr, IpAddr),
        packet: &[u8],
    ) -> Result<(), AmtRefusal> {
        self.update_limit.admit(now, from)?;
        let policy = HeaderPolicy {
            headers: HeaderChecks::Lenient,
            on_link: &[],
        };
        let report = membership::parse(packet, &policy).map_err(|_| AmtRefusal::BadReport)?;
        if !matches!(report.message, MembershipMessage::Records(_)) {
            return Err(AmtRefusal::BadReport);
        }
        let protocol = match report.source {
            IpAddr::V4(_) => Protocol::Igmp,
            IpAddr::V6(_) => Protocol::Mld,
        };
        let tunnel = self.tunnels.get(&from);
        if tunnel.is_none() && self.is_full_for(from.ip()) {
            return Err(AmtRefusal::GatewayLimit);
        }
        let work = match tunnel.and_then(|t| t.downstreams[protocol as usize].as_ref()) {
            Some(downstream) => downstream.work_of(&report.message),
            None => Work::of(&report.message, |_| 0),
        };
        self.update_limit.charge(now, from, work)?;
        let tunnel = self.tunnels.entry(from).or_insert_with(|| GatewayTunnel {
            local: to,
            downstreams: [None, None],
            since: now,
            updated: now,
            deadline: None,
        });
        tunnel.updated = now;
        if std::mem::replace(&mut tunnel.local, to) != to {
            self.changed.extend(tunnel.groups());
        }
        let config = downstream_config(&self.rule, protocol);
        let own = Some(own_address(protocol));
        let downstream = tunnel.downstreams[protocol as usize]
            .get_or_insert_with(|| Box::new(Downstream::new(now, config, own)));
        let handled = downstream.handle_message_from(
            now,
            SenderStatus::OnlyHost,
            report.source,
            report.destination,
            &report.message,
        );
        let expires = now + downstream.timers().group_membership_interval();
        self.update_tunnel(now, from);
        // Hosts also report link-local groups, which are refused.
        if matches!(handled, Ok(()) | Err(MembershipRefusal::LinkLocalGroup)) {
            let limit = &mut self.update_limit;
            limit.handle_accepted_report(now, from, expires);
        }
        Ok(handled?)
    }

    /// Takes over what changed in a tunnel. Removes it if it has no groups.
    fn update_tunnel(&mut self, now: Instant, address: SocketAddr) {
        let Some(tunnel) = self.tunnels.get_mut(&address) else {
            return;
        };
        let mut next = None;
        for downstream in tunnel.downstreams.iter_mut().flatten() {
            // A tunnel is queried when its gateway sends a Request.
            while downstream.poll_query().is_some() {}
            while downstream.poll_event().is_some() {}
            while let Some((group, filter)) = downstream.poll_change() {
                self.changed.insert(group);
                let members = self.members.entry(group).or_default();
                match filter.is_none() {
                    true => members.remove(&address),
                    false => members.insert(address, filter),
                };
                if members.is_empty() {
                    self.members.remove(&group);
                }
            }
            next = next.into_iter().chain(downstream.poll_timeout()).min();
        }
        if tunnel.group_count() == 0 {
            return self.remove_tunnel(address);
        }
        // A timer may expire at once; the next one is not earlier than the next millisecond.
        let next = next.map(|at: Instant| at.max(now + Duration::from_millis(1)));
        if let Some(old) = std::mem::replace(&mut tunnel.deadline, next) {
            self.deadlines.remove(&(old, address));
        }
        self.deadlines.extend(next.map(|at| (at, address)));
    }

    fn remove_tunnel(&mut self, address: SocketAddr) {
        let Some(tunnel) = self.tunnels.remove(&address) else {
            return;
        };
        if let Some(old) = tunnel.deadline {
            self.deadlines.remove(&(old, address));
        }
        for group in tunnel.groups() {
            let Some(members) = self.members.get_mut(&group) else {
                continue;
            };
            members.remove(&address);
            self.changed.insert(group);
            if members.is_empty() {
                self.members.remove(&group);
            }
        }
    }
}

/// Returns the limit of the work of updates.
fn update_limit(
    now: Instant,
    rule: &ProxyRule,
    random: &mut AmtRandom,
) -> ReportRateLimiter<SocketAddr> {
    let seed = u64::from(random.nonce()) << 32 | u64::from(random.nonce());
    ReportRateLimiter::new(now, rule.limits.reports_per_second, seed)
}

/// Returns the configuration of the memberships of one tunnel and protocol.
fn downstream_config(rule: &Arc<ProxyRule>, protocol: Protocol) -> DownstreamConfig {
    DownstreamConfig {
        protocol,
        rule: rule.clone(),
        max_tracked_entries: MAX_TRACKED,
    }
}

/// Returns the address of this router inside the tunnels.
fn own_address(protocol: Protocol) -> IpAddr {
    match protocol {
        Protocol::Igmp => DUMMY_SOURCE.into(),
        Protocol::Mld => MLD_SOURCE.into(),
    }
}

#[cfg(test)]
mod tests;
