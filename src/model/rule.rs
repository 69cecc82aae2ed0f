//! A route as an operator means it, before interfaces are known.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::{GroupPrefix, IfPattern, SourcePrefix, TtlPolicy};

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

/// Who asked for a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A `[[route]]` of the settings.
    Settings,
    /// `mcastor add`; lives until the next reload.
    Command,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Settings => "settings",
            Self::Command => "command",
        })
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
}

impl RouteRule {
    /// True where a packet on some interface could fit both rules equally well: same group,
    /// same source, and interfaces in common.
    pub fn rivals(&self, other: &RouteRule) -> bool {
        self.group == other.group
            && self.source == other.source
            && self.from.intersects(&other.from)
    }
}
