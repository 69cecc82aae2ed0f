//! Writes the results as JSON, as Markdown tables and as an SVG drawing.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::Outcome;
use crate::meter;
use crate::peer::Peer;
use crate::reasons::reason_for;
use crate::results::{Results, Spread, median};
use crate::show_flows;
use crate::svg;

/// If other processes use more cores than this, the report calls the run disturbed.
const DISTURBED_CORES: f64 = 0.25;

/// A goal and the measured value.
pub struct Goal {
    name: &'static str,
    unit: &'static str,
    bound: f64,
    /// True if the bound is a minimum, false if it is a maximum.
    is_minimum: bool,
    digits: usize,
    measured: Option<Spread>,
}

impl Goal {
    fn is_met(&self) -> Option<bool> {
        let value = self.measured?.median;
        Some(match self.is_minimum {
            true => value >= self.bound,
            false => value <= self.bound,
        })
    }

    fn verdict(&self) -> &'static str {
        match self.is_met() {
            Some(true) => "met",
            Some(false) => "**missed**",
            None => "not measured",
        }
    }

    /// Returns the reason for a missed goal; empty if the goal is met.
    fn reason(&self) -> &'static str {
        match self.is_met() {
            Some(false) => reason_for(self.name),
            _ => "",
        }
    }

    fn format_bound(&self) -> String {
        let side = if self.is_minimum { "≥" } else { "≤" };
        format!("{side} {}{}", self.bound, self.unit)
    }
}

/// Returns the goals in the order of the table.
pub fn goals(results: &Results) -> Vec<Goal> {
    let latency = |rate: u64, name: &str| {
        let peers = results.latency.get(&rate)?;
        Spread::of(peers.get(&Peer::Mcastor)?.get(name)?)
    };
    let footprint = |name: &str| Spread::of(results.footprint.get(&Peer::Mcastor)?.get(name)?);
    let own = |id: &str, name: &str| Spread::of(results.series(id, Peer::Mcastor, name));
    let percent = |s: Spread| Spread {
        median: s.median * 100.0,
        min: s.min * 100.0,
        max: s.max * 100.0,
    };
    let over_base = |id: &str, peer| results.ratio_to_base(id, peer, "cpu_ns@300k");
    let goal = |name, unit, is_minimum, bound, digits, measured| Goal {
        name,
        unit,
        bound,
        is_minimum,
        digits,
        measured,
    };
    let relative = |name, id, series, is_minimum, bound| {
        let measured = results.ratio(id, Peer::Mcastor, series);
        goal(name, "x", is_minimum, bound, 2, measured)
    };
    let ebpf = |name, id, series, is_minimum, bound| {
        let measured = results.ratio(id, Peer::McastorEbpf, series);
        goal(name, "x", is_minimum, bound, 2, measured)
    };
    let ebpf_over_base =
        |name, id, bound| goal(name, "x", false, bound, 2, over_base(id, Peer::McastorEbpf));
    let ebpf_latency = |name, rate| {
        let measured = results.latency_ratio(rate, Peer::McastorEbpf, "p50_us");
        goal(name, "x", false, 1.0, 2, measured)
    };
    vec![
        relative(
            "CPU per packet at 300k/s, 1 egress",
            "egress-1",
            "cpu_ns@300k",
            false,
            1.0,
        ),
        relative(
            "CPU per packet at 100k/s, 4 egresses",
            "egress-4",
            "cpu_ns@100k",
            false,
            0.9,
        ),
        relative(
            "CPU per packet at 100k/s, sender offload on, 1 egress",
            "offload-on-1",
            "cpu_ns@100k",
            false,
            1.3,
        ),
        relative(
            "CPU per packet at 100k/s, sender offload on, 4 egresses",
            "offload-on-4",
            "cpu_ns@100k",
            false,
            1.1,
        ),
        relative("maximum rate, 1 egress", "egress-1", "max_pps", true, 1.7),
        relative(
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
            "CPU per packet, 10,000 rules relative to 10 rules",
            "x",
            false,
            1.2,
            2,
            over_base("rules-10k", Peer::Mcastor),
        ),
        goal(
            "CPU per packet, translated relative to not translated",
            "x",
            false,
            1.15,
            2,
            over_base("translation", Peer::Mcastor),
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
        ebpf(
            "ebpf: CPU per packet at 300k/s, 1 egress",
            "egress-1",
            "cpu_ns@300k",
            false,
            0.45,
        ),
        ebpf(
            "ebpf: CPU per packet at 300k/s, 1 egress, original kept for the host",
            "listener-1",
            "cpu_ns@300k",
            false,
            0.75,
        ),
        ebpf(
            "ebpf: CPU per packet at 100k/s, 4 egresses",
            "egress-4",
            "cpu_ns@100k",
            false,
            0.45,
        ),
        ebpf(
            "ebpf: CPU per packet at 100k/s, 16 egresses",
            "egress-16",
            "cpu_ns@100k",
            false,
            0.55,
        ),
        ebpf_over_base(
            "ebpf: CPU per packet, translated relative to not translated",
            "translation",
            1.2,
        ),
        ebpf(
            "ebpf: maximum rate, 1 egress",
            "egress-1",
            "max_pps",
            true,
            1.8,
        ),
        ebpf(
            "ebpf: maximum rate, 4 egresses",
            "egress-4",
            "max_pps",
            true,
            2.0,
        ),
        goal(
            "ebpf: CPU per packet at 300k/s, 1 egress, to the peer of a veth",
            "x",
            false,
            0.25,
            2,
            results.ratio("egress-1", Peer::McastorRedirect, "cpu_ns@300k"),
        ),
        ebpf_latency("ebpf: p50 at 1k/s", 1_000),
        ebpf_latency("ebpf: p50 at 10k/s", 10_000),
        ebpf_over_base(
            "ebpf: CPU per packet, 100,000 flows relative to 1 flow",
            "flows-100k",
            1.6,
        ),
    ]
}

/// The machine of the measurement.
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

/// Returns the UTC date as year, month and day (algorithm `civil_from_days` of Howard Hinnant).
fn today() -> String {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let days = (since.as_secs() / 86_400) as i64 + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
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
            "what": g.name, "goal": g.format_bound(), "met": g.is_met(),
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
        "show_flows": results.show_flows.iter()
            .map(|(case, f)| ((*case).to_owned(), figures(f))).collect::<serde_json::Map<_, _>>(),
        "handover": results.message_costs.iter().map(|((place, batch), values)| json!({
            "place": place, "packets": batch, "rounds": values,
            "spread": Spread::of(values).map(Spread::to_json),
        })).collect::<Vec<_>>(),
        "failed": results.failed.iter()
            .map(|(id, _, error)| json!({ "id": id, "why": error })).collect::<Vec<_>>(),
        "footprint": results.footprint.iter()
            .map(|(p, f)| (p.name().to_owned(), figures(f))).collect::<serde_json::Map<_, _>>(),
    })
}

