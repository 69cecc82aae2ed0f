//! A real Prometheus scrapes a router, evaluates the dashboard's queries and loads the alert rules.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::{cases, route};
use crate::lab::frame::IpPacket;
use crate::lab::metrics::Metrics;
use crate::lab::mnat::{self, Ca};
use crate::lab::{Injector, Lab, Ns, Program, Router, Star, Udp, UdpRx, eventually, http, pcap};

cases!("prometheus":
    #[Program("prometheus", "prometheus")] dashboard_panels_have_data_and_exact_totals,
    #[Program("prometheus", "prometheus")] alerts_fire_and_resolve,
    #[Program("promtool", "prometheus")] promtool_tests_cover_each_alert,
);

const DASHBOARDS: [&str; 5] = [
    "overview.json",
    "interfaces.json",
    "stream.json",
    "mnat-amt.json",
    "discovery.json",
];

/// Returns the path of a file in dashboards/.
fn dashboards(file: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards");
    folder.join(file).display().to_string()
}

/// Returns the data of a successful answer to `path` of the HTTP API.
fn query_api(ns: &Ns, path: &str) -> Option<serde_json::Value> {
    let address = "127.0.0.1:9090".parse().expect("an address");
    let answer = http::get(ns, address, path).ok()?;
    let answer: serde_json::Value = serde_json::from_str(&answer.body).ok()?;
    (answer["status"] == "success").then(|| answer["data"].clone())
}

/// Returns the result of an instant query.
fn query(ns: &Ns, expression: &str) -> Vec<serde_json::Value> {
    let encoded: String = expression
        .bytes()
        .map(|b| match b.is_ascii_alphanumeric() {
            true => char::from(b).to_string(),
            false => format!("%{b:02X}"),
        })
        .collect();
    let data = query_api(ns, &format!("/api/v1/query?query={encoded}"));
    let result = data.and_then(|d| d["result"].as_array().cloned());
    result.unwrap_or_default()
}

fn value(ns: &Ns, expression: &str) -> f64 {
    let result = query(ns, expression);
    let text = result.first().and_then(|r| r["value"][1].as_str());
    text.and_then(|t| t.parse().ok()).unwrap_or(f64::NAN)
}

/// Writes a copy of the alert rules in which no alert waits, and returns its path.
fn rules_without_wait(lab: &Lab) -> String {
    let rules = std::fs::read_to_string(dashboards("alerts.yml")).expect("the alerts");
    let lines = rules.lines().map(|line| match line.split_once("for: ") {
        Some((indent, _)) if indent.trim().is_empty() => format!("{indent}for: 0s\n"),
        _ => format!("{line}\n"),
    });
    let file = lab.file("alerts.yml");
    std::fs::write(&file, lines.collect::<String>()).expect("writing rules");
    file.display().to_string()
}

/// Starts a Prometheus with the alert rules beside a router and waits for its first scrape. It also
/// scrapes the MNAT server, if there is one.
fn prometheus(lab: &Lab, ns: &Ns, server: Option<&str>) -> Program {
    let server: Vec<&str> = server.into_iter().collect();
    let config = lab.file("prometheus.yml");
    let text = format!(
        "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n\
         rule_files: [\"{}\", \"{}\"]\n\
         scrape_configs:\n\
         - job_name: mcastor\n  static_configs: [{{ targets: [\"127.0.0.1:9464\"] }}]\n\
         - job_name: mnat-server\n  static_configs: [{{ targets: {server:?} }}]\n",
        rules_without_wait(lab),
        dashboards("recording.yml")
    );
    std::fs::write(&config, text).expect("writing settings");
    let data = lab.file("prometheus");
    let program = ns.spawn(
        lab,
        "prometheus",
        &[
            &format!("--config.file={}", config.display()),
            &format!("--storage.tsdb.path={}", data.display()),
            "--web.listen-address=127.0.0.1:9090",
        ],
    );
    eventually("Prometheus scrapes", 1.0, || {
        value(ns, "up{job=\"mcastor\"}")
    });
    program
}

