//! Starts every other actor, notices when one dies, builds it anew, and swaps the snapshot.
//!
//! | event | effect |
//! |---|---|
//! | a route names an interface that exists | an interface actor on the least busy worker, a forwarder for each egress on each worker in use |
//! | an interface or forwarder dies | rebuilt with backoff; the others go on |
//! | routing dies | the snapshot goes on forwarding; rebuilt, and hears of the links anew |
//! | routing dies three times within a minute | the process ends with an error |

mod orders;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use ahash::AHashMap;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{error, info, warn};

use super::context::{
    ActorDied, DeathGuard, Role, RouterContext, Snapshot, Stop, WorkerId, panics_on_demand,
};
use super::docker::DockerWatch;
use super::forwarder::{self, Forwarder};
use super::interface::{Interface, Opened};
use super::joins::Joins;
use super::links::{Announce, LinksChanged, LinksWatch};
use super::membership::Membership;
use super::metrics::Metrics;
use super::mnat::Mnat;
use super::routing::{Republish, Routing};
use crate::mnat::Config;
use crate::model::{IfIndex, IfName, Links};
use crate::table::Fib;

pub use orders::{PanicIn, Remap, Shutdown};

/// First wait before a dead actor is rebuilt; doubled with every further death in a row.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// Longest such wait.
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// A life this long ends a row of deaths, and is the window in which routing may die thrice.
const STABLE_AFTER: Duration = Duration::from_secs(60);
/// Deaths of routing within the window that end the process.
const ROUTING_DEATHS: usize = 3;

/// A new snapshot to put in force.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Publish {
    /// The decisions.
    pub fib: Arc<Fib>,
    /// Names of its ingresses; none where only memberships changed.
    pub names: Option<AHashMap<IfIndex, IfName>>,
}

/// What the supervisor is told at start.
pub struct SupervisorConfig {
    /// Shared by all actors.
    pub context: Arc<RouterContext>,
    /// Where HTTP is served; `None` serves none.
    pub http: Option<std::net::TcpListener>,
    /// Cancelled when the process cannot go on.
    pub failed: CancellationToken,
    /// Threads that capture and send, at most.
    pub workers: usize,
    /// Who tells what interfaces there are.
    pub links: LinkSource,
    /// One end of multicast NAT.
    pub mnat: Option<Arc<Config>>,
}

/// Who tells what interfaces there are.
pub enum LinkSource {
    /// The kernel.
    Netlink,
    /// Nobody: these, until routing is sent a [`LinksChanged`].
    Given(Links),
}

#[derive(Clone)]
struct Captured {
    worker: WorkerId,
    name: IfName,
    address: Addr<Interface>,
    open: bool,
}

#[derive(Default)]
struct Deaths {
    last: VecDeque<Instant>,
    backoff: Duration,
}

/// The actor.
pub struct Supervisor {
    config: SupervisorConfig,
    workers: Vec<Arbiter>,
    interfaces: AHashMap<IfIndex, Captured>,
    forwarders: Vec<AHashMap<IfIndex, Addr<Forwarder>>>,
    /// Names the forwarders were started under.
    egress_names: AHashMap<IfIndex, IfName>,
    links: Option<Addr<LinksWatch>>,
    routing: Option<Addr<Routing>>,
    metrics: Option<Addr<Metrics>>,
    docker: Option<Addr<DockerWatch>>,
    fib: Arc<Fib>,
    names: AHashMap<IfIndex, IfName>,
    deaths: AHashMap<Role, Deaths>,
    published: bool,
    /// Dropped with the supervisor: without it nothing is rebuilt, so the process ends.
    failed: Option<DropGuard>,
}

impl Supervisor {
    /// A supervisor that starts the others when it starts.
    pub fn new(config: SupervisorConfig) -> Self {
        let failed = config.failed.clone().drop_guard();
        Self {
            config,
            failed: Some(failed),
            workers: Vec::new(),
            interfaces: AHashMap::new(),
            forwarders: Vec::new(),
            egress_names: AHashMap::new(),
            links: None,
            routing: None,
            metrics: None,
            docker: None,
            fib: Arc::default(),
            names: AHashMap::new(),
            deaths: AHashMap::new(),
            published: false,
        }
    }

