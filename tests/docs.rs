//! Tests of the documents against the program: settings load, commands parse, links resolve, and
//! the lists of metrics, labels and drop reasons are complete. The OpenAPI document is up to date;
//! `MCASTOR_BLESS=1 cargo test --test docs` writes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use mcastor::amt::AmtRefusal;
use mcastor::api::ShowQuery;
use mcastor::api::openapi::api_paths;
use mcastor::app::children;
use mcastor::discovery::protocol::DiscoveryProtocol;
use mcastor::discovery::reason::WithheldReason;
use mcastor::doctor::Cause;
use mcastor::doctor::examine::NORMAL_REASONS;
use mcastor::forward::DropReason;
use mcastor::frontend::control::{Outcome, Request, Response};
use mcastor::membership::{MembershipRefusal, Protocol};
use mcastor::merge::MergeStatistics;
use mcastor::metrics::bandwidth::BandwidthNumbers;
use mcastor::metrics::http::HttpRefusal;
use mcastor::metrics::membership::{Direction, MembershipState};
use mcastor::metrics::mnat_server::CloseReason;
use mcastor::metrics::streams::{StreamCounter, StreamGauge, StreamNumbers};
use mcastor::metrics::{Catalog, MnatServerCatalog};
use mcastor::model::{FlowEnd, InterfaceId, Link, RouteName, TakeoverRole, TranslationKind};
use mcastor::settings::Settings;
use mcastor::wire::RejectReason;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Returns the files of a folder with one of these extensions, or none if the folder is absent.
fn files(folder: &str, endings: &[&str]) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root().join(folder)) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .map(|e| e.unwrap().path())
        .filter(|p| {
            endings
                .iter()
                .any(|e| p.extension().is_some_and(|x| x == *e))
        })
        .collect();
    found.sort();
    found
}

fn documents() -> Vec<PathBuf> {
    let mut all = vec![
        root().join("README.md"),
        root().join("ARCHITECTURE.md"),
        root().join("SECURITY.md"),
        root().join("CONTRIBUTING.md"),
    ];
    all.extend(files("docs", &["md"]));
    all.push(root().join("bench/results/membership.md"));
    all
}

