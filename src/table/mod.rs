//! What is forwarded where: the rules (RIB), and the snapshot made of them (FIB).

mod draft;
pub mod feeds;
pub mod fib;
pub mod flows;
pub mod joins;
pub mod learned;
pub mod lookup;
pub mod mapped;
pub mod rib;
pub mod sets;
pub mod translated;

pub use feeds::Feeds;
pub use fib::{
    Downstream, DownstreamId, Egress, EgressId, Entry, EntryId, Fib, Ingress, Path, PathId,
    ProxyIngress,
};
pub use joins::Join;
pub use learned::Learned;
pub use rib::{InterfaceOptions, Rib};
