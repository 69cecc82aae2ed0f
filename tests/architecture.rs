//! Rules of the architecture, checked against the source: which module may use which, no cycles,
//! where unsafe code may be, and no panics. Every violation is reported with file and line.
//!
//! `cargo test --test architecture print_cycles -- --nocapture` prints all cycles.

#[path = "architecture/graph.rs"]
mod graph;
#[path = "architecture/source.rs"]
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::OnceLock;

use graph::Graph;
use source::{SourceFile, read_crate};

/// The module layers: a module, and the modules or items it may use besides itself. A packet passes
/// `model -> wire -> table -> forward -> pipeline -> planes -> actors -> frontend -> app`; each
/// uses modules to its left. Items count where they are defined, not where they are re-exported.
const LAYERS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("wire", &["model"]),
    ("membership", &["model", "wire"]),
    // Tunnels to and from networks without multicast.
    ("amt", &["model", "wire", "membership"]),
    // Discovery protocols between networks.
    ("discovery", &["model", "wire"]),
    ("table", &["model"]),
    ("forward", &["model", "wire", "table"]),
    // The health of monitored streams.
    (
        "streams",
        &[
            "model",
            "wire",
            "table",
            "forward",
            // Views are made of the numbers of the analyzers.
            "api",
            // `mcastor send` numbers its packets.
            "probe::payload",
        ],
    ),
    // System calls. The only module with unsafe code.
    ("sys", &["model", "wire"]),
    (
        "metrics",
        &[
            "model",
            "forward::reason::DropReason",
            "membership::config::Protocol",
            "merge::statistics::MergeStatistics",
        ],
    ),
    // Two paths of one stream become one.
    (
        "merge",
        &[
            "model",
            "wire",
            "streams::stream_id::StreamId",
            "probe::payload",
        ],
    ),
    // Code that every plane shares: batches, the switch, the egress queue.
    (
        "pipeline",
        &[
            "model", "wire", "table", "forward", "merge", "streams", "sys",
        ],
    ),
    (
        "planes",
        &[
            "model",
            "wire",
            "table",
            "forward",
            "pipeline",
            "sys",
            // The gateways to which a relay sends a packet.
            "amt::receivers",
        ],
    ),
    // Names that a container engine gives to interfaces.
    ("docker", &["model"]),
    // Plain data for users of the control socket and of HTTP.
    ("api", &[]),
    // The protocol and the client of the MNAT server.
    ("mnat", &["model"]),
    // File format, tables and protocol of smcroute.
    ("smcroute", &["model", "api"]),
    // File format of igmpproxy, for its conversion.
    ("igmpproxy", &["model", "smcroute::toml_text"]),
    // State that outlives the process.
    ("store", &["model", "membership", "metrics", "mnat", "sys"]),
    (
        "settings",
        &[
            "model",
            "wire::amt::PORT",
            "discovery::config",
            "discovery::offer",
            "discovery::protocol",
            "amt::candidate",
            "amt::config",
            "mnat::config",
            "smcroute::conf",
            "igmpproxy::conf",
        ],
    ),
    (
        "actors",
        &[
            // The answer to a client that requests an upgrade passes through unchanged.
            "api::upgrade",
            // The views of monitored streams.
            "api::streams",
            "model",
            "wire",
            "membership",
            "table",
            "forward",
            "streams",
            "sys",
            "merge",
            "pipeline",
            "planes",
            "metrics",
            "mnat",
            "amt",
            "discovery",
            "docker",
            "store",
        ],
    ),
    // The control socket, HTTP and the smcroute socket: queries and changes for the actors.
    (
        "frontend",
        &[
            "model",
            "membership",
            "table",
            "forward",
            "merge",
            "metrics",
            "api",
            "mnat",
            "smcroute",
            "discovery::config",
            "discovery::protocol",
            "actors",
            "pipeline::packet_trace",
            "sys::thread_priority",
        ],
    ),
    (
        "app",
        &[
            "model",
            "table",
            // Captures and relays that another process continues.
            "pipeline::capture_handle",
            "amt::saved",
            "planes",
            "sys",
            "metrics",
            "settings",
            "discovery::config",
            "actors",
            "frontend",
            "api",
            "mnat",
            "store",
        ],
    ),
    // The server of multicast NAT, a process of its own.
    (
        "mnat_server",
        &[
            "model",
            "sys",
            "metrics",
            "mnat",
            "actors::log_limit",
            "frontend::http",
        ],
    ),
    // Findings from facts about the host and the running router.
    (
        "doctor",
        &[
            "model",
            "wire::reason_enum",
            "discovery::askers::FIRST_PORT",
            "api",
            "sys::burst_limit",
            "sys::capabilities",
            "sys::kernel_release",
            "sys::offload",
            // The active probe is a test stream.
            "probe::error",
            "sys::netns",
            "sys::router_processes",
            "traffic",
        ],
    ),
    ("probe", &["model"]),
    // Sockets of the test streams.
    (
        "traffic",
        &["model", "api::streams", "probe", "streams", "sys"],
    ),
    ("demo", &["model", "sys", "probe", "traffic"]),
    (
        "cli",
        &[
            "model",
            // The names of drop reasons are arguments.
            "forward::reason",
            "api",
            "app",
            "doctor",
            "frontend",
            "demo",
            "settings",
            "probe",
            "traffic",
            // RTP, as `recv` and `top` show it.
            "streams",
            "sys",
            "smcroute",
            "igmpproxy",
            "mnat",
            "mnat_server",
            "actors::log_limit",
            // The network of the engine over which `driad-ingest` reaches relays.
            "docker",
        ],
    ),
    ("main", &["cli"]),
    ("lib", &[]),
];

