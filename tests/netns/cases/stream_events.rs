//! Events of monitored streams: log lines with fields, counters, and alerts to a webhook.

use std::time::Duration;

use serde_json::{Value, json};

use super::{cases, route};
use crate::lab::mnat::Ca;
use crate::lab::webhook::Webhook;
use crate::lab::{Injector, Lab, NumberedStream, Router, Star, Udp, eventually};

cases!("stream_events":
    silence_and_return_are_logged_and_alerted,
    loss_above_the_threshold_is_logged_and_alerted,
    changed_source_is_logged_and_alerted,
    changed_rate_is_logged_and_alerted,
    alerts_are_sent_over_tls_to_a_host_name,
);

const SOURCE: &str = "10.0.0.10:4000";
const GROUP: &str = "225.1.2.3";
const DST: &str = "225.1.2.3:5004";

/// The events of a stream, as an operator sees them.
struct Events {
    star: Star,
    router: Router,
    alerts: Webhook,
}

impl Events {
    /// Starts a router that monitors [`GROUP`]. `keys` are further ones of `[monitor]`.
    fn start(lab: &Lab, monitor: &str, keys: &str) -> Self {
        let star = Star::v4(lab, 1);
        let alerts = Webhook::start(&star.rtr, "127.0.0.1:9093");
        let toml = settings(monitor, keys, "http://127.0.0.1:9093/api/v2/alerts");
        let router = Router::start(lab, &star.rtr, &toml);
        Self {
            star,
            router,
            alerts,
        }
    }

    fn count(&self, event: &str) -> u64 {
        let labels = [("event", event)];
        (self.router).metric("mcastor_stream_events_total", &labels) as u64
    }

    /// Waits for an event, which is the only one of its kind, and returns the fields of its line.
    #[track_caller]
    fn expect(&self, event: &str) -> Value {
        eventually(event, 1, || self.count(event));
        let mut lines = Vec::new();
        eventually("one line", 1, || {
            lines = logged(&self.router, event);
            lines.len()
        });
        lines.remove(0)
    }
}

fn settings(monitor: &str, keys: &str, webhook: &str) -> String {
    let monitor = format!("monitor = \"{monitor}\"\n");
    let route = route("r", "in", "", GROUP, &["out1"], &monitor);
    format!("{route}[monitor]\n{keys}webhook = \"{webhook}\"\n[log]\nformat = \"json\"\n")
}

/// Returns the fields of the log lines about an event.
fn logged(router: &Router, event: &str) -> Vec<Value> {
    let log = router.program.stderr();
    // The last line may be incomplete.
    let lines = log.lines().filter_map(|line| {
        let line: Value = serde_json::from_str(line).ok()?;
        Some(line["fields"].clone())
    });
    lines.filter(|fields| fields["event"] == event).collect()
}

/// Returns the fields of a line about an event of a stream of [`GROUP`].
fn fields(event: &str, source: &str, text: &str) -> Value {
    json!({
        "event": event, "interface": "in", "source": source, "group": GROUP, "route": "r",
        "message": format!("stream ({source}, {GROUP}) from in: {event}: {text}"),
    })
}

/// Returns the labels of an alert about a stream of [`GROUP`].
fn labels(alertname: &str, source: &str) -> Value {
    json!({
        "alertname": alertname, "iif": "in", "source": source, "group": GROUP, "route": "r",
    })
}

