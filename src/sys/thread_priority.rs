//! The scheduling priority of threads.

use std::io;

use nix::errno::Errno;

/// The nice value of background threads: about a tenth of the share of a thread that forwards
/// packets. Less would leave them without progress on a machine whose cores are all in use.
const NICE: libc::c_int = 10;

/// Lets other threads run before the calling one: it does not preempt them when it wakes
/// (`SCHED_BATCH`, sched(7)), and has a lower priority (nice(2)).
///
/// # Errors
/// The kernel refuses, for instance because of a seccomp filter.
pub fn run_in_background() -> io::Result<()> {
    // SAFETY: sched_param is a C struct of integers, for which zeros are a valid value.
    let param: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: reads `param`, which lives until the call returns; 0 is the calling thread.
    Errno::result(unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &param) })?;
    // SAFETY: takes no pointers. Linux sets the value of the calling thread only.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priority_of_one_thread_is_lowered() {
        let priority = || {
            // SAFETY: neither call takes pointers; 0 is the calling thread.
            unsafe {
                (
                    libc::sched_getscheduler(0),
                    libc::getpriority(libc::PRIO_PROCESS, 0),
                )
            }
        };
        let before = priority();
        let lowered = std::thread::spawn(move || run_in_background().map(|()| priority()));
        assert_eq!(lowered.join().unwrap().unwrap(), (libc::SCHED_BATCH, NICE));
        assert_eq!(priority(), before);
    }
}
