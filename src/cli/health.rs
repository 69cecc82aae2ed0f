//! `mcastor health`: checks that the running router responds. The container image uses it as its
//! HEALTHCHECK, because the image has no shell and no curl.

use std::process::ExitCode;

use super::change::SocketArgs;
use super::exit::fail;
use crate::api::ShowQuery;
use crate::frontend::control::{Command, client};

/// Arguments of `mcastor health`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example, as a health check in a Dockerfile:
  HEALTHCHECK CMD [\"/usr/bin/mcastor\", \"health\"]

For Kubernetes, use HTTP probes of /healthz and /readyz instead.

Exit codes: 0 the router responds, 1 it does not.")]
pub struct HealthArgs {
    #[command(flatten)]
    socket: SocketArgs,
}

/// Runs `mcastor health`: queries the router and prints `ok`, or the error.
pub fn run(args: HealthArgs) -> ExitCode {
    match client::send(&args.socket.socket, Command::Show(ShowQuery::Pending)) {
        Ok(_) => {
            println!("ok");
            ExitCode::SUCCESS
        }
        Err(e) => fail(&e),
    }
}
