//! A store in etcd, which several servers share.
//!
//! | Key, below `/mcastor/mnat/` | Value | Lease |
//! |---|---|---|
//! | `watcher/ID` | identity, joins and watched sources | of the watcher, 75 s; a refresh prolongs it |
//! | `global/S,G` | number and local channel, and whether it is a hold | of the hold, 65 s, if it is one |
//! | `local/S,G` | the global channel | the same |
//! | `pool` | the ranges of the pool | |
//! | `tick` | nothing | |
//!
//! **One owner.** A mapping is written by one transaction of etcd that creates `global/…` and
//! `local/…`, and compares that neither exists. A hold and the end of a hold rewrite both keys with
//! the same channels, under a comparison that they belong together. The lease of a hold has both
//! keys, and etcd removes them in one step. So at each revision the two sets of keys are inverse to
//! each other, whatever the servers do: no local channel belongs to two global ones.
//!
//! **A copy in memory.** Each server watches all keys, and applies the events in the order of etcd.
//! A commit returns when the watch has delivered its revision: `tick` is written by each
//! transaction, so there is an event even if no comparison succeeded. What a server answers is
//! therefore the state of etcd at some revision, not older than its last commit.
//!
//! **Nothing is forgotten.** A server proposes mappings and holds for the joins that it handles. If
//! it dies, or if two servers act at the same time (the last leave here, a join there), the joins in
//! etcd and the mappings disagree. Each server sees that in its copy, and the first one to notice it
//! repairs it some seconds later. A hold lasts longer, so the stream gets its local channel back.
//!
//! **Repeated commits.** A commit whose answer was lost is done again. The comparisons make that
//! harmless: a watcher is replaced only at the revision at which the server read it.
//!
//! **Time.** Leases run in etcd. While it has no quorum nothing expires, and a new leader starts all
//! leases again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use ahash::{AHashMap, AHashSet};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::etcd_api::{EtcdApi, EtcdError, EtcdWatch, decode, encode, number};
use super::etcd_member::{EtcdMember, EtcdOptions};
use super::{CommitError, MappingStore};
use crate::mnat::Channel;
use crate::mnat::client_tls::ClientTlsError;
use crate::mnat_server::changes::{
    SharedEvent, SharedEvents, StoreChange, StoredMapping, StoredWatcher, Transaction,
};
use crate::mnat_server::pool::{Pool, SourceRange};

/// Where all keys are.
const PREFIX: &str = "/mcastor/mnat/";
/// The first key behind all keys.
const PREFIX_END: &str = "/mcastor/mnat0";
/// Life of a watcher without a refresh, in seconds. Longer than the 60 of the protocol, because a
/// refresh may be on its way while etcd elects a leader.
const WATCHER_TTL: u64 = 75;
/// Duration of a hold, in seconds.
const HOLD_TTL: u64 = 65;
/// Changes in a transaction of etcd. Its default limit is 128 operations.
const MAX_CHANGES: usize = 60;
/// Length of the values in a transaction, in bytes. The default limit of etcd is 1.5 MiB.
const MAX_BYTES: usize = 512 << 10;
/// Watchers that are prolonged by one call.
const MAX_PROLONGED: usize = 500;
/// Keys that are read at a time.
const PAGE: usize = 1000;
/// How long the watch may take to deliver what a commit wrote.
const WATCH_TIMEOUT: Duration = Duration::from_secs(2);
/// How long etcd may be away when the server starts.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause between attempts to reach etcd.
const RETRY: Duration = Duration::from_millis(500);
/// Interval at which the connection is checked if nothing is written.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Own commits that are remembered until the watch delivers them.
const MAX_OWN_COMMITS: usize = 4096;

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EtcdStoreError {
    /// The address of a member is not valid.
    #[error("{0}: expected http://HOST:PORT or https://HOST:PORT")]
    Url(String),
    /// The files of TLS cannot be used.
    #[error("etcd: {0}")]
    Tls(#[from] ClientTlsError),
    /// The files of TLS are not needed by any member.
    #[error("--etcd-ca and --etcd-cert need https:// in --etcd")]
    UnusedTls,
    /// etcd refuses this client.
    #[error(
        "{0}; if etcd has users, set --etcd-user and --etcd-password-file to one that may read and \
         write the keys below {PREFIX}"
    )]
    Refused(String),
    /// etcd does not answer.
    #[error("{0}; check --etcd, and whether most members of etcd are up")]
    Unavailable(String),
    /// The mappings are those of another pool.
    #[error(
        "etcd has mappings of another pool ({0}), which this one lacks; restore that pool, or \
         remove the keys below {PREFIX} to forget its mappings: streams then get other local \
         addresses"
    )]
    OtherPool(String),
}

