//! The results as JSON, as a table and as a drawing.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::Outcome;
use crate::meter;
use crate::peer::Peer;
use crate::reasons;
use crate::run::{Results, median};
use crate::svg;

/// Cores that others keep busy above which a run is called disturbed.
const DISTURBED: f64 = 0.25;

/// Median, smallest and largest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    pub fn of(values: &[f64]) -> Option<Self> {
        (!values.is_empty()).then(|| Self {
            median: median(values),
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        })
    }

    fn show(self, digits: usize) -> String {
        let Self { median, min, max } = self;
        format!("{median:.digits$} ({min:.digits$} to {max:.digits$})")
    }

    fn to_json(self) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max })
    }
}

/// The figures of a scenario and peer.
pub fn series<'a>(results: &'a Results, id: &str, peer: Peer, name: &str) -> &'a [f64] {
    let found = results.scenarios.iter().find(|(s, _)| s.id == id);
    found
        .and_then(|(_, figures)| figures.get(&peer)?.get(name))
        .map_or(&[], Vec::as_slice)
}

/// Round by round: `peer` over the kernel.
pub fn ratio(results: &Results, id: &str, peer: Peer, name: &str) -> Option<Spread> {
    let own = series(results, id, peer, name);
    let kernel = series(results, id, Peer::Kernel, name);
    let ratios: Vec<f64> = own.iter().zip(kernel).map(|(o, k)| o / k).collect();
    Spread::of(&ratios)
}

/// A goal, and what was measured.
pub struct Goal {
    pub what: &'static str,
    unit: &'static str,
    /// The bound; the other side of it is a miss.
    bound: f64,
    at_least: bool,
    digits: usize,
    measured: Option<Spread>,
}

impl Goal {
    fn met(&self) -> Option<bool> {
        let value = self.measured?.median;
        Some(match self.at_least {
            true => value >= self.bound,
            false => value <= self.bound,
        })
    }

    fn verdict(&self) -> &'static str {
        match self.met() {
            Some(true) => "met",
            Some(false) => "**missed**",
            None => "not measured",
        }
    }

    /// Why it is missed; empty where it is not.
    fn reason(&self) -> &'static str {
        match self.met() {
            Some(false) => reasons::of(self.what),
            _ => "",
        }
    }

    fn bound(&self) -> String {
        let side = if self.at_least { "≥" } else { "≤" };
        format!("{side} {}{}", self.bound, self.unit)
    }
}

/// The goals, in the order of the table.
pub fn goals(results: &Results) -> Vec<Goal> {
    let of = |figures: Option<&Vec<f64>>| Spread::of(figures?);
    let latency = |rate: u64, name: &str| {
        let peers = results.latency.get(&rate)?;
        of(peers.get(&Peer::Mcastor)?.get(name))
    };
    let footprint = |name: &str| of(results.footprint.get(&Peer::Mcastor)?.get(name));
    let own = |id: &str, name: &str| Spread::of(series(results, id, Peer::Mcastor, name));
    let percent = |s: Spread| Spread {
        median: s.median * 100.0,
        min: s.min * 100.0,
        max: s.max * 100.0,
    };
    let over_plain = |id: &str| {
        let cpu = |id| series(results, id, Peer::Mcastor, "cpu_ns@300k");
        let pairs = cpu(id).iter().zip(cpu("egress-1"));
        Spread::of(&pairs.map(|(own, plain)| own / plain).collect::<Vec<_>>())
    };
    let goal = |what, unit, at_least, bound, digits, measured| Goal {
        what,
        unit,
        bound,
        at_least,
        digits,
        measured,
    };
    let times = |what, id, name, at_least, bound| {
        let measured = ratio(results, id, Peer::Mcastor, name);
        goal(what, "x", at_least, bound, 2, measured)
    };
    vec![
        times(
            "CPU a packet at 300k/s, 1 egress",
            "egress-1",
            "cpu_ns@300k",
            false,
            1.0,
        ),
        times(
            "CPU a packet at 100k/s, 4 egresses",
            "egress-4",
            "cpu_ns@100k",
            false,
            0.9,
        ),
        times(
            "CPU a packet at 100k/s, sender offload on, 1 egress",
            "offload-on-1",
            "cpu_ns@100k",
            false,
            1.3,
        ),
        times(
            "CPU a packet at 100k/s, sender offload on, 4 egresses",
            "offload-on-4",
            "cpu_ns@100k",
            false,
            1.1,
        ),
        times("maximum rate, 1 egress", "egress-1", "max_pps", true, 1.7),
        times(
            "maximum rate, 4 egresses",
            "egress-4",
            "max_pps",
            true,
            1.15,
        ),
        goal(
            "loss at 300k/s, 1 egress",
            " %",
            false,
            0.0,
            4,
            own("egress-1", "loss@300k").map(percent),
        ),
        goal(
            "loss at 300k/s, 4 egresses",
            " %",
            false,
            0.0,
            4,
            own("egress-4", "loss@300k").map(percent),
        ),
        goal(
            "p50 at 10k/s",
            " us",
            false,
            12.0,
            1,
            latency(10_000, "p50_us"),
        ),
        goal(
            "CPU a packet with 10,000 rules over that with 10",
            "x",
            false,
            1.2,
            2,
            over_plain("rules-10k"),
        ),
        goal(
            "CPU a packet translated over a plain route",
            "x",
            false,
            1.15,
            2,
            over_plain("translation"),
        ),
        goal(
            "resident memory, 10 routes on 3 interfaces",
            " MiB",
            false,
            25.0,
            1,
            footprint("resident_mib"),
        ),
        goal(
            "resident memory, 100,000 flows",
            " MiB",
            false,
            150.0,
            1,
            own("flows-100k", "resident_mib"),
        ),
        goal(
            "idle, share of a core",
            " %",
            false,
            0.5,
            3,
            footprint("idle_percent"),
        ),
        goal(
            "start to first forwarded packet",
            " ms",
            false,
            300.0,
            0,
            footprint("start_ms"),
        ),
    ]
}

