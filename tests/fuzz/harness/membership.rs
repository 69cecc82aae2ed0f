//! Messages about memberships from strangers, and what stands behind their parser.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mcastor::membership::{
    Downstream, DownstreamConfig, MembershipUnion, Protocol, ReportRateLimiter,
};
use mcastor::model::{Group, HeaderChecks, IfIndex, Links, ProxyRule, SourceFilter};
use mcastor::table::{Fib, MembershipDatabase, Rib};
use mcastor::wire::ip::IpHeader;
use mcastor::wire::link_control::HeaderPolicy;
use mcastor::wire::membership_message::MembershipMessage;
use mcastor::wire::{RejectReason, membership, mrdisc};

use super::link;

/// A packet with a message about memberships, or of multicast router discovery. What is heard is
/// heard again when written.
pub fn membership(data: &[u8]) -> bool {
    let on_link = ["10.0.0.0/8".parse().unwrap()];
    let checks = |headers| HeaderPolicy {
        headers,
        on_link: &on_link,
    };
    let lenient = checks(HeaderChecks::Lenient);
    let heard = membership::parse(data, &lenient);
    let strictly = membership::parse(data, &checks(HeaderChecks::Strict));
    match (&heard, &strictly) {
        (heard, Ok(_)) => assert_eq!(heard, &strictly),
        (Err(refusal), Err(_)) => assert!(RejectReason::ALL.contains(refusal)),
        (Ok(_), Err(_)) => {}
    }
    let discovery = mrdisc::parse(data, &lenient);
    assert!(heard.is_err() || discovery.is_err(), "both at once");
    if heard.is_ok() || discovery.is_ok() {
        let datagram = IpHeader::parse(data).expect("what is heard is a packet");
        assert!(
            mcastor::wire::link_control::is_link_control(&datagram, data),
            "it would be forwarded"
        );
        assert_eq!(mrdisc::is_message(&datagram, data), discovery.is_ok());
    }
    if let Ok(discovery) = &discovery {
        // Its own source may be one that is not spoken from.
        let from = ours(discovery.source);
        let packet = mrdisc::build(&discovery.message, from);
        let again = mrdisc::parse(&packet, &checks(HeaderChecks::Strict));
        assert_eq!(again.map(|h| h.message), Ok(discovery.message));
    }
    let Ok(heard) = heard else {
        return discovery.is_ok();
    };
    let held = match &heard.message {
        MembershipMessage::Query(query) => query.sources.len(),
        MembershipMessage::Records(records) => records.iter().map(|r| 1 + r.sources.len()).sum(),
        MembershipMessage::Report { .. } | MembershipMessage::Leave { .. } => 1,
    };
    assert!(held * 4 <= data.len(), "more than it holds");
    LIVE.with_borrow_mut(|live| live.hear(heard.source, heard.destination, &heard.message));
    let packets = membership::build(&heard.message, ours(heard.source), 65_535);
    let packets = packets.expect("what is heard can be said");
    for packet in &packets {
        // Groups of interface-local scope are no destination.
        match membership::parse(packet, &checks(HeaderChecks::Strict)) {
            Err(refusal) => assert_eq!(refusal, RejectReason::BadDestination),
            // The largest do not fit behind our header, which has an option.
            Ok(again) if data.len() < 60_000 => assert_eq!(again.message, heard.message),
            Ok(_) => {}
        }
    }
    true
}

/// What stands behind the parser: the gate, a machine for each IP version, what is wanted
/// upstream, and the snapshot made of it.
struct Live {
    now: Instant,
    gate: ReportRateLimiter,
    machines: [Downstream; 2],
    upstream: MembershipUnion,
    learned: MembershipDatabase,
    fib: Fib,
    wanted: BTreeMap<Group, SourceFilter>,
}

/// Few, so that they are reached.
const GROUPS: usize = 80;

const SOURCES: usize = 8;

const OUT: u32 = 3;

thread_local! {
    static LIVE: RefCell<Live> = RefCell::new(Live::new());
}

