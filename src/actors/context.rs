//! What all actors share: the snapshot, the plane, the catalogue, and how a death is noticed.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actix::prelude::*;
use ahash::AHashMap;
use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{mpsc, oneshot, watch};

use super::forwarder::Forwarder;
use super::interface::Interface;
use super::joins::Joins;
use super::membership::Membership;
use super::mnat::MnatHandle;
use super::routing::Routing;
use crate::forward::LoopGuard;
use crate::metrics::Catalog;
use crate::model::{Aliases, IfIndex, IfName};
use crate::planes::Plane;
use crate::table::flows::FlowBudget;
use crate::table::{Fib, MembershipDatabase, Rib, UpstreamSelector};

/// Position of a worker thread in the supervisor's pool.
pub type WorkerId = usize;

/// What interface actors forward by; replaced whole.
#[derive(Default)]
pub struct Snapshot {
    /// The decisions.
    pub fib: Arc<Fib>,
    /// The forwarders of each worker, by egress.
    pub forwarders: Vec<AHashMap<IfIndex, Addr<Forwarder>>>,
    /// Names of the ingresses.
    pub names: AHashMap<IfIndex, IfName>,
    /// The interface actors.
    pub interfaces: Vec<Addr<Interface>>,
}

/// Shared by every actor.
pub struct RouterContext {
    /// All counters.
    pub catalog: Catalog,
    /// How packets move.
    pub plane: Box<dyn Plane>,
    /// The snapshot in force.
    pub snapshot: ArcSwap<Snapshot>,
    /// The rules in force: what a rebuilt routing actor goes on with.
    pub rib: ArcSwap<Rib>,
    /// How many flows may be remembered, and are.
    pub flows: Arc<FlowBudget>,
    flow_idle_ms: AtomicU64,
    /// What hosts of proxies want, as routing knows it; it outlives routing, so that streams do.
    pub learned: Mutex<MembershipDatabase>,
    /// The window of packets just forwarded.
    pub loop_guard: Arc<LoopGuard>,
    /// Which of several upstreams feeds a stream.
    pub feeds: Arc<UpstreamSelector>,
    /// The routing actor that lives now.
    pub routing: ArcSwapOption<Addr<Routing>>,
    /// The joins actor that lives now.
    pub joins: ArcSwapOption<Addr<Joins>>,
    /// The membership actor that lives now.
    pub membership: ArcSwapOption<Addr<Membership>>,
    /// The MNAT actor that lives now.
    pub mnat: ArcSwapOption<MnatHandle>,
    /// The socket of the container engine.
    pub engine_socket: PathBuf,
    /// Whether any rule holds a name that a container engine gives.
    pub engine_wanted: watch::Sender<bool>,
    /// The names the engine gives, as last heard.
    pub aliases: ArcSwap<Aliases>,
    /// What clients ask of the process as a whole.
    pub requests: mpsc::Sender<ProcessRequest>,
    /// What the probes answer.
    pub health: Health,
    started: Instant,
}

impl RouterContext {
    /// A context with these rules and room for so many flows. The receiver hears what clients
    /// ask of the process. `engine` is the socket of the container engine.
    pub fn new(
        catalog: Catalog,
        plane: Box<dyn Plane>,
        rib: Rib,
        flows: usize,
        engine: PathBuf,
    ) -> (Arc<Self>, mpsc::Receiver<ProcessRequest>) {
        let (requests, receiver) = mpsc::channel(REQUESTS_WAITING);
        catalog.flow_limit.set(flows as i64);
        Role::LABELS
            .iter()
            .for_each(|role| catalog.expose_actor(role));
        let context = Arc::new(Self {
            catalog,
            plane,
            snapshot: ArcSwap::from_pointee(Snapshot::default()),
            rib: ArcSwap::from_pointee(rib),
            flows: FlowBudget::new(flows),
            flow_idle_ms: AtomicU64::new(60_000),
            learned: Mutex::default(),
            loop_guard: Arc::default(),
            feeds: Arc::default(),
            routing: ArcSwapOption::empty(),
            joins: ArcSwapOption::empty(),
            membership: ArcSwapOption::empty(),
            mnat: ArcSwapOption::empty(),
            engine_socket: engine,
            engine_wanted: watch::Sender::new(false),
            aliases: ArcSwap::default(),
            requests,
            health: Health::default(),
            started: Instant::now(),
        });
        (context, receiver)
    }
}

