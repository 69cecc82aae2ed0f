//! What is forwarded where: the rules (RIB), and the snapshot made of them (FIB).

pub mod fib;
pub mod flows;
pub mod joins;
pub mod lookup;
pub mod rib;

pub use fib::{Egress, EgressId, Entry, EntryId, Fib, Ingress, Path, PathId};
pub use joins::Join;
pub use rib::{InterfaceOptions, Rib};
