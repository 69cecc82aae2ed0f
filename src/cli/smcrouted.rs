//! `smcrouted`: the router with the flags, files and socket of the original.

use std::ffi::{CString, OsString};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use syslog_tracing::{Facility, Options as SyslogOptions, Syslog};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use super::exit::{FAILED, print_error};
use super::log::{RouterLog, TextFields};
use super::run::log_directives;
use crate::app::{self, AppError, Clients, Load, OnStarted, Options};
use crate::frontend::unix_socket::{BindError, CONTROL_SETTING, ListeningSocket};
use crate::model::escape::EscapeStyle;
use crate::settings::{HttpAddress, Settings, environment, read_smcroute};
use crate::smcroute::conf::KERNEL_NOTE;
use crate::sys::privileges::{self, DaemonStart, UserIdentity};

/// sysexits.h: invalid arguments.
const EX_USAGE: u8 = 64;
/// sysexits.h: a system call failed.
const EX_OSERR: u8 = 71;
/// sysexits.h: another daemon uses the socket.
const EX_UNAVAILABLE: u8 = 69;
/// sysexits.h: missing privileges.
const EX_NOPERM: u8 = 77;
/// sysexits.h: invalid settings.
const EX_CONFIG: u8 = 78;

/// Run the router as a replacement for smcrouted, with its flags, configuration file and socket
#[derive(Debug, Clone, Parser)]
#[command(
    name = "smcrouted",
    disable_version_flag = true,
    disable_help_flag = true,
    args_override_self = true,
    max_term_width = 100,
    after_help = "Example: smcrouted -n -f /etc/smcroute.conf\n\n\
        SIGHUP reloads the file. SIGTERM and SIGINT stop the daemon.\n\
        Exit codes: 0 success, 64 invalid flags, 69 another daemon uses the socket,\n\
        77 missing privileges, 78 invalid file."
)]
pub struct DaemonArgs {
    /// Forget a flow after this time without a packet; 0 means never
    #[arg(short = 'c', value_name = "SEC", default_value_t = 60)]
    idle: u32,
    /// Wait this long before the start
    #[arg(
        short = 'd',
        visible_short_alias = 'D',
        value_name = "SEC",
        default_value_t = 0
    )]
    delay: u32,
    /// Program to run: with argument `reload` when all routes are in force, and with argument
    /// `install` when a flow of a (*,G) route starts. The environment has source and group of the
    /// flow
    #[arg(short = 'e', value_name = "CMD")]
    script: Option<PathBuf>,
    /// Configuration file [default: /etc/NAME.conf]
    #[arg(short = 'f', value_name = "FILE")]
    file: Option<PathBuf>,
    /// Only check this file; the exit code is 78 if a line is invalid
    #[arg(short = 'F', value_name = "FILE")]
    check: Option<PathBuf>,
    /// Show this help
    #[arg(short = 'h', long)]
    help: bool,
    /// Name used for the configuration file, the pid file, the socket and in the log
    #[arg(
        short = 'i',
        visible_short_alias = 'I',
        value_name = "NAME",
        default_value = "smcroute"
    )]
    name: String,
    /// Log level
    #[arg(short = 'l', value_name = "LEVEL", default_value = "notice",
        ignore_case = true,
        value_parser = ["none", "emerg", "panic", "alert", "crit", "err", "error", "warn", "warning",
            "notice", "info", "debug"])]
    level: String,
    /// Interval of multicast router advertisements (RFC 4286), 4 to 180 seconds
    #[arg(short = 'm', value_name = "SEC", default_value_t = 20)]
    mrdisc_interval: u32,
    /// Stay in the foreground
    #[arg(short = 'n')]
    foreground: bool,
    /// Accepted without effect: no virtual interfaces (VIFs) are created here
    #[arg(short = 'N')]
    no_vifs: bool,
    /// Change to this user after the start; CAP_NET_ADMIN and CAP_NET_RAW are kept
    #[arg(short = 'p', value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// File for the process id [default: /run/NAME.pid]
    #[arg(short = 'P', value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Log to syslog; this is the default without -n
    #[arg(short = 's')]
    syslog: bool,
    /// Accepted without effect: kernel routing tables are not used
    #[arg(short = 't', value_name = "ID")]
    table: Option<String>,
    /// Socket for smcroutectl [default: /run/NAME.sock]
    #[arg(short = 'u', value_name = "FILE")]
    socket: Option<PathBuf>,
    /// Show the version
    #[arg(short = 'v')]
    version: bool,
    /// Serve metrics and the HTTP API at this address; without it, there is no HTTP server
    #[arg(long, value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// Reject lines with options that smcroute does not support
    #[arg(long)]
    strict: bool,
    /// Ignored, as by the original
    #[arg(hide = true)]
    rest: Vec<String>,
}

