//! Reads CPU time.
//!
//! Forwarding over veth pairs mostly runs in soft interrupts inside the system calls of the
//! *sender*. The CPU time of the router process alone would show no cost for the kernel's
//! forwarding. So two values count all work. The bench subtracts the work of the sender, which it
//! measures with the same sender and a router without routes.
//!
//! - The busy time of all cores in `/proc/stat`: the time that is neither idle nor stolen. It
//!   includes the work of other processes.
//! - The run time of the threads involved: sender, router and `ksoftirqd`. A soft interrupt counts
//!   for the thread that it interrupts, unless the kernel accounts interrupts separately. This
//!   value misses only interrupts on an idle core.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Instant;

/// The unit of `/proc/stat` in nanoseconds (USER_HZ is 100).
const TICK_NS: f64 = 1e7;

/// Returns the run time of the calling thread in nanoseconds.
pub fn own_ns() -> u64 {
    schedstat("/proc/thread-self/schedstat")
}

/// Returns the run time in a file `schedstat`, in nanoseconds.
pub fn schedstat(path: impl AsRef<Path>) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let first = text.split(' ').next().unwrap_or_default();
    first.parse().unwrap_or_default()
}

/// Returns the run time of all threads of a process in nanoseconds.
pub fn process_ns(pid: u32) -> u64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return 0;
    };
    let path = |task: fs::DirEntry| task.path().join("schedstat");
    tasks.flatten().map(|t| schedstat(path(t))).sum()
}

/// Returns how often the threads of a process have slept.
pub fn wakeups(pid: u32) -> u64 {
    const FIELD: &str = "voluntary_ctxt_switches:";
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let slept = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let line = status.lines().find_map(|l| l.strip_prefix(FIELD));
        line?.trim().parse::<u64>().ok()
    };
    let tasks = tasks.into_iter().flatten().flatten();
    tasks.filter_map(slept).sum()
}

/// Returns the resident memory of a process in MiB.
pub fn resident_mib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.trim().strip_suffix("kB"));
    kib.and_then(|k| k.trim().parse::<f64>().ok())
        .map_or(f64::NAN, |k| k / 1024.0)
}

/// Reads the CPU time of the machine, and of the router and `ksoftirqd`.
pub struct Meter {
    ksoftirqd: Vec<u32>,
    router: Option<u32>,
}

/// The counters at one time, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    at: Instant,
    idle: f64,
    stolen: f64,
    threads: u64,
}

/// CPU time of a measurement window, in nanoseconds, summed over all cores.
#[derive(Debug, Clone, Copy)]
pub struct CpuTime {
    /// Busy time of the whole machine.
    pub system: f64,
    /// Time that the host of a virtual machine stole.
    pub stolen: f64,
    /// Run time of the router and `ksoftirqd`.
    pub threads: f64,
    /// Duration of the window.
    pub seconds: f64,
}

impl Meter {
    /// Creates a meter for the router process with this ID, if there is one.
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

    /// Reads the counters.
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
        // The fields idle, iowait and steal.
        let idle = (field(3) + field(4) + field(7)) * TICK_NS;
        let all = self.ksoftirqd.iter().chain(&self.router);
        Ok(Reading {
            at: Instant::now(),
            idle,
            stolen: field(7) * TICK_NS,
            threads: all.map(|pid| process_ns(*pid)).sum(),
        })
    }

    /// Returns the CPU time since `before`.
    pub fn since(&self, before: &Reading) -> io::Result<CpuTime> {
        let now = self.read()?;
        let wall = (now.at - before.at).as_nanos() as f64;
        Ok(CpuTime {
            system: (wall * cores() as f64 - (now.idle - before.idle)).max(0.0),
            stolen: now.stolen - before.stolen,
            threads: now.threads.saturating_sub(before.threads) as f64,
            seconds: wall / 1e9,
        })
    }
}

/// Returns the number of online cores.
pub fn cores() -> usize {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let is_core = |l: &&str| l.starts_with("cpu") && !l.starts_with("cpu ");
    stat.lines().filter(is_core).count().max(1)
}

/// Returns how many packets the kernel dropped so far because the backlog of a core was full
/// (`net.core.netdev_max_backlog`). A veth pair delivers by this queue.
pub fn backlog_drops() -> u64 {
    let text = fs::read_to_string("/proc/net/softnet_stat").unwrap_or_default();
    let dropped = |line: &str| {
        let field = line.split_whitespace().nth(1)?;
        u64::from_str_radix(field, 16).ok()
    };
    text.lines().filter_map(dropped).sum()
}
