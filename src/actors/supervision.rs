//! How the supervisor notices that an actor died, and how it stops one.

use std::fmt;

use actix::prelude::*;

use crate::model::{IfName, InterfaceId};

/// Position of a worker thread in the supervisor's list.
pub type WorkerId = usize;

/// Identity of an actor to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ActorRole {
    /// Captures packets on an interface.
    Interface(InterfaceId, IfName),
    /// Sends packets on an interface, for one worker thread.
    Forwarder(WorkerId, InterfaceId, IfName),
    /// An actor of which there is one at most.
    Child(&'static str),
}

impl ActorRole {
    /// Label of interface actors.
    pub const INTERFACE: &str = "interface";
    /// Label of forwarder actors.
    pub const FORWARDER: &str = "forwarder";

    /// Returns the `actor` label of metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Interface(..) => Self::INTERFACE,
            Self::Forwarder(..) => Self::FORWARDER,
            Self::Child(role) => role,
        }
    }
}

impl fmt::Display for ActorRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface(index, name) => write!(f, "interface {name} (index {index})"),
            Self::Forwarder(worker, index, name) => {
                write!(f, "forwarder {name} (index {index}, worker {worker})")
            }
            Self::Child(role) => f.write_str(role),
        }
    }
}

/// An actor ended without having received [`Stop`].
#[derive(Message)]
#[rtype(result = "()")]
pub struct ActorDied(pub ActorRole);

/// Reports the death of the actor that holds it.
///
/// actix drops an actor that panics and notifies no other actor. Dropping a guard that is not
/// disarmed sends [`ActorDied`]. An actor disarms its guard when it handles [`Stop`], never in
/// `Actor::stopped`: actix also calls that after a panic.
pub struct DeathGuard {
    supervisor: Recipient<ActorDied>,
    role: ActorRole,
    armed: bool,
}

impl DeathGuard {
    /// Returns an armed guard.
    pub fn new(supervisor: Recipient<ActorDied>, role: ActorRole) -> Self {
        Self {
            supervisor,
            role,
            armed: true,
        }
    }

    /// Returns the identity of the actor.
    pub fn role(&self) -> &ActorRole {
        &self.role
    }

    /// Disarms the guard, so that the end of the actor is not reported as its death.
    pub fn disarm(&mut self) {
        self.armed = false;
    }
}

impl Drop for DeathGuard {
    fn drop(&mut self) {
        if self.armed {
            // `do_send` ignores the mailbox limit. Each actor sends at most one message.
            self.supervisor.do_send(ActorDied(self.role.clone()));
        }
    }
}

/// Makes an actor panic, so that tests can measure what its death costs.
#[derive(Message)]
#[rtype(result = "()")]
pub struct PanicNow;

/// Implements the handler of [`PanicNow`].
macro_rules! panics_on_demand {
    ($actor:ty) => {
        impl actix::prelude::Handler<$crate::actors::supervision::PanicNow> for $actor {
            type Result = ();

            fn handle(&mut self, _: $crate::actors::supervision::PanicNow, _: &mut Self::Context) {
                std::panic::panic_any("panic requested by a test");
            }
        }
    };
}
pub(crate) use panics_on_demand;

/// Stops an actor after it has handled what is in its mailbox.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Stop;
