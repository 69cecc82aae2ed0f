//! What the supervisor knows of an actor of which there is one.

use std::sync::Arc;

use actix::prelude::*;

use super::shared::RouterContext;
use super::supervision::{DeathGuard, PanicNow, Stop};

/// What the supervisor does when a child dies.
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
    /// Never: it goes on until the process ends.
    WithProcess,
}

/// One row of the registry of children.
pub struct ChildSpec {
    /// The `actor` label of metrics.
    pub role: &'static str,
    /// What happens when it dies.
    pub restart: RestartPolicy,
    /// When it is stopped.
    pub shutdown: ShutdownPhase,
    start: Box<Start>,
}

type Start = dyn Fn(Arc<RouterContext>, DeathGuard) -> Option<ChildHandle>;

impl ChildSpec {
    /// Describes a child. `build` returns `None` if the settings do not need the actor.
    pub fn new<A>(
        role: &'static str,
        restart: RestartPolicy,
        shutdown: ShutdownPhase,
        build: impl Fn(Arc<RouterContext>, DeathGuard) -> Option<A> + 'static,
    ) -> Self
    where
        A: Actor<Context = Context<A>> + Handler<Stop> + Handler<PanicNow>,
    {
        Self {
            role,
            restart,
            shutdown,
            start: Box::new(move |context, death_guard| {
                let address = build(context, death_guard)?.start();
                Some(ChildHandle {
                    stop: address.clone().recipient(),
                    panic: address.recipient(),
                })
            }),
        }
    }

    /// Starts the actor.
    pub fn start(
        &self,
        context: Arc<RouterContext>,
        death_guard: DeathGuard,
    ) -> Option<ChildHandle> {
        (self.start)(context, death_guard)
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
