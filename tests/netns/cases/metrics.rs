//! Counters that match the packets on the wire exactly.

use super::{PACKET_PLANE, cases, route, star_v4};
use crate::lab::{Capture, Injector, IpPacket, Lab, Router, Star, Udp, UdpRx, UdpTx, eventually};

cases!("metrics":
    packet_and_byte_counters_are_exact,
    metric_names_types_and_labels_are_valid,
    latency_histogram_counts_every_packet,
    interface_counters_match_traffic,
    unnamed_routes_get_default_names,
    socket_overflow_drops_are_counted,
    down_egress_is_not_counted_as_sent,
    backlog_drops_match_softnet_stat,
);

fn packet_and_byte_counters_are_exact(lab: &Lab) {
    let star = Star::dual(lab, 2);
    let toml = route("r", "in", "", "225.1.2.3", &["out1", "out2"], "")
        + &route("r6", "in", "", "ff3e::1:2", &["out2"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    let captures = ["eth1", "eth2"].map(|i| Capture::new(&star.rcv, i));
    let (tx, tx6) = (
        UdpTx::new(&star.src, "eth0", "225.1.2.3:5000"),
        UdpTx::new(&star.src, "eth0", "[ff3e::1:2]:5000"),
    );
    for n in 0..500 {
        tx.send(vec![4; n]);
        tx6.send(vec![6; 2 * n]);
    }
    router.expect_routed("r", "out1", 500);
    router.expect_routed("r", "out2", 500);
    router.expect_routed("r6", "out2", 500);
    let bytes = |capture: &Capture, group: &str| -> u64 {
        capture
            .expect(group, 500)
            .iter()
            .map(|s: &IpPacket| s.ip.len() as u64)
            .sum()
    };
    let metrics = router.metrics();
    for (name, oif, expected) in [
        ("r", "out1", bytes(&captures[0], "225.1.2.3")),
        ("r", "out2", bytes(&captures[1], "225.1.2.3")),
        ("r6", "out2", bytes(&captures[1], "ff3e::1:2")),
    ] {
        let labels = [("route", name), ("iif", "in"), ("oif", oif)];
        assert_eq!(
            metrics.sum("mcastor_route_packets_total", &labels),
            500.0,
            "{labels:?}"
        );
        assert_eq!(
            metrics.sum("mcastor_route_bytes_total", &labels),
            expected as f64,
            "{labels:?}"
        );
    }
    assert_eq!(
        bytes(&captures[0], "225.1.2.3"),
        500 * 28 + 499 * 250,
        "bytes of IP packets, without link header"
    );
}

fn metric_names_types_and_labels_are_valid(lab: &Lab) {
    let (star, router) = star_v4(lab, 1);
    let rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.3:5000");
    let tx = UdpTx::new(&star.src, "eth0", "225.1.2.3:5000");
    tx.send("x");
    rx.expect(1);
    router.expect_routed("r", "out1", 1);
    tx.ttl(1);
    tx.send("y");
    router.expect_dropped("ttl_expired", "in", 1);
    let answer = router.get("/metrics").expect("/metrics");
    assert!(
        answer.head.contains("content-type: text/plain"),
        "{}",
        answer.head
    );
    let metrics = router.metrics();
    for (name, kind, labels) in [
        (
            "mcastor_route_packets_total",
            "counter",
            &["route", "iif", "oif", "plane"][..],
        ),
        (
            "mcastor_route_bytes_total",
            "counter",
            &["route", "iif", "oif", "plane"],
        ),
        (
            "mcastor_dropped_packets_total",
            "counter",
            &["reason", "iface"],
        ),
        (
            "mcastor_socket_dropped_packets_total",
            "counter",
            &["iface"],
        ),
        ("mcastor_build_info", "gauge", &["version", "revision"]),
        ("process_cpu_seconds_total", "counter", &[]),
        ("process_start_time_seconds", "gauge", &[]),
        ("process_resident_memory_bytes", "gauge", &[]),
        ("process_open_fds", "gauge", &[]),
        ("mcastor_forward_latency_seconds", "histogram", &[]),
    ] {
        assert_eq!(
            metrics.types.get(name).map(String::as_str),
            Some(kind),
            "type of {name}"
        );
        assert!(metrics.helped.iter().any(|n| n == name), "help of {name}");
        let suffix = if kind == "histogram" { "_count" } else { "" };
        let series = format!("{name}{suffix}");
        let sample = metrics
            .matching(&series, &[])
            .next()
            .unwrap_or_else(|| panic!("no series of {name}"));
        for label in labels {
            assert!(
                sample.labels.contains_key(*label),
                "{name} has no label {label}: {sample:?}"
            );
        }
    }
    assert_eq!(
        metrics.sum(
            "mcastor_build_info",
            &[("version", env!("CARGO_PKG_VERSION"))]
        ),
        1.0
    );
    let statm = router.program.rss() as f64;
    let resident = metrics.sum("process_resident_memory_bytes", &[]);
    assert!(
        (0.5..2.0).contains(&(resident / statm)),
        "{resident} {statm}"
    );
    assert!(
        metrics
            .types
            .keys()
            .any(|n| n.starts_with("mcastor_interface_"))
    );
    for (name, kind) in &metrics.types {
        assert_eq!(
            name.ends_with("_total"),
            kind == "counter",
            "{name} is a {kind}"
        );
        assert!(metrics.helped.contains(name), "{name} has no help");
        assert!(!name.ends_with("_total_total"), "{name}");
    }
    let mut seen = std::collections::HashSet::new();
    for sample in &metrics.samples {
        assert!(
            seen.insert((&sample.name, &sample.labels)),
            "duplicate series: {sample:?}"
        );
    }
}

fn latency_histogram_counts_every_packet(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let routes = route("r", "in", "", "225.1.2.3", &["out1"], "");
    let router = Router::start(lab, &star.rtr, &(String::from(PACKET_PLANE) + &routes));
    let tx = UdpTx::new(&star.src, "eth0", "225.1.2.3:5000");
    (0..200).for_each(|_| tx.send("x"));
    router.expect_routed("r", "out1", 200);
    router.expect_metric("mcastor_forward_latency_seconds_count", &[], 200);
    let metrics = router.metrics();
    let top = metrics.sum("mcastor_forward_latency_seconds_bucket", &[("le", "+Inf")]);
    assert_eq!(top, 200.0);
    let buckets: Vec<f64> = metrics
        .matching("mcastor_forward_latency_seconds_bucket", &[])
        .map(|s| s.value)
        .collect();
    assert!(buckets.is_sorted(), "cumulative: {buckets:?}");
    let sum = metrics.sum("mcastor_forward_latency_seconds_sum", &[]);
    assert!(sum > 0.0 && sum < 200.0 * 5.0, "seconds: {sum}");
}

fn interface_counters_match_traffic(lab: &Lab) {
    let (star, router) = star_v4(lab, 1);
    let inject = Injector::new(&star.src, "eth0");
    for group in ["225.1.2.3:5000", "225.1.2.4:5000"] {
        (0..30).for_each(|_| inject.send(&Udp::new("10.0.0.10:9", group, "x").frame()));
    }
    router.expect_routed("r", "out1", 30);
    router.expect_dropped("no_route", "in", 30);
    let metrics = router.metrics();
    let has_value = |iface: &str, value: f64| {
        metrics.samples.iter().any(|s| {
            s.name.starts_with("mcastor_interface_")
                && s.value == value
                && s.labels.values().any(|l| l == iface)
        })
    };
    assert!(
        has_value("in", 60.0),
        "received packets:\n{}",
        metrics.show("mcastor_interface_")
    );
    assert!(
        has_value("out1", 30.0),
        "transmitted packets:\n{}",
        metrics.show("mcastor_interface_")
    );
}

fn unnamed_routes_get_default_names(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let toml = "[[route]]\nfrom = \"in\"\nsource = \"10.0.0.10\"\ngroup = \"225.1.2.3\"\nto = [\"out1\"]\n\
                [[route]]\nfrom = \"in\"\ngroup = \"225.1.3.0/24\"\nto = [\"out1\"]\n";
    let router = Router::start(lab, &star.rtr, toml);
    let inject = Injector::new(&star.src, "eth0");
    inject.send(&Udp::new("10.0.0.10:9", "225.1.2.3:5000", "x").frame());
    inject.send(&Udp::new("10.0.0.10:9", "225.1.3.3:5000", "x").frame());
    router.expect_routed("in (10.0.0.10, 225.1.2.3)", "out1", 1);
    router.expect_routed("in (*, 225.1.3.0/24)", "out1", 1);
}

/// While the router is stopped, the kernel drops packets and counts them.
fn socket_overflow_drops_are_counted(lab: &Lab) {
    const BURST: u64 = 150_000;
    let star = Star::v4(lab, 1);
    let mut router = Router::start(
        lab,
        &star.rtr,
        // No join: its reports would be among the dropped packets.
        &route("r", "in", "", "225.1.2.3", &["out1"], "join = false\n"),
    );
    let inject = Injector::new(&star.src, "eth0");
    let frame = Udp::new("10.0.0.10:9", "225.1.2.3:5000", vec![0; 1400]).frame();
    router.program.signal(libc::SIGSTOP);
    (0..BURST).for_each(|_| inject.send(&frame));
    router.program.signal(libc::SIGCONT);
    let parts = || {
        let m = router.metrics();
        [
            m.sum("mcastor_route_packets_total", &[]) as u64,
            m.sum("mcastor_dropped_packets_total", &[]) as u64,
            m.sum("mcastor_socket_dropped_packets_total", &[("iface", "in")]) as u64,
        ]
    };
    eventually("routed, dropped and socket drops together", BURST, || {
        parts().iter().sum()
    });
    let [routed, _, lost] = parts();
    assert!(routed > 0 && lost > 0, "routed {routed}, lost {lost}");
}

fn down_egress_is_not_counted_as_sent(lab: &Lab) {
    let (star, router) = star_v4(lab, 2);
    let (one, two) = (
        Capture::new(&star.rcv, "eth1"),
        Capture::new(&star.rcv, "eth2"),
    );
    let tx = UdpTx::new(&star.src, "eth0", "225.1.2.3:5000");
    (0..10).for_each(|_| tx.send("x"));
    one.expect("225.1.2.3", 10);
    star.rtr.ip("link set out1 down");
    (0..10).for_each(|_| tx.send("x"));
    two.expect("225.1.2.3", 20);
    router.expect_routed("r", "out2", 20);
    router.expect_routed("r", "out1", 10);
    assert_eq!(one.to("225.1.2.3").len(), 10);
}

/// The counter covers the whole machine; parallel tests may increase it.
fn backlog_drops_match_softnet_stat(lab: &Lab) {
    let kernel = || -> u64 {
        let text = std::fs::read_to_string("/proc/net/softnet_stat").expect("softnet_stat");
        let dropped = |line: &str| u64::from_str_radix(line.split(' ').nth(1).unwrap(), 16);
        text.lines().map(|line| dropped(line).unwrap()).sum()
    };
    let star = Star::v4(lab, 1);
    let rule = route("r", "in", "", "225.1.2.3", &["out1"], "");
    let router = Router::start(lab, &star.rtr, &rule);
    let shown = || router.metric("mcastor_backlog_dropped_packets_total", &[]) as u64;
    eventually("the counter matches the kernel's", true, || {
        let (before, shown, after) = (kernel(), shown(), kernel());
        (before..=after).contains(&shown)
    });
}
