//! Holds the memberships of this host that routing requests.
//!
//! Routing sends the interfaces and the memberships ([`SetJoins`], [`UpdateJoins`]). Interface
//! actors send captured messages ([`HostMessages`]), so that queries are answered even if a
//! firewall hides them from the kernel.

mod kernel_joins;
mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;

use super::message_queue::{MessageQueue, TURN};
use crate::actors::deadline_timer::DeadlineTimer;
use crate::actors::messages::{
    HostGroup, HostMessages, HostMessagesLost, JoiningInterface, KeepMemberships, QueryHostGroups,
    QueryJoinsApplied, ReportTunnelJoins, Republish, SetJoins, TunnelJoins, UpdateJoins,
};
use crate::actors::shared::RouterContext;
use crate::actors::supervision::{DeathGuard, Stop, panics_on_demand};
use crate::model::{Group, IfName, InterfaceId, SourceFilter};
use crate::planes::tunnel::TunnelPlane;
use crate::table::Join;
use crate::table::joins::DesiredMemberships;
use service::HostService;

/// Interval at which memberships that the kernel refused are tried again.
const KERNEL_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// After this time, a series of changes in the kernel pauses, so that queries are answered.
const TIME_SLICE: Duration = Duration::from_millis(2);
/// Length of the pause.
const PAUSE: Duration = Duration::from_millis(1);

/// Limit of the mailbox.
const MAILBOX: usize = 256;

/// The actor.
pub struct Joins {
    context: Arc<RouterContext>,
    death_guard: DeathGuard,
    desired: DesiredMemberships,
    services: BTreeMap<InterfaceId, HostService>,
    /// The tunnel interfaces. The AMT actor reports their memberships.
    tunnels: BTreeMap<InterfaceId, IfName>,
    messages: MessageQueue,
    /// Whether the next turn of messages is scheduled.
    is_turn_scheduled: bool,
    timer: DeadlineTimer,
    /// Changes to apply to the kernel: whether it leaves, and the membership. Joins come before
    /// leaves.
    pending_in_kernel: BTreeSet<(bool, Join)>,
    /// Whether the next time slice is scheduled.
    is_scheduled: bool,
    /// Whether routing has sent all memberships once.
    has_received_all: bool,
    /// Whether the memberships end without a leave.
    keeps_memberships: bool,
}

impl Joins {
    /// Returns an actor that holds no memberships.
    pub fn new(context: Arc<RouterContext>, death_guard: DeathGuard) -> Self {
        Self {
            context,
            death_guard,
            desired: BTreeMap::new(),
            services: BTreeMap::new(),
            tunnels: BTreeMap::new(),
            messages: MessageQueue::default(),
            is_turn_scheduled: false,
            timer: DeadlineTimer::default(),
            pending_in_kernel: BTreeSet::new(),
            is_scheduled: false,
            has_received_all: false,
            keeps_memberships: false,
        }
    }

    /// Applies changed memberships: to the host side at once, and to the kernel in time slices.
    fn apply(&mut self, now: Instant, joins: Vec<Join>, ctx: &mut Context<Self>) {
        let mut of_tunnels: BTreeMap<InterfaceId, Vec<_>> = BTreeMap::new();
        for join in &joins {
            let filter = self.desired.get(join).cloned().unwrap_or_default();
            if let Some(service) = self.services.get_mut(&join.interface) {
                service.set_filter(now, join.group, filter);
            } else if self.tunnels.contains_key(&join.interface) {
                let filters = of_tunnels.entry(join.interface).or_default();
                filters.push((join.group, filter));
            }
        }
        for (index, filters) in of_tunnels {
            self.send_to_tunnel(index, false, filters);
        }
        self.flush_all(now, ctx);
        self.apply_to_kernel(joins, ctx);
    }

    /// Sends memberships on a tunnel interface to the AMT actor.
    fn send_to_tunnel(
        &self,
        index: InterfaceId,
        is_complete: bool,
        filters: Vec<(Group, SourceFilter)>,
    ) {
        let Some(name) = self.tunnels.get(&index) else {
            return;
        };
        let count = self.joins_of(index).len();
        let catalog = &self.context.catalog;
        catalog.set_joined_groups(name.as_str(), count as u64);
        self.context.directory.do_send(TunnelJoins {
            index,
            is_complete,
            filters,
        });
    }

    /// Applies memberships to the kernel, in time slices if there are many. Joins come before
    /// leaves, so that a switch always sees a member.
    fn apply_to_kernel(&mut self, joins: impl IntoIterator<Item = Join>, ctx: &mut Context<Self>) {
        for join in joins {
            let leaves = !self.desired.contains_key(&join);
            self.pending_in_kernel.remove(&(!leaves, join));
            self.pending_in_kernel.insert((leaves, join));
        }
        if !self.is_scheduled {
            self.run_time_slice(ctx);
        }
    }

