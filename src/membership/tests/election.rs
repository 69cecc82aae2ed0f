//! Startup, general queries, election, values adopted: RFC 9776 sections 4.1, 6.6.2 and 8,
//! RFC 9777 sections 5.1, 7.6.2 and 9.

use std::time::Duration;

use super::virtual_link::{Lab, rule};
use crate::membership::effective_timers::EffectiveTimers;
use crate::membership::{MembershipEvent, MembershipRefusal, Protocol};
use crate::model::{QuerierPolicy, QuerierTimers};

const SECOND: Duration = Duration::from_secs(1);

fn with(policy: QuerierPolicy, own: Option<&str>) -> Lab {
    let mut rule = rule();
    rule.querier = policy;
    Lab::with(Protocol::Igmp, rule, own)
}

fn changed(address: Option<&str>, is_us: bool) -> MembershipEvent {
    let address = address.map(|a| a.parse().unwrap());
    MembershipEvent::QuerierChanged { address, is_us }
}

// Section 8.

#[test]
fn the_intervals_are_those_of_section_8() {
    let timing = EffectiveTimers::configured(&QuerierTimers::default());
    assert_eq!(timing.group_membership_interval(), 270 * SECOND);
    assert_eq!(timing.other_querier_present_interval(), 255 * SECOND);
    assert_eq!(timing.older_host_present_interval(), 260 * SECOND);
    assert_eq!(timing.startup_query_interval(), 125 * SECOND / 4);
    assert_eq!(timing.startup_query_count(), 2);
    assert_eq!(timing.last_member_query_count(), 2);
    assert_eq!(timing.last_member_query_time(), 2 * SECOND);
}

#[test]
fn counts_follow_the_robustness_where_none_is_set() {
    let timers = QuerierTimers {
        robustness: 5,
        last_member_query_count: None,
        startup_query_count: Some(3),
        ..QuerierTimers::default()
    };
    let timing = EffectiveTimers::configured(&timers);
    assert_eq!(timing.last_member_query_count(), 5);
    assert_eq!(timing.startup_query_count(), 3);
    assert_eq!(timing.group_membership_interval(), 645 * SECOND);
}

#[test]
fn values_that_make_no_sense_are_bounded() {
    let timers = QuerierTimers {
        robustness: 0,
        query_interval: Duration::MAX,
        query_response_interval: Duration::MAX,
        last_member_query_interval: Duration::ZERO,
        last_member_query_count: Some(0),
        startup_query_count: Some(0),
        startup_query_interval: Some(Duration::ZERO),
    };
    let timing = EffectiveTimers::configured(&timers);
    assert_eq!(timing.robustness(), 2);
    assert!(timing.group_membership_interval() < Duration::from_secs(1_000_000));
    assert!(timing.last_member_query_time() > Duration::ZERO);
    assert_eq!(timing.startup_query_count(), 2);
}

#[test]
fn startup_queries_come_close_and_then_one_an_interval() {
    let mut rule = rule();
    rule.timers.startup_query_count = Some(3);
    let mut lab = Lab::new(rule);
    lab.at(400.0);
    assert_eq!(lab.generals(), [0.0, 31.25, 62.5, 187.5, 312.5]);
}

#[test]
fn a_robustness_that_no_query_can_tell_is_told_as_zero() {
    for (robustness, told) in [(7, 7), (8, 0)] {
        let mut rule = rule();
        rule.timers.robustness = robustness;
        let mut lab = Lab::new(rule);
        lab.machine.handle_timeout(lab.now);
        assert_eq!(lab.machine.poll_query().unwrap().query.robustness, told);
    }
}

// Section 6.6.2.

#[test]
fn the_lowest_address_asks() {
    let mut lab = with(QuerierPolicy::Auto, Some("10.0.0.5"));
    lab.at(40.0);
    assert_eq!(lab.events(), [changed(Some("10.0.0.5"), true)]);
    assert_eq!(lab.generals(), [0.0, 31.25]);
    lab.asked("10.0.0.9", &lab.general()).unwrap();
    assert_eq!(lab.events(), []);
    lab.asked("10.0.0.3", &lab.general()).unwrap();
    assert_eq!(lab.events(), [changed(Some("10.0.0.3"), false)]);
    lab.asked("10.0.0.4", &lab.general()).unwrap();
    lab.asked("10.0.0.2", &lab.general()).unwrap();
    assert_eq!(lab.events(), [changed(Some("10.0.0.2"), false)]);
    // 2 x 125 s + 10 s / 2 after its last query we ask again, and go on.
    lab.at(100.0);
    lab.asked("10.0.0.2", &lab.general()).unwrap();
    assert_eq!(lab.machine.querier(lab.now).expires_in, Some(255 * SECOND));
    lab.at(500.0);
    assert_eq!(lab.generals(), [355.0, 480.0]);
    assert_eq!(lab.events(), [changed(Some("10.0.0.5"), true)]);
}