/// Returns the code blocks of a text: line of the fence, info string, body.
fn blocks(text: &str) -> Vec<(usize, String, String)> {
    let mut found = Vec::new();
    let mut open: Option<(usize, String, String)> = None;
    for (n, line) in text.lines().enumerate() {
        let fence = line.trim_start().strip_prefix("```");
        match (fence, &mut open) {
            (Some(info), None) => open = Some((n + 1, info.trim().into(), String::new())),
            (Some(_), Some(_)) => found.extend(open.take()),
            (None, Some((_, _, body))) => {
                body.push_str(line);
                body.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a code block is never closed: {open:?}");
    found
}

/// A metric family as the catalogue exports it.
struct Metric {
    kind: String,
    labels: BTreeSet<String>,
}

/// Returns the text of a catalogue in which each family has at least one series.
fn catalogue_text() -> String {
    let catalog = Catalog::new().unwrap();
    catalog.interface("eth0");
    catalog.path(&RouteName::new("r"), "eth0", "eth1", "packet");
    catalog.count_restart("routing");
    catalog.set_joined_groups("eth0", 1);
    catalog.mnat.set_mappings("egress", "assigned", 1);
    catalog.mnat.set_server_up(true);
    catalog.mnat.observe_join_seconds(0.1);
    catalog.mnat.count_request("poll", "200");
    catalog.amt.set_tunnels("eth0", "relay", "connected", 1);
    catalog
        .amt
        .set_relay_state("eth0", "192.0.2.1:2268", Some(true));
    catalog.amt.count_message("eth0", "query", "received");
    catalog.amt.count_refused("eth0", "wrong_mac", 1);
    catalog.amt.count_discovery("eth0", "driad", "found");
    catalog.amt.add_copies("eth0", 1, 1);
    catalog.amt.add_failed_copies("eth0", "too_big", 1);
    let limited = [("eth0", BandwidthNumbers::default())];
    catalog.bandwidth.set(&limited.into());
    catalog.discovery.count_message("mdns", "question");
    catalog
        .discovery
        .count_withheld("mdns", "question", "denied");
    catalog.discovery.set_known("mdns", 1, 1);
    let none = MergeStatistics::default();
    catalog.merge.add("cameras", &none, &none);
    let stream = ["eth0", "10.0.0.1", "225.1.2.3"].map(String::from);
    let counters = StreamCounter::ALL.map(|counter| (counter, "x".into(), 1));
    let numbers = StreamNumbers {
        counters: counters.to_vec(),
        gauges: StreamGauge::ALL.map(|gauge| (gauge, 1.0)).to_vec(),
        verdict: "fine",
    };
    catalog.streams.set(&[(stream, numbers)].into());
    catalog.streams.count_event("silent");
    catalog.streams.count_alert_request("sent");
    catalog.count_ended_flows("eth0", FlowEnd::Idle, 1);
    catalog.count_evicted_dropped_flows("eth0", 1);
    catalog.count_takeovers("eth0", TakeoverRole::Ingress, 1);
    catalog.set_link(&Link::new(
        InterfaceId::new(1).unwrap(),
        "eth0".parse().unwrap(),
    ));
    for protocol in Protocol::ALL {
        let membership = &catalog.membership;
        membership.count_message("eth0", protocol, Direction::Received, "report", "2");
        membership.set_state("eth0", protocol, MembershipState::default());
        membership.count_rejected("eth0", "checksum", 1);
    }
    let server = MnatServerCatalog::new().unwrap();
    server.observe_request("poll", "200", 0.1);
    let all = [catalog.text().unwrap(), server.text().unwrap()].concat();
    String::from_utf8(all).unwrap()
}

/// Returns every metric family by its name.
fn catalogue() -> BTreeMap<String, Metric> {
    let text = catalogue_text();
    let families = text
        .lines()
        .filter_map(|l| l.strip_prefix("# TYPE ")?.split_once(' '));
    families
        .map(|(name, kind)| {
            let suffix = if kind == "histogram" { "_bucket" } else { "" };
            let series = format!("{name}{suffix}");
            let labels = text
                .lines()
                .filter_map(|l| l.strip_prefix(&series)?.strip_prefix('{')?.split_once('}'))
                .flat_map(|(labels, _)| labels.split(',').filter_map(|l| l.split_once('=')))
                .map(|(label, _)| label.to_string())
                .filter(|label| label != "le")
                .collect();
            let kind = kind.to_string();
            (name.to_string(), Metric { kind, labels })
        })
        .collect()
}

/// Returns every `mcastor_...` word of a text. A word that ends in `_` is a prefix
/// (`mcastor_interface_*`), not a name.
fn metric_words(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !word(c))
        .filter(|w| w.starts_with("mcastor_") && !w.ends_with('_'))
        .map(String::from)
        .collect()
}

#[test]
fn metrics_in_documents_exist() {
    let known: BTreeSet<String> = catalogue()
        .into_iter()
        .flat_map(|(name, metric)| {
            let suffixes: &[&str] = match metric.kind.as_str() {
                "histogram" => &["", "_bucket", "_sum", "_count"],
                _ => &[""],
            };
            suffixes
                .iter()
                .map(|s| format!("{name}{s}"))
                .collect::<Vec<_>>()
        })
        .collect();
    let mut texts = documents();
    let dashboards = files("dashboards", &["json", "yml"]);
    assert!(!dashboards.is_empty());
    texts.extend(dashboards);
    let mut seen = 0;
    for path in texts {
        for name in metric_words(&read(&path)) {
            assert!(
                known.contains(&name),
                "{}: there is no metric {name}",
                path.display()
            );
            seen += 1;
        }
    }
    assert!(seen > known.len() / 2, "only {seen} names were found");
}

/// The code spans of a text: words between backquotes.
fn code_spans(text: &str) -> BTreeSet<String> {
    let spans = text.split('`').skip(1).step_by(2);
    spans.map(String::from).collect()
}

/// Names, types and labels of the table are those of the catalogue, and no others.
#[test]
fn metrics_table_matches_the_catalogue() {
    let text = read("docs/metrics.md");
    let families = catalogue();
    assert!(families.len() >= 20, "{} families", families.len());
    for (name, metric) in &families {
        let row = format!("| `{name}` | {} |", metric.kind);
        let Some((_, rest)) = text.split_once(&row) else {
            panic!("docs/metrics.md lacks a row {row}");
        };
        let labels = code_spans(rest.split('|').next().unwrap());
        assert_eq!(labels, metric.labels, "labels of {name} in docs/metrics.md");
    }
    let names: BTreeSet<&str> = first_column(&text, "## All metrics").into_iter().collect();
    let known: BTreeSet<&str> = families.keys().map(String::as_str).collect();
    assert_eq!(names, known);
}

/// The values listed for a label in docs/metrics.md are those of the code.
#[test]
fn values_of_fixed_labels_are_complete() {
    let text = read("docs/metrics.md");
    let (_, labels) = text
        .split_once("\n## Labels\n")
        .expect("a chapter of labels");
    let labels = labels.split("\n## ").next().unwrap();
    let families = TranslationKind::ALL.map(TranslationKind::label);
    let mut protocols = Protocol::ALL.map(Protocol::label).to_vec();
    protocols.extend(DiscoveryProtocol::NAMED.map(|(name, _)| name));
    protocols.extend(["group", "broadcast"]);
    let directions = ["received", "transmitted"];
    for (label, values) in [
        ("actor", &children::roles()[..]),
        ("family", &families[..]),
        ("protocol", &protocols[..]),
        ("direction", &directions[..]),
        ("plane", &["packet", "ebpf", "amt"][..]),
    ] {
        let start = format!("| `{label}` |");
        let row = labels.lines().find_map(|l| l.strip_prefix(&start));
        let Some(row) = row else {
            panic!("docs/metrics.md lacks a row {start}");
        };
        let expected: BTreeSet<String> = values.iter().map(|v| v.to_string()).collect();
        assert_eq!(code_spans(row), expected, "values of {label}");
    }
    let listed: BTreeSet<String> = first_column(&text, "## Labels")
        .into_iter()
        .map(String::from)
        .collect();
    let used: BTreeSet<String> = catalogue().into_values().flat_map(|m| m.labels).collect();
    assert_eq!(listed, used, "labels in docs/metrics.md");
}

#[test]
fn drop_reasons_table_matches_the_code() {
    let text = read("docs/metrics.md");
    for reason in DropReason::ALL {
        let (label, meaning) = (reason.label(), reason.meaning());
        let row = format!("| `{label}` | {meaning} | {} |", reason.remedy());
        let without_links = text.replace("[redundancy.md](redundancy.md)", "redundancy.md");
        assert!(
            without_links.contains(&row),
            "docs/metrics.md lacks a row {row}"
        );
    }
    let labels = first_column(&text, "## Drop reasons");
    let known: Vec<&str> = DropReason::ALL.iter().map(|r| r.label()).collect();
    assert_eq!(labels.len(), known.len());
    for label in labels {
        assert!(known.contains(&label), "there is no drop reason {label}");
    }
}

#[test]
fn findings_and_drop_reasons_have_an_anchor() {
    let text = read("docs/troubleshooting.md");
    for problem in Cause::ALL {
        let heading = format!("### {}\n\n", problem.label());
        let section = text.split(&heading).nth(1).unwrap_or_default();
        let meaning: Vec<&str> = problem.meaning().split_whitespace().collect();
        let words: Vec<&str> = section.split_whitespace().take(meaning.len()).collect();
        assert_eq!(words, meaning, "{}", problem.label());
    }
    for reason in DropReason::ALL {
        let anchor = format!("<a id=\"{}\"></a>", reason.label());
        assert!(
            text.contains(&anchor),
            "docs/troubleshooting.md lacks {anchor}"
        );
    }
}

/// Returns the names in the first column of the tables of a chapter.
fn first_column<'t>(text: &'t str, chapter: &str) -> Vec<&'t str> {
    let (_, chapter) = text.split_once(&format!("\n{chapter}\n")).expect(chapter);
    let chapter = chapter.split("\n## ").next().unwrap();
    chapter
        .lines()
        .filter_map(|l| l.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name)
        .collect()
}

