//! Relays and the messages of gateways, under a virtual clock.

use super::*;
use crate::model::{BootTime, Source};
use crate::wire::amt::ResponseMac;
use crate::wire::membership::{build, parse};
use crate::wire::membership_message::{GroupRecord, RecordType};

const OWN: &str = "192.0.2.1";
const GATEWAY: &str = "198.51.100.7:40000";

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn group(text: &str) -> Group {
    text.parse().unwrap()
}

fn include(source: &str) -> SourceFilter {
    SourceFilter::Include([source.parse::<Source>().unwrap()].into())
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn lists() -> ProxyRule {
    ProxyRule::new(Vec::new(), Vec::new())
}

fn report(kind: RecordType, g: &str, source: Option<&str>) -> Vec<u8> {
    let record = GroupRecord {
        kind,
        group: group(g),
        sources: source.iter().map(|s| s.parse().unwrap()).collect(),
    };
    reports(vec![record]).remove(0)
}

/// Returns the packets of a report with records of one IP version.
fn reports(records: Vec<GroupRecord>) -> Vec<Vec<u8>> {
    let own: IpAddr = match records[0].group.addr() {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => "fe80::2".parse().unwrap(),
    };
    build(&MembershipMessage::Records(records), own, 1400).unwrap()
}

/// Returns a record that adds `sources` sources of the n-th group.
fn joining(n: u32, sources: u8) -> GroupRecord {
    let group = Ipv4Addr::from_bits(Ipv4Addr::new(232, 7, 0, 0).to_bits() + n);
    let source = |n| Source::new([203, 0, 113, n].into()).unwrap();
    GroupRecord {
        kind: RecordType::AllowNewSources,
        group: Group::new(group.into()).unwrap(),
        sources: (1..=sources).map(source).collect(),
    }
}

/// A relay and the virtual time.
struct Lab {
    now: Instant,
    relay: Relay,
}

impl Lab {
    fn new(config: RelayConfig) -> Self {
        let now = Instant::now();
        let random = AmtRandom::new([9; 32]);
        Self {
            now,
            relay: Relay::new(now, config, &lists(), random),
        }
    }

    fn hand(&mut self, from: &str, message: &AmtMessage<'_>) -> Result<&'static str, AmtRefusal> {
        let (from, to) = (address(from), OWN.parse().unwrap());
        self.relay
            .handle_message(self.now, from, to, &message.to_bytes())
    }

    /// Requests a query. Returns its nonce, its MAC and whether it has the L flag.
    fn request(&mut self, from: &str, nonce: u32) -> (ResponseMac, bool) {
        let request = AmtMessage::Request {
            nonce,
            is_mld: false,
            flags: FlagLayout::Standard,
        };
        self.hand(from, &request).unwrap();
        let sent = self.relay.poll_message().unwrap();
        assert_eq!(sent.to.remote, address(from));
        match AmtMessage::parse(&sent.message).unwrap() {
            AmtMessage::MembershipQuery {
                mac,
                nonce: n,
                is_limit_reached,
                ..
            } => {
                assert_eq!(n, nonce);
                (mac, is_limit_reached)
            }
            other => panic!("{other:?}"),
        }
    }

    fn update(
        &mut self,
        from: &str,
        (nonce, mac): (u32, ResponseMac),
        packet: &[u8],
    ) -> Result<&'static str, AmtRefusal> {
        self.hand(from, &AmtMessage::MembershipUpdate { mac, nonce, packet })
    }

    /// Joins a stream as a gateway does.
    fn join(&mut self, from: &str, g: &str, source: &str) -> Result<&'static str, AmtRefusal> {
        let (mac, _) = self.request(from, 7);
        let packet = report(RecordType::AllowNewSources, g, Some(source));
        self.update(from, (7, mac), &packet)
    }

    fn advance(&mut self, by: Duration) {
        let until = self.now + by;
        while self.relay.poll_timeout() <= until {
            self.now = self.relay.poll_timeout();
            self.relay.handle_timeout(self.now);
        }
        self.now = until;
    }

    fn changes(&mut self) -> Vec<(Group, SourceFilter)> {
        let changes = self.relay.take_changes().into_iter();
        changes
            .map(|change| (change.group, change.filter))
            .collect()
    }
}

