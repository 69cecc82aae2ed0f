//! Queries the hosts behind downstream interfaces of proxies, learns their memberships, and reports
//! them to routing. Announces the router to switches (RFC 4286) if the settings say so.
//!
//! Routing sends the interfaces to serve ([`ServeInterfaces`]). Interface actors send captured
//! messages ([`MembershipMessages`]). Changes go to routing ([`MembershipChanged`]).
//!
//! Messages wait in a queue for each interface and are processed in turns.
//!
//! A new actor continues the state of the former one, of this process or of the one before, from the
//! [`Store`](crate::store::Store). Routing keeps the former memberships ([`MembershipStarted`]) until
//! every host has had the time to answer a query ([`LearningComplete`]).

mod event_log;
mod refusal_log;
mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;

use super::message_queue::{MessageQueue, TURN};
use crate::actors::deadline_timer::DeadlineTimer;
use crate::actors::messages::{
    LearningComplete, MemberGroup, MembershipChanged, MembershipMessages, MembershipStarted,
    MessagesLost, QueryMembers, QueryQueriers, QueryRefused, Republish, ServeInterfaces,
};
use crate::actors::shared::RouterContext;
use crate::actors::supervision::{DeathGuard, Stop, panics_on_demand};
use crate::membership::SavedInterface;
use crate::model::{IfName, InterfaceId};
use crate::sys::boot_clock;
use service::DownstreamService;

/// Limit of the mailbox, in batches of messages.
const MAILBOX: usize = 256;

/// Interfaces that are served within this time after the start continue stored state. Names of
/// container engines are known a moment after the start.
const RESTORATION_TIME: Duration = Duration::from_secs(10);

/// The pause after an update of the store is this multiple of the time that it took.
const SAVE_PAUSE_FACTOR: u32 = 50;
/// Shortest pause after an update of the store.
const MIN_SAVE_PAUSE: Duration = Duration::from_millis(500);

/// The actor.
pub struct Membership {
    context: Arc<RouterContext>,
    death_guard: DeathGuard,
    services: BTreeMap<InterfaceId, DownstreamService>,
    messages: MessageQueue,
    /// Whether the next turn is scheduled.
    is_scheduled: bool,
    timer: DeadlineTimer,
    /// Sends [`LearningComplete`].
    learning_timer: Option<SpawnHandle>,
    /// Whether an interface that is served now continues stored state.
    is_restoring: bool,
    /// Whether this actor replaces one that died in this process.
    is_rebuilt: bool,
    /// The interfaces whose state is not in the store yet.
    unsaved: BTreeSet<InterfaceId>,
    /// Earliest time of the next update of the store.
    next_save: Instant,
    is_save_scheduled: bool,
}

impl Membership {
    /// Returns an actor that serves no interface.
    pub fn new(context: Arc<RouterContext>, death_guard: DeathGuard) -> Self {
        Self {
            is_rebuilt: !context.store.start_membership(),
            context,
            death_guard,
            services: BTreeMap::new(),
            messages: MessageQueue::default(),
            is_scheduled: false,
            timer: DeadlineTimer::default(),
            learning_timer: None,
            is_restoring: true,
            unsaved: BTreeSet::new(),
            next_save: Instant::now(),
            is_save_scheduled: false,
        }
    }