    /// Applies pending changes to the kernel for a while. Each system call takes longer the more
    /// memberships there are.
    fn run_time_slice(&mut self, ctx: &mut Context<Self>) {
        let start = Instant::now();
        let none = SourceFilter::none();
        while let Some((_, join)) = self.pending_in_kernel.pop_first() {
            let filter = self.desired.get(&join).unwrap_or(&none);
            if let Some(service) = self.services.get_mut(&join.interface) {
                service.set_kernel_filter(join.group, filter);
            }
            if start.elapsed() >= TIME_SLICE {
                break;
            }
        }
        self.is_scheduled = !self.pending_in_kernel.is_empty();
        if self.is_scheduled {
            ctx.run_later(PAUSE, |actor, ctx| actor.run_time_slice(ctx));
        }
    }

    /// Sends the reports that are due, on all interfaces.
    fn flush_all(&mut self, now: Instant, ctx: &mut Context<Self>) {
        for service in self.services.values_mut() {
            service.flush(now, &self.context);
        }
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
                    service.handle_message(now, message.bytes, context);
                }
            });
        let now = Instant::now();
        for index in served {
            if let Some(service) = self.services.get_mut(&index) {
                service.flush(now, &self.context);
            }
        }
        self.set_timer(ctx);
        self.is_turn_scheduled = !self.messages.is_empty();
        if self.is_turn_scheduled {
            // Timers expire only when the thread returns to its runtime.
            let next = tokio::task::yield_now().into_actor(self);
            ctx.spawn(next.map(|(), actor, ctx| actor.run_turn(ctx)));
        }
    }

    /// Sets the timer to the next deadline of all interfaces.
    fn set_timer(&mut self, ctx: &mut Context<Self>) {
        let next = self.services.values().filter_map(HostService::poll_timeout);
        self.timer.set(next.min(), ctx, |actor: &mut Self, ctx| {
            actor.timer.clear();
            actor.flush_all(Instant::now(), ctx);
        });
    }

    /// Returns the memberships of one interface.
    fn joins_of(&self, index: InterfaceId) -> Vec<Join> {
        let joins = self.desired.keys();
        joins
            .filter(|join| join.interface == index)
            .copied()
            .collect()
    }
}

impl Actor for Joins {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        let directory = &self.context.directory;
        directory
            .register(ctx.address())
            .receives::<SetJoins>()
            .receives::<UpdateJoins>()
            .receives::<HostMessages>()
            .receives::<HostMessagesLost>()
            .receives::<KeepMemberships>()
            .receives::<QueryHostGroups>()
            .receives::<ReportTunnelJoins>()
            .receives::<QueryJoinsApplied>();
        directory.do_send(Republish);
        ctx.run_interval(KERNEL_RETRY_INTERVAL, |actor, ctx| {
            let failed = actor.services.iter().flat_map(|(index, service)| {
                let interface = *index;
                let groups = service.failed_in_kernel().into_iter();
                groups.map(move |group| Join { interface, group })
            });
            let failed: Vec<Join> = failed.collect();
            if !failed.is_empty() {
                actor.apply_to_kernel(failed, ctx);
            }
        });
    }
}

impl Handler<SetJoins> for Joins {
    type Result = ();

    fn handle(&mut self, message: SetJoins, ctx: &mut Self::Context) {
        let now = Instant::now();
        let SetJoins {
            mut joins,
            interfaces,
        } = message;
        joins.retain(|join, _| interfaces.contains_key(&join.interface));
        // A link that is gone or down has lost its memberships.
        let known = |index: &InterfaceId| interfaces.contains_key(index);
        let gone: Vec<_> = self
            .services
            .keys()
            .filter(|i| !known(i))
            .copied()
            .collect();
        for index in gone {
            if let Some(mut service) = self.services.remove(&index) {
                service.end(now, &self.context);
            }
        }
        self.desired.retain(|join, _| known(&join.interface));
        self.pending_in_kernel
            .retain(|(_, join)| known(&join.interface));
        let is_tunnel = |interface: &JoiningInterface| interface.plane == Some(TunnelPlane::NAME);
        let (tunnels, interfaces): (BTreeMap<_, _>, BTreeMap<_, _>) =
            interfaces.into_iter().partition(|(_, i)| is_tunnel(i));
        let names = |(index, interface): (InterfaceId, JoiningInterface)| (index, interface.name);
        self.tunnels = tunnels.into_iter().map(names).collect();
        let mut kernel_affected = Vec::new();
        for (index, interface) in interfaces {
            match self.services.get_mut(&index) {
                Some(service) => {
                    if service.update(now, interface, &self.context) {
                        kernel_affected.push(index);
                    }
                }
                None => {
                    let service = HostService::new(now, index, interface, &self.context);
                    self.services.insert(index, service);
                }
            }
        }
        self.has_received_all = true;
        let old = std::mem::replace(&mut self.desired, joins);
        let changed = |(join, filter): &(&Join, &SourceFilter)| old.get(*join) != Some(*filter);
        let new = self.desired.iter().filter(changed).map(|(join, _)| *join);
        let gone = old.keys().filter(|j| !self.desired.contains_key(j));
        let changed = new.chain(gone.copied()).collect();
        self.apply(now, changed, ctx);
        for index in kernel_affected {
            self.apply_to_kernel(self.joins_of(index), ctx);
        }
    }
}

