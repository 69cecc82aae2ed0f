//! Arguments, one file a subcommand.

pub mod change;
pub mod check;
pub mod convert;
pub mod demo;
pub mod health;
pub mod mnat;
pub mod recv;
pub mod run;
pub mod schema;
pub mod send;
pub mod show;
pub mod smcroutectl;
pub mod smcrouted;

use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::control::Command as Request;

/// Exit code of a fault at run time.
pub const FAILED: u8 = 1;
/// Exit code of bad settings and bad arguments.
pub const UNUSABLE: u8 = 2;

/// A multicast router in user space.
///
/// Multicast that arrives on one interface leaves on others, by the routes of a settings
/// file. Every packet is counted, and every dropped packet has a reason.
#[derive(Debug, Parser)]
#[command(
    name = "mcastor",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 1 failed, 2 bad arguments or settings.\n\
        See it work, without touching this machine's network: mcastor demo"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Route multicast until SIGTERM or SIGINT
    Run(run::RunArgs),
    /// Tell whether a settings file is good
    #[command(
        after_help = "Exit codes: 0 good, 2 refused. The environment (MCASTOR__…) counts as it does for run."
    )]
    Check {
        /// Settings file (TOML or smcroute.conf)
        file: PathBuf,
        /// Print the answer as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print the JSON schema of the settings file
    #[command(
        after_help = "Editors use it to complete and check keys. A settings file names it in its first line:\n  \
        #:schema ./mcastor.schema.json\n\
        Example: mcastor schema > /etc/mcastor.schema.json"
    )]
    Schema,
    /// Print an smcroute.conf as TOML, comments kept
    #[command(
        after_help = "Exit codes: 0 done, 2 where a line is bad and stands as a comment.\n\
        Example: mcastor convert /etc/smcroute.conf > /etc/mcastor.toml"
    )]
    Convert {
        /// The smcroute.conf
        file: PathBuf,
        /// Refuse lines with words that smcroute does not know
        #[arg(long)]
        strict: bool,
    },
    #[command(disable_help_flag = true, args_override_self = true)]
    Smcrouted(smcrouted::DaemonArgs),
    #[command(disable_help_flag = true, args_override_self = true)]
    Smcroutectl(smcroutectl::ClientArgs),
    /// Tell what a running mcastor does
    Show(show::ShowArgs),
    /// Add a route, or interfaces to one; until the next reload
    #[command(after_help = "Example: mcastor add eth0 225.1.2.3 eth1 eth2")]
    Add(change::RouteArgs),
    /// Remove a route, or some of its interfaces; until the next reload
    #[command(
        after_help = "Examples:\n  mcastor remove eth0 225.1.2.3\n  mcastor remove eth0 10.0.0.10 225.1.2.3 eth2"
    )]
    Remove(change::RouteArgs),
    /// Join a group as a host; until the next reload
    #[command(
        after_help = "Examples:\n  mcastor join eth0 225.1.2.3\n  mcastor join eth0 10.0.0.10 232.1.2.3"
    )]
    Join(change::JoinArgs),
    /// Take a join back
    Leave(change::JoinArgs),
    /// Forget all flows; those that go on come back with their next packet
    Flush(change::SocketArgs),
    /// Read the settings again
    Reload(change::SocketArgs),
    /// End the running mcastor
    Stop(change::SocketArgs),
    /// Be the end of multicast NAT near senders
    MnatIngress(mnat::IngressArgs),
    /// Be the end of multicast NAT near receivers
    MnatEgress(mnat::EgressArgs),
    /// Tell whether the running mcastor answers, for health checks
    Health(health::HealthArgs),
    Send(send::SendArgs),
    Recv(recv::RecvArgs),
    Demo(demo::DemoArgs),
    /// Print completions for a shell
    #[command(after_help = "Example: mcastor completions bash > /etc/bash_completion.d/mcastor")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
        /// Of which program
        #[arg(value_enum, default_value_t = ProgramName::Mcastor)]
        program: ProgramName,
    },
    /// Print a manual page, in roff
    #[command(
        after_help = "Examples:\n  mcastor man > /usr/local/share/man/man1/mcastor.1\n  \
        mcastor man smcrouted > /usr/local/share/man/man8/smcrouted.8"
    )]
    Man {
        /// Of which program
        #[arg(value_enum, default_value_t = ProgramName::Mcastor)]
        program: ProgramName,
    },
}