fn silence_and_return_are_logged_and_alerted(lab: &Lab) {
    let events = Events::start(lab, "rate", "silent_after = \"1s\"\n");
    let inject = Injector::new(&events.star.src, "eth0");
    let router = &events.router;
    let is_fine = || {
        inject.send(&Udp::new(SOURCE, DST, "x").frame());
        let labels = [("group", GROUP), ("verdict", "fine")];
        router.metric("mcastor_stream_verdict", &labels) == 1.0
    };
    eventually("a fine stream", true, is_fine);
    let alert = events.alerts.expect("McastorStreamSilent");
    assert_eq!(alert["labels"], labels("McastorStreamSilent", "10.0.0.10"));
    assert!(
        alert["endsAt"].as_str() > alert["startsAt"].as_str(),
        "{alert}"
    );
    let silent = &logged(router, "silent")[0];
    let text = alert["annotations"]["description"].as_str();
    let text = text.expect("a description");
    assert!(text.starts_with("No packet has arrived for"), "{text}");
    assert_eq!(*silent, fields("silent", "10.0.0.10", text));

    eventually("packets again", true, || {
        is_fine() && !logged(router, "back").is_empty()
    });
    let expected = fields("back", "10.0.0.10", "packets arrive again");
    assert_eq!(logged(router, "back")[0], expected);
    let ended = events.alerts.expect("McastorStreamSilent");
    assert_eq!(
        (&ended["labels"], &ended["startsAt"]),
        (&alert["labels"], &alert["startsAt"])
    );
    assert!(
        ended["endsAt"].as_str() <= alert["endsAt"].as_str(),
        "{ended}"
    );
    assert!(events.count("silent") >= 1 && events.count("back") >= 1);
    let labels = [("result", "sent")];
    eventually("requests", true, || {
        router.metric("mcastor_stream_alert_requests_total", &labels) >= 2.0
    });
}

/// 3 of 300 packets are not more than the threshold of 1 %, 4 of 320 are.
fn loss_above_the_threshold_is_logged_and_alerted(lab: &Lab) {
    let keys = "silent_after = \"1h\"\nloss_ppm = 10000\n";
    let events = Events::start(lab, "rtp", keys);
    let inject = Injector::new(&events.star.src, "eth0");
    let send = |numbers: std::ops::RangeInclusive<u16>| {
        for number in numbers {
            let mut packet = vec![0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4];
            packet[2..4].copy_from_slice(&number.to_be_bytes());
            inject.send(&Udp::new(SOURCE, DST, packet).frame());
            std::thread::sleep(Duration::from_micros(300));
        }
    };
    let expect = |counter: &str, count| {
        let name = format!("mcastor_stream_{counter}_total");
        events
            .router
            .expect_metric(&name, &[("group", GROUP)], count);
    };
    send(0..=295);
    expect("packets", 296);
    send(299..=299);
    expect("lost_before_packets", 3);
    send(300..=317);
    expect("packets", 315);
    assert_eq!(events.count("loss"), 0);
    send(319..=319);
    let line = events.expect("loss");
    let text = "1.250 % loss in a minute. Lost before us: 4 packets (1.250 %) in the last minute \
                did not arrive.";
    assert_eq!(line, fields("loss", "10.0.0.10", text));
    let alert = events.alerts.expect("McastorStreamLoss");
    assert_eq!(alert["labels"], labels("McastorStreamLoss", "10.0.0.10"));
    let annotations = json!({
        "summary": "(10.0.0.10, 225.1.2.3) from in: loss", "description": text,
    });
    assert_eq!(alert["annotations"], annotations);
}

fn changed_source_is_logged_and_alerted(lab: &Lab) {
    let events = Events::start(lab, "rate", "silent_after = \"1s\"\n");
    let inject = Injector::new(&events.star.src, "eth0");
    let send = |source: &str| {
        inject.send(&Udp::new(&format!("{source}:4000"), DST, "x").frame());
    };
    // The actor has seen the first source alone.
    eventually("the first source", true, || {
        send("10.0.0.10");
        let labels = [("source", "10.0.0.10"), ("verdict", "fine")];
        events.router.metric("mcastor_stream_verdict", &labels) == 1.0
    });
    eventually("the event", 1, || {
        send("10.0.0.11");
        events.count("source_changed")
    });
    let text = "10.0.0.11 sends in place of 10.0.0.10";
    let expected = fields("source_changed", "10.0.0.11", text);
    assert_eq!(events.expect("source_changed"), expected);
    let alert = events.alerts.expect("McastorStreamSourceChanged");
    let expected = labels("McastorStreamSourceChanged", "10.0.0.11");
    assert_eq!(alert["labels"], expected);
    assert_eq!(alert["annotations"]["description"], text);
}

