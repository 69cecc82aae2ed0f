//! What strangers can make the machine remember, and what it refuses.

use std::net::IpAddr;

use proptest::prelude::*;

use super::virtual_link::{Lab, rule};
use crate::membership::{Downstream, DownstreamConfig, MembershipRefusal, Protocol, SenderStatus};
use crate::model::{Group, HeaderChecks, ProxyRule, Source};
use crate::wire::membership_message::{
    Generation, GroupRecord, MembershipMessage, Query, RecordType,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn group(n: u16) -> Group {
    let [high, low] = n.to_be_bytes();
    Group::new([239, 7, high, low].into()).unwrap()
}

fn join(group: Group) -> MembershipMessage {
    records(&[(RecordType::ChangeToExclude, group, &[])])
}

fn records(list: &[(RecordType, Group, &[Source])]) -> MembershipMessage {
    let record = |(kind, group, sources): &(RecordType, Group, &[Source])| GroupRecord {
        kind: *kind,
        group: *group,
        sources: sources.to_vec(),
    };
    MembershipMessage::Records(list.iter().map(record).collect())
}

fn take(lab: &mut Lab, message: &MembershipMessage) -> Result<(), MembershipRefusal> {
    let (now, from, to) = (lab.now, lab.host(1), "224.0.0.22".parse().unwrap());
    lab.machine.handle_message(now, from, to, message)
}

fn refusals(lab: &mut Lab) -> Vec<(MembershipRefusal, u64)> {
    lab.machine.take_refusals().collect()
}

#[test]
fn a_group_beyond_the_limit_is_refused_and_those_that_stand_go_on() {
    let mut rule = rule();
    rule.limits.groups = 3;
    let mut lab = Lab::new(rule);
    for n in 0..3 {
        assert_eq!(take(&mut lab, &join(group(n))), Ok(()));
    }
    assert_eq!(
        take(&mut lab, &join(group(9))),
        Err(MembershipRefusal::GroupLimit)
    );
    assert_eq!(take(&mut lab, &join(group(0))), Ok(()));
    let leave = MembershipMessage::Leave { group: group(9) };
    assert_eq!(
        take(&mut lab, &leave),
        Ok(()),
        "who wants nothing needs no room"
    );
    assert_eq!(lab.machine.group_count(), 3);
    // A place that became free is given again.
    lab.at(270.0);
    assert_eq!(take(&mut lab, &join(group(9))), Ok(()));
    assert_eq!(refusals(&mut lab), [(MembershipRefusal::GroupLimit, 1)]);
}

#[test]
fn strangers_cannot_fill_the_tables_up_for_members() {
    let mut rule = rule();
    (rule.limits.groups, rule.limits.sources_per_group) = (128, 64);
    let mut lab = Lab::new(rule);
    let member = SenderStatus::Member { known_members: 1 };
    let (now, to) = (lab.now, "224.0.0.22".parse().unwrap());
    for n in 0..200 {
        let _ = take(&mut lab, &join(group(n)));
    }
    assert_eq!(lab.machine.group_count(), 96);
    // A member has its share of the rest: two of the last 32.
    let host = lab.host(2);
    let mut ask = |n, standing| {
        let message = join(group(n));
        lab.machine
            .handle_message_from(now, standing, host, to, &message)
    };
    assert_eq!(
        ask(300, SenderStatus::Unknown),
        Err(MembershipRefusal::GroupLimit)
    );
    assert_eq!((ask(300, member), ask(301, member)), (Ok(()), Ok(())));
    assert_eq!(ask(302, member), Err(MembershipRefusal::GroupLimit));
    // Sources: three quarters of those of a group, and all groups together have a bound.
    let sources = |from: u8| -> Vec<Source> {
        let one = |n| Source::new([10, 9, from, n].into()).unwrap();
        (1..=64).map(one).collect()
    };
    let allow = RecordType::AllowNewSources;
    let mut say = |standing, n: u16, from| {
        let message = records(&[(allow, group(n), &sources(from))]);
        let taken = lab
            .machine
            .handle_message_from(now, standing, host, to, &message);
        (taken, lab.machine.source_count())
    };
    assert_eq!(
        say(SenderStatus::Unknown, 0, 0),
        (Err(MembershipRefusal::SourceLimit), 48)
    );
    assert_eq!(say(member, 0, 1), (Err(MembershipRefusal::SourceLimit), 64));
    for n in 1..60 {
        let _ = say(SenderStatus::Unknown, n, 0);
    }
    assert_eq!(say(SenderStatus::Unknown, 61, 0).1, 128 * 16 * 3 / 4);
    for n in 1..60 {
        let _ = say(member, n, 1);
    }
    assert_eq!(say(member, 62, 0).1, 128 * 16);
    // Those that stand are refreshed and go; with them goes the bound.
    lab.at(270.0);
    assert_eq!(
        (lab.machine.group_count(), lab.machine.source_count()),
        (0, 0)
    );
    assert_eq!(take(&mut lab, &join(group(9))), Ok(()));
}

#[test]
fn sources_beyond_the_limit_are_refused_and_those_that_stand_go_on() {
    let mut rule = rule();
    rule.limits.sources_per_group = 3;
    let mut lab = Lab::new(rule);
    lab.hears(1, "ALLOW ab");
    assert_eq!(
        lab.hear(2, "ALLOW cde"),
        Err(MembershipRefusal::SourceLimit)
    );
    assert_eq!(lab.state(), "INCLUDE a270 b270 c270");
    assert_eq!(refusals(&mut lab), [(MembershipRefusal::SourceLimit, 2)]);
    lab.at(10.0).hears(1, "ALLOW abc");
    // Of an EXCLUDE list, what finds no room is forwarded: too much rather than too little.
    assert_eq!(
        lab.hear(1, "IS_EX cdefg"),
        Err(MembershipRefusal::SourceLimit)
    );
    assert_eq!(lab.state(), "EXCLUDE 270: c270 d0 e0");
    assert_eq!(lab.hear(1, "ALLOW x"), Err(MembershipRefusal::SourceLimit));
    assert_eq!(lab.hear(1, "BLOCK y"), Err(MembershipRefusal::SourceLimit));
    lab.hears(1, "IS_EX cde");
    assert_eq!(lab.state(), "EXCLUDE 270: c270 d0 e0");
    assert_eq!(lab.machine.source_count(), 3);
}

#[test]
fn a_group_that_finds_no_room_for_any_source_does_not_stand() {
    let mut rule = rule();
    rule.limits.sources_per_group = 0;
    let mut lab = Lab::new(rule);
    assert_eq!(lab.hear(1, "ALLOW a"), Err(MembershipRefusal::SourceLimit));
    assert_eq!((lab.state(), lab.changes()), ("gone".into(), vec![]));
}

#[test]
fn hosts_beyond_the_bound_are_members_and_not_tracked() {
    let mut rule = rule();
    rule.fast_leave = true;
    let mut config = DownstreamConfig::new(Protocol::Igmp, Arc::new(rule.clone()));
    config.max_tracked_entries = 3;
    let mut lab = Lab::new(rule);
    lab.machine = Downstream::new(lab.start, config, Some([10, 0, 0, 1].into()));
    lab.hears(1, "ALLOW a");
    assert_eq!(lab.hear(2, "ALLOW b"), Err(MembershipRefusal::HostLimit));
    assert_eq!(lab.state(), "INCLUDE a270 b270");
    lab.at(10.0).hears(1, "BLOCK a");
    assert_eq!(lab.specifics(), "10 Q(G,a)", "asked about like any other");
    // The host that left made room. Once all have reported anew, all are tracked.
    lab.at(20.0)
        .hears(2, "IS_IN b")
        .at(280.0)
        .hears(2, "IS_IN b");
    lab.hears(2, "BLOCK b");
    assert_eq!(lab.state(), "gone");
}

#[test]
fn of_a_list_what_is_refused_is_counted_and_the_rest_taken() {
    let mut rule = rule();
    rule.deny_groups = vec!["239.7.1.0/24".parse().unwrap()];
    rule.deny_sources = vec!["10.9.0.2".parse().unwrap()];
    let mut lab = Lab::new(rule);
    let (a, b) = (lab.source('a'), lab.source('b'));
    let v6: Group = "ff05::1".parse().unwrap();
    let local: Group = "224.0.0.251".parse().unwrap();
    let ssm: Group = "232.1.1.1".parse().unwrap();
    use RecordType::{AllowNewSources, ChangeToExclude, ModeIsExclude};
    let list = records(&[
        (ChangeToExclude, group(0x100), &[]),
        (AllowNewSources, group(1), &[a, b]),
        (ModeIsExclude, group(2), &[b]),
        (ChangeToExclude, local, &[]),
        (ChangeToExclude, v6, &[]),
        (ModeIsExclude, ssm, &[a]),
        (AllowNewSources, ssm, &[a]),
    ]);
    assert_eq!(take(&mut lab, &list), Err(MembershipRefusal::GroupDenied));
    let groups: Vec<_> = lab.machine.groups(lab.now).map(|v| v.group).collect();
    assert_eq!(groups, [ssm, group(1), group(2)]);
    assert!(!lab.machine.filter(group(1)).takes(b));
    assert!(!lab.machine.filter(group(2)).takes(b));
    let once = |r: MembershipRefusal| (r, 1);
    assert_eq!(
        refusals(&mut lab),
        [
            once(MembershipRefusal::AnySourceInSsm),
            once(MembershipRefusal::GroupDenied),
            once(MembershipRefusal::SourceDenied),
            once(MembershipRefusal::LinkLocalGroup),
            once(MembershipRefusal::OtherFamily),
        ]
    );
}

#[test]
fn source_specific_groups_take_no_report_of_an_older_version() {
    // RFC 9776 section 6.4, RFC 4604 section 2.2.
    for (protocol, own, ssm) in [
        (Protocol::Igmp, "10.0.0.1", "232.1.1.1"),
        (Protocol::Mld, "fe80::1", "ff3e::8000:1"),
    ] {
        let mut lab = Lab::with(protocol, rule(), Some(own));
        lab.group = ssm.parse().unwrap();
        for text in ["v1", "v2", "leave", "IS_EX", "TO_EX a"] {
            assert_eq!(
                lab.hear(1, text),
                Err(MembershipRefusal::AnySourceInSsm),
                "{text}"
            );
        }
        lab.hears(1, "IS_IN ab")
            .hears(1, "ALLOW c")
            .hears(1, "BLOCK a");
        assert_eq!(lab.state(), "INCLUDE a2 b270 c270");
        assert_eq!(lab.hear(1, "leave"), Err(MembershipRefusal::AnySourceInSsm));
        lab.hears(1, "TO_IN");
        assert_eq!(lab.at(10.0).state(), "gone");
    }
}

#[test]
fn reports_of_hosts_without_an_address() {
    // RFC 9776 section 4.2 takes them; RFC 9777 section 5.2 does not.
    let mut lab = Lab::new(rule());
    let (now, to) = (lab.now, lab.group.addr());
    let message = join(lab.group);
    let nobody: IpAddr = [0, 0, 0, 0].into();
    assert_eq!(
        lab.machine.handle_message(now, nobody, to, &message),
        Ok(())
    );
    let mut lab = Lab::with(Protocol::Mld, rule(), Some("fe80::1"));
    let (to, message) = (lab.group.addr(), join(lab.group));
    for from in ["::", "2001:db8::1"] {
        let refused = lab
            .machine
            .handle_message(now, from.parse().unwrap(), to, &message);
        assert_eq!(
            refused,
            Err(MembershipRefusal::NotLinkLocalSender),
            "{from}"
        );
    }
    let mut lenient = rule();
    lenient.header_checks = HeaderChecks::Lenient;
    let mut lab = Lab::with(Protocol::Mld, lenient, Some("fe80::1"));
    let from = "2001:db8::1".parse().unwrap();
    assert_eq!(lab.machine.handle_message(now, from, to, &message), Ok(()));
    let asked = lab.asked("2001:db8::1", &lab.general());
    assert_eq!(asked, Err(MembershipRefusal::NotLinkLocalSender));
}

#[test]
fn other_settings_end_what_they_no_longer_take() {
    let mut lab = Lab::new(rule());
    take(&mut lab, &join(group(1))).unwrap();
    take(&mut lab, &join(group(0x100))).unwrap();
    while lab.machine.poll_change().is_some() {}
    let mut other = rule();
    other.deny_groups = vec!["239.7.1.0/24".parse().unwrap()];
    other.timers.query_interval = Duration::from_secs(60);
    lab.at(40.0).sent.clear();
    let other = Arc::new(other);
    lab.machine.reconfigure(lab.now, other);
    let change = lab.machine.poll_change().unwrap();
    assert_eq!(change.0, group(0x100));
    assert!(change.1.is_none());
    assert_eq!(lab.machine.poll_change(), None);
    assert_eq!(lab.at(60.0).generals(), [40.0, 55.0]);
    assert_eq!(lab.machine.group_count(), 1);
    let mut older = (*lab.machine.config().rule).clone();
    lab.machine.reconfigure(lab.now, Arc::new(older.clone()));
    assert_eq!(lab.at(61.0).sent, [], "the same settings");
    older.version.igmp = 2;
    lab.machine.reconfigure(lab.now, Arc::new(older));
    assert_eq!(lab.at(62.0).sent, [(61.0, "Q2".to_string())]);
}

// Anything at all.

fn any_message() -> impl Strategy<Value = MembershipMessage> {
    let group = || {
        prop_oneof![
            4 => (0u16..12).prop_map(group),
            1 => Just("232.1.1.1".parse().unwrap()),
            1 => Just("224.0.0.5".parse().unwrap()),
            1 => Just("ff05::1".parse().unwrap()),
        ]
    };
    let source = || (1u8..30).prop_map(|n| Source::new([10, 9, 0, n].into()).unwrap());
    let sources = move || proptest::collection::vec(source(), 0..12);
    let generation =
        || proptest::sample::select(vec![Generation::One, Generation::Two, Generation::Three]);
    let kind = proptest::sample::select(vec![
        RecordType::ModeIsInclude,
        RecordType::ModeIsExclude,
        RecordType::ChangeToInclude,
        RecordType::ChangeToExclude,
        RecordType::AllowNewSources,
        RecordType::BlockOldSources,
    ]);
    let record = (kind, group(), sources()).prop_map(|(kind, group, sources)| GroupRecord {
        kind,
        group,
        sources,
    });
    let query = (
        (generation(), proptest::option::of(group()), 0u64..100_000),
        (
            any::<bool>(),
            0u8..8,
            proptest::option::of(0u64..40_000),
            sources(),
        ),
    );
    let query = query.prop_map(
        |((generation, group, ms), (suppress, robustness, s, sources))| {
            MembershipMessage::Query(Query {
                generation,
                group,
                max_response_time: Duration::from_millis(ms),
                suppress,
                robustness,
                interval: s.map(Duration::from_secs),
                sources,
            })
        },
    );
    prop_oneof![
        8 => proptest::collection::vec(record, 0..4).prop_map(MembershipMessage::Records),
        2 => (generation(), group())
            .prop_map(|(generation, group)| MembershipMessage::Report { generation, group }),
        2 => group().prop_map(|group| MembershipMessage::Leave { group }),
        3 => query,
    ]
}

fn any_rule() -> impl Strategy<Value = ProxyRule> {
    use crate::model::QuerierPolicy::{Auto, Off, On};
    let policy = proptest::sample::select(vec![Auto, On, Off]);
    (policy, 1u8..4, any::<bool>(), 0u8..10, 1u64..200).prop_map(
        |(querier, igmp, fast_leave, robustness, interval)| {
            let mut rule = rule();
            (rule.querier, rule.fast_leave) = (querier, fast_leave);
            rule.version.igmp = igmp;
            rule.timers.robustness = robustness;
            rule.timers.query_interval = Duration::from_secs(interval);
            (rule.limits.groups, rule.limits.sources_per_group) = (8, 10);
            rule
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// No sequence of messages and times panics, goes past a limit, or leaves the machine due
    /// for ever; who follows the changes knows the filters; and in the end all is forgotten.
    #[test]
    fn whatever_is_heard(
        rule in any_rule(),
        steps in proptest::collection::vec(
            (any_message(), 1u8..6, any::<bool>(), 0u64..60_000, 0u8..20), 1..80),
    ) {
        let start = Instant::now();
        let mut config = DownstreamConfig::new(Protocol::Igmp, Arc::new(rule));
        config.max_tracked_entries = 20;
        let own = Some([10, 0, 0, 3].into());
        let mut machine = Downstream::new(start, config, own);
        let mut told = std::collections::BTreeMap::new();
        let mut now = start;
        for (message, host, to_all, passed, address) in steps {
            now += Duration::from_millis(if passed < 30_000 { 0 } else { passed });
            if address < 2 {
                let own = (address == 1).then(|| [10, 0, 0, host].into());
                machine.set_own_address(now, own);
            }
            let to = match &message {
                MembershipMessage::Query(Query { group: Some(group), .. }) if !to_all => group.addr(),
                _ => [224, 0, 0, 1].into(),
            };
            let _ = machine.handle_message(now, [10, 0, 0, host].into(), to, &message);
            machine.handle_timeout(now);
            prop_assert!(machine.poll_timeout().is_none_or(|at| at > now));
            prop_assert!(machine.group_count() <= 8);
            let views: Vec<_> = machine.groups(now).collect();
            let sources: usize = views.iter().map(|v| v.sources.len()).sum();
            prop_assert_eq!(machine.source_count(), sources);
            let reporters: usize = views.iter().map(|v| v.reporters.len()).sum();
            prop_assert!(reporters <= 20);
            for view in &views {
                prop_assert!(view.sources.len() <= 10);
                prop_assert!(!view.filter.is_none());
            }
            while let Some(out) = machine.poll_query() {
                prop_assert!(machine.querier(now).is_us || out.query.group.is_none());
            }
            while let Some((group, filter)) = machine.poll_change() {
                prop_assert_ne!(told.insert(group, filter.clone()), Some(filter));
            }
            for (group, filter) in &told {
                prop_assert_eq!(&machine.filter(*group), filter);
            }
            while machine.poll_event().is_some() {}
        }
        let end = now + Duration::from_secs(1_000_000);
        machine.set_own_address(now, None);
        machine.handle_timeout(end);
        prop_assert_eq!((machine.group_count(), machine.source_count()), (0, 0));
    }
}
