//! Construction of general and specific queries (RFC 9776 section 4.1, RFC 9777 section 5.1).

use std::time::{Duration, Instant};

use crate::model::{Group, Source};
use crate::wire::membership_message::{Generation, Query};

use super::effective_timers::EffectiveTimers;

/// The largest Querier's Robustness Variable that fits into a query. A larger one is sent as 0.
const MAX_QRV: u8 = 7;

/// The response time of hosts to an IGMPv1 query, which carries none (RFC 1112).
const IGMPV1_RESPONSE_TIME: Duration = Duration::from_secs(10);

/// Builds queries in the configured generation, with the timers in effect.
pub(super) struct QueryBuilder<'a> {
    pub(super) now: Instant,
    pub(super) generation: Generation,
    pub(super) timers: &'a EffectiveTimers,
}

impl QueryBuilder<'_> {
    /// Returns true if the generation has group-specific queries.
    pub(super) fn has_group_queries(&self) -> bool {
        self.generation > Generation::One
    }

    /// Returns true if the generation has group-and-source-specific queries.
    pub(super) fn has_source_queries(&self) -> bool {
        self.generation == Generation::Three
    }

    /// Returns the time at which the Last Member Query Time ends if it starts now.
    pub(super) fn last_member_deadline(&self) -> Instant {
        self.now + self.timers.last_member_query_time()
    }

    /// Returns the time of the next query if a specific query is sent now.
    pub(super) fn next_repetition(&self) -> Instant {
        self.now + self.timers.last_member_query_interval()
    }

    /// Builds a general query.
    pub(super) fn general_query(&self) -> Query {
        self.query(None, self.timers.query_response_interval())
    }

    /// Builds a query for `group`, or for `sources` of it if there are any. `suppress` is the S
    /// flag, which only the third generation has.
    pub(super) fn specific_query(
        &self,
        group: Group,
        suppress: bool,
        sources: Vec<Source>,
    ) -> Query {
        let mut query = self.query(Some(group), self.timers.last_member_query_interval());
        query.suppress = suppress && self.generation == Generation::Three;
        query.sources = sources;
        query
    }

    fn query(&self, group: Option<Group>, max_response_time: Duration) -> Query {
        let is_third = self.generation == Generation::Three;
        let robustness = self.timers.robustness();
        Query {
            generation: self.generation,
            group,
            max_response_time: match self.generation {
                Generation::One => IGMPV1_RESPONSE_TIME,
                Generation::Two | Generation::Three => max_response_time,
            },
            suppress: false,
            robustness: if is_third && robustness <= MAX_QRV {
                robustness
            } else {
                0
            },
            interval: is_third.then(|| self.timers.query_interval()),
            sources: Vec::new(),
        }
    }
}
