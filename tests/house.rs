//! The rules of the house, read from the source: which room may use which, where unsafe code
//! and panics may stand, how long a file may be. Every fault is named by file and line.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Which rooms each room may use besides itself. The way of a packet is
/// `model -> wire -> table -> forward -> planes -> actors -> app`: each uses what stands to
/// its left. `sys` is the kernel; only those that hold a socket reach it.
const ROOMS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("wire", &["model"]),
    ("membership", &["model", "wire"]),
    ("table", &["model", "wire"]),
    ("forward", &["model", "wire", "table"]),
    ("sys", &["model", "wire"]),
    (
        "metrics",
        &["model", "forward::DropReason", "membership::Protocol"],
    ),
    ("planes", &["model", "wire", "table", "forward", "sys"]),
    // What a container engine calls the interfaces.
    ("docker", &["model"]),
    // What is told to readers, as plain data.
    ("api", &[]),
    ("control", &["api", "actors::World", "actors::questions"]),
    ("http", &["api", "actors::World", "actors::questions"]),
    // A neighbour's protocol: nobody but its actor knows more of it than the role.
    ("mnat", &["model"]),
    // smcroute's file, tables and protocol, without sockets; its server is below.
    ("smcroute", &["model"]),
    ("settings", &["model", "wire", "mnat"]),
    (
        "actors",
        &[
            "model",
            "wire",
            "membership",
            "table",
            "forward",
            "planes",
            "metrics",
            "api",
            "http",
            "mnat",
            "docker",
        ],
    ),
    (
        "app",
        &[
            "model",
            "table",
            "planes",
            "sys",
            "metrics",
            "settings",
            "actors",
            "control",
            "smcroute::server",
            "api",
            "mnat",
        ],
    ),
    ("streams", &["model", "sys"]),
    (
        "demo",
        &[
            "model", "sys", "streams", "settings", "app", "cli", "api", "control",
        ],
    ),
    (
        "cli",
        &[
            "model", "api", "app", "control", "demo", "settings", "streams", "sys", "smcroute",
            "mnat",
        ],
    ),
    ("main", &["cli"]),
    ("lib", &[]),
];

/// Files that may use more than their room.
const FILES: &[(&str, &[&str])] = &[
    // The kernel's interfaces, and the memberships of this host.
    ("actors/links.rs", &["sys"]),
    ("actors/joins.rs", &["sys::memberships"]),
    // smcroute.conf is a format of settings.
    ("settings/smcroute.rs", &["smcroute::conf"]),
    ("smcroute/show.rs", &["api"]),
    (
        "smcroute/server.rs",
        &[
            "api",
            "actors::World",
            "actors::questions",
            "control::socket",
        ],
    ),
];

/// Rooms that talk to a person on the terminal.
const PRINTERS: &[&str] = &["cli", "demo"];

/// Lines of a file outside its tests: past about 500 it probably holds a second noun.
const LONGEST: usize = 520;

/// Lines of any file, with its tests and comments: nobody keeps more in mind.
const LONGEST_WHOLE: usize = 700;

struct Source {
    /// Relative to `src`.
    path: PathBuf,
    /// Lines without comments and without the insides of texts, up to the tests.
    code: Vec<String>,
    /// The same lines as written.
    written: Vec<String>,
}

impl Source {
    fn room(&self) -> &str {
        let first = self.path.iter().next().unwrap();
        first.to_str().unwrap().trim_end_matches(".rs")
    }

    fn at(&self, line: usize) -> String {
        format!("src/{}:{}", self.path.display(), line + 1)
    }

    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.iter().map(String::as_str).enumerate()
    }
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    files(&root, &mut paths);
    paths.sort();
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        source(path.strip_prefix(&root).unwrap(), &text)
    };
    paths.iter().map(read).collect()
}

fn source(path: &Path, text: &str) -> Source {
    let bare = without_comments_and_texts(text);
    let code: Vec<String> = bare.lines().map(str::to_string).collect();
    // A file of tests alone is none of the house's business.
    let is_test_file = path
        .iter()
        .any(|part| part == "tests.rs" || part == "tests");
    let end = code
        .iter()
        .position(|l| l.trim() == "#[cfg(test)]")
        .unwrap_or(code.len());
    let end = if is_test_file { 0 } else { end };
    Source {
        path: path.into(),
        code: code[..end].to_vec(),
        written: text.lines().take(end).map(str::to_string).collect(),
    }
}

