//! Leaves and specific queries (RFC 9776 sections 6.6.1 and 6.6.3, RFC 9777 sections 7.6.1 and
//! 7.6.3), and leaves that take effect immediately (`fast_leave`).

use super::virtual_link::{VirtualLink, rule};
use crate::membership::Protocol;
use crate::model::QuerierPolicy;
use crate::wire::membership_message::{Generation, MembershipMessage};

#[test]
fn leave_queries_group_before_expiry() {
    for (protocol, own) in [(Protocol::Igmp, "10.0.0.1"), (Protocol::Mld, "fe80::1")] {
        let mut link = VirtualLink::with_protocol(protocol, rule(), Some(own));
        link.receive(1, "TO_EX")
            .advance_to(100.0)
            .receive(1, "TO_IN");
        assert_eq!(link.take_changes(), ["exclude"]);
        assert_eq!(link.advance_to(101.9).take_changes(), [""; 0]);
        assert_eq!(link.advance_to(102.0).take_changes(), ["none"]);
        assert_eq!(
            link.advance_to(130.0).take_specific_queries(),
            "100 Q(G), 101 Q(G)"
        );
    }
}

#[test]
fn answered_group_query_keeps_forwarding() {
    let mut link = VirtualLink::new(rule());
    link.receive(1, "TO_EX")
        .advance_to(100.0)
        .receive(1, "TO_IN");
    link.take_changes();
    link.advance_to(100.5).receive(2, "IS_EX");
    // Section 6.6.3.1: the repeated query has the S flag, so it does not lower timers.
    assert_eq!(
        link.advance_to(110.0).take_specific_queries(),
        "100 Q(G), 101 S Q(G)"
    );
    assert_eq!(link.state(), "EXCLUDE 260.5");
    assert_eq!(link.take_changes(), [""; 0]);
}

#[test]
fn last_member_query_count_and_interval_are_applied() {
    let mut rule = rule();
    rule.timers.last_member_query_count = Some(4);
    rule.timers.last_member_query_interval = std::time::Duration::from_millis(500);
    let mut link = VirtualLink::new(rule);
    link.receive(1, "TO_EX")
        .advance_to(10.0)
        .receive(1, "TO_IN");
    assert_eq!(link.state(), "EXCLUDE 2");
    link.advance_to(30.0);
    let all = "10 Q(G), 10.5 Q(G), 11 Q(G), 11.5 Q(G)";
    assert_eq!(link.take_specific_queries(), all);
    assert_eq!(link.state(), "gone");
}

#[test]
fn last_member_query_count_of_one_sends_one_query() {
    let mut rule = rule();
    rule.timers.last_member_query_count = Some(1);
    let mut link = VirtualLink::new(rule);
    link.receive(1, "TO_EX")
        .advance_to(10.0)
        .receive(1, "TO_IN");
    assert_eq!(link.advance_to(30.0).take_specific_queries(), "10 Q(G)");
}

#[test]
fn repeated_leave_does_not_restart_queries() {
    let mut link = VirtualLink::new(rule());
    link.receive(1, "TO_EX")
        .advance_to(100.0)
        .receive(1, "TO_IN");
    link.advance_to(100.3).receive(1, "TO_IN");
    assert_eq!(
        link.advance_to(110.0).take_specific_queries(),
        "100 Q(G), 101 Q(G)"
    );
    assert_eq!(link.state(), "gone");
}

#[test]
fn leave_after_answer_restarts_queries() {
    let mut link = VirtualLink::new(rule());
    link.receive(1, "TO_EX")
        .advance_to(100.0)
        .receive(1, "TO_IN");
    link.advance_to(100.5)
        .receive(2, "IS_EX")
        .advance_to(100.75)
        .receive(2, "TO_IN");
    let all = "100 Q(G), 100.75 Q(G), 101.75 Q(G)";
    assert_eq!(link.advance_to(110.0).take_specific_queries(), all);
    assert_eq!(link.state(), "gone");
}

#[test]
fn block_queries_sources_before_expiry() {
    let mut link = VirtualLink::new(rule());
    link.receive(1, "ALLOW abc")
        .advance_to(100.0)
        .receive(1, "BLOCK ab");
    link.take_changes();
    assert_eq!(link.state(), "INCLUDE a2 b2 c170");
    assert_eq!(link.advance_to(102.0).take_changes(), ["include c"]);
    assert_eq!(
        link.advance_to(110.0).take_specific_queries(),
        "100 Q(G,ab), 101 Q(G,ab)"
    );
}

