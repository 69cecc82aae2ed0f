//! Forwarding loops that the TTL does not end.

use std::time::Duration;

use super::{cases, route};
use crate::lab::{
    Capture, Injector, Lab, LinkEnd, Ns, Router, Star, Udp, connect_all, eventually, wait_until,
};

cases!("loops":
    ring_with_ttl_keep_forwards_packet_once,
    ring_with_ttl_set_forwards_packet_once,
    ring_without_loop_guard_loops,
    ttl_decrement_ends_a_loop,
    identical_packets_pass_after_a_pause,
    copies_on_another_route_stop_no_packet,
);

const GROUP: &str = "225.1.2.3";
const DST: &str = "225.1.2.3:5000";

/// A ring: in -> one:va -> vb:two:vc -> vd:one:va -> ...
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
        two.disable_ipv6();
        connect_all(&[
            (
                LinkEnd::new(&star.rtr, "va", &[]),
                LinkEnd::new(&two, "vb", &[]),
            ),
            (
                LinkEnd::new(&star.rtr, "vd", &[]),
                LinkEnd::new(&two, "vc", &[]),
            ),
        ]);
        // The active ingress alone would end the loop.
        let extra = &format!("ingress = \"all\"\n{extra}");
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

/// Checks that each packet passes the ring once and is then dropped as `loop`.
fn forwards_once(lab: &Lab, ttl: &str) {
    let ring = Ring::new(lab, ttl);
    let lap = Capture::new(&ring.two, "vb");
    (0..200).for_each(|n| ring.send(n));
    ring.one_router.expect_dropped("loop", "vd", 200);
    lap.expect(GROUP, 200);
    ring.two_router.expect_routed("crosses", "vc", 200);
    ring.one_router.expect_routed("enters", "va", 200);
    ring.one_router.expect_routed("returns", "va", 0);
}

fn ring_with_ttl_keep_forwards_packet_once(lab: &Lab) {
    forwards_once(lab, "ttl = \"keep\"\n");
}

fn ring_with_ttl_set_forwards_packet_once(lab: &Lab) {
    forwards_once(lab, "ttl = { set = 8 }\n");
}

fn ring_without_loop_guard_loops(lab: &Lab) {
    let ring = Ring::new(lab, "ttl = { set = 8 }\nloop_guard = false\n");
    let lap = Capture::new(&ring.two, "vb");
    ring.send(1);
    let looped = wait_until(Duration::from_secs(10), || lap.to(GROUP).len() > 256);
    ring.two.ip("link set vc down");
    assert!(
        looped,
        "{} laps, not more than any TTL allows",
        lap.to(GROUP).len()
    );
    ring.one_router
        .expect_metric("mcastor_dropped_packets_total", &[("reason", "loop")], 0);
}

fn ttl_decrement_ends_a_loop(lab: &Lab) {
    let ring = Ring::new(lab, "");
    let lap = Capture::new(&ring.two, "vb");
    ring.send(1);
    eventually("the TTL expired", 1, || {
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

fn identical_packets_pass_after_a_pause(lab: &Lab) {
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
        // The loop guard forgets a packet during this pause.
        std::thread::sleep(Duration::from_millis(600));
    }
    router.expect_metric("mcastor_dropped_packets_total", &[("reason", "loop")], 0);
    (0..3).for_each(|_| inject.send(&heartbeat));
    router.expect_dropped("loop", "in", 2);
    capture.expect(GROUP, 5);
}

/// A station on a second link sends the packets of a sender before the sender does.
fn copies_on_another_route_stop_no_packet(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let extra = "ttl = \"keep\"\ningress = \"all\"\n";
    let toml = route("r", "in", "", GROUP, &["out1"], extra)
        + &route("other", "out2", "", GROUP, &["in"], extra);
    let router = Router::start(lab, &star.rtr, &toml);
    let capture = Capture::new(&star.rcv, "eth1");
    let (sender, station) = (
        Injector::new(&star.src, "eth0"),
        Injector::new(&star.rcv, "eth2"),
    );
    for n in 1..=8u16 {
        let heartbeat = Udp::new("10.0.0.10:9", DST, "alive").id(n).frame();
        station.send(&heartbeat);
        router.expect_routed("other", "in", n.into());
        sender.send(&heartbeat);
        capture.expect(GROUP, n.into());
    }
    router.expect_metric("mcastor_dropped_packets_total", &[("reason", "loop")], 0);
}
