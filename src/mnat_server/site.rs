//! What all connections share: the machine, the queue of transactions, and the polls that wait.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::{AHashMap, AHashSet};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::changes::{SharedEvents, Transaction};
use super::machine::{Caller, ServerMachine, ServerOutput, ServerReply, ServerRequest};
use super::store::{CommitError, MappingStore};
use crate::actors::log_limit::LogLimit;
use crate::frontend::http::{ClientSource, Share, SharedLimit};
use crate::metrics::MnatServerCatalog;
use crate::metrics::mnat_server::CloseReason;
use crate::mnat::messages::{JoinedSet, RestconfError};

/// Pause between attempts to commit.
const COMMIT_RETRY: Duration = Duration::from_secs(1);
/// How long a request may wait for a shared store. Another server may reach it.
const SHARED_STORE_TIMEOUT: Duration = Duration::from_secs(6);
/// Pause after a failure to read the events of a shared store.
const EVENTS_RETRY: Duration = Duration::from_millis(200);
/// How often a request is handled again if another server changed the same watcher.
const MAX_ATTEMPTS: usize = 3;
/// Longest time between two looks at the timers of the machine.
const MAX_TICK: Duration = Duration::from_millis(500);
/// Memory of the bodies of all requests, in bytes. A request for all joins that the server permits
/// would need half of it.
const MAX_BODIES: usize = 64 << 20;
/// Memory of the answers that clients have not read, in bytes. The longest one has 16 MiB.
const MAX_ANSWERS: usize = 256 << 20;

/// What clients use memory for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryKind {
    /// Bodies of requests that are not handled yet.
    Bodies,
    /// Answers that are not read yet.
    Answers,
}

impl MemoryKind {
    fn close_reason(self) -> CloseReason {
        match self {
            Self::Bodies => CloseReason::BodyMemory,
            Self::Answers => CloseReason::AnswerMemory,
        }
    }
}

impl fmt::Display for MemoryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bodies => "the bodies of requests",
            Self::Answers => "unread answers",
        })
    }
}

/// The shared state of a server.
pub struct ServerSite {
    machine: RefCell<ServerMachine>,
    queue: RefCell<Vec<Transaction>>,
    queued: Notify,
    /// The watchers whose lives a shared store has to prolong.
    prolonged: RefCell<AHashSet<Arc<str>>>,
    /// The number of the last transaction that is committed.
    committed: watch::Sender<u64>,
    /// Whether the last commit succeeded.
    is_store_up: watch::Sender<bool>,
    /// The polls that wait, by watcher id.
    waiting: RefCell<AHashMap<Arc<str>, Rc<Notify>>>,
    /// A number of this process, because versions start again.
    epoch: u64,
    log_limit: RefCell<LogLimit>,
    connections: SharedLimit,
    bodies: SharedLimit,
    answers: SharedLimit,
    /// The metrics.
    pub(super) metrics: MnatServerCatalog,
}

impl ServerSite {
    /// Returns a site with this machine. `epoch` is a random number.
    pub fn new(
        machine: ServerMachine,
        epoch: u64,
        max_connections: usize,
        metrics: MnatServerCatalog,
    ) -> Self {
        metrics.set_pool_size(machine.counts().pool_size);
        metrics.set_store_up(true);
        let site = Self {
            machine: RefCell::new(machine),
            queue: RefCell::default(),
            queued: Notify::new(),
            prolonged: RefCell::default(),
            committed: watch::Sender::new(0),
            is_store_up: watch::Sender::new(true),
            waiting: RefCell::default(),
            epoch,
            log_limit: RefCell::default(),
            connections: SharedLimit::new(max_connections),
            bodies: SharedLimit::new(MAX_BODIES),
            answers: SharedLimit::new(MAX_ANSWERS),
            metrics,
        };
        site.handle_output();
        site
    }

    /// Returns the limit of connections.
    pub fn max_connections(&self) -> usize {
        self.connections.limit()
    }

