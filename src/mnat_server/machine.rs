//! The state machine of the server: watchers, what they join and watch, and the mappings. It has no
//! sockets, no clock and no disk; the current time is an argument.
//!
//! The caller passes each request to [`ServerMachine::handle`] and then reads
//! [`ServerMachine::poll_output`] until it is empty. An answer may be sent when the store has
//! committed the transactions up to [`ServerMachine::sequence`].
//!
//! Several servers may share a store ([`ServerMachine::new_shared`]). Then [`ServerMachine::absorb`]
//! makes the machine a copy of the store, and the store ends watchers and holds by itself.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::{AHashMap, AHashSet};
use ipnet::IpNet;

use super::assignments::{Assignments, SharedEffects, WatcherKey};
use super::changes::{
    SharedEvent, SharedEvents, StoreChange, StoredServer, StoredWatcher, Transaction,
};
use super::pool::Pool;
use crate::mnat::Channel;
use crate::mnat::messages::{
    AssignedChannels, ErrorTag, JoinedSet, MappedChannel, MonitorSet, RestconfError, Subscription,
    WatcherGrant,
};

mod requests;
#[cfg(test)]
mod shared_tests;
#[cfg(test)]
mod tests;
mod watcher;

pub use requests::{Caller, ServerCounts, ServerOutput, ServerReply, ServerRequest};
use watcher::{SourceSet, Watcher, WatcherJoin};

/// How long a watcher id is valid without a refresh.
pub const WATCHER_LIFETIME: Duration = Duration::from_secs(60);
/// The interval at which clients refresh their ids.
pub const REFRESH_PERIOD: Duration = Duration::from_secs(20);
/// How long a difference between joins and mappings in a shared store may last before it is repaired:
/// this time, and up to the same again at random, so that one server does it first.
const REPAIR_DELAY: Duration = Duration::from_secs(2);
/// Maximum number of channels that a watcher joins: more than fit into a request of 1 MiB.
const MAX_JOINS: usize = 20_000;
/// The same with a shared store, whose values have a limit of 1.5 MiB.
const MAX_SHARED_JOINS: usize = 10_000;
/// Maximum number of channels that all watchers join together, which bounds the memory of the server.
const MAX_ALL_JOINS: usize = 500_000;
/// Maximum number of prefixes that a watcher watches.
const MAX_MONITORS: usize = 64;
/// Maximum number of prefixes that all watchers watch together. Each change of a channel is compared
/// with them.
const MAX_ALL_MONITORS: usize = 65_536;
/// Maximum number of watchers.
const MAX_WATCHERS: usize = 131_072;
/// The characters of watcher ids (RFC 4648 section 6).
const ID_CHARACTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
/// Length of watcher ids: 125 bits.
const ID_LEN: usize = 25;

/// Which server handles a change, and so proposes what follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// This server.
    Here,
    /// Another server, or the shared store.
    Elsewhere,
}

/// The state machine of the server.
pub struct ServerMachine {
    assignments: Assignments,
    watchers: AHashMap<WatcherKey, Watcher>,
    keys: AHashMap<Arc<str>, WatcherKey>,
    next_key: WatcherKey,
    /// The watchers that watch sources.
    watching: BTreeSet<WatcherKey>,
    /// The number of channels that all watchers join, and of prefixes that they watch.
    joins: usize,
    monitors: usize,
    expiries: BTreeSet<(Instant, WatcherKey)>,
    /// The number of watchers that poll as the prototype does.
    prototypes: usize,
    is_shared: bool,
    repair_at: Option<Instant>,
    /// The number of the last change.
    version: u64,
    /// The number of the last change that was a transaction.
    sequence: u64,
    is_touched: bool,
    transaction: Vec<StoreChange>,
    output: VecDeque<ServerOutput>,
    random: Box<dyn FnMut() -> u128>,
}

impl ServerMachine {
    /// Returns a server without watchers. `random` must not be predictable, because watcher ids are
    /// secrets.
    pub fn new(pool: Pool, random: Box<dyn FnMut() -> u128>) -> Self {
        Self::with_store(pool, random, false)
    }

    /// Returns a server that shares its store with others.
    pub fn new_shared(pool: Pool, random: Box<dyn FnMut() -> u128>) -> Self {
        Self::with_store(pool, random, true)
    }

