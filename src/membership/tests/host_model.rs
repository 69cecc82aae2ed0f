//! The machine against hosts that keep to RFC 9776 section 5: nobody is ever cut off, and in
//! the end exactly what they want together is forwarded.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::virtual_link::{Lab, rule};
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

/// Section 5.1: what a host says of a change.
fn said_of_change(old: &SourceFilter, new: &SourceFilter) -> Vec<(RecordType, BTreeSet<Source>)> {
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

/// Section 5.2: what it answers.
fn answer(filter: &SourceFilter, query: &Query) -> Option<(RecordType, BTreeSet<Source>)> {
    use RecordType::{ModeIsExclude, ModeIsInclude};
    let asked: BTreeSet<_> = query.sources.iter().copied().collect();
    let (kind, sources) = match filter {
        Exclude(sources) if asked.is_empty() => return Some((ModeIsExclude, sources.clone())),
        Include(sources) if asked.is_empty() => (ModeIsInclude, sources.clone()),
        Include(sources) => (ModeIsInclude, sources & &asked),
        Exclude(sources) => (ModeIsInclude, &asked - sources),
    };
    (!sources.is_empty()).then_some((kind, sources))
}

struct World {
    lab: Lab,
    filters: Vec<SourceFilter>,
    /// What hosts will answer, and when.
    answers: Vec<(Instant, usize, Query)>,
    /// Numbers for delays.
    delays: u64,
}

impl World {
    fn wanted(&self, source: Source) -> bool {
        self.filters.iter().any(|f| f.takes(source))
    }

    fn say(&mut self, host: usize, (kind, sources): (RecordType, BTreeSet<Source>)) {
        let record = GroupRecord {
            kind,
            group: self.lab.group,
            sources: sources.into_iter().collect(),
        };
        let from: IpAddr = self.lab.host(host as u8);
        let message = MembershipMessage::Records(vec![record]);
        let to = [224, 0, 0, 22].into();
        let taken = self
            .lab
            .machine
            .handle_message(self.lab.now, from, to, &message);
        assert_eq!(taken, Ok(()));
    }

    /// Every host hears what is asked and will answer within the time it says.
    fn listen(&mut self) {
        while let Some(out) = self.lab.machine.poll_query() {
            for host in 0..HOSTS {
                self.delays = self
                    .delays
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1);
                let part = (self.delays >> 33) as f64 / (1u64 << 31) as f64;
                let delay = out.query.max_response_time.mul_f64(part);
                self.answers
                    .push((self.lab.now + delay, host, out.query.clone()));
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        let until = self.lab.now + time;
        loop {
            self.listen();
            let timer = self.lab.machine.poll_timeout();
            let answered = self.answers.iter().map(|(at, ..)| *at).min();
            let next = [timer, answered].into_iter().flatten().min();
            let Some(at) = next.filter(|at| *at <= until) else {
                break;
            };
            self.lab.now = at;
            // A report that comes as the timer runs out counts.
            let due = self.answers.iter().position(|(when, ..)| *when == at);
            if let Some(due) = due {
                let (_, host, query) = self.answers.swap_remove(due);
                if let Some(record) = answer(&self.filters[host], &query) {
                    self.say(host, record);
                }
            } else {
                self.lab.machine.handle_timeout(at);
            }
            self.nobody_is_cut_off();
        }
        self.lab.now = until;
    }

    fn nobody_is_cut_off(&self) {
        let filter = self.lab.machine.filter(self.lab.group);
        for s in (0..7).map(source).filter(|s| self.wanted(*s)) {
            assert!(filter.takes(s), "{s} is wanted: {filter}");
        }
    }

    fn exactly_what_is_wanted(&self) {
        let filter = self.lab.machine.filter(self.lab.group);
        for s in (0..7).map(source) {
            assert_eq!(filter.takes(s), self.wanted(s), "{s}: {filter}");
        }
    }
}

fn world(fast_leave: bool, seed: u64) -> World {
    let mut rule = rule();
    rule.fast_leave = fast_leave;
    World {
        lab: Lab::new(rule),
        filters: vec![SourceFilter::none(); HOSTS],
        answers: Vec::new(),
        delays: seed,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn nobody_is_cut_off_and_in_the_end_the_union_is_forwarded(
        seed in any::<u64>(),
        fast_leave in any::<bool>(),
        steps in proptest::collection::vec((0..HOSTS, filter(), 0u64..40_000), 1..25),
    ) {
        let mut world = world(fast_leave, seed);
        // The first query has been answered.
        world.pass(Duration::from_secs(10));
        for (host, filter, ms) in steps {
            let said = said_of_change(&world.filters[host], &filter);
            world.filters[host] = filter;
            for record in said {
                world.say(host, record);
            }
            world.nobody_is_cut_off();
            if fast_leave && world.filters.iter().all(|f| matches!(f, Include(_))) {
                // Every host is tracked, so nothing waits for a query or a timer. With a host
                // in EXCLUDE mode the tables forget who excludes a source that another wanted
                // for a while, until that host reports again.
                world.exactly_what_is_wanted();
            }
            // Short and long pauses, some longer than the last member query time.
            world.pass(Duration::from_millis(if ms < 10_000 { ms / 10 } else { ms }));
        }
        world.pass(Duration::from_secs(600));
        world.exactly_what_is_wanted();
    }
}
