//! Specific queries of one group: what is asked, how often, and with which S flag
//! (RFC 9776 section 6.6.3, RFC 9777 section 7.6.3).

use std::time::{Duration, Instant};

use crate::model::{Group, Source};
use crate::wire::group_message::{Generation, Query};

use super::effective_timers::EffectiveTimers;
use super::group::{GroupState, Send};

/// How queries are made.
pub(super) struct Asker<'a> {
    pub(super) now: Instant,
    pub(super) spoken: Generation,
    pub(super) timing: &'a EffectiveTimers,
}

impl Asker<'_> {
    /// Sources cannot be asked for before generation three.
    fn can_ask_sources(&self) -> bool {
        self.spoken == Generation::Three
    }

    fn deadline(&self) -> Instant {
        self.now + self.timing.last_member_query_time()
    }

    /// A general query, or one for a group.
    pub(super) fn query(&self, group: Option<Group>, max_response: Duration) -> Query {
        let three = self.spoken == Generation::Three;
        let robustness = self.timing.robustness();
        Query {
            generation: self.spoken,
            group,
            max_response: match self.spoken {
                // The first generation knows no other.
                Generation::One => Duration::from_secs(10),
                Generation::Two | Generation::Three => max_response,
            },
            suppress: false,
            robustness: if three && robustness <= 7 {
                robustness
            } else {
                0
            },
            interval: three.then(|| self.timing.query_interval()),
            sources: Vec::new(),
        }
    }

    fn specific(&self, group: Group, suppress: bool, sources: Vec<Source>) -> Query {
        let mut query = self.query(Some(group), self.timing.last_member_query_interval());
        query.suppress = suppress && self.spoken == Generation::Three;
        query.sources = sources;
        query
    }
}

impl GroupState {
    /// Does what the last column of the tables asks for; pushes what is to be sent at once.
    pub(super) fn ask(&mut self, group: Group, send: Send, by: &Asker<'_>, out: &mut Vec<Query>) {
        if by.spoken == Generation::One {
            // Nobody of that generation leaves, and it has no specific queries.
            return;
        }
        let until = by.deadline();
        let count = by.timing.last_member_query_count();
        let mut sources = false;
        for source in &send.sources {
            let asks = if by.can_ask_sources() { count } else { 0 };
            sources |= self.lower_source(source, until, asks);
        }
        // Before generation three the group stands for its sources.
        let instead = sources && !by.can_ask_sources();
        let group_due = (send.group && self.wants_group_query(until)) || instead;
        if group_due {
            self.lower_group(until);
            self.group_asks = count;
        }
        let sources_due = sources && by.can_ask_sources();
        self.push_queries(group, group_due, sources_due, by, out);
    }

    /// A further leave in a round that has not yet asked all it will asks nothing more.
    fn wants_group_query(&self, until: Instant) -> bool {
        let lowered = self.exclude_until.is_some_and(|at| at <= until);
        !(lowered && self.group_asks > 0)
    }

    /// Pushes the queries whose time has come again.
    pub(super) fn ask_again(&mut self, group: Group, by: &Asker<'_>, out: &mut Vec<Query>) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= by.now);
        let (group_due, sources_due) = (due(self.group_ask_at), due(self.sources_ask_at));
        self.push_queries(group, group_due, sources_due, by, out);
    }

    /// Nothing more is asked: another does now.
    pub(super) fn stop_asking(&mut self) {
        self.group_asks = 0;
        self.group_ask_at = None;
        self.sources_ask_at = None;
        self.sources.values_mut().for_each(|s| s.asks = 0);
    }

    fn push_queries(
        &mut self,
        group: Group,
        group_due: bool,
        sources_due: bool,
        by: &Asker<'_>,
        out: &mut Vec<Query>,
    ) {
        let until = by.deadline();
        let again = by.now + by.timing.last_member_query_interval();
        if group_due {
            let suppress = self.exclude_until.is_some_and(|at| at > until);
            out.push(by.specific(group, suppress, Vec::new()));
            self.group_asks = self.group_asks.saturating_sub(1);
            self.group_ask_at = (self.group_asks > 0).then_some(again);
            if let Some(at) = self.group_ask_at {
                self.wake_at(at);
            }
        }
        if sources_due {
            let (mut refreshed, mut waiting) = (Vec::new(), Vec::new());
            let mut left = false;
            for (source, state) in self.sources.iter_mut().filter(|(_, s)| s.asks > 0) {
                match state.until.is_some_and(|at| at > until) {
                    true => refreshed.push(*source),
                    false => waiting.push(*source),
                }
                state.asks -= 1;
                left |= state.asks > 0;
            }
            self.sources_ask_at = left.then_some(again);
            if left {
                self.wake_at(again);
            }
            // What the query for the group says anyway need not be said twice.
            if !refreshed.is_empty() && !group_due {
                out.push(by.specific(group, true, refreshed));
            }
            if !waiting.is_empty() {
                out.push(by.specific(group, false, waiting));
            }
        }
    }
}
