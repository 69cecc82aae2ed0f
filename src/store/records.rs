//! The records of the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::membership::SavedInterface;
use crate::metrics::catalog::CounterValue;
use crate::mnat::SavedMnat;
use crate::model::IfName;

/// Everything that outlives the process. Clones share the data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Records {
    /// Querier and memberships by downstream interface.
    pub interfaces: BTreeMap<IfName, Arc<SavedInterface>>,
    /// Multicast NAT.
    pub mnat: Option<Arc<SavedMnat>>,
    /// The counters of metrics.
    #[serde(default)]
    pub counters: Arc<Vec<CounterValue>>,
    /// The packets that each ingress interface had received.
    #[serde(default)]
    pub received: Arc<BTreeMap<IfName, u64>>,
}

impl Records {
    /// Forgets that this router was the querier of any link.
    pub fn forget_own_queries(&mut self) {
        for interface in self.interfaces.values_mut() {
            Arc::make_mut(interface).forget_own_queries();
        }
    }

    /// Returns the number of groups, over all interfaces.
    pub fn group_count(&self) -> usize {
        self.interfaces.values().map(|i| i.groups().count()).sum()
    }
}
