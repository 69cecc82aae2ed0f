//! Forwarding, changes of links, and counters for every packet.

use std::future::poll_fn;
use std::sync::atomic::Ordering;
use std::task::Poll;

use futures_util::future::join_all;
use mcastor::actors::messages::{ApplyChange, Barrier};
use mcastor::forward::DropReason;
use mcastor::model::{JoinPolicy, KernelForwarding, RouteRule, TtlPolicy, TtlThreshold};
use mcastor::table::InterfaceOptions;
use mcastor::table::rib_change::RibChange;

use super::router::{PATIENCE, Router, index, link, numbers, packet, rule};

#[actix::test]
async fn every_egress_gets_and_counts_packets() {
    let threshold = InterfaceOptions {
        name: "far".parse().unwrap(),
        ttl_threshold: TtlThreshold::new(8),
        mrdisc: None,
        reports: Default::default(),
        disabled: false,
        capture: false,
        kernel_forwarding: KernelForwarding::Auto,
        bandwidth: None,
    };
    let rules = vec![rule("in", &["out", "far"], TtlPolicy::Decrement)];
    let links = [link(1, "in"), link(2, "out"), link(3, "far")];
    let r = Router::start(rules, vec![threshold], &links).await;
    r.arrive(1, 0..100, 8);
    r.arrive(1, 100..150, 9);
    r.arrive(1, 150..170, 1);
    let mut stray = packet(999, 9);
    stray[16] = 226;
    mcastor::wire::ip::refresh_ipv4_checksum(&mut stray);
    r.sim.arrive(index(1), &[&stray]);
    r.until("all packets are sent", |r| {
        r.transmitted("out") == 150 && r.transmitted("far") == 50
    })
    .await;
    r.until("all packets are received", |r| r.received("in") == 171)
        .await;
    r.stop().await;
    let out = r.sim.take_sent(index(2));
    assert_eq!(numbers(&out), (0..150).collect::<Vec<_>>());
    assert!(out[..100].iter().all(|p| p[8] == 7) && out[100..].iter().all(|p| p[8] == 8));
    let far = r.sim.take_sent(index(3));
    assert_eq!(numbers(&far), (100..150).collect::<Vec<_>>());
    assert_eq!(r.path("in", "out"), (150, 150 * 32));
    assert_eq!(r.path("in", "far"), (50, 50 * 32));
    assert_eq!(r.dropped("in", DropReason::TtlExpired), 20);
    assert_eq!(r.dropped("in", DropReason::NoRoute), 1);
    assert_eq!(r.all_dropped("in"), 21);
    assert_eq!(r.dropped("far", DropReason::TtlThreshold), 100);
    assert_eq!(r.all_dropped("far"), 100);
    assert_eq!(r.all_dropped("out"), 0);
}

#[actix::test]
async fn links_recreated_with_new_index_forward() {
    let rules = vec![rule("in", &["out", "other"], TtlPolicy::Keep)];
    let (iif, other) = (link(1, "in"), link(3, "other"));
    let r = Router::start(rules, vec![], &[iif.clone(), link(2, "out"), other.clone()]).await;
    r.arrive(1, 0..10, 9);
    r.until("all packets are sent", |r| {
        r.transmitted("out") == 10 && r.transmitted("other") == 10
    })
    .await;
    r.links_in_force(&[iif.clone(), other.clone()], 1).await;
    r.arrive(1, 10..20, 9);
    r.until("the other egress forwards", |r| {
        r.transmitted("other") == 20
    })
    .await;
    r.links_in_force(&[iif.clone(), link(7, "out"), other.clone()], 2)
        .await;
    r.arrive(1, 20..30, 9);
    r.until("all packets are sent", |r| {
        r.transmitted("out") == 20 && r.transmitted("other") == 30
    })
    .await;
    // The ingress is deleted and created again.
    let egresses = [link(7, "out"), other.clone()];
    r.links_in_force(&egresses, 0).await;
    let back = [&egresses[..], &[link(9, "in")]].concat();
    r.links_in_force(&back, 2).await;
    r.until("the ingress is captured", |r| {
        r.faults.captures.load(Ordering::Acquire) == 1
    })
    .await;
    r.arrive(9, 30..40, 9);
    r.until("all packets are sent", |r| {
        r.transmitted("out") == 30 && r.transmitted("other") == 40
    })
    .await;
    r.stop().await;
    assert_eq!(
        numbers(&r.sim.take_sent(index(2))),
        (0..10).collect::<Vec<_>>()
    );
    assert_eq!(
        numbers(&r.sim.take_sent(index(7))),
        (20..40).collect::<Vec<_>>()
    );
    assert_eq!(
        numbers(&r.sim.take_sent(index(3))),
        (0..40).collect::<Vec<_>>()
    );
    assert_eq!((r.all_dropped("in"), r.all_dropped("out")), (0, 0));
    assert_eq!(r.received("in"), 40);
}

#[actix::test]
async fn egress_without_carrier_drops_until_it_has_one() {
    let rules = vec![rule("in", &["out"], TtlPolicy::Keep)];
    let mut out = link(2, "out");
    out.carrier = false;
    let r = Router::start(rules, vec![], &[link(1, "in"), out.clone()]).await;
    r.arrive(1, 0..10, 9);
    r.until("all packets are dropped", |r| {
        r.dropped("out", DropReason::EgressDown) == 10
    })
    .await;
    out.carrier = true;
    r.links_in_force(&[link(1, "in"), out], 1).await;
    r.arrive(1, 10..20, 9);
    r.until("all packets are sent", |r| r.transmitted("out") == 10)
        .await;
    r.stop().await;
    let sent = numbers(&r.sim.take_sent(index(2)));
    assert_eq!(sent, (10..20).collect::<Vec<_>>());
    assert_eq!(r.all_dropped("out"), 10);
}

