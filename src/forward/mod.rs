//! Pure decisions on single packets: which routes forward it, how it is translated, fragmented and
//! segmented.

pub mod decide;
mod egress_check;
pub mod finish;
pub mod fragment;
pub mod loop_guard;
mod not_data;
pub mod reason;
pub mod segment;
mod trace;
pub mod translate;
mod upper;

pub use decide::{Arrival, Decision, Variant, decide, look_up, resolve, ways};
pub use egress_check::egress_check;
pub use loop_guard::LoopGuard;
pub use not_data::NotData;
pub use reason::DropReason;
pub use trace::{NoTrace, Trace, TraceStep, Tracer};
