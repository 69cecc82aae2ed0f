//! The events of one client, in the format of server-sent events (HTML, section 9.2).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::feed::{Feed, FeedSubscription, TooManySubscriptions};
use super::frame::flow_order;
use super::merge_patch::merge_patch;
use super::table::TableName;
use crate::api::events::{EventQuery, EventView, MAX_EVENT_ROWS};
use crate::frontend::background;
use crate::model::escape::{EscapeStyle, escape};

/// How long a stream lasts. Browsers then open another one by themselves.
const LIFETIME: Duration = Duration::from_secs(50);
/// How long a browser waits before it opens another stream, in milliseconds.
const RETRY_MS: u32 = 500;
/// Interval of comments while nothing changes. The second write to a client that has gone fails, and
/// its stream no longer counts: who looks at many views in turn has few streams.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Most bytes of the search, and of the order.
const MAX_TEXT: usize = 200;

/// The events of one client.
pub struct EventStream {
    query: Arc<EventQuery>,
    subscription: FeedSubscription,
    /// The state that the client has.
    sent: Value,
    ends: Instant,
    has_begun: bool,
}

/// Why a query has no events.
#[derive(Debug, thiserror::Error)]
pub enum InvalidEventQuery {
    /// The limit is too high.
    #[error("limit is at most {MAX_EVENT_ROWS}")]
    Limit,
    /// A text is too long.
    #[error("search and order have at most {MAX_TEXT} bytes")]
    Text,
    /// The order is none of flows.
    #[error("order is one of recent, packets, bytes, rate, address for flows")]
    Order,
}

impl EventStream {
    /// Returns the events for a valid query.
    ///
    /// # Errors
    /// There are too many streams.
    pub fn new(feed: &Arc<Feed>, query: EventQuery) -> Result<Self, TooManySubscriptions> {
        let tables = TableName::of_view(query.view).iter();
        Ok(Self {
            subscription: feed.subscribe(tables.map(|(table, _)| *table).collect())?,
            query: query.into(),
            sent: json!({}),
            ends: Instant::now() + LIFETIME,
            has_begun: false,
        })
    }

    /// Checks what the format of a query cannot express.
    ///
    /// # Errors
    /// An argument has an invalid value.
    pub fn check(query: &EventQuery) -> Result<(), InvalidEventQuery> {
        if query.limit > MAX_EVENT_ROWS {
            return Err(InvalidEventQuery::Limit);
        }
        if query.search.len() > MAX_TEXT || query.order.len() > MAX_TEXT {
            return Err(InvalidEventQuery::Text);
        }
        if query.view == EventView::Flows && flow_order(&query.order).is_none() {
            return Err(InvalidEventQuery::Order);
        }
        Ok(())
    }

    /// Returns the next bytes of the stream: an event with what has changed since the last one, or
    /// a comment. `None` at the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        if !std::mem::replace(&mut self.has_begun, true) {
            return Some(format!("retry: {RETRY_MS}\n\n").into());
        }
        let heartbeat = Instant::now() + HEARTBEAT;
        while Instant::now() < self.ends {
            let Ok(frame) = timeout_at(heartbeat, self.subscription.frame()).await else {
                return Some(Bytes::from_static(b":\n\n"));
            };
            let (frame, query) = (frame?, self.query.clone());
            let state = background::run(move || frame.state(&query)).await;
            if let Some(state) = state.flatten()
                && let Some(patch) = merge_patch(&self.sent, &state)
            {
                self.sent = state;
                return Some(event(&patch));
            }
        }
        None
    }
}

/// Returns an event. JSON has no line break outside of strings, and escapes those inside.
fn event(data: &Value) -> Bytes {
    let json = data.to_string();
    format!("data: {}\n\n", escape(&json, EscapeStyle::Json)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_with_invalid_values_are_refused() {
        let query = |change: fn(&mut EventQuery)| {
            let mut query = EventQuery::default();
            change(&mut query);
            EventStream::check(&query).map_err(|e| e.to_string())
        };
        assert_eq!(query(|_| {}), Ok(()));
        for invalid in [
            |query: &mut EventQuery| query.limit = 201,
            |query: &mut EventQuery| query.search = "a".repeat(201),
            |query: &mut EventQuery| {
                (query.view, query.order) = (EventView::Flows, "size".into());
            },
        ] {
            assert!(query(invalid).is_err());
        }
    }

    #[test]
    fn event_is_one_line_without_control_characters() {
        let data = json!({"a": "line\nbreak \u{202e} \u{1b}[2J"});
        let event = String::from_utf8(event(&data).to_vec()).unwrap();
        assert!(
            event.is_ascii() && event.matches('\n').count() == 2,
            "{event:?}"
        );
        let sent: Value =
            serde_json::from_str(event.trim().strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(sent, data);
    }
}
