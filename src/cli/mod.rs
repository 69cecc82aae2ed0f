//! The subcommands of the program, one file each.

pub mod check;
