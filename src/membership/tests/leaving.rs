//! Leaves and specific queries: RFC 9776 sections 6.6.1 and 6.6.3, RFC 9777 sections 7.6.1 and
//! 7.6.3; and leaves that count at once.

use super::virtual_link::{Lab, rule};
use crate::membership::Protocol;
use crate::model::QuerierPolicy;

#[test]
fn a_group_is_asked_for_before_it_is_given_up() {
    for (protocol, own) in [(Protocol::Igmp, "10.0.0.1"), (Protocol::Mld, "fe80::1")] {
        let mut lab = Lab::with(protocol, rule(), Some(own));
        lab.hears(1, "TO_EX").at(100.0).hears(1, "TO_IN");
        assert_eq!(lab.changes(), ["exclude"]);
        assert_eq!(lab.at(101.9).changes(), [""; 0]);
        assert_eq!(lab.at(102.0).changes(), ["none"]);
        assert_eq!(lab.at(130.0).specifics(), "100 Q(G), 101 Q(G)");
    }
}

#[test]
fn a_member_that_answers_keeps_the_group_without_a_break() {
    let mut lab = Lab::new(rule());
    lab.hears(1, "TO_EX").at(100.0).hears(1, "TO_IN");
    lab.changes();
    lab.at(100.5).hears(2, "IS_EX");
    // Section 6.6.3.1: the repetition says that timers are to be left alone.
    assert_eq!(lab.at(110.0).specifics(), "100 Q(G), 101 S Q(G)");
    assert_eq!(lab.state(), "EXCLUDE 260.5");
    assert_eq!(lab.changes(), [""; 0]);
}

#[test]
fn the_last_member_query_count_and_interval_say_how_often_and_how_long() {
    let mut rule = rule();
    rule.timers.last_member_query_count = Some(4);
    rule.timers.last_member_query_interval = std::time::Duration::from_millis(500);
    let mut lab = Lab::new(rule);
    lab.hears(1, "TO_EX").at(10.0).hears(1, "TO_IN");
    assert_eq!(lab.state(), "EXCLUDE 2");
    lab.at(30.0);
    let all = "10 Q(G), 10.5 Q(G), 11 Q(G), 11.5 Q(G)";
    assert_eq!(lab.specifics(), all);
    assert_eq!(lab.state(), "gone");
}

#[test]
fn a_count_of_one_asks_once() {
    let mut rule = rule();
    rule.timers.last_member_query_count = Some(1);
    let mut lab = Lab::new(rule);
    lab.hears(1, "TO_EX").at(10.0).hears(1, "TO_IN");
    assert_eq!(lab.at(30.0).specifics(), "10 Q(G)");
}

#[test]
fn a_leave_repeated_within_the_round_asks_no_more() {
    let mut lab = Lab::new(rule());
    lab.hears(1, "TO_EX").at(100.0).hears(1, "TO_IN");
    lab.at(100.3).hears(1, "TO_IN");
    assert_eq!(lab.at(110.0).specifics(), "100 Q(G), 101 Q(G)");
    assert_eq!(lab.state(), "gone");
}

#[test]
fn a_leave_after_an_answer_begins_a_new_round() {
    let mut lab = Lab::new(rule());
    lab.hears(1, "TO_EX").at(100.0).hears(1, "TO_IN");
    lab.at(100.5).hears(2, "IS_EX").at(100.75).hears(2, "TO_IN");
    let all = "100 Q(G), 100.75 Q(G), 101.75 Q(G)";
    assert_eq!(lab.at(110.0).specifics(), all);
    assert_eq!(lab.state(), "gone");
}

#[test]
fn sources_are_asked_for_before_they_are_given_up() {
    let mut lab = Lab::new(rule());
    lab.hears(1, "ALLOW abc").at(100.0).hears(1, "BLOCK ab");
    lab.changes();
    assert_eq!(lab.state(), "INCLUDE a2 b2 c170");
    assert_eq!(lab.at(102.0).changes(), ["include c"]);
    assert_eq!(lab.at(110.0).specifics(), "100 Q(G,ab), 101 Q(G,ab)");
}

#[test]
fn of_sources_those_answered_for_are_repeated_apart_and_with_the_s_flag() {
    // Section 6.6.3.2: two messages, one for each side of the last member query time.
    let mut lab = Lab::new(rule());
    lab.hears(1, "ALLOW ab").at(100.0).hears(1, "BLOCK ab");
    lab.changes();
    lab.at(100.5).hears(2, "IS_IN a");
    let all = "100 Q(G,ab), 101 S Q(G,a), 101 Q(G,b)";
    assert_eq!(lab.at(101.0).specifics(), all);
    assert_eq!(lab.at(110.0).changes(), ["include a"]);
}