#[test]
fn flow_end_reasons_table_matches_the_code() {
    let text = read("docs/metrics.md");
    let labels = FlowEnd::ALL.map(FlowEnd::label);
    assert_eq!(first_column(&text, "## Flows"), labels);
}

#[test]
fn http_refusals_table_matches_the_code() {
    let text = read("docs/metrics.md");
    let labels = HttpRefusal::ALL.map(HttpRefusal::label);
    assert_eq!(first_column(&text, "## HTTP"), labels);
}

#[test]
fn closed_connections_table_matches_the_code() {
    let text = read("docs/mnat.md");
    let labels = CloseReason::ALL.map(CloseReason::label);
    assert_eq!(first_column(&text, "## Closed connections"), labels);
}

/// `busy` is counted by the actors and has no variant in either enum.
#[test]
fn amt_refusals_table_matches_the_code() {
    let text = read("docs/amt.md");
    for reason in AmtRefusal::ALL {
        let row = format!("| `{}` | {} |", reason.label(), reason.meaning());
        assert!(text.contains(&row), "docs/amt.md lacks a row {row}");
    }
    let labels = first_column(&text, "## Refused messages");
    assert_eq!(labels.len(), AmtRefusal::COUNT);
}

#[test]
fn withheld_reasons_table_matches_the_code() {
    let text = read("docs/discovery.md");
    for reason in WithheldReason::ALL {
        let row = format!("| `{}` | {} |", reason.label(), reason.meaning());
        assert!(text.contains(&row), "docs/discovery.md lacks a row {row}");
    }
    let labels = first_column(&text, "## Reasons");
    assert_eq!(labels.len(), WithheldReason::COUNT);
}

