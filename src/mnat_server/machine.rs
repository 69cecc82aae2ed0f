//! The state machine of the server: watchers, what they join and watch, and the mappings. It has no
//! sockets, no clock and no disk; the current time is an argument.
//!
//! The caller passes each request to [`ServerMachine::handle`] and then reads
//! [`ServerMachine::poll_output`] until it is empty. An answer may be sent when the store has
//! committed the transactions up to [`ServerMachine::sequence`].

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::{AHashMap, AHashSet};
use ipnet::IpNet;

use super::assignments::{Assignments, WatcherKey};
use super::changes::{StoreChange, StoredServer, StoredWatcher, Transaction};
use super::pool::Pool;
use crate::mnat::Channel;
use crate::mnat::messages::{
    AssignedChannels, ErrorTag, JoinedSet, MappedChannel, MonitorSet, RestconfError, Subscription,
    WatcherGrant,
};

/// How long a watcher id is valid without a refresh.
pub const WATCHER_LIFETIME: Duration = Duration::from_secs(60);
/// The interval at which clients refresh their ids.
pub const REFRESH_PERIOD: Duration = Duration::from_secs(20);
/// Maximum number of channels that a watcher joins: more than fit into a request of 1 MiB.
const MAX_JOINS: usize = 20_000;
/// Maximum number of prefixes that a watcher watches.
const MAX_MONITORS: usize = 64;
/// Maximum number of watchers.
const MAX_WATCHERS: usize = 131_072;
/// The characters of watcher ids (RFC 4648 section 6).
const ID_CHARACTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
/// Length of watcher ids: 125 bits.
const ID_LEN: usize = 25;

/// Who sends a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// The subject of a verified client certificate, in DER.
    pub identity: Option<Arc<[u8]>>,
    /// The client supports waiting polls, and therefore answers of any length with channels of any
    /// source. A client of the prototype supports neither.
    pub can_wait: bool,
}

/// A request to the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerRequest {
    /// Requests a watcher id.
    NewWatcher,
    /// Keeps a watcher id valid.
    Refresh(String),
    /// Replaces the joins of an egress.
    SetJoined(JoinedSet),
    /// Replaces the sources that an ingress watches.
    SetMonitors(MonitorSet),
    /// Removes the joins of an egress.
    RemoveJoined(String),
    /// Removes the sources that an ingress watches.
    RemoveMonitors(String),
    /// Requests the mappings.
    Assigned(String),
    /// Requests the joins of an egress.
    Joined(String),
    /// Requests the sources that an ingress watches.
    Monitors(String),
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerReply {
    /// A new watcher id.
    Granted(WatcherGrant),
    /// The watcher was registered.
    Created,
    /// The request took effect.
    Done,
    /// The mappings, and their version.
    Assigned(AssignedChannels, u64),
    /// A request for mappings named a watcher that does not exist.
    UnknownWatcher,
    /// The joins of an egress.
    Joined(JoinedSet),
    /// The sources that an ingress watches.
    Monitors(MonitorSet),
}

/// What the caller of the machine has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerOutput {
    /// The store has to commit these changes.
    Commit(Transaction),
    /// The mappings for the watcher with this id changed, or it expired.
    Changed(Arc<str>),
}

/// A channel that an egress joins.
#[derive(Debug)]
enum Join {
    Channel(Channel),
    /// It is listed as unassigned under this number.
    Unusable(u64, Subscription),
}

#[derive(Debug)]
struct Watcher {
    id: Arc<str>,
    identity: Option<Arc<[u8]>>,
    joined: Option<Vec<Join>>,
    monitors: Option<Vec<IpNet>>,
    expires: Instant,
    /// The transaction that changed its mappings last.
    version: u64,
    /// It requested mappings as the prototype does.
    is_prototype: bool,
    /// The output says that its mappings changed.
    is_notified: bool,
}

impl Watcher {
    fn stored(&self) -> StoredWatcher {
        let joined = |join: &Join| match join {
            Join::Channel(channel) => Subscription::Channel(*channel),
            Join::Unusable(_, subscription) => subscription.clone(),
        };
        StoredWatcher {
            id: self.id.to_string(),
            identity: self.identity.as_deref().map(<[u8]>::to_vec),
            joined: self
                .joined
                .as_ref()
                .map(|all| all.iter().map(joined).collect()),
            monitors: self.monitors.clone(),
        }
    }

    fn channels(&self) -> impl Iterator<Item = Channel> {
        let joined = self.joined.iter().flatten();
        joined.filter_map(|join| match join {
            Join::Channel(channel) => Some(*channel),
            Join::Unusable(..) => None,
        })
    }

