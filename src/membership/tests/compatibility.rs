//! Older hosts, older queriers, and older versions spoken by configuration: RFC 9776 section 7,
//! RFC 9777 section 8.

use std::time::Duration;

use super::virtual_link::{Lab, rule};
use crate::membership::{MembershipEvent, Protocol};
use crate::model::Versions;
use crate::wire::membership_message::Generation::{One, Three, Two};

fn speaking(igmp: u8) -> Lab {
    let mut rule = rule();
    rule.version = Versions { igmp, mld: 2 };
    Lab::new(rule)
}

// Section 7.3.2: the group compatibility mode.

#[test]
fn the_mode_is_that_of_the_oldest_host_for_its_present_interval() {
    let mut lab = Lab::new(rule());
    lab.hears(1, "TO_EX");
    assert_eq!(lab.generation(), Three);
    lab.at(10.0).hears(2, "v2");
    assert_eq!(lab.generation(), Two);
    lab.at(20.0).hears(3, "v1");
    assert_eq!(lab.generation(), One);
    lab.at(100.0).hears(2, "v2").at(200.0).hears(1, "IS_EX");
    // 2 x 125 s + 10 s after the last report of version 1, then of version 2.
    assert_eq!(lab.at(279.9).generation(), One);
    assert_eq!(lab.at(280.0).generation(), Two);
    assert_eq!(lab.at(359.9).generation(), Two);
    assert_eq!(lab.at(360.0).generation(), Three);
}

#[test]
fn a_report_of_version_2_is_is_ex_and_a_leave_is_to_in() {
    let mut lab = Lab::new(rule());
    lab.hears(1, "v2");
    assert_eq!(lab.state(), "EXCLUDE 270");
    lab.at(10.0).hears(1, "leave");
    assert_eq!(lab.state(), "EXCLUDE 2");
    assert_eq!(lab.at(20.0).specifics(), "10 Q(G), 11 Q(G)");
    assert_eq!(lab.state(), "gone");
}

#[test]
fn a_leave_counts_where_no_older_host_was_heard_too() {
    let mut lab = Lab::new(rule());
    lab.hears(1, "TO_EX").hears(1, "leave");
    assert_eq!(lab.state(), "EXCLUDE 2");
}

#[test]
fn in_the_mode_of_version_2_block_and_the_sources_of_to_ex_are_ignored() {
    let mut lab = Lab::new(rule());
    lab.hears(1, "v2").at(10.0);
    lab.hears(2, "BLOCK a");
    assert_eq!(lab.state(), "EXCLUDE 260");
    lab.hears(2, "TO_EX ab");
    assert_eq!(lab.state(), "EXCLUDE 270");
    lab.hears(2, "ALLOW a");
    assert_eq!(lab.state(), "EXCLUDE 270: a270");
    lab.hears(1, "v2");
    assert_eq!(lab.state(), "EXCLUDE 270");
    assert_eq!(lab.specifics(), "");
    lab.hears(2, "TO_IN a");
    assert_eq!(lab.specifics(), "10 Q(G)");
    assert_eq!(lab.state(), "EXCLUDE 2: a270");
}

#[test]
fn in_the_mode_of_version_1_leaves_are_ignored_too() {
    let mut lab = Lab::new(rule());
    lab.hears(1, "v1").at(10.0);
    for record in ["leave", "TO_IN", "TO_IN a", "BLOCK a"] {
        lab.hears(2, record);
        assert_eq!(lab.state(), "EXCLUDE 260", "{record}");
    }
    lab.hears(2, "TO_EX a");
    assert_eq!(lab.state(), "EXCLUDE 270");
    lab.at(20.0).hears(2, "v2");
    assert_eq!(lab.state(), "EXCLUDE 270");
    assert_eq!(lab.specifics(), "");
}

#[test]
fn mld_hosts_of_version_1_are_the_same() {
    let mut lab = Lab::with(Protocol::Mld, rule(), Some("fe80::1"));
    lab.hears(1, "v2")
        .at(10.0)
        .hears(2, "BLOCK a")
        .hears(2, "TO_EX a");
    assert_eq!((lab.generation(), lab.state()), (Two, "EXCLUDE 270".into()));
    lab.hears(1, "leave");
    assert_eq!(lab.at(20.0).specifics(), "10 Q(G), 11 Q(G)");
}