/// Waits until all changes before this call have been scraped.
#[track_caller]
fn wait_for_scrape(ns: &Ns) {
    let last = || value(ns, "timestamp(up{job=\"mcastor\"})");
    // The first scrape may have started before this call.
    for _ in 0..2 {
        let before = last();
        eventually("another scrape", true, || last() > before);
    }
}

/// The addresses of the MNAT server: for clients, and of its metrics.
const MNAT: &str = "127.0.0.1:8443";
const MNAT_HTTP: &str = "127.0.0.1:9470";

/// Its pool: one local stream.
const POOL: &str = r#"{"group-pool": {"ranges": [
    {"group-range": "239.1.1.1/32", "source-range": "10.9.9.9"}]}}"#;

/// Returns the settings of an MNAT egress with one stream.
fn mnat_settings(lab: &Lab, ca: &Ca) -> String {
    let (ca_file, joinfile) = (lab.file("ca.pem"), lab.file("egress.sgs"));
    std::fs::write(&ca_file, ca.pem()).expect("writing a certificate");
    std::fs::write(&joinfile, "10.0.0.10,232.1.1.1\n").expect("writing joins");
    format!(
        "[mnat]\nrole = \"egress\"\nserver = \"https://{MNAT}\"\nca = \"{}\"\n\
         upstream = \"in\"\ndownstream = \"out2\"\njoinfile = \"{}\"\n",
        ca_file.display(),
        joinfile.display()
    )
}

/// A relay, and a gateway that joins through it.
const AMT: &str = "[[amt.relay]]\nname = \"tunnels\"\nlimits = { bandwidth = \"1Gbit\" }\n\
    [[amt.gateway]]\nname = \"internet\"\nrelay = \"127.0.0.1\"\n\
    [[proxy]]\nname = \"relayed\"\nupstream = [\"in\"]\ndownstream = [\"tunnels\"]\n\
    [[join]]\ninterface = \"internet\"\nsource = \"10.0.0.10\"\ngroup = \"232.9.9.9\"\n";

/// A monitored group, a merge of two paths, and discovery.
const STREAMS: &str = "[monitor]\nsilent_after = \"1s\"\n\
    [[route]]\nname = \"studio\"\nfrom = \"in\"\ngroup = \"225.1.2.6\"\nto = [\"out1\"]\n\
    monitor = \"rtp\"\n\
    [[route]]\nname = \"feed\"\nfrom = \"in\"\ngroup = \"225.1.2.7\"\nto = [\"out1\"]\n\
    merge = { with = \"out2\", window = \"50ms\" }\n\
    [[discovery]]\nbetween = [\"in\", \"out1\"]\nprotocols = [\"mdns\"]\n\
    deny = [{ service = \"_ssh._tcp\" }]\n";

/// Sends the RTP stream of a capture, of which two packets are missing, and five with TTL 1 behind
/// it. Also questions of multicast DNS, one for a service that is denied.
fn send_stream(inject: &Injector) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/streams/rtp_ts.pcap");
    let mut last = Vec::new();
    for (n, frame) in pcap::read(&file).iter().enumerate() {
        let packet = IpPacket::parse(frame).expect("a datagram");
        last = packet.payload().to_vec();
        if ![9, 11].contains(&n) {
            inject.send(&Udp::new("10.0.0.10:9", "225.1.2.6:5004", &last).frame());
        }
        // The delay factor is that of a full second.
        std::thread::sleep(Duration::from_millis(50));
    }
    let number = u16::from_be_bytes([last[2], last[3]]);
    for n in 1..=5u16 {
        last[2..4].copy_from_slice(&number.wrapping_add(n).to_be_bytes());
        inject.send(
            &Udp::new("10.0.0.10:9", "225.1.2.6:5004", &last)
                .ttl(1)
                .frame(),
        );
    }
    for service in ["_http", "_ssh"] {
        let mut question = vec![0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in [service, "_tcp", "local"] {
            question.push(label.len() as u8);
            question.extend(label.as_bytes());
        }
        // PTR, IN.
        question.extend([0, 0, 12, 0, 1]);
        let datagram = Udp::new("10.0.0.10:5353", "224.0.0.251:5353", question);
        inject.send(&datagram.ttl(255).frame());
    }
}

