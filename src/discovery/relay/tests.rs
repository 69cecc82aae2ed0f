//! The machine with three links, against messages of strangers.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::discovery::config::{AddressMode, AnswerMode, DiscoveryLimits};
use crate::discovery::link_table::DiscoveryLink;
use crate::discovery::offer::{OfferPolicy, OfferRule};
use crate::model::{Link, LinkAddress, MacAddress};

#[derive(Default)]
struct AnyPort(BTreeSet<AnswerPort>);

impl Ports for AnyPort {
    fn reserve(&mut self, port: AnswerPort) -> bool {
        self.0.insert(port)
    }
    fn release(&mut self, port: AnswerPort) {
        assert!(self.0.remove(&port));
    }
}

fn id(n: u32) -> InterfaceId {
    InterfaceId::new(n).unwrap()
}

fn links() -> LinkTable {
    let link = |n: u32| {
        let link = Link::new(id(n), format!("e{n}").parse().unwrap());
        let address = |text: String| {
            let net: ipnet::IpNet = text.parse().unwrap();
            LinkAddress {
                address: net.addr(),
                on_link: net.trunc(),
            }
        };
        let addresses = [format!("10.0.{n}.1/24"), format!("fd00:{n}::1/64")]
            .map(address)
            .to_vec();
        (id(n), DiscoveryLink { link, addresses })
    };
    (1..=3).map(link).collect()
}

fn relay(deny: Vec<OfferRule>, limits: DiscoveryLimits) -> DiscoveryRelay {
    let protocols =
        "mdns ssdp ws-discovery llmnr coap knx slp sap dds 239.1.2.3:5000 broadcast:65001";
    let rule = DiscoveryRule {
        name: "all".into(),
        between: vec!["e*".parse().unwrap()],
        from: Vec::new(),
        to: Vec::new(),
        protocols: protocols.split(' ').map(|p| p.parse().unwrap()).collect(),
        policy: OfferPolicy {
            allow: Vec::new(),
            deny,
        },
        answers: AnswerMode::Auto,
        addresses: AddressMode::Rewrite,
        limits,
    };
    let mut relay = DiscoveryRelay::new(vec![rule]);
    relay.set_links(links(), PublishedPorts::new(), &mut AnyPort::default());
    relay
}

fn message<'a>(link: u32, from: &str, to: &str, payload: &'a [u8]) -> DiscoveryMessage<'a> {
    DiscoveryMessage {
        link: id(link),
        station: Some(MacAddress([2, 0, 0, 0, 0, 9])),
        is_of_this_host: false,
        datagram: UdpDatagram {
            source: from.parse().unwrap(),
            destination: to.parse().unwrap(),
            ttl: 1,
            payload,
        },
    }
}

const SEARCH: &[u8] = b"M-SEARCH * HTTP/1.1\r\nST: ssdp:all\r\n\r\n";
const FOUND: &[u8] = b"HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\n\r\n";

/// 200 askers ask at once on one link, and 50 devices of another answer each of them: every answer
/// goes to its asker, from its device.
#[test]
fn every_answer_goes_to_its_asker() {
    let limits = DiscoveryLimits {
        messages_per_second: 1000,
        ..DiscoveryLimits::default()
    };
    let (mut relay, mut ports, now) = (relay(vec![], limits), AnyPort::default(), Instant::now());
    let mut answers = 0;
    for asker in 2..202u8 {
        let from = format!("10.0.1.{asker}:{}", 40_000 + u32::from(asker));
        let question = message(1, &from, "239.255.255.250:1900", SEARCH);
        let asked = relay.handle(now, &question, &mut ports);
        assert_eq!(
            asked.iter().map(|m| m.link).collect::<Vec<_>>(),
            [id(2), id(3)]
        );
        let sent = UdpDatagram::parse(&asked[0].packet, true).unwrap();
        assert_eq!(
            (sent.payload, sent.source.ip()),
            (SEARCH, [10, 0, 2, 1].into())
        );
        let port = sent.source.to_string();
        for device in 10..60 {
            let device = format!("10.0.2.{device}:1900");
            let out = relay.handle(now, &message(2, &device, &port, FOUND), &mut ports);
            let [answer] = out.as_slice() else {
                panic!("{out:?}")
            };
            let answer = UdpDatagram::parse(&answer.packet, true).unwrap();
            assert_eq!(answer.destination.to_string(), from);
            assert_eq!(answer.source.to_string(), device);
            answers += 1;
        }
    }
    assert_eq!(answers, 10_000);
    assert_eq!(ports.0.len(), 400);
    relay.expire(now + Duration::from_secs(8), &mut ports);
    assert!(ports.0.is_empty());
}