#[test]
fn discovery_and_request_are_answered_without_state() {
    let mut lab = Lab::new(RelayConfig::default());
    let nonce = 5;
    lab.hand(GATEWAY, &AmtMessage::RelayDiscovery { nonce })
        .unwrap();
    let sent = lab.relay.poll_message().unwrap();
    let relay: IpAddr = OWN.parse().unwrap();
    let advertisement = AmtMessage::RelayAdvertisement { nonce, relay };
    assert_eq!(AmtMessage::parse(&sent.message), Ok(advertisement));
    for (is_mld, source) in [(false, "192.0.0.8"), (true, "fe80::1")] {
        let flags = FlagLayout::Standard;
        let request = AmtMessage::Request {
            nonce,
            is_mld,
            flags,
        };
        lab.hand(GATEWAY, &request).unwrap();
        let sent = lab.relay.poll_message().unwrap().message;
        let Ok(AmtMessage::MembershipQuery {
            packet, gateway, ..
        }) = AmtMessage::parse(&sent)
        else {
            panic!();
        };
        assert_eq!(gateway, Some(address(GATEWAY)));
        let policy = HeaderPolicy {
            headers: HeaderChecks::Strict,
            on_link: &[],
        };
        let query = parse(packet, &policy).unwrap();
        assert_eq!(query.source.to_string(), source);
        let MembershipMessage::Query(query) = query.message else {
            panic!();
        };
        assert_eq!(query.interval, Some(secs(125)));
        assert_eq!(query.generation, Generation::Three);
    }
    assert_eq!(lab.relay.gateway_count(), 0);
    assert_eq!(lab.relay.deadlines.len(), 0);
}

#[test]
fn advertised_address_has_the_ip_version_of_the_gateway() {
    let mut lab = Lab::new(RelayConfig {
        advertise: [Some("203.0.113.9".parse().unwrap()), None],
        ..RelayConfig::default()
    });
    let discovery = AmtMessage::RelayDiscovery { nonce: 1 };
    lab.hand(GATEWAY, &discovery).unwrap();
    let sent = lab.relay.poll_message().unwrap().message;
    let relay = "203.0.113.9".parse().unwrap();
    let expected = AmtMessage::RelayAdvertisement { nonce: 1, relay };
    assert_eq!(AmtMessage::parse(&sent), Ok(expected));
    let refused = lab.hand("[2001:db8::7]:40000", &discovery);
    assert_eq!(refused, Err(AmtRefusal::BadAddress));
}

#[test]
fn update_adds_a_gateway_and_a_leave_removes_it_at_once() {
    let mut lab = Lab::new(RelayConfig::default());
    lab.join(GATEWAY, "232.1.2.3", "203.0.113.1").unwrap();
    let changes = lab.relay.take_changes();
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].filter, include("203.0.113.1"));
    let receivers = changes[0].receivers.of("203.0.113.1".parse().unwrap());
    let receivers: Vec<_> = receivers.map(|r| (r.remote, r.local)).collect();
    assert_eq!(receivers, [(address(GATEWAY), OWN.parse().unwrap())]);
    assert_eq!(lab.relay.gateway_count(), 1);
    let (mac, _) = lab.request(GATEWAY, 8);
    let leave = report(
        RecordType::BlockOldSources,
        "232.1.2.3",
        Some("203.0.113.1"),
    );
    lab.update(GATEWAY, (8, mac), &leave).unwrap();
    lab.advance(Duration::from_millis(5));
    let left = (group("232.1.2.3"), SourceFilter::none());
    assert_eq!(lab.changes(), [left]);
    assert_eq!(lab.relay.gateway_count(), 0);
    assert!(lab.relay.deadlines.is_empty());
}

#[test]
fn both_protocols_share_a_tunnel() {
    let mut lab = Lab::new(RelayConfig::default());
    lab.join(GATEWAY, "232.1.2.3", "203.0.113.1").unwrap();
    lab.join(GATEWAY, "ff3e::8000:1", "2001:db8::1").unwrap();
    assert_eq!(lab.relay.gateway_count(), 1);
    assert_eq!(lab.relay.gateways(lab.now).next().unwrap().groups, 2);
    assert_eq!(lab.changes().len(), 2);
}

