//! Group membership on downstream interfaces: the router side of IGMP (RFC 9776) and MLD
//! (RFC 9777), written once for both protocols.
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
//! ```

pub mod config;
pub mod downstream;
pub mod effective_timers;
pub mod election;
pub mod event;
pub mod mrdisc;
pub mod rate_limiter;
pub mod refusal;
pub mod status;
pub mod union;

mod group;
mod group_filter;
mod group_table;
mod host_tracker;
mod query_builder;
mod quota;
mod received_record;
mod specific_queries;

pub use config::{DownstreamConfig, Protocol};
pub use downstream::{Downstream, OutgoingQuery};
pub use event::MembershipEvent;
pub use quota::SenderStatus;
pub use rate_limiter::ReportRateLimiter;
pub use refusal::MembershipRefusal;
pub use status::{GroupStatus, QuerierStatus, SourceStatus};
pub use union::MembershipUnion;

#[cfg(test)]
mod tests;
