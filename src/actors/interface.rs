//! Captures on one interface, decides, and hands batches to the forwarders of its worker.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as Task, Poll, ready};
use std::time::{Duration, Instant};

use actix::fut::ActorFuture;
use actix::prelude::*;
use ahash::AHashMap;
use futures_util::Stream;
use tokio::time::{Sleep, sleep};
use tracing::{debug, warn};

use super::context::{DeathGuard, RouterContext, Snapshot, Stop, WorkerId, panics_on_demand};
use super::forwarder::{MOST_WAITING, Transmit};
use super::membership::{MembershipMessages, MessagesLost};
use super::views;
use crate::api::view::FlowView;
use crate::forward::DropReason;
use crate::metrics::InterfaceCounters;
use crate::model::{FlowEnd, IfIndex, IfName};
use crate::pipeline::{Batch, Capture, Messages, Slot, Switch};
use crate::table::Ingress;
use crate::table::flows::Flows;

/// How often the kernel is asked what it dropped, and idle flows are looked for.
const HOUSEKEEPING_EVERY: Duration = Duration::from_secs(1);

/// How often it is asked besides while hosts report, and membership told of losses.
const LOSSES_EVERY: Duration = Duration::from_millis(100);

/// A capture that was shut has handed out everything when nothing came for this long.
const QUIET: Duration = Duration::from_millis(5);

/// Longest wait for that.
const LONGEST_REST: Duration = Duration::from_millis(200);

/// Tells the supervisor whether the capture could be opened.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Opened {
    /// Which interface.
    pub index: IfIndex,
    /// What the kernel said.
    pub result: io::Result<()>,
}

/// The actor.
pub struct Interface {
    context: Arc<RouterContext>,
    death_guard: DeathGuard,
    supervisor: Recipient<Opened>,
    worker: WorkerId,
    index: IfIndex,
    name: IfName,
    counters: InterfaceCounters,
    capture: Option<Rc<RefCell<Box<dyn Capture>>>>,
    switch: Switch,
    /// One reference of our own, and one for each batch that waits for that egress.
    waiting: AHashMap<IfIndex, Arc<()>>,
    generation: u64,
    /// Batches taken in so far.
    batches: u64,
    warned_of_drops: bool,
    /// When membership was last told that messages were lost.
    told_unheard: Option<Instant>,
    /// When the kernel was last asked what it dropped.
    asked: Instant,
}

impl Interface {
    /// An interface actor that opens its capture when it starts, on its worker.
    pub fn new(
        context: Arc<RouterContext>,
        death_guard: DeathGuard,
        supervisor: Recipient<Opened>,
        worker: WorkerId,
        index: IfIndex,
        name: &IfName,
    ) -> Self {
        let counters = context.catalog.interface(name.as_str());
        let flows = Flows::new(context.flows.clone());
        let switch = Switch::new(flows, context.loop_guard.clone(), context.feeds.clone());
        Self {
            context,
            death_guard,
            supervisor,
            worker,
            index,
            name: name.clone(),
            counters,
            capture: None,
            switch,
            waiting: AHashMap::new(),
            generation: 0,
            batches: 0,
            warned_of_drops: false,
            told_unheard: None,
            asked: Instant::now(),
        }
    }

    /// Counts under the name the interface has in the snapshot.
    fn follow_name(&mut self, snapshot: &Snapshot) {
        if let Some(name) = snapshot.names.get(&self.index)
            && *name != self.name
        {
            self.name = name.clone();
            self.counters = self.context.catalog.interface(name.as_str());
        }
    }

