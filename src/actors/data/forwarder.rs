//! Transmits batches on one egress interface. There is one forwarder for each egress and worker
//! thread, so that a batch never crosses threads between capture and transmission.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll, ready};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use actix::fut::ActorFuture;
use actix::prelude::*;
use tracing::warn;

use crate::actors::messages::{DropPage, QueryDrops, Transmit};
use crate::actors::shared::RouterContext;
use crate::actors::supervision::{DeathGuard, Stop, panics_on_demand};
use crate::forward::{DropHistory, DropReason};
use crate::metrics::{InterfaceCounters, PathCounters};
use crate::model::{IfName, InterfaceId, PlaneName};
use crate::pipeline::egress::{SendCounts, SendObserver, TooBigPacket};
use crate::pipeline::{EgressQueue, OutPacket, PacketSink, Progress};
use crate::streams::{EgressMonitor, StreamId};
use crate::sys::off_thread::DroppedOffThread;
use crate::table::Fib;

/// Limit of the mailbox: far above what the interfaces of one worker send under
/// [`MAX_WAITING_BATCHES`](crate::actors::messages::MAX_WAITING_BATCHES).
const MAILBOX: usize = 4096;

/// How long a stopped forwarder continues to transmit.
const LINGER: Duration = Duration::from_millis(50);

/// Interval of attempts to open an egress that could not be opened.
const REOPEN_INTERVAL: Duration = Duration::from_secs(1);

/// How often some of the monitored streams are reported.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// How often an error of transmission is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The actor.
pub struct Forwarder {
    context: Arc<RouterContext>,
    death_guard: DeathGuard,
    index: InterfaceId,
    name: IfName,
    plane: Option<PlaneName>,
    counters: InterfaceCounters,
    sink: Option<DroppedOffThread<Box<dyn PacketSink>>>,
    /// Time of the last attempt to open the sink.
    open_attempt: Option<Instant>,
    queue: EgressQueue,
    /// [`Transmit::waiting`] of the batch in the queue.
    waiting: Option<Arc<()>>,
    sent: SendCounts,
    drops: DropHistory,
    /// The streams that are monitored.
    monitor: EgressMonitor,
    /// Whether they are reported.
    reports: bool,
    /// Counters of the paths of `fib`.
    paths: Vec<Option<PathCounters>>,
    fib: Arc<Fib>,
    /// When a line was last logged, by reason.
    last_logged: [Option<Instant>; DropReason::COUNT],
}

impl Forwarder {
    /// Returns a forwarder that opens its egress when it starts.
    pub fn new(
        context: Arc<RouterContext>,
        death_guard: DeathGuard,
        index: InterfaceId,
        name: &IfName,
        plane: Option<PlaneName>,
    ) -> Self {
        let counters = context.catalog.interface(name.as_str());
        let monitor = EgressMonitor::new(context.monitoring.registry.clone());
        Self {
            context,
            death_guard,
            index,
            name: name.clone(),
            plane,
            counters,
            sink: None,
            open_attempt: None,
            queue: EgressQueue::default(),
            waiting: None,
            sent: SendCounts::default(),
            drops: DropHistory::default(),
            monitor,
            reports: false,
            paths: Vec::new(),
            fib: Arc::default(),
            last_logged: [None; DropReason::COUNT],
        }
    }

    /// Opens the sink, unless this was tried a moment ago. It takes some microseconds, and happens on
    /// this thread so that no packet has to wait for it.
    fn open(&mut self) {
        let is_recent = |at: Instant| at.elapsed() < REOPEN_INTERVAL;
        if self.open_attempt.is_some_and(is_recent) {
            return;
        }
        self.open_attempt = Some(Instant::now());
        let plane = self.context.planes.serving(self.plane);
        match plane.and_then(|plane| plane.transmit(self.index)) {
            Ok(sink) => self.sink = Some(DroppedOffThread::new(sink)),
            Err(e) => warn!("{}: cannot send: {e}", self.death_guard.role()),
        }
    }