    fn with_store(pool: Pool, random: Box<dyn FnMut() -> u128>, is_shared: bool) -> Self {
        Self {
            assignments: Assignments::new(pool, is_shared),
            watchers: AHashMap::new(),
            keys: AHashMap::new(),
            next_key: 0,
            watching: BTreeSet::new(),
            joins: 0,
            monitors: 0,
            expiries: BTreeSet::new(),
            prototypes: 0,
            is_shared,
            repair_at: None,
            version: 0,
            sequence: 0,
            is_touched: false,
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
                self.replace_joined(key, joined, now, Origin::Here);
            }
            if let Some(monitors) = watcher.monitors {
                self.replace_monitors(key, monitors);
            }
        }
        self.assignments.hold_unjoined(now, &mut self.transaction);
        self.end_transaction();
        // What was restored unchanged is committed already.
        for watcher in self.watchers.values_mut() {
            watcher.version = watcher.version.min(self.version);
        }
        Ok(())
    }

    /// Returns the number of the last transaction.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Returns whether a shared store decides.
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Returns whether the shared store has not decided on all mappings of a watcher.
    pub fn has_proposals(&self, id: &str) -> bool {
        let watcher = self.keys.get(id).and_then(|key| self.watchers.get(key));
        let is_proposed = |global| self.assignments.is_proposed(global);
        self.is_shared && watcher.is_some_and(|w| w.channels().any(is_proposed))
    }

    /// Returns whether a watcher has these joins.
    pub fn has_joins(&self, set: &JoinedSet) -> bool {
        let watcher = self.keys.get(set.id.as_str());
        let watcher = watcher.and_then(|key| self.watchers.get(key));
        watcher.is_some_and(|w| w.stored().joined.as_ref() == Some(&set.joined))
    }

    /// Takes over what happened in the shared store.
    pub fn absorb(&mut self, events: SharedEvents, now: Instant) {
        if events.is_complete {
            self.absorb_absences(&events, now);
        }
        let mut touched = Vec::new();
        for event in events.events {
            match event {
                SharedEvent::Watcher(watcher, own) => self.absorb_watcher(watcher, own, now),
                SharedEvent::WatcherExpired(id) => {
                    if let Some(key) = self.keys.get(id.as_str()).copied() {
                        self.remove_watcher(key, now, Origin::Elsewhere);
                    }
                }
                mapping => touched.extend(self.absorb_mapping(&mapping)),
            }
        }
        self.touch_streams(&touched);
        self.end_transaction();
        if self.repair_at.is_none() && self.assignments.has_suspects() {
            let jitter = (self.random)() % REPAIR_DELAY.as_millis();
            let jitter = Duration::from_millis(u64::try_from(jitter).unwrap_or_default());
            self.repair_at = Some(now + REPAIR_DELAY + jitter);
        }
    }

    /// Removes what a complete state does not name. What the store does not have yet remains.
    fn absorb_absences(&mut self, events: &SharedEvents, now: Instant) {
        let (mut ids, mut globals) = (AHashSet::new(), AHashSet::new());
        for event in &events.events {
            match event {
                SharedEvent::Watcher(watcher, _) => drop(ids.insert(watcher.id.as_str())),
                SharedEvent::Mapping(m) | SharedEvent::Hold(m) => drop(globals.insert(m.global)),
                SharedEvent::WatcherExpired(_) | SharedEvent::MappingRemoved(_) => {}
            }
        }
        let absent = self.watchers.iter();
        let absent = absent.filter(|(_, w)| w.revision > 0 && !ids.contains(w.id.as_ref()));
        let absent: Vec<WatcherKey> = absent.map(|(key, _)| *key).collect();
        for key in absent {
            self.remove_watcher(key, now, Origin::Elsewhere);
        }
        let confirmed = self.assignments.confirmed();
        let absent: Vec<Channel> = confirmed.filter(|g| !globals.contains(g)).collect();
        let mut touched = Vec::new();
        for global in absent {
            touched.extend(self.absorb_mapping(&SharedEvent::MappingRemoved(global)));
        }
        self.touch_streams(&touched);
    }

    /// Takes over an event of a mapping. Returns the channels whose mapping changed.
    fn absorb_mapping(&mut self, event: &SharedEvent) -> Vec<Channel> {
        let mut effects = SharedEffects {
            random: &mut self.random,
            prefer_ipv4: self.prototypes > 0,
            changes: &mut self.transaction,
            touched: Vec::new(),
        };
        self.assignments.absorb(event, &mut effects);
        effects.touched
    }

    fn absorb_watcher(&mut self, stored: StoredWatcher, own: Option<u64>, now: Instant) {
        let known = self.keys.get(stored.id.as_str()).copied();
        let key = known.unwrap_or_else(|| {
            let identity = stored.identity.clone().map(Arc::from);
            self.insert_watcher(stored.id.as_str().into(), identity, now)
        });
        let Some(watcher) = self.watchers.get_mut(&key) else {
            return;
        };
        watcher.revision = stored.revision;
        // A later transaction of this server is not committed yet.
        let is_outdated = own.is_some_and(|own| own < watcher.written);
        if is_outdated || watcher.stored() == stored {
            return;
        }
        let is_registered = stored.joined.is_some();
        let is_watching = stored.monitors.is_some();
        let joined = stored.joined.unwrap_or_default();
        self.replace_joined(key, joined, now, Origin::Elsewhere);
        self.replace_monitors(key, stored.monitors.unwrap_or_default());
        if let Some(watcher) = self.watchers.get_mut(&key) {
            watcher.joined = watcher.joined.take().filter(|_| is_registered);
            watcher.monitors = watcher.monitors.take().filter(|_| is_watching);
        }
    }

    fn repair(&mut self, now: Instant) {
        self.repair_at = None;
        let mut effects = SharedEffects {
            random: &mut self.random,
            prefer_ipv4: self.prototypes > 0,
            changes: &mut self.transaction,
            touched: Vec::new(),
        };
        self.assignments.repair(now, &mut effects);
        let touched = effects.touched;
        self.touch_streams(&touched);
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
        [expiry, self.assignments.poll_timeout(), self.repair_at]
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
            self.remove_watcher(key, now, Origin::Here);
        }
        if self.repair_at.is_some_and(|at| at <= now) {
            self.repair(now);
        }
        let mut touched = Vec::new();
        while let Some(assigned) = self.assignments.handle_timeout(now, &mut self.transaction) {
            touched.extend(assigned);
        }
        self.touch_streams(&touched);
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
                let max_joins = match self.is_shared {
                    true => MAX_SHARED_JOINS,
                    false => MAX_JOINS,
                };
                if set.joined.len() > max_joins {
                    return Err(RestconfError::at(
                        format!("{JOINED}/watcher={}/joined-sg", set.id),
                        ErrorTag::ResourceDenied,
                        format!("a watcher may join {max_joins} channels at most"),
                    ));
                }
                let former = self.watchers.get(&key).map_or(0, Watcher::join_count);
                let all = self.joins - former + set.joined.len();
                if set.joined.len() > former && all > MAX_ALL_JOINS {
                    return Err(RestconfError::at(
                        format!("{JOINED}/watcher={}/joined-sg", set.id),
                        ErrorTag::ResourceDenied,
                        format!(
                            "all watchers together may join {MAX_ALL_JOINS} channels; try again \
                             when some have left"
                        ),
                    ));
                }
                if self.has_joins(&set) {
                    if self.is_shared {
                        // Another server may be about to commit an earlier request. The condition of
                        // that change is no longer met.
                        self.put_watcher(key, false);
                    }
                    return Ok(ServerReply::Done);
                }
                let is_new = self.replace_joined(key, set.joined, now, Origin::Here);
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
                let former = self.watchers.get(&key).map_or(0, Watcher::monitor_count);
                let all = self.monitors - former + set.prefixes.len();
                if set.prefixes.len() > former && all > MAX_ALL_MONITORS {
                    return Err(RestconfError::at(
                        format!("{WATCHING}/watcher={}/monitor", set.id),
                        ErrorTag::ResourceDenied,
                        format!(
                            "all watchers together may watch {MAX_ALL_MONITORS} prefixes; try \
                             again when some have left"
                        ),
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
                self.replace_joined(key, Vec::new(), now, Origin::Here);
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
        let expires = (!self.is_shared).then_some(now + WATCHER_LIFETIME);
        self.expiries.extend(expires.map(|at| (at, key)));
        self.keys.insert(id.clone(), key);
        let watcher = Watcher {
            id,
            identity,
            joined: None,
            monitors: None,
            expires,
            version: self.version,
            revision: 0,
            written: 0,
            is_prototype: false,
            is_notified: false,
        };
        self.watchers.insert(key, watcher);
        key
    }

    /// Has the store keep a watcher.
    fn put_watcher(&mut self, key: WatcherKey, is_new: bool) -> ServerReply {
        if let Some(watcher) = self.watchers.get_mut(&key) {
            watcher.written = self.version + 1;
            let change = StoreChange::PutWatcher(watcher.stored());
            self.transaction.push(change);
        }
        match is_new {
            true => ServerReply::Created,
            false => ServerReply::Done,
        }
    }

    fn refresh(&mut self, key: WatcherKey, now: Instant) {
        let Some(watcher) = self.watchers.get_mut(&key) else {
            return;
        };
        match &mut watcher.expires {
            Some(expires) => {
                self.expiries.remove(&(*expires, key));
                *expires = now + WATCHER_LIFETIME;
                self.expiries.insert((*expires, key));
            }
            None => self
                .output
                .push_back(ServerOutput::Prolong(watcher.id.clone())),
        }
    }

    fn remove_watcher(&mut self, key: WatcherKey, now: Instant, origin: Origin) {
        self.replace_joined(key, Vec::new(), now, origin);
        self.replace_monitors(key, Vec::new());
        let Some(watcher) = self.watchers.remove(&key) else {
            return;
        };
        if let Some(expires) = watcher.expires {
            self.expiries.remove(&(expires, key));
        }
        self.keys.remove(&watcher.id);
        self.prototypes -= usize::from(watcher.is_prototype);
        if origin == Origin::Here {
            let change = StoreChange::RemoveWatcher(watcher.id.to_string());
            self.transaction.push(change);
        }
    }

    /// Replaces the joins of a watcher. Returns whether it had none registered.
    fn replace_joined(
        &mut self,
        key: WatcherKey,
        joined: Vec<Subscription>,
        now: Instant,
        origin: Origin,
    ) -> bool {
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
                        joins.push(WatcherJoin::Channel(channel));
                    }
                }
                unusable => joins.push(WatcherJoin::Unusable(
                    self.assignments.new_id(&mut self.random),
                    unusable,
                )),
            }
        }
        let mut touched = Vec::new();
        // The new joins first: a channel that is joined and left at once keeps its local channel,
        // and a freed one is not assigned again at once anyway.
        for join in &joins {
            let WatcherJoin::Channel(global) = *join else {
                continue;
            };
            if former.contains(&global) {
                continue;
            }
            let is_first = self.assignments.stream(global).is_none();
            let prefer_ipv4 = self.prototypes > 0;
            let (random, changes) = (&mut self.random, &mut self.transaction);
            match origin {
                Origin::Here => {
                    self.assignments
                        .join(global, key, prefer_ipv4, random, changes);
                }
                Origin::Elsewhere => self.assignments.join_elsewhere(global, key, random),
            }
            touched.extend(is_first.then_some(global));
        }
        for global in former.into_iter().filter(|c| !channels.contains(c)) {
            let changes = &mut self.transaction;
            let is_last = match origin {
                Origin::Here => self.assignments.leave(global, key, now, changes),
                Origin::Elsewhere => self.assignments.leave_elsewhere(global, key),
            };
            touched.extend(is_last.then_some(global));
        }
        self.touch_watching(&touched);
        if let Some(watcher) = self.watchers.get_mut(&key) {
            self.joins = self.joins - watcher.join_count() + joins.len();
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
        self.monitors = self.monitors - watcher.monitor_count() + prefixes.len();
        let is_new = watcher.monitors.replace(prefixes).is_none();
        self.touch(key);
        is_new
    }

    /// Marks the mappings of all watchers of these channels as changed.
    fn touch_streams(&mut self, globals: &[Channel]) {
        for global in globals {
            let stream = self.assignments.stream(*global);
            let joiners = stream.map(|s| s.joiners.clone()).unwrap_or_default();
            joiners.into_iter().for_each(|key| self.touch(key));
        }
        self.touch_watching(globals);
    }

    /// Marks the mappings of the ingresses that watch one of these channels as changed.
    fn touch_watching(&mut self, globals: &[Channel]) {
        if globals.is_empty() {
            return;
        }
        let sources = SourceSet::of(globals);
        let watching = self.watching.iter().copied();
        let touched: Vec<WatcherKey> = watching
            .filter(|key| {
                let watcher = self.watchers.get(key);
                watcher.is_some_and(|w| w.watches_any(&sources))
            })
            .collect();
        touched.into_iter().for_each(|key| self.touch(key));
    }

    /// Marks the mappings of a watcher as changed by the current change.
    fn touch(&mut self, key: WatcherKey) {
        if let Some(watcher) = self.watchers.get_mut(&key) {
            watcher.version = self.version + 1;
            self.is_touched = true;
            if !std::mem::replace(&mut watcher.is_notified, true) {
                let changed = ServerOutput::Changed(watcher.id.clone());
                self.output.push_back(changed);
            }
        }
    }

    fn end_transaction(&mut self) {
        let is_touched = std::mem::take(&mut self.is_touched);
        if self.transaction.is_empty() {
            // A change that came from the shared store has a number too, but is no transaction.
            self.version += u64::from(self.is_shared && is_touched);
            return;
        }
        self.version += 1;
        self.sequence = self.version;
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
                WatcherJoin::Channel(global) => mapped_stream(*global),
                WatcherJoin::Unusable(id, subscription) => Some(MappedChannel {
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