fn cell(values: &[f64], scale: f64, digits: usize) -> String {
    let scaled: Vec<f64> = values.iter().map(|v| v * scale).collect();
    Spread::of(&scaled).map_or("–".into(), |s| s.format(digits))
}

fn markdown(results: &Results, machine: &Machine, quick: bool, name: &str) -> String {
    let mut text = String::from("# mcastor against the kernel's ip_mroute\n\n");
    if quick {
        text += "**This was a quick run with few rounds and short windows. `make bench` gives the figures for publication.**\n\n";
    }
    let _ = writeln!(
        text,
        "mcastor {}, {}, {} cores, {:.1} GiB, Linux {}, {}, {}. {} rounds; each round \
         measures every router once. Values are the median (smallest to largest). Ratios are computed within a round. \
         Method: [bench/README.md](../README.md).\n",
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
            "Other processes used {} cores during the windows. CPU time is that of the whole machine. In {} figures, \
             other processes used more than 0.05 cores, and CPU time is that of the threads involved.\n",
            foreign.format(2),
            results.by_threads
        );
    }
    if let Some(stolen) = Spread::of(&results.stolen).filter(|s| s.max > 0.0) {
        let _ = writeln!(
            text,
            "The host of this virtual machine stole {} cores, and other virtual machines on it slow down the rest. \
             Compare the values of one row; do not compare them with another run.\n",
            stolen.format(2)
        );
    }
    if median(&results.foreign).max(median(&results.stolen)) > DISTURBED_CORES {
        text += "**Disturbed: other processes used so much CPU time that maximum rates, loss and latency are not \
            meaningful. Repeat the measurement on an idle machine.**\n\n";
    }
    let _ = writeln!(text, "![comparison]({name}.svg)\n\n## Goals\n");
    text += "| goal | bound | measured | | reason |\n|---|---|---|---|---|\n";
    for goal in goals(results) {
        let measured = goal.measured.map_or("–".into(), |s| s.format(goal.digits));
        let unit = if goal.measured.is_some() {
            goal.unit
        } else {
            ""
        };
        let (what, bound, verdict) = (goal.name, goal.format_bound(), goal.verdict());
        let reason = goal.reason();
        let _ = writeln!(
            text,
            "| {what} | {bound} | {measured}{unit} | {verdict} | {reason} |"
        );
    }
    text += "\n## Forwarding\n\nCPU is the CPU time per packet that arrived, for all egresses together, without the CPU time of the \
        sender. If the sender reached less than 97 % of a fixed rate, because the kernel forwards on the core of the \
        sender, the table adds the rate it reached in k/s.\n\n\
        | | router | CPU ns at 100k/s | ratio | CPU ns at 300k/s | ratio | loss % at 100k/s | at 300k/s | maximum k/s | ratio |\n\
        |---|---|---|---|---|---|---|---|---|---|\n";
    for (scenario, peers) in &results.scenarios {
        for peer in peers.keys().filter(|p| **p != Peer::Alone) {
            let values = |name: &str| results.series(scenario.id, *peer, name);
            let ratio = |name: &str| match peer {
                Peer::Kernel => "1".into(),
                _ => results
                    .ratio(scenario.id, *peer, name)
                    .map_or("–".into(), |s| s.format(2)),
            };
            let loss = |rate: u64| {
                let sent = median(values(&format!("sent_pps@{rate}k"))) / 1e3;
                let loss = cell(values(&format!("loss@{rate}k")), 100.0, 3);
                match sent < rate as f64 * 0.97 {
                    true => format!("{loss} of {sent:.0}k/s"),
                    false => loss,
                }
            };
            let mut maximum = cell(values("max_pps"), 1e-3, 0);
            // ip_mroute runs on the core of the sender, so it always receives all packets.
            if *peer != Peer::Kernel
                && median(values("max_pps")) > median(values("max_sent_pps")) * 0.99
            {
                maximum += ", all sent packets";
            }
            // A flow that the kernel declines is forwarded by the process.
            let offloaded = values("offloaded_flows");
            let name = match median(offloaded) {
                share if share < 0.995 => format!(
                    "{}, which takes {:.0} % of the flows",
                    peer.name(),
                    share * 100.0
                ),
                _ => peer.name().to_owned(),
            };
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                scenario.title,
                name,
                cell(values("cpu_ns@100k"), 1.0, 0),
                ratio("cpu_ns@100k"),
                cell(values("cpu_ns@300k"), 1.0, 0),
                ratio("cpu_ns@300k"),
                loss(100),
                loss(300),
                maximum,
                ratio("max_pps"),
            );
        }
    }
    for (_, title, error) in &results.failed {
        let error = error.replace(['\n', '|'], " ");
        let _ = writeln!(text, "\nNot measured: {title}: {error}");
    }
    if !results.latency.is_empty() {
        text += "\n## Latency\n\n200 bytes, 1 egress, UDP sockets, from `mcastor send` to the receive timestamp of the kernel.\n\n\
            | rate | router | p50 us | p99 us | router, % of a core |\n|---|---|---|---|---|\n";
    }
    for (rate, peers) in &results.latency {
        for (peer, figures) in peers {
            let of = |name: &str| cell(figures.get(name).map_or(&[], Vec::as_slice), 1.0, 1);
            let (p50, p99) = (of("p50_us"), of("p99_us"));
            // ip_mroute runs on the core of the sender.
            let core = match peer {
                Peer::Kernel => "–".into(),
                _ => of("core_percent"),
            };
            let name = peer.name();
            let _ = writeln!(text, "| {rate}/s | {name} | {p50} | {p99} | {core} |");
        }
    }
    if !results.footprint.is_empty() {
        text += "\n## Footprint\n\n10 routes on 3 interfaces. The values of ip_mroute are those of smcrouted.\n\n\
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
    if !results.show_flows.is_empty() {
        let _ = write!(
            text,
            "\n## `show flows` at {:.0} packets per second\n\n\
            A client requests all {} flows. Latency is that of a separate stream of 1,000 packets \
            per second.\n\n\
            | flows | sent | lost | p50, us | p99, us |\n|---|---|---|---|---|\n",
            show_flows::RATE,
            show_flows::FLOWS,
        );
    }
    for (case, figures) in &results.show_flows {
        let of =
            |name: &str, digits| cell(figures.get(name).map_or(&[], Vec::as_slice), 1.0, digits);
        let _ = writeln!(
            text,
            "| {case} | {} | {} | {} | {} |",
            of("sent", 0),
            of("lost", 0),
            of("p50_us", 1),
            of("p99_us", 1),
        );
    }
    if !results.message_costs.is_empty() {
        text += "\n## Message passing to an actor\n\n\
            | thread of the actor | packets per message | ns per packet |\n|---|---|---|\n";
    }
    for ((place, batch), values) in &results.message_costs {
        let cost = cell(values, 1.0, 1);
        let _ = writeln!(text, "| {place} | {batch} | {cost} |");
    }
    text
}
