//! State that a new process continues.

use std::fmt::Debug;

use proptest::prelude::*;

use super::virtual_link::{VirtualLink, rule};
use crate::membership::{MembershipEvent, Protocol};
use crate::model::{ProxyRule, QuerierPolicy, Versions};
use crate::wire::membership_message::Generation::Two;

const OWN: Option<&str> = Some("10.0.0.1");

#[test]
fn timers_continue_with_what_is_left() {
    let mut link = VirtualLink::new(rule());
    link.receive(1, "IS_EX c").receive(1, "ALLOW ab");
    link.advance_to(100.0).restart(20.0, rule(), OWN);
    assert_eq!(link.state(), "EXCLUDE 150: a150 b150 c0");
    assert_eq!(link.take_changes(), ["exclude c"]);
    assert_eq!(link.advance_to(269.9).take_changes(), [""; 0]);
    assert_eq!(link.advance_to(270.0).state(), "gone");
    assert_eq!(link.take_changes(), ["none"]);
}

#[test]
fn expired_memberships_are_not_restored() {
    let mut link = VirtualLink::new(rule());
    link.receive(1, "IS_IN a");
    link.advance_to(60.0).receive(1, "ALLOW b");
    link.restart(215.0, rule(), OWN);
    assert_eq!(link.state(), "INCLUDE b55");
    assert_eq!(link.take_changes(), ["include b"]);
    link.restart(55.0, rule(), OWN);
    assert_eq!(link.state(), "gone");
    assert_eq!(link.take_changes(), [""; 0]);
    assert_eq!(link.machine.group_count(), 0);
}

#[test]
fn group_timer_that_ended_leaves_the_requested_sources() {
    let mut link = VirtualLink::new(rule());
    link.receive(1, "IS_EX c");
    link.advance_to(60.0).receive(1, "ALLOW a");
    link.restart(215.0, rule(), OWN);
    assert_eq!(link.state(), "INCLUDE a55");
}

#[test]
fn next_query_is_sent_when_it_was_due() {
    let mut link = VirtualLink::new(rule());
    link.advance_to(100.0);
    // Startup queries at 0 s and 31.25 s, then one each 125 s.
    assert_eq!(link.take_general_query_times(), [0.0, 31.25]);
    link.take_events();
    link.restart(2.0, rule(), OWN).advance_to(300.0);
    assert_eq!(link.take_general_query_times(), [156.25, 281.25]);
    let own = MembershipEvent::QuerierChanged {
        address: Some([10, 0, 0, 1].into()),
        is_us: true,
    };
    assert_eq!(link.take_events(), [own]);
}

#[test]
fn missed_query_is_followed_by_startup_queries() {
    let mut link = VirtualLink::new(rule());
    link.advance_to(100.0).take_general_query_times();
    link.restart(60.0, rule(), OWN).advance_to(250.0);
    assert_eq!(link.take_general_query_times(), [160.0, 191.25]);
}

#[test]
fn long_absence_is_followed_by_startup_queries() {
    let mut link = VirtualLink::new(rule());
    link.receive(1, "IS_EX")
        .advance_to(100.0)
        .take_general_query_times();
    link.restart_with(6.0, rule(), OWN, |saved| saved.forget_own_queries());
    assert_eq!(link.state(), "EXCLUDE 164");
    link.advance_to(150.0);
    assert_eq!(link.take_general_query_times(), [106.0, 137.25]);
}

#[test]
fn startup_queries_continue() {
    let mut link = VirtualLink::new(rule());
    link.advance_to(1.0).take_general_query_times();
    link.restart(1.0, rule(), OWN).advance_to(160.0);
    assert_eq!(link.take_general_query_times(), [31.25, 156.25]);
}

#[test]
fn other_querier_stays_elected_with_its_timer() {
    let mut link = VirtualLink::with_protocol(Protocol::Igmp, rule(), Some("10.0.0.5"));
    let mut query = link.general_query();
    query.robustness = 3;
    link.advance_to(10.0)
        .receive_query("10.0.0.2", &query)
        .unwrap();
    link.take_general_query_times();
    link.restart(30.0, rule(), Some("10.0.0.5"));
    let querier = link.machine.querier(link.now);
    assert_eq!(
        (querier.address, querier.is_us),
        (Some([10, 0, 0, 2].into()), false)
    );
    // 3 x 125 s + 5 s after its query.
    assert_eq!(querier.expires_in.unwrap().as_secs(), 350);
    assert_eq!(link.machine.timers().robustness(), 3);
    assert_eq!(link.advance_to(389.9).take_general_query_times(), [0.0; 0]);
    assert_eq!(link.advance_to(390.0).take_general_query_times(), [390.0]);
}

