//! Timers and counts in force on a link (RFC 9776 section 8, RFC 9777 section 9).

use std::time::Duration;

use crate::model::QuerierTimers;
use crate::wire::group_message::Query;

/// No interval is longer: about what a query can tell (31,744 s), so that sums never overflow.
const LONGEST: Duration = Duration::from_secs(32_000);

/// How many times our query interval that of an elected querier may be.
const MOST_ADOPTED: u32 = 8;

/// So long it may be in any case: eight times the RFC's default.
const SURELY_ADOPTED: Duration = Duration::from_secs(1000);

/// The values in force: ours, or those of the elected querier where it tells some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EffectiveTimers {
    robustness: u8,
    query_interval: Duration,
    response: Duration,
    last_member_interval: Duration,
    last_member_count: Option<u8>,
    startup_interval: Option<Duration>,
    startup_count: Option<u8>,
}

impl EffectiveTimers {
    /// As configured. A robustness of 0 means the default (section 8.1); intervals are at least
    /// a millisecond, and the response interval is no longer than the query interval
    /// (section 8.3).
    pub fn configured(timers: &QuerierTimers) -> Self {
        let within = |d: Duration| d.clamp(Duration::from_millis(1), LONGEST);
        let query_interval = within(timers.query_interval);
        Self {
            robustness: match timers.robustness {
                0 => QuerierTimers::default().robustness,
                n => n,
            },
            query_interval,
            response: within(timers.query_response_interval).min(query_interval),
            last_member_interval: within(timers.last_member_query_interval),
            last_member_count: timers.last_member_query_count.filter(|n| *n > 0),
            startup_interval: timers.startup_query_interval.map(within),
            startup_count: timers.startup_query_count.filter(|n| *n > 0),
        }
    }

    /// With what the elected querier tells: its robustness and query interval, where they are
    /// not zero (sections 4.1.6, 4.1.7). The interval up to a multiple of ours: one forged query
    /// would else keep everybody from asking for days.
    pub fn adopted(mut self, query: &Query) -> Self {
        if query.robustness > 0 {
            self.robustness = query.robustness;
        }
        if let Some(interval) = query.interval.filter(|i| !i.is_zero()) {
            let most = (self.query_interval * MOST_ADOPTED).max(SURELY_ADOPTED);
            self.query_interval = interval.min(most).min(LONGEST);
        }
        self
    }

    /// How many lost messages are survived (section 8.1).
    pub fn robustness(&self) -> u8 {
        self.robustness
    }

    /// Between general queries (section 8.2).
    pub fn query_interval(&self) -> Duration {
        self.query_interval
    }

    /// How long hosts may wait with the answer to a general query (section 8.3).
    pub fn query_response_interval(&self) -> Duration {
        self.response
    }

    /// How long a membership stands without a report (section 8.4): two response intervals
    /// since RFC 9776, one before.
    pub fn group_membership_interval(&self) -> Duration {
        self.query_interval * u32::from(self.robustness) + self.response * 2
    }

    /// How long another querier is believed to live without a query (section 8.5).
    pub fn other_querier_present_interval(&self) -> Duration {
        self.query_interval * u32::from(self.robustness) + self.response / 2
    }

    /// Between general queries at the start (section 8.6).
    pub fn startup_query_interval(&self) -> Duration {
        self.startup_interval.unwrap_or(self.query_interval / 4)
    }

    /// General queries at the start (section 8.7).
    pub fn startup_query_count(&self) -> u8 {
        self.startup_count.unwrap_or(self.robustness)
    }

    /// How long hosts may wait with the answer to a specific query, and between those
    /// (section 8.8).
    pub fn last_member_query_interval(&self) -> Duration {
        self.last_member_interval
    }

    /// How many specific queries are sent (section 8.9).
    pub fn last_member_query_count(&self) -> u8 {
        self.last_member_count.unwrap_or(self.robustness)
    }

    /// How long a leave takes (section 8.10).
    pub fn last_member_query_time(&self) -> Duration {
        self.last_member_interval * u32::from(self.last_member_query_count())
    }

    /// How long a group stays in the mode of an older host (section 8.13).
    pub fn older_host_present_interval(&self) -> Duration {
        self.query_interval * u32::from(self.robustness) + self.response
    }
}
