//! Starts the router from its settings, runs it until a signal or a stop command, and shuts it
//! down.

pub mod children;
mod gap;
mod kept_memberships;
mod listeners;
mod plane;
pub mod service;
mod services;
mod state;
mod tunnel_names;
pub mod upgrade;

use kept_memberships::{end_former_when_joined, start_keeper};
use listeners::{control_place, open_control, open_http, remove_former};
use plane::ChosenPlane;
pub use service::{NeedsReload, OnStarted};
use service::{Script, ScriptEvent};
use services::ChangedServices;
use state::OpenState;
use tunnel_names::TunnelNameError;
use upgrade::{Inheritance, Outgoing, Predecessor};

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use actix::prelude::*;
use nix::fcntl::Flock;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::actors::RouterContext;
use crate::actors::control::links::LinkSource;
use crate::actors::integrations::amt;
use crate::actors::integrations::docker::read_names_first;
use crate::actors::integrations::mnat::{reconfigure, restore_routes};
use crate::actors::messages::{Barrier, KeepMemberships, PanicIn, ReplaceRules, Shutdown};
use crate::actors::shared::ProcessRequest;
use crate::actors::supervisor::{Supervisor, SupervisorConfig};
use crate::api::UpgradeReport;
use crate::discovery::config::joins as discovery_joins;
use crate::frontend;
use crate::frontend::http::HttpConfig;
use crate::frontend::unix_socket::{BindError, ListeningSocket};
use crate::metrics::Catalog;
use crate::mnat::{self, Config};
use crate::model::{IfPattern, JoinRule, ProxyRule, RouteName};
use crate::settings::{LimitSettings, Settings, SettingsReport, StateSettings};
use crate::store::StateFolderError;
use crate::sys;
use crate::sys::activation::PassedDescriptors;
use crate::sys::membership_keeper::{MembershipKeeper, STORED_PREFIX};
use crate::sys::off_thread::DroppedOffThread;
use crate::sys::upgrade_launcher::UpgradeLauncher;
use crate::table::{InterfaceOptions, ReportOptions, Rib};

/// The environment variable that permits clients of the control socket to make actors panic, if it
/// is 1. For tests.
const PANICS_ALLOWED: &str = "MCASTOR_TEST_PANIC";

fn panics_allowed() -> bool {
    std::env::var_os(PANICS_ALLOWED).is_some_and(|v| v == "1")
}

/// Longest wait until routing has applied reloaded rules.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest wait until the actors have stopped.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(900);

/// How long a replaced process exists to finish the answers to its clients.
const REPLACED_LINGER: Duration = Duration::from_millis(100);

