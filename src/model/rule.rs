//! Routes and joins as an operator means them, before interfaces are known.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::{Group, GroupPrefix, IfPattern, Source, SourcePrefix, TranslationRule, TtlPolicy};

/// The name of a route: the `route` label of its metrics. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct RouteName(Arc<str>);

impl RouteName {
    /// Any text; settings refuse names that stand twice.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The name of a route that was given none: `eth0 (S, G)`.
    pub fn default_for(from: &IfPattern, source: SourcePrefix, group: GroupPrefix) -> Self {
        Self(format!("{from} ({source}, {group})").into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RouteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Who asked for a route or a join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The settings.
    Settings,
    /// A command; lives until the next reload.
    Command,
    /// A mapping of multicast NAT; lives as long as that.
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

/// Whether a route joins its groups on the interfaces packets arrive on, as a host does, so
/// that switches with IGMP or MLD snooping deliver them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum JoinPolicy {
    /// A single group is joined, source-specific where the route names a single source; a
    /// prefix of groups is not.
    #[default]
    Auto,
    /// Every group is joined, each of a prefix too.
    Always,
    /// None is.
    Never,
}

/// Most groups one rule may join, each of a prefix counted.
pub const MOST_JOINED_GROUPS: u64 = 4096;

/// Groups to join as a host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct JoinRule {
    /// On which interfaces.
    pub interface: IfPattern,
    /// Only what this source sends.
    pub source: Option<Source>,
    /// The group, or all groups of a prefix; at most [`MOST_JOINED_GROUPS`].
    pub group: GroupPrefix,
    /// Who asked for it.
    pub origin: Origin,
}

impl JoinRule {
    /// The groups, one by one.
    pub fn groups(&self) -> impl Iterator<Item = Group> + use<> {
        self.group.groups().take(MOST_JOINED_GROUPS as usize)
    }
}

impl fmt::Display for JoinRule {
    /// As in `eth0 (*, 225.1.2.3)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.source {
            Some(source) => write!(f, "{} ({source}, {})", self.interface, self.group),
            None => write!(f, "{} (*, {})", self.interface, self.group),
        }
    }
}

/// A static route. Source and group are of one IP version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteRule {
    /// Label of its metrics.
    pub name: RouteName,
    /// Who asked for it.
    pub origin: Origin,
    /// The interfaces packets arrive on (IIF).
    pub from: IfPattern,
    /// Senders it takes.
    pub source: SourcePrefix,
    /// Senders it does not take although `source` holds them; such a packet is looked up
    /// further, among the less specific rules.
    pub except_sources: Vec<SourcePrefix>,
    /// Groups it takes.
    pub group: GroupPrefix,
    /// The interfaces packets leave on (OIFs). A pattern never stands for the interface the
    /// packet came in on.
    pub to: Vec<IfPattern>,
    /// What happens to the TTL.
    pub ttl: TtlPolicy,
    /// Forward 224.0.0.0/24 and ff02::/16 too.
    pub link_local: bool,
    /// Whether its groups are joined on `from`.
    pub join: JoinPolicy,
    /// Whether packets that come back within a moment are stopped; on by default where the
    /// TTL policy ends no loop.
    pub loop_guard: bool,
    /// Other source, group or UDP port that packets leave with.
    pub translation: Option<TranslationRule>,
}

impl RouteRule {
    /// A rule for any source, with defaults in all else: nothing excepted, TTL decremented,
    /// single groups joined, no loop guard, nothing rewritten, the default name.
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
            join: JoinPolicy::default(),
            loop_guard: false,
            translation: None,
        }
    }

    /// Every name and pattern the rule mentions.
    pub fn from_and_to(&self) -> impl Iterator<Item = &IfPattern> {
        std::iter::once(&self.from).chain(&self.to)
    }

    /// The join the route asks for, if any.
    pub fn wanted_join(&self) -> Option<JoinRule> {
        let wanted = match self.join {
            JoinPolicy::Never => false,
            JoinPolicy::Always => true,
            // Without a source there is nothing to ask for in the source-specific range
            // (RFC 4604 section 1: such reports are ignored).
            JoinPolicy::Auto => self
                .group
                .single()
                .is_some_and(|g| self.source.single().is_some() || !g.is_source_specific()),
        };
        wanted.then(|| JoinRule {
            interface: self.from.clone(),
            source: self.source.single(),
            group: self.group,
            origin: self.origin,
        })
    }

    /// True where a packet on some interface could fit both rules equally well: same group,
    /// same source, and interfaces in common.
    pub fn rivals(&self, other: &RouteRule) -> bool {
        self.group == other.group
            && self.source == other.source
            && self.from.intersects(&other.from)
    }
}