#[test]
fn answered_sources_are_repeated_with_s_flag() {
    // Section 6.6.3.2: sources whose timers exceed the last member query time are queried in a
    // message of their own.
    let mut link = VirtualLink::new(rule());
    link.receive(1, "ALLOW ab")
        .advance_to(100.0)
        .receive(1, "BLOCK ab");
    link.take_changes();
    link.advance_to(100.5).receive(2, "IS_IN a");
    let all = "100 Q(G,ab), 101 S Q(G,a), 101 Q(G,b)";
    assert_eq!(link.advance_to(101.0).take_specific_queries(), all);
    assert_eq!(link.advance_to(110.0).take_changes(), ["include a"]);
}

#[test]
fn repeated_block_does_not_restart_source_queries() {
    // Section 6.6.3.2: only sources whose timers exceed the last member query time are queried.
    let mut link = VirtualLink::new(rule());
    link.receive(1, "ALLOW abc")
        .advance_to(100.0)
        .receive(1, "BLOCK a");
    link.advance_to(100.25).receive(1, "BLOCK a");
    assert_eq!(link.take_specific_queries(), "100 Q(G,a)");
    // A new source is merged into the running queries.
    link.advance_to(100.5).receive(1, "BLOCK ab");
    assert_eq!(link.state(), "INCLUDE a1.5 b2 c169.5");
    assert_eq!(
        link.advance_to(101.5).take_specific_queries(),
        "100.5 Q(G,ab), 101.5 Q(G,b)"
    );
    assert_eq!(link.advance_to(110.0).state(), "INCLUDE c160");
    assert_eq!(link.take_specific_queries(), "");
}

#[test]
fn group_query_replaces_s_flag_source_query() {
    let mut link = VirtualLink::new(rule());
    link.receive(1, "IS_EX")
        .receive(1, "ALLOW ab")
        .advance_to(100.0);
    link.receive(1, "TO_IN")
        .advance_to(100.5)
        .receive(2, "IS_IN a");
    let all = "100 Q(G), 100 Q(G,ab), 101 Q(G), 101 Q(G,b)";
    assert_eq!(link.advance_to(110.0).take_specific_queries(), all);
    assert_eq!(link.state(), "INCLUDE a260.5");
}

// Section 6.6.1: queries of other routers.

#[test]
fn foreign_specific_query_lowers_timers_unless_suppressed() {
    for policy in [QuerierPolicy::Auto, QuerierPolicy::Off] {
        let mut rule = rule();
        rule.querier = policy;
        let mut link = VirtualLink::with_protocol(Protocol::Igmp, rule, Some("10.0.0.5"));
        link.receive(1, "IS_EX c")
            .receive(1, "ALLOW ab")
            .advance_to(50.0);
        link.receive_query("10.0.0.1", &link.general_query())
            .unwrap();
        link.sent.clear();
        let mut query = link.specific_query("ac");
        query.suppress = true;
        link.receive_query("10.0.0.1", &query).unwrap();
        let mut group = link.specific_query("");
        group.suppress = true;
        link.receive_query("10.0.0.1", &group).unwrap();
        assert_eq!(link.state(), "EXCLUDE 220: a220 b220 c0");
        link.receive_query("10.0.0.1", &link.specific_query("ac"))
            .unwrap();
        assert_eq!(link.state(), "EXCLUDE 220: a2 b220 c0");
        link.receive_query("10.0.0.1", &link.specific_query(""))
            .unwrap();
        assert_eq!(link.state(), "EXCLUDE 2: a2 b220 c0");
        link.advance_to(60.0);
        assert_eq!(link.state(), "INCLUDE b210");
        assert_eq!(
            link.take_specific_queries(),
            "",
            "a router that is not the querier sends no queries"
        );
    }
}

fn link_with_elected_querier() -> VirtualLink {
    let mut link = VirtualLink::with_protocol(Protocol::Igmp, rule(), Some("10.0.0.5"));
    link.receive_query("10.0.0.1", &link.general_query())
        .unwrap();
    link.sent.clear();
    link
}

#[test]
fn foreign_queries_do_not_expire_members() {
    let mut link = VirtualLink::new(rule());
    link.receive(1, "IS_EX")
        .receive(1, "ALLOW a")
        .advance_to(50.0);
    link.receive_query("10.0.0.200", &link.specific_query(""))
        .unwrap();
    link.receive_query("10.0.0.200", &link.specific_query("a"))
        .unwrap();
    assert_eq!(link.state(), "EXCLUDE 220: a220");
    assert_eq!(link.take_specific_queries(), "");
}

