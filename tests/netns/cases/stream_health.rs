//! Monitored streams: whose fault a loss is, and the limit.

use std::time::Duration;

use serde_json::{Value, json};

use super::{cases, route};
use crate::lab::{Injector, Lab, Router, Star, Udp, eventually};

cases!("stream_health":
    losses_before_the_router_and_in_it_are_told_apart,
    packets_with_ttl_1_are_lost_here,
    blocked_egress_loses_here_by_queue_full,
    full_capture_socket_loses_here_by_socket,
    streams_beyond_the_limit_are_counted,
);

const SOURCE: &str = "10.0.0.10:4000";

/// Returns the monitored streams of a group.
fn streams(router: &Router, words: &str) -> Vec<Value> {
    let text = router.run(&format!("show streams --json {words}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// Returns the text of `show streams`, without its line breaks.
fn text(router: &Router) -> String {
    let text = router.run("show streams");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns the stream of a group; null if it is not monitored.
fn stream(router: &Router, group: &str) -> Value {
    let streams = streams(router, &format!("--group {group}"));
    streams.into_iter().next().unwrap_or_default()
}

/// Returns an RTP packet of payload type 0, with `size` bytes as an IP packet.
fn rtp(group: &str, number: u16, size: usize) -> Udp {
    let mut payload = vec![0; size - 28];
    payload[0] = 0x80;
    payload[2..4].copy_from_slice(&number.to_be_bytes());
    payload[4..8].copy_from_slice(&(u32::from(number) * 160).to_be_bytes());
    payload[8..12].copy_from_slice(&0x1234_5678u32.to_be_bytes());
    Udp::new(SOURCE, &format!("{group}:5004"), payload).df()
}

/// The middle stream lacks 11 packets when it arrives. Of the last one, 7 packets are larger than
/// the MTU of an egress.
fn losses_before_the_router_and_in_it_are_told_apart(lab: &Lab) {
    let star = Star::v4(lab, 2);
    star.rtr.ip("link set out2 mtu 600");
    let toml = route(
        "studio",
        "in",
        "",
        "225.1.0.0/16",
        &["out1", "out2"],
        "monitor = \"auto\"",
    );
    let router = Router::start(lab, &star.rtr, &toml);
    assert!(
        router
            .run("show streams")
            .contains("No stream is monitored")
    );
    let inject = Injector::new(&star.src, "eth0");
    let is_lost = |n: u16| matches!(n, 100..=107 | 110 | 300 | 399);
    for n in 0..400u16 {
        // The numbers wrap.
        let number = n.wrapping_add(65_400);
        inject.send(&rtp("225.1.0.1", number, 200).frame());
        if !is_lost(n) {
            inject.send(&rtp("225.1.0.2", number, 200).frame());
        }
        let size = if n % 50 == 20 && n < 350 { 1000 } else { 200 };
        inject.send(&rtp("225.1.0.3", number, size).frame());
        std::thread::sleep(Duration::from_micros(300));
    }
    // Number 399 is missed only when another one arrives.
    inject.send(&rtp("225.1.0.2", 400u16.wrapping_add(65_400), 200).frame());

    let expected = [
        ("225.1.0.1", 400, 0, json!({}), [400, 400]),
        ("225.1.0.2", 390, 11, json!({}), [390, 390]),
        (
            "225.1.0.3",
            400,
            0,
            json!({"too_big": {"total": 7, "minute": 7}}),
            [400, 393],
        ),
    ];
    for (group, packets, before, here, sent) in expected {
        let shown = || {
            let stream = stream(&router, group);
            let sent = |n: usize| stream["egresses"][n]["health"]["packets"].clone();
            let lost = &stream["ingress"]["rtp"]["sequence"]["lost"];
            let numbers = [
                &stream["ingress"]["packets"],
                &stream["lost_before"]["total"],
                lost,
            ];
            (
                numbers.map(Clone::clone),
                stream["lost_here"].clone(),
                [sent(0), sent(1)],
            )
        };
        let numbers = [packets, before, before].map(|n| json!(n));
        eventually(group, (numbers, here, sent.map(|n| json!(n))), shown);
    }
    let verdicts = ["225.1.0.1", "225.1.0.2", "225.1.0.3"].map(|group| {
        let stream = stream(&router, group);
        assert_eq!(
            (&stream["kind"], &stream["route"]),
            (&json!("rtp"), &json!("studio"))
        );
        assert_eq!(stream["iif"], "in");
        // The losses at an egress include those before the router.
        let sent = &stream["egresses"][0]["health"]["rtp"]["sequence"];
        assert_eq!(sent["lost"], stream["lost_before"]["total"]);
        stream["verdict"].clone()
    });
    // On a slow machine, they may be silent already.
    if verdicts[0] != "silent" {
        assert_eq!(verdicts, ["fine", "lost_before", "lost_here"]);
    }
    let second = stream(&router, "225.1.0.2");
    let bursts = &second["ingress"]["rtp"]["bursts"];
    assert_eq!(
        (&bursts["bursts"], &bursts["burst_packets"]),
        (&json!(1), &json!(11))
    );
    assert_eq!(bursts["longest_loss"], 8);
    assert_eq!(second["ingress"]["rtp"]["sequence"]["expected"], 401);
    let text = text(&router);
    assert!(
        text.contains("Lost before us: 11 packets (2.743 %) in the last minute"),
        "{text}"
    );
    assert!(
        text.contains("Lost here (too_big): 7 packets were dropped on out2"),
        "{text}"
    );

    let labels = [("group", "225.1.0.3"), ("reason", "too_big"), ("iif", "in")];
    router.expect_metric("mcastor_stream_lost_here_packets_total", &labels, 7);
    let labels = [("group", "225.1.0.2"), ("source", "10.0.0.10")];
    router.expect_metric("mcastor_stream_lost_before_packets_total", &labels, 11);
    let labels = [("group", "225.1.0.3"), ("oif", "out2")];
    router.expect_metric("mcastor_stream_sent_packets_total", &labels, 393);
    router.expect_routed("studio", "out1", 400 + 390 + 400);
    let answer = router
        .get("/api/v1/streams?group=225.1.0.2")
        .expect("an answer");
    let answer: Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!(answer["show"]["streams"][0]["lost_before"]["total"], 11);
    let explained = router.try_run("explain 10.0.0.10 225.1.0.1:5004");
    let explained = String::from_utf8_lossy(&explained.stdout);
    let is_kernel = router.run("show flows").contains("PLANE");
    assert!(
        !is_kernel || explained.contains("it is monitored"),
        "{explained}"
    );
}

/// The queue of the device keeps all packets, so the send buffer of the egress fills, and then the
/// queue of the router.
fn blocked_egress_loses_here_by_queue_full(lab: &Lab) {
    const PACKETS: u16 = 6000;
    let star = Star::v4(lab, 1);
    let tc = |words: &str| {
        let words: Vec<_> = words.split(' ').collect();
        let done = star.rtr.output("tc", &words);
        assert!(done.status.success(), "{done:?}");
    };
    tc("qdisc add dev out1 root tbf rate 8kbit burst 20kb limit 64mb");
    let toml = route("r", "in", "", "225.1.2.3", &["out1"], "monitor = \"rtp\"\n")
        + "[monitor]\nsilent_after = \"1h\"\n";
    let router = Router::start(lab, &star.rtr, &toml);
    let inject = Injector::new(&star.src, "eth0");
    for number in 0..PACKETS {
        inject.send(&rtp("225.1.2.3", number, 1400).frame());
        if number % 20 == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    let arrived = || stream(&router, "225.1.2.3")["ingress"]["packets"].clone();
    eventually("each packet arrives", json!(PACKETS), arrived);
    tc("qdisc del dev out1 root");
    let mut lost = 0;
    eventually(
        "each packet is sent or lost here",
        u64::from(PACKETS),
        || {
            let stream = stream(&router, "225.1.2.3");
            let sent = stream["egresses"][0]["health"]["packets"].as_u64();
            lost = stream["lost_here"]["queue_full"]["total"]
                .as_u64()
                .unwrap_or_default();
            sent.unwrap_or_default() + lost
        },
    );
    assert!(lost > 100, "{lost}");
    let stream = stream(&router, "225.1.2.3");
    let here = json!({"queue_full": {"total": lost, "minute": lost}});
    assert_eq!(stream["lost_here"], here);
    assert_eq!(stream["egresses"][0]["lost_here"], here);
    assert_eq!(stream["lost_before"]["total"], 0);
    assert_eq!(stream["verdict"], "lost_here");
    let text = text(&router);
    let expected = format!("Lost here (queue_full): {lost} packets were dropped on out1");
    assert!(text.contains(&expected), "{text}");
    router.expect_dropped("queue_full", "out1", lost);
    let labels = [("group", "225.1.2.3"), ("reason", "queue_full")];
    router.expect_metric("mcastor_stream_lost_here_packets_total", &labels, lost);
}

/// Five packets are lost before the router. While it is stopped, the kernel drops others, because
/// the capture socket is full.
fn full_capture_socket_loses_here_by_socket(lab: &Lab) {
    const BURST: u32 = 15_000;
    let star = Star::v4(lab, 1);
    // No join: its reports would be among the dropped packets.
    let extra = "join = false\nmonitor = \"sequence\"\n";
    let toml = route("r", "in", "", "225.1.2.3", &["out1"], extra)
        + "[monitor]\nsilent_after = \"1h\"\nsequence_offset = 0\nsequence_bytes = 4\n";
    let mut router = Router::start(lab, &star.rtr, &toml);
    let inject = Injector::new(&star.src, "eth0");
    let send = |numbers: std::ops::Range<u32>| {
        for number in numbers {
            let mut payload = vec![0; 1372];
            payload[..4].copy_from_slice(&number.to_be_bytes());
            inject.send(&Udp::new(SOURCE, "225.1.2.3:5004", payload).frame());
        }
    };
    let counts = |router: &Router| {
        let arrived = stream(router, "225.1.2.3")["ingress"]["packets"].as_u64();
        let dropped = router.metric("mcastor_socket_dropped_packets_total", &[("iface", "in")]);
        (arrived.unwrap_or_default(), dropped as u64)
    };
    send(0..20);
    send(25..45);
    eventually("the first packets", (40, 0), || counts(&router));
    router.program.signal(libc::SIGSTOP);
    send(45..45 + BURST);
    router.program.signal(libc::SIGCONT);
    let all = u64::from(40 + BURST);
    eventually("each packet is read or dropped", all, || {
        let (arrived, dropped) = counts(&router);
        arrived + dropped
    });
    let (_, dropped) = counts(&router);
    assert!(dropped > 100, "{dropped}");
    // The numbers after the gap.
    send(45 + BURST..65 + BURST);
    let seen = || {
        let stream = stream(&router, "225.1.2.3");
        let here = &stream["lost_here"];
        (stream["lost_before"]["total"].clone(), here.clone())
    };
    let here = json!({"socket": {"total": dropped, "minute": dropped}});
    eventually("who lost them", (json!(5), here), seen);
    assert_eq!(
        stream(&router, "225.1.2.3")["verdict"],
        "lost_before_and_here"
    );
    let text = text(&router);
    let expected = format!("Lost here (socket): {dropped} packets were dropped in the last minute");
    assert!(text.contains(&expected), "{text}");
    // Of all packets that were sent: 5 of 15,065.
    assert!(
        text.contains("Lost before us: 5 packets (0.033 %)"),
        "{text}"
    );
    let labels = [("group", "225.1.2.3"), ("reason", "socket")];
    router.expect_metric("mcastor_stream_lost_here_packets_total", &labels, dropped);
}

/// A stream whose packets all have too low a TTL is never forwarded, and is monitored.
fn packets_with_ttl_1_are_lost_here(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let toml = route("r", "in", "", "225.1.2.3", &["out1"], "")
        + "[monitor]\ngroups = [\"225.1.0.0/16\"]\nkind = \"rtp\"\n";
    let router = Router::start(lab, &star.rtr, &toml);
    let inject = Injector::new(&star.src, "eth0");
    for n in 0..30u16 {
        inject.send(&rtp("225.1.2.3", n, 200).ttl(1).frame());
    }
    let here = || {
        let stream = stream(&router, "225.1.2.3");
        (
            stream["lost_here"]["ttl_expired"]["total"].clone(),
            stream["lost_before"]["total"].clone(),
        )
    };
    eventually("the packets", (json!(30), json!(0)), here);
    let text = text(&router);
    assert!(text.contains("Raise the TTL at the sender."), "{text}");
}

fn streams_beyond_the_limit_are_counted(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let toml = route(
        "r",
        "in",
        "",
        "225.1.0.0/16",
        &["out1"],
        "monitor = \"rtp\"\n",
    ) + "[limits]\nmonitored_streams = 2\nflow_idle = 2\n";
    let router = Router::start(lab, &star.rtr, &toml);
    let inject = Injector::new(&star.src, "eth0");
    for n in 0..20u16 {
        for group in ["225.1.0.1", "225.1.0.2", "225.1.0.3", "225.1.0.4"] {
            inject.send(&rtp(group, n, 200).frame());
        }
    }
    router.expect_metric("mcastor_streams_left_out_total", &[], 2);
    router.expect_metric("mcastor_streams_limit", &[], 2);
    router.expect_routed("r", "out1", 80);
    // The streams end with their flows, and so do their series.
    eventually("no stream", 0, || streams(&router, "").len());
    eventually("no series", false, || {
        router.metrics().show("mcastor_stream_").contains("225.1.0")
    });
    router.expect_metric("mcastor_streams_monitored", &[], 0);
    // Then others have their places.
    let verdict = || {
        inject.send(&rtp("225.1.0.4", 1, 200).frame());
        stream(&router, "225.1.0.4")["kind"].clone()
    };
    eventually("another stream", json!("rtp"), verdict);
}
