//! The side of the new process.

use std::fmt::Display;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use ahash::AHashMap;
use tokio::time::sleep;
use tracing::{info, warn};

use super::connection::Connection;
use super::messages::{FromIncoming, FromOutgoing, Offer, PROTOCOL};
use crate::actors::RouterContext;
use crate::actors::integrations::discovery;
use crate::actors::messages::{Barrier, QueryJoinsApplied, QueryMnat, Republish, RestartChild};
use crate::actors::supervisor::Supervisor;
use crate::amt::SavedRelay;
use crate::app::listeners::PassedSocket;
use crate::model::InterfaceId;
use crate::pipeline::CaptureHandle;
use crate::sys::datagram::DatagramSocket;
use crate::sys::upgrade_launcher;

/// How long the running process may need for a step.
const STEP_TIMEOUT: Duration = Duration::from_secs(15);

/// Interval at which this process looks whether it is ready.
const READY_INTERVAL: Duration = Duration::from_millis(2);

/// Packets that waited are counted for this time.
const COUNT_TIME: Duration = Duration::from_millis(20);

/// The running process that this one replaces.
pub struct Predecessor {
    connection: Connection,
}

/// What this process continues.
pub(in crate::app) struct Inheritance {
    connection: Connection,
    offer: Offer,
    captures: AHashMap<InterfaceId, CaptureHandle>,
    relays: Vec<(String, SavedRelay)>,
    relay_sockets: Vec<(String, OwnedFd)>,
    /// The listening sockets, until they are taken.
    pub(in crate::app) control: Option<PassedSocket>,
    pub(in crate::app) http: Option<PassedSocket>,
}

impl Predecessor {
    /// Returns the process that started this one to be replaced; `None` if there is none.
    ///
    /// # Errors
    /// There is one, but no connection to it.
    pub fn connect() -> io::Result<Option<Self>> {
        let socket = upgrade_launcher::predecessor().transpose()?;
        Ok(socket.map(|socket| Self {
            connection: Connection::new(socket),
        }))
    }

    /// Tells the running process why this one does not replace it.
    pub fn refuse(&self, reason: &dyn Display) {
        let refused = FromIncoming::Refused(reason.to_string());
        // It notices the end of this process otherwise.
        let _ = self.connection.send(&refused, &[]);
    }

    /// Returns another handle of the connection.
    pub fn clone_handle(&self) -> Self {
        Self {
            connection: self.connection.clone(),
        }
    }

    /// Receives what this process continues.
    pub(in crate::app) fn inherit(self) -> io::Result<Inheritance> {
        let connection = self.connection;
        let hello = FromIncoming::Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").into(),
        };
        connection.send(&hello, &[])?;
        let (offer, sockets) = match receive(&connection)? {
            (FromOutgoing::Offer(offer), sockets) => (*offer, sockets),
            (other, _) => return Err(unexpected(&other)),
        };
        let mut sockets = sockets.into_iter();
        let control = sockets.next().map(|socket| (offer.control.clone(), socket));
        let http = offer.http.clone().zip(sockets.next());
        let mut captures = AHashMap::new();
        let (mut relays, mut relay_sockets) = (Vec::new(), Vec::new());
        loop {
            match receive(&connection)? {
                (FromOutgoing::Capture(capture), descriptors) => {
                    let handle = capture.handle(descriptors);
                    captures.extend(handle);
                }
                (FromOutgoing::Relay(name, saved), _) => relays.push((name, *saved)),
                (FromOutgoing::RelaySocket(name), descriptors) => {
                    relay_sockets.extend(descriptors.into_iter().map(|fd| (name.clone(), fd)));
                }
                (FromOutgoing::Prepare, _) => break,
                (other, _) => return Err(unexpected(&other)),
            }
        }
        Ok(Inheritance {
            connection,
            offer,
            captures,
            relays,
            relay_sockets,
            control,
            http,
        })
    }
}

impl Inheritance {
    /// Returns the mark of sent packets.
    pub(in crate::app) fn mark(&self) -> u32 {
        self.offer.mark
    }

    /// Holds the data path of this process back. Called before the actors start.
    pub(in crate::app) fn prepare(mut self, context: &RouterContext) -> TakeOver {
        self.offer.learned.restore(context);
        for (name, saved) in self.relays {
            let sockets = self.relay_sockets.extract_if(.., |(of, _)| *of == name);
            let sockets = sockets.map(|(_, fd)| DatagramSocket::from_descriptor(fd).map(Arc::new));
            // A socket that cannot be continued is opened again.
            let sockets = sockets.filter_map(Result::ok).collect();
            inherit_relay(context, &name, saved, sockets);
        }
        context.gate.close(self.captures);
        TakeOver {
            connection: self.connection,
            offer: self.offer,
        }
    }
}

/// The steps after the start of the actors.
pub(in crate::app) struct TakeOver {
    connection: Connection,
    offer: Offer,
}

