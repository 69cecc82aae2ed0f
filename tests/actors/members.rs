//! Members behind proxies that join and leave.

use std::time::{Duration, Instant};

use mcastor::actors::messages::{
    HostGroup, KeepMemberships, PanicIn, QueryHostGroups, ReplaceRules,
};
use mcastor::api::{ShowQuery, ShowReply};
use mcastor::frontend::query;
use mcastor::model::{HeaderChecks, Link, ProxyRule, RouteName};
use mcastor::table::Rib;
use mcastor::wire::link_control::HeaderPolicy;
use mcastor::wire::membership;
use mcastor::wire::membership_message::{GroupRecord, MembershipMessage, RecordType};

use super::router::{PATIENCE, Router, index, link, packet};

/// Interface indexes start here, so that no interface of this machine has one of them: the kernel
/// joins upstream groups by index.
const FIRST_INDEX: u32 = 900_000;

fn proxy(name: &str, upstream: &str, downstream: &[&str]) -> ProxyRule {
    let patterns = |names: &[&str]| names.iter().map(|n| n.parse().unwrap()).collect();
    ProxyRule {
        name: RouteName::new(name),
        // The interfaces have no addresses, so no host is on link.
        header_checks: HeaderChecks::Lenient,
        ..ProxyRule::new(patterns(&[upstream]), patterns(downstream))
    }
}

/// A report with one record without sources: `ChangeToExclude` joins, `ChangeToInclude` leaves.
fn report(group: &str, kind: RecordType) -> Vec<u8> {
    let record = GroupRecord {
        kind,
        group: group.parse().unwrap(),
        sources: vec![],
    };
    let message = MembershipMessage::Records(vec![record]);
    let from = "10.0.0.9".parse().unwrap();
    mcastor::wire::membership::build(&message, from, 1500)
        .unwrap()
        .remove(0)
}

impl Router {
    async fn with_proxies(proxies: Vec<ProxyRule>, links: &[Link]) -> Self {
        let r = Self::start(vec![], vec![], links).await;
        r.replace(proxies);
        r.until("the proxies are in force", |r| {
            r.context.health.is_ready() && !r.context.snapshot.load().fib.downstreams.is_empty()
        })
        .await;
        r
    }

    fn replace(&self, proxies: Vec<ProxyRule>) {
        let rib = Rib {
            proxies,
            ..Rib::default()
        };
        assert!(self.context.directory.do_send(ReplaceRules(rib)));
    }

    /// Downstream interfaces with members of the group.
    fn member_interfaces(&self, group: &str) -> Vec<u32> {
        let fib = self.context.snapshot.load().fib.clone();
        let group: std::net::IpAddr = group.parse().unwrap();
        let found = fib.oif_table.find("10.0.0.1".parse().unwrap(), group);
        let set = found.map(|f| fib.oif_table.set(f.source_oifs).to_vec());
        let ids = set.unwrap_or_default().into_iter();
        ids.map(|id| fib.downstreams[id as usize].index.get() - FIRST_INDEX)
            .collect()
    }

    /// Groups joined upstream, as `interface group`.
    async fn joined(&self) -> Vec<String> {
        let answer = self.context.directory.ask(QueryHostGroups, PATIENCE).await;
        let groups = answer.unwrap_or_default();
        let row = |g: &HostGroup| {
            let interface = g.interface.as_ref();
            let interface = interface.map_or_else(String::new, ToString::to_string);
            format!("{interface} {}", g.group)
        };
        groups.iter().map(row).collect()
    }