    fn forward(&mut self, batch: Batch) {
        self.batches += 1;
        let snapshot = self.context.snapshot.load_full();
        if self.generation != snapshot.fib.generation {
            self.follow_name(&snapshot);
        }
        let fib = &snapshot.fib;
        let nothing = Ingress::default();
        let ingress = fib.ingresses.get(&self.index).unwrap_or(&nothing);
        let switched = self.switch.run(fib, ingress, batch, self.context.now_ms());
        self.hand_over(switched.messages);
        let tally = &switched.counts;
        self.counters.received_packets.inc_by(tally.packets);
        self.counters.received_bytes.inc_by(tally.bytes);
        self.counters.membership_messages.inc_by(tally.membership);
        self.counters.add_dropped(&tally.dropped);
        self.context.catalog.add_translated(&tally.translated);
        let drop_at = |egress: u32, reason: DropReason, packets: u64| {
            let name = fib.egresses[egress as usize].name.as_str();
            let counters = self.context.catalog.interface(name);
            counters.dropped(reason).inc_by(packets);
        };
        for (egress, packets) in &tally.below_threshold {
            drop_at(*egress, DropReason::TtlThreshold, *packets);
        }
        let forwarders = snapshot.forwarders.get(self.worker);
        if self.generation != fib.generation {
            self.generation = fib.generation;
            let stays = |index: &IfIndex| forwarders.is_some_and(|f| f.contains_key(index));
            self.waiting.retain(|index, _| stays(index));
        }
        for (egress, slots) in switched.egresses {
            let index = fib.egresses[egress as usize].index;
            let packets = slots.iter().map(Slot::packets).sum();
            let Some(forwarder) = forwarders.and_then(|f| f.get(&index)) else {
                drop_at(egress, DropReason::EgressDown, packets);
                continue;
            };
            let waiting = self.waiting.entry(index).or_default();
            if Arc::strong_count(waiting) > MOST_WAITING {
                drop_at(egress, DropReason::QueueFull, packets);
                continue;
            }
            let sent = forwarder.try_send(Transmit {
                fib: fib.clone(),
                egress,
                load: switched.shared.clone(),
                slots,
                waiting: waiting.clone(),
            });
            match sent {
                Ok(()) => {}
                Err(SendError::Full(_)) => drop_at(egress, DropReason::QueueFull, packets),
                Err(SendError::Closed(_)) => drop_at(egress, DropReason::EgressDown, packets),
            }
        }
    }

    /// Hands messages about memberships to those who understand them.
    fn hand_over(&mut self, messages: Messages) {
        if messages.is_empty() {
            return;
        }
        // Of those that were lost it is to know before it takes a silence for a leave.
        if self.asked.elapsed() >= LOSSES_EVERY {
            self.ask_dropped();
        }
        let count = messages.len() as u64;
        let (index, name) = (self.index, self.name.as_str());
        let sent = match self.context.membership.load().as_deref() {
            Some(membership) => membership
                .try_send(MembershipMessages { index, messages })
                .is_ok(),
            None => false,
        };
        if !sent {
            let families = &self.context.catalog.membership;
            families.count_rejected(name, "busy", count);
            self.tell_unheard();
        }
    }

    fn tell_unheard(&mut self) {
        if self
            .told_unheard
            .is_some_and(|at| at.elapsed() < LOSSES_EVERY)
        {
            return;
        }
        self.told_unheard = Some(Instant::now());
        if let Some(membership) = self.context.membership.load().as_deref() {
            // A few a second, and none of them may be refused.
            membership.do_send(MessagesLost { index: self.index });
        }
    }

    fn expire_flows(&mut self) {
        let now = self.context.now_ms();
        self.switch.flows.expire(now, self.context.flow_idle_ms());
        self.settle_flows();
    }

    fn settle_flows(&mut self) {
        let ended = self.switch.flows.take_ended();
        let catalog = &self.context.catalog;
        for end in FlowEnd::ALL {
            catalog.count_ended_flows(self.name.as_str(), end, ended.of(end));
        }
        catalog.flows.set(self.context.flows.live() as i64);
    }

    fn ask_dropped(&mut self) {
        self.asked = Instant::now();
        let Some(capture) = &self.capture else {
            return;
        };
        let dropped = capture.borrow_mut().take_dropped();
        if dropped == 0 {
            return;
        }
        self.tell_unheard();
        self.counters.socket_dropped.inc_by(dropped);
        if !self.warned_of_drops {
            self.warned_of_drops = true;
            warn!(
                packets = dropped,
                "{}: the kernel dropped packets because we were too slow to take them; give \
                 the process more CPU, or spread the streams over more interfaces. Said once; \
                 mcastor_socket_dropped_packets_total goes on counting",
                self.death_guard.role()
            );
        }
    }
}

impl Actor for Interface {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let result = match self.context.plane.capture(self.index) {
            Ok(capture) => {
                let capture = Rc::new(RefCell::new(capture));
                ctx.add_stream(Batches {
                    capture: capture.clone(),
                    in_a_row: 0,
                });
                ctx.run_interval(HOUSEKEEPING_EVERY, |actor, _| {
                    actor.follow_name(&actor.context.snapshot.load_full());
                    actor.ask_dropped();
                    actor.expire_flows();
                });
                self.capture = Some(capture);
                debug!("{}: capturing", self.death_guard.role());
                Ok(())
            }
            Err(e) => {
                self.death_guard.disarm();
                ctx.stop();
                Err(e)
            }
        };
        self.supervisor.do_send(Opened {
            index: self.index,
            result,
        });
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.ask_dropped();
        self.switch.flows.flush();
        self.settle_flows();
    }
}

