//! The latest records, and the thread that writes them.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::codec::{StoredState, encode};
use super::folder::StateFolder;
use super::records::Records;
use crate::membership::SavedInterface;
use crate::metrics::catalog::CounterValue;
use crate::mnat::SavedMnat;
use crate::model::IfName;
use crate::sys::boot_clock;

/// Least time between two writes. Also the interval of the signs of life.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);

/// The pause after a write is at least this multiple of the time that it took.
const PAUSE_FACTOR: u32 = 50;

/// After a failed write, the next one is tried after this time.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// Longest wait for the last write at the end of the process.
const FINISH_TIMEOUT: Duration = Duration::from_millis(500);

/// Called with the result of each write.
pub type WriteObserver = Box<dyn Fn(bool) + Send>;

/// The state that outlives the process. Actors replace records, and the writer thread writes them.
/// Clones share the state.
#[derive(Clone, Default)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    latest: Mutex<Latest>,
    /// Notified of changes.
    changed: Condvar,
    /// Notified when the writer thread ends.
    finished: Condvar,
    /// Notified of each successful write.
    written: Condvar,
}

#[derive(Default)]
struct Latest {
    records: Records,
    /// Whether records changed since they were last taken for a write.
    is_changed: bool,
    /// Number of changes since the start.
    changes: u64,
    /// How many of them are in the file.
    written_changes: u64,
    /// Whether the process ends.
    is_ending: bool,
    is_writer_running: bool,
    /// Whether a membership actor has started in this process.
    has_served_members: bool,
}

impl Store {
    /// Returns a store without a file. Its records last as long as the process.
    pub fn in_memory() -> Self {
        Self::default()
    }

    /// Returns a store with `records` and without a file.
    pub fn with_records(records: Records) -> Self {
        let store = Self::default();
        store.shared.lock().records = records;
        store
    }

