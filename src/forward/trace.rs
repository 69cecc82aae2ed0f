//! Records why a packet is forwarded or dropped. The data path runs the same code with
//! [`NoTrace`], which compiles to nothing.

use super::{DropReason, NotData};
use crate::table::{EntryId, PathId};
use crate::wire::ip::IpHeader;

/// Receives the steps of a decision.
pub trait Tracer {
    /// Whether the decision must leave the state of the router unchanged.
    const READ_ONLY: bool;

    /// Records a step.
    fn record(&mut self, step: impl FnOnce() -> TraceStep);
}

/// Records nothing: the tracer of the data path.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTrace;

impl Tracer for NoTrace {
    const READ_ONLY: bool = false;

    #[inline(always)]
    fn record(&mut self, _: impl FnOnce() -> TraceStep) {}
}

/// One step of a decision, in the order in which they are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceStep {
    /// A static route matches source and group, but lists the source in `except_sources`.
    SourceExcepted {
        /// The entry of the route.
        entry: EntryId,
    },
    /// The most specific static route that matches.
    RouteMatched {
        /// The entry of the route.
        entry: EntryId,
    },
    /// A proxy forwards the group and the source to members or upstream.
    ProxyMatched {
        /// The entry of the proxy.
        entry: EntryId,
    },
    /// A proxy does not forward the group or the source.
    ProxyRefused {
        /// The entry of the proxy.
        entry: EntryId,
        /// Why.
        reason: DropReason,
    },
    /// A route or proxy that matched does not forward this packet.
    EntryRejected {
        /// The entry of the route or proxy.
        entry: EntryId,
        /// Why.
        reason: DropReason,
    },
    /// A path that the packet would take.
    PathChecked {
        /// The path.
        path: PathId,
        /// TTL or hop limit that the packet leaves with.
        ttl: u8,
        /// The result of [`egress_check`](super::egress_check()).
        result: Result<(), DropReason>,
    },
}

/// A decision with its reasons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// The IP header, if the packet has a valid one.
    pub header: Option<IpHeader>,
    /// The steps, in order.
    pub steps: Vec<TraceStep>,
    /// Whether a route or proxy forwards the packet. The paths in `steps` may still refuse it.
    pub outcome: Result<(), NotData>,
}

/// Records steps in memory.
#[derive(Debug, Default)]
pub(super) struct Recorder(pub(super) Vec<TraceStep>);

impl Tracer for Recorder {
    const READ_ONLY: bool = true;

    fn record(&mut self, step: impl FnOnce() -> TraceStep) {
        self.0.push(step());
    }
}