/// Blanks comments and what stands between quotes; every line stays where it is.
fn without_comments_and_texts(text: &str) -> String {
    let b: Vec<char> = text.chars().collect();
    let mut out = String::new();
    let mut i = 0;
    let keep_lines = |out: &mut String, from: &[char]| {
        out.extend(from.iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
    };
    while i < b.len() {
        let rest = &b[i..];
        let starts = |s: &str| s.chars().zip(rest).filter(|(x, y)| x == *y).count() == s.len();
        let word_before = i > 0 && (b[i - 1].is_alphanumeric() || b[i - 1] == '_');
        let raw_hashes = rest.iter().skip(1).take_while(|c| **c == '#').count();
        let len = if starts("//") {
            rest.iter().take_while(|c| **c != '\n').count()
        } else if starts("/*") {
            let mut n = 2;
            while n < rest.len() && !(rest[n - 1] == '*' && rest[n] == '/' && n > 2) {
                n += 1;
            }
            n + 1
        } else if rest[0] == 'r' && !word_before && rest.get(1 + raw_hashes) == Some(&'"') {
            let mut n = 2 + raw_hashes;
            let closes = |n: usize| {
                rest[n] == '"' && rest[n + 1..].iter().take(raw_hashes).all(|c| *c == '#')
            };
            while n < rest.len() && !closes(n) {
                n += 1;
            }
            n + 1 + raw_hashes
        } else if rest[0] == '"' {
            let mut n = 1;
            while n < rest.len() && rest[n] != '"' {
                n += if rest[n] == '\\' { 2 } else { 1 };
            }
            n + 1
        } else if rest[0] == '\'' && rest.get(1) == Some(&'\\') {
            let end = rest.iter().skip(3).position(|c| *c == '\'');
            end.map_or(1, |e| e + 4)
        } else if rest[0] == '\'' && rest.get(2) == Some(&'\'') {
            3
        } else {
            out.push(rest[0]);
            i += 1;
            continue;
        };
        let len = len.min(rest.len());
        keep_lines(&mut out, &rest[..len]);
        i += len;
    }
    out
}

/// Every `crate::…` path of a file, with its line; groups in braces are taken apart.
fn uses(source: &Source) -> Vec<(usize, String)> {
    let text = source.code.join("\n");
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let line = text[..at].matches('\n').count();
        let after = &text[at + "crate::".len()..];
        let mut names = Vec::new();
        expand(after, "", &mut names);
        found.extend(names.into_iter().map(|n| (line, n)));
    }
    found
}

/// Reads `a::{b, c::d}` into `a::b`, `a::c::d`. Returns how much of `text` it was.
fn expand(text: &str, prefix: &str, found: &mut Vec<String>) -> usize {
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '*';
    let path_len = text.find(|c| !is_path(c)).unwrap_or(text.len());
    let path = format!("{prefix}{}", &text[..path_len]);
    if !text[path_len..].starts_with('{') {
        found.push(path.trim_end_matches(':').to_string());
        return path_len;
    }
    let mut at = path_len + 1;
    loop {
        let rest = &text[at..];
        let skipped = rest
            .find(|c: char| !c.is_whitespace() && c != ',')
            .unwrap_or(rest.len());
        at += skipped;
        if at >= text.len() || text[at..].starts_with('}') {
            return at + 1;
        }
        let step = expand(&text[at..], &path, found);
        // `as name`, or something this does not read: go on at the next separator.
        let rest = &text[at + step..];
        at += step + rest.find([',', '}']).unwrap_or(rest.len());
    }
}

fn may_use(allowed: &[&str], used: &str) -> bool {
    let within =
        |a: &&str| used == *a || used.strip_prefix(*a).is_some_and(|r| r.starts_with("::"));
    allowed.iter().any(within)
}

fn arrows(sources: &[Source]) -> Vec<String> {
    let mut faults = Vec::new();
    for source in sources {
        let room = source.room();
        let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == room) else {
            faults.push(format!(
                "src/{}: unknown room {room}",
                source.path.display()
            ));
            continue;
        };
        let path = source.path.to_str().unwrap();
        let more = FILES.iter().find(|(file, _)| *file == path);
        let more = more.map_or(&[][..], |(_, more)| more);
        for (line, used) in uses(source) {
            let own = may_use(&[room], &used);
            if !own && !may_use(allowed, &used) && !may_use(more, &used) {
                faults.push(format!("{}: {room} uses {used}", source.at(line)));
            }
        }
    }
    faults
}

