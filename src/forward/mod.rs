//! Pure decisions on single packets: which entry, what is rewritten, what is cut.

pub mod decide;
pub mod finish;
pub mod fragment;
pub mod loop_guard;
pub mod reason;
pub mod segment;
pub mod translate;
mod upper;

pub use decide::{Arrival, Decision, NotData, Variant, decide, look_up, ways};
pub use loop_guard::LoopGuard;
pub use reason::DropReason;
