//! One record received from a host, and the checks against the proxy's configuration.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::model::{Group, Source};
use crate::wire::membership_message::{Generation, RecordType};

use super::config::DownstreamConfig;
use super::quota::SenderStatus;
use super::refusal::MembershipRefusal;

/// One group record of a host. Reports and leaves of older generations are handled as records
/// without sources (RFC 9776 section 7.3.2).
pub(super) struct ReceivedRecord<'a> {
    pub(super) sender: IpAddr,
    pub(super) sender_status: SenderStatus,
    pub(super) generation: Generation,
    pub(super) group: Group,
    pub(super) record_type: RecordType,
    pub(super) sources: &'a [Source],
}

impl ReceivedRecord<'_> {
    /// Returns true if the record sets the filter mode of its sender to EXCLUDE.
    pub(super) fn is_exclude(&self) -> bool {
        use RecordType::{ChangeToExclude, ModeIsExclude};
        matches!(self.record_type, ModeIsExclude | ChangeToExclude)
    }

    /// Checks whether the group can be proxied.
    ///
    /// # Errors
    /// The reason to refuse the record.
    pub(super) fn check_group(&self, config: &DownstreamConfig) -> Result<(), MembershipRefusal> {
        let group = self.group;
        let is_any_source = self.is_exclude() || self.generation < Generation::Three;
        if !config.protocol.is_family_of(group.addr()) {
            Err(MembershipRefusal::OtherFamily)
        } else if group.is_link_local() {
            Err(MembershipRefusal::LinkLocalGroup)
        } else if !config.rule.accepts_group(group) {
            Err(MembershipRefusal::GroupDenied)
        } else if group.is_source_specific() && is_any_source && !config.rule.any_source_in_ssm {
            Err(MembershipRefusal::AnySourceInSsm)
        } else {
            Ok(())
        }
    }

    /// Returns the sources of the record without the refused ones. Calls `refuse` with the
    /// reason of each refusal.
    pub(super) fn accepted_sources(
        &self,
        config: &DownstreamConfig,
        refuse: &mut impl FnMut(MembershipRefusal),
    ) -> BTreeSet<Source> {
        use RecordType::{AllowNewSources, ChangeToInclude, ModeIsInclude};
        // The access lists apply only to sources that the host requests.
        let requests_sources = matches!(
            self.record_type,
            ModeIsInclude | ChangeToInclude | AllowNewSources
        );
        let mut accepted = BTreeSet::new();
        for source in self.sources {
            if !config.protocol.is_family_of(source.addr()) {
                refuse(MembershipRefusal::OtherFamily);
            } else if requests_sources && !config.rule.accepts_source(*source) {
                refuse(MembershipRefusal::SourceDenied);
            } else {
                accepted.insert(*source);
            }
        }
        accepted
    }
}
