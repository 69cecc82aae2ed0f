//! Sends batches out of one egress. One for each egress and worker thread, so that a batch
//! never crosses threads between capture and send.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll, ready};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use actix::fut::ActorFuture;
use actix::prelude::*;
use tracing::warn;

use super::context::{DeathGuard, Role, RouterContext, Stop, panics_on_demand};
use crate::forward::DropReason;
use crate::metrics::{InterfaceCounters, PathCounters};
use crate::model::{IfIndex, IfName};
use crate::pipeline::egress::SendCounts;
use crate::pipeline::{EgressQueue, Progress, SharedBatch, Slot, Transmit as TransmitEnd};
use crate::table::{EgressId, Fib};

/// Batches of one interface that may wait for an egress that is busy. Each may hold a block
/// of its capture ring, so that many busy egresses must not hold all of one.
pub const MOST_WAITING: usize = 8;

/// Far above what the interfaces of one worker send under [`MOST_WAITING`].
const MAILBOX: usize = 4096;

/// How long a stopped forwarder goes on sending.
const LINGER: Duration = Duration::from_millis(50);

/// How often an egress that could not be opened is tried again.
const REOPEN_EVERY: Duration = Duration::from_secs(1);

/// Packets of one batch that leave on one egress.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Transmit {
    /// The snapshot they were decided by.
    pub fib: Arc<Fib>,
    /// The egress, in that snapshot.
    pub egress: EgressId,
    /// The bytes.
    pub load: Arc<SharedBatch>,
    /// The packets.
    pub slots: Vec<Slot>,
    /// Let go of when the packets are sent: so an interface knows how many batches of its own
    /// wait.
    pub waiting: Arc<()>,
}

/// The actor.
pub struct Forwarder {
    context: Arc<RouterContext>,
    death_guard: DeathGuard,
    index: IfIndex,
    name: IfName,
    counters: InterfaceCounters,
    transmit: Option<Box<dyn TransmitEnd>>,
    opened: Option<Instant>,
    queue: EgressQueue,
    /// [`Transmit::waiting`] of what is in the queue.
    waiting: Option<Arc<()>>,
    sent: SendCounts,
    /// Counters of the paths of the snapshot last seen.
    paths: Vec<Option<PathCounters>>,
    fib: Arc<Fib>,
    complained: Option<(DropReason, Instant)>,
}

impl Forwarder {
    /// A forwarder that opens its egress when it starts.
    pub fn new(
        context: Arc<RouterContext>,
        death_guard: DeathGuard,
        index: IfIndex,
        name: &IfName,
    ) -> Self {
        let counters = context.catalog.interface(name.as_str());
        Self {
            context,
            death_guard,
            index,
            name: name.clone(),
            counters,
            transmit: None,
            opened: None,
            queue: EgressQueue::default(),
            waiting: None,
            sent: SendCounts::default(),
            paths: Vec::new(),
            fib: Arc::default(),
            complained: None,
        }
    }

    fn open(&mut self) {
        if self.opened.is_some_and(|at| at.elapsed() < REOPEN_EVERY) {
            return;
        }
        self.opened = Some(Instant::now());
        match self.context.plane.transmit(self.index) {
            Ok(transmit) => self.transmit = Some(transmit),
            Err(e) => warn!("{}: cannot send: {e}", self.death_guard.role()),
        }
    }

    fn drive(&mut self) -> Progress {
        let Some(transmit) = &mut self.transmit else {
            self.queue.abandon(DropReason::EgressDown, &mut self.sent);
            self.waiting = None;
            self.settle();
            return Progress::Done;
        };
        let progress = self.queue.drive(transmit.as_mut(), &mut self.sent);
        if progress == Progress::Done {
            self.waiting = None;
        }
        self.settle();
        progress
    }