#[test]
fn foreign_query_neither_extends_timers_nor_creates_groups() {
    let mut link = link_with_elected_querier();
    link.receive_query("10.0.0.1", &link.specific_query(""))
        .unwrap();
    link.receive_query("10.0.0.1", &link.specific_query("ab"))
        .unwrap();
    assert_eq!(link.state(), "gone");
    link.receive(1, "IS_EX").advance_to(269.0);
    link.receive_query("10.0.0.1", &link.specific_query(""))
        .unwrap();
    assert_eq!(link.state(), "EXCLUDE 1");
}

#[test]
fn foreign_query_response_time_is_granted() {
    let mut link = link_with_elected_querier();
    link.receive(1, "IS_EX");
    let mut query = link.specific_query("");
    query.max_response_time = std::time::Duration::from_secs(5);
    link.receive_query("10.0.0.1", &query).unwrap();
    assert_eq!(link.state(), "EXCLUDE 10");
    // A response time below our last member query time must not expire members early.
    let mut link = link_with_elected_querier();
    link.receive(1, "IS_EX");
    query.max_response_time = std::time::Duration::ZERO;
    link.receive_query("10.0.0.1", &query).unwrap();
    assert_eq!(link.state(), "EXCLUDE 2");
}

#[test]
fn specific_queries_stop_after_lost_election() {
    let mut link = VirtualLink::with_protocol(Protocol::Igmp, rule(), Some("10.0.0.5"));
    link.receive(1, "TO_EX")
        .advance_to(50.0)
        .receive(1, "TO_IN");
    link.receive_query("10.0.0.1", &link.general_query())
        .unwrap();
    assert_eq!(link.advance_to(60.0).take_specific_queries(), "50 Q(G)");
}

#[test]
fn late_timeout_expires_group_without_query() {
    let mut link = VirtualLink::new(rule());
    link.receive(1, "TO_EX")
        .advance_to(10.0)
        .receive(1, "TO_IN");
    assert_eq!(link.take_specific_queries(), "10 Q(G)");
    // No timeout is handled for a minute, so that the query and the expiry are due together.
    link.now = link.start + std::time::Duration::from_secs(70);
    link.machine.handle_timeout(link.now);
    let queries = std::iter::from_fn(|| link.machine.poll_query());
    assert_eq!(queries.filter(|q| q.query.group.is_some()).count(), 0);
    assert_eq!(link.state(), "gone");
}

#[test]
fn late_report_before_timeout_keeps_membership() {
    let mut link = VirtualLink::new(rule());
    link.receive(1, "TO_EX");
    link.take_changes();
    link.now = link.start + std::time::Duration::from_secs(300);
    link.receive(1, "IS_EX");
    link.machine.handle_timeout(link.now);
    assert_eq!(link.take_changes(), [""; 0]);
    assert_eq!(link.state(), "EXCLUDE 270");
}

// Leaves with `fast_leave`.

fn link_with_fast_leave() -> VirtualLink {
    let mut rule = rule();
    rule.fast_leave = true;
    VirtualLink::new(rule)
}

#[test]
fn last_leave_of_tracked_hosts_takes_effect_immediately() {
    let mut link = link_with_fast_leave();
    link.advance_to(10.0)
        .receive(1, "TO_EX")
        .receive(2, "TO_EX");
    assert_eq!(link.take_changes(), ["exclude"]);
    assert_eq!(
        link.machine
            .groups(link.now)
            .next()
            .unwrap()
            .reporters
            .len(),
        2
    );
    link.receive(1, "TO_IN");
    assert_eq!(link.take_changes(), [""; 0]);
    assert_eq!(link.state(), "EXCLUDE 270");
    link.receive(2, "TO_IN");
    assert_eq!(link.take_changes(), ["none"]);
    assert_eq!(link.state(), "gone");
    assert_eq!(link.take_specific_queries(), "");
}

#[test]
fn leave_is_queried_while_reports_may_be_missing() {
    // The hosts may not have answered the first query yet.
    let mut link = link_with_fast_leave();
    link.receive(1, "TO_EX").advance_to(9.0).receive(1, "TO_IN");
    assert_eq!(link.take_specific_queries(), "9 Q(G)");
    // A report exceeded the rate limit, or was lost before it was processed.
    let report_losses: [fn(&mut VirtualLink); 2] = [
        |link| link.machine.handle_missed_report(link.now),
        |link| link.machine.handle_message_loss(link.now),
    ];
    for lose_report in report_losses {
        let mut link = link_with_fast_leave();
        link.advance_to(20.0).receive(1, "TO_EX");
        lose_report(&mut link);
        link.advance_to(279.0)
            .receive(1, "TO_EX")
            .receive(1, "TO_IN");
        assert_eq!(link.take_specific_queries(), "279 Q(G)");
        // From 290 s, every host has reported again, so the leave takes effect immediately.
        link.advance_to(291.0).receive(1, "TO_EX");
        link.take_changes();
        link.advance_to(292.0).receive(1, "TO_IN");
        assert_eq!(
            (link.take_changes().join(" "), link.state().as_str()),
            ("none".into(), "gone")
        );
    }
}

