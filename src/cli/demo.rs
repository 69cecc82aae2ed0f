//! `mcastor demo`: a router and streams through it, on any host, with a verdict.

use std::process::ExitCode;

use super::send::{print, stop_on_signals};
use crate::demo::view::{DemoView, Verdict};
use crate::demo::{self, DemoError, DemoOptions};

/// Show a router at work: three namespaces, three streams, a verdict.
///
/// Makes a sender, a router and a receiver in network namespaces of their own, sends an IPv4, an
/// IPv6 and a TTL-1 stream across, shows what is sent, forwarded and received each second, and
/// leaves nothing behind. Touches none of the host's interfaces; needs root or unprivileged user
/// namespaces, and no other program.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "\
Examples:
  Five seconds and a verdict:
    mcastor demo

  Stay up, to look at the metrics in a browser or with Prometheus:
    mcastor demo --keep

  For a script:
    mcastor demo --seconds 1 --json

Exit code: 0 PASS, 1 FAIL, 2 it cannot run here (the message says what is missing).")]
pub struct DemoArgs {
    /// How long to send
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub seconds: u32,
    /// Stay up after the verdict until Ctrl-C, sending slowly
    #[arg(long)]
    pub keep: bool,
    /// Print the outcome as one JSON object and nothing else
    #[arg(long)]
    pub json: bool,
}

/// The subcommand. Call it while the process has one thread: without root it moves to a user
/// namespace, which the kernel allows to no other.
pub fn run(args: DemoArgs) -> ExitCode {
    let plan = DemoOptions {
        seconds: args.seconds,
        keep: args.keep,
    };
    let mut view = DemoView::new(args.json);
    let verdict = stop_on_signals().map_err(DemoError::from).and_then(|stop| {
        demo::run(&plan, &mut view, &stop, &mut |outcome| {
            if args.json {
                print(&serde_json::json!(outcome).to_string());
            } else {
                print(&outcome.to_line());
            }
        })
    });
    match verdict {
        Ok(Verdict::Pass) => ExitCode::SUCCESS,
        Ok(Verdict::Fail) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mcastor demo: {error}");
            ExitCode::from(2)
        }
    }
}
