//! The `mcastor` program: arguments -> settings -> run -> exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    mcastor::cli::main()
}