#[actix::test]
async fn renamed_egress_counts_under_its_new_name() {
    let rules = vec![rule("in", &["out*"], TtlPolicy::Keep)];
    let r = Router::start(rules, vec![], &[link(1, "in"), link(2, "out0")]).await;
    r.arrive(1, 0..10, 9);
    r.until("all packets are sent", |r| r.transmitted("out0") == 10)
        .await;
    r.links_in_force(&[link(1, "in"), link(2, "out1")], 1).await;
    r.arrive(1, 10..20, 9);
    r.until("all packets are sent", |r| r.transmitted("out1") == 10)
        .await;
    assert_eq!(r.transmitted("out0"), 10);
    assert_eq!(r.path("in", "out1"), (10, 320));
    r.stop().await;
    assert_eq!(
        numbers(&r.sim.take_sent(index(2))),
        (0..20).collect::<Vec<_>>()
    );
}

#[actix::test]
async fn shutdown_waits_for_blocked_egress() {
    let rules = vec![rule("in", &["out"], TtlPolicy::Keep)];
    let r = Router::start(rules, vec![], &[link(1, "in"), link(2, "out")]).await;
    r.sim.set_blocked(index(2), true);
    r.arrive(1, 0..5, 9);
    r.until("all packets are captured", |r| r.received("in") == 5)
        .await;
    assert_eq!(r.transmitted("out"), 0);
    let mut stopping = Box::pin(r.stop());
    let pending = poll_fn(|cx| Poll::Ready(stopping.as_mut().poll(cx).is_pending())).await;
    assert!(pending, "it stopped before its packets were sent");
    r.sim.set_blocked(index(2), false);
    stopping.await;
    assert_eq!(numbers(&r.sim.take_sent(index(2))), [0, 1, 2, 3, 4]);
    assert_eq!(r.transmitted("out"), 5);
    assert_eq!(r.all_dropped("out"), 0);
}

#[actix::test]
async fn blocked_egress_drops_only_its_own_packets() {
    let rules = vec![rule("in", &["busy", "idle"], TtlPolicy::Keep)];
    let r = Router::start(
        rules,
        vec![],
        &[link(1, "in"), link(2, "busy"), link(3, "idle")],
    )
    .await;
    r.sim.set_blocked(index(2), true);
    for n in 0..200 {
        r.arrive(1, n..n + 1, 9);
        // One packet a batch, so that the mailbox of the blocked egress overflows.
        r.until("the packet is handled", |r| {
            r.transmitted("idle") == u64::from(n) + 1
        })
        .await;
    }
    let full = r.dropped("busy", DropReason::QueueFull);
    assert!(full > 100, "{full}");
    r.sim.set_blocked(index(2), false);
    r.until("the other packets are sent", |r| {
        r.transmitted("busy") + full == 200
    })
    .await;
    r.stop().await;
    assert_eq!(r.all_dropped("busy"), full);
    assert_eq!(r.all_dropped("idle") + r.all_dropped("in"), 0);
    let sent = numbers(&r.sim.take_sent(index(2)));
    assert!(sent.is_sorted(), "{sent:?}");
}

#[actix::test]
async fn bursts_on_many_interfaces_lose_nothing() {
    let rules = vec![rule("in*", &["out"], TtlPolicy::Keep)];
    let mut links: Vec<_> = (10..60).map(|n| link(n, &format!("in{n}"))).collect();
    links.push(link(1, "out"));
    let r = Router::start(rules, vec![], &links).await;
    for n in 10..60 {
        r.arrive(n, 0..100, 9);
    }
    r.until("all packets are handled", |r| {
        (10..60).all(|n| r.received(&format!("in{n}")) == 100)
    })
    .await;
    r.stop().await;
    assert_eq!(r.all_dropped("out"), 0);
    assert_eq!(r.transmitted("out"), 5000);
}

#[actix::test]
async fn waiting_changes_share_one_publication() {
    let links = [link(1, "in"), link(2, "out")];
    let rules = vec![rule("in", &["out"], TtlPolicy::Decrement)];
    let r = Router::start(rules, vec![], &links).await;
    let before = r.context.snapshot.load().fib.generation;
    let add = |n: u8| {
        let group = format!("226.0.0.{n}").parse().unwrap();
        let to = vec!["out".parse().unwrap()];
        ApplyChange(RibChange::AddRoute {
            rule: Box::new(RouteRule {
                join: JoinPolicy::Never,
                ..RouteRule::new("in".parse().unwrap(), group, to)
            }),
            allow_no_effect: false,
        })
    };
    let directory = &r.context.directory;
    let answers: Vec<_> = (0..100).map(|n| directory.ask(add(n), PATIENCE)).collect();
    for answer in join_all(answers).await {
        answer.unwrap().unwrap();
    }
    directory.ask(Barrier, PATIENCE).await.unwrap();
    let fib = r.context.snapshot.load().fib.clone();
    // One, unless this thread loses its CPU between two changes.
    let publications = fib.generation - before;
    assert!((1..=10).contains(&publications), "{publications}");
    assert_eq!(fib.ingresses[&index(1)].entries.len(), 101);
    r.stop().await;
}
