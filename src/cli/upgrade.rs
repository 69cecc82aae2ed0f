//! `mcastor upgrade`: lets a new process take over from the running one.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::change::SocketArgs;
use super::exit::fail;
use super::output::print_line;
use crate::api::{ShowReply, UpgradeQuery};
use crate::frontend::control::{Command, client};
use crate::model::escape::{EscapeStyle, escape};

/// Arguments of `mcastor upgrade`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The running process starts the program with its own arguments and environment. The new process
reads the settings, opens its sockets, and takes the capture sockets over, in which packets wait
for the moment in which no process reads them. No packet is lost, doubled or reordered. If the new
process is not ready within 10 seconds, or its settings are invalid, the running one goes on.

As a reload, it ends changes made with add, remove, join and leave.

Examples:
  After the installation of a new version in the same place:
    mcastor upgrade

  Another program:
    mcastor upgrade --binary /opt/mcastor-1.2/mcastor

Exit codes: 0 replaced, 1 not replaced: the running process goes on.")]
pub struct UpgradeArgs {
    /// The program to start [default: the file from which the running process was started]
    #[arg(long, value_name = "PATH")]
    pub binary: Option<PathBuf>,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Runs `mcastor upgrade`.
pub fn run(args: UpgradeArgs) -> ExitCode {
    let binary = match args.binary.as_deref().map(absolute).transpose() {
        Ok(binary) => binary,
        Err(e) => return fail(&e),
    };
    let command = Command::Upgrade(UpgradeQuery { binary });
    match client::send(&args.socket.socket, command) {
        Ok(ShowReply::Upgraded(view)) => {
            let text = match args.json {
                true => serde_json::to_string_pretty(&view),
                false => Ok(view.to_string()),
            };
            match text {
                Ok(text) => print_line(&escape(&text, EscapeStyle::Lines)),
                Err(e) => return fail(&e),
            }
            ExitCode::SUCCESS
        }
        Ok(_) => fail(&"unexpected reply from the running mcastor; do both have the same version?"),
        Err(e) => fail(&e),
    }
}

/// Returns the path as the running process understands it: it may have another working directory.
fn absolute(path: &Path) -> Result<String, String> {
    let path = std::path::absolute(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let text = path.to_str().map(String::from);
    text.ok_or_else(|| format!("{}: the path is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_path_is_that_of_the_command() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(
            absolute(Path::new("m")).unwrap(),
            here.join("m").to_str().unwrap()
        );
    }
}
