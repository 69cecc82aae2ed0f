//! Actors of which there is one: how the supervisor builds, restarts and stops them.

use std::cell::OnceCell;
use std::sync::Arc;

use actix::prelude::*;

use super::confined_thread;
use super::shared::RouterContext;
use super::supervision::{ActorDied, ActorRole, DeathGuard, PanicNow, Stop};
use crate::sys::confinement::FileAccess;

/// The reaction of the supervisor to the death of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Restarts it, after a wait that doubles with every death within a minute.
    Always,
    /// Restarts it, but ends the process after this number of deaths within a minute.
    AtMost(usize),
}

/// When a child is stopped at the end of the process. Within a phase, children stop in the
/// reverse order of their start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownPhase {
    /// Before the interface and forwarder actors.
    BeforeForwarding,
    /// After the interface and forwarder actors have sent every packet.
    AfterForwarding,
    /// Never: it runs until the process ends.
    WithProcess,
}

/// The arguments for building a child.
pub struct ChildStart {
    context: Arc<RouterContext>,
    supervisor: Recipient<ActorDied>,
    role: &'static str,
}

impl ChildStart {
    /// Returns the arguments for building a child with this role.
    pub fn new(
        context: Arc<RouterContext>,
        supervisor: Recipient<ActorDied>,
        role: &'static str,
    ) -> Self {
        Self {
            context,
            supervisor,
            role,
        }
    }

    /// Returns the shared context.
    pub fn context(&self) -> Arc<RouterContext> {
        self.context.clone()
    }

    /// Returns an armed guard. It must be called only when the actor is built, because dropping
    /// the guard reports a death.
    pub fn death_guard(&self) -> DeathGuard {
        let role = ActorRole::Child(self.role);
        DeathGuard::new(self.supervisor.clone(), role)
    }
}

/// One row of the registry of children.
pub struct ChildSpec {
    /// The `actor` label of metrics.
    pub role: &'static str,
    /// The reaction to its death.
    pub restart: RestartPolicy,
    /// When it is stopped.
    pub shutdown: ShutdownPhase,
    start: Box<Start>,
}

type Start = dyn Fn(&ChildStart) -> Option<ChildHandle>;

impl ChildSpec {
    /// Describes a child on the main thread, which it shares with the supervisor, the control socket
    /// and the handling of signals. `build` returns `None` if the settings do not need the actor.
    pub fn new<A>(
        role: &'static str,
        restart: RestartPolicy,
        shutdown: ShutdownPhase,
        build: impl Fn(&ChildStart) -> Option<A> + 'static,
    ) -> Self
    where
        A: Actor<Context = Context<A>> + Handler<Stop> + Handler<PanicNow>,
    {
        let start = move |start: &ChildStart| Some(handle(build(start)?.start()));
        Self {
            role,
            restart,
            shutdown,
            start: Box::new(start),
        }
    }

    /// Describes a child on a thread of its own: one whose work strangers can increase. Otherwise
    /// as [`ChildSpec::new`]. The thread can open only these files, and start no program.
    pub fn on_own_thread<A>(
        role: &'static str,
        files: FileAccess,
        restart: RestartPolicy,
        shutdown: ShutdownPhase,
        build: impl Fn(&ChildStart) -> Option<A> + 'static,
    ) -> Self
    where
        A: Actor<Context = Context<A>> + Handler<Stop> + Handler<PanicNow> + Send,
    {
        let thread = OnceCell::new();
        let start = move |start: &ChildStart| {
            let actor = build(start)?;
            let thread = thread
                .get_or_init(|| confined_thread::start(files))
                .handle();
            Some(handle(A::start_in_arbiter(&thread, move |_| actor)))
        };
        Self {
            role,
            restart,
            shutdown,
            start: Box::new(start),
        }
    }

    /// Starts the actor. Returns `None` if the settings do not need it.
    pub fn start(&self, start: &ChildStart) -> Option<ChildHandle> {
        (self.start)(start)
    }
}

fn handle<A>(address: Addr<A>) -> ChildHandle
where
    A: Actor<Context = Context<A>> + Handler<Stop> + Handler<PanicNow>,
{
    ChildHandle {
        stop: address.clone().recipient(),
        panic: address.recipient(),
    }
}

/// A running child.
#[derive(Clone)]
pub struct ChildHandle {
    /// Stops it.
    pub stop: Recipient<Stop>,
    /// Makes it panic.
    pub panic: Recipient<PanicNow>,
}

impl ChildHandle {
    /// Returns whether the actor is alive.
    pub fn is_alive(&self) -> bool {
        self.stop.connected()
    }
}
