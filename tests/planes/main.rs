//! What every plane promises, tried on each: the simulated one, and packet sockets on a veth
//! pair. The packet plane needs a network namespace of its own: the test makes one and runs
//! itself again inside it; where it may not, it says so and skips.

/// `(name, test)` of each function; with the name of their argument before them, where they have
/// one.
macro_rules! tests {
    ($bed:ident: $($name:ident),+ $(,)?) => {
        &[$((stringify!($name), |$bed| Box::pin($name($bed)))),+]
    };
    ($($name:ident),+ $(,)?) => { &[$((stringify!($name), || Box::pin($name()))),+] };
}

mod bed;
mod bursts;
mod contract;
mod forwarding;
mod modes;
mod sockets;
mod whole;

use std::process::{Command, ExitCode, Stdio};

use libtest_mimic::{Arguments, Trial};
use mcastor::planes::packet::rate::Mode;

use bed::{Bed, Outcome, fixed};

/// Set for the run inside the namespace.
const INSIDE: &str = "MCASTOR_PLANES_INSIDE";

const MODES: [Mode; 2] = [Mode::Latency, Mode::Throughput];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let inside = std::env::var_os(INSIDE).is_some();
    if !inside && let Some(code) = run_inside_a_namespace() {
        return code;
    }
    let contract = [contract::TESTS, forwarding::TESTS].concat();
    let packet = [sockets::TESTS, bursts::TESTS, modes::TESTS, whole::TESTS].concat();
    if !inside {
        println!(
            "packet plane: {} tests skipped: no network namespace can be made here (needs root, \
             or unprivileged user namespaces)",
            packet.len() + MODES.len() * contract.len()
        );
    }
    let mut trials = Vec::new();
    for (name, test) in forwarding::SIM_TESTS {
        let sim = move || run(test(Bed::sim()));
        trials.push(Trial::test(format!("sim::{name}"), sim));
    }
    for (name, test) in contract {
        trials.push(Trial::test(format!("sim::{name}"), move || {
            run(test(Bed::sim()))
        }));
        for mode in MODES {
            let packet = move || run(test(Bed::veth(fixed(mode))?));
            let name = format!("packet::{}::{name}", mode.label());
            trials.push(Trial::test(name, packet).with_ignored_flag(!inside));
        }
    }
    for (name, test) in packet {
        let alone = move || run(test());
        trials.push(Trial::test(format!("packet::{name}"), alone).with_ignored_flag(!inside));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Runs this program again in a fresh network namespace, which ends with it.
fn run_inside_a_namespace() -> Option<ExitCode> {
    let ways: [&[&str]; 2] = [&["--net"], &["--user", "--map-root-user", "--net"]];
    let works = |way: &&[&str]| {
        let mut probe = Command::new("unshare");
        probe.args(*way).args(["ip", "link", "add", "type", "veth"]);
        let silent = probe.stdout(Stdio::null()).stderr(Stdio::null());
        silent.status().is_ok_and(|s| s.success())
    };
    let way = ways.into_iter().find(works)?;
    let status = Command::new("unshare")
        .args(way)
        .arg(std::env::current_exe().ok()?)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .status()
        .ok()?;
    Some(ExitCode::from(status.code().map_or(1, |c| c as u8)))
}

type Named<F> = (&'static str, F);
/// A test that is tried on every bed.
type OnBed = fn(Bed) -> Test;
/// A test that makes its own.
type Alone = fn() -> Test;
type Test = std::pin::Pin<Box<dyn Future<Output = Outcome>>>;

fn run(test: Test) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(test)
}
