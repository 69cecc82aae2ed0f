//! Pure decisions on single packets: which entry, what is rewritten, what is cut.

pub mod decide;
pub mod fragment;
pub mod loop_guard;
pub mod reason;
pub mod rewrite;
pub mod segment;

pub use decide::{Decision, NotData, decide, look_up};
pub use loop_guard::LoopGuard;
pub use reason::DropReason;
