//! Events of one downstream interface that are worth a log line.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::wire::membership_message::Generation;

/// Maximum number of events in the queue. A further event replaces the oldest one.
const MAX_EVENTS: usize = 64;

/// Minimum time between two warnings of one kind.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// An event for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MembershipEvent {
    /// The link has another querier than before, or none.
    QuerierChanged {
        /// The address of the querier. None if the link has no querier.
        address: Option<IpAddr>,
        /// True if this router is the querier.
        is_us: bool,
    },
    /// The policy is `off`, and no router has sent a query for the other querier present
    /// interval. Without queries the memberships expire.
    NoQuerier,
    /// A router with a lower address sends queries, but the policy `on` makes this router send
    /// queries as well. Reported at most once per minute.
    CompetingQuerier {
        /// The address of the other router.
        address: IpAddr,
    },
    /// A router sends queries of another version. All routers of a link must be configured with
    /// the same version (RFC 9776 section 7.3.1). Reported at most once per minute.
    VersionMismatch {
        /// The address of the other router.
        address: IpAddr,
        /// The version of its queries.
        received: Generation,
        /// The version that this router is configured with and continues to use.
        configured: Generation,
    },
}

/// The events of one interface that have not been collected yet.
#[derive(Debug, Default)]
pub(super) struct EventQueue {
    events: VecDeque<MembershipEvent>,
    /// The querier of the latest [`MembershipEvent::QuerierChanged`].
    reported_querier: (Option<IpAddr>, bool),
    last_competing_querier: Option<Instant>,
    last_version_mismatch: Option<Instant>,
}

impl EventQueue {
    /// Appends an event.
    pub(super) fn push(&mut self, event: MembershipEvent) {
        if self.events.len() >= MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Removes and returns the oldest event.
    pub(super) fn pop(&mut self) -> Option<MembershipEvent> {
        self.events.pop_front()
    }

    /// Appends an event if the querier differs from the one reported last.
    pub(super) fn report_querier(&mut self, (address, is_us): (Option<IpAddr>, bool)) {
        if self.reported_querier != (address, is_us) {
            self.reported_querier = (address, is_us);
            self.push(MembershipEvent::QuerierChanged { address, is_us });
        }
    }

    /// Warns of a querier with a lower address, within the rate limit.
    pub(super) fn warn_competing_querier(&mut self, now: Instant, address: IpAddr) {
        if is_warning_due(&mut self.last_competing_querier, now) {
            self.push(MembershipEvent::CompetingQuerier { address });
        }
    }

    /// Warns of a query of another version than the configured one, within the rate limit.
    pub(super) fn warn_version_mismatch(
        &mut self,
        now: Instant,
        address: IpAddr,
        received: Generation,
        configured: Generation,
    ) {
        if received != configured && is_warning_due(&mut self.last_version_mismatch, now) {
            self.push(MembershipEvent::VersionMismatch {
                address,
                received,
                configured,
            });
        }
    }
}

/// Returns true, and notes the time, if the last warning is at least [`WARNING_INTERVAL`] ago.
fn is_warning_due(last: &mut Option<Instant>, now: Instant) -> bool {
    let due = last.is_none_or(|at| now.saturating_duration_since(at) >= WARNING_INTERVAL);
    if due {
        *last = Some(now);
    }
    due
}
