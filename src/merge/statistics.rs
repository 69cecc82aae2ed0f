//! What a merge counts.

/// The counts of a merge. Pairs are indexed by [`MergePath`](crate::model::MergePath).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MergeStatistics {
    /// Packets that arrived on each path.
    pub received: [u64; 2],
    /// Packets that each path lost or brought too late.
    pub lost: [u64; 2],
    /// Packets that no path brought in time.
    pub lost_on_both: u64,
    /// Packets of each path that the other path, or the same one, had brought already.
    pub duplicates: [u64; 2],
    /// Packets of each path that arrived after later ones were passed on.
    pub late: [u64; 2],
    /// Packets that had to wait for an earlier one.
    pub held: u64,
    /// Times that the sender began with other numbers.
    pub restarts: u64,
    /// Times that packets could not be held, because too many were held already.
    pub limited: u64,
    /// Packets without a number, or of too many streams, that were compared by their payload.
    pub by_payload: u64,
    /// How much later the second path brings a packet than the first, in nanoseconds, as a moving
    /// average. Negative if it is earlier.
    pub skew_ns: i64,
    /// The largest difference between the paths in the last ten to twenty seconds, in nanoseconds.
    pub peak_skew_ns: u64,
    /// Streams.
    pub streams: u64,
    /// Packets that are held now.
    pub holding: u64,
}

impl MergeStatistics {
    /// Notes that the second path brought a packet by `skew_ns` later than the first.
    pub(super) fn note_skew(&mut self, skew_ns: i64) {
        // The smoothing of RFC 3550 section 6.4.1.
        self.skew_ns = match self.skew_ns {
            0 => skew_ns,
            average => average + (skew_ns - average) / 16,
        };
    }
}
