//! `mcastor mnat-server`: the server of multicast NAT.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::exit::{UNUSABLE, fail, print_error, usage_error};
use super::output::print;
use super::run::start_log;
use crate::mnat_server::certificates;
use crate::mnat_server::pool::Pool;
use crate::mnat_server::service::{self, ServerOptions};
use crate::mnat_server::store::EtcdOptions;
use crate::mnat_server::tls::TlsFiles;
use crate::settings::{Settings, environment};

/// Default paths of the prototype's container.
const CERT: &str = "/etc/mnat/server.crt";
const KEY: &str = "/etc/mnat/server.key";
const CLIENT_CA: &str = "/etc/mnat/clientca.pem";
const POOL: &str = "/etc/mnat/pool.json";
const FOLDER: &str = "/etc/mnat";
/// The variable with the path of the pool file, as in the prototype's container.
const POOL_VARIABLE: &str = "MNAT_POOL";
/// The pool of the prototype if there is no pool file.
const DEFAULT_POOL: &str = r#"{"group-pool": {"ranges": [
    {"group-range": "239.1.1.0/29", "source-range": "10.9.1.2"}]}}"#;

/// Arguments of `mcastor mnat-server`.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  mcastor mnat-server --cert server.crt --key server.key --pool pool.json \\
    --state /var/lib/mcastor/mnat-server
  mcastor mnat-server check pool.json

SIGTERM and SIGINT stop the server. Certificates are read again when they change. RUST_LOG or
MCASTOR__LOG__LEVEL set the log level.

Exit codes: 0 success, 1 failure, 2 invalid arguments, settings or pool."
)]
pub struct MnatServerArgs {
    #[command(subcommand)]
    action: Option<MnatServerAction>,
    /// Certificate of the server with its chain, PEM
    #[arg(long, value_name = "FILE", default_value = CERT)]
    cert: PathBuf,
    /// Key of the certificate, PEM
    #[arg(long, value_name = "FILE", default_value = KEY)]
    key: PathBuf,
    /// CA of client certificates, PEM. Clients are asked for a certificate, and watcher ids are bound
    /// to it [default: /etc/mnat/clientca.pem, if it exists]
    #[arg(long, value_name = "FILE")]
    client_ca: Option<PathBuf>,
    /// Refuse clients without a certificate
    #[arg(long)]
    require_client_cert: bool,
    /// Pool of local groups and sources, JSON [default: $MNAT_POOL, or /etc/mnat/pool.json]
    #[arg(long, value_name = "FILE")]
    pool: Option<PathBuf>,
    /// Address and port for clients; may be repeated
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "[::]:8443")]
    listen: Vec<SocketAddr>,
    /// Keep mappings and watchers in this folder, so that they survive a restart
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Members of an etcd cluster, in which several servers of one pool keep mappings and watchers
    #[arg(
        long,
        value_name = "URL,URL",
        value_delimiter = ',',
        conflicts_with = "state"
    )]
    etcd: Vec<String>,
    /// CA of the certificates of etcd, PEM [default: the CAs of the system]
    #[arg(long, value_name = "FILE", requires = "etcd")]
    etcd_ca: Option<PathBuf>,
    /// Client certificate for etcd with its chain, PEM
    #[arg(long, value_name = "FILE", requires = "etcd")]
    etcd_cert: Option<PathBuf>,
    /// Key of the client certificate, PEM [default: in the file of the certificate]
    #[arg(long, value_name = "FILE", requires = "etcd_cert")]
    etcd_key: Option<PathBuf>,
    /// User of etcd
    #[arg(long, value_name = "NAME", requires_all = ["etcd", "etcd_password_file"])]
    etcd_user: Option<String>,
    /// File with the password of the user
    #[arg(long, value_name = "FILE", requires = "etcd_user")]
    etcd_password_file: Option<PathBuf>,
    /// Address and port for /metrics and /healthz
    #[arg(long, value_name = "ADDRESS:PORT")]
    http: Option<SocketAddr>,
}

#[derive(Debug, clap::Subcommand)]
enum MnatServerAction {
    /// Check whether a pool file is valid
    #[command(
        after_help = "Example: mcastor mnat-server check pool.json\nExit codes: 0 valid, 2 invalid."
    )]
    Check {
        /// The pool file, JSON
        #[arg(default_value = POOL)]
        pool: PathBuf,
    },
    /// Make a CA, and certificates of the server and of a client
    #[command(after_help = "\
