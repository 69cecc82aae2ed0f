//! Packet formats: parsing and building of IP, UDP, VLAN, IGMP, MLD, multicast router discovery and
//! AMT.
//!
//! Everything here is pure: functions take bytes and return values, or the reverse. The tests use
//! packets that other implementations made.

pub mod amt;
pub mod checksum;
pub mod error;
pub(crate) mod extension_headers;
pub mod floating_point;
pub mod icmpv6;
pub mod igmp;
pub mod ip;
pub mod ip_summary;
pub mod link_control;
pub mod membership;
pub mod membership_message;
pub mod mld;
pub mod mrdisc;
pub mod offload;
pub(crate) mod reason_enum;
mod records;
pub mod reject_reason;
pub mod udp;
pub mod vlan;

pub use error::WireError;
pub use reject_reason::RejectReason;
