//! Resource limits of the process.

/// Raises the soft limit of open files to the hard limit; ignores a failure.
///
/// Each capture, each egress and each membership socket uses a descriptor. The usual soft limit of
/// 1,024 exists for programs that use `select(2)`.
pub fn raise_open_file_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` outlives both calls. The first writes one `rlimit` to it, the second reads
    // it.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}
