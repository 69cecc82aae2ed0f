//! Proxies (RFC 4605) as an operator configures them, with names and patterns of interfaces.

use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use super::{
    DEFAULT_TAKEOVER, FragmentPolicy, Group, GroupPrefix, IfPattern, MonitorKind, RouteName,
    Source, SourcePrefix, TtlPolicy,
};

/// Largest number of proxies that use one interface.
pub const MAX_PROXIES: usize = 64;

/// Whether this router queries the hosts on a downstream interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum QuerierPolicy {
    /// If it wins the querier election.
    #[default]
    Auto,
    /// Always, without an election.
    On,
    /// Never. It only processes reports.
    Off,
}

/// How strictly the headers of membership messages are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HeaderChecks {
    /// Requires TTL or hop limit 1, a source on the link, a valid checksum and, for MLD, the Router
    /// Alert option. Messages from other links fail these checks. IGMP hosts without Router Alert
    /// exist, and FRR and the Linux kernel accept their reports.
    #[default]
    Standard,
    /// Also requires the Router Alert option of IGMPv2 and IGMPv3 messages (RFC 9776 section 4).
    Strict,
    /// Requires a valid checksum.
    Lenient,
}

/// The highest protocol versions on downstream interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Versions {
    /// IGMP: 1, 2 or 3.
    pub igmp: u8,
    /// MLD: 1 or 2.
    pub mld: u8,
}

impl Default for Versions {
    fn default() -> Self {
        Self { igmp: 3, mld: 2 }
    }
}

/// Timers and counts of the querier (RFC 9776 section 8, RFC 9777 section 9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct QuerierTimers {
    /// The robustness variable, 1 to 7: one more than the number of consecutive lost messages that
    /// are tolerated (section 8.1).
    pub robustness: u8,
    /// Time between general queries (section 8.2).
    pub query_interval: Duration,
    /// Maximum delay of responses to a general query; less than the query interval (section 8.3).
    pub query_response_interval: Duration,
    /// Maximum delay of responses to a specific query, and time between specific queries (section
    /// 8.8).
    pub last_member_query_interval: Duration,
    /// Number of specific queries before a group or source expires; `None` for the robustness
    /// variable (section 8.9).
    pub last_member_query_count: Option<u8>,
    /// Number of general queries at the start; `None` for the robustness variable (section 8.7).
    pub startup_query_count: Option<u8>,
    /// Time between general queries at the start; `None` for a quarter of the query interval
    /// (section 8.6).
    pub startup_query_interval: Option<Duration>,
}

impl Default for QuerierTimers {
    fn default() -> Self {
        Self {
            robustness: 2,
            query_interval: Duration::from_secs(125),
            query_response_interval: Duration::from_secs(10),
            last_member_query_interval: Duration::from_secs(1),
            last_member_query_count: None,
            startup_query_count: None,
            startup_query_interval: None,
        }
    }
}

/// Limits of the membership state on each downstream interface. They bound the memory and CPU time
/// that hosts can consume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct MembershipLimits {
    /// Largest number of groups.
    pub groups: usize,
    /// Largest number of sources of one group.
    pub sources_per_group: usize,
    /// Largest number of reports that are processed in a second.
    pub reports_per_second: u32,
}

impl Default for MembershipLimits {
    fn default() -> Self {
        Self {
            groups: 4096,
            sources_per_group: 256,
            reports_per_second: 10_000,
        }
    }
}