impl DaemonArgs {
    fn file(&self) -> PathBuf {
        let named = || format!("/etc/{}.conf", self.name).into();
        self.file.clone().unwrap_or_else(named)
    }

    fn socket(&self) -> PathBuf {
        let named = || format!("/run/{}.sock", self.name).into();
        self.socket.clone().unwrap_or_else(named)
    }

    /// Returns the path of the pid file. A path with a slash is used as given; a bare name is in
    /// /run.
    fn pid_file(&self) -> PathBuf {
        match &self.pid_file {
            Some(path) if path.as_os_str().as_encoded_bytes().contains(&b'/') => path.clone(),
            Some(name) => format!("/run/{}.pid", name.display()).into(),
            None => format!("/run/{}.pid", self.name).into(),
        }
    }

    /// Returns the function that loads the settings at the start and at each reload.
    fn load(&self) -> Load {
        let (file, strict, http) = (self.file(), self.strict, self.http);
        let mrdisc = Duration::from_secs(self.mrdisc_interval.into());
        let idle = match self.idle {
            0 => u32::MAX,
            idle => idle,
        };
        Box::new(move || {
            let mut settings = Settings::load_smcroute(&file, strict, environment())?;
            settings.http.listen = http.map(HttpAddress::Tcp);
            settings.limits.flow_idle = idle;
            settings.mrdisc.interval = mrdisc;
            Ok(settings)
        })
    }
}

/// Runs `smcrouted` with the arguments after the program name.
pub fn from_arguments(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let name = std::iter::once(OsString::from("smcrouted"));
    match DaemonArgs::try_parse_from(name.chain(arguments)) {
        Ok(args) => run(args),
        Err(e) => {
            // A closed standard error leaves no other place for the message.
            let _ = e.print();
            ExitCode::from(EX_USAGE)
        }
    }
}

/// Runs `smcrouted`.
pub fn run(args: DaemonArgs) -> ExitCode {
    if args.help {
        print!("{}", DaemonArgs::command().render_help());
        return ExitCode::SUCCESS;
    }
    if args.version {
        println!("mcastor v{}, as smcrouted", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    if let Some(file) = &args.check {
        return check(file, args.strict);
    }
    if !(4..=180).contains(&args.mrdisc_interval) {
        return fail(
            FAILED,
            &"-m: the advertisement interval must be 4 to 180 seconds",
        );
    }
    let identity = match args.user.as_deref().map(UserIdentity::lookup).transpose() {
        Ok(identity) => identity,
        Err(e) => return fail(FAILED, &format!("-p: {e}")),
    };
    let mut starting = match args.foreground {
        true => None,
        false => match privileges::daemonize() {
            Ok(starting) => Some(starting),
            Err(e) => return fail(EX_OSERR, &format!("cannot run in the background: {e}")),
        },
    };
    start_log(&args);
    if let Some(table) = &args.table {
        info!("-t {table}: no effect, because kernel routing tables are not used");
    }
    if args.delay > 0 {
        // The calling process need not wait for the requested delay.
        if let Some(starting) = starting.take() {
            finish_start(starting);
        }
        // Blocking is fine: no actor runs yet.
        std::thread::sleep(Duration::from_secs(args.delay.into()));
    }
    match prepare(&args, identity.as_ref()) {
        Ok(mut options) => {
            options.on_started = starting.map(|s| Box::new(|| finish_start(s)) as OnStarted);
            route(options)
        }
        Err(e) => e,
    }
}

/// Lets the calling process exit with success, and detaches from the terminal.
fn finish_start(starting: DaemonStart) {
    if let Err(e) = starting.report_success() {
        warn!("cannot detach from the terminal: {e}");
    }
}

fn route(options: Options) -> ExitCode {
    match app::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let code = match &e {
                AppError::NoPacketSockets(_) => EX_NOPERM,
                _ => FAILED,
            };
            tracing::error!("{e}");
            fail(code, &e)
        }
    }
}

