//! Assembly and shutdown: settings in, a running router, and its end.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use actix::prelude::*;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::actors::World;
use crate::actors::keeper::{Charge, Keeper, LinkSource, PanicIn, Shutdown};
use crate::actors::routing::Replace;
use crate::actors::world::ProcessRequest;
use crate::control::server::{BindError, Server};
use crate::metrics::Catalog;
use crate::planes::packet::PacketPlane;
use crate::settings::{LimitSettings, PlaneKind, Settings, environment};
use crate::sys;
use crate::table::{InterfaceOptions, Rib};

/// Set to 1, this variable lets clients of the control socket have actors panic.
const PANICS_ALLOWED: &str = "MCASTOR_TEST_PANIC";

fn panics_allowed() -> bool {
    std::env::var_os(PANICS_ALLOWED).is_some_and(|v| v == "1")
}

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
    /// The file with the process id.
    #[error(
        "cannot write the pid file {path}: {cause}; the folder must exist and be writable (--pid-file)"
    )]
    PidFile {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// An actor that nothing works without could not be kept alive.
    #[error("an actor died again and again; the log says which and why")]
    ActorsDied,
}

/// What to run, and where it came from.
pub struct Options {
    /// The settings, loaded already.
    pub settings: Settings,
    /// The file they came from, to be read again at a reload.
    pub file: Option<PathBuf>,
    /// Where to write the process id; removed at the end.
    pub pid_file: Option<PathBuf>,
}

/// Runs until SIGTERM, SIGINT or a stop command.
pub fn run(options: Options) -> Result<(), AppError> {
    let activated = sys::activation::http_listener();
    sys::packet::probe().map_err(AppError::NoPacketSockets)?;
    sys::limits::raise_open_files();
    System::new().block_on(assemble(options, activated))
}

async fn assemble(options: Options, activated: Option<TcpListener>) -> Result<(), AppError> {
    let settings = &options.settings;
    let plane = match settings.plane.kind {
        PlaneKind::Auto | PlaneKind::Packet => PacketPlane {
            qdisc_bypass: settings.plane.qdisc_bypass,
            ..PacketPlane::new(instance_mark())
        },
    };
    let (world, mut requests) = World::new(
        Catalog::new()?,
        Box::new(plane),
        rib_of(settings),
        settings.limits.flows,
    );
    set_limits(&world, &settings.limits);
    settings.notes().iter().for_each(|note| warn!("{note}"));
    let control = Server::bind(&settings.control.socket)?;
    let _pid_file = options.pid_file.clone().map(PidFile::write).transpose()?;
    let http = activated.or_else(|| settings.http.listen.and_then(listen));
    let failed = CancellationToken::new();
    let mut signals = Signals::new().map_err(AppError::Signals)?;
    let keeper = Keeper::new(Charge {
        world: world.clone(),
        http,
        failed: failed.clone(),
        workers: std::thread::available_parallelism().map_or(1, Into::into),
        links: LinkSource::Netlink,
    })
    .start();
    let control = actix::spawn(control.serve(world.clone()));
    let mut in_force = options.settings.clone();
    let result = loop {
        let reason = tokio::select! {
            reason = signals.next() => reason,
            Some(request) = requests.recv() => match request {
                ProcessRequest::Reload(answer) => {
                    let outcome = reload(&options.file, &mut in_force, &world).await;
                    // A client that did not wait reads of it in the log.
                    let _ = answer.send(outcome);
                    continue;
                }
                ProcessRequest::Panic(actor, answer) => {
                    let asked = panics_allowed().then(|| keeper.send(PanicIn(actor)));
                    let outcome = match asked {
                        Some(asked) => asked.await.unwrap_or_else(|e| Err(e.to_string())),
                        None => Err(format!("only where {PANICS_ALLOWED}=1 was set at the start")),
                    };
                    let _ = answer.send(outcome);
                    continue;
                }
                ProcessRequest::Stop => "stop command",
            },
            () = failed.cancelled() => break Err(AppError::ActorsDied),
        };
        if reason != RELOAD {
            break Ok(reason);
        }
        // The outcome is in the log.
        let _ = reload(&options.file, &mut in_force, &world).await;
    };
    match &result {
        Ok(reason) => info!("{reason}: stopping"),
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

const RELOAD: &str = "SIGHUP";

/// The signals that mean something here.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The name of the next one.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hangup.recv() => RELOAD,
        }
    }
}

/// Reads the settings again and puts the rules in force. Bad settings change nothing.
async fn reload(
    file: &Option<PathBuf>,
    in_force: &mut Settings,
    world: &World,
) -> Result<String, String> {
    let successful = &world.catalog.last_reload_successful;
    let settings = match Settings::load(file.as_deref(), environment()) {
        Ok(settings) => settings,
        Err(report) => {
            successful.set(0);
            let refused = format!("the settings are refused, the old ones stay: {report}");
            error!("reload: {refused}");
            return Err(refused);
        }
    };
    let Some(routing) = world.routing.load_full() else {
        successful.set(0);
        return Err("routing does not answer; try again in a moment".into());
    };
    if routing.send(Replace(rib_of(&settings))).await.is_err() {
        successful.set(0);
        return Err("routing does not answer; try again in a moment".into());
    }
    set_limits(world, &settings.limits);
    settings.notes().iter().for_each(|note| warn!("{note}"));
    let mut done = format!("reloaded, routes: {}", settings.routes.len());
    let (was, is) = (&*in_force, &settings);
    let fixed = [
        ("http", was.http != is.http),
        ("control", was.control != is.control),
        ("plane", was.plane != is.plane),
        ("log", was.log != is.log),
    ];
    let changed: Vec<&str> = fixed.iter().filter(|f| f.1).map(|f| f.0).collect();
    if !changed.is_empty() {
        done += &format!("; changes of {} need a restart", changed.join(", "));
    }
    info!("{done}");
    successful.set(1);
    *in_force = settings;
    Ok(done)
}

/// A file with our process id; dropping it removes it.
struct PidFile(PathBuf);

impl PidFile {
    fn write(path: PathBuf) -> Result<Self, AppError> {
        match std::fs::write(&path, format!("{}\n", std::process::id())) {
            Ok(()) => Ok(Self(path)),
            Err(cause) => Err(AppError::PidFile { path, cause }),
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(&self.0);
    }
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

fn set_limits(world: &World, limits: &LimitSettings) {
    let idle = Duration::from_secs(limits.flow_idle.into());
    world.set_flow_limits(limits.flows, idle);
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