/// Where it was measured.
struct Machine {
    cpu: String,
    cores: usize,
    memory_gib: f64,
    kernel: String,
    date: String,
    smcroute: String,
}

fn machine() -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|l| l.starts_with(name));
        let value = line.and_then(|l| l.split_once(':'));
        value.map_or_else(|| "unknown".into(), |(_, v)| v.trim().to_owned())
    };
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let kib: f64 = memory
        .split(' ')
        .next()
        .and_then(|v| v.parse().ok())
        .unwrap_or_default();
    let version = Command::new("smcrouted").arg("-v").output();
    let version = version.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
    Machine {
        cpu: field(&read("/proc/cpuinfo"), "model name"),
        cores: meter::cores(),
        memory_gib: kib / (1 << 20) as f64,
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        date: today(),
        smcroute: version
            .unwrap_or_default()
            .lines()
            .next()
            .unwrap_or("unknown")
            .to_owned(),
    }
}

/// Year, month and day of UTC (Howard Hinnant's civil_from_days).
fn today() -> String {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let days = (since.as_secs() / 86_400) as i64 + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let part = (5 * of_year + 2) / 153;
    let day = of_year - (153 * part + 2) / 5 + 1;
    let month = if part < 10 { part + 3 } else { part - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Writes `bench/results/NAME.{json,md,svg}`.
pub fn write(results: &Results, quick: bool, partial: bool) -> Outcome<()> {
    let name = match (partial, quick) {
        (true, _) => "forwarding-partial",
        (false, true) => "forwarding-quick",
        (false, false) => "forwarding",
    };
    let machine = machine();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/results");
    fs::create_dir_all(&dir)?;
    let path = |ending: &str| dir.join(format!("{name}.{ending}"));
    let markdown = markdown(results, &machine, quick, name);
    let json = serde_json::to_string_pretty(&to_json(results, &machine, quick))?;
    fs::write(path("json"), json + "\n")?;
    fs::write(path("md"), &markdown)?;
    let caption = format!(
        "{}, {} cores, Linux {}, {}; {} of {} rounds",
        machine.cpu, machine.cores, machine.kernel, machine.date, "median", results.rounds
    );
    fs::write(path("svg"), svg::draw(results, &caption, quick))?;
    println!("\n{markdown}\nwritten: {}", path("{json,md,svg}").display());
    Ok(())
}

fn to_json(results: &Results, machine: &Machine, quick: bool) -> Value {
    let figures = |figures: &std::collections::BTreeMap<String, Vec<f64>>| {
        let one = |(name, values): (&String, &Vec<f64>)| {
            let spread = Spread::of(values).map(Spread::to_json);
            (name.clone(), json!({ "spread": spread, "rounds": values }))
        };
        Value::Object(figures.iter().map(one).collect())
    };
    let scenarios = results.scenarios.iter().map(|(s, peers)| {
        json!({
            "id": s.id, "title": s.title, "egresses": s.egresses, "size": s.size,
            "sender": s.kind, "rules": s.rules, "flows": s.flows,
            "peers": peers.iter().map(|(p, f)| (p.name().to_owned(), figures(f))).collect::<serde_json::Map<_, _>>(),
        })
    });
    let latency = results.latency.iter().map(|(rate, peers)| {
        let peers = peers.iter().map(|(p, f)| (p.name(), figures(f)));
        (
            rate.to_string(),
            Value::Object(peers.map(|(n, v)| (n.to_owned(), v)).collect()),
        )
    });
    let goals = goals(results);
    let goals = goals.iter().map(|g| {
        json!({
            "what": g.what, "goal": g.bound(), "met": g.met(),
            "measured": g.measured.map(Spread::to_json), "reason": g.reason(),
        })
    });
    json!({
        "quick": quick,
        "machine": {
            "cpu": machine.cpu, "cores": machine.cores, "memory_gib": machine.memory_gib,
            "kernel": machine.kernel, "smcroute": machine.smcroute,
        },
        "date": machine.date,
        "version": env!("CARGO_PKG_VERSION"),
        "rounds": results.rounds,
        "seconds": results.seconds,
        "stolen_cores": Spread::of(&results.stolen).map(Spread::to_json),
        "foreign_cores": Spread::of(&results.foreign).map(Spread::to_json),
        "windows_by_threads": results.by_threads,
        "goals": goals.collect::<Vec<_>>(),
        "scenarios": scenarios.collect::<Vec<_>>(),
        "latency": latency.collect::<serde_json::Map<_, _>>(),
        "handover": results.handover.iter().map(|((place, batch), values)| json!({
            "place": place, "packets": batch, "rounds": values,
            "spread": Spread::of(values).map(Spread::to_json),
        })).collect::<Vec<_>>(),
        "failed": results.failed.iter()
            .map(|(id, _, why)| json!({ "id": id, "why": why })).collect::<Vec<_>>(),
        "footprint": results.footprint.iter()
            .map(|(p, f)| (p.name().to_owned(), figures(f))).collect::<serde_json::Map<_, _>>(),
    })
}

fn cell(values: &[f64], scale: f64, digits: usize) -> String {
    let scaled: Vec<f64> = values.iter().map(|v| v * scale).collect();
    Spread::of(&scaled).map_or("–".into(), |s| s.show(digits))
}

fn markdown(results: &Results, machine: &Machine, quick: bool, name: &str) -> String {
    let mut text = String::from("# mcastor against the kernel's ip_mroute\n\n");
    if quick {
        text += "**A quick run: few rounds, short windows. For the record use `make bench`.**\n\n";
    }
    let _ = writeln!(
        text,
        "mcastor {}, {}, {} cores, {:.1} GiB, Linux {}, {}, {}. {} rounds, the peers taking turns; median \
         (smallest to largest). Ratios are taken round by round. How: [bench/README.md](../README.md).\n",
        env!("CARGO_PKG_VERSION"),
        machine.cpu,
        machine.cores,
        machine.memory_gib,
        machine.kernel,
        machine.smcroute,
        machine.date,
        results.rounds,
    );
    if let Some(foreign) = Spread::of(&results.foreign) {
        let _ = writeln!(
            text,
            "Work of others during the windows: {} cores. CPU time is that of the whole machine; where others took \
             more than 0.05 cores, {} figures, it is that of the threads that take part.\n",
            foreign.show(2),
            results.by_threads
        );
    }
    if let Some(stolen) = Spread::of(&results.stolen).filter(|s| s.max > 0.0) {
        let _ = writeln!(
            text,
            "The host of this virtual machine gave {} cores to others meanwhile, and the others on it slow down the \
             rest: compare within a row, not with another run.\n",
            stolen.show(2)
        );
    }
    if median(&results.foreign).max(median(&results.stolen)) > DISTURBED {
        text += "**Disturbed: others took so much that maximum rates, loss and latency mean little. Repeat it on a \
            quiet machine.**\n\n";
    }
    let _ = writeln!(text, "![comparison]({name}.svg)\n\n## Goals\n");
    text += "| goal | bound | measured | | reason |\n|---|---|---|---|---|\n";
    for goal in goals(results) {
        let measured = goal.measured.map_or("–".into(), |s| s.show(goal.digits));
        let unit = if goal.measured.is_some() {
            goal.unit
        } else {
            ""
        };
        let (what, bound, verdict) = (goal.what, goal.bound(), goal.verdict());
        let reason = goal.reason();
        let _ = writeln!(
            text,
            "| {what} | {bound} | {measured}{unit} | {verdict} | {reason} |"
        );
    }
    text += "\n## Forwarding\n\nCPU is for one packet that came through, on all its egresses together, the sender's own taken off. \
        Where a sender did not come to 97 % of a held rate, because the kernel forwards on the sender's core, its rate is added in k/s.\n\n\
        | | router | CPU ns at 100k/s | ratio | CPU ns at 300k/s | ratio | loss % at 100k/s | at 300k/s | maximum k/s | ratio |\n\
        |---|---|---|---|---|---|---|---|---|---|\n";
    for (scenario, peers) in &results.scenarios {
        for peer in peers.keys().filter(|p| **p != Peer::Alone) {
            let of = |name: &str| series(results, scenario.id, *peer, name);
            let ratio = |name: &str| match peer {
                Peer::Kernel => "1".into(),
                _ => ratio(results, scenario.id, *peer, name).map_or("–".into(), |s| s.show(2)),
            };
            let loss = |rate: u64| {
                let sent = median(of(&format!("sent_pps@{rate}k"))) / 1e3;
                let loss = cell(of(&format!("loss@{rate}k")), 100.0, 3);
                match sent < rate as f64 * 0.97 {
                    true => format!("{loss} of {sent:.0}k/s"),
                    false => loss,
                }
            };
            let mut maximum = cell(of("max_pps"), 1e-3, 0);
            // ip_mroute works on the sender's core: it always gets all.
            if *peer != Peer::Kernel && median(of("max_pps")) > median(of("max_sent_pps")) * 0.99 {
                maximum += ", all that was sent";
            }
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                scenario.title,
                peer.name(),
                cell(of("cpu_ns@100k"), 1.0, 0),
                ratio("cpu_ns@100k"),
                cell(of("cpu_ns@300k"), 1.0, 0),
                ratio("cpu_ns@300k"),
                loss(100),
                loss(300),
                maximum,
                ratio("max_pps"),
            );
        }
    }
    for (_, title, why) in &results.failed {
        let why = why.replace(['\n', '|'], " ");
        let _ = writeln!(text, "\nNot measured: {title}: {why}");
    }
    if !results.latency.is_empty() {
        text += "\n## Latency\n\n200 bytes, 1 egress, UDP sockets, from `mcastor send` to the kernel of the receiver.\n\n\
            | rate | router | p50 us | p99 us | router, % of a core |\n|---|---|---|---|---|\n";
    }
    for (rate, peers) in &results.latency {
        for (peer, figures) in peers {
            let of = |name: &str| cell(figures.get(name).map_or(&[], Vec::as_slice), 1.0, 1);
            let (p50, p99) = (of("p50_us"), of("p99_us"));
            // ip_mroute works on the sender's core.
            let core = match peer {
                Peer::Kernel => "–".into(),
                _ => of("core_percent"),
            };
            let name = peer.name();
            let _ = writeln!(text, "| {rate}/s | {name} | {p50} | {p99} | {core} |");
        }
    }
    if !results.footprint.is_empty() {
        text += "\n## Footprint\n\n10 routes on 3 interfaces; for the kernel's routing, of smcrouted.\n\n\
            | router | start to first packet, ms | resident MiB | idle, % of a core |\n|---|---|---|---|\n";
    }
    for (peer, figures) in &results.footprint {
        let of =
            |name: &str, digits| cell(figures.get(name).map_or(&[], Vec::as_slice), 1.0, digits);
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} |",
            peer.name(),
            of("start_ms", 0),
            of("resident_mib", 1),
            of("idle_percent", 3),
        );
    }
    if !results.handover.is_empty() {
        text += "\n## Handing over to an actor\n\n\
            | the actor lives on | packets in a message | ns a packet |\n|---|---|---|\n";
    }
    for ((place, batch), values) in &results.handover {
        let cost = cell(values, 1.0, 1);
        let _ = writeln!(text, "| {place} | {batch} | {cost} |");
    }
    text
}