Writes ca.pem, ca.key, server.crt, server.key and client.pem. The ends need ca.pem, and
client.pem if the server runs with --client-ca ca.pem. ca.key signs further certificates.
Files that are all there stay.
Example: mcastor mnat-server certs --directory /etc/mnat mnat.example.net")]
    Certs {
        /// Folder of the files; created if it is missing, with the mode 0700
        #[arg(long, value_name = "DIR", default_value = FOLDER)]
        directory: PathBuf,
        /// Host names and addresses under which clients reach the server
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

/// Runs `mcastor mnat-server`.
pub fn run(args: MnatServerArgs) -> ExitCode {
    match args.action {
        Some(MnatServerAction::Check { pool }) => return check(&pool),
        Some(MnatServerAction::Certs { directory, names }) => {
            return write_certificates(&directory, &names);
        }
        None => {}
    }
    let settings = match Settings::load(None, environment()) {
        Ok(settings) => settings,
        Err(report) => {
            eprintln!("{}", report.pretty());
            return ExitCode::from(UNUSABLE);
        }
    };
    let named = args
        .pool
        .or_else(|| std::env::var_os(POOL_VARIABLE).map(PathBuf::from));
    let file = named.or_else(|| Path::new(POOL).exists().then(|| POOL.into()));
    let is_default = file.is_none();
    let pool = match &file {
        Some(file) => match read_pool(file) {
            Ok(pool) => pool,
            Err(code) => return code,
        },
        None => match Pool::parse(DEFAULT_POOL) {
            Ok(pool) => pool,
            Err(_) => return usage_error(&"there is no pool"),
        },
    };
    let client_ca = args
        .client_ca
        .or_else(|| Path::new(CLIENT_CA).exists().then(|| CLIENT_CA.into()));
    if args.require_client_cert && client_ca.is_none() {
        return usage_error(&"--require-client-cert requires --client-ca FILE");
    }
    let is_missing = |file: &&PathBuf| file.try_exists().is_ok_and(|exists| !exists);
    if let Some(file) = [&args.cert, &args.key].into_iter().find(is_missing) {
        return fail(&format_args!(
            "{} does not exist; name the certificate of the server and its key with --cert and \
             --key, or make them: mcastor mnat-server certs --directory DIR NAME",
            file.display()
        ));
    }
    start_log(&settings.log);
    if is_default {
        tracing::warn!(
            "mnat-server: there is no pool file; using the pool of the prototype, \
             {}: set --pool FILE",
            pool.fingerprint()
        );
    }
    let etcd = EtcdOptions {
        urls: args.etcd,
        ca: args.etcd_ca,
        cert: args.etcd_cert,
        key: args.etcd_key,
        user: args.etcd_user.zip(args.etcd_password_file),
    };
    let options = ServerOptions {
        tls: TlsFiles {
            cert: args.cert,
            key: args.key,
            client_ca,
            require_client_cert: args.require_client_cert,
        },
        pool,
        listen: args.listen,
        state: args.state,
        etcd: (!etcd.urls.is_empty()).then_some(etcd),
        http: args.http,
    };
    match service::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&e),
    }
}

/// Reads a pool file. Prints what is wrong with it.
fn read_pool(file: &Path) -> Result<Pool, ExitCode> {
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|e| usage_error(&format!("cannot read {}: {e}", file.display())))?;
    Pool::parse(&text).map_err(|faults| {
        for fault in faults {
            print_error(&format_args!("{}: {fault}", file.display()));
        }
        ExitCode::from(UNUSABLE)
    })
}

fn write_certificates(folder: &Path, names: &[String]) -> ExitCode {
    match certificates::write(folder, names) {
        Ok(true) => print(format!("wrote certificates to {}\n", folder.display()).as_bytes()),
        Ok(false) => print(format!("{} has certificates already\n", folder.display()).as_bytes()),
        Err(e) => fail(&e),
    }
}

fn check(file: &Path) -> ExitCode {
    let pool = match read_pool(file) {
        Ok(pool) => pool,
        Err(code) => return code,
    };
    let ranges = pool.ranges().iter();
    let lines = ranges.map(|range| format!("{range}: {} local (S,G)s\n", range.size()));
    let lines: String = lines.collect();
    print(format!("{}: valid\n{lines}", file.display()).as_bytes())
}
