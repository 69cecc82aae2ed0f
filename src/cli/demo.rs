//! `mcastor demo`: a self-contained test of the router on any host.

use std::process::ExitCode;

use super::exit::UNUSABLE;
use super::output::print_line;
use super::signals::stop_on_signals;
use crate::demo::error::DemoError;
use crate::demo::view::{DemoView, Verdict};
use crate::demo::{self, DemoOptions};

/// Run a router with test streams in isolated network namespaces, and check the result
///
/// Creates network namespaces for a sender, a router and a receiver. Sends three streams through
/// the router: IPv4, IPv6, and IPv4 with TTL 1. Shows every second how many packets were sent,
/// forwarded and received, and ends with PASS or FAIL. The interfaces of the host are not changed,
/// and the namespaces are removed at the end. Needs root or unprivileged user namespaces, and no
/// other program.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "\
Examples:
  Test for five seconds:
    mcastor demo

  Continue after the test, to look at the metrics in a browser or with Prometheus:
    mcastor demo --keep

  Use it in a script:
    mcastor demo --seconds 1 --json

Exit code: 0 PASS, 1 FAIL, 2 the demo cannot run here (the message names the missing requirement).")]
pub struct DemoArgs {
    /// Duration of the test in seconds
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub seconds: u32,
    /// Continue at 10 packets/s per stream after the verdict, until Ctrl-C
    #[arg(long)]
    pub keep: bool,
    /// Print only the result, as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Runs the subcommand. The process must have only one thread: without root it enters a user
/// namespace, which the kernel refuses to a process with several threads.
pub fn run(args: DemoArgs) -> ExitCode {
    let options = DemoOptions {
        seconds: args.seconds,
        keep: args.keep,
    };
    let mut view = DemoView::new(args.json);
    let verdict = stop_on_signals().map_err(DemoError::from).and_then(|stop| {
        demo::run(&options, &mut view, &stop, &mut |outcome| {
            if args.json {
                print_line(&serde_json::json!(outcome).to_string());
            } else {
                print_line(&outcome.to_line());
            }
        })
    });
    match verdict {
        Ok(Verdict::Pass) => ExitCode::SUCCESS,
        Ok(Verdict::Fail) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mcastor demo: {error}");
            ExitCode::from(UNUSABLE)
        }
    }
}
