//! Captures packets on one interface, switches them, and passes batches to the forwarders of its
//! worker thread.

mod closing;
mod queries;
mod sharing;

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::fut::ActorFuture;
use actix::prelude::*;
use ahash::AHashSet;
use tracing::warn;

use super::batches::{Batches, Capture, CaptureReading, Captured, realtime_ns};
use super::foreign_sources::ForeignSources;
use super::monitored_streams;
use super::stream_rates::StreamRates;
use super::worker_forwarders::WorkerForwarders;
use crate::actors::messages::{
    CaptureOpened, HostMessages, HostMessagesLost, MembershipMessages, MessagesLost,
};
use crate::actors::shared::{RouterContext, Snapshot};
use crate::actors::supervision::{DeathGuard, Stop, WorkerId, panics_on_demand};
use crate::forward::{
    Arrival, DropReason, OffloadedFlow, adopt_offloaded, end_offload, may_offload, note_offloaded,
};
use crate::metrics::InterfaceCounters;
use crate::model::{FlowEnd, IfName, InterfaceId, MacAddress, PlaneName, TakeoverRole};
use crate::pipeline::hand_over::Rest;
use crate::pipeline::packet_trace::TraceRecorder;
use crate::pipeline::{Batch, Messages, PacketSource, Switch, Switched};
use crate::streams::StreamMonitor;
use crate::sys::ingress_claims::IngressClaim;
use crate::sys::off_thread::{self, DroppedOffThread};
use crate::table::flows::{EndedFlows, Flows};
use crate::table::{Fib, Ingress};

/// Interval at which kernel drops are read and idle flows end.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(1);

/// Interval at which the flows that the plane forwards by itself are counted, and rates are measured.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// How long after a packet its loss on one path is counted at the earliest, besides the window. A
/// busy machine may read the path late.
const MERGE_REPORT_DELAY: Duration = Duration::from_millis(300);

/// Interval at which this actor looks for a moment to hand flows over.
const HAND_OVER_INTERVAL: Duration = Duration::from_millis(1);

/// Shortest interval at which kernel drops are read while hosts report, and at which losses are
/// reported to the membership and joins actors.
const LOSS_INTERVAL: Duration = Duration::from_millis(100);

/// A capture, and the claim of its interface.
type Opened = (Box<dyn PacketSource>, Option<Arc<IngressClaim>>);

/// The actor.
pub struct Interface {
    context: Arc<RouterContext>,
    death_guard: DeathGuard,
    index: InterfaceId,
    name: IfName,
    plane: Option<PlaneName>,
    /// Whether the actor only recognises other forwarders.
    watch_only: bool,
    /// The former actor of the interface, which may still have a capture.
    former: Option<Addr<Interface>>,
    counters: InterfaceCounters,
    capture: Option<Capture>,
    /// Of an ingress interface.
    claim: Option<Arc<IngressClaim>>,
    switch: Switch,
    forwarders: WorkerForwarders,
    /// That of the forwarding table by which packets were switched last.
    generation: u64,
    /// Number of batches received.
    batches: u64,
    warned_of_drops: bool,
    /// The egresses of which a warning named another forwarder.
    warned_of_forwarders: AHashSet<InterfaceId>,
    foreign_sources: ForeignSources,
    stream_rates: StreamRates,
    /// When the flows were last flushed, by the clock of the flows.
    flushed_ms: u64,
    /// Time of the last [`MessagesLost`].
    loss_reported: Option<Instant>,
    /// Time at which kernel drops were read.
    drops_read: Instant,
    /// Whether the next step of handing flows over is scheduled.
    hands_over: bool,
    reading: Rc<CaptureReading>,
    /// Whether packets may still arrive that waited for the gate.
    counts_waiting: bool,
}