fn unsafe_code(sources: &[Source]) -> Vec<String> {
    let mut faults = Vec::new();
    for source in sources {
        for (line, code) in source.lines() {
            let words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
            if !words.clone().any(|w| w == "unsafe") {
                continue;
            }
            if source.room() != "sys" {
                faults.push(format!("{}: unsafe outside sys", source.at(line)));
                continue;
            }
            // A function or a trait says `# Safety` to its callers; all else says SAFETY.
            let declares = code.contains("unsafe fn") || code.contains("unsafe trait");
            let wanted = if declares { "# Safety" } else { "SAFETY:" };
            // Of a statement over several lines, the comment stands above the first.
            let said = source.written[..line]
                .iter()
                .rev()
                .take(8)
                .scan(false, |ended, l| {
                    if *ended {
                        return None;
                    }
                    let t = l.trim();
                    let comment = t.starts_with("//") || t.starts_with("#[");
                    *ended = !comment && (t.ends_with(';') || t.ends_with('}') || t.is_empty());
                    Some(l)
                })
                .any(|l| l.contains(wanted));
            if !said {
                faults.push(format!("{}: no `{wanted}` above", source.at(line)));
            }
        }
    }
    faults
}

fn panics(sources: &[Source]) -> Vec<String> {
    const CALLS: &[&str] = &[
        ".unwrap()",
        ".expect(",
        ".unwrap_err()",
        "panic!(",
        "todo!(",
        "unimplemented!(",
        "unreachable!(",
    ];
    let mut faults = Vec::new();
    for source in sources {
        for (line, code) in source.lines() {
            for call in CALLS.iter().filter(|c| code.contains(**c)) {
                faults.push(format!("{}: {call}", source.at(line)));
            }
        }
    }
    faults
}

fn prints(sources: &[Source]) -> Vec<String> {
    let mut faults = Vec::new();
    for source in sources.iter().filter(|s| !PRINTERS.contains(&s.room())) {
        for (line, code) in source.lines() {
            if ["println!(", "print!(", "dbg!("]
                .iter()
                .any(|p| code.contains(p))
            {
                faults.push(format!("{}: prints", source.at(line)));
            }
        }
    }
    faults
}

fn long_files(sources: &[Source]) -> Vec<String> {
    let long = sources.iter().filter(|s| s.code.len() > LONGEST);
    long.map(|s| format!("{}: {} lines of code", s.at(LONGEST), s.code.len()))
        .collect()
}

/// Files of any kind of code with their lines, and those that have too many.
fn too_long(files: &[(String, usize)]) -> Vec<String> {
    let long = files.iter().filter(|(_, lines)| *lines > LONGEST_WHOLE);
    long.map(|(path, lines)| {
        format!("{path}: {lines} lines, of {LONGEST_WHOLE} at most; split it by subject")
    })
    .collect()
}

fn none(faults: Vec<String>) {
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn rooms_use_only_what_stands_to_their_left() {
    none(arrows(&sources()));
}

#[test]
fn unsafe_code_stands_in_sys_and_says_why_it_is_sound() {
    none(unsafe_code(&sources()));
}

#[test]
fn nothing_panics_on_purpose() {
    none(panics(&sources()));
}

#[test]
fn only_the_command_line_prints() {
    none(prints(&sources()));
}

#[test]
fn no_file_holds_two_nouns() {
    none(long_files(&sources()));
}

#[test]
fn no_file_is_too_long_to_read() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    for folder in ["src", "tests", "bench"] {
        let before = paths.len();
        files(&root.join(folder), &mut paths);
        assert!(paths.len() > before, "no files in {folder}");
    }
    // What cargo-fuzz builds is nobody's to read.
    paths.retain(|path| !path.starts_with(root.join("tests/fuzz/target")));
    paths.sort();
    let lines = |path: &PathBuf| {
        let name = path.strip_prefix(root).unwrap().display().to_string();
        (name, fs::read_to_string(path).unwrap().lines().count())
    };
    none(too_long(&paths.iter().map(lines).collect::<Vec<_>>()));
}

#[test]
fn the_source_is_found() {
    let sources = sources();
    let rooms: BTreeSet<_> = sources.iter().map(Source::room).collect();
    for room in [
        "model", "wire", "table", "forward", "planes", "actors", "sys",
    ] {
        assert!(rooms.contains(room), "no {room} in {rooms:?}");
    }
    assert!(sources.iter().map(|s| uses(s).len()).sum::<usize>() > 50);
}

