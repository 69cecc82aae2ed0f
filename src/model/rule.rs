//! Routes and joins as an operator configures them, with names and patterns of interfaces.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::{
    Group, GroupPrefix, IfPattern, InterfaceId, Link, Links, MergeRule, MonitorKind, Source,
    SourcePrefix, StreamSet, TranslationRule, TtlPolicy,
};

/// The name of a route: the `route` label of its metrics. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct RouteName(Arc<str>);

impl RouteName {
    /// Returns a name with any text. Settings refuse duplicate names.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// Returns the name of a route without a configured name, such as `eth0 (S, G)`.
    pub fn default_for(from: &IfPattern, source: SourcePrefix, group: GroupPrefix) -> Self {
        Self(format!("{from} ({source}, {group})").into())
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RouteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The origin of a route or a join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// In the settings.
    Settings,
    /// By a command; removed by the next reload.
    Command,
    /// By a mapping of multicast NAT; removed with the mapping.
    Mnat,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Settings => "settings",
            Self::Command => "command",
            Self::Mnat => "mnat",
        })
    }
}

/// Whether a route joins its groups as a host on its ingress interfaces, so that switches with
/// IGMP or MLD snooping deliver them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum JoinPolicy {
    /// Joins a single group, source-specifically if the route has a single source. Does not join
    /// a prefix of groups.
    #[default]
    Auto,
    /// Joins all groups, also every group of a prefix.
    Always,
    /// Joins no group.
    Never,
}

/// Which IPv4 packets that are larger than the MTU of the egress are fragmented. IPv6 packets are
/// never fragmented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FragmentPolicy {
    /// Those without DF (RFC 791 section 2.3).
    #[default]
    Auto,
    /// All. DF is cleared.
    Always,
}

/// Largest number of groups that one rule joins. Every group of a prefix counts.
pub const MAX_JOINED_GROUPS: u64 = 4096;

/// Largest number of egress names and patterns of a route.
pub const MAX_EGRESSES: usize = 64;

/// Groups to join as a host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct JoinRule {
    /// The interfaces to join on.
    pub interface: IfPattern,
    /// The source of a source-specific join; `None` for any source.
    pub source: Option<Source>,
    /// The group, or a prefix of at most [`MAX_JOINED_GROUPS`] groups.
    pub group: GroupPrefix,
    /// The origin of the join.
    pub origin: Origin,
}

impl JoinRule {
    /// Returns the groups, lowest first.
    pub fn groups(&self) -> impl Iterator<Item = Group> + use<> {
        self.group.groups().take(MAX_JOINED_GROUPS as usize)
    }
}

impl fmt::Display for JoinRule {
    /// Writes a text such as `eth0 (*, 225.1.2.3)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.source {
            Some(source) => write!(f, "{} ({source}, {})", self.interface, self.group),
            None => write!(f, "{} (*, {})", self.interface, self.group),
        }
    }
}

/// Default time without packets after which another ingress becomes the active one of a stream.
pub const DEFAULT_TAKEOVER: Duration = Duration::from_millis(500);

/// A static route. Source and group have the same IP version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteRule {
    /// The `route` label of its metrics.
    pub name: RouteName,
    /// The origin of the route.
    pub origin: Origin,
    /// The ingress interfaces (IIF).
    pub from: IfPattern,
    /// Sources that the route matches.
    pub source: SourcePrefix,
    /// Sources within `source` that the route does not match. Less specific routes may match
    /// their packets.
    pub except_sources: Vec<SourcePrefix>,
    /// Groups that the route matches.
    pub group: GroupPrefix,
    /// The egress interfaces (OIFs). They do not include the interface on which a packet arrived,
    /// unless `from` and an entry of `to` are the same name and no pattern.
    pub to: Vec<IfPattern>,
    /// The TTL of forwarded packets.
    pub ttl: TtlPolicy,
    /// Whether link-local groups (224.0.0.0/24, ff02::/16) are forwarded too.
    pub link_local: bool,
    /// Whether packets from link-local sources (169.254.0.0/16, fe80::/10) to groups with a wider
    /// scope are forwarded too.
    pub link_local_sources: bool,
    /// Which packets that are larger than the MTU of the egress are fragmented.
    pub fragment: FragmentPolicy,
    /// Whether the groups are joined on the ingress interfaces.
    pub join: JoinPolicy,
    /// Whether packets that return shortly after they were forwarded are dropped. The default is
    /// on if the TTL policy does not end loops.
    pub loop_guard: bool,
    /// Time without packets on the active ingress of an (S,G) after which another ingress becomes
    /// active. `None`: packets are forwarded from every ingress, also copies.
    pub takeover: Option<Duration>,
    /// Whether packets are withheld from an egress to which another forwarder sends them.
    pub redundant: bool,
    /// Whether the streams are monitored, and as what.
    pub monitor: Option<MonitorKind>,
    /// Replacement of source, group or UDP port. Users know it as `rewrite`.
    #[serde(rename = "rewrite")]
    pub translation: Option<TranslationRule>,
    /// The merge of the packets with those of another path. A merge in the settings is two routes
    /// with the same name, one for each path.
    pub merge: Option<MergeRule>,
}

impl RouteRule {
    /// Returns a route for any source with the default name and options: no exceptions, TTL
    /// decremented, single groups joined, no loop guard, no translation.
    pub fn new(from: IfPattern, group: GroupPrefix, to: Vec<IfPattern>) -> Self {
        let source = SourcePrefix::any_for(group);
        Self {
            name: RouteName::default_for(&from, source, group),
            origin: Origin::Settings,
            from,
            source,
            except_sources: Vec::new(),
            group,
            to,
            ttl: TtlPolicy::default(),
            link_local: false,
            link_local_sources: false,
            fragment: FragmentPolicy::default(),
            join: JoinPolicy::default(),
            loop_guard: false,
            takeover: Some(DEFAULT_TAKEOVER),
            redundant: true,
            monitor: None,
            translation: None,
            merge: None,
        }
    }