impl Interface {
    /// Returns an interface actor that opens its capture when it starts, on its worker thread.
    ///
    /// A `former` actor of the interface closes its capture before the new one opens. The new actor
    /// forwards packets only after the former one has forwarded the rest of its own and has ended.
    /// So no packet is duplicated or reordered.
    pub fn new(
        context: Arc<RouterContext>,
        death_guard: DeathGuard,
        worker: WorkerId,
        (index, name): (InterfaceId, &IfName),
        plane: Option<PlaneName>,
        watch_only: bool,
        former: Option<Addr<Interface>>,
    ) -> Self {
        let counters = context.catalog.interface(name.as_str());
        let flows = Flows::new(context.flows.clone());
        let monitor = StreamMonitor::new(context.monitoring.registry.clone());
        let streams = context.streams.clone();
        let switch = Switch::new(flows, context.loop_guard.clone(), streams, monitor)
            .with_merges(context.merges.clone());
        Self {
            context,
            death_guard,
            index,
            name: name.clone(),
            plane,
            watch_only,
            former,
            counters,
            capture: None,
            claim: None,
            switch,
            forwarders: WorkerForwarders::new(worker),
            generation: 0,
            batches: 0,
            warned_of_drops: false,
            warned_of_forwarders: AHashSet::new(),
            foreign_sources: ForeignSources::default(),
            stream_rates: StreamRates::default(),
            flushed_ms: 0,
            loss_reported: None,
            drops_read: Instant::now(),
            hands_over: false,
            reading: Rc::default(),
            counts_waiting: false,
        }
    }

    /// Opens the capture and reports the result. Resolves to false, and ends the actor, if it fails.
    fn open(&self) -> impl ActorFuture<Self, Output = bool> + use<> {
        let (context, plane, index) = (self.context.clone(), self.plane, self.index);
        let watch_only = self.watch_only;
        let inherited = match watch_only {
            true => None,
            false => context.gate.take_capture(index),
        };
        let opened = off_thread::run(move || {
            let plane = context.planes.serving(plane)?;
            if watch_only {
                return Ok((plane.watch(index)?, None));
            }
            let claim = context.planes.claim(index)?;
            let capture = match inherited {
                Some(handle) => plane.adopt(index, handle)?,
                None => plane.capture(index)?,
            };
            Ok((capture, claim))
        });
        let opened = opened.into_actor(self);
        opened.map(|opened, actor, ctx| actor.handle_opened(opened.and_then(|o| o), ctx))
    }

    fn handle_opened(&mut self, opened: io::Result<Opened>, ctx: &mut Context<Self>) -> bool {
        let result = opened.map(|(capture, claim)| {
            self.claim = claim;
            let capture = DroppedOffThread::new(capture);
            self.capture = Some(Rc::new(RefCell::new(capture)));
        });
        if let Err(e) = &result {
            // A process that is replaced goes on then.
            let failure = format!("{}: cannot continue its capture: {e}", self.name);
            self.context.gate.fail(failure);
            self.death_guard.disarm();
            ctx.stop();
        }
        let is_open = result.is_ok();
        self.context.directory.do_send(CaptureOpened {
            index: self.index,
            result,
        });
        is_open
    }

    /// Opens the capture in a process that replaces another one, and starts to forward when that one
    /// has sent its last packet. A capture that the other process did not have is opened then.
    fn start_behind_gate(&mut self, ctx: &mut Context<Self>) {
        let gate = &self.context.gate;
        let opened = gate.opened().into_actor(self);
        let index = self.index;
        if self.watch_only || !gate.has_capture(index) {
            gate.set_prepared(index);
            let opened = opened.then(|(), actor, _| actor.open());
            return ctx.wait(opened.map(|is_open, actor, ctx| {
                if is_open {
                    actor.start_forwarding(ctx);
                }
            }));
        }
        let adopted = self.open().then(move |is_open, actor, _| {
            if is_open {
                actor.context.gate.set_prepared(index);
            }
            opened
        });
        ctx.wait(adopted.map(move |(), actor, ctx| {
            let Some(capture) = &actor.capture else {
                return;
            };
            let continued = match actor.context.gate.position(index) {
                Some(position) => capture.borrow_mut().continue_at(position),
                None => Err(io::Error::other("the former process had lost it")),
            };
            if let Err(e) = continued {
                warn!(interface = %actor.name, "{}: cannot continue its capture: {e}", actor.name);
                // The death guard stays armed, so that the supervisor opens another one.
                return ctx.terminate();
            }
            actor.counts_waiting = true;
            actor.start_forwarding(ctx);
        }));
    }

    /// Returns whether the plane must not forward by itself.
    fn holds_flows(&self) -> bool {
        let is_traced = self.context.live_trace.active(self.context.now_ms());
        is_traced.is_some() || self.reading.paused.get() || self.context.gate.has_predecessor()
    }