impl RouterContext {
    /// Milliseconds since the start: the clock of flows and of the loop window.
    pub fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Changes how many flows may be remembered, and for how long after their last packet.
    pub fn set_flow_limits(&self, flows: usize, idle: Duration) {
        self.flows.set_limit(flows);
        self.catalog.flow_limit.set(flows as i64);
        let idle = idle.as_millis() as u64;
        self.flow_idle_ms.store(idle, Ordering::Relaxed);
    }

    /// How long a flow may be without a packet, in milliseconds.
    pub fn flow_idle_ms(&self) -> u64 {
        self.flow_idle_ms.load(Ordering::Relaxed)
    }
}

/// Requests of clients that may wait.
const REQUESTS_WAITING: usize = 16;

/// What a client asks of the process as a whole.
pub enum ProcessRequest {
    /// Read the settings again. Answered with what came of it.
    Reload(oneshot::Sender<Result<String, String>>),
    /// Have an actor panic, where the process was started for such tests.
    Panic(String, oneshot::Sender<Result<String, String>>),
    /// End.
    Stop,
}

/// What /readyz answers.
#[derive(Default)]
pub struct Health {
    ready: AtomicBool,
}

impl Health {
    /// Every interface of every route that exists now is being captured.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    pub(super) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }
}

/// Who an actor is, to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Role {
    /// Captures on an interface.
    Interface(IfIndex, IfName),
    /// Sends on an interface, for one worker.
    Forwarder(WorkerId, IfIndex, IfName),
    /// Owns the table.
    Routing,
    /// Follows the kernel's interfaces.
    Links,
    /// Holds the memberships of this host.
    Joins,
    /// Queries and hears the hosts of proxies.
    Membership,
    /// Follows the container engine.
    Docker,
    /// Serves HTTP.
    Metrics,
    /// Asks the MNAT server.
    Mnat,
}

impl Role {
    /// The labels of all.
    pub const LABELS: [&str; 9] = [
        "interface",
        "forwarder",
        "routing",
        "links",
        "joins",
        "membership",
        "docker",
        "metrics",
        "mnat",
    ];

    /// The `actor` label of metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Interface(..) => "interface",
            Self::Forwarder(..) => "forwarder",
            Self::Routing => "routing",
            Self::Links => "links",
            Self::Joins => "joins",
            Self::Membership => "membership",
            Self::Docker => "docker",
            Self::Metrics => "metrics",
            Self::Mnat => "mnat",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface(index, name) => write!(f, "interface {name} (index {index})"),
            Self::Forwarder(worker, index, name) => {
                write!(f, "forwarder {name} (index {index}, worker {worker})")
            }
            other => f.write_str(other.label()),
        }
    }
}

/// An actor is gone that nobody stopped.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ActorDied(pub Role);

/// Held by an actor; dropping it without [`DeathGuard::disarm`] is a death, and the supervisor hears
/// of it. actix drops an actor that panics and tells nobody.
///
/// Disarmed where an actor is told to stop, never in `Actor::stopped`: actix calls that on an
/// actor that panicked or terminated too.
pub struct DeathGuard {
    supervisor: Recipient<ActorDied>,
    role: Role,
    armed: bool,
}

impl DeathGuard {
    /// Arms it.
    pub fn new(supervisor: Recipient<ActorDied>, role: Role) -> Self {
        Self {
            supervisor,
            role,
            armed: true,
        }
    }

    /// Who this is.
    pub fn role(&self) -> &Role {
        &self.role
    }

    /// The actor ends as it should.
    pub fn disarm(&mut self) {
        self.armed = false;
    }
}

impl Drop for DeathGuard {
    fn drop(&mut self) {
        if self.armed {
            // A control fact from a bounded producer: at most one for each life.
            self.supervisor.do_send(ActorDied(self.role.clone()));
        }
    }
}

/// Has an actor panic: how tests learn what its death costs.
#[derive(Message)]
#[rtype(result = "()")]
pub struct PanicNow;

/// What every actor does when asked to panic.
macro_rules! panics_on_demand {
    ($actor:ty) => {
        impl actix::prelude::Handler<$crate::actors::context::PanicNow> for $actor {
            type Result = ();

            fn handle(&mut self, _: $crate::actors::context::PanicNow, _: &mut Self::Context) {
                std::panic::panic_any("asked to panic, by a test");
            }
        }
    };
}
pub(super) use panics_on_demand;

/// Ask an actor to end after what is in its mailbox.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Stop;
