//! Options of interfaces that are configured by name or pattern.

use std::time::Duration;

use super::bandwidth_table::BandwidthLimit;
use crate::model::{Bandwidth, IfPattern, KernelForwarding, Link, TtlThreshold};

/// How this host reports its memberships on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReportOptions {
    /// The version of IGMP, 1 to 3; `None` for the version of the querier.
    pub igmp_version: Option<u8>,
    /// The version of MLD, 1 or 2; `None` for the version of the querier.
    pub mld_version: Option<u8>,
    /// Interval of unsolicited reports, for links without queries; `None` for none.
    pub refresh: Option<Duration>,
}

/// Options of the interfaces that match a name or pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceOptions {
    /// The name or pattern.
    pub name: IfPattern,
    /// Packets leave only if they arrived with a TTL above this.
    pub ttl_threshold: Option<TtlThreshold>,
    /// Interval of multicast router advertisements; `None` if none are sent.
    pub mrdisc: Option<Duration>,
    /// How this host reports its memberships.
    pub reports: ReportOptions,
    /// Whether the interface is excluded from all rules.
    pub disabled: bool,
    /// Whether packets are captured even if no rule receives them.
    pub capture: bool,
    /// Whether the kernel forwards what arrives or leaves on the interface.
    pub kernel_forwarding: KernelForwarding,
    /// The limit of the streams that leave; `None` for that of the link itself, if it has one.
    pub bandwidth: Option<Bandwidth>,
}

impl InterfaceOptions {
    /// Returns the limit of a link.
    pub fn bandwidth_of(all: &[Self], link: &Link) -> Option<BandwidthLimit> {
        let configured = Self::of_link(all, link).and_then(|options| options.bandwidth);
        let interface = link.index;
        let limit = configured.or(link.bandwidth);
        limit.map(|limit| BandwidthLimit { interface, limit })
    }

    /// Returns the options of a link: the first whose literal name matches, else the first whose
    /// pattern does.
    pub fn of_link<'a>(all: &'a [Self], link: &Link) -> Option<&'a Self> {
        let matching = |is_pattern: bool| {
            all.iter()
                .find(move |o| o.name.is_pattern() == is_pattern && link.is_named(&o.name))
        };
        matching(false).or_else(|| matching(true))
    }
}