fn dashboard_panels_have_data_and_exact_totals(lab: &Lab) {
    let star = Star::dual(lab, 2);
    let ca = Ca::new();
    let _server = mnat::start_server(lab, &star.rtr, &ca, MNAT, POOL, &["--http", MNAT_HTTP]);
    let toml = route("r", "in", "", "225.1.2.3", &["out1"], "")
        + "[[proxy]]\nname = \"p\"\nupstream = [\"in\"]\ndownstream = [\"out1\"]\n\
           header_checks = \"strict\"\n"
        + &mnat_settings(lab, &ca)
        + AMT
        + STREAMS;
    let router = Router::start(lab, &star.rtr, &toml);
    let _prometheus = prometheus(lab, &star.rtr, Some(MNAT_HTTP));
    let inject = Injector::new(&star.src, "eth0");
    let send = |n: u16, source: &str, group: &str, ttl: u8| {
        let frame = Udp::new(source, group, "12345678").id(n).ttl(ttl);
        inject.send(&frame.frame());
    };
    let rx = UdpRx::join(&star.rcv, "eth1", "225.1.2.4:5000");
    let members = [("iface", "out1"), ("protocol", "igmp")];
    router.expect_metric("mcastor_membership_groups", &members, 1);
    let assigned = [("role", "egress"), ("state", "assigned")];
    router.expect_metric("mcastor_mnat_mappings", &assigned, 1);
    let connected = [("role", "gateway"), ("state", "connected")];
    router.expect_metric("mcastor_amt_tunnels", &connected, 1);
    // 300 packets are forwarded by the route, 200 by the proxy, 50 by MNAT, 100 have no TTL left,
    // and reports are refused: every event that a panel shows has happened.
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
            // An IGMPv3 report with a wrong checksum.
            &[0x22, 0, 0x12, 0x34, 0, 0, 0, 0],
        ),
    );
    let reports = Injector::new(&star.rcv, "eth1");
    let mut rounds = 0u16;
    let mut round = || {
        for n in 0..30 {
            send(rounds * 100 + n, "10.0.0.10:9", "225.1.2.3:5000", 9);
        }
        for n in 30..50 {
            send(rounds * 100 + n, "10.0.0.10:9", "225.1.2.4:5000", 9);
        }
        for n in 50..60 {
            send(rounds * 100 + n, "10.0.0.10:9", "225.1.2.3:5000", 1);
        }
        for n in 60..65 {
            send(rounds * 100 + n, "10.9.9.9:9", "239.1.1.1:5000", 9);
        }
        reports.send(&report);
        router.run("flush");
        rounds += 1;
    };
    for _ in 0..10 {
        round();
        wait_for_scrape(&star.rtr);
    }
    send_stream(&inject);
    // Totals first: no more packets are sent.
    for (expression, want) in [
        ("sum(mcastor_route_packets_total{route=\"r\"})", 300.0),
        ("sum(mcastor_route_packets_total{route=\"p\"})", 200.0),
        ("sum(mcastor_route_bytes_total{route=\"r\"})", 300.0 * 36.0),
        (
            "sum(mcastor_dropped_packets_total{reason=\"ttl_expired\"})",
            105.0,
        ),
        ("sum(mcastor_route_packets_total{oif=\"out2\"})", 50.0),
        ("sum(mcastor_stream_lost_before_packets_total)", 2.0),
        (
            "sum(mcastor_stream_lost_here_packets_total{reason=\"ttl_expired\"})",
            5.0,
        ),
        ("sum(mcastor_stream_packets_total)", 51.0),
        ("sum(mcastor_stream_sent_packets_total)", 46.0),
        ("mcastor_mnat_mappings{state=\"assigned\"}", 1.0),
        ("mcastor_mnat_server_up", 1.0),
        ("sum(mcastor_interface_transmitted_packets_total)", 596.0),
    ] {
        eventually(expression, want, || value(&star.rtr, expression));
    }
    assert_eq!(rx.count(), 200);
    let mut queries = 0;
    for file in DASHBOARDS {
        queries += assert_panels_have_data(&star.rtr, file);
    }
    assert!(queries > 60, "{queries} queries");
    for record in recorded() {
        eventually(&record, true, || !query(&star.rtr, &record).is_empty());
    }
    assert_alerts_match_metrics(&star.rtr, &router);
}

