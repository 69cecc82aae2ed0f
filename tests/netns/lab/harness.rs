//! From a list of cases to trials: what a case needs, its laboratory, and what a failure shows.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError, RwLock};

use libtest_mimic::{Failed, Trial};

use super::ns::Lab;
use super::router::BINARY;

/// One test.
pub struct Case {
    /// `module::name`.
    pub name: &'static str,
    /// What has to be there for it to run.
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
    /// A module for /usr/bin/python3, and the Debian package that has it.
    Python(&'static str, &'static str),
    /// scapy for /usr/bin/python3.
    Scapy,
    /// `iptables` that works in a fresh namespace.
    Iptables,
    /// The `demo` command in this build.
    Demo,
    /// IPv4 and IPv6 multicast routing in the kernel, for the tests of the harness itself.
    KernelMroute,
}

thread_local! {
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Remembers where a test panicked instead of printing it among the results.
pub fn hook_panics() {
    std::panic::set_hook(Box::new(|info| {
        LAST_PANIC.with(|last| *last.borrow_mut() = info.to_string());
    }));
}

/// Every case as a trial; those that cannot run here are ignored, with the reason as their kind.
pub fn trials(cases: Vec<Case>, probe: bool) -> Vec<Trial> {
    let mut known: Vec<(Need, Option<String>)> = Vec::new();
    let root = root_lacks();
    cases
        .into_iter()
        .map(|case| {
            let mut lacks = root.clone();
            for need in case.needs.iter().filter(|_| probe) {
                if !known.iter().any(|(n, _)| n == need) {
                    known.push((*need, if root.is_none() { lacking(*need) } else { None }));
                }
                let found = known.iter().find(|(n, _)| n == need);
                lacks = lacks.or_else(|| found.and_then(|(_, l)| l.clone()));
            }
            let ignored = lacks.is_some();
            let trial = Trial::test(case.name, move || run(&case)).with_ignored_flag(ignored);
            match lacks {
                Some(reason) => trial.with_kind(format!("needs {reason}")),
                None => trial,
            }
        })
        .collect()
}

/// Held for reading by tests among others, for writing by one that is alone.
static FLOOR: RwLock<()> = RwLock::new(());
/// Tests that failed among others and passed alone.
static ALONE: Mutex<Vec<&str>> = Mutex::new(Vec::new());
/// More of them are no accident of a busy machine.
const MOST_ALONE: usize = 3;

/// Tests share few cores, and what takes too long there may fail a test of what a host or a rival
/// does in time. One that failed is run once more, alone; its first failure is shown, and counted
/// apart. What fails alone has failed.
fn run(case: &Case) -> Result<(), Failed> {
    let among = FLOOR.read().unwrap_or_else(PoisonError::into_inner);
    let first = attempt(case);
    drop(among);
    let Err(first) = first else { return Ok(()) };
    let _alone = FLOOR.write().unwrap_or_else(PoisonError::into_inner);
    let mut passed = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if passed.len() == MOST_ALONE {
        return Err(format!("{first}\n{MOST_ALONE} tests passed only alone already").into());
    }
    match attempt(case) {
        Ok(()) => {
            let name = case.name;
            eprintln!("---- {name} failed among others, and passed alone; at first ----\n{first}");
            passed.push(name);
            Ok(())
        }
        Err(again) => Err(format!("{first}\n---- and again, alone ----\n{again}").into()),
    }
}

/// Says which tests passed only alone, in a line that is counted.
pub fn tell_alone() {
    let passed = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !passed.is_empty() {
        println!("passed only alone: {} {passed:?}", passed.len());
    }
}

fn attempt(case: &Case) -> Result<(), String> {
    let lab = Lab::new(case.name);
    match catch_unwind(AssertUnwindSafe(|| (case.run)(&lab))) {
        Ok(()) => Ok(()),
        Err(_) => {
            lab.failed();
            let panic = LAST_PANIC.with(|last| last.take());
            Err(format!("{panic}\n{}", lab.logs()))
        }
    }
}

fn root_lacks() -> Option<String> {
    // SAFETY: takes no arguments and cannot fail.
    (unsafe { libc::geteuid() } != 0).then(|| "root".into())
}

fn lacking(need: Need) -> Option<String> {
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
                _ => format!("link add probe0 type {kind}"),
            };
            (!under || ns.try_ip(&spec).is_err()).then(|| format!("{kind} links in the kernel"))
        }
        Need::Docker => ["dockerd", "docker"]
            .iter()
            .any(|program| !on_path(program))
            .then(|| "dockerd (apt-get install docker.io)".into()),
        Need::Python(module, package) => {
            let out = std::process::Command::new("/usr/bin/python3")
                .args(["-c", &format!("import {module}")])
                .output();
            (!out.is_ok_and(|o| o.status.success()))
                .then(|| format!("{module} (apt-get install {package})"))
        }
        Need::Scapy => {
            let out = std::process::Command::new("/usr/bin/python3")
                .args(["-c", "import scapy"])
                .output();
            (!out.is_ok_and(|o| o.status.success()))
                .then(|| "scapy (apt-get install python3-scapy)".into())
        }
        Need::Iptables => {
            if !on_path("iptables") {
                return Some("iptables (apt-get install iptables)".into());
            }
            let lab = Lab::new("probe");
            let out = lab.ns("a").output("iptables", &["-P", "FORWARD", "DROP"]);
            (!out.status.success()).then(|| "netfilter in the kernel".into())
        }
        Need::Demo => {
            let out = std::process::Command::new(BINARY)
                .args(["demo", "--help"])
                .output();
            (!out.is_ok_and(|o| o.status.success())).then(|| "`mcastor demo`".into())
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

fn on_path(name: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':')
        .any(|dir| std::path::Path::new(dir).join(name).is_file())
}
