//! Older queriers and configured versions (RFC 9776 section 7.2, RFC 9777 section 8.2).

use super::virtual_host::{VirtualHost, config};
use crate::membership::{HostConfig, HostEvent, Protocol};
use crate::wire::membership_message::Generation::{One, Three, Two};
use crate::wire::membership_message::MembershipMessage;

fn forced(
    protocol: Protocol,
    generation: crate::wire::membership_message::Generation,
) -> VirtualHost {
    let config = HostConfig {
        generation: Some(generation),
        ..config(protocol)
    };
    VirtualHost::new(config, 1)
}

#[test]
fn igmpv2_querier_gets_one_report_per_group() {
    let mut host = VirtualHost::igmp();
    host.set(1, "ex").set(2, "in ab").advance(5.0).take();
    let query = host.older_query(Two);
    host.receive_query(&query);
    let version = HostEvent::VersionChanged {
        generation: Two,
        querier: Some(host.other()),
    };
    assert_eq!(host.take_events(), [version]);
    host.advance(10.0);
    let mut reports = host.take();
    reports.sort();
    assert_eq!(reports, ["v2 1", "v2 2"]);
    // A new group is reported twice within 10 s, a leave once, a change of sources not at all.
    host.set(3, "in a");
    assert_eq!(host.take(), ["v2 3"]);
    host.advance(10.0);
    assert_eq!(host.take(), ["v2 3"]);
    host.set(3, "in b").set(2, "ex").advance(20.0);
    assert_eq!(host.take(), [""; 0]);
    host.set(3, "none").advance(20.0);
    assert_eq!(host.take(), ["leave 3"]);
    let query = host.specific_query(1, "");
    let query = crate::wire::membership_message::Query {
        generation: Two,
        ..query
    };
    host.receive_query(&query).advance(1.0);
    assert_eq!(host.take(), ["v2 1"]);
    assert_eq!(host.machine.filter(host.group(2)), host.filter("ex"));
}

#[test]
fn igmpv1_querier_gets_reports_and_no_leaves() {
    let mut host = VirtualHost::igmp();
    let query = host.older_query(One);
    host.receive_query(&query).set(1, "ex").advance(30.0);
    assert_eq!(host.take(), ["v1 1"; 2]);
    host.receive_query(&query).advance(10.0);
    assert_eq!(host.take(), ["v1 1"]);
    host.set(1, "none").advance(30.0);
    assert_eq!(host.take(), [""; 0]);
}

#[test]
fn mldv1_querier_gets_reports_and_done() {
    let mut host = VirtualHost::mld();
    let query = host.older_query(Two);
    host.receive_query(&query).set(1, "in a").advance(30.0);
    assert_eq!(host.take(), ["v2 1"; 2]);
    host.set(1, "none").advance(30.0);
    assert_eq!(host.take(), ["leave 1"]);
}

/// The older version querier present interval is 2 x 125 s + 10 s (section 8.12).
#[test]
fn newer_version_returns_when_the_older_querier_is_gone() {
    let mut host = VirtualHost::igmp();
    host.set(1, "in a");
    let (v1, v2) = (host.older_query(One), host.older_query(Two));
    host.receive_query(&v1).advance(100.0).receive_query(&v2);
    assert_eq!(host.machine.generation(), One);
    host.query().advance(159.9);
    assert_eq!(host.machine.generation(), One);
    host.advance(0.2);
    assert_eq!(host.machine.generation(), Two);
    host.advance(99.8);
    assert_eq!(host.machine.generation(), Two);
    host.take();
    host.advance(0.2);
    assert_eq!(host.machine.generation(), Three);
    // No router knows the sources yet, so they are reported.
    host.advance(10.0);
    assert_eq!(host.take(), ["IS_IN 1 a"]);
}

#[test]
fn pending_reports_end_with_the_version() {
    let mut host = VirtualHost::igmp();
    host.set(1, "ex").set(2, "ex").set(2, "none").take();
    let query = host.older_query(Two);
    host.receive_query(&query).advance(30.0);
    assert_eq!(host.take(), ["v2 1"]);
}

#[test]
fn configured_version_ignores_the_querier() {
    let mut host = forced(Protocol::Igmp, Two);
    host.query().set(1, "in a").advance(30.0);
    assert_eq!(host.take(), ["v2 1"; 2]);
    let query = host.specific_query(1, "a");
    host.receive_query(&query).advance(1.0);
    assert_eq!(host.take(), ["v2 1"]);
    let mut host = forced(Protocol::Igmp, Three);
    let query = host.older_query(Two);
    host.receive_query(&query).set(1, "in a").advance(30.0);
    let mut reports = host.take();
    reports.sort();
    assert_eq!(reports, ["ALLOW 1 a", "ALLOW 1 a", "IS_IN 1 a"]);
    // MLD has no counterpart of IGMPv1.
    assert_eq!(forced(Protocol::Mld, One).machine.generation(), Two);
}

#[test]
fn new_configured_version_reports_all_groups() {
    let mut host = VirtualHost::igmp();
    host.set(1, "in a").advance(5.0).take();
    let config = HostConfig {
        generation: Some(Two),
        ..config(Protocol::Igmp)
    };
    host.machine.reconfigure(host.now, config);
    host.advance(30.0);
    assert_eq!(host.take(), ["v2 1"; 2]);
}

/// RFC 2236 section 3: one report for each group is enough.
#[test]
fn report_of_another_host_suppresses_the_answer() {
    let mut host = forced(Protocol::Igmp, Two);
    host.set(1, "ex").set(2, "ex").advance(30.0).take();
    let query = host.general_query();
    host.receive_query(&query);
    let report = |group| MembershipMessage::Report {
        generation: Two,
        group,
    };
    let (one, two) = (host.group(1), host.group(2));
    let (other, own) = (host.other(), host.own());
    host.receive(other, one.addr(), &report(one)).unwrap();
    // A report of this machine, or to another address, is no report of another host.
    host.receive(own, two.addr(), &report(two)).unwrap();
    host.receive(other, own, &report(two)).unwrap();
    host.advance(30.0);
    assert_eq!(host.take(), ["v2 2"]);
}

#[test]
fn leave_of_another_program_is_corrected() {
    let mut host = forced(Protocol::Igmp, Two);
    host.set(1, "ex").advance(30.0).take();
    let leave = MembershipMessage::Leave {
        group: host.group(1),
    };
    let (own, to) = (host.own(), [224, 0, 0, 2].into());
    host.receive(own, to, &leave).unwrap();
    assert_eq!(host.take(), ["v2 1"]);
}
