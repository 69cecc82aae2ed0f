//! `mcastor send`, `recv` and `demo` from the command line.

use super::{PACKET_PLANE, cases, route, star_v4};
use crate::lab::router::BINARY;
use crate::lab::{Injector, Lab, Program, Router, Star, TIMEOUT, Udp, UdpRx, wait_until};

cases!("traffic_tools":
    send_reaches_recv_through_router_v4,
    send_reaches_recv_through_router_v6,
    gso_send_reaches_recv_through_router,
    recv_reports_loss,
    recv_notes_an_interface_without_address,
    #[Demo] demo_exits_cleanly_and_removes_its_namespaces,
    #[Demo] interrupted_demo_removes_its_namespaces,
    rate_changes_keep_count_and_order,
    short_stall_loses_no_packet,
    burst_after_silence_loses_no_packet,
);

/// Runs `send` and `recv` with a router between them; returns the report of `recv`.
fn send_through_router(lab: &Lab, group: &str, send: &[&str]) -> (serde_json::Value, bool, Router) {
    let star = Star::dual(lab, 1);
    let router = Router::start(lab, &star.rtr, &route("r", "in", "", group, &["out1"], ""));
    let args = [
        "recv",
        "--interface",
        "eth1",
        "--group",
        group,
        "--json",
        "--seconds",
        "20",
    ];
    let mut recv = star.rcv.spawn(lab, BINARY, &args);
    assert!(
        wait_until(TIMEOUT, || recv.stderr().contains("joined")),
        "{}",
        recv.stderr()
    );
    let args = [&["send", "--interface", "eth0", "--group", group][..], send].concat();
    let out = star.src.output(BINARY, &args);
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let status = recv.wait();
    let report =
        serde_json::from_str(&recv.stdout()).unwrap_or_else(|e| panic!("{e}: {}", recv.stdout()));
    (report, status.success(), router)
}

fn send_reaches_recv_through_router_v4(lab: &Lab) {
    let (report, ok, router) =
        send_through_router(lab, "225.1.2.3", &["--count", "500", "--rate", "2000"]);
    assert!(
        ok && report["received"] == 500 && report["lost"] == 0,
        "{report}"
    );
    router.expect_routed("r", "out1", 500);
}

fn send_reaches_recv_through_router_v6(lab: &Lab) {
    let (report, ok, router) =
        send_through_router(lab, "ff3e::1:2", &["--count", "500", "--rate", "2000"]);
    assert!(
        ok && report["received"] == 500 && report["lost"] == 0,
        "{report}"
    );
    router.expect_routed("r", "out1", 500);
}

fn gso_send_reaches_recv_through_router(lab: &Lab) {
    let (report, ok, router) = send_through_router(
        lab,
        "225.1.2.3",
        &[
            "--count", "640", "--rate", "5000", "--gso", "16", "--size", "1000",
        ],
    );
    assert!(
        ok && report["received"] == 640 && report["lost"] == 0,
        "{report}"
    );
    router.expect_routed("r", "out1", 640);
}

fn recv_notes_an_interface_without_address(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let ns = &star.rcv;
    ns.ip("link add bare type veth peer name other");
    ns.ip("link set other up");
    ns.ip("link set bare up");
    for (interface, filter, is_noted) in [
        ("bare", "1", true),
        ("bare", "0", false),
        ("eth1", "1", false),
    ] {
        ns.sysctl("net/ipv4/conf/all/rp_filter", "0");
        ns.sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), filter);
        let words = format!("recv --interface {interface} --group 225.1.2.3 --seconds 0.1");
        let out = ns.output(BINARY, &words.split(' ').collect::<Vec<_>>());
        let stderr = String::from_utf8_lossy(&out.stderr);
        let note =
            "note: bare has no IPv4 address and its rp_filter is 1, so the kernel drops packets";
        assert_eq!(
            stderr.contains(note),
            is_noted,
            "{interface} {filter}: {stderr}"
        );
    }
}

fn recv_reports_loss(lab: &Lab) {
    let (star, _router) = star_v4(lab, 1);
    let args = [
        "recv",
        "--interface",
        "eth1",
        "--group",
        "225.1.2.3",
        "--json",
        "--idle",
        "1",
    ];
    let mut recv = star.rcv.spawn(lab, BINARY, &args);
    assert!(
        wait_until(TIMEOUT, || recv.stderr().contains("joined")),
        "{}",
        recv.stderr()
    );
    let args = [
        "send",
        "--interface",
        "eth0",
        "--group",
        "225.1.2.3",
        "--ttl",
        "1",
        "--count",
        "20",
        "--rate",
        "1000",
    ];
    assert!(star.src.output(BINARY, &args).status.success());
    assert_eq!(
        recv.wait().code(),
        Some(1),
        "packets arrived: {}",
        recv.stdout()
    );
}

/// Returns the links of a namespace, and the namespaces of the machine that are not of these tests.
fn links_and_namespaces(star: &crate::lab::Ns) -> (String, Vec<String>) {
    let links = star.try_ip("-o link show").expect("ip link");
    let spaces = std::fs::read_dir("/run/netns").map(|d| {
        let names = d.flatten().filter_map(|e| e.file_name().into_string().ok());
        names.filter(|n| !n.starts_with("mcl-")).collect()
    });
    (links, spaces.unwrap_or_default())
}

