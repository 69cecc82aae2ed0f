//! `mcastor cleanup`: removes what processes that ended left in the kernel.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use super::exit::fail;
use super::output::print_line;
use crate::settings::DEFAULT_BPFFS;
use crate::sys::boot_clock::since_boot;
use crate::sys::membership_keeper::end_orphaned;
use crate::sys::offload::pins::PinFolder;
use crate::sys::offload::{last_alive, remove_left, remove_left_filters};

/// Remove what an mcastor that ended left in the kernel
///
/// If mcastor ends unexpectedly, or by `mcastor stop --keep-forwarding`, BPF programs continue to
/// forward, until the next mcastor takes over or plane.orphan_after has passed. This removes them at
/// once, and the tables that they use. It also leaves the groups that stayed joined upstream, in
/// this network namespace. What a running mcastor uses stays.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example: mcastor cleanup

Exit codes: 0 nothing is left, 1 something is left or cannot be removed.")]
pub struct CleanupArgs {
    /// The folder that plane.bpffs in the settings names
    #[arg(long, value_name = "PATH", default_value = DEFAULT_BPFFS)]
    bpffs: PathBuf,
}

/// A process that was alive this short ago is alive: it says so once a second.
const ALIVE: Duration = Duration::from_secs(5);

/// Runs `mcastor cleanup`.
pub fn run(args: &CleanupArgs) -> ExitCode {
    let folders = match PinFolder::all(&args.bpffs) {
        Ok(folders) => folders,
        Err(e) => return fail(&format!("cannot read {}: {e}", args.bpffs.display())),
    };
    let mut result = ExitCode::SUCCESS;
    let keepers = end_orphaned(None, None).unwrap_or_else(|e| {
        result = fail(&format!("cannot find memberships that are kept: {e}"));
        0
    });
    if keepers > 0 {
        print_line("memberships: left");
    }
    let nothing_is_pinned = folders.is_empty();
    for folder in folders {
        let path = folder.path().display();
        let age = last_alive(&folder).map(|at| since_boot().saturating_sub(at));
        if age.is_some_and(|age| age < ALIVE) {
            print_line(&format!("{path}: in use by a running mcastor"));
            continue;
        }
        if folder.has_filters() && !folder.is_of_this_namespace() {
            result = fail(&format!(
                "{path}: its filters are in another network namespace: run `mcastor cleanup` there"
            ));
            continue;
        }
        match remove_left(&folder) {
            Ok(()) => print_line(&format!("{path}: removed")),
            Err(e) => result = fail(&format!("{path}: cannot be removed: {e}")),
        }
    }
    // After those whose programs are pinned.
    let filters = remove_left_filters(None).unwrap_or_else(|e| {
        result = fail(&format!("cannot find what is left on interfaces: {e}"));
        0
    });
    if filters > 0 {
        print_line(&format!("programs on {filters} interfaces: removed"));
    }
    if nothing_is_pinned && keepers == 0 && filters == 0 {
        print_line("nothing to remove");
    }
    result
}