impl TakeOver {
    /// Waits until this process is ready and the running one has stopped to forward, and forwards.
    pub(in crate::app) async fn forward(
        &self,
        context: &RouterContext,
        supervisor: &Addr<Supervisor>,
    ) -> io::Result<()> {
        wait_until_ready(context).await?;
        self.connection.send(&FromIncoming::Ready, &[])?;
        let until = Instant::now() + STEP_TIMEOUT;
        let go = match ended_is_error(self.connection.next(until).await?)? {
            FromOutgoing::Go(go) => go,
            other => return Err(unexpected(&other)),
        };
        context.gate.open(go.positions().collect());
        // Fails if it has ended. This process continues then.
        let _ = self.connection.send(&FromIncoming::Forwarding, &[]);
        if go.learned != self.offer.learned {
            self.offer.learned.update(&go.learned, context);
            context.directory.do_send(Republish);
        }
        supervisor.do_send(RestartChild("membership"));
        supervisor.do_send(RestartChild(discovery::ACTOR_NAME));
        Ok(())
    }

    /// Continues the counters of the former process, and reports to it that it may end. If that one
    /// has ended, this one continues without its counters. `on_end` is called when it has ended.
    pub(in crate::app) async fn finish(
        self,
        context: Arc<RouterContext>,
        supervisor: &Addr<Supervisor>,
        on_end: impl FnOnce() + Send + 'static,
    ) {
        let until = Instant::now() + STEP_TIMEOUT;
        let counters = self.connection.next(until).await;
        match counters.and_then(ended_is_error) {
            Ok(FromOutgoing::Counters(counters)) => context.catalog.add_counter_values(&counters),
            Ok(other) => warn!("counters start at zero: {}", unexpected(&other)),
            Err(e) => warn!("counters start at zero: {e}"),
        }
        supervisor.do_send(RestartChild("metrics"));
        sleep(COUNT_TIME).await;
        let waiting_packets = context.gate.waiting_packets();
        info!(
            "replaced v{}: {waiting_packets} packets had waited",
            self.offer.version
        );
        let connection = self.connection;
        let took_over = FromIncoming::TookOver { waiting_packets };
        // Fails if it has ended, which the thread below notices too.
        let _ = connection.send(&took_over, &[]);
        let thread = std::thread::Builder::new().name("mcastor-upgrade".into());
        let watch = thread.spawn(move || {
            connection.wait_for_end();
            context.gate.end_predecessor();
            on_end();
        });
        if let Err(e) = watch {
            warn!("cannot wait for the end of the former process: {e}");
        }
    }
}

/// Gives a relay of the former process to the AMT actor, if this process has it too.
fn inherit_relay(
    context: &RouterContext,
    name: &str,
    saved: SavedRelay,
    sockets: Vec<Arc<DatagramSocket>>,
) {
    let settings = context.amt.load();
    let mut relays = settings.config.relays.iter();
    let relay = relays.find(|relay| relay.name.as_str() == name);
    let id = relay.and_then(|relay| context.tunnels.id(&relay.name));
    if let (Some(relay), Some(id)) = (relay, id) {
        context.tunnels.relay(id).set_sockets(sockets);
        context.inherited_relays.add(relay.name.clone(), saved);
    }
}

/// Waits until every interface actor waits for the gate, the routes of multicast NAT are in force,
/// the relays have the tunnels of the former process, and the kernel has all memberships.
async fn wait_until_ready(context: &RouterContext) -> io::Result<()> {
    let until = Instant::now() + STEP_TIMEOUT;
    loop {
        // Before the snapshot is read: these routes may need further interfaces.
        let is_mapped = mappings_applied(context).await;
        let snapshot = context.snapshot.load_full();
        let interfaces = snapshot.interfaces.iter().map(|i| i.index);
        let is_published = snapshot.fib.generation > 0;
        let are_prepared = context.gate.are_prepared(interfaces);
        let is_prepared = are_prepared.map_err(io::Error::other)? && is_published;
        let are_continued = context.inherited_relays.is_empty();
        if is_prepared && are_continued && is_mapped && joins_applied(context).await {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        sleep(READY_INTERVAL).await;
    }
}

/// Returns whether the routes of the former process's mappings are in force, if this process is an end
/// of multicast NAT.
async fn mappings_applied(context: &RouterContext) -> bool {
    let directory = &context.directory;
    if context.mnat.load().is_none() {
        return true;
    }
    let status = directory.ask(QueryMnat, STEP_TIMEOUT).await;
    status.is_ok_and(|status| status.are_routes_sent)
        && directory.ask(Barrier, STEP_TIMEOUT).await.is_ok()
}

/// Returns whether the kernel has all memberships of this host.
pub(in crate::app) async fn joins_applied(context: &RouterContext) -> bool {
    let applied = context.directory.ask(QueryJoinsApplied, STEP_TIMEOUT).await;
    applied == Ok(true)
}

fn receive(connection: &Connection) -> io::Result<(FromOutgoing, Vec<OwnedFd>)> {
    let received = connection.receive(Instant::now() + STEP_TIMEOUT)?;
    received.ok_or_else(has_ended)
}

fn ended_is_error<T>(received: Option<(T, Vec<OwnedFd>)>) -> io::Result<T> {
    let (message, _) = received.ok_or_else(has_ended)?;
    Ok(message)
}

fn has_ended() -> io::Error {
    io::Error::other("the former process has given up, or has ended")
}

fn unexpected(message: &dyn std::fmt::Debug) -> io::Error {
    io::Error::other(format!(
        "unexpected message of the former process: {message:?}"
    ))
}
