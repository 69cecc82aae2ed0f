//! Proxies as an operator means them, before interfaces are known (RFC 4605).

use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use super::{Group, GroupPrefix, IfPattern, RouteName, Source, SourcePrefix, TtlPolicy};

/// Proxies one interface may be upstream of, or downstream.
pub const MOST_PROXIES: usize = 64;

/// Who asks the hosts of a downstream interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum QuerierPolicy {
    /// Whoever is elected, perhaps us.
    #[default]
    Auto,
    /// Always us, whoever else asks.
    On,
    /// Never us: we only listen.
    Off,
}

/// How exactly the header of a membership message must follow the RFCs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HeaderChecks {
    /// TTL or hop limit 1, router alert, a source on the link, besides a right checksum.
    #[default]
    Strict,
    /// A right checksum.
    Lenient,
}

/// The highest versions spoken on downstream interfaces.
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
    /// How many lost messages are survived, 1 to 7 (section 8.1).
    pub robustness: u8,
    /// Between general queries (section 8.2).
    pub query_interval: Duration,
    /// How long hosts may wait before they answer a general query; less than the query
    /// interval (section 8.3).
    pub query_response_interval: Duration,
    /// How long they may wait before they answer a specific query, and the time between two
    /// of those (section 8.8).
    pub last_member_query_interval: Duration,
    /// Specific queries before a group or source is given up; the robustness variable
    /// where none is set (section 8.9).
    pub last_member_query_count: Option<u8>,
    /// General queries at the start; the robustness variable where none is set
    /// (section 8.7).
    pub startup_query_count: Option<u8>,
    /// Between them; a quarter of the query interval where none is set (section 8.6).
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

/// How much strangers may make us remember, on each downstream interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct MembershipLimits {
    /// Groups.
    pub groups: usize,
    /// Sources of one group.
    pub sources_per_group: usize,
    /// Reports taken in a second.
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

/// Joins of hosts on the downstream interfaces make routes from the upstream ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProxyRule {
    /// How it is called; the `route` label of its paths.
    pub name: RouteName,
    /// Where streams come from. With several, all are joined, and the first to carry an (S,G)
    /// feeds it until it falls silent.
    pub upstream: Vec<IfPattern>,
    /// Where the hosts are. An interface is downstream of one proxy.
    pub downstream: Vec<IfPattern>,
    /// Whether what is sent downstream is forwarded upstream too, whoever asked (RFC 4605
    /// section 3.2). The other downstream interfaces that want it get it either way.
    pub upward: bool,
    /// Who asks the hosts.
    pub querier: QuerierPolicy,
    /// What is spoken with them.
    pub version: Versions,
    /// Groups that are proxied; all where none is named.
    pub groups: Vec<GroupPrefix>,
    /// Groups that are not, even so.
    pub deny_groups: Vec<GroupPrefix>,
    /// Sources that are forwarded; all where none is named.
    pub sources: Vec<SourcePrefix>,
    /// Sources that are not, even so.
    pub deny_sources: Vec<SourcePrefix>,
    /// Whether a leave counts at once where every host is tracked, without asking.
    pub fast_leave: bool,
    /// What becomes of the TTL.
    pub ttl: TtlPolicy,
    /// How exactly reports must be made.
    pub header_checks: HeaderChecks,
    /// Timers and counts.
    pub timers: QuerierTimers,
    /// Limits.
    pub limits: MembershipLimits,
    /// How long an upstream must be silent before another may feed an (S,G).
    pub takeover: Duration,
}

impl ProxyRule {
    /// A proxy with defaults.
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
            header_checks: HeaderChecks::default(),
            timers: QuerierTimers::default(),
            limits: MembershipLimits::default(),
            takeover: Duration::from_secs(1),
        }
    }

    /// Whether memberships of this group are proxied at all. Link-local groups never are
    /// (RFC 4605 section 4, RFC 9776 section 6).
    pub fn accepts_group(&self, group: Group) -> bool {
        let holds = |list: &[GroupPrefix]| list.iter().any(|p| p.net().contains(&group.addr()));
        !group.is_link_local()
            && (self.groups.is_empty() || holds(&self.groups))
            && !holds(&self.deny_groups)
    }

    /// Whether packets of this source are forwarded.
    pub fn accepts_source(&self, source: Source) -> bool {
        let addr: IpAddr = source.addr();
        let holds = |list: &[SourcePrefix]| list.iter().any(|p| p.net().contains(&addr));
        (self.sources.is_empty() || holds(&self.sources)) && !holds(&self.deny_sources)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_permit_and_denials_win() {
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