#[test]
fn addresses_are_compared_as_numbers() {
    let mut lab = with(QuerierPolicy::Auto, Some("9.255.255.255"));
    lab.asked("10.0.0.1", &lab.general()).unwrap();
    assert!(lab.machine.querier(lab.now).is_us);
    let mut lab = Lab::with(Protocol::Mld, rule(), Some("fe80::10"));
    lab.asked("fe80::9", &lab.general()).unwrap();
    assert!(!lab.machine.querier(lab.now).is_us);
}

#[test]
fn when_the_elected_one_dies_the_next_best_takes_over() {
    let mut lab = with(QuerierPolicy::Auto, Some("10.0.0.9"));
    lab.asked("10.0.0.1", &lab.general()).unwrap();
    lab.at(200.0);
    lab.asked("10.0.0.2", &lab.general()).unwrap();
    lab.events();
    lab.sent.clear();
    lab.at(255.0);
    assert_eq!(lab.events(), [changed(Some("10.0.0.2"), false)]);
    lab.at(455.0);
    assert_eq!(lab.events(), [changed(Some("10.0.0.9"), true)]);
    assert_eq!(lab.generals(), [455.0]);
}

#[test]
fn queries_that_elect_nobody() {
    let mut lab = with(QuerierPolicy::Auto, Some("10.0.0.5"));
    let general = lab.general();
    let mut refused = |from: &str, to: &str| lab.asked_at(from, to.parse().unwrap(), &general);
    // FRR #1692: by unicast.
    let unicast = refused("10.0.0.1", "10.0.0.5");
    assert_eq!(unicast, Err(MembershipRefusal::QueryDestination));
    let group = refused("10.0.0.1", "239.1.1.1");
    assert_eq!(group, Err(MembershipRefusal::QueryDestination));
    // Bridges with snooping ask so (RFC 4541 section 2.1.1).
    let nobody = refused("0.0.0.0", "224.0.0.1");
    assert_eq!(nobody, Err(MembershipRefusal::QueryUnspecified));
    assert_eq!(
        refused("10.0.0.5", "224.0.0.1"),
        Err(MembershipRefusal::OwnAddress)
    );
    assert_eq!(
        refused("fe80::1", "224.0.0.1"),
        Err(MembershipRefusal::OtherFamily)
    );
    let specific = lab.specific("");
    lab.asked("10.0.0.1", &specific).unwrap();
    let unicast = lab.asked_at("10.0.0.1", "10.0.0.5".parse().unwrap(), &specific);
    assert_eq!(unicast, Err(MembershipRefusal::QueryDestination));
    assert!(lab.machine.querier(lab.now).is_us);
    let mut refusals: Vec<_> = lab.machine.take_refusals().collect();
    refusals.sort_by_key(|(r, _)| *r as u8);
    assert_eq!(refusals.len(), 4);
    assert!(refusals.contains(&(MembershipRefusal::QueryDestination, 3)));
}

#[test]
fn mld_queries_come_from_link_local_addresses() {
    let mut lab = Lab::with(Protocol::Mld, rule(), Some("fe80::9"));
    for from in ["2001:db8::1", "::"] {
        let refused = lab.asked(from, &lab.general());
        assert_eq!(
            refused,
            Err(MembershipRefusal::NotLinkLocalSender),
            "{from}"
        );
    }
    assert!(lab.machine.querier(lab.now).is_us);
    let own = Some("2001:db8::1".parse().unwrap());
    lab.machine.set_own_address(lab.now, own);
    assert_eq!(lab.machine.querier(lab.now).address, None);
}

// Policies.

#[test]
fn on_keeps_asking_and_warns_of_rivals() {
    let mut lab = with(QuerierPolicy::On, Some("10.0.0.5"));
    lab.at(1.0).events();
    let mut query = lab.general();
    query.robustness = 7;
    lab.asked("10.0.0.1", &query).unwrap();
    lab.asked("10.0.0.1", &query).unwrap();
    let address = "10.0.0.1".parse().unwrap();
    assert_eq!(
        lab.events(),
        [MembershipEvent::CompetingQuerier { address }]
    );
    lab.at(200.0);
    assert_eq!(lab.generals(), [0.0, 31.25, 156.25]);
    assert_eq!(lab.machine.timers().robustness(), 2);
}

