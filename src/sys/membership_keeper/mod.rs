//! Keeps the memberships of this host when the process ends unexpectedly.
//!
//! The kernel leaves a group when its last socket is closed, and closes the sockets of a process
//! that was killed. A switch upstream would stop the stream, which BPF programs still forward. So a
//! *keeper* holds a duplicate of each socket: a child process, or the service manager, which would
//! end a child with its unit. The next process ends the keeper when it holds its own memberships.
//!
//! A duplicate is the same socket for the kernel. A group that this process leaves is left for both.

mod backend;
mod child;
mod descriptor_store;
mod handle;
mod keeper_process;
mod names;

pub use descriptor_store::STORED_PREFIX;
pub use handle::{KeptSocket, MembershipKeeper};
pub use keeper_process::{COMMAND, run};
pub use names::end_orphaned;