/// The value of a mapping or a hold.
#[derive(Debug, Serialize, Deserialize)]
struct MappingValue {
    #[serde(flatten)]
    mapping: StoredMapping,
    is_held: bool,
}

impl MappingValue {
    fn encode(mapping: StoredMapping, is_held: bool) -> String {
        encode(serde_json::to_vec(&Self { mapping, is_held }).unwrap_or_default())
    }
}

/// A store in etcd.
pub struct EtcdStore {
    api: EtcdApi,
    pool: Pool,
    watch: Option<EtcdWatch>,
    /// The last revision that the watch delivered.
    revision: u64,
    /// Events that were read, but not returned yet.
    events: VecDeque<SharedEvents>,
    /// Own commits that the watch has not delivered: the transaction that wrote a watcher, by
    /// revision and watcher id.
    own_commits: BTreeMap<u64, AHashMap<String, u64>>,
    /// By watcher id, the result of [`Self::own_writes`].
    written: AHashMap<String, (u64, u64)>,
}

impl EtcdStore {
    /// Connects to etcd. Returns the stored state. It may be that of another pool, if this one has
    /// all of its local channels.
    ///
    /// # Errors
    /// The options cannot be used, etcd refuses this client or cannot be reached for a minute, or
    /// it has mappings of another pool.
    pub async fn open(
        options: EtcdOptions,
        pool: &Pool,
    ) -> Result<(Self, SharedEvents), EtcdStoreError> {
        let members = members(&options)?;
        let mut store = Self {
            api: EtcdApi::new(members, options),
            pool: pool.clone(),
            watch: None,
            revision: 0,
            events: VecDeque::new(),
            own_commits: BTreeMap::new(),
            written: AHashMap::new(),
        };
        let deadline = Instant::now() + START_TIMEOUT;
        let mut is_logged = false;
        let (state, stored_pool) = loop {
            match store.load().await {
                Ok(loaded) => break loaded,
                Err(e @ (EtcdError::Refused(_) | EtcdError::Password(..))) => {
                    return Err(EtcdStoreError::Refused(e.to_string()));
                }
                Err(e) if Instant::now() > deadline => {
                    return Err(EtcdStoreError::Unavailable(e.to_string()));
                }
                Err(e) => {
                    if !std::mem::replace(&mut is_logged, true) {
                        info!("mnat-server: waiting for {e}");
                    }
                    sleep(RETRY).await;
                }
            }
        };
        store.check_pool(&state, stored_pool).await?;
        Ok((store, state))
    }

    /// Writes the ranges of the pool, if they are missing or may be replaced.
    async fn check_pool(
        &mut self,
        state: &SharedEvents,
        stored: Option<String>,
    ) -> Result<(), EtcdStoreError> {
        let fingerprint = self.pool.fingerprint();
        if stored.as_ref() == Some(&fingerprint) {
            return Ok(());
        }
        let mut locals = state.events.iter().filter_map(|event| match event {
            SharedEvent::Mapping(mapping) | SharedEvent::Hold(mapping) => Some(mapping.local),
            _ => None,
        });
        if locals.any(|local| self.pool.slot(local).is_none()) {
            return Err(EtcdStoreError::OtherPool(stored.unwrap_or_default()));
        }
        let put = json!({ "key": encode(key("pool", "")), "value": encode(fingerprint) });
        let put = self.api.call("/v3/kv/put", put.to_string()).await;
        put.map_err(|e| EtcdStoreError::Unavailable(e.to_string()))?;
        Ok(())
    }

