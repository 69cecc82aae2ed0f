//! What is forwarded where: the rules (RIB), and the snapshot made of them (FIB).

mod draft;
pub mod fib;
mod fib_diff;
mod flow;
mod flow_store;
pub mod flows;
pub mod ids;
pub mod joins;
pub mod lookup;
pub mod membership_database;
pub mod mnat_routes;
pub mod oif_sets;
pub mod oif_table;
pub mod rib;
pub mod rib_change;
pub mod translated_joins;
pub mod upstream_selector;

pub use fib::{DownstreamInterface, Egress, Entry, Fib, Ingress, Path, ProxyIngress};
pub use fib_diff::FibDiff;
pub use ids::{DownstreamId, EgressId, EntryId, PathId};
pub use joins::Join;
pub use membership_database::MembershipDatabase;
pub use oif_table::OifTable;
pub use rib::{InterfaceOptions, Rib};
pub use upstream_selector::UpstreamSelector;
