//! What the program tells of itself and lets be changed: the same data over HTTP, over the
//! control socket, and in the tables of `mcastor show`. Version 1; docs/control.md describes
//! it for readers.

pub mod view;

use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

pub use view::{
    FlowView, GroupSourceView, GroupView, InterfaceView, MappingView, MnatView, PendingView,
    QuerierView, RewriteView, RouteView,
};

/// Version of the formats here. Fields may be added within a version, none changes.
pub const VERSION: u32 = 1;

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShowQuery {
    /// The rules and what they forward.
    Routes,
    /// The interfaces and what they count.
    Interfaces,
    /// The flows being forwarded.
    Flows,
    /// The groups joined as a host, and those with members.
    Groups,
    /// Routes and joins that wait for something.
    Pending,
    /// What the MNAT server maps.
    Mnat,
}

impl ShowQuery {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Routes,
        Self::Interfaces,
        Self::Flows,
        Self::Groups,
        Self::Pending,
        Self::Mnat,
    ];

    /// Its name, as in `/api/v1/routes`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Routes => "routes",
            Self::Interfaces => "interfaces",
            Self::Flows => "flows",
            Self::Groups => "groups",
            Self::Pending => "pending",
            Self::Mnat => "mnat",
        }
    }
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShowReply {
    /// Answer to [`ShowQuery::Routes`].
    Routes(Vec<RouteView>),
    /// Answer to [`ShowQuery::Interfaces`].
    Interfaces(Vec<InterfaceView>),
    /// Answer to [`ShowQuery::Flows`].
    Flows(Vec<FlowView>),
    /// Answer to [`ShowQuery::Groups`].
    Groups(Vec<GroupView>),
    /// Answer to [`ShowQuery::Pending`].
    Pending(Vec<PendingView>),
    /// Answer to [`ShowQuery::Mnat`]: one end, or none.
    Mnat(Vec<MnatView>),
    /// What a change did, in a sentence.
    Done(String),
}

/// A change of the rules, until the next reload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum RuleChange {
    /// Add a route, or egresses to the one of the same interface, source and group.
    Add(RouteSpec),
    /// Remove egresses of a route, or without any, the route.
    Remove(RouteSpec),
    /// Join a group as a host.
    Join(JoinSpec),
    /// Take such a join back.
    Leave(JoinSpec),
}

/// A route in a [`RuleChange`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteSpec {
    /// Name or pattern of the interfaces packets arrive on.
    pub from: String,
    /// Source or prefix; any without.
    #[serde(default)]
    pub source: Option<String>,
    /// Group or prefix.
    pub group: String,
    /// Names and patterns of the interfaces packets leave on.
    #[serde(default)]
    pub to: Vec<String>,
    /// Whether its groups are joined as a host: each, none, or without this a single one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<bool>,
    /// What packets leave with instead. To remove a route it need not be named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<RewriteSpec>,
    /// With this, a route that sends nowhere may be added: it stops what it takes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stop: bool,
}

/// What a route in a [`RuleChange`] rewrites: at least one of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewriteSpec {
    /// Source, or a prefix with as many host bits as that of the route.
    #[serde(default)]
    pub source: Option<String>,
    /// Group, or a prefix likewise.
    #[serde(default)]
    pub group: Option<String>,
    /// UDP destination port.
    #[serde(default)]
    pub port: Option<NonZeroU16>,
}

/// A join in a [`RuleChange`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinSpec {
    /// Name or pattern of the interfaces to join on.
    pub interface: String,
    /// One source; any without.
    #[serde(default)]
    pub source: Option<String>,
    /// Group, or prefix of groups.
    pub group: String,
}