    /// Transmits what is in the queue, as far as the kernel accepts it.
    fn drive(&mut self) -> Progress {
        let Some(sink) = &mut self.sink else {
            self.queue.abandon(DropReason::EgressDown, &mut self.sent);
            self.waiting = None;
            self.update_counters();
            return Progress::Done;
        };
        let mut observer = Observer {
            monitor: &mut self.monitor,
            now_ns: None,
        };
        let progress = (self.queue).drive_observed(sink.as_mut(), &mut self.sent, &mut observer);
        if progress == Progress::Done {
            self.waiting = None;
        }
        self.update_counters();
        progress
    }

    /// Forgets the counters of the paths that differ from those of the `old` forwarding table. If
    /// only memberships or single routes change, the tables share almost all of their paths.
    fn forget_changed_paths(&mut self, old: &Fib) {
        let new = &self.fib;
        if !Arc::ptr_eq(&new.egresses, &old.egresses) {
            // A path refers to its egress by number.
            self.paths.clear();
        }
        self.paths.resize_with(new.paths.len(), || None);
        for position in new.paths.unshared(&old.paths) {
            if new.paths.get(position) != old.paths.get(position) {
                self.paths[position] = None;
            }
        }
    }

    /// Moves the counts into the metrics.
    fn update_counters(&mut self) {
        let SendCounts {
            paths,
            received_ns,
            dropped,
            drops,
            error,
            too_big,
        } = &self.sent;
        for (id, packets, bytes) in paths {
            let Some(slot) = self.paths.get_mut(*id as usize) else {
                continue;
            };
            let counters = slot.get_or_insert_with(|| {
                let path = &self.fib.paths[*id as usize];
                let oif = &self.fib.egresses[path.egress as usize].name;
                let plane = self.context.planes.serving(self.plane);
                let plane = plane.map_or("none", |plane| plane.transmit_label());
                let catalog = &self.context.catalog;
                catalog.path(&path.route, path.iif.as_str(), oif.as_str(), plane)
            });
            counters.packets.inc_by(*packets);
            counters.bytes.inc_by(*bytes);
            self.counters.transmitted_packets.inc_by(*packets);
            self.counters.transmitted_bytes.inc_by(*bytes);
        }
        if !received_ns.is_empty() {
            let latency = self.context.catalog.forward_latency.local();
            let now = realtime_ns();
            for received in received_ns {
                latency.observe(now.saturating_sub(*received) as f64 / 1e9);
            }
            latency.flush();
        }
        self.counters.add_dropped(dropped);
        if !drops.is_empty() {
            let now_ms = self.context.now_ms();
            for drop in drops {
                let counted = (drop.packets, drop.bytes);
                let egress = Some(self.index);
                self.drops
                    .count(drop.reason, egress, drop.packet, counted, now_ms);
                if let Some(stream) = drop.stream {
                    (self.monitor).count_dropped(stream, drop.reason, drop.packets, now_ms);
                }
            }
        }
        let (error, too_big) = (*error, *too_big);
        if let Some((reason, errno)) = error {
            self.log_error(reason, errno);
        }
        if let Some(packet) = too_big {
            self.log_too_big(packet);
        }
        self.sent.clear();
    }

    /// Reports the monitored streams from now on, until there are none.
    fn start_reports(&mut self, ctx: &mut Context<Self>) {
        if self.reports || self.monitor.is_empty() {
            return;
        }
        self.reports = true;
        ctx.run_later(REPORT_INTERVAL, |actor, ctx| {
            actor.reports = false;
            let now = (realtime_ns(), actor.context.now_ms());
            actor.monitor.report(actor.index, actor.name.as_str(), now);
            actor.start_reports(ctx);
        });
    }

    /// Returns whether a line may be logged for a reason: one a minute. Counters have the numbers.
    fn permits_log(&mut self, reason: DropReason) -> bool {
        let last = &mut self.last_logged[reason as usize];
        let is_due = last.is_none_or(|at| at.elapsed() >= LOG_INTERVAL);
        if is_due {
            *last = Some(Instant::now());
        }
        is_due
    }

