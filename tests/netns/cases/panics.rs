//! Actors that panic one after the other under traffic.

use serde_json::json;

use super::{cases, route};
use crate::lab::{
    Capture, Lab, NumberedStream, Router, Star, TIMEOUT, eventually, missing, received_in_order,
    wait_until,
};

cases!("panics":
    each_actor_restarts_after_a_panic,
    three_routing_panics_end_the_process,
    supervisor_panic_ends_the_process,
    panic_command_requires_environment_variable,
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

/// The largest number of packets in flight between the sender's counter and the actor.
const IN_FLIGHT: u32 = 300;

/// A panic of an actor outside the data path loses no packet; other panics lose only the packets
/// sent until the restart.
fn each_actor_restarts_after_a_panic(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start_with(lab, &star.rtr, &r(), ALLOWED);
    let capture = Capture::new(&star.rcv, "eth1");
    let traffic = NumberedStream::start(&star.src, "eth0", "10.0.0.10:9", DST, 1000);
    let mut outages = Vec::new();
    for actor in [
        "routing",
        "links",
        "metrics",
        "joins",
        "interface",
        "forwarder",
    ] {
        traffic.wait_for_more(50 + IN_FLIGHT);
        // Packets in flight to the router of a busy machine are lost with the actor.
        let started = traffic.sent() - IN_FLIGHT;
        router.control().expect_ok(&json!({ "panic": actor }));
        eventually(actor, 1, || restarts(&router, actor));
        let before = capture.to(GROUP).len();
        assert!(
            wait_until(TIMEOUT, || capture.to(GROUP).len() > before + 20),
            "{actor}"
        );
        if ["interface", "forwarder"].contains(&actor) {
            outages.push((started, traffic.sent()));
        }
    }
    eventually("joined again", 1, || {
        router.metric("mcastor_joined_groups", &[]) as u64
    });
    // Link changes are still processed.
    star.rtr.ip("link set out1 mtu 1400");
    router.expect_metric("mcastor_interface_mtu_bytes", &[("iface", "out1")], 1400);
    let sent = traffic.finish();
    eventually("the last packet arrived", true, || {
        received_in_order(&capture, GROUP).last() == Some(&(sent - 1))
    });
    let lost = missing(sent, &received_in_order(&capture, GROUP));
    println!(
        "each actor panicked once: {} of {sent} packets lost",
        lost.len()
    );
    let within = |n: &u32| outages.iter().any(|(a, b)| (a..=b).contains(&n));
    assert!(lost.iter().all(within), "{lost:?} outside of {outages:?}");
}

fn three_routing_panics_end_the_process(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let mut router = Router::start_with(lab, &star.rtr, &r(), ALLOWED);
    for n in 1..=3 {
        router.control().expect_ok(&json!({ "panic": "routing" }));
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

fn supervisor_panic_ends_the_process(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let mut router = Router::start_with(lab, &star.rtr, &r(), ALLOWED);
    router.control().expect_ok(&json!({ "panic": "keeper" }));
    assert_eq!(router.program.wait().code(), Some(1));
    assert!(!router.socket.exists());
}

fn panic_command_requires_environment_variable(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(lab, &star.rtr, &r());
    let refused = router.control().request(&json!({ "panic": "routing" }));
    assert!(refused.is_err_and(|e| e.contains("MCASTOR_TEST_PANIC")));
}
