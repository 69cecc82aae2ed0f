//! Starts all other actors, restarts those that die, and publishes the snapshot.
//!
//! | event | effect |
//! |---|---|
//! | a route names an interface that exists | an interface actor on the worker with the fewest interfaces, and a forwarder for each egress on each worker in use |
//! | an interface or forwarder dies | it is restarted after a wait; the others continue |
//! | a child dies | the same; the snapshot stays in force |
//! | a child with [`RestartPolicy::AtMost`] dies that often within a minute | the process ends with an error |

mod commands;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use ahash::{AHashMap, AHashSet};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{error, info, warn};

use super::child::{ChildHandle, ChildSpec, ChildStart, RestartPolicy};
use super::confined_thread;
use super::data::forwarder::Forwarder;
use super::data::interface::Interface;
use super::messages::{CaptureOpened, Publish};
use super::shared::{InterfaceHandle, RouterContext, Snapshot};
use super::supervision::{ActorDied, ActorRole, DeathGuard, Stop, WorkerId, panics_on_demand};
use crate::model::{IfName, InterfaceId, Links};
use crate::sys::confinement::FileAccess;
use crate::table::{Fib, FibDiff, Ingress};

/// First wait before a dead actor is restarted. It doubles with every further death within
/// [`DEATH_WINDOW`].
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// Longest wait before a dead actor is restarted.
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// Time between two looks at a dead actor that still accepts messages.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Number of these looks: ten seconds.
const LOOKS: u32 = 100;
/// How long a death counts.
const DEATH_WINDOW: Duration = Duration::from_secs(60);
/// Interval at which the counters of planes and the use of bandwidth limits are read.
const PLANE_COUNTER_INTERVAL: Duration = Duration::from_secs(1);
/// Limit of the mailbox.
const MAILBOX: usize = 4096;

/// The configuration of the supervisor.
pub struct SupervisorConfig {
    /// Shared by all actors.
    pub context: Arc<RouterContext>,
    /// The actors of which there is one, in the order of their start.
    pub children: Vec<ChildSpec>,
    /// Cancelled when the process cannot continue.
    pub failed: CancellationToken,
    /// Limit of worker threads, which capture and transmit.
    pub workers: usize,
}

#[derive(Clone)]
struct CapturedInterface {
    worker: WorkerId,
    name: IfName,
    address: Addr<Interface>,
    /// Whether the actor only recognises other forwarders.
    watch_only: bool,
    open: bool,
}

#[derive(Default)]
struct DeathHistory {
    /// The deaths within [`DEATH_WINDOW`].
    times: VecDeque<Instant>,
    backoff: Duration,
}

/// The actor.
pub struct Supervisor {
    config: SupervisorConfig,
    children: AHashMap<&'static str, ChildHandle>,
    workers: Vec<Arbiter>,
    interfaces: AHashMap<InterfaceId, CapturedInterface>,
    /// Actors that were told to stop, and may still have a capture.
    stopping: AHashMap<InterfaceId, Addr<Interface>>,
    forwarders: Vec<AHashMap<InterfaceId, Addr<Forwarder>>>,
    /// Names of the egresses at the start of their forwarders.
    egress_names: AHashMap<InterfaceId, IfName>,
    fib: Arc<Fib>,
    names: AHashMap<InterfaceId, IfName>,
    deaths: AHashMap<ActorRole, DeathHistory>,
    published: bool,
    /// Whether all interfaces have been captured at some time.
    has_been_ready: bool,
    /// Dropped with the supervisor: without it nothing is restarted, so the process ends.
    failed: Option<DropGuard>,
}

impl Supervisor {
    /// Returns a supervisor that starts the others when it starts.
    pub fn new(config: SupervisorConfig) -> Self {
        let failed = config.failed.clone().drop_guard();
        let children = config.children.iter().map(|child| child.role);
        let roles = [ActorRole::INTERFACE, ActorRole::FORWARDER];
        for role in roles.into_iter().chain(children) {
            config.context.catalog.expose_actor(role);
        }
        Self {
            config,
            failed: Some(failed),
            children: AHashMap::new(),
            workers: Vec::new(),
            interfaces: AHashMap::new(),
            stopping: AHashMap::new(),
            forwarders: Vec::new(),
            egress_names: AHashMap::new(),
            fib: Arc::default(),
            names: AHashMap::new(),
            deaths: AHashMap::new(),
            published: false,
            has_been_ready: false,
        }
    }

