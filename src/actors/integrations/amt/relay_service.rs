//! One relay interface: its machine, its sockets, and the gateways of the data path.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll, ready};
use std::time::{Duration, Instant};

use ahash::AHashMap;
use futures_util::Stream;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

use crate::actors::messages::{HandedOverRelay, TunnelEnd, TunnelReport};
use crate::actors::shared::RouterContext;
use crate::amt::config::RelayInterface;
use crate::amt::{AmtRandom, Relay, SavedRelay};
use crate::model::{Group, ProxyRule, SourceFilter};
use crate::planes::tunnel::{CopyTotals, RelayPort};
use crate::sys::boot_clock;
use crate::sys::buffer::Buffer;
use crate::sys::datagram::{DatagramReceiver, DatagramSocket, TunnelDatagram};
use crate::sys::poll::watch;

/// The role label of metrics.
const ROLE: &str = "relay";

/// Shortest time between two publications of members. The cost of one depends on the number of
/// gateways, so changes are collected.
const PUBLISH_PAUSE: Duration = Duration::from_millis(10);

/// The pause after a publication, in multiples of the time that it took: a gateway that changes its
/// memberships all the time must not occupy the thread.
const PAUSE_FACTOR: u32 = 4;

/// Datagrams that a relay received at once.
pub(super) struct DatagramBatch {
    buffer: Buffer,
    datagrams: Vec<TunnelDatagram>,
}

/// A socket of a relay. Dropping it ends its stream.
struct ListeningEnd {
    address: SocketAddr,
    socket: Arc<DatagramSocket>,
    _receiving: DropGuard,
}

/// A relay interface.
pub(super) struct RelayService {
    settings: RelayInterface,
    port: Arc<RelayPort>,
    machine: Relay,
    lists: ProxyRule,
    ends: Vec<ListeningEnd>,
    /// The last error of opening a socket, by address.
    errors: BTreeMap<SocketAddr, String>,
    /// Earliest time of the next publication.
    publish_at: Instant,
    /// What was counted of [`RelayPort::traffic`].
    counted: CopyTotals,
    /// Whether another process serves the gateways.
    is_handed_over: bool,
}

impl RelayService {
    /// Creates a relay, which continues the tunnels of another process, if there are any.
    pub(super) fn new(
        now: Instant,
        settings: RelayInterface,
        port: Arc<RelayPort>,
        random: AmtRandom,
        inherited: Option<&SavedRelay>,
    ) -> Self {
        let lists = no_lists();
        // A former actor may have left its gateways there.
        port.set_receivers(AHashMap::new());
        let counted = port.traffic().totals();
        let mut service = Self {
            machine: Relay::new(now, settings.relay.clone(), &lists, random),
            settings,
            port,
            lists,
            ends: Vec::new(),
            errors: BTreeMap::new(),
            publish_at: now,
            counted,
            is_handed_over: false,
        };
        if let (Some(inherited), Ok(clock)) = (inherited, boot_clock::read()) {
            service.machine.restore(&clock, inherited);
            // Routing gets all groups when the actor has started.
            service.publish(now);
        }
        service
    }

    /// Stops to receive messages of gateways, and returns what another process needs to go on. The
    /// data path keeps the sockets.
    pub(super) fn hand_over(&mut self) -> Option<HandedOverRelay> {
        let saved = self.machine.saved(&boot_clock::read().ok()?);
        self.ends.clear();
        self.is_handed_over = true;
        Some(HandedOverRelay {
            interface: self.settings.name.clone(),
            saved,
            sockets: self.port.sockets().to_vec(),
        })
    }

    /// Receives messages of gateways again, from the next [`RelayService::tick`] on.
    pub(super) fn resume(&mut self) {
        self.is_handed_over = false;
    }

    /// Applies new settings. Gateways stay.
    pub(super) fn configure(&mut self, now: Instant, settings: RelayInterface) {
        if settings == self.settings {
            return;
        }
        let fragment = settings.fragment;
        let is_kept = |end: &ListeningEnd| {
            settings.listen.contains(&end.address) && end.socket.set_fragmenting(fragment).is_ok()
        };
        self.ends.retain(is_kept);
        self.machine
            .reconfigure(now, settings.relay.clone(), &self.lists);
        self.settings = settings;
        self.update_port();
    }

