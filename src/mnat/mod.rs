//! Multicast NAT (draft-jholland-mboned-mnat): the two forwarding roles and what they say to
//! the server that owns the mappings.
//!
//! ```text
//!  joinfile ──▶ files ──┐                        ┌──▶ Change: Add, Remove, Swap
//!                       ├─ want ─▶ machine ──────┤
//!  memberships ─────────┘   ▲         │          └──▶ joinfile (ingress)
//!                           │         ▼
//!                     outcome      Request ──▶ client ──▶ the server
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
pub use machine::{Event, Machine};
pub use mappings::{Change, Gone, Stand, Standing};
pub use plan::{Plan, Step};
pub use protocol::{Mapping, Role, State};
