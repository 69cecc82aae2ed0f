//! Reports of changes (RFC 9776 section 5.1, RFC 9777 section 6.1), and reports anew.

use std::net::IpAddr;

use super::virtual_host::{VirtualHost, config};
use crate::membership::{HostConfig, Protocol};
use crate::wire::membership_message::{GroupRecord, MembershipMessage, RecordType};
use std::time::Duration;

/// The table of section 5.1: the former filter, the new filter, and the records of the change.
#[test]
fn filter_changes_are_reported_as_in_the_table() {
    for (old, new, reported) in [
        ("none", "ex", "TO_EX 1"),
        ("none", "in ab", "ALLOW 1 ab"),
        ("in ab", "in bc", "ALLOW 1 c, BLOCK 1 a"),
        ("ex ab", "ex bc", "ALLOW 1 a, BLOCK 1 c"),
        ("in ab", "ex bc", "TO_EX 1 bc"),
        ("ex ab", "in bc", "TO_IN 1 bc"),
        ("ex", "none", "TO_IN 1"),
        ("ex a", "none", "TO_IN 1"),
        ("in ab", "none", "BLOCK 1 ab"),
    ] {
        for mut host in [VirtualHost::igmp(), VirtualHost::mld()] {
            host.set(1, old).advance(20.0).take();
            host.set(1, new);
            assert_eq!(host.take(), [reported], "{old} to {new}");
            // The Robustness Variable is 2: one repetition, then nothing.
            host.advance(1.0);
            assert_eq!(host.take(), [reported], "{old} to {new}, repeated");
            host.advance(30.0);
            assert_eq!(host.take(), [""; 0], "{old} to {new}");
        }
    }
}

#[test]
fn robustness_of_the_querier_sets_the_repetitions() {
    let mut host = VirtualHost::igmp();
    let mut query = host.general_query();
    query.robustness = 4;
    host.receive_query(&query).set(1, "ex").advance(4.0);
    assert_eq!(host.take(), ["TO_EX 1"; 4]);
    // A querier that sends 1 does not disable repetitions.
    query.robustness = 1;
    host.receive_query(&query).advance(20.0).take();
    host.set(2, "ex").advance(4.0);
    assert_eq!(host.take(), ["TO_EX 2"; 2]);
}

#[test]
fn changes_due_together_share_a_report() {
    let mut host = VirtualHost::igmp();
    host.change(1, "ex").change(2, "in a").set(3, "ex b");
    assert_eq!(host.take(), ["TO_EX 1, ALLOW 2 a, TO_EX 3 b"]);
    host.advance(1.0);
    assert_eq!(host.take(), ["TO_EX 1, ALLOW 2 a, TO_EX 3 b"]);
}

#[test]
fn second_change_is_merged_with_the_repetition() {
    let mut host = VirtualHost::igmp();
    host.set(1, "in a").set(1, "in ab");
    assert_eq!(host.take(), ["ALLOW 1 a", "ALLOW 1 ab"]);
    host.advance(5.0);
    assert_eq!(host.take(), ["ALLOW 1 b"]);
    // A source that was added and removed again is blocked.
    host.set(1, "in abc").set(1, "in ab").advance(5.0);
    assert_eq!(host.take(), ["ALLOW 1 c", "BLOCK 1 c", "BLOCK 1 c"]);
    // The repetition of a mode change has the present list, and counts for the new source.
    host.set(1, "ex").set(1, "ex d").advance(5.0);
    assert_eq!(host.take(), ["TO_EX 1", "TO_EX 1 d", "BLOCK 1 d"]);
}

#[test]
fn unchanged_filter_is_not_reported() {
    let mut host = VirtualHost::igmp();
    host.set(1, "in ab").advance(5.0).take();
    host.set(1, "in ab").set(2, "none").advance(5.0);
    assert_eq!(host.take(), [""; 0]);
}

#[test]
fn all_systems_groups_are_never_reported() {
    for (mut host, group) in [
        (VirtualHost::igmp(), "224.0.0.1"),
        (VirtualHost::mld(), "ff02::1"),
        (VirtualHost::mld(), "ff01::5"),
    ] {
        let any = host.filter("ex");
        host.machine
            .set_filter(host.now, group.parse().unwrap(), any);
        host.query().advance(20.0);
        assert_eq!(host.take(), [""; 0], "{group}");
    }
}

#[test]
fn returned_carrier_reports_all_groups_anew() {
    let mut host = VirtualHost::igmp();
    host.set(1, "ex a").set(2, "in bc").advance(60.0).take();
    host.machine.handle_link_up(host.now);
    host.advance(0.0);
    assert_eq!(host.take(), ["TO_EX 1 a, ALLOW 2 bc"]);
    host.advance(1.0);
    assert_eq!(host.take(), ["TO_EX 1 a, ALLOW 2 bc"]);
}

