//! Members behind proxies, as they come and go.

use std::time::{Duration, Instant};

use mcastor::actors::context::PanicNow;
use mcastor::actors::joins::AskGroups;
use mcastor::actors::questions;
use mcastor::actors::routing::Replace;
use mcastor::api::{Show, Shown};
use mcastor::model::{HeaderChecks, Link, ProxyRule, RouteName};
use mcastor::table::Rib;
use mcastor::wire::membership_message::{GroupRecord, MembershipMessage, RecordType};

use super::router::{PATIENCE, Router, index, link, packet};

/// Numbers that no interface of the machine has: upstream groups are joined by the kernel.
const FAR: u32 = 900_000;

fn proxy(name: &str, upstream: &str, downstream: &[&str]) -> ProxyRule {
    let patterns = |names: &[&str]| names.iter().map(|n| n.parse().unwrap()).collect();
    ProxyRule {
        name: RouteName::new(name),
        // There are no addresses here that hosts could be on link with.
        header_checks: HeaderChecks::Lenient,
        ..ProxyRule::new(patterns(&[upstream]), patterns(downstream))
    }
}

/// A host asks for a group, or leaves where it asks for no source.
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
        r.until("it captures", |r| {
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
        let routing = self.context.routing.load_full().unwrap();
        routing.do_send(Replace(rib));
    }

    /// Behind which interfaces the group is wanted.
    fn wanted(&self, group: &str) -> Vec<u32> {
        let fib = self.context.snapshot.load().fib.clone();
        let group: std::net::IpAddr = group.parse().unwrap();
        let found = fib.wishes.find("10.0.0.1".parse().unwrap(), group);
        let set = found.map(|f| fib.wishes.set(f.set).to_vec());
        let ids = set.unwrap_or_default().into_iter();
        ids.map(|id| fib.downstreams[id as usize].index.get() - FAR)
            .collect()
    }

    /// The groups wanted upstream, as `interface group`.
    async fn joined(&self) -> Vec<String> {
        let Some(joins) = self.context.joins.load_full() else {
            return Vec::new();
        };
        let groups = joins.send(AskGroups).await.unwrap_or_default();
        let row = |g: &mcastor::api::view::GroupView| format!("{} {}", g.interface, g.group);
        groups.iter().map(row).collect()
    }

    async fn until_joined(&self, want: &[&str]) {
        let begun = Instant::now();
        loop {
            let now = self.joined().await;
            if now == want {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "joined: {now:?}, not {want:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn far_links() -> Vec<Link> {
    let names = ["in1", "in2", "out1", "out2", "out3"];
    let link = |(n, name): (u32, &&str)| link(FAR + n, name);
    (1..).zip(&names).map(link).collect()
}

#[actix::test]
async fn members_follow_when_proxies_change() {
    use RecordType::ChangeToExclude;
    let group = "225.1.2.3";
    let one = |down: &[&str]| proxy("one", "in1", down);
    let two = |down: &[&str]| proxy("two", "in2", down);
    let proxies = vec![one(&["out1", "out2"]), two(&["out3"])];
    let r = Router::with_proxies(proxies, &far_links()).await;
    for n in [3, 4] {
        let report = report(group, ChangeToExclude);
        r.sim.arrive(index(FAR + n), &[&report]);
    }
    r.until("both want it", |r| r.wanted(group) == [3, 4]).await;
    r.until_joined(&["in1 225.1.2.3"]).await;
    // A downstream interface moves from one proxy to the other, with its members.
    r.replace(vec![one(&["out2"]), two(&["out1", "out3"])]);
    r.until_joined(&["in1 225.1.2.3", "in2 225.1.2.3"]).await;
    r.sim.take_sent(index(FAR + 3));
    r.sim.take_sent(index(FAR + 4));
    let data = |packets: &[Vec<u8>]| packets.iter().filter(|p| p[9] == 17).count();
    for n in 0..10 {
        r.sim.arrive(index(FAR + 2), &[&packet(n, 9)]);
    }
    let mut came = 0;
    let begun = Instant::now();
    while came < 10 && begun.elapsed() < PATIENCE {
        came += data(&r.sim.take_sent(index(FAR + 3)));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(came, 10, "the new upstream feeds it");
    assert_eq!(data(&r.sim.take_sent(index(FAR + 4))), 0);
    // A name changes: nothing else does.
    let renamed = proxy("other", "in1", &["out2"]);
    r.replace(vec![renamed.clone(), two(&["out1", "out3"])]);
    r.until("it is in force", |r| {
        let fib = &r.context.snapshot.load().fib;
        fib.downstreams.iter().any(|d| d.proxy.name == renamed.name)
    })
    .await;
    r.until_joined(&["in1 225.1.2.3", "in2 225.1.2.3"]).await;
    assert_eq!(r.wanted(group), [4, 3], "in the order of the proxies");
    // A proxy goes: what it had joined is left.
    r.replace(vec![renamed]);
    r.until_joined(&["in1 225.1.2.3"]).await;
    r.until("one is left", |r| r.wanted(group) == [4]).await;
    // Its list no longer takes the group.
    let mut strict = proxy("other", "in1", &["out2"]);
    strict.groups = vec!["239.0.0.0/8".parse().unwrap()];
    r.replace(vec![strict]);
    r.until_joined(&[]).await;
    r.until("none is left", |r| r.wanted(group).is_empty())
        .await;
    r.stop().await;
}

#[actix::test]
async fn a_member_that_is_shown_is_served() {
    let r = Router::with_proxies(vec![proxy("one", "in1", &["out1"])], &far_links()).await;
    // Many groups, so that snapshots take their time and wait for their turn.
    let many: Vec<String> = (0..3000u32)
        .map(|n| format!("226.0.{}.{}", n / 250, n % 250))
        .collect();
    let hear = |group: &str| {
        let report = report(group, RecordType::ChangeToExclude);
        r.sim.arrive(index(FAR + 3), &[&report]);
    };
    for groups in many.chunks(100) {
        groups.iter().for_each(|group| hear(group));
        let last = groups.last().unwrap();
        let begun = Instant::now();
        loop {
            let Ok(Shown::Groups(shown)) = questions::show(&r.context, Show::Groups).await else {
                panic!("no groups are shown");
            };
            if shown
                .iter()
                .any(|g| g.group == *last && g.interface == "out1")
            {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "{last} is not shown");
        }
        assert_eq!(r.wanted(last), [3], "{last} is shown");
    }
    r.stop().await;
}

#[actix::test]
async fn members_come_and_go_while_actors_die() {
    use RecordType::{ChangeToExclude, ChangeToInclude};
    let proxies = || vec![proxy("one", "in1", &["out1"])];
    let r = Router::with_proxies(proxies(), &far_links()).await;
    let hear = |group: &str, kind| r.sim.arrive(index(FAR + 3), &[&report(group, kind)]);
    hear("225.1.2.3", ChangeToExclude);
    r.until("one", |r| r.wanted("225.1.2.3") == [3]).await;
    for round in 0..3u8 {
        let group = format!("225.1.3.{round}");
        // What changes while routing is dead is known to the next.
        let routing = r.context.routing.load_full().unwrap();
        let restarts = r.restarts("routing");
        routing.do_send(PanicNow);
        hear(&group, ChangeToExclude);
        r.until("it is rebuilt", |r| r.restarts("routing") == restarts + 1)
            .await;
        let links = r.context.routing.load_full();
        assert!(links.is_some());
        r.until("the new member counts", |r| r.wanted(&group) == [3])
            .await;
        assert_eq!(r.wanted("225.1.2.3"), [3]);
        hear(&group, ChangeToInclude);
        if round == 1 {
            break;
        }
    }
    // A membership actor that dies forgets its hosts; what they wanted is still forwarded.
    let membership = r.context.membership.load_full().unwrap();
    membership.do_send(PanicNow);
    r.until("it is rebuilt", |r| r.restarts("membership") == 1)
        .await;
    assert_eq!(r.wanted("225.1.2.3"), [3]);
    hear("225.1.4.4", ChangeToExclude);
    r.until("it hears again", |r| r.wanted("225.1.4.4") == [3])
        .await;
    assert_eq!(r.wanted("225.1.2.3"), [3]);
    r.stop().await;
}