/// Waits until each query of a dashboard returns data. Returns the number of queries.
fn assert_panels_have_data(ns: &Ns, file: &str) -> usize {
    let text = std::fs::read_to_string(dashboards(file)).expect("the dashboard");
    let board: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let variables = board["templating"]["list"].as_array().expect("variables");
    let variables = variables
        .iter()
        .filter(|variable| variable["type"] == "query");
    let variables: Vec<String> = variables
        .map(|variable| format!("${}", variable["name"].as_str().expect("a name")))
        .collect();
    let mut queries = 0;
    let rows = board["panels"].as_array().expect("panels").iter();
    // The panels of a collapsed row are below the row.
    let panels = rows.flat_map(|row| {
        let below = row["panels"].as_array().into_iter().flatten();
        std::iter::once(row).chain(below)
    });
    for panel in panels {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().expect("an expression");
            let mut expression = expression.replace("$__rate_interval", "1m");
            // Other than `.*`, this does not match a label that a series does not have.
            for variable in &variables {
                expression = expression.replace(variable, ".+");
            }
            queries += 1;
            let title = panel["title"].as_str().unwrap_or("");
            eventually(&format!("{title}: {expression}"), true, || {
                !query(ns, &expression).is_empty()
            });
        }
    }
    queries
}

/// Returns the names of the recorded series.
fn recorded() -> Vec<String> {
    let rules = std::fs::read_to_string(dashboards("recording.yml")).expect("the rules");
    let names = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- record: "));
    names.map(str::to_owned).collect()
}

/// Checks that every metric of the alerts exists in Prometheus, that each excluded reason exists,
/// and that the series of the alert tests have the labels of real ones.
fn assert_alerts_match_metrics(ns: &Ns, router: &Router) {
    let alerts = std::fs::read_to_string(dashboards("alerts.yml")).expect("the alerts");
    let in_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = alerts.split(|c| !in_word(c));
    let names: BTreeSet<&str> = words.filter(|w| w.starts_with("mcastor_")).collect();
    assert!(names.len() > 8, "{names:?}");
    for name in names {
        eventually(name, true, || !query(ns, name).is_empty());
    }
    let mut real = router.metrics();
    let of_server = http::get(ns, MNAT_HTTP.parse().expect("an address"), "/metrics");
    let of_server = Metrics::parse(&of_server.expect("metrics of the server").body);
    real.samples.extend(of_server.samples);
    let reasons = alerts.split_once("reason!~\"").expect("reasons").1;
    let (reasons, _) = reasons.split_once('"').expect("an end");
    for reason in reasons.split('|') {
        let labels = [("reason", reason)];
        let named = real.matching("mcastor_dropped_packets_total", &labels);
        assert!(named.count() > 0, "{reason} is not a drop reason");
    }
    let tests = std::fs::read_to_string(dashboards("alerts_test.yml")).expect("the tests");
    let series = tests.lines().filter_map(|l| {
        let text = l.trim().strip_prefix("- series: '")?;
        text.strip_suffix('\'')
    });
    // Prometheus itself makes the series `up`.
    let series = series.filter(|text| !text.starts_with("up{"));
    let mut seen = 0;
    for text in series {
        seen += 1;
        let mut sample = Metrics::parse(&format!("{text} 0")).samples.remove(0);
        for added in ["instance", "job"] {
            assert!(sample.labels.remove(added).is_some(), "{text}: {added}");
        }
        // Labels with a fixed set of values must have one of them; other labels may have any value.
        let fixed = ["reason", "actor", "protocol", "plane", "path"];
        let fixed: Vec<(&str, &str)> = (sample.labels.iter())
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .filter(|(k, _)| fixed.contains(k))
            .collect();
        let like = real
            .matching(&sample.name, &fixed)
            .find(|r| r.labels.keys().eq(sample.labels.keys()));
        assert!(like.is_some(), "no exported series is like {text}");
    }
    assert!(seen > 20, "{seen} series");
}