#[test]
fn sources_that_are_being_asked_for_are_not_asked_for_anew() {
    // Section 6.6.3.2: only those whose timer is larger than the last member query time.
    let mut lab = Lab::new(rule());
    lab.hears(1, "ALLOW abc").at(100.0).hears(1, "BLOCK a");
    lab.at(100.25).hears(1, "BLOCK a");
    assert_eq!(lab.specifics(), "100 Q(G,a)");
    // A new one is merged into the round.
    lab.at(100.5).hears(1, "BLOCK ab");
    assert_eq!(lab.state(), "INCLUDE a1.5 b2 c169.5");
    assert_eq!(lab.at(101.5).specifics(), "100.5 Q(G,ab), 101.5 Q(G,b)");
    assert_eq!(lab.at(110.0).state(), "INCLUDE c160");
    assert_eq!(lab.specifics(), "");
}

#[test]
fn with_the_group_due_at_the_same_time_the_s_flag_message_is_left_out() {
    let mut lab = Lab::new(rule());
    lab.hears(1, "IS_EX").hears(1, "ALLOW ab").at(100.0);
    lab.hears(1, "TO_IN").at(100.5).hears(2, "IS_IN a");
    let all = "100 Q(G), 100 Q(G,ab), 101 Q(G), 101 Q(G,b)";
    assert_eq!(lab.at(110.0).specifics(), all);
    assert_eq!(lab.state(), "INCLUDE a260.5");
}

// Section 6.6.1: what others ask.

#[test]
fn a_query_heard_lowers_timers_unless_it_says_not_to() {
    for policy in [QuerierPolicy::Auto, QuerierPolicy::Off] {
        let mut rule = rule();
        rule.querier = policy;
        let mut lab = Lab::with(Protocol::Igmp, rule, Some("10.0.0.5"));
        lab.hears(1, "IS_EX c").hears(1, "ALLOW ab").at(50.0);
        lab.asked("10.0.0.1", &lab.general()).unwrap();
        lab.sent.clear();
        let mut query = lab.specific("ac");
        query.suppress = true;
        lab.asked("10.0.0.1", &query).unwrap();
        let mut group = lab.specific("");
        group.suppress = true;
        lab.asked("10.0.0.1", &group).unwrap();
        assert_eq!(lab.state(), "EXCLUDE 220: a220 b220 c0");
        lab.asked("10.0.0.1", &lab.specific("ac")).unwrap();
        assert_eq!(lab.state(), "EXCLUDE 220: a2 b220 c0");
        lab.asked("10.0.0.1", &lab.specific("")).unwrap();
        assert_eq!(lab.state(), "EXCLUDE 2: a2 b220 c0");
        lab.at(60.0);
        assert_eq!(lab.state(), "INCLUDE b210");
        assert_eq!(lab.specifics(), "", "who hears does not ask");
    }
}

fn beside_a_querier() -> Lab {
    let mut lab = Lab::with(Protocol::Igmp, rule(), Some("10.0.0.5"));
    lab.asked("10.0.0.1", &lab.general()).unwrap();
    lab.sent.clear();
    lab
}

#[test]
fn what_others_ask_beside_us_ends_nothing() {
    let mut lab = Lab::new(rule());
    lab.hears(1, "IS_EX").hears(1, "ALLOW a").at(50.0);
    lab.asked("10.0.0.200", &lab.specific("")).unwrap();
    lab.asked("10.0.0.200", &lab.specific("a")).unwrap();
    assert_eq!(lab.state(), "EXCLUDE 220: a220");
    assert_eq!(lab.specifics(), "");
}

#[test]
fn a_query_heard_never_lengthens_a_timer_and_makes_no_group() {
    let mut lab = beside_a_querier();
    lab.asked("10.0.0.1", &lab.specific("")).unwrap();
    lab.asked("10.0.0.1", &lab.specific("ab")).unwrap();
    assert_eq!(lab.state(), "gone");
    lab.hears(1, "IS_EX").at(269.0);
    lab.asked("10.0.0.1", &lab.specific("")).unwrap();
    assert_eq!(lab.state(), "EXCLUDE 1");
}

#[test]
fn hosts_may_answer_as_late_as_the_querier_lets_them() {
    let mut lab = beside_a_querier();
    lab.hears(1, "IS_EX");
    let mut query = lab.specific("");
    query.max_response_time = std::time::Duration::from_secs(5);
    lab.asked("10.0.0.1", &query).unwrap();
    assert_eq!(lab.state(), "EXCLUDE 10");
    // Less than our own last member query time would cut members off.
    let mut lab = beside_a_querier();
    lab.hears(1, "IS_EX");
    query.max_response_time = std::time::Duration::ZERO;
    lab.asked("10.0.0.1", &query).unwrap();
    assert_eq!(lab.state(), "EXCLUDE 2");
}