    /// Returns all names and patterns of interfaces in the route.
    pub fn interface_patterns(&self) -> impl Iterator<Item = &IfPattern> {
        std::iter::once(&self.from).chain(&self.to)
    }

    /// Returns the links on which packets of the route arrive. Links that are down are included,
    /// so that nothing has to be rebuilt when they come up.
    pub fn ingresses<'a>(&'a self, links: &'a Links) -> impl Iterator<Item = &'a Link> {
        links.matching(&self.from)
    }

    /// Returns the links to which packets from `iif` are forwarded, without duplicates, in the
    /// order of `to`.
    pub fn egresses<'a>(&self, iif: InterfaceId, links: &'a Links) -> Vec<&'a Link> {
        let mut egresses = links.matching_any(&self.to);
        if !self.returns_packets() {
            egresses.retain(|link| link.index != iif);
        }
        egresses
    }

    /// Returns whether packets also leave on the interface on which they arrive: `from` and an
    /// entry of `to` are the same name. A wireless mesh and a hypervisor need this, because their
    /// hosts do not receive each other's packets directly. A pattern or label may stand for several
    /// interfaces and means the other ones.
    pub fn returns_packets(&self) -> bool {
        self.from.is_single() && self.to.contains(&self.from)
    }

    /// Returns whether packets from link-local sources to groups with a wider scope are forwarded:
    /// the setting permits it, or they leave with another source.
    pub fn forwards_link_local_sources(&self) -> bool {
        let replaces_source = |t: TranslationRule| t.replacements().0.is_some();
        self.link_local_sources || self.translation.is_some_and(replaces_source)
    }

    /// Returns whether `to` contains the name of a link, and not only a pattern or an alias that
    /// matches it.
    pub fn names_egress(&self, link: &Link) -> bool {
        let is_name = |to: &IfPattern| !to.is_pattern() && !to.is_alias() && link.matches(to);
        self.to.iter().any(is_name)
    }

    /// Returns the join that the join policy implies, if any.
    pub fn implied_join(&self) -> Option<JoinRule> {
        let joins = match self.join {
            JoinPolicy::Never => false,
            JoinPolicy::Always => true,
            // Without a source, a group in the source-specific range cannot be joined: routers
            // ignore such reports (RFC 4604 section 1).
            JoinPolicy::Auto => self
                .group
                .single()
                .is_some_and(|g| self.source.single().is_some() || !g.is_source_specific()),
        };
        joins.then(|| JoinRule {
            interface: self.from.clone(),
            source: self.source.single(),
            group: self.group,
            origin: self.origin,
        })
    }

    /// Returns whether a packet may match both routes equally well: group and source are the same
    /// and they can have an ingress interface in common.
    pub fn is_ambiguous_with(&self, other: &RouteRule) -> bool {
        self.group == other.group
            && self.source == other.source
            && self.from.intersects(&other.from)
    }

    /// Returns the streams that the route matches, including those of `except_sources`.
    pub fn matched_streams(&self) -> StreamSet {
        StreamSet {
            source: self.source.net(),
            group: self.group.net(),
        }
    }

    /// Returns the streams as which the matched streams of `arriving` leave; `None` if the route
    /// matches none of them.
    pub fn outgoing_streams(&self, arriving: StreamSet) -> Option<StreamSet> {
        let matched = self.matched_streams().overlap(arriving)?;
        match &self.translation {
            Some(translation) => translation.apply_set(matched),
            None => Some(matched),
        }
    }

    /// Returns the streams that leave as `outgoing`; the inverse of
    /// [`RouteRule::outgoing_streams`].
    pub fn incoming_streams(&self, outgoing: StreamSet) -> Option<StreamSet> {
        match &self.translation {
            Some(translation) => translation.inverse().apply_set(outgoing),
            None => self.matched_streams().overlap(outgoing),
        }
    }

    /// Returns whether the route translates source or group. A new port alone does not count.
    pub fn changes_streams(&self) -> bool {
        self.translation.is_some_and(|t| t.changes_stream())
    }

    /// Returns whether `except_sources` covers all sources of `streams`.
    pub fn excepts_all(&self, streams: StreamSet) -> bool {
        let mut excepted = self.except_sources.iter().map(|prefix| prefix.net());
        excepted.any(|net| net.contains(&streams.source))
    }

    /// Returns whether both routes are the paths of one merge.
    pub fn is_merged_with(&self, other: &RouteRule) -> bool {
        let paths = self.merge.as_ref().zip(other.merge.as_ref());
        self.name == other.name && paths.is_some_and(|(a, b)| a.path != b.path)
    }

    /// Returns whether both routes can have an egress interface in common.
    pub fn shares_egress_with(&self, other: &RouteRule) -> bool {
        let is_shared = |a| other.to.iter().any(|b| b.intersects(a));
        self.to.iter().any(is_shared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_of_a_route_names_the_translation_rewrite() {
        let to = vec!["eth1".parse().unwrap()];
        let rule = RouteRule::new("eth0".parse().unwrap(), "225.1.2.3".parse().unwrap(), to);
        let json = serde_json::to_value(&rule).unwrap();
        assert!(json.get("rewrite").is_some(), "{json}");
    }
}
