//! `show streams`: the monitored streams, from the latest reports of the data threads.

use std::sync::Arc;

use super::background;
use crate::actors::directory::NoReceiver;
use crate::actors::shared::RouterContext;
use crate::api::streams::StreamVerdict;
use crate::api::{StreamQuery, StreamView};

/// Returns the streams that match a query: those with a problem first, then by group.
///
/// # Errors
/// The list could not be rendered.
pub async fn streams(
    context: &RouterContext,
    query: StreamQuery,
) -> Result<Vec<StreamView>, NoReceiver> {
    let (snapshot, now_ms) = (context.snapshot.load_full(), context.now_ms());
    let monitoring = Arc::clone(&context.monitoring);
    let rendered = background::run(move || {
        let mut views = monitoring.views(&snapshot.fib, now_ms);
        views.retain(|view| matches(&query, view));
        views.sort_by_cached_key(sort_key);
        views.truncate(query.limit.unwrap_or(usize::MAX));
        views
    });
    rendered.await.ok_or(NoReceiver)
}

fn sort_key(view: &StreamView) -> impl Ord + use<> {
    let rank = match view.verdict {
        StreamVerdict::Silent => 0,
        StreamVerdict::LostHere | StreamVerdict::LostBeforeAndHere => 1,
        StreamVerdict::LostBefore => 2,
        StreamVerdict::Faulty => 3,
        StreamVerdict::Fine => 4,
    };
    let address = |text: &str| text.parse::<std::net::IpAddr>().ok();
    let addresses = (address(&view.group), address(&view.source));
    (rank, addresses, view.iif.clone())
}

fn matches(query: &StreamQuery, view: &StreamView) -> bool {
    let is = |wanted: Option<std::net::IpAddr>, text: &str| {
        wanted.is_none_or(|wanted| wanted.to_string() == text)
    };
    query.iif.as_ref().is_none_or(|iif| *iif == view.iif)
        && is(query.source, &view.source)
        && is(query.group, &view.group)
}