    /// Returns whether the watcher watches the source of `global`.
    fn watches(&self, global: Channel) -> bool {
        let watches = |prefix: &IpNet| match global.source() {
            Some(source) => prefix.contains(&source.addr()),
            // Any source is part of no prefix but the one of all addresses.
            None => prefix.prefix_len() == 0 && prefix.addr().is_ipv4() == global.is_ipv4(),
        };
        self.monitors.iter().flatten().any(watches)
    }
}

/// The number of watchers, local channels and streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerCounts {
    /// Watchers.
    pub watchers: usize,
    /// Local channels in the pool.
    pub pool_size: u128,
    /// Global channels with a local one.
    pub assigned: usize,
    /// Local channels that are held.
    pub held: usize,
    /// Global channels that wait for a local one.
    pub waiting: usize,
}

/// The state machine of the server.
pub struct ServerMachine {
    assignments: Assignments,
    watchers: AHashMap<WatcherKey, Watcher>,
    keys: AHashMap<Arc<str>, WatcherKey>,
    next_key: WatcherKey,
    /// The watchers that watch sources.
    watching: BTreeSet<WatcherKey>,
    expiries: BTreeSet<(Instant, WatcherKey)>,
    /// The number of watchers that poll as the prototype does.
    prototypes: usize,
    sequence: u64,
    transaction: Vec<StoreChange>,
    output: VecDeque<ServerOutput>,
    random: Box<dyn FnMut() -> u128>,
}

impl ServerMachine {
    /// Returns a server without watchers. `random` must not be predictable, because watcher ids are
    /// secrets.
    pub fn new(pool: Pool, random: Box<dyn FnMut() -> u128>) -> Self {
        Self {
            assignments: Assignments::new(pool),
            watchers: AHashMap::new(),
            keys: AHashMap::new(),
            next_key: 0,
            watching: BTreeSet::new(),
            expiries: BTreeSet::new(),
            prototypes: 0,
            sequence: 0,
            transaction: Vec::new(),
            output: VecDeque::new(),
            random,
        }
    }

    /// Continues stored state. All lifetimes start again, because nobody could refresh an id while
    /// there was no server.
    ///
    /// # Errors
    /// A local channel that is not in the pool, or is there twice.
    pub fn restore(&mut self, stored: StoredServer, now: Instant) -> Result<(), Channel> {
        self.assignments
            .restore(&stored.mappings, &stored.holds, now)?;
        for watcher in stored.watchers {
            let identity = watcher.identity.map(Arc::from);
            let key = self.insert_watcher(watcher.id.into(), identity, now);
            if let Some(joined) = watcher.joined {
                self.replace_joined(key, joined, now);
            }
            if let Some(monitors) = watcher.monitors {
                self.replace_monitors(key, monitors);
            }
        }
        self.assignments.hold_unjoined(now, &mut self.transaction);
        self.end_transaction();
        // What was restored unchanged is committed already.
        for watcher in self.watchers.values_mut() {
            watcher.version = watcher.version.min(self.sequence);
        }
        Ok(())
    }

    /// Returns the number of the last transaction.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Returns the counts for metrics.
    pub fn counts(&self) -> ServerCounts {
        ServerCounts {
            watchers: self.watchers.len(),
            pool_size: self.assignments.pool().size(),
            assigned: self.assignments.assigned(),
            held: self.assignments.held(),
            waiting: self.assignments.joined() - self.assignments.assigned(),
        }
    }