    /// Notes that an interface changed, and updates the store at once or as soon as its pace
    /// permits.
    fn schedule_save(&mut self, index: InterfaceId, ctx: &mut Context<Self>) {
        self.unsaved.insert(index);
        if self.is_save_scheduled {
            return;
        }
        let wait = self.next_save.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return self.save();
        }
        self.is_save_scheduled = true;
        ctx.run_later(wait, |actor, _| {
            actor.is_save_scheduled = false;
            actor.save();
        });
    }

    /// Updates the store. The writer thread writes it.
    fn save(&mut self) {
        let started = Instant::now();
        let Ok(clock) = boot_clock::read() else {
            return;
        };
        for index in std::mem::take(&mut self.unsaved) {
            if let Some(service) = self.services.get(&index) {
                let store = &self.context.store;
                store.set_interface(service.name(), service.saved(&clock));
            }
        }
        let now = Instant::now();
        let pause = (now - started) * SAVE_PAUSE_FACTOR;
        self.next_save = now + pause.max(MIN_SAVE_PAUSE);
    }

    /// Returns the stored state with which an interface starts. After a panic, the hosts are also
    /// queried at once, because reports may have been lost.
    fn saved(&self, name: &IfName) -> Option<Arc<SavedInterface>> {
        let mut saved = self.context.store.interface(name);
        if let Some(saved) = saved.as_mut().filter(|_| self.is_rebuilt) {
            Arc::make_mut(saved).forget_own_queries();
        }
        saved.filter(|_| self.is_restoring)
    }

    /// Ends the restoration: interfaces that are served later start with nothing.
    fn end_restoration(&mut self) {
        self.is_restoring = false;
        let names: BTreeSet<IfName> = self.services.values().map(|s| s.name().clone()).collect();
        self.context
            .store
            .retain_interfaces(|name| names.contains(name));
    }

    /// Transmits pending messages of one interface and reports its changes.
    fn flush(&mut self, index: InterfaceId, ctx: &mut Context<Self>) {
        let Some(service) = self.services.get_mut(&index) else {
            return;
        };
        let changes = service.flush(&self.context);
        if !changes.is_empty() {
            let message = MembershipChanged { index, changes };
            self.context.directory.do_send(message);
        }
        self.schedule_save(index, ctx);
    }

    fn flush_all(&mut self, ctx: &mut Context<Self>) {
        let all: Vec<InterfaceId> = self.services.keys().copied().collect();
        all.into_iter().for_each(|index| self.flush(index, ctx));
        self.set_timer(ctx);
    }

    /// Processes waiting messages for the time of a turn. Schedules the next turn if some are left.
    fn run_turn(&mut self, ctx: &mut Context<Self>) {
        let until = Instant::now() + TURN;
        let (services, context) = (&mut self.services, &self.context);
        let served = self
            .messages
            .run_turn(until, Instant::now, |now, index, message| {
                if let Some(service) = services.get_mut(&index) {
                    service.handle_message(now, message, context);
                }
            });
        served.into_iter().for_each(|index| self.flush(index, ctx));
        self.set_timer(ctx);
        self.is_scheduled = !self.messages.is_empty();
        if self.is_scheduled {
            // Timers expire only when the thread returns to its runtime.
            let next = tokio::task::yield_now().into_actor(self);
            ctx.spawn(next.map(|(), actor, ctx| actor.run_turn(ctx)));
        }
    }

    /// Sets the timer to the next deadline of all interfaces.
    fn set_timer(&mut self, ctx: &mut Context<Self>) {
        let next = self
            .services
            .values()
            .filter_map(DownstreamService::poll_timeout);
        let next = next.min();
        // A timer that expires earlier is not moved with each report.
        if let (Some(next), Some(at)) = (next, self.timer.at())
            && at <= next
            && at > Instant::now()
        {
            return;
        }
        self.timer.set(next, ctx, |actor: &mut Self, ctx| {
            actor.timer.clear();
            let now = Instant::now();
            for service in actor.services.values_mut() {
                service.handle_timeout(now);
            }
            actor.flush_all(ctx);
        });
    }

    /// Schedules [`LearningComplete`].
    fn schedule_learning_complete(&mut self, ctx: &mut Context<Self>) {
        let now = Instant::now();
        let services = self.services.values();
        let longest = services.map(|service| service.learning_time(now)).max();
        let wait = longest.unwrap_or_default() + Duration::from_secs(1);
        self.learning_timer = Some(ctx.run_later(wait, |actor, _| {
            actor.learning_timer = None;
            actor.context.directory.do_send(LearningComplete);
        }));
    }
}

