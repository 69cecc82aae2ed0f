//! Captures, sends and actors that fail.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mcastor::forward::DropReason;
use mcastor::model::TtlPolicy;

use super::router::{Router, index, link, numbers, packet, rule};

#[actix::test]
async fn errors_of_an_egress_cost_one_packet_each() {
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
    r.until("the rest is sent", |r| r.transmitted("out") == 8)
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
async fn a_capture_that_fails_is_opened_anew() {
    let rules = vec![rule("in", &["out"], TtlPolicy::Keep)];
    let r = Router::start(rules, vec![], &[link(1, "in"), link(2, "out")]).await;
    r.faults.capture_error.store(1, Ordering::Release);
    r.arrive(1, 0..1, 9);
    r.until("it is rebuilt", |r| r.restarts("interface") == 1)
        .await;
    // What waited is still there: the error took nothing.
    r.arrive(1, 1..10, 9);
    r.until("all is sent", |r| r.transmitted("out") == 10).await;
    assert_eq!(r.faults.captures.load(Ordering::Acquire), 1);
    r.stop().await;
    assert_eq!(
        numbers(&r.sim.take_sent(index(2))),
        (0..10).collect::<Vec<_>>()
    );
}

#[actix::test]
async fn an_interface_that_panics_is_rebuilt() {
    let rules = vec![rule("in*", &["out"], TtlPolicy::Keep)];
    let links = [link(1, "in1"), link(2, "out"), link(3, "in2")];
    let r = Router::start(rules, vec![], &links).await;
    r.faults.capture_panic.store(1, Ordering::Release);
    r.arrive(1, 0..1, 9);
    r.until("it is rebuilt", |r| r.restarts("interface") == 1)
        .await;
    r.until("it is ready", |r| r.context.health.is_ready())
        .await;
    r.arrive(1, 1..10, 9);
    r.until("all is sent", |r| r.path("in1", "out").0 == 10)
        .await;
    assert_eq!(r.faults.captures.load(Ordering::Acquire), 2);
    r.arrive(3, 10..20, 9);
    r.until("the other goes on", |r| r.path("in2", "out").0 == 10)
        .await;
    r.stop().await;
    assert!(!r.failed.is_cancelled());
}

#[actix::test]
async fn a_forwarder_that_panics_is_rebuilt() {
    let rules = vec![rule("in", &["out"], TtlPolicy::Keep)];
    let r = Router::start(rules, vec![], &[link(1, "in"), link(2, "out")]).await;
    r.faults.send_panic.store(1, Ordering::Release);
    r.arrive(1, 0..1, 9);
    r.until("it is rebuilt", |r| r.restarts("forwarder") == 1)
        .await;
    r.arrive(1, 1..10, 9);
    r.until("all is sent", |r| r.transmitted("out") == 9).await;
    r.stop().await;
    assert_eq!(
        numbers(&r.sim.take_sent(index(2))),
        (1..10).collect::<Vec<_>>()
    );
}

#[actix::test]
async fn a_capture_that_opens_late_is_opened_once() {
    let rules = vec![rule("in*", &["out"], TtlPolicy::Keep)];
    let r = Router::start(rules, vec![], &[link(2, "out")]).await;
    r.faults.captures_refused.store(1, Ordering::Release);
    r.links(&[link(1, "in1"), link(2, "out")]);
    r.until("it was refused", |r| {
        r.faults.captures_refused.load(Ordering::Acquire) == 0
    })
    .await;
    // Renamed away and back before the second try is due: it is captured already then.
    r.links_in_force(&[link(1, "in2"), link(2, "out")], 1).await;
    r.links_in_force(&[link(1, "in1"), link(2, "out")], 1).await;
    // The second try comes five seconds after the first.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(5500) {
        let captures = r.faults.captures.load(Ordering::Acquire);
        assert!(captures <= 1, "{captures} captures of one interface");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    r.arrive(1, 0..10, 9);
    r.until("all is sent", |r| r.transmitted("out") == 10).await;
    r.stop().await;
}
