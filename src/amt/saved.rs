//! What a relay hands over to the process that replaces its own.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::membership::SavedDownstream;
use crate::model::BootTime;

/// The state of a relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedRelay {
    /// The secrets. They are never written to a file.
    pub secrets: SavedSecrets,
    /// The gateways with a tunnel.
    pub gateways: Vec<SavedGateway>,
}

/// The secrets of response MACs. Their debug output does not contain them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedSecrets {
    /// The present one.
    pub present: [u8; 32],
    /// The former one, which is still accepted.
    pub former: [u8; 32],
    /// When the next one is due.
    pub changes_at: BootTime,
}

impl fmt::Debug for SavedSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SavedSecrets").finish_non_exhaustive()
    }
}

/// The tunnel to a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedGateway {
    /// The address of the gateway.
    pub gateway: SocketAddr,
    /// The address of this host that the gateway sends to.
    pub local: IpAddr,
    /// When the tunnel began.
    pub since: BootTime,
    /// When the last update arrived.
    pub updated: BootTime,
    /// The memberships of IGMP and MLD.
    pub downstreams: [Option<SavedDownstream>; 2],
}
