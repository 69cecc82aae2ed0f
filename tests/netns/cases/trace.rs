//! `mcastor trace`: the decision for live packets, compared with what then leaves.

use mcastor::pipeline::packet_trace::MAX_WAITING_PACKETS;
use serde_json::Value;

use super::{cases, route};
use crate::lab::program::Program;
use crate::lab::router::BINARY;
use crate::lab::{Capture, Injector, Lab, Router, Star, Udp, eventually};

cases!("trace":
    trace_shows_what_happens_to_each_packet,
    #[Program("tcpdump", "tcpdump")] trace_file_has_the_packets_and_their_decisions,
    slow_client_misses_packets_that_are_counted_and_forwarded,
    absent_packets_and_a_second_client_are_explained,
);

/// Starts `mcastor trace` with these arguments, and waits until it records.
fn start_trace(lab: &Lab, star: &Star, router: &Router, words: &str) -> Program {
    let socket = router.socket().display().to_string();
    let mut args = vec!["trace", "--socket", &socket];
    args.extend(words.split_whitespace());
    let trace = star.rtr.spawn(lab, BINARY, &args);
    eventually("the trace records", true, || {
        trace.stderr().contains("tracing ")
    });
    trace
}

fn lines(trace: &Program) -> Vec<Value> {
    let text = trace.stdout();
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    text.lines().map(parse).collect()
}

/// Packets that are forwarded, refused by an egress, fragmented, translated and dropped.
fn trace_shows_what_happens_to_each_packet(lab: &Lab) {
    let star = Star::v4(lab, 2);
    star.rtr.ip("link set out1 mtu 600");
    let toml = route("cams", "in", "", "225.1.2.0/24", &["out1", "out2"], "")
        + &route(
            "new",
            "in",
            "",
            "225.2.0.0/16",
            &["out1"],
            "rewrite = { group = \"226.2.0.0/16\", port = 6000 }\n",
        )
        + "[[interface]]\nname = \"out2\"\nttl_threshold = 20\n";
    let router = Router::start(lab, &star.rtr, &toml);
    let captures =
        ["out1", "out2"].map(|out| (out, Capture::new(&star.rcv, &out.replace("out", "eth"))));
    let mut trace = start_trace(
        lab,
        &star,
        &router,
        "--json --count 6 --seconds 60 224.0.0.0/4",
    );
    let inject = Injector::new(&star.src, "eth0");
    let packets = [
        ("225.1.2.3", 64, 100),
        ("225.1.2.4", 9, 100),
        ("225.1.2.5", 64, 1344),
        ("225.1.2.6", 1, 100),
        ("225.2.1.1", 64, 100),
        ("225.9.9.9", 64, 100),
    ];
    for (group, ttl, size) in packets {
        let payload = vec![7; size - 28];
        let udp = Udp::new("10.0.0.10:9", &format!("{group}:5000"), payload);
        inject.send(&udp.ttl(ttl).frame());
    }
    assert_eq!(trace.wait().code(), Some(0));
    let traced = lines(&trace);
    assert_eq!(traced.len(), packets.len());
    for ((group, ttl, size), traced) in packets.iter().zip(&traced) {
        assert_eq!(traced["group"], *group);
        assert_eq!(traced["source"], "10.0.0.10");
        assert_eq!(traced["iif"], "in");
        assert_eq!(traced["port"], 5000);
        assert_eq!(
            (traced["ttl"].as_u64(), traced["size"].as_u64()),
            (Some(*ttl as u64), Some(*size as u64))
        );
        for (out, capture) in &captures {
            let egress = (traced["egresses"].as_array().expect("a list").iter())
                .find(|egress| egress["oif"] == *out);
            let leaves = egress.filter(|egress| egress["reason"].is_null());
            let to = leaves.and_then(|egress| egress["group"].as_str());
            let count = leaves.map_or(0, |egress| egress["fragments"].as_u64().unwrap_or(1));
            let seen = capture.expect(to.unwrap_or(group), count as usize);
            if let (Some(packet), Some(egress)) = (seen.first(), leaves) {
                assert_eq!(Some(u64::from(packet.ttl)), egress["ttl"].as_u64());
            }
        }
    }
    let reasons: Vec<String> = (traced.iter())
        .map(|packet| {
            let egresses = packet["egresses"].as_array().expect("a list").iter();
            let of_egresses = egresses.map(|egress| egress["reason"].as_str().unwrap_or("sent"));
            let dropped = packet["dropped"].as_array().into_iter().flatten();
            let dropped = dropped.filter_map(Value::as_str);
            of_egresses.chain(dropped).collect::<Vec<_>>().join(" ")
        })
        .collect();
    assert_eq!(
        reasons,
        [
            "sent sent",
            "sent ttl_threshold",
            "sent sent",
            "ttl_expired",
            "sent",
            "no_route"
        ]
    );
    assert_eq!(traced[2]["egresses"][0]["fragments"], 3);
    let translated = &traced[4]["egresses"][0];
    assert_eq!(
        (
            &translated["group"],
            &translated["port"],
            &translated["rule"]
        ),
        (&"226.2.1.1".into(), &6000.into(), &"new".into())
    );
}

