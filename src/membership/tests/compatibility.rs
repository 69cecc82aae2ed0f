//! Older hosts, older queriers and older configured versions (RFC 9776 section 7, RFC 9777
//! section 8).

use std::time::Duration;

use super::virtual_link::{VirtualLink, rule};
use crate::membership::{MembershipEvent, Protocol};
use crate::model::Versions;
use crate::wire::membership_message::Generation::{One, Three, Two};

fn link_with_igmp_version(igmp: u8) -> VirtualLink {
    let mut rule = rule();
    rule.version = Versions { igmp, mld: 2 };
    VirtualLink::new(rule)
}

// Section 7.3.2: the group compatibility mode.

#[test]
fn compatibility_mode_follows_oldest_present_host() {
    let mut link = VirtualLink::new(rule());
    link.receive(1, "TO_EX");
    assert_eq!(link.generation(), Three);
    link.advance_to(10.0).receive(2, "v2");
    assert_eq!(link.generation(), Two);
    link.advance_to(20.0).receive(3, "v1");
    assert_eq!(link.generation(), One);
    link.advance_to(100.0)
        .receive(2, "v2")
        .advance_to(200.0)
        .receive(1, "IS_EX");
    // The older host present interval ends 2 x 125 s + 10 s after the last report of each
    // version.
    assert_eq!(link.advance_to(279.9).generation(), One);
    assert_eq!(link.advance_to(280.0).generation(), Two);
    assert_eq!(link.advance_to(359.9).generation(), Two);
    assert_eq!(link.advance_to(360.0).generation(), Three);
}

#[test]
fn version_2_report_and_leave_are_translated() {
    let mut link = VirtualLink::new(rule());
    link.receive(1, "v2");
    assert_eq!(link.state(), "EXCLUDE 270");
    link.advance_to(10.0).receive(1, "leave");
    assert_eq!(link.state(), "EXCLUDE 2");
    assert_eq!(
        link.advance_to(20.0).take_specific_queries(),
        "10 Q(G), 11 Q(G)"
    );
    assert_eq!(link.state(), "gone");
}

#[test]
fn version_2_leave_is_accepted_in_version_3_mode() {
    let mut link = VirtualLink::new(rule());
    link.receive(1, "TO_EX").receive(1, "leave");
    assert_eq!(link.state(), "EXCLUDE 2");
}

#[test]
fn version_2_mode_ignores_block_and_to_ex_sources() {
    let mut link = VirtualLink::new(rule());
    link.receive(1, "v2").advance_to(10.0);
    link.receive(2, "BLOCK a");
    assert_eq!(link.state(), "EXCLUDE 260");
    link.receive(2, "TO_EX ab");
    assert_eq!(link.state(), "EXCLUDE 270");
    link.receive(2, "ALLOW a");
    assert_eq!(link.state(), "EXCLUDE 270: a270");
    link.receive(1, "v2");
    assert_eq!(link.state(), "EXCLUDE 270");
    assert_eq!(link.take_specific_queries(), "");
    link.receive(2, "TO_IN a");
    assert_eq!(link.take_specific_queries(), "10 Q(G)");
    assert_eq!(link.state(), "EXCLUDE 2: a270");
}

#[test]
fn version_1_mode_ignores_leaves() {
    let mut link = VirtualLink::new(rule());
    link.receive(1, "v1").advance_to(10.0);
    for record in ["leave", "TO_IN", "TO_IN a", "BLOCK a"] {
        link.receive(2, record);
        assert_eq!(link.state(), "EXCLUDE 260", "{record}");
    }
    link.receive(2, "TO_EX a");
    assert_eq!(link.state(), "EXCLUDE 270");
    link.advance_to(20.0).receive(2, "v2");
    assert_eq!(link.state(), "EXCLUDE 270");
    assert_eq!(link.take_specific_queries(), "");
}

#[test]
fn mldv1_mode_equals_igmpv2_mode() {
    let mut link = VirtualLink::with_protocol(Protocol::Mld, rule(), Some("fe80::1"));
    link.receive(1, "v2")
        .advance_to(10.0)
        .receive(2, "BLOCK a")
        .receive(2, "TO_EX a");
    assert_eq!(
        (link.generation(), link.state()),
        (Two, "EXCLUDE 270".into())
    );
    link.receive(1, "leave");
    assert_eq!(
        link.advance_to(20.0).take_specific_queries(),
        "10 Q(G), 11 Q(G)"
    );
}

