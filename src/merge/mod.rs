//! The merge of two paths of one stream (SMPTE ST 2022-7 class): each packet once and in order,
//! whatever one of the paths loses.
//!
//! Pure: times are arguments. They are the receive times of the kernel, so a stall of the process
//! does not look like a silent path.
//!
//! A packet is passed on at once unless an earlier number is missing. It is held while a path may
//! still bring the missing packet:
//! - until both paths have passed the missing number, where no path reorders;
//! - where a path reorders, longer by the largest delay of a reordered packet in the last seconds;
//! - at most for the window.
//!
//! A path that has brought no packet for a second is not waited for. In the first two seconds of a
//! stream, the window stands for the delays that are not known yet.
//!
//! Where a packet has no number, and where `by` is the payload, packets are compared by a
//! fingerprint of their payload: the first of two copies is passed on, and nothing is held.

mod delay;
mod fingerprint;
mod held;
mod merger;
mod packet;
mod sequence;
mod shared;
mod statistics;
mod step;
mod stream;
mod window;

#[cfg(test)]
mod tests;

pub use held::HeldPacket;
pub use merger::{MergeOutcome, Merger};
pub use packet::MergePacket;
pub use shared::{Merges, SharedMerge};
pub use statistics::MergeStatistics;
pub use step::Step;
