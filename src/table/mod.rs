//! What is forwarded where: the rules (RIB), and the snapshot made of them (FIB).

mod draft;
pub mod fib;
mod fib_diff;
mod flow;
mod flow_store;
pub mod flows;
pub mod joins;
pub mod lookup;
pub mod membership_database;
pub mod mnat_routes;
pub mod rib;
pub mod rib_change;
pub mod sets;
pub mod translated_joins;
pub mod upstream_selector;

pub use fib::{
    DownstreamId, DownstreamInterface, Egress, EgressId, Entry, EntryId, Fib, Ingress, Path,
    PathId, ProxyIngress,
};
pub use fib_diff::FibDiff;
pub use joins::Join;
pub use membership_database::MembershipDatabase;
pub use rib::{InterfaceOptions, Rib};
pub use upstream_selector::UpstreamSelector;