    /// Admits a connection. If there are too many, the one that has sent no request for longest, of
    /// the client with most, is closed: clients refresh their ids every 20 seconds. `closed` closes
    /// the new one.
    pub fn admit(&self, source: ClientSource, closed: CancellationToken) -> Share {
        let (share, evicted) = self.connections.admit(source, 1, closed);
        for client in evicted {
            self.metrics.count_closed_connection(CloseReason::Evicted);
            self.warn(format_args!(
                "closed a connection in favour of a new one: there were {}, the limit, and {} were \
                 those of {}",
                self.max_connections(),
                client.used,
                name(client.source)
            ));
        }
        share
    }

    /// Adds to the memory of a body or an answer. If all together use too much, the oldest one of
    /// the client that uses most is given up, with its connection. `closed` closes the connection of
    /// this one.
    pub fn use_memory(
        &self,
        kind: MemoryKind,
        share: Option<Share>,
        bytes: usize,
        source: ClientSource,
        closed: &CancellationToken,
    ) -> Share {
        let limit = match kind {
            MemoryKind::Bodies => &self.bodies,
            MemoryKind::Answers => &self.answers,
        };
        let (share, evicted) = match share {
            Some(share) => {
                let evicted = share.grow(bytes);
                (share, evicted)
            }
            None => limit.admit(source, bytes, closed.clone()),
        };
        for client in evicted {
            self.metrics.count_closed_connection(kind.close_reason());
            self.warn(format_args!(
                "closed a connection: {kind} took {} MiB, the limit, and those of {} took {} KiB",
                limit.limit() >> 20,
                name(client.source),
                client.used >> 10
            ));
        }
        share
    }

    /// Handles a request. Returns the reply, and the number of the transaction that must be committed
    /// before it is sent.
    pub fn handle(
        &self,
        request: ServerRequest,
        caller: &Caller,
    ) -> (Result<ServerReply, RestconfError>, u64) {
        let handled = {
            let mut machine = self.machine.borrow_mut();
            let reply = machine.handle(request, caller, Instant::now());
            let sequence = match &reply {
                // A copy of a shared store has only what is committed.
                Ok(ServerReply::Assigned(..)) if machine.is_shared() => 0,
                // Only what is in the answer must be committed.
                Ok(ServerReply::Assigned(_, version)) => *version,
                _ => machine.sequence(),
            };
            (reply, sequence)
        };
        self.handle_output();
        handled
    }

    /// Returns the version of the mappings for a watcher; `None` if it is not known.
    pub fn version(&self, id: &str, caller: &Caller) -> Option<u64> {
        self.machine.borrow().version(id, caller)
    }

    /// Returns the entity tag of a version.
    pub fn entity_tag(&self, version: u64) -> String {
        format!("\"{:x}-{version}\"", self.epoch)
    }

    fn handle_output(&self) {
        let now = Instant::now();
        let mut machine = self.machine.borrow_mut();
        let (mut is_queued, mut is_changed) = (false, false);
        while let Some(output) = machine.poll_output(now) {
            match output {
                ServerOutput::Commit(transaction) => {
                    self.queue.borrow_mut().push(transaction);
                    is_queued = true;
                }
                ServerOutput::Prolong(id) => {
                    self.prolonged.borrow_mut().insert(id);
                }
                ServerOutput::Changed(id) => {
                    is_changed = true;
                    if let Some(waiting) = self.waiting.borrow().get(&id) {
                        waiting.notify_waiters();
                    }
                }
            }
        }
        if is_queued {
            self.queued.notify_one();
        }
        if is_queued || is_changed {
            let counts = machine.counts();
            self.metrics
                .set_streams(counts.assigned, counts.waiting, counts.held);
            self.metrics.set_watchers(counts.watchers);
        }
    }

