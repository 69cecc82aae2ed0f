//! What the server keeps when its process ends.
//!
//! The machine decides, and describes each decision as a [`Transaction`]. The store commits it, and
//! the answers that show it are sent afterwards. All reads are from the memory of the machine.
//!
//! The trait is asynchronous and takes whole transactions, so that a store for several instances
//! fits too: there, a commit compares that neither channel of a new mapping has another one, writes
//! both directions in one transaction of the database, and gives watchers and holds leases.

mod redb_store;

pub use redb_store::{RedbStore, RedbStoreError};

use super::changes::Transaction;

/// Why a commit failed. The transactions are committed again until they succeed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CommitError(pub String);

/// A store of the state of a server.
pub trait MappingStore {
    /// Commits transactions in their order. Each takes effect as a whole, and stays in effect when
    /// the process or the machine ends after the return.
    ///
    /// # Errors
    /// None of them took effect.
    fn commit(
        &mut self,
        transactions: &[Transaction],
    ) -> impl Future<Output = Result<(), CommitError>>;
}

/// A store that keeps nothing.
#[derive(Debug)]
pub struct MemoryStore;

impl MappingStore for MemoryStore {
    async fn commit(&mut self, _: &[Transaction]) -> Result<(), CommitError> {
        Ok(())
    }
}
