//! `mcastor run`: the router.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

use super::exit::{UNUSABLE, fail};
use super::log::{RouterLog, TextFields};
use crate::app::upgrade::Predecessor;
use crate::app::{self, Clients, Options};
use crate::model::escape::EscapeStyle;
use crate::settings::{DEFAULT_FILE, LogFormat, LogSettings, Settings, environment};

/// Arguments of `mcastor run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  With /etc/mcastor/mcastor.toml, if it exists, and the environment variables:
    mcastor run

  With another settings file:
    mcastor run --config cameras.toml

  With environment variables only:
    MCASTOR__ROUTE__0__FROM=eth0 MCASTOR__ROUTE__0__GROUP=225.1.2.3 \\
    MCASTOR__ROUTE__0__TO=eth1 mcastor run

SIGHUP reloads the settings. SIGTERM and SIGINT stop the router. SIGQUIT stops it as `mcastor stop
--keep-forwarding` does. SIGUSR2 replaces the process by a new one, as `mcastor upgrade` does.

It needs CAP_NET_RAW, which root has. It does not need kernel multicast routing, iptables rules
or changes of rp_filter.")]
pub struct RunArgs {
    /// Settings file (TOML or smcroute.conf) [default: /etc/mcastor/mcastor.toml, if it exists].
    /// MCASTOR__… environment variables override it
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Write the process id to this file; it is removed on exit
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
}

/// Runs `mcastor run` until a signal or an error stops it.
pub fn run(args: RunArgs) -> ExitCode {
    let file = SettingsFile::new(args.config);
    let source = file.present().map_or_else(
        || format!("settings from the environment, without {DEFAULT_FILE}"),
        |path| path.display().to_string(),
    );
    let predecessor = match Predecessor::connect() {
        Ok(predecessor) => predecessor,
        Err(e) => return fail(&e),
    };
    let load = move || Settings::load(file.present(), environment()).map_err(Box::new);
    let settings = match load() {
        Ok(settings) => settings,
        Err(report) => {
            if let Some(predecessor) = predecessor {
                predecessor.refuse(&format_args!("the settings are invalid: {report}"));
            }
            eprintln!("{}", report.pretty());
            return ExitCode::from(UNUSABLE);
        }
    };
    start_log(&settings.log);
    let options = Options {
        title: format!("mcastor v{}, {source}", env!("CARGO_PKG_VERSION")),
        settings,
        load: Box::new(load),
        needs_reload: None,
        pid_file: args.pid_file,
        mnat: None,
        clients: Clients::Control,
        on_started: None,
        script: None,
        predecessor,
    };
    match app::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&e),
    }
}

/// The settings file of a router process.
struct SettingsFile {
    path: PathBuf,
    /// Whether a missing file is an error.
    is_required: Cell<bool>,
}

impl SettingsFile {
    /// Returns the file of `--config`, or else the default file, which may be missing.
    fn new(named: Option<PathBuf>) -> Self {
        Self {
            is_required: Cell::new(named.is_some()),
            path: named.unwrap_or_else(|| DEFAULT_FILE.into()),
        }
    }

    /// Returns the path, or `None` for a default file that was missing each time. A file that was
    /// once there is required: without it, a reload would end all its routes.
    fn present(&self) -> Option<&Path> {
        // A file that cannot be examined is loaded, so that the error is reported.
        if self.is_required.get() || self.path.try_exists().unwrap_or(true) {
            self.is_required.set(true);
            return Some(&self.path);
        }
        None
    }
}

/// Returns the log directives for `level`, without the messages of actix-http: it logs an error for
/// each malformed request, so that any client could flood the log. Of actix-server, only warnings
/// concern users; aya describes its work at the level debug. `level` may name them to see them.
pub(super) fn log_directives(level: &str) -> String {
    format!("actix_http=off,actix_server=warn,aya=warn,aya_obj=warn,{level}")
}

/// Starts logging to standard error. `RUST_LOG` overrides the log level of the settings.
pub(super) fn start_log(settings: &LogSettings) {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(log_directives(&settings.level)));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_target(false);
    let writer = |style| RouterLog::new(std::io::stderr, style);
    match settings.format {
        LogFormat::Text => {
            let log = log.fmt_fields(TextFields);
            log.with_writer(writer(EscapeStyle::Text)).init();
        }
        LogFormat::Json => log.json().with_writer(writer(EscapeStyle::Json)).init(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_file_may_be_missing_until_it_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mcastor.toml");
        let file = SettingsFile {
            path: path.clone(),
            is_required: Cell::new(false),
        };
        assert_eq!(file.present(), None);
        std::fs::write(&path, "").unwrap();
        assert_eq!(file.present(), Some(&*path));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(file.present(), Some(&*path));
        assert!(SettingsFile::new(Some(path)).present().is_some());
    }
}
