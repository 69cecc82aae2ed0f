//! State that outlives the process: what was learned from hosts, routers and servers.
//!
//! ```text
//!  actors ──▶ Store: the latest records ──▶ writer thread ── codec ──▶ folder: file "learned"
//!                ▲                                                        │
//!                └───────────── codec: checks ◀── at the start ───────────┘
//! ```
//!
//! Actors hand over records and never wait. The records also serve an actor that is rebuilt after a
//! panic. The file is written in the background, at most once a second, and only if the records
//! changed. `codec` and `records` do no I/O.

pub mod codec;
pub mod folder;
pub mod records;
pub mod writer;

pub use codec::{StateError, StoredState};
pub use folder::{StateFolder, StateFolderError};
pub use records::Records;
pub use writer::Store;
