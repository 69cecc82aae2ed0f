//! The side of the running process.

use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use actix::prelude::*;
use tokio::time::timeout;
use tracing::info;

use super::connection::Connection;
use super::learned::LearnedState;
use super::messages::{
    FromIncoming, FromOutgoing, Go, Offer, OfferedCapture, PROTOCOL, descriptors,
};
use crate::actors::RouterContext;
use crate::actors::messages::{
    CountCopies, HandOverRelays, PauseForwarding, ResumeForwarding, ResumeRelays, SetAccepting,
    ShareCaptures,
};
use crate::actors::supervisor::Supervisor;
use crate::api::UpgradeReport;
use crate::app::listeners::PassedSocket;
use crate::sys::upgrade_launcher::{self, UpgradeLauncher};

/// How long the new process may need until it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long this process may need to send what it has read.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the new process may need for each step after `Go`.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// What the running process hands over.
pub(in crate::app) struct Outgoing<'a> {
    pub(in crate::app) context: &'a RouterContext,
    pub(in crate::app) supervisor: &'a Addr<Supervisor>,
    pub(in crate::app) launcher: &'a UpgradeLauncher,
    pub(in crate::app) mark: u32,
    pub(in crate::app) control: PassedSocket,
    pub(in crate::app) http: Option<PassedSocket>,
    /// Stops to accept clients on the control socket.
    pub(in crate::app) stop_control: &'a dyn Fn(),
}

/// How far the hand-over has come when it fails.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// This process forwards.
    Prepares,
    /// No process forwards.
    Paused,
    /// The new process may have read packets.
    Gone,
}

impl Outgoing<'_> {
    /// Lets a new process take over: the program at this path, or else the file from which this
    /// process was started. After success this process must end, and nothing more.
    ///
    /// # Errors
    /// The new process cannot take over, for this reason. This process forwards on.
    pub(in crate::app) async fn run(
        self,
        program: Option<PathBuf>,
    ) -> Result<UpgradeReport, String> {
        let started = Instant::now();
        if upgrade_launcher::ends_container() {
            return Err("the container ends with this process; replace the container".into());
        }
        let launched = self.launcher.launch(program).await;
        let (child, socket) = launched.map_err(|e| e.to_string())?;
        let mut child = child;
        let connection = Connection::new(socket);
        let mut progress = Progress::Prepares;
        let result = self
            .converse(&connection, &child, started, &mut progress)
            .await;
        match result {
            Ok(report) => {
                info!(
                    "process {} (v{}) forwards now: {} packets had waited {} us for it",
                    report.new_pid, report.new_version, report.waiting_packets, report.pause_us
                );
                Ok(report)
            }
            Err(failure) => {
                drop(connection);
                if progress == Progress::Gone {
                    // It may read the captures until it has ended.
                    let _ = child.kill();
                    let _ = child.wait();
                }
                self.supervisor.do_send(ResumeForwarding {
                    reopen: progress == Progress::Gone,
                });
                self.context.directory.do_send(SetAccepting(true));
                self.context.directory.do_send(ResumeRelays);
                let status = end(&mut child).await;
                let failure = match failure {
                    Failure::Refused(reason) => reason,
                    Failure::Ended => format!("the new process ended: {status}"),
                    Failure::TimedOut => format!(
                        "the new process was not ready within {} s",
                        READY_TIMEOUT.as_secs()
                    ),
                    Failure::Other(reason) => reason,
                };
                Err(format!("{failure}; process {} goes on", std::process::id()))
            }
        }
    }

    async fn converse(
        &self,
        connection: &Connection,
        child: &Child,
        started: Instant,
        progress: &mut Progress,
    ) -> Result<UpgradeReport, Failure> {
        let until = started + READY_TIMEOUT;
        let new_version = match next(connection, until).await? {
            FromIncoming::Hello { protocol, version } if protocol == PROTOCOL => version,
            FromIncoming::Hello { version, .. } => {
                return Err(Failure::Other(format!(
                    "version {version} cannot continue the captures of this one; restart instead"
                )));
            }
            other => return Err(unexpected(&other)),
        };
        let learned = LearnedState::collect(self.context);
        self.offer(connection, learned).await?;
        match next(connection, until).await? {
            FromIncoming::Ready => {}
            other => return Err(unexpected(&other)),
        }
        *progress = Progress::Paused;
        let paused = Instant::now();
        let positions = timeout(PAUSE_TIMEOUT, self.supervisor.send(PauseForwarding)).await;
        let positions = match positions {
            Ok(Ok(positions)) => positions,
            _ => {
                return Err(Failure::Other(
                    "packets still wait for a busy egress; try again in a moment".into(),
                ));
            }
        };
        let go = Go::new(positions, LearnedState::collect(self.context));
        *progress = Progress::Gone;
        send(connection, &FromOutgoing::Go(Box::new(go)))?;
        match next(connection, Instant::now() + STEP_TIMEOUT).await? {
            FromIncoming::Forwarding => {}
            other => return Err(unexpected(&other)),
        }
        let pause_us = paused.elapsed().as_micros() as u64;
        (self.stop_control)();
        // Without HTTP there is no receiver.
        let accepting = self
            .context
            .directory
            .ask(SetAccepting(false), STEP_TIMEOUT);
        let _ = accepting.await;
        let counted = self.context.directory.ask(CountCopies, STEP_TIMEOUT);
        let _ = counted.await;
        self.context.count_planes();
        let counters = self.context.catalog.counter_values();
        send(connection, &FromOutgoing::Counters(counters))?;
        let waiting_packets = match next(connection, Instant::now() + STEP_TIMEOUT).await? {
            FromIncoming::TookOver { waiting_packets } => waiting_packets,
            other => return Err(unexpected(&other)),
        };
        Ok(UpgradeReport {
            old_version: env!("CARGO_PKG_VERSION").into(),
            new_version,
            old_pid: std::process::id(),
            new_pid: child.id(),
            took_ms: started.elapsed().as_millis() as u64,
            pause_us,
            waiting_packets,
        })
    }

    /// Offers everything that the new process continues.
    async fn offer(&self, connection: &Connection, learned: LearnedState) -> Result<(), Failure> {
        let offer = Offer {
            version: env!("CARGO_PKG_VERSION").into(),
            mark: self.mark,
            control: self.control.0.clone(),
            http: self.http.as_ref().map(|(place, _)| place.clone()),
            learned,
        };
        let sockets = std::iter::once(&self.control).chain(&self.http);
        let sockets: Vec<_> = sockets
            .map(|(_, socket): &(_, OwnedFd)| socket.as_fd())
            .collect();
        connection.send(&FromOutgoing::Offer(Box::new(offer)), &sockets)?;
        let captures = self.supervisor.send(ShareCaptures).await;
        let captures = captures.map_err(|e| Failure::Other(e.to_string()))?;
        for (index, handle) in captures.map_err(Failure::Other)? {
            let message = FromOutgoing::Capture(OfferedCapture::new(index, &handle));
            connection.send(&message, &descriptors(&handle))?;
        }
        let relays = self.context.directory.ask(HandOverRelays, STEP_TIMEOUT);
        // Without AMT there is no receiver.
        for relay in relays.await.unwrap_or_default() {
            let name = relay.interface.to_string();
            for socket in &relay.sockets {
                let message = FromOutgoing::RelaySocket(name.clone());
                connection.send(&message, &[socket.as_fd()])?;
            }
            connection.send(&FromOutgoing::Relay(name, Box::new(relay.saved)), &[])?;
        }
        Ok(connection.send(&FromOutgoing::Prepare, &[])?)
    }
}

