//! One interface on which this host joins groups: the host side of IGMP and MLD, the transmission
//! of reports, and the memberships of the kernel.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::kernel_joins::KernelJoins;
use crate::actors::control::message_labels::{MessageLabels, membership_labels};
use crate::actors::control::message_sender::MessageSender;
use crate::actors::log_limit::LogLimit;
use crate::actors::messages::JoiningInterface;
use crate::actors::shared::RouterContext;
use crate::membership::{Host, HostConfig, HostEvent, MessageAddresses, Protocol};
use crate::metrics::membership::Direction;
use crate::model::{Group, HeaderChecks, IfName, InterfaceId, SourceFilter};
use crate::sys::forced_versions::{ForcedVersions, forced_versions};
use crate::wire::ip::IpHeader;
use crate::wire::link_control::HeaderPolicy;
use crate::wire::membership;
use crate::wire::membership_message::Generation;
use crate::wire::mrdisc;

/// After a failed transmission, all groups are reported again after this time.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// While the socket is full, it is tried again after this time.
const FULL_SOCKET_PAUSE: Duration = Duration::from_millis(5);

/// Most packets that are sent before other actors of the thread run.
const MAX_PACKETS_IN_A_ROW: usize = 256;

/// Limit of the packets that wait for the socket. Beyond it, they are discarded, and all groups are
/// reported again after [`RETRY_INTERVAL`].
const MAX_WAITING_PACKETS: usize = 65_536;

/// A report on its way to the socket.
struct WaitingReport {
    protocol: Protocol,
    labels: MessageLabels,
    packet: Vec<u8>,
}

/// The memberships of this host on one interface.
pub(super) struct HostService {
    interface: JoiningInterface,
    /// IGMP and MLD.
    hosts: [Host; 2],
    sender: MessageSender,
    waiting: VecDeque<WaitingReport>,
    /// When the waiting reports are sent.
    send_at: Option<Instant>,
    /// When all groups are reported again, because reports could not be sent.
    retry_at: Option<Instant>,
    /// The last error of the socket, until the next success.
    error: Option<String>,
    /// None if the interface is not a link of the kernel.
    kernel: Option<KernelJoins>,
    log_limit: LogLimit,
}

impl HostService {
    /// Starts without groups.
    pub(super) fn new(
        now: Instant,
        index: InterfaceId,
        interface: JoiningInterface,
        context: &RouterContext,
    ) -> Self {
        let keeper = &context.membership_keeper;
        let in_kernel = |index| KernelJoins::new(index, keeper.clone());
        let forced = forced_versions(&interface.name);
        let hosts = Protocol::ALL.map(|protocol| {
            let config = host_config(protocol, &interface, forced);
            Host::new(now, config, own_addresses(protocol, &interface), seed())
        });
        Self {
            interface,
            hosts,
            sender: MessageSender::new(index),
            waiting: VecDeque::new(),
            send_at: None,
            retry_at: None,
            error: None,
            kernel: index.ifindex().map(in_kernel),
            log_limit: LogLimit::default(),
        }
    }

    /// Returns the name of the interface.
    pub(super) fn name(&self) -> &IfName {
        &self.interface.name
    }

    /// Applies new properties of the interface. Returns whether the memberships of the kernel must
    /// be set again.
    pub(super) fn update(
        &mut self,
        now: Instant,
        interface: JoiningInterface,
        context: &RouterContext,
    ) -> bool {
        if interface == self.interface {
            return false;
        }
        if interface.name != self.interface.name {
            let catalog = &context.catalog;
            catalog.remove_joined_groups(self.interface.name.as_str());
        }
        let forced = forced_versions(&interface.name);
        let is_carrier_back = interface.carrier && !self.interface.carrier;
        for host in &mut self.hosts {
            let protocol = host.config().protocol;
            host.reconfigure(now, host_config(protocol, &interface, forced));
            host.set_own_addresses(now, own_addresses(protocol, &interface));
            if is_carrier_back {
                host.handle_link_up(now);
            }
        }
        let is_kernel_affected = interface.reports != self.interface.reports;
        self.interface = interface;
        is_kernel_affected
    }

