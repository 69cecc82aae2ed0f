//! `/api/v1/events`: server-sent events.

use std::convert::Infallible;

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS};
use actix_web::web::{Data, Query};
use futures_util::stream::unfold;

use super::error_answers::{error_answer, unavailable};
use super::site::Site;
use crate::api::events::EventQuery;
use crate::frontend::live::EventStream;
use crate::metrics::http::HttpRefusal;

/// Answers with events for as long as the client reads them.
///
/// A stream holds one page of a state, and no event waits: a client that reads slowly gets fewer
/// events. If it reads nothing for the write timeout, its connection is closed.
pub async fn events(site: Data<Site>, query: Query<EventQuery>) -> HttpResponse {
    let query = query.into_inner();
    if let Err(e) = EventStream::check(&query) {
        return error_answer(StatusCode::BAD_REQUEST, &e.to_string());
    }
    let stream = match EventStream::new(&site.feed, query) {
        Ok(stream) => stream,
        Err(e) => {
            site.refusals.report(
                HttpRefusal::EventStreams,
                format_args!("refused an event stream: {e}"),
            );
            return unavailable(&e.to_string());
        }
    };
    let events = unfold(stream, |mut stream| async move {
        let event = stream.next().await?;
        Some((Ok::<_, Infallible>(event), stream))
    });
    HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header((CACHE_CONTROL, "no-store"))
        .insert_header((X_CONTENT_TYPE_OPTIONS, "nosniff"))
        // nginx would collect events.
        .insert_header(("X-Accel-Buffering", "no"))
        .streaming(events)
}
