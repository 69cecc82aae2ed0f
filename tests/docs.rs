//! What the documents say is what the program does: settings parse, commands exist, metrics
//! and reasons have their names.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use mcastor::api::Show;
use mcastor::control::{Outcome, Request, Response};
use mcastor::forward::DropReason;
use mcastor::membership::Protocol;
use mcastor::metrics::Catalog;
use mcastor::metrics::membership::{Direction, MembershipState};
use mcastor::model::{FlowEnd, IfIndex, Link, RouteName};
use mcastor::settings::Settings;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Files of a folder with one of these endings; none where the folder is absent.
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
    let mut all = vec![root().join("README.md"), root().join("ARCHITECTURE.md")];
    all.extend(files("docs", &["md"]));
    all.push(root().join("bench/results/membership.md"));
    all
}

/// The code blocks of a text: line of the fence, info string, body.
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

/// Names of metric families in the catalogue, with their types.
fn catalogue() -> Vec<(String, String)> {
    let catalog = Catalog::new().unwrap();
    // A family without a member is not shown.
    catalog.interface("eth0");
    catalog.path(&RouteName::new("r"), "eth0", "eth1", "packet");
    catalog.restarted("routing");
    catalog.show_joined("eth0", 1);
    catalog.filter_widened("eth0");
    catalog.mnat.show_mappings("egress", "assigned", 1);
    catalog.mnat.show_server(true);
    catalog.mnat.joined_after(0.1);
    catalog.mnat.request("poll", "200");
    catalog.flows_ended("eth0", FlowEnd::Idle, 1);
    catalog.show_link(&Link {
        index: IfIndex::new(1).unwrap(),
        name: "eth0".parse().unwrap(),
        mtu: 1500,
        up: true,
        carrier: true,
        vlan: None,
        known_as: Default::default(),
    });
    catalog.filter_widened("eth0");
    for protocol in Protocol::ALL {
        let membership = &catalog.membership;
        membership.message("eth0", protocol, Direction::Received, "report", "2");
        membership.show("eth0", protocol, MembershipState::default());
        membership.refused("eth0", "checksum", 1);
    }
    let text = String::from_utf8(catalog.text().unwrap()).unwrap();
    text.lines()
        .filter_map(|l| l.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, kind)| (name.to_string(), kind.to_string()))
        .collect()
}

/// Every `mcastor_...` word of a text. A word that ends in `_` is a prefix somebody writes
/// about (`mcastor_interface_*`), not a name.
fn metric_words(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !word(c))
        .filter(|w| w.starts_with("mcastor_") && !w.ends_with('_'))
        .map(String::from)
        .collect()
}

