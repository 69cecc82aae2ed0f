//! Tests of settings files: each broken file is refused with the expected problems, each good file
//! loads, and the files generated from the declaration of the keys are up to date.
//!
//! `MCASTOR_BLESS=1 cargo test --test settings` writes the expected problems and the generated
//! files. Read the difference before you commit it.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use mcastor::model::{RouteRule, TtlPolicy};
use mcastor::settings::{
    self, HttpAddress, LogFormat, MAX_FILE, MAX_PROBLEMS, PlaneKind, Settings, SettingsReport,
};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(root().join(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "toml"))
        .collect();
    files.sort();
    files
}

fn load_env(file: Option<&Path>, env: &[(&str, &str)]) -> Result<Settings, SettingsReport> {
    let env: Vec<_> = env
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect();
    Settings::load(file, env.into_iter())
}

fn load_text(text: &str, env: &[(&str, &str)]) -> Result<Settings, SettingsReport> {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    fs::write(file.path(), text).unwrap();
    load_env(Some(file.path()), env)
}

/// Returns variable, text and help of the only problem of settings from the environment.
fn env_problem(env: &[(&str, &str)]) -> (String, String, String) {
    let report = load_env(None, env).unwrap_err();
    assert_eq!(report.problems().len(), 1, "{report}");
    let problem = &report.problems()[0];
    (
        problem.variable().unwrap_or_default().to_string(),
        problem.to_string(),
        problem.help_text().to_string(),
    )
}

const ROUTE: &str = "[[route]]\nfrom = \"eth0\"\ngroup = \"225.1.2.3\"\nto = [\"eth1\"]\n";

/// Whether to write generated files instead of comparing them.
fn is_blessing() -> bool {
    std::env::var_os("MCASTOR_BLESS").is_some()
}

/// Compares a file with the text it should have, or writes it.
fn assert_generated(file: &str, text: &str) {
    let path = root().join(file);
    if is_blessing() {
        fs::write(&path, text).unwrap();
    }
    assert!(
        fs::read_to_string(&path).unwrap_or_default() == text,
        "{file} is out of date; update it: MCASTOR_BLESS=1 cargo test --test settings"
    );
}

