//! The messages between the MNAT server and its clients, as typed values with one encoding for both
//! sides. No I/O.
//!
//! The format follows the prototype, which differs from RFC 8040 and RFC 7951: requests send a list
//! entry as a single object, responses return it in a list, and the output of an operation has no
//! wrapper. Decoders accept the forms of the prototype and those of the RFCs.
//!
//! Decoders of requests are strict and return a [`RestconfError`] with the path of the fault.
//! Decoders of responses accept everything that can be used.

mod errors;
mod requests;
mod resource;
mod responses;

pub use errors::{ErrorTag, RestconfError};
pub use requests::{JoinedSet, MonitorSet, RefreshInput, Subscription, joined_entry_len};
pub use resource::{ROOT, Resource};
pub use responses::{AssignedChannels, AssignmentState, MappedChannel, Mapping, WatcherGrant};

use serde_json::Value;

/// Content type of requests and responses (RFC 8040 section 5.2, RFC 7951).
pub const CONTENT_TYPE: &str = "application/yang-data+json";
/// Content type of the prototype's responses.
pub const PROTOTYPE_CONTENT_TYPE: &str = "application/yang.api+json";
/// Maximum length of a watcher id, in bytes.
pub const MAX_ID_LEN: usize = 128;
/// The prefix of names of the YANG module.
const PREFIX: &str = "ietf-mnat:";

/// Returns the member with this name, with or without the prefix of the YANG module.
fn member<'v>(object: &'v Value, name: &str) -> Option<&'v Value> {
    object
        .get(name)
        .or_else(|| object.get(format!("{PREFIX}{name}").as_str()))
}

/// Parses an unsigned integer. RFC 7951 section 6.1 encodes 64-bit integers as strings.
fn integer(value: &Value) -> Option<u64> {
    value
        .as_u64()
        .or_else(|| value.as_str().and_then(|s| s.parse().ok()))
}
