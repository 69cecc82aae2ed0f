//! Tests of the harness against the kernel's multicast router: its senders, receivers, captures and
//! byte checks must accept correct forwarding by another implementation.

use super::cases;
use crate::lab::router::KernelRouter;
use crate::lab::{Capture, Injector, Lab, Star, Udp, UdpRx, UdpTx};

cases!("harness":
    #[Program("smcrouted", "smcroute")] #[KernelMroute] harness_checks_hold_for_kernel_routing_v4,
    #[Program("smcrouted", "smcroute")] #[KernelMroute] harness_checks_hold_for_kernel_routing_v6,
    #[Program("smcrouted", "smcroute")] #[KernelMroute] harness_checks_hold_for_kernel_fan_out,
);

const CONF: &str = "\
phyint in enable ttl-threshold 1
phyint out1 enable ttl-threshold 1
phyint out2 enable ttl-threshold 1
mroute from in source 10.0.0.10 group 225.1.2.3 to out1 out2
mroute from in source fd00:0::10 group ff3e::1:2 to out1 out2
";

fn harness_checks_hold_for_kernel_routing_v4(lab: &Lab) {
    let star = Star::v4(lab, 2);
    let _router = KernelRouter::start(lab, &star.rtr, CONF);
    let (rx, cap) = (
        UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000"),
        Capture::new(&star.rcv, "eth1"),
    );
    UdpTx::new(&star.src, "eth0", "225.1.2.3:5000").send("kernel to kernel");
    let sent = Udp::new("10.0.0.10:9", "225.1.2.3:5000", "raw")
        .ttl(7)
        .tos(0x28)
        .frame();
    Injector::new(&star.src, "eth0").send(&sent);
    rx.expect_texts(&["kernel to kernel", "raw"]);
    let seen = cap.expect("225.1.2.3", 2);
    assert_eq!(
        (
            seen[1].ttl,
            seen[1].tos,
            seen[1].header_ok,
            seen[1].udp_ok()
        ),
        (6, 0x28, true, true)
    );
    let sent = crate::lab::IpPacket::parse(&sent).expect("a packet");
    assert!(sent.header_ok && sent.udp_ok());
    assert_eq!(
        seen[1].without_ttl_and_checksum(),
        sent.without_ttl_and_checksum()
    );
}

fn harness_checks_hold_for_kernel_routing_v6(lab: &Lab) {
    let star = Star::dual(lab, 2);
    let _router = KernelRouter::start(lab, &star.rtr, CONF);
    let (rx, cap) = (
        UdpRx::join(&star.rcv, "eth2", "[ff3e::1:2]:5000"),
        Capture::new(&star.rcv, "eth2"),
    );
    UdpTx::new(&star.src, "eth0", "[ff3e::1:2]:5000").send("kernel to kernel");
    let sent = Udp::new("[fd00:0::10]:9", "[ff3e::1:2]:5000", "raw")
        .ttl(7)
        .tos(0x28)
        .frame();
    Injector::new(&star.src, "eth0").send(&sent);
    rx.expect_texts(&["kernel to kernel", "raw"]);
    let seen = cap.expect("ff3e::1:2", 2);
    assert_eq!(
        (seen[1].ttl, seen[1].tos, seen[1].udp_ok()),
        (6, 0x28, true)
    );
    assert_eq!(
        seen[1].without_ttl_and_checksum(),
        crate::lab::IpPacket::parse(&sent)
            .expect("a packet")
            .without_ttl_and_checksum()
    );
}

fn harness_checks_hold_for_kernel_fan_out(lab: &Lab) {
    let star = Star::v4(lab, 8);
    let mut conf = String::from("phyint in enable ttl-threshold 1\n");
    let mut route = String::from("mroute from in source 10.0.0.10 group 225.1.2.3 to");
    for n in 1..=8 {
        conf += &format!("phyint out{n} enable ttl-threshold 1\n");
        route += &format!(" out{n}");
    }
    let _router = KernelRouter::start(lab, &star.rtr, &(conf + &route + "\n"));
    let rx: Vec<_> = (1..=8)
        .map(|n| UdpRx::join(&star.rcv, &format!("eth{n}"), "225.1.2.3:5000"))
        .collect();
    let tx = UdpTx::new(&star.src, "eth0", "225.1.2.3:5000");
    (0..50).for_each(|n| tx.send(format!("{n}")));
    for rx in rx {
        rx.expect(50);
    }
}
