//! The hand-over of flows from this process to a plane that forwards by itself.
//!
//! A flow is handed over only when this process has sent every packet of it that it captured.
//! Otherwise the next packets, which the plane forwards at once, would overtake them. So the
//! interface actor looks for moments in which its capture is empty and its forwarders have sent
//! everything:
//!
//! ```text
//! offer(new flows)          the plane prepares them, in its own time
//! read_rest() -> Packets    the actor forwards them
//! read_rest() -> Empty      if no forwarder has packets either:
//!     advance()             the plane may take the prepared flows from here on
//! ```

use std::io;
use std::time::Instant;

use super::Batch;
use crate::table::flows::FlowKey;

/// The packets that wait in a capture.
pub enum Rest {
    /// These, and maybe more.
    Packets(Batch),
    /// None.
    Empty,
    /// The capture cannot tell.
    Unknown,
}

/// What the plane forwarded of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForwardedByPlane {
    /// The flow.
    pub flow: FlowKey,
    /// Packets received since the last report.
    pub packets: u64,
    /// Their IP bytes.
    pub bytes: u64,
    /// Whether the plane has forwarded it since before this process started.
    pub is_new: bool,
    /// Whether the plane forwards its packets still.
    pub continues: bool,
}

/// The hand-over of the flows of one interface.
pub trait HandOver {
    /// Offers flows that this process has begun to forward, or forwards by a new forwarding table.
    fn offer(&mut self, flows: Vec<FlowKey>);

    /// Returns whether flows wait to be handed over: call [`HandOver::read_rest`] again within
    /// milliseconds.
    fn is_pending(&mut self) -> bool;

    /// Reads what waits in the capture, without waiting for more.
    ///
    /// # Errors
    /// The capture has failed.
    fn read_rest(&mut self) -> io::Result<Rest>;

    /// Hands flows over for which `may_go` is true, after [`Rest::Empty`], while no forwarder has
    /// packets of the interface.
    fn advance(&mut self, now: Instant, may_go: &dyn Fn(&FlowKey) -> bool);

    /// Reports the flows that the plane forwards, or has forwarded since the last call: appends to
    /// `forwarded`. If there are many, it reports some of them at a time.
    fn report(&mut self, forwarded: &mut Vec<ForwardedByPlane>);

    /// Takes all flows back, and hands no more over, as long as `paused` is set.
    fn set_paused(&mut self, paused: bool);

    /// Takes a flow back: this process forwards its next packets.
    fn withdraw(&mut self, flow: &FlowKey);

    /// Takes back a flow that has ended.
    fn release(&mut self, flow: &FlowKey);
}