/// A proxy (RFC 4605): it joins the groups of hosts on the downstream interfaces upstream, and
/// forwards the packets to the hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProxyRule {
    /// The name, and the `route` label of its paths.
    pub name: RouteName,
    /// The upstream interfaces. Groups are joined on all of them. The first on which an (S,G)
    /// arrives is its active ingress until no more packets of the (S,G) arrive there.
    pub upstream: Vec<IfPattern>,
    /// The downstream interfaces, towards the hosts. An interface is downstream of one proxy.
    pub downstream: Vec<IfPattern>,
    /// Whether packets that arrive downstream are forwarded upstream, regardless of memberships
    /// (RFC 4605 section 3.2). Other downstream interfaces with members receive them in any case.
    pub upward: bool,
    /// Whether this router queries the hosts.
    pub querier: QuerierPolicy,
    /// The protocol versions.
    pub version: Versions,
    /// Groups that the proxy accepts; empty for all.
    pub groups: Vec<GroupPrefix>,
    /// Groups that the proxy does not accept, even if `groups` contains them.
    pub deny_groups: Vec<GroupPrefix>,
    /// Sources that the proxy accepts; empty for all.
    pub sources: Vec<SourcePrefix>,
    /// Sources that the proxy does not accept, even if `sources` contains them.
    pub deny_sources: Vec<SourcePrefix>,
    /// Whether a leave takes effect at once if no other host of the group is known.
    pub fast_leave: bool,
    /// The TTL of forwarded packets.
    pub ttl: TtlPolicy,
    /// Whether packets from link-local sources (169.254.0.0/16, fe80::/10) are forwarded.
    pub link_local_sources: bool,
    /// Which packets that are larger than the MTU of the egress are fragmented.
    pub fragment: FragmentPolicy,
    /// How strictly the headers of reports are checked.
    pub header_checks: HeaderChecks,
    /// Whether reports that request every source of a source-specific group are accepted.
    pub any_source_in_ssm: bool,
    /// Timers and counts of the querier.
    pub timers: QuerierTimers,
    /// Limits of the membership state.
    pub limits: MembershipLimits,
    /// Time without packets on the active ingress of an (S,G) after which another ingress becomes
    /// active.
    pub takeover: Duration,
    /// Whether packets are withheld from an interface to which another forwarder sends them.
    pub redundant: bool,
    /// Whether the streams are monitored, and as what.
    pub monitor: Option<MonitorKind>,
}

impl ProxyRule {
    /// Returns a proxy with default options.
    pub fn new(upstream: Vec<IfPattern>, downstream: Vec<IfPattern>) -> Self {
        let from = upstream.first().map_or("none", IfPattern::as_str);
        Self {
            name: RouteName::new(format!("proxy {from}")),
            upstream,
            downstream,
            upward: true,
            querier: QuerierPolicy::default(),
            version: Versions::default(),
            groups: Vec::new(),
            deny_groups: Vec::new(),
            sources: Vec::new(),
            deny_sources: Vec::new(),
            fast_leave: false,
            ttl: TtlPolicy::default(),
            link_local_sources: false,
            fragment: FragmentPolicy::default(),
            header_checks: HeaderChecks::default(),
            any_source_in_ssm: false,
            timers: QuerierTimers::default(),
            limits: MembershipLimits::default(),
            takeover: DEFAULT_TAKEOVER,
            redundant: true,
            monitor: None,
        }
    }

    /// Returns whether the proxy accepts memberships of a group. It accepts no link-local groups
    /// (RFC 4605 section 4, RFC 9776 section 6).
    pub fn accepts_group(&self, group: Group) -> bool {
        let contains = |list: &[GroupPrefix]| list.iter().any(|p| p.net().contains(&group.addr()));
        !group.is_link_local()
            && (self.groups.is_empty() || contains(&self.groups))
            && !contains(&self.deny_groups)
    }

    /// Returns whether the proxy forwards packets from a source.
    pub fn accepts_source(&self, source: Source) -> bool {
        let addr: IpAddr = source.addr();
        let contains = |list: &[SourcePrefix]| list.iter().any(|p| p.net().contains(&addr));
        (self.sources.is_empty() || contains(&self.sources)) && !contains(&self.deny_sources)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deny_lists_override_allow_lists() {
        let mut proxy = ProxyRule::new(vec!["eth0".parse().unwrap()], vec![]);
        let group = |g: &str| g.parse::<Group>().unwrap();
        let source = |s: &str| s.parse::<Source>().unwrap();
        assert!(proxy.accepts_group(group("225.1.2.3")));
        assert!(!proxy.accepts_group(group("224.0.0.251")));
        assert!(!proxy.accepts_group(group("ff02::fb")));
        proxy.groups = vec!["239.0.0.0/8".parse().unwrap()];
        proxy.deny_groups = vec!["239.1.0.0/16".parse().unwrap()];
        assert!(!proxy.accepts_group(group("225.1.2.3")));
        assert!(proxy.accepts_group(group("239.2.0.1")));
        assert!(!proxy.accepts_group(group("239.1.0.1")));
        proxy.sources = vec!["10.0.0.0/8".parse().unwrap()];
        proxy.deny_sources = vec!["10.1.0.0/16".parse().unwrap()];
        assert!(proxy.accepts_source(source("10.2.0.1")));
        assert!(!proxy.accepts_source(source("10.1.0.1")));
        assert!(!proxy.accepts_source(source("192.0.2.1")));
        assert!(!proxy.accepts_source(source("2001:db8::1")));
    }
}
