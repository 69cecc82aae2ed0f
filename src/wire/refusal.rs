//! Every way a message about memberships can be refused. Each is the `reason` label of
//! `mcastor_membership_refused_total` and a line in docs/metrics.md.

use super::WireError;
use super::reasons::reasons;

reasons! {
    /// Why a message between hosts and routers was not listened to.
    enum Refusal;
    /// It ends before its headers say so, or before its fixed fields do.
    Truncated = "truncated",
    /// A header field contradicts another.
    Malformed = "malformed",
    /// It is a fragment; these messages are never fragmented.
    Fragment = "fragment",
    /// The checksum of its IPv4 header or of the message is wrong.
    Checksum = "bad_checksum",
    /// Its TTL or hop limit is not 1, so it may come from beyond the link.
    Ttl = "ttl",
    /// It bears no Router Alert option.
    NoRouterAlert = "no_router_alert",
    /// Its IPv4 source is in no subnet of the interface.
    OffLink = "off_link",
    /// Its IPv6 source is not link-local.
    NotLinkLocal = "not_link_local",
    /// Its source is multicast, loopback or broadcast.
    BadSource = "bad_source",
    /// Its destination is unspecified, loopback, broadcast or of interface-local scope.
    BadDestination = "bad_destination",
    /// It is of a type that says nothing about memberships.
    UnknownType = "unknown_type",
    /// It is a query of a length that belongs to no version.
    QueryLength = "query_length",
    /// It speaks of more records, sources or auxiliary data than it holds.
    LyingCount = "lying_count",
    /// The group it speaks of is no multicast address.
    NotAGroup = "not_a_group",
    /// It asks for sources of no group, or only for addresses that are no sources.
    NotASource = "not_a_source",
}

impl From<WireError> for Refusal {
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
    fn labels_are_unique_and_discriminants_are_indexes() {
        let labels: HashSet<_> = Refusal::ALL.iter().map(|r| r.label()).collect();
        assert_eq!(labels.len(), Refusal::COUNT);
        for (i, reason) in Refusal::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert!(reason.meaning().ends_with('.'));
        }
    }
}
