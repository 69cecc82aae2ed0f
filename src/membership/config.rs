//! What a downstream machine is told of its proxy.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::model::ProxyRule;
use crate::wire::group_message::Generation;

/// Which of the two protocols: they differ in addresses and in the number of generations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// IPv4.
    Igmp,
    /// IPv6. It has no first generation.
    Mld,
}

impl Protocol {
    /// Both, IPv4 first.
    pub const ALL: [Self; 2] = [Self::Igmp, Self::Mld];

    /// Where general queries go: 224.0.0.1 or ff02::1.
    pub fn general_query_destination(self) -> IpAddr {
        match self {
            Self::Igmp => IpAddr::V4(Ipv4Addr::new(224, 0, 0, 1)),
            Self::Mld => IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)),
        }
    }

    /// Whether the address is of its IP version.
    pub fn is_family_of(self, addr: IpAddr) -> bool {
        addr.is_ipv4() == matches!(self, Self::Igmp)
    }

    /// The metrics label.
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

/// How many hosts, and sources of theirs, one machine tracks unless told otherwise.
pub const TRACKED: usize = 65_536;

/// How many sources one machine remembers on average for each group it may.
pub const SOURCES_PER_GROUP: usize = 16;

/// What one [`Downstream`](super::Downstream) needs to know.
#[derive(Debug, Clone)]
pub struct DownstreamConfig {
    /// IGMP or MLD.
    pub protocol: Protocol,
    /// The proxy: policy, versions, timers, limits, lists.
    pub rule: Arc<ProxyRule>,
    /// With `fast_leave`: how many hosts and sources of theirs are tracked at most, over all
    /// groups. Where a host finds no room, its group is asked as if nobody were tracked.
    pub max_tracked_entries: usize,
}

impl DownstreamConfig {
    /// With the default bound on tracked hosts.
    pub fn new(protocol: Protocol, rule: Arc<ProxyRule>) -> Self {
        Self {
            protocol,
            rule,
            max_tracked_entries: TRACKED,
        }
    }

    /// How many sources are remembered at most, over all groups: one group may have as many as
    /// its own limit says, not all of them.
    pub fn max_sources(&self) -> usize {
        let limits = &self.rule.limits;
        let average = limits.groups.saturating_mul(SOURCES_PER_GROUP);
        average.max(limits.sources_per_group)
    }

    /// The generation spoken: queries are of it, and no group is in a higher mode.
    pub fn generation(&self) -> Generation {
        match (self.protocol, self.rule.version) {
            (Protocol::Igmp, v) if v.igmp <= 1 => Generation::One,
            (Protocol::Igmp, v) if v.igmp == 2 => Generation::Two,
            (Protocol::Mld, v) if v.mld <= 1 => Generation::Two,
            _ => Generation::Three,
        }
    }
}