    /// Starts to forward what the capture receives.
    fn start_forwarding(&mut self, ctx: &mut Context<Self>) {
        let Some(capture) = self.capture.clone() else {
            return;
        };
        ctx.add_stream(Batches::new(capture.clone(), self.reading.clone()));
        let hands_over = capture.borrow_mut().hand_over().is_some();
        if hands_over && !self.watch_only {
            self.switch.flows.record_changes();
            ctx.run_interval(REPORT_INTERVAL, |actor, ctx| {
                actor.note_offloaded();
                actor.offer_flows(ctx);
            });
        }
        if !self.watch_only {
            ctx.run_interval(REPORT_INTERVAL, |actor, _| {
                actor.report_merges();
                let snapshot = actor.context.snapshot.load_full();
                let (rates, flows) = (&mut actor.stream_rates, &actor.switch.flows);
                let interface = (actor.index, &actor.name);
                rates.count(&actor.context, &snapshot, interface, flows);
                let monitor = &mut actor.switch.monitor;
                monitored_streams::report(&actor.context, &snapshot, interface, monitor);
            });
        }
        ctx.run_interval(HOUSEKEEPING_INTERVAL, |actor, _| {
            let snapshot = actor.context.snapshot.load_full();
            actor.update_name(&snapshot);
            if actor.claim.is_none() && !actor.watch_only {
                actor.claim = actor.context.planes.claim_if_free(actor.index);
            }
            // Another process may read them already.
            if !actor.reading.paused.get() {
                actor.read_kernel_drops();
            }
            let (context, interface) = (&actor.context, (actor.index, &actor.name));
            let flows = &actor.switch.flows;
            (actor.foreign_sources).examine(context, &snapshot, interface, flows);
            actor.expire_flows();
        });
    }

    /// Offers changed flows to the plane, if it forwards by itself.
    fn offer_flows(&mut self, ctx: &mut Context<Self>) {
        let Some(capture) = &self.capture else {
            return;
        };
        let mut capture = capture.borrow_mut();
        let Some(hand_over) = capture.hand_over() else {
            return;
        };
        let changes = self.switch.flows.take_changes();
        changes
            .ended
            .iter()
            .for_each(|flow| hand_over.release(flow));
        if !changes.looked_up.is_empty() {
            hand_over.offer(changes.looked_up);
        }
        if !self.hands_over && hand_over.is_pending() {
            self.hands_over = true;
            ctx.run_later(HAND_OVER_INTERVAL, Self::hand_over);
        }
    }

    /// Hands flows over to the plane if this is a moment at which all their packets are sent.
    fn hand_over(&mut self, ctx: &mut Context<Self>) {
        self.hands_over = false;
        let Some(shared) = self.capture.clone() else {
            return;
        };
        let mut capture = shared.borrow_mut();
        let Some(hand_over) = capture.hand_over() else {
            return;
        };
        if self.reading.paused.get() || !hand_over.is_pending() {
            return;
        }
        // More packets would only fill the mailboxes of the forwarders.
        let is_all_sent = self.forwarders.is_all_sent();
        match is_all_sent.then(|| hand_over.read_rest()) {
            Some(Ok(Rest::Packets(batch))) => {
                drop(capture);
                self.forward(batch);
            }
            Some(Ok(Rest::Empty)) => {
                let snapshot = self.context.snapshot.load_full();
                let fib = &snapshot.fib;
                if let Some(ingress) = fib.ingresses.get(&self.index) {
                    let arrival = self.arrival_of_plane(fib, ingress);
                    let flows = &self.switch.flows;
                    hand_over.advance(Instant::now(), &|flow| may_offload(arrival, flows, flow));
                }
            }
            // The stream of batches reports an error again.
            None | Some(Ok(Rest::Unknown) | Err(_)) => {}
        }
        self.hands_over = true;
        ctx.run_later(HAND_OVER_INTERVAL, Self::hand_over);
    }

