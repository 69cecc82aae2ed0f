//! A flow and its key.

use std::net::IpAddr;

use super::EntryId;
use super::oif_sets::OifSetId;
use super::stream_key::StreamKey;
use crate::model::{InterfaceId, MonitorKind};

/// Source and group of a flow.
pub type FlowKey = (IpAddr, IpAddr);

/// The static route and the proxies that forward the packets of a flow, according to one forwarding
/// table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// The static route.
    pub entry: Option<EntryId>,
    /// The proxies, one bit each: their positions in [`Ingress::proxies`](super::Ingress).
    pub proxies: u64,
    /// The downstream interfaces with members that the source is forwarded to.
    pub source_oifs: OifSetId,
    /// The key of the stream, if it is forwarded from one ingress at a time.
    pub stream: Option<StreamKey>,
    /// Whether a higher TTL makes this ingress the active one.
    pub outranks: bool,
    /// The other ingress to which the source is attached.
    pub source_link: Option<InterfaceId>,
    /// Whether the stream is monitored, and as what.
    pub monitor: Option<MonitorKind>,
}

/// One flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// The route and proxies that forward it, according to the forwarding table of `generation`.
    pub verdicts: Verdicts,
    /// The generation of the forwarding table from which `verdicts` are.
    pub generation: u64,
    /// Packets received.
    pub packets: u64,
    /// IP bytes received.
    pub bytes: u64,
    /// Time of its first packet, in milliseconds of a monotonic clock.
    pub began_ms: u64,
    /// Time of its last packet, by the same clock.
    pub seen_ms: u64,
}

/// A flow with its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowRecord {
    /// Source and group.
    pub key: FlowKey,
    /// The flow.
    pub flow: Flow,
}

/// Selects flows by address. Without addresses it matches every flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlowFilter {
    /// Only flows from this source.
    pub source: Option<IpAddr>,
    /// Only flows to this group.
    pub group: Option<IpAddr>,
}

impl FlowFilter {
    /// Returns whether a flow matches.
    pub fn matches(&self, (source, group): &FlowKey) -> bool {
        self.source.is_none_or(|s| s == *source) && self.group.is_none_or(|g| g == *group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_compares_the_given_addresses() {
        let (source, group): FlowKey = ([10, 0, 0, 1].into(), [225, 1, 2, 3].into());
        let other: IpAddr = [10, 0, 0, 2].into();
        for (filter, matches) in [
            ((None, None), true),
            ((Some(source), None), true),
            ((None, Some(group)), true),
            ((Some(source), Some(group)), true),
            ((Some(other), Some(group)), false),
            ((Some(source), Some(other)), false),
            ((None, Some(source)), false),
        ] {
            let filter = FlowFilter {
                source: filter.0,
                group: filter.1,
            };
            assert_eq!(filter.matches(&(source, group)), matches, "{filter:?}");
        }
    }
}
