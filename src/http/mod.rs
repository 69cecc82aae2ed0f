//! HTTP, read-only: /metrics, /healthz, /readyz, /api/v1/routes, /api/v1/interfaces.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::http::header::ContentType;
use actix_web::web::{self, Data};
use actix_web::{App, HttpResponse, HttpServer};
use serde_json::json;

use crate::actors::World;
use crate::actors::routing::Ask;
use crate::api::{self, Show, Shown};

/// Connections served at once; more wait in the listener's queue.
const MOST_CONNECTIONS: usize = 64;
/// How long a client may take over its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long routing may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Starts to serve on a listener.
pub fn serve(world: Arc<World>, listener: TcpListener) -> io::Result<Server> {
    let world = Data::from(world);
    let server = HttpServer::new(move || {
        App::new()
            .app_data(world.clone())
            .route("/metrics", web::get().to(metrics))
            .route("/healthz", web::get().to(healthz))
            .route("/readyz", web::get().to(readyz))
            .route("/api/v1/routes", web::get().to(|w| show(w, Show::Routes)))
            .route(
                "/api/v1/interfaces",
                web::get().to(|w| show(w, Show::Interfaces)),
            )
            .default_service(web::to(not_found))
    })
    .workers(1)
    .max_connections(MOST_CONNECTIONS)
    .client_request_timeout(REQUEST_TIMEOUT)
    .disable_signals()
    .shutdown_timeout(0)
    .listen(listener)?
    .run();
    Ok(server)
}

async fn metrics(world: Data<World>) -> HttpResponse {
    match world.catalog.text() {
        Ok(text) => HttpResponse::Ok()
            .content_type("text/plain; version=0.0.4; charset=utf-8")
            .body(text),
        Err(e) => HttpResponse::InternalServerError().body(format!("metrics: {e}\n")),
    }
}

/// 200 while routing answers.
async fn healthz(world: Data<World>) -> HttpResponse {
    match ask(&world, Show::Routes).await {
        Some(_) => HttpResponse::Ok().json(json!({ "status": "ok" })),
        None => HttpResponse::ServiceUnavailable().json(json!({
            "status": "failing",
            "reason": "routing does not answer",
        })),
    }
}

/// 200 once every interface of every route that exists is being captured.
async fn readyz(world: Data<World>) -> HttpResponse {
    if world.health.is_ready() {
        HttpResponse::Ok().json(json!({ "status": "ready" }))
    } else {
        HttpResponse::ServiceUnavailable().json(json!({
            "status": "not ready",
            "reason": "an interface of a route is not being captured yet",
        }))
    }
}

async fn show(world: Data<World>, what: Show) -> HttpResponse {
    match ask(&world, what).await {
        Some(shown) => HttpResponse::Ok().json(json!({
            "version": api::VERSION,
            "show": shown,
        })),
        None => HttpResponse::ServiceUnavailable().json(json!({
            "version": api::VERSION,
            "error": "routing does not answer",
        })),
    }
}

async fn not_found() -> HttpResponse {
    HttpResponse::NotFound()
        .content_type(ContentType::plaintext())
        .body("there are /metrics /healthz /readyz /api/v1/routes /api/v1/interfaces\n")
}

/// Asks the routing actor that lives now.
pub async fn ask(world: &World, what: Show) -> Option<Shown> {
    let routing = world.routing.load_full()?;
    let answer = routing.send(Ask(what)).timeout(ANSWER_TIMEOUT);
    answer.await.ok()
}