/// Cycles between files that remain: the files, and why they stay.
const FILE_CYCLES: &[(&[&str], &str)] = &[];

/// Modules that write to the terminal.
const PRINTERS: &[&str] = &["cli", "demo"];

/// Names that several modules may give to a public type, by convention.
const SHARED_TYPE_NAMES: &[&str] = &["Settings", "Config", "Error"];

/// The files of the program, read once.
fn program() -> &'static [SourceFile] {
    static FILES: OnceLock<Vec<SourceFile>> = OnceLock::new();
    FILES.get_or_init(|| read_crate(Path::new(env!("CARGO_MANIFEST_DIR"))))
}

/// Whether `item` is one of `allowed` or inside one of them.
fn is_allowed(allowed: &[&str], item: &str) -> bool {
    allowed.iter().any(|a| {
        item.strip_prefix(a)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    })
}

fn layer_violations(files: &[SourceFile]) -> Vec<String> {
    let mut found = Vec::new();
    let layer = |name: &str| LAYERS.iter().find(|(layer, _)| *layer == name);
    for file in files {
        let module = file.top_module();
        if layer(&module).is_none() {
            found.push(format!("src/{}: no layer for module {module}", file.name()));
        }
    }
    for d in Graph::new(files).dependencies {
        let from = &files[d.from];
        let module = from.top_module();
        let Some((_, allowed)) = layer(&module) else {
            continue;
        };
        if !is_allowed(&[&module], &d.item) && !is_allowed(allowed, &d.item) {
            found.push(format!("{}: {module} uses {}", from.at(d.line), d.item));
        }
    }
    found
}

/// Layers that are listed for no file, and permissions that no file uses.
fn unused_layers(files: &[SourceFile]) -> Vec<String> {
    let modules: BTreeSet<String> = files.iter().map(SourceFile::top_module).collect();
    let dependencies = Graph::new(files).dependencies;
    let mut found = Vec::new();
    for (module, allowed) in LAYERS {
        if !modules.contains(*module) {
            found.push(format!("LAYERS: there is no module {module}"));
        }
        for permission in *allowed {
            let is_used = dependencies.iter().any(|d| {
                files[d.from].top_module() == *module && is_allowed(&[permission], &d.item)
            });
            if !is_used {
                found.push(format!("LAYERS: {module} does not use {permission}"));
            }
        }
    }
    found
}

fn unresolved_paths(files: &[SourceFile]) -> Vec<String> {
    Graph::new(files).unresolved
}

fn folder_cycles(files: &[SourceFile]) -> Vec<String> {
    let cycles = Graph::new(files).folder_cycles(files);
    let describe = |cycle: &Vec<String>| format!("cycle between folders: {}", cycle.join(", "));
    cycles.iter().map(describe).collect()
}