#[test]
fn who_is_no_longer_the_querier_stops_asking() {
    let mut lab = Lab::with(Protocol::Igmp, rule(), Some("10.0.0.5"));
    lab.hears(1, "TO_EX").at(50.0).hears(1, "TO_IN");
    lab.asked("10.0.0.1", &lab.general()).unwrap();
    assert_eq!(lab.at(60.0).specifics(), "50 Q(G)");
}

#[test]
fn a_late_call_gives_up_and_asks_for_nothing_that_is_gone() {
    let mut lab = Lab::new(rule());
    lab.hears(1, "TO_EX").at(10.0).hears(1, "TO_IN");
    assert_eq!(lab.specifics(), "10 Q(G)");
    // No call for a minute: then everything is due at once.
    lab.now = lab.start + std::time::Duration::from_secs(70);
    lab.machine.handle_timeout(lab.now);
    let queries = std::iter::from_fn(|| lab.machine.poll_query());
    assert_eq!(queries.filter(|q| q.query.group.is_some()).count(), 0);
    assert_eq!(lab.state(), "gone");
}

#[test]
fn a_report_that_waits_while_the_timer_runs_out_saves_the_member() {
    let mut lab = Lab::new(rule());
    lab.hears(1, "TO_EX");
    lab.changes();
    lab.now = lab.start + std::time::Duration::from_secs(300);
    lab.hears(1, "IS_EX");
    lab.machine.handle_timeout(lab.now);
    assert_eq!(lab.changes(), [""; 0]);
    assert_eq!(lab.state(), "EXCLUDE 270");
}

// Leaves that count at once.

fn tracked() -> Lab {
    let mut rule = rule();
    rule.fast_leave = true;
    Lab::new(rule)
}

#[test]
fn with_every_host_tracked_the_last_leave_counts_at_once() {
    let mut lab = tracked();
    lab.at(10.0).hears(1, "TO_EX").hears(2, "TO_EX");
    assert_eq!(lab.changes(), ["exclude"]);
    assert_eq!(
        lab.machine.groups(lab.now).next().unwrap().reporters.len(),
        2
    );
    lab.hears(1, "TO_IN");
    assert_eq!(lab.changes(), [""; 0]);
    assert_eq!(lab.state(), "EXCLUDE 270");
    lab.hears(2, "TO_IN");
    assert_eq!(lab.changes(), ["none"]);
    assert_eq!(lab.state(), "gone");
    assert_eq!(lab.specifics(), "");
}

#[test]
fn while_a_host_may_not_have_been_heard_a_leave_is_asked_about() {
    // Not all have answered the first query yet.
    let mut lab = tracked();
    lab.hears(1, "TO_EX").at(9.0).hears(1, "TO_IN");
    assert_eq!(lab.specifics(), "9 Q(G)");
    // A report found no place within the rate, or was lost before it came.
    let missed: [fn(&mut Lab); 2] = [
        |lab| lab.machine.handle_missed_report(lab.now),
        |lab| lab.machine.handle_message_loss(lab.now),
    ];
    for miss in missed {
        let mut lab = tracked();
        lab.at(20.0).hears(1, "TO_EX");
        miss(&mut lab);
        lab.at(279.0).hears(1, "TO_EX").hears(1, "TO_IN");
        assert_eq!(lab.specifics(), "279 Q(G)");
        // Until every host has told again what it wants.
        lab.at(291.0).hears(1, "TO_EX");
        lab.changes();
        lab.at(292.0).hears(1, "TO_IN");
        assert_eq!(
            (lab.changes().join(" "), lab.state().as_str()),
            ("none".into(), "gone")
        );
    }
}

#[test]
fn sources_nobody_wants_any_more_end_at_once() {
    let mut lab = tracked();
    lab.at(10.0).hears(1, "ALLOW ab").hears(2, "ALLOW bc");
    assert_eq!(lab.changes(), ["include abc"]);
    lab.hears(1, "BLOCK ab");
    assert_eq!(lab.changes(), ["include bc"]);
    lab.hears(2, "TO_IN c");
    assert_eq!(lab.changes(), ["include c"]);
    lab.hears(1, "TO_EX d");
    assert_eq!(lab.changes(), ["exclude d"]);
    lab.hears(2, "TO_EX cd").hears(1, "BLOCK c");
    assert_eq!(lab.changes(), ["exclude cd"]);
    lab.hears(2, "ALLOW c").hears(1, "TO_IN d");
    assert_eq!(lab.changes(), ["exclude"]);
    lab.hears(2, "TO_IN");
    assert_eq!(lab.changes(), ["include d"]);
    assert_eq!(lab.specifics(), "");
}

