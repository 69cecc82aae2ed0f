//! The state of the server as data, and its changes, which a store keeps. Pure.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::mnat::Channel;
use crate::mnat::messages::Subscription;

/// A watcher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredWatcher {
    /// The watcher id.
    pub id: String,
    /// The identity that requested the id: the subject of its client certificate, in DER.
    pub identity: Option<Vec<u8>>,
    /// The joins of an egress.
    pub joined: Option<Vec<Subscription>>,
    /// The sources that an ingress watches.
    pub monitors: Option<Vec<IpNet>>,
}

/// The assignment of a local channel to a global one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredMapping {
    /// The number of the mapping.
    pub id: u64,
    /// The global channel.
    pub global: Channel,
    /// The local channel.
    pub local: Channel,
}

/// A local channel that no other global channel may have yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredHold {
    /// The local channel.
    pub local: Channel,
    /// The global channel that had it.
    pub global: Channel,
}

/// The state that outlives the process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredServer {
    /// All watchers.
    pub watchers: Vec<StoredWatcher>,
    /// All assignments.
    pub mappings: Vec<StoredMapping>,
    /// All holds.
    pub holds: Vec<StoredHold>,
}

/// A change of the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreChange {
    /// Adds or replaces a watcher.
    PutWatcher(StoredWatcher),
    /// Removes the watcher with this id.
    RemoveWatcher(String),
    /// Adds an assignment. Both channels have no other one.
    PutMapping(StoredMapping),
    /// Removes an assignment.
    RemoveMapping(StoredMapping),
    /// Adds a hold.
    PutHold(StoredHold),
    /// Removes a hold.
    RemoveHold(StoredHold),
}

/// Changes that take effect together or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// The number of the transaction. Numbers ascend by one.
    pub sequence: u64,
    /// The changes, in order.
    pub changes: Vec<StoreChange>,
}
