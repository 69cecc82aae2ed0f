//! A store in a file, by redb.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{CommitError, MappingStore};
use crate::mnat::Channel;
use crate::mnat_server::changes::{
    SharedEvents, StoreChange, StoredHold, StoredMapping, StoredServer, StoredWatcher, Transaction,
};
use crate::mnat_server::pool::Pool;
use crate::sys::files::private_folder;

/// The file in the folder.
const FILE: &str = "mnat.redb";
/// Memory for pages of the file, in bytes. Reads are rare.
const CACHE: usize = 4 << 20;

type Table = TableDefinition<'static, &'static str, &'static [u8]>;

/// What the file is, by name.
const ABOUT: Table = TableDefinition::new("about");
/// Watchers by id.
const WATCHERS: Table = TableDefinition::new("watchers");
/// Mappings by global channel.
const MAPPINGS: Table = TableDefinition::new("mappings");
/// Mappings by local channel.
const LOCALS: Table = TableDefinition::new("locals");
/// Holds by local channel.
const HOLDS: Table = TableDefinition::new("holds");

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RedbStoreError {
    /// The folder cannot be used.
    #[error("{}: {cause}", .folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The error.
        cause: io::Error,
    },
    /// Another process uses the file.
    #[error("{} is in use by another mnat-server; stop it, or use another --state", .0.display())]
    InUse(PathBuf),
    /// The mappings are those of another pool.
    #[error(
        "{} has mappings of another pool ({stored}), which this one lacks; restore that pool, or \
         remove the file to forget its mappings: streams then get other local addresses",
        .file.display()
    )]
    OtherPool {
        /// The file.
        file: PathBuf,
        /// The ranges of the other pool.
        stored: String,
    },
    /// The content is not valid.
    #[error("{} cannot be read: {why}; restore it, or remove it to forget its mappings", .file.display())]
    Content {
        /// The file.
        file: PathBuf,
        /// The reason.
        why: String,
    },
}

/// A store in a file.
#[derive(Debug)]
pub struct RedbStore {
    database: Arc<Database>,
}

impl RedbStore {
    /// Opens the file in `folder`, or creates both. Returns the stored state. It may be that of another
    /// pool, if this one has all of its local channels.
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn open(folder: &Path, pool: &Pool) -> Result<(Self, StoredServer), RedbStoreError> {
        private_folder(folder).map_err(|cause| RedbStoreError::Folder {
            folder: folder.into(),
            cause,
        })?;
        let file = folder.join(FILE);
        let content = |why: String| RedbStoreError::Content {
            file: file.clone(),
            why,
        };
        let opened = Database::builder().set_cache_size(CACHE).create(&file);
        let database = opened.map_err(|e| match e {
            DatabaseError::DatabaseAlreadyOpen => RedbStoreError::InUse(file.clone()),
            other => content(other.to_string()),
        })?;
        let fingerprint = pool.fingerprint();
        let stored_pool = initialize(&database, &fingerprint).map_err(&content)?;
        let stored = load(&database).map_err(&content)?;
        if stored_pool != fingerprint {
            let locals = stored.mappings.iter().map(|mapping| mapping.local);
            let mut locals = locals.chain(stored.holds.iter().map(|hold| hold.local));
            if !locals.all(|local| pool.slot(local).is_some()) {
                return Err(RedbStoreError::OtherPool {
                    file: file.clone(),
                    stored: stored_pool,
                });
            }
            set_pool(&database, &fingerprint).map_err(&content)?;
        }
        let database = Arc::new(database);
        Ok((Self { database }, stored))
    }
}

fn text(e: impl Display) -> String {
    e.to_string()
}

/// Creates the tables and the name of the pool, if they are missing. Returns the name of the pool.
fn initialize(database: &Database, fingerprint: &str) -> Result<String, String> {
    let write = database.begin_write().map_err(text)?;
    let stored = {
        let mut about = write.open_table(ABOUT).map_err(text)?;
        let stored = about.get("pool").map_err(text)?;
        let stored = stored.map(|name| String::from_utf8_lossy(name.value()).into_owned());
        if stored.is_none() {
            about.insert("pool", fingerprint.as_bytes()).map_err(text)?;
        }
        for table in [WATCHERS, MAPPINGS, LOCALS, HOLDS] {
            write.open_table(table).map_err(text)?;
        }
        stored
    };
    write.commit().map_err(text)?;
    Ok(stored.unwrap_or_else(|| fingerprint.into()))
}

/// Replaces the name of the pool.
fn set_pool(database: &Database, fingerprint: &str) -> Result<(), String> {
    let write = database.begin_write().map_err(text)?;
    {
        let mut about = write.open_table(ABOUT).map_err(text)?;
        about.insert("pool", fingerprint.as_bytes()).map_err(text)?;
    }
    write.commit().map_err(text)
}

fn load(database: &Database) -> Result<StoredServer, String> {
    Ok(StoredServer {
        watchers: load_table::<StoredWatcher>(database, WATCHERS)?,
        mappings: load_table::<StoredMapping>(database, MAPPINGS)?,
        holds: load_table::<StoredHold>(database, HOLDS)?,
    })
}

fn load_table<T: DeserializeOwned>(database: &Database, table: Table) -> Result<Vec<T>, String> {
    let read = database.begin_read().map_err(text)?;
    let table = read.open_table(table).map_err(text)?;
    let mut all = Vec::new();
    for row in table.iter().map_err(text)? {
        let (_, value) = row.map_err(text)?;
        all.push(serde_json::from_slice(value.value()).map_err(text)?);
    }
    Ok(all)
}

