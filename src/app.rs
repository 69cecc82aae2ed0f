//! Assembly and shutdown: settings in, a running router, and its end.

pub mod children;
pub mod service;

pub use service::Started;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::actors::RouterContext;
use crate::actors::control::links::LinkSource;
use crate::actors::integrations::mnat::reconfigure;
use crate::actors::messages::{Barrier, PanicIn, ReplaceRules, Shutdown};
use crate::actors::shared::ProcessRequest;
use crate::actors::supervisor::{Supervisor, SupervisorConfig};
use crate::frontend;
use crate::frontend::unix_socket::{BindError, ListeningSocket};
use crate::metrics::Catalog;
use crate::mnat::{self, Config};
use crate::model::{IfPattern, ProxyRule, RouteName};
use crate::planes::Planes;
use crate::planes::packet::rate::{Mode, Thresholds};
use crate::planes::packet::{Modes, PacketPlane};
use crate::settings::{LimitSettings, PlaneKind, Settings, SettingsReport};
use crate::sys;
use crate::table::{InterfaceOptions, Rib};

/// Set to 1, this variable lets clients of the control socket have actors panic.
const PANICS_ALLOWED: &str = "MCASTOR_TEST_PANIC";

fn panics_allowed() -> bool {
    std::env::var_os(PANICS_ALLOWED).is_some_and(|v| v == "1")
}

/// How long routing may take to put reloaded rules in force.
const RELOAD_PATIENCE: Duration = Duration::from_secs(60);

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
    /// Reads them again, at a reload.
    pub load: Load,
    /// Where to write the process id; removed at the end.
    pub pid_file: Option<PathBuf>,
    /// One end of multicast NAT, instead of what the settings say of it.
    pub mnat: Option<Config>,
    /// Who may ask and command.
    pub clients: Clients,
    /// Called when packets are taken in, or after ten seconds without.
    pub started: Option<Started>,
    /// What is run when routes are in force, and when a flow begins.
    pub script: Option<PathBuf>,
}

/// Who is answered.
pub enum Clients {
    /// Those of the control socket of the settings.
    Control,
    /// Those of smcroute, here; nobody where that socket cannot be made. As in smcrouted, a pid
    /// file that cannot be written is no reason to end.
    Smcroute(Option<ListeningSocket>),
}

/// What reads the settings.
pub type Load = Box<dyn Fn() -> Result<Settings, Box<SettingsReport>>>;

/// Fixes how packets are taken in to `latency` or `throughput`: for measurements.
const FIXED_CAPTURE: &str = "MCASTOR_TEST_CAPTURE";

fn capture_modes() -> Modes {
    let fixed = std::env::var(FIXED_CAPTURE).ok();
    let of = |mode: &Mode| fixed.as_deref() == Some(mode.label());
    match [Mode::Latency, Mode::Throughput].into_iter().find(of) {
        Some(mode) => Modes::Fixed(mode),
        None => Modes::Adaptive(Thresholds::default()),
    }
}

/// Runs until SIGTERM, SIGINT or a stop command.
pub fn run(options: Options) -> Result<(), AppError> {
    let activated = sys::activation::http_listener();
    // Who may not ask for capabilities is told by what then fails.
    let _ = sys::capabilities::raise_effective();
    sys::packet::probe().map_err(AppError::NoPacketSockets)?;
    sys::limits::raise_open_file_limit();
    System::new().block_on(assemble(options, activated))
}

