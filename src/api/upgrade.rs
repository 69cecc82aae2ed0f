//! The replacement of the running process by a new one.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A request to let a new process take over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpgradeQuery {
    /// Path of the program. `None` means the file from which the running process was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary: Option<String>,
}

/// How a new process took over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeReport {
    /// Version of the former process.
    pub old_version: String,
    /// Version of the new process.
    pub new_version: String,
    /// ID of the former process.
    pub old_pid: u32,
    /// ID of the new process.
    pub new_pid: u32,
    /// Milliseconds from the request to the end of the hand-over.
    pub took_ms: u64,
    /// Microseconds in which no process read packets. They waited in the capture sockets.
    pub pause_us: u64,
    /// Packets that waited in that time.
    pub waiting_packets: u64,
}

/// A sentence for users.
impl fmt::Display for UpgradeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            old_version,
            new_version,
            old_pid,
            new_pid,
            took_ms,
            pause_us,
            waiting_packets,
        } = self;
        let pause = *pause_us as f64 / 1000.0;
        write!(
            f,
            "process {old_pid} (v{old_version}) is replaced by process {new_pid} (v{new_version}), \
             in {took_ms} ms; packets that waited {pause:.1} ms for it: {waiting_packets}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_names_both_processes_and_the_pause() {
        let report = UpgradeReport {
            old_version: "1.0.0".into(),
            new_version: "1.1.0".into(),
            old_pid: 7,
            new_pid: 9,
            took_ms: 130,
            pause_us: 2450,
            waiting_packets: 245,
        };
        assert_eq!(
            report.to_string(),
            "process 7 (v1.0.0) is replaced by process 9 (v1.1.0), in 130 ms; packets that waited \
             2.5 ms for it: 245"
        );
    }
}
