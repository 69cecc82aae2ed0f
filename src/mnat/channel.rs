//! What is joined and mapped: an (S,G), or (*,G).

use std::fmt;
use std::net::IpAddr;

use crate::model::{AddrError, Group, Source};

/// Why two addresses are no channel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// One of them is not what it should be.
    #[error(transparent)]
    Addr(#[from] AddrError),
    /// One IPv4, the other IPv6.
    #[error("source {0} and group {1} are of different IP versions")]
    MixedFamily(Source, Group),
    /// No router forwards it.
    #[error("{0} is link-local and stays on its link")]
    LinkLocal(Group),
    /// 0.0.0.0, ::, or 255.255.255.255.
    #[error("{0} is no sender's address")]
    NoSender(Source),
}

/// An (S,G), or (*,G) without a source. Both of one IP version, the group not link-local.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Channel {
    source: Option<Source>,
    group: Group,
}

impl Channel {
    /// Checks what holds between the two.
    ///
    /// # Errors
    /// Mixed IP versions, link-local groups, and addresses nobody sends from.
    pub fn new(source: Option<Source>, group: Group) -> Result<Self, ChannelError> {
        if group.is_link_local() {
            return Err(ChannelError::LinkLocal(group));
        }
        if let Some(source) = source {
            let addr = source.addr();
            if addr.is_unspecified() || addr == IpAddr::from([255; 4]) {
                return Err(ChannelError::NoSender(source));
            }
            if addr.is_ipv4() != group.addr().is_ipv4() {
                return Err(ChannelError::MixedFamily(source, group));
            }
        }
        Ok(Self { source, group })
    }

    /// Reads both from text; `None` is any source.
    ///
    /// # Errors
    /// As [`Channel::new`], and texts that are no such addresses.
    pub fn parse(source: Option<&str>, group: &str) -> Result<Self, ChannelError> {
        let source = source.map(str::parse).transpose()?;
        Self::new(source, group.parse()?)
    }

    /// Who sends; `None` is any.
    pub fn source(self) -> Option<Source> {
        self.source
    }

    /// To which group.
    pub fn group(self) -> Group {
        self.group
    }

    /// Whether it is IPv4.
    pub fn is_ipv4(self) -> bool {
        self.group.addr().is_ipv4()
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