    /// Returns the arrival of packets that the plane forwards by itself.
    fn arrival_of_plane<'f>(&'f self, fib: &'f Fib, ingress: &'f Ingress) -> Arrival<'f, 'f> {
        Arrival {
            fib,
            ingress,
            streams: &self.context.streams,
            sender: None,
            now_ms: self.context.now_ms(),
        }
    }

    /// Adds what the plane forwarded by itself to the flows.
    fn note_offloaded(&mut self) {
        let Some(capture) = &self.capture else {
            return;
        };
        let mut capture = capture.borrow_mut();
        let Some(hand_over) = capture.hand_over() else {
            return;
        };
        // A trace records what the switch sees.
        let now_ms = self.context.now_ms();
        hand_over.set_paused(self.holds_flows());
        let mut forwarded = Vec::new();
        hand_over.report(&mut forwarded);
        let snapshot = self.context.snapshot.load_full();
        let Some(ingress) = snapshot.fib.ingresses.get(&self.index) else {
            return;
        };
        let arrival = Arrival {
            fib: &snapshot.fib,
            ingress,
            streams: &self.context.streams,
            sender: None,
            now_ms,
        };
        let is_alone = ingress.selection.as_ref().is_none_or(|s| s.is_alone());
        for report in forwarded {
            let (flow, flows) = (&report.flow, &mut self.switch.flows);
            // Nothing to note, and no other ingress that could want it.
            if report.packets == 0 && is_alone && !report.is_new {
                continue;
            }
            let counted = (report.packets, report.bytes);
            let noted = match report.is_new {
                true => adopt_offloaded(arrival, flows, *flow, counted),
                false => note_offloaded(arrival, flows, *flow, counted),
            };
            match noted {
                OffloadedFlow::Continues if report.continues => {}
                OffloadedFlow::Continues => end_offload(arrival, flows, flow),
                OffloadedFlow::Contested => {
                    hand_over.withdraw(flow);
                    end_offload(arrival, flows, flow);
                }
                OffloadedFlow::Ended => hand_over.release(flow),
            }
        }
    }

    /// Counts under the name that the interface has in the snapshot.
    fn update_name(&mut self, snapshot: &Snapshot) {
        if let Some(name) = snapshot.names.get(&self.index)
            && *name != self.name
        {
            self.name = name.clone();
            self.counters = self.context.catalog.interface(name.as_str());
        }
    }

    fn forward(&mut self, batch: Batch) {
        self.batches += 1;
        if self.counts_waiting {
            let received = batch.packets.iter().map(|packet| packet.received_ns);
            self.counts_waiting = self.context.gate.count_waiting(received);
        }
        let snapshot = self.context.snapshot.load_full();
        if self.generation != snapshot.fib.generation {
            self.update_name(&snapshot);
        }
        let fib = &snapshot.fib;
        let no_routes = Ingress::default();
        let ingress = fib.ingresses.get(&self.index);
        let ingress = ingress.map_or(&no_routes, Arc::as_ref);
        if self.watch_only {
            self.switch
                .observe(fib, ingress, &batch, self.context.now_ms());
            return;
        }
        let now_ms = self.context.now_ms();
        let switched = match self.context.live_trace.active(now_ms) {
            None => self.switch.run(fib, ingress, batch, now_ms),
            Some(trace) => {
                let mut recorder = TraceRecorder::new(&trace, self.index, fib);
                (self.switch).run_traced(fib, ingress, batch, now_ms, &mut recorder)
            }
        };
        self.transmit(&snapshot, ingress, switched);
    }

    /// Counts switched packets, and passes them to the forwarders.
    fn transmit(&mut self, snapshot: &Snapshot, ingress: &Ingress, mut switched: Switched) {
        let fib = &snapshot.fib;
        if self.switch.flows.take_looked_up() {
            self.context.flow_changes.notify_one();
        }
        self.pass_messages(std::mem::take(&mut switched.messages), ingress);
        let counts = &switched.counts;
        self.counters.received_packets.inc_by(counts.packets);
        self.counters.received_bytes.inc_by(counts.bytes);
        self.counters.membership_messages.inc_by(counts.membership);
        self.counters.add_dropped(&counts.dropped);
        self.context.catalog.add_translated(&counts.translated);
        if counts.takeovers > 0 {
            let name = self.name.as_str();
            self.context
                .catalog
                .count_takeovers(name, TakeoverRole::Ingress, counts.takeovers);
        }
        for egress in &counts.egress_takeovers {
            let name = fib.egresses[*egress as usize].name.as_str();
            self.context
                .catalog
                .count_takeovers(name, TakeoverRole::Egress, 1);
        }
        if let Some((egress, station)) = counts.yielded {
            let egress = &fib.egresses[egress as usize];
            self.warn_of_other_forwarder(egress.index, &egress.name, station);
        }
        if self.generation != fib.generation {
            self.generation = fib.generation;
            self.forwarders.update(snapshot);
            self.update_merges(fib, ingress);
        }
        let Switch { drops, monitor, .. } = &mut self.switch;
        let forwarders = &mut self.forwarders;
        forwarders.transmit(&self.context, snapshot, switched, (drops, monitor));
    }

    /// Notes of which merges a path arrives here.
    fn update_merges(&mut self, fib: &Fib, ingress: &Ingress) {
        let merges = self.switch.merges(fib, ingress);
        let merges = merges.map(|(path, merge)| (path, merge.clone()));
        *self.reading.merges.borrow_mut() = merges.collect();
        self.reading.wake();
    }

    /// Passes on the held packets of merges that are not waited for any more. All packets that were
    /// received until `read_until_ns` were switched. Without this time, passes on all of them.
    fn poll_merges(&mut self, read_until_ns: Option<u64>) {
        let snapshot = self.context.snapshot.load_full();
        let no_routes = Ingress::default();
        let ingress = snapshot.fib.ingresses.get(&self.index);
        let ingress = ingress.map_or(&no_routes, Arc::as_ref);
        let (fib, now_ms) = (&snapshot.fib, self.context.now_ms());
        let switched = self.switch.poll_merges(fib, ingress, read_until_ns, now_ms);
        self.transmit(&snapshot, ingress, switched);
    }

    /// Publishes the counts of the merges.
    fn report_merges(&mut self) {
        let snapshot = self.context.snapshot.load_full();
        let no_routes = Ingress::default();
        let ingress = snapshot.fib.ingresses.get(&self.index);
        let ingress = ingress.map_or(&no_routes, Arc::as_ref);
        if self.generation != snapshot.fib.generation {
            self.update_merges(&snapshot.fib, ingress);
        }
        if self.switch.has_replaced_merges() {
            let now_ms = self.context.now_ms();
            let switched = self.switch.flush_replaced_merges(&snapshot.fib, now_ms);
            self.transmit(&snapshot, ingress, switched);
        }
        let now_ns = realtime_ns().saturating_sub(MERGE_REPORT_DELAY.as_nanos() as u64);
        for (route, rule) in &ingress.merges {
            let merge = self.context.merges.of_route(route, rule);
            let counts = merge.lock().statistics(now_ns);
            let former = merge.publish(counts);
            self.context
                .catalog
                .merge
                .add(route.as_str(), &former, &counts);
        }
    }

    /// Logs once for each egress that another forwarder sends the same streams to it.
    fn warn_of_other_forwarder(
        &mut self,
        egress: InterfaceId,
        name: &IfName,
        station: Option<MacAddress>,
    ) {
        if !self.warned_of_forwarders.insert(egress) {
            return;
        }
        let station = station.map_or_else(|| "another station".into(), |s| s.to_string());
        warn!(
            interface = %name,
            "{name}: {station} also forwards streams to this link, and takes precedence: packets are \
             withheld there and counted as other_forwarder, and this router takes over when it stops. \
             If this is not intended, stop one of the two; `mcastor show flows` lists the streams"
        );
    }

    /// Passes membership messages to the membership actor and to the joins actor.
    fn pass_messages(&mut self, messages: Messages, ingress: &Ingress) {
        if messages.is_empty() {
            return;
        }
        // Reports losses before handing messages on, so that a lost report is not taken for a
        // leave.
        if self.drops_read.elapsed() >= LOSS_INTERVAL {
            self.read_kernel_drops();
        }
        let count = messages.len() as u64;
        let (index, name) = (self.index, self.name.as_str());
        let directory = &self.context.directory;
        let is_taken_by_host = !ingress.answers_queries
            || directory.try_send(HostMessages {
                index,
                messages: messages.clone(),
            });
        let is_taken_by_membership = !ingress.receives_membership
            || directory.try_send(MembershipMessages { index, messages });
        if !is_taken_by_host || !is_taken_by_membership {
            let metrics = &self.context.catalog.membership;
            metrics.count_rejected(name, "busy", count);
            self.report_loss();
        }
    }

    fn report_loss(&mut self) {
        let is_recent = |at: Instant| at.elapsed() < LOSS_INTERVAL;
        if self.loss_reported.is_some_and(is_recent) {
            return;
        }
        self.loss_reported = Some(Instant::now());
        // `do_send` ignores the mailbox limit. No report of a loss may be refused, and there are
        // only a few per second.
        let index = self.index;
        self.context.directory.do_send(MessagesLost { index });
        self.context.directory.do_send(HostMessagesLost { index });
    }

    fn expire_flows(&mut self) {
        let snapshot = self.context.snapshot.load_full();
        let monitor = &mut self.switch.monitor;
        monitored_streams::expire(&self.context, &snapshot, self.index, monitor);
        let now = self.context.now_ms();
        self.switch.flows.expire(now, self.context.flow_idle_ms());
        let expired = self.switch.drops.take_ttl_expired();
        let warnings = &self.context.ttl_warnings;
        warnings.log(
            &self.context.snapshot.load().fib,
            self.index,
            &self.name,
            &expired,
        );
        self.update_flow_metrics();
    }

    fn update_flow_metrics(&mut self) {
        let ended = self.switch.flows.take_ended();
        let catalog = &self.context.catalog;
        for end in FlowEnd::ALL {
            catalog.count_ended_flows(self.name.as_str(), end, ended.count(end));
        }
        let evicted = self.switch.drops.take_evicted();
        catalog.count_evicted_dropped_flows(self.name.as_str(), evicted);
        if ended != EndedFlows::default() {
            self.context.flow_changes.notify_one();
        }
        catalog.flows.set(self.context.flows.live() as i64);
    }

    fn read_kernel_drops(&mut self) {
        self.drops_read = Instant::now();
        let Some(capture) = &self.capture else {
            return;
        };
        let dropped = capture.borrow_mut().take_dropped();
        let unknown_offload = capture.borrow_mut().take_unknown_offload();
        // Packets that are only observed are not lost.
        if self.watch_only {
            return;
        }
        self.counters.received_packets.inc_by(unknown_offload);
        let unknown = self.counters.dropped(DropReason::GsoUnknown);
        unknown.inc_by(unknown_offload);
        if dropped == 0 {
            return;
        }
        self.report_loss();
        let now_ms = self.context.now_ms();
        self.switch.monitor.count_socket_lost(dropped, now_ms);
        self.counters.socket_dropped.inc_by(dropped);
        if !self.warned_of_drops {
            self.warned_of_drops = true;
            warn!(
                packets = dropped,
                interface = %self.name,
                "{}: the kernel dropped packets because this process read them too slowly; give it \
                 more CPU, or spread the streams over more interfaces. Logged once; see \
                 mcastor_socket_dropped_packets_total",
                self.death_guard.role()
            );
        }
    }
}