#[test]
fn changed_settings_restart_the_election() {
    let changed_version = || {
        let mut rule = rule();
        rule.version = Versions { igmp: 2, mld: 2 };
        rule
    };
    let mut off = rule();
    off.querier = QuerierPolicy::Off;
    for (rule, own, times) in [
        (rule(), Some("10.0.0.9"), vec![102.0, 133.25]),
        (changed_version(), OWN, vec![102.0, 133.25]),
        (off, OWN, vec![]),
    ] {
        let mut link = VirtualLink::new(super::virtual_link::rule());
        link.receive(1, "IS_EX");
        link.advance_to(100.0).take_general_query_times();
        link.restart(2.0, rule, own).advance_to(150.0);
        assert_eq!(link.take_general_query_times(), times);
        assert_eq!(link.state(), "EXCLUDE 120");
    }
}

#[test]
fn policy_on_does_not_continue_another_querier() {
    let mut link = VirtualLink::with_protocol(Protocol::Igmp, rule(), Some("10.0.0.5"));
    let query = link.general_query();
    link.receive_query("10.0.0.2", &query).unwrap();
    let mut on = rule();
    on.querier = QuerierPolicy::On;
    link.restart(1.0, on, Some("10.0.0.5"));
    assert!(link.machine.querier(link.now).is_us);
}

#[test]
fn groups_that_the_settings_deny_are_not_restored() {
    let deny = |prefix: &str| {
        let mut rule = rule();
        rule.deny_groups = vec![prefix.parse().unwrap()];
        rule
    };
    let restored = |rule: ProxyRule| {
        let mut link = VirtualLink::new(self::rule());
        link.receive(1, "IS_EX").restart(1.0, rule, OWN);
        (
            link.state(),
            link.machine.group_count(),
            link.take_changes(),
        )
    };
    assert_eq!(restored(deny("239.1.1.0/24")), ("gone".into(), 0, vec![]));
    let mut full = rule();
    full.limits.groups = 0;
    assert_eq!(restored(full), ("gone".into(), 0, vec![]));
    let (state, ..) = restored(deny("239.2.0.0/16"));
    assert_eq!(state, "EXCLUDE 269");
}

#[test]
fn compatibility_mode_is_restored() {
    let mut link = VirtualLink::new(rule());
    link.receive(1, "v2").advance_to(200.0).receive(2, "IS_EX");
    assert_eq!(link.restart(10.0, rule(), OWN).generation(), Two);
    assert_eq!(link.advance_to(259.9).generation(), Two);
    assert_ne!(link.advance_to(260.0).generation(), Two);
}

#[test]
fn specific_queries_of_a_leave_continue() {
    let mut link = VirtualLink::new(rule());
    link.receive(1, "IS_EX").receive(1, "TO_IN");
    assert_eq!(link.take_specific_queries(), "0 Q(G)");
    link.restart(0.5, rule(), OWN);
    assert_eq!(link.state(), "EXCLUDE 1.5");
    assert_eq!(link.advance_to(5.0).take_specific_queries(), "1 Q(G)");
    assert_eq!(link.state(), "gone");
}

#[test]
fn learning_lasts_until_the_answers_to_the_next_query() {
    let mut link = VirtualLink::new(rule());
    link.advance_to(100.0).restart(1.0, rule(), OWN);
    // The next query is due at 156.25 s; hosts answer within 10 s.
    let left = link.machine.learning_time(link.now);
    assert_eq!(left.as_secs_f64(), 65.25);
}

/// A message of a host, or the passage of time.
fn step() -> impl Strategy<Value = (u8, &'static str, f64)> {
    let words = vec![
        "IS_EX", "IS_EX ab", "TO_EX c", "TO_IN", "TO_IN a", "ALLOW ab", "ALLOW d", "BLOCK a",
        "IS_IN bc", "v2", "v1", "leave",
    ];
    let wait = prop::sample::select(vec![0.0, 0.5, 1.0, 30.0, 100.0]);
    (1u8..4, prop::sample::select(words), wait)
}

/// Delivers messages, and returns the state and the queries.
fn run(link: &mut VirtualLink, steps: &[(u8, &'static str, f64)]) -> impl PartialEq + Debug {
    for (host, message, wait) in steps {
        let _ = link.try_receive(*host, message);
        link.advance_to(link.seconds() + wait);
    }
    (
        link.state(),
        link.generation(),
        std::mem::take(&mut link.sent),
    )
}

proptest! {
    /// A router that restarts without losing time behaves like one that does not restart.
    #[test]
    fn restart_without_a_gap_changes_nothing(
        before in prop::collection::vec(step(), 0..12),
        after in prop::collection::vec(step(), 0..12),
    ) {
        let mut restarted = VirtualLink::new(rule());
        let mut other = VirtualLink::new(rule());
        prop_assert_eq!(run(&mut restarted, &before), run(&mut other, &before));
        restarted.restart(0.0, rule(), OWN);
        prop_assert_eq!(run(&mut restarted, &after), run(&mut other, &after));
    }
}