    /// Starts the thread that writes changes to `folder`. Called once.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn write_to(&self, folder: StateFolder, observer: WriteObserver) -> io::Result<()> {
        let writer = Writer {
            folder,
            shared: self.shared.clone(),
            observer,
            has_failed: false,
        };
        self.shared.lock().is_writer_running = true;
        let thread = std::thread::Builder::new().name("mcastor-state".into());
        let started = thread.spawn(move || writer.run());
        started.map(drop).inspect_err(|_| {
            self.shared.lock().is_writer_running = false;
        })
    }

    /// Returns all records.
    pub fn records(&self) -> Records {
        self.shared.lock().records.clone()
    }

    /// Replaces all records.
    pub fn replace(&self, new: Records) {
        self.shared.change(|records| {
            let is_new = *records != new;
            *records = new;
            is_new
        });
    }

    /// Notes the start of a membership actor. Returns true for the first one of this process.
    pub fn start_membership(&self) -> bool {
        !std::mem::replace(&mut self.shared.lock().has_served_members, true)
    }

    /// Returns the record of an interface.
    pub fn interface(&self, name: &IfName) -> Option<Arc<SavedInterface>> {
        self.shared.lock().records.interfaces.get(name).cloned()
    }

    /// Replaces or removes the record of an interface.
    pub fn set_interface(&self, name: &IfName, saved: Option<SavedInterface>) {
        self.shared.change(|records| match saved {
            Some(saved) => {
                let former = records.interfaces.get(name);
                let is_new = former.is_none_or(|former| **former != saved);
                if is_new {
                    records.interfaces.insert(name.clone(), Arc::new(saved));
                }
                is_new
            }
            None => records.interfaces.remove(name).is_some(),
        });
    }

    /// Removes the records of the interfaces for which `keep` is false.
    pub fn retain_interfaces(&self, keep: impl Fn(&IfName) -> bool) {
        self.shared.change(|records| {
            let before = records.interfaces.len();
            records.interfaces.retain(|name, _| keep(name));
            records.interfaces.len() != before
        });
    }

    /// Returns the record of multicast NAT.
    pub fn mnat(&self) -> Option<Arc<SavedMnat>> {
        self.shared.lock().records.mnat.clone()
    }

    /// Replaces or removes the record of multicast NAT.
    pub fn set_mnat(&self, saved: Option<SavedMnat>) {
        self.shared.change(|records| {
            let is_new = records.mnat.as_deref() != saved.as_ref();
            if is_new {
                records.mnat = saved.map(Arc::new);
            }
            is_new
        });
    }

    /// Replaces the counters, and the packets that each ingress interface had received.
    pub fn set_counters(&self, counters: Vec<CounterValue>, received: BTreeMap<IfName, u64>) {
        self.shared.change(|records| {
            // The interfaces also receive what is not counted: that alone needs no write.
            let is_new = *records.counters != counters;
            if is_new {
                records.counters = Arc::new(counters);
            }
            records.received = Arc::new(received);
            is_new
        });
    }

    /// Returns whether the records are written to a file.
    pub fn has_file(&self) -> bool {
        self.shared.lock().is_writer_running
    }

    /// Waits until all changes before this call are in the file. Returns false if that takes longer.
    pub fn wait_until_written(&self, longest: Duration) -> bool {
        let latest = self.shared.lock();
        let goal = latest.changes;
        let is_missing = |latest: &mut Latest| latest.written_changes < goal;
        let written = &self.shared.written;
        let waited = written.wait_timeout_while(latest, longest, is_missing);
        let (_latest, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        !timeout.timed_out()
    }

    /// Writes the last changes and ends the writer thread. Waits for at most half a second.
    pub fn finish(&self) {
        let mut latest = self.shared.lock();
        latest.is_ending = true;
        self.shared.changed.notify_all();
        let finished = &self.shared.finished;
        let is_running = |latest: &mut Latest| latest.is_writer_running;
        // Ignores a timeout: the file then keeps its former content.
        let _ = finished.wait_timeout_while(latest, FINISH_TIMEOUT, is_running);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Latest> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Records) -> bool) {
        let mut latest = self.lock();
        if change(&mut latest.records) {
            latest.is_changed = true;
            latest.changes += 1;
            self.changed.notify_all();
        }
    }
}

/// The writer thread.
struct Writer {
    folder: StateFolder,
    shared: Arc<Shared>,
    observer: WriteObserver,
    /// Whether the last write failed.
    has_failed: bool,
}

impl Writer {
    fn run(mut self) {
        let mut next_write = Instant::now();
        loop {
            self.note_alive();
            let latest = self.shared.lock();
            let until_next = next_write.saturating_duration_since(Instant::now());
            let is_idle = |latest: &mut Latest| {
                let is_due = latest.is_changed && Instant::now() >= next_write;
                !is_due && !latest.is_ending
            };
            let wait = match latest.is_changed && !until_next.is_zero() {
                true => until_next.min(WRITE_INTERVAL),
                false => WRITE_INTERVAL,
            };
            let woken = self
                .shared
                .changed
                .wait_timeout_while(latest, wait, is_idle);
            let (mut latest, _) = woken.unwrap_or_else(PoisonError::into_inner);
            let is_ending = latest.is_ending;
            let is_due = latest.is_changed && (is_ending || Instant::now() >= next_write);
            let records = is_due.then(|| {
                latest.is_changed = false;
                (latest.records.clone(), latest.changes)
            });
            drop(latest);
            if let Some((records, changes)) = records {
                next_write = Instant::now() + self.write(records, changes);
            }
            if is_ending {
                break;
            }
        }
        self.shared.lock().is_writer_running = false;
        self.shared.finished.notify_all();
    }

    fn note_alive(&self) {
        if let Ok(clock) = boot_clock::read() {
            // Ignores a failure: the next process then relies on the time of the last write.
            let _ = self.folder.note_alive(clock.boot);
        }
    }

