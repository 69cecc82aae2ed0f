//! CPU time, memory, threads and files of this process, from `/proc/self`.

use procfs::process::{LimitValue, Process};
use procfs::{ProcResult, WithCurrentSystemInfo};

use crate::model::ProcessUsage;

/// Reads what this process uses.
///
/// # Errors
/// `/proc` is not mounted, or this thread may not open files.
pub fn read() -> ProcResult<ProcessUsage> {
    let process = Process::myself()?;
    let stat = process.stat()?;
    let ticks = procfs::ticks_per_second() as f64;
    let max_files = match process.limits()?.max_open_files.soft_limit {
        LimitValue::Value(limit) => limit,
        LimitValue::Unlimited => u64::MAX,
    };
    Ok(ProcessUsage {
        cpu_seconds: (stat.utime + stat.stime) as f64 / ticks,
        start_seconds: procfs::boot_time_secs()? as f64 + stat.starttime as f64 / ticks,
        resident_bytes: stat.rss_bytes().get(),
        virtual_bytes: stat.vsize,
        threads: u64::try_from(stat.num_threads).unwrap_or_default(),
        open_files: process.fd_count()? as u64,
        max_files,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_of_this_process_is_plausible() {
        let file = std::fs::File::open("/proc/self/stat").unwrap();
        let usage = read().unwrap();
        assert!(usage.resident_bytes > 1 << 20 && usage.virtual_bytes > usage.resident_bytes);
        assert!(usage.threads >= 1 && (4..=usage.max_files).contains(&usage.open_files));
        let now = std::time::SystemTime::now();
        let now = now
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs_f64();
        let age = now - usage.start_seconds;
        assert!((-2.0..3600.0).contains(&age), "{age}");
        drop(file);
        assert_eq!(read().unwrap().start_seconds, usage.start_seconds);
    }
}
