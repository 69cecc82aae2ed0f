//! Reasons to refuse a membership message or a part of it. Each is the `reason` label of a
//! counter.

use crate::wire::reason_enum::reason_enum;

reason_enum! {
    /// Why a membership message, or a part of one, was refused.
    enum MembershipRefusal;
    /// The report rate limit is exceeded, and the sender, a known member, has used up its share.
    MemberRate = "member_rate",
    /// The report rate limit is exceeded, and the sender is not known as a member.
    UnknownSenderRate = "stranger_rate",
    /// More router solicitations arrive per second than RFC 4286 section 3.1.6 allows.
    SolicitationRate = "solicitation_rate",
    /// The interface has as many groups as the limit allows, and this is another group.
    GroupLimit = "group_limit",
    /// The group has as many sources as the limit allows, and this is another source.
    SourceLimit = "source_limit",
    /// The host is a member but is not tracked: the limit of tracked hosts is reached.
    HostLimit = "host_limit",
    /// The group is source-specific, but the message requests all sources (RFC 4604).
    AnySourceInSsm = "any_source_in_ssm",
    /// This host sent the report. Packets that it sends on the interface do not return to it.
    OwnHost = "own_host",
    /// The access lists of the proxy deny the group.
    GroupDenied = "group_denied",
    /// The access lists of the proxy deny the source.
    SourceDenied = "source_denied",
    /// The group has link-local scope and is never proxied.
    LinkLocalGroup = "link_local_group",
    /// The group, the source or the sender has an address of the other IP version.
    OtherFamily = "other_family",
    /// The sender of an MLD message has no link-local address.
    NotLinkLocalSender = "not_link_local_sender",
    /// The query was sent neither to all hosts nor to its group, so its sender is not elected.
    QueryDestination = "query_destination",
    /// The query comes from the unspecified address, so its sender is not elected.
    QueryUnspecified = "query_unspecified",
    /// The query comes from this router's address, but this router did not send it.
    OwnAddress = "own_address",
}

impl std::fmt::Display for MembershipRefusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.label())
    }
}

/// The number of refusals per reason since they were last collected.
#[derive(Debug, Clone, Default)]
pub(super) struct RefusalCounts([u64; MembershipRefusal::COUNT]);

impl RefusalCounts {
    /// Counts one refusal.
    pub(super) fn count(&mut self, reason: MembershipRefusal) {
        let n = &mut self.0[reason as usize];
        *n = n.saturating_add(1);
    }

    /// Returns the counts that are not zero, and resets all of them.
    pub(super) fn take(&mut self) -> impl Iterator<Item = (MembershipRefusal, u64)> + use<> {
        let counts = std::mem::take(&mut self.0);
        let all = MembershipRefusal::ALL.iter().copied().zip(counts);
        all.filter(|(_, n)| *n > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn labels_are_unique_and_discriminants_are_indexes() {
        let labels: HashSet<_> = MembershipRefusal::ALL.iter().map(|r| r.label()).collect();
        assert_eq!(labels.len(), MembershipRefusal::COUNT);
        for (i, reason) in MembershipRefusal::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert!(reason.meaning().ends_with('.'));
        }
    }

    #[test]
    fn take_resets_the_counts() {
        let mut refusals = RefusalCounts::default();
        refusals.count(MembershipRefusal::GroupLimit);
        refusals.count(MembershipRefusal::GroupLimit);
        assert_eq!(
            refusals.take().collect::<Vec<_>>(),
            [(MembershipRefusal::GroupLimit, 2)]
        );
        assert_eq!(refusals.take().count(), 0);
    }
}
