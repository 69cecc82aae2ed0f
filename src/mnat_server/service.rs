//! The process of the server: sockets, store, metrics and signals.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use actix_web::HttpResponse;
use actix_web::web::{self, Data};
use sd_notify::NotifyState;
use serde_json::json;
use socket2::{Domain, Socket, Type};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::changes::StoredServer;
use super::connection::{self, ClientConnection};
use super::machine::ServerMachine;
use super::pool::Pool;
use super::site::ServerSite;
use super::store::{
    EtcdOptions, EtcdStore, EtcdStoreError, MappingStore, MemoryStore, RedbStore, RedbStoreError,
};
use super::tls::{TlsFiles, TlsFilesError, TlsReloader, secure_random};
use crate::frontend::http::{HttpListener, HttpServer, Refusals};
use crate::metrics::MnatServerCatalog;
use crate::model::ClientPrefix;
use crate::sys::limits::{max_open_files, raise_open_file_limit};
use crate::sys::process_usage;

/// Length of the queue of connections that wait to be accepted.
const BACKLOG: i32 = 4096;
/// Limit of connections of clients. Each takes up to 37 KiB, so all together about 1.2 GiB.
const MAX_CONNECTIONS: usize = 32_768;
/// Descriptors that connections leave free, or half of them if there are few: for `--http`, files,
/// and connections that are being closed.
const RESERVED_FILES: usize = 128;
/// Connections beyond the limit that may exist for a moment, while others are closed.
const MAX_CLOSING: usize = 32;
/// Pause while so many connections are being closed.
const CLOSING_RETRY: Duration = Duration::from_millis(1);
/// Limit of connections of `--http`.
const HTTP_CONNECTIONS: usize = 64;
/// Pause after an error of `accept`, such as the limit of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Interval at which certificate files are checked, and metrics of the process set.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// The options of a server.
#[derive(Debug)]
pub struct ServerOptions {
    /// Certificate, key, and the CA of clients.
    pub tls: TlsFiles,
    /// The local channels.
    pub pool: Pool,
    /// Where clients connect.
    pub listen: Vec<SocketAddr>,
    /// The folder of the stored state. Without it, nothing is stored.
    pub state: Option<PathBuf>,
    /// The etcd cluster that keeps the state of several servers. Without it, this server is the only
    /// one.
    pub etcd: Option<EtcdOptions>,
    /// Where metrics are served.
    pub http: Option<SocketAddr>,
}

/// Why the server does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsFilesError),
    /// The state cannot be used.
    #[error(transparent)]
    Store(#[from] RedbStoreError),
    /// The shared state cannot be used.
    #[error(transparent)]
    SharedStore(#[from] EtcdStoreError),
    /// The state contradicts itself or the pool.
    #[error(
        "the state of {0} is not valid: {1} is not free in the pool; remove it to forget its mappings"
    )]
    State(PathBuf, crate::mnat::Channel),
    /// An address cannot be used.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, io::Error),
    /// A system call failed.
    #[error("{0}: {1}")]
    System(&'static str, io::Error),
}

/// Runs a server until SIGTERM or SIGINT.
///
/// # Errors
/// The server cannot start.
pub fn run(options: ServerOptions) -> Result<(), ServerError> {
    raise_open_file_limit();
    let runtime = actix_rt::System::new();
    runtime.block_on(serve(options))
}