    /// Reads the whole state and the ranges of its pool.
    async fn load(&mut self) -> Result<(SharedEvents, Option<String>), EtcdError> {
        let mut events = Vec::new();
        let mut pool = None;
        let mut revision = 0;
        let mut from = PREFIX.as_bytes().to_vec();
        loop {
            let range = json!({
                "key": encode(&from), "range_end": encode(PREFIX_END), "limit": PAGE.to_string(),
                "revision": revision.to_string(),
            });
            let answers = self.api.call("/v3/kv/range", range.to_string()).await?;
            let answer = answers.first().unwrap_or(&Value::Null);
            if revision == 0 {
                revision = number(&answer["header"]["revision"]);
            }
            let rows = answer["kvs"].as_array().map_or(&[][..], Vec::as_slice);
            for row in rows {
                let Some(key) = decode(&row["key"]) else {
                    continue;
                };
                if key == self::key("pool", "").as_bytes() {
                    let text = decode(&row["value"]).unwrap_or_default();
                    pool = Some(String::from_utf8_lossy(&text).into_owned());
                }
                events.extend(put_event(&key, row, None));
                from = key;
                from.push(0);
            }
            if answer["more"] != true || rows.is_empty() {
                break;
            }
        }
        self.watch = None;
        self.revision = revision;
        self.own_commits.clear();
        sort(&mut events);
        let is_complete = true;
        let state = SharedEvents {
            is_complete,
            events,
        };
        Ok((state, pool))
    }

    /// Reads events until there are some.
    async fn read(&mut self) -> Result<(), EtcdError> {
        while self.events.is_empty() {
            self.read_message().await?;
        }
        Ok(())
    }

    /// Reads a message of the watch. May be cancelled.
    async fn read_message(&mut self) -> Result<(), EtcdError> {
        let watch = match &mut self.watch {
            Some(watch) => watch,
            None => {
                let from = self.revision + 1;
                let watch = self.api.watch(PREFIX, PREFIX_END, from).await?;
                self.watch.insert(watch)
            }
        };
        let message = match watch.next().await {
            Ok(message) => message,
            Err(why) => {
                self.watch = None;
                self.api.use_next_member();
                return Err(EtcdError::Member("the watch".into(), why));
            }
        };
        let result = &message["result"];
        if result["canceled"] == true || !message["error"].is_null() {
            // The revisions since the last event were compacted, or the member cannot serve the
            // watch. The whole state is right in both cases.
            let (state, _) = self.load().await?;
            self.events.push_back(state);
            return Ok(());
        }
        let rows = result["events"].as_array().map_or(&[][..], Vec::as_slice);
        let mut events = Vec::new();
        let mut revision = self.revision;
        for row in rows {
            let pair = &row["kv"];
            let at = number(&pair["mod_revision"]);
            if at != revision {
                self.deliver(revision, std::mem::take(&mut events));
                revision = at;
            }
            let Some(key) = decode(&pair["key"]) else {
                continue;
            };
            events.extend(match row["type"] == "DELETE" {
                true => removed_event(&key),
                false => put_event(&key, pair, self.own_commits.get(&at)),
            });
        }
        self.deliver(revision, events);
        Ok(())
    }

    /// Adds the events of a revision.
    fn deliver(&mut self, revision: u64, mut events: Vec<SharedEvent>) {
        self.revision = self.revision.max(revision);
        self.own_commits = self.own_commits.split_off(&revision);
        if events.is_empty() {
            return;
        }
        sort(&mut events);
        for event in &events {
            if let SharedEvent::Watcher(StoredWatcher { id, .. }, None)
            | SharedEvent::WatcherExpired(id) = event
            {
                self.written.remove(id);
            }
        }
        let is_complete = false;
        self.events.push_back(SharedEvents {
            is_complete,
            events,
        });
    }

    /// Reads events until this revision.
    async fn read_until(&mut self, revision: u64) -> Result<(), EtcdError> {
        let read = async {
            while self.revision < revision {
                self.read_message().await?;
            }
            Ok(())
        };
        let read = timeout(WATCH_TIMEOUT, read).await;
        read.unwrap_or_else(|_| {
            // The member may be cut off from the others.
            self.watch = None;
            self.api.use_next_member();
            let why = "no events".into();
            Err(EtcdError::Member("the watch".into(), why))
        })
    }