    fn death_guard(ctx: &Context<Self>, role: ActorRole) -> DeathGuard {
        DeathGuard::new(ctx.address().recipient(), role)
    }

    fn start_child(&mut self, role: &'static str, ctx: &Context<Self>) {
        let Some(spec) = self.config.children.iter().find(|spec| spec.role == role) else {
            return;
        };
        let context = self.config.context.clone();
        let start = ChildStart::new(context, ctx.address().recipient(), role);
        match spec.start(&start) {
            Some(handle) => self.children.insert(role, handle),
            None => self.children.remove(role),
        };
    }

    /// Returns the worker with the fewest interfaces; starts a worker while there are cores left.
    fn least_busy_worker(&mut self) -> WorkerId {
        let mut busy = vec![0usize; self.workers.len()];
        for captured in self.interfaces.values() {
            busy[captured.worker] += 1;
        }
        let least = (0..busy.len()).min_by_key(|w| busy[*w]);
        match least {
            Some(worker) if busy[worker] == 0 || busy.len() >= self.config.workers.max(1) => worker,
            _ => {
                self.workers.push(confined_thread::start(FileAccess::None));
                self.forwarders.push(AHashMap::new());
                self.workers.len() - 1
            }
        }
    }

    /// Returns the worker of all ingresses that merges connect, for each such domain: that of the
    /// lowest one that is captured. One thread sends the packets of both paths, so they stay in
    /// order.
    fn workers_of_merges(&self) -> AHashMap<InterfaceId, WorkerId> {
        let mut workers: AHashMap<InterfaceId, (InterfaceId, WorkerId)> = AHashMap::new();
        for (index, captured) in &self.interfaces {
            if let Some(domain) = self.merge_domain(*index) {
                let lowest = workers.entry(domain).or_insert((*index, captured.worker));
                *lowest = (*lowest).min((*index, captured.worker));
            }
        }
        let workers = workers.into_iter();
        workers
            .map(|(domain, (_, worker))| (domain, worker))
            .collect()
    }

    fn merge_domain(&self, index: InterfaceId) -> Option<InterfaceId> {
        self.fib.ingresses.get(&index)?.merge_domain
    }

    /// Returns the worker of the other ingresses of a domain in which packets may return. One
    /// thread reads them in the order of arrival: the original before the copy of another router.
    fn worker_of_domain(&self, index: InterfaceId) -> Option<WorkerId> {
        let domain = |index: &InterfaceId| {
            let selection = self.fib.ingresses.get(index)?.selection.as_ref()?;
            selection.domain.is_two_way.then_some(selection.domain.id)
        };
        let id = domain(&index)?;
        let mut others = self.interfaces.iter();
        others
            .find(|(other, _)| domain(other) == Some(id))
            .map(|(_, captured)| captured.worker)
    }

    fn start_interface(&mut self, index: InterfaceId, name: &IfName, ctx: &mut Context<Self>) {
        let merge_domain = self.merge_domain(index);
        let of_merge = merge_domain.and_then(|id| self.workers_of_merges().get(&id).copied());
        let worker = match of_merge.or_else(|| self.worker_of_domain(index)) {
            Some(worker) => worker,
            None => self.least_busy_worker(),
        };
        let context = self.config.context.clone();
        let death_guard = Self::death_guard(ctx, ActorRole::Interface(index, name.clone()));
        let own_name = name.clone();
        let former = self.stopping.remove(&index);
        let ingress = self.fib.ingresses.get(&index);
        let plane = ingress.and_then(|i| i.plane);
        let watch_only = ingress.is_some_and(|i| i.watch_only);
        let address = Interface::start_in_arbiter(&self.workers[worker].handle(), move |_| {
            Interface::new(
                context,
                death_guard,
                worker,
                (index, &own_name),
                plane,
                watch_only,
                former,
            )
        });
        let captured = CapturedInterface {
            worker,
            name: name.clone(),
            address,
            watch_only,
            open: false,
        };
        self.interfaces.insert(index, captured);
    }

