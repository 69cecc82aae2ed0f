//! Timers and counters of one link (RFC 9776 section 8, RFC 9777 section 9).

use std::time::Duration;

use crate::model::QuerierTimers;
use crate::wire::membership_message::Query;

/// Upper limit of every interval, so that sums do not overflow. The largest interval that a
/// query can carry is 31,744 s.
const MAX_INTERVAL: Duration = Duration::from_secs(32_000);

/// Upper limit of a Query Interval adopted from another querier, as a multiple of the configured
/// one.
const MAX_ADOPTED_MULTIPLE: u32 = 8;

/// A Query Interval up to this value is always adopted: eight times the default of the RFC.
const ALWAYS_ADOPTED: Duration = Duration::from_secs(1000);

/// The timers and counters in effect on one link: the configured ones, with the values of the
/// elected querier where its queries carry any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EffectiveTimers {
    robustness: u8,
    query_interval: Duration,
    query_response_interval: Duration,
    last_member_query_interval: Duration,
    last_member_query_count: Option<u8>,
    startup_query_interval: Option<Duration>,
    startup_query_count: Option<u8>,
}

impl EffectiveTimers {
    /// Creates the configured values. A Robustness Variable of 0 means the default (section
    /// 8.1). Intervals are at least one millisecond. The Query Response Interval is at most the
    /// Query Interval (section 8.3).
    pub fn configured(timers: &QuerierTimers) -> Self {
        let bounded = |d: Duration| d.clamp(Duration::from_millis(1), MAX_INTERVAL);
        let query_interval = bounded(timers.query_interval);
        Self {
            robustness: match timers.robustness {
                0 => QuerierTimers::default().robustness,
                n => n,
            },
            query_interval,
            query_response_interval: bounded(timers.query_response_interval).min(query_interval),
            last_member_query_interval: bounded(timers.last_member_query_interval),
            last_member_query_count: timers.last_member_query_count.filter(|n| *n > 0),
            startup_query_interval: timers.startup_query_interval.map(bounded),
            startup_query_count: timers.startup_query_count.filter(|n| *n > 0),
        }
    }

    /// Returns these values with the Querier's Robustness Variable and Querier's Query Interval
    /// of a query, where they are not zero (sections 4.1.6 and 4.1.7). The interval is bounded
    /// by a multiple of the configured one: a single forged query could otherwise stop every
    /// other router from sending queries for days.
    pub fn adopted(self, query: &Query) -> Self {
        self.adopted_values(query.robustness, query.interval)
    }

    /// As [`adopted`](Self::adopted), with the values alone.
    pub(super) fn adopted_values(mut self, robustness: u8, interval: Option<Duration>) -> Self {
        if robustness > 0 {
            self.robustness = robustness;
        }
        if let Some(interval) = interval.filter(|i| !i.is_zero()) {
            let max = (self.query_interval * MAX_ADOPTED_MULTIPLE).max(ALWAYS_ADOPTED);
            self.query_interval = interval.min(max).min(MAX_INTERVAL);
        }
        self
    }

    /// Returns the Robustness Variable (section 8.1).
    pub fn robustness(&self) -> u8 {
        self.robustness
    }

    /// Returns the Query Interval: the time between general queries (section 8.2).
    pub fn query_interval(&self) -> Duration {
        self.query_interval
    }

    /// Returns the Query Response Interval: the Max Response Time of general queries (section
    /// 8.3).
    pub fn query_response_interval(&self) -> Duration {
        self.query_response_interval
    }

    /// Returns the Group Membership Interval: the lifetime of a membership without a report
    /// (section 8.4). RFC 9776 adds two Query Response Intervals; RFC 3376 added one.
    pub fn group_membership_interval(&self) -> Duration {
        self.query_interval * u32::from(self.robustness) + self.query_response_interval * 2
    }

    /// Returns the Other Querier Present Interval: without a query for this time, the elected
    /// querier is considered gone (section 8.5).
    pub fn other_querier_present_interval(&self) -> Duration {
        self.query_interval * u32::from(self.robustness) + self.query_response_interval / 2
    }

    /// Returns the Startup Query Interval: the time between general queries at startup (section
    /// 8.6).
    pub fn startup_query_interval(&self) -> Duration {
        self.startup_query_interval
            .unwrap_or(self.query_interval / 4)
    }

    /// Returns the Startup Query Count: the number of general queries at startup (section 8.7).
    pub fn startup_query_count(&self) -> u8 {
        self.startup_query_count.unwrap_or(self.robustness)
    }

    /// Returns the Last Member Query Interval: the Max Response Time of specific queries, and the
    /// time between them (section 8.8).
    pub fn last_member_query_interval(&self) -> Duration {
        self.last_member_query_interval
    }

    /// Returns the Last Member Query Count: the number of specific queries after a leave (section
    /// 8.9).
    pub fn last_member_query_count(&self) -> u8 {
        self.last_member_query_count.unwrap_or(self.robustness)
    }

    /// Returns the Last Member Query Time: the time from a leave to the end of the membership
    /// (section 8.10).
    pub fn last_member_query_time(&self) -> Duration {
        self.last_member_query_interval * u32::from(self.last_member_query_count())
    }

    /// Returns the Older Host Present Interval: the time that a group stays in the compatibility
    /// mode of an older host after its last report (section 8.13).
    pub fn older_host_present_interval(&self) -> Duration {
        self.query_interval * u32::from(self.robustness) + self.query_response_interval
    }
}
