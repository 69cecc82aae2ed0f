//! Gateways against relays that a test controls, under a virtual clock.

use super::*;
use crate::wire::amt::{FlagLayout, ResponseMac};
use crate::wire::membership::{build, parse};
use crate::wire::membership_message::{Generation, MembershipMessage, Query, RecordType};

use std::net::IpAddr;

const RELAY: &str = "192.0.2.1:2268";
const OTHER_RELAY: &str = "192.0.2.2:2268";
const GATEWAY: &str = "198.51.100.7:40000";
const STREAM: &str = "232.1.2.3";

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn group(text: &str) -> Group {
    text.parse().unwrap()
}

fn include(sources: &[&str]) -> SourceFilter {
    SourceFilter::Include(sources.iter().map(|s| s.parse().unwrap()).collect())
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A relay: what it answers, and what it received.
struct VirtualRelay {
    is_alive: bool,
    advertises: Option<IpAddr>,
    limit_reached: bool,
    interval: Duration,
    /// The address of the gateway that queries contain.
    gateway: Option<SocketAddr>,
    /// Whether it understands the P flag of the Linux driver only.
    is_linux: bool,
    mac: ResponseMac,
    requests: Vec<(Duration, u32, bool)>,
    discoveries: Vec<Duration>,
    /// Whether updates with its MAC request a stream, by group.
    reported: Vec<(RecordType, Group)>,
    teardowns: Vec<(ResponseMac, u32, SocketAddr)>,
}

impl VirtualRelay {
    fn new() -> Self {
        Self {
            is_alive: true,
            advertises: None,
            limit_reached: false,
            interval: secs(125),
            gateway: None,
            is_linux: false,
            mac: ResponseMac([1; 6]),
            requests: Vec::new(),
            discoveries: Vec::new(),
            reported: Vec::new(),
            teardowns: Vec::new(),
        }
    }

    fn query(&self, nonce: u32, is_mld: bool) -> Vec<u8> {
        let query = Query {
            generation: Generation::Three,
            group: None,
            max_response_time: secs(10),
            suppress: false,
            robustness: 2,
            interval: Some(self.interval),
            sources: Vec::new(),
        };
        let source: IpAddr = match is_mld {
            true => "fe80::1".parse().unwrap(),
            false => "192.0.2.1".parse().unwrap(),
        };
        let query = build(&MembershipMessage::Query(query), source, 1280).unwrap();
        AmtMessage::MembershipQuery {
            is_limit_reached: self.limit_reached,
            mac: self.mac,
            nonce,
            packet: &query[0],
            gateway: self.gateway,
            flags: FlagLayout::Standard,
        }
        .to_bytes()
    }

    fn answer(&mut self, time: Duration, own: SocketAddr, message: &[u8]) -> Option<Vec<u8>> {
        if !self.is_alive {
            return None;
        }
        match AmtMessage::parse(message).unwrap() {
            AmtMessage::RelayDiscovery { nonce } => {
                self.discoveries.push(time);
                let relay = self.advertises.unwrap_or(own.ip());
                Some(AmtMessage::RelayAdvertisement { nonce, relay }.to_bytes())
            }
            AmtMessage::Request {
                nonce,
                is_mld,
                flags,
            } => {
                if self.is_linux && is_mld && flags == FlagLayout::Standard {
                    return None;
                }
                self.requests.push((time, nonce, is_mld));
                Some(self.query(nonce, is_mld))
            }
            AmtMessage::MembershipUpdate { mac, nonce, packet } => {
                let newest = self.requests.iter().rev().find(|r| r.1 == nonce);
                assert!(newest.is_some() && mac == self.mac, "{nonce} {mac:?}");
                let policy = crate::wire::link_control::HeaderPolicy {
                    headers: crate::model::HeaderChecks::Lenient,
                    on_link: &[],
                };
                let MembershipMessage::Records(records) = parse(packet, &policy).unwrap().message
                else {
                    panic!();
                };
                let named = records.iter().map(|r| (r.kind, r.group));
                self.reported.extend(named);
                None
            }
            AmtMessage::Teardown {
                mac,
                nonce,
                gateway,
            } => {
                self.teardowns.push((mac, nonce, gateway));
                None
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A gateway, its relays, and the virtual time.
struct Lab {
    start: Instant,
    now: Instant,
    gateway: Gateway,
    relays: BTreeMap<SocketAddr, VirtualRelay>,
    lookups: Vec<(Duration, LookupKey)>,
    events: Vec<(Duration, GatewayEvent)>,
}

impl Lab {
    fn new(ways: Vec<RelayWay>, relays: &[&str]) -> Self {
        let now = Instant::now();
        let config = GatewayConfig {
            ways,
            families: [true; 2],
            outer: [true; 2],
        };
        Self {
            start: now,
            now,
            gateway: Gateway::new(config, AmtRandom::new([3; 32])),
            relays: relays
                .iter()
                .map(|a| (address(a), VirtualRelay::new()))
                .collect(),
            lookups: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Returns a lab with these addresses as the configured relays.
    fn with_addresses(relays: &[&str]) -> Self {
        let ways = relays.iter().map(|a| RelayWay::Address(address(a)));
        Self::new(ways.collect(), relays)
    }

    fn join(&mut self, stream: &str, sources: &[&str]) {
        self.gateway.set_filter(group(stream), include(sources));
    }

    fn relay(&mut self, of: &str) -> &mut VirtualRelay {
        self.relays.get_mut(&address(of)).unwrap()
    }

    /// Runs until a time since the start, while packets arrive from a relay each second.
    fn run_with_traffic(&mut self, relay: &str, until: Duration) {
        while self.now < self.start + until {
            self.gateway.handle_traffic(self.now, address(relay));
            let next = self.now - self.start + secs(1);
            self.run_until(next.min(until));
        }
    }

    /// Runs until a time since the start.
    fn run_until(&mut self, until: Duration) {
        let until = self.start + until;
        loop {
            self.gateway.handle_timeout(self.now);
            let mut is_idle = true;
            while let Some(output) = self.gateway.poll_output() {
                is_idle = false;
                let time = self.now - self.start;
                match output {
                    GatewayOutput::Lookup(key) => self.lookups.push((time, key)),
                    GatewayOutput::Send { to, message } => {
                        let relay = self.relays.get_mut(&to);
                        let answer = relay.and_then(|r| r.answer(time, to, &message));
                        if let Some(answer) = answer {
                            self.gateway.handle_message(self.now, to, &answer).unwrap();
                        }
                    }
                }
            }
            let time = self.now - self.start;
            let events = std::iter::from_fn(|| self.gateway.poll_event());
            self.events.extend(events.map(|event| (time, event)));
            if !is_idle {
                continue;
            }
            let next = self.gateway.poll_timeout().unwrap_or(until);
            if next >= until {
                self.now = until;
                return;
            }
            self.now = next.max(self.now + Duration::from_millis(1));
        }
    }

    fn failures(&self) -> Vec<(u64, SocketAddr, RelayFailure)> {
        let failed = self.events.iter().filter_map(|(time, event)| match event {
            GatewayEvent::Failed {
                address, failure, ..
            } => Some((time.as_secs(), *address, *failure)),
            _ => None,
        });
        failed.collect()
    }
}

#[test]
fn join_is_reported_after_discovery_request_and_query() {
    let mut lab = Lab::with_addresses(&[RELAY]);
    lab.run_until(secs(5));
    assert_eq!(lab.gateway.poll_timeout(), None);
    assert_eq!(lab.gateway.missing_tunnels(), 0);
    lab.join(STREAM, &["203.0.113.1"]);
    lab.run_until(secs(20));
    assert_eq!(lab.gateway.missing_tunnels(), 0);
    let relay = lab.relay(RELAY);
    assert_eq!(relay.discoveries, [secs(5)]);
    // Nothing arrived, so the relay is queried again.
    assert_eq!(relay.requests.len(), 2);
    // The first report is repeated.
    let joined = (RecordType::AllowNewSources, group(STREAM));
    let state = (RecordType::ModeIsInclude, group(STREAM));
    assert_eq!(relay.reported, [joined, joined, state]);
    assert_eq!(lab.gateway.missing(group(STREAM), None), None);
}

#[test]
fn each_cycle_has_a_new_nonce_and_reports_the_state() {
    let mut lab = Lab::with_addresses(&[RELAY]);
    lab.relay(RELAY).interval = secs(30);
    lab.join(STREAM, &["203.0.113.1"]);
    lab.run_until(secs(95));
    let relay = lab.relay(RELAY);
    let times: Vec<u64> = relay.requests.iter().map(|r| r.0.as_secs()).collect();
    assert_eq!(times, [0, 3, 33, 63, 93]);
    let nonces: BTreeSet<u32> = relay.requests.iter().map(|r| r.1).collect();
    assert_eq!(nonces.len(), 5);
    let state = (RecordType::ModeIsInclude, group(STREAM));
    assert_eq!(relay.reported[2..], [state; 4]);
}

#[test]
fn protocols_have_cycles_and_nonces_of_their_own() {
    let mut lab = Lab::with_addresses(&[RELAY]);
    lab.join(STREAM, &["203.0.113.1"]);
    lab.join("ff3e::8000:1", &["2001:db8::1"]);
    lab.run_until(secs(2));
    let requests = &lab.relay(RELAY).requests;
    assert_eq!(requests.len(), 2);
    assert_ne!(requests[0].1, requests[1].1);
    assert_ne!(requests[0].2, requests[1].2);
}

#[test]
fn leave_is_reported_and_ends_the_tunnel() {
    let mut lab = Lab::with_addresses(&[RELAY]);
    lab.join(STREAM, &["203.0.113.1"]);
    lab.run_until(secs(10));
    lab.gateway.set_filter(group(STREAM), SourceFilter::none());
    lab.run_until(secs(300));
    let relay = lab.relay(RELAY);
    let left = (RecordType::BlockOldSources, group(STREAM));
    assert_eq!(relay.reported[3..], [left, left]);
    assert_eq!(relay.requests.len(), 2);
    assert_eq!(lab.gateway.tunnels(lab.now).count(), 0);
    assert_eq!(lab.gateway.poll_timeout(), None);
}

#[test]
fn unanswered_messages_are_repeated_with_growing_waits() {
    let mut lab = Lab::with_addresses(&[RELAY]);
    lab.relay(RELAY).is_alive = false;
    lab.join(STREAM, &["203.0.113.1"]);
    lab.run_until(secs(60));
    assert_eq!(lab.failures().len(), 1);
    // The only candidate is tried on.
    lab.relay(RELAY).is_alive = true;
    lab.run_until(secs(400));
    let relay = lab.relay(RELAY);
    assert_eq!(relay.discoveries.len(), 1);
    assert!(!relay.reported.is_empty());
}

#[test]
fn next_relay_is_used_if_the_first_does_not_answer() {
    let mut lab = Lab::with_addresses(&[RELAY, OTHER_RELAY]);
    lab.relay(RELAY).is_alive = false;
    lab.join(STREAM, &["203.0.113.1"]);
    lab.run_until(secs(3));
    assert_eq!(lab.relay(OTHER_RELAY).discoveries, [secs(2)]);
    assert!(!lab.relay(OTHER_RELAY).reported.is_empty());
    assert!(lab.relay(RELAY).reported.is_empty());
}

#[test]
fn streams_move_from_a_relay_that_dies_and_others_stay() {
    let mut lab = Lab::new(vec![RelayWay::Driad], &[RELAY, OTHER_RELAY]);
    let relays = |first, second| {
        let candidate = |text, rank| RelayCandidate {
            rank,
            ..RelayCandidate::new(address(text))
        };
        Some((vec![candidate(first, 0), candidate(second, 1)], secs(3600)))
    };
    let (a, b) = ("203.0.113.1", "203.0.113.2");
    lab.join(STREAM, &[a, b]);
    lab.run_until(secs(1));
    let key = |source: &str| LookupKey::Source(source.parse().unwrap());
    let asked: Vec<_> = lab.lookups.iter().map(|(_, key)| key.clone()).collect();
    assert_eq!(asked, [key(a), key(b)]);
    let now = lab.now;
    lab.gateway
        .handle_answer(now, &key(a), relays(RELAY, OTHER_RELAY));
    lab.gateway
        .handle_answer(now, &key(b), relays(OTHER_RELAY, RELAY));
    lab.run_until(secs(2));
    assert!(!lab.relay(RELAY).reported.is_empty());
    let before = lab.relay(OTHER_RELAY).reported.len();
    lab.relay(RELAY).is_alive = false;
    lab.run_with_traffic(OTHER_RELAY, secs(35));
    let failures = lab.failures();
    let failed: Vec<_> = failures.iter().map(|f| f.1).collect();
    assert_eq!(failed, [address(RELAY)]);
    assert!((4..=10).contains(&failures[0].0), "{failures:?}");
    assert!(lab.relay(OTHER_RELAY).reported.len() > before);
    assert_eq!(
        lab.gateway.missing(group(STREAM), Some(a.parse().unwrap())),
        None
    );
}

#[test]
fn relay_with_limit_is_replaced_and_gets_no_update() {
    let mut lab = Lab::with_addresses(&[RELAY, OTHER_RELAY]);
    lab.relay(RELAY).limit_reached = true;
    lab.join(STREAM, &["203.0.113.1"]);
    lab.run_until(secs(30));
    assert!(lab.relay(RELAY).reported.is_empty());
    assert_eq!(lab.relay(OTHER_RELAY).discoveries, [secs(0)]);
    assert!(!lab.relay(OTHER_RELAY).reported.is_empty());
    let failure = lab.failures()[0];
    assert_eq!(failure, (0, address(RELAY), RelayFailure::LimitReached));
}

#[test]
fn connected_relay_that_reaches_its_limit_is_kept() {
    let mut lab = Lab::with_addresses(&[RELAY, OTHER_RELAY]);
    lab.relay(RELAY).interval = secs(2);
    lab.join(STREAM, &["203.0.113.1"]);
    lab.run_until(secs(1));
    lab.relay(RELAY).limit_reached = true;
    lab.run_until(secs(3));
    assert!(lab.failures().is_empty());
    assert_eq!(lab.relay(RELAY).reported.len(), 3);
}

#[test]
fn silent_relay_is_replaced_and_left() {
    let mut lab = Lab::with_addresses(&[RELAY, OTHER_RELAY]);
    lab.join(STREAM, &["203.0.113.1"]);
    lab.run_until(secs(130));
    let (time, relay, failure) = lab.failures()[0];
    assert_eq!((relay, failure), (address(RELAY), RelayFailure::Silent));
    assert!((4..=8).contains(&time), "{time}");
    let left = (RecordType::BlockOldSources, group(STREAM));
    assert!(lab.relay(RELAY).reported.contains(&left));
    assert!(!lab.relay(OTHER_RELAY).reported.is_empty());
}

/// A source that has paused is silent at all relays.
#[test]
fn silences_grow_until_a_packet_arrives() {
    let relays: Vec<String> = (1..=8).map(|n| format!("192.0.2.{n}:2268")).collect();
    let relays: Vec<&str> = relays.iter().map(String::as_str).collect();
    let mut lab = Lab::with_addresses(&relays);
    lab.join(STREAM, &["203.0.113.1"]);
    lab.run_until(secs(400));
    let waits = |failures: &[(u64, SocketAddr, RelayFailure)]| -> Vec<u64> {
        let times = std::iter::once(0).chain(failures.iter().map(|failure| failure.0));
        let times: Vec<u64> = times.collect();
        times.windows(2).map(|pair| pair[1] - pair[0]).collect()
    };
    let failures = lab.failures();
    assert!(failures.iter().all(|f| f.2 == RelayFailure::Silent));
    let waited = waits(&failures);
    // A second is lost by rounding.
    for (wait, longest) in waited.iter().zip([8, 16, 32, 64, 120, 120, 120]) {
        assert!((3..=longest + 1).contains(wait), "{waited:?}");
    }
    let longest = *waited.iter().max().unwrap();
    assert!(waited.len() >= 5 && longest > 16, "{waited:?}");

    // The next silence after a packet is a first one.
    let mut lab = Lab::with_addresses(&relays);
    lab.join(STREAM, &["203.0.113.1"]);
    while lab.failures().len() < 4 {
        lab.run_until(lab.now - lab.start + secs(1));
    }
    let relay = lab.gateway.relays().max().unwrap();
    let since = (lab.now - lab.start).as_secs();
    lab.gateway.handle_traffic(lab.now, relay);
    lab.run_until(secs(since + 10));
    let (time, left, _) = lab.failures()[4];
    assert_eq!(left, relay);
    assert!((3..=9).contains(&(time - since)), "{time} {since}");
}

#[test]
fn relay_with_traffic_is_not_replaced() {
    let mut lab = Lab::with_addresses(&[RELAY, OTHER_RELAY]);
    lab.join(STREAM, &["203.0.113.1"]);
    lab.run_with_traffic(RELAY, secs(400));
    assert!(lab.failures().is_empty());
    assert!(lab.relay(OTHER_RELAY).discoveries.is_empty());
}

#[test]
fn address_change_is_answered_by_a_teardown() {
    let mut lab = Lab::with_addresses(&[RELAY]);
    let relay = lab.relay(RELAY);
    relay.interval = secs(10);
    relay.gateway = Some(address(GATEWAY));
    lab.join(STREAM, &["203.0.113.1"]);
    lab.run_until(secs(15));
    assert!(lab.relay(RELAY).teardowns.is_empty());
    let former = *lab.relay(RELAY).requests.last().unwrap();
    let relay = lab.relay(RELAY);
    relay.gateway = Some(address("198.51.100.7:50000"));
    relay.mac = ResponseMac([2; 6]);
    lab.run_until(secs(25));
    let teardown = (ResponseMac([1; 6]), former.1, address(GATEWAY));
    assert_eq!(lab.relay(RELAY).teardowns, [teardown]);
    let status = lab.gateway.tunnels(lab.now).next().unwrap();
    assert_eq!(status.gateway, Some(address("198.51.100.7:50000")));
}

#[test]
fn linux_relay_gets_one_nonce_for_both_protocols() {
    let mut lab = Lab::with_addresses(&[RELAY]);
    let relay = lab.relay(RELAY);
    relay.is_linux = true;
    relay.interval = secs(20);
    lab.join(STREAM, &["203.0.113.1"]);
    lab.join("ff3e::8000:1", &["2001:db8::1"]);
    lab.run_until(secs(50));
    assert!(lab.gateway.tunnels(lab.now).next().unwrap().has_linux_flags);
    let requests = &lab.relay(RELAY).requests;
    let (mut pairs, mut seen) = (0, BTreeMap::new());
    for (_, nonce, is_mld) in requests {
        if seen
            .insert(*nonce, *is_mld)
            .is_some_and(|other| other != *is_mld)
        {
            pairs += 1;
        }
    }
    assert!(pairs >= 2, "{requests:?}");
}

#[test]
fn two_addresses_of_one_relay_share_its_tunnel() {
    let mut lab = Lab::new(vec![RelayWay::Driad], &[RELAY, OTHER_RELAY]);
    lab.relay(OTHER_RELAY).advertises = Some(address(RELAY).ip());
    for (source, relay) in [("203.0.113.1", RELAY), ("203.0.113.2", OTHER_RELAY)] {
        lab.join(&format!("232.1.1.{}", &source[10..]), &[source]);
        lab.run_until(lab.now - lab.start + secs(1));
        let candidates = vec![RelayCandidate::new(address(relay))];
        let key = LookupKey::Source(source.parse().unwrap());
        let answer = Some((candidates, secs(600)));
        lab.gateway.handle_answer(lab.now, &key, answer);
    }
    lab.run_until(secs(10));
    assert_eq!(lab.gateway.tunnels(lab.now).count(), 1);
    assert!(lab.relay(OTHER_RELAY).requests.is_empty());
    assert_eq!(lab.gateway.tunnels(lab.now).next().unwrap().memberships, 2);
}

#[test]
fn candidates_of_equal_rank_start_250_ms_apart() {
    let v6 = "[2001:db8::1]:2268";
    let mut lab = Lab::new(
        vec![RelayWay::Host("relay.example".into(), 2268)],
        &[v6, RELAY],
    );
    lab.relay(v6).is_alive = false;
    lab.join(STREAM, &["203.0.113.1"]);
    lab.run_until(secs(1));
    let candidates = [v6, RELAY].map(|a| RelayCandidate::new(address(a)));
    let key = lab.lookups[0].1.clone();
    let answer = Some((candidates.to_vec(), secs(600)));
    lab.gateway.handle_answer(lab.now, &key, answer);
    lab.run_until(secs(2));
    assert_eq!(lab.relay(RELAY).discoveries, [Duration::from_millis(1250)]);
}

#[test]
fn lies_are_refused() {
    let mut lab = Lab::with_addresses(&[RELAY]);
    lab.relay(RELAY).is_alive = false;
    lab.join(STREAM, &["203.0.113.1"]);
    lab.gateway.handle_timeout(lab.now);
    let discovery = |lab: &mut Lab| match lab.gateway.poll_output() {
        Some(GatewayOutput::Send { message, .. }) => match AmtMessage::parse(&message) {
            Ok(AmtMessage::RelayDiscovery { nonce }) => nonce,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    let nonce = discovery(&mut lab);
    let now = lab.now;
    let mut hand = |from: &str, bytes: &[u8]| lab.gateway.handle_message(now, address(from), bytes);
    let advertise = |nonce, relay: &str| {
        let relay = relay.parse().unwrap();
        AmtMessage::RelayAdvertisement { nonce, relay }.to_bytes()
    };
    for (bytes, refusal) in [
        (advertise(nonce ^ 1, "192.0.2.1"), AmtRefusal::WrongNonce),
        (advertise(nonce, "2001:db8::1"), AmtRefusal::OtherFamily),
        (advertise(nonce, "224.0.0.1"), AmtRefusal::BadAddress),
        (advertise(nonce, "0.0.0.0"), AmtRefusal::BadAddress),
        (vec![2, 0, 0, 0, 1], AmtRefusal::Length),
        (vec![0x12; 12], AmtRefusal::Version),
        (vec![6, 0, 0x45], AmtRefusal::UnexpectedType),
    ] {
        assert_eq!(hand(RELAY, &bytes), Err(refusal));
    }
    hand(RELAY, &advertise(nonce, "192.0.2.1")).unwrap();
    lab.gateway.handle_timeout(now);
    let Some(GatewayOutput::Send { message, .. }) = lab.gateway.poll_output() else {
        panic!();
    };
    let Ok(AmtMessage::Request { nonce, .. }) = AmtMessage::parse(&message) else {
        panic!();
    };
    let relay = VirtualRelay::new();
    let mut hand = |from: &str, bytes: &[u8]| lab.gateway.handle_message(now, address(from), bytes);
    let good = relay.query(nonce, false);
    let mut broken = good.clone();
    broken[12 + 20] ^= 0xff;
    for (from, bytes, refusal) in [
        (OTHER_RELAY, good.clone(), AmtRefusal::UnknownRelay),
        ("192.0.2.1:2269", good.clone(), AmtRefusal::UnknownRelay),
        (RELAY, relay.query(nonce ^ 1, false), AmtRefusal::WrongNonce),
        (RELAY, relay.query(nonce, true), AmtRefusal::BadQuery),
        (RELAY, good[..30].to_vec(), AmtRefusal::BadQuery),
        (RELAY, good[..11].to_vec(), AmtRefusal::Length),
        (RELAY, broken, AmtRefusal::BadQuery),
    ] {
        assert_eq!(hand(from, &bytes), Err(refusal), "{refusal:?}");
    }
    hand(RELAY, &good).unwrap();
}

#[test]
fn no_relay_is_reported_once() {
    let mut lab = Lab::new(vec![RelayWay::Driad], &[]);
    let source: Source = "203.0.113.1".parse().unwrap();
    lab.join(STREAM, &["203.0.113.1"]);
    lab.run_until(secs(1));
    let answer = Some((vec![], secs(60)));
    let now = lab.now;
    lab.gateway
        .handle_answer(now, &LookupKey::Source(source), answer);
    lab.run_until(secs(200));
    let events: Vec<_> = lab.events.iter().map(|(_, event)| *event).collect();
    let source = Some(source);
    assert_eq!(events, [GatewayEvent::NoRelay { source }]);
    assert_eq!(
        lab.gateway.missing(group(STREAM), source),
        Some("no relay is known")
    );
    assert_eq!(lab.gateway.missing_tunnels(), 1);
    lab.gateway.set_filter(group(STREAM), SourceFilter::none());
    lab.run_until(secs(201));
    assert_eq!(lab.gateway.missing_tunnels(), 0);
}
