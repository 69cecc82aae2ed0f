//! Actors: thin shells around the pure modules. They own sockets and clocks, pass messages to
//! pure code and send what it returns.
//!
//! [`messages`] holds every message and a diagram of who sends which. The `children` module of
//! `app` registers the actors of which there is one.
//!
//! | module | actors |
//! |---|---|
//! | [`supervisor`] | starts, restarts and stops all others; publishes the snapshot |
//! | [`data`] | `interface` captures and switches, `forwarder` transmits; on worker threads |
//! | [`control`] | `links`, `routing`, `joins`, `membership` |
//! | [`integrations`] | `amt`, `discovery`, `docker`, `mnat`, `streams` |
//! | `frontend::http` | the HTTP server (label `metrics`) |
//!
//! Actors know [`messages`], [`shared`] and each other's messages only: [`directory`] finds the
//! receiver of a message. So no file of an actor imports another actor, except for the supervisor,
//! which builds interface and forwarder actors.

pub mod child;
pub(crate) mod confined_thread;
pub mod control;
pub mod data;
mod deadline_timer;
pub mod directory;
pub mod forwarding_gate;
pub mod inherited_relays;
pub mod integrations;
pub mod live_trace;
pub mod log_limit;
pub mod messages;
mod mnat_route;
pub mod monitoring;
pub mod shared;
pub mod supervision;
pub mod supervisor;
pub mod ttl_warnings;

pub use shared::{Health, RouterContext, Snapshot};
