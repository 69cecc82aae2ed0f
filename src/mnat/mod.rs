//! Multicast NAT (draft-jholland-mboned-mnat): the protocol between the two forwarding roles, the
//! ingress and the egress, and the server that assigns the mappings.
//!
//! ```text
//!  joinfile ──▶ files ──┐                        ┌──▶ MappingChange: Add, Remove, Swap
//!                       ├─ joins ▶ machine ──────┤
//!  memberships ─────────┘   ▲         │          └──▶ joinfile (ingress)
//!                           │         ▼
//!                     outcome      MnatRequest ──▶ client ──▶ server
//! ```
//!
//! [`messages`] has the format of all requests and responses; clients and server share it.
//! [`protocol`], [`machine`], [`mappings`], [`joinfile`] and [`plan`] do no I/O; they take the
//! current time as an argument. [`client`] owns the connection to the server, and [`client_tls`] reads
//! its certificates. [`files`] reads joinfiles. The MNAT actor drives all of them.

pub mod channel;
pub mod client;
pub mod client_tls;
pub mod config;
pub mod files;
pub mod joinfile;
pub mod machine;
pub mod mappings;
pub mod messages;
pub mod plan;
pub mod protocol;
pub mod saved;

pub use channel::{Channel, ChannelError};
pub use config::{Config, MnatRole, Target};
pub use machine::{Machine, MnatEvent};
pub use mappings::{MappingChange, MappingEnd, MappingReport, MappingStatus};
pub use messages::{AssignmentState, Mapping};
pub use plan::{RoutePlan, RouteStep};
pub use saved::SavedMnat;
