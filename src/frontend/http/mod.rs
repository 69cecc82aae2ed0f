//! HTTP, read-only: `/metrics`, `/healthz`, `/readyz`, and `/api/v1` with the data of
//! `mcastor show` and `mcastor explain`.
//!
//! Clients may be hostile. Each of them costs a bounded amount of memory:
//!
//! ```text
//! listener -> connections: the oldest gives way -> request_stream: one request, write timeout
//!     -> host: names of this machine -> answers: turns to render, memory of unread answers
//! ```

mod actor;
mod answers;
mod connections;
mod host;
mod listener;
mod refusals;
mod request_stream;
mod server;

pub use actor::HttpServerActor;
pub use listener::HttpListener;
pub use refusals::Refusals;
pub use server::HttpServer;

use std::borrow::Cow;
use std::fmt::Display;
use std::io;
use std::sync::Arc;

use actix_web::dev::Server;
use actix_web::error::{InternalError, QueryPayloadError};
use actix_web::http::StatusCode;
use actix_web::http::header::ContentType;
use actix_web::web::{self, Data};
use actix_web::{HttpRequest, HttpResponse};
use serde_json::json;

use super::query::QueryError;
use super::{background, query};
use crate::actors::RouterContext;
use crate::api::openapi::{OPENAPI_PATH, api_paths, openapi_text};
use crate::api::{self, DropQuery, ExplainQuery, FlowQuery, ShowQuery, ShowReply, StreamQuery};
use crate::model::escape::{EscapeStyle, escape};
use answers::{AnswerLimits, Busy};

/// The configuration of the server.
#[derive(Debug)]
pub struct HttpConfig {
    /// The listening socket.
    pub listener: HttpListener,
    /// Host names under which the server is reached, besides the built-in ones.
    pub hosts: Vec<String>,
    /// Whether to serve `/api/v1`.
    pub api: bool,
    /// How many connections the limit of open files permits.
    pub max_connections: usize,
}

impl HttpConfig {
    /// Returns the same configuration with another handle of the socket.
    ///
    /// # Errors
    /// The process has too many open files.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            listener: self.listener.try_clone()?,
            hosts: self.hosts.clone(),
            api: self.api,
            max_connections: self.max_connections,
        })
    }
}

/// What the handlers share.
struct Site {
    context: Arc<RouterContext>,
    answers: AnswerLimits,
    api: bool,
}

/// Starts the server.
fn serve(context: Arc<RouterContext>, config: HttpConfig) -> io::Result<Server> {
    let refusals = Refusals::new(context.catalog.http.clone());
    let site = Data::new(Site {
        context,
        answers: AnswerLimits::new(refusals.clone()),
        api: config.api,
    });
    let server = HttpServer {
        listener: config.listener,
        hosts: config.hosts,
        max_connections: config.max_connections,
        refusals,
    };
    server.start(move |app| {
        app.app_data(site.clone())
            .app_data(web::QueryConfig::default().error_handler(invalid_parameters))
            .route("/metrics", web::get().to(metrics))
            .route("/healthz", web::get().to(healthz))
            .route("/readyz", web::get().to(readyz))
            .default_service(web::to(not_found));
        if site.api {
            app.route("/api/v1/flows", web::get().to(flows))
                .route("/api/v1/drops", web::get().to(drops))
                .route("/api/v1/streams", web::get().to(streams))
                .route("/api/v1/explain", web::get().to(explain))
                .route(OPENAPI_PATH, web::get().to(openapi))
                .route("/api/v1/{query}", web::get().to(show));
        } else {
            app.route("/api/{path:.*}", web::to(api_is_off));
        }
    })
}

async fn metrics(site: Data<Site>) -> HttpResponse {
    match rendered_metrics(&site).await {
        Ok(response) => response,
        Err(busy) => HttpResponse::ServiceUnavailable().body(format!("{busy}\n")),
    }
}

async fn rendered_metrics(site: &Site) -> Result<HttpResponse, Busy> {
    let turn = site.answers.metrics_turn().await?;
    let context = site.context.clone();
    let failed =
        |e: &dyn Display| HttpResponse::InternalServerError().body(format!("metrics: {e}\n"));
    // On another thread, so that probes do not wait.
    let read = move || {
        context.count_planes();
        context.catalog.text()
    };
    Ok(match web::block(read).await {
        Ok(Ok(text)) => HttpResponse::Ok()
            .content_type("text/plain; version=0.0.4; charset=utf-8")
            .body(turn.body(text).await?),
        Ok(Err(e)) => failed(&e),
        Err(e) => failed(&e),
    })
}

/// 200 while routing answers.
async fn healthz(site: Data<Site>) -> HttpResponse {
    match query::show(&site.context, ShowQuery::Pending).await {
        Ok(_) => HttpResponse::Ok().json(json!({ "status": "ok" })),
        Err(e) => HttpResponse::ServiceUnavailable().json(json!({
            "status": "failing",
            "reason": e.to_string(),
        })),
    }
}

/// 200 once every ingress interface that exists is being captured.
async fn readyz(site: Data<Site>) -> HttpResponse {
    if site.context.health.is_ready() {
        HttpResponse::Ok().json(json!({ "status": "ready" }))
    } else {
        HttpResponse::ServiceUnavailable().json(json!({
            "status": "not ready",
            "reason": "an interface of a route is not being captured yet",
        }))
    }
}

async fn flows(site: Data<Site>, arguments: web::Query<FlowQuery>) -> HttpResponse {
    reply(&site, ShowQuery::Flows(arguments.into_inner())).await
}

async fn drops(site: Data<Site>, arguments: web::Query<DropQuery>) -> HttpResponse {
    reply(&site, ShowQuery::Drops(arguments.into_inner())).await
}