/// The names this program goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ProgramName {
    /// Its own
    Mcastor,
    /// The daemon of smcroute
    Smcrouted,
    /// The client of smcroute
    Smcroutectl,
}

impl ProgramName {
    /// Its flags, and the name it is called by.
    fn command(self) -> (clap::Command, &'static str) {
        match self {
            Self::Mcastor => (Arguments::command(), "mcastor"),
            Self::Smcrouted => (smcrouted::DaemonArgs::command(), "smcrouted"),
            Self::Smcroutectl => (smcroutectl::ClientArgs::command(), "smcroutectl"),
        }
    }
}

/// Every subcommand and argument, for those who want to parse without running.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Runs the program.
pub fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let called = arguments.next().map(PathBuf::from).unwrap_or_default();
    match called.file_name().and_then(|name| name.to_str()) {
        Some("smcrouted") => return smcrouted::from_arguments(arguments),
        Some("smcroutectl") => return smcroutectl::from_arguments(arguments),
        _ => {}
    }
    // Their own exit codes for bad flags hold by this name too.
    let first = arguments.next();
    match first.as_ref().and_then(|word| word.to_str()) {
        Some("smcrouted") => return smcrouted::from_arguments(arguments),
        Some("smcroutectl") => return smcroutectl::from_arguments(arguments),
        _ => {}
    }
    match Arguments::parse().command {
        Command::Run(args) => run::run(args),
        Command::Check { file, json } => check::run(&file, json),
        Command::Schema => print(schema::text().as_bytes()),
        Command::Convert { file, strict } => convert::run(&file, strict),
        Command::Smcrouted(args) => smcrouted::run(args),
        Command::Smcroutectl(args) => smcroutectl::run(args),
        Command::Show(args) => show::run(&args),
        Command::Add(args) => change::add(args),
        Command::Remove(args) => change::remove(args),
        Command::Join(args) => change::join(args),
        Command::Leave(args) => change::leave(args),
        Command::Flush(args) => change::simple(&args, Request::Flush),
        Command::Reload(args) => change::simple(&args, Request::Reload),
        Command::Stop(args) => change::simple(&args, Request::Stop),
        Command::MnatIngress(args) => mnat::ingress(args),
        Command::MnatEgress(args) => mnat::egress(args),
        Command::Health(args) => health::run(args),
        Command::Send(args) => send::run(args),
        Command::Recv(args) => recv::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Completions { shell, program } => {
            let (mut command, name) = program.command();
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut command, name, &mut text);
            print(&text)
        }
        Command::Man { program } => man(program),
    }
}

fn man(program: ProgramName) -> ExitCode {
    let page = clap_mangen::Man::new(program.command().0);
    let page = match program {
        ProgramName::Mcastor => page,
        // Where those of smcroute stand.
        ProgramName::Smcrouted | ProgramName::Smcroutectl => page.section("8"),
    };
    let mut text = Vec::new();
    match page.render(&mut text) {
        Ok(()) => print(&text),
        Err(e) => fail(&e),
    }
}

/// Writes to standard output. Whoever closed it has read enough.
fn print(text: &[u8]) -> ExitCode {
    let mut out = std::io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => fail(&e),
        _ => ExitCode::SUCCESS,
    }
}

/// Says on standard error what is wrong with the arguments.
pub(crate) fn unusable(why: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("mcastor: {why}");
    ExitCode::from(UNUSABLE)
}

/// Says on standard error why it failed.
pub(crate) fn fail(why: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("mcastor: {why}");
    ExitCode::from(FAILED)
}