#[test]
fn every_rule_can_fail() {
    let one = |path: &str, text: &str| vec![source(Path::new(path), text)];
    let forward = one(
        "forward/decide.rs",
        "use crate::model::IfIndex;\nuse crate::{\n    wire::ip,\n    planes::{Batch, sim},\n};\n",
    );
    assert_eq!(
        arrows(&forward),
        [
            "src/forward/decide.rs:2: forward uses planes::Batch",
            "src/forward/decide.rs:2: forward uses planes::sim"
        ]
    );
    let inline = one(
        "table/fib.rs",
        "fn f() {\n    let x: crate::actors::World = g();\n}\n",
    );
    assert_eq!(
        arrows(&inline),
        ["src/table/fib.rs:2: table uses actors::World"]
    );
    let metrics = "use crate::forward::DropReason;\nuse crate::forward::decide;\n";
    let metrics = one("metrics/catalog.rs", metrics);
    assert_eq!(
        arrows(&metrics),
        ["src/metrics/catalog.rs:2: metrics uses forward::decide"]
    );
    assert_eq!(
        arrows(&one("attic/mod.rs", "")),
        ["src/attic/mod.rs: unknown room attic"]
    );
    let sys = arrows(&one("actors/keeper.rs", "use crate::sys::ring;"));
    assert_eq!(sys, ["src/actors/keeper.rs:1: actors uses sys::ring"]);
    assert!(arrows(&one("actors/links.rs", "use crate::sys::ring;")).is_empty());
    let joins = "use crate::sys::memberships::Memberships;\nuse crate::sys::ring;\n";
    assert_eq!(
        arrows(&one("actors/joins.rs", joins)),
        ["src/actors/joins.rs:2: actors uses sys::ring"]
    );
    let control = "use crate::actors::{World, questions, routing::Ask};\n";
    assert_eq!(
        arrows(&one("control/server.rs", control)),
        ["src/control/server.rs:1: control uses actors::routing::Ask"]
    );
    let metrics = "use crate::model::FlowEnd;\nuse crate::table::flows::Ended;\n";
    assert_eq!(
        arrows(&one("metrics/catalog.rs", metrics)),
        ["src/metrics/catalog.rs:2: metrics uses table::flows::Ended"]
    );

    let outside = one("wire/ip.rs", "fn f() {\n    unsafe { g() }\n}\n");
    assert_eq!(
        unsafe_code(&outside),
        ["src/wire/ip.rs:2: unsafe outside sys"]
    );
    let silent = one(
        "sys/a.rs",
        "fn f() {\n    // Fine.\n    unsafe { g() }\n}\n",
    );
    assert_eq!(unsafe_code(&silent), ["src/sys/a.rs:3: no `SAFETY:` above"]);
    let spoken = "fn f() {\n    // SAFETY: g is.\n    let x =\n        unsafe { g() };\n    unsafe { g() };\n}\n";
    let spoken = one("sys/a.rs", spoken);
    assert_eq!(unsafe_code(&spoken), ["src/sys/a.rs:5: no `SAFETY:` above"]);

    let text = "// .unwrap()\nlet a = \".unwrap() \\\" panic!(\";\nlet b = c.unwrap();\nlet d = '\"'; e.expect(\"\");\n#[cfg(test)]\nmod tests { fn f() { g().unwrap() } }\n";
    let faults = panics(&one("model/a.rs", text));
    assert_eq!(
        faults,
        ["src/model/a.rs:3: .unwrap()", "src/model/a.rs:4: .expect("]
    );

    let print = "println!(\"hello\");\neprintln!(\"oh\");\n";
    assert_eq!(prints(&one("app.rs", print)).len(), 1 + 1);
    assert!(prints(&one("cli/run.rs", print)).is_empty());
    assert!(panics(&one("model/tests/a.rs", text)).is_empty());
    assert_eq!(
        long_files(&one("app.rs", &"x();\n".repeat(LONGEST + 1))).len(),
        1
    );
    assert!(long_files(&one("app.rs", &"x();\n".repeat(LONGEST))).is_empty());
    let files = [
        ("a.rs".into(), LONGEST_WHOLE),
        ("b.rs".into(), LONGEST_WHOLE + 1),
    ];
    assert_eq!(
        too_long(&files),
        ["b.rs: 701 lines, of 700 at most; split it by subject"]
    );
}