impl Actor for Interface {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let Some(former) = self.former.take() else {
            if !self.context.gate.is_open() {
                return self.start_behind_gate(ctx);
            }
            let opened = self.open().map(|is_open, actor, ctx| {
                if is_open {
                    actor.start_forwarding(ctx);
                }
            });
            return ctx.wait(opened);
        };
        let closed = former.send(CloseCapture).into_actor(self);
        let opened = closed.then(|_, actor, _| actor.open());
        let ended = opened.then(move |is_open, actor, _| {
            let ended = former.send(Stop).into_actor(actor);
            ended.map(move |_, actor, ctx| {
                if is_open {
                    actor.start_forwarding(ctx);
                }
            })
        });
        ctx.wait(ended);
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.read_kernel_drops();
        self.switch.flows.flush();
        self.update_flow_metrics();
    }
}

impl StreamHandler<io::Result<Captured>> for Interface {
    fn handle(&mut self, captured: io::Result<Captured>, ctx: &mut Self::Context) {
        match captured {
            Ok(Captured::Batch(batch)) => {
                self.forward(batch);
                self.offer_flows(ctx);
            }
            Ok(Captured::Empty { read_until_ns }) => self.poll_merges(Some(read_until_ns)),
            Err(e) => {
                // The death guard stays armed, so that the supervisor opens the capture again.
                warn!(interface = %self.name, "{}: capture failed: {e}", self.death_guard.role());
                ctx.terminate();
            }
        }
    }
}

panics_on_demand!(Interface);

/// Ends the capture of new packets. Those that were captured before are still forwarded.
#[derive(Message)]
#[rtype(result = "()")]
struct CloseCapture;
