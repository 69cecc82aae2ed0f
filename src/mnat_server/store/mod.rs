//! What the server keeps when its process ends.
//!
//! The machine decides, and describes each decision as a [`Transaction`]. The store commits it, and
//! the answers that show it are sent afterwards. All reads are from the memory of the machine.
//!
//! The trait is asynchronous and takes whole transactions, so that a store for several servers fits
//! too. Such a store decides, and its events change the machine: [`EtcdStore`].

mod etcd_api;
mod etcd_member;
mod etcd_store;
mod redb_store;

pub use etcd_member::EtcdOptions;
pub use etcd_store::{EtcdStore, EtcdStoreError};
pub use redb_store::{RedbStore, RedbStoreError};

use std::sync::Arc;
use std::time::Duration;

use super::changes::{SharedEvents, Transaction};

/// Why a commit failed. The transactions are committed again until they succeed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CommitError(pub String);

/// A store of the state of a server.
pub trait MappingStore {
    /// Commits transactions in their order. Each takes effect as a whole, and stays in effect when
    /// the process or the machine ends after the return. In a shared store, each change takes effect
    /// if its condition is met. Returns the events of a shared store until then.
    ///
    /// # Errors
    /// None of them took effect, or it is not known. They can be committed again.
    fn commit(
        &mut self,
        transactions: &[Transaction],
    ) -> impl Future<Output = Result<Vec<SharedEvents>, CommitError>>;

    /// Waits for events of a shared store. May be cancelled.
    ///
    /// # Errors
    /// The store cannot be reached.
    fn events(&mut self) -> impl Future<Output = Result<SharedEvents, CommitError>> {
        std::future::pending()
    }

    /// Prolongs the lives of these watchers in a shared store.
    ///
    /// # Errors
    /// Some lives were not prolonged.
    fn prolong(&mut self, _ids: &[Arc<str>]) -> impl Future<Output = Result<(), CommitError>> {
        std::future::ready(Ok(()))
    }

    /// Returns how often an empty commit has to check a shared store. Lives are prolonged as often.
    fn check_interval(&self) -> Option<Duration> {
        None
    }
}

/// A store that keeps nothing.
#[derive(Debug)]
pub struct MemoryStore;

impl MappingStore for MemoryStore {
    async fn commit(&mut self, _: &[Transaction]) -> Result<Vec<SharedEvents>, CommitError> {
        Ok(Vec::new())
    }
}
