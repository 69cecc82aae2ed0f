//! What all actors share: the snapshot, the plane, the catalogue, and how a death is noticed.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use actix::prelude::*;
use ahash::AHashMap;
use arc_swap::{ArcSwap, ArcSwapOption};

use super::forwarder::Forwarder;
use super::routing::Routing;
use crate::metrics::Catalog;
use crate::model::{IfIndex, IfName};
use crate::planes::Plane;
use crate::table::Fib;

/// Position of a worker thread in the keeper's pool.
pub type WorkerId = usize;

/// What interface actors forward by; replaced whole.
#[derive(Default)]
pub struct Snapshot {
    /// The decisions.
    pub fib: Arc<Fib>,
    /// The forwarders of each worker, by egress.
    pub forwarders: Vec<AHashMap<IfIndex, Addr<Forwarder>>>,
}

/// Shared by every actor.
pub struct World {
    /// All counters.
    pub catalog: Catalog,
    /// How packets move.
    pub plane: Box<dyn Plane>,
    /// The snapshot in force.
    pub snapshot: ArcSwap<Snapshot>,
    /// The routing actor that lives now.
    pub routing: ArcSwapOption<Addr<Routing>>,
    /// What the probes answer.
    pub health: Health,
}

impl World {
    /// A world without routes.
    pub fn new(catalog: Catalog, plane: Box<dyn Plane>) -> Arc<Self> {
        Arc::new(Self {
            catalog,
            plane,
            snapshot: ArcSwap::from_pointee(Snapshot::default()),
            routing: ArcSwapOption::empty(),
            health: Health::default(),
        })
    }
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

/// Who an actor is, to the keeper.
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
    /// Serves HTTP.
    Metrics,
}

impl Role {
    /// The `actor` label of metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Interface(..) => "interface",
            Self::Forwarder(..) => "forwarder",
            Self::Routing => "routing",
            Self::Links => "links",
            Self::Metrics => "metrics",
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
pub struct Died(pub Role);

/// Held by an actor; dropping it without [`Vital::disarm`] is a death, and the keeper hears
/// of it. actix drops an actor that panics and tells nobody.
///
/// Disarmed where an actor is told to stop, never in `Actor::stopped`: actix calls that on an
/// actor that panicked or terminated too.
pub struct Vital {
    keeper: Recipient<Died>,
    role: Role,
    armed: bool,
}

impl Vital {
    /// Arms it.
    pub fn new(keeper: Recipient<Died>, role: Role) -> Self {
        Self {
            keeper,
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

impl Drop for Vital {
    fn drop(&mut self) {
        if self.armed {
            // A control fact from a bounded producer: at most one for each life.
            self.keeper.do_send(Died(self.role.clone()));
        }
    }
}

/// Ask an actor to end after what is in its mailbox.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Stop;
