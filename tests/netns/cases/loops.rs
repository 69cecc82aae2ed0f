//! Loops that the TTL does not end.

use std::time::Duration;

use super::{cases, route};
use crate::lab::ns::ip_batch;
use crate::lab::{Capture, Injector, Lab, Ns, Router, Star, Udp, eventually, wait_until};

cases!("loops":
    a_packet_passes_a_ring_once_with_keep,
    a_packet_passes_a_ring_once_with_set,
    without_the_guard_it_goes_round_for_ever,
    decrementing_ends_a_loop_by_itself,
    equal_packets_that_are_meant_pass,
);

const GROUP: &str = "225.1.2.3";
const DST: &str = "225.1.2.3:5000";

/// in -> one:va -> vb:two:vc -> vd:one:va -> ...
struct Ring {
    star: Star,
    two: Ns,
    one_router: Router,
    two_router: Router,
}

impl Ring {
    fn new(lab: &Lab, extra: &str) -> Self {
        let star = Star::v4(lab, 0);
        let two = lab.ns("two");
        two.sysctl("net/ipv6/conf/default/disable_ipv6", "1");
        let (r, t) = (star.rtr.name(), two.name());
        let links = format!(
            "link add va netns {r} type veth peer name vb netns {t}\n\
             link add vd netns {r} type veth peer name vc netns {t}\n"
        );
        ip_batch(&[], &links).expect("links");
        two.ip_batch("link set vb up\nlink set vc up\n");
        star.rtr.ip_batch("link set va up\nlink set vd up\n");
        let toml = route("enters", "in", "", GROUP, &["va"], extra)
            + &route("returns", "vd", "", GROUP, &["va"], extra);
        let one_router = Router::start(lab, &star.rtr, &toml);
        let toml = route("crosses", "vb", "", GROUP, &["vc"], extra);
        let two_router = Router::start(lab, &two, &toml);
        Self {
            star,
            two,
            one_router,
            two_router,
        }
    }

    fn send(&self, n: u16) {
        let frame = Udp::new("10.0.0.10:9", DST, n.to_be_bytes()).id(n).frame();
        Injector::new(&self.star.src, "eth0").send(&frame);
    }
}

fn once(lab: &Lab, ttl: &str) {
    let ring = Ring::new(lab, ttl);
    let lap = Capture::new(&ring.two, "vb");
    (0..200).for_each(|n| ring.send(n));
    ring.one_router.expect_dropped("loop", "vd", 200);
    lap.expect(GROUP, 200);
    ring.two_router.expect_routed("crosses", "vc", 200);
    ring.one_router.expect_routed("enters", "va", 200);
    ring.one_router.expect_routed("returns", "va", 0);
}

fn a_packet_passes_a_ring_once_with_keep(lab: &Lab) {
    once(lab, "ttl = \"keep\"\n");
}

fn a_packet_passes_a_ring_once_with_set(lab: &Lab) {
    once(lab, "ttl = { set = 8 }\n");
}

fn without_the_guard_it_goes_round_for_ever(lab: &Lab) {
    let ring = Ring::new(lab, "ttl = { set = 8 }\nloop_guard = false\n");
    let lap = Capture::new(&ring.two, "vb");
    ring.send(1);
    let round = wait_until(Duration::from_secs(10), || lap.to(GROUP).len() > 256);
    ring.two.ip("link set vc down");
    assert!(
        round,
        "{} laps: more than any TTL allows",
        lap.to(GROUP).len()
    );
    ring.one_router
        .expect_metric("mcastor_dropped_packets_total", &[("reason", "loop")], 0);
}

fn decrementing_ends_a_loop_by_itself(lab: &Lab) {
    let ring = Ring::new(lab, "");
    let lap = Capture::new(&ring.two, "vb");
    ring.send(1);
    eventually("its TTL ran out", 1, || {
        let expired = |r: &Router| {
            r.metric(
                "mcastor_dropped_packets_total",
                &[("reason", "ttl_expired")],
            )
        };
        (expired(&ring.one_router) + expired(&ring.two_router)) as u64
    });
    lap.expect(GROUP, 8);
}

fn equal_packets_that_are_meant_pass(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(
        lab,
        &star.rtr,
        &route("r", "in", "", GROUP, &["out1"], "ttl = \"keep\"\n"),
    );
    let capture = Capture::new(&star.rcv, "eth1");
    let inject = Injector::new(&star.src, "eth0");
    let heartbeat = Udp::new("10.0.0.10:9", DST, "alive").frame();
    for n in 1..=4 {
        inject.send(&heartbeat);
        capture.expect(GROUP, n);
        // The pause is what is tested.
        std::thread::sleep(Duration::from_millis(600));
    }
    router.expect_metric("mcastor_dropped_packets_total", &[("reason", "loop")], 0);
    (0..3).for_each(|_| inject.send(&heartbeat));
    router.expect_dropped("loop", "in", 2);
    capture.expect(GROUP, 5);
}
