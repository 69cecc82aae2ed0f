//! Processing of a batch of packets between capture and transmission. It is the same on every
//! plane.
//!
//! ```text
//!  PacketSource -> Batch -> Switch -> SharedBatch + Slots, a list for each egress -> EgressQueue -> PacketSink
//! ```
//!
//! [`PacketSource`] and [`PacketSink`] are the two ends; a plane implements them
//! ([`crate::planes`]).

pub mod batch;
pub mod capture_handle;
pub mod counts;
pub mod egress;
pub mod hand_over;
mod merging;
pub mod messages;
pub mod packet_trace;
pub mod ports;
pub mod shared_batch;
pub mod switch;
mod translate;

pub use crate::sys::packet::OutPacket;
pub use batch::{Batch, Packet};
pub use capture_handle::{CaptureHandle, CapturePosition, RingHandle};
pub use counts::SwitchCounts;
pub use egress::{EgressQueue, Progress};
pub use messages::{CapturedMessage, Messages};
pub use ports::{PacketSink, PacketSource};
pub use shared_batch::{SharedBatch, Slot};
pub use switch::{Switch, Switched};
