//! Assembly and shutdown: settings in, a running router, and its end.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use actix::prelude::*;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::actors::World;
use crate::actors::keeper::{Charge, Keeper, LinkSource, Shutdown};
use crate::control::server::{BindError, Server};
use crate::metrics::Catalog;
use crate::planes::packet::PacketPlane;
use crate::settings::{PlaneKind, Settings};
use crate::sys;
use crate::table::{InterfaceOptions, Rib};

/// How long the end may take.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(900);

/// Why the router cannot run, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The kernel lets us have no packet sockets.
    #[error(
        "cannot capture packets: {0}; run as root, or give the program CAP_NET_RAW (docker run --cap-add NET_RAW; setcap cap_net_raw+ep)"
    )]
    NoPacketSockets(io::Error),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] BindError),
    /// The metrics catalogue, whose names are constants.
    #[error("cannot register metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// Signals cannot be heard.
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
    /// An actor that nothing works without could not be kept alive.
    #[error("an actor died again and again; the log says which and why")]
    ActorsDied,
}

/// Runs until SIGTERM or SIGINT.
pub fn run(settings: Settings) -> Result<(), AppError> {
    let activated = sys::activation::http_listener();
    sys::packet::probe().map_err(AppError::NoPacketSockets)?;
    System::new().block_on(assemble(settings, activated))
}

async fn assemble(settings: Settings, activated: Option<TcpListener>) -> Result<(), AppError> {
    let plane = match settings.plane.kind {
        PlaneKind::Auto | PlaneKind::Packet => PacketPlane {
            qdisc_bypass: settings.plane.qdisc_bypass,
            ..PacketPlane::new(instance_mark())
        },
    };
    let world = World::new(Catalog::new()?, Box::new(plane));
    let control = Server::bind(&settings.control.socket)?;
    let http = activated.or_else(|| settings.http.listen.and_then(listen));
    let failed = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).map_err(AppError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AppError::Signals)?;
    let keeper = Keeper::new(Charge {
        world: world.clone(),
        rib: rib_of(&settings),
        http,
        failed: failed.clone(),
        workers: std::thread::available_parallelism().map_or(1, Into::into),
        links: LinkSource::Netlink,
    })
    .start();
    let control = actix::spawn(control.serve(world.clone()));
    let result = tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
        () = failed.cancelled() => Err(AppError::ActorsDied),
    };
    match &result {
        Ok(signal) => info!("{signal}: stopping"),
        Err(e) => error!("{e}"),
    }
    control.abort();
    // Dropped, its file goes away.
    let _ = control.await;
    if tokio::time::timeout(SHUTDOWN_TIMEOUT, keeper.send(Shutdown))
        .await
        .is_err()
    {
        warn!("packets were still waiting for a busy egress; they are lost");
    }
    System::current().stop();
    result.map(drop)
}

/// The HTTP listener; a port that is taken must not stop packets from being forwarded.
fn listen(address: SocketAddr) -> Option<TcpListener> {
    match TcpListener::bind(address) {
        Ok(listener) => Some(listener),
        Err(e) => {
            warn!("http: cannot listen on {address}: {e}; no metrics, forwarding goes on");
            None
        }
    }
}

fn rib_of(settings: &Settings) -> Rib {
    Rib {
        rules: settings.routes.clone(),
        joins: settings.joins.clone(),
        interfaces: settings
            .interfaces
            .iter()
            .map(|i| InterfaceOptions {
                name: i.name.clone(),
                ttl_threshold: i.ttl_threshold,
            })
            .collect(),
    }
}

/// A number that no other instance on this machine is likely to have, never zero: what is
/// sent bears it as mark.
fn instance_mark() -> u32 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    // RandomState is seeded by the system.
    (RandomState::new().build_hasher().finish() as u32).max(1)
}
