//! Bytes and their meaning. Each file: a view, what it means, and byte vectors made elsewhere.

pub mod checksum;
pub mod error;
pub mod ip;
pub mod offload;
pub mod udp;
pub mod vlan;

pub use error::WireError;