    fn start_forwarder(
        &mut self,
        worker: WorkerId,
        index: InterfaceId,
        name: &IfName,
        ctx: &Context<Self>,
    ) {
        let context = self.config.context.clone();
        let role = ActorRole::Forwarder(worker, index, name.clone());
        let death_guard = Self::death_guard(ctx, role);
        let name = name.clone();
        let mut egresses = self.fib.egresses.iter();
        let plane = egresses.find(|e| e.index == index).and_then(|e| e.plane);
        let address = Forwarder::start_in_arbiter(&self.workers[worker].handle(), move |_| {
            Forwarder::new(context, death_guard, index, &name, plane)
        });
        self.forwarders[worker].insert(index, address);
    }

    /// Starts and stops actors as the forwarding table requires, in an order that loses no
    /// packets: forwarders start before the snapshot that needs them is in force, and actors stop
    /// after the snapshot that does not need them is in force.
    fn reconcile(&mut self, ctx: &mut Context<Self>) {
        let fib = self.fib.clone();
        let names = &self.names;
        let workers = self.workers_of_merges();
        let unused = self.interfaces.extract_if(|index, captured| {
            let ingress = fib.ingresses.get(index);
            let is_same = |i: &Arc<Ingress>| {
                let worker = i.merge_domain.and_then(|domain| workers.get(&domain));
                i.watch_only == captured.watch_only
                    && worker.is_none_or(|worker| *worker == captured.worker)
            };
            !names.contains_key(index) || !ingress.is_none_or(is_same)
        });
        let unused_interfaces: Vec<_> = unused
            .map(|(index, captured)| (index, captured.address))
            .collect();
        self.stopping.retain(|_, former| former.connected());
        self.stopping.extend(unused_interfaces.iter().cloned());
        // A renamed interface keeps its actors, which find its name in the snapshot. Replacing
        // them would lose or duplicate packets.
        for (index, captured) in &mut self.interfaces {
            if let Some(name) = names.get(index) {
                captured.name.clone_from(name);
            }
        }
        let mut new: Vec<(InterfaceId, IfName)> = self
            .names
            .iter()
            .filter(|(index, _)| !self.interfaces.contains_key(index))
            .map(|(index, name)| (*index, name.clone()))
            .collect();
        new.sort();
        // Interface actors begin to capture on their own threads; their workers must be known
        // now, for the forwarders on them.
        for (index, name) in &new {
            self.start_interface(*index, name, ctx);
        }
        let egress_names: AHashMap<InterfaceId, IfName> = fib
            .egresses
            .iter()
            .map(|e| (e.index, e.name.clone()))
            .collect();
        let mut unused_forwarders = Vec::new();
        for forwarders in &mut self.forwarders {
            let unused = forwarders.extract_if(|index, _| !egress_names.contains_key(index));
            unused_forwarders.extend(unused.map(|(_, forwarder)| forwarder));
        }
        self.egress_names = egress_names;
        for worker in 0..self.workers.len() {
            for egress in fib.egresses.iter() {
                if !self.forwarders[worker].contains_key(&egress.index) {
                    self.start_forwarder(worker, egress.index, &egress.name, ctx);
                }
            }
        }
        self.store_snapshot();
        for (_, address) in unused_interfaces {
            address.do_send(Stop);
        }
        for forwarder in unused_forwarders {
            forwarder.do_send(Stop);
        }
        self.update_health();
    }

    fn store_snapshot(&self) {
        let recipients = |forwarders: &AHashMap<InterfaceId, Addr<Forwarder>>| {
            let forwarders = forwarders.iter();
            let recipient = |(index, address): (&InterfaceId, &Addr<Forwarder>)| {
                (*index, address.clone().recipient())
            };
            forwarders.map(recipient).collect()
        };
        let handle = |(index, captured): (&InterfaceId, &CapturedInterface)| InterfaceHandle {
            index: *index,
            flows: captured.address.clone().recipient(),
            drops: captured.address.clone().recipient(),
            flush: captured.address.clone().recipient(),
        };
        let addresses = self.forwarders.iter().flat_map(|all| all.values());
        self.config.context.snapshot.store(Arc::new(Snapshot {
            fib: self.fib.clone(),
            forwarders: Arc::new(self.forwarders.iter().map(recipients).collect()),
            egress_drops: Arc::new(addresses.map(|f| f.clone().recipient()).collect()),
            names: self.names.clone(),
            interfaces: Arc::new(self.interfaces.iter().map(handle).collect()),
        }));
    }

