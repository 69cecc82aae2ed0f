//! The state of one end of multicast NAT as data that outlives the process.

use serde::{Deserialize, Serialize};

use super::channel::Channel;
use crate::model::BootTime;

/// The session with the server, and the mappings in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedMnat {
    /// The label of the role.
    pub role: String,
    /// The server: host and port.
    pub server: (String, u16),
    /// The registered watcher id. None if there is none.
    pub watcher: Option<SavedWatcher>,
    /// The mappings in use.
    pub mappings: Vec<SavedMapping>,
    /// The channels that an egress requests.
    pub joins: Vec<Channel>,
    /// The transitions of mappings that are not complete.
    #[serde(default)]
    pub transitions: Vec<SavedTransition>,
}

/// A watcher id that the server knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedWatcher {
    /// The id.
    pub id: String,
    /// The interval at which it is refreshed, in milliseconds.
    pub refresh_interval_ms: u64,
}

/// A mapping with several local channels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedTransition {
    /// The global channel.
    pub global: Channel,
    /// The local channel that an ingress sends on, and that an egress received last.
    pub current: Channel,
    /// Of an ingress the later, of an egress the earlier local channels, and when each one starts or
    /// ends. Oldest first.
    pub pending: Vec<(Channel, BootTime)>,
}

/// A mapping in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedMapping {
    /// The global channel.
    pub global: Channel,
    /// The local channel.
    pub local: Channel,
    /// When the server last confirmed the mapping.
    pub confirmed: BootTime,
}
