//! `mcastor convert FILE`: prints an `smcroute.conf` as TOML.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use super::exit::UNUSABLE;
use crate::settings::read_smcroute;
use crate::smcroute::convert::convert;

/// Prints the TOML settings equivalent to an `smcroute.conf`. Invalid lines become comments and are
/// reported on standard error; the exit code is then [`UNUSABLE`].
pub fn run(file: &Path, strict: bool) -> ExitCode {
    let conf = read_smcroute(file, strict);
    // Ignores a closed standard output.
    let _ = std::io::stdout().write_all(convert(&conf).as_bytes());
    let messages = conf.faults.iter().chain(&conf.notes);
    messages.for_each(|message| eprintln!("{message}"));
    match conf.faults.len() {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::from(UNUSABLE),
    }
}