/// Why the new process does not take over.
enum Failure {
    /// It says why.
    Refused(String),
    /// It has ended.
    Ended,
    /// It does not answer.
    TimedOut,
    /// Another reason.
    Other(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Ended,
            _ => Self::Other(format!("cannot speak to the new process: {error}")),
        }
    }
}

fn unexpected(message: &dyn std::fmt::Debug) -> Failure {
    Failure::Other(format!(
        "unexpected message of the new process: {message:?}"
    ))
}

fn send(connection: &Connection, message: &FromOutgoing) -> Result<(), Failure> {
    Ok(connection.send(message, &[])?)
}

async fn next(connection: &Connection, until: Instant) -> Result<FromIncoming, Failure> {
    match connection.next(until).await? {
        Some((FromIncoming::Refused(reason), _)) => Err(Failure::Refused(reason)),
        Some((message, _)) => Ok(message),
        None => Err(Failure::Ended),
    }
}

/// How long a process that ends by itself may need.
const END_TIMEOUT: Duration = Duration::from_millis(500);

/// Ends a process. Returns how it ended.
async fn end(child: &mut Child) -> String {
    let until = Instant::now() + END_TIMEOUT;
    while Instant::now() < until {
        if let Ok(Some(status)) = child.try_wait() {
            return status.to_string();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let describe = |e: &dyn Display| format!("cannot end it: {e}");
    if let Err(e) = child.kill() {
        return describe(&e);
    }
    let pid = child.id();
    match child.wait() {
        Ok(status) => status.to_string(),
        Err(e) => describe(&format_args!("process {pid}: {e}")),
    }
}
