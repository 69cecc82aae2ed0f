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
    /// In a shared store, the revision at which the watcher was read; 0 for a new watcher.
    #[serde(skip)]
    pub revision: u64,
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

/// A change of the state. The conditions are those of a shared store, where another server may have
/// changed the same. A change whose condition is not met has no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreChange {
    /// Adds or replaces a watcher, if the shared store still has the revision that it names.
    PutWatcher(StoredWatcher),
    /// Removes the watcher with this id.
    RemoveWatcher(String),
    /// Adds an assignment, if neither channel has another one.
    PutMapping(StoredMapping),
    /// Makes this assignment a hold, if it is still the same.
    HoldMapping(StoredMapping),
    /// Makes a hold an assignment again, if these channels still belong together.
    ResumeMapping(StoredMapping),
    /// Removes a hold.
    RemoveHold(StoredHold),
}

/// Changes that are committed together. In a store of one server they take effect together or not
/// at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// The number of the transaction. Numbers ascend.
    pub sequence: u64,
    /// The changes, in order.
    pub changes: Vec<StoreChange>,
}

/// What happened in a shared store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SharedEvent {
    /// A watcher was added or replaced; by this transaction, if this server did it.
    Watcher(StoredWatcher, Option<u64>),
    /// A watcher expired.
    WatcherExpired(String),
    /// An assignment was added.
    Mapping(StoredMapping),
    /// An assignment became a hold.
    Hold(StoredMapping),
    /// The assignment or hold of this global channel was removed.
    MappingRemoved(Channel),
}

/// Events of a shared store, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SharedEvents {
    /// The events are the whole state: what they do not name does not exist.
    pub is_complete: bool,
    /// The events.
    pub events: Vec<SharedEvent>,
}
