//! Limits on the state that reports can create, and refused messages.

use std::net::IpAddr;

use proptest::prelude::*;

use super::virtual_link::{VirtualLink, rule};
use crate::membership::{
    Downstream, DownstreamConfig, MembershipRefusal, Protocol, ReportRateLimiter, SenderStatus,
};
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

fn take(link: &mut VirtualLink, message: &MembershipMessage) -> Result<(), MembershipRefusal> {
    let (now, from, to) = (link.now, link.host(1), "224.0.0.22".parse().unwrap());
    link.machine.handle_message(now, from, to, message)
}

fn refusals(link: &mut VirtualLink) -> Vec<(MembershipRefusal, u64)> {
    link.machine.take_refusals().collect()
}

#[test]
fn groups_beyond_the_limit_are_refused() {
    let mut rule = rule();
    rule.limits.groups = 3;
    let mut link = VirtualLink::new(rule);
    for n in 0..3 {
        assert_eq!(take(&mut link, &join(group(n))), Ok(()));
    }
    assert_eq!(
        take(&mut link, &join(group(9))),
        Err(MembershipRefusal::GroupLimit)
    );
    assert_eq!(take(&mut link, &join(group(0))), Ok(()));
    let leave = MembershipMessage::Leave { group: group(9) };
    assert_eq!(take(&mut link, &leave), Ok(()), "a leave occupies no slot");
    assert_eq!(link.machine.group_count(), 3);
    // An expired group frees its slot.
    link.advance_to(270.0);
    assert_eq!(take(&mut link, &join(group(9))), Ok(()));
    assert_eq!(refusals(&mut link), [(MembershipRefusal::GroupLimit, 1)]);
}

#[test]
fn unknown_senders_leave_quota_for_members() {
    let mut rule = rule();
    (rule.limits.groups, rule.limits.sources_per_group) = (128, 64);
    let mut link = VirtualLink::new(rule);
    let member = SenderStatus::Member { known_members: 1 };
    let (now, to) = (link.now, "224.0.0.22".parse().unwrap());
    for n in 0..200 {
        let _ = take(&mut link, &join(group(n)));
    }
    assert_eq!(link.machine.group_count(), 96);
    // Unknown senders may fill three quarters. A known member has its share of the last 32
    // slots: two of them.
    let host = link.host(2);
    let mut join_as = |n, sender_status| {
        let message = join(group(n));
        link.machine
            .handle_message_from(now, sender_status, host, to, &message)
    };
    assert_eq!(
        join_as(300, SenderStatus::Unknown),
        Err(MembershipRefusal::GroupLimit)
    );
    assert_eq!(
        (join_as(300, member), join_as(301, member)),
        (Ok(()), Ok(()))
    );
    assert_eq!(join_as(302, member), Err(MembershipRefusal::GroupLimit));
    // Unknown senders may fill three quarters of the sources of a group. The number of sources
    // of all groups together is limited, too.
    let sources = |from: u8| -> Vec<Source> {
        let one = |n| Source::new([10, 9, from, n].into()).unwrap();
        (1..=64).map(one).collect()
    };
    let allow = RecordType::AllowNewSources;
    let mut allow_as = |sender_status, n: u16, from| {
        let message = records(&[(allow, group(n), &sources(from))]);
        let taken = link
            .machine
            .handle_message_from(now, sender_status, host, to, &message);
        (taken, link.machine.source_count())
    };
    assert_eq!(
        allow_as(SenderStatus::Unknown, 0, 0),
        (Err(MembershipRefusal::SourceLimit), 48)
    );
    assert_eq!(
        allow_as(member, 0, 1),
        (Err(MembershipRefusal::SourceLimit), 64)
    );
    for n in 1..60 {
        let _ = allow_as(SenderStatus::Unknown, n, 0);
    }
    assert_eq!(allow_as(SenderStatus::Unknown, 61, 0).1, 128 * 16 * 3 / 4);
    for n in 1..60 {
        let _ = allow_as(member, n, 1);
    }
    assert_eq!(allow_as(member, 62, 0).1, 128 * 16);
    // Expired groups and sources free the quota.
    link.advance_to(270.0);
    assert_eq!(
        (link.machine.group_count(), link.machine.source_count()),
        (0, 0)
    );
    assert_eq!(take(&mut link, &join(group(9))), Ok(()));
}