/// The rate grows fivefold. A busy machine may send less for some seconds, which may be events too.
fn changed_rate_is_logged_and_alerted(lab: &Lab) {
    let events = Events::start(lab, "rate", "rate_percent = 100\n");
    let eth0 = (&events.star.src, "eth0");
    let slow = NumberedStream::start(eth0.0, eth0.1, SOURCE, DST, 200);
    let age_ms = || {
        let streams = events.router.run("show streams --json");
        let streams: Value = serde_json::from_str(&streams).expect("JSON");
        streams[0]["age_ms"].as_u64().unwrap_or_default()
    };
    // The rate of the third second is the one to compare with.
    eventually("the first rate", true, || age_ms() > 4500);
    drop(slow);
    let _fast = NumberedStream::start(eth0.0, eth0.1, SOURCE, DST, 1000);
    let rates = |line: &Value| {
        let message = line["message"].as_str()?;
        let (_, text) = message.split_once("from in: rate_changed: ")?;
        let (now, before) = text.split_once(" Mbit/s after ")?;
        let before = before.strip_suffix(" Mbit/s")?;
        Some((now.parse::<f64>().ok()?, before.parse::<f64>().ok()?))
    };
    let mut line = Value::Null;
    eventually("the event", true, || {
        let lines = logged(&events.router, "rate_changed");
        let grows = |line: &Value| {
            let (now, before) = rates(line).unwrap_or_else(|| panic!("{line}"));
            now > 2.0 * before && before > 0.0
        };
        line = lines.into_iter().find(grows).unwrap_or_default();
        !line.is_null()
    });
    let message = line["message"].as_str().expect("a message").to_owned();
    let (_, text) = message.split_once("rate_changed: ").expect("a text");
    assert_eq!(line, fields("rate_changed", "10.0.0.10", text));
    let mut alert = Value::Null;
    eventually("the alert", text, || {
        alert = events.alerts.expect("McastorStreamRateChanged");
        let description = &alert["annotations"]["description"];
        if description == text { text } else { "another" }
    });
    let expected = labels("McastorStreamRateChanged", "10.0.0.10");
    assert_eq!(alert["labels"], expected);
}

/// A certificate for another name, and a name without an address, are counted as what they are.
fn alerts_are_sent_over_tls_to_a_host_name(lab: &Lab) {
    let ca = Ca::new();
    let ca_file = lab.file("ca.pem");
    std::fs::write(&ca_file, ca.pem()).expect("writing a certificate");
    let star = Star::v4(lab, 1);
    let pem = ca.sign(&["localhost"], 0).pem;
    let alerts = Webhook::start_tls(&star.rtr, "127.0.0.1:9443", &pem);
    let with = |webhook| settings("rate", "silent_after = \"1s\"\n", webhook);
    let ca_file = ca_file.display().to_string();
    let router = Router::start_with(
        lab,
        &star.rtr,
        &with("https://localhost:9443/api/v2/alerts"),
        &[("SSL_CERT_FILE", &ca_file)],
    );
    let inject = Injector::new(&star.src, "eth0");
    // Silence, and packets again, end in a request each.
    let has_verdict = |verdict| {
        let labels = [("group", GROUP), ("verdict", verdict)];
        router.metric("mcastor_stream_verdict", &labels) == 1.0
    };
    let is_fine = || {
        inject.send(&Udp::new(SOURCE, DST, "x").frame());
        has_verdict("fine")
    };
    eventually("a fine stream", true, is_fine);
    let alert = alerts.expect("McastorStreamSilent");
    assert_eq!(alert["labels"], labels("McastorStreamSilent", "10.0.0.10"));
    for (webhook, result) in [
        ("https://127.0.0.1:9443/api/v2/alerts", "tls"),
        ("https://alerts.invalid/api/v2/alerts", "resolve"),
        ("http://localhost:9/api/v2/alerts", "connect"),
    ] {
        router.write_settings(&with(webhook));
        router.run("reload");
        let failed = || {
            let labels = [("result", result)];
            router.metric("mcastor_stream_alert_requests_total", &labels) >= 1.0
        };
        eventually("packets again", true, is_fine);
        eventually("silence", true, || has_verdict("silent"));
        eventually(result, true, failed);
    }
    let labels = [("result", "sent")];
    let sent = router.metric("mcastor_stream_alert_requests_total", &labels);
    assert!(sent >= 1.0, "{sent}");
    let log = router.program.stderr();
    let expected = "the webhook at 127.0.0.1:9443 does not take alerts: no TLS connection: \
                    invalid peer certificate";
    assert!(log.contains(expected), "{log}");
}
