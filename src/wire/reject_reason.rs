//! The reasons for which a received IGMP, MLD or multicast router discovery message is rejected.
//!
//! Each is a value of the `reason` label of `mcastor_membership_refused_total`.

use super::WireError;
use super::reason_enum::reason_enum;

reason_enum! {
    /// Why a received IGMP, MLD or multicast router discovery message is rejected.
    enum RejectReason;
    /// The packet is shorter than its headers say, or than its fixed fields.
    Truncated = "truncated",
    /// A header field contradicts another header field.
    Malformed = "malformed",
    /// The packet is a fragment; these messages must not be fragmented.
    Fragment = "fragment",
    /// The checksum of the IPv4 header or of the message is wrong.
    Checksum = "bad_checksum",
    /// The TTL or hop limit is not 1, so the packet may come from another link.
    Ttl = "ttl",
    /// The packet has no Router Alert option.
    NoRouterAlert = "no_router_alert",
    /// The IPv4 source address is in no subnet of the interface.
    OffLink = "off_link",
    /// The IPv6 source address is not link-local.
    NotLinkLocal = "not_link_local",
    /// The source address is multicast, loopback or broadcast.
    BadSource = "bad_source",
    /// The destination address is unspecified, loopback, broadcast or of interface-local scope.
    BadDestination = "bad_destination",
    /// The message type is not one that this parser handles.
    UnknownType = "unknown_type",
    /// The length of the query belongs to no protocol version.
    QueryLength = "query_length",
    /// The message announces more records, sources or auxiliary data than it contains.
    CountMismatch = "lying_count",
    /// The group address is not a multicast address.
    NotAGroup = "not_a_group",
    /// The query lists sources without a group, or only addresses that cannot be a source.
    NotASource = "not_a_source",
}

impl From<WireError> for RejectReason {
    fn from(e: WireError) -> Self {
        match e {
            WireError::Truncated { .. } => Self::Truncated,
            WireError::Malformed(_) => Self::Malformed,
            WireError::HeaderChecksum => Self::Checksum,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn labels_are_unique_and_discriminants_match_positions() {
        let labels: HashSet<_> = RejectReason::ALL.iter().map(|r| r.label()).collect();
        assert_eq!(labels.len(), RejectReason::COUNT);
        for (i, reason) in RejectReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert!(reason.meaning().ends_with('.'));
        }
    }
}