async fn streams(site: Data<Site>, arguments: web::Query<StreamQuery>) -> HttpResponse {
    reply(&site, ShowQuery::Streams(arguments.into_inner())).await
}

async fn explain(site: Data<Site>, packet: web::Query<ExplainQuery>) -> HttpResponse {
    match rendered_explanation(&site, packet.into_inner()).await {
        Ok(response) => response,
        Err(busy) => unavailable(&busy.to_string()),
    }
}

async fn rendered_explanation(site: &Site, packet: ExplainQuery) -> Result<HttpResponse, Busy> {
    let turn = site.answers.api_turn().await?;
    let view = match super::explain::explain(&site.context, packet).await {
        Ok(view) => view,
        Err(e) => return Ok(failed(&e)),
    };
    let answer = json!({ "version": api::VERSION, "explain": view });
    Ok(HttpResponse::Ok()
        .content_type(ContentType::json())
        .body(turn.body(escaped(answer.to_string())).await?))
}

async fn openapi(site: Data<Site>) -> HttpResponse {
    match rendered_openapi(&site).await {
        Ok(response) => response,
        Err(busy) => unavailable(&busy.to_string()),
    }
}

async fn rendered_openapi(site: &Site) -> Result<HttpResponse, Busy> {
    let turn = site.answers.api_turn().await?;
    Ok(match web::block(openapi_text).await {
        Ok(Ok(text)) => HttpResponse::Ok()
            .content_type(ContentType::json())
            .body(turn.body(text).await?),
        _ => not_encoded(),
    })
}

async fn show(site: Data<Site>, name: web::Path<String>) -> HttpResponse {
    match ShowQuery::all().into_iter().find(|q| q.name() == *name) {
        Some(query) => reply(&site, query).await,
        None => not_found(site).await,
    }
}

async fn reply(site: &Site, query: ShowQuery) -> HttpResponse {
    match rendered_reply(site, query).await {
        Ok(response) => response,
        Err(busy) => unavailable(&busy.to_string()),
    }
}

async fn rendered_reply(site: &Site, query: ShowQuery) -> Result<HttpResponse, Busy> {
    let turn = site.answers.api_turn().await?;
    let encoded = match query::show(&site.context, query).await {
        Ok(reply @ (ShowReply::Flows(_) | ShowReply::Drops(_) | ShowReply::Streams(_))) => {
            background::run(move || encode(&reply)).await
        }
        Ok(reply) => web::block(move || encode(&reply)).await.ok(),
        Err(e) => return Ok(failed(&e)),
    };
    Ok(match encoded {
        Some(Ok(text)) => HttpResponse::Ok()
            .content_type(ContentType::json())
            .body(turn.body(text).await?),
        _ => not_encoded(),
    })
}

/// Returns an answer of the API that says what is wrong.
fn error_answer(status: StatusCode, error: &str) -> HttpResponse {
    let answer = json!({ "version": api::VERSION, "error": error });
    HttpResponse::build(status)
        .content_type(ContentType::json())
        .body(escaped(answer.to_string()))
}

fn unavailable(error: &str) -> HttpResponse {
    error_answer(StatusCode::SERVICE_UNAVAILABLE, error)
}

fn not_encoded() -> HttpResponse {
    error_answer(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the reply could not be encoded; the log says why at level debug",
    )
}

fn failed(error: &QueryError) -> HttpResponse {
    match error {
        QueryError::NoAnswer(_) => unavailable(&error.to_string()),
        QueryError::Refused(why) => error_answer(StatusCode::BAD_REQUEST, why),
    }
}

/// Answers a request with missing, unknown or invalid query parameters.
fn invalid_parameters(error: QueryPayloadError, _: &HttpRequest) -> actix_web::Error {
    let why = match &error {
        QueryPayloadError::Deserialize(why) => why.to_string(),
        _ => error.to_string(),
    };
    let answer = error_answer(StatusCode::BAD_REQUEST, &why);
    InternalError::from_response(error, answer).into()
}

fn encode(reply: &ShowReply) -> serde_json::Result<String> {
    let text = serde_json::to_string(&json!({ "version": api::VERSION, "show": reply }))?;
    Ok(escaped(text))
}

/// Returns JSON that a terminal can show, for instance by curl.
fn escaped(json: String) -> String {
    match escape(&json, EscapeStyle::Json) {
        Cow::Borrowed(_) => json,
        Cow::Owned(escaped) => escaped,
    }
}

async fn api_is_off() -> HttpResponse {
    error_answer(
        StatusCode::NOT_FOUND,
        "the API is turned off by api = false in [http] of the settings",
    )
}

async fn not_found(site: Data<Site>) -> HttpResponse {
    let api = match site.api {
        true => " ".to_string() + &api_paths().join(" "),
        false => String::new(),
    };
    HttpResponse::NotFound()
        .content_type(ContentType::plaintext())
        .body(format!("there are /metrics /healthz /readyz{api}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::body::MessageBody;

    #[test]
    fn reply_is_json_without_bidirectional_controls() {
        let text = "a\u{202e}b";
        let body = encode(&ShowReply::Done(text.into())).unwrap();
        assert!(body.is_ascii(), "{body}");
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert!(body["show"].to_string().contains(text));
    }

    /// The answers with 500 and 503, which the test of the OpenAPI document cannot cause.
    #[test]
    fn error_answers_have_version_and_error() {
        for response in [unavailable("a\u{202e}b"), not_encoded()] {
            let body = response.into_body().try_into_bytes().unwrap();
            assert!(body.is_ascii(), "{body:?}");
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let keys: Vec<_> = body.as_object().unwrap().keys().collect();
            assert_eq!(keys, ["error", "version"]);
        }
    }
}
