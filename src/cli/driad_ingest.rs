//! `mcastor driad-ingest`: receives the streams of a joinfile through AMT, without a settings file.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::exit::{UNUSABLE, fail};
use super::run::start_log;
use crate::app::{self, Clients, Options};
use crate::docker::{EngineClient, NetworkExit, NetworkExitError};
use crate::mnat::Channel;
use crate::mnat::files::{FileContent, FileWatch};
use crate::mnat::joinfile::{self, Joinfile};
use crate::model::escape::quote;
use crate::model::{GroupPrefix, IfName, IfPattern, RouteName, RouteRule, SourcePrefix};
use crate::settings::{Settings, SettingsReport, environment};

/// The gateway, as variables of the environment. Those of the user override them.
const GATEWAY: [(&str, &str); 2] = [
    ("MCASTOR__AMT__GATEWAY__0__NAME", "amt"),
    ("MCASTOR__AMT__GATEWAY__0__RELAY", "driad"),
];

/// The variable with the interface on which tunnels leave.
const GATEWAY_INTERFACE: &str = "MCASTOR__AMT__GATEWAY__0__INTERFACE";

/// Longest wait for the container engine.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(5);

/// The invalid lines of a joinfile that the log shows.
const SHOWN_FAULTS: usize = 5;

/// Arguments of `mcastor driad-ingest`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  mcastor driad-ingest --joinfile /var/run/ingest/joined.sgs --interface eth1

The relay of a source is looked up in DNS (RFC 8777). Without --amt, tunnels leave by the routes of
this host.
MCASTOR__… environment variables set all other settings: MCASTOR__AMT__GATEWAY__0__RELAY names
relays that need no DNS, MCASTOR__HTTP__LISTEN the address of the metrics.")]
pub struct DriadIngestArgs {
    /// Receive the streams in this file, one `source,group` per line; it is read again when it
    /// changes
    #[arg(
        short = 'j',
        long,
        value_name = "FILE",
        visible_short_alias = 'f',
        visible_alias = "control-file"
    )]
    pub joinfile: PathBuf,
    /// Interface that streams leave on, or a pattern; may be repeated
    #[arg(
        short = 'i',
        long,
        value_name = "NAME",
        required_unless_present = "native"
    )]
    pub interface: Vec<IfPattern>,
    /// Network of the container engine that streams leave on: one with a bridge. The interface of
    /// another one is given with --interface
    #[arg(short = 'n', long, value_name = "NETWORK", value_parser = network)]
    pub native: Option<IfPattern>,
    /// Network of the container engine: tunnels leave as from a container on it. A macvlan: on its
    /// parent; an internal network: on its bridge; another bridge: by the routes of this host
    #[arg(short = 'a', long, value_name = "NETWORK")]
    pub amt: Option<String>,
    /// Log more; -vv also logs debug messages
    #[arg(short = 'v', long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// Returns the pattern of a network of the container engine.
fn network(name: &str) -> Result<IfPattern, String> {
    let pattern: Result<IfPattern, _> = format!("network:{name}").parse();
    pattern.map_err(|e| e.to_string())
}

impl DriadIngestArgs {
    /// Returns where streams leave.
    fn egresses(&self) -> Vec<IfPattern> {
        let interfaces = self.interface.iter().chain(&self.native);
        interfaces.cloned().collect()
    }
}

/// Returns the settings without routes. `interface` is that on which tunnels leave.
fn base_settings(
    verbose: u8,
    interface: Option<&IfName>,
    env: impl Iterator<Item = (String, String)>,
) -> Result<Settings, SettingsReport> {
    let interface = interface.map(|name| (GATEWAY_INTERFACE.to_owned(), name.to_string()));
    let gateway = GATEWAY.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let level = (verbose > 1).then(|| ("MCASTOR__LOG__LEVEL".to_owned(), "debug".to_owned()));
    let defaults = gateway.into_iter().chain(interface).chain(level);
    Settings::load(None, defaults.chain(env))
}

