//! The scheduling priority of threads.

use std::io;

/// Lets the calling thread run only when no other thread needs the core (`SCHED_IDLE`, sched(7)).
///
/// # Errors
/// The kernel refuses, for instance because of a seccomp filter.
pub fn run_when_idle() -> io::Result<()> {
    // SAFETY: sched_param is a C struct of integers, for which zeros are a valid value.
    let param: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: reads `param`, which lives until the call returns; 0 is the calling thread.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &param) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priority_of_one_thread_is_lowered() {
        let policy = || {
            // SAFETY: takes no pointers; 0 is the calling thread.
            unsafe { libc::sched_getscheduler(0) }
        };
        let before = policy();
        let lowered = std::thread::spawn(move || run_when_idle().map(|()| policy()));
        assert_eq!(lowered.join().unwrap().unwrap(), libc::SCHED_IDLE);
        assert_eq!(policy(), before);
    }
}
