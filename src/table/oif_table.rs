//! The OIF table: the downstream interfaces that have members, per group and source.

use std::net::IpAddr;
use std::sync::Arc;

use super::ids::DownstreamId;
use super::oif_sets::{OifSetId, OifSets};
use super::shared_map::SharedMap;

/// The downstream interfaces with members of a group, and with members that request one source of
/// it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupOifs {
    /// Interfaces with members that request the source.
    pub source_oifs: OifSetId,
    /// Interfaces with members of the group, whichever sources they request.
    pub group_oifs: OifSetId,
}

/// The downstream interfaces with members of one group.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct GroupInterest {
    /// Interfaces with members of the group, whichever sources they request.
    pub(super) group_oifs: OifSetId,
    /// Interfaces whose members request the sources that are not in `by_source`.
    pub(super) default_oifs: OifSetId,
    /// Sources whose set of interfaces differs from `default_oifs`, in rising order.
    pub(super) by_source: Box<[(IpAddr, OifSetId)]>,
}

impl GroupInterest {
    /// Returns all sets that the group uses. A set is repeated as often as it is used.
    pub(super) fn sets(&self) -> impl Iterator<Item = OifSetId> {
        let by_source = self.by_source.iter().map(|(_, set)| *set);
        let all = [self.group_oifs, self.default_oifs];
        all.into_iter().chain(by_source)
    }
}

/// For each group, the downstream interfaces that have members of it. The data path reads it; only
/// [`MembershipDatabase`](super::MembershipDatabase) changes it. A clone shares everything.
#[derive(Debug, Clone, Default)]
pub struct OifTable {
    groups: SharedMap<IpAddr, Arc<GroupInterest>>,
    sets: OifSets,
}

impl OifTable {
    /// Returns the interfaces with members for packets from `source` to `group`; `None` if the
    /// group has no members.
    pub fn find(&self, source: IpAddr, group: IpAddr) -> Option<GroupOifs> {
        let interest = self.interest(group)?;
        let by_source = &interest.by_source;
        let position = by_source.binary_search_by_key(&source, |(s, _)| *s);
        Some(GroupOifs {
            source_oifs: position.map_or(interest.default_oifs, |at| by_source[at].1),
            group_oifs: interest.group_oifs,
        })
    }

    /// Returns the downstream interfaces of a set, in rising order.
    #[inline]
    pub fn set(&self, id: OifSetId) -> &[DownstreamId] {
        self.sets.get(id)
    }

    pub(super) fn interest(&self, group: IpAddr) -> Option<&GroupInterest> {
        self.groups.get(&group).map(Arc::as_ref)
    }

    /// Replaces the interest in a group; `None` removes it. Returns the previous interest.
    pub(super) fn replace(
        &mut self,
        group: IpAddr,
        interest: Option<GroupInterest>,
    ) -> Option<Arc<GroupInterest>> {
        self.groups.replace(group, interest.map(Arc::new))
    }

    /// Replaces the sets that the groups refer to.
    pub(super) fn set_sets(&mut self, sets: OifSets) {
        self.sets = sets;
    }
}
