//! The boot clock, which also runs while the machine sleeps and has the same time for all processes.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Returns the time since the machine was booted.
pub fn since_boot() -> Duration {
    // Fails only without a boot clock, which Linux has since 2.6.39.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}