#[test]
fn unrequested_sources_of_tracked_hosts_end_immediately() {
    let mut link = link_with_fast_leave();
    link.advance_to(10.0)
        .receive(1, "ALLOW ab")
        .receive(2, "ALLOW bc");
    assert_eq!(link.take_changes(), ["include abc"]);
    link.receive(1, "BLOCK ab");
    assert_eq!(link.take_changes(), ["include bc"]);
    link.receive(2, "TO_IN c");
    assert_eq!(link.take_changes(), ["include c"]);
    link.receive(1, "TO_EX d");
    assert_eq!(link.take_changes(), ["exclude d"]);
    link.receive(2, "TO_EX cd").receive(1, "BLOCK c");
    assert_eq!(link.take_changes(), ["exclude cd"]);
    link.receive(2, "ALLOW c").receive(1, "TO_IN d");
    assert_eq!(link.take_changes(), ["exclude"]);
    link.receive(2, "TO_IN");
    assert_eq!(link.take_changes(), ["include d"]);
    assert_eq!(link.take_specific_queries(), "");
}

#[test]
fn included_sources_survive_leave_of_exclude_host() {
    let mut link = link_with_fast_leave();
    link.receive(1, "ALLOW a")
        .advance_to(10.0)
        .receive(2, "TO_EX");
    assert_eq!(
        link.state(),
        "EXCLUDE 270",
        "the RFC's tables do not store a"
    );
    link.take_changes();
    link.receive(2, "TO_IN");
    assert_eq!(link.take_changes(), ["include a"]);
    assert_eq!(link.state(), "INCLUDE a260");
    // If the included sources exceed the source limit, the hosts are queried instead.
    let mut rule = rule();
    (rule.fast_leave, rule.limits.sources_per_group) = (true, 1);
    let mut link = VirtualLink::new(rule);
    link.receive(1, "ALLOW a").receive(2, "TO_EX");
    link.receive(3, "ALLOW b")
        .advance_to(10.0)
        .receive(2, "TO_IN");
    assert_eq!(link.take_specific_queries(), "10 Q(G), 10 Q(G,b)");
}

#[test]
fn leave_is_queried_if_a_host_is_untracked() {
    for older in ["v1", "v2"] {
        let mut link = link_with_fast_leave();
        link.receive(1, "TO_EX").receive(2, older);
        link.advance_to(10.0)
            .receive(1, if older == "v1" { "BLOCK" } else { "TO_IN" });
        assert_ne!(link.state(), "gone", "{older}");
    }
    // Hosts without an address cannot be distinguished.
    let mut link = link_with_fast_leave();
    link.receive(1, "TO_EX");
    let unspecified = [0, 0, 0, 0].into();
    let message = crate::wire::membership_message::MembershipMessage::Records(vec![
        crate::wire::membership_message::GroupRecord {
            kind: crate::wire::membership_message::RecordType::ChangeToExclude,
            group: link.group,
            sources: vec![],
        },
    ]);
    let (now, to) = (link.now, link.group.addr());
    link.machine
        .handle_message(now, unspecified, to, &message)
        .unwrap();
    link.advance_to(10.0).receive(1, "TO_IN");
    assert_eq!(link.take_specific_queries(), "10 Q(G)");
    assert_eq!(link.state(), "EXCLUDE 2");
}

#[test]
fn leave_of_only_igmpv2_reporter_ends_group() {
    for protocol in Protocol::ALL {
        let mut rule = rule();
        rule.fast_leave = true;
        let own = match protocol {
            Protocol::Igmp => "10.0.0.1",
            Protocol::Mld => "fe80::1",
        };
        let mut link = VirtualLink::with_protocol(protocol, rule, Some(own));
        link.advance_to(20.0).receive(1, "v2").receive(2, "v2");
        assert_eq!(link.take_changes(), ["exclude"]);
        link.receive(1, "leave");
        assert_eq!(link.take_specific_queries(), "20 Q(G)");
        assert_eq!(link.take_changes(), [""; 0]);
        link.receive(2, "v2");
        // A leave of a host that is not known is queried.
        link.advance_to(25.0).receive(3, "leave");
        assert_eq!(link.take_specific_queries(), "21 S Q(G), 25 Q(G)");
        link.receive(2, "v2").advance_to(30.0).receive(2, "leave");
        assert_eq!(link.take_changes(), ["none"]);
        assert_eq!(link.state(), "gone");
        // A member that suppressed its reports answers this query.
        assert_eq!(link.take_specific_queries(), "26 S Q(G), 30 Q(G)");
        link.receive(4, "v2");
        assert_eq!(link.take_changes(), ["exclude"]);
    }
}

