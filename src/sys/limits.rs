//! Limits of the process.

/// Raises the number of files this process may open to what it is allowed to: each capture,
/// each egress and each pool of memberships is one, and the usual 1,024 is from a time of
/// `select(2)`. What cannot be raised stays.
pub fn raise_open_file_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is valid for writes during the first call and for reads during the
    // second.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}
