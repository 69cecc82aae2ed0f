//! The query of `/api/v1/events`.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// The path of the event stream.
pub const EVENTS_PATH: &str = "/api/v1/events";

/// Largest [`EventQuery::limit`].
pub const MAX_EVENT_ROWS: usize = 200;

/// What an event stream reports. Search, order and page apply to the first table of the view; the
/// overview has no search.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventQuery {
    /// The tables.
    pub view: EventView,
    /// Only rows that contain each of these words in one of their texts. A word may be a prefix
    /// of addresses such as `232.0.0.0/8`. At most eight words.
    pub search: String,
    /// For flows an order of `/api/v1/flows`, otherwise a property of the rows, such as `name` or
    /// `rates.packets`. A leading `-` reverses the order of a property. By default the order of the
    /// API; for flows, by rate.
    pub order: String,
    /// How many of the first rows are left out.
    pub offset: usize,
    /// Largest number of rows, up to 200.
    pub limit: usize,
}

impl Default for EventQuery {
    fn default() -> Self {
        Self {
            view: EventView::default(),
            search: String::new(),
            order: String::new(),
            offset: 0,
            limit: 50,
        }
    }
}

/// The tables of an event stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EventView {
    /// `interfaces`, the `flows` with the highest rates, the `drops` with the most packets, the
    /// `streams`, and what is `pending`.
    #[default]
    Overview,
    /// `interfaces`.
    Interfaces,
    /// `routes`, and what is `pending`.
    Routes,
    /// `flows`, also dropped ones.
    Flows,
    /// The monitored `streams`.
    Streams,
    /// `groups`.
    Groups,
    /// `drops`.
    Drops,
    /// `tunnels`.
    Tunnels,
    /// `offers`, `askers`, `questions` and `protocols` of discovery.
    Discovery,
    /// `mappings`, and the ends of multicast NAT: `mnat`.
    Mnat,
}
