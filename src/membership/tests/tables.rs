//! Every row of the tables in RFC 9776 sections 6.3, 6.4.1, 6.4.2 and 6.5, and in RFC 9777
//! sections 7.3 to 7.5.

use super::virtual_link::{VirtualLink, rule};
use crate::membership::Protocol;
use crate::model::QuerierPolicy;

const PROTOCOLS: [(Protocol, &str); 2] = [(Protocol::Igmp, "10.0.0.1"), (Protocol::Mld, "fe80::1")];

/// Returns a link whose group was in INCLUDE (ab) or EXCLUDE (ab, cd) at 0 s.
fn link_in_state(
    protocol: Protocol,
    own: &str,
    querier: QuerierPolicy,
    state: &str,
) -> VirtualLink {
    let mut rule = rule();
    rule.querier = querier;
    let mut link = VirtualLink::with_protocol(protocol, rule, Some(own));
    match state {
        "INCLUDE" => link.receive(1, "IS_IN ab"),
        _ => link.receive(1, "IS_EX cd").receive(1, "ALLOW ab"),
    };
    let old = match state {
        "INCLUDE" => "INCLUDE a270 b270",
        _ => "EXCLUDE 270: a270 b270 c0 d0",
    };
    assert_eq!(link.state(), old);
    link.take_changes();
    // Unchanged timers now show 170 s; restarted timers show 270 s.
    link.advance_to(100.0);
    link.sent.clear();
    link
}

/// Checks one row: the new state and the queries after `record`.
fn row(state: &str, record: &str, new: &str, queries: &str) {
    for (protocol, own) in PROTOCOLS {
        let mut link = link_in_state(protocol, own, QuerierPolicy::Auto, state);
        link.receive(2, record);
        let case = format!("{protocol} {state} {record}");
        assert_eq!(link.state(), new, "{case}");
        assert_eq!(link.take_specific_queries(), queries, "{case}");
    }
}

/// Checks a row for a router that is not the querier: it sends no query and lowers no timer.
fn silent_row(state: &str, record: &str, new: &str) {
    for (protocol, own) in PROTOCOLS {
        let mut link = link_in_state(protocol, own, QuerierPolicy::Off, state);
        link.receive(2, record);
        let case = format!("{protocol} {state} {record}");
        assert_eq!(link.state(), new, "{case}");
        assert_eq!(link.sent, [], "{case}");
    }
}

// Section 6.4.1.

#[test]
fn include_is_in() {
    row("INCLUDE", "IS_IN bc", "INCLUDE a170 b270 c270", "");
}

#[test]
fn include_is_ex() {
    row("INCLUDE", "IS_EX bc", "EXCLUDE 270: b170 c0", "");
}

#[test]
fn exclude_is_in() {
    let new = "EXCLUDE 170: a170 b270 c0 d270 e270";
    row("EXCLUDE", "IS_IN bde", new, "");
}

#[test]
fn exclude_is_ex() {
    row("EXCLUDE", "IS_EX bde", "EXCLUDE 270: b170 d0 e270", "");
}

// Section 6.4.2.

#[test]
fn include_allow() {
    row("INCLUDE", "ALLOW bc", "INCLUDE a170 b270 c270", "");
}

#[test]
fn include_block() {
    row("INCLUDE", "BLOCK bc", "INCLUDE a170 b2", "100 Q(G,b)");
    silent_row("INCLUDE", "BLOCK bc", "INCLUDE a170 b170");
}

#[test]
fn include_to_ex() {
    let new = "EXCLUDE 270: b2 c0";
    row("INCLUDE", "TO_EX bc", new, "100 Q(G,b)");
    silent_row("INCLUDE", "TO_EX bc", "EXCLUDE 270: b170 c0");
}

#[test]
fn include_to_in() {
    row("INCLUDE", "TO_IN bc", "INCLUDE a2 b270 c270", "100 Q(G,a)");
    silent_row("INCLUDE", "TO_IN bc", "INCLUDE a170 b270 c270");
}

#[test]
fn include_to_in_empty_queries_all_sources() {
    row("INCLUDE", "TO_IN", "INCLUDE a2 b2", "100 Q(G,ab)");
}

#[test]
fn exclude_allow() {
    let new = "EXCLUDE 170: a170 b270 c0 d270 e270";
    row("EXCLUDE", "ALLOW bde", new, "");
}

#[test]
fn exclude_block() {
    let new = "EXCLUDE 170: a170 b2 c0 d0 e2";
    row("EXCLUDE", "BLOCK bde", new, "100 Q(G,be)");
    let new = "EXCLUDE 170: a170 b170 c0 d0 e170";
    silent_row("EXCLUDE", "BLOCK bde", new);
}