    fn log_too_big(&mut self, packet: TooBigPacket) {
        if !self.permits_log(DropReason::TooBig) {
            return;
        }
        let (name, len) = (&self.name, packet.len);
        let Some(path) = self.fib.paths.get(packet.path as usize) else {
            return;
        };
        let (route, egress) = (&path.route, self.fib.egresses.get(path.egress as usize));
        let mtu = egress.map_or(0, |egress| egress.mtu);
        let remedy = match packet.is_ipv4 {
            true => {
                "they have DF set. Set fragment = \"always\" in the route to fragment them, or \
                 raise the MTU, or send smaller packets"
            }
            false => "IPv6 routers do not fragment. Raise the MTU, or send smaller packets",
        };
        warn!(
            reason = DropReason::TooBig.label(),
            interface = %name,
            route = %route,
            "{name}: packets of route \"{route}\" are dropped: {len} bytes are more than the MTU \
             of {mtu}, and {remedy}"
        );
    }

    /// Logs an error once a minute and reason.
    fn log_error(&mut self, reason: DropReason, errno: i32) {
        if self.permits_log(reason) {
            let error = std::io::Error::from_raw_os_error(errno);
            warn!(
                reason = reason.label(),
                interface = %self.name,
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
        self.update_counters();
    }
}

impl Handler<Transmit> for Forwarder {
    type Result = ();

    fn handle(&mut self, message: Transmit, ctx: &mut Self::Context) {
        if !Arc::ptr_eq(&self.fib, &message.fib) {
            let old = std::mem::replace(&mut self.fib, message.fib);
            let name = &self.fib.egresses[message.egress as usize].name;
            if *name != self.name {
                self.name = name.clone();
                self.counters = self.context.catalog.interface(name.as_str());
            }
            self.forget_changed_paths(&old);
        }
        self.waiting = Some(message.waiting);
        let egress = &self.fib.egresses[message.egress as usize];
        let mtu = egress.mtu as usize;
        self.queue.fill(
            message.batch,
            message.slots,
            mtu,
            &self.fib.paths,
            &mut self.sent,
        );
        if self.sink.is_none() {
            self.open();
        }
        if self.drive() == Progress::Blocked {
            ctx.wait(Writable);
        }
        self.start_reports(ctx);
    }
}

impl Handler<QueryDrops> for Forwarder {
    type Result = DropPage;

    fn handle(&mut self, _: QueryDrops, _: &mut Self::Context) -> DropPage {
        DropPage {
            interface: self.name.clone(),
            flushed_ms: 0,
            drops: self.drops.iter().copied().collect(),
        }
    }
}

/// Examines what is sent.
struct Observer<'a> {
    monitor: &'a mut EgressMonitor,
    /// The time of sending, in nanoseconds of `CLOCK_REALTIME`. Read once for packets that are sent
    /// together.
    now_ns: Option<u64>,
}

impl SendObserver for Observer<'_> {
    fn sent(&mut self, stream: StreamId, packet: OutPacket<'_>) {
        let now_ns = *self.now_ns.get_or_insert_with(realtime_ns);
        self.monitor
            .observe(stream, packet.bytes, packet.segments, now_ns);
    }
}

/// Returns the time in nanoseconds of `CLOCK_REALTIME`.
fn realtime_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_nanos() as u64
}

/// Waits until the egress accepts the rest of the queue. The mailbox waits in the meantime.
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
            if let Some(sink) = &mut actor.sink
                && let Err(e) = ready!(sink.poll_writable(task))
            {
                warn!(
                    "{}: cannot wait until the interface accepts packets: {e}",
                    actor.death_guard.role()
                );
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

    /// Continues for a moment, because an interface actor may still use the former snapshot.
    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        self.death_guard.disarm();
        ctx.run_later(LINGER, |_, ctx| ctx.stop());
    }
}
