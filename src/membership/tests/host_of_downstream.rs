//! [`Host`](crate::membership::Host) against [`Downstream`](crate::membership::Downstream): on a
//! link that loses messages, the router learns every filter, and keeps it while the host keeps it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::virtual_host::{VirtualHost, config};
use crate::membership::{Downstream, DownstreamConfig, MessageAddresses, Protocol};
use crate::model::{Group, ProxyRule, Versions};
use crate::wire::link_control::HeaderPolicy;
use crate::wire::membership::{build, parse};
use crate::wire::membership_message::MembershipMessage;

const FILTERS: [&str; 8] = [
    "none", "in a", "in ab", "in bc", "ex", "ex a", "ex bc", "in abcd",
];

/// A router and a host on one link. Messages pass as bytes.
struct Link {
    router: Downstream,
    host: VirtualHost,
    /// Whether every report is lost, except after the loss of another one about the same group: the
    /// robustness variable of 2 covers the loss of one.
    lossy: bool,
    /// The groups of which the last report was lost.
    lost: BTreeSet<Group>,
    reports: usize,
}

impl Link {
    fn new(protocol: Protocol, version: Versions, lossy: bool) -> Self {
        let host = VirtualHost::new(config(protocol), 7);
        let mut rule = ProxyRule::new(vec![], vec![]);
        rule.version = version;
        rule.limits.groups = 20_000;
        let config = DownstreamConfig::new(protocol, Arc::new(rule));
        Self {
            router: Downstream::new(host.now, config, Some(host.other())),
            host,
            lossy,
            lost: BTreeSet::new(),
            reports: 0,
        }
    }

    fn advance(&mut self, seconds: f64) {
        let until = self.host.now + Duration::from_secs_f64(seconds);
        loop {
            self.exchange();
            let next = [self.router.poll_timeout(), self.host.machine.poll_timeout()];
            let next = next.into_iter().flatten().min();
            let Some(at) = next.filter(|at| *at <= until) else {
                break;
            };
            self.host.now = self.host.now.max(at);
            let now = self.host.now;
            if self.host.machine.poll_timeout().is_some_and(|at| at <= now) {
                self.host.machine.handle_timeout(now);
                self.exchange();
            }
            if self.router.poll_timeout().is_some_and(|at| at <= now) {
                self.router.handle_timeout(now);
            }
        }
        self.host.now = until;
    }

    /// Delivers what both sides sent.
    fn exchange(&mut self) {
        let now = self.host.now;
        while let Some(report) = self.host.machine.poll_report() {
            self.reports += 1;
            if self.lossy && self.loses(&report) {
                continue;
            }
            for (addresses, message) in delivered(&report, self.host.own()) {
                let MessageAddresses {
                    sender,
                    destination,
                } = addresses;
                let result = self
                    .router
                    .handle_message(now, sender, destination, &message);
                assert_eq!(result, Ok(()));
            }
        }
        while let Some(query) = self.router.poll_query() {
            let message = MembershipMessage::Query(query.query);
            for (addresses, message) in delivered(&message, self.host.other()) {
                let result = self.host.machine.handle_message(now, addresses, &message);
                assert_eq!(result, Ok(()));
            }
        }
    }

    /// Decides whether a report is lost.
    fn loses(&mut self, report: &MembershipMessage) -> bool {
        let groups: BTreeSet<Group> = match report {
            MembershipMessage::Query(_) => BTreeSet::new(),
            MembershipMessage::Report { group, .. } | MembershipMessage::Leave { group } => {
                [*group].into()
            }
            MembershipMessage::Records(records) => records.iter().map(|r| r.group).collect(),
        };
        let is_lost = groups.is_disjoint(&self.lost);
        match is_lost {
            true => self.lost.extend(groups),
            false => self.lost.retain(|group| !groups.contains(group)),
        }
        is_lost
    }

    fn assert_equal(&self, when: &str) -> Result<(), TestCaseError> {
        for n in 1..=3 {
            let group = self.host.group(n);
            let (wanted, known) = (self.host.machine.filter(group), self.router.filter(group));
            prop_assert_eq!(known, wanted, "group {} {}", n, when);
        }
        Ok(())
    }
}

/// Builds the packets of a message and parses them.
fn delivered(
    message: &MembershipMessage,
    sender: IpAddr,
) -> Vec<(MessageAddresses, MembershipMessage)> {
    let on_link = ["10.0.0.0/24".parse().unwrap(), "fe80::/64".parse().unwrap()];
    let policy = HeaderPolicy {
        headers: crate::model::HeaderChecks::Strict,
        on_link: &on_link,
    };
    let packets = build(message, sender, 1500).unwrap();
    let parsed = packets.iter().map(|packet| {
        let received = parse(packet, &policy).unwrap();
        let addresses = MessageAddresses {
            sender: received.source,
            destination: received.destination,
        };
        (addresses, received.message)
    });
    parsed.collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn router_learns_and_keeps_every_filter(
        is_igmp: bool,
        lossy: bool,
        changes in proptest::collection::vec((1u16..=3, 0..FILTERS.len(), 0.0..4.0), 1..12),
    ) {
        let protocol = if is_igmp { Protocol::Igmp } else { Protocol::Mld };
        let mut link = Link::new(protocol, Versions::default(), lossy);
        link.advance(40.0);
        for (group, filter, pause) in changes {
            link.host.change(group, FILTERS[filter]);
            link.advance(pause);
        }
        // Repetitions take 1 s, a leave takes 2 s, and an EXCLUDE list becomes exact when the
        // group timer of a former state expires: 260 s, after the answer to one of two queries,
        // which are 125 s apart and answered within 10 s.
        link.advance(if lossy { 530.0 } else { 270.0 });
        link.assert_equal("after the changes")?;
        link.advance(2000.0);
        link.assert_equal("after more query rounds")?;
    }
}

/// With an older router, each group is joined for all sources, and kept.
#[test]
fn older_router_keeps_the_groups() {
    for (protocol, igmp) in [(Protocol::Igmp, 2), (Protocol::Igmp, 1), (Protocol::Mld, 2)] {
        let mut link = Link::new(protocol, Versions { igmp, mld: 1 }, false);
        link.host.change(1, "in ab").change(2, "ex a");
        for _ in 0..20 {
            link.advance(100.0);
            for n in 1..=2 {
                let known = link.router.filter(link.host.group(n));
                assert_eq!(
                    known,
                    link.host.filter("ex"),
                    "{protocol} {igmp}: group {n}"
                );
            }
        }
    }
}

/// A host with 10,000 groups answers each query with few messages, and loses no group.
#[test]
fn ten_thousand_groups_are_kept() {
    let start = Instant::now();
    let mut link = Link::new(Protocol::Igmp, Versions::default(), false);
    for n in 1..=10_000 {
        link.host.change(n, "in abcdefghij");
    }
    link.advance(600.0);
    assert_eq!(link.router.group_count(), 10_000);
    assert_eq!(link.router.source_count(), 100_000);
    assert!(link.reports < 12, "{} messages", link.reports);
    println!("{:?} for 600 s of virtual time", start.elapsed());
}
