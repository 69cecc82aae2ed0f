//! Turns a list of cases into trials of the test runner.
//!
//! Each case runs in its own process: this program starts itself again with [`CASE`] set. A forked
//! process holds copies of all open sockets until it calls `exec`. In one process, a case that
//! starts a program would therefore delay the IGMP leave of a socket that another case closes.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError, RwLock};

use libtest_mimic::{Failed, Trial};

use super::ns::Lab;
use super::router::BINARY;

/// The environment variable that names the case to run in this process.
pub const CASE: &str = "MCASTOR_NETNS_CASE";

/// One test.
pub struct Case {
    /// `module::name`.
    pub name: &'static str,
    /// Requirements of the test; it is ignored where one is missing.
    pub needs: &'static [Need],
    /// The test; a panic is a failure.
    pub run: fn(&Lab),
}

/// Something that not every machine has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// A program on PATH, and the Debian package that has it.
    Program(&'static str, &'static str),
    /// A kind of link that `ip link add` can make.
    LinkKind(&'static str),
    /// A Docker Engine and its client.
    Docker,
    /// Podman and a runtime for its containers.
    Podman,
    /// A module for /usr/bin/python3, and the Debian package that has it.
    Python(&'static str, &'static str),
    /// A program of a package from PyPI, which `make pypi` installs.
    PyPi(&'static str),
    /// scapy for /usr/bin/python3.
    Scapy,
    /// An environment variable, and the target of the Makefile that sets it.
    Variable(&'static str, &'static str),
    /// `iptables` that works in a fresh namespace.
    Iptables,
    /// The `demo` command in this build.
    Demo,
    /// A kernel that takes the programs of the eBPF plane.
    BpfPrograms,
    /// A kernel that describes GSO packets of UDP to packet sockets.
    UdpGso,
    /// The clsact queueing discipline, and a filter for it.
    Clsact,
    /// IPv4 and IPv6 multicast routing in the kernel, for the tests of the harness itself.
    KernelMroute,
}

/// Returns a trial for each case. Cases that cannot run here are ignored; the kind of the trial
/// names the missing requirement. `probe` is false where only names are listed. `parallel` tells
/// whether cases run beside others.
pub fn trials(cases: Vec<Case>, probe: bool, parallel: bool) -> Vec<Trial> {
    let mut probed: Vec<(Need, Option<String>)> = Vec::new();
    let no_root = missing_root();
    cases
        .into_iter()
        .map(|case| {
            let mut missing = no_root.clone();
            for need in case.needs.iter().filter(|_| probe && no_root.is_none()) {
                if !probed.iter().any(|(n, _)| n == need) {
                    probed.push((*need, missing_need(*need)));
                }
                let result = probed.iter().find(|(n, _)| n == need);
                missing = missing.or_else(|| result.and_then(|(_, m)| m.clone()));
            }
            let name = case.name;
            let run = move || match parallel {
                true => run_beside_others(name),
                false => run_in_process(name).map_err(Failed::from),
            };
            let trial = Trial::test(name, run).with_ignored_flag(missing.is_some());
            match missing {
                Some(reason) => trial.with_kind(format!("needs {reason}")),
                None => trial,
            }
        })
        .collect()
}

/// Held for reading by cases that run in parallel, and for writing by a case that runs alone.
static CONCURRENT: RwLock<()> = RwLock::new(());
/// Cases that failed in parallel with others and passed alone.
static PASSED_ALONE: Mutex<Vec<&str>> = Mutex::new(Vec::new());
/// How often a case that failed must pass alone.
const RUNS_ALONE: usize = 2;
/// How many cases may fail in parallel with others and still count as passed. A busy machine delays
/// any case, but not many of them.
const MAX_PASSED_ALONE: usize = 3;

/// Runs a case in parallel with others. One that fails runs again alone, and counts as passed if it
/// passes twice. The last line of the run lists such cases; from the fourth on they fail.
fn run_beside_others(name: &'static str) -> Result<(), Failed> {
    let concurrent = CONCURRENT.read().unwrap_or_else(PoisonError::into_inner);
    let first = run_in_process(name);
    drop(concurrent);
    let Err(first) = first else { return Ok(()) };
    let _alone = CONCURRENT.write().unwrap_or_else(PoisonError::into_inner);
    let alone = (0..RUNS_ALONE).try_for_each(|_| run_in_process(name));
    let failure = |second: &str| format!("{first}\n---- run again alone ----\n{second}");
    if let Err(second) = alone {
        return Err(failure(&second).into());
    }
    let mut passed = PASSED_ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    passed.push(name);
    if passed.len() > MAX_PASSED_ALONE {
        return Err(failure("passed, as too many others did").into());
    }
    eprintln!("{name} {}", failure("passed"));
    Ok(())
}

/// Prints the cases that failed in parallel with others and passed alone. tests/run.sh repeats it.
pub fn print_passed_alone() {
    let passed = PASSED_ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !passed.is_empty() {
        println!("failed beside others: {} {passed:?}", passed.len());
    }
}

/// Starts this program again for one case. Its standard error is a file and not a pipe, because a
/// daemon that a case leaves behind would keep a pipe open.
fn run_in_process(name: &str) -> Result<(), String> {
    let describe = |e: io::Error| format!("starting the case: {e}");
    let errors = tempfile::tempfile().map_err(describe)?;
    let status = Command::new(std::env::current_exe().map_err(describe)?)
        .env(CASE, name)
        .stdin(Stdio::null())
        .stderr(errors.try_clone().map_err(describe)?)
        .status()
        .map_err(describe)?;
    let text = read_from_start(&errors).map_err(describe)?;
    let text = String::from_utf8_lossy(&text);
    match status.code() {
        Some(0) => {
            eprint!("{text}");
            Ok(())
        }
        Some(1) => Err(text.into_owned()),
        _ => Err(format!("{text}\nthe case ended with {status}")),
    }
}

/// Reads a file from its start. Leaves the file offset alone: the case shares it, and a daemon that
/// the case left behind may still write there.
fn read_from_start(file: &File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        match file.read_at(&mut buffer, text.len() as u64) {
            Ok(0) => return Ok(text),
            Ok(n) => text.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Panics of this process.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Runs the case that [`CASE`] names in this process. A failure is described on standard error.
pub fn run_here(cases: Vec<Case>, name: &str) -> ExitCode {
    // SAFETY: this prctl only sets a signal; the case must not outlive a killed test run.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    std::panic::set_hook(Box::new(|info| {
        let mut panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
        panics.push(info.to_string());
    }));
    let Some(case) = cases.into_iter().find(|case| case.name == name) else {
        eprintln!("there is no case {name}");
        return ExitCode::FAILURE;
    };
    // Outlives a panic of the case, so that its logs can be printed.
    let mut lab = None;
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
        (case.run)(lab.insert(Lab::new(case.name)));
    }));
    if result.is_ok() {
        return ExitCode::SUCCESS;
    }
    let logs = lab.as_ref().map(|lab| {
        lab.failed();
        lab.logs()
    });
    let panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
    eprintln!("{}\n{}", panics.join("\n"), logs.unwrap_or_default());
    ExitCode::FAILURE
}

