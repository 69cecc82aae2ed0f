//! The machine with three links, against messages of strangers.

mod askers;
mod mdns;

use std::collections::BTreeSet;
use std::net::SocketAddr;

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
    let allow = Vec::new();
    relay_with(OfferPolicy { allow, deny }, limits)
}

fn relay_with(policy: OfferPolicy, limits: DiscoveryLimits) -> DiscoveryRelay {
    relay_of(rule(policy, limits))
}

fn rule(policy: OfferPolicy, limits: DiscoveryLimits) -> DiscoveryRule {
    let protocols =
        "mdns ssdp ws-discovery llmnr coap knx slp sap dds 239.1.2.3:5000 broadcast:65001";
    DiscoveryRule {
        name: "all".into(),
        between: vec!["e*".parse().unwrap()],
        from: Vec::new(),
        to: Vec::new(),
        protocols: protocols.split(' ').map(|p| p.parse().unwrap()).collect(),
        policy,
        answers: AnswerMode::Auto,
        addresses: AddressMode::Rewrite,
        limits,
    }
}

fn relay_of(rule: DiscoveryRule) -> DiscoveryRelay {
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
    let reasons = |relay: &mut DiscoveryRelay| -> Vec<_> {
        let withheld = relay.take_withheld().into_iter();
        withheld.map(|w| (w.kind, w.reason)).collect()
    };
    assert_eq!(
        reasons(&mut relay),
        [("answer", WithheldReason::NotAsked)],
        "late"
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
    let other = message(2, "10.0.2.9:5353", "224.0.0.251:5353", &malformed);
    relay.handle(now, &other, &mut ports);
    let withheld = relay.take_withheld();
    assert_eq!(withheld[0].reason, WithheldReason::Malformed, "not limited");
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

const MDNS: &str = "224.0.0.251:5353";
/// A response of multicast DNS that offers a service: PTR, SRV and address.
fn service(name: &str, kind: &str) -> Vec<u8> {
    use hickory_proto::op::{Message, OpCode};
    use hickory_proto::rr::rdata::{A, PTR, SRV};
    use hickory_proto::rr::{Name, RData, Record};
    let text = |text: String| text.parse::<Name>().unwrap();
    let (instance, host) = (
        text(format!("{name}.{kind}.local.")),
        text(format!("{name}.local.")),
    );
    let record = |name: &Name, data| Record::from_rdata(name.clone(), 120, data);
    let kind = text(format!("{kind}.local."));
    let mut message = Message::response(0, OpCode::Query);
    message.answers = vec![record(&kind, RData::PTR(PTR(instance.clone())))];
    let address = [10, 0, 2, 9].into();
    message.additionals = vec![
        record(&instance, RData::SRV(SRV::new(0, 0, 80, host.clone()))),
        record(&host, RData::A(A(address))),
    ];
    message.to_vec().unwrap()
}

/// What two devices on link 2 announce: a word of each message, the last byte of the device's address
/// and station, the destination, and the message.
fn announcements() -> Vec<(&'static str, u8, &'static str, Vec<u8>)> {
    let notify = |kind: &str| format!("NOTIFY * HTTP/1.1\r\nNT: urn:upnp:device:{kind}:1\r\n\r\n");
    let hello = |kind: &str| {
        let types = format!("<d:Types>n:{kind}</d:Types>");
        format!("<e:Envelope><e:Body><d:Hello>{types}</d:Hello></e:Body></e:Envelope>")
    };
    let (ssdp, ws) = ("239.255.255.250:1900", "239.255.255.250:3702");
    vec![
        ("shelf", 9, MDNS, service("shelf", "_http._tcp")),
        ("vault", 10, MDNS, service("vault", "_ssh._tcp")),
        ("Server", 9, ssdp, notify("MediaServer").into()),
        ("Renderer", 10, ssdp, notify("MediaRenderer").into()),
        ("Video", 9, ws, hello("NetworkVideoTransmitter").into()),
        ("Printer", 10, ws, hello("Printer").into()),
    ]
}

/// Returns the links and words that are on the wire when the devices of [`announcements`] announce
/// themselves on link 2.
fn announced(policy: OfferPolicy) -> BTreeSet<(u32, &'static str)> {
    let mut relay = relay_with(policy, DiscoveryLimits::default());
    let mut on_wire = BTreeSet::new();
    let (now, all) = (Instant::now(), announcements());
    for (_, host, to, payload) in &all {
        let from = format!("10.0.2.{host}:{}", if *to == MDNS { 5353 } else { 4000 });
        let mut received = message(2, &from, to, payload);
        received.station = Some(MacAddress([2, 0, 0, 0, 0, *host]));
        for sent in relay.handle(now, &received, &mut AnyPort::default()) {
            let is_in = |word: &str| {
                let mut windows = sent.packet.windows(word.len());
                windows.any(|bytes| bytes == word.as_bytes())
            };
            let words = all.iter().map(|(word, ..)| *word);
            on_wire.extend(
                words
                    .filter(|word| is_in(word))
                    .map(|word| (sent.link.get(), word)),
            );
        }
    }
    on_wire
}

/// Each key of a rule, by the packets that leave: as `deny` it withholds what it matches, as `allow`
/// everything else.
#[test]
fn each_key_of_a_rule_decides_what_is_on_the_wire() {
    let all: BTreeSet<_> = [1, 3]
        .into_iter()
        .flat_map(|link| {
            announcements()
                .into_iter()
                .map(move |(word, ..)| (link, word))
        })
        .collect();
    assert_eq!(announced(OfferPolicy::default()), all);
    let second: &[&str] = &["vault", "Renderer", "Printer"];
    let every: &[&str] = &["shelf", "vault", "Server", "Renderer", "Video", "Printer"];
    type Change = fn(&mut OfferRule);
    let cases: [(Change, &[&str], &[u32]); 10] = [
        (|r| r.service = Some("_ssh._*".into()), &["vault"], &[1, 3]),
        (|r| r.instance = Some("VAULT".into()), &["vault"], &[1, 3]),
        (|r| r.name = Some("v?ult".into()), &["vault"], &[1, 3]),
        (
            |r| r.st = Some("urn:*:MediaRenderer:*".into()),
            &["Renderer"],
            &[1, 3],
        ),
        (|r| r.types = Some("Printer".into()), &["Printer"], &[1, 3]),
        (|r| r.device = "10.0.2.10/32".parse().ok(), second, &[1, 3]),
        (
            |r| r.mac = Some(MacAddress([2, 0, 0, 0, 0, 10])),
            second,
            &[1, 3],
        ),
        (|r| r.from = "e2".parse().ok(), every, &[1, 3]),
        (|r| r.from = "e1".parse().ok(), &[], &[]),
        (|r| r.to = "e3".parse().ok(), every, &[3]),
    ];
    for (change, words, links) in cases {
        let mut rule = OfferRule::default();
        change(&mut rule);
        let is_matched = |(link, word): &(u32, &str)| links.contains(link) && words.contains(word);
        let (matched, others): (BTreeSet<_>, BTreeSet<_>) =
            all.iter().copied().partition(is_matched);
        let (allow, deny) = (vec![], vec![rule.clone()]);
        assert_eq!(announced(OfferPolicy { allow, deny }), others, "{rule:?}");
        let (allow, deny) = (vec![rule.clone()], vec![]);
        assert_eq!(announced(OfferPolicy { allow, deny }), matched, "{rule:?}");
        // Deny overrides allow.
        let (allow, deny) = (vec![OfferRule::default(), rule.clone()], vec![rule.clone()]);
        assert_eq!(announced(OfferPolicy { allow, deny }), others, "{rule:?}");
    }
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
            let answers_of_others = received.iter().filter(|sent| sent.kind.1 == "answer").count();
            prop_assert!(received.len() - answers_of_others <= 2 && answers_of_others <= 8);
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
            prop_assert!(relay.asked().len() <= 30);
            prop_assert_eq!(relay.questions().len(), ports.0.len());
            relay.expire(now, &mut ports);
        }
        relay.close(&mut ports);
        prop_assert!(ports.0.is_empty());
    }
}