async fn serve(options: ServerOptions) -> Result<(), ServerError> {
    let tls = TlsReloader::new(options.tls)?;
    let mut random = secure_random().map_err(|e| ServerError::System("random numbers", e))?;
    let epoch = random() as u64;
    let pool = options.pool.clone();
    let machine = match options.etcd {
        None => ServerMachine::new(pool, random),
        Some(_) => ServerMachine::new_shared(pool, random),
    };
    let metrics = MnatServerCatalog::new()
        .map_err(|e| ServerError::System("metrics", io::Error::other(e.to_string())))?;
    // Listens first, so that a second server does not touch the state.
    let listeners: Result<Vec<_>, _> = options.listen.iter().map(|at| listen(*at)).collect();
    let listeners = listeners?;
    let max_connections = max_connections();
    if let Some(at) = options.http {
        serve_http(at, &metrics)?;
    }
    match (options.state, options.etcd) {
        (Some(folder), _) => {
            let (store, stored) = RedbStore::open(&folder, &options.pool)?;
            info!(
                "mnat-server: {} watchers and {} mappings continue",
                stored.watchers.len(),
                stored.mappings.len()
            );
            let machine = restored(machine, stored, &folder)?;
            let site = ServerSite::new(machine, epoch, max_connections, metrics);
            serve_clients(site, store, listeners, tls).await
        }
        (None, Some(etcd)) => {
            let (store, state) = EtcdStore::open(etcd, &options.pool).await?;
            let mut machine = machine;
            machine.absorb(state, Instant::now());
            let counts = machine.counts();
            info!(
                "mnat-server: {} watchers and {} mappings are in etcd",
                counts.watchers, counts.assigned
            );
            let site = ServerSite::new(machine, epoch, max_connections, metrics);
            serve_clients(site, store, listeners, tls).await
        }
        (None, None) => {
            warn!("mnat-server: without --state, a restart forgets all mappings");
            let site = ServerSite::new(machine, epoch, max_connections, metrics);
            serve_clients(site, MemoryStore, listeners, tls).await
        }
    }
}

fn restored(
    mut machine: ServerMachine,
    stored: StoredServer,
    folder: &std::path::Path,
) -> Result<ServerMachine, ServerError> {
    let restored = machine.restore(stored, Instant::now());
    restored.map_err(|local| ServerError::State(folder.into(), local))?;
    Ok(machine)
}