#[test]
fn sources_beyond_the_limit_are_refused() {
    let mut rule = rule();
    rule.limits.sources_per_group = 3;
    let mut link = VirtualLink::new(rule);
    link.receive(1, "ALLOW ab");
    assert_eq!(
        link.try_receive(2, "ALLOW cde"),
        Err(MembershipRefusal::SourceLimit)
    );
    assert_eq!(link.state(), "INCLUDE a270 b270 c270");
    assert_eq!(refusals(&mut link), [(MembershipRefusal::SourceLimit, 2)]);
    link.advance_to(10.0).receive(1, "ALLOW abc");
    // Excluded sources beyond the limit are forwarded, so that no member misses a source.
    assert_eq!(
        link.try_receive(1, "IS_EX cdefg"),
        Err(MembershipRefusal::SourceLimit)
    );
    assert_eq!(link.state(), "EXCLUDE 270: c270 d0 e0");
    assert_eq!(
        link.try_receive(1, "ALLOW x"),
        Err(MembershipRefusal::SourceLimit)
    );
    assert_eq!(
        link.try_receive(1, "BLOCK y"),
        Err(MembershipRefusal::SourceLimit)
    );
    link.receive(1, "IS_EX cde");
    assert_eq!(link.state(), "EXCLUDE 270: c270 d0 e0");
    assert_eq!(link.machine.source_count(), 3);
}

#[test]
fn group_without_accepted_source_is_not_created() {
    let mut rule = rule();
    rule.limits.sources_per_group = 0;
    let mut link = VirtualLink::new(rule);
    assert_eq!(
        link.try_receive(1, "ALLOW a"),
        Err(MembershipRefusal::SourceLimit)
    );
    assert_eq!((link.state(), link.take_changes()), ("gone".into(), vec![]));
}

#[test]
fn hosts_beyond_the_limit_are_untracked_members() {
    let mut rule = rule();
    rule.fast_leave = true;
    let mut config = DownstreamConfig::new(Protocol::Igmp, Arc::new(rule.clone()));
    config.max_tracked_entries = 3;
    let mut link = VirtualLink::new(rule);
    link.machine = Downstream::new(link.start, config, Some([10, 0, 0, 1].into()));
    link.receive(1, "ALLOW a");
    assert_eq!(
        link.try_receive(2, "ALLOW b"),
        Err(MembershipRefusal::HostLimit)
    );
    assert_eq!(link.state(), "INCLUDE a270 b270");
    link.advance_to(10.0).receive(1, "BLOCK a");
    assert_eq!(
        link.take_specific_queries(),
        "10 Q(G,a)",
        "an untracked host may be a member, so the source is queried"
    );
    // The leave freed entries. When every host has reported again, every host is tracked.
    link.advance_to(20.0)
        .receive(2, "IS_IN b")
        .advance_to(280.0)
        .receive(2, "IS_IN b");
    link.receive(2, "BLOCK b");
    assert_eq!(link.state(), "gone");
}