#[test]
fn new_address_reports_all_groups_anew() {
    let mut host = VirtualHost::igmp();
    host.set(1, "ex").advance(60.0).take();
    let addresses = |texts: &[&str]| -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    };
    let mut set_addresses = |texts: &[&str]| {
        host.machine.set_own_addresses(host.now, addresses(texts));
        host.advance(5.0).take()
    };
    // A further address is not the source of reports.
    assert_eq!(set_addresses(&["10.0.0.2", "10.0.0.3"]), [""; 0]);
    assert_eq!(set_addresses(&["10.0.0.3"]), ["TO_EX 1"; 2]);
    assert_eq!(set_addresses(&[]), [""; 0]);
    assert_eq!(set_addresses(&["10.0.0.4"]), ["TO_EX 1"; 2]);
}

#[test]
fn refresh_reports_all_groups_at_its_interval() {
    let mut host = VirtualHost::new(
        HostConfig {
            refresh: Some(Duration::from_secs(60)),
            ..config(Protocol::Igmp)
        },
        1,
    );
    host.set(1, "ex a").set(2, "in b").advance(2.0).take();
    host.advance(200.0);
    let all: Vec<_> = host.sent.iter().map(|(at, text)| (*at, &**text)).collect();
    let text = "IS_EX 1 a, IS_IN 2 b";
    assert_eq!(all, [(60.0, text), (120.0, text), (180.0, text)]);
    host.sent.clear();
    host.machine.reconfigure(host.now, config(Protocol::Igmp));
    host.advance(200.0);
    assert_eq!(host.take(), [""; 0]);
}

#[test]
fn last_leave_is_reported_once_at_the_end() {
    let mut host = VirtualHost::igmp();
    host.set(1, "ex").set(2, "in a").take();
    host.machine.leave_all(host.now);
    host.advance(20.0);
    assert_eq!(host.take(), ["TO_IN 1, BLOCK 2 a"]);
    assert_eq!(host.machine.membership_count(), 0);
}

/// Another program of this machine leaves the group. The router sees one host.
#[test]
fn contradicting_reports_of_this_machine_are_corrected() {
    use RecordType::{AllowNewSources, BlockOldSources, ChangeToExclude, ChangeToInclude};
    let mut host = VirtualHost::igmp();
    host.set(1, "ex a").set(2, "in ab").advance(5.0).take();
    let mut corrections = |own: bool, kind, group, letters: &str| {
        let record = GroupRecord {
            kind,
            group: host.group(group),
            sources: host.sources(letters),
        };
        let message = MembershipMessage::Records(vec![record]);
        let sender = if own { host.own() } else { host.other() };
        let to = IpAddr::from([224, 0, 0, 22]);
        host.receive(sender, to, &message).unwrap();
        host.advance(5.0).take()
    };
    assert_eq!(corrections(true, ChangeToInclude, 1, ""), ["TO_EX 1 a"; 2]);
    assert_eq!(corrections(true, ChangeToInclude, 1, "b"), ["TO_EX 1 a"; 2]);
    assert_eq!(corrections(true, BlockOldSources, 1, "b"), ["TO_EX 1 a"; 2]);
    assert_eq!(
        corrections(true, ChangeToInclude, 2, "a"),
        ["ALLOW 2 ab"; 2]
    );
    assert_eq!(
        corrections(true, BlockOldSources, 2, "b"),
        ["ALLOW 2 ab"; 2]
    );
    // These contradict nothing.
    assert_eq!(corrections(true, BlockOldSources, 1, "a"), [""; 0]);
    assert_eq!(corrections(true, ChangeToInclude, 2, "abc"), [""; 0]);
    assert_eq!(corrections(true, ChangeToExclude, 2, "c"), [""; 0]);
    assert_eq!(corrections(true, AllowNewSources, 1, "c"), [""; 0]);
    assert_eq!(corrections(true, ChangeToInclude, 3, ""), [""; 0]);
    // Another host has its own state.
    assert_eq!(corrections(false, ChangeToInclude, 1, ""), [""; 0]);
}

#[test]
fn forged_leaves_cause_a_bounded_number_of_reports() {
    let mut host = VirtualHost::igmp();
    host.set(1, "ex").advance(5.0).take();
    let leave = MembershipMessage::Leave {
        group: host.group(1),
    };
    for _ in 0..10_000 {
        let (own, to) = (host.own(), IpAddr::from([224, 0, 0, 2]));
        host.receive(own, to, &leave).unwrap();
        host.advance(0.0001);
    }
    let reports = host.take().len();
    assert!((10..=60).contains(&reports), "{reports} reports in 1 s");
}