/// An error that prevents the start of the router or stops it.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The kernel refuses to create packet sockets.
    #[error(
        "cannot capture packets: {0}; run as root, or give the program CAP_NET_RAW (docker run --cap-add NET_RAW; setcap cap_net_raw+ep)"
    )]
    NoPacketSockets(io::Error),
    /// The control socket cannot be opened.
    #[error(transparent)]
    Control(#[from] BindError),
    /// A metric has an invalid or duplicate name.
    #[error("cannot register metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The signal handlers cannot be installed.
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
    /// The pid file cannot be written.
    #[error(
        "cannot write the pid file {path}: {cause}; --pid-file sets another path, in a folder that exists and is writable"
    )]
    PidFile {
        /// The pid file.
        path: PathBuf,
        /// The error of the kernel.
        cause: io::Error,
    },
    /// A tunnel interface cannot have its name.
    #[error(transparent)]
    TunnelName(#[from] TunnelNameError),
    /// Another process uses the folder of the state.
    #[error("state: {0}")]
    StateInUse(#[from] StateFolderError),
    /// This process was started to replace another one, and cannot.
    #[error("cannot replace the running process: {0}")]
    Upgrade(io::Error),
    /// An indispensable actor has reached its limit of restarts.
    #[error("an actor failed repeatedly; the log has its name and the cause")]
    ActorsDied,
}

/// The configuration of a router process.
pub struct Options {
    /// The program and its settings file, for the first line of the log.
    pub title: String,
    /// The initial settings.
    pub settings: Settings,
    /// Loads the settings at each reload.
    pub load: Load,
    /// Tells when the settings depend on a file that changed.
    pub needs_reload: Option<NeedsReload>,
    /// The pid file to write; it is removed on exit.
    pub pid_file: Option<PathBuf>,
    /// One end of multicast NAT from the command line. It overrides the `[mnat]` settings.
    pub mnat: Option<Config>,
    /// The socket on which clients are served.
    pub clients: Clients,
    /// Called when all interfaces are captured, or after ten seconds.
    pub on_started: Option<OnStarted>,
    /// The script of `smcrouted -e`: run when routes have been applied, and when a flow starts.
    pub script: Option<PathBuf>,
    /// The running process that this one replaces.
    pub predecessor: Option<Predecessor>,
}

/// The socket on which clients are served.
pub enum Clients {
    /// The control socket of the settings.
    Control,
    /// The given socket with the protocol of smcroute; no socket if it could not be created. As in
    /// smcrouted, a pid file that cannot be written is only logged.
    Smcroute(Option<ListeningSocket>),
}

/// A function that loads the settings.
pub type Load = Box<dyn Fn() -> Result<Settings, Box<SettingsReport>>>;

/// Runs the router until SIGTERM, SIGINT or a stop command.
pub fn run(mut options: Options) -> Result<(), AppError> {
    let Some(predecessor) = options.predecessor.take() else {
        return start(options, None);
    };
    let connection = predecessor.clone_handle();
    let inherited = predecessor.inherit().map_err(AppError::Upgrade);
    let result = inherited.and_then(|inherited| start(options, Some(inherited)));
    // The running process goes on, unless this one has replaced it.
    result.inspect_err(|e| connection.refuse(e))
}

/// Prepares the process, and runs the actors. `inherited` is what another process hands over.
fn start(options: Options, inherited: Option<Inheritance>) -> Result<(), AppError> {
    let passed = match inherited {
        Some(_) => PassedDescriptors::default(),
        None => PassedDescriptors::take(STORED_PREFIX),
    };
    // Ignores a failure: the privileged call that follows reports it.
    let _ = sys::capabilities::raise_effective();
    sys::limits::raise_open_file_limit();
    let socket = match &options.clients {
        Clients::Smcroute(Some(socket)) => (socket.path(), true),
        Clients::Control | Clients::Smcroute(None) => {
            (options.settings.control.socket.as_path(), false)
        }
    };
    let former_mark = inherited.as_ref().map(Inheritance::mark);
    let plane = ChosenPlane::choose(&options.settings, socket, former_mark);
    let mark = plane.mark();
    let capabilities = sys::capabilities::kept_names();
    info!("{}, plane {}, {capabilities}", options.title, plane.name());
    let probe = sys::packet::probe().map_err(AppError::NoPacketSockets)?;
    plane.log_reason();
    // The thread keeps capabilities, so it exists only where it may be needed.
    let launcher = match options.clients {
        Clients::Control => UpgradeLauncher::start(),
        Clients::Smcroute(_) => Err(io::ErrorKind::Unsupported.into()),
    };
    let prepared = Prepared {
        passed,
        inherited,
        plane,
        launcher,
        mark,
        probe,
    };
    System::new().block_on(run_actors(options, prepared))
}

/// What was opened with all capabilities.
struct Prepared {
    /// What the service manager passed.
    passed: PassedDescriptors,
    /// What another process hands over.
    inherited: Option<Inheritance>,
    plane: ChosenPlane,
    /// Starts the process that replaces this one.
    launcher: io::Result<UpgradeLauncher>,
    /// The mark of sent packets.
    mark: u32,
    /// A socket that is not needed any more.
    probe: OwnedFd,
}

/// Starts the actors and serves signals and requests to the process until one of them stops it.
async fn run_actors(options: Options, prepared: Prepared) -> Result<(), AppError> {
    let Prepared {
        passed,
        mut inherited,
        plane,
        launcher,
        mark,
        probe,
    } = prepared;
    // Parsing the settings needs much more memory than the result.
    sys::memory::release_freed();
    let mut active_settings = options.settings;
    tunnel_names::refuse_taken(&active_settings)?;
    active_settings
        .notes()
        .iter()
        .for_each(|note| warn!("{note}"));
    // Flags override the file, also at a reload.
    let mnat_override = options.mnat.as_ref();
    let mnat = mnat_override.or(active_settings.mnat.as_ref()).cloned();
    let rib = take_rib(&mut active_settings, mnat.as_ref());
    let is_empty = rib.rules.is_empty() && rib.proxies.is_empty() && rib.joins.is_empty();
    let is_empty = is_empty && rib.discovery.is_empty();
    // Rules that come from a watched file may still be missing.
    let is_empty = is_empty && options.needs_reload.is_none();
    if is_empty && mnat.is_none() && matches!(options.clients, Clients::Control) {
        warn!(
            "nothing is configured: without [[route]], [[proxy]] or [[join]] no packet is \
             forwarded; write them into the settings file and reload, or use `mcastor add`"
        );
    }
    let settings = &active_settings;
    log_skipped_lines(settings);
    let (mut former_control, mut former_http) = match &mut inherited {
        Some(inherited) => (inherited.control.take(), inherited.http.take()),
        None => (None, None),
    };
    let instance_socket = match &options.clients {
        Clients::Control => Some(settings.control.socket.clone()),
        Clients::Smcroute(socket) => socket.as_ref().map(|socket| socket.path().to_owned()),
    };
    let control = match options.clients {
        Clients::Smcroute(_) => None,
        Clients::Control => {
            let path = &settings.control.socket;
            Some(open_control(path, &mut former_control)?)
        }
    };
    let takes_over = inherited.is_some();
    let state_folder = match (settings.state.folder(&settings.control.socket), &control) {
        // Sockets of smcrouted do not name an instance. Its settings have no proxies.
        (_, None) if settings.state == StateSettings::BesideControlSocket => None,
        (folder, _) => folder,
    };
    let has_state = state_folder.is_some();
    // The running process has it locked until it is replaced.
    let state = match &state_folder {
        Some(folder) if !takes_over => state::open(folder)?,
        _ => None,
    };
    let gap = state.as_ref().and_then(OpenState::gap);
    let pid_file = options.pid_file.as_ref();
    // The running process has its own one until it is replaced.
    let write_pid_file = |path: PathBuf| PidFile::write(path, takes_over);
    let mut _pid_file = match pid_file
        .filter(|_| !takes_over)
        .cloned()
        .map(write_pid_file)
    {
        Some(Err(AppError::PidFile { path, cause })) if control.is_none() => {
            let path = path.display();
            warn!(
                "cannot write the pid file {path}: {cause}; continuing without it (-P sets another path)"
            );
            None
        }
        written => written.transpose()?,
    };
    let address = settings.http.listen.as_ref();
    let http_socket = open_http(address, passed.http, &mut former_http);
    let listener = http_socket
        .as_ref()
        .map(|socket| socket.listener.try_clone());
    let http = listener.transpose().unwrap_or_else(|e| {
        warn!("http: cannot serve: {e}; forwarding continues");
        None
    });
    let http = http.map(|listener| HttpConfig {
        listener,
        hosts: settings.http.hosts.clone(),
        api: settings.http.api,
        max_connections: sys::limits::max_open_files() / 4,
    });
    if settings.plane.shared && !takes_over {
        warn_about_other_routers();
    }
    let failed = CancellationToken::new();
    let mut signals = Signals::new().map_err(AppError::Signals)?;
    // Every file and socket that needs more privileges is open. The threads start below; each
    // inherits the capabilities of this one.
    match sys::capabilities::drop_unneeded() {
        Ok(0) => {}
        Ok(dropped) => debug!("dropped {dropped} capabilities that are no longer needed"),
        Err(e) => warn!("cannot drop capabilities: {e}"),
    }
    // A child has no capabilities that were dropped.
    let keeper = match &instance_socket {
        Some(socket) => start_keeper(socket, settings.plane.orphan_after, passed.stored),
        None => MembershipKeeper::default(),
    };
    let catalog = Catalog::new()?;
    let store = state::start(state, &catalog);
    drop(DroppedOffThread::new(probe));
    let planes = match settings.plane.shared {
        true => plane.start(),
        false => plane.start().with_claims(),
    };
    let (context, mut requests) = RouterContext::new(
        catalog,
        planes,
        rib,
        store.clone(),
        keeper,
        settings.limits.flows,
        settings.docker.socket.clone(),
    );
    set_limits(&context, &settings.limits);
    set_events(&context, settings);
    note_load_time(&context);
    context.mnat.store(mnat.map(Arc::new));
    services::start(&context, settings, mark);
    let take_over = inherited.map(|inherited| inherited.prepare(&context));
    restore_routes(&context);
    read_names_first(&context).await;
    let supervisor = Supervisor::new(SupervisorConfig {
        context: context.clone(),
        children: children::children(http, LinkSource::Netlink),
        failed: failed.clone(),
        workers: std::thread::available_parallelism().map_or(1, Into::into),
    })
    .start();
    if let Some(take_over) = &take_over {
        take_over
            .forward(&context, &supervisor)
            .await
            .map_err(AppError::Upgrade)?;
        // No other process forwards from here on, so this one does not end for an error.
        _pid_file = match pid_file.cloned().map(write_pid_file).transpose() {
            Ok(written) => written,
            Err(e) => {
                warn!("{e}; continuing without it");
                None
            }
        };
        remove_former(former_control);
        remove_former(former_http);
    }
    let serve_control = || match control.as_ref().map(ListeningSocket::try_clone) {
        Some(Ok(socket)) => {
            let served = frontend::control::server::serve(socket, context.clone());
            Some(actix::spawn(served))
        }
        Some(Err(e)) => {
            error!("control: cannot listen: {e}");
            None
        }
        None => None,
    };
    let control_task = RefCell::new(match options.clients {
        Clients::Control => serve_control(),
        Clients::Smcroute(Some(socket)) => {
            let served = frontend::smcroute::serve(socket, context.clone());
            Some(actix::spawn(served))
        }
        Clients::Smcroute(None) => None,
    });
    if let Some(take_over) = take_over {
        let (store, catalog) = (context.store.clone(), context.catalog.clone());
        let keeper = context.membership_keeper.clone();
        let on_end = move || {
            if let Some(folder) = state_folder {
                state::continue_in(&folder, &store, &catalog);
            }
            // If it could not end its keeper.
            keeper.end_former();
        };
        take_over.finish(context.clone(), &supervisor, on_end).await;
        // Former flows are with the processes since the gate has opened.
        context.planes.all().for_each(|plane| plane.end_start());
    }
    let script = options.script.map(|path| Script::start(path, &context));
    let notify_script = |event| {
        if let Some(script) = &script {
            script.notify(event);
        }
    };
    actix::spawn(service::watch_usage(context.clone()));
    if let Some(needs_reload) = options.needs_reload {
        actix::spawn(service::reload_on_demand(context.clone(), needs_reload));
    }
    if has_state {
        actix::spawn(state::keep_counters(context.clone()));
    }
    if let Some(gap) = gap {
        actix::spawn(gap::report(context.clone(), gap));
    }
    actix::spawn(service::notify_service_manager(
        context.clone(),
        options.on_started,
    ));
    if !takes_over {
        actix::spawn(end_former_when_joined(context.clone()));
    }
    let mut keep_forwarding = false;
    let upgrade = async |program: Option<PathBuf>, settings: &Settings| {
        let Some(control) = &control else {
            return Err("only `mcastor run` can be replaced".to_owned());
        };
        let descriptor = control.std_listener().map(OwnedFd::from);
        let control_place = control_place(&settings.control.socket, control);
        let http = http_socket
            .as_ref()
            .map(|socket| Ok::<_, io::Error>((socket.place.clone(), socket.descriptor()?)));
        let outgoing = Outgoing {
            context: &context,
            supervisor: &supervisor,
            launcher: launcher.as_ref().map_err(ToString::to_string)?,
            mark,
            control: (control_place, descriptor.map_err(|e| e.to_string())?),
            http: http.transpose().map_err(|e| e.to_string())?,
            stop_control: &|| {
                if let Some(task) = control_task.take() {
                    task.abort();
                }
            },
        };
        let outcome = outgoing.run(program).await;
        if let Err(e) = &outcome {
            error!("upgrade: {e}");
            if control_task.borrow().is_none() {
                control_task.replace(serve_control());
            }
        }
        outcome
    };
    let result = loop {
        let reason = tokio::select! {
            reason = signals.next() => reason,
            Some(request) = requests.recv() => match request {
                ProcessRequest::Reload(answer) => {
                    let outcome = reload(&options.load, &mut active_settings, mnat_override, (&context, &supervisor)).await;
                    if outcome.is_ok() {
                        notify_script(ScriptEvent::Reload);
                    }
                    // Fails if the client has disconnected. The outcome is also in the log.
                    let _ = answer.send(outcome);
                    continue;
                }
                ProcessRequest::Panic(actor, answer) => {
                    let outcome = if panics_allowed() {
                        let sent = supervisor.send(PanicIn(actor)).await;
                        sent.unwrap_or_else(|e| Err(e.to_string()))
                    } else {
                        Err(format!(
                            "refused: the process was started without {PANICS_ALLOWED}=1"
                        ))
                    };
                    let _ = answer.send(outcome);
                    continue;
                }
                ProcessRequest::Upgrade(program, answer) => {
                    let outcome = upgrade(program, &active_settings).await;
                    let replaced = outcome.as_ref().map(|report| report.new_pid).ok();
                    let _ = answer.send(outcome);
                    if let Some(pid) = replaced {
                        end_replaced(pid, &context).await;
                    }
                    continue;
                }
                ProcessRequest::Stop(keep) => {
                    keep_forwarding = keep;
                    "stop command"
                }
            },
            () = failed.cancelled() => break Err(AppError::ActorsDied),
        };
        if reason == UPGRADE {
            if let Ok(UpgradeReport { new_pid, .. }) = upgrade(None, &active_settings).await {
                end_replaced(new_pid, &context).await;
            }
            continue;
        }
        if reason != RELOAD {
            keep_forwarding |= reason == LEAVE;
            break Ok(reason);
        }
        if reload(
            &options.load,
            &mut active_settings,
            mnat_override,
            (&context, &supervisor),
        )
        .await
        .is_ok()
        {
            notify_script(ScriptEvent::Reload);
        }
    };
    match &result {
        Ok(reason) => info!("{reason}: stopping"),
        Err(e) => error!("{e}"),
    }
    service::notify_stopping();
    if let Some(task) = control_task.take() {
        task.abort();
        let _ = task.await;
    }
    // Removes the file.
    drop(control);
    if keep_forwarding {
        // Before the captures end: they would take back what they handed over.
        context.planes.all().for_each(|plane| plane.stop(true));
        // Without joins nobody receives it.
        let kept = context.directory.ask(KeepMemberships, SHUTDOWN_TIMEOUT);
        let _ = kept.await;
    }
    if tokio::time::timeout(SHUTDOWN_TIMEOUT, supervisor.send(Shutdown))
        .await
        .is_err()
    {
        warn!("shutdown took too long: packets that were queued for a busy egress are lost");
    }
    if !keep_forwarding {
        context.planes.all().for_each(|plane| plane.stop(false));
        context.membership_keeper.end();
    }
    context.count_planes();
    let received = gap::received_by_ingresses(&context);
    store.set_counters(context.catalog.counter_values(), received);
    store.finish();
    System::current().stop();
    result.map(drop)
}

/// Ends this process after another one has replaced it. Nothing is cleaned up: the other process uses
/// the files, and the groups must not be left.
async fn end_replaced(pid: u32, context: &RouterContext) {
    service::notify_replaced(pid);
    tokio::time::sleep(REPLACED_LINGER).await;
    // The other process has its own keeper.
    context.membership_keeper.end();
    std::process::exit(0);
}

/// Warns if another mcastor forwards packets in this network namespace, and may forward the same ones.
fn warn_about_other_routers() {
    let others = sys::router_processes::others_in_this_namespace();
    if let [first, ..] = others[..] {
        warn!(
            "another mcastor (process {first}) forwards packets in this network namespace: if both \
             have a route for the same stream, each packet is sent twice; stop one of them, or give \
             them different routes"
        );
    }
}

/// The name of the signal that reloads the settings.
const RELOAD: &str = "SIGHUP";

/// The name of the signal that lets a new process take over.
const UPGRADE: &str = "SIGUSR2";

/// The name of the signal that stops this process and lets the kernel forward on.
const LEAVE: &str = "SIGQUIT";

/// The signals that this process handles.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    quit: Signal,
    user: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            user: signal(SignalKind::user_defined2())?,
        })
    }

    /// Waits for the next signal and returns its name.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hangup.recv() => RELOAD,
            _ = self.quit.recv() => LEAVE,
            _ = self.user.recv() => UPGRADE,
        }
    }
}

