//! Standard output of the subcommands.

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use super::exit::fail;

/// Writes `text` to standard output. A closed pipe is not an error.
pub fn print(text: &[u8]) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => fail(&e),
        _ => ExitCode::SUCCESS,
    }
}

/// Prints `text` and a newline. Ignores errors: a closed output must not change the exit code.
pub fn print_line(text: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}
