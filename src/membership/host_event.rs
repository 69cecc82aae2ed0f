//! Events of the host side that are worth a log line.

use std::net::IpAddr;

use crate::wire::membership_message::Generation;

/// An event of one interface and protocol for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostEvent {
    /// Reports are sent in another version, because the querier uses it or an older querier is
    /// gone.
    VersionChanged {
        /// The version of the reports.
        generation: Generation,
        /// The querier whose query caused the change; None if an older querier is gone.
        querier: Option<IpAddr>,
    },
    /// Groups are joined, and no query arrived for the other querier present interval (RFC 9776
    /// section 8.5). Switches with snooping may end the streams.
    NoQuerier,
}