/// Opens a listening socket. Where the machine has no IPv6, `[::]` is 0.0.0.0.
fn listen(at: SocketAddr) -> Result<tokio::net::TcpListener, ServerError> {
    let open = |at: SocketAddr| -> io::Result<tokio::net::TcpListener> {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        if at.is_ipv6() && at.ip().is_unspecified() {
            // The prototype's clients connect over IPv4 only.
            socket.set_only_v6(false)?;
        }
        socket.bind(&at.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        tokio::net::TcpListener::from_std(socket.into())
    };
    let opened = open(at).or_else(|e| match e.raw_os_error() {
        Some(libc::EAFNOSUPPORT) if at.ip().is_unspecified() => {
            open(SocketAddr::from(([0; 4], at.port())))
        }
        _ => Err(e),
    });
    let listener = opened.map_err(|e| ServerError::Listen(at, e))?;
    let address = listener.local_addr().unwrap_or(at);
    info!("mnat-server: serving on https://{address}/mnat-ds");
    Ok(listener)
}

/// Serves metrics and health.
fn serve_http(at: SocketAddr, metrics: &MnatServerCatalog) -> Result<(), ServerError> {
    let error = |e| ServerError::Listen(at, e);
    let listener = HttpListener::Tcp(TcpListener::bind(at).map_err(error)?);
    info!("mnat-server: metrics on {listener}");
    let server = HttpServer {
        listener,
        hosts: Vec::new(),
        max_connections: HTTP_CONNECTIONS,
        refusals: Refusals::new(metrics.http.clone()),
    };
    let metrics = Data::new(metrics.clone());
    let server = server.start(move |app| {
        app.app_data(metrics.clone())
            .route("/metrics", web::get().to(metrics_text))
            .route("/healthz", web::get().to(health))
            .default_service(web::to(not_found));
    });
    actix_rt::spawn(server.map_err(error)?);
    Ok(())
}

async fn metrics_text(metrics: Data<MnatServerCatalog>) -> HttpResponse {
    match metrics.text() {
        Ok(text) => HttpResponse::Ok()
            .content_type("text/plain; version=0.0.4; charset=utf-8")
            .body(text),
        Err(e) => HttpResponse::InternalServerError().body(format!("metrics: {e}\n")),
    }
}

/// 200 while the state can be written.
async fn health(metrics: Data<MnatServerCatalog>) -> HttpResponse {
    match metrics.store_up() {
        true => HttpResponse::Ok().json(json!({ "status": "ok" })),
        false => HttpResponse::ServiceUnavailable().json(json!({
            "status": "failing",
            "reason": "the state cannot be written",
        })),
    }
}

async fn not_found() -> HttpResponse {
    HttpResponse::NotFound().body("there are /metrics /healthz\n")
}

async fn serve_clients(
    site: ServerSite,
    store: impl MappingStore + 'static,
    listeners: Vec<tokio::net::TcpListener>,
    tls: TlsReloader,
) -> Result<(), ServerError> {
    let caught = |kind| signal(kind).map_err(|e| ServerError::System("catch signals", e));
    let mut terminate = caught(SignalKind::terminate())?;
    let mut interrupt = caught(SignalKind::interrupt())?;
    let site = Rc::new(site);
    let tls = Rc::new(RefCell::new(tls));
    let shutdown = CancellationToken::new();
    let connections = Rc::new(Cell::new(0));
    let stored = site.clone();
    actix_rt::spawn(async move { stored.run_store(store).await });
    let timed = site.clone();
    actix_rt::spawn(async move { timed.run_timers().await });
    actix_rt::spawn(check_files(tls.clone(), site.clone()));
    for listener in listeners {
        let (site, tls, shutdown) = (site.clone(), tls.clone(), shutdown.clone());
        let open = connections.clone();
        actix_rt::spawn(accept(listener, site, tls, shutdown, open));
    }
    // Fails if systemd did not start this process.
    if let Err(e) = sd_notify::notify(&[NotifyState::Ready]) {
        debug!("systemd: {e}");
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("mnat-server: stopping");
    shutdown.cancel();
    let end = Instant::now() + Duration::from_secs(1);
    while connections.get() > 0 && Instant::now() < end {
        sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Returns the limit of connections.
fn max_connections() -> usize {
    let files = max_open_files();
    let reserved = RESERVED_FILES.min(files / 2);
    (files - reserved).clamp(1, MAX_CONNECTIONS)
}

async fn accept(
    listener: tokio::net::TcpListener,
    site: Rc<ServerSite>,
    tls: Rc<RefCell<TlsReloader>>,
    shutdown: CancellationToken,
    open: Rc<Cell<usize>>,
) {
    let limit = site.max_connections() + MAX_CLOSING;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if open.get() < limit => accepted,
            () = sleep(CLOSING_RETRY), if open.get() >= limit => continue,
            () = shutdown.cancelled() => return,
        };
        let (tcp, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                debug!("mnat-server: accept: {e}");
                sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        open.set(open.get() + 1);
        site.metrics.set_connections(open.get());
        let source = Some(ClientPrefix::of(peer.ip()));
        let closed = CancellationToken::new();
        let client = ClientConnection {
            share: site.admit(source, closed.clone()),
            source,
            closed,
        };
        let (site, config, shutdown) = (site.clone(), tls.borrow().config(), shutdown.clone());
        let open = open.clone();
        actix_rt::spawn(async move {
            connection::serve(site.clone(), tcp, client, config, shutdown).await;
            open.set(open.get() - 1);
            site.metrics.set_connections(open.get());
        });
    }
}

/// Reads changed certificates, and sets the metrics of the process.
async fn check_files(tls: Rc<RefCell<TlsReloader>>, site: Rc<ServerSite>) {
    loop {
        if let Ok(usage) = process_usage::read() {
            site.metrics.set_process_usage(&usage);
        }
        sleep(CHECK_INTERVAL).await;
        match tls.borrow_mut().reload() {
            Ok(true) => info!("mnat-server: new certificates are in use"),
            Ok(false) => {}
            Err(e) => warn!("mnat-server: {e}; the former certificates stay in use"),
        }
    }
}
