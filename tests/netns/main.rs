//! Tests in real network namespaces: other people's senders and receivers around
//! `mcastor run`, every packet counted.
//!
//! Each test makes its own namespaces and removes them, so tests run in parallel and touch no
//! interface of the machine. A test that lacks something here (root, a program, a kernel
//! feature) is listed as ignored, with what it lacks.
//!
//!     cargo test --test netns                  all
//!     cargo test --test netns ttl              those with `ttl` in their name
//!     MCASTOR_NETNS_KEEP=1 cargo test ...      leave namespaces of failed tests standing
#![allow(unsafe_code)] // raw sockets and setns

mod cases;
mod lab;

use std::process::ExitCode;

/// Tests wait more than they work, so more run at a time than there are cores.
const THREADS: usize = 4;

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(lab::harness::CASE) {
        return lab::harness::run_here(cases::all(), &name);
    }
    let mut args = libtest_mimic::Arguments::from_args();
    args.test_threads.get_or_insert(THREADS);
    if !args.list {
        lab::sweep();
        lab::docker::sweep();
    }
    let trials = lab::harness::trials(cases::all(), !args.list);
    let conclusion = libtest_mimic::run(&args, trials);
    lab::harness::print_passed_alone();
    conclusion.exit_code()
}