#[test]
fn metrics_that_are_written_about_exist() {
    let known: BTreeSet<String> = catalogue()
        .into_iter()
        .flat_map(|(name, kind)| {
            let suffixes: &[&str] = match kind.as_str() {
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

#[test]
fn every_metric_is_in_the_table_with_its_type() {
    let text = read("docs/metrics.md");
    let families = catalogue();
    assert!(families.len() >= 20, "{families:?}");
    for (name, kind) in families {
        let row = format!("| `{name}` | {kind} |");
        assert!(text.contains(&row), "docs/metrics.md lacks a row {row}");
    }
}

#[test]
fn every_drop_reason_has_its_line_and_no_other_has() {
    let text = read("docs/metrics.md");
    for reason in DropReason::ALL {
        let row = format!("| `{}` | {} |", reason.label(), reason.meaning());
        assert!(text.contains(&row), "docs/metrics.md lacks a row {row}");
    }
    let labels = first_column(&text, "## Drop reasons");
    assert_eq!(labels.len(), DropReason::COUNT, "{labels:?}");
}

/// The names in the first column of the tables of a chapter.
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
fn every_end_of_a_flow_has_its_line_and_no_other_has() {
    let text = read("docs/metrics.md");
    let labels = FlowEnd::ALL.map(FlowEnd::label);
    assert_eq!(first_column(&text, "## Flows"), labels);
}

#[test]
fn everything_that_can_be_shown_has_its_line() {
    let text = read("docs/control.md");
    for show in Show::ALL {
        let name = show.name();
        for row in [
            format!("| `{{\"show\":\"{name}\"}}` | `{{\"{name}\":[...]}}` |"),
            format!("| `/api/v1/{name}` | 200, "),
        ] {
            assert!(text.contains(&row), "docs/control.md lacks a row {row}");
        }
    }
}

/// What stands after an arrow of the protocol, `->` or `<-`.
fn spoken<'t>(text: &'t str, arrow: &'t str) -> impl Iterator<Item = &'t str> {
    text.lines().filter_map(move |l| l.strip_prefix(arrow))
}

#[test]
fn requests_and_answers_of_the_protocol_are_such() {
    let text = read("docs/control.md");
    let (mut good, mut refused) = (0, 0);
    for (request, answer) in spoken(&text, "-> ").zip(spoken(&text, "<- ")) {
        let answer: Response = serde_json::from_str(answer).expect(answer);
        match (Request::parse(request), answer.outcome) {
            (Ok(_), _) => good += 1,
            (Err(e), Outcome::Error(told)) if e == told => refused += 1,
            (Err(e), told) => panic!("{request}: {e}, and not {told:?}"),
        }
    }
    assert_eq!(
        spoken(&text, "-> ").count(),
        spoken(&text, "<- ").count(),
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
fn settings_in_documents_are_good() {
    let mut seen = 0;
    for path in documents() {
        for (line, info, body) in blocks(&read(&path)) {
            // `toml,fragment` is a part of a file, which nothing could load.
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
fn settings_in_conf_are_good() {
    for path in files("conf", &["toml"]) {
        if let Err(e) = Settings::load(Some(&path), std::iter::empty()) {
            panic!("{}: {e}", path.display());
        }
    }
}

/// Each `MCASTOR__…: value` of a compose file is a variable, and the value may be quoted.
#[test]
fn settings_in_compose_files_are_good() {
    let mut seen = 0;
    for path in files("conf/compose", &["yml"]) {
        let text = read(&path);
        let lines = text.lines().map(str::trim);
        let pairs = lines.filter(|l| l.starts_with("MCASTOR__"));
        let variables: Vec<(String, String)> = pairs
            .map(|line| {
                let (name, value) = line.split_once(": ").unwrap();
                let value = value.trim_matches('"');
                // `${NAME:-default}`
                let inner = value.strip_prefix("${").and_then(|v| v.strip_suffix('}'));
                let default = inner.and_then(|v| v.split_once(":-")).map(|(_, d)| d);
                (name.into(), default.unwrap_or(value).into())
            })
            .collect();
        seen += variables.len();
        if let Err(e) = Settings::load(None, variables.into_iter()) {
            panic!("{}: {e}", path.display());
        }
    }
    assert!(seen > 10, "{seen} variables");
}

/// What README and docs/containers.md begin with is the file that runs.
#[test]
fn the_first_compose_file_is_the_example() {
    let example = read("conf/compose/bridge.yml");
    let lines = example.lines().filter(|l| !l.trim().starts_with('#'));
    let plain: String = lines.map(|l| format!("{l}\n")).collect();
    for document in ["README.md", "docs/containers.md"] {
        let shown = blocks(&read(document));
        let shown = shown.into_iter().find(|(_, info, _)| info == "yaml");
        assert_eq!(shown.unwrap().2, plain, "{document}");
    }
}

/// Command lines of a shell block: what follows the prompt, without comments, pipes and `&`.
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
fn commands_in_documents_are_commands() {
    let command = mcastor::cli::command();
    let mut seen = 0;
    for path in documents() {
        for (line, info, body) in blocks(&read(&path)) {
            // A block without a language is output, and a table may begin with any word.
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

#[test]
fn the_dashboard_is_json_and_its_panels_ask_for_something() {
    for path in files("dashboards", &["json"]) {
        let text = read(&path);
        let board: serde_json::Value = serde_json::from_str(&text).unwrap();
        let panels = board["panels"].as_array().unwrap();
        assert!(!panels.is_empty());
        for panel in panels.iter().filter(|p| p["type"] != "row") {
            let targets = panel["targets"].as_array().unwrap();
            assert!(!targets.is_empty(), "{}", panel["title"]);
            for target in targets {
                let expr = target["expr"].as_str().unwrap();
                assert!(!metric_words(expr).is_empty(), "{expr}");
            }
        }
    }
}

#[test]
fn links_to_files_lead_somewhere() {
    for path in documents() {
        let text = read(&path);
        let folder = path.parent().unwrap();
        for (_, rest) in text.match_indices("](").map(|(i, _)| text.split_at(i + 2)) {
            let target = rest.split([')', '#']).next().unwrap();
            // Nothing before a `#`: a chapter of the same file.
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let file = folder.join(target);
            assert!(file.exists(), "{}: nothing at {target}", path.display());
        }
    }
}