    /// Replaces the filter of a group. [`HostService::flush`] sends the report.
    pub(super) fn set_filter(&mut self, now: Instant, group: Group, filter: SourceFilter) {
        self.host_mut(group.addr()).set_filter(now, group, filter);
    }

    /// Applies a filter to the memberships of the kernel.
    pub(super) fn set_kernel_filter(&mut self, group: Group, filter: &SourceFilter) {
        let reports = &self.interface.reports;
        let version = match group.addr() {
            IpAddr::V4(_) => reports.igmp_version,
            IpAddr::V6(_) => reports.mld_version,
        };
        let none = SourceFilter::none();
        // The kernel would report in the version of the querier.
        let filter = if version.is_none() { filter } else { &none };
        if let Some(kernel) = &mut self.kernel {
            kernel.set(&self.interface.name, group, filter);
        }
    }

    /// Returns the groups that the kernel refused.
    pub(super) fn failed_in_kernel(&self) -> Vec<Group> {
        let failed = self.kernel.iter().flat_map(KernelJoins::failed);
        failed.collect()
    }

    /// Handles a captured message.
    pub(super) fn handle_message(&mut self, now: Instant, packet: &[u8], context: &RouterContext) {
        let is_counted = !self.interface.serves_members;
        let name = self.interface.name.clone();
        let refuse = |reason| {
            if is_counted {
                let metrics = &context.catalog.membership;
                metrics.count_rejected(name.as_str(), reason, 1);
            }
        };
        let header = match IpHeader::parse(packet) {
            Ok(header) => header,
            Err(e) => return refuse(crate::wire::RejectReason::from(e).label()),
        };
        if mrdisc::is_message(&header, packet) {
            return;
        }
        let checks = HeaderPolicy {
            // Queriers with an address outside the subnets of this host are common.
            headers: HeaderChecks::Lenient,
            on_link: &[],
        };
        let received = match membership::parse(packet, &checks) {
            Ok(received) => received,
            Err(reason) => return refuse(reason.label()),
        };
        let host = self.host_mut(received.source);
        let protocol = host.config().protocol;
        let addresses = MessageAddresses {
            sender: received.source,
            destination: received.destination,
        };
        match host.handle_message(now, addresses, &received.message) {
            Ok(()) if is_counted => {
                let (kind, version) = membership_labels(&received.message, protocol);
                let metrics = &context.catalog.membership;
                metrics.count_message(name.as_str(), protocol, Direction::Received, kind, version);
            }
            Ok(()) => {}
            Err(reason) => refuse(reason.label()),
        }
    }

    /// Counts `count` messages that were lost because the queue was full, and handles their loss.
    pub(super) fn handle_overflow(&mut self, now: Instant, count: u64, context: &RouterContext) {
        if !self.interface.serves_members {
            let metrics = &context.catalog.membership;
            metrics.count_rejected(self.interface.name.as_str(), "busy", count);
        }
        self.handle_message_loss(now);
    }

    /// Handles the loss of captured messages.
    pub(super) fn handle_message_loss(&mut self, now: Instant) {
        for host in &mut self.hosts {
            host.handle_message_loss(now);
        }
    }

