//! Status of a downstream interface, as plain data for display.

use std::net::IpAddr;
use std::time::Duration;

use crate::model::{Group, Source, SourceFilter};
use crate::wire::membership_message::Generation;

/// Status of one group with members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStatus {
    /// The group.
    pub group: Group,
    /// The sources that are forwarded.
    pub filter: SourceFilter,
    /// Time left of the group timer. Without a report until then, the filter mode changes from
    /// EXCLUDE to INCLUDE. None in INCLUDE mode.
    pub group_timer: Option<Duration>,
    /// Every stored source. In EXCLUDE mode, the sources whose timer runs are forwarded too.
    pub sources: Vec<SourceStatus>,
    /// The group compatibility mode: the generation of the oldest host (RFC 9776 section 7.3.2).
    pub generation: Generation,
    /// The members, if hosts are tracked.
    pub reporters: Vec<IpAddr>,
    /// The sender of the latest report.
    pub last_reporter: IpAddr,
}

/// Status of one source of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceStatus {
    /// The source.
    pub source: Source,
    /// Time left of the source timer. None if the timer has expired: the source is not forwarded.
    pub source_timer: Option<Duration>,
}

/// Status of the querier election on one link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuerierStatus {
    /// The address of the querier. None if the link has no querier.
    pub address: Option<IpAddr>,
    /// True if this router is the querier.
    pub is_us: bool,
    /// Time left of the other querier present timer. None if this router is the querier.
    pub expires_in: Option<Duration>,
}
