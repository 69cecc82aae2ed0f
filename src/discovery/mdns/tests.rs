//! Tests of filtering, with messages that hickory writes.

use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::{Duration, Instant};

use hickory_proto::rr::rdata::{PTR, SRV, TXT};
use proptest::prelude::*;

use super::*;

fn name(text: &str) -> Name {
    Name::from_str(text).unwrap()
}

fn id() -> InterfaceId {
    InterfaceId::new(1).unwrap()
}

fn other() -> InterfaceId {
    InterfaceId::new(2).unwrap()
}

/// Lets some service types pass, and moves addresses and ports.
struct Only(&'static [&'static str]);

impl RecordGate for Only {
    fn check_offer(&self, offer: &ServiceOffer<'_>) -> Result<(), WithheldReason> {
        match offer.service {
            Property::Is(service) if self.0.contains(&service) => Ok(()),
            _ => Err(WithheldReason::NotAllowed),
        }
    }
    fn check_question(&self, offer: &ServiceOffer<'_>) -> Result<(), WithheldReason> {
        match offer.service {
            Property::Unknown => Ok(()),
            _ => self.check_offer(offer),
        }
    }
    fn address(&self, _: IpAddr) -> Result<IpAddr, WithheldReason> {
        Ok([192, 0, 2, 1].into())
    }
    fn port(&self, port: u16, is_tcp: bool) -> Result<u16, WithheldReason> {
        assert!(is_tcp);
        Ok(port + 8000)
    }
}

fn response() -> Message {
    let mut message = Message::response(0, OpCode::Query);
    let record = |name_text: &str, data| Record::from_rdata(name(name_text), 120, data);
    for (service, host, port) in [
        ("_http._tcp", "web.local.", 80),
        ("_ssh._tcp", "sec.local.", 22),
    ] {
        let instance = format!("Box.{service}.local.");
        message.answers.push(record(
            &format!("{service}.local."),
            RData::PTR(PTR(name(&instance))),
        ));
        message.additionals.push(record(
            &instance,
            RData::SRV(SRV::new(0, 0, port, name(host))),
        ));
        message
            .additionals
            .push(record(&instance, RData::TXT(TXT::new(vec!["a=b".into()]))));
        message
            .additionals
            .push(record(host, RData::A(A(Ipv4Addr::new(10, 0, 0, 9)))));
    }
    message
}

/// A packet with allowed and denied records leaves with the allowed ones, and no name or address
/// of the others is in it.
#[test]
fn answer_leaves_with_its_allowed_records() {
    let bytes = response().to_vec().unwrap();
    let message = MdnsMessage::parse(&bytes).unwrap();
    let mut hosts = ServiceHosts::default();
    hosts.learn(Instant::now(), id(), message.records());
    let filtered = message.filter(
        &Only(&["_http._tcp"]),
        None,
        (&hosts, id(), other()),
        |_| false,
    );
    let out = filtered.message.unwrap().to_bytes().unwrap();
    let out = Message::from_vec(&out).unwrap();
    assert_eq!((out.answers.len(), out.additionals.len()), (1, 3));
    assert!(
        !format!("{out}").contains("ssh") && !format!("{out}").contains("sec"),
        "{out}"
    );
    let addresses = out.additionals.iter().filter_map(|r| match &r.data {
        RData::A(a) => Some(a.0),
        _ => None,
    });
    assert_eq!(addresses.collect::<Vec<_>>(), [Ipv4Addr::new(192, 0, 2, 1)]);
    let port = out.additionals.iter().find_map(|r| match &r.data {
        RData::SRV(srv) => Some(srv.port),
        _ => None,
    });
    assert_eq!(port, Some(8080));
    let withheld = filtered
        .items
        .iter()
        .filter(|i| i.withheld.is_some())
        .count();
    assert_eq!(withheld, 4);
    let none = message.filter(&Only(&[]), None, (&hosts, id(), other()), |_| false);
    assert!(none.message.is_none());
}

#[test]
fn query_leaves_with_its_allowed_questions_and_known_answers() {
    let mut query = Message::new(7, MessageType::Query, OpCode::Query);
    for service in [
        "_http._tcp.local.",
        "_ssh._tcp.local.",
        "_services._dns-sd._udp.local.",
    ] {
        let mut question = Query::query(name(service), hickory_proto::rr::RecordType::PTR);
        question.set_mdns_unicast_response(true);
        query.add_query(question);
    }
    query.answers = response().answers;
    let message = MdnsMessage::parse(&query.to_vec().unwrap()).unwrap();
    let hosts = ServiceHosts::default();
    let gate = Only(&["_http._tcp"]);
    let filtered = message.filter(&gate, Some(&gate), (&hosts, id(), other()), |_| false);
    let mut message = filtered.message.unwrap();
    message.make_multicast();
    let out = Message::from_vec(&message.to_bytes().unwrap()).unwrap();
    assert_eq!(
        (out.queries.len(), out.answers.len(), out.metadata.id),
        (2, 1, 0)
    );
    assert!(out.queries.iter().all(|q| !q.mdns_unicast_response()));
}

