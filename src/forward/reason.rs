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
    /// Too many packets of new flows, or of flows that no route takes, arrived on the interface
    /// within a second.
    UnknownFlood = "unknown_flood",
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
    /// Its route merges two paths, and the packet was forwarded already.
    MergeDuplicate = "merge_duplicate",
    /// Its route merges two paths, and later packets of the stream were forwarded already.
    MergeLate = "merge_late",
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
    /// Its stream would exceed the bandwidth limit of the egress, or of the gateway on which it
    /// arrives.
    Bandwidth = "bandwidth",
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
    /// Returns what a user can do, as docs/metrics.md says it.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::NoRoute => {
                "Often nothing: the capture takes all multicast, including groups that are not \
                 routed here (mDNS, SSDP). Otherwise compare group and source with `mcastor \
                 show routes`."
            }
            Self::UnknownFlood => {
                "Look for the sender with tcpdump. If the streams are wanted, raise \
                 `plane.unknown_packets`; see ebpf.md."
            }
            Self::SourceExcepted => "Nothing, if that sender is excluded on purpose.",
            Self::SourceNotJoined => {
                "Nothing. If a receiver misses it, `mcastor show groups` lists the sources that \
                 the receiver joined."
            }
            Self::Standby => {
                "Nothing, if the interfaces are redundant: this one takes over when the other \
                 has been silent for `takeover`. If the copies are all wanted, set `ingress = \
                 \"all\"` in the route. See redundancy.md."
            }
            Self::OtherForwarder => {
                "Nothing: the hosts receive the packets of the other forwarder. `show flows` \
                 names its address. `redundant = false` in the route forwards in any case."
            }
            Self::TtlExpired => {
                "Raise the TTL at the sender. If you cannot: `ttl = { set = 8 }` or `ttl = \
                 \"keep\"` in the route. Make sure first that there is no loop."
            }
            Self::TtlThreshold => {
                "Nothing, or lower `ttl_threshold`, or raise the TTL at the sender."
            }
            Self::LinkLocal => "Nothing, or `link_local = true` in a route for that group.",
            Self::LinkLocalSource => {
                "Give the sender an address that is valid beyond its link. If you cannot: \
                 `link_local_sources = true` in the route or proxy. Receivers with `rp_filter` \
                 may still refuse the source."
            }
            Self::LinkOnly => {
                "Nothing. If it comes from an unknown sender, look for an attack on the hosts \
                 behind the route."
            }
            Self::NoEgress => {
                "`mcastor show pending`. Forwarding starts when the interface appears."
            }
            Self::Truncated => {
                "Check the sender, or the tunnel it uses. Capture a few packets with tcpdump."
            }
            Self::Malformed => {
                "As for `truncated`. At an egress: a fragment that would end beyond the largest \
                 IP packet; treat it as hostile."
            }
            Self::BadChecksum => "Look for a faulty device or cable on that link.",
            Self::BadSource => {
                "A few are normal: IPv6 hosts send duplicate address detection from `::`. \
                 Otherwise give the sender an address."
            }
            Self::NotMulticast => "Find the sender of unicast IP packets in multicast frames.",
            Self::Loop => {
                "Find the second path between the two networks and close it, or narrow the \
                 route with `source`. If a sender deliberately sends identical packets within \
                 half a second: `loop_guard = false`."
            }
            Self::MergeDuplicate => {
                "Nothing: each packet arrives on two paths and leaves once. See redundancy.md."
            }
            Self::MergeLate => {
                "A few are normal when a stream or a path begins. Otherwise compare the skew that \
                 `mcastor show routes` shows with `window` of the merge, and raise `window`."
            }
            Self::TooBig => {
                "It is IPv6, or IPv4 with DF. Send smaller packets, raise the MTU of the \
                 egress, or set `fragment = \"always\"` in the route (IPv4). The log names the \
                 route and the size."
            }
            Self::GsoUnknown => {
                "Disable segmentation offload at the sender: `ethtool -K DEV \
                 tx-udp-segmentation off gso off`."
            }
            Self::ChecksumUnknown => "`ethtool -K DEV tx off` at the sender, and please report it.",
            Self::TranslateProtocol => {
                "UDP, ICMP echo, GRE and IP in IP can be translated. For other protocols use a \
                 route without `rewrite`."
            }
            Self::TranslateFragment => "Send smaller packets, or UDP with a checksum.",
            Self::TranslateOption => "Nothing: such packets should not be sent.",
            Self::VlanElsewhere => "Nothing. Route from the VLAN interface.",
            Self::Bandwidth => {
                "`mcastor show interfaces` shows the limit and what is used. The stream is \
                 admitted when there is room. Raise `bandwidth`, or end another stream."
            }
            Self::EgressDown => {
                "`ip link`; `mcastor show interfaces`. An egress that is down or has no carrier \
                 drops all its packets."
            }
            Self::EgressBusy => {
                "The link is slower than the stream. Raise `txqueuelen` if only bursts are \
                 lost."
            }
            Self::QueueFull => "As for `egress_busy`, or there is too little CPU.",
            Self::SendFailed => "Read the log: one line a minute for each egress and reason.",
        }
    }

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
