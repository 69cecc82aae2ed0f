//! What a router has learned from the network, and a new process needs before hosts report again.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::PoisonError;

use serde::{Deserialize, Serialize};

use crate::actors::RouterContext;
use crate::model::{Group, InterfaceId, Source, SourceFilter};
use crate::store::Records;

/// The memberships of hosts behind proxies, as routing has them, and the records of the store. The
/// membership actor of the new process continues with those when it starts, which is after the
/// hand-over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LearnedState {
    memberships: BTreeSet<LearnedMembership>,
    /// What the store has: timers, queriers, and the mappings of multicast NAT.
    #[serde(default)]
    records: Records,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct LearnedMembership {
    interface: u32,
    group: IpAddr,
    /// Whether `sources` are excluded.
    exclude: bool,
    sources: Vec<IpAddr>,
}

impl LearnedState {
    /// Returns what this process has learned.
    pub(super) fn collect(context: &RouterContext) -> Self {
        let database = context.membership_database.lock();
        let database = database.unwrap_or_else(PoisonError::into_inner);
        let memberships = database.memberships().map(|(index, group, filter)| {
            let (exclude, sources) = match filter {
                SourceFilter::Include(sources) => (false, sources),
                SourceFilter::Exclude(sources) => (true, sources),
            };
            LearnedMembership {
                interface: index.get(),
                group: group.addr(),
                exclude,
                sources: sources.iter().map(|source| source.addr()).collect(),
            }
        });
        Self {
            memberships: memberships.collect(),
            records: context.store.records(),
        }
    }

    /// Adds the memberships to those of this process. They take effect with the next snapshot.
    pub(super) fn restore(&self, context: &RouterContext) {
        context.store.replace(self.records.clone());
        let database = context.membership_database.lock();
        let mut database = database.unwrap_or_else(PoisonError::into_inner);
        for membership in &self.memberships {
            if let Some((index, group, filter)) = membership.parts() {
                database.set(index, group, filter);
            }
        }
    }

    /// Ends the memberships that are not in `newer`, and adds those that are.
    pub(super) fn update(&self, newer: &Self, context: &RouterContext) {
        {
            let database = context.membership_database.lock();
            let mut database = database.unwrap_or_else(PoisonError::into_inner);
            for ended in self.memberships.difference(&newer.memberships) {
                if let Some((index, group, _)) = ended.parts() {
                    database.set(index, group, SourceFilter::none());
                }
            }
        }
        newer.restore(context);
    }
}

impl LearnedMembership {
    /// Returns interface, group and filter; `None` if one of them is invalid.
    fn parts(&self) -> Option<(InterfaceId, Group, SourceFilter)> {
        let sources = self.sources.iter().map(|source| Source::new(*source));
        let sources = sources.collect::<Result<_, _>>().ok()?;
        let filter = match self.exclude {
            true => SourceFilter::Exclude(sources),
            false => SourceFilter::Include(sources),
        };
        let index = InterfaceId::new(self.interface)?;
        Some((index, Group::new(self.group).ok()?, filter))
    }
}