/// An answer after the time of the protocol, or to a port of no question, goes nowhere.
#[test]
fn late_and_unasked_answers_are_dropped() {
    let (mut relay, mut ports, now) = (
        relay(vec![], Default::default()),
        AnyPort::default(),
        Instant::now(),
    );
    let question = message(1, "10.0.1.9:4000", "239.255.255.250:1900", SEARCH);
    let asked = relay.handle(now, &question, &mut ports);
    let port = UdpDatagram::parse(&asked[0].packet, true)
        .unwrap()
        .source
        .to_string();
    let late = now + Duration::from_secs(9);
    assert!(
        relay
            .handle(late, &message(2, "10.0.2.9:1900", &port, FOUND), &mut ports)
            .is_empty()
    );
    assert!(
        relay
            .handle(now, &message(3, "10.0.3.9:1900", &port, FOUND), &mut ports)
            .is_empty()
    );
    assert!(
        relay
            .handle(
                now,
                &message(2, "10.0.2.9:1900", "10.0.2.1:61900", FOUND),
                &mut ports
            )
            .is_empty()
    );
}

/// Long messages of one link, most of which cross to nowhere, do not delay those of others.
#[test]
fn messages_of_a_link_are_examined_up_to_a_limit() {
    let limits = DiscoveryLimits::default();
    let (mut relay, mut ports, now) = (relay(vec![], limits), AnyPort::default(), Instant::now());
    let malformed = [0xff; 9000];
    let long = message(1, "10.0.1.9:5353", "224.0.0.251:5353", &malformed);
    let mut examined = 0;
    for _ in 0..1000 {
        assert!(relay.handle(now, &long, &mut ports).is_empty());
        let withheld = relay.take_withheld();
        let reasons: Vec<WithheldReason> = withheld.iter().map(|w| w.reason).collect();
        match reasons.as_slice() {
            [WithheldReason::Malformed] => examined += 1,
            [WithheldReason::RateLimit] => {}
            other => panic!("{other:?}"),
        }
    }
    assert!((200..300).contains(&examined), "{examined}");
    let question = message(2, "10.0.2.9:40000", "239.255.255.250:1900", SEARCH);
    assert_eq!(relay.handle(now, &question, &mut ports).len(), 2);
}

/// What another reflector repeats under its own address is repeated a few times, and not without
/// end.
#[test]
fn reflected_question_ends() {
    let (mut relay, mut ports, now) = (
        relay(vec![], Default::default()),
        AnyPort::default(),
        Instant::now(),
    );
    let mut sent = 0;
    for n in 0..1000 {
        let at = now + Duration::from_millis(n);
        let question = message(1, "10.0.1.77:4000", "239.255.255.250:1900", SEARCH);
        sent += relay.handle(at, &question, &mut ports).len();
    }
    assert_eq!(sent, 8, "4 on each of two links");
    let looped = message(1, "10.0.2.1:61440", "239.255.255.250:1900", SEARCH);
    assert!(relay.handle(now, &looped, &mut ports).is_empty());
    assert!(
        relay
            .take_withheld()
            .iter()
            .any(|w| w.reason == WithheldReason::OwnAddress)
    );
}

