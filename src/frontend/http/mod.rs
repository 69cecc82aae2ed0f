//! HTTP, read-only: `/metrics`, `/healthz`, `/readyz`, and `/api/v1` with the data of
//! `mcastor show`.

mod actor;

pub use actor::HttpServerActor;

use std::borrow::Cow;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::http::header::ContentType;
use actix_web::web::{self, Data};
use actix_web::{App, HttpResponse, HttpServer};
use serde_json::json;

use super::{background, query};
use crate::actors::RouterContext;
use crate::api::{self, FlowQuery, ShowQuery, ShowReply};
use crate::model::escape::{EscapeStyle, escape};

/// Limit of concurrent connections. More wait in the queue of the listener.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Starts the server.
fn serve(context: Arc<RouterContext>, listener: TcpListener) -> io::Result<Server> {
    let context = Data::from(context);
    let server = HttpServer::new(move || {
        App::new()
            .app_data(context.clone())
            .route("/metrics", web::get().to(metrics))
            .route("/healthz", web::get().to(healthz))
            .route("/readyz", web::get().to(readyz))
            .route("/api/v1/flows", web::get().to(flows))
            .route("/api/v1/{query}", web::get().to(show))
            .default_service(web::to(not_found))
    })
    .workers(1)
    .max_connections(MAX_CONNECTIONS)
    .client_request_timeout(REQUEST_TIMEOUT)
    .disable_signals()
    .shutdown_timeout(0)
    .listen(listener)?
    .run();
    Ok(server)
}

async fn metrics(context: Data<RouterContext>) -> HttpResponse {
    match context.catalog.text() {
        Ok(text) => HttpResponse::Ok()
            .content_type("text/plain; version=0.0.4; charset=utf-8")
            .body(text),
        Err(e) => HttpResponse::InternalServerError().body(format!("metrics: {e}\n")),
    }
}

/// 200 while routing answers.
async fn healthz(context: Data<RouterContext>) -> HttpResponse {
    match query::show(&context, ShowQuery::Pending).await {
        Ok(_) => HttpResponse::Ok().json(json!({ "status": "ok" })),
        Err(e) => HttpResponse::ServiceUnavailable().json(json!({
            "status": "failing",
            "reason": e.to_string(),
        })),
    }
}

/// 200 once every ingress interface that exists is being captured.
async fn readyz(context: Data<RouterContext>) -> HttpResponse {
    if context.health.is_ready() {
        HttpResponse::Ok().json(json!({ "status": "ready" }))
    } else {
        HttpResponse::ServiceUnavailable().json(json!({
            "status": "not ready",
            "reason": "an interface of a route is not being captured yet",
        }))
    }
}

async fn flows(context: Data<RouterContext>, arguments: web::Query<FlowQuery>) -> HttpResponse {
    reply(&context, ShowQuery::Flows(arguments.into_inner())).await
}

async fn show(context: Data<RouterContext>, name: web::Path<String>) -> HttpResponse {
    match ShowQuery::all().into_iter().find(|q| q.name() == *name) {
        Some(query) => reply(&context, query).await,
        None => not_found().await,
    }
}

async fn reply(context: &RouterContext, query: ShowQuery) -> HttpResponse {
    match query::show(context, query).await {
        Ok(reply @ ShowReply::Flows(_)) => match background::run(move || encode(&reply)).await {
            Some(Ok(body)) => HttpResponse::Ok()
                .content_type(ContentType::json())
                .body(body),
            _ => not_encoded(),
        },
        Ok(reply) => match encode(&reply) {
            Ok(body) => HttpResponse::Ok()
                .content_type(ContentType::json())
                .body(body),
            Err(_) => not_encoded(),
        },
        Err(e) => HttpResponse::ServiceUnavailable().json(json!({
            "version": api::VERSION,
            "error": e.to_string(),
        })),
    }
}

fn not_encoded() -> HttpResponse {
    HttpResponse::InternalServerError().json(json!({
        "version": api::VERSION,
        "error": "the reply could not be encoded; the log says why at level debug",
    }))
}

/// Encodes a reply as JSON that a terminal can show, for instance by curl.
fn encode(reply: &ShowReply) -> serde_json::Result<String> {
    let text = serde_json::to_string(&json!({ "version": api::VERSION, "show": reply }))?;
    Ok(match escape(&text, EscapeStyle::Json) {
        Cow::Borrowed(_) => text,
        Cow::Owned(escaped) => escaped,
    })
}

async fn not_found() -> HttpResponse {
    HttpResponse::NotFound()
        .content_type(ContentType::plaintext())
        .body(format!(
            "there are /metrics /healthz /readyz and {}\n",
            ShowQuery::all()
                .map(|s| format!("/api/v1/{}", s.name()))
                .join(" ")
        ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reply_is_json_without_bidirectional_controls() {
        let text = "a\u{202e}b";
        let body = encode(&ShowReply::Done(text.into())).unwrap();
        assert!(body.is_ascii(), "{body}");
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert!(body["show"].to_string().contains(text));
    }
}
