//! Replays logs of membership messages on the membership state machine with a virtual clock, and
//! tests the state machine with many groups.
//!
//! Each file in `tests/replay` is a log. Its input lines start with a time in seconds:
//! - `< FROM TO MESSAGE`: the machine receives a message.
//! - `< HEX`: the machine receives an IP packet that `record.py` recorded.
//! - `?`: the test prints the state.
//!
//! All other lines are the expected output. The machine must produce these lines and no others:
//! `>` a query, `=` a changed filter of a group, `!` an event, `x` a refusal, `:` the state, `/`
//! the content of a recorded packet.
//!
//! `MCASTOR_BLESS=1` writes the output lines. Then compare them with the RFC section that the file
//! names.

use std::fmt::Write;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use mcastor::membership::{Downstream, DownstreamConfig, MembershipEvent, Protocol};
use mcastor::model::{Group, HeaderChecks, ProxyRule, QuerierPolicy, Source, Versions};
use mcastor::wire::link_control::{self, HeaderPolicy};
use mcastor::wire::membership_message::{
    Generation, GroupRecord, MembershipMessage, Query, RecordType,
};
use mcastor::wire::{igmp, mld};

const KINDS: [(&str, RecordType); 6] = [
    ("IS_IN", RecordType::ModeIsInclude),
    ("IS_EX", RecordType::ModeIsExclude),
    ("TO_IN", RecordType::ChangeToInclude),
    ("TO_EX", RecordType::ChangeToExclude),
    ("ALLOW", RecordType::AllowNewSources),
    ("BLOCK", RecordType::BlockOldSources),
];

struct Replay {
    machine: Downstream,
    start: Instant,
    now: Instant,
    log: String,
}

fn value<T: std::str::FromStr>(word: &str, key: &str) -> Option<T> {
    let rest = word.strip_prefix(key)?.strip_prefix('=')?;
    rest.parse().ok()
}

/// Creates the machine of a line such as
/// `machine igmp own=10.0.0.1 querier=off version=2 fast_leave interval=125`.
fn machine(line: &str, start: Instant) -> Downstream {
    let mut rule = ProxyRule::new(vec![], vec![]);
    let (mut own, mut protocol) = (None, Protocol::Igmp);
    for word in line.split_whitespace().skip(1) {
        match word {
            "igmp" => {}
            "mld" => protocol = Protocol::Mld,
            "querier=on" => rule.querier = QuerierPolicy::On,
            "querier=off" => rule.querier = QuerierPolicy::Off,
            "fast_leave" => rule.fast_leave = true,
            _ => {
                if let Some(address) = value(word, "own") {
                    own = Some(address);
                } else if let Some(version) = value::<u8>(word, "version") {
                    let (igmp, mld) = (version, version.min(2));
                    rule.version = Versions { igmp, mld };
                } else if let Some(groups) = value(word, "groups") {
                    rule.limits.groups = groups;
                } else if let Some(seconds) = value(word, "interval") {
                    rule.timers.query_interval = Duration::from_secs(seconds);
                } else if let Some(robustness) = value(word, "robustness") {
                    rule.timers.robustness = robustness;
                } else {
                    panic!("{word}?");
                }
            }
        }
    }
    Downstream::new(start, DownstreamConfig::new(protocol, Arc::new(rule)), own)
}

fn generation(word: &str) -> Generation {
    match word {
        "v1" => Generation::One,
        "v2" => Generation::Two,
        "v3" => Generation::Three,
        other => panic!("{other}?"),
    }
}

fn sources(words: &[&str]) -> Vec<Source> {
    let words = words.iter().map(|w| w.trim_matches(['{', '}']));
    words
        .filter(|w| !w.is_empty())
        .map(|w| w.parse().unwrap())
        .collect()
}