    /// Returns the changes of transactions in batches. The changes of a batch concern different keys:
    /// etcd refuses two writes of a key in one transaction.
    fn batches<'t>(&self, transactions: &'t [Transaction]) -> Vec<Vec<(u64, &'t StoreChange)>> {
        let mut batches = vec![Vec::new()];
        let mut keys = AHashSet::new();
        let mut bytes = 0;
        let all = transactions.iter();
        let all = all.flat_map(|t| t.changes.iter().map(|change| (t.sequence, change)));
        for (sequence, change) in all {
            let (of_change, len) = match change {
                StoreChange::PutWatcher(watcher) => {
                    let joins = watcher.joined.as_ref().map_or(0, Vec::len);
                    (vec![watcher.id.clone()], 128 + joins * 100)
                }
                StoreChange::PutMapping(mapping)
                | StoreChange::HoldMapping(mapping)
                | StoreChange::ResumeMapping(mapping) => {
                    (self.mapping_keys(*mapping).to_vec(), 512)
                }
                StoreChange::RemoveWatcher(_) | StoreChange::RemoveHold(_) => continue,
            };
            let is_full = batches
                .last()
                .is_some_and(|b| b.len() >= MAX_CHANGES || bytes + len > MAX_BYTES);
            if is_full || of_change.iter().any(|key| keys.contains(key)) {
                batches.push(Vec::new());
                keys.clear();
                bytes = 0;
            }
            keys.extend(of_change);
            bytes += len;
            if let Some(batch) = batches.last_mut() {
                batch.push((sequence, change));
            }
        }
        batches
    }

    /// Commits changes that concern different keys, each with the number of its transaction. Returns
    /// the revision.
    async fn commit_batch(&mut self, changes: &[(u64, &StoreChange)]) -> Result<u64, EtcdError> {
        let is_hold =
            |change: &&(u64, &StoreChange)| matches!(change.1, StoreChange::HoldMapping(_));
        let hold_lease = match changes.iter().find(is_hold) {
            Some(_) => self.grant(0, HOLD_TTL).await?,
            None => 0,
        };
        for (_, change) in changes {
            if let StoreChange::PutWatcher(watcher) = change
                && watcher.revision == 0
            {
                self.grant(lease(&watcher.id), WATCHER_TTL).await?;
            }
        }
        let tick = json!({ "request_put": { "key": encode(key("tick", "")) } });
        let nested = changes
            .iter()
            .map(|(_, change)| json!({ "request_txn": self.operation(change, hold_lease) }));
        let success: Vec<Value> = std::iter::once(tick).chain(nested).collect();
        let body = json!({ "success": success }).to_string();
        let answers = self.api.call("/v3/kv/txn", body).await?;
        let answer = answers.first().unwrap_or(&Value::Null);
        let revision = number(&answer["header"]["revision"]);
        let mut own = AHashMap::new();
        for (n, (sequence, change)) in changes.iter().enumerate() {
            let is_done = answer["responses"][n + 1]["response_txn"]["succeeded"] == true;
            if let (StoreChange::PutWatcher(watcher), true) = (change, is_done) {
                let (before, _) = self.own_writes(watcher);
                self.written.insert(watcher.id.clone(), (before, revision));
                own.insert(watcher.id.clone(), *sequence);
            }
        }
        // Without this note, the watcher is taken over as if another server had written it.
        if !own.is_empty() && revision > self.revision && self.own_commits.len() < MAX_OWN_COMMITS {
            self.own_commits.insert(revision, own);
        }
        Ok(revision)
    }

    /// Returns the revision that a watcher had before the own writes without a foreign one between
    /// them, and the one that it has since. A change that was queued during these writes has a
    /// revision within.
    fn own_writes(&self, watcher: &StoredWatcher) -> (u64, u64) {
        let revision = watcher.revision;
        let written = self.written.get(&watcher.id).copied();
        let written = written.filter(|(before, since)| (*before..=*since).contains(&revision));
        written.unwrap_or((revision, revision))
    }

    /// Creates a lease. Returns its id; 0 lets etcd choose it.
    async fn grant(&mut self, id: u64, seconds: u64) -> Result<u64, EtcdError> {
        let body = json!({ "ID": id.to_string(), "TTL": seconds.to_string() });
        match self.api.call("/v3/lease/grant", body.to_string()).await {
            Ok(answers) => Ok(answers.first().map_or(0, |answer| number(&answer["ID"]))),
            // An earlier attempt created it.
            Err(EtcdError::Refused(why)) if why.contains("already exists") => Ok(id),
            Err(e) => Err(e),
        }
    }

    /// Returns the transaction of a change: its condition, and what it writes.
    fn operation(&self, change: &StoreChange, hold_lease: u64) -> Value {
        match change {
            StoreChange::PutWatcher(watcher) => {
                let (_, revision) = self.own_writes(watcher);
                let key = encode(key("watcher", &watcher.id));
                let value = encode(serde_json::to_vec(watcher).unwrap_or_default());
                let mut put = json!({ "key": key, "value": value });
                match revision {
                    0 => put["lease"] = json!(lease(&watcher.id).to_string()),
                    _ => put["ignore_lease"] = json!(true),
                }
                json!({
                    "compare": [{ "key": key, "target": "MOD",
                        "mod_revision": revision.to_string() }],
                    "success": [{ "request_put": put }],
                })
            }
            StoreChange::PutMapping(mapping) => {
                let keys = self.mapping_keys(*mapping);
                let absent = |key: &String| json!({ "key": key, "target": "CREATE" });
                json!({
                    "compare": keys.iter().map(absent).collect::<Vec<_>>(),
                    "success": puts(&keys, *mapping, false, 0),
                })
            }
            StoreChange::HoldMapping(mapping) => {
                let keys = self.mapping_keys(*mapping);
                let value = MappingValue::encode(*mapping, false);
                json!({
                    "compare": [{ "key": keys[0], "target": "VALUE", "value": value }],
                    "success": puts(&keys, *mapping, true, hold_lease),
                })
            }
            StoreChange::ResumeMapping(mapping) => {
                let keys = self.mapping_keys(*mapping);
                let value = encode(name(mapping.global));
                json!({
                    "compare": [{ "key": keys[1], "target": "VALUE", "value": value }],
                    "success": puts(&keys, *mapping, false, 0),
                })
            }
            // Leases end watchers and holds.
            StoreChange::RemoveWatcher(_) | StoreChange::RemoveHold(_) => json!({}),
        }
    }

    /// Returns the keys of the global and of the local channel. Channels of which the pool has only
    /// one at a time have the same key.
    fn mapping_keys(&self, mapping: StoredMapping) -> [String; 2] {
        let slot = self.pool.slot(mapping.local);
        let range = slot.and_then(|slot| self.pool.ranges().get(slot.range));
        let local = match range.map(|range| range.sources()) {
            Some(SourceRange::Keep) => format!("keep,{}", mapping.local.group()),
            _ => name(mapping.local),
        };
        [
            encode(key("global", &name(mapping.global))),
            encode(key("local", &local)),
        ]
    }
}

