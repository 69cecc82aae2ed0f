//! The reports of the data threads about a stream: copies of what they know.

use super::analyzer::Examined;
use super::loss_counts::LossCount;
use super::stream_id::StreamId;
use crate::api::streams::{StreamHealth, StreamLoss};
use crate::model::{InterfaceId, MonitorKind};
use crate::table::flows::FlowKey;

/// What the actor knows of a stream that is reported.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IngressNames {
    /// The ingress.
    pub iif: String,
    /// The route or proxy that forwards the stream.
    pub route: Option<String>,
}

/// A stream as it arrives.
#[derive(Debug, Clone)]
pub struct IngressReport {
    /// Its identity.
    pub id: StreamId,
    /// Source and group.
    pub key: FlowKey,
    /// The ingress.
    pub interface: InterfaceId,
    /// The name of the ingress, and of the route.
    pub names: IngressNames,
    /// How it is monitored.
    pub monitor: MonitorKind,
    /// Time of its first packet, in milliseconds of the clock of the flows.
    pub began_ms: u64,
    /// Milliseconds since its last packet, at the time of the report.
    pub idle_ms: u64,
    /// What its packets tell.
    pub examined: Examined,
    /// What was lost before it was handed to an egress.
    pub lost: Vec<LossCount>,
    /// Packets of any stream that the kernel dropped on the ingress since this one began.
    pub socket_lost: StreamLoss,
}

/// A stream as one forwarder sends it.
#[derive(Debug, Clone)]
pub struct EgressReport {
    /// Its identity.
    pub id: StreamId,
    /// The egress.
    pub egress: InterfaceId,
    /// The name of the egress.
    pub name: String,
    /// What its packets tell.
    pub health: StreamHealth,
    /// What was lost on the egress.
    pub lost: Vec<LossCount>,
}