fn trace_file_has_the_packets_and_their_decisions(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let toml = route("cams", "in", "", "225.1.2.3", &["out1"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    let file = lab.file("trace.pcapng").display().to_string();
    let words = format!("--count 5 --seconds 60 --iif in --pcap {file} 225.1.2.3:5000");
    let mut trace = start_trace(lab, &star, &router, &words);
    let inject = Injector::new(&star.src, "eth0");
    for n in 0..5 {
        inject.send(&Udp::new("10.0.0.10:9", "225.1.2.3:5001", vec![n; 31]).frame());
        inject.send(&Udp::new("10.0.0.10:9", "225.1.2.3:5000", vec![n; 31]).frame());
    }
    assert_eq!(trace.wait().code(), Some(0));
    let text = trace.stdout();
    assert!(
        text.contains("in: 10.0.0.10 to 225.1.2.3:5000, 59 bytes"),
        "{text}"
    );
    assert!(text.contains("5 packets: 5 left on out1"), "{text}");
    assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    let out = star.rtr.output("tcpdump", &["-nr", &file]);
    let listed = String::from_utf8_lossy(&out.stdout);
    let packet = "IP 10.0.0.10.9 > 225.1.2.3.5000: UDP, length 31";
    assert_eq!(listed.matches(packet).count(), 5, "{listed}");
    assert_eq!(listed.lines().count(), 5, "{listed}");
    let bytes = std::fs::read(&file).expect("the file");
    let comment = b"-> out1: leaves with TTL ";
    let comments = bytes
        .windows(comment.len())
        .filter(|w| w == comment)
        .count();
    assert_eq!(comments, 5);
}

/// The client does not read while more packets arrive than may wait for it. Nothing depends on the
/// speed of the machine: the sender waits until each burst was forwarded.
fn slow_client_misses_packets_that_are_counted_and_forwarded(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let toml = route("cams", "in", "", "225.1.2.3", &["out1"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    let words = "--json --count 3000 --seconds 60 225.1.2.3";
    let mut trace = start_trace(lab, &star, &router, words);
    let inject = Injector::new(&star.src, "eth0");
    let burst = vec![Udp::new("10.0.0.10:9", "225.1.2.3:5000", "x").frame(); 250];
    let mut sent = 0;
    let mut send_burst = || {
        inject.send_all(&burst);
        sent += burst.len();
        router.expect_routed("cams", "out1", sent as u64);
        sent
    };
    trace.signal(libc::SIGSTOP);
    while send_burst() < 2 * MAX_WAITING_PACKETS {}
    trace.signal(libc::SIGCONT);
    while trace.exit_status().is_none() {
        send_burst();
    }
    assert_eq!(trace.wait().code(), Some(0));
    let summary = trace.stderr();
    assert!(
        summary.contains("3000 packets: 3000 left on out1"),
        "{summary}"
    );
    assert!(summary.contains(" more packets matched"), "{summary}");
    assert_eq!(lines(&trace).len(), 3000);
}

fn absent_packets_and_a_second_client_are_explained(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let toml = route("cams", "in", "", "225.1.2.3", &["out1"], "");
    let router = Router::start(lab, &star.rtr, &toml);
    let mut first = start_trace(lab, &star, &router, "--seconds 60 225.1.2.3");
    let second = router.try_run("trace 225.1.2.4");
    let error = String::from_utf8_lossy(&second.stderr);
    assert!(error.contains("another client traces packets"), "{error}");
    assert_eq!(second.status.code(), Some(1));
    first.stop(libc::SIGINT, crate::lab::TIMEOUT);
    let absent = router.try_run("trace --seconds 1 225.1.2.4");
    assert_eq!(absent.status.code(), Some(3));
    let text = String::from_utf8_lossy(&absent.stdout);
    assert!(text.contains("mcastor doctor --group 225.1.2.4"), "{text}");
    let wrong = router.try_run("trace --iif nope 225.1.2.4");
    let error = String::from_utf8_lossy(&wrong.stderr);
    assert!(error.contains("interfaces that receive: in"), "{error}");
}