fn message(text: &str) -> MembershipMessage {
    let words: Vec<_> = text.split_whitespace().collect();
    match words[0] {
        "report" => MembershipMessage::Report {
            generation: generation(words[1]),
            group: words[2].parse().unwrap(),
        },
        "leave" => MembershipMessage::Leave {
            group: words[1].parse().unwrap(),
        },
        "query" => {
            let mut query = Query {
                generation: generation(words[1]),
                group: None,
                max_response_time: Duration::from_secs(10),
                suppress: false,
                robustness: 0,
                interval: None,
                sources: vec![],
            };
            for word in &words[2..] {
                if *word == "S" {
                    query.suppress = true;
                } else if let Some(seconds) = value(word, "max") {
                    query.max_response_time = Duration::from_secs_f64(seconds);
                } else if let Some(robustness) = value(word, "qrv") {
                    query.robustness = robustness;
                } else if let Some(seconds) = value(word, "qqi") {
                    query.interval = Some(Duration::from_secs(seconds));
                } else if let Ok(group) = word.parse::<Group>() {
                    query.group = Some(group);
                } else {
                    query.sources.extend(sources(&[word]));
                }
            }
            MembershipMessage::Query(query)
        }
        _ => {
            let record = |text: &str| {
                let words: Vec<_> = text.split_whitespace().collect();
                let kind = KINDS.iter().find(|(name, _)| *name == words[0]);
                GroupRecord {
                    kind: kind.unwrap_or_else(|| panic!("{text}?")).1,
                    group: words[1].parse().unwrap(),
                    sources: sources(&words[2..]),
                }
            };
            MembershipMessage::Records(text.split(';').map(record).collect())
        }
    }
}

fn format_sources(sources: &[Source]) -> String {
    let sources: Vec<_> = sources.iter().map(Source::to_string).collect();
    format!("{{{}}}", sources.join(" "))
}

/// The inverse of [`message`].
fn format_message(message: &MembershipMessage) -> String {
    let version = |generation: Generation| generation as u8 + 1;
    match message {
        MembershipMessage::Query(query) => format_query(query),
        MembershipMessage::Report { generation, group } => {
            format!("report v{} {group}", version(*generation))
        }
        MembershipMessage::Leave { group } => format!("leave {group}"),
        MembershipMessage::Records(records) => {
            let name = |r: &GroupRecord| KINDS.iter().find(|(_, k)| *k == r.kind).unwrap().0;
            let format_record =
                |r: &GroupRecord| format!("{} {} {}", name(r), r.group, format_sources(&r.sources));
            records
                .iter()
                .map(format_record)
                .collect::<Vec<_>>()
                .join("; ")
        }
    }
}

fn format_query(query: &Query) -> String {
    let version = query.generation as u8 + 1;
    let mut text = format!("query v{version}");
    if let Some(group) = query.group {
        write!(text, " {group}").unwrap();
    }
    if !query.sources.is_empty() {
        write!(text, " {}", format_sources(&query.sources)).unwrap();
    }
    write!(text, " max={}", query.max_response_time.as_secs_f64()).unwrap();
    if query.suppress {
        text += " S";
    }
    if let Some(interval) = query.interval {
        let (qrv, qqi) = (query.robustness, interval.as_secs());
        write!(text, " qrv={qrv} qqi={qqi}").unwrap();
    }
    text
}

fn bytes(hex: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(byte).collect()
}

fn seconds(d: Duration) -> f64 {
    (d.as_secs_f64() * 1000.0).round() / 1000.0
}

impl Replay {
    fn line(&mut self, text: &str) {
        let at = seconds(self.now - self.start);
        writeln!(self.log, "{at} {text}").unwrap();
    }

    fn drain(&mut self) {
        while let Some(event) = self.machine.poll_event() {
            let text = match event {
                MembershipEvent::QuerierChanged { address, is_us } => {
                    let querier = address.map_or("none".into(), |a| a.to_string());
                    format!("! querier {querier}{}", if is_us { ", us" } else { "" })
                }
                other => format!("! {other:?}"),
            };
            self.line(&text);
        }
        while let Some(out) = self.machine.poll_query() {
            self.line(&format!(
                "> {} {}",
                out.destination,
                format_query(&out.query)
            ));
        }
        while let Some((group, filter)) = self.machine.poll_change() {
            self.line(&format!("= {group} {filter}"));
        }
        let refused: Vec<_> = self.machine.take_refusals().collect();
        for (reason, count) in refused {
            self.line(&format!("x {reason} {count}"));
        }
    }