    /// Updates the metrics of the interfaces that the table uses.
    fn update_interface_metrics(&self, links: &Links) {
        let catalog = &self.config.context.catalog;
        let mut used = AHashSet::new();
        for link in links.iter().filter(|link| self.fib.uses(link.index)) {
            catalog.set_link(link);
            used.insert(link.name.as_str());
        }
        catalog.retire_interfaces(&used);
    }

    /// Puts a forwarding table in force that uses the same interfaces as the former one. Everything
    /// else is shared with the former snapshot.
    fn store_fib(&self) {
        let former = self.config.context.snapshot.load();
        self.config.context.snapshot.store(Arc::new(Snapshot {
            fib: self.fib.clone(),
            forwarders: former.forwarders.clone(),
            egress_drops: former.egress_drops.clone(),
            names: former.names.clone(),
            interfaces: former.interfaces.clone(),
        }));
    }

    fn sync_planes(&self, diff: &FibDiff) {
        for plane in self.config.context.planes.all() {
            if let Err(e) = plane.sync(diff) {
                let name = plane.name();
                error!("plane {name}: cannot apply the forwarding table: {e}");
            }
        }
    }

    fn update_health(&mut self) {
        let ready = self.published && self.interfaces.values().all(|c| c.open);
        let is_alone = !self.config.context.gate.has_predecessor();
        if ready && is_alone && !std::mem::replace(&mut self.has_been_ready, true) {
            let planes = self.config.context.planes.all();
            planes.for_each(|plane| plane.end_start());
        }
        self.config.context.health.set_ready(ready);
    }

    /// Returns whether an actor with this role accepts messages.
    fn is_connected(&self, role: &ActorRole) -> bool {
        match role {
            ActorRole::Child(child) => {
                let child = self.children.get(child);
                child.is_some_and(ChildHandle::is_alive)
            }
            ActorRole::Interface(index, _) => {
                let captured = self.interfaces.get(index);
                captured.is_some_and(|captured| captured.address.connected())
            }
            ActorRole::Forwarder(worker, index, _) => {
                let forwarder = self.forwarders[*worker].get(index);
                forwarder.is_some_and(|forwarder| forwarder.connected())
            }
        }
    }

    /// Restarts an actor that died, after `wait`.
    ///
    /// An actor reports its death before it stops to accept messages, and its thread may get no CPU
    /// time in between. A command, or the return of a link, may also have replaced it. So an actor
    /// that is connected is looked at `looks` more times, and then taken for a replacement: a second
    /// capture would duplicate every packet.
    fn restart_later(
        &mut self,
        role: ActorRole,
        wait: Duration,
        looks: u32,
        ctx: &mut Context<Self>,
    ) {
        ctx.run_later(wait, move |supervisor, ctx| {
            if !supervisor.is_connected(&role) {
                supervisor.restart(&role, ctx);
            } else if looks > 0 {
                supervisor.restart_later(role, LOOK_INTERVAL, looks - 1, ctx);
            }
        });
    }

    fn restart(&mut self, role: &ActorRole, ctx: &mut Context<Self>) {
        match role {
            ActorRole::Child(child) => self.start_child(child, ctx),
            ActorRole::Interface(index, _) => {
                // The interface may have been renamed since the actor died.
                let Some(name) = self.names.get(index).cloned() else {
                    return;
                };
                self.interfaces.remove(index);
                self.start_interface(*index, &name, ctx);
                // The new actor may be on another worker, which has no forwarders yet.
                self.reconcile(ctx);
            }
            ActorRole::Forwarder(worker, index, _) => {
                let Some(name) = self.egress_names.get(index).cloned() else {
                    return;
                };
                self.start_forwarder(*worker, *index, &name, ctx);
                self.store_snapshot();
            }
        }
        self.config.context.catalog.count_restart(role.label());
    }