#[test]
fn igmpv2_leave_is_queried_while_members_may_be_unknown() {
    // The hosts may not have answered the first query yet.
    let mut link = link_with_fast_leave();
    link.receive(1, "v2").advance_to(9.0).receive(1, "leave");
    assert_eq!(link.take_specific_queries(), "9 Q(G)");
    // A host without an address cannot be distinguished from others.
    let mut link = link_with_fast_leave();
    link.advance_to(20.0).receive(1, "v2");
    let (now, to, group) = (link.now, link.group.addr(), link.group);
    let generation = Generation::Two;
    let report = MembershipMessage::Report { generation, group };
    let unspecified = [0, 0, 0, 0].into();
    link.machine
        .handle_message(now, unspecified, to, &report)
        .unwrap();
    link.receive(1, "leave");
    assert_eq!(link.state(), "EXCLUDE 2");
    // Without the setting, nothing changes.
    let mut link = VirtualLink::new(rule());
    link.advance_to(20.0).receive(1, "v2").receive(1, "leave");
    assert_eq!(link.state(), "EXCLUDE 2");
}

#[test]
fn silent_tracked_host_expires() {
    let mut link = link_with_fast_leave();
    link.receive(1, "TO_EX")
        .advance_to(200.0)
        .receive(2, "TO_EX");
    link.advance_to(300.0);
    assert_eq!(
        link.machine.groups(link.now).next().unwrap().reporters,
        [link.host(2)]
    );
    link.receive(2, "TO_IN");
    assert_eq!(link.state(), "gone");
}

/// The router knows that it lost messages itself, so it extends the timers beyond the RFC.
#[test]
fn message_loss_extends_expiring_memberships() {
    for (record, change) in [("TO_EX", "exclude"), ("ALLOW ab", "include ab")] {
        let mut link = VirtualLink::new(rule());
        link.receive(1, record).advance_to(200.0).lose_messages();
        assert_eq!(link.take_changes(), [change]);
        // The RFC expires the membership at 270 s. The extension adds 135 s, in which every host
        // is queried again.
        assert_eq!(link.advance_to(404.9).take_changes(), [""; 0], "{record}");
        assert_eq!(link.advance_to(405.0).take_changes(), ["none"], "{record}");
        assert_eq!(link.state(), "gone");
    }
    // The query after a leave is not answered.
    let mut link = VirtualLink::new(rule());
    link.receive(1, "TO_EX")
        .advance_to(100.0)
        .receive(1, "TO_IN")
        .lose_messages();
    link.take_changes();
    assert_eq!(link.advance_to(236.9).take_changes(), [""; 0]);
    assert_eq!(link.advance_to(237.0).take_changes(), ["none"]);
    // A host that answers during the extension stays a member without a filter change.
    let mut link = VirtualLink::new(rule());
    link.receive(1, "TO_EX")
        .advance_to(269.0)
        .lose_messages()
        .advance_to(300.0);
    link.receive(1, "IS_EX");
    assert_eq!(link.take_changes(), ["exclude"]);
    assert_eq!(link.advance_to(569.9).take_changes(), [""; 0]);
    assert_eq!(link.advance_to(570.0).take_changes(), ["none"]);
}

/// A flood must not keep an ended membership alive forever.
#[test]
fn message_loss_extends_membership_three_times_at_most() {
    let mut link = VirtualLink::new(rule());
    link.receive(1, "TO_EX");
    link.take_changes();
    for at in (1..67).map(|n| f64::from(n) * 10.0) {
        link.advance_to(at).lose_messages();
    }
    assert_eq!(link.advance_to(674.9).take_changes(), [""; 0]);
    assert_eq!(link.advance_to(675.0).take_changes(), ["none"]);
    // A report resets the number of extensions.
    link.advance_to(1000.0)
        .receive(1, "TO_EX")
        .advance_to(1200.0)
        .lose_messages();
    link.advance_to(1300.0).lose_messages().receive(1, "IS_EX");
    link.take_changes();
    for at in (0..64).map(|n| 1310.0 + f64::from(n) * 10.0) {
        link.advance_to(at).lose_messages();
    }
    assert_eq!(link.advance_to(1974.9).take_changes(), [""; 0]);
    assert_eq!(link.advance_to(1975.0).take_changes(), ["none"]);
}