    /// Returns the time at which [`HostService::flush`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let hosts = self.hosts.iter().filter_map(Host::poll_timeout);
        hosts.chain(self.send_at).chain(self.retry_at).min()
    }

    /// Handles expired timers, sends reports, logs events and updates metrics.
    pub(super) fn flush(&mut self, now: Instant, context: &RouterContext) {
        if self.retry_at.take_if(|at| *at <= now).is_some() {
            self.hosts.iter_mut().for_each(|host| host.report_anew(now));
        }
        for at in 0..self.hosts.len() {
            let host = &mut self.hosts[at];
            if host.poll_timeout().is_some_and(|at| at <= now) {
                host.handle_timeout(now);
            }
            self.collect_reports(at);
            self.log_events(now, at);
        }
        self.send(now, context);
        let memberships: usize = self.hosts.iter().map(Host::membership_count).sum();
        let name = self.interface.name.as_str();
        context.catalog.set_joined_groups(name, memberships as u64);
    }

    /// Leaves all groups.
    pub(super) fn end(&mut self, now: Instant, context: &RouterContext) {
        for at in 0..self.hosts.len() {
            self.hosts[at].leave_all(now);
            self.collect_reports(at);
        }
        while !self.waiting.is_empty() && self.retry_at.is_none() {
            let before = self.waiting.len();
            self.send(now, context);
            if self.waiting.len() == before {
                break;
            }
        }
        if let Some(kernel) = self.kernel.take() {
            kernel.end();
        }
        let name = self.interface.name.as_str();
        context.catalog.remove_joined_groups(name);
    }

    /// Returns the version of the reports of a group, and why they may have no effect.
    pub(super) fn status(&self, group: Group) -> (&'static str, Option<String>) {
        let is_v6 = group.addr().is_ipv6();
        let host = &self.hosts[usize::from(is_v6)];
        let protocol = host.config().protocol;
        let no_address = || {
            let has_address = source_address(protocol, &self.interface).is_some();
            let text =
                "the interface has no IPv6 link-local address; routers ignore reports from ::";
            (is_v6 && !has_address).then(|| text.to_string())
        };
        let error = self.error.clone().or_else(no_address);
        (protocol.version(host.generation()), error)
    }

    fn host_mut(&mut self, addr: IpAddr) -> &mut Host {
        &mut self.hosts[usize::from(addr.is_ipv6())]
    }

    /// Builds the packets of the reports of one protocol.
    fn collect_reports(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        let protocol = host.config().protocol;
        // Hosts without an address report from the unspecified one (RFC 9776 section 4.2.14, RFC
        // 9777 section 5.2.14).
        let unspecified = match protocol {
            Protocol::Igmp => Ipv4Addr::UNSPECIFIED.into(),
            Protocol::Mld => Ipv6Addr::UNSPECIFIED.into(),
        };
        let source = source_address(protocol, &self.interface).unwrap_or(unspecified);
        while let Some(message) = host.poll_report() {
            let labels = membership_labels(&message, protocol);
            match membership::build(&message, source, self.interface.mtu as usize) {
                Ok(packets) => {
                    let reports = packets.into_iter().map(|packet| WaitingReport {
                        protocol,
                        labels,
                        packet,
                    });
                    self.waiting.extend(reports);
                }
                Err(e) => {
                    let name = &self.interface.name;
                    warn!(interface = %name, "{name}: cannot build a report: {e}");
                }
            }
        }
    }

    /// Sends waiting reports, at most [`MAX_PACKETS_IN_A_ROW`].
    fn send(&mut self, now: Instant, context: &RouterContext) {
        self.send_at = None;
        if self.waiting.len() > MAX_WAITING_PACKETS {
            let error = io::Error::other("too many reports wait for the socket");
            return self.handle_send_error(now, error);
        }
        let name = self.interface.name.clone();
        let mut sent_in_a_row = 0;
        while !self.waiting.is_empty() && sent_in_a_row < MAX_PACKETS_IN_A_ROW {
            let packets = self.waiting.iter().map(|report| report.packet.as_slice());
            let packets = packets.take(MAX_PACKETS_IN_A_ROW - sent_in_a_row);
            match self.sender.send(self.interface.plane, packets, context) {
                Ok(sent) => {
                    sent_in_a_row += sent;
                    for report in self.waiting.drain(..sent.min(self.waiting.len())) {
                        let (kind, version) = report.labels;
                        let metrics = &context.catalog.membership;
                        let direction = Direction::Transmitted;
                        let protocol = report.protocol;
                        metrics.count_message(name.as_str(), protocol, direction, kind, version);
                    }
                    if self.error.take().is_some()
                        && let Some(suppressed) = self.log_limit.permit(now)
                    {
                        info!(interface = %name, "{name}: groups are reported again{suppressed}");
                    }
                }
                Err(e) if is_full(&e) => {
                    self.send_at = Some(now + FULL_SOCKET_PAUSE);
                    return;
                }
                Err(e) => return self.handle_send_error(now, e),
            }
        }
        if !self.waiting.is_empty() {
            self.send_at = Some(now);
        }
    }

    fn handle_send_error(&mut self, now: Instant, error: io::Error) {
        self.waiting.clear();
        self.retry_at = Some(now + RETRY_INTERVAL);
        let name = &self.interface.name;
        let text = format!("cannot report groups: {error}");
        if self.error.replace(text).is_none()
            && let Some(suppressed) = self.log_limit.permit(now)
        {
            warn!(interface = %name, "{name}: cannot report groups: {error}; trying again every second{suppressed}");
        }
    }

    fn log_events(&mut self, now: Instant, at: usize) {
        let host = &mut self.hosts[at];
        let protocol = host.config().protocol;
        let name = &self.interface.name;
        while let Some(event) = host.poll_event() {
            let Some(suppressed) = self.log_limit.permit(now) else {
                continue;
            };
            match event {
                HostEvent::VersionChanged {
                    generation,
                    querier: Some(querier),
                } => {
                    let version = protocol.version(generation);
                    let loss = match generation {
                        Generation::Three => "",
                        _ => ", which has no source filters",
                    };
                    info!(
                        interface = %name, "{name}: the {protocol} querier {querier} uses version {version}{loss}; \
                         groups are reported in this version{suppressed}"
                    );
                }
                HostEvent::VersionChanged {
                    generation,
                    querier: None,
                } => info!(
                    interface = %name, "{name}: the {protocol} querier of an older version is gone; groups are \
                     reported in version {}{suppressed}",
                    protocol.version(generation)
                ),
                HostEvent::NoQuerier => info!(
                    interface = %name, "{name}: groups are joined, but no {protocol} querier sends queries. If the \
                     streams end, the network expects reports without queries: refresh = \"60s\" in \
                     an [[interface]] sends them{suppressed}"
                ),
            }
        }
    }
}

