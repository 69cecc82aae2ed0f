//! What is forwarded where: the rules (RIB), and the snapshot made of them (FIB).

pub mod fib;
pub mod lookup;
pub mod rib;

pub use fib::{Egress, EgressId, Entry, Fib, Ingress, Path, PathId};
pub use rib::{InterfaceOptions, Rib};
