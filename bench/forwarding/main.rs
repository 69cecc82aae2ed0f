//! `make bench`: compares mcastor with the kernel's ip_mroute on the same topology.
//! bench/README.md describes the method and the goals.

mod amt;
mod lab;
mod merged;
mod message_passing;
mod meter;
mod monitored;
mod numbered;
mod peer;
mod plan;
mod reasons;
mod relay_records;
mod report;
mod results;
mod run;
mod sender;
mod show_flows;
mod svg;
mod sweep;
mod tun;
mod tunnel_sender;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use run::Bench;

/// Every error ends the bench with a message.
type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|a| a == name);
    // `cargo test --all-targets` starts benches without this flag.
    if !has("--bench") {
        println!("forwarding: skipped; run it with `make bench`");
        return ExitCode::SUCCESS;
    }
    let _priority = AutogroupPriority::raise();
    let only = arguments.iter().find_map(|a| a.strip_prefix("--only="));
    let profile = arguments.iter().find_map(|a| a.strip_prefix("--profile="));
    let done = match profile {
        Some(target) => profile_scenario(target),
        None if has("--amt") => amt::run(has("--quick"), only),
        None if has("--streams") => monitored::run(has("--quick")),
        None if has("--merge") => merged::run(has("--quick")),
        None if has("--modes") => sweep::run(&sweep::MODES),
        None if has("--low-rates") => sweep::run(&sweep::LOW_RATES),
        None => measure(has("--quick"), only),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("forwarding: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Gives the session of this process priority over other sessions until it is dropped.
///
/// If the scheduler groups threads by session (sched(7), autogroup), the niceness of a thread
/// counts only within its session.
struct AutogroupPriority {
    previous_nice: String,
}

impl AutogroupPriority {
    const FILE: &'static str = "/proc/self/autogroup";

    /// Returns `None` if the kernel has no autogroups or refuses the change.
    fn raise() -> Option<Self> {
        let text = std::fs::read_to_string(Self::FILE).ok()?;
        let (_, nice) = text.trim().rsplit_once(' ')?;
        std::fs::write(Self::FILE, "-20").ok()?;
        Some(Self {
            previous_nice: nice.into(),
        })
    }
}

impl Drop for AutogroupPriority {
    fn drop(&mut self) {
        let _ = std::fs::write(Self::FILE, &self.previous_nice);
    }
}

/// Runs one scenario for a profiler: `--profile=egress-4@100000`.
fn profile_scenario(target: &str) -> Outcome<()> {
    let (id, rate) = target
        .split_once('@')
        .ok_or("usage: --profile=SCENARIO@RATE")?;
    let plan = plan::plan(false, Some(id));
    let scenario = plan
        .groups
        .iter()
        .flatten()
        .next()
        .ok_or("unknown scenario; see bench/forwarding/plan.rs")?;
    run::run_for_profiler(scenario, rate.parse()?)
}

fn measure(quick: bool, only: Option<&str>) -> Outcome<()> {
    if !mcastor::sys::netns::can_create_namespaces() {
        return Err("needs root for network namespaces and packet sockets".into());
    }
    if meter::cores() < 2 {
        return Err("needs two cores: one for the sender and one for the router".into());
    }
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let plan = plan::plan(quick, only);
    let mut bench = Bench::new(plan, quick, stop);
    bench.run_all()?;
    report::write(&bench.results, quick, only.is_some())
}
