//! Several servers and a shared store, which is simulated.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::tests::{MODEL_POOL, channel, ours, pool, random};
use super::*;
use crate::mnat_server::changes::StoredMapping;
use crate::mnat_server::pool::{PoolSlot, Suitability};

const WATCHER_LEASE: Duration = Duration::from_secs(75);
const HOLD_LEASE: Duration = Duration::from_secs(65);

/// A shared store, as the documentation of `EtcdStore` describes it.
struct SimulatedStore {
    pool: Pool,
    /// The log of all events; the revision is its length.
    log: Vec<SharedEvent>,
    watchers: BTreeMap<String, (StoredWatcher, Instant)>,
    /// The mappings. A hold-down also has the time at which it ends.
    mappings: BTreeMap<Channel, (StoredMapping, Option<Instant>)>,
}

impl SimulatedStore {
    fn slot(&self, local: Channel) -> PoolSlot {
        self.pool.slot(local).unwrap()
    }

    fn owner(&self, slot: PoolSlot) -> Option<Channel> {
        let mut all = self.mappings.values();
        all.find(|(m, _)| self.slot(m.local) == slot)
            .map(|(m, _)| m.global)
    }

    /// Applies a change if its condition is met.
    fn commit(&mut self, change: StoreChange, now: Instant) -> bool {
        let event = match change {
            StoreChange::PutWatcher(mut watcher) => {
                let stored = self.watchers.get(&watcher.id);
                let revision = stored.map_or(0, |(w, _)| w.revision);
                if revision != watcher.revision {
                    return false;
                }
                let expires = stored.map_or(now + WATCHER_LEASE, |(_, at)| *at);
                watcher.revision = self.log.len() as u64 + 1;
                self.watchers
                    .insert(watcher.id.clone(), (watcher.clone(), expires));
                SharedEvent::Watcher(watcher, None)
            }
            StoreChange::PutMapping(m) => {
                let is_taken = self.owner(self.slot(m.local)).is_some();
                if is_taken || self.mappings.contains_key(&m.global) {
                    return false;
                }
                self.mappings.insert(m.global, (m, None));
                SharedEvent::Mapping(m)
            }
            StoreChange::HoldMapping(m) => {
                if self.mappings.get(&m.global) != Some(&(m, None)) {
                    return false;
                }
                self.mappings.insert(m.global, (m, Some(now + HOLD_LEASE)));
                SharedEvent::Hold(m)
            }
            StoreChange::ResumeMapping(m) => {
                if self.owner(self.slot(m.local)) != Some(m.global) {
                    return false;
                }
                self.mappings.insert(m.global, (m, None));
                SharedEvent::Mapping(m)
            }
            other => panic!("{other:?}"),
        };
        self.log.push(event);
        true
    }

    /// Ends the leases that are over.
    fn expire(&mut self, now: Instant) {
        let over = self.watchers.iter().filter(|(_, (_, at))| *at <= now);
        let over: Vec<String> = over.map(|(id, _)| id.clone()).collect();
        for id in over {
            self.watchers.remove(&id);
            self.log.push(SharedEvent::WatcherExpired(id));
        }
        let over = self.mappings.iter();
        let over = over.filter(|(_, (_, until))| until.is_some_and(|at| at <= now));
        let over: Vec<Channel> = over.map(|(global, _)| *global).collect();
        for global in over {
            self.mappings.remove(&global);
            self.log.push(SharedEvent::MappingRemoved(global));
        }
    }

    fn state(&self) -> SharedEvents {
        let mappings = self.mappings.values().map(|(m, until)| match until {
            Some(_) => SharedEvent::Hold(*m),
            None => SharedEvent::Mapping(*m),
        });
        let watchers = self.watchers.values();
        let watchers = watchers.map(|(w, _)| SharedEvent::Watcher(w.clone(), None));
        SharedEvents {
            is_complete: true,
            events: mappings.chain(watchers).collect(),
        }
    }

    fn joined(&self) -> BTreeSet<Channel> {
        let joined = self.watchers.values().flat_map(|(w, _)| &w.joined);
        joined.flatten().filter_map(used_channel).collect()
    }
}