async fn assemble(options: Options, activated: Option<TcpListener>) -> Result<(), AppError> {
    // Reading the settings took far more than they do.
    sys::memory::release_freed();
    let mut in_force = options.settings;
    in_force.notes().iter().for_each(|note| warn!("{note}"));
    // What flags say no file changes.
    let given = options.mnat.as_ref();
    let mnat = given.or(in_force.mnat.as_ref()).cloned();
    let rib = rib_of(&mut in_force, mnat.as_ref());
    let settings = &in_force;
    let plane = match settings.plane.kind {
        PlaneKind::Auto | PlaneKind::Packet => PacketPlane {
            qdisc_bypass: settings.plane.qdisc_bypass,
            modes: capture_modes(),
            busy_poll: settings.plane.busy_poll,
            ..PacketPlane::new(instance_mark())
        },
    };
    let (context, mut requests) = RouterContext::new(
        Catalog::new()?,
        Planes::new(Box::new(plane), Vec::new()),
        rib,
        settings.limits.flows,
        settings.docker.socket.clone(),
    );
    set_limits(&context, &settings.limits);
    tell_skipped(settings);
    let control = match options.clients {
        Clients::Smcroute(_) => None,
        Clients::Control => Some(ListeningSocket::bind(&settings.control.socket)?),
    };
    let _pid_file = match options.pid_file.map(PidFile::write).transpose() {
        Err(AppError::PidFile { path, cause }) if control.is_none() => {
            let path = path.display();
            warn!("cannot write the pid file {path}: {cause}; going on without one (-P)");
            None
        }
        written => written?,
    };
    let http = activated.or_else(|| settings.http.listen.and_then(listen));
    let failed = CancellationToken::new();
    let mut signals = Signals::new().map_err(AppError::Signals)?;
    // All that needs more is open; threads begin below.
    match sys::capabilities::drop_unneeded() {
        Ok(0) => {}
        Ok(dropped) => info!("{dropped} capabilities that are not needed any more are given up"),
        Err(e) => warn!("cannot give up capabilities: {e}"),
    }
    context.mnat.store(mnat.map(Arc::new));
    let supervisor = Supervisor::new(SupervisorConfig {
        context: context.clone(),
        children: children::children(http, LinkSource::Netlink),
        failed: failed.clone(),
        workers: std::thread::available_parallelism().map_or(1, Into::into),
    })
    .start();
    let control = match (control, options.clients) {
        (Some(control), _) => {
            actix::spawn(frontend::control::server::serve(control, context.clone()))
        }
        (None, Clients::Smcroute(Some(socket))) => {
            actix::spawn(frontend::smcroute::serve(socket, context.clone()))
        }
        (None, _) => actix::spawn(async {}),
    };
    let script = options
        .script
        .map(|path| service::Script::start(path, &context));
    let called = |what| {
        if let Some(script) = &script {
            script.call(what);
        }
    };
    actix::spawn(service::tell_the_supervisor(
        context.clone(),
        options.started,
    ));
    let result = loop {
        let reason = tokio::select! {
            reason = signals.next() => reason,
            Some(request) = requests.recv() => match request {
                ProcessRequest::Reload(answer) => {
                    let outcome = reload(&options.load, &mut in_force, given, (&context, &supervisor)).await;
                    if outcome.is_ok() {
                        called(service::Call::Reload);
                    }
                    // A client that did not wait reads of it in the log.
                    let _ = answer.send(outcome);
                    continue;
                }
                ProcessRequest::Panic(actor, answer) => {
                    let asked = panics_allowed().then(|| supervisor.send(PanicIn(actor)));
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
        if reload(&options.load, &mut in_force, given, (&context, &supervisor))
            .await
            .is_ok()
        {
            called(service::Call::Reload);
        }
    };
    match &result {
        Ok(reason) => info!("{reason}: stopping"),
        Err(e) => error!("{e}"),
    }
    service::stopping();
    control.abort();
    // Dropped, its file goes away.
    let _ = control.await;
    if tokio::time::timeout(SHUTDOWN_TIMEOUT, supervisor.send(Shutdown))
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
    load: &Load,
    in_force: &mut Settings,
    given: Option<&Config>,
    (context, supervisor): (&RouterContext, &Addr<Supervisor>),
) -> Result<String, String> {
    let successful = &context.catalog.last_reload_successful;
    let refused = |why: &dyn std::fmt::Display| {
        successful.set(0);
        let refused = format!("the settings are refused, the old ones stay: {why}");
        error!("reload: {refused}");
        refused
    };
    let mut settings = load().map_err(|report| refused(&report))?;
    if let Some(why) = &settings.unreadable {
        return Err(refused(why));
    }
    let (notes, routes) = (settings.notes(), settings.routes.len());
    let mnat = given.or(settings.mnat.as_ref()).cloned();
    let replace = ReplaceRules(rib_of(&mut settings, mnat.as_ref()));
    let directory = &context.directory;
    let applied = directory.ask(replace, RELOAD_PATIENCE).await.is_ok()
        && directory.ask(Barrier, RELOAD_PATIENCE).await.is_ok();
    if !applied {
        successful.set(0);
        return Err("routing does not answer; try again in a moment".into());
    }
    set_limits(context, &settings.limits);
    notes.iter().for_each(|note| warn!("{note}"));
    tell_skipped(&settings);
    let mut done = format!("reloaded, routes: {routes}");
    if !settings.skipped.is_empty() {
        done += &format!("; lines skipped: {}", settings.skipped.len());
    }
    let (was, is) = (&*in_force, &settings);
    let fixed = [
        ("http", was.http != is.http),
        ("control", was.control != is.control),
        ("docker", was.docker != is.docker),
        ("plane", was.plane != is.plane),
        ("log", was.log != is.log),
    ];
    let changed: Vec<&str> = fixed.iter().filter(|f| f.1).map(|f| f.0).collect();
    if !changed.is_empty() {
        done += &format!("; changes of {} need a restart", changed.join(", "));
    }
    if given.is_none() && was.mnat != is.mnat {
        reconfigure(context, supervisor, mnat.map(Arc::new));
    }
    info!("{done}");
    successful.set(1);
    *in_force = settings;
    sys::memory::release_freed();
    Ok(done)
}

/// Tells of lines that were skipped.
fn tell_skipped(settings: &Settings) {
    settings
        .skipped
        .iter()
        .for_each(|line| error!("smcroute.conf: {line}"));
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

fn set_limits(context: &RouterContext, limits: &LimitSettings) {
    let idle = Duration::from_secs(limits.flow_idle.into());
    context.set_flow_limits(limits.flows, idle);
}

/// Takes the rules out of the settings: there may be many, and nobody else asks for them.
fn rib_of(settings: &mut Settings, mnat: Option<&Config>) -> Rib {
    let mut proxies = std::mem::take(&mut settings.proxies);
    proxies.extend(mnat.and_then(hosts_of));
    Rib {
        rules: std::mem::take(&mut settings.routes),
        joins: std::mem::take(&mut settings.joins),
        proxies,
        interfaces: settings
            .interfaces
            .iter()
            .map(|i| InterfaceOptions {
                name: i.name.clone(),
                ttl_threshold: i.ttl_threshold,
                mrdisc: i.mrdisc.then_some(settings.mrdisc.interval),
                disabled: !i.enabled,
            })
            .collect(),
    }
}

/// An egress hears its hosts as a proxy does. What they want goes to the MNAT server, and comes
/// by its mappings: there is no upstream.
fn hosts_of(mnat: &Config) -> Option<ProxyRule> {
    let downstream = vec![IfPattern::from(&mnat.downstream)];
    let mut proxy = ProxyRule::new(Vec::new(), downstream);
    proxy.name = RouteName::new("mnat");
    proxy.upward = false;
    proxy.limits.groups = MOST_MNAT_GROUPS;
    (mnat.role == mnat::MnatRole::Egress && mnat.joins.members).then_some(proxy)
}

/// Groups that hosts of an MNAT egress may want, for each IP version.
const MOST_MNAT_GROUPS: usize = 16_384;

/// A number that no other instance on this machine is likely to have, never zero: what is
/// sent bears it as mark.
fn instance_mark() -> u32 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    // RandomState is seeded by the system.
    (RandomState::new().build_hasher().finish() as u32).max(1)
}