#[test]
fn off_never_asks_and_follows_whoever_does() {
    let mut lab = with(QuerierPolicy::Off, Some("10.0.0.1"));
    lab.hears(1, "TO_EX").at(10.0).hears(1, "TO_IN");
    assert_eq!(lab.state(), "EXCLUDE 260");
    let mut query = lab.general();
    (query.robustness, query.interval) = (3, Some(60 * SECOND));
    lab.asked("10.0.0.9", &query).unwrap();
    assert_eq!(lab.events(), [changed(Some("10.0.0.9"), false)]);
    lab.hears(1, "IS_EX");
    assert_eq!(lab.state(), "EXCLUDE 200");
    lab.at(10.0 + 185.0);
    assert_eq!(lab.events(), [changed(None, false)]);
    assert_eq!(lab.sent, []);
    // Even a bridge without an address tells its values.
    query.robustness = 4;
    let _ = lab.asked("0.0.0.0", &query);
    assert_eq!(lab.machine.timers().robustness(), 4);
}

#[test]
fn where_we_only_listen_and_nobody_asks_that_is_said_once() {
    let mut lab = with(QuerierPolicy::Off, Some("10.0.0.1"));
    lab.at(254.0);
    assert_eq!(lab.events(), []);
    lab.at(900.0);
    assert_eq!(lab.events(), [MembershipEvent::NoQuerier]);
    // A bridge without an address asks, too.
    let query = lab.general();
    let _ = lab.asked("0.0.0.0", &query);
    lab.at(900.0 + 254.0);
    assert_eq!(lab.events(), []);
    let _ = lab.asked("0.0.0.0", &query);
    lab.at(900.0 + 254.0 + 256.0);
    assert_eq!(lab.events(), [MembershipEvent::NoQuerier]);
    assert_eq!(lab.sent, []);
}

// Sections 4.1.6 and 4.1.7.

#[test]
fn the_values_of_the_elected_querier_are_adopted_unless_zero() {
    let mut lab = with(QuerierPolicy::Auto, Some("10.0.0.5"));
    let mut query = lab.general();
    (query.robustness, query.interval) = (4, Some(20 * SECOND));
    lab.asked("10.0.0.9", &query).unwrap();
    assert_eq!(lab.machine.timers().robustness(), 2, "we are the querier");
    lab.asked("10.0.0.1", &query).unwrap();
    lab.hears(1, "IS_EX");
    assert_eq!(lab.state(), "EXCLUDE 100");
    assert_eq!(lab.machine.querier(lab.now).expires_in, Some(85 * SECOND));
    (query.robustness, query.interval) = (0, Some(Duration::ZERO));
    lab.asked("10.0.0.1", &query).unwrap();
    lab.hears(1, "IS_EX");
    assert_eq!(lab.state(), "EXCLUDE 270");
    // Once we ask ourselves, our own apply.
    (query.robustness, query.interval) = (7, Some(SECOND));
    lab.asked("10.0.0.1", &query).unwrap();
    lab.at(100.0);
    assert_eq!(lab.machine.timers().robustness(), 2);
}

#[test]
fn a_querier_is_believed_for_no_longer_than_a_multiple_of_our_interval() {
    let mut lab = with(QuerierPolicy::Auto, Some("10.0.0.5"));
    let mut query = lab.general();
    (query.robustness, query.interval) = (7, Some(31_744 * SECOND));
    lab.asked("10.0.0.1", &query).unwrap();
    // Seven times eight times 125 s, and half a response interval.
    assert_eq!(
        lab.machine.querier(lab.now).expires_in,
        Some(7_005 * SECOND)
    );
    lab.at(7_005.0);
    assert!(lab.machine.querier(lab.now).is_us);
}

// The address.

#[test]
fn without_an_address_nothing_is_asked_and_with_one_all_begins_anew() {
    let mut lab = with(QuerierPolicy::Auto, None);
    assert_eq!(lab.at(100.0).generals(), [0.0; 0]);
    lab.hears(1, "TO_EX").hears(1, "TO_IN");
    assert_eq!(lab.state(), "EXCLUDE 270");
    let set = |lab: &mut Lab, own: Option<&str>| {
        let own = own.map(|a| a.parse().unwrap());
        lab.machine.set_own_address(lab.now, own);
    };
    set(&mut lab, Some("10.0.0.5"));
    lab.at(140.0);
    assert_eq!(lab.generals(), [100.0, 131.25]);
    set(&mut lab, Some("10.0.0.5"));
    assert_eq!(lab.at(150.0).generals(), [0.0; 0], "the same one");
    set(&mut lab, Some("10.0.0.7"));
    assert_eq!(lab.at(190.0).generals(), [150.0, 181.25]);
    set(&mut lab, None);
    assert_eq!(lab.at(900.0).generals(), [0.0; 0]);
    let events = [
        changed(Some("10.0.0.5"), true),
        changed(Some("10.0.0.7"), true),
        changed(None, false),
    ];
    assert_eq!(lab.events(), events);
}