fn used_channel(subscription: &Subscription) -> Option<Channel> {
    match subscription {
        Subscription::Channel(channel) => Some(*channel),
        Subscription::Unusable { .. } => None,
    }
}

/// A server with its connection to the store.
struct Server {
    machine: ServerMachine,
    queue: VecDeque<Transaction>,
    prolonged: BTreeSet<String>,
    /// How much of the log it has seen.
    position: usize,
    /// The own transactions in the log that it has not seen.
    own: BTreeMap<usize, u64>,
    written: BTreeMap<String, (u64, u64)>,
    is_cut_off: bool,
}

impl Server {
    fn start(store: &SimulatedStore, seed: u64, now: Instant) -> Self {
        let mut machine = ServerMachine::new_shared(store.pool.clone(), Box::new(random(seed)));
        machine.absorb(store.state(), now);
        Self {
            machine,
            queue: VecDeque::new(),
            prolonged: BTreeSet::new(),
            position: store.log.len(),
            own: BTreeMap::new(),
            written: BTreeMap::new(),
            is_cut_off: false,
        }
    }

    fn collect(&mut self, now: Instant) {
        while let Some(output) = self.machine.poll_output(now) {
            match output {
                ServerOutput::Commit(transaction) => self.queue.push_back(transaction),
                ServerOutput::Prolong(id) => drop(self.prolonged.insert(id.to_string())),
                ServerOutput::Changed(_) => {}
            }
        }
    }

    /// Applies the log up to a position.
    fn follow(&mut self, store: &SimulatedStore, until: usize, now: Instant) {
        while self.position < until {
            let mut event = store.log[self.position].clone();
            let own_transaction = self.own.remove(&self.position);
            match &mut event {
                SharedEvent::Watcher(watcher, own) => {
                    *own = own_transaction;
                    if own.is_none() {
                        self.written.remove(&watcher.id);
                    }
                }
                SharedEvent::WatcherExpired(id) => drop(self.written.remove(id)),
                _ => {}
            }
            self.position += 1;
            let events = vec![event];
            let is_complete = false;
            let events = SharedEvents {
                is_complete,
                events,
            };
            self.machine.absorb(events, now);
        }
        self.collect(now);
    }

    /// Commits up to `count` transactions, and then knows the state at that time.
    fn commit(&mut self, store: &mut SimulatedStore, count: usize, now: Instant) {
        if self.is_cut_off {
            return;
        }
        self.collect(now);
        let count = count.min(self.queue.len());
        let batch: Vec<Transaction> = self.queue.drain(..count).collect();
        let numbered = |t: Transaction| t.changes.into_iter().map(move |c| (t.sequence, c));
        for (sequence, mut change) in batch.into_iter().flat_map(numbered) {
            let mut before = None;
            if let StoreChange::PutWatcher(watcher) = &mut change {
                let revision = watcher.revision;
                let own = self.written.get(&watcher.id).copied();
                let own = own.filter(|(first, since)| (*first..=*since).contains(&revision));
                let (first, since) = own.unwrap_or((revision, revision));
                before = Some((watcher.id.clone(), first));
                watcher.revision = since;
            }
            if store.commit(change, now) {
                self.own.insert(store.log.len() - 1, sequence);
                if let Some((id, revision)) = before {
                    self.written.insert(id, (revision, store.log.len() as u64));
                }
            }
        }
        for id in std::mem::take(&mut self.prolonged) {
            if let Some((_, expires)) = store.watchers.get_mut(&id) {
                *expires = now + WATCHER_LEASE;
            }
        }
        self.follow(store, store.log.len(), now);
    }

    fn settle(&mut self, store: &mut SimulatedStore, now: Instant) {
        self.commit(store, usize::MAX, now);
        while !self.is_cut_off && !self.queue.is_empty() {
            self.commit(store, usize::MAX, now);
        }
    }

    fn set_joined(&mut self, id: &str, joined: &BTreeSet<Channel>, now: Instant) -> bool {
        let joined = joined.iter().copied().map(Subscription::Channel).collect();
        let id = id.into();
        let set = ServerRequest::SetJoined(JoinedSet { id, joined });
        let is_known = self.machine.handle(set, &ours(), now).is_ok();
        self.collect(now);
        is_known
    }