#[test]
fn membership_lasts_while_its_gateway_reports() {
    let mut lab = Lab::new(RelayConfig::default());
    lab.join(GATEWAY, "232.1.2.3", "203.0.113.1").unwrap();
    lab.changes();
    for cycle in 0..4 {
        lab.advance(secs(125));
        let (mac, _) = lab.request(GATEWAY, 100 + cycle);
        let packet = report(RecordType::ModeIsInclude, "232.1.2.3", Some("203.0.113.1"));
        lab.update(GATEWAY, (100 + cycle, mac), &packet).unwrap();
    }
    assert_eq!(lab.changes(), []);
    lab.advance(secs(250));
    assert_eq!(lab.relay.gateway_count(), 1);
    lab.advance(secs(2));
    assert_eq!(lab.relay.gateway_count(), 0);
    assert_eq!(lab.changes(), [(group("232.1.2.3"), SourceFilter::none())]);
}

#[test]
fn forged_and_malformed_messages_are_refused() {
    let mut lab = Lab::new(RelayConfig::default());
    let (mac, _) = lab.request(GATEWAY, 7);
    let packet = report(
        RecordType::AllowNewSources,
        "232.1.2.3",
        Some("203.0.113.1"),
    );
    let mut wrong = mac;
    wrong.0[0] ^= 1;
    let v2_report = {
        let message = MembershipMessage::Report {
            generation: Generation::Two,
            group: group("239.1.1.1"),
        };
        build(&message, [10, 0, 0, 1].into(), 1400)
            .unwrap()
            .remove(0)
    };
    let mut broken = packet.clone();
    broken[30] ^= 0xff;
    for (from, nonce, mac, packet, refusal) in [
        (GATEWAY, 7, wrong, &packet, AmtRefusal::WrongMac),
        (GATEWAY, 8, mac, &packet, AmtRefusal::WrongMac),
        ("198.51.100.7:40001", 7, mac, &packet, AmtRefusal::WrongMac),
        ("198.51.100.8:40000", 7, mac, &packet, AmtRefusal::WrongMac),
        (GATEWAY, 7, mac, &vec![], AmtRefusal::BadReport),
        (GATEWAY, 7, mac, &broken, AmtRefusal::BadReport),
        (GATEWAY, 7, mac, &v2_report, AmtRefusal::BadReport),
    ] {
        assert_eq!(lab.update(from, (nonce, mac), packet), Err(refusal));
    }
    let query = AmtMessage::MulticastData { packet: &packet };
    assert_eq!(lab.hand(GATEWAY, &query), Err(AmtRefusal::UnexpectedType));
    assert_eq!(lab.relay.gateway_count(), 0);
    assert_eq!(lab.changes(), []);
    lab.update(GATEWAY, (7, mac), &packet).unwrap();
}

#[test]
fn teardown_ends_the_tunnel_of_the_former_address() {
    let mut lab = Lab::new(RelayConfig::default());
    let (mac, _) = lab.request(GATEWAY, 7);
    lab.join(GATEWAY, "232.1.2.3", "203.0.113.1").unwrap();
    // NAT gives the gateway another port.
    let new = "198.51.100.7:50000";
    lab.join(new, "232.1.2.3", "203.0.113.1").unwrap();
    assert_eq!(lab.relay.gateway_count(), 2);
    let teardown = |mac, nonce, gateway: &str| AmtMessage::Teardown {
        mac,
        nonce,
        gateway: address(gateway),
    };
    let refused = lab.hand(new, &teardown(mac, 8, GATEWAY));
    assert_eq!(refused, Err(AmtRefusal::WrongMac));
    let refused = lab.hand(new, &teardown(mac, 7, new));
    assert_eq!(refused, Err(AmtRefusal::WrongMac));
    assert_eq!(lab.relay.gateway_count(), 2);
    lab.hand(new, &teardown(mac, 7, GATEWAY)).unwrap();
    let left: Vec<_> = lab.relay.gateways(lab.now).map(|g| g.gateway).collect();
    assert_eq!(left, [address(new)]);
    let again = lab.hand(new, &teardown(mac, 7, GATEWAY));
    assert_eq!(again, Err(AmtRefusal::UnknownGateway));
}