/// Returns the members. Reads the files of TLS, so that faults are reported at the start.
fn members(options: &EtcdOptions) -> Result<Vec<EtcdMember>, EtcdStoreError> {
    let member = |url: &String| {
        let member = EtcdMember::parse(url);
        member.ok_or_else(|| EtcdStoreError::Url(url.clone()))
    };
    let members: Result<Vec<EtcdMember>, _> = options.urls.iter().map(member).collect();
    let members = members?;
    match members.iter().any(EtcdMember::has_tls) {
        true => drop(options.tls_files().config()?),
        false if options.ca.is_some() || options.cert.is_some() => {
            return Err(EtcdStoreError::UnusedTls);
        }
        false => {}
    }
    Ok(members)
}

fn key(kind: &str, name: &str) -> String {
    match name.is_empty() {
        true => format!("{PREFIX}{kind}"),
        false => format!("{PREFIX}{kind}/{name}"),
    }
}

fn name(channel: Channel) -> String {
    match channel.source() {
        Some(source) => format!("{source},{}", channel.group()),
        None => format!("*,{}", channel.group()),
    }
}

/// Returns the id of the lease of a watcher: 60 of the 125 random bits of its id.
fn lease(id: &str) -> u64 {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        _ => byte & 31,
    };
    let bits = id.bytes().take(12);
    bits.fold(1, |bits, byte| bits << 5 | u64::from(digit(byte))) & (i64::MAX as u64)
}