    fn mappings(&self) -> BTreeMap<Channel, (u64, Channel)> {
        let streams = self.machine.assignments.streams();
        let mappings = streams.filter_map(|(g, s)| Some((g, (s.id, s.local?))));
        mappings.collect()
    }
}

/// Random requests at three servers, which lag, lose their connection, read the whole state again
/// and die. `MCASTOR_MODEL_STEPS` and `MCASTOR_MODEL_SEED` set the number of steps and the seed.
#[test]
fn servers_with_a_shared_store_behave_as_one() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let steps = variable("MCASTOR_MODEL_STEPS").unwrap_or(5_000);
    let seed = variable("MCASTOR_MODEL_SEED").unwrap_or_else(|| {
        use std::hash::{BuildHasher, Hasher, RandomState};
        RandomState::new().build_hasher().finish()
    });
    println!("MCASTOR_MODEL_SEED={seed} MCASTOR_MODEL_STEPS={steps}");
    let mut random_number = random(seed);
    let mut channels: Vec<Channel> = Vec::new();
    for n in 1..=14 {
        channels.push(channel(&format!("10.0.0.{n}"), "232.1.1.1"));
        channels.push(channel(&format!("2001:db8::{n}"), "ff3e::1"));
        if n <= 4 {
            channels.push(channel("*", &format!("239.9.9.{n}")));
        }
    }
    let mut now = Instant::now();
    let mut store = SimulatedStore {
        pool: pool(MODEL_POOL),
        log: Vec::new(),
        watchers: BTreeMap::new(),
        mappings: BTreeMap::new(),
    };
    let mut servers: Vec<Server> = (0..3)
        .map(|n| Server::start(&store, seed ^ n, now))
        .collect();
    // The joins that were confirmed to a client, unless another request followed.
    let mut confirmed: BTreeMap<String, BTreeSet<Channel>> = BTreeMap::new();
    // The local channels of streams that are joined all the time.
    let mut stable: BTreeMap<Channel, Channel> = BTreeMap::new();
    let (mut deaths, mut full) = (0u64, 0u32);
    for step in 0..steps {
        let mut below = |n: usize| (random_number() % n as u128) as usize;
        let ids: Vec<String> = store.watchers.keys().cloned().collect();
        let id = ids.get(below(ids.len().max(1))).cloned();
        let n = below(3);
        match (below(100), id) {
            (0..8, _) if ids.len() < 8 => {
                let server = &mut servers[n];
                let granted = server
                    .machine
                    .handle(ServerRequest::NewWatcher, &ours(), now);
                assert!(granted.is_ok(), "{granted:?}");
                server.collect(now);
            }
            (0..45, Some(id)) => {
                let share = if (step / 500) % 2 == 0 { 8 } else { 2 };
                let wanted = channels.iter().filter(|_| below(share) == 0);
                let wanted: BTreeSet<Channel> = wanted.copied().collect();
                let is_waiting = below(2) == 0;
                let server = &mut servers[n];
                confirmed.remove(&id);
                if !server.set_joined(&id, &wanted, now) || !is_waiting || server.is_cut_off {
                    continue;
                }
                // The client waits for the answer.
                for _ in 0..3 {
                    server.settle(&mut store, now);
                    let joined = wanted.iter().copied().map(Subscription::Channel);
                    let joined = joined.collect();
                    let set = JoinedSet {
                        id: id.clone(),
                        joined,
                    };
                    if !server.machine.has_joins(&set) {
                        server.set_joined(&set.id, &wanted, now);
                    }
                }
                server.settle(&mut store, now);
                assert!(!server.machine.has_proposals(&id));
                if store.watchers.contains_key(&id) {
                    confirmed.insert(id, wanted);
                }
            }
            (45..60, Some(id)) => {
                let refresh = ServerRequest::Refresh(id);
                let _ = servers[n].machine.handle(refresh, &ours(), now);
                servers[n].collect(now);
            }
            (60..75, _) => {
                let count = below(3);
                servers[n].commit(&mut store, count, now);
            }
            (75..85, _) if !servers[n].is_cut_off => {
                let behind = store.log.len() - servers[n].position;
                let until = servers[n].position + below(behind + 1);
                servers[n].follow(&store, until, now);
            }
            (85..93, _) => {
                now += Duration::from_millis(below(5000) as u64);
                // A server does its work within this time.
                for server in &mut servers {
                    server.settle(&mut store, now);
                }
                store.expire(now);
            }
            (93..96, _) => {
                let is_cut_off = servers[n].is_cut_off;
                servers.iter_mut().for_each(|s| s.is_cut_off = false);
                servers[n].is_cut_off = !is_cut_off;
            }
            (96..98, _) => {
                deaths += 1;
                servers[n] = Server::start(&store, seed ^ (deaths << 8), now);
            }
            (98.., _) if !servers[n].is_cut_off => {
                // The log was compacted.
                servers[n].machine.absorb(store.state(), now);
                servers[n].position = store.log.len();
                servers[n].own.clear();
                servers[n].collect(now);
            }
            _ => {}
        }
        // No slot has two owners.
        let slots = store.mappings.values().map(|(m, _)| store.slot(m.local));
        let slots: BTreeSet<PoolSlot> = slots.collect();
        assert_eq!(slots.len(), store.mappings.len());
        // A stream that is joined all the time keeps its local channel.
        let joined = store.joined();
        stable.retain(|global, _| joined.contains(global));
        for (global, (mapping, _)) in &store.mappings {
            if joined.contains(global) {
                let before = stable.insert(*global, mapping.local);
                assert!(before.is_none_or(|b| b == mapping.local), "{global} moved");
            }
        }
        let kept = stable
            .keys()
            .all(|global| store.mappings.contains_key(global));
        assert!(kept, "a joined stream lost its local channel");
        for (id, wanted) in &confirmed {
            if let Some((watcher, _)) = store.watchers.get(id) {
                let stored = watcher.joined.iter().flatten().filter_map(used_channel);
                assert_eq!(&stored.collect::<BTreeSet<_>>(), wanted, "{id}");
            }
        }
        if step % 200 != 199 {
            continue;
        }
        // After some time without requests, all servers have the state of the store, and it is
        // complete.
        servers.iter_mut().for_each(|s| s.is_cut_off = false);
        for (_, expires) in store.watchers.values_mut() {
            *expires = now + WATCHER_LEASE;
        }
        for _ in 0..30 {
            now += Duration::from_millis(500);
            servers.iter_mut().for_each(|s| s.settle(&mut store, now));
            store.expire(now);
        }
        servers.iter_mut().for_each(|s| s.settle(&mut store, now));
        let joined = store.joined();
        let active = store.mappings.values().filter(|(_, until)| until.is_none());
        let active: BTreeMap<_, _> = active.map(|(m, _)| (m.global, (m.id, m.local))).collect();
        let unjoined = active.keys().find(|global| !joined.contains(global));
        assert_eq!(unjoined, None, "assigned, but not joined");
        let held = store.mappings.len() - active.len();
        for server in &servers {
            assert_eq!(server.position, store.log.len());
            assert_eq!(server.mappings(), active);
            let counts = server.machine.counts();
            assert_eq!((counts.assigned, counts.held), (active.len(), held));
            assert_eq!(counts.waiting, joined.len() - active.len());
            assert_eq!(counts.watchers, store.watchers.len());
        }
        for global in joined.iter().filter(|g| !active.contains_key(g)) {
            full += 1;
            assert!(!store.mappings.contains_key(global), "{global} is held");
            for (range, r) in store.pool.ranges().iter().enumerate() {
                let suits: Option<Suitability> = r.suits(*global, false);
                let slots = (0..r.size()).map(|index| PoolSlot { range, index });
                let mut free = slots.filter(|slot| store.owner(*slot).is_none());
                assert!(suits.is_none() || free.next().is_none(), "{global} waits");
            }
        }
    }
    println!("{deaths} deaths, {full} streams that waited for a full pool");
    assert!(steps < 1000 || (deaths > 0 && full > 0));
}