/// Returns the interface on which tunnels leave, so that they leave as from a container on the
/// network of `--amt`; `None` for the routes of this host. It is looked up once: an engine that does
/// not answer must not stop the streams, so tunnels then leave by the routes.
///
/// # Errors
/// The engine answers, and its networks do not include this one, or the network has no exit here.
fn tunnel_interface(network: &str, socket: &Path) -> Result<Option<IfName>, NetworkExitError> {
    let read = async {
        let client = EngineClient::connect(&socket.display().to_string()).await?;
        client.read().await
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let answer = runtime.map(|runtime| {
        runtime.block_on(async { tokio::time::timeout(ENGINE_TIMEOUT, read).await })
    });
    let reason = match answer {
        Ok(Ok(Ok(engine))) => {
            let exit = NetworkExit::of(&engine, network)?;
            let network = quote(network);
            return Ok(match exit {
                NetworkExit::HostRoutes => {
                    info!(
                        "driad-ingest: tunnels leave by the routes of this host, as packets of the \
                         network {network} do"
                    );
                    None
                }
                NetworkExit::Interface(name) => {
                    info!("driad-ingest: tunnels leave on {name}, for the network {network}");
                    Some(name)
                }
            });
        }
        Ok(Ok(Err(e))) => e.to_string(),
        Ok(Err(_)) => format!("no answer within {ENGINE_TIMEOUT:?}"),
        Err(e) => e.to_string(),
    };
    warn!(
        "driad-ingest: cannot look up the network {} of --amt: {}: {reason}; tunnels leave by the \
         routes of this host",
        quote(network),
        socket.display()
    );
    Ok(None)
}

/// Returns a route from the gateway for each stream with a source. Only the relay of a source can be
/// looked up, so other streams are left out.
fn routes<'j>(
    gateway: &IfName,
    joins: impl IntoIterator<Item = &'j Channel>,
    egresses: &[IfPattern],
) -> Vec<RouteRule> {
    let from = IfPattern::from(gateway);
    let joins = joins.into_iter();
    let route = |channel: &Channel| {
        let source = SourcePrefix::from(channel.source()?);
        let group = GroupPrefix::from(channel.group());
        Some(RouteRule {
            name: RouteName::default_for(&from, source, group),
            source,
            ..RouteRule::new(from.clone(), group, egresses.to_vec())
        })
    };
    joins.filter_map(route).collect()
}

/// The joinfile, and the streams that it had when it was last readable.
struct Joins {
    watch: FileWatch,
    file: Joinfile,
}

impl Joins {
    fn new(path: PathBuf) -> Self {
        let mut joins = Self {
            watch: FileWatch::new(path),
            file: Joinfile::default(),
        };
        joins.poll();
        joins
    }

    /// Reads a file that changed. Returns whether its streams are others.
    fn poll(&mut self) -> bool {
        let Some(content) = self.watch.poll(Instant::now()) else {
            return false;
        };
        let path = self.watch.path().display();
        let bytes = match content {
            FileContent::Bytes(bytes) => bytes,
            FileContent::Missing => {
                info!("driad-ingest: the joinfile {path} does not exist; waiting for it");
                Vec::new()
            }
            FileContent::Unreadable(e) => {
                warn!(
                    "driad-ingest: cannot read the joinfile {path}: {e}; its last content stays \
                     in force"
                );
                return false;
            }
        };
        let file = joinfile::parse(&bytes);
        if file.fault_count > 0 {
            let faults = file.faults.iter().take(SHOWN_FAULTS);
            let faults =
                faults.map(|(line, fault)| format!("line {line}: {}", quote(&fault.to_string())));
            let faults: Vec<String> = faults.collect();
            let (count, faults) = (file.fault_count, faults.join("; "));
            warn!("driad-ingest: {path}: {count} invalid lines are skipped: {faults}");
        }
        let without_source = file.joins.iter().filter(|join| join.source().is_none());
        let without_source = without_source.count();
        if without_source > 0 {
            warn!(
                "driad-ingest: {path}: {without_source} lines without a source are skipped: relays \
                 are looked up by the source"
            );
        }
        std::mem::replace(&mut self.file, file).joins != self.file.joins
    }
}