    /// Waits until the mappings for a watcher change or it expires.
    pub async fn changed(&self, id: &str) {
        let id: Arc<str> = id.into();
        let notify = self
            .waiting
            .borrow_mut()
            .entry(id.clone())
            .or_default()
            .clone();
        // Removes the entry with the last poll that waits, however this one ends.
        struct Entry<'s>(&'s ServerSite, Arc<str>, Rc<Notify>);
        impl Drop for Entry<'_> {
            fn drop(&mut self) {
                if Rc::strong_count(&self.2) <= 2 {
                    self.0.waiting.borrow_mut().remove(&self.1);
                }
            }
        }
        let entry = Entry(self, id, notify);
        entry.2.notified().await;
    }

    /// Handles a request, and waits until the answer may be sent. Returns `None` if the store does
    /// not decide in time.
    pub async fn handle_committed(
        &self,
        request: ServerRequest,
        caller: &Caller,
    ) -> Option<Result<ServerReply, RestconfError>> {
        let is_shared = self.machine.borrow().is_shared();
        let decided = async {
            let is_read = matches!(
                request,
                ServerRequest::Assigned(_)
                    | ServerRequest::Refresh(_)
                    | ServerRequest::Joined(_)
                    | ServerRequest::Monitors(_)
            );
            if !is_read {
                self.store_up().await;
            }
            let (reply, sequence) = self.handle(request.clone(), caller);
            if matches!(request, ServerRequest::Refresh(_)) {
                return reply;
            }
            self.committed(sequence).await;
            if let (true, ServerRequest::SetJoined(set)) = (is_shared, &request) {
                self.joined(set, caller).await;
            }
            reply
        };
        match is_shared {
            true => timeout(SHARED_STORE_TIMEOUT, decided).await.ok(),
            false => Some(decided.await),
        }
    }

    /// Waits until a shared store has these joins, and has decided on their mappings.
    async fn joined(&self, set: &JoinedSet, caller: &Caller) {
        for _ in 0..MAX_ATTEMPTS {
            while self.machine.borrow().has_proposals(&set.id) {
                let sequence = self.machine.borrow().sequence();
                self.committed(sequence).await;
            }
            if self.machine.borrow().has_joins(set) {
                return;
            }
            let (_, sequence) = self.handle(ServerRequest::SetJoined(set.clone()), caller);
            self.committed(sequence).await;
        }
    }

    /// Waits until the transactions up to this one are committed.
    pub async fn committed(&self, sequence: u64) {
        let mut committed = self.committed.subscribe();
        // Ends with an error only with the site.
        let _ = committed.wait_for(|last| *last >= sequence).await;
    }

    /// Waits until the store works. Changes that it cannot commit must not pile up.
    pub async fn store_up(&self) {
        let mut up = self.is_store_up.subscribe();
        let _ = up.wait_for(|up| *up).await;
    }

    /// Logs a warning that clients can cause, at most ten a minute.
    pub fn warn(&self, message: std::fmt::Arguments<'_>) {
        let permit = self.log_limit.borrow_mut().permit(Instant::now());
        if let Some(suppressed) = permit {
            warn!("mnat-server: {message}{suppressed}");
        }
    }

    /// Commits transactions, and takes over the events of a shared store, until aborted.
    pub async fn run_store(&self, mut store: impl MappingStore) {
        let interval = store.check_interval();
        let mut next_check = interval.map(|interval| Instant::now() + interval);
        loop {
            let batch = std::mem::take(&mut *self.queue.borrow_mut());
            let is_check = next_check.is_some_and(|at| at <= Instant::now());
            if batch.is_empty() && !is_check {
                let until = next_check.map(|at| at.saturating_duration_since(Instant::now()));
                tokio::select! {
                    () = self.queued.notified() => {}
                    () = sleep(until.unwrap_or_default()), if until.is_some() => {}
                    events = store.events() => match events {
                        Ok(events) => self.absorb(events),
                        // The next check says whether the store is up.
                        Err(_) => sleep(EVENTS_RETRY).await,
                    }
                }
                continue;
            }
            loop {
                let result = self.commit(&mut store, &batch, is_check).await;
                self.set_store_up(result.as_ref().err());
                match result {
                    Ok(()) => break,
                    Err(_) => sleep(COMMIT_RETRY).await,
                }
            }
            next_check = interval.map(|interval| Instant::now() + interval);
            if let Some(last) = batch.last() {
                self.committed.send_replace(last.sequence);
            }
        }
    }

    async fn commit(
        &self,
        store: &mut impl MappingStore,
        batch: &[Transaction],
        is_check: bool,
    ) -> Result<(), CommitError> {
        for events in store.commit(batch).await? {
            self.absorb(events);
        }
        if is_check {
            let ids: Vec<Arc<str>> = self.prolonged.borrow().iter().cloned().collect();
            store.prolong(&ids).await?;
            let mut prolonged = self.prolonged.borrow_mut();
            for id in &ids {
                prolonged.remove(id);
            }
        }
        Ok(())
    }

    fn set_store_up(&self, error: Option<&CommitError>) {
        let was_up = self.is_store_up.send_replace(error.is_none());
        match error {
            Some(e) if was_up => warn!(
                "mnat-server: cannot write the state: {e}; trying again, and answering only \
                 requests that change nothing"
            ),
            None if !was_up => info!("mnat-server: the state can be written again"),
            _ => {}
        }
        self.metrics.set_store_up(error.is_none());
    }

    fn absorb(&self, events: SharedEvents) {
        self.machine.borrow_mut().absorb(events, Instant::now());
        self.handle_output();
    }

    /// Runs the timers of the machine, until aborted.
    pub async fn run_timers(&self) {
        loop {
            let next = self.machine.borrow().poll_timeout();
            let next = next.map_or(MAX_TICK, |at| at.saturating_duration_since(Instant::now()));
            // A little late is better than several times.
            sleep(next.min(MAX_TICK) + Duration::from_millis(1)).await;
            self.handle_output();
        }
    }
}