#[test]
fn refusal_reasons_table_matches_the_code() {
    let text = read("docs/proxy.md");
    let listed = first_column(&text, "## Rejected messages");
    let listed: BTreeSet<&str> = listed.into_iter().collect();
    let wire = RejectReason::ALL.iter().map(|r| r.label());
    let membership = MembershipRefusal::ALL.iter().map(|r| r.label());
    let known: BTreeSet<&str> = wire.chain(membership).chain(["busy"]).collect();
    assert_eq!(listed, known);
}

#[test]
fn protocol_table_lists_every_show_command() {
    let text = read("docs/control.md");
    for show in ShowQuery::all() {
        let name = show.name();
        let row = format!("| `{{\"show\":\"{name}\"}}` | `{{\"{name}\":[...]}}` |");
        assert!(text.contains(&row), "docs/control.md lacks a row {row}");
    }
}

#[test]
fn http_table_lists_every_api_path() {
    let text = read("docs/control.md");
    for path in api_paths() {
        let row = format!("| `{path}` | 200, ");
        assert!(text.contains(&row), "docs/control.md lacks a row {row}");
    }
}

/// The committed document is the output of `mcastor schema --openapi`.
#[test]
fn openapi_document_is_generated() {
    let output = Command::new(env!("CARGO_BIN_EXE_mcastor"))
        .args(["schema", "--openapi"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let file = "docs/openapi.json";
    if std::env::var_os("MCASTOR_BLESS").is_some() {
        fs::write(root().join(file), &text).unwrap();
    }
    assert!(
        fs::read_to_string(root().join(file)).unwrap_or_default() == text,
        "{file} is out of date; update it: MCASTOR_BLESS=1 cargo test --test docs"
    );
}

/// Returns the messages of the protocol examples after an arrow, `->` or `<-`.
fn messages<'t>(text: &'t str, arrow: &'t str) -> impl Iterator<Item = &'t str> {
    text.lines().filter_map(move |l| l.strip_prefix(arrow))
}

#[test]
fn protocol_examples_parse() {
    let text = read("docs/control.md");
    let (mut good, mut refused) = (0, 0);
    for (request, answer) in messages(&text, "-> ").zip(messages(&text, "<- ")) {
        let answer: Response = serde_json::from_str(answer).expect(answer);
        match (Request::parse(request), answer.outcome) {
            (Ok(_), _) => good += 1,
            (Err(e), Outcome::Error(shown)) if e == shown => refused += 1,
            (Err(e), shown) => panic!("{request}: {e}, but the document shows {shown:?}"),
        }
    }
    assert_eq!(
        messages(&text, "-> ").count(),
        messages(&text, "<- ").count(),
        "a request without an answer"
    );
    assert!(good > 8 && refused > 2, "{good} and {refused} were found");
}

fn load(text: &str) -> Result<Settings, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mcastor.toml");
    fs::write(&file, text).unwrap();
    Settings::load(Some(&file), std::iter::empty()).map_err(|e| e.to_string())
}

#[test]
fn settings_in_documents_load() {
    let mut seen = 0;
    for path in documents() {
        for (line, info, body) in blocks(&read(&path)) {
            // `toml,fragment` marks a part of a file that cannot be loaded by itself.
            if info == "toml" {
                seen += 1;
                if let Err(e) = load(&body) {
                    panic!("{}:{line}: {e}", path.display());
                }
            } else if info.starts_with("toml") {
                assert_eq!(info, "toml,fragment", "{}:{line}", path.display());
            }
        }
    }
    assert!(seen > 0);
}

#[test]
fn settings_in_conf_load() {
    for path in files("conf", &["toml"]) {
        if let Err(e) = Settings::load(Some(&path), std::iter::empty()) {
            panic!("{}: {e}", path.display());
        }
    }
}

/// Returns the `MCASTOR__…: value` variables of a compose file. Values may be quoted, and may be
/// `${NAME:-default}`, which counts as its default.
fn compose_variables(path: impl AsRef<Path>) -> Vec<(String, String)> {
    let text = read(path);
    let lines = text.lines().map(str::trim);
    let pairs = lines.filter(|l| l.starts_with("MCASTOR__"));
    pairs
        .map(|line| {
            let (name, value) = line.split_once(": ").unwrap();
            let value = value.trim_matches('"');
            let inner = value.strip_prefix("${").and_then(|v| v.strip_suffix('}'));
            let default = inner.and_then(|v| v.split_once(":-")).map(|(_, d)| d);
            (name.into(), default.unwrap_or(value).into())
        })
        .collect()
}

#[test]
fn settings_in_compose_files_load() {
    let mut seen = 0;
    for path in files("conf/compose", &["yml"]) {
        let variables = compose_variables(&path);
        seen += variables.len();
        if let Err(e) = Settings::load(None, variables.into_iter()) {
            panic!("{}: {e}", path.display());
        }
    }
    assert!(seen > 10, "{seen} variables");
}

/// Checks that the first YAML block of a document is an example without its comments.
#[track_caller]
fn assert_shows_example(document: &str, example: &str) {
    let example = read(example);
    let lines = example.lines().filter(|l| !l.trim().starts_with('#'));
    let plain: String = lines.map(|l| format!("{l}\n")).collect();
    let shown = blocks(&read(document));
    let shown = shown.into_iter().find(|(_, info, _)| info == "yaml");
    assert_eq!(shown.unwrap().2, plain);
}

#[test]
fn containers_document_shows_the_bridge_example() {
    assert_shows_example("docs/containers.md", "conf/compose/bridge.yml");
}

#[test]
fn amt_document_shows_the_compose_example() {
    assert_shows_example("docs/amt.md", "conf/compose/amt.yml");
}

/// The `docker run` lines of README set the variables, the network and the listener of bridge.yml.
#[test]
fn readme_container_equals_the_bridge_example() {
    let readme = blocks(&read("README.md"));
    let block = readme
        .iter()
        .find(|(_, _, body)| body.contains("docker run"));
    let words: Vec<&str> = block.unwrap().2.split_whitespace().collect();
    let variables = words.windows(2).filter(|w| w[0] == "--env");
    let variables: Vec<(String, String)> = variables
        .map(|w| w[1].split_once('=').unwrap())
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    let example = "conf/compose/bridge.yml";
    assert_eq!(variables, compose_variables(example));
    let listener = words.iter().position(|w| *w == "recv").unwrap();
    let command = format!("[{}]", words[listener..].join(", "));
    let example = read(example).replace('"', "");
    assert!(example.contains(&command), "{command}");
}

/// Returns the `mcastor` commands of a shell block, without prompt, comments, pipes and `&`.
fn command_lines(body: &str) -> Vec<Vec<String>> {
    body.replace("\\\n", " ")
        .lines()
        .map(|line| line.trim().trim_start_matches("$ "))
        .map(|line| line.strip_prefix("sudo ").unwrap_or(line))
        .filter(|line| line.starts_with("mcastor "))
        .map(|line| {
            line.split_whitespace()
                .take_while(|w| !matches!(*w, "|" | "&" | ">" | "||" | "&&") && !w.starts_with('#'))
                .map(String::from)
                .collect()
        })
        .collect()
}

#[test]
fn commands_in_documents_parse() {
    let command = mcastor::cli::command();
    let mut seen = 0;
    for path in documents() {
        for (line, info, body) in blocks(&read(&path)) {
            // A block without a language is output.
            if !matches!(info.as_str(), "sh" | "console") {
                continue;
            }
            for words in command_lines(&body) {
                seen += 1;
                if let Err(e) = command.clone().try_get_matches_from(&words) {
                    panic!("{}:{line}: {words:?}: {e}", path.display());
                }
            }
        }
    }
    assert!(seen > 4, "only {seen} commands were found");
}

/// Metrics of the process, with the names that Prometheus' own client libraries use.
const PROCESS_METRICS: [&str; 7] = [
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_threads",
    "process_virtual_memory_bytes",
];

/// The dashboard whose panels show drops, and whose later rows are collapsed.
const OVERVIEW: &str = "dashboards/overview.json";

/// The dashboards, each with the variables that it has besides data source, job and instance.
const DASHBOARDS: [(&str, &[&str]); 5] = [
    (OVERVIEW, &["iface", "route"]),
    ("dashboards/interfaces.json", &["iface"]),
    (
        "dashboards/stream.json",
        &["iif", "source", "group", "route"],
    ),
    ("dashboards/mnat-amt.json", &["iface"]),
    ("dashboards/discovery.json", &[]),
];

fn dashboards() -> impl Iterator<Item = serde_json::Value> {
    let parse = |(file, _): &(&str, _)| serde_json::from_str(&read(file)).unwrap();
    DASHBOARDS.iter().map(parse)
}

/// Returns the elements of a JSON array, or none if `value` is not an array.
fn elements(value: &serde_json::Value) -> impl Iterator<Item = &serde_json::Value> {
    value.as_array().into_iter().flatten()
}

/// Returns the rows and panels of a dashboard, including the panels of collapsed rows.
fn rows_and_panels(board: &serde_json::Value) -> Vec<&serde_json::Value> {
    elements(&board["panels"])
        .flat_map(|panel| std::iter::once(panel).chain(elements(&panel["panels"])))
        .collect()
}

/// Returns the panels of a dashboard without rows.
fn panels(board: &serde_json::Value) -> Vec<&serde_json::Value> {
    let mut panels = rows_and_panels(board);
    panels.retain(|panel| panel["type"] != "row");
    panels
}

/// Returns the queries of a panel.
fn queries(panel: &serde_json::Value) -> Vec<&str> {
    let targets = elements(&panel["targets"]);
    targets.map(|t| t["expr"].as_str().unwrap()).collect()
}

/// Returns the `process_...` words of a query.
fn process_words(query: &str) -> impl Iterator<Item = &str> {
    query
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|w| w.starts_with("process_"))
}