/// Beside each `bad/NAME.toml` is `NAME.expected`: for each problem a line
/// `LINE:COL: found …, expected …`, and its help.
#[test]
fn broken_files_are_refused_with_the_expected_problems() {
    let files = files("tests/settings/bad");
    assert!(files.len() >= 30, "only {} broken files", files.len());
    let mut failures = Vec::new();
    for file in files {
        let report = match load_env(Some(&file), &[]) {
            Ok(_) => {
                failures.push(format!("{} was accepted", file.display()));
                continue;
            }
            Err(report) => report,
        };
        let location = format!("{}:", file.display());
        let mut actual = String::new();
        for problem in report.problems() {
            let line = problem.plain().replace(&location, "");
            actual.push_str(&format!("{line}\n"));
            if !problem.help_text().is_empty() {
                actual.push_str(&format!("    help: {}\n", problem.help_text()));
            }
        }
        let expected_file = file.with_extension("expected");
        if is_blessing() {
            fs::write(&expected_file, &actual).unwrap();
        }
        let expected = fs::read_to_string(&expected_file).unwrap_or_default();
        if actual != expected {
            failures.push(format!(
                "{}\nexpected:\n{expected}actual:\n{actual}",
                file.display()
            ));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_example_loads() {
    let files = files("conf");
    assert!(files.len() >= 5, "only {} examples", files.len());
    for file in files {
        let settings = load_env(Some(&file), &[]);
        let settings = settings.unwrap_or_else(|report| panic!("{report}"));
        assert!(!settings.routes.is_empty(), "{}", file.display());
        let text = fs::read_to_string(&file).unwrap();
        let schema = "#:schema ./mcastor.schema.json\n";
        assert!(text.starts_with(schema), "{}", file.display());
    }
}

/// The file that packages install forwards nothing. Its examples are valid without the leading `#`.
#[test]
fn installed_file_and_its_examples_load() {
    let file = root().join("conf/systemd/mcastor.toml");
    let settings = load_env(Some(&file), &[]).unwrap();
    assert!(settings.routes.is_empty() && settings.proxies.is_empty());
    let text = fs::read_to_string(&file).unwrap();
    let lines = text.lines().filter_map(|line| line.strip_prefix('#'));
    let examples: Vec<&str> = lines.filter(|l| !l.starts_with([' ', ':'])).collect();
    let settings = load_text(&examples.join("\n"), &[]).unwrap();
    assert_eq!((settings.routes.len(), settings.proxies.len()), (1, 1));
}

#[test]
fn every_good_file_loads() {
    let files = files("tests/settings/good");
    assert!(files.len() >= 8, "only {} good files", files.len());
    for file in files {
        load_env(Some(&file), &[]).unwrap_or_else(|report| panic!("{report}"));
    }
}

#[test]
fn example_file_is_generated() {
    assert_generated("conf/mcastor.toml", &settings::example_file());
}

#[test]
fn reference_table_is_generated() {
    let file = "docs/settings.md";
    let text = fs::read_to_string(root().join(file)).unwrap();
    let (before, rest) = text.split_once("<!-- begin of keys -->\n").unwrap();
    let (_, after) = rest.split_once("<!-- end of keys -->\n").unwrap();
    let table = settings::key_table();
    let generated = format!("{before}<!-- begin of keys -->\n{table}<!-- end of keys -->\n{after}");
    assert_generated(file, &generated);
}

/// The published schema is the output of `mcastor schema`.
#[test]
fn json_schema_is_generated() {
    let output = Command::new(env!("CARGO_BIN_EXE_mcastor"))
        .arg("schema")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_generated("conf/mcastor.schema.json", &text);
}

/// The mistakes that the JSON schema finds, by the beginnings of the names of the broken files:
/// wrong types, unknown and missing keys, words and integers out of range, and files that are not
/// TOML.
const SCHEMA_MISTAKES: [&str; 36] = [
    "after-umlauts",
    "busy-poll-too-long",
    "fragment-word",
    "kind-",
    "log-format",
    "missing-",
    "monitor",
    "mnat-empty",
    "mnat-joins.",
    "mnat-relative-path",
    "mnat-role",
    "mnat-server.",
    "mnat-twice",
    "plane-kind",
    "proxy-empty-upstream",
    "proxy-limit-zero",
    "proxy-no-downstream",
    "proxy-querier",
    "proxy-unknown-key",
    "proxy-upstream-text",
    "interface-plane",
    "interface-version",
    "merge-by",
    "merge-without-with",
    "proxy-version",
    "rewrite-is-text",
    "rewrite-port",
    "rewrite-unknown-key",
    "several",
    "syntax-",
    "socket-relative",
    "threshold-",
    "to-65",
    "ttl-",
    "unknown-",
    "engine-names",
];

/// A JSON schema validator (python3-jsonschema) accepts every good file and every example, and
/// refuses the broken files whose mistake a schema can express.
#[test]
fn json_schema_accepts_good_files_and_refuses_broken_ones() {
    let valid = |folders: &[&str]| {
        let output = Command::new("/usr/bin/python3")
            .arg(root().join("tests/settings/validate.py"))
            .arg(root().join("conf/mcastor.schema.json"))
            .args(folders.iter().flat_map(|folder| files(folder)))
            .output()
            .expect("python3 runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{stderr}\nThis test needs python3-jsonschema: make packages"
        );
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines()
            .map(|line| {
                let (file, problem) = line.split_once(": ").unwrap();
                let name = Path::new(file).file_name().unwrap().to_str().unwrap();
                (name.to_string(), problem.to_string())
            })
            .collect::<Vec<_>>()
    };
    let good = valid(&["tests/settings/good", "conf"]);
    assert!(good.len() >= 13, "{good:?}");
    for (name, problem) in good {
        assert_eq!(problem, "valid", "{name}");
    }
    let mut refused = 0;
    for (name, problem) in valid(&["tests/settings/bad"]) {
        let is_expected = SCHEMA_MISTAKES.iter().any(|start| name.starts_with(start));
        assert_eq!(problem != "valid", is_expected, "{name}: {problem}");
        refused += usize::from(is_expected);
    }
    assert!(refused >= 40, "only {refused} files were refused");
}

/// Returns every key, as the help texts of errors list them.
fn known_keys() -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let known_at = |text: &str| -> Vec<String> {
        let report = load_text(text, &[]).unwrap_err();
        let problems = report.problems().iter();
        let help = problems
            .map(|problem| problem.help_text())
            .find(|help| help.contains("Valid here: "))
            .unwrap_or_else(|| panic!("{report}"))
            .to_string();
        let (_, list) = help.split_once("Valid here: ").unwrap();
        let keys = list.trim_end_matches('.').split(", ");
        keys.map(|key| key.trim_matches('`').to_string()).collect()
    };
    for header in known_at("zzzzzzzzzzzz = 1") {
        let table = header.trim_matches(['[', ']']);
        assert_eq!(header.starts_with("[["), LISTS.contains(&table), "{header}");
        for key in known_at(&format!("{header}\nzzzzzzzzzzzz = 1")) {
            keys.insert(format!("{table}.{key}"));
        }
    }
    for (key, header) in TABLES_IN_TABLES {
        assert!(keys.remove(key), "{key}");
        for inner in known_at(&format!("{header}\nzzzzzzzzzzzz = 1")) {
            keys.insert(format!("{key}.{inner}"));
        }
    }
    keys
}

/// The tables that can be repeated.
const LISTS: [&str; 5] = ["interface", "route", "join", "proxy", "discovery"];

/// Keys that contain a table themselves, and its header.
const TABLES_IN_TABLES: [(&str, &str); 12] = [
    ("route.merge", "[[route]]\n[route.merge]"),
    ("interface.version", "[[interface]]\n[interface.version]"),
    ("proxy.version", "[[proxy]]\n[proxy.version]"),
    ("proxy.timers", "[[proxy]]\n[proxy.timers]"),
    ("proxy.limits", "[[proxy]]\n[proxy.limits]"),
    ("discovery.allow", "[[discovery]]\n[[discovery.allow]]"),
    ("discovery.deny", "[[discovery]]\n[[discovery.deny]]"),
    ("discovery.limits", "[[discovery]]\n[discovery.limits]"),
    ("amt.gateway", "[[amt.gateway]]"),
    (
        "amt.gateway.limits",
        "[[amt.gateway]]\n[amt.gateway.limits]",
    ),
    ("amt.relay", "[[amt.relay]]"),
    ("amt.relay.limits", "[[amt.relay]]\n[amt.relay.limits]"),
];

/// Tables inside a table that can be repeated.
const LISTS_IN_TABLES: [&str; 4] = ["gateway", "relay", "allow", "deny"];

#[test]
fn reference_and_example_contain_every_key() {
    let reference = fs::read_to_string(root().join("docs/settings.md")).unwrap();
    let example = fs::read_to_string(root().join("conf/mcastor.toml")).unwrap();
    let keys = known_keys();
    assert!(keys.len() >= 16, "{keys:?}");
    for path in keys {
        let (table, key) = path.split_once('.').unwrap();
        assert!(
            reference.contains(&format!("`{path}`")),
            "no `{path}` in the reference"
        );
        let variable = match (LISTS.contains(&table), key.replace('.', "__")) {
            (true, key) => match key.split_once("__") {
                Some((list, key)) if LISTS_IN_TABLES.contains(&list) => {
                    format!("`MCASTOR__{table}__0__{list}__0__{key}`")
                }
                _ => format!("`MCASTOR__{table}__0__{key}`"),
            },
            (false, key) => match key.split_once("__") {
                Some((list, key)) if LISTS_IN_TABLES.contains(&list) => {
                    format!("`MCASTOR__{table}__{list}__0__{key}`")
                }
                _ => format!("`MCASTOR__{table}__{key}`"),
            },
        };
        assert!(
            reference.contains(&variable.to_uppercase()),
            "no {variable}"
        );
        assert!(
            key.rsplit('.').next().is_some_and(|key| {
                let line = format!("\n{key} = ");
                example.contains(&line)
                    || example.contains(&line.replace('\n', "{ "))
                    || example.contains(&line.replace('\n', ", "))
            }),
            "no {key} in the example"
        );
    }
}

#[test]
fn examples_in_the_reference_load() {
    let reference = fs::read_to_string(root().join("docs/settings.md")).unwrap();
    let blocks: Vec<&str> = reference
        .split("```toml\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect();
    assert!(blocks.len() >= 3);
    for block in blocks {
        load_text(block, &[]).unwrap_or_else(|report| panic!("{block}\n{report}"));
    }
}

#[test]
fn empty_file_gives_the_defaults() {
    for text in ["", "\n", "# nothing\n", "\u{feff}"] {
        let settings = load_text(text, &[]).unwrap();
        assert_eq!(settings, Settings::default());
    }
    let settings = Settings::default();
    assert_eq!(
        settings.http.listen,
        Some(HttpAddress::Tcp("127.0.0.1:9464".parse().unwrap()))
    );
    assert_eq!(
        settings.control.socket,
        Path::new("/run/mcastor/mcastor.sock")
    );
    assert_eq!(settings.plane.kind, PlaneKind::Auto);
    assert_eq!(
        (settings.log.level.as_str(), settings.log.format),
        ("info", LogFormat::Text)
    );
}

#[test]
fn every_key_of_the_example_has_an_effect() {
    let settings = load_env(Some(&root().join("conf/mcastor.toml")), &[]).unwrap();
    let [cameras, first, second, translated, sensors, mdns] = settings.routes.as_slice() else {
        panic!("{:?}", settings.routes);
    };
    assert!(first.is_merged_with(second));
    assert_eq!(
        (first.from.as_str(), second.from.as_str()),
        ("eth0", "eth1")
    );
    let merge = first.merge.as_ref().expect("a merge");
    let window = Duration::from_millis(50);
    assert_eq!((merge.with.as_str(), merge.window), ("eth1", window));
    let rewrite = translated.translation.map(|rewrite| rewrite.to_string());
    assert_eq!(rewrite.as_deref(), Some("(10.9.1.2, 239.1.1.1) port 5001"));
    assert_eq!(cameras.translation, None);
    let texts = |rule: &RouteRule| {
        let to: Vec<_> = rule.to.iter().map(|name| name.to_string()).collect();
        let except: Vec<_> = rule.except_sources.iter().map(|s| s.to_string()).collect();
        format!(
            "{}|{}|{}|{}|{}|{}|{}|{}",
            rule.name,
            rule.from,
            rule.source,
            except.join(","),
            rule.group,
            to.join(","),
            rule.ttl,
            rule.link_local
        )
    };
    assert_eq!(
        texts(cameras),
        "cameras|eth0|192.168.1.0/24|192.168.1.7,192.168.1.128/25|225.1.2.0/24|eth1,veth*|\
         decrement|false"
    );
    assert_eq!(
        texts(sensors),
        "sensors|br-*|*||ff3e::8000:1|eth0|set 8|false"
    );
    assert_eq!(texts(mdns), "mdns|eth0|*||224.0.0.251|br-*|keep|true");
    let eth1 = &settings.interfaces[0];
    assert_eq!(eth1.name.as_str(), "eth1");
    assert_eq!(eth1.ttl_threshold.unwrap().get(), 3);
}

#[test]
fn environment_works_without_a_file() {
    let settings = load_env(
        None,
        &[
            ("PATH", "/bin"),
            ("MCASTOR_SERVICE_HOST", "10.0.0.1"),
            ("MCASTOR__HTTP__LISTEN", "off"),
            ("MCASTOR__CONTROL__SOCKET", "/tmp/m.sock"),
            (
                "MCASTOR__PLANE",
                "{ kind = \"packet\", qdisc_bypass = true }",
            ),
            ("MCASTOR__LOG__LEVEL", "warn,mcastor=debug"),
            ("MCASTOR__LOG__FORMAT", "\"json\""),
            ("MCASTOR__INTERFACE__0__NAME", "eth1"),
            ("MCASTOR__INTERFACE__0__TTL_THRESHOLD", "3"),
            ("MCASTOR__ROUTE__0__NAME", "42"),
            ("MCASTOR__ROUTE__0__FROM", "eth0"),
            ("MCASTOR__ROUTE__0__GROUP", "224.0.0.251"),
            ("MCASTOR__ROUTE__0__TO", "eth1, eth2"),
            ("MCASTOR__ROUTE__0__TTL", "{ set = 8 }"),
            ("MCASTOR__ROUTE__0__LINK_LOCAL", "true"),
            ("MCASTOR__ROUTE__1__FROM", "eth0"),
            ("MCASTOR__ROUTE__1__GROUP", "225.1.2.3"),
            ("MCASTOR__ROUTE__1__TO__0", "eth1"),
            ("MCASTOR__ROUTE__1__TO__1", "eth2"),
            ("MCASTOR__ROUTE__1__TTL", "keep"),
        ],
    )
    .unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(settings.http.listen, None);
    assert_eq!(settings.control.socket, Path::new("/tmp/m.sock"));
    assert_eq!(settings.plane.kind, PlaneKind::Packet);
    assert!(settings.plane.qdisc_bypass);
    assert_eq!(settings.log.format, LogFormat::Json);
    assert_eq!(settings.routes[0].name.as_str(), "42");
    assert_eq!(settings.routes[0].ttl, TtlPolicy::Set(8));
    assert_eq!(settings.routes[1].to.len(), 2);
    assert_eq!(settings.routes[1].ttl, TtlPolicy::Keep);
}

#[test]
fn environment_overrides_the_file_and_extends_lists() {
    let listen: SocketAddr = "[::1]:1234".parse().unwrap();
    let file = format!("[http]\nlisten = \"off\"\n{ROUTE}ttl = \"keep\"\n");
    let settings = load_text(
        &file,
        &[
            ("MCASTOR__HTTP__LISTEN", "[::1]:1234"),
            ("MCASTOR__ROUTE__0__TTL", "{ set = 9 }"),
            ("MCASTOR__ROUTE__0__TO__1", "eth7"),
            ("MCASTOR__ROUTE__1__FROM", "eth5"),
            ("MCASTOR__ROUTE__1__GROUP", "225.5.5.5"),
            ("MCASTOR__ROUTE__1__TO", "[\"eth6\"]"),
        ],
    )
    .unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(settings.http.listen, Some(HttpAddress::Tcp(listen)));
    assert_eq!(settings.routes.len(), 2);
    assert_eq!(settings.routes[0].ttl, TtlPolicy::Set(9));
    assert_eq!(settings.routes[0].to[0].as_str(), "eth1");
    assert_eq!(settings.routes[0].to[1].as_str(), "eth7");
    assert_eq!(settings.routes[1].group.to_string(), "225.5.5.5");
}

#[test]
fn problems_of_the_environment_name_the_variable() {
    for (name, value, expected, help) in [
        (
            "MCASTOR__HTTP__LISTEN",
            "9464",
            "found \"9464\", expected an address and port",
            "127.0.0.1:9464",
        ),
        (
            "MCASTOR__HTPT__LISTEN",
            "off",
            "unknown variable `MCASTOR__HTPT__LISTEN`",
            "Did you mean MCASTOR__HTTP__LISTEN?",
        ),
        (
            "MCASTOR__HTTP__LISTE",
            "off",
            "unknown variable",
            "Did you mean MCASTOR__HTTP__LISTEN?",
        ),
        (
            "MCASTOR__http__listen",
            "off",
            "unknown variable",
            "capitals: MCASTOR__HTTP__LISTEN",
        ),
        (
            "mcastor__http__listen",
            "off",
            "unknown variable",
            "capitals: MCASTOR__HTTP__LISTEN",
        ),
        (
            "mcastor__http__liste",
            "off",
            "unknown variable",
            "Did you mean MCASTOR__HTTP__LISTEN?",
        ),
        (
            "mcastor_http_listen",
            "off",
            "unknown variable",
            "Two underscores separate the parts: MCASTOR__HTTP__LISTEN.",
        ),
        (
            "MCASTOR__ROUTE__GROUP",
            "225.1.2.3",
            "unknown variable",
            "MCASTOR__ROUTE__0__GROUP",
        ),
        (
            "MCASTOR__ROUTE__99999999999999999999__GROUP",
            "225.1.2.3",
            "unknown variable",
            "at most 65535",
        ),
        (
            "MCASTOR__PLANE__QDISC_BYPASS",
            "yes",
            "found the string \"yes\", expected true or false",
            "MCASTOR__PLANE__QDISC_BYPASS=false",
        ),
        ("MCASTOR__HTTP", "off", "found the string \"off\"", "[http]"),
        ("MCASTOR__", "x", "unknown variable", "MCASTOR__HTTP"),
        ("MCASTOR__ROUTE", "[{ from = }]", "found", "TOML"),
    ] {
        let (variable, text, actual_help) = env_problem(&[(name, value)]);
        assert_eq!(variable, name);
        assert!(text.contains(expected), "{name}: {text}");
        assert!(actual_help.contains(help), "{name}: {actual_help}");
    }
}

#[test]
fn help_on_a_variable_has_the_form_of_variables() {
    for (name, value, help) in [
        ("TTL", "5", "For this TTL: MCASTOR__ROUTE__0__TTL__SET=5."),
        (
            "TTL",
            "five",
            "For a TTL of 8: MCASTOR__ROUTE__0__TTL__SET=8.",
        ),
    ] {
        let name = format!("MCASTOR__ROUTE__0__{name}");
        let report = load_text(ROUTE, &[(&name, value)]).unwrap_err();
        assert_eq!(report.problems()[0].help_text(), help, "{report}");
    }
    // A shell reads the assignment as one word.
    let (_, _, help) = env_problem(&[
        ("MCASTOR__ROUTE__0__FROM", "eth0"),
        ("MCASTOR__ROUTE__0__GROUP", "225.1.2.3"),
    ]);
    assert_eq!(help, "For example: MCASTOR__ROUTE__0__TO=eth1,veth*.");
}

/// The report breaks its lines at spaces only, so that paths and commands can be copied.
#[test]
fn paths_and_commands_are_not_broken() {
    for (text, whole) in [
        ("[state]\ndir = \"x\"\n", "\"/run/mcastor/state\""),
        (
            "[monitor]\nwebhook = \"x\"\n",
            "\"https://alerts.example.net:9093/api/v2/alerts\"",
        ),
    ] {
        let pretty = load_text(text, &[]).unwrap_err().pretty().to_string();
        assert!(pretty.contains(whole), "{pretty}");
    }
}

/// As `mcastor run`, whether the default file exists or not.
#[test]
fn check_without_file_examines_the_environment() {
    let output = Command::new(env!("CARGO_BIN_EXE_mcastor"))
        .arg("check")
        .env("MCASTOR__ROUTE__0__FORM", "eth0")
        .output()
        .unwrap();
    let report = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{report}");
    let expected = "Did you mean MCASTOR__ROUTE__0__FROM?";
    assert!(report.contains(expected), "{report}");
}

#[test]
fn entries_of_the_environment_are_checked() {
    let report = load_text(
        ROUTE,
        &[
            ("MCASTOR__ROUTE__1__FROM", "eth0"),
            ("MCASTOR__ROUTE__1__TO", "eth1,eth1"),
            ("MCASTOR__ROUTE__0__GROUP", "225.1.2.3/24"),
        ],
    )
    .unwrap_err();
    let actual: Vec<_> = report
        .problems()
        .iter()
        .map(|problem| (problem.variable().unwrap_or("file"), problem.key()))
        .collect();
    assert_eq!(
        actual,
        [
            ("MCASTOR__ROUTE__0__GROUP", "route[0].group"),
            ("MCASTOR__ROUTE__1__FROM", "route[1]"),
            ("MCASTOR__ROUTE__1__TO", "route[1].to[1]"),
        ],
        "{report}"
    );
}

#[test]
fn gap_in_entry_numbers_is_refused() {
    let route = |n: &str| -> Vec<(String, String)> {
        [("FROM", "eth0"), ("GROUP", "225.9.9.9"), ("TO", "eth1")]
            .map(|(key, value)| (format!("MCASTOR__ROUTE__{n}__{key}"), value.to_string()))
            .to_vec()
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), ROUTE).unwrap();
    let report = Settings::load(Some(file.path()), route("2").into_iter()).unwrap_err();
    let first = &report.problems()[0];
    assert_eq!(first.found(), "index 2");
    assert!(
        first.expected().starts_with("1, the next free index"),
        "{report}"
    );
    assert!(Settings::load(Some(file.path()), route("1").into_iter()).is_ok());
}

#[test]
fn conflict_of_file_and_environment_is_refused() {
    let (variable, text, help) = {
        let report = load_text(
            ROUTE,
            &[(
                "MCASTOR__ROUTE__1",
                "{ from = \"eth*\", group = \"225.1.2.3\", to = [\"x\"] }",
            )],
        )
        .unwrap_err();
        assert_eq!(report.problems().len(), 1, "{report}");
        let problem = &report.problems()[0];
        let help = problem.help_text().to_string();
        (
            problem.variable().unwrap().to_string(),
            problem.to_string(),
            help,
        )
    };
    assert_eq!(variable, "MCASTOR__ROUTE__1");
    assert!(
        text.contains("a second route for source * and group 225.1.2.3"),
        "{text}"
    );
    assert!(help.contains("line 3"), "{help}");
}

#[test]
fn unreadable_files_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("latin1.toml"), b"# ok\nname = \"K\xfchl\"\n").unwrap();
    fs::write(path("large.toml"), vec![b'#'; MAX_FILE as usize + 1]).unwrap();
    fs::write(path("largest.toml"), vec![b'#'; MAX_FILE as usize]).unwrap();
    for (file, expected) in [
        (
            path("none.toml"),
            "found no such file, expected a settings file",
        ),
        (
            folder.path().to_path_buf(),
            "found a directory, expected a settings file",
        ),
        (
            path("latin1.toml"),
            "found bytes that are not UTF-8 in line 2 (byte 14 of the file), expected",
        ),
        (
            path("large.toml"),
            "found a file over 16 MiB, expected settings of at most 16 MiB",
        ),
        (PathBuf::from("/dev/zero"), "found a file over 16 MiB"),
        (PathBuf::from(""), "found no such file"),
    ] {
        let report = load_env(Some(&file), &[]).unwrap_err();
        let text = report.to_string();
        assert!(
            text.starts_with(&format!("{}: found", file.display())),
            "{text}"
        );
        assert!(text.contains(expected), "{text}");
        assert!(report.pretty().to_string().contains("found"));
    }
    assert!(load_env(Some(&path("largest.toml")), &[]).is_ok());
}

