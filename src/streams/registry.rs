//! What the threads share about monitored streams: their identities, their limit, and the reports
//! that the threads publish.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ahash::AHashMap;
use arc_swap::ArcSwap;

use super::report::{EgressReport, IngressReport};
use super::stream_id::StreamId;
use crate::model::{MonitorKind, SequenceField};

/// How the packets of a stream are examined.
pub type Method = (MonitorKind, Option<SequenceField>);

/// The reports of one actor, as of its last publication.
#[derive(Debug)]
pub struct Published<R>(ArcSwap<Vec<Arc<R>>>);

impl<R> Published<R> {
    /// Replaces the reports.
    pub fn replace(&self, reports: Vec<Arc<R>>) {
        self.0.store(Arc::new(reports));
    }
}

/// The reports of all actors.
type Publications<R> = Mutex<Vec<Weak<Published<R>>>>;

/// The monitored streams of all interfaces.
#[derive(Debug)]
pub struct Registry {
    limit: AtomicUsize,
    next: AtomicU64,
    live: Mutex<AHashMap<StreamId, Method>>,
    left_out: AtomicU64,
    /// When a stream was left out last, by the clock of the flows; 0: never.
    left_out_ms: AtomicU64,
    ingress: Publications<IngressReport>,
    egress: Publications<EgressReport>,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            limit: AtomicUsize::new(DEFAULT_LIMIT),
            next: AtomicU64::new(1),
            live: Mutex::default(),
            left_out: AtomicU64::new(0),
            left_out_ms: AtomicU64::new(0),
            ingress: Mutex::default(),
            egress: Mutex::default(),
        }
    }
}

/// For this time after a stream was left out, others make room. Each ingress looks once a second.
const LEFT_OUT_MS: u64 = 2000;

/// The number of streams that are monitored, unless the settings say otherwise.
pub const DEFAULT_LIMIT: usize = 1000;

/// Locks a mutex that no thread can leave in a wrong state.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds a publication, and returns the place for its reports.
fn publish<R>(all: &Publications<R>) -> Arc<Published<R>> {
    let published = Arc::new(Published(ArcSwap::default()));
    let mut all = lock(all);
    all.retain(|other| other.strong_count() > 0);
    all.push(Arc::downgrade(&published));
    published
}

fn read<R>(all: &Publications<R>) -> Vec<Arc<R>> {
    let all = lock(all);
    let live = all.iter().filter_map(Weak::upgrade);
    live.flat_map(|published| published.0.load_full().as_ref().clone())
        .collect()
}

impl Registry {
    /// Sets the limit of monitored streams. Those beyond it end with their flows.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Returns the limit.
    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Adds a stream; `None` at the limit.
    pub(super) fn add(&self, method: Method) -> Option<StreamId> {
        let mut live = lock(&self.live);
        if live.len() >= self.limit() {
            return None;
        }
        let id = StreamId::new(self.next.fetch_add(1, Ordering::Relaxed))?;
        live.insert(id, method);
        Some(id)
    }

    pub(super) fn remove(&self, id: StreamId) {
        lock(&self.live).remove(&id);
    }

    /// Returns how the packets of a stream are examined; `None` if it is no longer monitored.
    pub(super) fn method(&self, id: StreamId) -> Option<Method> {
        lock(&self.live).get(&id).copied()
    }

    /// Keeps those of `streams` that are still monitored.
    pub(super) fn retain_live<T>(&self, streams: &mut AHashMap<StreamId, T>) {
        let live = lock(&self.live);
        streams.retain(|id, _| live.contains_key(id));
    }

    /// Returns the number of monitored streams.
    pub fn live(&self) -> usize {
        lock(&self.live).len()
    }

    /// Counts a stream that is not monitored because of the limit.
    pub(super) fn count_left_out(&self) {
        self.left_out.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that streams of an ingress are left out.
    pub(super) fn note_left_out(&self, now_ms: u64) {
        self.left_out_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Returns whether streams of any ingress are left out.
    pub(super) fn leaves_out(&self, now_ms: u64) -> bool {
        let last_ms = self.left_out_ms.load(Ordering::Relaxed);
        last_ms > 0 && now_ms.saturating_sub(last_ms) <= LEFT_OUT_MS
    }

    /// Returns how many streams were left out since the last call.
    pub fn take_left_out(&self) -> u64 {
        self.left_out.swap(0, Ordering::Relaxed)
    }

    pub(super) fn publish_ingress(&self) -> Arc<Published<IngressReport>> {
        publish(&self.ingress)
    }

    pub(super) fn publish_egress(&self) -> Arc<Published<EgressReport>> {
        publish(&self.egress)
    }

    /// Returns the latest reports of all ingresses and egresses.
    pub fn reports(&self) -> (Vec<Arc<IngressReport>>, Vec<Arc<EgressReport>>) {
        (read(&self.ingress), read(&self.egress))
    }
}