    /// Sets the proxy of the interface, whose access lists apply.
    pub(super) fn set_lists(&mut self, now: Instant, proxy: Option<&ProxyRule>) {
        let lists = proxy.cloned().unwrap_or_else(no_lists);
        if lists != self.lists {
            self.lists = lists;
            let config = self.settings.relay.clone();
            self.machine.reconfigure(now, config, &self.lists);
        }
    }

    /// Returns all groups with members.
    pub(super) fn all_groups(&self) -> Vec<(Group, SourceFilter)> {
        self.machine.groups().collect()
    }

    /// Opens the sockets that are missing, and returns what they receive. Updates metrics.
    pub(super) fn tick(
        &mut self,
        context: &RouterContext,
    ) -> Vec<(DatagramStream, CancellationToken)> {
        self.count_copies(context);
        let name = self.settings.name.as_str();
        let metrics = &context.catalog.amt;
        metrics.set_tunnels(name, ROLE, "connected", self.machine.gateway_count());
        let missing = self.settings.listen.iter().copied();
        let is_open = |address: &SocketAddr| self.ends.iter().any(|e| e.address == *address);
        let missing = missing.filter(|address| !self.is_handed_over && !is_open(address));
        let missing: Vec<_> = missing.collect();
        let mut streams = Vec::new();
        for address in missing {
            match self.open(address) {
                Ok(opened) => streams.push(opened),
                Err(e) => self.log_open_error(address, &e),
            }
        }
        if !streams.is_empty() {
            self.update_port();
        }
        streams
    }

    /// Adds what the data path has counted to the metrics.
    pub(super) fn count_copies(&mut self, context: &RouterContext) {
        let metrics = &context.catalog.amt;
        let name = self.settings.name.as_str();
        let now = self.port.traffic().totals();
        let before = std::mem::replace(&mut self.counted, now);
        metrics.add_copies(name, now.copies - before.copies, now.bytes - before.bytes);
        metrics.add_failed_copies(name, "too_big", now.too_big - before.too_big);
        metrics.add_failed_copies(name, "refused", now.failed - before.failed);
    }

    fn open(&mut self, address: SocketAddr) -> io::Result<(DatagramStream, CancellationToken)> {
        let socket = match self.port.socket_at(address) {
            // A former actor has opened it, or another process.
            Some(socket) => socket,
            None => Arc::new(DatagramSocket::open(address, None)?),
        };
        socket.set_fragmenting(self.settings.fragment)?;
        self.errors.remove(&address);
        let receiver = DatagramReceiver::new(socket.clone());
        let receiver = watch(receiver, Interest::READABLE)?;
        let token = CancellationToken::new();
        self.ends.push(ListeningEnd {
            address,
            socket,
            _receiving: token.clone().drop_guard(),
        });
        let name = &self.settings.name;
        info!(interface = %name, "{name}: AMT gateways are served on {address}");
        Ok((DatagramStream(receiver), token))
    }

    fn log_open_error(&mut self, address: SocketAddr, error: &io::Error) {
        let name = &self.settings.name;
        let text = error.to_string();
        if self.errors.get(&address) != Some(&text) {
            warn!(interface = %name, "{name}: cannot serve gateways on {address}: {text}; trying again");
        }
        self.errors.insert(address, text);
    }

    fn update_port(&self) {
        let sockets = self.ends.iter().map(|end| end.socket.clone());
        self.port.set_sockets(sockets.collect());
    }