impl Handler<UpdateJoins> for Joins {
    type Result = ();

    fn handle(&mut self, UpdateJoins(changes): UpdateJoins, ctx: &mut Self::Context) {
        let known = |join: &Join| {
            let index = &join.interface;
            self.services.contains_key(index) || self.tunnels.contains_key(index)
        };
        let changes = changes.into_iter().filter(|(join, _)| known(join));
        let mut changed = Vec::new();
        for (join, filter) in changes {
            let before = match filter.is_none() {
                true => self.desired.remove(&join),
                false => self.desired.insert(join, filter.clone()),
            };
            if before.unwrap_or_default() != filter {
                changed.push(join);
            }
        }
        self.apply(Instant::now(), changed, ctx);
    }
}

impl Handler<HostMessages> for Joins {
    type Result = ();

    fn handle(&mut self, message: HostMessages, ctx: &mut Self::Context) {
        let now = Instant::now();
        let Some(service) = self.services.get_mut(&message.index) else {
            return;
        };
        let count = message.messages.len() as u64;
        if !self.messages.push(message.index, message.messages) {
            service.handle_overflow(now, count, &self.context);
        }
        if !self.is_turn_scheduled {
            self.run_turn(ctx);
        }
    }
}

impl Handler<HostMessagesLost> for Joins {
    type Result = ();

    fn handle(&mut self, message: HostMessagesLost, ctx: &mut Self::Context) {
        if let Some(service) = self.services.get_mut(&message.index) {
            service.handle_message_loss(Instant::now());
        }
        self.set_timer(ctx);
    }
}

impl Handler<QueryHostGroups> for Joins {
    type Result = Vec<HostGroup>;

    fn handle(&mut self, _: QueryHostGroups, _: &mut Self::Context) -> Self::Result {
        let group = |(join, filter): (&Join, &SourceFilter)| {
            let service = self.services.get(&join.interface);
            let (version, error) = service.map(|s| s.status(join.group)).unzip();
            let tunnel = self.tunnels.get(&join.interface);
            HostGroup {
                index: join.interface,
                interface: service.map(HostService::name).or(tunnel).cloned(),
                group: join.group,
                filter: filter.clone(),
                error: error.flatten(),
                version,
            }
        };
        self.desired.iter().map(group).collect()
    }
}

impl Handler<ReportTunnelJoins> for Joins {
    type Result = ();

    fn handle(&mut self, _: ReportTunnelJoins, _: &mut Self::Context) {
        for index in self.tunnels.keys() {
            let of_tunnel = self.desired.iter().filter(|(j, _)| j.interface == *index);
            let filters = of_tunnel.map(|(join, filter)| (join.group, filter.clone()));
            self.send_to_tunnel(*index, true, filters.collect());
        }
    }
}

impl Handler<KeepMemberships> for Joins {
    type Result = ();

    fn handle(&mut self, _: KeepMemberships, _: &mut Self::Context) {
        self.keeps_memberships = true;
        self.context.membership_keeper.keep();
    }
}

impl Handler<QueryJoinsApplied> for Joins {
    type Result = bool;

    fn handle(&mut self, _: QueryJoinsApplied, _: &mut Self::Context) -> bool {
        self.has_received_all && self.pending_in_kernel.is_empty()
    }
}

panics_on_demand!(Joins);

impl Handler<Stop> for Joins {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        let now = Instant::now();
        if !self.keeps_memberships {
            for service in self.services.values_mut() {
                service.end(now, &self.context);
            }
        }
        self.services.clear();
        self.death_guard.disarm();
        ctx.stop();
    }
}
