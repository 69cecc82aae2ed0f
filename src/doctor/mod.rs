//! `mcastor doctor`: finds out why multicast does not arrive.
//!
//! [`Facts`] describe the host and the running mcastor. [`host`] reads the facts about the host.
//! [`examine()`] turns facts into [`Finding`]s, without any I/O. [`firewall`] reads lists of rules.

pub mod examine;
pub mod facts;
pub mod finding;
pub mod firewall;
pub mod host;
pub mod probe;

pub use examine::examine;
pub use facts::{Facts, HostFacts, InterfaceFacts, RouterFacts};
pub use finding::{Cause, Certainty, Finding};