    fn restart_policy(&self, role: &ActorRole) -> RestartPolicy {
        let ActorRole::Child(role) = role else {
            return RestartPolicy::Always;
        };
        let mut children = self.config.children.iter();
        let spec = children.find(|spec| spec.role == *role);
        spec.map_or(RestartPolicy::Always, |spec| spec.restart)
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        ctx.run_interval(PLANE_COUNTER_INTERVAL, |supervisor, _| {
            let context = &supervisor.config.context;
            context.count_planes();
            context.set_bandwidth_metrics();
        });
        let directory = &self.config.context.directory;
        directory
            .register(ctx.address())
            .receives::<Publish>()
            .receives::<CaptureOpened>();
        let roles: Vec<_> = self.config.children.iter().map(|spec| spec.role).collect();
        roles
            .into_iter()
            .for_each(|role| self.start_child(role, ctx));
    }
}

impl Handler<Publish> for Supervisor {
    type Result = ();

    fn handle(&mut self, message: Publish, ctx: &mut Self::Context) {
        // Before paths of the former table are no longer counted.
        self.config.context.count_planes();
        let old = std::mem::replace(&mut self.fib, message.fib);
        let new = self.fib.clone();
        self.sync_planes(&FibDiff { old, new });
        // What they counted under the former names.
        self.config.context.count_planes();
        match message.links {
            Some(links) => {
                let ingresses = links
                    .iter()
                    .filter(|link| self.fib.ingresses.contains_key(&link.index));
                self.names = ingresses
                    .map(|link| (link.index, link.name.clone()))
                    .collect();
                self.published = true;
                self.reconcile(ctx);
                // Now that they are in force.
                self.update_interface_metrics(&links);
            }
            None => self.store_fib(),
        }
    }
}

impl Handler<CaptureOpened> for Supervisor {
    type Result = ();

    fn handle(&mut self, message: CaptureOpened, ctx: &mut Self::Context) {
        let Some(captured) = self.interfaces.get_mut(&message.index) else {
            return;
        };
        match message.result {
            Ok(()) => {
                captured.open = true;
                match captured.watch_only {
                    true => {
                        info!(interface = %captured.name, "{}: watching for other forwarders", captured.name)
                    }
                    false => info!(interface = %captured.name, "{}: capturing", captured.name),
                }
            }
            Err(e) => {
                let remedy = match e.kind() {
                    io::ErrorKind::PermissionDenied => "; CAP_NET_RAW is missing",
                    _ => "",
                };
                warn!(
                    interface = %captured.name,
                    "{}: cannot capture: {e}{remedy}; trying again",
                    captured.name
                );
                let role = ActorRole::Interface(message.index, captured.name.clone());
                self.restart_later(role, MAX_BACKOFF, LOOKS, ctx);
            }
        }
        self.update_health();
    }
}

impl Handler<ActorDied> for Supervisor {
    type Result = ();

    fn handle(&mut self, message: ActorDied, ctx: &mut Self::Context) {
        let role = message.0;
        let now = Instant::now();
        let policy = self.restart_policy(&role);
        let history = self.deaths.entry(role.clone()).or_default();
        let is_old = |at: &Instant| now - *at > DEATH_WINDOW;
        while history.times.front().is_some_and(is_old) {
            history.times.pop_front();
        }
        history.backoff = if history.times.is_empty() {
            FIRST_BACKOFF
        } else {
            (history.backoff * 2).min(MAX_BACKOFF)
        };
        history.times.push_back(now);
        let deaths = history.times.len();
        if matches!(policy, RestartPolicy::AtMost(limit) if deaths >= limit) {
            error!("{role} died {deaths} times within a minute; giving up");
            self.config.failed.cancel();
            return;
        }
        let backoff = history.backoff;
        warn!("{role} died; restarting it in {backoff:?}");
        if let ActorRole::Interface(index, name) = &role
            && let Some(captured) = self.interfaces.get_mut(index)
            && (captured.name == *name || !captured.address.connected())
        {
            captured.open = false;
        }
        self.update_health();
        self.restart_later(role, backoff, LOOKS, ctx);
    }
}

panics_on_demand!(Supervisor);
