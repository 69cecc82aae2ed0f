//! Configuration of one downstream interface.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::model::ProxyRule;
use crate::wire::membership_message::Generation;

/// A group membership protocol. The two differ in their addresses and in the number of versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// IGMP, for IPv4.
    Igmp,
    /// MLD, for IPv6. MLD has no counterpart of IGMPv1.
    Mld,
}

impl Protocol {
    /// Returns the version number that the protocol has for a generation.
    pub fn version(self, generation: Generation) -> &'static str {
        match (generation, self) {
            (Generation::One, _) | (Generation::Two, Self::Mld) => "1",
            (Generation::Two, Self::Igmp) | (Generation::Three, Self::Mld) => "2",
            (Generation::Three, Self::Igmp) => "3",
        }
    }

    /// Both protocols, IGMP first.
    pub const ALL: [Self; 2] = [Self::Igmp, Self::Mld];

    /// Returns the destination of general queries: 224.0.0.1 or ff02::1.
    pub fn general_query_destination(self) -> IpAddr {
        match self {
            Self::Igmp => IpAddr::V4(Ipv4Addr::new(224, 0, 0, 1)),
            Self::Mld => IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)),
        }
    }

    /// Returns true if `addr` belongs to the IP version of this protocol.
    pub fn is_family_of(self, addr: IpAddr) -> bool {
        addr.is_ipv4() == matches!(self, Self::Igmp)
    }

    /// Returns the metrics label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Igmp => "igmp",
            Self::Mld => "mld",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Igmp => "IGMP",
            Self::Mld => "MLD",
        })
    }
}

/// Default of [`DownstreamConfig::max_tracked_entries`].
pub const MAX_TRACKED_ENTRIES: usize = 65_536;

/// Average number of sources per group that one interface stores, if it has as many groups as
/// its limit allows.
pub const AVERAGE_SOURCES_PER_GROUP: usize = 16;

/// Configuration of one `Downstream`.
#[derive(Debug, Clone)]
pub struct DownstreamConfig {
    /// IGMP or MLD.
    pub protocol: Protocol,
    /// The proxy's configuration: querier policy, versions, timers, limits and access lists.
    pub rule: Arc<ProxyRule>,
    /// Upper limit of the entries of explicit host tracking (`fast_leave`), over all groups. An
    /// entry is a host, or a source of a host. A group with a host beyond the limit is queried
    /// as if no host were tracked.
    pub max_tracked_entries: usize,
}

impl DownstreamConfig {
    /// Creates a configuration with the default limit of tracked hosts.
    pub fn new(protocol: Protocol, rule: Arc<ProxyRule>) -> Self {
        Self {
            protocol,
            rule,
            max_tracked_entries: MAX_TRACKED_ENTRIES,
        }
    }

    /// Returns the upper limit of stored sources over all groups. One group can reach its own
    /// limit, but not every group can reach it at the same time.
    pub fn max_sources(&self) -> usize {
        let limits = &self.rule.limits;
        let average = limits.groups.saturating_mul(AVERAGE_SOURCES_PER_GROUP);
        average.max(limits.sources_per_group)
    }

    /// Returns the configured protocol generation. Queries are sent in this generation, and no
    /// group has a higher compatibility mode.
    pub fn generation(&self) -> Generation {
        match (self.protocol, self.rule.version) {
            (Protocol::Igmp, v) if v.igmp <= 1 => Generation::One,
            (Protocol::Igmp, v) if v.igmp == 2 => Generation::Two,
            (Protocol::Mld, v) if v.mld <= 1 => Generation::Two,
            _ => Generation::Three,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_those_of_the_protocols() {
        let all = [Generation::One, Generation::Two, Generation::Three];
        assert_eq!(all.map(|g| Protocol::Igmp.version(g)), ["1", "2", "3"]);
        assert_eq!(all.map(|g| Protocol::Mld.version(g)), ["1", "1", "2"]);
    }
}
