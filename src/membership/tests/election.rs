//! Startup, general queries, querier election and adopted values (RFC 9776 sections 4.1, 6.6.2
//! and 8, RFC 9777 sections 5.1, 7.6.2 and 9).

use std::time::Duration;

use super::virtual_link::{VirtualLink, rule};
use crate::membership::effective_timers::EffectiveTimers;
use crate::membership::{MembershipEvent, MembershipRefusal, Protocol};
use crate::model::{QuerierPolicy, QuerierTimers};

const SECOND: Duration = Duration::from_secs(1);

fn link_with_policy(policy: QuerierPolicy, own: Option<&str>) -> VirtualLink {
    let mut rule = rule();
    rule.querier = policy;
    VirtualLink::with_protocol(Protocol::Igmp, rule, own)
}

fn changed(address: Option<&str>, is_us: bool) -> MembershipEvent {
    let address = address.map(|a| a.parse().unwrap());
    MembershipEvent::QuerierChanged { address, is_us }
}

// Section 8.

#[test]
fn default_timers_match_section_8() {
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
fn counts_default_to_robustness() {
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
fn invalid_timer_values_are_clamped() {
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
fn startup_queries_precede_periodic_queries() {
    let mut rule = rule();
    rule.timers.startup_query_count = Some(3);
    let mut link = VirtualLink::new(rule);
    link.advance_to(400.0);
    assert_eq!(
        link.take_general_query_times(),
        [0.0, 31.25, 62.5, 187.5, 312.5]
    );
}

#[test]
fn robustness_above_seven_is_sent_as_zero() {
    for (robustness, sent) in [(7, 7), (8, 0)] {
        let mut rule = rule();
        rule.timers.robustness = robustness;
        let mut link = VirtualLink::new(rule);
        link.machine.handle_timeout(link.now);
        assert_eq!(link.machine.poll_query().unwrap().query.robustness, sent);
    }
}

// Section 6.6.2.

#[test]
fn querier_election_lowest_address_wins() {
    let mut link = link_with_policy(QuerierPolicy::Auto, Some("10.0.0.5"));
    link.advance_to(40.0);
    assert_eq!(link.take_events(), [changed(Some("10.0.0.5"), true)]);
    assert_eq!(link.take_general_query_times(), [0.0, 31.25]);
    link.receive_query("10.0.0.9", &link.general_query())
        .unwrap();
    assert_eq!(link.take_events(), []);
    link.receive_query("10.0.0.3", &link.general_query())
        .unwrap();
    assert_eq!(link.take_events(), [changed(Some("10.0.0.3"), false)]);
    link.receive_query("10.0.0.4", &link.general_query())
        .unwrap();
    link.receive_query("10.0.0.2", &link.general_query())
        .unwrap();
    assert_eq!(link.take_events(), [changed(Some("10.0.0.2"), false)]);
    // The other querier present interval ends 2 x 125 s + 10 s / 2 after the last query. Then
    // this router sends general queries again.
    link.advance_to(100.0);
    link.receive_query("10.0.0.2", &link.general_query())
        .unwrap();
    assert_eq!(
        link.machine.querier(link.now).expires_in,
        Some(255 * SECOND)
    );
    link.advance_to(500.0);
    assert_eq!(link.take_general_query_times(), [355.0, 480.0]);
    assert_eq!(link.take_events(), [changed(Some("10.0.0.5"), true)]);
}

/// RFC 9776 section 4.1.5: the S flag suppresses neither the election nor the values of the querier.
#[test]
fn general_query_with_s_flag_takes_part_in_election() {
    let mut link = link_with_policy(QuerierPolicy::Auto, Some("10.0.0.5"));
    link.advance_to(1.0).take_events();
    let mut query = link.general_query();
    query.suppress = true;
    query.robustness = 3;
    link.receive_query("10.0.0.3", &query).unwrap();
    assert_eq!(link.take_events(), [changed(Some("10.0.0.3"), false)]);
    assert_eq!(link.machine.timers().robustness(), 3);
    // Such a query also restarts the other querier present timer, 3 x 125 s + 10 s / 2.
    link.advance_to(300.0);
    link.receive_query("10.0.0.3", &query).unwrap();
    link.advance_to(679.0);
    assert_eq!(link.take_events(), []);
    link.advance_to(680.0);
    assert_eq!(link.take_events(), [changed(Some("10.0.0.5"), true)]);
}

#[test]
fn querier_election_compares_addresses_numerically() {
    let mut link = link_with_policy(QuerierPolicy::Auto, Some("9.255.255.255"));
    link.receive_query("10.0.0.1", &link.general_query())
        .unwrap();
    assert!(link.machine.querier(link.now).is_us);
    let mut link = VirtualLink::with_protocol(Protocol::Mld, rule(), Some("fe80::10"));
    link.receive_query("fe80::9", &link.general_query())
        .unwrap();
    assert!(!link.machine.querier(link.now).is_us);
}

#[test]
fn next_lowest_querier_replaces_expired_querier() {
    let mut link = link_with_policy(QuerierPolicy::Auto, Some("10.0.0.9"));
    link.receive_query("10.0.0.1", &link.general_query())
        .unwrap();
    link.advance_to(200.0);
    link.receive_query("10.0.0.2", &link.general_query())
        .unwrap();
    link.take_events();
    link.sent.clear();
    link.advance_to(255.0);
    assert_eq!(link.take_events(), [changed(Some("10.0.0.2"), false)]);
    link.advance_to(455.0);
    assert_eq!(link.take_events(), [changed(Some("10.0.0.9"), true)]);
    assert_eq!(link.take_general_query_times(), [455.0]);
}

/// Of several routers besides the querier, the lowest one takes over, as long as it sends queries.
#[test]
fn lowest_other_router_is_next() {
    let mut link = link_with_policy(QuerierPolicy::Auto, Some("10.0.0.9"));
    let query = link.general_query();
    for (seconds, from) in [
        (0.0, "10.0.0.1"),
        (10.0, "10.0.0.3"),
        (20.0, "10.0.0.2"),
        (30.0, "10.0.0.4"),
        // Restarts its timer.
        (100.0, "10.0.0.2"),
    ] {
        link.advance_to(seconds);
        link.receive_query(from, &query).unwrap();
    }
    link.take_events();
    link.advance_to(255.0);
    assert_eq!(link.take_events(), [changed(Some("10.0.0.2"), false)]);
    let expires_in = link.machine.querier(link.now).expires_in;
    assert_eq!(expires_in, Some(100 * SECOND));
}

#[test]
fn next_querier_that_fell_silent_is_replaced_by_a_higher_one() {
    let mut link = link_with_policy(QuerierPolicy::Auto, Some("10.0.0.9"));
    let query = link.general_query();
    for (seconds, from) in [
        (0.0, "10.0.0.1"),
        (1.0, "10.0.0.2"),
        (200.0, "10.0.0.1"),
        (260.0, "10.0.0.4"),
    ] {
        link.advance_to(seconds);
        link.receive_query(from, &query).unwrap();
    }
    link.take_events();
    link.advance_to(455.0);
    assert_eq!(link.take_events(), [changed(Some("10.0.0.4"), false)]);
}

#[test]
fn former_querier_takes_over_from_a_lower_one_that_fell_silent() {
    let mut link = link_with_policy(QuerierPolicy::Auto, Some("10.0.0.9"));
    let mut query = link.general_query();
    link.receive_query("10.0.0.4", &query).unwrap();
    link.advance_to(10.0);
    // The timer of the lower router is 2 x 20 s + 10 s / 2.
    query.interval = Some(20 * SECOND);
    link.receive_query("10.0.0.2", &query).unwrap();
    link.take_events();
    link.advance_to(55.0);
    assert_eq!(link.take_events(), [changed(Some("10.0.0.4"), false)]);
    let expires_in = link.machine.querier(link.now).expires_in;
    assert_eq!(expires_in, Some(200 * SECOND));
}

#[test]
fn routers_that_fall_silent_together_are_replaced_by_this_one() {
    let mut link = link_with_policy(QuerierPolicy::Auto, Some("10.0.0.9"));
    let query = link.general_query();
    link.receive_query("10.0.0.1", &query).unwrap();
    link.receive_query("10.0.0.2", &query).unwrap();
    link.take_events();
    link.advance_to(255.0);
    assert_eq!(link.take_events(), [changed(Some("10.0.0.9"), true)]);
}

#[test]
fn expired_querier_leaves_none_without_own_address() {
    let mut link = link_with_policy(QuerierPolicy::Auto, None);
    let query = link.general_query();
    link.receive_query("10.0.0.1", &query).unwrap();
    link.take_events();
    link.advance_to(300.0);
    assert_eq!(link.take_events(), [changed(None, false)]);
    assert!(!link.machine.querier(link.now).is_us);
}

#[test]
fn querier_on_without_address_elects_another_router() {
    let mut link = link_with_policy(QuerierPolicy::On, None);
    let query = link.general_query();
    link.receive_query("10.0.0.3", &query).unwrap();
    assert_eq!(link.take_events(), [changed(Some("10.0.0.3"), false)]);
}

#[test]
fn invalid_queries_do_not_affect_election() {
    let mut link = link_with_policy(QuerierPolicy::Auto, Some("10.0.0.5"));
    let general = link.general_query();
    let mut refused =
        |from: &str, to: &str| link.receive_query_to(from, to.parse().unwrap(), &general);
    // Unicast (FRR issue 1692).
    let unicast = refused("10.0.0.1", "10.0.0.5");
    assert_eq!(unicast, Err(MembershipRefusal::QueryDestination));
    let group = refused("10.0.0.1", "239.1.1.1");
    assert_eq!(group, Err(MembershipRefusal::QueryDestination));
    // Snooping bridges send such queries (RFC 4541 section 2.1.1).
    let unspecified = refused("0.0.0.0", "224.0.0.1");
    assert_eq!(unspecified, Err(MembershipRefusal::QueryUnspecified));
    assert_eq!(
        refused("10.0.0.5", "224.0.0.1"),
        Err(MembershipRefusal::OwnAddress)
    );
    assert_eq!(
        refused("fe80::1", "224.0.0.1"),
        Err(MembershipRefusal::OtherFamily)
    );
    let specific = link.specific_query("");
    link.receive_query("10.0.0.1", &specific).unwrap();
    let unicast = link.receive_query_to("10.0.0.1", "10.0.0.5".parse().unwrap(), &specific);
    assert_eq!(unicast, Err(MembershipRefusal::QueryDestination));
    assert!(link.machine.querier(link.now).is_us);
    let mut refusals: Vec<_> = link.machine.take_refusals().collect();
    refusals.sort_by_key(|(r, _)| *r as u8);
    assert_eq!(refusals.len(), 4);
    assert!(refusals.contains(&(MembershipRefusal::QueryDestination, 3)));
}

#[test]
fn mld_queries_require_link_local_source() {
    let mut link = VirtualLink::with_protocol(Protocol::Mld, rule(), Some("fe80::9"));
    for from in ["2001:db8::1", "::"] {
        let refused = link.receive_query(from, &link.general_query());
        assert_eq!(
            refused,
            Err(MembershipRefusal::NotLinkLocalSender),
            "{from}"
        );
    }
    assert!(link.machine.querier(link.now).is_us);
    let own = Some("2001:db8::1".parse().unwrap());
    link.machine.set_own_address(link.now, own);
    assert_eq!(link.machine.querier(link.now).address, None);
}

// Policies.

#[test]
fn querier_on_keeps_querying_and_reports_competitors() {
    let mut link = link_with_policy(QuerierPolicy::On, Some("10.0.0.5"));
    link.advance_to(1.0).take_events();
    let mut query = link.general_query();
    query.robustness = 7;
    link.receive_query("10.0.0.1", &query).unwrap();
    link.receive_query("10.0.0.1", &query).unwrap();
    let address = "10.0.0.1".parse().unwrap();
    assert_eq!(
        link.take_events(),
        [MembershipEvent::CompetingQuerier { address }]
    );
    link.advance_to(200.0);
    assert_eq!(link.take_general_query_times(), [0.0, 31.25, 156.25]);
    assert_eq!(link.machine.timers().robustness(), 2);
}

#[test]
fn querier_off_sends_nothing_and_adopts_foreign_values() {
    let mut link = link_with_policy(QuerierPolicy::Off, Some("10.0.0.1"));
    link.receive(1, "TO_EX")
        .advance_to(10.0)
        .receive(1, "TO_IN");
    assert_eq!(link.state(), "EXCLUDE 260");
    let mut query = link.general_query();
    (query.robustness, query.interval) = (3, Some(60 * SECOND));
    link.receive_query("10.0.0.9", &query).unwrap();
    assert_eq!(link.take_events(), [changed(Some("10.0.0.9"), false)]);
    link.receive(1, "IS_EX");
    assert_eq!(link.state(), "EXCLUDE 200");
    link.advance_to(10.0 + 185.0);
    assert_eq!(link.take_events(), [changed(None, false)]);
    assert_eq!(link.sent, []);
    // The values of a bridge without an address are adopted, too.
    query.robustness = 4;
    let _ = link.receive_query("0.0.0.0", &query);
    assert_eq!(link.machine.timers().robustness(), 4);
}

/// A bridge without an address changes the timers only while there is no querier.
#[test]
fn query_without_address_does_not_replace_values_of_the_querier() {
    let mut link = link_with_policy(QuerierPolicy::Off, Some("10.0.0.1"));
    let mut query = link.general_query();
    query.robustness = 3;
    link.receive_query("10.0.0.9", &query).unwrap();
    query.robustness = 4;
    let _ = link.receive_query("0.0.0.0", &query);
    assert_eq!(link.machine.timers().robustness(), 3);
    let mut link = link_with_policy(QuerierPolicy::Auto, None);
    let _ = link.receive_query("0.0.0.0", &query);
    assert_eq!(link.machine.timers().robustness(), 2);
}

#[test]
fn missing_querier_is_reported_once() {
    let mut link = link_with_policy(QuerierPolicy::Off, Some("10.0.0.1"));
    link.advance_to(254.0);
    assert_eq!(link.take_events(), []);
    link.advance_to(900.0);
    assert_eq!(link.take_events(), [MembershipEvent::NoQuerier]);
    // A bridge without an address counts as a querier.
    let query = link.general_query();
    let _ = link.receive_query("0.0.0.0", &query);
    link.advance_to(900.0 + 254.0);
    assert_eq!(link.take_events(), []);
    let _ = link.receive_query("0.0.0.0", &query);
    link.advance_to(900.0 + 254.0 + 256.0);
    assert_eq!(link.take_events(), [MembershipEvent::NoQuerier]);
    assert_eq!(link.sent, []);
}

// Sections 4.1.6 and 4.1.7.

#[test]
fn elected_querier_values_are_adopted_unless_zero() {
    let mut link = link_with_policy(QuerierPolicy::Auto, Some("10.0.0.5"));
    let mut query = link.general_query();
    (query.robustness, query.interval) = (4, Some(20 * SECOND));
    link.receive_query("10.0.0.9", &query).unwrap();
    assert_eq!(link.machine.timers().robustness(), 2, "we are the querier");
    link.receive_query("10.0.0.1", &query).unwrap();
    link.receive(1, "IS_EX");
    assert_eq!(link.state(), "EXCLUDE 100");
    assert_eq!(link.machine.querier(link.now).expires_in, Some(85 * SECOND));
    (query.robustness, query.interval) = (0, Some(Duration::ZERO));
    link.receive_query("10.0.0.1", &query).unwrap();
    link.receive(1, "IS_EX");
    assert_eq!(link.state(), "EXCLUDE 270");
    // When this router becomes the querier, its own values apply.
    (query.robustness, query.interval) = (7, Some(SECOND));
    link.receive_query("10.0.0.1", &query).unwrap();
    link.advance_to(100.0);
    assert_eq!(link.machine.timers().robustness(), 2);
}

#[test]
fn adopted_query_interval_is_limited() {
    let mut link = link_with_policy(QuerierPolicy::Auto, Some("10.0.0.5"));
    let mut query = link.general_query();
    (query.robustness, query.interval) = (7, Some(31_744 * SECOND));
    link.receive_query("10.0.0.1", &query).unwrap();
    // 7 x (8 x 125 s), plus half the response interval.
    assert_eq!(
        link.machine.querier(link.now).expires_in,
        Some(7_005 * SECOND)
    );
    link.advance_to(7_005.0);
    assert!(link.machine.querier(link.now).is_us);
}

// Own address.

#[test]
fn new_own_address_restarts_queries() {
    let mut link = link_with_policy(QuerierPolicy::Auto, None);
    assert_eq!(link.advance_to(100.0).take_general_query_times(), [0.0; 0]);
    link.receive(1, "TO_EX").receive(1, "TO_IN");
    assert_eq!(link.state(), "EXCLUDE 270");
    let set_address = |link: &mut VirtualLink, own: Option<&str>| {
        let own = own.map(|a| a.parse().unwrap());
        link.machine.set_own_address(link.now, own);
    };
    set_address(&mut link, Some("10.0.0.5"));
    link.advance_to(140.0);
    assert_eq!(link.take_general_query_times(), [100.0, 131.25]);
    set_address(&mut link, Some("10.0.0.5"));
    assert_eq!(
        link.advance_to(150.0).take_general_query_times(),
        [0.0; 0],
        "an unchanged address has no effect"
    );
    set_address(&mut link, Some("10.0.0.7"));
    assert_eq!(
        link.advance_to(190.0).take_general_query_times(),
        [150.0, 181.25]
    );
    set_address(&mut link, None);
    assert_eq!(link.advance_to(900.0).take_general_query_times(), [0.0; 0]);
    let events = [
        changed(Some("10.0.0.5"), true),
        changed(Some("10.0.0.7"), true),
        changed(None, false),
    ];
    assert_eq!(link.take_events(), events);
}

// Links without an IPv4 address.

#[test]
fn router_without_address_queries_until_any_other_does() {
    let mut link = link_with_policy(QuerierPolicy::Auto, Some("0.0.0.0"));
    link.advance_to(200.0);
    assert_eq!(link.take_general_query_times().len(), 3);
    assert_eq!(link.take_events(), [changed(Some("0.0.0.0"), true)]);
    // A bridge that queries from 0.0.0.0 is no other querier.
    let refused = link.receive_query("0.0.0.0", &link.general_query());
    assert_eq!(refused, Err(MembershipRefusal::QueryUnspecified));
    assert_eq!(link.take_events(), []);
    // Any other address wins the election.
    let query = link.general_query();
    link.receive_query("223.255.255.254", &query).unwrap();
    assert_eq!(
        link.take_events(),
        [changed(Some("223.255.255.254"), false)]
    );
    link.advance_to(400.0);
    assert_eq!(link.take_general_query_times().len(), 0);
    link.advance_to(460.0);
    assert_eq!(link.take_events(), [changed(Some("0.0.0.0"), true)]);
}