#[test]
fn refused_records_are_counted_and_others_accepted() {
    let mut rule = rule();
    rule.deny_groups = vec!["239.7.1.0/24".parse().unwrap()];
    rule.deny_sources = vec!["10.9.0.2".parse().unwrap()];
    let mut link = VirtualLink::new(rule);
    let (a, b) = (link.source('a'), link.source('b'));
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
    assert_eq!(take(&mut link, &list), Err(MembershipRefusal::GroupDenied));
    let groups: Vec<_> = link.machine.groups(link.now).map(|v| v.group).collect();
    assert_eq!(groups, [ssm, group(1), group(2)]);
    assert!(!link.machine.filter(group(1)).accepts(b));
    assert!(!link.machine.filter(group(2)).accepts(b));
    let once = |r: MembershipRefusal| (r, 1);
    assert_eq!(
        refusals(&mut link),
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
fn ssm_groups_ignore_older_versions_and_exclude() {
    // RFC 9776 section 6.4, RFC 4604 section 2.2.
    for (protocol, own, ssm) in [
        (Protocol::Igmp, "10.0.0.1", "232.1.1.1"),
        (Protocol::Mld, "fe80::1", "ff3e::8000:1"),
    ] {
        let mut link = VirtualLink::with_protocol(protocol, rule(), Some(own));
        link.group = ssm.parse().unwrap();
        for text in ["v1", "v2", "leave", "IS_EX", "TO_EX a"] {
            assert_eq!(
                link.try_receive(1, text),
                Err(MembershipRefusal::AnySourceInSsm),
                "{text}"
            );
        }
        link.receive(1, "IS_IN ab")
            .receive(1, "ALLOW c")
            .receive(1, "BLOCK a");
        assert_eq!(link.state(), "INCLUDE a2 b270 c270");
        assert_eq!(
            link.try_receive(1, "leave"),
            Err(MembershipRefusal::AnySourceInSsm)
        );
        link.receive(1, "TO_IN");
        assert_eq!(link.advance_to(10.0).state(), "gone");
    }
}

/// Several hosts may use it, so a member behind it cannot be told from others.
#[test]
fn unspecified_address_is_never_a_known_member() {
    let now = Instant::now();
    let mut limiter = ReportRateLimiter::new(now, 1000, 7);
    for address in ["0.0.0.0", "::", "10.0.0.1"] {
        let address: IpAddr = address.parse().unwrap();
        for _ in 0..4 {
            let expires = now + Duration::from_secs(270);
            limiter.handle_accepted_report(now, address, expires);
        }
        let expected = match address.is_unspecified() {
            true => SenderStatus::Unknown,
            false => SenderStatus::Member { known_members: 1 },
        };
        assert_eq!(limiter.sender_status(now, address), expected, "{address}");
    }
    assert_eq!(limiter.member_count(), 1);
}

#[test]
fn reports_from_unspecified_address_are_accepted_for_igmp() {
    // RFC 9776 section 4.2 accepts them, RFC 9777 section 5.2 does not.
    let mut link = VirtualLink::new(rule());
    let (now, to) = (link.now, link.group.addr());
    let message = join(link.group);
    let unspecified: IpAddr = [0, 0, 0, 0].into();
    assert_eq!(
        link.machine.handle_message(now, unspecified, to, &message),
        Ok(())
    );
    let mut link = VirtualLink::with_protocol(Protocol::Mld, rule(), Some("fe80::1"));
    let (to, message) = (link.group.addr(), join(link.group));
    for from in ["::", "2001:db8::1"] {
        let refused = link
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
    let mut link = VirtualLink::with_protocol(Protocol::Mld, lenient, Some("fe80::1"));
    let from = "2001:db8::1".parse().unwrap();
    assert_eq!(link.machine.handle_message(now, from, to, &message), Ok(()));
    let result = link.receive_query("2001:db8::1", &link.general_query());
    assert_eq!(result, Err(MembershipRefusal::NotLinkLocalSender));
}

#[test]
fn reconfiguration_ends_denied_memberships() {
    let mut link = VirtualLink::new(rule());
    take(&mut link, &join(group(1))).unwrap();
    take(&mut link, &join(group(0x100))).unwrap();
    while link.machine.poll_change().is_some() {}
    let mut other = rule();
    other.deny_groups = vec!["239.7.1.0/24".parse().unwrap()];
    other.timers.query_interval = Duration::from_secs(60);
    link.advance_to(40.0).sent.clear();
    let other = Arc::new(other);
    link.machine.reconfigure(link.now, other);
    let change = link.machine.poll_change().unwrap();
    assert_eq!(change.0, group(0x100));
    assert!(change.1.is_none());
    assert_eq!(link.machine.poll_change(), None);
    assert_eq!(
        link.advance_to(60.0).take_general_query_times(),
        [40.0, 55.0]
    );
    assert_eq!(link.machine.group_count(), 1);
    let mut older = (*link.machine.config().rule).clone();
    link.machine.reconfigure(link.now, Arc::new(older.clone()));
    assert_eq!(
        link.advance_to(61.0).sent,
        [],
        "reconfiguration with the same settings has no effect"
    );
    older.version.igmp = 2;
    link.machine.reconfigure(link.now, Arc::new(older));
    assert_eq!(link.advance_to(62.0).sent, [(61.0, "Q2".to_string())]);
}

// Random messages.

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

    /// For every sequence of messages and times: nothing panics, no limit is exceeded, no
    /// handled timeout stays due, and the changes add up to the filters. In the end, every
    /// membership expires.
    #[test]
    fn random_messages_keep_invariants(
        rule in any_rule(),
        steps in proptest::collection::vec(
            (any_message(), 1u8..6, any::<bool>(), 0u64..60_000, 0u8..20), 1..80),
    ) {
        let start = Instant::now();
        let mut config = DownstreamConfig::new(Protocol::Igmp, Arc::new(rule));
        config.max_tracked_entries = 20;
        let own = Some([10, 0, 0, 3].into());
        let mut machine = Downstream::new(start, config, own);
        let mut collected = std::collections::BTreeMap::new();
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
                prop_assert_ne!(collected.insert(group, filter.clone()), Some(filter));
            }
            for (group, filter) in &collected {
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