/// Loads the settings, opens the socket, and drops root privileges if `-p` is given.
fn prepare(args: &DaemonArgs, identity: Option<&UserIdentity>) -> Result<Options, ExitCode> {
    let load = args.load();
    let settings = load().map_err(|report| fail(EX_CONFIG, &report))?;
    let socket = args.socket();
    let bound = match ListeningSocket::bind(&socket, CONTROL_SETTING) {
        Ok(bound) => Some(bound),
        Err(e @ BindError::Refused { .. }) => {
            warn!("{e}; continuing without the socket for smcroutectl");
            None
        }
        Err(e) => {
            let code = match &e {
                BindError::Taken { .. } => EX_UNAVAILABLE,
                _ => FAILED,
            };
            tracing::error!("{e}");
            return Err(fail(code, &e));
        }
    };
    let title = format!(
        "mcastor v{} as smcrouted, {}, {}",
        env!("CARGO_PKG_VERSION"),
        args.file().display(),
        socket.display()
    );
    let mut pid_file = Some(args.pid_file());
    if let (Some(identity), Some(pid)) = (identity, pid_file.take_if(|_| identity.is_some())) {
        if let Err(e) = identity.write_owned_file(&pid, &format!("{}\n", std::process::id())) {
            let pid = pid.display();
            warn!(
                "cannot write the pid file {pid}: {e}; continuing without it (-P sets another path)"
            );
        }
        if bound.is_some()
            && let Err(e) = identity.chown_socket(&socket)
        {
            warn!("-p: cannot change the owner of the socket, it still belongs to root: {e}");
        }
        identity
            .drop_privileges()
            .map_err(|e| fail(EX_NOPERM, &format!("-p: {e}")))?;
    }
    Ok(Options {
        title,
        settings,
        load,
        needs_reload: None,
        pid_file,
        mnat: None,
        clients: Clients::Smcroute(bound),
        on_started: None,
        script: args.script.clone(),
        predecessor: None,
    })
}

fn check(file: &Path, strict: bool) -> ExitCode {
    if let Err(report) = Settings::load_smcroute(file, strict, environment()) {
        return fail(EX_CONFIG, &report);
    }
    let conf = read_smcroute(file, strict);
    conf.notes.iter().for_each(|note| print_error(note));
    if !conf.routes.is_empty() {
        eprintln!("note: {KERNEL_NOTE}");
    }
    conf.faults.iter().for_each(|fault| print_error(fault));
    match conf.faults.len() {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::from(EX_CONFIG),
    }
}

fn fail(code: u8, why: &dyn std::fmt::Display) -> ExitCode {
    print_error(&format_args!("smcrouted: {why}"));
    ExitCode::from(code)
}

fn start_log(args: &DaemonArgs) {
    let level = args.level.to_ascii_lowercase();
    let level = match level.as_str() {
        "none" => "off",
        "emerg" | "panic" | "alert" | "crit" | "err" | "error" => "error",
        // Warnings, and start and stop messages, as at the level `notice` of smcrouted.
        "notice" => "warn,mcastor::app=info,mcastor::cli=info",
        other => other.strip_suffix("ing").unwrap_or(other),
    };
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(log_directives(level)));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_target(false)
        .fmt_fields(TextFields);
    let syslog = (args.syslog || !args.foreground)
        .then(|| CString::new(args.name.clone()).ok())
        .flatten()
        .and_then(|name| Syslog::new(name, SyslogOptions::LOG_PID, Facility::Daemon));
    match syslog {
        Some(syslog) => log
            .with_level(false)
            .without_time()
            .with_writer(RouterLog::new(syslog, EscapeStyle::Text))
            .init(),
        None => {
            let writer = RouterLog::new(std::io::stderr, EscapeStyle::Text);
            log.with_writer(writer).init();
        }
    }
    if args.no_vifs {
        warn!("-N: no effect, because no virtual interfaces (VIFs) are created");
    }
}
