//! The rate of snapshots that memberships cause.

use std::time::{Duration, Instant};

/// Limits the rate of snapshots that memberships cause, so that a flood of reports leaves time
/// for other work.
pub(super) struct SnapshotPacer {
    /// Earliest time of the next snapshot.
    pub(super) next: Instant,
    /// Whether the next snapshot is scheduled.
    pub(super) is_scheduled: bool,
}

impl SnapshotPacer {
    /// Returns a pacer that permits a snapshot at once.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            next: now,
            is_scheduled: false,
        }
    }

    /// Starts the pause after a snapshot that took `duration`.
    pub(super) fn start_pause(&mut self, now: Instant, duration: Duration) {
        self.next = now + (duration * PAUSE_FACTOR).min(MAX_PAUSE);
    }
}

/// The pause after a snapshot is this multiple of the time that it took.
const PAUSE_FACTOR: u32 = 4;
/// Longest pause after a snapshot.
const MAX_PAUSE: Duration = Duration::from_millis(250);
