//! `mcastor show drops`: which streams are dropped where and why, against the counters of metrics.

use std::time::Duration;

use serde_json::{Value, json};

use super::{cases, route};
use crate::lab::{Injector, Lab, Router, Star, Udp, eventually};

cases!("drops":
    drops_are_listed_by_stream_reason_and_interface,
    source_flood_keeps_large_streams_listed,
);

fn drops(router: &Router, words: &str) -> Vec<Value> {
    let text = router.run(&format!("show drops --json {words}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// Returns the packets of each row, by interface, reason and group.
fn rows(router: &Router) -> Vec<(String, String, String, u64)> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let all = drops(router, "");
    let mut rows: Vec<_> = all
        .iter()
        .map(|row| {
            let packets = row["packets"].as_u64().expect("a number");
            assert_eq!(
                (&row["last_minute"], &row["missed_at_most"]),
                (&json!(packets), &json!(0))
            );
            (
                text(&row["interface"]),
                text(&row["reason"]),
                text(&row["group"]),
                packets,
            )
        })
        // The kernel of the namespace sends reports of its own.
        .filter(|(_, _, group, _)| !group.starts_with("ff02:") && !group.starts_with("224.0.0."))
        .collect();
    rows.sort();
    rows
}

fn drops_are_listed_by_stream_reason_and_interface(lab: &Lab) {
    let star = Star::v4(lab, 3);
    star.rtr.ip("link set out2 mtu 600");
    star.rcv.ip("link set eth3 down");
    let toml = route("r", "in", "", "225.1.0.0/16", &["out1", "out2", "out3"], "")
        + "[[interface]]\nname = \"out1\"\nttl_threshold = 20\n";
    let router = Router::start(lab, &star.rtr, &toml);
    assert_eq!(router.run("show drops").trim(), "No packet was dropped.");
    let inject = Injector::new(&star.src, "eth0");
    let send = |count: usize, group: &str, ttl: u8, size: usize| {
        for n in 0..count {
            let payload = vec![n as u8; size - 28];
            let to = format!("{group}:5000");
            inject.send(&Udp::new("10.0.0.10:9", &to, payload).ttl(ttl).df().frame());
        }
    };
    send(30, "225.9.9.9", 64, 100);
    send(20, "225.1.1.1", 1, 100);
    send(10, "225.1.1.2", 9, 100);
    send(5, "225.1.1.3", 64, 1000);
    let mut short = Udp::new("10.0.0.10:9", "225.1.1.4:5000", [0; 100]).frame();
    short.truncate(14 + 15);
    (0..3).for_each(|_| inject.send(&short));
    let expected = |interface: &str, reason: &str, group: &str, packets| {
        (interface.into(), reason.into(), group.into(), packets)
    };
    let all = [
        expected("in", "no_route", "225.9.9.9", 30),
        expected("in", "truncated", "-", 3),
        expected("in", "ttl_expired", "225.1.1.1", 20),
        expected("out1", "ttl_threshold", "225.1.1.2", 10),
        expected("out2", "too_big", "225.1.1.3", 5),
        expected("out3", "egress_down", "225.1.1.2", 10),
        expected("out3", "egress_down", "225.1.1.3", 5),
    ];
    let mut all = all.to_vec();
    all.sort();
    eventually("the drops", all.clone(), || rows(&router));
    for (interface, reason, _, _) in &all {
        let of_reason = all
            .iter()
            .filter(|row| (&row.0, &row.1) == (interface, reason));
        let packets: u64 = of_reason.map(|row| row.3).sum();
        let labels = [("iface", interface.as_str()), ("reason", reason.as_str())];
        let counted = router.metric("mcastor_dropped_packets_total", &labels);
        assert_eq!(counted as u64, packets, "{interface} {reason}");
    }

    let first = &drops(&router, "--limit 1 --iif in")[0];
    assert_eq!(first["reason"], "no_route");
    assert_eq!(
        (&first["ttl"], &first["size"], &first["port"]),
        (&json!(64), &json!(100), &json!(5000))
    );
    assert_eq!(first["source"], "10.0.0.10");
    assert_eq!(drops(&router, "--group 225.1.1.3").len(), 2);
    let answer = router
        .get("/api/v1/drops?limit=1&iif=out2")
        .expect("an answer");
    let answer: Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!(answer["show"]["drops"][0]["reason"], "too_big");

    let printed = router.run("show drops");
    assert!(
        printed.contains("To do: Raise the TTL at the sender."),
        "{printed}"
    );
    let out = router.try_run("show drops --order packets");
    let refused = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(refused.contains("does not accept --order"), "{refused}");
}

/// A host that forges many sources replaces only streams with few packets in the list.
fn source_flood_keeps_large_streams_listed(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let router = Router::start(
        lab,
        &star.rtr,
        &route("r", "in", "", "225.1.2.3", &["out1"], ""),
    );
    let inject = Injector::new(&star.src, "eth0");
    let count = 20_000u32;
    for n in 0..count {
        let source = format!("10.9.{}.{}:9", n >> 8, n & 0xff);
        inject.send(&Udp::new(&source, "239.9.9.9:5000", "x").frame());
        if n % 100 == 0 {
            inject.send(&Udp::new("10.0.0.10:9", "239.1.1.1:5000", "x").frame());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    let labels = [("iface", "in"), ("reason", "no_route")];
    eventually("all packets", count + count / 100, || {
        router.metric("mcastor_dropped_packets_total", &labels) as u32
    });
    let stream = &drops(&router, "--group 239.1.1.1")[0];
    let number = |field: &str| stream[field].as_u64().expect("a number");
    let (packets, missed) = (number("packets"), number("missed_at_most"));
    assert!(packets <= 200 && packets + missed >= 200, "{stream}");
    assert_eq!(drops(&router, "--limit 5000").len(), 1024);
}
