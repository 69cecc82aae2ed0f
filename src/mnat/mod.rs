//! Multicast NAT (draft-jholland-mboned-mnat): the two forwarding roles and what they say to
//! the server that owns the mappings.
//!
//! ```text
//!  joinfile ──▶ files ──┐                        ┌──▶ MappingChange: Add, Remove, Swap
//!                       ├─ want ─▶ machine ──────┤
//!  memberships ─────────┘   ▲         │          └──▶ joinfile (ingress)
//!                           │         ▼
//!                     outcome      MnatRequest ──▶ client ──▶ the server
//! ```
//!
//! [`protocol`], [`machine`], [`mappings`], [`joinfile`] and [`plan`] are pure: time comes in as an argument.
//! [`client`] has the connection, [`files`] looks at the disk; an actor drives them.

pub mod channel;
pub mod client;
pub mod config;
pub mod files;
pub mod joinfile;
pub mod machine;
pub mod mappings;
pub mod plan;
pub mod protocol;

pub use channel::{Channel, ChannelError};
pub use config::Config;
pub use machine::{Machine, MnatEvent};
pub use mappings::{MappingChange, MappingEnd, MappingReport, MappingStatus};
pub use plan::{RoutePlan, RouteStep};
pub use protocol::{AssignmentState, Mapping, MnatRole};