    /// Writes the records. Returns the time until the next write.
    fn write(&mut self, records: Records, changes: u64) -> Duration {
        let started = Instant::now();
        let written = boot_clock::read().and_then(|clock| {
            let state = StoredState {
                boot_id: self.folder.boot_id().to_owned(),
                written_at: clock.boot,
                records,
            };
            let bytes = encode(&state).map_err(io::Error::other)?;
            self.folder.write(&bytes)
        });
        (self.observer)(written.is_ok());
        let path = self.folder.state_file();
        let path = path.display();
        match written {
            Ok(()) => {
                self.shared.lock().written_changes = changes;
                self.shared.written.notify_all();
                if std::mem::take(&mut self.has_failed) {
                    info!("state: {path} can be written again");
                }
                WRITE_INTERVAL.max(started.elapsed() * PAUSE_FACTOR)
            }
            Err(e) => {
                if !std::mem::replace(&mut self.has_failed, true) {
                    warn!(
                        "state: cannot write {path}: {e}; forwarding continues, but after a restart \
                         hosts must report their groups again. Free space, or set dir in [state] \
                         to another folder; trying again every {} s",
                        RETRY_INTERVAL.as_secs()
                    );
                }
                self.shared.lock().is_changed = true;
                RETRY_INTERVAL
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn name(n: usize) -> IfName {
        format!("eth{n}").parse().unwrap()
    }

    fn start(folder: &Path) -> (Store, Arc<[AtomicU32; 2]>) {
        let writes: Arc<[AtomicU32; 2]> = Arc::default();
        let counts = writes.clone();
        let observer = Box::new(move |ok| {
            counts[usize::from(ok)].fetch_add(1, Ordering::SeqCst);
        });
        let folder = StateFolder::open(folder).unwrap();
        let store = Store::in_memory();
        store.write_to(folder, observer).unwrap();
        (store, writes)
    }

    /// Returns what is stored, as soon as the writer thread has released the folder.
    fn stored(folder: &Path) -> Records {
        let folder = loop {
            match StateFolder::open(folder) {
                Ok(folder) => break folder,
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        let clock = boot_clock::read().unwrap();
        folder.load(&clock).unwrap().unwrap().state.records
    }

    #[test]
    fn changes_are_written_each_second_and_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let started = Instant::now();
        let (store, writes) = start(folder.path());
        let mut changes = 0;
        while writes[1].load(Ordering::SeqCst) < 2 {
            store.set_interface(&name(changes), Some(SavedInterface::default()));
            changes += 1;
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(started.elapsed() >= WRITE_INTERVAL);
        store.set_interface(&name(changes), Some(SavedInterface::default()));
        store.finish();
        assert_eq!(stored(folder.path()).interfaces.len(), changes + 1);
        // One at the start, one at the end, and one each second.
        let most = started.elapsed().as_secs() as u32 + 2;
        assert!((3..=most).contains(&writes[1].load(Ordering::SeqCst)));
    }

    #[test]
    fn unchanged_records_are_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let (store, writes) = start(folder.path());
        store.set_interface(&name(0), Some(SavedInterface::default()));
        while writes[1].load(Ordering::SeqCst) < 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
        store.set_interface(&name(0), Some(SavedInterface::default()));
        store.set_interface(&name(1), None);
        store.set_mnat(None);
        store.finish();
        assert_eq!(writes[1].load(Ordering::SeqCst), 1);
    }

    #[test]
    fn failed_write_keeps_the_former_state() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("state");
        let (store, writes) = start(&folder);
        // No file can be created in a folder that has been removed.
        std::fs::rename(&folder, parent.path().join("moved")).unwrap();
        store.set_interface(&name(0), Some(SavedInterface::default()));
        while writes[0].load(Ordering::SeqCst) < 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
        store.finish();
        assert_eq!(writes[1].load(Ordering::SeqCst), 0);
        assert!(store.interface(&name(0)).is_some());
    }
}
