//! Arguments, one file a subcommand.

pub mod change;
pub mod check;
pub mod demo;
pub mod recv;
pub mod run;
pub mod send;
pub mod show;

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
        /// Settings file (TOML)
        file: PathBuf,
        /// Print the answer as one JSON object
        #[arg(long)]
        json: bool,
    },
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
    Send(send::SendArgs),
    Recv(recv::RecvArgs),
    Demo(demo::DemoArgs),
    /// Print completions for a shell
    #[command(after_help = "Example: mcastor completions bash > /etc/bash_completion.d/mcastor")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, in roff
    #[command(after_help = "Example: mcastor man > /usr/local/share/man/man1/mcastor.1")]
    Man,
}

/// Every subcommand and argument, for those who want to parse without running.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Runs the program.
pub fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run(args) => run::run(args),
        Command::Check { file, json } => check::run(&file, json),
        Command::Show(args) => show::run(&args),
        Command::Add(args) => change::add(args),
        Command::Remove(args) => change::remove(args),
        Command::Join(args) => change::join(args),
        Command::Leave(args) => change::leave(args),
        Command::Flush(args) => change::simple(&args, Request::Flush),
        Command::Reload(args) => change::simple(&args, Request::Reload),
        Command::Stop(args) => change::simple(&args, Request::Stop),
        Command::Send(args) => send::run(args),
        Command::Recv(args) => recv::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Completions { shell } => {
            let mut command = Arguments::command();
            clap_complete::generate(shell, &mut command, "mcastor", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
        Command::Man => man(),
    }
}

fn man() -> ExitCode {
    match clap_mangen::Man::new(Arguments::command()).render(&mut std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&e),
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