/// Returns whether the socket or the queue of the device is full for a moment.
fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}

/// Returns the configuration of the host side. Settings override the sysctls of the kernel.
fn host_config(
    protocol: Protocol,
    interface: &JoiningInterface,
    forced: ForcedVersions,
) -> HostConfig {
    let reports = &interface.reports;
    let generation = match protocol {
        Protocol::Igmp => match reports.igmp_version.or(forced.igmp) {
            Some(1) => Some(Generation::One),
            Some(2) => Some(Generation::Two),
            Some(_) => Some(Generation::Three),
            None => None,
        },
        Protocol::Mld => match reports.mld_version.or(forced.mld) {
            Some(1) => Some(Generation::Two),
            Some(_) => Some(Generation::Three),
            None => None,
        },
    };
    HostConfig {
        protocol,
        generation,
        refresh: reports.refresh,
    }
}

/// Returns the addresses of this machine of one IP version. The first is the source of reports, if
/// reports may leave from it.
fn own_addresses(protocol: Protocol, interface: &JoiningInterface) -> Vec<IpAddr> {
    let addresses = interface.addresses.iter().copied();
    let mut addresses: Vec<IpAddr> = addresses.filter(|a| protocol.is_family_of(*a)).collect();
    addresses.sort_by_key(|addr| !is_source_address(addr));
    addresses
}

/// Returns the source address of reports: the first IPv4 address, or the link-local IPv6 address.
fn source_address(protocol: Protocol, interface: &JoiningInterface) -> Option<IpAddr> {
    let own = own_addresses(protocol, interface);
    own.first().copied().filter(is_source_address)
}

fn is_source_address(addr: &IpAddr) -> bool {
    match addr {
        IpAddr::V4(_) => true,
        IpAddr::V6(addr) => addr.is_unicast_link_local(),
    }
}

/// Returns a number that other hosts cannot predict.
fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    // RandomState is seeded by the system.
    RandomState::new().build_hasher().finish()
}
