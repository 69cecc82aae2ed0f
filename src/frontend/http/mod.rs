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

pub use actor::HttpServerActor;
pub use listener::HttpListener;

use std::borrow::Cow;
use std::fmt::Display;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use actix_http::{HttpService, KeepAlive};
use actix_rt::net::ActixStream;
use actix_service::{ServiceFactory, ServiceFactoryExt, apply_fn_factory, map_config};
use actix_web::body::MessageBody;
use actix_web::dev::{AppConfig, Server, ServiceRequest, ServiceResponse};
use actix_web::error::{InternalError, QueryPayloadError};
use actix_web::http::StatusCode;
use actix_web::http::header::{ContentType, HOST};
use actix_web::middleware::{Next, from_fn};
use actix_web::web::{self, Data};
use actix_web::{App, HttpRequest, HttpResponse};
use serde_json::json;
use socket2::SockRef;
use tokio::time::timeout;
use tracing::debug;

use super::query::QueryError;
use super::{background, query};
use crate::actors::{RouterContext, confined_thread};
use crate::api::openapi::{OPENAPI_PATH, api_paths, openapi_text};
use crate::api::{self, DropQuery, ExplainQuery, FlowQuery, ShowQuery, ShowReply};
use crate::metrics::http::HttpRefusal;
use crate::model::escape::{EscapeStyle, escape};
use answers::{AnswerLimits, Busy};
use connections::{Connections, MAX_CONNECTIONS};
use host::AllowedHosts;
use refusals::Refusals;
use request_stream::{REQUEST_TIMEOUT, RequestStream};

/// How long a connection may last, however slowly its client reads.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest answer in the buffer of actix-http, in bytes, before it is written to the socket.
const WRITE_BUFFER: usize = 16 << 10;
/// Size of the kernel's send and receive buffers of a connection, in bytes. The kernel doubles it.
const SOCKET_BUFFER: usize = 64 << 10;

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
    refusals: Refusals,
    /// `None` accepts any host: only programs of this machine reach a UNIX socket.
    hosts: Option<AllowedHosts>,
    answers: AnswerLimits,
    api: bool,
    max_connections: usize,
}

/// Starts the server.
fn serve(context: Arc<RouterContext>, config: HttpConfig) -> io::Result<Server> {
    let refusals = Refusals::new(context.clone());
    let limit = config.max_connections.clamp(4, MAX_CONNECTIONS);
    let site = Data::new(Site {
        context,
        hosts: match config.listener {
            HttpListener::Tcp(_) => Some(AllowedHosts::new(&config.hosts)),
            HttpListener::Unix(_) => None,
        },
        answers: AnswerLimits::new(refusals.clone()),
        refusals,
        api: config.api,
        max_connections: limit,
    });
    let server = Server::build()
        .workers(1)
        // More connections than the limit exist for a moment, while the oldest are closed.
        .max_concurrent_connections(2 * limit)
        .disable_signals()
        .shutdown_timeout(0);
    let server = match config.listener {
        HttpListener::Tcp(listener) => {
            server.listen("http", listener, move || connection_service(site.clone()))
        }
        HttpListener::Unix(listener) => {
            server.listen_uds("http", listener, move || connection_service(site.clone()))
        }
    };
    Ok(server?.run())
}

/// Returns the service that serves accepted connections, and confines the thread that calls this.
fn connection_service<S>(
    site: Data<Site>,
) -> impl ServiceFactory<S, Config = (), Response = (), Error = (), InitError = ()>
where
    S: ActixStream + std::os::fd::AsFd + 'static,
{
    confined_thread::confine_without_files();
    let refusals = site.refusals.clone();
    let app = App::new()
        .app_data(site.clone())
        .app_data(web::QueryConfig::default().error_handler(invalid_parameters))
        .wrap(from_fn(check_host))
        .route("/metrics", web::get().to(metrics))
        .route("/healthz", web::get().to(healthz))
        .route("/readyz", web::get().to(readyz))
        .configure(|app| {
            if site.api {
                app.route("/api/v1/flows", web::get().to(flows))
                    .route("/api/v1/drops", web::get().to(drops))
                    .route("/api/v1/explain", web::get().to(explain))
                    .route(OPENAPI_PATH, web::get().to(openapi))
                    .route("/api/v1/{query}", web::get().to(show));
            } else {
                app.route("/api/{path:.*}", web::to(api_is_off));
            }
        })
        .default_service(web::to(not_found));
    let http = HttpService::build()
        .keep_alive(KeepAlive::Disabled)
        .client_request_timeout(REQUEST_TIMEOUT)
        .h1_write_buffer_size(WRITE_BUFFER)
        .h1(map_config(app, |()| AppConfig::default()))
        .map_err(|e| debug!("http: a connection ended: {e}"));
    let limit = site.max_connections;
    let connections = Connections::new(limit);
    apply_fn_factory(http, move |stream: S, http| {
        limit_buffers(&stream);
        let (slot, is_full) = connections.admit();
        if is_full {
            refusals.report(
                HttpRefusal::Evicted,
                format_args!(
                    "closed the oldest of {limit} connections in favour of a new one; \
                     look for clients that hang, or restrict access with [http] listen or a \
                     firewall"
                ),
            );
        }
        let stream = RequestStream::new(stream, refusals.clone());
        let served = actix_service::Service::call(http, (stream, None));
        let refusals = refusals.clone();
        async move {
            tokio::select! {
                served = timeout(CONNECTION_TIMEOUT, served) => served.unwrap_or_else(|_| {
                    refusals.report(
                        HttpRefusal::WriteTimeout,
                        format_args!(
                            "closed a connection that lasted {} s; look for a client that reads \
                             too slowly",
                            CONNECTION_TIMEOUT.as_secs()
                        ),
                    );
                    Ok(())
                }),
                () = slot.evicted() => Ok(()),
            }
        }
    })
}

/// Keeps the kernel from buffering more for a client that does not read, or sends too much.
fn limit_buffers(stream: &impl std::os::fd::AsFd) {
    let socket = SockRef::from(stream);
    let limited = socket.set_send_buffer_size(SOCKET_BUFFER);
    if let Err(e) = limited.and_then(|()| socket.set_recv_buffer_size(SOCKET_BUFFER)) {
        debug!("http: cannot limit the buffers of a connection: {e}");
    }
}

/// Refuses requests for another host.
async fn check_host(
    site: Data<Site>,
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> actix_web::Result<ServiceResponse> {
    let foreign = site.hosts.as_ref().and_then(|allowed| {
        let headers = request.headers().get_all(HOST);
        let headers = headers.map(|host| String::from_utf8_lossy(host.as_bytes()));
        // A request line with a whole URL overrides the header.
        let in_url = request.uri().host().map(Into::into);
        headers.chain(in_url).find(|host| !allowed.allows(host))
    });
    let Some(foreign) = foreign else {
        return Ok(next.call(request).await?.map_into_boxed_body());
    };
    let name: String = foreign.chars().take(100).collect();
    site.refusals.report(
        HttpRefusal::Host,
        format_args!(
            "refused a request for the host {name:?}, which may be a web page that attacks this \
             router (DNS rebinding); if it is a name of this machine, add it to hosts in [http]"
        ),
    );
    let response = HttpResponse::build(StatusCode::MISDIRECTED_REQUEST)
        .content_type(ContentType::plaintext())
        .body(format!(
            "this server does not answer for the host {name:?}; if it is a name of this machine, \
             add it to the settings: [http] hosts = [\"NAME\"]\n"
        ));
    Ok(request.into_response(response))
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
        Ok(reply @ (ShowReply::Flows(_) | ShowReply::Drops(_))) => {
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
