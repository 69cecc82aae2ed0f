//! Opens the store of what was learned before this process started.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::gap::{Gap, received_by_ingresses};
use crate::actors::RouterContext;
use crate::metrics::Catalog;
use crate::model::BootTime;
use crate::store::{Records, StateFolder, StateFolderError, Store};
use crate::sys::boot_clock;

/// If the former process ended longer ago, hosts may have joined unnoticed, and this router starts
/// with startup queries.
const MAX_UNQUERIED_GAP: Duration = Duration::from_secs(5);

/// How long the folder may stay locked after the end of the former process, and how often this one
/// looks.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);
const RELEASE_INTERVAL: Duration = Duration::from_millis(10);

/// A locked folder, and the records of the former process.
pub(super) struct OpenState {
    folder: StateFolder,
    records: Records,
    /// When the former process was last alive.
    alive_at: Option<BootTime>,
}

impl OpenState {
    /// Returns what is known of the gap since the former process; `None` if there was none.
    pub(super) fn gap(&self) -> Option<Gap> {
        Some(Gap {
            began: self.alive_at?,
            received: self.records.received.clone(),
        })
    }
}

/// Locks the folder and reads the state of the former process. None, after a warning, if the folder
/// cannot be used: the router forwards without it.
///
/// # Errors
/// Another process uses the folder.
pub(super) fn open(path: &Path) -> Result<Option<OpenState>, StateFolderError> {
    let folder = match StateFolder::open(path) {
        Ok(folder) => folder,
        Err(e @ StateFolderError::InUse { .. }) => return Err(e),
        Err(e) => {
            warn!(
                "state: {e}; what is learned is not kept: after a restart hosts must report their \
                 groups again. Make the folder writable for this user, or set dir in [state] to \
                 another one, or to \"off\""
            );
            return Ok(None);
        }
    };
    let (records, alive_at) = load(&folder).unzip();
    Ok(Some(OpenState {
        folder,
        records: records.unwrap_or_default(),
        alive_at,
    }))
}

/// Reads the records of the former process, and when it was last alive. None of them, after a line in
/// the log, if they cannot be used.
fn load(folder: &StateFolder) -> Option<(Records, BootTime)> {
    let clock = match boot_clock::read() {
        Ok(clock) => clock,
        Err(e) => {
            warn!("state: cannot read the boot clock: {e}; nothing is restored");
            return None;
        }
    };
    let loaded = match folder.load(&clock) {
        Ok(Some(loaded)) => loaded,
        Ok(None) => return None,
        Err(e) => {
            let file = folder.state_file();
            warn!(
                "state: {} is not used: {e}; starting with nothing",
                file.display()
            );
            return None;
        }
    };
    let mut records = loaded.state.records;
    let gap = clock.boot.since(loaded.alive_at);
    if gap > MAX_UNQUERIED_GAP {
        records.forget_own_queries();
    }
    info!(
        "state: continuing that of a process that ended at most {:.1} s ago; groups of members: {}, \
         interfaces: {}, MNAT mappings: {}",
        gap.as_secs_f64(),
        records.group_count(),
        records.interfaces.len(),
        records.mnat.as_ref().map_or(0, |mnat| mnat.mappings.len())
    );
    Some((records, loaded.alive_at))
}

/// Starts the store, which writes changes to the folder.
pub(super) fn start(state: Option<OpenState>, catalog: &Catalog) -> Store {
    let Some(OpenState {
        folder, records, ..
    }) = state
    else {
        return Store::in_memory();
    };
    catalog.add_counter_values(&records.counters);
    let store = Store::with_records(records);
    write_to(folder, &store, catalog);
    store
}

/// Time between two looks at the counters, and the least multiple of the time that a look takes.
const COUNTER_INTERVAL: Duration = Duration::from_secs(1);
const COUNTER_PAUSE_FACTOR: u32 = 50;

/// How long the counters may need to be written. They are written at most once a second.
const WRITE_TIMEOUT: Duration = Duration::from_secs(3);

/// Keeps the counters of metrics in the store, so that those of the next process go on.
pub(super) async fn keep_counters(context: Arc<RouterContext>) {
    loop {
        if !context.store.has_file() {
            tokio::time::sleep(COUNTER_INTERVAL).await;
            continue;
        }
        let read = context.clone();
        // On another thread: many series take long.
        let kept = actix::spawn(actix_web::web::block(move || {
            let started = Instant::now();
            read.count_planes();
            read.planes
                .all()
                .for_each(|plane| plane.begin_to_keep_counters());
            let received = received_by_ingresses(&read);
            let counters = read.catalog.counter_values();
            read.store.set_counters(counters, received);
            let took = started.elapsed();
            if read.store.wait_until_written(WRITE_TIMEOUT) {
                read.planes
                    .all()
                    .for_each(|plane| plane.counters_are_kept());
            }
            took
        }));
        // Fails if the process ends.
        let took = kept.await.ok().and_then(Result::ok).unwrap_or_default();
        let pause = took * COUNTER_PAUSE_FACTOR;
        tokio::time::sleep(pause.max(COUNTER_INTERVAL)).await;
    }
}

/// Writes the records of a process that has replaced another one to the folder, which that one has
/// released.
pub(super) fn continue_in(path: &Path, store: &Store, catalog: &Catalog) {
    let until = Instant::now() + RELEASE_TIMEOUT;
    loop {
        match StateFolder::open(path) {
            Ok(folder) => return write_to(folder, store, catalog),
            // The kernel releases it a moment after the connection.
            Err(StateFolderError::InUse { .. }) if Instant::now() < until => {
                std::thread::sleep(RELEASE_INTERVAL);
            }
            Err(e) => return warn!("state: {e}; what is learned is not kept from now on"),
        }
    }
}

fn write_to(folder: StateFolder, store: &Store, catalog: &Catalog) {
    let catalog = catalog.clone();
    let observer = Box::new(move |is_written| catalog.count_state_write(is_written));
    if let Err(e) = store.write_to(folder, observer) {
        warn!("state: cannot start the thread that writes it: {e}; it is not kept");
    }
}