/// Returns the operations that write both keys of a mapping.
fn puts(keys: &[String; 2], mapping: StoredMapping, is_held: bool, lease: u64) -> Vec<Value> {
    let values = [
        MappingValue::encode(mapping, is_held),
        encode(name(mapping.global)),
    ];
    let put = |(key, value): (&String, &String)| json!({ "request_put": { "key": key, "value": value, "lease": lease.to_string() } });
    keys.iter().zip(&values).map(put).collect()
}

/// Returns what a key that was written means.
fn put_event(key: &[u8], pair: &Value, own: Option<&AHashMap<String, u64>>) -> Option<SharedEvent> {
    let path = std::str::from_utf8(key).ok()?.strip_prefix(PREFIX)?;
    let value = || decode(&pair["value"]);
    let (kind, _) = path.split_once('/')?;
    match kind {
        "watcher" => {
            let mut watcher: StoredWatcher = serde_json::from_slice(&value()?).ok()?;
            watcher.revision = number(&pair["mod_revision"]);
            let own = own.and_then(|own| own.get(&watcher.id).copied());
            Some(SharedEvent::Watcher(watcher, own))
        }
        "global" => {
            let value: MappingValue = serde_json::from_slice(&value()?).ok()?;
            Some(match value.is_held {
                true => SharedEvent::Hold(value.mapping),
                false => SharedEvent::Mapping(value.mapping),
            })
        }
        _ => None,
    }
}

/// Returns what a key that was removed means.
fn removed_event(key: &[u8]) -> Option<SharedEvent> {
    let path = std::str::from_utf8(key).ok()?.strip_prefix(PREFIX)?;
    let (kind, name) = path.split_once('/')?;
    match kind {
        "watcher" => Some(SharedEvent::WatcherExpired(name.into())),
        "global" => {
            let (source, group) = name.split_once(',')?;
            let global = Channel::parse((source != "*").then_some(source), group).ok()?;
            Some(SharedEvent::MappingRemoved(global))
        }
        _ => None,
    }
}

/// Sorts the events of a revision: mappings before the joins that need them.
fn sort(events: &mut [SharedEvent]) {
    events.sort_by_key(|event| match event {
        SharedEvent::Mapping(_) | SharedEvent::Hold(_) | SharedEvent::MappingRemoved(_) => 0,
        SharedEvent::Watcher(..) | SharedEvent::WatcherExpired(_) => 1,
    });
}

fn commit_error(error: EtcdError) -> CommitError {
    CommitError(error.to_string())
}

impl MappingStore for EtcdStore {
    async fn commit(
        &mut self,
        transactions: &[Transaction],
    ) -> Result<Vec<SharedEvents>, CommitError> {
        let mut last = 0;
        for batch in self.batches(transactions) {
            last = match self.commit_batch(&batch).await {
                Ok(revision) => revision,
                Err(EtcdError::Refused(why)) => {
                    warn!("mnat-server: etcd refuses a transaction: {why}");
                    return Err(CommitError(why));
                }
                Err(e) => return Err(commit_error(e)),
            };
        }
        self.read_until(last).await.map_err(commit_error)?;
        Ok(self.events.drain(..).collect())
    }

    async fn events(&mut self) -> Result<SharedEvents, CommitError> {
        self.read().await.map_err(commit_error)?;
        Ok(self.events.pop_front().unwrap_or_default())
    }

    async fn prolong(&mut self, ids: &[Arc<str>]) -> Result<(), CommitError> {
        for ids in ids.chunks(MAX_PROLONGED) {
            let one = |id: &Arc<str>| json!({ "ID": lease(id).to_string() }).to_string();
            let body: String = ids.iter().map(one).collect();
            let prolonged = self.api.call("/v3/lease/keepalive", body).await;
            prolonged.map_err(commit_error)?;
        }
        Ok(())
    }

    fn check_interval(&self) -> Option<Duration> {
        Some(CHECK_INTERVAL)
    }
}
