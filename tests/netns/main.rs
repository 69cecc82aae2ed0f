//! Tests in real network namespaces: third-party senders and receivers around `mcastor run`, with
//! every packet counted.
//!
//! Each test creates its own namespaces and removes them, so tests run in parallel and touch no
//! interface of the machine. A test that cannot run on this machine (root, a program or a kernel
//! feature is missing) is listed as ignored, with the reason.
//!
//!     cargo test --test netns                  runs all tests
//!     cargo test --test netns ttl              runs the tests with `ttl` in their name
//!     MCASTOR_NETNS_KEEP=1 cargo test ...      keeps the namespaces of failed tests
#![allow(unsafe_code)] // raw sockets and setns

mod cases;
mod lab;

use std::process::ExitCode;

/// Tests wait more than they compute, so more of them run in parallel than there are cores.
const THREADS: usize = 3;

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(lab::harness::CASE) {
        return lab::harness::run_here(cases::all(), &name);
    }
    let mut args = libtest_mimic::Arguments::from_args();
    let parallel = *args.test_threads.get_or_insert(THREADS) > 1;
    if !args.list {
        lab::sweep();
        lab::docker::sweep();
    }
    let trials = lab::harness::trials(cases::all(), !args.list, parallel);
    let conclusion = libtest_mimic::run(&args, trials);
    lab::harness::print_passed_alone();
    conclusion.exit_code()
}
