//! The command line: one file per subcommand, and the exit codes and output that they share.

pub mod change;
pub mod check;
mod cleanup;
pub mod convert;
pub mod demo;
mod doctor;
pub mod driad_ingest;
pub mod exit;
mod explain;
mod group_and_port;
pub mod health;
mod help;
mod keep_memberships;
mod log;
pub mod man;
pub mod mnat;
pub mod mnat_server;
pub mod output;
mod pcapng;
pub mod record;
pub mod recv;
mod rtp_report;
pub mod run;
pub mod schema;
pub mod send;
pub mod show;
mod show_discovery;
mod show_streams;
mod show_tables;
pub mod signals;
mod silent_groups;
pub mod smcroute;
pub mod smcroutectl;
pub mod smcrouted;
mod table;
mod top;
mod trace;
pub mod upgrade;
mod usage;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::frontend::control::Command as Request;
use output::print;

/// A multicast router in user space.
///
/// Forwards multicast packets from one interface to others, according to the routes of a settings
/// file. Counts every packet, and every dropped packet under a reason.
#[derive(Debug, Parser)]
#[command(
    name = "mcastor",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 success, 1 failure, 2 invalid arguments or settings.\n\n\
        To try it without changes to this machine's network: mcastor demo"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the router until SIGTERM or SIGINT
    Run(run::RunArgs),
    /// Check whether a settings file is valid
    #[command(
        after_help = "MCASTOR__… environment variables override the file, as for `mcastor run`. With \
        such variables, /etc/mcastor/mcastor.toml may be missing.\n\
        Examples:\n  mcastor check\n  mcastor check cameras.toml\n\
        Exit codes: 0 valid, 2 invalid."
    )]
    Check {
        /// Settings file (TOML or smcroute.conf) [default: /etc/mcastor/mcastor.toml]
        file: Option<PathBuf>,
        /// Print the result as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print the JSON schema of the settings file, or the OpenAPI document of the HTTP API
    #[command(
        after_help = "Editors use the schema to complete and check keys. Refer to it in the first line of a settings file:\n  \
        #:schema ./mcastor.schema.json\n\
        Examples:\n  mcastor schema > /etc/mcastor/mcastor.schema.json\n  \
        mcastor schema --openapi > openapi.json"
    )]
    Schema {
        /// Print the OpenAPI document of /api/v1
        #[arg(long)]
        openapi: bool,
    },
    /// Convert an smcroute.conf or an igmpproxy.conf to TOML settings
    #[command(
        after_help = "Comments of an smcroute.conf are kept. An invalid line becomes a comment, and is \
        reported on standard error. So is what has no counterpart.\n\
        Examples:\n  mcastor convert /etc/smcroute.conf > /etc/mcastor/mcastor.toml\n  \
        mcastor convert --from igmpproxy /etc/igmpproxy.conf > /etc/mcastor/mcastor.toml\n\
        Exit codes: 0 success, 2 the file has invalid lines."
    )]
    Convert {
        /// The program whose file is converted [default: as the file looks]
        #[arg(long, value_name = "PROGRAM")]
        from: Option<convert::ConfFormat>,
        /// The file to convert
        file: PathBuf,
        /// Reject lines with options that smcroute does not support
        #[arg(long)]
        strict: bool,
    },
    #[command(disable_help_flag = true, args_override_self = true)]
    Smcrouted(smcrouted::DaemonArgs),
    #[command(disable_help_flag = true, args_override_self = true)]
    Smcroutectl(smcroutectl::ClientArgs),
    /// Show the tables of the running mcastor, such as routes, flows and drops
    Show(show::ShowArgs),
    /// Explain what the running mcastor does with a packet, and why
    Explain(explain::ExplainArgs),
    /// Follow live packets of a group through the running mcastor
    Trace(trace::TraceArgs),
    /// Watch interfaces, flows, drops, joins and streams of the running mcastor
    Top(top::TopArgs),
    /// Find out why multicast does not arrive
    Doctor(doctor::DoctorArgs),
    /// Add a route, or egress interfaces to a route, until the next reload
    #[command(after_help = "Example: mcastor add eth0 225.1.2.3 eth1 eth2")]
    Add(change::RouteArgs),
    /// Remove a route, or some of its egress interfaces, until the next reload
    #[command(
        after_help = "Examples:\n  mcastor remove eth0 225.1.2.3\n  mcastor remove eth0 10.0.0.10 225.1.2.3 eth2"
    )]
    Remove(change::RouteArgs),
    /// Join a group as a host, until the next reload
    #[command(
        after_help = "Examples:\n  mcastor join eth0 225.1.2.3\n  mcastor join eth0 10.0.0.10 232.1.2.3"
    )]
    Join(change::JoinArgs),
    /// Undo a join of `mcastor join` or of the settings, until the next reload
    #[command(after_help = "Example: mcastor leave eth0 225.1.2.3")]
    Leave(change::JoinArgs),
    /// Forget all flows; an active flow is created again by its next packet
    #[command(after_help = "Example: mcastor flush")]
    Flush(change::SocketArgs),
    /// Reload the settings; this ends changes made with add, remove, join and leave
    #[command(after_help = "Example: mcastor reload")]
    Reload(change::SocketArgs),
    /// Replace the running mcastor by a new process, without the loss of a packet
    Upgrade(upgrade::UpgradeArgs),
    /// Stop the running mcastor
    #[command(after_help = "Examples:\n  mcastor stop\n  mcastor stop --keep-forwarding")]
    Stop(change::StopArgs),
    Cleanup(cleanup::CleanupArgs),
    /// Run the ingress of multicast NAT, the end near the senders
    MnatIngress(mnat::IngressArgs),
    /// Run the egress of multicast NAT, the end near the receivers
    MnatEgress(mnat::EgressArgs),
    /// Run the server of multicast NAT, which assigns the mappings
    MnatServer(mnat_server::MnatServerArgs),
    /// Receive the streams of a joinfile through AMT
    DriadIngest(driad_ingest::DriadIngestArgs),
    /// Check that the running mcastor responds, for container health checks
    Health(health::HealthArgs),
    Send(send::SendArgs),
    Recv(recv::RecvArgs),
    Record(record::RecordArgs),
    Demo(demo::DemoArgs),
    /// Print a shell completion script
    #[command(after_help = "Example: mcastor completions bash > /etc/bash_completion.d/mcastor")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
        /// The program
        #[arg(value_enum, default_value_t = ProgramName::Mcastor)]
        program: ProgramName,
    },
    /// Print a manual page in roff format
    #[command(
        after_help = "Examples:\n  mcastor man run | man -l -\n  mcastor man mcastor.toml\n  \
        mcastor man smcrouted > /usr/local/share/man/man8/smcrouted.8\n  \
        mcastor man --directory /usr/local/share/man"
    )]
    Man {
        /// A command, mcastor.toml, smcrouted or smcroutectl
        #[arg(default_value = "mcastor")]
        page: String,
        /// Write the pages of mcastor, all its commands and mcastor.toml to man1 and man5 in this
        /// directory
        #[arg(long, value_name = "DIR", conflicts_with = "page")]
        directory: Option<PathBuf>,
    },
}

