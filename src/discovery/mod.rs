//! Discovery protocols between networks: a question of one network is asked in others, and the
//! answers come back to the asker. See docs/discovery.md.
//!
//! Everything here is pure: time, links and free ports are arguments. [`relay::DiscoveryRelay`] is the
//! machine; [`actors::integrations::discovery`](crate::actors::integrations::discovery) owns its
//! sockets and its clock.
//!
//! ```text
//! protocol, reason ▷ ssdp, ws_discovery, knx, offer ▷ config ▷ link_table
//!     ▷ subject ▷ service_hosts ▷ mdns ▷ gate ▷ message
//!     ▷ askers, repeats, recent_responses, work_limit, observed, rule_table ▷ relayed_message
//!     ▷ decision_log ▷ relay
//! ```

pub mod askers;
pub mod config;
pub mod decision_log;
pub mod gate;
pub mod knx;
pub mod link_table;
pub mod mdns;
pub mod message;
pub mod observed;
pub mod offer;
pub mod protocol;
pub mod reason;
pub mod recent_responses;
pub mod relay;
pub mod relayed_message;
pub mod repeats;
pub mod rule_table;
pub mod service_hosts;
pub mod ssdp;
mod subject;
mod work_limit;
pub mod ws_discovery;