    fn death_guard(ctx: &Context<Self>, role: Role) -> DeathGuard {
        DeathGuard::new(ctx.address().recipient(), role)
    }

    fn start_routing(&mut self, ctx: &mut Context<Self>) {
        let routing = Routing::new(
            self.config.context.clone(),
            Self::death_guard(ctx, Role::Routing),
            ctx.address().recipient(),
        )
        .start();
        if let LinkSource::Given(links) = &self.config.links {
            routing.do_send(LinksChanged(links.clone()));
        }
        if let Some(links) = &self.links {
            links.do_send(Announce(routing.clone().recipient()));
        }
        self.routing = Some(routing);
    }

    fn start_links(&mut self, ctx: &mut Context<Self>) {
        if let (LinkSource::Netlink, Some(routing)) = (&self.config.links, &self.routing) {
            let death_guard = Self::death_guard(ctx, Role::Links);
            self.links = Some(LinksWatch::new(death_guard, routing.clone().recipient()).start());
        }
    }

    fn start_joins(&mut self, ctx: &mut Context<Self>) {
        let context = self.config.context.clone();
        let joins = Joins::new(context, Self::death_guard(ctx, Role::Joins)).start();
        let joins = Arc::new(joins);
        self.config.context.joins.store(Some(joins));
        if let Some(routing) = &self.routing {
            routing.do_send(Republish);
        }
    }

    fn start_membership(&mut self, ctx: &mut Context<Self>) {
        let context = self.config.context.clone();
        let death_guard = Self::death_guard(ctx, Role::Membership);
        let membership = Membership::new(context, death_guard).start();
        let membership = Arc::new(membership);
        self.config.context.membership.store(Some(membership));
        if let Some(routing) = &self.routing {
            routing.do_send(Republish);
        }
    }

    fn start_docker(&mut self, ctx: &mut Context<Self>) {
        let context = self.config.context.clone();
        let death_guard = Self::death_guard(ctx, Role::Docker);
        self.docker = Some(DockerWatch::new(context, death_guard).start());
    }

    fn start_metrics(&mut self, ctx: &mut Context<Self>) {
        let listener = self.config.http.as_ref().map(|l| l.try_clone());
        match listener {
            Some(Ok(listener)) => {
                let death_guard = Self::death_guard(ctx, Role::Metrics);
                let context = self.config.context.clone();
                self.metrics = Some(Metrics::new(context, death_guard, listener).start());
            }
            Some(Err(e)) => warn!("http: cannot serve: {e}; forwarding goes on"),
            None => {}
        }
    }

    fn start_mnat(&mut self, ctx: &mut Context<Self>) {
        let before = self.config.context.mnat.load_full();
        if before.is_some_and(|mnat| mnat.address.connected()) {
            // A reload was faster than the wait after a death.
            return;
        }
        if let Some(config) = self.config.mnat.clone() {
            let death_guard = Self::death_guard(ctx, Role::Mnat);
            Mnat::new(self.config.context.clone(), death_guard, config).start();
        }
    }

    /// The worker with the fewest interfaces; a new one while there are cores left.
    fn least_busy_worker(&mut self) -> WorkerId {
        let mut busy = vec![0usize; self.workers.len()];
        for captured in self.interfaces.values() {
            busy[captured.worker] += 1;
        }
        let least = (0..busy.len()).min_by_key(|w| busy[*w]);
        match least {
            Some(worker) if busy[worker] == 0 || busy.len() >= self.config.workers.max(1) => worker,
            _ => {
                self.workers.push(Arbiter::new());
                self.forwarders.push(AHashMap::new());
                self.workers.len() - 1
            }
        }
    }