/// Returns the ranges of a query, such as `5m` of `rate(x[5m])`.
fn ranges(query: &str) -> impl Iterator<Item = &str> {
    let after_bracket = query.split('[').skip(1);
    after_bracket.map(|rest| rest.split(']').next().unwrap())
}

/// Returns the minutes of a range.
fn minutes(range: &str) -> u64 {
    let (number, unit) = range.split_at(range.len() - 1);
    let unit = match unit {
        "m" => 1,
        "h" => 60,
        "d" => 24 * 60,
        _ => panic!("{range}: unknown unit"),
    };
    unit * number.parse::<u64>().expect(range)
}

#[test]
fn dashboard_panels_query_metrics() {
    let boards: Vec<_> = dashboards().collect();
    let panels: Vec<_> = boards.iter().flat_map(panels).collect();
    assert!(panels.len() > 40, "{} panels", panels.len());
    for panel in panels {
        let queries = queries(panel);
        assert!(!queries.is_empty(), "{}", panel["title"]);
        for query in queries {
            let process: Vec<&str> = process_words(query).collect();
            let unknown = process.iter().find(|w| !PROCESS_METRICS.contains(w));
            assert_eq!(unknown, None, "{query}");
            let of_prometheus = query.contains("ALERTS{");
            let named = !metric_words(query).is_empty() || !process.is_empty() || of_prometheus;
            assert!(named, "{query}");
            // Grafana derives $__rate_interval from the scrape interval.
            for range in ranges(query).filter(|r| *r != "$__rate_interval") {
                assert!(minutes(range) >= 5, "{query}");
            }
        }
    }
}

