//! The metrics of the program. Counters are kept outside the actors, so that they survive the death
//! of an actor.

pub mod amt;
pub mod bandwidth;
pub mod catalog;
mod discovery;
mod families;
pub mod http;
pub mod membership;
pub mod merge;
pub mod mnat;
pub mod mnat_server;
mod process;
pub mod streams;

pub use catalog::{Catalog, InterfaceCounters, PathCounters};
pub use mnat_server::MnatServerCatalog;