fn demo(lab: &Lab, args: &[&str]) -> (Program, crate::lab::Ns) {
    let ns = lab.ns("a");
    let program = ns.spawn(lab, BINARY, &[&["demo"], args].concat());
    (program, ns)
}

fn demo_exits_cleanly_and_removes_its_namespaces(lab: &Lab) {
    let before = links_and_namespaces(&lab.ns("b"));
    let (mut program, ns) = demo(lab, &["--seconds", "2"]);
    let status = program.wait();
    assert_eq!(status.code(), Some(0), "{}", program.stdout());
    let printed = program.stdout() + &program.stderr();
    assert!(
        ["sent", "forwarded", "received", "lost"]
            .iter()
            .all(|w| printed.to_lowercase().contains(w)),
        "{printed}"
    );
    assert_eq!(links_and_namespaces(&ns), before);
}

fn interrupted_demo_removes_its_namespaces(lab: &Lab) {
    let before = links_and_namespaces(&lab.ns("b"));
    let (mut program, ns) = demo(lab, &["--seconds", "60"]);
    wait_until(TIMEOUT, || !program.stdout().is_empty());
    let pid = program.pid();
    program.stop(libc::SIGINT, TIMEOUT);
    assert_eq!(links_and_namespaces(&ns), before);
    let children = std::fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .filter(|e| {
            let stat = std::fs::read_to_string(e.path().join("stat")).unwrap_or_default();
            let after = stat.rsplit(')').next().unwrap_or_default();
            after.split_whitespace().nth(1) == Some(&pid.to_string())
        });
    assert_eq!(
        children.count(),
        0,
        "children of the demo are still running"
    );
}

/// The plane adapts its capture mode to the rate. Every packet is counted and in order.
fn rate_changes_keep_count_and_order(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(
        lab,
        &star.rtr,
        // No join: its reports would be among the dropped packets.
        &(String::from(PACKET_PLANE)
            + &route("r", "in", "", "225.1.2.3", &["out1"], "join = false\n")),
    );
    let rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    let inject = Injector::new(&star.src, "eth0");
    let mut sent = 0u32;
    let mut send = |n: u32, pause: std::time::Duration| {
        for _ in 0..n {
            inject.send(&Udp::new("10.0.0.10:9", "225.1.2.3:5000", sent.to_be_bytes()).frame());
            sent += 1;
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
        }
    };
    for _ in 0..3 {
        send(30, std::time::Duration::from_millis(3));
        send(10_000, std::time::Duration::ZERO);
    }
    send(30, std::time::Duration::from_millis(3));
    let counts = || {
        let m = router.metrics();
        let sum = |name: &str| m.sum(name, &[]) as u64;
        (
            sum("mcastor_route_packets_total"),
            sum("mcastor_dropped_packets_total"),
            sum("mcastor_socket_dropped_packets_total"),
        )
    };
    crate::lab::eventually("every packet is counted", u64::from(sent), || {
        let (routed, dropped, lost) = counts();
        routed + dropped + lost
    });
    let routed = counts().0 as usize;
    let got = rx.expect(routed);
    let numbers: Vec<u32> = got
        .iter()
        .map(|p| u32::from_be_bytes(p[..4].try_into().expect("four bytes")))
        .collect();
    assert!(
        numbers.windows(2).all(|w| w[0] < w[1]),
        "duplicates, or out of order"
    );
    assert_eq!(
        numbers.last(),
        Some(&(sent - 1)),
        "the last packet is missing"
    );
}

/// A busy machine sometimes suspends a process for some milliseconds. At a low rate, the capture
/// buffers the few packets that arrive in this time.
fn short_stall_loses_no_packet(lab: &Lab) {
    let (star, mut router) = star_v4(lab, 1);
    let rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    let inject = Injector::new(&star.src, "eth0");
    let frame = Udp::new("10.0.0.10:9", "225.1.2.3:5000", "x").frame();
    for stall in 1..=3 {
        router.program.signal(libc::SIGSTOP);
        for _ in 0..100 {
            inject.send(&frame);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        router.program.signal(libc::SIGCONT);
        rx.expect(100 * stall);
    }
    router.expect_routed("r", "out1", 300);
}

/// The packets of a few video frames arrive at once and are forwarded to four egresses.
fn burst_after_silence_loses_no_packet(lab: &Lab) {
    let star = Star::v4(lab, 4);
    let router = Router::start(
        lab,
        &star.rtr,
        &route("r", "in", "", "225.1.2.3", &["out*"], ""),
    );
    let rx: Vec<_> = (1..=4)
        .map(|n| UdpRx::join(&star.rcv, &format!("eth{n}"), "225.1.2.3:5000"))
        .collect();
    let inject = Injector::new(&star.src, "eth0");
    let frame = Udp::new("10.0.0.10:9", "225.1.2.3:5000", [0; 1400]).frame();
    for burst in 1..=5 {
        (0..1000).for_each(|_| inject.send(&frame));
        rx.iter().for_each(|rx| drop(rx.expect(1000 * burst)));
    }
    router.expect_metric("mcastor_route_packets_total", &[], 20_000);
}
