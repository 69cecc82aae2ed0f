//! Bytes and their meaning. Each file: a view, what it means, and byte vectors made elsewhere.

pub mod checksum;
pub mod envelope;
pub mod error;
pub mod float_code;
pub mod group_message;
pub mod igmp;
pub mod ip;
pub mod membership;
pub mod mld;
pub mod mrdisc;
pub mod offload;
pub(crate) mod reasons;
mod records;
pub mod refusal;
pub mod udp;
pub mod vlan;

pub use error::WireError;
pub use refusal::Refusal;