/// A probe (RFC 6762 section 8.1) has the names of what its sender is about to offer.
#[test]
fn probe_crosses_only_as_an_offer() {
    let mut probe = Message::new(0, MessageType::Query, OpCode::Query);
    let any = hickory_proto::rr::RecordType::ANY;
    probe.add_query(Query::query(name("Box._http._tcp.local."), any));
    let srv = RData::SRV(SRV::new(0, 0, 80, name("web.local.")));
    let record = Record::from_rdata(name("Box._http._tcp.local."), 120, srv);
    probe.authorities.push(record);
    let message = MdnsMessage::parse(&probe.to_vec().unwrap()).unwrap();
    let (hosts, gate) = (ServiceHosts::default(), Only(&["_http._tcp"]));
    let inwards = message.filter(&gate, None, (&hosts, id(), other()), |_| false);
    assert!(inwards.message.is_none());
    let both = message.filter(&gate, Some(&gate), (&hosts, id(), other()), |_| false);
    assert_eq!(both.message.unwrap().0.queries.len(), 1);
}

/// What the asker's own link has is not asked elsewhere, unless the other link has it too.
#[test]
fn question_about_the_own_link_does_not_cross() {
    let mut query = Message::new(0, MessageType::Query, OpCode::Query);
    for text in ["Box._http._tcp.local.", "web.local."] {
        query.add_query(Query::query(name(text), hickory_proto::rr::RecordType::ANY));
    }
    let query = MdnsMessage::parse(&query.to_vec().unwrap()).unwrap();
    let mut hosts = ServiceHosts::default();
    let count = |hosts: &ServiceHosts| {
        let filtered = query.filter(&Only(&["_http._tcp"]), None, (hosts, id(), other()), |_| {
            false
        });
        filtered.message.map_or(0, |m| m.0.queries.len())
    };
    assert_eq!(count(&hosts), 2);
    hosts.learn(Instant::now(), id(), MdnsMessage(response()).records());
    assert_eq!(count(&hosts), 0);
    hosts.learn(Instant::now(), other(), MdnsMessage(response()).records());
    assert_eq!(count(&hosts), 2);
}

/// An instance may have moved to the other link, and its announcements may be lost.
#[test]
fn question_crosses_when_the_records_of_the_own_link_have_expired() {
    let now = Instant::now();
    let seconds = |n| now + Duration::from_secs(n);
    let mut query = Message::new(0, MessageType::Query, OpCode::Query);
    for text in ["Box._http._tcp.local.", "web.local."] {
        query.add_query(Query::query(name(text), hickory_proto::rr::RecordType::ANY));
    }
    let query = MdnsMessage::parse(&query.to_vec().unwrap()).unwrap();
    let count = |hosts: &ServiceHosts| {
        let gate = Only(&["_http._tcp"]);
        let filtered = query.filter(&gate, None, (hosts, id(), other()), |_| false);
        filtered.message.map_or(0, |m| m.0.queries.len())
    };
    let mut hosts = ServiceHosts::default();
    hosts.learn(now, id(), MdnsMessage(response()).records());
    hosts.expire(seconds(119));
    assert_eq!(count(&hosts), 0);
    hosts.expire(seconds(120));
    assert_eq!(count(&hosts), 2);
    // What the host offers still decides about its address.
    assert_eq!(hosts.services(id(), "web").len(), 1);
    hosts.learn(seconds(121), id(), MdnsMessage(response()).records());
    assert_eq!(count(&hosts), 0);
    let mut goodbye = response();
    let records = goodbye.answers.iter_mut().chain(&mut goodbye.additionals);
    records.for_each(|record| record.ttl = 0);
    hosts.learn(seconds(122), id(), MdnsMessage(goodbye).records());
    assert_eq!(count(&hosts), 1, "the instance");
}

#[test]
fn goodbye_is_another_item_than_its_record() {
    let message = MdnsMessage(response());
    let mut goodbye = response();
    goodbye.answers.iter_mut().for_each(|r| r.ttl = 0);
    assert_ne!(message.item_keys()[0], MdnsMessage(goodbye).item_keys()[0]);
}

#[test]
fn hostile_counts_and_loops_are_refused() {
    let mut header = [0u8; 12];
    header[6..8].copy_from_slice(&u16::MAX.to_be_bytes());
    assert_eq!(MdnsMessage::parse(&header), None);
    // A question whose name points to itself.
    let mut own = [0u8; 18];
    own[5] = 1;
    own[12..14].copy_from_slice(&[0xc0, 12]);
    assert_eq!(MdnsMessage::parse(&own), None);
    assert_eq!(MdnsMessage::parse(&[0; 9001]), None);
}

proptest! {
    /// What is changed at random is refused, or can be filtered and written.
    #[test]
    fn changed_messages_are_filtered_without_panic(
        at in 0usize..400, bytes in proptest::collection::vec(any::<u8>(), 1..6), cut in 0usize..400,
    ) {
        let mut packet = response().to_vec().unwrap();
        let len = packet.len();
        let at = at % len;
        packet.splice(at..(at + bytes.len()).min(len), bytes);
        packet.truncate(len - cut % 40);
        if let Some(message) = MdnsMessage::parse(&packet) {
            let mut hosts = ServiceHosts::default();
            hosts.learn(Instant::now(), id(), message.records());
            struct All;
            impl RecordGate for All {
                fn check_offer(&self, _: &ServiceOffer<'_>) -> Result<(), WithheldReason> { Ok(()) }
                fn check_question(&self, _: &ServiceOffer<'_>) -> Result<(), WithheldReason> { Ok(()) }
                fn address(&self, a: IpAddr) -> Result<IpAddr, WithheldReason> { Ok(a) }
                fn port(&self, port: u16, _: bool) -> Result<u16, WithheldReason> { Ok(port) }
            }
            let filtered = message.filter(&All, Some(&All), (&hosts, id(), other()), |_| false);
            if let Some(bytes) = filtered.message.and_then(|m| m.to_bytes()) {
                prop_assert!(MdnsMessage::parse(&bytes).is_some());
            }
        }
    }
}
