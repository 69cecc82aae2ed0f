//! Channels: the (S,G) and (*,G) that are joined and mapped.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::model::{AddrError, Group, Source};

/// The reason why two addresses do not form a channel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// The source is not a unicast address, or the group not a multicast address.
    #[error(transparent)]
    Addr(#[from] AddrError),
    /// One address is IPv4, the other IPv6.
    #[error("source {0} and group {1} are of different IP versions")]
    MixedFamily(Source, Group),
    /// The group is link-local. Routers do not forward it.
    #[error("{0} is link-local; routers do not forward it")]
    LinkLocal(Group),
    /// The source is 0.0.0.0, ::, or 255.255.255.255.
    #[error("{0} is not a valid source address")]
    InvalidSource(Source),
}

/// An (S,G), or a (*,G) if it has no source. Source and group have the same IP version. The group
/// is not link-local.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "(Option<Source>, Group)", try_from = "(Option<Source>, Group)")]
pub struct Channel {
    source: Option<Source>,
    group: Group,
}

impl Channel {
    /// Makes a channel of a source and a group. Without a source, it means any source.
    ///
    /// # Errors
    /// Mixed IP versions, link-local groups, and source addresses that no packet may have.
    pub fn new(source: Option<Source>, group: Group) -> Result<Self, ChannelError> {
        if group.is_link_local() {
            return Err(ChannelError::LinkLocal(group));
        }
        if let Some(source) = source {
            let addr = source.addr();
            if addr.is_unspecified() || addr == IpAddr::from([255; 4]) {
                return Err(ChannelError::InvalidSource(source));
            }
            if addr.is_ipv4() != group.addr().is_ipv4() {
                return Err(ChannelError::MixedFamily(source, group));
            }
        }
        Ok(Self { source, group })
    }

    /// Parses source and group. `None` means any source.
    ///
    /// # Errors
    /// Text that is not an address, and the errors of [`Channel::new`].
    pub fn parse(source: Option<&str>, group: &str) -> Result<Self, ChannelError> {
        let source = source.map(str::parse).transpose()?;
        Self::new(source, group.parse()?)
    }

    /// Returns the source; `None` is any source.
    pub fn source(self) -> Option<Source> {
        self.source
    }

    /// Returns the group.
    pub fn group(self) -> Group {
        self.group
    }

    /// Returns true for IPv4 and false for IPv6.
    pub fn is_ipv4(self) -> bool {
        self.group.addr().is_ipv4()
    }
}

impl From<Channel> for (Option<Source>, Group) {
    fn from(channel: Channel) -> Self {
        (channel.source, channel.group)
    }
}

impl TryFrom<(Option<Source>, Group)> for Channel {
    type Error = ChannelError;
    fn try_from((source, group): (Option<Source>, Group)) -> Result<Self, ChannelError> {
        Self::new(source, group)
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.source {
            Some(source) => write!(f, "({source}, {})", self.group),
            None => write!(f, "(*, {})", self.group),
        }
    }
}
