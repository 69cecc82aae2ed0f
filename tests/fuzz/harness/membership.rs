//! The fuzz target for membership messages: the parsers, and the state behind them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mcastor::membership::{
    Downstream, DownstreamConfig, MembershipUnion, Protocol, ReportRateLimiter,
};
use mcastor::model::{Group, HeaderChecks, InterfaceId, Links, ProxyRule, SourceFilter};
use mcastor::table::{Fib, MembershipDatabase, Rib};
use mcastor::wire::ip::IpHeader;
use mcastor::wire::link_control::{self, HeaderPolicy, PacketClass};
use mcastor::wire::membership_message::MembershipMessage;
use mcastor::wire::{RejectReason, membership, mrdisc};

use super::link;

/// Parses a packet as an IGMP or MLD message and as a multicast router discovery message. An
/// accepted message must be the same after it is built and parsed again.
pub fn membership(data: &[u8]) -> bool {
    let on_link = ["10.0.0.0/8".parse().unwrap()];
    let checks = |headers| HeaderPolicy {
        headers,
        on_link: &on_link,
    };
    let lenient = checks(HeaderChecks::Lenient);
    let parsed = membership::parse(data, &lenient);
    let parsed_strict = membership::parse(data, &checks(HeaderChecks::Strict));
    match (&parsed, &parsed_strict) {
        (parsed, Ok(_)) => assert_eq!(parsed, &parsed_strict),
        (Err(refusal), Err(_)) => assert!(RejectReason::ALL.contains(refusal)),
        (Ok(_), Err(_)) => {}
    }
    let discovery = mrdisc::parse(data, &lenient);
    assert!(
        parsed.is_err() || discovery.is_err(),
        "accepted by both parsers"
    );
    if parsed.is_ok() || discovery.is_ok() {
        let datagram = IpHeader::parse(data).expect("an accepted message is in a valid packet");
        assert_eq!(
            link_control::classify(&datagram, data),
            Ok(PacketClass::LinkControl),
            "the message would be forwarded as data"
        );
        assert_eq!(mrdisc::is_message(&datagram, data), discovery.is_ok());
    }
    if let Ok(discovery) = &discovery {
        // The source address of the message may be invalid for sending.
        let from = own_address(discovery.source);
        let packet = mrdisc::build(&discovery.message, from);
        let again = mrdisc::parse(&packet, &checks(HeaderChecks::Strict));
        assert_eq!(again.map(|h| h.message), Ok(discovery.message));
    }
    let Ok(parsed) = parsed else {
        return discovery.is_ok();
    };
    let addresses = match &parsed.message {
        MembershipMessage::Query(query) => query.sources.len(),
        MembershipMessage::Records(records) => records.iter().map(|r| 1 + r.sources.len()).sum(),
        MembershipMessage::Report { .. } | MembershipMessage::Leave { .. } => 1,
    };
    assert!(
        addresses * 4 <= data.len(),
        "more addresses than the packet can hold"
    );
    ROUTER.with_borrow_mut(|router| {
        router.receive(parsed.source, parsed.destination, &parsed.message);
    });
    let packets = membership::build(&parsed.message, own_address(parsed.source), 65_535);
    let packets = packets.expect("an accepted message can be built");
    for packet in &packets {
        // A group of interface-local scope is not a valid destination.
        match membership::parse(packet, &checks(HeaderChecks::Strict)) {
            Err(refusal) => assert_eq!(refusal, RejectReason::BadDestination),
            // The built header has an option, so the largest messages are split.
            Ok(again) if data.len() < 60_000 => assert_eq!(again.message, parsed.message),
            Ok(_) => {}
        }
    }
    true
}

/// The state behind the parser: the rate limiter, a state machine per IP version, the upstream
/// memberships, and the FIB that follows from them.
struct RouterState {
    now: Instant,
    rate_limiter: ReportRateLimiter,
    machines: [Downstream; 2],
    upstream: MembershipUnion,
    database: MembershipDatabase,
    fib: Fib,
    upstream_filters: BTreeMap<Group, SourceFilter>,
}

/// A small group limit, so that the inputs reach it.
const GROUPS: usize = 80;

const SOURCES: usize = 8;

const OUT: u32 = 3;

thread_local! {
    static ROUTER: RefCell<RouterState> = RefCell::new(RouterState::new());
}

