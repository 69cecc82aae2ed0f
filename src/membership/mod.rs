//! Group membership: the router side of IGMP (RFC 9776) and MLD (RFC 9777) on downstream
//! interfaces, and the host side on the interfaces where this machine joins groups. Both are
//! written once for both protocols.
//!
//! Every type is a state machine without input or output: callers pass parsed messages and the
//! time, and collect queries, filter changes and events. No type here opens a socket, reads a
//! clock or parses bytes.
//!
//! ```text
//! report -> ReportRateLimiter -> Downstream (one interface, one protocol) -> MembershipUnion
//!                                 |  QuerierElection: querier, general queries
//!                                 |  GroupTable: one GroupState per group
//!                                 v
//!                               queries
//!
//! joined groups, queries -> Host (one interface, one protocol) -> reports
//!                            |  HostCompatibility: the version of the querier
//!                            |  one JoinedGroup per group
//! ```

pub mod config;
pub mod downstream;
pub mod effective_timers;
pub mod election;
pub mod event;
pub mod host;
pub mod host_event;
pub mod mrdisc;
pub mod rate_limiter;
pub mod refusal;
pub mod saved;
pub mod status;
pub mod union;

mod deadlines;
mod group;
mod group_filter;
mod group_table;
mod host_compatibility;
mod host_tracker;
mod joined_group;
mod query_builder;
mod quota;
mod random;
mod received_record;
mod specific_queries;
mod work;

pub use config::{DownstreamConfig, Protocol};
pub use downstream::{Downstream, OutgoingQuery};
pub use event::MembershipEvent;
pub use host::{Host, HostConfig, MessageAddresses};
pub use host_event::HostEvent;
pub use quota::SenderStatus;
pub use rate_limiter::ReportRateLimiter;
pub use refusal::MembershipRefusal;
pub use saved::{SavedDownstream, SavedInterface};
pub use status::{GroupStatus, QuerierStatus, SourceStatus};
pub use union::MembershipUnion;
pub use work::Work;

#[cfg(test)]
mod tests;
