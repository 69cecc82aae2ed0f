//! What a merge does with its packets.

/// A packet that is passed on, or not held any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The packet that was pushed.
    Current,
    /// The held packet with this number.
    Held(u32),
    /// The held packet with this number is dropped, because it does not belong to the stream.
    Expired(u32),
}
