//! The health of monitored streams: rates, loss, jitter and faults of the contents, where they
//! arrive and where they leave, and who is to blame.
//!
//! The code is pure: times are arguments. The data threads own the analyzers of their streams
//! ([`StreamMonitor`] for an ingress, [`EgressMonitor`] for an egress) in constant memory, and
//! publish copies of what these know twice a second ([`Registry`]). Questions are answered from
//! the copies.

mod admission;
pub mod alerts;
pub mod analyzer;
mod arrival_clock;
mod bursts;
mod datagram;
mod detect;
mod egress_monitor;
pub mod events;
mod inter_arrival;
mod loss_counts;
mod mdi;
mod monitor;
mod pcr;
mod rate;
pub mod registry;
pub mod report;
mod report_turns;
pub mod rtp;
pub mod sequence;
mod stream_id;
mod ts;
mod verdict;
pub mod view;

pub use egress_monitor::EgressMonitor;
pub use monitor::{ObservedPacket, StreamMonitor};
pub use registry::{Method, Registry};
pub use report::IngressNames;
pub use stream_id::StreamId;
