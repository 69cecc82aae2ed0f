//! Routing tables: the configured rules (RIB), the forwarding table built from them (FIB), and the
//! memberships of hosts.

pub mod active_ingress;
pub mod dropped_flows;
pub mod fib;
mod fib_builder;
mod fib_diff;
mod flow;
mod flow_store;
pub mod flows;
pub mod ids;
mod interface_options;
pub mod joins;
pub mod lookup;
pub mod membership_database;
pub mod mnat_routes;
pub mod oif_sets;
pub mod oif_table;
pub mod other_forwarders;
pub mod rib;
pub mod rib_change;
pub mod rib_error;
mod route_conflicts;
mod slot_table;
mod stream_key;
pub mod stream_state;
pub mod subnet_conflict;
pub mod translated_joins;

pub use active_ingress::{Admission, IngressDomain, IngressSelection, StreamArrival};
pub use fib::{DownstreamInterface, Egress, Entry, Fib, Ingress, Path, ProxyIngress};
pub use fib_diff::FibDiff;
pub use ids::{DownstreamId, EgressId, EntryId, PathId};
pub use interface_options::{InterfaceOptions, ReportOptions};
pub use joins::Join;
pub use membership_database::MembershipDatabase;
pub use oif_table::OifTable;
pub use other_forwarders::YieldDecision;
pub use rib::Rib;
pub use rib_error::RibError;
pub use stream_key::StreamKey;
pub use stream_state::StreamState;
pub use subnet_conflict::SubnetConflict;