#[test]
fn sixty_fifth_proxy_of_an_upstream_is_refused() {
    let one = |n: usize| {
        format!("[[proxy]]\nname = \"p{n}\"\nupstream = [\"up0\"]\ndownstream = [\"d{n}\"]\n")
    };
    let file = |count: usize| (0..count).map(one).collect::<String>();
    assert!(load_text(&file(64), &[]).is_ok());
    let report = load_text(&file(65), &[]).unwrap_err();
    let text = report.to_string();
    assert!(text.contains("259:13: found \"up0\""), "{text}");
}

#[test]
fn problems_beyond_the_limit_are_counted() {
    let one = "[[route]]\nfrom = \"eth0\"\ngroup = \"10.0.0.1\"\nto = [\"eth1\"]\n";
    let report = load_text(&one.repeat(200), &[]).unwrap_err();
    assert_eq!(report.problems().len(), MAX_PROBLEMS);
    assert_eq!(report.left_out(), 200 - MAX_PROBLEMS);
    // The check finds unknown keys one at a time, and stops at the same limit.
    let report = load_text(&"[[route]]\nzzz = 1\n".repeat(200), &[]).unwrap_err();
    assert_eq!(report.problems().len(), MAX_PROBLEMS);
}

/// Checks ten thousand different routes, and ten thousand routes of one group that differ by
/// `from`.
#[test]
fn ten_thousand_routes_are_checked_quickly() {
    let different: String = (0..10_000)
        .map(|n| {
            let (high, low) = (n / 250, n % 250);
            format!("[[route]]\nfrom = \"eth0\"\ngroup = \"239.1.{high}.{low}\"\nto = [\"eth1\"]\n")
        })
        .collect();
    let one_group: String = (0..10_000)
        .map(|n| format!("[[route]]\nfrom = \"eth{n}\"\ngroup = \"239.1.1.1\"\nto = [\"out\"]\n"))
        .collect();
    for text in [different, one_group] {
        let start = Instant::now();
        let settings = load_text(&text, &[]).unwrap_or_else(|report| panic!("{report}"));
        let took = start.elapsed();
        assert_eq!(settings.routes.len(), 10_000);
        println!("10,000 routes: {took:?}");
        // The limit allows for an unoptimised build on a busy machine; a quadratic check takes
        // minutes.
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
}

/// Such a route is valid: it serves stations that do not receive each other directly.
#[test]
fn route_back_to_its_ingress_is_noted() {
    let route =
        |to: &str| format!("[[route]]\nfrom = \"eth0\"\ngroup = \"225.1.2.3\"\nto = [{to}]\n");
    let notes = load_text(&route("\"eth1\", \"eth0\""), &[])
        .unwrap()
        .notes();
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(
        notes[0].contains("eth0 is in `from` and in `to`"),
        "{notes:?}"
    );
    assert!(notes[0].contains("remove eth0 from `to`"), "{notes:?}");
    // A packet does not return where a pattern in `to` matches its ingress.
    for to in ["\"eth1\"", "\"eth*\""] {
        assert!(
            load_text(&route(to), &[]).unwrap().notes().is_empty(),
            "{to}"
        );
    }
}

#[test]
fn address_as_an_interface_is_noted() {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    let text = "[[route]]\nfrom = \"10.1.0.1\"\ngroup = \"225.1.2.3\"\nto = [\"eth1\"]\n";
    std::fs::write(file.path(), text).unwrap();
    let settings = Settings::load(Some(file.path()), std::iter::empty()).unwrap();
    let notes = settings.notes();
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].contains("10.1.0.1 is an address"), "{notes:?}");
}

