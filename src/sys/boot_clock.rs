//! The clock since the boot of the machine, and the identity of the boot.

use std::io;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use crate::model::{BootTime, ClockReading};

/// Reads the boot clock and the clock of timers.
///
/// # Errors
/// The kernel has no boot clock.
pub fn read() -> io::Result<ClockReading> {
    let boot = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?);
    Ok(ClockReading {
        now: Instant::now(),
        boot: BootTime::from_ms(u64::try_from(boot.as_millis()).unwrap_or(u64::MAX)),
    })
}

/// Returns the time since the boot of the machine; zero if the kernel has no boot clock.
pub fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// Returns the random number that the kernel gives to each boot.
///
/// # Errors
/// `/proc` is not mounted.
pub fn boot_id() -> io::Result<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_runs_and_boot_stays() {
        let first = read().unwrap();
        std::thread::sleep(Duration::from_millis(5));
        let second = read().unwrap();
        assert!(second.boot.since(first.boot) >= Duration::from_millis(4));
        assert!(boot_id().unwrap().len() >= 32);
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
    }
}