/// A query selects by job and instance, and by each other variable whose label its metric has.
#[test]
fn dashboard_queries_use_the_variables() {
    let catalogue = catalogue();
    for (file, own) in DASHBOARDS {
        let board = serde_json::from_str(&read(file)).unwrap();
        assert_queries_use_variables(&board, own, &catalogue);
        let variables: Vec<&str> = elements(&board["templating"]["list"])
            .map(|v| v["name"].as_str().unwrap())
            .collect();
        let expected = [&["datasource", "job", "instance"], own, &["docs"]].concat();
        assert_eq!(variables, expected, "{file}");
        for variable in elements(&board["templating"]["list"]).filter(|v| v["type"] == "query") {
            for property in ["multi", "includeAll"] {
                assert_eq!(variable[property], true, "{}: {property}", variable["name"]);
            }
        }
    }
}

fn assert_queries_use_variables(
    board: &serde_json::Value,
    own: &[&str],
    catalogue: &BTreeMap<String, Metric>,
) {
    for query in panels(board).into_iter().flat_map(queries) {
        let metrics = metric_words(query);
        if metrics.is_empty() && process_words(query).next().is_none() {
            continue;
        }
        let mut selectors = vec!["job", "instance"];
        for name in &metrics {
            let family = name.strip_suffix("_bucket").unwrap_or(name);
            let labels = &catalogue[family].labels;
            selectors.extend(own.iter().filter(|l| labels.contains(**l)));
        }
        for label in selectors {
            let selector = format!("{label}=~\"${label}\"");
            assert!(query.contains(&selector), "{query} lacks {selector}");
        }
    }
}

#[test]
fn dashboard_panels_have_ids_and_units() {
    for board in dashboards() {
        let mut ids = BTreeSet::new();
        for panel in rows_and_panels(&board) {
            assert!(ids.insert(panel["id"].as_u64()), "id of {}", panel["title"]);
        }
        for panel in panels(&board) {
            let unit = panel["fieldConfig"]["defaults"]["unit"].as_str();
            assert!(unit.is_some_and(|u| !u.is_empty()), "{}", panel["title"]);
        }
        let rows = elements(&board["panels"]).filter(|panel| panel["type"] == "row");
        let collapsed: Vec<_> = rows.map(|row| row["collapsed"].as_bool()).collect();
        let is_overview = board["uid"] == "mcastor-overview";
        let expected = (0..collapsed.len()).map(|n| Some(is_overview && n > 0));
        assert!(
            collapsed.iter().copied().eq(expected),
            "{}: {collapsed:?}",
            board["title"]
        );
    }
}

