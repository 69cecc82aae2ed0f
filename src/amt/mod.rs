//! Automatic Multicast Tunneling (RFC 7450) and the discovery of relays by DNS (RFC 8777).
//!
//! A *gateway* receives multicast through UDP tunnels to *relays*, which are multicast routers.
//! Both sides are state machines without sockets and clocks: callers pass the time, random seeds,
//! messages and answers of name servers, and collect outputs. Only [`resolver`] has sockets.
//!
//! ```text
//!  Gateway: one interface                          Relay: one interface
//!    candidates by `relay`, DNS    Discovery ──▶
//!    Discovery  (per address)    ◀── Advertisement
//!    RelayTunnel (per relay)        Request ──▶      stateless: ResponseMac
//!      membership::Host           ◀── Query
//!                                    Update ──▶      a tunnel, membership::Downstream
//!                                 ◀── Data
//! ```

pub mod candidate;
pub mod config;
pub mod driad;
pub mod gateway;
pub mod random;
pub mod receivers;
pub mod refusal;
pub mod relay;
mod request_memory;
pub mod resolver;
pub mod saved;

mod discovery;
mod lookups;
mod prefix_limit;
mod query_rate;
mod response_mac;
mod retry;
mod tunnel;

pub use candidate::{LookupKey, RelayCandidate, RelayWay};
pub use config::RelayConfig;
pub use gateway::{Gateway, GatewayConfig, GatewayEvent, GatewayOutput};
pub use random::AmtRandom;
pub use receivers::GroupReceivers;
pub use refusal::AmtRefusal;
pub use relay::{GatewayStatus, GroupChange, Relay, RelayMessage};
pub use saved::SavedRelay;
pub use tunnel::{TunnelState, TunnelStatus};

#[cfg(test)]
mod tests;