#[test]
fn exclude_to_ex() {
    let new = "EXCLUDE 270: b2 d0 e2";
    row("EXCLUDE", "TO_EX bde", new, "100 Q(G,be)");
    // The timer of e is the previous group timer.
    silent_row("EXCLUDE", "TO_EX bde", "EXCLUDE 270: b170 d0 e170");
}

#[test]
fn exclude_to_in() {
    let new = "EXCLUDE 2: a2 b270 c0 d270 e270";
    row("EXCLUDE", "TO_IN bde", new, "100 Q(G), 100 Q(G,a)");
    let new = "EXCLUDE 170: a170 b270 c0 d270 e270";
    silent_row("EXCLUDE", "TO_IN bde", new);
}

#[test]
fn exclude_to_in_empty_queries_group_and_sources() {
    let new = "EXCLUDE 2: a2 b2 c0 d0";
    row("EXCLUDE", "TO_IN", new, "100 Q(G), 100 Q(G,ab)");
}

// Records that do not create a group.

#[test]
fn leave_does_not_create_a_group() {
    for record in ["IS_IN", "TO_IN", "ALLOW", "BLOCK", "BLOCK ab", "leave"] {
        let mut link = VirtualLink::new(rule());
        link.receive(1, record);
        assert_eq!(link.state(), "gone", "{record}");
        assert_eq!(link.take_specific_queries(), "");
        assert!(link.take_changes().is_empty());
    }
    for (record, state) in [
        ("IS_IN a", "INCLUDE a270"),
        ("TO_IN a", "INCLUDE a270"),
        ("ALLOW a", "INCLUDE a270"),
        ("IS_EX a", "EXCLUDE 270: a0"),
        ("TO_EX a", "EXCLUDE 270: a0"),
        ("TO_EX", "EXCLUDE 270"),
        ("v2", "EXCLUDE 270"),
    ] {
        let mut link = VirtualLink::new(rule());
        assert_eq!(link.receive(1, record).state(), state, "{record}");
    }
}

#[test]
fn duplicate_source_is_stored_once() {
    let mut link = VirtualLink::new(rule());
    link.receive(1, "IS_IN aab");
    assert_eq!(link.state(), "INCLUDE a270 b270");
}

// Section 6.3: forwarded sources, and the effect of expired timers.

#[test]
fn include_group_ends_with_its_last_source() {
    let mut link = VirtualLink::new(rule());
    link.receive(1, "IS_IN a")
        .advance_to(10.0)
        .receive(1, "IS_IN b");
    assert_eq!(link.take_changes(), ["include ab"]);
    link.advance_to(269.9);
    assert_eq!(link.state(), "INCLUDE a0.1 b10.1");
    assert_eq!(link.advance_to(270.0).take_changes(), ["include b"]);
    assert_eq!(link.advance_to(280.0).take_changes(), ["none"]);
    assert_eq!(link.state(), "gone");
    assert_eq!(
        (link.machine.group_count(), link.machine.source_count()),
        (0, 0)
    );
}

#[test]
fn exclude_keeps_expired_source_unforwarded() {
    let mut link = VirtualLink::new(rule());
    link.receive(1, "IS_EX").receive(1, "ALLOW a");
    assert_eq!(link.take_changes(), ["exclude"]);
    link.advance_to(100.0).receive(2, "IS_EX a");
    assert_eq!(link.advance_to(270.0).take_changes(), ["exclude a"]);
    assert_eq!(link.state(), "EXCLUDE 100: a0");
    link.receive(1, "ALLOW a");
    assert_eq!(link.take_changes(), ["exclude"]);
}

// Section 6.5: switch of the filter mode when the group timer expires.

#[test]
fn expired_group_timer_keeps_running_sources() {
    let mut link = VirtualLink::new(rule());
    link.receive(1, "IS_EX bc")
        .advance_to(10.0)
        .receive(2, "IS_IN a");
    assert_eq!(link.take_changes(), ["exclude bc"]);
    assert_eq!(link.advance_to(270.0).take_changes(), ["include a"]);
    assert_eq!(link.state(), "INCLUDE a10");
    assert_eq!(link.advance_to(280.0).take_changes(), ["none"]);
}

#[test]
fn expired_group_timer_without_sources_ends_group() {
    let mut link = VirtualLink::new(rule());
    link.receive(1, "IS_EX bc");
    link.take_changes();
    assert_eq!(link.advance_to(270.0).take_changes(), ["none"]);
    assert_eq!(link.state(), "gone");
}

#[test]
fn unchanged_filter_is_not_reported() {
    let mut link = VirtualLink::new(rule());
    link.receive(1, "IS_IN a");
    link.take_changes();
    link.receive(1, "ALLOW b")
        .receive(1, "IS_EX")
        .receive(1, "IS_IN a");
    link.machine.handle_timeout(link.now);
    assert_eq!(link.take_changes(), ["exclude"]);
    link.receive(1, "IS_EX");
    assert!(link.take_changes().is_empty(), "a refresh changes nothing");
}