/// Cycles between files that are not in `listed`, and those in `listed` that do not exist.
fn file_cycles(files: &[SourceFile], listed: &[(&[&str], &str)]) -> Vec<String> {
    let cycles = Graph::new(files).file_cycles(files);
    let is_listed = |cycle: &Vec<String>| listed.iter().any(|(known, _)| cycle == known);
    let mut found: Vec<String> = cycles
        .iter()
        .filter(|cycle| !is_listed(cycle))
        .map(|cycle| format!("cycle between files: {}", cycle.join(", ")))
        .collect();
    for (known, reason) in listed {
        if !cycles.iter().any(|cycle| cycle == known) {
            found.push(format!("FILE_CYCLES: no such cycle: {}", known.join(", ")));
        }
        if reason.is_empty() {
            found.push(format!("FILE_CYCLES: no reason for {}", known.join(", ")));
        }
    }
    found
}

fn duplicate_public_types(files: &[SourceFile]) -> Vec<String> {
    let mut positions: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for file in files {
        for d in &file.items.definitions {
            if d.is_type && d.is_public && !SHARED_TYPE_NAMES.contains(&d.name.as_str()) {
                positions.entry(&d.name).or_default().push(file.at(d.line));
            }
        }
    }
    positions.retain(|_, at| at.len() > 1);
    let describe = |(name, at): (_, &Vec<String>)| format!("type {name}: {}", at.join(", "));
    positions.iter().map(describe).collect()
}

fn scattered_methods(files: &[SourceFile]) -> Vec<String> {
    let mut places: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (item, file) in Graph::new(files).inherent_impls {
        places.entry(item).or_default().insert(files[file].name());
    }
    places.retain(|_, files| files.len() > 1);
    let names = |files: &BTreeSet<String>| files.iter().cloned().collect::<Vec<_>>().join(", ");
    places
        .iter()
        .map(|(item, files)| format!("methods of {item}: {}", names(files)))
        .collect()
}

fn unsafe_code(files: &[SourceFile]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files {
        for (line, code) in file.lines() {
            let mut words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
            if !words.any(|w| w == "unsafe") {
                continue;
            }
            if file.top_module() != "sys" {
                found.push(format!("{}: unsafe outside sys", file.at(line)));
                continue;
            }
            // Functions and traits document `# Safety` for callers; blocks and impls have a
            // SAFETY comment.
            let declares = code.contains("unsafe fn") || code.contains("unsafe trait");
            let required = if declares { "# Safety" } else { "SAFETY:" };
            if !comment_above(file, line).any(|l| l.contains(required)) {
                found.push(format!("{}: no `{required}` above", file.at(line)));
            }
        }
    }
    found
}

/// The lines of the statement at `line` that are above it, and the comment above the statement.
fn comment_above(file: &SourceFile, line: usize) -> impl Iterator<Item = &String> {
    let mut ended = false;
    file.raw[..line].iter().rev().take(8).take_while(move |l| {
        let text = l.trim();
        let is_comment = text.starts_with("//") || text.starts_with("#[");
        let was_ended = ended;
        ended |= !is_comment && (text.ends_with(';') || text.ends_with('}') || text.is_empty());
        !was_ended
    })
}

fn panics(files: &[SourceFile]) -> Vec<String> {
    const CALLS: &[&str] = &[
        ".unwrap()",
        ".expect(",
        ".unwrap_err()",
        "panic!(",
        "todo!(",
        "unimplemented!(",
        "unreachable!(",
    ];
    let mut found = Vec::new();
    for file in files {
        for (line, code) in file.lines() {
            for call in CALLS.iter().filter(|c| code.contains(**c)) {
                found.push(format!("{}: {call}", file.at(line)));
            }
        }
    }
    found
}

fn prints(files: &[SourceFile]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files {
        if PRINTERS.contains(&file.top_module().as_str()) {
            continue;
        }
        for (line, code) in file.lines() {
            if ["println!(", "print!(", "dbg!("]
                .iter()
                .any(|p| code.contains(p))
            {
                found.push(format!("{}: prints", file.at(line)));
            }
        }
    }
    found
}

