//! Thin shells around the pure rooms: they own sockets and clocks, decode a message, call
//! pure code and send what comes out.
//!
//! ```text
//!                    Links                    Publish
//!   links (1) ----------------> routing (1) ----------> supervisor (1)
//!                                                         | starts, watches, stops; swaps
//!                                                         v the snapshot
//!   interface (one an ingress) --Transmit--> forwarder (one an egress and worker thread)
//!
//!   routing --SetJoins--> joins (1): memberships of this host
//!
//!   mnat (none or 1) --Rewritings--> routing: what the MNAT server maps
//!
//!   metrics (1), control (1): ask routing what to show, read the catalogue of counters
//! ```

pub mod context;
pub mod docker;
pub mod forwarder;
pub mod interface;
pub mod joins;
pub mod links;
mod log_limit;
pub mod membership;
pub mod metrics;
pub mod mnat;
pub mod questions;
pub mod rewritings;
pub mod routing;
mod service;
pub mod supervisor;
mod translations;
mod views;

pub use context::{DeathGuard, Health, Role, RouterContext, Snapshot};
