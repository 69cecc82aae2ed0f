//! What the program tells of itself and lets be changed: the same data over HTTP, over the
//! control socket, and in the tables of `mcastor show`. Version 1; docs/control.md describes
//! it for readers.

pub mod view;

use serde::{Deserialize, Serialize};

pub use view::{FlowView, GroupView, InterfaceView, PendingView, RouteView};

/// Version of the formats here. Fields may be added within a version, none changes.
pub const VERSION: u32 = 1;

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Show {
    /// The rules and what they forward.
    Routes,
    /// The interfaces and what they count.
    Interfaces,
    /// The flows being forwarded.
    Flows,
    /// The groups joined as a host.
    Groups,
    /// Routes and joins that wait for something.
    Pending,
}

impl Show {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Routes,
        Self::Interfaces,
        Self::Flows,
        Self::Groups,
        Self::Pending,
    ];

    /// Its name, as in `/api/v1/routes`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Routes => "routes",
            Self::Interfaces => "interfaces",
            Self::Flows => "flows",
            Self::Groups => "groups",
            Self::Pending => "pending",
        }
    }
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shown {
    /// Answer to [`Show::Routes`].
    Routes(Vec<RouteView>),
    /// Answer to [`Show::Interfaces`].
    Interfaces(Vec<InterfaceView>),
    /// Answer to [`Show::Flows`].
    Flows(Vec<FlowView>),
    /// Answer to [`Show::Groups`].
    Groups(Vec<GroupView>),
    /// Answer to [`Show::Pending`].
    Pending(Vec<PendingView>),
    /// What a change did, in a sentence.
    Done(String),
}

/// A change of the rules, until the next reload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Change {
    /// Add a route, or egresses to the one of the same interface, source and group.
    Add(RouteSpec),
    /// Remove egresses of a route, or without any, the route.
    Remove(RouteSpec),
    /// Join a group as a host.
    Join(JoinSpec),
    /// Take such a join back.
    Leave(JoinSpec),
}

/// A route in a [`Change`].
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
}

/// A join in a [`Change`].
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