#[track_caller]
fn assert_none(violations: Vec<String>) {
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

#[test]
fn modules_use_only_lower_layers() {
    assert_none(layer_violations(program()));
}

#[test]
fn layer_list_matches_the_source() {
    assert_none(unused_layers(program()));
}

#[test]
fn all_paths_are_resolved() {
    assert_none(unresolved_paths(program()));
}

#[test]
fn folders_have_no_cycles() {
    assert_none(folder_cycles(program()));
}

#[test]
fn file_cycles_are_listed_with_a_reason() {
    assert_none(file_cycles(program(), FILE_CYCLES));
}

#[test]
fn public_type_names_are_unique() {
    assert_none(duplicate_public_types(program()));
}

#[test]
fn inherent_methods_are_in_one_file() {
    assert_none(scattered_methods(program()));
}

#[test]
fn unsafe_code_is_in_sys_with_a_safety_comment() {
    assert_none(unsafe_code(program()));
}

#[test]
fn code_has_no_explicit_panics() {
    assert_none(panics(program()));
}

#[test]
fn only_the_command_line_prints() {
    assert_none(prints(program()));
}

/// Prints how many cycles there are, and which files and folders they go through.
#[test]
fn print_cycles() {
    let files = program();
    let graph = Graph::new(files);
    let pairs = graph.mutual_pairs(files);
    for (kind, cycles) in [
        ("folders", graph.folder_cycles(files)),
        ("files", graph.file_cycles(files)),
    ] {
        let members: usize = cycles.iter().map(Vec::len).sum();
        let groups = cycles.len();
        println!("cycles between {kind}: {groups} groups with {members} {kind}");
        for cycle in cycles {
            println!("  {}", cycle.join(" "));
        }
    }
    println!(
        "files that refer to each other directly: {} pairs",
        pairs.len()
    );
    for (a, b) in pairs {
        println!("  {a} {b}");
    }
}

/// Guards against an empty or misread source, which would satisfy every rule.
#[test]
fn source_is_found() {
    let files = program();
    let modules: BTreeSet<_> = files.iter().map(SourceFile::top_module).collect();
    for module in [
        "model", "wire", "table", "forward", "planes", "actors", "sys",
    ] {
        assert!(modules.contains(module), "no {module} in {modules:?}");
    }
    let graph = Graph::new(files);
    assert!(graph.dependencies.len() > 500);
    assert!(graph.inherent_impls.len() > 100);
}

/// Files with the given paths and texts, and a `lib.rs` that declares the top-level modules.
fn sample(sources: &[(&str, &str)]) -> Vec<SourceFile> {
    let parse = |(path, text): &(&str, &str)| SourceFile::new(Path::new(path), text);
    let mut files: Vec<SourceFile> = sources.iter().map(parse).collect();
    let modules: BTreeSet<String> = files.iter().map(SourceFile::top_module).collect();
    let text: String = modules.iter().map(|m| format!("mod {m};\n")).collect();
    files.push(SourceFile::new(Path::new("lib.rs"), &text));
    files
}

#[test]
fn layer_rule_rejects_upward_use() {
    let planes = ("planes/mod.rs", "pub mod batch;\npub use batch::Batch;\n");
    let batch = ("planes/batch.rs", "pub struct Batch;\n");
    let violations = |path, text| layer_violations(&sample(&[planes, batch, (path, text)]));

    let group = "use crate::{\n    other,\n    planes::{Batch, self},\n};\n";
    let expected = ["src/forward/mod.rs:1: forward uses planes::batch::Batch"];
    assert_eq!(violations("forward/mod.rs", group), expected);

    let inline = "fn f() {\n    let x = crate::planes::batch::Batch;\n}\n";
    let expected = ["src/forward/mod.rs:2: forward uses planes::batch::Batch"];
    assert_eq!(violations("forward/mod.rs", inline), expected);

    let alias = "use crate::planes as p;\nfn f(x: p::Batch) {}\n";
    let expected = ["src/forward/mod.rs:2: forward uses planes::batch::Batch"];
    assert_eq!(violations("forward/mod.rs", alias), expected);

    let glob = "use super::planes::*;\nfn f(x: Batch) {}\n";
    let expected = ["src/forward/mod.rs:2: forward uses planes::batch::Batch"];
    assert_eq!(violations("forward/mod.rs", glob), expected);

    assert!(violations("actors/mod.rs", group).is_empty());
    let test = "#[cfg(test)]\nmod tests {\n    use crate::planes::Batch;\n}\n";
    assert!(violations("forward/mod.rs", test).is_empty());
    assert_eq!(
        violations("attic/mod.rs", ""),
        ["src/attic/mod.rs: no layer for module attic"]
    );
}

#[test]
fn layer_rule_accepts_only_listed_items() {
    let files = sample(&[
        ("forward/mod.rs", "pub mod reason;\npub fn decide() {}\n"),
        ("forward/reason.rs", "reasons! {\n    enum DropReason;\n}\n"),
        (
            "metrics/mod.rs",
            "use crate::forward::reason::DropReason;\nuse crate::forward::decide;\n",
        ),
    ]);
    assert_eq!(
        layer_violations(&files),
        ["src/metrics/mod.rs:2: metrics uses forward::decide"]
    );
    let unused = unused_layers(&files);
    assert!(unused.contains(&"LAYERS: metrics does not use model".into()));
    assert!(unused.contains(&"LAYERS: there is no module model".into()));
}

#[test]
fn unresolved_path_is_reported() {
    let files = sample(&[("wire/mod.rs", "use super::missing::Item;\nuse std::io;\n")]);
    assert_eq!(
        unresolved_paths(&files),
        ["src/wire/mod.rs:1: super::missing::Item"]
    );
}

#[test]
fn file_cycles_are_found_through_reexports() {
    let files = sample(&[
        (
            "table/mod.rs",
            "mod fib;\nmod rib;\npub use fib::Fib;\npub use rib::Rib;\n",
        ),
        ("table/fib.rs", "pub struct Fib(super::Rib);\n"),
        (
            "table/rib.rs",
            "use crate::table::Fib;\npub struct Rib(Box<Fib>);\n",
        ),
    ]);
    let found = file_cycles(&files, &[]);
    assert_eq!(found, ["cycle between files: table/fib.rs, table/rib.rs"]);
    assert!(folder_cycles(&files).is_empty());

    let known: &[&str] = &["table/fib.rs", "table/rib.rs"];
    assert!(file_cycles(&files, &[(known, "a reason")]).is_empty());
    assert_eq!(file_cycles(&files, &[(known, "")]).len(), 1);
    let gone = file_cycles(
        &files,
        &[(known, "a reason"), (&["a.rs", "b.rs"], "a reason")],
    );
    assert_eq!(gone, ["FILE_CYCLES: no such cycle: a.rs, b.rs"]);
}

#[test]
fn reexports_alone_make_no_cycle() {
    let files = sample(&[
        (
            "table/mod.rs",
            "mod fib;\npub use fib::Fib;\npub struct Shared;\n",
        ),
        ("table/fib.rs", "pub struct Fib(super::Shared);\n"),
    ]);
    assert!(file_cycles(&files, &[]).is_empty());
    let files = sample(&[
        (
            "table/mod.rs",
            "mod fib;\npub use fib::Fib;\npub struct Shared;\nfn f(x: Fib) {}\n",
        ),
        ("table/fib.rs", "pub struct Fib(super::Shared);\n"),
    ]);
    let found = file_cycles(&files, &[]);
    assert_eq!(found, ["cycle between files: table/fib.rs, table/mod.rs"]);
}

#[test]
fn folder_cycles_are_found_at_every_level() {
    let files = sample(&[
        (
            "http/mod.rs",
            "use crate::actors::control::Query;\npub struct Page;\n",
        ),
        ("actors/mod.rs", "pub mod control;\npub mod data;\n"),
        (
            "actors/control.rs",
            "use crate::actors::data::Batch;\npub struct Query(crate::http::Page);\n",
        ),
        ("actors/data/mod.rs", "mod batch;\npub use batch::Batch;\n"),
        (
            "actors/data/batch.rs",
            "pub struct Batch(crate::actors::control::Query);\n",
        ),
    ]);
    assert_eq!(
        folder_cycles(&files),
        [
            "cycle between folders: actors, http.rs",
            "cycle between folders: actors/control.rs, actors/data"
        ]
    );
}

#[test]
fn duplicate_public_type_is_reported() {
    let files = sample(&[
        (
            "wire/mod.rs",
            "pub struct Group;\nenum Kind {}\npub enum Error {}\n",
        ),
        (
            "table/mod.rs",
            "pub(crate) type Group = u8;\npub enum Kind {}\npub struct Error;\n",
        ),
    ]);
    assert_eq!(
        duplicate_public_types(&files),
        ["type Group: src/wire/mod.rs:1, src/table/mod.rs:1"]
    );
}

#[test]
fn scattered_methods_are_reported() {
    let files = sample(&[
        (
            "table/mod.rs",
            "mod rib;\npub struct Rib<T>(T);\nimpl<T: Ord> Rib<T> {}\n",
        ),
        (
            "table/rib.rs",
            "impl Drop for super::Rib<u8> {}\nimpl super::Rib<u8> {\n    fn f() {}\n}\n",
        ),
    ]);
    assert_eq!(
        scattered_methods(&files),
        ["methods of table::Rib: table/mod.rs, table/rib.rs"]
    );
    let files = sample(&[
        ("table/mod.rs", "mod rib;\npub struct Rib;\nimpl Rib {}\n"),
        (
            "table/rib.rs",
            "#[cfg(test)]\nmod tests {\n    use super::super::Rib;\n    impl Rib {}\n}\n",
        ),
    ]);
    assert!(scattered_methods(&files).is_empty());
}

#[test]
fn unsafe_rule_requires_sys_and_a_comment() {
    let violations = |path, text| unsafe_code(&sample(&[(path, text)]));
    assert_eq!(
        violations("wire/ip.rs", "fn f() {\n    unsafe { g() }\n}\n"),
        ["src/wire/ip.rs:2: unsafe outside sys"]
    );
    let bare = "fn f() {\n    // Fine.\n    unsafe { g() }\n}\n";
    assert_eq!(
        violations("sys/a.rs", bare),
        ["src/sys/a.rs:3: no `SAFETY:` above"]
    );
    // The comment covers the first statement only.
    let first = "fn f() {\n    // SAFETY: g is.\n    let x =\n        unsafe { g() };\n    unsafe { g() };\n}\n";
    assert_eq!(
        violations("sys/a.rs", first),
        ["src/sys/a.rs:5: no `SAFETY:` above"]
    );
}

#[test]
fn panic_rule_ignores_comments_literals_and_tests() {
    let text = "// .unwrap()\nlet a = \".unwrap() \\\" panic!(\";\nlet b = c.unwrap();\n\
                let d = '\"'; e.expect(\"\");\n\
                #[cfg(test)]\nmod tests { fn f() { g().unwrap() } }\nfn h() { todo!() }\n";
    assert_eq!(
        panics(&sample(&[("model/a.rs", text)])),
        [
            "src/model/a.rs:3: .unwrap()",
            "src/model/a.rs:4: .expect(",
            "src/model/a.rs:7: todo!("
        ]
    );
}

#[test]
fn print_rule_accepts_printers_only() {
    let text = "println!(\"hello\");\neprintln!(\"oh\");\n";
    assert_eq!(prints(&sample(&[("app.rs", text)])).len(), 2);
    assert!(prints(&sample(&[("cli/run.rs", text)])).is_empty());
}

#[test]
fn files_declared_by_tests_are_left_out() {
    let parse = |(path, text): (&str, &str)| SourceFile::new(Path::new(path), text);
    let files = [
        ("lib.rs", "pub mod wire;\n"),
        ("wire/mod.rs", "#[cfg(test)]\nmod tests;\nmod ip;\n"),
        ("wire/ip.rs", ""),
        ("wire/tests.rs", "mod more;\n"),
        ("wire/tests/more.rs", ""),
    ];
    let files = source::without_test_files(files.map(parse).into());
    let names: Vec<String> = files.iter().map(SourceFile::name).collect();
    assert_eq!(names, ["lib.rs", "wire/mod.rs", "wire/ip.rs"]);
}
