//! The reasons for which packets are dropped. Each is a `reason` label of
//! `mcastor_dropped_packets_total` and a row in docs/metrics.md.

use crate::wire::WireError;
use crate::wire::reason_enum::reason_enum;

reason_enum! {
    /// Why a packet was dropped.
    enum DropReason;
    /// No route of the interface it arrived on takes its source and group, and no host joined the
    /// group.
    NoRoute = "no_route",
    /// Only routes that exclude its source with `except_sources`, or proxies that exclude it, would
    /// have taken it.
    SourceExcepted = "source_excepted",
    /// Hosts downstream joined its group, but not its source.
    SourceNotJoined = "not_wanted",
    /// Its source and group arrive on another interface too, which is the active ingress.
    Standby = "standby",
    /// Another forwarder sends its source and group to the egress, and takes precedence.
    OtherForwarder = "other_forwarder",
    /// It arrived with a TTL or hop limit of 1 or 0, and its route decrements the TTL.
    TtlExpired = "ttl_expired",
    /// It arrived with a TTL that is not above the threshold of the egress.
    TtlThreshold = "ttl_threshold",
    /// Its group has link-local scope, and its route does not have `link_local = true`.
    LinkLocal = "link_local",
    /// Its source is link-local and its group has a wider scope (RFC 4291 section 2.5.6, RFC 3927
    /// section 7), and its route or proxy does not have `link_local_sources = true`.
    LinkLocalSource = "link_local_source",
    /// It is a message of IPv6 neighbour discovery, ICMP router discovery or VRRP, which must not
    /// leave its link.
    LinkOnly = "link_only",
    /// Its route has no egress: none of the interfaces in `to` exists now.
    NoEgress = "no_egress",
    /// It is shorter than its headers say, or the capture buffer was too small.
    Truncated = "truncated",
    /// A header field contradicts another.
    Malformed = "malformed",
    /// Its IPv4 header checksum is wrong.
    BadChecksum = "bad_checksum",
    /// Its source is multicast, unspecified, loopback, or in 0.0.0.0/8 or 240.0.0.0/4.
    BadSource = "bad_source",
    /// Its link-layer address is multicast, but its destination address is not.
    NotMulticast = "not_multicast",
    /// It returned: an identical packet was forwarded less than half a second ago, by a route with
    /// a loop guard.
    Loop = "loop",
    /// It is larger than the MTU of the egress and may not be fragmented.
    TooBig = "too_big",
    /// It is a GSO packet of a kind that cannot be segmented here, or that the kernel cannot
    /// describe.
    GsoUnknown = "gso_unknown",
    /// Its checksum was left to hardware, at an offset outside the packet.
    ChecksumUnknown = "checksum_unknown",
    /// Its route translates, but its protocol cannot be translated.
    TranslateProtocol = "translate_protocol",
    /// Its route translates to the other IP version, and it is a fragment whose new checksum cannot
    /// be computed from the fragment alone.
    TranslateFragment = "translate_fragment",
    /// Its route translates, and its options or extension headers contain a source route.
    TranslateOption = "translate_option",
    /// Its VLAN tag belongs to a VLAN interface, which captures it instead.
    VlanElsewhere = "vlan_elsewhere",
    /// The egress was down, or was removed while the packet waited.
    EgressDown = "egress_down",
    /// The egress accepted no more packets: its device queue or the socket buffer was full.
    EgressBusy = "egress_busy",
    /// Eight batches of the ingress already waited for the egress, or the mailbox of its forwarder
    /// was full.
    QueueFull = "queue_full",
    /// The kernel refused to send it, with an error that the log names.
    SendFailed = "send_failed",
}

impl DropReason {
    /// Returns whether the flow as a whole is not forwarded, because of the routes, the members or
    /// its TTL.
    pub fn concerns_routes(self) -> bool {
        matches!(
            self,
            Self::NoRoute
                | Self::SourceExcepted
                | Self::SourceNotJoined
                | Self::TtlExpired
                | Self::NoEgress
                | Self::LinkLocalSource
        )
    }
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
    fn labels_are_unique_and_discriminants_are_indexes() {
        let labels: HashSet<_> = DropReason::ALL.iter().map(|r| r.label()).collect();
        assert_eq!(labels.len(), DropReason::COUNT);
        for (i, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert!(reason.meaning().ends_with('.'));
        }
    }
}
