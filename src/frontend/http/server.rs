//! An HTTP server that hostile clients cannot exhaust. Its owner adds the resources.

use std::io;
use std::time::Duration;

use actix_http::{HttpService, KeepAlive};
use actix_rt::net::ActixStream;
use actix_service::{ServiceFactory, ServiceFactoryExt, apply_fn_factory, map_config};
use actix_web::body::MessageBody;
use actix_web::dev::{AppConfig, Server, ServiceRequest, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::http::header::{ContentType, HOST};
use actix_web::middleware::{Next, from_fn};
use actix_web::web::{self, Data};
use actix_web::{App, HttpResponse};
use socket2::SockRef;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::host::AllowedHosts;
use super::listener::HttpListener;
use super::refusals::Refusals;
use super::request_stream::{REQUEST_TIMEOUT, RequestStream};
use super::shared_limit::{ClientSource, SharedLimit};
use crate::actors::confined_thread;
use crate::metrics::http::HttpRefusal;
use crate::model::ClientPrefix;

/// Largest limit of concurrent connections.
const MAX_CONNECTIONS: usize = 256;
/// How long a connection may last, however slowly its client reads.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest answer in the buffer of actix-http, in bytes, before it is written to the socket.
const WRITE_BUFFER: usize = 16 << 10;
/// Size of the kernel's send and receive buffers of a connection, in bytes. The kernel doubles it.
const SOCKET_BUFFER: usize = 64 << 10;

/// A server without resources.
pub struct HttpServer {
    /// The listening socket.
    pub listener: HttpListener,
    /// Host names under which the server is reached, besides the built-in ones.
    pub hosts: Vec<String>,
    /// How many connections the limit of open files permits.
    pub max_connections: usize,
    /// The log of refused requests.
    pub refusals: Refusals,
}

/// The check of the host of a request.
struct HostGate {
    /// `None` accepts any host: only programs of this machine reach a UNIX socket.
    hosts: Option<AllowedHosts>,
    refusals: Refusals,
}

impl HttpServer {
    /// Starts the server, with the resources that `routes` adds.
    ///
    /// # Errors
    /// The error of the system call that failed.
    pub fn start(
        self,
        routes: impl Fn(&mut web::ServiceConfig) + Clone + Send + 'static,
    ) -> io::Result<Server> {
        let limit = self.max_connections.clamp(4, MAX_CONNECTIONS);
        let gate = Data::new(HostGate {
            hosts: match self.listener {
                HttpListener::Tcp(_) => Some(AllowedHosts::new(&self.hosts)),
                HttpListener::Unix(_) => None,
            },
            refusals: self.refusals,
        });
        let server = Server::build()
            .workers(1)
            // More connections than the limit exist for a moment, while the oldest are closed.
            .max_concurrent_connections(2 * limit)
            .disable_signals()
            .shutdown_timeout(0);
        let server = match self.listener {
            HttpListener::Tcp(listener) => server.listen("http", listener, move || {
                connection_service(gate.clone(), limit, routes.clone())
            }),
            HttpListener::Unix(listener) => server.listen_uds("http", listener, move || {
                connection_service(gate.clone(), limit, routes.clone())
            }),
        };
        Ok(server?.run())
    }
}

/// Returns the service that serves accepted connections, and confines the thread that calls this.
fn connection_service<S>(
    gate: Data<HostGate>,
    limit: usize,
    routes: impl Fn(&mut web::ServiceConfig) + 'static,
) -> impl ServiceFactory<S, Config = (), Response = (), Error = (), InitError = ()>
where
    S: ActixStream + std::os::fd::AsFd + 'static,
{
    confined_thread::confine_without_files();
    let refusals = gate.refusals.clone();
    let app = App::new()
        .app_data(gate)
        .wrap(from_fn(check_host))
        .configure(routes);
    let http = HttpService::build()
        .keep_alive(KeepAlive::Disabled)
        .client_request_timeout(REQUEST_TIMEOUT)
        .h1_write_buffer_size(WRITE_BUFFER)
        .h1(map_config(app, |()| AppConfig::default()))
        .map_err(|e| debug!("http: a connection ended: {e}"));
    let connections = SharedLimit::new(limit);
    apply_fn_factory(http, move |stream: S, http| {
        limit_buffers(&stream);
        let evicted = CancellationToken::new();
        let (share, others) = connections.admit(source(&stream), 1, evicted.clone());
        if !others.is_empty() {
            refusals.report(
                HttpRefusal::Evicted,
                format_args!(
                    "closed one of {limit} connections in favour of a new one: the oldest of the \
                     address with most; look for clients that hang, or restrict access with \
                     [http] listen or a firewall"
                ),
            );
        }
        let stream = RequestStream::new(stream, refusals.clone());
        let served = actix_service::Service::call(http, (stream, None));
        let refusals = refusals.clone();
        async move {
            let _share = share;
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
                () = evicted.cancelled() => Ok(()),
            }
        }
    })
}

/// Returns the client of a connection.
fn source(stream: &impl std::os::fd::AsFd) -> ClientSource {
    let peer = SockRef::from(stream).peer_addr().ok()?.as_socket()?;
    Some(ClientPrefix::of(peer.ip()))
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
    gate: Data<HostGate>,
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> actix_web::Result<ServiceResponse> {
    let foreign = gate.hosts.as_ref().and_then(|allowed| {
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
    gate.refusals.report(
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