/// Returns the name of a client in the log.
fn name(source: ClientSource) -> String {
    source.map_or_else(|| "an unknown address".into(), |source| source.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mnat_server::pool::Pool;
    use crate::model::ClientPrefix;

    fn site(max_connections: usize) -> ServerSite {
        let pool = r#"{"group-pool": {"ranges": [
            {"group-range": "239.1.1.0/29", "source-range": "10.9.1.2"}]}}"#;
        let machine = ServerMachine::new(Pool::parse(pool).unwrap(), Box::new(|| 1));
        let metrics = MnatServerCatalog::new().unwrap();
        ServerSite::new(machine, 1, max_connections, metrics)
    }

    fn source(last: u8) -> ClientSource {
        Some(ClientPrefix::of([192, 0, 2, last].into()))
    }

    fn closed(site: &ServerSite, reason: &str) -> bool {
        let text = String::from_utf8(site.metrics.text().unwrap()).unwrap();
        let name = "mcastor_mnat_closed_connections_total";
        text.contains(&format!("{name}{{reason=\"{reason}\"}} 1\n"))
    }

    #[test]
    fn client_that_uses_most_memory_loses_its_oldest_connection() {
        for (kind, limit, reason) in [
            (MemoryKind::Bodies, MAX_BODIES, "body_memory"),
            (MemoryKind::Answers, MAX_ANSWERS, "answer_memory"),
        ] {
            let site = site(10);
            let tokens = [(); 3].map(|()| CancellationToken::new());
            let [oldest, other, newest] = &tokens;
            let part = limit / 3;
            let _shares = [(1, oldest), (2, other), (1, newest)]
                .map(|(last, closed)| site.use_memory(kind, None, part, source(last), closed));
            assert!(!oldest.is_cancelled(), "{kind}");
            let grown = site.use_memory(kind, None, part, source(2), other);
            assert!(oldest.is_cancelled() && !closed(&site, "evicted"), "{kind}");
            assert!(closed(&site, reason), "{kind}");
            // The other client uses most now.
            let _grown = site.use_memory(kind, Some(grown), part, source(2), other);
            assert!(other.is_cancelled() && !newest.is_cancelled(), "{kind}");
        }
    }

    #[test]
    fn request_keeps_a_connection_when_another_is_needed() {
        let site = site(2);
        let tokens = [(); 3].map(|()| CancellationToken::new());
        let [first, second, third] = &tokens;
        let active = site.admit(source(1), first.clone());
        let _second = site.admit(source(1), second.clone());
        active.touch();
        let _third = site.admit(source(2), third.clone());
        assert!(second.is_cancelled() && !first.is_cancelled() && !third.is_cancelled());
        assert!(closed(&site, "evicted"));
    }
}
