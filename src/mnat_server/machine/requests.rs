//! What goes into the machine of the server, and what comes out of it.

use std::sync::Arc;

use crate::mnat::messages::{AssignedChannels, JoinedSet, MonitorSet, WatcherGrant};
use crate::mnat_server::changes::Transaction;

/// Who sends a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// The subject of a verified client certificate, in DER.
    pub identity: Option<Arc<[u8]>>,
    /// The client supports waiting polls, and therefore answers of any length with channels of any
    /// source. A client of the prototype supports neither.
    pub can_wait: bool,
}

/// A request to the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerRequest {
    /// Requests a watcher id.
    NewWatcher,
    /// Keeps a watcher id valid.
    Refresh(String),
    /// Replaces the joins of an egress.
    SetJoined(JoinedSet),
    /// Replaces the sources that an ingress watches.
    SetMonitors(MonitorSet),
    /// Removes the joins of an egress.
    RemoveJoined(String),
    /// Removes the sources that an ingress watches.
    RemoveMonitors(String),
    /// Requests the mappings.
    Assigned(String),
    /// Requests the joins of an egress.
    Joined(String),
    /// Requests the sources that an ingress watches.
    Monitors(String),
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerReply {
    /// A new watcher id.
    Granted(WatcherGrant),
    /// The watcher was registered.
    Created,
    /// The request took effect.
    Done,
    /// The mappings, and their version.
    Assigned(AssignedChannels, u64),
    /// A request for mappings named a watcher that does not exist.
    UnknownWatcher,
    /// The joins of an egress.
    Joined(JoinedSet),
    /// The sources that an ingress watches.
    Monitors(MonitorSet),
}

/// What the caller of the machine has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerOutput {
    /// The store has to commit these changes.
    Commit(Transaction),
    /// The mappings for the watcher with this id changed, or it expired.
    Changed(Arc<str>),
    /// The shared store has to prolong the life of this watcher.
    Prolong(Arc<str>),
}

/// The number of watchers, local channels and streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerCounts {
    /// Watchers.
    pub watchers: usize,
    /// Local channels in the pool.
    pub pool_size: u128,
    /// Global channels with a local one.
    pub assigned: usize,
    /// Local channels that are held.
    pub held: usize,
    /// Global channels that wait for a local one.
    pub waiting: usize,
}
