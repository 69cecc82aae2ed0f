//! Where CPU time is read.
//!
//! Forwarding over veth pairs mostly runs in soft interrupts inside the *sender's* system
//! calls, so the time of the router's process alone says nothing: the kernel's forwarding
//! would come out free. Two readings count everything, and the sender's own part is taken off
//! by running the same sender into a router without routes:
//!
//! - the busy time of all cores in `/proc/stat` (what is neither idle nor stolen). It also
//!   holds whatever else the machine does meanwhile;
//! - the run time of all threads that take part: sender, router, `ksoftirqd`. Soft interrupts
//!   count to the thread they interrupt, as the kernel here does not account them apart. It
//!   misses only what interrupts an idle core.

use std::fs;
use std::io;
use std::time::Instant;

/// USER_HZ of Linux: the unit of `/proc/stat`.
const TICK_NS: f64 = 1e7;

/// Run time of the calling thread in nanoseconds.
pub fn own_ns() -> u64 {
    schedstat("/proc/thread-self/schedstat")
}

fn schedstat(path: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let first = text.split(' ').next().unwrap_or_default();
    first.parse().unwrap_or_default()
}

/// Run time of all threads of a process in nanoseconds.
pub fn process_ns(pid: u32) -> u64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return 0;
    };
    let path = |task: fs::DirEntry| format!("{}/schedstat", task.path().display());
    tasks.flatten().map(|t| schedstat(&path(t))).sum()
}

/// Resident memory of a process in MiB.
pub fn resident_mib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.trim().strip_suffix("kB"));
    kib.and_then(|k| k.trim().parse::<f64>().ok())
        .map_or(f64::NAN, |k| k / 1024.0)
}

/// Reads CPU time of the machine and of the threads that take part.
pub struct Meter {
    ksoftirqd: Vec<u32>,
    router: Option<u32>,
}

#[derive(Debug, Clone, Copy)]
pub struct Reading {
    at: Instant,
    idle: f64,
    stolen: f64,
    ours: u64,
}

/// CPU time of a window, in nanoseconds of all cores together.
#[derive(Debug, Clone, Copy)]
pub struct Spent {
    /// Of the whole machine.
    pub system: f64,
    /// What the host of a virtual machine gave to others.
    pub stolen: f64,
    /// Of router and `ksoftirqd`.
    pub ours: f64,
    /// How long it was.
    pub seconds: f64,
}

impl Meter {
    pub fn new(router: Option<u32>) -> io::Result<Self> {
        let mut ksoftirqd = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|n| n.parse::<u32>().ok()) else {
                continue;
            };
            let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if comm.starts_with("ksoftirqd/") {
                ksoftirqd.push(pid);
            }
        }
        Ok(Self { ksoftirqd, router })
    }

    pub fn read(&self) -> io::Result<Reading> {
        let stat = fs::read_to_string("/proc/stat")?;
        let fields: Vec<f64> = stat
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(1)
            .filter_map(|v| v.parse().ok())
            .collect();
        let field = |i: usize| fields.get(i).copied().unwrap_or_default();
        // Idle, waiting for disks, stolen by the host.
        let idle = (field(3) + field(4) + field(7)) * TICK_NS;
        let all = self.ksoftirqd.iter().chain(&self.router);
        Ok(Reading {
            at: Instant::now(),
            idle,
            stolen: field(7) * TICK_NS,
            ours: all.map(|pid| process_ns(*pid)).sum(),
        })
    }

    pub fn since(&self, before: &Reading) -> io::Result<Spent> {
        let now = self.read()?;
        let wall = (now.at - before.at).as_nanos() as f64;
        Ok(Spent {
            system: (wall * cores() as f64 - (now.idle - before.idle)).max(0.0),
            stolen: now.stolen - before.stolen,
            ours: now.ours.saturating_sub(before.ours) as f64,
            seconds: wall / 1e9,
        })
    }
}

/// Cores that are online.
pub fn cores() -> usize {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let is_core = |l: &&str| l.starts_with("cpu") && !l.starts_with("cpu ");
    stat.lines().filter(is_core).count().max(1)
}
