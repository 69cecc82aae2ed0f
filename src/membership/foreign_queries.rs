//! Queries of other routers: election, and timers that are lowered with theirs
//! (RFC 9776 sections 6.6.1, 6.6.2 and 7.3.1).

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::model::Group;
use crate::wire::group_message::{Generation, Query};

use super::downstream::{Downstream, MembershipEvent};
use super::refusal::MembershipRefusal;

/// Warnings about what other routers do come no closer than this.
const WARNINGS: Duration = Duration::from_secs(60);

impl Downstream {
    pub(super) fn heard_query(
        &mut self,
        now: Instant,
        from: IpAddr,
        to: IpAddr,
        query: &Query,
    ) -> Result<(), MembershipRefusal> {
        if Some(from) == self.querier.own() {
            return Err(MembershipRefusal::OwnAddress);
        }
        let to_all = to == self.config.protocol.general_query_destination();
        match query.group {
            Some(group) => {
                if !to_all && to != group.addr() {
                    return Err(MembershipRefusal::QueryDestination);
                }
                self.warn_version(now, from, query.generation);
                self.heard_specific(now, group, query);
                Ok(())
            }
            None if !to_all => Err(MembershipRefusal::QueryDestination),
            None if from.is_unspecified() => {
                self.querier.adopt(now, query);
                Err(MembershipRefusal::QueryUnspecified)
            }
            None => {
                self.warn_version(now, from, query.generation);
                if self.querier.heard(now, from, query) && warns(&mut self.warned_rival, now) {
                    self.event(MembershipEvent::CompetingQuerier { address: from });
                }
                self.tell_querier();
                Ok(())
            }
        }
    }

    /// The querier asks for a group: timers are lowered as if we had, unless it says not to
    /// (section 6.6.1). Where we are the querier nobody else has to ask, and what the hosts may
    /// not even have heard ends nothing.
    fn heard_specific(&mut self, now: Instant, group: Group, query: &Query) {
        if query.suppress || self.querier.is_us() {
            return;
        }
        let timing = self.querier.timers();
        // Its hosts may wait as long as it says; who says very little cuts nobody off.
        let count = u32::from(timing.last_member_query_count());
        let wait = timing.last_member_query_time();
        let wait = wait.max(query.max_response.min(Duration::from_secs(3600)) * count);
        self.with_group(now, group, None, |state, _| {
            if query.sources.is_empty() {
                state.lower_group(now + wait);
            }
            for source in &query.sources {
                state.lower_source(source, now + wait, 0);
            }
        });
    }

    fn warn_version(&mut self, now: Instant, address: IpAddr, heard: Generation) {
        let spoken = self.config.generation();
        if heard != spoken && warns(&mut self.warned_version, now) {
            self.event(MembershipEvent::VersionMismatch {
                address,
                received: heard,
                configured: spoken,
            });
        }
    }
}

/// Whether it is time to warn again.
fn warns(last: &mut Option<Instant>, now: Instant) -> bool {
    let due = last.is_none_or(|at| now.saturating_duration_since(at) >= WARNINGS);
    if due {
        *last = Some(now);
    }
    due
}