#[test]
fn who_named_sources_before_another_wanted_all_keeps_them_when_it_leaves() {
    let mut lab = tracked();
    lab.hears(1, "ALLOW a").at(10.0).hears(2, "TO_EX");
    assert_eq!(lab.state(), "EXCLUDE 270", "the tables forget a");
    lab.changes();
    lab.hears(2, "TO_IN");
    assert_eq!(lab.changes(), ["include a"]);
    assert_eq!(lab.state(), "INCLUDE a260");
    // With no room for what has to be remembered, all are asked instead.
    let mut rule = rule();
    (rule.fast_leave, rule.limits.sources_per_group) = (true, 1);
    let mut lab = Lab::new(rule);
    lab.hears(1, "ALLOW a").hears(2, "TO_EX");
    lab.hears(3, "ALLOW b").at(10.0).hears(2, "TO_IN");
    assert_eq!(lab.specifics(), "10 Q(G), 10 Q(G,b)");
}

#[test]
fn where_a_host_is_not_tracked_a_leave_is_asked_about() {
    for silent in ["v1", "v2"] {
        let mut lab = tracked();
        lab.hears(1, "TO_EX").hears(2, silent);
        lab.at(10.0)
            .hears(1, if silent == "v1" { "BLOCK" } else { "TO_IN" });
        assert_ne!(lab.state(), "gone", "{silent}");
    }
    // Hosts that have no address yet cannot be told apart.
    let mut lab = tracked();
    lab.hears(1, "TO_EX");
    let unspecified = [0, 0, 0, 0].into();
    let message = crate::wire::membership_message::MembershipMessage::Records(vec![
        crate::wire::membership_message::GroupRecord {
            kind: crate::wire::membership_message::RecordType::ChangeToExclude,
            group: lab.group,
            sources: vec![],
        },
    ]);
    let (now, to) = (lab.now, lab.group.addr());
    lab.machine
        .handle_message(now, unspecified, to, &message)
        .unwrap();
    lab.at(10.0).hears(1, "TO_IN");
    assert_eq!(lab.specifics(), "10 Q(G)");
    assert_eq!(lab.state(), "EXCLUDE 2");
}

#[test]
fn a_host_that_fell_silent_is_forgotten() {
    let mut lab = tracked();
    lab.hears(1, "TO_EX").at(200.0).hears(2, "TO_EX");
    lab.at(300.0);
    assert_eq!(
        lab.machine.groups(lab.now).next().unwrap().reporters,
        [lab.host(2)]
    );
    lab.hears(2, "TO_IN");
    assert_eq!(lab.state(), "gone");
}

/// The RFC knows of answers lost on the link; of those lost between link and machine we know.
#[test]
fn silence_is_no_leave_while_messages_are_lost() {
    for (says, there) in [("TO_EX", "exclude"), ("ALLOW ab", "include ab")] {
        let mut lab = Lab::new(rule());
        lab.hears(1, says).at(200.0).loses();
        assert_eq!(lab.changes(), [there]);
        // 270 is its end by the RFC; 135 later everybody was asked again.
        assert_eq!(lab.at(404.9).changes(), [""; 0], "{says}");
        assert_eq!(lab.at(405.0).changes(), ["none"], "{says}");
        assert_eq!(lab.state(), "gone");
    }
    // A leave that nobody contradicts.
    let mut lab = Lab::new(rule());
    lab.hears(1, "TO_EX").at(100.0).hears(1, "TO_IN").loses();
    lab.changes();
    assert_eq!(lab.at(236.9).changes(), [""; 0]);
    assert_eq!(lab.at(237.0).changes(), ["none"]);
    // Who answers meanwhile stays, and nothing was ever told of an end.
    let mut lab = Lab::new(rule());
    lab.hears(1, "TO_EX").at(269.0).loses().at(300.0);
    lab.hears(1, "IS_EX");
    assert_eq!(lab.changes(), ["exclude"]);
    assert_eq!(lab.at(569.9).changes(), [""; 0]);
    assert_eq!(lab.at(570.0).changes(), ["none"]);
}

/// A flood keeps nothing alive for ever.
#[test]
fn three_rounds_of_silence_end_a_member_whatever_is_lost() {
    let mut lab = Lab::new(rule());
    lab.hears(1, "TO_EX");
    lab.changes();
    for at in (1..67).map(|n| f64::from(n) * 10.0) {
        lab.at(at).loses();
    }
    assert_eq!(lab.at(674.9).changes(), [""; 0]);
    assert_eq!(lab.at(675.0).changes(), ["none"]);
    // An answer in between starts the count anew.
    lab.at(1000.0).hears(1, "TO_EX").at(1200.0).loses();
    lab.at(1300.0).loses().hears(1, "IS_EX");
    lab.changes();
    for at in (0..64).map(|n| 1310.0 + f64::from(n) * 10.0) {
        lab.at(at).loses();
    }
    assert_eq!(lab.at(1974.9).changes(), [""; 0]);
    assert_eq!(lab.at(1975.0).changes(), ["none"]);
}
