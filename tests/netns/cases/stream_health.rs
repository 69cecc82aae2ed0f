//! Monitored streams: whose fault a loss is, events and alerts, and the limit.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use serde_json::{Value, json};

use super::{cases, route};
use crate::lab::{Injector, Lab, Ns, Router, Star, Udp, eventually, wait_until};

cases!("stream_health":
    losses_before_the_router_and_in_it_are_told_apart,
    packets_with_ttl_1_are_lost_here,
    silence_and_return_are_logged_and_alerted,
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

/// Receives requests of the router, and answers each with 200. Returns their bodies.
fn webhook(ns: &Ns, address: &str) -> Receiver<Value> {
    let listener = ns.enter(|| TcpListener::bind(address)).expect("a socket");
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            let body = loop {
                let Ok(len @ 1..) = stream.read(&mut buffer) else {
                    break None;
                };
                request.extend_from_slice(&buffer[..len]);
                let text = String::from_utf8_lossy(&request);
                let Some((head, body)) = text.split_once("\r\n\r\n") else {
                    continue;
                };
                assert!(head.starts_with("POST /api/v2/alerts HTTP/1.1"), "{head}");
                if let Ok(body) = serde_json::from_str::<Value>(body) {
                    break Some(body);
                }
            };
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            if body.is_some_and(|body| sender.send(body).is_err()) {
                return;
            }
        }
    });
    receiver
}

fn silence_and_return_are_logged_and_alerted(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let alerts = webhook(&star.rtr, "127.0.0.1:9093");
    let toml = route(
        "r",
        "in",
        "",
        "225.1.2.3",
        &["out1"],
        "monitor = \"rate\"\n",
    ) + "[monitor]\nsilent_after = \"1s\"\n\
           webhook = \"http://127.0.0.1:9093/api/v2/alerts\"\n";
    let router = Router::start(lab, &star.rtr, &toml);
    let inject = Injector::new(&star.src, "eth0");
    let verdict = || stream(&router, "225.1.2.3")["verdict"].clone();
    let send = || {
        inject.send(&Udp::new(SOURCE, "225.1.2.3:5000", "x").frame());
        verdict()
    };
    eventually("a fine stream", json!("fine"), send);
    eventually("silence", json!("silent"), verdict);
    let logged = |text: &str| router.program.stderr().contains(text);
    let silent = "stream (10.0.0.10, 225.1.2.3) from in: silent: No packet has arrived for";
    assert!(
        wait_until(crate::lab::TIMEOUT, || logged(silent)),
        "the event in the log"
    );
    let alert = alerts.recv_timeout(crate::lab::TIMEOUT).expect("an alert")[0].clone();
    let labels = json!({
        "alertname": "McastorStreamSilent", "iif": "in", "source": "10.0.0.10",
        "group": "225.1.2.3", "route": "r",
    });
    assert_eq!(alert["labels"], labels);
    assert!(
        alert["endsAt"].as_str() > alert["startsAt"].as_str(),
        "{alert}"
    );

    let back = "stream (10.0.0.10, 225.1.2.3) from in: back: packets arrive again";
    eventually("packets again", true, || {
        send() == json!("fine") && logged(back)
    });
    let ended = alerts.recv_timeout(crate::lab::TIMEOUT).expect("the end")[0].clone();
    assert_eq!(
        (&ended["labels"], &ended["startsAt"]),
        (&labels, &alert["startsAt"])
    );
    assert!(
        ended["endsAt"].as_str() <= alert["endsAt"].as_str(),
        "{ended}"
    );
    for event in ["silent", "back"] {
        let count = router.metric("mcastor_stream_events_total", &[("event", event)]);
        assert!(count >= 1.0, "{event}");
    }
    let labels = [("result", "sent")];
    eventually("requests", true, || {
        router.metric("mcastor_stream_alert_requests_total", &labels) >= 2.0
    });
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