    /// Returns when [`Self::poll_output`] must be called next, if no request arrives before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let expiry = self.expiries.first().map(|(at, _)| *at);
        [expiry, self.assignments.poll_timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Returns what the caller has to do next.
    pub fn poll_output(&mut self, now: Instant) -> Option<ServerOutput> {
        self.handle_timeout(now);
        let output = self.output.pop_front();
        if let Some(ServerOutput::Changed(id)) = &output
            && let Some(watcher) = self.keys.get(id).and_then(|k| self.watchers.get_mut(k))
        {
            watcher.is_notified = false;
        }
        output
    }

    fn handle_timeout(&mut self, now: Instant) {
        while let Some((at, key)) = self.expiries.first().copied()
            && at <= now
        {
            self.remove_watcher(key, now);
        }
        while let Some(assigned) = self.assignments.handle_timeout(now, &mut self.transaction) {
            if let Some(global) = assigned {
                self.touch_stream(global);
            }
        }
        self.end_transaction();
    }

    /// Handles a request.
    ///
    /// # Errors
    /// The reason why it is refused.
    pub fn handle(
        &mut self,
        request: ServerRequest,
        caller: &Caller,
        now: Instant,
    ) -> Result<ServerReply, RestconfError> {
        // A watcher that is late is unknown, even if nothing removed it yet.
        self.handle_timeout(now);
        let reply = self.dispatch(request, caller, now);
        self.end_transaction();
        reply
    }

    fn dispatch(
        &mut self,
        request: ServerRequest,
        caller: &Caller,
        now: Instant,
    ) -> Result<ServerReply, RestconfError> {
        match request {
            ServerRequest::NewWatcher => self.new_watcher(caller, now),
            ServerRequest::Refresh(id) => {
                let key = self.key(&id, caller).ok_or_else(|| {
                    // The prototype's clients expect 500.
                    RestconfError::new(ErrorTag::OperationFailed, "unknown watcher id")
                })?;
                self.refresh(key, now);
                Ok(ServerReply::Done)
            }
            ServerRequest::SetJoined(set) => {
                let key = self.known_key(&set.id, caller, JOINED)?;
                if set.joined.len() > MAX_JOINS {
                    return Err(RestconfError::at(
                        format!("{JOINED}/watcher={}/joined-sg", set.id),
                        ErrorTag::ResourceDenied,
                        format!("a watcher may join {MAX_JOINS} channels at most"),
                    ));
                }
                let stored = self.watchers.get(&key).map(Watcher::stored);
                if stored.is_some_and(|w| w.joined.as_ref() == Some(&set.joined)) {
                    return Ok(ServerReply::Done);
                }
                let is_new = self.replace_joined(key, set.joined, now);
                Ok(self.put_watcher(key, is_new))
            }
            ServerRequest::SetMonitors(set) => {
                let key = self.known_key(&set.id, caller, WATCHING)?;
                if set.prefixes.len() > MAX_MONITORS {
                    return Err(RestconfError::at(
                        format!("{WATCHING}/watcher={}/monitor", set.id),
                        ErrorTag::ResourceDenied,
                        format!("a watcher may watch {MAX_MONITORS} prefixes at most"),
                    ));
                }
                let is_new = self.replace_monitors(key, set.prefixes);
                Ok(self.put_watcher(key, is_new))
            }
            ServerRequest::RemoveJoined(id) => {
                let key = self.known_key(&id, caller, JOINED)?;
                if self.watchers.get(&key).is_none_or(|w| w.joined.is_none()) {
                    return Err(not_found(JOINED));
                }
                self.replace_joined(key, Vec::new(), now);
                self.watchers.entry(key).and_modify(|w| w.joined = None);
                Ok(self.put_watcher(key, false))
            }
            ServerRequest::RemoveMonitors(id) => {
                let key = self.known_key(&id, caller, WATCHING)?;
                if self.watchers.get(&key).is_none_or(|w| w.monitors.is_none()) {
                    return Err(not_found(WATCHING));
                }
                self.replace_monitors(key, Vec::new());
                self.watchers.entry(key).and_modify(|w| w.monitors = None);
                Ok(self.put_watcher(key, false))
            }
            ServerRequest::Assigned(id) => Ok(self.assigned(&id, caller)),
            ServerRequest::Joined(id) => {
                let key = self.known_key(&id, caller, JOINED)?;
                let stored = self.watchers.get(&key).map(Watcher::stored);
                match stored.and_then(|w| w.joined) {
                    Some(joined) => Ok(ServerReply::Joined(JoinedSet { id, joined })),
                    None => Err(not_found(JOINED)),
                }
            }
            ServerRequest::Monitors(id) => {
                let key = self.known_key(&id, caller, WATCHING)?;
                let monitors = self.watchers.get(&key).and_then(|w| w.monitors.clone());
                match monitors {
                    Some(prefixes) => Ok(ServerReply::Monitors(MonitorSet { id, prefixes })),
                    None => Err(not_found(WATCHING)),
                }
            }
        }
    }

    /// Returns the version of the mappings for a watcher; `None` if it is not known.
    pub fn version(&self, id: &str, caller: &Caller) -> Option<u64> {
        let key = self.key(id, caller)?;
        self.watchers.get(&key).map(|watcher| watcher.version)
    }

    /// Returns the watcher with this id, if the caller may use it.
    fn key(&self, id: &str, caller: &Caller) -> Option<WatcherKey> {
        let key = *self.keys.get(id)?;
        let owner = &self.watchers.get(&key)?.identity;
        (owner.is_none() || *owner == caller.identity).then_some(key)
    }

    fn known_key(
        &self,
        id: &str,
        caller: &Caller,
        list: &str,
    ) -> Result<WatcherKey, RestconfError> {
        // A foreign id is answered as an unknown one, so that nobody can find out ids.
        self.key(id, caller).ok_or_else(|| not_found(list))
    }

    fn new_watcher(&mut self, caller: &Caller, now: Instant) -> Result<ServerReply, RestconfError> {
        if self.watchers.len() >= MAX_WATCHERS {
            return Err(RestconfError::new(
                ErrorTag::ResourceDenied,
                format!("there are {MAX_WATCHERS} watchers; try again when some have expired"),
            ));
        }
        let id = loop {
            let mut random = (self.random)();
            let characters = (0..ID_LEN).map(|_| {
                let character = ID_CHARACTERS[(random % 32) as usize];
                random /= 32;
                char::from(character)
            });
            let id: String = characters.collect();
            if !self.keys.contains_key(id.as_str()) {
                break id;
            }
        };
        let key = self.insert_watcher(id.as_str().into(), caller.identity.clone(), now);
        self.put_watcher(key, true);
        Ok(ServerReply::Granted(WatcherGrant {
            id,
            refresh: REFRESH_PERIOD,
        }))
    }

    fn insert_watcher(
        &mut self,
        id: Arc<str>,
        identity: Option<Arc<[u8]>>,
        now: Instant,
    ) -> WatcherKey {
        let key = self.next_key;
        self.next_key += 1;
        let expires = now + WATCHER_LIFETIME;
        self.expiries.insert((expires, key));
        self.keys.insert(id.clone(), key);
        let watcher = Watcher {
            id,
            identity,
            joined: None,
            monitors: None,
            expires,
            version: self.sequence,
            is_prototype: false,
            is_notified: false,
        };
        self.watchers.insert(key, watcher);
        key
    }

    /// Has the store keep a watcher.
    fn put_watcher(&mut self, key: WatcherKey, is_new: bool) -> ServerReply {
        if let Some(watcher) = self.watchers.get(&key) {
            let change = StoreChange::PutWatcher(watcher.stored());
            self.transaction.push(change);
        }
        match is_new {
            true => ServerReply::Created,
            false => ServerReply::Done,
        }
    }

    fn refresh(&mut self, key: WatcherKey, now: Instant) {
        if let Some(watcher) = self.watchers.get_mut(&key) {
            self.expiries.remove(&(watcher.expires, key));
            watcher.expires = now + WATCHER_LIFETIME;
            self.expiries.insert((watcher.expires, key));
        }
    }

    fn remove_watcher(&mut self, key: WatcherKey, now: Instant) {
        self.replace_joined(key, Vec::new(), now);
        self.touch(key);
        self.watching.remove(&key);
        let Some(watcher) = self.watchers.remove(&key) else {
            return;
        };
        self.expiries.remove(&(watcher.expires, key));
        self.keys.remove(&watcher.id);
        self.prototypes -= usize::from(watcher.is_prototype);
        let change = StoreChange::RemoveWatcher(watcher.id.to_string());
        self.transaction.push(change);
    }

    /// Replaces the joins of a watcher. Returns whether it had none registered.
    fn replace_joined(&mut self, key: WatcherKey, joined: Vec<Subscription>, now: Instant) -> bool {
        let Some(watcher) = self.watchers.get_mut(&key) else {
            return false;
        };
        let former: AHashSet<Channel> = watcher.channels().collect();
        let is_new = watcher.joined.is_none();
        let mut channels = AHashSet::with_capacity(joined.len());
        let mut joins = Vec::with_capacity(joined.len());
        for subscription in joined {
            match subscription {
                Subscription::Channel(channel) => {
                    if channels.insert(channel) {
                        joins.push(Join::Channel(channel));
                    }
                }
                unusable => joins.push(Join::Unusable(self.assignments.new_id(), unusable)),
            }
        }
        // The new joins first: a channel that is joined and left at once keeps its local channel,
        // and a freed one is not assigned again at once anyway.
        for join in &joins {
            let Join::Channel(global) = *join else {
                continue;
            };
            if former.contains(&global) {
                continue;
            }
            let is_first = self.assignments.stream(global).is_none();
            let prefer_ipv4 = self.prototypes > 0;
            let changes = &mut self.transaction;
            self.assignments
                .join(global, key, prefer_ipv4, &mut self.random, changes);
            if is_first {
                self.touch_watching(global);
            }
        }
        for global in former.into_iter().filter(|c| !channels.contains(c)) {
            if self
                .assignments
                .leave(global, key, now, &mut self.transaction)
            {
                self.touch_watching(global);
            }
        }
        if let Some(watcher) = self.watchers.get_mut(&key) {
            watcher.joined = Some(joins);
        }
        self.touch(key);
        is_new
    }

    /// Replaces the sources that a watcher watches. Returns whether it had none registered.
    fn replace_monitors(&mut self, key: WatcherKey, prefixes: Vec<IpNet>) -> bool {
        let Some(watcher) = self.watchers.get_mut(&key) else {
            return false;
        };
        match prefixes.is_empty() {
            true => self.watching.remove(&key),
            false => self.watching.insert(key),
        };
        let is_new = watcher.monitors.replace(prefixes).is_none();
        self.touch(key);
        is_new
    }

    /// Marks the mappings of all watchers of a channel as changed.
    fn touch_stream(&mut self, global: Channel) {
        let stream = self.assignments.stream(global);
        let joiners = stream.map(|s| s.joiners.clone()).unwrap_or_default();
        joiners.into_iter().for_each(|key| self.touch(key));
        self.touch_watching(global);
    }

    /// Marks the mappings of the ingresses that watch a channel as changed.
    fn touch_watching(&mut self, global: Channel) {
        let watching = self.watching.iter().copied();
        let touched: Vec<WatcherKey> = watching
            .filter(|key| self.watchers.get(key).is_some_and(|w| w.watches(global)))
            .collect();
        touched.into_iter().for_each(|key| self.touch(key));
    }

    /// Marks the mappings of a watcher as changed by the current transaction.
    fn touch(&mut self, key: WatcherKey) {
        if let Some(watcher) = self.watchers.get_mut(&key) {
            watcher.version = self.sequence + 1;
            if !std::mem::replace(&mut watcher.is_notified, true) {
                let changed = ServerOutput::Changed(watcher.id.clone());
                self.output.push_back(changed);
            }
        }
    }

    fn end_transaction(&mut self) {
        if self.transaction.is_empty() {
            return;
        }
        self.sequence += 1;
        let transaction = Transaction {
            sequence: self.sequence,
            changes: std::mem::take(&mut self.transaction),
        };
        self.output.push_back(ServerOutput::Commit(transaction));
    }

    fn assigned(&mut self, id: &str, caller: &Caller) -> ServerReply {
        let key = self.key(id, caller);
        let watcher = key.and_then(|key| self.watchers.get_mut(&key));
        let Some(watcher) = watcher else {
            return ServerReply::UnknownWatcher;
        };
        if !caller.can_wait && !std::mem::replace(&mut watcher.is_prototype, true) {
            self.prototypes += 1;
        }
        let mapped_stream = |global: Channel| {
            let stream = self.assignments.stream(global)?;
            Some(MappedChannel {
                id: stream.id,
                global: Subscription::Channel(global),
                local: stream.local,
            })
        };
        let joined = watcher.joined.iter().flatten();
        let mut mapped: Vec<MappedChannel> = joined
            .filter_map(|join| match join {
                Join::Channel(global) => mapped_stream(*global),
                Join::Unusable(id, subscription) => Some(MappedChannel {
                    id: *id,
                    global: subscription.clone(),
                    local: None,
                }),
            })
            .collect();
        if watcher.monitors.as_ref().is_some_and(|m| !m.is_empty()) {
            let own: AHashSet<Channel> = watcher.channels().collect();
            let all = self.assignments.streams();
            let watched =
                all.filter(|(global, _)| watcher.watches(*global) && !own.contains(global));
            mapped.extend(watched.map(|(global, stream)| MappedChannel {
                id: stream.id,
                global: Subscription::Channel(global),
                local: stream.local,
            }));
        }
        // One entry without a source stops the prototype's clients from using all others.
        let joins_any_source = watcher.channels().any(|c| c.source().is_none());
        if !caller.can_wait && !joins_any_source {
            mapped.retain(|entry| !entry.is_any_source());
        }
        let id = watcher.id.to_string();
        ServerReply::Assigned(AssignedChannels { id, mapped }, watcher.version)
    }
}

const JOINED: &str = "/ietf-mnat:egress-global-joined";
const WATCHING: &str = "/ietf-mnat:ingress-watching";

fn not_found(list: &str) -> RestconfError {
    let path = format!("{list}/watcher");
    RestconfError::at(path, ErrorTag::NotFound, "there is no such watcher")
}

#[cfg(test)]
mod tests;