    fn start_interface(&mut self, index: IfIndex, name: &IfName, ctx: &mut Context<Self>) {
        let worker = self.least_busy_worker();
        let context = self.config.context.clone();
        let death_guard = Self::death_guard(ctx, Role::Interface(index, name.clone()));
        let supervisor = ctx.address().recipient();
        let own_name = name.clone();
        let address = Interface::start_in_arbiter(&self.workers[worker].handle(), move |_| {
            Interface::new(context, death_guard, supervisor, worker, index, &own_name)
        });
        let captured = Captured {
            worker,
            name: name.clone(),
            address,
            open: false,
        };
        self.interfaces.insert(index, captured);
    }

    fn start_forwarder(
        &mut self,
        worker: WorkerId,
        index: IfIndex,
        name: &IfName,
        ctx: &Context<Self>,
    ) {
        let context = self.config.context.clone();
        let death_guard = Self::death_guard(ctx, forwarder::role(worker, index, name));
        let name = name.clone();
        let address = Forwarder::start_in_arbiter(&self.workers[worker].handle(), move |_| {
            Forwarder::new(context, death_guard, index, &name)
        });
        self.forwarders[worker].insert(index, address);
    }

    /// Makes the actors fit the snapshot, in the order that loses nothing: forwarders before
    /// the snapshot that needs them, the snapshot before what it no longer needs is stopped.
    fn reconcile(&mut self, ctx: &mut Context<Self>) {
        let fib = self.fib.clone();
        let names = &self.names;
        let leaving = self
            .interfaces
            .extract_if(|index, _| !names.contains_key(index));
        let stopping: Vec<Captured> = leaving.map(|(_, captured)| captured).collect();
        // A renamed interface keeps its actors, which see its name in the snapshot: to replace
        // them would lose or double what arrives meanwhile.
        for (index, captured) in &mut self.interfaces {
            if let Some(name) = names.get(index) {
                captured.name.clone_from(name);
            }
        }
        let mut arriving: Vec<(IfIndex, IfName)> = self
            .names
            .iter()
            .filter(|(index, _)| !self.interfaces.contains_key(index))
            .map(|(index, name)| (*index, name.clone()))
            .collect();
        arriving.sort();
        // Interfaces start after the snapshot is in force, but their workers must be known
        // before, for the forwarders on them.
        for (index, name) in &arriving {
            self.start_interface(*index, name, ctx);
        }
        let egress_names: AHashMap<IfIndex, IfName> = fib
            .egresses
            .iter()
            .map(|e| (e.index, e.name.clone()))
            .collect();
        let mut leaving = Vec::new();
        for forwarders in &mut self.forwarders {
            let gone = forwarders.extract_if(|index, _| !egress_names.contains_key(index));
            leaving.extend(gone.map(|(_, forwarder)| forwarder));
        }
        self.egress_names = egress_names;
        for worker in 0..self.workers.len() {
            for egress in fib.egresses.iter() {
                if !self.forwarders[worker].contains_key(&egress.index) {
                    self.start_forwarder(worker, egress.index, &egress.name, ctx);
                }
            }
        }
        self.put_in_force();
        for captured in stopping {
            captured.address.do_send(Stop);
        }
        for forwarder in leaving {
            forwarder.do_send(Stop);
        }
        self.look_ready();
    }

    fn put_in_force(&self) {
        self.config.context.snapshot.store(Arc::new(Snapshot {
            fib: self.fib.clone(),
            forwarders: self.forwarders.clone(),
            names: self.names.clone(),
            interfaces: self
                .interfaces
                .values()
                .map(|c| c.address.clone())
                .collect(),
        }));
    }

    fn look_ready(&self) {
        let ready = self.published && self.interfaces.values().all(|c| c.open);
        self.config.context.health.set_ready(ready);
    }

