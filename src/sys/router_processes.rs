//! The mcastor processes that forward packets in a network namespace, from `/proc`.

use std::fs;
use std::path::Path;

/// The commands that forward packets.
const ROUTERS: [&str; 4] = ["run", "smcrouted", "mnat-ingress", "mnat-egress"];

/// Returns the processes of this network namespace that run mcastor as a router, lowest first.
/// Processes of other users and of other PID namespaces may be missing.
pub fn in_this_namespace() -> Vec<i32> {
    let namespace_of = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
    let own = namespace_of("self");
    let processes = procfs::process::all_processes().into_iter().flatten();
    let is_router = |process: &procfs::process::Process| {
        let program = process.exe().unwrap_or_default();
        is_router(&program, &process.cmdline().unwrap_or_default())
    };
    let in_namespace = |process: &procfs::process::Process| {
        let namespace = namespace_of(&process.pid().to_string());
        namespace.is_some() && namespace == own
    };
    let mut found: Vec<i32> = processes
        .filter_map(Result::ok)
        .filter(|process| is_router(process) && in_namespace(process))
        .map(|process| process.pid())
        .collect();
    found.sort_unstable();
    found
}

/// Returns the processes of [`in_this_namespace`] without this one and its parent. The parent of a
/// daemon that goes to the background is mcastor too, and ends when the daemon has started.
pub fn others_in_this_namespace() -> Vec<i32> {
    let own = [std::process::id(), std::os::unix::process::parent_id()];
    let is_own = |pid: i32| u32::try_from(pid).is_ok_and(|pid| own.contains(&pid));
    let mut found = in_this_namespace();
    found.retain(|pid| !is_own(*pid));
    found
}

/// Returns whether a process with this program and these arguments forwards packets.
fn is_router(program: &Path, arguments: &[String]) -> bool {
    let mut arguments = arguments.iter().map(String::as_str);
    let called = arguments.next().unwrap_or_default();
    let command = arguments.next().unwrap_or_default();
    program.ends_with("mcastor") && (called.ends_with("smcrouted") || ROUTERS.contains(&command))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_commands_that_forward_are_routers() {
        let program = Path::new("/usr/bin/mcastor");
        let words = |line: &str| -> Vec<String> { line.split(' ').map(String::from).collect() };
        for line in [
            "mcastor run",
            "/usr/sbin/smcrouted -n",
            "mcastor smcrouted",
            "m mnat-egress",
        ] {
            assert!(is_router(program, &words(line)), "{line}");
        }
        for line in [
            "mcastor show routes",
            "mcastor doctor",
            "mcastor",
            "mcastor recv",
        ] {
            assert!(!is_router(program, &words(line)), "{line}");
        }
        assert!(!is_router(Path::new("/usr/bin/git"), &words("git run")));
        assert!(!is_router(program, &[]));
    }
}