impl StreamHandler<io::Result<Batch>> for Interface {
    fn handle(&mut self, batch: io::Result<Batch>, ctx: &mut Self::Context) {
        match batch {
            Ok(batch) => self.forward(batch),
            Err(e) => {
                // The capture ended although nobody stopped us: that is a death, so that the
                // supervisor opens it anew.
                warn!("{}: capture failed: {e}", self.death_guard.role());
                ctx.terminate();
            }
        }
    }
}

panics_on_demand!(Interface);

impl Handler<Stop> for Interface {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Stop, _: &mut Self::Context) -> Self::Result {
        self.death_guard.disarm();
        if let Some(capture) = &self.capture {
            capture.borrow_mut().shut();
        }
        Box::pin(Rest {
            batches: self.batches,
            until: Instant::now() + LONGEST_REST,
            quiet: Box::pin(sleep(QUIET)),
        })
    }
}

/// Waits until the capture, which is shut, has handed out everything; then ends the actor.
struct Rest {
    batches: u64,
    until: Instant,
    quiet: Pin<Box<Sleep>>,
}

impl ActorFuture<Interface> for Rest {
    type Output = ();

    fn poll(
        mut self: Pin<&mut Self>,
        actor: &mut Interface,
        ctx: &mut Context<Interface>,
        task: &mut Task<'_>,
    ) -> Poll<()> {
        loop {
            ready!(self.quiet.as_mut().poll(task));
            // We may have been kept from looking for all that time.
            let rest = actor
                .capture
                .as_ref()
                .map(|c| c.borrow_mut().poll_batch(task));
            if let Some(Poll::Ready(Ok(batch))) = rest {
                actor.forward(batch);
            }
            if actor.batches == self.batches || Instant::now() >= self.until {
                ctx.stop();
                return Poll::Ready(());
            }
            self.batches = actor.batches;
            self.quiet.set(sleep(QUIET));
        }
    }
}

/// Asks which flows there are.
pub struct AskFlows;

impl Message for AskFlows {
    type Result = Vec<FlowView>;
}

impl Handler<AskFlows> for Interface {
    type Result = MessageResult<AskFlows>;

    fn handle(&mut self, _: AskFlows, _: &mut Self::Context) -> Self::Result {
        let snapshot = self.context.snapshot.load_full();
        self.follow_name(&snapshot);
        let fib = &snapshot.fib;
        let now = self.context.now_ms();
        let flows = self.switch.flows.iter();
        let ingress = fib.ingresses.get(&self.index);
        let view = |flow| views::flow(self.name.as_str(), ingress, flow, fib, now);
        MessageResult(flows.map(view).collect())
    }
}

/// Ends all flows; answers how many there were.
#[derive(Message)]
#[rtype(result = "u64")]
pub struct Flush;

impl Handler<Flush> for Interface {
    type Result = u64;

    fn handle(&mut self, _: Flush, _: &mut Self::Context) -> u64 {
        let flushed = self.switch.flows.flush();
        self.settle_flows();
        flushed
    }
}

/// A batch of fewer packets than this is sent before another is taken in.
const SMALL_BATCH: usize = 8;

/// The batches of a capture. Its first error ends the actor that reads it.
struct Batches {
    capture: Rc<RefCell<Box<dyn Capture>>>,
    in_a_row: usize,
}

impl Stream for Batches {
    type Item = io::Result<Batch>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Self::Item>> {
        // The forwarders share our thread: they must come to send before too much waits.
        if self.in_a_row >= MOST_WAITING / 2 {
            self.in_a_row = 0;
            task.waker().wake_by_ref();
            return Poll::Pending;
        }
        let next = self.capture.borrow_mut().poll_batch(task);
        self.in_a_row = match &next {
            // Most likely the last for now: sent before we ask whether it was.
            Poll::Ready(Ok(batch)) if batch.packets.len() < SMALL_BATCH => MOST_WAITING,
            Poll::Ready(_) => self.in_a_row + 1,
            Poll::Pending => 0,
        };
        next.map(Some)
    }
}
