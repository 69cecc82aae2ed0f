//! Child processes of a test.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use super::ns::Lab;
use super::{TIMEOUT, wait_until};

/// A process whose output goes to files. Dropping it stops the process.
pub struct Program {
    name: String,
    child: Child,
    out: PathBuf,
    err: PathBuf,
    status: Option<ExitStatus>,
}

impl Program {
    /// Starts `command`.
    #[track_caller]
    pub fn start(lab: &Lab, mut command: Command) -> Self {
        let path = command.get_program().to_string_lossy().into_owned();
        let name = Path::new(&path)
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let (out, err) = (
            lab.file(&format!("{name}.out")),
            lab.file(&format!("{name}.err")),
        );
        lab.log(&format!("{name} stdout"), &out);
        lab.log(&format!("{name} stderr"), &err);
        let create = |p: &Path| File::create(p).unwrap_or_else(|e| panic!("{}: {e}", p.display()));
        let child = command
            .stdout(create(&out))
            .stderr(create(&err))
            .spawn()
            .unwrap_or_else(|e| panic!("{path}: {e}"));
        Self {
            name,
            child,
            out,
            err,
            status: None,
        }
    }

    /// Gives all threads of the program the highest priority of ordinary ones.
    pub fn raise_priority(&self) {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("the threads");
        for task in tasks {
            let thread = task.expect("a thread").file_name();
            let thread = thread.to_string_lossy().parse().expect("a number");
            // SAFETY: setpriority takes no pointers.
            let set = unsafe { libc::setpriority(libc::PRIO_PROCESS, thread, -20) };
            assert_eq!(set, 0, "the priority of {}", self.name);
        }
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the standard output so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.out).unwrap_or_default()).into_owned()
    }

    /// Returns the standard error so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.err).unwrap_or_default()).into_owned()
    }

    /// Returns the exit status if the process has exited.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("wait");
        }
        self.status
    }

    /// Waits until the process exits by itself.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let ended = wait_until(2 * TIMEOUT, || self.exit_status().is_some());
        assert!(ended, "{} is still running", self.name);
        self.status.expect("exited")
    }

    /// Sends a signal to the process.
    pub fn signal(&mut self, signal: i32) {
        if self.exit_status().is_none() {
            // SAFETY: the child is not reaped yet, so its process id is still valid.
            unsafe { libc::kill(self.child.id() as i32, signal) };
        }
    }

    /// Sends `signal` and waits for the exit; sends SIGKILL after `timeout`.
    pub fn stop(&mut self, signal: i32, timeout: Duration) -> ExitStatus {
        self.signal(signal);
        if !wait_until(timeout, || self.exit_status().is_some()) {
            self.signal(libc::SIGKILL);
            self.status = self.child.wait().ok();
        }
        self.status.unwrap_or(ExitStatus::from_raw(libc::SIGKILL))
    }

    /// Returns the resident memory in bytes.
    pub fn rss(&self) -> u64 {
        let path = format!("/proc/{}/statm", self.child.id());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let pages: u64 = text
            .split(' ')
            .nth(1)
            .and_then(|p| p.parse().ok())
            .unwrap_or(0);
        pages * 4096
    }

    /// Returns the user and system time in seconds.
    pub fn cpu_seconds(&self) -> f64 {
        let path = format!("/proc/{}/stat", self.child.id());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        // Behind the name, utime and stime are the fields 12 and 13, in ticks of 10 ms.
        let fields = text.rsplit(')').next().unwrap_or_default();
        let times = fields.split_whitespace().skip(11).take(2);
        times
            .filter_map(|ticks| ticks.parse::<f64>().ok())
            .sum::<f64>()
            / 100.0
    }

    /// Makes [`Self::peak_rss`] start again from the current resident memory.
    pub fn reset_peak_rss(&self) {
        let path = format!("/proc/{}/clear_refs", self.child.id());
        std::fs::write(path, "5").expect("clear_refs");
    }

    /// Returns the largest resident memory so far, in bytes.
    pub fn peak_rss(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let kib = line.and_then(|l| l.trim().strip_suffix(" kB"));
        kib.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.stop(libc::SIGTERM, Duration::from_secs(20));
    }
}