    fn rebuild(&mut self, role: &Role, ctx: &mut Context<Self>) {
        match role {
            Role::Routing => self.start_routing(ctx),
            Role::Links => self.start_links(ctx),
            Role::Metrics => self.start_metrics(ctx),
            Role::Mnat => self.start_mnat(ctx),
            Role::Docker => self.start_docker(ctx),
            Role::Joins => self.start_joins(ctx),
            Role::Membership => self.start_membership(ctx),
            Role::Interface(index, _) => {
                // By its name of now: it may have been renamed since it died.
                let Some(name) = self.names.get(index).cloned() else {
                    return;
                };
                if let Some(captured) = self.interfaces.get(index)
                    && captured.address.connected()
                {
                    // The link came back meanwhile and is captured already; a second capture
                    // would double every packet.
                    return;
                }
                self.interfaces.remove(index);
                self.start_interface(*index, &name, ctx);
                // It may be on another worker now, with no forwarders yet.
                self.reconcile(ctx);
            }
            Role::Forwarder(worker, index, _) => {
                let Some(name) = self.egress_names.get(index).cloned() else {
                    return;
                };
                let alive = self.forwarders[*worker].get(index);
                if alive.is_some_and(|forwarder| forwarder.connected()) {
                    return;
                }
                self.start_forwarder(*worker, *index, &name, ctx);
                self.put_in_force();
            }
        }
        self.config.context.catalog.count_restart(role.label());
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(4096);
        self.start_joins(ctx);
        self.start_membership(ctx);
        self.start_routing(ctx);
        self.start_links(ctx);
        self.start_metrics(ctx);
        self.start_mnat(ctx);
        self.start_docker(ctx);
    }
}

impl Handler<Publish> for Supervisor {
    type Result = ();

    fn handle(&mut self, message: Publish, ctx: &mut Self::Context) {
        self.fib = message.fib;
        match message.names {
            Some(names) => {
                self.names = names;
                self.published = true;
                self.reconcile(ctx);
            }
            None => self.put_in_force(),
        }
    }
}

impl Handler<Opened> for Supervisor {
    type Result = ();

    fn handle(&mut self, message: Opened, ctx: &mut Self::Context) {
        let Some(captured) = self.interfaces.get_mut(&message.index) else {
            return;
        };
        match message.result {
            Ok(()) => {
                captured.open = true;
                info!("{}: capturing", captured.name);
            }
            Err(e) => {
                let mend = match e.kind() {
                    io::ErrorKind::PermissionDenied => "; CAP_NET_RAW is missing",
                    _ => "",
                };
                warn!("{}: cannot capture: {e}{mend}; trying again", captured.name);
                let role = Role::Interface(message.index, captured.name.clone());
                ctx.run_later(LONGEST_BACKOFF, move |supervisor, ctx| {
                    supervisor.rebuild(&role, ctx);
                });
            }
        }
        self.look_ready();
    }
}

impl Handler<ActorDied> for Supervisor {
    type Result = ();

    fn handle(&mut self, message: ActorDied, ctx: &mut Self::Context) {
        let role = message.0;
        let now = Instant::now();
        let deaths = self.deaths.entry(role.clone()).or_default();
        while deaths
            .last
            .front()
            .is_some_and(|at| now - *at > STABLE_AFTER)
        {
            deaths.last.pop_front();
        }
        deaths.backoff = if deaths.last.is_empty() {
            FIRST_BACKOFF
        } else {
            (deaths.backoff * 2).min(LONGEST_BACKOFF)
        };
        deaths.last.push_back(now);
        if role == Role::Routing && deaths.last.len() >= ROUTING_DEATHS {
            error!("routing died {ROUTING_DEATHS} times within a minute; giving up");
            self.config.failed.cancel();
            return;
        }
        let backoff = deaths.backoff;
        warn!("{role} died; rebuilding it in {backoff:?}");
        if let Role::Interface(index, name) = &role
            && let Some(captured) = self.interfaces.get_mut(index)
            && (captured.name == *name || !captured.address.connected())
        {
            captured.open = false;
        }
        self.look_ready();
        ctx.run_later(backoff, move |supervisor, ctx| {
            supervisor.rebuild(&role, ctx)
        });
    }
}

panics_on_demand!(Supervisor);