impl RouterState {
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
        .build_fib(&links, 1);
        let mut database = MembershipDatabase::default();
        database.rebuild(&mut fib);
        let rule = Arc::new(rule);
        let machine = |protocol, own: &str| {
            let config = DownstreamConfig::new(protocol, rule.clone());
            Downstream::new(now, config, Some(own.parse().unwrap()))
        };
        Self {
            now,
            rate_limiter: ReportRateLimiter::new(now, 1000, 7),
            machines: [
                machine(Protocol::Igmp, "10.0.0.1"),
                machine(Protocol::Mld, "fe80::1"),
            ],
            upstream: MembershipUnion::new(),
            database,
            fib,
            upstream_filters: BTreeMap::new(),
        }
    }

    /// Advances the clock and processes a message. Checks that limits hold, and that state machine,
    /// upstream memberships and FIB agree.
    fn receive(&mut self, from: IpAddr, to: IpAddr, message: &MembershipMessage) {
        self.now += Duration::from_millis(37);
        let now = self.now;
        let downstream = InterfaceId::new(OUT).unwrap();
        let machine = &mut self.machines[usize::from(!from.is_ipv4())];
        if self.rate_limiter.admit(now, from).is_ok() {
            let status = self.rate_limiter.sender_status(now, from);
            if machine
                .handle_message_from(now, status, from, to, message)
                .is_ok()
            {
                let until = now + machine.timers().group_membership_interval();
                self.rate_limiter.handle_accepted_report(now, from, until);
            }
        }
        machine.handle_timeout(now);
        assert!(machine.poll_timeout().is_none_or(|at| at > now));
        assert!(machine.group_count() <= GROUPS);
        assert!(machine.source_count() <= machine.config().max_sources());
        assert!(self.rate_limiter.member_count() <= 4096);
        let mut queries = 0;
        while machine.poll_query().is_some() {
            queries += 1;
        }
        // Each record causes at most two queries (one query holds 75 or 135 sources), and timers
        // cause at most two per group.
        let records = match message {
            MembershipMessage::Records(records) => records.len(),
            _ => 1,
        };
        assert!(queries <= 2 * records + 2 * GROUPS + 2, "{queries} queries");
        while machine.poll_event().is_some() {}
        let mut changed = Vec::new();
        while let Some((group, filter)) = machine.poll_change() {
            assert_eq!(machine.filter(group), filter);
            self.database.set(downstream, group, filter.clone());
            self.upstream.set_filter(downstream, group, filter.clone());
            changed.push((group, filter));
        }
        if let Some(fib) = self.database.update(&self.fib, self.fib.generation + 1) {
            self.fib = fib;
        }
        while let Some((group, filter)) = self.upstream.poll_change() {
            assert_eq!(self.upstream.union(group), filter);
            match filter.is_none() {
                true => self.upstream_filters.remove(&group),
                false => self.upstream_filters.insert(group, filter),
            };
        }
        for (group, filter) in changed {
            let upstream = self
                .upstream_filters
                .get(&group)
                .cloned()
                .unwrap_or_default();
            assert_eq!(upstream, filter, "the union of one filter");
            let unlisted = match group.addr() {
                IpAddr::V4(_) => IpAddr::from([10, 77, 77, 77]),
                IpAddr::V6(_) => "2001:db8::77".parse().unwrap(),
            };
            let listed = match &filter {
                SourceFilter::Include(listed) | SourceFilter::Exclude(listed) => listed,
            };
            let sources = listed.iter().map(|s| s.addr()).chain([unlisted]);
            for source in sources {
                let found = self.fib.oif_table.find(source, group.addr());
                let is_forwarded =
                    found.is_some_and(|f| !self.fib.oif_table.set(f.source_oifs).is_empty());
                let is_requested = filter.accepts(mcastor::model::Source::new(source).unwrap());
                assert_eq!(is_forwarded, is_requested, "{source} {group}");
            }
        }
        assert!(self.database.len() <= 2 * GROUPS && self.upstream_filters.len() <= 2 * GROUPS);
    }
}

/// Returns an address of the router in the IP version of `source`.
fn own_address(source: std::net::IpAddr) -> std::net::IpAddr {
    let address = if source.is_ipv4() {
        "10.0.0.1"
    } else {
        "fe80::1"
    };
    address.parse().unwrap()
}
