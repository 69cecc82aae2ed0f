//! `smcroute`: the program of the releases before 2.0, which was daemon and client in one. Like the
//! wrapper of later releases, it runs `smcrouted` or `smcroutectl`.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use super::exit::FAILED;
use super::{smcroutectl, smcrouted};

const HELP: &str = "\
Usage: smcroute OPTION [ARGS]

  -d ARGS                        Start the daemon: smcrouted ARGS
  -k                             Stop the daemon
  -a IIF SOURCE GROUP OIF...     Add a route
  -r IIF SOURCE GROUP            Remove a route
  -j IIF GROUP                   Join a group
  -l IIF GROUP                   Leave a group
  -v                             Show the version
  -h                             Show this help

For scripts written for smcroute 1.x. New ones use smcrouted and smcroutectl.
";

/// Runs `smcroute` with the arguments after the program name.
pub fn from_arguments(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let option = arguments.next().unwrap_or_default();
    let command = match option.to_str() {
        Some("-d") => return smcrouted::from_arguments(arguments),
        Some("-h") => {
            // Ignores a closed standard output.
            let _ = std::io::stdout().write_all(HELP.as_bytes());
            return ExitCode::SUCCESS;
        }
        Some("-k") => "kill",
        Some("-v") => "version",
        Some("-a") => "add",
        Some("-r") => "remove",
        Some("-j") => "join",
        Some("-l") => "leave",
        _ => {
            let option = option.display();
            eprintln!("smcroute: unknown option \"{option}\"; smcroute -h lists the options");
            return ExitCode::from(FAILED);
        }
    };
    smcroutectl::from_arguments(std::iter::once(command.into()).chain(arguments))
}
