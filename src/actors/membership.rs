//! Asks the hosts behind the downstream interfaces of proxies, hears what they want, and tells
//! routing. Announces the router where that was asked for.
//!
//! Lifecycle: routing says which interfaces are to be served ([`Serve`]); interface actors hand
//! over the messages they capture ([`MembershipMessages`]); what changes goes back to routing ([`Wanted`]).
//! A rebuilt actor knows nothing of the hosts and asks them anew. What was wanted before goes
//! on being forwarded until they have had the time to answer ([`Began`], [`Settled`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use ipnet::IpNet;

use super::context::{DeathGuard, RouterContext, Stop, panics_on_demand};
use super::routing::Routing;
use super::service::Service;
use crate::api::view::{GroupView, QuerierView};
use crate::model::{Group, IfIndex, IfName, ProxyRule, SourceFilter};
use crate::pipeline::Messages;

/// Batches of messages that wait for us at most.
const MAILBOX: usize = 256;

/// An interface to be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// Its name now.
    pub name: IfName,
    /// Largest IP packet it carries.
    pub mtu: u32,
    /// Its addresses, each with the length of its prefix.
    pub addresses: Vec<IpNet>,
    /// The proxy it is downstream of.
    pub proxy: Option<Arc<ProxyRule>>,
    /// How often the router is announced on it.
    pub mrdisc: Option<Duration>,
}

/// Tells which interfaces are to be served from now on: those that exist and are up.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Serve {
    /// All of them.
    pub interfaces: BTreeMap<IfIndex, Served>,
    /// Whether whoever asks knows nothing of what is wanted and must be told all of it.
    pub all: bool,
}

/// IGMP, MLD and multicast router discovery messages of one interface, as captured.
#[derive(Message)]
#[rtype(result = "()")]
pub struct MembershipMessages {
    /// On which interface.
    pub index: IfIndex,
    /// The messages.
    pub messages: Messages,
}

/// Messages that came in there were lost, or may have been: an answer may be among them.
#[derive(Message)]
#[rtype(result = "()")]
pub struct MessagesLost {
    /// On which interface.
    pub index: IfIndex,
}

/// Tells routing what the hosts behind an interface want now, group by group.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Wanted {
    /// Behind which interface.
    pub index: IfIndex,
    /// The groups that changed.
    pub changes: Vec<(Group, SourceFilter)>,
}

/// Tells routing that a new life began: all that is wanted will be told again.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Began;

/// Tells routing that every host had the time to answer since [`Began`].
#[derive(Message)]
#[rtype(result = "()")]
pub struct Settled;

/// Asks for all groups with members.
pub struct AskMembers;

impl Message for AskMembers {
    type Result = Vec<GroupView>;
}

/// Asks who the queriers are, by interface.
pub struct AskQueriers;

impl Message for AskQueriers {
    type Result = BTreeMap<IfIndex, Vec<QuerierView>>;
}

/// The actor.
pub struct Membership {
    context: Arc<RouterContext>,
    death_guard: DeathGuard,
    services: BTreeMap<IfIndex, Service>,
    timer: Option<(Instant, SpawnHandle)>,
    settles: Option<SpawnHandle>,
}

impl Membership {
    /// A new life, which serves nothing yet.
    pub fn new(context: Arc<RouterContext>, death_guard: DeathGuard) -> Self {
        Self {
            context,
            death_guard,
            services: BTreeMap::new(),
            timer: None,
            settles: None,
        }
    }

    fn routing(&self) -> Option<Arc<Addr<Routing>>> {
        self.context.routing.load_full()
    }

    /// Sends what is to be sent and tells what changed, for one interface.
    fn settle(&mut self, index: IfIndex) {
        let Some(service) = self.services.get_mut(&index) else {
            return;
        };
        let spoken = service.settle(&self.context);
        if !spoken.changes.is_empty()
            && let Some(routing) = self.context.routing.load_full()
        {
            // Control facts: as many as reports are taken in, at most one for each batch.
            routing.do_send(Wanted {
                index,
                changes: spoken.changes,
            });
        }
    }