/// Loads the settings again and applies them. Invalid settings change nothing. systemd is notified of
/// the start and of the result.
///
/// Returns a summary of the result, or the reason for which the active settings stay.
async fn reload(
    load: &Load,
    active_settings: &mut Settings,
    mnat_override: Option<&Config>,
    actors: (&RouterContext, &Addr<Supervisor>),
) -> Result<String, String> {
    service::notify_reloading();
    let outcome = apply_loaded(load, active_settings, mnat_override, actors).await;
    service::notify_reloaded(&outcome);
    outcome
}

async fn apply_loaded(
    load: &Load,
    active_settings: &mut Settings,
    mnat_override: Option<&Config>,
    (context, supervisor): (&RouterContext, &Addr<Supervisor>),
) -> Result<String, String> {
    let successful = &context.catalog.last_reload_successful;
    let refused = |why: &dyn std::fmt::Display| {
        successful.set(0);
        let message = format!("the settings are invalid, the active settings are unchanged: {why}");
        error!("reload: {message}; `mcastor check FILE` shows how to fix them");
        message
    };
    let mut settings = load().map_err(|report| refused(&report))?;
    if let Some(why) = &settings.unreadable {
        return Err(refused(why));
    }
    tunnel_names::refuse_taken(&settings).map_err(|e| refused(&e))?;
    let (notes, routes) = (settings.notes(), settings.routes.len());
    let mnat = mnat_override.or(settings.mnat.as_ref()).cloned();
    let replace = ReplaceRules(take_rib(&mut settings, mnat.as_ref()));
    let services = ChangedServices::prepare(context, &settings);
    let directory = &context.directory;
    let applied = directory.ask(replace, RELOAD_TIMEOUT).await.is_ok()
        && directory.ask(Barrier, RELOAD_TIMEOUT).await.is_ok();
    if !applied {
        services.undo(context);
        successful.set(0);
        return Err("routing does not respond; try again in a moment".into());
    }
    set_limits(context, &settings.limits);
    set_events(context, &settings);
    notes.iter().for_each(|note| warn!("{note}"));
    log_skipped_lines(&settings);
    let mut done = format!("reloaded, routes: {routes}");
    if !settings.skipped.is_empty() {
        done += &format!("; lines skipped: {}", settings.skipped.len());
    }
    let (old, new) = (&*active_settings, &settings);
    let need_restart = [
        ("http", old.http != new.http),
        ("control", old.control != new.control),
        ("state", old.state != new.state),
        ("docker", old.docker != new.docker),
        ("plane", old.plane != new.plane),
        ("log", old.log != new.log),
    ];
    let changed: Vec<&str> = need_restart.iter().filter(|f| f.1).map(|f| f.0).collect();
    if !changed.is_empty() {
        done += &format!("; changes of {} need a restart", changed.join(", "));
    }
    services.apply(context, supervisor);
    if mnat_override.is_none() && old.mnat != new.mnat {
        reconfigure(context, supervisor, mnat.map(Arc::new));
    }
    info!("{done}");
    successful.set(1);
    note_load_time(context);
    *active_settings = settings;
    sys::memory::release_freed();
    Ok(done)
}

