//! Exit codes, and the error lines that go with them.

use std::io::Write;
use std::process::ExitCode;

use crate::model::escape::{EscapeStyle, escape};
use crate::probe::StreamError;

/// Exit code of an error at run time.
pub const FAILED: u8 = 1;
/// Exit code of invalid settings or arguments.
pub const UNUSABLE: u8 = 2;

/// Prints a message and a newline on standard error, with escapes in place of the control characters
/// of other programs and files.
pub fn print_error(message: &dyn std::fmt::Display) {
    let line = escape(&message.to_string(), EscapeStyle::Lines).into_owned() + "\n";
    // A closed standard error must not change the exit code.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Prints what is wrong with the arguments or settings; returns the exit code [`UNUSABLE`].
pub fn usage_error(why: &dyn std::fmt::Display) -> ExitCode {
    print_error(&format_args!("mcastor: {why}"));
    ExitCode::from(UNUSABLE)
}

/// Prints why the command failed; returns the exit code [`FAILED`].
pub fn fail(why: &dyn std::fmt::Display) -> ExitCode {
    print_error(&format_args!("mcastor: {why}"));
    ExitCode::from(FAILED)
}

/// Prints why `mcastor COMMAND` cannot send or receive its stream; returns the exit code
/// [`UNUSABLE`].
pub fn stream_failed(command: &str, error: &StreamError) -> ExitCode {
    print_error(&format_args!("mcastor {command}: {error}"));
    ExitCode::from(UNUSABLE)
}
