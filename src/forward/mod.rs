//! Processing of a single packet without I/O: the forwarding decision, translation, fragmentation
//! and segmentation.

pub mod decide;
pub mod drop_history;
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

pub use decide::{
    Arrival, Decision, OffloadedFlow, Variant, adopt_offloaded, decide, end_offload, entry_paths,
    look_up, may_offload, monitor_of, note_offloaded, observe, resolve,
};
pub use drop_history::{DropHistory, DropKey};
pub use egress_check::{bandwidth_check, egress_check};
pub use loop_guard::LoopGuard;
pub use not_data::NotData;
pub use reason::DropReason;
pub use trace::{NoTrace, Trace, TraceStep, Tracer};
