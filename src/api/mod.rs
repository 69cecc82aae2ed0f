//! The data formats of queries and changes. HTTP, the control socket and `mcastor show` use the
//! same data. docs/control.md describes version 1 for users.

pub mod events;
pub mod explain;
pub mod openapi;
mod show_query;
pub mod streams;
pub mod trace;
mod upgrade;
pub mod view;

use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

pub use explain::{
    ExplainQuery, ExplainView, ExplainedEgress, ExplainedIngress, ExplainedQuerier, ExplainedRule,
    RefusedView,
};
pub use show_query::{DropQuery, FlowOrder, FlowQuery, ShowQuery};
pub use streams::{StreamQuery, StreamView};
pub use trace::{TraceQuery, TraceView, TracedPacketView, TracedPathView};
pub use upgrade::{UpgradeQuery, UpgradeReport};
pub use view::{
    DiscoveryAskerView, DiscoveryOfferView, DiscoveryProtocolView, DiscoveryQuestionView,
    DiscoveryView, DropView, FlowView, GroupSourceView, GroupView, InterfaceView, MappingView,
    MnatView, PendingView, QuerierView, RewriteView, RouteView, TunnelView,
};

/// Version of the formats. Within a version, fields can be added, but existing fields do not
/// change.
pub const VERSION: u32 = 1;

/// The reply to a [`ShowQuery`] or a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShowReply {
    /// Reply to [`ShowQuery::Routes`].
    Routes(Vec<RouteView>),
    /// Reply to [`ShowQuery::Interfaces`].
    Interfaces(Vec<InterfaceView>),
    /// Reply to [`ShowQuery::Flows`].
    Flows(Vec<FlowView>),
    /// Reply to [`ShowQuery::Groups`].
    Groups(Vec<GroupView>),
    /// Reply to [`ShowQuery::Pending`].
    Pending(Vec<PendingView>),
    /// Reply to [`ShowQuery::Mnat`]: one element, or none without `[mnat]`.
    Mnat(Vec<MnatView>),
    /// Reply to [`ShowQuery::Tunnels`].
    Tunnels(Vec<TunnelView>),
    /// Reply to [`ShowQuery::Discovery`]: one element for each `[[discovery]]`.
    Discovery(Vec<DiscoveryView>),
    /// Reply to [`ShowQuery::Drops`].
    Drops(Vec<DropView>),
    /// Reply to [`ShowQuery::Streams`].
    Streams(Vec<StreamView>),
    /// Reply to an [`ExplainQuery`].
    Explain(Box<ExplainView>),
    /// Reply to a [`TraceQuery`].
    Trace(TraceView),
    /// Reply to an [`UpgradeQuery`].
    Upgraded(UpgradeReport),
    /// Reply to a change: a sentence that describes its effect.
    Done(String),
}

/// A change of routes or joins, which the next reload of the settings reverts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum RuleChange {
    /// Add a route, or egresses to the route with the same interface, source and group.
    Add(RouteSpec),
    /// Remove egresses of a route; if none are given, remove the route.
    Remove(RouteSpec),
    /// Join a group as a host.
    Join(JoinSpec),
    /// Undo a join of [`RuleChange::Join`] or of the settings.
    Leave(JoinSpec),
}

/// A route in a [`RuleChange`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteSpec {
    /// Name or pattern of the interfaces that packets arrive on.
    pub from: String,
    /// Source or prefix; `None` means any source.
    #[serde(default)]
    pub source: Option<String>,
    /// Group or prefix.
    pub group: String,
    /// Names and patterns of the interfaces that packets leave on.
    #[serde(default)]
    pub to: Vec<String>,
    /// Whether the groups of the route are joined as a host. `None` means `"auto"` as in the
    /// settings, which joins a single group but no prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<bool>,
    /// Translation of the packets. Not needed to remove a route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<RewriteSpec>,
    /// Permits a route without egresses, or of link-local groups. Such a route drops the packets
    /// that it matches.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stop: bool,
}

/// The translation of a route in a [`RuleChange`]. At least one field must be set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewriteSpec {
    /// New source: an address, or a prefix with as many host bits as the source of the route.
    #[serde(default)]
    pub source: Option<String>,
    /// New group: an address, or a prefix with as many host bits as the group of the route.
    #[serde(default)]
    pub group: Option<String>,
    /// New UDP destination port.
    #[serde(default)]
    pub port: Option<NonZeroU16>,
}

/// A join in a [`RuleChange`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinSpec {
    /// Name or pattern of the interfaces to join on.
    pub interface: String,
    /// Source; `None` means any source.
    #[serde(default)]
    pub source: Option<String>,
    /// Group or prefix of groups.
    pub group: String,
}
