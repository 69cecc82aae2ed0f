//! What is counted, under which name. Counters live here, outside the actors, so that an
//! actor that dies takes none with it.

pub mod catalog;
mod families;
pub mod membership;
pub mod mnat;

pub use catalog::{Catalog, InterfaceCounters, PathCounters};