    fn advance_to(&mut self, until: Instant) {
        self.drain();
        while let Some(at) = self.machine.poll_timeout().filter(|at| *at <= until) {
            self.now = at.max(self.now);
            self.machine.handle_timeout(self.now);
            self.drain();
        }
        self.now = until;
    }

    fn print_state(&mut self) {
        let querier = self.machine.querier(self.now);
        let left = querier
            .expires_in
            .map_or(String::new(), |d| format!(" {}", seconds(d)));
        let address = querier.address.map_or("none".into(), |a| a.to_string());
        self.line(&format!(": querier {address}{left}"));
        let views: Vec<_> = self.machine.groups(self.now).collect();
        for view in views {
            let mut text = format!(": {} v{}", view.group, view.generation as u8 + 1);
            match view.group_timer {
                Some(left) => write!(text, " exclude {}", seconds(left)).unwrap(),
                None => text += " include",
            }
            for s in &view.sources {
                let left = s.source_timer.map_or(0.0, seconds);
                write!(text, " {}={left}", s.source).unwrap();
            }
            if !view.reporters.is_empty() {
                write!(text, " hosts {:?}", view.reporters).unwrap();
            }
            self.line(&text);
        }
    }

    /// Receives a recorded IP packet.
    fn receive_packet(&mut self, packet: &[u8]) {
        let on_link = [IpNet::V4("10.0.1.0/24".parse().unwrap())];
        let checks = HeaderPolicy {
            headers: HeaderChecks::Strict,
            on_link: &on_link,
        };
        let parsed = link_control::decapsulate(packet, &checks).and_then(|opened| {
            let parse = match opened.source {
                IpAddr::V4(_) => igmp::parse,
                IpAddr::V6(_) => mld::parse,
            };
            Ok((opened.source, opened.destination, parse(opened.message)?))
        });
        match parsed {
            Ok((from, to, message)) => {
                self.line(&format!("/ {from} {to} {}", format_message(&message)));
                let _ = self.machine.handle_message(self.now, from, to, &message);
            }
            Err(reason) => self.line(&format!("x {} 1", reason.label())),
        }
    }

    fn input(&mut self, line: &str) {
        writeln!(self.log, "{line}").unwrap();
        let (_, rest) = line.split_once(' ').unwrap();
        match rest.split_once(' ').unwrap_or((rest, "")) {
            ("<", recorded) if !recorded.contains(' ') => self.receive_packet(&bytes(recorded)),
            ("<", rest) => {
                let mut parts = rest.splitn(3, ' ');
                let from: IpAddr = parts.next().unwrap().parse().unwrap();
                let to: IpAddr = parts.next().unwrap().parse().unwrap();
                let message = message(parts.next().unwrap());
                let _ = self.machine.handle_message(self.now, from, to, &message);
            }
            ("address", own) => self.machine.set_own_address(self.now, own.parse().ok()),
            ("?", _) => self.print_state(),
            _ => panic!("{line}?"),
        }
        self.drain();
    }
}

fn replay(text: &str) -> String {
    let start = Instant::now();
    let first = text.lines().find(|l| l.starts_with("machine")).unwrap();
    let mut replay = Replay {
        machine: machine(first, start),
        start,
        now: start,
        log: String::new(),
    };
    for line in text.lines() {
        if line.starts_with('#') || line.starts_with("machine") || line.is_empty() {
            writeln!(replay.log, "{line}").unwrap();
            continue;
        }
        let (at, rest) = line.split_once(' ').unwrap();
        if !rest.starts_with(['<', '?']) && !rest.starts_with("address") {
            continue;
        }
        let at = Duration::from_secs_f64(at.parse().unwrap());
        replay.advance_to(start + at);
        replay.input(line);
    }
    replay.log
}

