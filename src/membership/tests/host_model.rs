//! [`Downstream`](crate::membership::Downstream) against hosts that conform to RFC 9776 section 5.
//! Every requested source is forwarded at all times, and in the end no other source is.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::virtual_link::{VirtualLink, rule};
use crate::model::{Source, SourceFilter};
use crate::wire::membership_message::{GroupRecord, MembershipMessage, Query, RecordType};
use SourceFilter::{Exclude, Include};

const HOSTS: usize = 4;

fn source(n: u8) -> Source {
    Source::new([10, 9, 0, n + 1].into()).unwrap()
}

fn filter() -> impl Strategy<Value = SourceFilter> {
    let sources = proptest::collection::btree_set(0u8..5, 0..4);
    (any::<bool>(), sources).prop_map(|(include, sources)| {
        let sources: BTreeSet<_> = sources.into_iter().map(source).collect();
        if include {
            Include(sources)
        } else {
            Exclude(sources)
        }
    })
}

/// Returns the records that a host sends when its filter changes (section 5.1).
fn state_change_records(
    old: &SourceFilter,
    new: &SourceFilter,
) -> Vec<(RecordType, BTreeSet<Source>)> {
    use RecordType::{AllowNewSources, BlockOldSources, ChangeToExclude, ChangeToInclude};
    let (allow, block) = match (old, new) {
        (Include(a), Include(b)) => (b - a, a - b),
        (Exclude(a), Exclude(b)) => (a - b, b - a),
        (Include(_), Exclude(b)) => return vec![(ChangeToExclude, b.clone())],
        (Exclude(_), Include(b)) => return vec![(ChangeToInclude, b.clone())],
    };
    let both = [(AllowNewSources, allow), (BlockOldSources, block)];
    both.into_iter().filter(|(_, s)| !s.is_empty()).collect()
}

/// Returns the record that a host answers a query with (section 5.2).
fn current_state_record(
    filter: &SourceFilter,
    query: &Query,
) -> Option<(RecordType, BTreeSet<Source>)> {
    use RecordType::{ModeIsExclude, ModeIsInclude};
    let queried: BTreeSet<_> = query.sources.iter().copied().collect();
    let (kind, sources) = match filter {
        Exclude(sources) if queried.is_empty() => return Some((ModeIsExclude, sources.clone())),
        Include(sources) if queried.is_empty() => (ModeIsInclude, sources.clone()),
        Include(sources) => (ModeIsInclude, sources & &queried),
        Exclude(sources) => (ModeIsInclude, &queried - sources),
    };
    (!sources.is_empty()).then_some((kind, sources))
}

/// Hosts that conform to the RFC, on a link without losses.
struct HostModel {
    link: VirtualLink,
    filters: Vec<SourceFilter>,
    /// Pending answers: time, host and the query.
    answers: Vec<(Instant, usize, Query)>,
    /// State of the random number generator for response delays.
    delays: u64,
}

impl HostModel {
    fn is_requested(&self, source: Source) -> bool {
        self.filters.iter().any(|f| f.accepts(source))
    }

    fn report(&mut self, host: usize, (kind, sources): (RecordType, BTreeSet<Source>)) {
        let record = GroupRecord {
            kind,
            group: self.link.group,
            sources: sources.into_iter().collect(),
        };
        let from: IpAddr = self.link.host(host as u8);
        let message = MembershipMessage::Records(vec![record]);
        let to = [224, 0, 0, 22].into();
        let result = self
            .link
            .machine
            .handle_message(self.link.now, from, to, &message);
        assert_eq!(result, Ok(()));
    }

    /// Delivers the queries to every host, and schedules an answer within the response time.
    fn schedule_answers(&mut self) {
        while let Some(out) = self.link.machine.poll_query() {
            for host in 0..HOSTS {
                self.delays = self
                    .delays
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1);
                let fraction = (self.delays >> 33) as f64 / (1u64 << 31) as f64;
                let delay = out.query.max_response_time.mul_f64(fraction);
                self.answers
                    .push((self.link.now + delay, host, out.query.clone()));
            }
        }
    }

    fn advance(&mut self, time: Duration) {
        let until = self.link.now + time;
        loop {
            self.schedule_answers();
            let timer = self.link.machine.poll_timeout();
            let next_answer = self.answers.iter().map(|(at, ..)| *at).min();
            let next = [timer, next_answer].into_iter().flatten().min();
            let Some(at) = next.filter(|at| *at <= until) else {
                break;
            };
            self.link.now = at;
            // A report that arrives when the timer expires is handled first.
            let due = self.answers.iter().position(|(when, ..)| *when == at);
            if let Some(due) = due {
                let (_, host, query) = self.answers.swap_remove(due);
                if let Some(record) = current_state_record(&self.filters[host], &query) {
                    self.report(host, record);
                }
            } else {
                self.link.machine.handle_timeout(at);
            }
            self.check_requested_sources_are_forwarded();
        }
        self.link.now = until;
    }

    fn check_requested_sources_are_forwarded(&self) {
        let filter = self.link.machine.filter(self.link.group);
        for s in (0..7).map(source).filter(|s| self.is_requested(*s)) {
            assert!(filter.accepts(s), "{s} is requested: {filter}");
        }
    }

    fn check_only_requested_sources_are_forwarded(&self) {
        let filter = self.link.machine.filter(self.link.group);
        for s in (0..7).map(source) {
            assert_eq!(filter.accepts(s), self.is_requested(s), "{s}: {filter}");
        }
    }
}

fn model(fast_leave: bool, seed: u64) -> HostModel {
    let mut rule = rule();
    rule.fast_leave = fast_leave;
    HostModel {
        link: VirtualLink::new(rule),
        filters: vec![SourceFilter::none(); HOSTS],
        answers: Vec::new(),
        delays: seed,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn conforming_hosts_receive_their_requested_sources(
        seed in any::<u64>(),
        fast_leave in any::<bool>(),
        steps in proptest::collection::vec((0..HOSTS, filter(), 0u64..40_000), 1..25),
    ) {
        let mut model = model(fast_leave, seed);
        // After 10 s, every host has answered the first query.
        model.advance(Duration::from_secs(10));
        for (host, filter, ms) in steps {
            let records = state_change_records(&model.filters[host], &filter);
            model.filters[host] = filter;
            for record in records {
                model.report(host, record);
            }
            model.check_requested_sources_are_forwarded();
            if fast_leave && model.filters.iter().all(|f| matches!(f, Include(_))) {
                // Every host is tracked, so leaves take effect without a query or a timer. This
                // does not hold with a host in EXCLUDE mode: the RFC's tables then forget that
                // it excludes a source which another host has requested in the meantime, until
                // the host reports again.
                model.check_only_requested_sources_are_forwarded();
            }
            // The pauses are shorter or longer than the last member query time.
            model.advance(Duration::from_millis(if ms < 10_000 { ms / 10 } else { ms }));
        }
        model.advance(Duration::from_secs(600));
        model.check_only_requested_sources_are_forwarded();
    }
}