    /// Handles messages of gateways.
    pub(super) fn handle_batch(
        &mut self,
        now: Instant,
        batch: &DatagramBatch,
        context: &RouterContext,
    ) {
        let metrics = &context.catalog.amt;
        let name = self.settings.name.as_str();
        for datagram in &batch.datagrams {
            let range = datagram.start..datagram.start + datagram.len;
            let Some(payload) = batch.buffer.bytes().get(range) else {
                continue;
            };
            let (from, to) = (datagram.endpoint.remote, datagram.endpoint.local);
            match self.machine.handle_message(now, from, to, payload) {
                Ok(kind) => metrics.count_message(name, kind, "received"),
                Err(refusal) => metrics.count_refused(name, refusal.label(), 1),
            }
        }
    }

    /// Handles an error of a socket: it is opened again.
    pub(super) fn handle_socket_error(&mut self, error: &io::Error) {
        let name = &self.settings.name;
        warn!(interface = %name, "{name}: a socket for gateways failed: {error}; opening all again");
        self.ends.clear();
        self.update_port();
    }

    /// Handles expired timers, sends the messages that are due, and publishes members. Returns the
    /// groups whose members changed.
    pub(super) fn drive(
        &mut self,
        now: Instant,
        context: &RouterContext,
    ) -> Vec<(Group, SourceFilter)> {
        self.machine.handle_timeout(now);
        let name = self.settings.name.as_str();
        while let Some(message) = self.machine.poll_message() {
            let socket = self.port.socket_for(&message.to);
            // A message that is lost is requested again.
            if socket.is_some_and(|s| s.send(message.to, &message.message).is_ok()) {
                let metrics = &context.catalog.amt;
                metrics.count_message(name, message.label, "transmitted");
            }
        }
        match now < self.publish_at {
            true => Vec::new(),
            false => self.publish(now),
        }
    }

    /// Gives changed members to the data path. Returns the groups whose members changed.
    pub(super) fn publish(&mut self, now: Instant) -> Vec<(Group, SourceFilter)> {
        if !self.machine.has_changes() {
            return Vec::new();
        }
        let started = Instant::now();
        let mut receivers = AHashMap::clone(&self.port.receivers());
        let changes = self.machine.take_changes();
        for change in &changes {
            match change.receivers.is_empty() {
                true => receivers.remove(&change.group.addr()),
                false => receivers.insert(change.group.addr(), change.receivers.clone()),
            };
        }
        self.port.set_receivers(receivers);
        self.publish_at = now + PUBLISH_PAUSE.max(PAUSE_FACTOR * started.elapsed());
        let changes = changes.into_iter();
        changes
            .map(|change| (change.group, change.filter))
            .collect()
    }

    /// Returns the time at which [`RelayService::drive`] is due.
    pub(super) fn poll_timeout(&self) -> Instant {
        let next = self.machine.poll_timeout();
        match self.machine.has_changes() {
            true => next.min(self.publish_at),
            false => next,
        }
    }

    /// Ends all tunnels.
    pub(super) fn end(self, context: &RouterContext) {
        self.port.set_receivers(AHashMap::new());
        self.port.set_sockets(Vec::new());
        let metrics = &context.catalog.amt;
        metrics.set_tunnels(self.settings.name.as_str(), ROLE, "connected", 0);
    }

    /// Returns the tunnels.
    pub(super) fn reports(&self, now: Instant) -> Vec<TunnelReport> {
        let report = |status| TunnelReport {
            interface: self.settings.name.clone(),
            end: TunnelEnd::Gateway(status),
        };
        self.machine.gateways(now).map(report).collect()
    }
}

/// Returns a rule that permits every membership.
fn no_lists() -> ProxyRule {
    ProxyRule::new(Vec::new(), Vec::new())
}

/// The datagrams of a socket, in batches.
pub(super) struct DatagramStream(AsyncFd<DatagramReceiver>);

impl Stream for DatagramStream {
    type Item = io::Result<DatagramBatch>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready_mut(task))?;
            let mut datagrams = Vec::new();
            match guard.get_inner_mut().receive(&mut datagrams) {
                Ok(buffer) => {
                    let batch = DatagramBatch { buffer, datagrams };
                    return Poll::Ready(Some(Ok(batch)));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                // Errors of single datagrams, such as those that ICMP reports.
                Err(_) => {}
            }
        }
    }
}
