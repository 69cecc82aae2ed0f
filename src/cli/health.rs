//! `mcastor health`: whether the daemon beside it answers. The HEALTHCHECK of the image, which
//! has no shell and no curl.

use std::process::ExitCode;

use super::change::SocketArgs;
use super::fail;
use crate::api::ShowQuery;
use crate::control::{Command, client};

/// Arguments of `mcastor health`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: 0 routing answers, 1 it does not.

As a Docker health check: HEALTHCHECK CMD [\"/usr/bin/mcastor\", \"health\"]. Kubernetes asks
/healthz and /readyz instead.")]
pub struct HealthArgs {
    #[command(flatten)]
    socket: SocketArgs,
}

/// Asks.
pub fn run(args: HealthArgs) -> ExitCode {
    match client::ask(&args.socket.socket, Command::Show(ShowQuery::Pending)) {
        Ok(_) => {
            println!("ok");
            ExitCode::SUCCESS
        }
        Err(e) => fail(&e),
    }
}
