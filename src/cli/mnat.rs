//! `mcastor mnat-ingress` and `mcastor mnat-egress`: one end of multicast NAT, without a settings
//! file.

use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use super::exit::{UNUSABLE, fail, usage_error};
use super::run::start_log;
use crate::app::{self, Clients, Options};
use crate::mnat::Target;
use crate::mnat::config::JoinSources;
use crate::mnat::{Config, MnatRole};
use crate::model::IfName;
use crate::settings::{Settings, environment};

/// Default paths of the certificate files. Files that do not exist are ignored.
const CA: &str = "/etc/mnat/ca.pem";
const CERT: &str = "/etc/mnat/client.pem";
/// The file to which an ingress writes the streams that it forwards.
const INGRESS_JOINED: &str = "/var/run/mnat/ingress-joined.sgs";

/// Arguments of both ends.
#[derive(Debug, clap::Args)]
pub struct MnatEndArgs {
    /// Name or address of the MNAT server
    #[arg(long, value_name = "HOST", value_parser = server_host)]
    pub server: String,
    /// TCP port of the server
    #[arg(long, default_value_t = 8443, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Interface that streams arrive on
    #[arg(long, value_name = "NAME")]
    pub upstream_interface: IfName,
    /// Interface that streams leave on
    #[arg(long, value_name = "NAME")]
    pub downstream_interface: IfName,
    /// How long mappings stay in force while the server does not respond
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration)]
    pub grace: Duration,
}

/// Checks the name or address of the server. A URL, or a name with a port, would be looked up again
/// and again.
fn server_host(text: &str) -> Result<String, String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let is_host = !text.is_empty() && text.chars().all(is_name);
    match is_host || text.parse::<Ipv6Addr>().is_ok() {
        true => Ok(text.into()),
        false => Err(
            "neither a host name nor an address; write it without https://, and the port \
             in --port"
                .into(),
        ),
    }
}

/// Arguments of `mcastor mnat-ingress`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  mcastor mnat-ingress --server mnat.example.net --upstream-interface eth0 \\
    --downstream-interface eth1

The certificate of the server is verified with /etc/mnat/ca.pem, and /etc/mnat/client.pem
is the client certificate, if these files exist. After each poll, the forwarded streams are written
to /var/run/mnat/ingress-joined.sgs. MCASTOR__… environment variables set all other
settings, such as MCASTOR__HTTP__LISTEN.")]
pub struct IngressArgs {
    /// Arguments of both ends
    #[command(flatten)]
    pub end: MnatEndArgs,
}

/// Arguments of `mcastor mnat-egress`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  mcastor mnat-egress --server mnat.example.net --upstream-interface eth1 \\
    --downstream-interface eth0 -f /var/run/mnat/egress.sgs

The certificate of the server is verified with /etc/mnat/ca.pem, and /etc/mnat/client.pem
is the client certificate, if these files exist. MCASTOR__… environment variables set all other
settings, such as MCASTOR__HTTP__LISTEN.")]
pub struct EgressArgs {
    /// Arguments of both ends
    #[command(flatten)]
    pub end: MnatEndArgs,
    /// Join the streams in this file, one `source,group` per line; it is read again when it changes
    #[arg(short = 'f', long, value_name = "FILE")]
    pub joinfile: Option<PathBuf>,
    /// Where joins come from; without `members`, no queries are sent and no reports accepted
    /// downstream
    #[arg(long, value_name = "WORDS", value_delimiter = ',',
        default_values_t = JoinSources::WORDS.map(String::from), value_parser = JoinSources::WORDS)]
    pub joins: Vec<String>,
}

/// Runs `mcastor mnat-ingress`.
pub fn ingress(args: IngressArgs) -> ExitCode {
    let joined = Some(INGRESS_JOINED.into());
    run(MnatRole::Ingress, args.end, joined, JoinSources::ALL)
}

/// Runs `mcastor mnat-egress`.
pub fn egress(args: EgressArgs) -> ExitCode {
    let joins = JoinSources::named(args.joins.iter().map(String::as_str));
    match joins {
        Ok(joins) if !joins.members && args.joinfile.is_none() => {
            usage_error(&"--joins joinfile requires --joinfile FILE")
        }
        Ok(joins) => run(MnatRole::Egress, args.end, args.joinfile, joins),
        Err(word) => usage_error(&format!(
            "--joins {word}: expected members, joinfile or both"
        )),
    }
}

fn run(
    role: MnatRole,
    end: MnatEndArgs,
    joinfile: Option<PathBuf>,
    joins: JoinSources,
) -> ExitCode {
    if end.upstream_interface == end.downstream_interface {
        return usage_error(&"--upstream-interface and --downstream-interface must differ");
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
    let version = env!("CARGO_PKG_VERSION");
    let options = Options {
        title: format!("mcastor v{version} as mnat-{}", role.label()),
        settings,
        load: Box::new(|| Settings::load(None, environment()).map_err(Box::new)),
        needs_reload: None,
        pid_file: None,
        clients: Clients::Control,
        on_started: None,
        script: None,
        predecessor: None,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_is_a_host_without_port() {
        for host in [
            "mnat.example.net",
            "mnat_server",
            "192.0.2.1",
            "2001:db8::1",
        ] {
            assert_eq!(server_host(host).as_deref(), Ok(host));
        }
        for wrong in [
            "",
            "https://mnat.example.net",
            "mnat.example.net:8443",
            "[2001:db8::1]:8443",
            "a b",
        ] {
            assert!(server_host(wrong).is_err(), "{wrong}");
        }
    }
}
