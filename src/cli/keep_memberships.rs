//! `mcastor keep-memberships NAME MILLISECONDS`: the process that a router starts to hold its
//! membership sockets.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use crate::sys::membership_keeper;

pub(super) use membership_keeper::COMMAND;

/// Runs the process. Only its exit status tells of a failure: it has no log.
pub(super) fn from_arguments(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let words: Vec<String> = arguments.filter_map(|a| a.into_string().ok()).collect();
    let [name, keep_for] = &words[..] else {
        return ExitCode::FAILURE;
    };
    let Ok(keep_for) = keep_for.parse().map(Duration::from_millis) else {
        return ExitCode::FAILURE;
    };
    match membership_keeper::run(name, keep_for) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
