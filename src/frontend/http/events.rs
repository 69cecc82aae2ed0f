//! `/api/v1/events`: server-sent events.

use std::convert::Infallible;

use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS};
use actix_web::web::{Data, Query};
use actix_web::{HttpRequest, HttpResponse};
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
///
/// A web page of another site cannot read events, but its streams would take the places of others.
pub async fn events(
    site: Data<Site>,
    query: Query<EventQuery>,
    request: HttpRequest,
) -> HttpResponse {
    // Browsers say where a request comes from (Fetch Metadata Request Headers, section 2.3).
    let fetch_site = request.headers().get("sec-fetch-site");
    if fetch_site.is_some_and(|site| site == "cross-site") {
        let refused = "a web page of another site cannot have an event stream";
        site.refusals.report(
            HttpRefusal::CrossSite,
            format_args!("refused a request: {refused}"),
        );
        return error_answer(StatusCode::FORBIDDEN, refused);
    }
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
