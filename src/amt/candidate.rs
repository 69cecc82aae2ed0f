//! Relays that a gateway may use, and the ways to find them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::model::Source;
use crate::wire::amt::PORT;

/// The anycast addresses of relays (RFC 7450 section 7.1).
const ANYCAST: [IpAddr; 2] = [
    IpAddr::V6(Ipv6Addr::new(0x2001, 3, 0, 0, 0, 0, 0, 1)),
    IpAddr::V4(Ipv4Addr::new(192, 52, 193, 1)),
];

/// A way to find relays.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RelayWay {
    /// A configured address.
    Address(SocketAddr),
    /// A host name and the port.
    Host(String, u16),
    /// DNS-SD: the service `_amt._udp` of the search domain (RFC 8777 section 2.3.2).
    DnsSd,
    /// The anycast addresses of RFC 7450.
    Anycast,
    /// AMTRELAY records of the source (RFC 8777).
    Driad,
}

impl RelayWay {
    /// The default order of ways (RFC 8777 section 2.3.2).
    pub const DEFAULT_ORDER: [Self; 3] = [Self::DnsSd, Self::Anycast, Self::Driad];

    /// Returns the value of the `way` label of metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Address(_) => "address",
            Self::Host(..) => "host",
            Self::DnsSd => "dns_sd",
            Self::Anycast => "anycast",
            Self::Driad => "driad",
        }
    }

    /// Returns the candidates that are known without a lookup.
    pub(super) fn known(&self) -> Vec<RelayCandidate> {
        match self {
            Self::Address(address) => vec![RelayCandidate::new(*address)],
            Self::Anycast => {
                let address = |ip| RelayCandidate::new(SocketAddr::new(ip, PORT));
                ANYCAST.map(address).into()
            }
            Self::Host(..) | Self::DnsSd | Self::Driad => Vec::new(),
        }
    }

    /// Returns the lookup that finds the candidates for a source; `None` if none is needed, or
    /// none is possible without a source.
    pub(super) fn lookup(&self, source: Option<Source>) -> Option<LookupKey> {
        match self {
            Self::Address(_) | Self::Anycast => None,
            Self::Host(name, port) => Some(LookupKey::Host(name.clone(), *port)),
            Self::DnsSd => Some(LookupKey::DnsSd),
            Self::Driad => source.map(LookupKey::Source),
        }
    }
}

/// A question about relays to name servers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum LookupKey {
    /// The addresses of a host, and the port of its relay.
    Host(String, u16),
    /// The instances of the service `_amt._udp`.
    DnsSd,
    /// The AMTRELAY records of a source.
    Source(Source),
}

impl LookupKey {
    /// Returns the value of the `way` label of metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Host(..) => "host",
            Self::DnsSd => "dns_sd",
            Self::Source(_) => "driad",
        }
    }
}

/// An address of a relay, or one at which a relay can be discovered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelayCandidate {
    /// The address.
    pub address: SocketAddr,
    /// Whether a Relay Discovery must precede the Request. Without it, the address is that of a
    /// relay.
    pub needs_discovery: bool,
    /// Candidates of one lookup with the same rank are equally good.
    pub rank: u16,
}

impl RelayCandidate {
    /// Returns a candidate at which a relay is discovered.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            needs_discovery: true,
            rank: 0,
        }
    }
}