/// States are drawn as a timeline with names, and a limit does not flatten the curve beside it.
#[test]
fn dashboard_states_and_limits_are_readable() {
    let boards: Vec<_> = dashboards().collect();
    let panels: Vec<_> = boards.iter().flat_map(panels).collect();
    let panel = |metric: &str| {
        let found = panels.iter().find(|p| {
            let queries = queries(p);
            queries.iter().any(|q| metric_words(q).contains(metric))
        });
        *found.unwrap_or_else(|| panic!("no panel shows {metric}"))
    };
    for metric in [
        "mcastor_interface_up",
        "mcastor_querier",
        "mcastor_docker_connected",
        "mcastor_mnat_server_up",
        "mcastor_amt_relay_state",
    ] {
        let panel = panel(metric);
        assert_eq!(panel["type"], "state-timeline", "{metric}");
        let names = &panel["fieldConfig"]["defaults"]["mappings"][0]["options"];
        for value in ["0", "1"] {
            assert!(names[value]["text"].is_string(), "{metric}: {value}");
        }
    }
    let flows = panels.iter().find(|panel| panel["title"] == "Flows");
    let flows = &flows.expect("a panel of flows")["fieldConfig"]["overrides"][0];
    assert_eq!(flows["properties"][0]["id"], "custom.axisPlacement");
    assert_eq!(flows["properties"][0]["value"], "right");
}

#[test]
fn dashboards_annotate_restarts_and_refused_reloads() {
    dashboards().for_each(|board| assert_annotations_and_links(&board));
}

fn assert_annotations_and_links(board: &serde_json::Value) {
    let annotations: Vec<&str> = elements(&board["annotations"]["list"])
        .filter_map(|a| a["expr"].as_str())
        .collect();
    for metric in [
        "process_start_time_seconds",
        "mcastor_config_last_reload_successful",
    ] {
        let annotated = annotations.iter().any(|expr| expr.contains(metric));
        assert!(annotated, "no annotation of {metric}");
    }
    let mut documents = 0;
    assert_eq!(elements(&board["tags"]).next().unwrap(), "mcastor");
    assert_eq!(board["links"][0]["tags"][0], "mcastor");
    for link in elements(&board["links"]) {
        let url = link["url"].as_str().unwrap();
        if let Some(file) = url.strip_prefix("${docs}/") {
            documents += 1;
            assert!(root().join("docs").join(file).exists(), "{url}");
        }
    }
    assert_eq!(documents, 2);
}

/// An alerting rule.
struct Alert<'t> {
    name: &'t str,
    expression: &'t str,
    /// What follows `for: `.
    rest: &'t str,
}

/// Returns the rules of dashboards/alerts.yml.
fn alerts(text: &str) -> Vec<Alert<'_>> {
    let rules = text.split("- alert: ").skip(1);
    rules
        .map(|rule| {
            let (name, rule) = rule.split_once('\n').unwrap();
            let (_, rule) = rule.split_once(" expr: ").expect(name);
            let Some((expression, rest)) = rule.split_once(" for: ") else {
                panic!("{name} has no `for`");
            };
            Alert {
                name,
                expression,
                rest,
            }
        })
        .collect()
}

/// Prometheus may scrape once a minute, so a window of less than five minutes has too few samples.
#[test]
fn alerts_have_long_windows_severity_and_runbook() {
    let text = read("dashboards/alerts.yml");
    let alerts = alerts(&text);
    assert!(alerts.len() > 8, "{} alerts", alerts.len());
    let sections = anchors(&read("docs/troubleshooting.md"));
    let metrics = read("docs/metrics.md");
    for Alert {
        name,
        expression,
        rest,
    } in &alerts
    {
        assert!(minutes(rest.lines().next().unwrap()) > 0, "{name}");
        for range in ranges(expression) {
            assert!(minutes(range) >= 5, "{name}: {range}");
        }
        let value = |key: &str| {
            let values: Vec<&str> = rest
                .lines()
                .filter_map(|l| l.trim().strip_prefix(key)?.strip_prefix(": "))
                .collect();
            assert_eq!(values.len(), 1, "{key} of {name}");
            values[0]
        };
        let severity = value("severity");
        assert!(["warning", "critical"].contains(&severity), "{name}");
        let row = format!("| {name} | {severity} |");
        assert!(metrics.contains(&row), "docs/metrics.md lacks a row {row}");
        let base = "'{{ or $externalLabels.runbook_base \"docs\" }}/troubleshooting.md#";
        let url = value("runbook_url");
        let anchor = url.strip_prefix(base).and_then(|a| a.strip_suffix('\''));
        match anchor.expect(name) {
            // findings_and_drop_reasons_have_an_anchor covers all reasons.
            "{{ $labels.reason }}" => assert!(expression.contains("reason"), "{name}"),
            anchor => assert!(sections.contains(anchor), "{name}: no section {anchor}"),
        }
    }
    let rows = metrics.lines().filter(|l| l.starts_with("| Mcastor"));
    assert_eq!(rows.count(), alerts.len(), "alerts in docs/metrics.md");
}

