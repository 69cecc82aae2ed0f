//! Memberships of hosts, as pure machines: IGMP (RFC 9776) and MLD (RFC 9777) over one
//! vocabulary. Messages and the time come in, queries and filters come out; nothing here knows a
//! socket, a clock or a byte.
//!
//! ```text
//! report -> ReportGate -> Downstream (one interface, one family) --changes--> Upstream -> union
//!                          |  Querier: who asks, general queries
//!                          |  GroupState: filters, timers, specific queries
//!                          v
//!                        queries
//! ```

pub mod config;
pub mod downstream;
pub mod gate;
pub mod mrdisc;
pub mod querier;
pub mod refused;
pub mod timing;
pub mod upstream;
pub mod view;

mod asking;
mod group;
mod heard;
mod reports;
mod room;
mod tracker;

pub use config::{DownstreamConfig, Protocol};
pub use downstream::{Downstream, Event, QueryToSend};
pub use gate::ReportGate;
pub use refused::Refused;
pub use room::Standing;
pub use upstream::Upstream;
pub use view::{GroupView, QuerierView, SourceView};

#[cfg(test)]
mod tests;
