//! Who asks for what.

use super::mdns::{http_question, on_other_links, sent_by};
use super::*;
use crate::discovery::observed::{Observation, ObservationKey};

/// Returns who asks for what: the links of the asker and of devices, protocol, asker, what it
/// asks for, messages, and why the question is withheld.
fn asked(relay: &DiscoveryRelay) -> BTreeSet<String> {
    let line = |(key, seen): (&ObservationKey, &Observation)| {
        let ends = format!("{}>{}", key.from.get(), key.to.get());
        let withheld = seen.withheld.map_or("asked", WithheldReason::label);
        format!(
            "{ends} {} {} {} {} {withheld}",
            key.protocol, key.host, key.what, seen.messages
        )
    };
    relay.asked().iter().map(line).collect()
}

#[test]
fn askers_are_known_with_what_they_ask_for() {
    let ssh = OfferRule {
        service: Some("_ssh._tcp".into()),
        ..OfferRule::default()
    };
    let (mut relay, now) = (relay(vec![ssh], Default::default()), Instant::now());
    let ms = |n| now + Duration::from_millis(n);
    let http = http_question(false, &[]);
    sent_by(&mut relay, now, (1, "10.0.1.8"), &http);
    // A repetition is no reason to call the question withheld: it is on the other links.
    sent_by(&mut relay, ms(100), (1, "10.0.1.8"), &http);
    sent_by(&mut relay, ms(200), (1, "10.0.1.9"), &http);
    let denied = [
        &http[..12],
        b"\x04_ssh\x04_tcp\x05local\x00\x00\x0c\x00\x01",
    ];
    sent_by(&mut relay, ms(300), (3, "10.0.3.9"), &denied.concat());
    let search = message(2, "10.0.2.9:4000", "239.255.255.250:1900", SEARCH);
    let mut ports = AnyPort::default();
    relay.handle(ms(400), &search, &mut ports);
    // What this host asks, it asks on each link by itself.
    let mut own = message(1, "10.0.1.1:5353", MDNS, &http);
    own.is_of_this_host = true;
    relay.handle(ms(500), &own, &mut ports);
    let expected = [
        "1>2 mdns 10.0.1.8 _http._tcp 2 asked",
        "1>3 mdns 10.0.1.8 _http._tcp 2 asked",
        "1>2 mdns 10.0.1.9 _http._tcp 1 asked",
        "1>3 mdns 10.0.1.9 _http._tcp 1 asked",
        "3>1 mdns 10.0.3.9 _ssh._tcp 1 denied",
        "3>2 mdns 10.0.3.9 _ssh._tcp 1 denied",
        "2>1 ssdp 10.0.2.9 ssdp:all 1 asked",
        "2>3 ssdp 10.0.2.9 ssdp:all 1 asked",
    ];
    assert_eq!(asked(&relay), expected.map(String::from).into());
    let malformed = |w: &WithheldMessage| w.reason == WithheldReason::Malformed;
    assert!(!relay.take_withheld().iter().any(malformed));
    let hours = Duration::from_secs(2 * 3600);
    relay.expire(now + hours, &mut ports);
    assert!(relay.asked().is_empty());
}

/// A probe (RFC 6762 section 8.1) asks whether a name is free. Each device sends some when it starts.
#[test]
fn prober_is_no_asker() {
    use hickory_proto::op::{Message, MessageType, OpCode, Query};
    use hickory_proto::rr::RecordType;
    let offer = Message::from_vec(&service("shelf", "_http._tcp")).unwrap();
    let srv = offer.additionals[0].clone();
    let mut probe = Message::new(0, MessageType::Query, OpCode::Query);
    probe.add_query(Query::query(srv.name.clone(), RecordType::ANY));
    probe.authorities = vec![srv];
    let probe = probe.to_vec().unwrap();
    let (mut relay, now) = (relay(vec![], Default::default()), Instant::now());
    let sent = sent_by(&mut relay, now, (1, "10.0.1.8"), &probe);
    assert_eq!(sent, on_other_links());
    assert_eq!(asked(&relay), BTreeSet::new());
    // It proposes an offer, so a rule of the other direction withholds it.
    let one_way = DiscoveryRule {
        between: Vec::new(),
        from: vec!["e2".parse().unwrap()],
        to: vec!["e1".parse().unwrap()],
        ..rule(OfferPolicy::default(), DiscoveryLimits::default())
    };
    let mut relay = relay_of(one_way);
    assert!(sent_by(&mut relay, now, (1, "10.0.1.8"), &probe).is_empty());
    let reasons: Vec<_> = relay.take_withheld().iter().map(|w| w.reason).collect();
    assert_eq!(reasons, [WithheldReason::NotAllowed]);
}

#[test]
fn askers_are_limited() {
    let limits = DiscoveryLimits {
        offers: 30,
        ..Default::default()
    };
    let (mut relay, now) = (relay(vec![], limits), Instant::now());
    for asker in 2..252 {
        let from = format!("10.0.1.{asker}");
        sent_by(&mut relay, now, (1, &from), &http_question(false, &[]));
    }
    assert_eq!(relay.asked().len(), 30);
}
