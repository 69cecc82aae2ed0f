//! Every way a packet can end here without leaving. Each is the `reason` label of
//! `mcastor_dropped_packets_total` and a line in docs/metrics.md.

use crate::wire::WireError;
use crate::wire::reason_enum::reason_enum;

reason_enum! {
    /// Why a packet was dropped.
    enum DropReason;
    /// No rule of the interface it arrived on takes its source and group, and nobody asked for the group.
    NoRoute = "no_route",
    /// Only rules that name its source in `except_sources`, or proxies that leave it out, would have taken it.
    SourceExcepted = "source_excepted",
    /// Its group was asked for downstream, its source was not.
    NotWanted = "not_wanted",
    /// Another upstream interface of the proxy feeds this stream now.
    Standby = "standby",
    /// It arrived with a TTL or hop limit of 1 or 0 and its route decrements.
    TtlExpired = "ttl_expired",
    /// It arrived with a TTL no higher than the threshold of the egress.
    TtlThreshold = "ttl_threshold",
    /// Its group is of link-local scope and its route does not say `link_local = true`.
    LinkLocal = "link_local",
    /// Its route matched, but none of the interfaces in `to` exists now.
    NoEgress = "no_egress",
    /// It ends before its headers say so, or the capture buffer was too small.
    Truncated = "truncated",
    /// A header field contradicts another.
    Malformed = "malformed",
    /// Its IPv4 header checksum is wrong.
    BadChecksum = "bad_checksum",
    /// Its source is multicast, unspecified, loopback or broadcast.
    BadSource = "bad_source",
    /// Its destination is no multicast group, although its link-layer address is.
    NotMulticast = "not_multicast",
    /// It came back: it was forwarded a moment ago by a route whose TTL policy ends no loop.
    Loop = "loop",
    /// It is larger than the MTU of the egress and may not be fragmented.
    TooBig = "too_big",
    /// It is several packets in one, cut by rules the kernel does not tell.
    GsoUnknown = "gso_unknown",
    /// Its checksum was left to hardware, at a place outside the packet.
    ChecksumUnknown = "checksum_unknown",
    /// Its route rewrites, and how to do so for its protocol is not known.
    TranslateProtocol = "translate_protocol",
    /// Its route rewrites to the other IP version, and it is a fragment whose checksum cannot be
    /// told from itself.
    TranslateFragment = "translate_fragment",
    /// Its route rewrites, and its options or extension headers name a way through other routers.
    TranslateOption = "translate_option",
    /// Its VLAN tag belongs to a VLAN interface, which takes it instead.
    VlanElsewhere = "vlan_elsewhere",
    /// The egress went down or away while it waited.
    EgressDown = "egress_down",
    /// The egress took no more: its device queue or our socket buffer was full.
    EgressBusy = "egress_busy",
    /// The forwarder of the egress was too far behind.
    QueueFull = "queue_full",
    /// The kernel refused to send it for another reason, which the log names.
    SendFailed = "send_failed",
}

impl From<WireError> for DropReason {
    fn from(e: WireError) -> Self {
        match e {
            WireError::Truncated { .. } => Self::Truncated,
            WireError::Malformed(_) => Self::Malformed,
            WireError::HeaderChecksum => Self::BadChecksum,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn labels_are_unique_and_numbers_are_positions() {
        let labels: HashSet<_> = DropReason::ALL.iter().map(|r| r.label()).collect();
        assert_eq!(labels.len(), DropReason::COUNT);
        for (i, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert!(reason.meaning().ends_with('.'));
        }
    }
}