    fn settle_all(&mut self, ctx: &mut Context<Self>) {
        let all: Vec<IfIndex> = self.services.keys().copied().collect();
        all.into_iter().for_each(|index| self.settle(index));
        self.arm(ctx);
    }

    /// Wakes us at the next time a machine has something to do.
    fn arm(&mut self, ctx: &mut Context<Self>) {
        let next = self.services.values().filter_map(Service::poll_timeout);
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
                // tokio rounds to milliseconds; a timer that comes too early comes again.
                let handle = ctx.run_later(wait, |actor, ctx| {
                    actor.timer = None;
                    let now = Instant::now();
                    for service in actor.services.values_mut() {
                        service.handle_timeout(now);
                    }
                    actor.settle_all(ctx);
                });
                self.timer = Some((at, handle));
            }
        }
    }

    /// Says so once the hosts of all interfaces have been asked and had the time to answer.
    fn settle_later(&mut self, ctx: &mut Context<Self>) {
        let patience = self.services.values().map(Service::learning_time).max();
        let wait = patience.unwrap_or_default() + Duration::from_secs(1);
        self.settles = Some(ctx.run_later(wait, |actor, _| {
            actor.settles = None;
            if let Some(routing) = actor.routing() {
                routing.do_send(Settled);
            }
        }));
    }
}

impl Actor for Membership {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        if let Some(routing) = self.routing() {
            routing.do_send(Began);
        }
    }
}

impl Handler<Serve> for Membership {
    type Result = ();

    fn handle(&mut self, serve: Serve, ctx: &mut Self::Context) {
        let now = Instant::now();
        let first = self.services.is_empty();
        let gone: Vec<IfIndex> = self
            .services
            .keys()
            .filter(|index| !serve.interfaces.contains_key(index))
            .copied()
            .collect();
        for index in gone {
            if let Some(mut service) = self.services.remove(&index) {
                service.end(&self.context);
            }
        }
        for (index, served) in serve.interfaces {
            match self.services.get_mut(&index) {
                Some(service) => service.follow(now, served, &self.context),
                None => {
                    let service = Service::new(now, index, served, &self.context);
                    self.services.insert(index, service);
                }
            }
            if serve.all
                && let Some(service) = self.services.get_mut(&index)
            {
                service.tell_all();
            }
        }
        self.settle_all(ctx);
        if (first || serve.all) && self.settles.is_none() {
            self.settle_later(ctx);
        }
    }
}

impl Handler<MembershipMessages> for Membership {
    type Result = ();

    fn handle(&mut self, heard: MembershipMessages, ctx: &mut Self::Context) {
        let now = Instant::now();
        let Some(service) = self.services.get_mut(&heard.index) else {
            return;
        };
        for packet in heard.messages.iter() {
            service.hear(now, packet, &self.context);
        }
        self.settle(heard.index);
        self.arm(ctx);
    }
}

impl Handler<MessagesLost> for Membership {
    type Result = ();

    fn handle(&mut self, unheard: MessagesLost, _: &mut Self::Context) {
        if let Some(service) = self.services.get_mut(&unheard.index) {
            service.handle_message_loss(Instant::now());
        }
    }
}

impl Handler<AskMembers> for Membership {
    type Result = MessageResult<AskMembers>;

    fn handle(&mut self, _: AskMembers, _: &mut Self::Context) -> Self::Result {
        let now = Instant::now();
        let all = self.services.values().flat_map(|s| s.members(now));
        MessageResult(all.collect())
    }
}

impl Handler<AskQueriers> for Membership {
    type Result = MessageResult<AskQueriers>;

    fn handle(&mut self, _: AskQueriers, _: &mut Self::Context) -> Self::Result {
        let now = Instant::now();
        let all = self.services.iter().map(|(i, s)| (*i, s.queriers(now)));
        MessageResult(all.collect())
    }
}

panics_on_demand!(Membership);

impl Handler<Stop> for Membership {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        for service in self.services.values_mut() {
            service.end(&self.context);
        }
        self.services.clear();
        self.death_guard.disarm();
        ctx.stop();
    }
}
