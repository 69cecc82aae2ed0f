//! Failing captures, failing sends and panicking actors.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use actix::prelude::*;
use mcastor::actors::child::{ChildSpec, RestartPolicy, ShutdownPhase};
use mcastor::actors::messages::PanicIn;
use mcastor::actors::supervision::{DeathGuard, PanicNow, Stop};
use mcastor::actors::supervisor::{Supervisor, SupervisorConfig};
use mcastor::forward::DropReason;
use mcastor::model::TtlPolicy;
use mcastor::sys::confinement::FileAccess;

use super::router::{Router, index, link, numbers, packet, rule};

#[actix::test]
async fn egress_error_drops_one_packet() {
    let rules = vec![rule("in", &["out"], TtlPolicy::Keep)];
    let r = Router::start(rules, vec![], &[link(1, "in"), link(2, "out")]).await;
    let kinds = [
        io::ErrorKind::Other,
        io::ErrorKind::WouldBlock,
        io::ErrorKind::Other,
    ];
    r.sim.refuse(index(2), &kinds);
    let packets: Vec<_> = (0..10).map(|n| packet(n, 9)).collect();
    let slices: Vec<_> = packets.iter().map(Vec::as_slice).collect();
    r.sim.arrive(index(1), &slices);
    r.until("the other packets are sent", |r| r.transmitted("out") == 8)
        .await;
    r.stop().await;
    assert_eq!(
        numbers(&r.sim.take_sent(index(2))),
        (2..10).collect::<Vec<_>>()
    );
    assert_eq!(r.dropped("out", DropReason::SendFailed), 2);
    assert_eq!(r.all_dropped("out"), 2);
}

#[actix::test]
async fn failed_capture_is_reopened() {
    let rules = vec![rule("in", &["out"], TtlPolicy::Keep)];
    let r = Router::start(rules, vec![], &[link(1, "in"), link(2, "out")]).await;
    r.faults.capture_error.store(1, Ordering::Release);
    r.arrive(1, 0..1, 9);
    r.until("the actor is restarted", |r| r.restarts("interface") == 1)
        .await;
    // The waiting packet is still there: the error consumed none.
    r.arrive(1, 1..10, 9);
    r.until("all packets are sent", |r| r.transmitted("out") == 10)
        .await;
    assert_eq!(r.faults.captures.load(Ordering::Acquire), 1);
    r.stop().await;
    assert_eq!(
        numbers(&r.sim.take_sent(index(2))),
        (0..10).collect::<Vec<_>>()
    );
}

#[actix::test]
async fn panicking_interface_actor_is_restarted() {
    let rules = vec![rule("in*", &["out"], TtlPolicy::Keep)];
    let links = [link(1, "in1"), link(2, "out"), link(3, "in2")];
    let r = Router::start(rules, vec![], &links).await;
    r.faults.capture_panic.store(1, Ordering::Release);
    r.arrive(1, 0..1, 9);
    r.until("the actor is restarted", |r| r.restarts("interface") == 1)
        .await;
    r.until("the router is ready", |r| r.context.health.is_ready())
        .await;
    r.arrive(1, 1..10, 9);
    r.until("all packets are sent", |r| r.path("in1", "out").0 == 10)
        .await;
    assert_eq!(r.faults.captures.load(Ordering::Acquire), 2);
    r.arrive(3, 10..20, 9);
    r.until("the other interface forwards", |r| {
        r.path("in2", "out").0 == 10
    })
    .await;
    r.stop().await;
    assert!(!r.failed.is_cancelled());
}

#[actix::test]
async fn panicking_forwarder_is_restarted() {
    let rules = vec![rule("in", &["out"], TtlPolicy::Keep)];
    let r = Router::start(rules, vec![], &[link(1, "in"), link(2, "out")]).await;
    r.faults.send_panic.store(1, Ordering::Release);
    r.arrive(1, 0..1, 9);
    r.until("the actor is restarted", |r| r.restarts("forwarder") == 1)
        .await;
    r.arrive(1, 1..10, 9);
    r.until("all packets are sent", |r| r.transmitted("out") == 9)
        .await;
    r.stop().await;
    assert_eq!(
        numbers(&r.sim.take_sent(index(2))),
        (1..10).collect::<Vec<_>>()
    );
}

#[actix::test]
async fn refused_capture_is_retried_once() {
    let rules = vec![rule("in*", &["out"], TtlPolicy::Keep)];
    let r = Router::start(rules, vec![], &[link(2, "out")]).await;
    r.faults.captures_refused.store(1, Ordering::Release);
    r.links(&[link(1, "in1"), link(2, "out")]);
    r.until("the capture was refused", |r| {
        r.faults.captures_refused.load(Ordering::Acquire) == 0
    })
    .await;
    // Renames the interface and back before the retry is due, so that the retry finds it captured.
    r.links_in_force(&[link(1, "in2"), link(2, "out")], 1).await;
    r.links_in_force(&[link(1, "in1"), link(2, "out")], 1).await;
    // The retry is due five seconds after the refusal.
    let started_at = Instant::now();
    while started_at.elapsed() < Duration::from_millis(5500) {
        let captures = r.faults.captures.load(Ordering::Acquire);
        assert!(captures <= 1, "{captures} captures of one interface");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    r.arrive(1, 0..10, 9);
    r.until("all packets are sent", |r| r.transmitted("out") == 10)
        .await;
    r.stop().await;
}

/// An actor that takes longer to end than the supervisor waits before it restarts an actor.
struct SlowToDie {
    // Dropped first: it reports the death.
    _death_guard: DeathGuard,
    _end: SlowEnd,
}

struct SlowEnd;

impl Drop for SlowEnd {
    fn drop(&mut self) {
        std::thread::sleep(Duration::from_millis(500));
    }
}

impl Actor for SlowToDie {
    type Context = Context<Self>;
}

impl Handler<Stop> for SlowToDie {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

impl Handler<PanicNow> for SlowToDie {
    type Result = ();

    fn handle(&mut self, _: PanicNow, _: &mut Self::Context) {
        panic!("panic requested by a test");
    }
}

/// On a busy machine, the thread of an actor that panics may get no CPU time between the report of
/// its death and its end.
#[actix::test]
async fn actor_that_ends_slowly_is_restarted() {
    let router = Router::start(Vec::new(), Vec::new(), &[]).await;
    let slow = ChildSpec::on_own_thread(
        "slow",
        FileAccess::None,
        RestartPolicy::Always,
        ShutdownPhase::WithProcess,
        |start| {
            Some(SlowToDie {
                _death_guard: start.death_guard(),
                _end: SlowEnd,
            })
        },
    );
    let supervisor = Supervisor::new(SupervisorConfig {
        context: router.context.clone(),
        children: vec![slow],
        failed: router.failed.clone(),
        workers: 1,
    })
    .start();
    let panicked = supervisor.send(PanicIn("slow".into())).await.unwrap();
    assert!(panicked.is_ok(), "{panicked:?}");
    router
        .until("the actor is restarted", |r| {
            r.text()
                .contains("mcastor_actor_restarts_total{actor=\"slow\"} 1")
        })
        .await;
}