/// The new process accepts updates by the MAC of the former one, and leaves end a stream there too.
#[test]
fn restored_relay_continues_tunnels_and_secrets() {
    let mut lab = Lab::new(RelayConfig::default());
    let (mac, _) = lab.request(GATEWAY, 7);
    lab.join(GATEWAY, "232.1.2.3", "203.0.113.1").unwrap();
    lab.advance(secs(10));
    let clock = |now| ClockReading {
        now,
        boot: BootTime::from_ms(100_000),
    };
    let saved = lab.relay.saved(&clock(lab.now));
    let text = serde_json::to_string(&saved).unwrap();
    let mut next = Lab::new(RelayConfig::default());
    let random = AmtRandom::new([8; 32]);
    next.relay = Relay::new(next.now, RelayConfig::default(), &lists(), random);
    let restored = serde_json::from_str(&text).unwrap();
    next.relay.restore(&clock(next.now), &restored);
    assert_eq!(
        next.changes(),
        [(group("232.1.2.3"), include("203.0.113.1"))]
    );
    assert_eq!(next.relay.gateway_count(), 1);
    let leave = report(
        RecordType::BlockOldSources,
        "232.1.2.3",
        Some("203.0.113.1"),
    );
    next.update(GATEWAY, (7, mac), &leave).unwrap();
    next.advance(secs(1));
    assert_eq!(next.relay.gateway_count(), 0);
}

#[test]
fn full_relay_sets_l_for_new_gateways_only() {
    let mut lab = Lab::new(RelayConfig {
        gateways: 1,
        ..RelayConfig::default()
    });
    assert!(!lab.request(GATEWAY, 1).1);
    lab.join(GATEWAY, "232.1.2.3", "203.0.113.1").unwrap();
    assert!(!lab.request(GATEWAY, 2).1);
    let other = "198.51.100.8:40000";
    assert!(lab.request(other, 1).1);
    let refused = lab.join(other, "232.1.2.3", "203.0.113.1");
    assert_eq!(refused, Err(AmtRefusal::GatewayLimit));
}

#[test]
fn one_prefix_cannot_take_all_tunnels() {
    let mut lab = Lab::new(RelayConfig {
        gateways: 160,
        answers_per_prefix: 1000,
        ..RelayConfig::default()
    });
    let mut join = |from: &str| lab.join(from, "232.1.2.3", "203.0.113.1").is_ok();
    let of_host = |host: &str, ports: std::ops::Range<u16>| -> Vec<String> {
        ports.map(|port| format!("{host}:{port}")).collect()
    };
    let accepted = |join: &mut dyn FnMut(&str) -> bool, from: Vec<String>| {
        from.iter().filter(|from| join(from)).count()
    };
    // Half of the limit, and no more.
    assert_eq!(accepted(&mut join, of_host("198.51.100.7", 1..200)), 80);
    assert_eq!(accepted(&mut join, of_host("198.51.100.9", 1..200)), 0);
    // Others have 16 each.
    assert_eq!(accepted(&mut join, of_host("198.51.101.7", 1..200)), 16);
    assert_eq!(accepted(&mut join, of_host("[2001:db8::7]", 1..200)), 16);
    let (_, is_limit_reached) = lab.request("[2001:db8::8]:9", 1);
    assert!(is_limit_reached);
    let (_, is_limit_reached) = lab.request("[2001:db8:1::8]:9", 1);
    assert!(!is_limit_reached);
}

