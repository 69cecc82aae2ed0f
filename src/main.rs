//! The `mcastor` program.
fn main() {}
