//! HTTP, read-only: `/metrics`, `/healthz`, `/readyz`, `/api/v1` with the data of `mcastor show` and
//! `mcastor explain`, and at `/` a page that shows them.
//!
//! Clients may be hostile. Each of them costs a bounded amount of memory:
//!
//! ```text
//! listener -> shared_limit: connections -> request_stream: one request, write timeout
//!     -> host: names of this machine -> answers: turns to render, memory of unread answers
//! ```

mod actor;
mod answers;
mod error_answers;
mod events;
mod host;
mod listener;
mod page;
mod refusals;
mod request_stream;
mod server;
mod shared_limit;
mod site;

pub use actor::HttpServerActor;
pub use listener::HttpListener;
pub use page::{PageFile, page_files};
pub use refusals::Refusals;
pub use server::HttpServer;
pub use shared_limit::{ClientSource, Share, SharedLimit};

use std::fmt::Display;
use std::io;
use std::sync::Arc;

use actix_web::HttpResponse;
use actix_web::dev::Server;
use actix_web::http::header::ContentType;
use actix_web::web::{self, Data};
use serde::Serialize;
use serde_json::json;

use super::flow_views::SelectedFlows;
use super::live::Feed;
use super::{background, query};
use crate::actors::RouterContext;
use crate::api::events::EVENTS_PATH;
use crate::api::openapi::{OPENAPI_PATH, openapi_text};
use crate::api::{self, DropQuery, ExplainQuery, FlowQuery, ShowQuery, ShowReply, StreamQuery};
use answers::{AnswerLimits, Busy, RenderTurn};
use error_answers::{
    api_is_off, escaped, failed, invalid_parameters, not_encoded, not_found, not_served,
    unavailable,
};
use site::Site;

/// The configuration of the server.
#[derive(Debug)]
pub struct HttpConfig {
    /// The listening socket.
    pub listener: HttpListener,
    /// Host names under which the server is reached, besides the built-in ones.
    pub hosts: Vec<String>,
    /// Whether to serve `/api/v1` and the page.
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

/// Starts the server.
fn serve(context: Arc<RouterContext>, config: HttpConfig) -> io::Result<Server> {
    let refusals = Refusals::new(context.catalog.http.clone());
    let site = Data::new(Site {
        feed: Feed::new(context.clone()),
        context,
        answers: AnswerLimits::new(refusals.clone()),
        refusals: refusals.clone(),
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
            .default_service(web::to(not_served));
        if site.api {
            app.route("/", web::get().to(page::page))
                .route("/page/{name}", web::get().to(page::page))
                .route(EVENTS_PATH, web::get().to(events::events))
                .route("/api/v1/flows", web::get().to(flows))
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
    match rendered_flows(&site, arguments.into_inner()).await {
        Ok(response) => response,
        Err(busy) => unavailable(&busy.to_string()),
    }
}

async fn rendered_flows(site: &Site, arguments: FlowQuery) -> Result<HttpResponse, Busy> {
    let turn = site.answers.api_turn().await?;
    let selected = match query::flows(&site.context, arguments).await {
        Ok(selected) => selected,
        Err(e) => return Ok(failed(&e)),
    };
    let encoded = background::run(move || {
        let SelectedFlows { flows, total } = selected;
        encode(&json!({ "flows": flows, "total": total }))
    });
    answered(turn, encoded.await).await
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
        Ok(reply @ (ShowReply::Drops(_) | ShowReply::Streams(_))) => {
            background::run(move || encode(&reply)).await
        }
        Ok(reply) => web::block(move || encode(&reply)).await.ok(),
        Err(e) => return Ok(failed(&e)),
    };
    answered(turn, encoded).await
}

async fn answered(
    turn: RenderTurn<'_>,
    encoded: Option<serde_json::Result<String>>,
) -> Result<HttpResponse, Busy> {
    Ok(match encoded {
        Some(Ok(text)) => HttpResponse::Ok()
            .content_type(ContentType::json())
            .body(turn.body(text).await?),
        _ => not_encoded(),
    })
}

fn encode(reply: &impl Serialize) -> serde_json::Result<String> {
    let text = serde_json::to_string(&json!({ "version": api::VERSION, "show": reply }))?;
    Ok(escaped(text))
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
