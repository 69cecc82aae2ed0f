//! What the program tells of itself: the same data over HTTP, over the control socket, and
//! in the tables of `mcastor show`. Version 1; docs/control.md describes it for readers.

pub mod view;

use serde::{Deserialize, Serialize};

pub use view::{InterfaceView, RouteView};

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
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shown {
    /// Answer to [`Show::Routes`].
    Routes(Vec<RouteView>),
    /// Answer to [`Show::Interfaces`].
    Interfaces(Vec<InterfaceView>),
}