/// `mcastor doctor`, the alerts and the dashboard agree on what is part of normal operation.
#[test]
fn alerts_and_dashboard_exclude_normal_drop_reasons() {
    let selector = format!("reason!~\"{}\"", NORMAL_REASONS.join("|"));
    for file in ["dashboards/alerts.yml", OVERVIEW] {
        // JSON escapes quotation marks.
        let text = read(file).replace('\\', "");
        assert!(text.contains(&selector), "{file} lacks {selector}");
        assert_eq!(text.matches("reason!~").count(), 1, "{file}");
    }
    for reason in NORMAL_REASONS {
        let known = DropReason::ALL.iter().any(|r| r.label() == reason);
        assert!(known, "{reason} is not a drop reason");
    }
}

/// Returns the anchors that GitHub makes for the headings of a Markdown text.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut anchors = BTreeSet::new();
    for line in text.lines() {
        fenced ^= line.trim_start().starts_with("```");
        if fenced || !line.starts_with('#') {
            continue;
        }
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = heading
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        anchors.insert(kept.map(|c| if c == ' ' { '-' } else { c }).collect());
    }
    anchors
}

/// Links without a scheme name a file, and their anchor a heading of that file.
#[test]
fn links_between_documents_resolve() {
    let mut with_anchor = 0;
    for path in documents() {
        let text = read(&path);
        let folder = path.parent().unwrap();
        for (_, rest) in text.match_indices("](").map(|(i, _)| text.split_at(i + 2)) {
            let target = rest.split(')').next().unwrap();
            if target.contains("://") {
                continue;
            }
            let (target, anchor) = target.split_once('#').unwrap_or((target, ""));
            // A link to a heading of the same file has no file name.
            let file = match target {
                "" => path.clone(),
                _ => folder.join(target),
            };
            assert!(file.exists(), "{}: no file {target}", path.display());
            if !anchor.is_empty() {
                with_anchor += 1;
                let known = anchors(&read(&file));
                let place = path.display();
                assert!(
                    known.contains(anchor),
                    "{place}: no heading {target}#{anchor}"
                );
            }
        }
    }
    assert!(with_anchor > 10, "only {with_anchor} anchors were found");
}

/// The README is an introduction; details belong into docs/.
#[test]
fn readme_has_at_most_150_lines() {
    let lines = read("README.md").lines().count();
    assert!(lines <= 150, "{lines} lines");
}

/// Prose is wrapped at 100 columns. Tables, code blocks, headings and links cannot be wrapped.
#[test]
fn prose_of_documents_is_wrapped() {
    for path in documents() {
        // The reference of keys is generated.
        if path.ends_with("docs/settings.md") {
            continue;
        }
        let text = read(&path);
        let mut fenced = false;
        for (n, line) in text.lines().enumerate() {
            fenced ^= line.trim_start().starts_with("```");
            let prose = !fenced && !line.starts_with(['|', '#', '<']) && !line.starts_with("    ");
            let long = line.chars().count() > 100 && line.trim().contains(' ');
            assert!(!(prose && long), "{}:{}: over 100", path.display(), n + 1);
        }
    }
}

/// Files that ARCHITECTURE.md names, such as `sys/filter.rs`, exist below src or the root.
#[test]
fn files_named_in_architecture_exist() {
    let text = read("ARCHITECTURE.md");
    let names = code_spans(&text)
        .into_iter()
        .filter(|span| span.ends_with(".rs") && span.contains('/') && !span.contains(' '));
    let mut seen = 0;
    for name in names {
        let exists = root().join("src").join(&name).exists() || root().join(&name).exists();
        assert!(exists, "ARCHITECTURE.md names {name}, which does not exist");
        seen += 1;
    }
    assert!(seen > 10, "only {seen} files were found");
}
