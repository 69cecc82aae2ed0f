//! What the process uses of the machine.

/// What this process uses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProcessUsage {
    /// User and system CPU time in seconds.
    pub cpu_seconds: f64,
    /// Start of the process in seconds since 1970.
    pub start_seconds: f64,
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// Virtual memory in bytes.
    pub virtual_bytes: u64,
    /// Number of threads.
    pub threads: u64,
    /// Number of open file descriptors.
    pub open_files: u64,
    /// Soft limit of open file descriptors.
    pub max_files: u64,
}
