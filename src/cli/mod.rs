//! The subcommands, one file each.

pub mod recv;
pub mod send;
