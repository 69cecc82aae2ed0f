//! What can be shown of a machine, as plain data.

use std::net::IpAddr;
use std::time::Duration;

use crate::model::{Group, Source, SourceFilter};
use crate::wire::group_message::Generation;

/// One group with members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStatus {
    /// The group.
    pub group: Group,
    /// What is forwarded.
    pub filter: SourceFilter,
    /// How long the filter mode stays EXCLUDE without a report: the group timer.
    /// None in INCLUDE mode.
    pub group_timer: Option<Duration>,
    /// Every source known, with its timer. In EXCLUDE mode those whose timer runs are
    /// forwarded, too.
    pub sources: Vec<SourceStatus>,
    /// The compatibility mode: the generation of the oldest host (RFC 9776 section 7.3.2).
    pub generation: Generation,
    /// Who is a member, where hosts are tracked.
    pub reporters: Vec<IpAddr>,
    /// Who reported last.
    pub last_reporter: IpAddr,
}

/// One source of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceStatus {
    /// The source.
    pub source: Source,
    /// The source timer; none where it has run out and the source is not forwarded.
    pub source_timer: Option<Duration>,
}

/// Who asks on the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuerierStatus {
    /// Its address; none while nobody asks.
    pub address: Option<IpAddr>,
    /// Whether that is us.
    pub is_us: bool,
    /// When it will be given up if nothing is heard. None for ourselves.
    pub expires_in: Option<Duration>,
}