#[test]
fn groups_beyond_the_limit_and_denied_ones_are_refused() {
    let mut lab = Lab::new(RelayConfig {
        groups_per_gateway: 1,
        ..RelayConfig::default()
    });
    lab.join(GATEWAY, "232.1.2.3", "203.0.113.1").unwrap();
    let refused = lab.join(GATEWAY, "232.1.2.4", "203.0.113.1");
    assert_eq!(refused, Err(AmtRefusal::GroupLimit));
    let other = "198.51.100.8:40000";
    lab.join(other, "232.1.2.4", "203.0.113.1").unwrap();
    lab.changes();
    let denying = ProxyRule {
        deny_groups: vec!["232.1.2.4/32".parse().unwrap()],
        ..lists()
    };
    lab.relay
        .reconfigure(lab.now, RelayConfig::default(), &denying);
    assert_eq!(lab.changes(), [(group("232.1.2.4"), SourceFilter::none())]);
    assert_eq!(lab.relay.gateway_count(), 1);
    let refused = lab.join(other, "232.1.2.4", "203.0.113.1");
    assert_eq!(refused, Err(AmtRefusal::NotPermitted));
}

#[test]
fn linux_gateway_gets_its_flags_and_no_address() {
    let mut lab = Lab::new(RelayConfig {
        gateways: 0,
        ..RelayConfig::default()
    });
    let mut flags_of = |nonce, is_mld, flags| {
        let request = AmtMessage::Request {
            nonce,
            is_mld,
            flags,
        };
        lab.hand(GATEWAY, &request).unwrap();
        lab.relay.poll_message().unwrap().message[1]
    };
    // G and L, then L without G because the Request is repeated.
    assert_eq!(flags_of(3, false, FlagLayout::Standard), 0x03);
    assert_eq!(flags_of(3, false, FlagLayout::Standard), 0x02);
    assert_eq!(flags_of(3, true, FlagLayout::Linux), 0x40);
    // The driver begins a new cycle every two seconds: its IGMP requests are not repeated.
    assert_eq!(flags_of(4, false, FlagLayout::Standard), 0x02);
    // Another program at the same address.
    assert_eq!(flags_of(5, true, FlagLayout::Standard), 0x03);
    assert_eq!(flags_of(6, false, FlagLayout::Standard), 0x03);
}

#[test]
fn forged_flood_is_limited_and_members_are_served() {
    let mut lab = Lab::new(RelayConfig::default());
    lab.join(GATEWAY, "232.1.2.3", "203.0.113.1").unwrap();
    let discovery = AmtMessage::RelayDiscovery { nonce: 1 };
    let mut answered = 0;
    for n in 0..100_000u32 {
        let forged = format!("{}:9", Ipv4Addr::from_bits(0x0a00_0000 + n * 97));
        if lab.hand(&forged, &discovery).is_ok() {
            lab.relay.poll_message().unwrap();
            answered += 1;
        }
        if n % 1000 == 0 {
            lab.advance(Duration::from_millis(10));
        }
    }
    // A burst of two seconds, and 5,000 answers a second for one second.
    assert!((10_000..=15_000).contains(&answered), "{answered}");
    assert_eq!(
        lab.hand("10.0.0.1:9", &discovery),
        Err(AmtRefusal::RateLimit)
    );
    lab.request(GATEWAY, 9);
    assert_eq!(lab.relay.gateway_count(), 1);
    // Requests that others send with its address are not all answered to it.
    let flags = FlagLayout::Standard;
    let forged = |nonce| AmtMessage::Request {
        nonce,
        is_mld: false,
        flags,
    };
    let answered = (0..10_000).filter(|n| lab.hand(GATEWAY, &forged(*n)).is_ok());
    let answered = answered.count();
    assert!((100..=200).contains(&answered), "{answered}");
}

#[test]
fn ten_thousand_gateways_of_one_stream_are_one_change() {
    let mut lab = Lab::new(RelayConfig {
        answers: 1_000_000,
        answers_per_prefix: 1_000_000,
        ..RelayConfig::default()
    });
    for n in 0..10_000u32 {
        let from = format!("{}:9", Ipv4Addr::from_bits(0x0a00_0000 + n));
        lab.join(&from, "232.1.2.3", "203.0.113.1").unwrap();
        // 4,000 a second.
        if n % 4 == 0 {
            lab.advance(Duration::from_millis(1));
        }
    }
    let changes = lab.relay.take_changes();
    assert_eq!(changes.len(), 1);
    assert_eq!(
        changes[0]
            .receivers
            .of("203.0.113.1".parse().unwrap())
            .count(),
        10_000
    );
    let bytes = size_of::<Downstream>() + size_of::<GatewayTunnel>();
    assert!(bytes < 2048, "{bytes}");
}