fn apply(write: &WriteTransaction, change: &StoreChange) -> Result<(), String> {
    match change {
        StoreChange::PutWatcher(watcher) => put(write, WATCHERS, &watcher.id, watcher),
        StoreChange::RemoveWatcher(id) => remove(write, WATCHERS, id),
        StoreChange::PutMapping(mapping) => {
            put(write, MAPPINGS, &key(mapping.global), mapping)?;
            put(write, LOCALS, &key(mapping.local), mapping)
        }
        StoreChange::HoldMapping(mapping) => {
            let (local, global) = (mapping.local, mapping.global);
            remove(write, MAPPINGS, &key(global))?;
            remove(write, LOCALS, &key(local))?;
            put(write, HOLDS, &key(local), &StoredHold { local, global })
        }
        StoreChange::ResumeMapping(mapping) => {
            remove(write, HOLDS, &key(mapping.local))?;
            apply(write, &StoreChange::PutMapping(*mapping))
        }
        StoreChange::RemoveHold(hold) => remove(write, HOLDS, &key(hold.local)),
    }
}

fn key(channel: Channel) -> String {
    channel.to_string()
}

fn put(
    write: &WriteTransaction,
    table: Table,
    key: &str,
    value: &impl Serialize,
) -> Result<(), String> {
    let value = serde_json::to_vec(value).map_err(text)?;
    let mut table = write.open_table(table).map_err(text)?;
    table.insert(key, value.as_slice()).map_err(text)?;
    Ok(())
}

fn remove(write: &WriteTransaction, table: Table, key: &str) -> Result<(), String> {
    let mut table = write.open_table(table).map_err(text)?;
    table.remove(key).map_err(text)?;
    Ok(())
}

impl MappingStore for RedbStore {
    async fn commit(
        &mut self,
        transactions: &[Transaction],
    ) -> Result<Vec<SharedEvents>, CommitError> {
        let database = self.database.clone();
        let transactions = transactions.to_vec();
        // All of them in one transaction of the database: the disk is written once.
        let written = tokio::task::spawn_blocking(move || {
            let write = database.begin_write().map_err(text)?;
            for change in transactions.iter().flat_map(|t| &t.changes) {
                apply(&write, change)?;
            }
            write.commit().map_err(text)
        });
        match written.await {
            Ok(result) => result.map(|()| Vec::new()).map_err(CommitError),
            Err(e) => Err(CommitError(e.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mnat::messages::Subscription;

    fn channel(source: Option<&str>, group: &str) -> Channel {
        Channel::parse(source, group).unwrap()
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(future)
    }

    fn pool(groups: &str) -> Pool {
        let ranges = format!(r#"{{"group-range": "{groups}", "source-range": "asm"}}"#);
        Pool::parse(&format!(r#"{{"group-pool": {{"ranges": [{ranges}]}}}}"#)).unwrap()
    }

    #[test]
    fn committed_changes_are_loaded() {
        let small = pool("239.1.1.0/29");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let (mut store, stored) = RedbStore::open(&path, &small).unwrap();
        assert_eq!(stored, StoredServer::default());
        let watcher = StoredWatcher {
            id: "A".into(),
            identity: Some(vec![1, 2]),
            joined: Some(vec![
                Subscription::Channel(channel(None, "239.1.1.1")),
                Subscription::Unusable {
                    source: "10.0.0.1".into(),
                    group: "ff3e::1".into(),
                },
            ]),
            monitors: Some(vec!["10.0.0.0/8".parse().unwrap()]),
            revision: 0,
        };
        let mapping = |n: u8| StoredMapping {
            id: n.into(),
            global: channel(Some(&format!("10.0.0.{n}")), "232.1.1.1"),
            local: channel(None, &format!("239.1.1.{n}")),
        };
        let hold = |n: u8| StoredHold {
            local: mapping(n).local,
            global: mapping(n).global,
        };
        let changes = vec![
            StoreChange::PutWatcher(watcher.clone()),
            StoreChange::PutWatcher(StoredWatcher {
                id: "B".into(),
                ..watcher.clone()
            }),
            StoreChange::RemoveWatcher("B".into()),
            StoreChange::PutMapping(mapping(1)),
            StoreChange::PutMapping(mapping(2)),
            StoreChange::HoldMapping(mapping(2)),
            StoreChange::PutMapping(mapping(3)),
            StoreChange::HoldMapping(mapping(3)),
            StoreChange::RemoveHold(hold(3)),
            StoreChange::PutMapping(mapping(4)),
            StoreChange::HoldMapping(mapping(4)),
            StoreChange::ResumeMapping(mapping(4)),
        ];
        let transaction = Transaction {
            sequence: 1,
            changes,
        };
        block_on(store.commit(&[transaction])).unwrap();
        let busy = RedbStore::open(&path, &small).unwrap_err();
        assert!(matches!(busy, RedbStoreError::InUse(_)), "{busy}");
        drop(store);
        let (store, stored) = RedbStore::open(&path, &small).unwrap();
        assert_eq!(
            stored,
            StoredServer {
                watchers: vec![watcher],
                mappings: vec![mapping(1), mapping(4)],
                holds: vec![hold(2)],
            }
        );
        drop(store);
        let other = RedbStore::open(&path, &pool("239.1.2.0/29"))
            .unwrap_err()
            .to_string();
        assert!(other.contains("another pool (239.1.1.0/29 asm)"), "{other}");
        // A larger pool has the mappings too.
        let large = pool("239.1.0.0/16");
        let (store, stored) = RedbStore::open(&path, &large).unwrap();
        assert_eq!(stored.mappings, [mapping(1), mapping(4)]);
        drop(store);
        let (store, _) = RedbStore::open(&path, &small).unwrap();
        drop(store);
        std::fs::write(path.join(FILE), "garbage").unwrap();
        let garbage = RedbStore::open(&path, &small).unwrap_err().to_string();
        assert!(garbage.contains("cannot be read"), "{garbage}");
    }
}
