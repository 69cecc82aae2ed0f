//! Sends alerts to the webhook, one request after the other.
//!
//! The actor runs on the main thread: the resolver of the host and the CA certificates of the
//! system are files, and the thread of the streams actor may open none. Reading them happens on a
//! thread that may block.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};
use tracing::warn;

use crate::actors::log_limit::LogLimit;
use crate::actors::messages::SendAlerts;
use crate::actors::shared::RouterContext;
use crate::actors::supervision::{DeathGuard, Stop, panics_on_demand};
use crate::model::Webhook;

/// The `actor` label of this actor.
pub const ACTOR_NAME: &str = "webhook";

/// The most requests that wait.
const MAX_REQUESTS: usize = 16;

/// How long the webhook may take for a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The actor.
pub struct WebhookSender {
    context: Arc<RouterContext>,
    death_guard: DeathGuard,
    log_limit: LogLimit,
}

impl WebhookSender {
    /// Returns an actor that sends what it receives.
    pub fn new(context: Arc<RouterContext>, death_guard: DeathGuard) -> Self {
        Self {
            context,
            death_guard,
            log_limit: LogLimit::new(1),
        }
    }

    fn handle_result(&mut self, webhook: &Webhook, result: Result<(), WebhookFailure>) {
        let metrics = &self.context.catalog.streams;
        let Err(failure) = result else {
            return metrics.count_alert_request("sent");
        };
        metrics.count_alert_request(failure.label());
        if let Some(suppressed) = self.log_limit.permit(Instant::now()) {
            warn!(
                "monitor: the webhook at {} does not take alerts: {failure}; check \
                 `monitor.webhook` in the settings{suppressed}",
                webhook.authority()
            );
        }
    }
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
enum WebhookFailure {
    #[error("its name has no address: {0}")]
    Resolve(io::Error),
    #[error("no connection: {0}")]
    Connect(io::Error),
    #[error(
        "this system has no CA certificates to verify it with: install them, or name a file in \
         SSL_CERT_FILE"
    )]
    NoCa,
    #[error("no TLS connection: {0}")]
    Tls(io::Error),
    #[error("no answer in HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("no request: {0}")]
    Request(#[from] http::Error),
    #[error("it answers {0}")]
    Status(StatusCode),
    #[error("no answer within {REQUEST_TIMEOUT:?}")]
    Timeout,
}

impl WebhookFailure {
    /// Returns the `result` label of metrics.
    fn label(&self) -> &'static str {
        match self {
            Self::Resolve(_) => "resolve",
            Self::Connect(_) => "connect",
            Self::NoCa | Self::Tls(_) => "tls",
            Self::Http(_) | Self::Request(_) => "http",
            Self::Status(_) => "status",
            Self::Timeout => "timeout",
        }
    }
}

async fn post(webhook: &Webhook, body: String) -> Result<(), WebhookFailure> {
    let addresses = lookup_host((webhook.host.as_str(), webhook.port)).await;
    let addresses: Vec<SocketAddr> = addresses.map_err(WebhookFailure::Resolve)?.collect();
    let tcp = TcpStream::connect(addresses.as_slice()).await;
    let tcp = tcp.map_err(WebhookFailure::Connect)?;
    match webhook.is_tls {
        true => exchange(webhook, body, start_tls(webhook, tcp).await?).await,
        false => exchange(webhook, body, tcp).await,
    }
}

async fn start_tls(
    webhook: &Webhook,
    tcp: TcpStream,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, WebhookFailure> {
    let error = |e: &dyn std::fmt::Display| WebhookFailure::Tls(io::Error::other(e.to_string()));
    let name = ServerName::try_from(webhook.host.clone()).map_err(|e| error(&e))?;
    let roots = tokio::task::spawn_blocking(system_roots).await;
    let roots = roots.unwrap_or_else(|_| RootCertStore::empty());
    if roots.is_empty() {
        return Err(WebhookFailure::NoCa);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| error(&e))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connected = TlsConnector::from(Arc::new(config)).connect(name, tcp);
    connected.await.map_err(WebhookFailure::Tls)
}

/// Returns the CA certificates of the system. Those that cannot be parsed are skipped, as in other
/// TLS clients.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

/// Sends a request, and returns whether the answer is a success.
async fn exchange(
    webhook: &Webhook,
    body: String,
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
) -> Result<(), WebhookFailure> {
    let request = Request::post(&webhook.path)
        .header(header::HOST, webhook.authority())
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It ends when the sender is dropped. Its errors are those of the request.
    actix_rt::spawn(connection);
    let answer = sender.send_request(request).await?;
    match answer.status() {
        status if status.is_success() => Ok(()),
        status => Err(WebhookFailure::Status(status)),
    }
}

impl Actor for WebhookSender {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAX_REQUESTS);
        let directory = &self.context.directory;
        directory.register(ctx.address()).receives::<SendAlerts>();
    }
}

impl Handler<SendAlerts> for WebhookSender {
    type Result = ();

    /// Sends a request. The mailbox waits in the meantime.
    fn handle(&mut self, message: SendAlerts, ctx: &mut Self::Context) {
        let SendAlerts { webhook, body } = message;
        let sent = async move {
            let sent = timeout(REQUEST_TIMEOUT, post(&webhook, body)).await;
            (webhook, sent.unwrap_or(Err(WebhookFailure::Timeout)))
        };
        let sent = sent.into_actor(self);
        ctx.wait(sent.map(|(webhook, result), actor, _| actor.handle_result(&webhook, result)));
    }
}

panics_on_demand!(WebhookSender);

impl Handler<Stop> for WebhookSender {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        self.death_guard.disarm();
        ctx.stop();
    }
}
