//! `mcastor convert FILE`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use super::UNUSABLE;
use crate::settings::read_smcroute;
use crate::smcroute::convert::convert;

/// Prints what an `smcroute.conf` means as TOML. Bad lines are told on standard error and
/// stand as comments; then the exit code is [`UNUSABLE`].
pub fn run(file: &Path, strict: bool) -> ExitCode {
    let conf = read_smcroute(file, strict);
    // Whoever closed our output does not want to hear of it.
    let _ = std::io::stdout().write_all(convert(&conf).as_bytes());
    let told = conf.faults.iter().chain(&conf.notes);
    told.for_each(|fault| eprintln!("{fault}"));
    match conf.faults.len() {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::from(UNUSABLE),
    }
}