#[test]
fn replay_logs_match_expected_output() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/replay");
    let bless = std::env::var_os("MCASTOR_BLESS").is_some();
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "txt") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with("# RFC"),
            "{path:?} does not name an RFC section"
        );
        let log = replay(&text);
        if bless {
            fs::write(&path, &log).unwrap();
        }
        for (n, (actual, expected)) in log.lines().zip(text.lines()).enumerate() {
            assert!(
                bless || actual == expected,
                "{path:?}:{}: {actual}, not {expected}",
                n + 1
            );
        }
        assert!(
            bless || log.lines().eq(text.lines()),
            "{path:?} has missing or additional lines at the end"
        );
        count += 1;
    }
    assert!(count >= 6, "{count} logs");
}

/// Appends the content of all source files below a directory to `text`.
fn sources_below(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources_below(&path, text);
        } else if path.extension().is_some_and(|e| e == "rs") {
            *text += &fs::read_to_string(path).unwrap();
        }
    }
}

#[test]
fn conformance_table_names_existing_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut code = String::new();
    sources_below(&root.join("src"), &mut code);
    sources_below(&root.join("tests"), &mut code);
    let text = fs::read_to_string(root.join("docs/conformance.md")).unwrap();
    let mut named = 0;
    for (n, line) in text.lines().enumerate() {
        for name in line.split('`').skip(1).step_by(2) {
            let log = root.join("tests/replay").join(name);
            let is_log = name.ends_with(".txt");
            let is_test = name.contains('_') && !name.contains(['/', ' ', '=']);
            assert!(!is_log || log.exists(), "line {}: no log {name}", n + 1);
            let defined = code.contains(&format!("fn {name}("));
            let settings = ["fast_leave"].contains(&name) || name.starts_with("TO_");
            assert!(
                !is_test || defined || settings,
                "line {}: no test {name}",
                n + 1
            );
            named += usize::from(is_log || (is_test && defined));
        }
    }
    assert!(named > 80, "only {named} tests are named");
}

/// Returns the resident memory of this process in bytes.
fn resident_bytes() -> usize {
    let text = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[test]
fn ten_thousand_groups_fit_in_memory_and_time() {
    let before = resident_bytes();
    let start = Instant::now();
    let mut rule = ProxyRule::new(vec![], vec![]);
    // New hosts may use only three quarters of the group limit.
    (rule.limits.groups, rule.fast_leave) = (14_000, true);
    let mut config = DownstreamConfig::new(Protocol::Igmp, Arc::new(rule));
    config.max_tracked_entries = 200_000;
    let mut machine = Downstream::new(start, config, Some([10, 0, 0, 1].into()));
    let group = |n: u16| {
        let [high, low] = n.to_be_bytes();
        Group::new([239, 3, high, low].into()).unwrap()
    };
    let source = |n: u8| Source::new([10, 9, 0, n].into()).unwrap();
    let report = |n: u16, kind| {
        let sources = (1..=10).map(source).collect();
        let group = group(n);
        MembershipMessage::Records(vec![GroupRecord {
            kind,
            group,
            sources,
        }])
    };
    let to = [224, 0, 0, 22].into();
    let mut longest = Duration::ZERO;
    let mut timed = |f: &mut dyn FnMut()| {
        let at = Instant::now();
        f();
        longest = longest.max(at.elapsed());
    };
    for round in 0..3u64 {
        let now = start + Duration::from_secs(125 * round);
        timed(&mut || machine.handle_timeout(now));
        while machine.poll_query().is_some() {}
        for n in 0..10_000 {
            let report = report(n, RecordType::ModeIsInclude);
            machine
                .handle_message(now, [10, 0, 1, 1].into(), to, &report)
                .unwrap();
        }
        while machine.poll_change().is_some() {}
    }
    assert_eq!(
        (machine.group_count(), machine.source_count()),
        (10_000, 100_000)
    );
    let used = resident_bytes().saturating_sub(before);
    assert!(used < 64 << 20, "{used} bytes");
    // All memberships expire in one call.
    let end = start + Duration::from_secs(1000);
    timed(&mut || machine.handle_timeout(end));
    assert_eq!(machine.group_count(), 0);
    println!("{} KiB, longest call {longest:?}", used >> 10);
    assert!(longest < Duration::from_secs(2), "{longest:?}");
}