// Section 7.3.1: an older version by configuration.

#[test]
fn queries_are_of_the_configured_version() {
    for (igmp, generation) in [(1, One), (2, Two), (3, Three)] {
        let mut lab = speaking(igmp);
        lab.machine.handle_timeout(lab.now);
        let query = lab.machine.poll_query().unwrap().query;
        assert_eq!(query.generation, generation);
        assert_eq!(query.max_response_time, Duration::from_secs(10));
        let three = generation == Three;
        assert_eq!(query.interval, three.then_some(Duration::from_secs(125)));
        assert_eq!(query.robustness, if three { 2 } else { 0 });
    }
    let mut rule = rule();
    rule.version.mld = 1;
    let mut lab = Lab::with(Protocol::Mld, rule, Some("fe80::1"));
    lab.machine.handle_timeout(lab.now);
    assert_eq!(lab.machine.poll_query().unwrap().query.generation, Two);
}

#[test]
fn speaking_version_2_every_group_is_in_its_mode_and_records_are_taken() {
    let mut lab = speaking(2);
    lab.hears(1, "TO_EX a");
    assert_eq!((lab.generation(), lab.state()), (Two, "EXCLUDE 270".into()));
    lab.at(10.0).hears(1, "TO_IN");
    // No S flag in version 2.
    lab.at(10.5).hears(2, "v2");
    assert_eq!(lab.at(12.0).specifics(), "10 Q(G)2, 11 Q(G)2");
    assert_eq!(lab.state(), "EXCLUDE 268.5");
}

#[test]
fn speaking_version_2_the_group_is_asked_for_instead_of_sources() {
    let mut lab = speaking(2);
    lab.hears(1, "ALLOW ab").at(10.0).hears(1, "TO_IN b");
    assert_eq!(lab.state(), "INCLUDE a2 b270");
    assert_eq!(lab.at(20.0).specifics(), "10 Q(G)2, 11 Q(G)2");
    assert_eq!(lab.state(), "INCLUDE b260");
}

#[test]
fn speaking_version_1_leaves_are_ignored_and_no_group_is_asked_for() {
    let mut lab = speaking(1);
    lab.hears(1, "v2").hears(1, "leave").hears(1, "TO_IN");
    lab.hears(2, "BLOCK a");
    assert_eq!(lab.at(20.0).specifics(), "");
    assert_eq!((lab.generation(), lab.state()), (One, "EXCLUDE 250".into()));
}

// Section 7.3.1: queriers of another version.

#[test]
fn a_query_of_another_version_is_warned_of_once_a_minute_and_we_speak_our_own() {
    let mut lab = Lab::new(rule());
    lab.at(1.0).events();
    let mut query = lab.general();
    query.generation = Two;
    let warning = MembershipEvent::VersionMismatch {
        address: [10, 0, 0, 9].into(),
        received: Two,
        configured: Three,
    };
    for (at, events) in [(1.0, 1), (2.0, 0), (60.0, 0), (61.0, 1)] {
        lab.at(at).asked("10.0.0.9", &query).unwrap();
        assert_eq!(lab.events(), vec![warning; events], "{at}");
    }
    lab.sent.clear();
    lab.at(160.0);
    assert!(lab.sent.iter().all(|(_, q)| q == "Q") && !lab.sent.is_empty());

    let mut lab = speaking(2);
    lab.events();
    lab.asked("10.0.0.9", &lab.general()).unwrap();
    assert_eq!(lab.events().len(), 1, "a newer version, too");
}

#[test]
fn a_querier_of_version_2_is_elected_and_tells_no_values() {
    let mut lab = Lab::with(Protocol::Igmp, rule(), Some("10.0.0.5"));
    let mut query = lab.general();
    (query.generation, query.robustness, query.interval) = (Two, 0, None);
    lab.asked("10.0.0.1", &query).unwrap();
    assert!(!lab.machine.querier(lab.now).is_us);
    assert_eq!(lab.machine.timers().robustness(), 2);
    assert_eq!(
        lab.machine.timers().query_interval(),
        Duration::from_secs(125)
    );
}
