//! Answers to queries (RFC 9776 section 5.2, RFC 9777 section 6.2).

use std::net::IpAddr;
use std::time::Duration;

use super::virtual_host::{VirtualHost, config};
use crate::membership::{HostEvent, MembershipRefusal, Protocol};
use crate::wire::membership_message::MembershipMessage;

#[test]
fn general_query_is_answered_once_within_the_response_time() {
    let mut early = 0;
    for seed in 0..50 {
        let mut host = VirtualHost::new(config(Protocol::Igmp), seed);
        host.set(1, "ex a").set(2, "in bc").advance(5.0).take();
        host.query().advance(100.0);
        let [(at, text)] = &host.sent[..] else {
            panic!("{:?}", host.sent);
        };
        assert_eq!(text, "IS_EX 1 a, IS_IN 2 bc");
        assert!((5.0..=15.0).contains(at), "{at}");
        early += usize::from(*at < 10.0);
    }
    assert!((10..40).contains(&early), "{early} of 50 in the first half");
}

#[test]
fn second_general_query_does_not_delay_the_answer() {
    let mut host = VirtualHost::igmp();
    host.set(1, "ex").advance(5.0).take();
    for _ in 0..5 {
        host.query().advance(1.0);
    }
    host.advance(20.0);
    assert!(host.sent[0].0 <= 15.0, "{:?}", host.sent);
    assert!(host.sent.len() <= 2, "{:?}", host.sent);
}

/// The table of section 5.2: the filter, the queried sources, and the answer.
#[test]
fn specific_queries_are_answered_as_in_the_table() {
    for (filter, queried, answer) in [
        ("ex a", "", Some("IS_EX 1 a")),
        ("in ab", "", Some("IS_IN 1 ab")),
        ("in abc", "bcd", Some("IS_IN 1 bc")),
        ("in ab", "cd", None),
        ("ex ab", "bcd", Some("IS_IN 1 cd")),
        ("ex ab", "ab", None),
        ("none", "", None),
        ("none", "a", None),
    ] {
        for mut host in [VirtualHost::igmp(), VirtualHost::mld()] {
            host.set(2, "ex").set(1, filter).advance(5.0).take();
            let query = host.specific_query(1, queried);
            host.receive_query(&query).advance(1.0);
            assert_eq!(host.take(), Vec::from_iter(answer), "{filter}: {queried}");
            host.advance(20.0);
            assert_eq!(host.take(), [""; 0], "{filter}: {queried}");
        }
    }
}

#[test]
fn pending_answers_are_combined() {
    let host = || {
        let mut host = VirtualHost::igmp();
        host.set(1, "in abcd").advance(5.0).take();
        host
    };
    let queries = |host: &mut VirtualHost, letters: &[&str]| {
        for letters in letters {
            let query = host.specific_query(1, letters);
            host.receive_query(&query);
        }
        host.advance(1.0).take()
    };
    assert_eq!(queries(&mut host(), &["ab", "bc"]), ["IS_IN 1 abc"]);
    assert_eq!(queries(&mut host(), &["ab", ""]), ["IS_IN 1 abcd"]);
    assert_eq!(queries(&mut host(), &["", "ab"]), ["IS_IN 1 abcd"]);
    // The answer has the filter of its time.
    let mut host = host();
    let query = host.specific_query(1, "ab");
    host.receive_query(&query).set(1, "in b");
    assert!(host.advance(1.0).take().contains(&"IS_IN 1 b".to_string()));
    let query = host.specific_query(1, "b");
    host.receive_query(&query).set(1, "none").advance(5.0);
    assert!(host.take().iter().all(|text| text == "BLOCK 1 b"));
}

#[test]
fn query_to_another_destination_is_refused() {
    let mut host = VirtualHost::igmp();
    host.set(1, "ex").advance(5.0).take();
    let general = MembershipMessage::Query(host.general_query());
    let specific = MembershipMessage::Query(host.specific_query(1, ""));
    let refused = Err(MembershipRefusal::QueryDestination);
    let other = host.other();
    let mut receive = |to: &str, message| host.receive(other, to.parse().unwrap(), message);
    assert_eq!(receive("224.0.0.2", &general), refused);
    assert_eq!(receive("239.1.0.2", &specific), refused);
    assert_eq!(receive("10.0.0.9", &general), refused);
    // Queries to the address of the host are valid (section 4.1.12).
    assert_eq!(receive("10.0.0.2", &general), Ok(()));
    assert_eq!(host.advance(20.0).take(), ["IS_EX 1"]);
    let v6: IpAddr = "fe80::1".parse().unwrap();
    let to = IpAddr::from([224, 0, 0, 1]);
    let result = host.receive(v6, to, &general);
    assert_eq!(result, Err(MembershipRefusal::OtherFamily));
}

#[test]
fn query_flood_causes_a_bounded_number_of_reports() {
    for letters in ["", "a"] {
        let mut host = VirtualHost::igmp();
        host.set(1, "in a").advance(5.0).take();
        let mut general = host.general_query();
        general.max_response_time = Duration::ZERO;
        let mut specific = host.specific_query(1, letters);
        specific.max_response_time = Duration::ZERO;
        for _ in 0..10_000 {
            host.receive_query(&general).receive_query(&specific);
            host.advance(0.0001);
        }
        let reports = host.take().len();
        assert!((2..=60).contains(&reports), "{reports} reports in 1 s");
    }
}

#[test]
fn queries_of_many_sources_have_bounded_memory() {
    let mut host = VirtualHost::igmp();
    for group in 0..200 {
        host.change(group, "ex");
    }
    host.advance(5.0).take();
    for group in 0..200 {
        let sources = (0..200u32).map(|n| {
            let addr = std::net::Ipv4Addr::from_bits(0x0a00_0001 + n);
            crate::model::Source::new(addr.into()).unwrap()
        });
        let mut query = host.specific_query(group, "");
        query.sources = sources.collect();
        host.receive_query(&query);
    }
    host.advance(1.0);
    // Beyond the limit, the whole group is reported: IS_EX instead of IS_IN.
    let text = host.take().join(", ");
    let (whole, lists) = (text.matches("IS_EX").count(), text.matches("IS_IN").count());
    assert_eq!(whole + lists, 200);
    assert!((60..100).contains(&lists), "{lists} answers with sources");
}

#[test]
fn lost_messages_cause_a_report_of_all_groups() {
    let mut host = VirtualHost::igmp();
    host.set(1, "ex").advance(5.0).take();
    host.machine.handle_message_loss(host.now);
    host.advance(10.0);
    assert_eq!(host.take(), ["IS_EX 1"]);
}

#[test]
fn missing_queries_are_an_event() {
    let mut host = VirtualHost::igmp();
    host.set(1, "ex").query().advance(254.9);
    assert_eq!(host.take_events(), []);
    // 2 x 125 s + 10 s / 2 after the last query.
    host.advance(0.2);
    assert_eq!(host.take_events(), [HostEvent::NoQuerier]);
    host.advance(1000.0);
    assert_eq!(host.take_events(), []);
    let mut idle = VirtualHost::igmp();
    idle.advance(1000.0);
    assert_eq!(idle.take_events(), []);
}