    async fn until_joined(&self, expected: &[&str]) {
        let started_at = Instant::now();
        loop {
            let now = self.joined().await;
            if now == expected {
                return;
            }
            assert!(
                started_at.elapsed() < PATIENCE,
                "joined: {now:?}, expected {expected:?}"
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn links() -> Vec<Link> {
    let names = ["in1", "in2", "out1", "out2", "out3"];
    let link = |(n, name): (u32, &&str)| link(FIRST_INDEX + n, name);
    (1..).zip(&names).map(link).collect()
}

#[actix::test]
async fn members_follow_proxy_changes() {
    use RecordType::ChangeToExclude;
    let group = "225.1.2.3";
    let one = |down: &[&str]| proxy("one", "in1", down);
    let two = |down: &[&str]| proxy("two", "in2", down);
    let proxies = vec![one(&["out1", "out2"]), two(&["out3"])];
    let r = Router::with_proxies(proxies, &links()).await;
    for n in [3, 4] {
        let report = report(group, ChangeToExclude);
        r.sim.arrive(index(FIRST_INDEX + n), &[&report]);
    }
    r.until("both interfaces have members", |r| {
        r.member_interfaces(group) == [3, 4]
    })
    .await;
    r.until_joined(&["in1 225.1.2.3"]).await;
    // A downstream interface moves to the other proxy and keeps its members.
    r.replace(vec![one(&["out2"]), two(&["out1", "out3"])]);
    r.until_joined(&["in1 225.1.2.3", "in2 225.1.2.3"]).await;
    r.sim.take_sent(index(FIRST_INDEX + 3));
    r.sim.take_sent(index(FIRST_INDEX + 4));
    let data = |packets: &[Vec<u8>]| packets.iter().filter(|p| p[9] == 17).count();
    for n in 0..10 {
        r.sim.arrive(index(FIRST_INDEX + 2), &[&packet(n, 9)]);
    }
    let mut received = 0;
    let started_at = Instant::now();
    while received < 10 && started_at.elapsed() < PATIENCE {
        received += data(&r.sim.take_sent(index(FIRST_INDEX + 3)));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(received, 10, "packets of the new upstream");
    assert_eq!(data(&r.sim.take_sent(index(FIRST_INDEX + 4))), 0);
    // A new name of the proxy changes nothing else.
    let renamed = proxy("other", "in1", &["out2"]);
    r.replace(vec![renamed.clone(), two(&["out1", "out3"])]);
    r.until("the new name is in force", |r| {
        let fib = &r.context.snapshot.load().fib;
        fib.downstreams.iter().any(|d| d.proxy.name == renamed.name)
    })
    .await;
    r.until_joined(&["in1 225.1.2.3", "in2 225.1.2.3"]).await;
    assert_eq!(
        r.member_interfaces(group),
        [4, 3],
        "in the order of the proxies"
    );
    // A removed proxy leaves its groups.
    r.replace(vec![renamed]);
    r.until_joined(&["in1 225.1.2.3"]).await;
    r.until("one interface has members", |r| {
        r.member_interfaces(group) == [4]
    })
    .await;
    // The group list of the proxy no longer contains the group.
    let mut strict = proxy("other", "in1", &["out2"]);
    strict.groups = vec!["239.0.0.0/8".parse().unwrap()];
    r.replace(vec![strict]);
    r.until_joined(&[]).await;
    r.until("no interface has members", |r| {
        r.member_interfaces(group).is_empty()
    })
    .await;
    r.stop().await;
}

#[actix::test]
async fn shown_member_is_forwarded_to() {
    let r = Router::with_proxies(vec![proxy("one", "in1", &["out1"])], &links()).await;
    // Many groups, so that snapshots take long to build and queue up.
    let many: Vec<String> = (0..3000u32)
        .map(|n| format!("226.0.{}.{}", n / 250, n % 250))
        .collect();
    let join = |group: &str| {
        let report = report(group, RecordType::ChangeToExclude);
        r.sim.arrive(index(FIRST_INDEX + 3), &[&report]);
    };
    for groups in many.chunks(100) {
        groups.iter().for_each(|group| join(group));
        let last = groups.last().unwrap();
        let started_at = Instant::now();
        loop {
            let Ok(ShowReply::Groups(shown)) = query::show(&r.context, ShowQuery::Groups).await
            else {
                panic!("no groups in the response");
            };
            if shown
                .iter()
                .any(|g| g.group == *last && g.interface == "out1")
            {
                break;
            }
            assert!(started_at.elapsed() < PATIENCE, "{last} is not shown");
        }
        assert_eq!(r.member_interfaces(last), [3], "{last} is shown");
    }
    r.stop().await;
}

#[actix::test]
async fn members_survive_actor_restarts() {
    use RecordType::{ChangeToExclude, ChangeToInclude};
    let proxies = || vec![proxy("one", "in1", &["out1"])];
    let r = Router::with_proxies(proxies(), &links()).await;
    let report_group = |group: &str, kind| {
        r.sim
            .arrive(index(FIRST_INDEX + 3), &[&report(group, kind)])
    };
    report_group("225.1.2.3", ChangeToExclude);
    r.until("the first member is known", |r| {
        r.member_interfaces("225.1.2.3") == [3]
    })
    .await;
    for round in 0..3u8 {
        let group = format!("225.1.3.{round}");
        // A change during the restart of routing reaches the new actor.
        let restarts = r.restarts("routing");
        let panics = r.supervisor.send(PanicIn("routing".into())).await;
        panics.unwrap().unwrap();
        report_group(&group, ChangeToExclude);
        r.until("the actor is restarted", |r| {
            r.restarts("routing") == restarts + 1
        })
        .await;
        r.until("the new member is known", |r| {
            r.member_interfaces(&group) == [3]
        })
        .await;
        assert_eq!(r.member_interfaces("225.1.2.3"), [3]);
        report_group(&group, ChangeToInclude);
        if round == 1 {
            break;
        }
    }
    // A restarted membership actor continues with the members of the store.
    let panics = r.supervisor.send(PanicIn("membership".into())).await;
    panics.unwrap().unwrap();
    r.until("the actor is restarted", |r| r.restarts("membership") == 1)
        .await;
    assert_eq!(r.member_interfaces("225.1.2.3"), [3]);
    // A report that arrives before the new actor can be reached is lost: it queries hosts, which
    // report again.
    r.until("new reports are handled", |r| {
        report_group("225.1.4.4", ChangeToExclude);
        r.member_interfaces("225.1.4.4") == [3]
    })
    .await;
    assert_eq!(r.member_interfaces("225.1.2.3"), [3]);
    r.stop().await;
}

/// Returns the record types about a group in reports of the router on `in1`.
fn reported(r: &Router, group: &str) -> Vec<RecordType> {
    let sent = r.sim.take_sent(index(FIRST_INDEX + 1));
    let policy = HeaderPolicy {
        headers: HeaderChecks::Lenient,
        on_link: &[],
    };
    let received = sent.iter().flat_map(|p| membership::parse(p, &policy));
    let records = received.flat_map(|received| match received.message {
        MembershipMessage::Records(records) => records,
        _ => Vec::new(),
    });
    let records = records.filter(|record| record.group.to_string() == group);
    records.map(|record| record.kind).collect()
}

/// The next process continues the memberships, unless the router stops for good.
#[actix::test]
async fn kept_memberships_end_without_a_leave() {
    for keeps in [false, true] {
        let proxies = vec![proxy("one", "in1", &["out1"])];
        let r = Router::with_proxies(proxies, &links()).await;
        let join = report("225.1.2.3", RecordType::ChangeToExclude);
        r.sim.arrive(index(FIRST_INDEX + 3), &[&join]);
        r.until_joined(&["in1 225.1.2.3"]).await;
        assert!(reported(&r, "225.1.2.3").contains(&RecordType::ChangeToExclude));
        if keeps {
            assert!(r.context.directory.do_send(KeepMemberships));
        }
        r.stop().await;
        let leaves = reported(&r, "225.1.2.3").contains(&RecordType::ChangeToInclude);
        assert_eq!(leaves, !keeps);
    }
}

#[actix::test]
async fn members_are_in_the_store_after_a_stop() {
    let proxies = || vec![proxy("one", "in1", &["out1"])];
    let r = Router::with_proxies(proxies(), &links()).await;
    let join = report("225.1.2.3", RecordType::ChangeToExclude);
    r.sim.arrive(index(FIRST_INDEX + 3), &[&join]);
    r.until_joined(&["in1 225.1.2.3"]).await;
    r.stop().await;
    let stored = r.context.store.interface(&"out1".parse().unwrap());
    let groups: Vec<_> = stored.iter().flat_map(|s| s.groups()).collect();
    assert_eq!(groups.len(), 1);
    assert_eq!(groups[0].group.to_string(), "225.1.2.3");
}