/// Sets the time of the last load of the settings that worked.
fn note_load_time(context: &RouterContext) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let seconds = now.map_or(0, |now| now.as_secs());
    context.catalog.last_reload_success_time.set(seconds as i64);
}

/// Logs the invalid lines of smcroute.conf, which were skipped.
fn log_skipped_lines(settings: &Settings) {
    settings
        .skipped
        .iter()
        .for_each(|line| error!("smcroute.conf: {line}"));
}

/// A file with the id of this process. Dropping it removes the file, unless another process has
/// replaced it.
struct PidFile {
    path: PathBuf,
    file: Flock<File>,
}

impl PidFile {
    /// Writes the file. `takes_over` says that this process replaces the one that has written it.
    fn write(path: PathBuf, takes_over: bool) -> Result<Self, AppError> {
        let text = format!("{}\n", std::process::id());
        let written = match takes_over {
            true => sys::files::take_over_locked(&path, &text),
            false => sys::files::replace_locked(&path, &text),
        };
        match written {
            Ok(file) => Ok(Self { path, file }),
            Err(cause) => Err(AppError::PidFile { path, cause }),
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let (Ok(found), Ok(ours)) = (std::fs::symlink_metadata(&self.path), self.file.metadata())
            && (found.dev(), found.ino()) == (ours.dev(), ours.ino())
        {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn set_limits(context: &RouterContext, limits: &LimitSettings) {
    let idle = Duration::from_secs(limits.flow_idle.into());
    context.set_flow_limits(limits.flows, idle);
    let registry = &context.monitoring.registry;
    registry.set_limit(limits.monitored_streams);
}

/// Sets when events of monitored streams are reported, and where.
fn set_events(context: &RouterContext, settings: &Settings) {
    let events = Arc::new(settings.monitor.events.clone());
    context.monitoring.events.store(events);
}

/// Moves the rules out of the settings, because there may be many and no other code needs them.
fn take_rib(settings: &mut Settings, mnat: Option<&Config>) -> Rib {
    let mut proxies = std::mem::take(&mut settings.proxies);
    proxies.extend(mnat.and_then(member_proxy));
    Rib {
        rules: std::mem::take(&mut settings.routes).into(),
        joins: joins_with_discovery(settings),
        proxies,
        tunnels: amt::tunnel_interfaces(&settings.amt),
        monitoring: Arc::new(settings.monitor.rules.clone()),
        discovery: settings
            .discovery
            .iter()
            .flat_map(|rule| rule.patterns().cloned())
            .collect(),
        interfaces: settings
            .interfaces
            .iter()
            .map(|i| InterfaceOptions {
                name: i.name.clone(),
                ttl_threshold: i.ttl_threshold,
                mrdisc: i.mrdisc.then_some(settings.mrdisc.interval),
                reports: ReportOptions {
                    igmp_version: i.igmp_version,
                    mld_version: i.mld_version,
                    refresh: i.refresh,
                },
                disabled: !i.enabled,
                capture: i.capture,
                kernel_forwarding: i.kernel_forwarding,
                bandwidth: i.bandwidth,
            })
            .collect(),
    }
}

/// Returns the joins of the settings, and those of the groups of discovery.
fn joins_with_discovery(settings: &mut Settings) -> Vec<JoinRule> {
    let mut joins = std::mem::take(&mut settings.joins);
    for join in discovery_joins(&settings.discovery) {
        let is_same = |other: &JoinRule| {
            (&other.interface, other.source, other.group)
                == (&join.interface, join.source, join.group)
        };
        if !joins.iter().any(is_same) {
            joins.push(join);
        }
    }
    joins
}

/// Returns the proxy with which an MNAT egress learns the groups of its members. It has no
/// upstream: the groups are requested from the MNAT server, and its mappings forward them.
fn member_proxy(mnat: &Config) -> Option<ProxyRule> {
    let downstream = vec![IfPattern::from(&mnat.downstream)];
    let mut proxy = ProxyRule::new(Vec::new(), downstream);
    proxy.name = RouteName::new("mnat");
    proxy.upward = false;
    proxy.limits.groups = MAX_MNAT_GROUPS;
    (mnat.role == mnat::MnatRole::Egress && mnat.joins.members).then_some(proxy)
}

/// Largest number of groups with members at an MNAT egress, per IP version.
const MAX_MNAT_GROUPS: usize = 16_384;