/// The program names under which this binary can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ProgramName {
    /// The multicast router
    Mcastor,
    /// The replacement for the daemon of smcroute
    Smcrouted,
    /// The replacement for the client of smcroute
    Smcroutectl,
}

impl ProgramName {
    /// Returns the command-line definition and the program name.
    fn command(self) -> (clap::Command, &'static str) {
        match self {
            Self::Mcastor => (command(), "mcastor"),
            Self::Smcrouted => (smcrouted::DaemonArgs::command(), "smcrouted"),
            Self::Smcroutectl => (smcroutectl::ClientArgs::command(), "smcroutectl"),
        }
    }
}

/// Returns the command-line definition, to parse arguments without running a command.
pub fn command() -> clap::Command {
    Arguments::command().mut_subcommands(help::with_filled_paragraphs)
}

/// Parses the arguments and runs the command. The program name selects mcastor, smcrouted,
/// smcroutectl or smcroute.
pub fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = arguments.next().map(PathBuf::from).unwrap_or_default();
    match program.file_name().and_then(|name| name.to_str()) {
        Some("smcrouted") => return smcrouted::from_arguments(arguments),
        Some("smcroutectl") => return smcroutectl::from_arguments(arguments),
        Some("smcroute") => return smcroute::from_arguments(arguments),
        _ => {}
    }
    // As subcommands they also use smcroute's exit codes for invalid flags, so they parse first.
    let first = arguments.next();
    match first.as_ref().and_then(|word| word.to_str()) {
        Some("smcrouted") => return smcrouted::from_arguments(arguments),
        Some("smcroutectl") => return smcroutectl::from_arguments(arguments),
        Some("smcroute") => return smcroute::from_arguments(arguments),
        // Not for users, and small: it does not build the command line.
        Some(keep_memberships::COMMAND) => return keep_memberships::from_arguments(arguments),
        _ => {}
    }
    let words: Vec<OsString> = first.into_iter().chain(arguments).collect();
    let all = std::iter::once("mcastor".into()).chain(words.iter().cloned());
    let matches = command().try_get_matches_from(all);
    let parsed = matches.and_then(|matches| Arguments::from_arg_matches(&matches));
    let parsed = parsed.unwrap_or_else(|error| usage::with_tip(error, &words).exit());
    match parsed.command {
        Command::Run(args) => run::run(args),
        Command::Check { file, json } => check::run(file.as_deref(), json),
        Command::Schema { openapi } => schema::run(openapi),
        Command::Convert { from, file, strict } => convert::run(from, &file, strict),
        Command::Smcrouted(args) => smcrouted::run(args),
        Command::Smcroutectl(args) => smcroutectl::run(args),
        Command::Show(args) => show::run(&args),
        Command::Explain(args) => explain::run(args),
        Command::Trace(args) => trace::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Add(args) => change::add(args),
        Command::Remove(args) => change::remove(args),
        Command::Join(args) => change::join(args),
        Command::Leave(args) => change::leave(args),
        Command::Flush(args) => change::run_without_arguments(&args, Request::Flush),
        Command::Reload(args) => change::run_without_arguments(&args, Request::Reload),
        Command::Upgrade(args) => upgrade::run(args),
        Command::Stop(args) => change::stop(&args),
        Command::Cleanup(args) => cleanup::run(&args),
        Command::MnatIngress(args) => mnat::ingress(args),
        Command::MnatEgress(args) => mnat::egress(args),
        Command::MnatServer(args) => mnat_server::run(args),
        Command::DriadIngest(args) => driad_ingest::run(args),
        Command::Health(args) => health::run(args),
        Command::Send(args) => send::run(args),
        Command::Recv(args) => recv::run(args),
        Command::Record(args) => record::run(&args),
        Command::Demo(args) => demo::run(args),
        Command::Completions { shell, program } => {
            let (mut command, name) = program.command();
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut command, name, &mut text);
            print(&text)
        }
        Command::Man { page, directory } => man::run(command(), &page, directory.as_deref()),
    }
}
