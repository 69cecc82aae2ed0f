//! Runs the contract tests of planes on the simulated plane and on packet sockets on a veth pair.
//!
//! The packet plane needs a network namespace of its own. The test program creates one and starts
//! itself again inside it. If it may not create one, it prints that and skips those tests.

/// Expands to `(name, test)` of each function. For functions with an argument, the name of the
/// argument comes first.
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
mod gso;
mod modes;
mod sockets;

use std::process::{Command, ExitCode, Stdio};

use libtest_mimic::{Arguments, Trial};
use mcastor::planes::packet::rate::Mode;

use bed::{Bed, Outcome, fixed};

/// The environment variable that is set for the run inside the namespace.
const INSIDE: &str = "MCASTOR_PLANES_INSIDE";

const MODES: [Mode; 2] = [Mode::Latency, Mode::Throughput];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let inside = std::env::var_os(INSIDE).is_some();
    if !inside && let Some(code) = run_in_namespace() {
        return code;
    }
    let contract = [contract::TESTS, forwarding::TESTS].concat();
    let packet = [sockets::TESTS, bursts::TESTS, modes::TESTS].concat();
    if !inside {
        println!(
            "packet plane: {} tests skipped: cannot create a network namespace (needs root, or \
             unprivileged user namespaces)",
            packet.len() + gso::TESTS.len() + MODES.len() * contract.len()
        );
    }
    let has_ebpf = inside && bed::can_load_programs();
    if inside && !has_ebpf {
        println!("eBPF plane: tests skipped: the kernel denies its programs here");
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
        if name != "unread_packets_are_counted_as_dropped" {
            let ebpf = move || run(test(Bed::ebpf()?));
            let ebpf = Trial::test(format!("ebpf::{name}"), ebpf);
            trials.push(ebpf.with_ignored_flag(!has_ebpf));
        }
    }
    let has_clang = Command::new("clang-14").arg("--version").output().is_ok();
    if !has_clang {
        println!("object_is_that_of_its_source skipped: there is no clang-14 (`make packages`)");
    }
    let object = Trial::test("ebpf::object_is_that_of_its_source", object_of_source);
    trials.push(object.with_ignored_flag(!has_clang));
    let has_gso = gso::is_supported();
    if inside && !has_gso {
        println!("GSO packets: tests skipped: packet sockets have them since Linux 6.2");
    }
    let packet = packet.iter().map(|test| (test, inside));
    let gso = gso::TESTS.iter().map(|test| (test, inside && has_gso));
    for (&(name, test), can_run) in packet.chain(gso) {
        let standalone = move || run(test());
        trials.push(Trial::test(format!("packet::{name}"), standalone).with_ignored_flag(!can_run));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Runs this program again in a new network namespace, which is removed when the program ends.
fn run_in_namespace() -> Option<ExitCode> {
    let variants: [&[&str]; 2] = [&["--net"], &["--user", "--map-root-user", "--net"]];
    let works = |options: &&[&str]| {
        let mut probe = Command::new("unshare");
        probe
            .args(*options)
            .args(["ip", "link", "add", "type", "veth"]);
        let quiet = probe.stdout(Stdio::null()).stderr(Stdio::null());
        quiet.status().is_ok_and(|s| s.success())
    };
    let options = variants.into_iter().find(works)?;
    let status = Command::new("unshare")
        .args(options)
        .arg(std::env::current_exe().ok()?)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .status()
        .ok()?;
    Some(ExitCode::from(status.code().map_or(1, |c| c as u8)))
}

type NamedTest<F> = (&'static str, F);
/// A test that runs on every test bed.
type BedTest = fn(Bed) -> Test;
/// A test that creates its own test bed.
type StandaloneTest = fn() -> Test;
type Test = std::pin::Pin<Box<dyn Future<Output = Outcome>>>;

/// The checked-in object file is what the compiler makes of the source.
fn object_of_source() -> Outcome {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/sys/offload");
    let built = tempfile::NamedTempFile::new()?;
    let script = format!("{folder}/build.sh");
    let status = Command::new(script).arg(built.path()).status()?;
    if !status.success() {
        return Err("the programs do not compile".into());
    }
    let checked_in = std::fs::read(format!("{folder}/forward.o"))?;
    match std::fs::read(built.path())? == checked_in {
        true => Ok(()),
        false => Err("forward.o is out of date: run `make offload-program`".into()),
    }
}

fn run(test: Test) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(test)
}