/// A gateway with a valid MAC sends updates with 80 records, 10,000 a second.
#[test]
fn updates_of_a_gateway_are_limited_by_their_work() {
    const SECONDS: u32 = 3;
    let mut lab = Lab::new(RelayConfig::default());
    let member = "198.51.100.9:40000";
    for _ in 0..2 {
        lab.join(member, "232.1.2.3", "203.0.113.1").unwrap();
    }
    let (mac, _) = lab.request(GATEWAY, 7);
    let update = reports((0..80).map(|n| joining(n, 1)).collect()).remove(0);
    let (mut accepted, mut refused) = (0, 0);
    for ms in 0..SECONDS * 1000 {
        for _ in 0..10 {
            match lab.update(GATEWAY, (7, mac), &update) {
                Ok(_) => accepted += 1,
                Err(reason) => {
                    assert_eq!(reason, AmtRefusal::UpdateRate);
                    refused += 1;
                }
            }
        }
        // Others are not affected, whether the relay knows them or not.
        if ms % 100 == 0 {
            lab.join(member, "232.1.2.3", "203.0.113.1").unwrap();
            let new = format!("192.0.{}.7:9", ms / 100);
            lab.join(&new, "232.1.2.3", "203.0.113.1").unwrap();
        }
        lab.advance(Duration::from_millis(1));
    }
    // Each costs 80 * (16 + 1) / 256 = 5.3 reports, or 5.6 if the sources are known. Half of 10,000
    // a second, and what may be used at once.
    assert!((800..=4000).contains(&accepted), "{accepted}");
    assert_eq!(accepted + refused, SECONDS * 10_000);
    // What was refused ends no membership.
    let gateway = lab.relay.gateways(lab.now).find(|g| g.groups == 80);
    assert_eq!(gateway.map(|g| g.gateway), Some(address(GATEWAY)));
}

#[test]
fn gateway_joins_as_many_groups_as_its_limit_at_once() {
    let mut lab = Lab::new(RelayConfig::default());
    let other = "198.51.100.8:40000";
    let single: Vec<Vec<u8>> = (0..256)
        .map(|n| reports(vec![joining(n, 16)]).remove(0))
        .collect();
    let together = reports((0..256).map(|n| joining(n, 16)).collect());
    for (from, packets) in [(GATEWAY, single), (other, together)] {
        let (mac, _) = lab.request(from, 7);
        for packet in &packets {
            assert_eq!(lab.update(from, (7, mac), packet), Ok("update"));
        }
        let status = lab
            .relay
            .gateways(lab.now)
            .find(|g| g.gateway == address(from));
        assert_eq!(status.map(|g| g.groups), Some(256));
        let further = reports(vec![joining(256, 1)]).remove(0);
        let refused = lab.update(from, (7, mac), &further);
        assert_eq!(refused, Err(AmtRefusal::GroupLimit));
    }
}

#[test]
fn packets_leave_from_the_address_of_the_last_update() {
    let mut lab = Lab::new(RelayConfig::default());
    lab.join(GATEWAY, "232.1.2.3", "203.0.113.1").unwrap();
    lab.changes();
    let (mac, _) = lab.request(GATEWAY, 8);
    let packet = report(RecordType::ModeIsInclude, "232.1.2.3", Some("203.0.113.1"));
    let update = AmtMessage::MembershipUpdate {
        mac,
        nonce: 8,
        packet: &packet,
    };
    let other: IpAddr = "192.0.2.2".parse().unwrap();
    let update = update.to_bytes();
    let from = address(GATEWAY);
    lab.relay
        .handle_message(lab.now, from, other, &update)
        .unwrap();
    let changes = lab.relay.take_changes();
    let receivers = changes[0].receivers.of("203.0.113.1".parse().unwrap());
    assert_eq!(receivers.map(|r| r.local).collect::<Vec<_>>(), [other]);
}
