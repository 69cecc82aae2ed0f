//! Every way a membership message can be refused, wholly or in part. Each is the `reason` label
//! of a counter.

use crate::wire::reasons::reasons;

reasons! {
    /// Why a membership message, or a part of one, was not taken.
    enum MembershipRefusal;
    /// More reports a second than the limit allows, and its sender is a known member that has
    /// had its share.
    MemberRate = "member_rate",
    /// More reports a second than the limit allows, and its sender is not known as a member.
    StrangerRate = "stranger_rate",
    /// As many groups are known on the interface as the limit allows, and this is another.
    GroupLimit = "group_limit",
    /// As many sources of the group are known as the limit allows, and this is another.
    SourceLimit = "source_limit",
    /// The host is a member, but not tracked: as many are tracked as the limit allows.
    HostLimit = "host_limit",
    /// The group is source-specific, and the message asks for every source (RFC 4604).
    AnySourceInSsm = "any_source_in_ssm",
    /// The lists of the proxy do not take the group.
    GroupDenied = "group_denied",
    /// The lists of the proxy do not take the source.
    SourceDenied = "source_denied",
    /// The group is of link-local scope and never proxied.
    LinkLocalGroup = "link_local_group",
    /// The group, the source or the sender is of the other IP version.
    OtherFamily = "other_family",
    /// The sender of an MLD message has no link-local address.
    NotLinkLocalSender = "not_link_local_sender",
    /// A query to neither all hosts nor the group it asks for: it elects nobody.
    QueryDestination = "query_destination",
    /// A query from the unspecified address: it elects nobody.
    QueryUnspecified = "query_unspecified",
    /// A query from our own address that is not ours.
    OwnAddress = "own_address",
}

impl std::fmt::Display for MembershipRefusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.label())
    }
}

/// How often each reason came since it was last asked.
#[derive(Debug, Clone, Default)]
pub(super) struct RefusalCounts([u64; MembershipRefusal::COUNT]);

impl RefusalCounts {
    pub(super) fn count(&mut self, reason: MembershipRefusal) {
        let n = &mut self.0[reason as usize];
        *n = n.saturating_add(1);
    }

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
    fn labels_are_unique_and_numbers_are_positions() {
        let labels: HashSet<_> = MembershipRefusal::ALL.iter().map(|r| r.label()).collect();
        assert_eq!(labels.len(), MembershipRefusal::COUNT);
        for (i, reason) in MembershipRefusal::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert!(reason.meaning().ends_with('.'));
        }
    }

    #[test]
    fn refusals_are_told_once() {
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