fn firing(ns: &Ns, alert: &str) -> bool {
    let firing = format!("ALERTS{{alertname=\"{alert}\",alertstate=\"firing\"}}");
    !query(ns, &firing).is_empty()
}

/// Covers alerts that need no window without events. The others would take minutes; promtool tests
/// cover them.
fn alerts_fire_and_resolve(lab: &Lab) {
    let star = Star::v4(lab, 1);
    let toml = route("r", "in", "", "225.1.2.3", &["out1"], "");
    let allowed = [("MCASTOR_TEST_PANIC", "1")];
    let router = Router::start_with(lab, &star.rtr, &toml, &allowed);
    let _prometheus = prometheus(lab, &star.rtr, None);
    let healthy = || {
        // Prometheus sorts the groups by the path of their file.
        let answer = query_api(&star.rtr, "/api/v1/rules?type=alert")?;
        let groups = answer["groups"].as_array()?;
        let rules = || groups.iter().filter_map(|group| group["rules"].as_array());
        let rules = || rules().flatten();
        Some((rules().count() > 7, rules().all(|r| r["health"] == "ok")))
    };
    eventually("alert rules are evaluated", Some((true, true)), healthy);
    for alert in ["McastorReloadFailed", "McastorActorRestarting"] {
        assert!(!firing(&star.rtr, alert), "{alert}");
    }
    router.write_settings("[[route]]\nfrom = \"in\"\n");
    assert!(!router.try_run("reload").status.success());
    eventually("the alert of the refused reload fires", true, || {
        firing(&star.rtr, "McastorReloadFailed")
    });
    router.write_settings(&toml);
    router.run("reload");
    eventually("the alert ends", false, || {
        firing(&star.rtr, "McastorReloadFailed")
    });
    let restarts = [("actor", "links")];
    for n in 1..=3 {
        router.control().expect_ok(&json!({ "panic": "links" }));
        router.expect_metric("mcastor_actor_restarts_total", &restarts, n);
        if n == 2 {
            wait_for_scrape(&star.rtr);
            assert!(!firing(&star.rtr, "McastorActorRestarting"), "after two");
        }
    }
    eventually("the alert of repeated restarts fires", true, || {
        firing(&star.rtr, "McastorActorRestarting")
    });
}

fn promtool_tests_cover_each_alert(lab: &Lab) {
    let ns = lab.ns("a");
    for (command, file) in [
        ("check", "alerts.yml"),
        ("check", "recording.yml"),
        ("test", "alerts_test.yml"),
    ] {
        let out = ns.output("promtool", &[command, "rules", &dashboards(file)]);
        let printed = format!(
            "{}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        assert!(out.status.success(), "{printed}");
    }
    // At each scrape interval, every alert has a test where it fires and one where it does not.
    let read = |file| std::fs::read_to_string(dashboards(file)).expect("a file");
    let (alerts, tests) = (read("alerts.yml"), read("alerts_test.yml"));
    let mut cases: BTreeSet<(&str, &str, bool)> = BTreeSet::new();
    for group in tests.split("\n  - name: ").skip(1) {
        let (title, group) = group.split_once('\n').expect("a title");
        let (name, interval) = title.split_once(" at ").expect("an interval");
        let interval = interval.split(',').next().unwrap_or(interval);
        let declared = group.contains(&format!("    interval: {interval}\n"));
        assert!(declared, "{title}: the interval is another");
        for case in group.split("alertname: ").skip(1) {
            let mut lines = case.lines();
            assert_eq!(lines.next(), Some(name), "{title}");
            let expected = lines.next().expect("what is expected").trim();
            cases.insert((name, interval, expected != "exp_alerts: []"));
        }
    }
    let names: Vec<&str> = alerts
        .lines()
        .filter_map(|l| l.trim().strip_prefix("- alert: "))
        .collect();
    assert!(names.len() > 8, "{names:?}");
    for name in names {
        for interval in ["15s", "60s"] {
            for fires in [true, false] {
                let has_test = cases.contains(&(name, interval, fires));
                assert!(
                    has_test,
                    "no test at {interval} where {name} fires: {fires}"
                );
            }
        }
    }
}
