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

/// Runs `mcastor health`: queries the router and prints `ok`, or the error. In a container that runs
/// another subcommand there is no router to query.
pub fn run(args: HealthArgs) -> ExitCode {
    let first_process = std::fs::read("/proc/1/cmdline").unwrap_or_default();
    if let Some(subcommand) = other_subcommand(&first_process) {
        println!("ok: this container runs `mcastor {subcommand}`, not a router");
        return ExitCode::SUCCESS;
    }
    match client::send(&args.socket.socket, Command::Show(ShowQuery::Pending)) {
        Ok(_) => {
            println!("ok");
            ExitCode::SUCCESS
        }
        Err(e) => fail(&e),
    }
}

/// Returns the subcommand of a command line, whose words end with a zero byte, if it is a
/// subcommand of mcastor that runs no router.
fn other_subcommand(command_line: &[u8]) -> Option<&'static str> {
    let mut words = command_line.split(|byte| *byte == 0);
    let program = words.next()?.rsplit(|byte| *byte == b'/').next()?;
    let subcommand = words.next()?;
    let others = ["recv", "send", "demo", "doctor", "mnat-server"];
    let named = others
        .into_iter()
        .find(|other| other.as_bytes() == subcommand);
    named.filter(|_| program == b"mcastor")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_without_a_router_are_healthy() {
        let other = |words: &str| other_subcommand(words.replace(' ', "\0").as_bytes());
        assert_eq!(
            other("/usr/bin/mcastor recv --interface eth0"),
            Some("recv")
        );
        assert_eq!(other("mcastor send"), Some("send"));
        for router in [
            "/usr/bin/mcastor run",
            "/usr/bin/mcastor",
            "/sbin/init recv",
            "",
        ] {
            assert_eq!(other(router), None, "{router}");
        }
    }
}
