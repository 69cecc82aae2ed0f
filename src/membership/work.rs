//! The measure of the work that a message causes, for the rate limit.

/// The work that a message causes, counted in sources: those that it names, and those of its groups
/// that are known. A record counts as 16.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work(pub u32);

impl Work {
    /// The work of a record without sources.
    pub const RECORD: u32 = 16;
    /// The work for which the rate limit takes one token: a report with 16 records of no sources.
    pub(super) const TOKEN: u32 = 16 * Self::RECORD;

    pub(super) fn tokens(self) -> f64 {
        f64::from(self.0) / f64::from(Self::TOKEN)
    }
}
