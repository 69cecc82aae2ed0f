//! A real Prometheus scrapes a router; the dashboard asks it, and the alert rules are loaded.

use std::path::Path;

use super::{cases, route};
use crate::lab::{Injector, Lab, Ns, Router, Star, Udp, UdpRx, eventually, http};

cases!("prometheus":
    #[Program("prometheus", "prometheus")] every_panel_has_data_and_totals_are_what_was_sent,
    #[Program("promtool", "prometheus")] the_alert_rules_are_rules,
);

fn dashboards(file: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards");
    folder.join(file).display().to_string()
}

/// The answer to `path` of the HTTP API.
fn ask(ns: &Ns, path: &str) -> Option<serde_json::Value> {
    let address = "127.0.0.1:9090".parse().expect("an address");
    let answer = http::get(ns, address, path).ok()?;
    let answer: serde_json::Value = serde_json::from_str(&answer.body).ok()?;
    (answer["status"] == "success").then(|| answer["data"].clone())
}

/// The result of a query at this moment.
fn query(ns: &Ns, expression: &str) -> Vec<serde_json::Value> {
    let encoded: String = expression
        .bytes()
        .map(|b| match b.is_ascii_alphanumeric() {
            true => char::from(b).to_string(),
            false => format!("%{b:02X}"),
        })
        .collect();
    let data = ask(ns, &format!("/api/v1/query?query={encoded}"));
    let result = data.and_then(|d| d["result"].as_array().cloned());
    result.unwrap_or_default()
}

fn value(ns: &Ns, expression: &str) -> f64 {
    let result = query(ns, expression);
    let text = result.first().and_then(|r| r["value"][1].as_str());
    text.and_then(|t| t.parse().ok()).unwrap_or(f64::NAN)
}

fn every_panel_has_data_and_totals_are_what_was_sent(lab: &Lab) {
    let star = Star::dual(lab, 1);
    let toml = route("r", "in", "", "225.1.2.3", &["out1"], "")
        + "[[proxy]]\nname = \"p\"\nupstream = [\"in\"]\ndownstream = [\"out1\"]\n\
           header_checks = \"strict\"\n";
    let router = Router::start(lab, &star.rtr, &toml);
    let config = lab.file("prometheus.yml");
    let text = format!(
        "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n\
         rule_files: [\"{}\"]\n\
         scrape_configs:\n\
         - job_name: mcastor\n  static_configs: [{{ targets: [\"127.0.0.1:9464\"] }}]\n",
        dashboards("alerts.yml")
    );
    std::fs::write(&config, text).expect("writing settings");
    let data = lab.file("prometheus");
    let _prometheus = star.rtr.spawn(
        lab,
        "prometheus",
        &[
            &format!("--config.file={}", config.display()),
            &format!("--storage.tsdb.path={}", data.display()),
            "--web.listen-address=127.0.0.1:9090",
        ],
    );
    eventually("it scrapes", 1.0, || {
        value(&star.rtr, "up{job=\"mcastor\"}")
    });
    let inject = Injector::new(&star.src, "eth0");
    let send = |n: u16, group: &str, ttl: u8| {
        let frame = Udp::new("10.0.0.10:9", group, "12345678").id(n).ttl(ttl);
        inject.send(&frame.frame());
    };
    let rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.4:5000");
    let members = [("iface", "out1"), ("protocol", "igmp")];
    router.expect_metric("mcastor_membership_groups", &members, 1);
    // 300 that are forwarded by the route, 200 by the proxy, 100 that have no TTL left; and
    // reports that nobody may send: each thing a panel shows has happened.
    let report = crate::lab::frame::ethernet(
        "224.0.0.22".parse().expect("an address"),
        &crate::lab::frame::ipv4(
            &crate::lab::frame::Ipv4 {
                tos: 0xc0,
                id: 1,
                flags_offset: 0,
                ttl: 1,
                protocol: 2,
                src: [10, 0, 1, 10],
                dst: [224, 0, 0, 22],
                options: vec![0x94, 4, 0, 0],
            },
            // A version 3 report whose checksum is wrong.
            &[0x22, 0, 0x12, 0x34, 0, 0, 0, 0],
        ),
    );
    let reports = Injector::new(&star.rcv, "eth1");
    let mut rounds = 0u16;
    let mut round = || {
        for n in 0..30 {
            send(rounds * 100 + n, "225.1.2.3:5000", 9);
        }
        for n in 30..50 {
            send(rounds * 100 + n, "225.1.2.4:5000", 9);
        }
        for n in 50..60 {
            send(rounds * 100 + n, "225.1.2.3:5000", 1);
        }
        reports.send(&report);
        router.tell("flush");
        rounds += 1;
    };
    let scrapes = || value(&star.rtr, "scrape_samples_scraped") > 0.0;
    for _ in 0..10 {
        round();
        let before = value(&star.rtr, "timestamp(up{job=\"mcastor\"})");
        eventually("another scrape", true, || {
            scrapes() && value(&star.rtr, "timestamp(up{job=\"mcastor\"})") > before
        });
    }
    // Totals first: nothing is sent any more.
    for (expression, want) in [
        ("sum(mcastor_route_packets_total{route=\"r\"})", 300.0),
        ("sum(mcastor_route_packets_total{route=\"p\"})", 200.0),
        ("sum(mcastor_route_bytes_total{route=\"r\"})", 300.0 * 36.0),
        (
            "sum(mcastor_dropped_packets_total{reason=\"ttl_expired\"})",
            100.0,
        ),
        ("sum(mcastor_interface_transmitted_packets_total)", 500.0),
    ] {
        eventually(expression, want, || value(&star.rtr, expression));
    }
    assert_eq!(rx.count(), 200);
    let text = std::fs::read_to_string(dashboards("mcastor.json")).expect("the dashboard");
    let board: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let mut asked = 0;
    for panel in board["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().expect("an expression");
            // Only with an MNAT server, which this router has none of.
            if expression.contains("mcastor_mnat_") {
                continue;
            }
            let expression = expression
                .replace("$__rate_interval", "1m")
                .replace("$instance", ".*");
            asked += 1;
            let title = panel["title"].as_str().unwrap_or("");
            eventually(&format!("{title}: {expression}"), true, || {
                !query(&star.rtr, &expression).is_empty()
            });
        }
    }
    assert!(asked > 15, "{asked} queries");
    let healthy = || {
        let groups = ask(&star.rtr, "/api/v1/rules")?["groups"]
            .as_array()
            .cloned()?;
        let rules = groups[0]["rules"].as_array().cloned()?;
        let ok = rules.iter().all(|r| r["health"] == "ok");
        Some((rules.len() > 7, ok))
    };
    eventually("alert rules are evaluated", Some((true, true)), healthy);
}

fn the_alert_rules_are_rules(lab: &Lab) {
    let ns = lab.ns("a");
    let out = ns.output("promtool", &["check", "rules", &dashboards("alerts.yml")]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{said}");
}
