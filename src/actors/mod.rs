//! Thin shells around the pure rooms: they own sockets and clocks, decode a message, call
//! pure code and send what comes out.
//!
//! ```text
//!                    Links                    Publish
//!   links (1) ----------------> routing (1) ----------> keeper (1)
//!                                                         | starts, watches, stops; swaps
//!                                                         v the snapshot
//!   interface (one an ingress) --Transmit--> forwarder (one an egress and worker thread)
//!
//!   routing --Want--> joins (1): memberships of this host
//!
//!   metrics (1), control (1): ask routing what to show, read the catalogue of counters
//! ```

pub mod forwarder;
pub mod interface;
pub mod joins;
pub mod keeper;
pub mod links;
pub mod metrics;
pub mod questions;
pub mod routing;
mod views;
pub mod world;

pub use world::{Health, Role, Snapshot, Vital, World};