    /// Moves what was counted into the catalogue.
    fn settle(&mut self) {
        let SendCounts {
            paths,
            received_ns,
            dropped,
            error,
        } = &self.sent;
        for (id, packets, bytes) in paths {
            let Some(slot) = self.paths.get_mut(*id as usize) else {
                continue;
            };
            let counters = slot.get_or_insert_with(|| {
                let path = &self.fib.paths[*id as usize];
                let oif = &self.fib.egresses[path.egress as usize].name;
                self.context.catalog.path(
                    &path.route,
                    path.iif.as_str(),
                    oif.as_str(),
                    self.context.plane.name(),
                )
            });
            counters.packets.inc_by(*packets);
            counters.bytes.inc_by(*bytes);
            self.counters.transmitted_packets.inc_by(*packets);
            self.counters.transmitted_bytes.inc_by(*bytes);
        }
        if !received_ns.is_empty() {
            let latency = self.context.catalog.forward_latency.local();
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_nanos() as u64;
            for received in received_ns {
                latency.observe(now.saturating_sub(*received) as f64 / 1e9);
            }
            latency.flush();
        }
        self.counters.add_dropped(dropped);
        if let Some((reason, errno)) = *error {
            self.complain(reason, errno);
        }
        self.sent.clear();
    }

    /// One line a minute and reason: the counters tell how many.
    fn complain(&mut self, reason: DropReason, errno: i32) {
        let quiet = |(said, at): (DropReason, Instant)| {
            said == reason && at.elapsed() < Duration::from_secs(60)
        };
        if !self.complained.is_some_and(quiet) {
            self.complained = Some((reason, Instant::now()));
            let error = std::io::Error::from_raw_os_error(errno);
            warn!(
                reason = reason.label(),
                "{}: packets dropped: {error}",
                self.death_guard.role()
            );
        }
    }
}

impl Actor for Forwarder {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        self.open();
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.queue.abandon(DropReason::EgressDown, &mut self.sent);
        self.settle();
    }
}

impl Handler<Transmit> for Forwarder {
    type Result = ();

    fn handle(&mut self, message: Transmit, ctx: &mut Self::Context) {
        if self.transmit.is_none() {
            self.open();
        }
        if !Arc::ptr_eq(&self.fib, &message.fib) {
            let same_paths = Arc::ptr_eq(&self.fib.paths, &message.fib.paths);
            self.fib = message.fib;
            let name = &self.fib.egresses[message.egress as usize].name;
            if *name != self.name {
                self.name = name.clone();
                self.counters = self.context.catalog.interface(name.as_str());
            }
            // Snapshots share them while only memberships change.
            if !same_paths {
                self.paths.clear();
                self.paths.resize_with(self.fib.paths.len(), || None);
            }
        }
        self.waiting = Some(message.waiting);
        let egress = &self.fib.egresses[message.egress as usize];
        let (mtu, running) = (egress.mtu as usize, egress.running);
        self.queue
            .fill(message.load, message.slots, mtu, &mut self.sent);
        if !running {
            self.queue.abandon(DropReason::EgressDown, &mut self.sent);
        }
        if self.drive() == Progress::Blocked {
            ctx.wait(Writable);
        }
    }
}

/// Waits until the egress takes the rest; the mailbox waits meanwhile.
struct Writable;

impl ActorFuture<Forwarder> for Writable {
    type Output = ();

    fn poll(
        self: Pin<&mut Self>,
        actor: &mut Forwarder,
        _: &mut Context<Forwarder>,
        task: &mut Task<'_>,
    ) -> Poll<()> {
        loop {
            if let Some(transmit) = &mut actor.transmit
                && let Err(e) = ready!(transmit.poll_writable(task))
            {
                warn!("{}: cannot wait: {e}", actor.death_guard.role());
                actor.queue.abandon(DropReason::SendFailed, &mut actor.sent);
            }
            if actor.drive() == Progress::Done {
                return Poll::Ready(());
            }
        }
    }
}

panics_on_demand!(Forwarder);

impl Handler<Stop> for Forwarder {
    type Result = ();

    /// An interface that read the snapshot before this may still send to us for a moment.
    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        self.death_guard.disarm();
        ctx.run_later(LINGER, |_, ctx| ctx.stop());
    }
}

/// The role of a forwarder.
pub fn role(worker: usize, index: IfIndex, name: &IfName) -> Role {
    Role::Forwarder(worker, index, name.clone())
}
