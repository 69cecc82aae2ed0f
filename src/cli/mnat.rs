//! `mcastor mnat-ingress` and `mcastor mnat-egress`: one end of multicast NAT from flags alone.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use super::run::start_log;
use super::{UNUSABLE, fail, unusable};
use crate::app::{self, Clients, Options};
use crate::mnat::client::Target;
use crate::mnat::config::JoinSources;
use crate::mnat::{Config, Role};
use crate::model::IfName;
use crate::settings::{Settings, environment};

/// Where certificates are looked for.
const CA: &str = "/etc/mnat/ca.pem";
const CERT: &str = "/etc/mnat/client.pem";
/// Where an ingress writes what it forwards.
const INGRESS_JOINED: &str = "/var/run/mnat/ingress-joined.sgs";

/// What both ends are told.
#[derive(Debug, clap::Args)]
pub struct MnatEndArgs {
    /// Name or address of the MNAT server
    #[arg(long, value_name = "HOST")]
    pub server: String,
    /// Its TCP port
    #[arg(long, default_value_t = 8443, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Interface that streams come from
    #[arg(long, value_name = "NAME")]
    pub upstream_interface: IfName,
    /// Interface that streams go to
    #[arg(long, value_name = "NAME")]
    pub downstream_interface: IfName,
    /// How long mappings last while the server is away
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration)]
    pub grace: Duration,
}

/// Arguments of `mcastor mnat-ingress`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  mcastor mnat-ingress --server mnat.example.net --upstream-interface eth0 \\
    --downstream-interface eth1

The server is verified with /etc/mnat/ca.pem, and gets /etc/mnat/client.pem as our certificate,
where these files exist. What is forwarded is written to /var/run/mnat/ingress-joined.sgs with
each poll. MCASTOR__… variables set the rest, such as MCASTOR__HTTP__LISTEN.")]
pub struct IngressArgs {
    /// The common ones
    #[command(flatten)]
    pub end: MnatEndArgs,
}

/// Arguments of `mcastor mnat-egress`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  mcastor mnat-egress --server mnat.example.net --upstream-interface eth1 \\
    --downstream-interface eth0 -f /var/run/mnat/egress.sgs

The server is verified with /etc/mnat/ca.pem, and gets /etc/mnat/client.pem as our certificate,
where these files exist. MCASTOR__… variables set the rest, such as MCASTOR__HTTP__LISTEN.")]
pub struct EgressArgs {
    /// The common ones
    #[command(flatten)]
    pub end: MnatEndArgs,
    /// Join what this file says, one `source,group` a line; it is read again when it changes
    #[arg(short = 'f', long, value_name = "FILE")]
    pub joinfile: Option<PathBuf>,
    /// Where joins come from; without `members` nothing is asked or heard downstream
    #[arg(long, value_name = "WORDS", value_delimiter = ',',
        default_values_t = JoinSources::WORDS.map(String::from), value_parser = JoinSources::WORDS)]
    pub joins: Vec<String>,
}

/// Runs an ingress.
pub fn ingress(args: IngressArgs) -> ExitCode {
    let joined = Some(INGRESS_JOINED.into());
    run(Role::Ingress, args.end, joined, JoinSources::ALL)
}

/// Runs an egress.
pub fn egress(args: EgressArgs) -> ExitCode {
    let joins = JoinSources::named(args.joins.iter().map(String::as_str));
    match joins {
        Ok(joins) if !joins.members && args.joinfile.is_none() => {
            unusable(&"--joins joinfile needs --joinfile")
        }
        Ok(joins) => run(Role::Egress, args.end, args.joinfile, joins),
        Err(word) => unusable(&format!("--joins {word}: members, joinfile or both")),
    }
}

fn run(role: Role, end: MnatEndArgs, joinfile: Option<PathBuf>, joins: JoinSources) -> ExitCode {
    if end.upstream_interface == end.downstream_interface {
        return unusable(&"upstream and downstream are the same interface");
    }
    let settings = match Settings::load(None, environment()) {
        Ok(settings) => settings,
        Err(report) => {
            eprintln!("{}", report.pretty());
            return ExitCode::from(UNUSABLE);
        }
    };
    start_log(&settings.log);
    let target = Target {
        host: end.server,
        port: end.port,
        ca: Some(CA.into()),
        cert: Some(CERT.into()),
        key: None,
        only_if_present: true,
    };
    let options = Options {
        settings,
        load: Box::new(|| Settings::load(None, environment()).map_err(Box::new)),
        pid_file: None,
        clients: Clients::Control,
        started: None,
        script: None,
        mnat: Some(Config {
            role,
            target,
            upstream: end.upstream_interface,
            downstream: end.downstream_interface,
            joinfile,
            joins,
            grace: end.grace,
        }),
    };
    match app::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&e),
    }
}
