//! Actors that panic, one after the other, under traffic.

use serde_json::json;

use super::{cases, route};
use crate::lab::{
    Capture, Lab, Numbered, PATIENCE, Router, Star, eventually, in_order, missing, wait_until,
};

cases!("panics":
    each_actor_comes_back,
    routing_thrice_ends_the_process,
    without_a_keeper_the_process_ends,
    refused_without_the_variable,
);

const GROUP: &str = "225.1.2.3";
const DST: &str = "225.1.2.3:5000";
const ALLOWED: &[(&str, &str)] = &[("MCASTOR_TEST_PANIC", "1")];

fn r() -> String {
    route("r", "in", "", GROUP, &["out1"], "")
}

fn restarts(router: &Router, actor: &str) -> u64 {
    router.get("/metrics").map_or(0, |answer| {
        let metrics = crate::lab::metrics::Metrics::parse(&answer.body);
        metrics.sum("mcastor_actor_restarts_total", &[("actor", actor)]) as u64
    })
}

/// Packets between the sender's counter and the actor at one instant, at most.
const ON_ITS_WAY: u32 = 300;

/// What does not carry packets costs none; what does, only those of its pause.
fn each_actor_comes_back(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start_with(lab, &star.rtr, &r(), ALLOWED);
    let capture = Capture::new(&star.rcv, "eth1");
    let traffic = Numbered::start(&star.src, "eth0", "10.0.0.10:9", DST, 1000);
    let mut outages = Vec::new();
    for actor in [
        "routing",
        "links",
        "metrics",
        "joins",
        "interface",
        "forwarder",
    ] {
        traffic.more(50 + ON_ITS_WAY);
        // What is on its way to a busy machine's router is lost with the actor.
        let begun = traffic.sent() - ON_ITS_WAY;
        router.control().must(&json!({ "panic": actor }));
        eventually(actor, 1, || restarts(&router, actor));
        let before = capture.to(GROUP).len();
        assert!(
            wait_until(PATIENCE, || capture.to(GROUP).len() > before + 20),
            "{actor}"
        );
        if ["interface", "forwarder"].contains(&actor) {
            outages.push((begun, traffic.sent()));
        }
    }
    eventually("joined again", 1, || {
        router.metric("mcastor_joined_groups", &[]) as u64
    });
    // Links are still followed.
    star.rtr.ip("link set out1 mtu 1400");
    router.expect_metric("mcastor_interface_mtu_bytes", &[("iface", "out1")], 1400);
    let sent = traffic.finish();
    eventually("the last one came", true, || {
        in_order(&capture, GROUP).last() == Some(&(sent - 1))
    });
    let lost = missing(sent, &in_order(&capture, GROUP));
    println!(
        "each actor panicked once: {} of {sent} packets lost",
        lost.len()
    );
    let within = |n: &u32| outages.iter().any(|(a, b)| (a..=b).contains(&n));
    assert!(lost.iter().all(within), "{lost:?} outside of {outages:?}");
}

fn routing_thrice_ends_the_process(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let mut router = Router::start_with(lab, &star.rtr, &r(), ALLOWED);
    for n in 1..=3 {
        router.control().must(&json!({ "panic": "routing" }));
        if n < 3 {
            eventually("routing is rebuilt", n, || restarts(&router, "routing"));
        }
    }
    assert_eq!(router.program.wait().code(), Some(1));
    let log = router.program.stderr();
    assert!(
        log.contains("routing died 3 times within a minute"),
        "{log}"
    );
    assert!(!router.socket.exists());
}

fn without_a_keeper_the_process_ends(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let mut router = Router::start_with(lab, &star.rtr, &r(), ALLOWED);
    router.control().must(&json!({ "panic": "keeper" }));
    assert_eq!(router.program.wait().code(), Some(1));
    assert!(!router.socket.exists());
}

fn refused_without_the_variable(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &r());
    let refused = router.control().ask(&json!({ "panic": "routing" }));
    assert!(refused.is_err_and(|e| e.contains("MCASTOR_TEST_PANIC")));
}