fn missing_root() -> Option<String> {
    // SAFETY: takes no arguments and cannot fail.
    (unsafe { libc::geteuid() } != 0).then(|| "root".into())
}

/// Returns the description of a requirement that is missing.
fn missing_need(need: Need) -> Option<String> {
    match need {
        Need::Program(name, package) => {
            (!on_path(name)).then(|| format!("{name} (apt-get install {package})"))
        }
        Need::LinkKind(kind) => {
            let lab = Lab::new("probe");
            let ns = lab.ns("a");
            let under = ns.try_ip("link add u0 type veth peer name u1").is_ok();
            let spec = match kind {
                "macvlan" => "link add probe0 link u0 type macvlan mode bridge".to_owned(),
                "vlan" => "link add probe0 link u0 type vlan id 7".to_owned(),
                "amt" => "link add probe0 type amt mode relay local 192.0.2.1 dev u0".to_owned(),
                _ => format!("link add probe0 type {kind}"),
            };
            (!under || ns.try_ip(&spec).is_err()).then(|| format!("{kind} links in the kernel"))
        }
        Need::Docker => ["dockerd", "docker"]
            .iter()
            .any(|program| !on_path(program))
            .then(|| "dockerd (apt-get install docker.io)".into()),
        Need::Podman if !on_path("podman") => Some("podman (apt-get install podman)".into()),
        Need::Podman => (!on_path("runc") && !on_path("crun"))
            .then(|| "runc or crun (apt-get install runc)".into()),
        Need::Python(module, package) => {
            let out = Command::new("/usr/bin/python3")
                .args(["-c", &format!("import {module}")])
                .output();
            (!out.is_ok_and(|o| o.status.success()))
                .then(|| format!("{module} (apt-get install {package})"))
        }
        Need::Variable(name, target) => {
            (std::env::var_os(name).is_none()).then(|| format!("{name} (make {target})"))
        }
        Need::Scapy => missing_need(Need::Python("scapy", "python3-scapy")),
        Need::Iptables => {
            if !on_path("iptables") {
                return Some("iptables (apt-get install iptables)".into());
            }
            let lab = Lab::new("probe");
            let out = lab.ns("a").output("iptables", &["-P", "FORWARD", "DROP"]);
            (!out.status.success()).then(|| "netfilter in the kernel".into())
        }
        Need::PyPi(name) => (!pypi_program(name).is_file()).then(|| format!("{name} (make pypi)")),
        Need::Demo => {
            let out = Command::new(BINARY).args(["demo", "--help"]).output();
            (!out.is_ok_and(|o| o.status.success())).then(|| "`mcastor demo`".into())
        }
        Need::BpfPrograms => {
            let probed = mcastor::sys::offload::OffloadProgram::probe();
            probed.err().map(|e| format!("BPF programs: {e}"))
        }
        Need::UdpGso => (!describes_udp_gso()).then(|| "Linux 6.2 for GSO packets of UDP".into()),
        Need::Clsact => {
            let lab = Lab::new("probe");
            let ns = lab.ns("a");
            let under = ns.try_ip("link add u0 type veth peer name u1").is_ok();
            let tc = |words: &str| {
                let words: Vec<_> = words.split(' ').collect();
                ns.output("tc", &words).status.success()
            };
            let works = under
                && tc("qdisc add dev u0 clsact")
                && tc("filter add dev u0 egress prio 7 protocol ip u32 match u32 0 0 action ok");
            (!works).then(|| "clsact and u32 in the kernel".into())
        }
        Need::KernelMroute => {
            let lab = Lab::new("probe");
            let found = lab.ns("a").enter(|| {
                ["/proc/net/ip_mr_vif", "/proc/thread-self/net/ip_mr_vif"]
                    .iter()
                    .any(|p| std::path::Path::new(p).exists())
            });
            (!found).then(|| "multicast routing in the kernel".into())
        }
    }
}

/// Returns the path of a program of a package from PyPI.
pub fn pypi_program(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/pypi/bin");
    folder.join(name)
}

/// Returns whether the kernel describes GSO packets of UDP to packet sockets: Linux 6.2 and newer.
pub fn describes_udp_gso() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map(|n| n.parse().unwrap_or(0));
    let version: (u32, u32) = (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    );
    version >= (6, 2)
}

fn on_path(name: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':')
        .any(|dir| std::path::Path::new(dir).join(name).is_file())
}
