//! Queries the hosts behind downstream interfaces of proxies, learns their memberships, and reports
//! them to routing. Announces the router to switches (RFC 4286) if the settings say so.
//!
//! Routing sends the interfaces to serve ([`ServeInterfaces`]). Interface actors send captured
//! messages ([`MembershipMessages`]). Changes go to routing ([`MembershipChanged`]).
//!
//! Messages wait in a queue for each interface and are processed in turns.
//!
//! A restarted actor knows no members and queries them. Routing keeps the former memberships
//! ([`MembershipStarted`]) until every host has had the time to answer ([`LearningComplete`]).

mod event_log;
mod refusal_log;
mod service;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;

use super::message_queue::{MessageQueue, TURN};
use crate::actors::messages::{
    LearningComplete, MemberGroup, MembershipChanged, MembershipMessages, MembershipStarted,
    MessagesLost, QueryMembers, QueryQueriers, QueryRefused, Republish, ServeInterfaces,
};
use crate::actors::shared::RouterContext;
use crate::actors::supervision::{DeathGuard, Stop, panics_on_demand};
use crate::model::InterfaceId;
use service::DownstreamService;

/// Limit of the mailbox, in batches of messages.
const MAILBOX: usize = 256;

/// The actor.
pub struct Membership {
    context: Arc<RouterContext>,
    death_guard: DeathGuard,
    services: BTreeMap<InterfaceId, DownstreamService>,
    messages: MessageQueue,
    /// Whether the next turn is scheduled.
    is_scheduled: bool,
    timer: Option<(Instant, SpawnHandle)>,
    /// Sends [`LearningComplete`].
    learning_timer: Option<SpawnHandle>,
}

impl Membership {
    /// Returns an actor that serves no interface.
    pub fn new(context: Arc<RouterContext>, death_guard: DeathGuard) -> Self {
        Self {
            context,
            death_guard,
            services: BTreeMap::new(),
            messages: MessageQueue::default(),
            is_scheduled: false,
            timer: None,
            learning_timer: None,
        }
    }

    /// Transmits pending messages of one interface and reports its changes.
    fn flush(&mut self, index: InterfaceId) {
        let Some(service) = self.services.get_mut(&index) else {
            return;
        };
        let changes = service.flush(&self.context);
        if !changes.is_empty() {
            let message = MembershipChanged { index, changes };
            self.context.directory.do_send(message);
        }
    }

    fn flush_all(&mut self, ctx: &mut Context<Self>) {
        let all: Vec<InterfaceId> = self.services.keys().copied().collect();
        all.into_iter().for_each(|index| self.flush(index));
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
        served.into_iter().for_each(|index| self.flush(index));
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
        match (next, &self.timer) {
            (Some(next), Some((at, _))) if *at <= next && *at > Instant::now() => {}
            (None, None) => {}
            (next, _) => {
                if let Some((_, handle)) = self.timer.take() {
                    ctx.cancel_future(handle);
                }
                let Some(at) = next else { return };
                let wait = at.saturating_duration_since(Instant::now());
                // tokio rounds to milliseconds. A timer that expires too early is set again.
                let handle = ctx.run_later(wait, |actor, ctx| {
                    actor.timer = None;
                    let now = Instant::now();
                    for service in actor.services.values_mut() {
                        service.handle_timeout(now);
                    }
                    actor.flush_all(ctx);
                });
                self.timer = Some((at, handle));
            }
        }
    }

    /// Schedules [`LearningComplete`].
    fn schedule_learning_complete(&mut self, ctx: &mut Context<Self>) {
        let longest = self
            .services
            .values()
            .map(DownstreamService::learning_time)
            .max();
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
            }
        }
        for (index, served) in message.interfaces {
            match self.services.get_mut(&index) {
                Some(service) => service.update(now, served, &self.context),
                None => {
                    let service = DownstreamService::new(now, index, served, &self.context);
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
        for service in self.services.values_mut() {
            service.stop(&self.context);
        }
        self.services.clear();
        self.death_guard.disarm();
        ctx.stop();
    }
}