/// What `[[discovery]]` does better, or would do twice, is noted and names it.
#[test]
fn hand_written_discovery_is_noted() {
    let notes = |text: &str| load_text(text, &[]).unwrap().notes().join("\n");
    let mdns = |from: &str, to: &str, ttl: &str| {
        format!(
            "[[route]]\nfrom = {from:?}\ngroup = \"224.0.0.251\"\nto = [{to:?}]\nttl = {ttl}\n\
             link_local = true\n"
        )
    };
    let both = mdns("eth0", "br0", "\"keep\"") + &mdns("br0", "eth0", "\"keep\"");
    assert_eq!(notes(&both), "");
    let one_way = notes(&mdns("eth0", "br0", "\"keep\""));
    assert!(
        one_way.contains("one direction only") && one_way.contains("[[discovery]]"),
        "{one_way}"
    );
    let ttl = notes(&(mdns("eth0", "br0", "{ set = 8 }") + &mdns("br0", "eth0", "\"keep\"")));
    assert!(
        ttl.contains("TTL than 255") && ttl.contains("[[discovery]]"),
        "{ttl}"
    );
    let proxy = "[[proxy]]\nupstream = [\"eth0\"]\ndownstream = [\"br0\"]\n";
    let with_group = notes(&format!("{proxy}groups = [\"224.0.0.251\"]\n"));
    assert!(with_group.contains("does not forward mDNS"), "{with_group}");
    let discovery = "[[discovery]]\nbetween = [\"eth0\", \"br0\"]\nprotocols = [\"ssdp\"]\n";
    let twice = notes(&format!("{proxy}{discovery}"));
    assert!(twice.contains("arrive twice"), "{twice}");
    let without = "deny_groups = [\"239.255.255.250\", \"ff02::c\", \"ff05::c\"]\n";
    assert_eq!(notes(&format!("{proxy}{without}{discovery}")), "");
}
