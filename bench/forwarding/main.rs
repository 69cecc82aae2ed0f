//! `make bench`: mcastor against the kernel's ip_mroute on the same topology. The method and
//! the goals are told in bench/README.md.

mod handover;
mod lab;
mod meter;
mod peer;
mod plan;
mod reasons;
mod report;
mod run;
mod sender;
mod svg;
mod sweep;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use run::Bench;

/// Whatever fails ends the bench with its text.
type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|a| a == name);
    // `cargo test --all-targets` starts benches too, without this.
    if !has("--bench") {
        println!("forwarding: measures only under `make bench`");
        return ExitCode::SUCCESS;
    }
    let _first = Autogroup::first();
    let only = arguments.iter().find_map(|a| a.strip_prefix("--only="));
    let profile = arguments.iter().find_map(|a| a.strip_prefix("--profile="));
    let done = match profile {
        Some(wanted) => profile_one(wanted),
        None if has("--modes") => sweep::sweep(),
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

/// Where the kernel shares cores between sessions first (sched(7), autogroup), the niceness of a
/// thread only counts among those of its own session: so this session goes first meanwhile.
struct Autogroup {
    before: String,
}

impl Autogroup {
    const FILE: &'static str = "/proc/self/autogroup";

    /// `None` where the kernel knows no such thing, or does not let us.
    fn first() -> Option<Self> {
        let text = std::fs::read_to_string(Self::FILE).ok()?;
        let (_, before) = text.trim().rsplit_once(' ')?;
        std::fs::write(Self::FILE, "-20").ok()?;
        Some(Self {
            before: before.into(),
        })
    }
}

impl Drop for Autogroup {
    fn drop(&mut self) {
        let _ = std::fs::write(Self::FILE, &self.before);
    }
}

/// Keeps one scenario busy for a profiler: `--profile=egress-4@100000`.
fn profile_one(wanted: &str) -> Outcome<()> {
    let (id, rate) = wanted.split_once('@').ok_or("--profile=SCENARIO@RATE")?;
    let plan = plan::plan(false, Some(id));
    let scenario = plan.scenarios.first().ok_or("no such scenario")?;
    run::keep_busy(scenario, rate.parse()?)
}

fn measure(quick: bool, only: Option<&str>) -> Outcome<()> {
    if !mcastor::sys::netns::can_create_namespaces() {
        return Err("needs root: namespaces and packet sockets".into());
    }
    if meter::cores() < 2 {
        return Err("needs two cores: one for the sender, one for the router".into());
    }
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let plan = plan::plan(quick, only);
    let mut bench = Bench::new(plan, quick, stop);
    bench.all()?;
    report::write(&bench.results, quick, only.is_some())
}