impl Live {
    fn new() -> Self {
        let now = Instant::now();
        let pattern = |name: &str| vec![name.parse().unwrap()];
        let mut rule = ProxyRule::new(pattern("in"), pattern("usual"));
        rule.limits.groups = GROUPS;
        rule.limits.sources_per_group = SOURCES;
        rule.limits.reports_per_second = 1000;
        rule.fast_leave = true;
        let links: Links = [link(1, "in", 1500, None), link(OUT, "usual", 1500, None)]
            .into_iter()
            .collect();
        let mut fib = Rib {
            proxies: vec![rule.clone()],
            ..Rib::default()
        }
        .fib(&links, 1);
        let mut learned = MembershipDatabase::default();
        learned.rebuild(&mut fib);
        let rule = Arc::new(rule);
        let machine = |protocol, own: &str| {
            let config = DownstreamConfig::new(protocol, rule.clone());
            Downstream::new(now, config, Some(own.parse().unwrap()))
        };
        Self {
            now,
            gate: ReportRateLimiter::new(now, 1000, 7),
            machines: [
                machine(Protocol::Igmp, "10.0.0.1"),
                machine(Protocol::Mld, "fe80::1"),
            ],
            upstream: MembershipUnion::new(),
            learned,
            fib,
            wanted: BTreeMap::new(),
        }
    }

    /// One message, some time later. Limits hold, and machine, upstream and snapshot agree.
    fn hear(&mut self, from: IpAddr, to: IpAddr, message: &MembershipMessage) {
        self.now += Duration::from_millis(37);
        let now = self.now;
        let downstream = IfIndex::new(OUT).unwrap();
        let machine = &mut self.machines[usize::from(!from.is_ipv4())];
        if self.gate.admit(now, from).is_ok() {
            let standing = self.gate.sender_status(now, from);
            if machine
                .handle_message_from(now, standing, from, to, message)
                .is_ok()
            {
                let until = now + machine.timers().group_membership_interval();
                self.gate.handle_accepted_report(now, from, until);
            }
        }
        machine.handle_timeout(now);
        assert!(machine.poll_timeout().is_none_or(|at| at > now));
        assert!(machine.group_count() <= GROUPS);
        assert!(machine.source_count() <= machine.config().max_sources());
        assert!(self.gate.member_count() <= 4096);
        let mut asked = 0;
        while machine.poll_query().is_some() {
            asked += 1;
        }
        // A query holds 75 or 135 sources; each record asks once, and timers for each group.
        let records = match message {
            MembershipMessage::Records(records) => records.len(),
            _ => 1,
        };
        assert!(asked <= 2 * records + 2 * GROUPS + 2, "{asked} queries");
        while machine.poll_event().is_some() {}
        let mut changed = Vec::new();
        while let Some((group, filter)) = machine.poll_change() {
            assert_eq!(machine.filter(group), filter);
            self.learned.learn(downstream, group, filter.clone());
            self.upstream.set_filter(downstream, group, filter.clone());
            changed.push((group, filter));
        }
        if let Some(fib) = self.learned.update(&self.fib, self.fib.generation + 1) {
            self.fib = fib;
        }
        while let Some((group, filter)) = self.upstream.poll_change() {
            assert_eq!(self.upstream.union(group), filter);
            match filter.is_none() {
                true => self.wanted.remove(&group),
                false => self.wanted.insert(group, filter),
            };
        }
        for (group, filter) in changed {
            let told = self.wanted.get(&group).cloned().unwrap_or_default();
            assert_eq!(told, filter, "upstream is the union of one");
            let stranger = match group.addr() {
                IpAddr::V4(_) => IpAddr::from([10, 77, 77, 77]),
                IpAddr::V6(_) => "2001:db8::77".parse().unwrap(),
            };
            let named = match &filter {
                SourceFilter::Include(named) | SourceFilter::Exclude(named) => named,
            };
            let sources = named.iter().map(|s| s.addr()).chain([stranger]);
            for source in sources {
                let found = self.fib.wishes.find(source, group.addr());
                let taken = found.is_some_and(|f| !self.fib.wishes.set(f.set).is_empty());
                let takes = filter.takes(mcastor::model::Source::new(source).unwrap());
                assert_eq!(taken, takes, "{source} {group}");
            }
        }
        assert!(self.learned.len() <= 2 * GROUPS && self.wanted.len() <= 2 * GROUPS);
    }
}

/// Where we would speak from to such a host.
fn ours(source: std::net::IpAddr) -> std::net::IpAddr {
    let ours = if source.is_ipv4() {
        "10.0.0.1"
    } else {
        "fe80::1"
    };
    ours.parse().unwrap()
}