fn templates() -> Vec<(&'static str, Vec<u8>)> {
    let mut mdns = vec![0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0];
    mdns.extend(b"\x07_secret\x04_tcp\x05local\x00\x00\x0c\x00\x01");
    mdns.extend(b"\x05_open\x04_tcp\x05local\x00\x00\x0c\x00\x01");
    let mut response = vec![0, 0, 0x84, 0, 0, 0, 0, 2, 0, 0, 0, 0];
    response.extend(
        b"\x07_secret\x04_tcp\x05local\x00\x00\x0c\x00\x01\x00\x00\x00\x09\x00\x04\x01x\xc0\x0c",
    );
    response.extend(
        b"\x05_open\x04_tcp\x05local\x00\x00\x0c\x00\x01\x00\x00\x00\x09\x00\x04\x01x\xc0\x26",
    );
    let hello =
        "<e:Envelope><e:Body><d:Hello><d:Types>a:b</d:Types></d:Hello></e:Body></e:Envelope>";
    vec![
        ("224.0.0.251:5353", mdns),
        ("224.0.0.251:5353", response),
        ("239.255.255.250:1900", SEARCH.to_vec()),
        (
            "239.255.255.250:1900",
            b"NOTIFY * HTTP/1.1\r\nNT: _secret\r\n\r\n".to_vec(),
        ),
        ("239.255.255.250:3702", hello.into()),
        (
            "224.0.23.12:3671",
            vec![6, 16, 2, 1, 0, 14, 8, 1, 10, 0, 1, 9, 14, 87],
        ),
        ("239.1.2.3:5000", b"own".to_vec()),
        ("255.255.255.255:65001", b"broadcast".to_vec()),
        ("239.255.0.1:7400", b"RTPS".to_vec()),
    ]
}

proptest! {
    /// Random messages from all links, with the state that they leave: nothing is sent back to its
    /// link except answers, every packet is well-formed, nothing denied is in it, and all tables stay
    /// within their limits.
    #[test]
    fn strangers_cause_only_bounded_and_permitted_messages(
        steps in proptest::collection::vec(
            (0usize..9, 1u32..4, 2u8..20, 4000u16..4006, proptest::option::of((any::<prop::sample::Index>(), any::<u8>())), any::<bool>()),
            1..150,
        ),
    ) {
        let denied = |f: fn(&mut OfferRule)| { let mut rule = OfferRule::default(); f(&mut rule); rule };
        let deny = vec![
            denied(|r| r.service = Some("_secret._tcp".into())),
            denied(|r| r.st = Some("_secret".into())),
        ];
        let limits = DiscoveryLimits { questions: 20, questions_per_asker: 6, offers: 30, ..Default::default() };
        let (mut relay, mut ports, start) = (relay(deny, limits), AnyPort::default(), Instant::now());
        let templates = templates();
        for (n, (template, link, host, port, change, answers)) in steps.into_iter().enumerate() {
            let now = start + Duration::from_millis(50 * n as u64);
            let (to, payload) = &templates[template];
            let mut payload = payload.clone();
            let is_changed = change.is_some();
            if let Some((at, byte)) = change {
                let at = at.index(payload.len());
                payload[at] = byte;
            }
            let from = format!("10.0.{link}.{host}:{}", if template < 2 { 5353 } else { port });
            let open = ports.0.iter().nth(n % ports.0.len().max(1)).copied();
            let received = match open.filter(|_| answers) {
                Some(open) => {
                    let to = SocketAddr::new(open.address, open.port).to_string();
                    let mut received = message(open.link.get(), &from, &to, &payload);
                    received.link = open.link;
                    relay.handle(now, &received, &mut ports)
                }
                None => relay.handle(now, &message(link, &from, to, &payload), &mut ports),
            };
            prop_assert!(received.len() <= 2);
            for sent in received {
                let datagram = UdpDatagram::parse(&sent.packet, true);
                prop_assert!(datagram.is_some());
                prop_assert!(sent.kind.1 == "answer" || sent.link != id(link) || answers);
                // Other protocols have no search targets or service types.
                let is_read = matches!(sent.kind.0, DiscoveryProtocol::Mdns | DiscoveryProtocol::Ssdp);
                if is_read && !is_changed {
                    let text = String::from_utf8_lossy(datagram.unwrap().payload).into_owned();
                    prop_assert!(!text.contains("_secret"), "{text:?}");
                }
            }
            prop_assert!(relay.questions().len() <= 20 && relay.offers().len() <= 30);
            prop_assert_eq!(relay.questions().len(), ports.0.len());
            relay.expire(now, &mut ports);
        }
        relay.close(&mut ports);
        prop_assert!(ports.0.is_empty());
    }
}
