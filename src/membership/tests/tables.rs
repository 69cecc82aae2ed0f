//! RFC 9776 sections 6.3, 6.4.1, 6.4.2 and 6.5, RFC 9777 sections 7.3 to 7.5: every row.

use super::virtual_link::{Lab, rule};
use crate::membership::Protocol;
use crate::model::QuerierPolicy;

const PROTOCOLS: [(Protocol, &str); 2] = [(Protocol::Igmp, "10.0.0.1"), (Protocol::Mld, "fe80::1")];

/// A state built at 0 s: INCLUDE (ab), or EXCLUDE (ab, cd).
fn built(protocol: Protocol, own: &str, querier: QuerierPolicy, state: &str) -> Lab {
    let mut rule = rule();
    rule.querier = querier;
    let mut lab = Lab::with(protocol, rule, Some(own));
    match state {
        "INCLUDE" => lab.hears(1, "IS_IN ab"),
        _ => lab.hears(1, "IS_EX cd").hears(1, "ALLOW ab"),
    };
    let old = match state {
        "INCLUDE" => "INCLUDE a270 b270",
        _ => "EXCLUDE 270: a270 b270 c0 d0",
    };
    assert_eq!(lab.state(), old);
    lab.changes();
    // Timers of 170 s are as they were, those of 270 s are new.
    lab.at(100.0);
    lab.sent.clear();
    lab
}

fn row(state: &str, record: &str, new: &str, queries: &str) {
    for (protocol, own) in PROTOCOLS {
        let mut lab = built(protocol, own, QuerierPolicy::Auto, state);
        lab.hears(2, record);
        let case = format!("{protocol} {state} {record}");
        assert_eq!(lab.state(), new, "{case}");
        assert_eq!(lab.specifics(), queries, "{case}");
    }
}

/// The same for a router that is not the querier: it sends nothing and lowers no timer.
fn silent_row(state: &str, record: &str, new: &str) {
    for (protocol, own) in PROTOCOLS {
        let mut lab = built(protocol, own, QuerierPolicy::Off, state);
        lab.hears(2, record);
        let case = format!("{protocol} {state} {record}");
        assert_eq!(lab.state(), new, "{case}");
        assert_eq!(lab.sent, [], "{case}");
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
fn include_to_in_none_is_the_leave_of_version_3() {
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
    // e has the group timer as it was before.
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
fn exclude_to_in_none_is_the_leave_of_version_3() {
    let new = "EXCLUDE 2: a2 b2 c0 d0";
    row("EXCLUDE", "TO_IN", new, "100 Q(G), 100 Q(G,ab)");
}

// Records that make no state where there is none.

#[test]
fn a_group_nobody_asked_for_is_not_made_by_a_leave() {
    for record in ["IS_IN", "TO_IN", "ALLOW", "BLOCK", "BLOCK ab", "leave"] {
        let mut lab = Lab::new(rule());
        lab.hears(1, record);
        assert_eq!(lab.state(), "gone", "{record}");
        assert_eq!(lab.specifics(), "");
        assert!(lab.changes().is_empty());
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
        let mut lab = Lab::new(rule());
        assert_eq!(lab.hears(1, record).state(), state, "{record}");
    }
}

#[test]
fn a_source_named_twice_is_one() {
    let mut lab = Lab::new(rule());
    lab.hears(1, "IS_IN aab");
    assert_eq!(lab.state(), "INCLUDE a270 b270");
}

// Section 6.3: what is forwarded, and what becomes of it when timers run out.

#[test]
fn in_include_a_source_ends_with_its_timer_and_the_group_with_its_last_source() {
    let mut lab = Lab::new(rule());
    lab.hears(1, "IS_IN a").at(10.0).hears(1, "IS_IN b");
    assert_eq!(lab.changes(), ["include ab"]);
    lab.at(269.9);
    assert_eq!(lab.state(), "INCLUDE a0.1 b10.1");
    assert_eq!(lab.at(270.0).changes(), ["include b"]);
    assert_eq!(lab.at(280.0).changes(), ["none"]);
    assert_eq!(lab.state(), "gone");
    assert_eq!(
        (lab.machine.group_count(), lab.machine.source_count()),
        (0, 0)
    );
}

#[test]
fn in_exclude_a_source_whose_timer_ran_out_is_kept_and_not_forwarded() {
    let mut lab = Lab::new(rule());
    lab.hears(1, "IS_EX").hears(1, "ALLOW a");
    assert_eq!(lab.changes(), ["exclude"]);
    lab.at(100.0).hears(2, "IS_EX a");
    assert_eq!(lab.at(270.0).changes(), ["exclude a"]);
    assert_eq!(lab.state(), "EXCLUDE 100: a0");
    lab.hears(1, "ALLOW a");
    assert_eq!(lab.changes(), ["exclude"]);
}

// Section 6.5: the switch of the filter mode when the group timer runs out.

#[test]
fn the_group_timer_of_exclude_ends_in_include_of_the_running_sources() {
    let mut lab = Lab::new(rule());
    lab.hears(1, "IS_EX bc").at(10.0).hears(2, "IS_IN a");
    assert_eq!(lab.changes(), ["exclude bc"]);
    assert_eq!(lab.at(270.0).changes(), ["include a"]);
    assert_eq!(lab.state(), "INCLUDE a10");
    assert_eq!(lab.at(280.0).changes(), ["none"]);
}

#[test]
fn the_group_timer_of_exclude_ends_all_where_no_source_runs() {
    let mut lab = Lab::new(rule());
    lab.hears(1, "IS_EX bc");
    lab.changes();
    assert_eq!(lab.at(270.0).changes(), ["none"]);
    assert_eq!(lab.state(), "gone");
}

#[test]
fn a_filter_that_changed_back_is_not_told() {
    let mut lab = Lab::new(rule());
    lab.hears(1, "IS_IN a");
    lab.changes();
    lab.hears(1, "ALLOW b")
        .hears(1, "IS_EX")
        .hears(1, "IS_IN a");
    lab.machine.handle_timeout(lab.now);
    assert_eq!(lab.changes(), ["exclude"]);
    lab.hears(1, "IS_EX");
    assert!(lab.changes().is_empty(), "a refresh changes nothing");
}