impl Actor for Membership {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        let directory = &self.context.directory;
        directory
            .register(ctx.address())
            .receives::<ServeInterfaces>()
            .receives::<MembershipMessages>()
            .receives::<MessagesLost>()
            .receives::<QueryMembers>()
            .receives::<QueryQueriers>()
            .receives::<QueryRefused>();
        directory.do_send(MembershipStarted);
        directory.do_send(Republish);
        ctx.run_later(RESTORATION_TIME, |actor, _| actor.end_restoration());
    }
}

impl Handler<ServeInterfaces> for Membership {
    type Result = ();

    fn handle(&mut self, message: ServeInterfaces, ctx: &mut Self::Context) {
        let now = Instant::now();
        let first = self.services.is_empty();
        let removed: Vec<InterfaceId> = self
            .services
            .keys()
            .filter(|index| !message.interfaces.contains_key(index))
            .copied()
            .collect();
        for index in removed {
            if let Some(mut service) = self.services.remove(&index) {
                service.stop(&self.context);
                self.context.store.set_interface(service.name(), None);
            }
        }
        for (index, served) in message.interfaces {
            match self.services.get_mut(&index) {
                Some(service) => {
                    if *service.name() != served.name {
                        self.context.store.set_interface(service.name(), None);
                    }
                    service.update(now, served, &self.context);
                }
                None => {
                    let saved = self.saved(&served.name);
                    let service = DownstreamService::new(now, index, served, saved, &self.context);
                    self.services.insert(index, service);
                }
            }
            if message.all
                && let Some(service) = self.services.get_mut(&index)
            {
                service.report_all();
            }
        }
        self.flush_all(ctx);
        if (first || message.all) && self.learning_timer.is_none() {
            self.schedule_learning_complete(ctx);
        }
    }
}

impl Handler<MembershipMessages> for Membership {
    type Result = ();

    fn handle(&mut self, message: MembershipMessages, ctx: &mut Self::Context) {
        let now = Instant::now();
        let Some(service) = self.services.get_mut(&message.index) else {
            return;
        };
        let count = message.messages.len() as u64;
        if !self.messages.push(message.index, message.messages) {
            service.handle_overflow(now, count, &self.context);
        }
        if !self.is_scheduled {
            self.run_turn(ctx);
        }
    }
}

impl Handler<MessagesLost> for Membership {
    type Result = ();

    fn handle(&mut self, message: MessagesLost, _: &mut Self::Context) {
        if let Some(service) = self.services.get_mut(&message.index) {
            service.handle_message_loss(Instant::now());
        }
    }
}

impl Handler<QueryMembers> for Membership {
    type Result = Vec<MemberGroup>;

    fn handle(&mut self, _: QueryMembers, _: &mut Self::Context) -> Self::Result {
        let now = Instant::now();
        let services = self.services.values();
        services.flat_map(|service| service.members(now)).collect()
    }
}

impl Handler<QueryQueriers> for Membership {
    type Result = MessageResult<QueryQueriers>;

    fn handle(&mut self, _: QueryQueriers, _: &mut Self::Context) -> Self::Result {
        let now = Instant::now();
        let services = self.services.iter();
        let queriers = services.map(|(index, service)| (*index, service.queriers(now)));
        MessageResult(queriers.collect())
    }
}

impl Handler<QueryRefused> for Membership {
    type Result = MessageResult<QueryRefused>;

    fn handle(&mut self, query: QueryRefused, _: &mut Self::Context) -> Self::Result {
        let now = Instant::now();
        let services = self.services.values();
        let refused = services.flat_map(|service| service.refused(now, query.group));
        MessageResult(refused.collect())
    }
}

panics_on_demand!(Membership);

impl Handler<Stop> for Membership {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        self.unsaved = self.services.keys().copied().collect();
        self.save();
        for service in self.services.values_mut() {
            service.stop(&self.context);
        }
        self.services.clear();
        self.death_guard.disarm();
        ctx.stop();
    }
}
