//! Checksums that the sender left to hardware which is not there.

use super::{cases, route};
use crate::lab::ns::ip_batch;
use crate::lab::{Capture, Injector, Lab, Router, Star, Udp, UdpRx, UdpTx};

cases!("checksums":
    every_receiver_accepts_v4,
    every_receiver_accepts_v6,
    from_a_bridge,
    zero_stays_zero,
    wrong_stays_wrong,
    #[Program("ethtool", "ethtool")] offloads_are_left_alone,
);

const PACKETS: usize = 1199;

fn accepted(star: &Star, router: &Router, to: &str, group: &str) {
    let rx: Vec<_> = ["eth1", "eth2"]
        .map(|i| UdpRx::join(&star.rcv, i, to))
        .into();
    let (at_in, at_out) = (
        Capture::new(&star.rtr, "in"),
        Capture::new(&star.rcv, "eth1"),
    );
    let tx = UdpTx::new(&star.src, "eth0", to);
    // Odd and even sizes: the last byte of an odd one is summed on its own.
    (0..PACKETS).for_each(|n| tx.send(vec![n as u8; n]));
    for rx in &rx {
        let got = rx.expect(PACKETS);
        assert!(
            got.iter().enumerate().all(|(n, p)| *p == vec![n as u8; n]),
            "in order and whole"
        );
    }
    let unfinished = at_in.frames().iter().filter(|f| f.csum_not_ready).count();
    assert!(
        unfinished >= PACKETS,
        "{unfinished} packets came with their checksum left to hardware"
    );
    assert!(
        at_out.expect(group, PACKETS).iter().all(|s| s.udp_ok()),
        "finished on the wire"
    );
    router.expect_metric(
        "mcastor_route_packets_total",
        &[("oif", "out1")],
        PACKETS as u64,
    );
    router.expect_metric(
        "mcastor_route_packets_total",
        &[("oif", "out2")],
        PACKETS as u64,
    );
}

fn every_receiver_accepts_v4(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let router = Router::start(
        lab,
        &star.rtr,
        &route("r", "in", "", "225.1.2.3", &["out1", "out2"], ""),
    );
    accepted(&star, &router, "225.1.2.3:5000", "225.1.2.3");
}

fn every_receiver_accepts_v6(lab: &Lab) {
    let star = Star::dual(lab, 2);
    let router = Router::start(
        lab,
        &star.rtr,
        &route("r", "in", "", "ff3e::1:2", &["out1", "out2"], ""),
    );
    accepted(&star, &router, "[ff3e::1:2]:5000", "ff3e::1:2");
}

/// As Docker has it: the sender in a container, the router on the host, a bridge between.
fn from_a_bridge(lab: &Lab) {
    let star = Star::v4(lab, 1);
    star.rtr.ip_batch(
        "link add br-0123456789ab type bridge\nlink set br-0123456789ab up\nlink set in master br-0123456789ab\n",
    );
    let router = Router::start(
        lab,
        &star.rtr,
        &route("r", "br-*", "", "225.1.2.3", &["out1"], ""),
    );
    let rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    let tx = UdpTx::new(&star.src, "eth0", "225.1.2.3:5000");
    (0..PACKETS).for_each(|n| tx.send(vec![7; n]));
    rx.expect(PACKETS);
    let labels = [("iif", "br-0123456789ab"), ("oif", "out1")];
    router.expect_metric("mcastor_route_packets_total", &labels, PACKETS as u64);
}

fn zero_stays_zero(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(
        lab,
        &star.rtr,
        &route("r", "in", "", "225.1.2.3", &["out1"], ""),
    );
    let (rx, capture) = (
        UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000"),
        Capture::new(&star.rcv, "eth1"),
    );
    let frame = Udp::new("10.0.0.10:9", "225.1.2.3:5000", "raw")
        .zero_checksum()
        .frame();
    Injector::new(&star.src, "eth0").send(&frame);
    rx.expect_texts(&["raw"]);
    let tx = UdpTx::new(&star.src, "eth0", "225.1.2.3:5000");
    tx.set(libc::SOL_SOCKET, libc::SO_NO_CHECK, 1);
    tx.send("kernel");
    rx.expect_texts(&["raw", "kernel"]);
    assert!(
        capture
            .expect("225.1.2.3", 2)
            .iter()
            .all(|s| s.udp_sum() == 0)
    );
    router.expect_routed("r", "out1", 2);
}

/// A router does not mend what the sender got wrong: the receiver is to notice.
fn wrong_stays_wrong(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(
        lab,
        &star.rtr,
        &route("r", "in", "", "225.1.2.3", &["out1"], ""),
    );
    let capture = Capture::new(&star.rcv, "eth1");
    let mut frame = Udp::new("10.0.0.10:9", "225.1.2.3:5000", "broken on the way").frame();
    *frame.last_mut().expect("bytes") ^= 1;
    Injector::new(&star.src, "eth0").send(&frame);
    let seen = capture.expect("225.1.2.3", 1);
    assert_eq!(
        seen[0].untouchable(),
        crate::lab::Seen::read(&frame).expect("whole").untouchable()
    );
    assert!(!seen[0].udp_ok());
    router.expect_routed("r", "out1", 1);
}

fn offloads_are_left_alone(lab: &Lab) {
    let star = Star::v4(lab, 1);
    ip_batch(&["-n", star.rtr.name()], "link set in up\n").unwrap_or_else(|e| panic!("{e}"));
    let features = || -> String {
        ["in", "out1"]
            .map(|i| {
                String::from_utf8_lossy(&star.rtr.output("ethtool", &["-k", i]).stdout).into_owned()
            })
            .concat()
    };
    let before = features();
    assert!(before.contains("tx-checksumming: on"), "{before}");
    let router = Router::start(
        lab,
        &star.rtr,
        &route("r", "in", "", "225.1.2.3", &["out1"], ""),
    );
    let rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    UdpTx::new(&star.src, "eth0", "225.1.2.3:5000").send("x");
    rx.expect_texts(&["x"]);
    assert_eq!(features(), before, "while it runs");
    router.stop();
    assert_eq!(features(), before, "after it ran");
}