/// Runs `mcastor driad-ingest`.
pub fn run(args: DriadIngestArgs) -> ExitCode {
    let egresses = args.egresses();
    let verbose = args.verbose;
    let unusable = |report: SettingsReport| {
        eprintln!("{}", report.pretty());
        ExitCode::from(UNUSABLE)
    };
    let mut settings = match base_settings(verbose, None, environment()) {
        Ok(settings) => settings,
        Err(report) => return unusable(report),
    };
    start_log(&settings.log);
    let mut interface = None;
    if let Some(network) = &args.amt {
        interface = match tunnel_interface(network, &settings.docker.socket) {
            Ok(interface) => interface,
            Err(e) => {
                eprintln!("mcastor: --amt: {e}");
                return ExitCode::from(UNUSABLE);
            }
        };
        settings = match base_settings(verbose, interface.as_ref(), environment()) {
            Ok(settings) => settings,
            Err(report) => return unusable(report),
        };
    }
    let joins = Rc::new(RefCell::new(Joins::new(args.joinfile)));
    let with_routes = {
        let joins = joins.clone();
        move |mut settings: Settings| {
            let gateway = settings.amt.gateways.first().map(|gateway| &gateway.name);
            let joins = joins.borrow();
            let added = gateway.map(|gateway| routes(gateway, &joins.file.joins, &egresses));
            settings.routes.extend(added.into_iter().flatten());
            settings
        }
    };
    let options = Options {
        title: format!("mcastor v{} as driad-ingest", env!("CARGO_PKG_VERSION")),
        settings: with_routes(settings),
        load: Box::new(move || {
            let interface = interface.as_ref();
            let settings = base_settings(verbose, interface, environment()).map_err(Box::new);
            settings.map(&with_routes)
        }),
        needs_reload: Some(Box::new(move || joins.borrow_mut().poll())),
        pid_file: None,
        clients: Clients::Control,
        on_started: None,
        script: None,
        predecessor: None,
        mnat: None,
    };
    match app::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&e),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Program {
        #[command(flatten)]
        args: DriadIngestArgs,
    }

    fn parse(words: &str) -> Result<DriadIngestArgs, clap::Error> {
        let words = std::iter::once("p").chain(words.split(' '));
        Program::try_parse_from(words).map(|program| program.args)
    }

    #[test]
    fn arguments_of_the_prototype_are_accepted() {
        for (words, egresses) in [
            ("--joinfile f --interface irf0", &["irf0"][..]),
            ("-v -a amt-bridge -n native -j f", &["network:native"]),
            (
                "--amt a --native b -f f -i x -i y",
                &["x", "y", "network:b"],
            ),
            ("-n b --control-file f", &["network:b"]),
        ] {
            let args = parse(words).unwrap();
            let found = args.egresses();
            let found: Vec<&str> = found.iter().map(IfPattern::as_str).collect();
            assert_eq!(
                (found, args.joinfile.as_os_str()),
                (egresses.to_vec(), "f".as_ref())
            );
        }
        for words in ["--interface x", "-j f", "-j f -i a/b"] {
            assert!(parse(words).is_err(), "{words}");
        }
    }

    #[test]
    fn each_stream_with_a_source_becomes_a_route() {
        let text = b"10.0.0.1,232.1.1.1\n2001:db8::1,ff3e::8000:1\n*,239.5.5.5\n";
        let file = joinfile::parse(text);
        let to = ["eth1".parse().unwrap()];
        let routes = routes(&"amt".parse().unwrap(), &file.joins, &to);
        let names: Vec<&str> = routes.iter().map(|route| route.name.as_str()).collect();
        let expected = [
            "amt (10.0.0.1, 232.1.1.1)",
            "amt (2001:db8::1, ff3e::8000:1)",
        ];
        assert_eq!(names, expected);
        for route in routes {
            let join = route.implied_join().expect("a join");
            assert_eq!((join.interface.as_str(), &route.to[..]), ("amt", &to[..]));
            assert!(join.source.is_some());
        }
    }

    #[test]
    fn environment_overrides_the_way_to_relays() {
        let variable = |value: &str| {
            let name = "MCASTOR__AMT__GATEWAY__0__RELAY".to_owned();
            std::iter::once((name, value.to_owned()))
        };
        let ways = |env: &mut dyn Iterator<Item = (String, String)>| {
            let settings = base_settings(0, None, env).unwrap();
            settings.amt.gateways[0].ways.clone()
        };
        let driad = ways(&mut std::iter::empty());
        assert_eq!(driad, [crate::amt::candidate::RelayWay::Driad]);
        assert_ne!(ways(&mut variable("192.0.2.1")), driad);
        assert_eq!(
            base_settings(2, None, std::iter::empty())
                .unwrap()
                .log
                .level,
            "debug"
        );
    }

    #[test]
    fn tunnels_leave_on_the_interface_of_the_network() {
        let variable = |value: &str| Some((GATEWAY_INTERFACE.to_owned(), value.to_owned()));
        let [bridge, other]: [IfName; 2] = ["br-amt", "eth1"].map(|name| name.parse().unwrap());
        for (found, env, expected) in [
            (None, None, None),
            (Some(&bridge), None, Some(&bridge)),
            (Some(&bridge), variable("eth1"), Some(&other)),
        ] {
            let settings = base_settings(0, found, env.into_iter()).unwrap();
            assert_eq!(settings.amt.gateways[0].interface.as_ref(), expected);
        }
    }
}