// Section 7.3.1: older versions by configuration.

#[test]
fn queries_have_the_configured_version() {
    for (igmp, generation) in [(1, One), (2, Two), (3, Three)] {
        let mut link = link_with_igmp_version(igmp);
        link.machine.handle_timeout(link.now);
        let query = link.machine.poll_query().unwrap().query;
        assert_eq!(query.generation, generation);
        assert_eq!(query.max_response_time, Duration::from_secs(10));
        let three = generation == Three;
        assert_eq!(query.interval, three.then_some(Duration::from_secs(125)));
        assert_eq!(query.robustness, if three { 2 } else { 0 });
    }
    let mut rule = rule();
    rule.version.mld = 1;
    let mut link = VirtualLink::with_protocol(Protocol::Mld, rule, Some("fe80::1"));
    link.machine.handle_timeout(link.now);
    assert_eq!(link.machine.poll_query().unwrap().query.generation, Two);
}

#[test]
fn configured_version_2_accepts_version_3_records() {
    let mut link = link_with_igmp_version(2);
    link.receive(1, "TO_EX a");
    assert_eq!(
        (link.generation(), link.state()),
        (Two, "EXCLUDE 270".into())
    );
    link.advance_to(10.0).receive(1, "TO_IN");
    // Version 2 has no S flag.
    link.advance_to(10.5).receive(2, "v2");
    assert_eq!(
        link.advance_to(12.0).take_specific_queries(),
        "10 Q(G)2, 11 Q(G)2"
    );
    assert_eq!(link.state(), "EXCLUDE 268.5");
}

#[test]
fn configured_version_2_queries_group_instead_of_sources() {
    let mut link = link_with_igmp_version(2);
    link.receive(1, "ALLOW ab")
        .advance_to(10.0)
        .receive(1, "TO_IN b");
    assert_eq!(link.state(), "INCLUDE a2 b270");
    assert_eq!(
        link.advance_to(20.0).take_specific_queries(),
        "10 Q(G)2, 11 Q(G)2"
    );
    assert_eq!(link.state(), "INCLUDE b260");
}

#[test]
fn configured_version_1_ignores_leaves() {
    let mut link = link_with_igmp_version(1);
    link.receive(1, "v2")
        .receive(1, "leave")
        .receive(1, "TO_IN");
    link.receive(2, "BLOCK a");
    assert_eq!(link.advance_to(20.0).take_specific_queries(), "");
    assert_eq!(
        (link.generation(), link.state()),
        (One, "EXCLUDE 250".into())
    );
}

// Section 7.3.1: queriers of another version.

#[test]
fn version_mismatch_is_reported_once_per_minute() {
    let mut link = VirtualLink::new(rule());
    link.advance_to(1.0).take_events();
    let mut query = link.general_query();
    query.generation = Two;
    let warning = MembershipEvent::VersionMismatch {
        address: [10, 0, 0, 9].into(),
        received: Two,
        configured: Three,
    };
    for (at, events) in [(1.0, 1), (2.0, 0), (60.0, 0), (61.0, 1)] {
        link.advance_to(at)
            .receive_query("10.0.0.9", &query)
            .unwrap();
        assert_eq!(link.take_events(), vec![warning; events], "{at}");
    }
    link.sent.clear();
    link.advance_to(160.0);
    assert!(link.sent.iter().all(|(_, q)| q == "Q") && !link.sent.is_empty());

    let mut link = link_with_igmp_version(2);
    link.take_events();
    link.receive_query("10.0.0.9", &link.general_query())
        .unwrap();
    assert_eq!(
        link.take_events().len(),
        1,
        "a newer version is reported, too"
    );
}

#[test]
fn version_2_querier_is_elected_without_adopting_values() {
    let mut link = VirtualLink::with_protocol(Protocol::Igmp, rule(), Some("10.0.0.5"));
    let mut query = link.general_query();
    (query.generation, query.robustness, query.interval) = (Two, 0, None);
    link.receive_query("10.0.0.1", &query).unwrap();
    assert!(!link.machine.querier(link.now).is_us);
    assert_eq!(link.machine.timers().robustness(), 2);
    assert_eq!(
        link.machine.timers().query_interval(),
        Duration::from_secs(125)
    );
}
